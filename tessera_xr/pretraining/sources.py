"""Where d-pixels come from: cubes, simulated d-pixels, arrays, or functions that return them; read in blocks."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import xarray as xr

from tessera_xr.embedding.engine import check_pixels as check_pixels
from tessera_xr.errors import SchemaError
from tessera_xr.pretraining.ragged import Ragged, offsets_of
from tessera_xr.sentinel.bands import day_of_year
from tessera_xr.sentinel.cube import check_cube, is_cube, require_span
from tessera_xr.sentinel.simulate import DPixels

Source: TypeAlias = "xr.Dataset | DPixels | Mapping[str, Any] | Callable[[], Any]"
"""A cube of at most a year, simulated d-pixels, the arrays of `embed_pixels` by name, or a function returning one."""

BLOCK = 1 << 22
"""Observations (pixels x steps of both sensors) that are read at once."""
ARRAYS = ("s2", "s2_doy", "s2_valid", "s1", "s1_doy", "s1_orbit")
FIRST_PIXELS = 16  # enough to tell one source from another of the same shape and dates


@dataclass(frozen=True)
class Block:
    """Some d-pixels of one source, checked."""

    s2: npt.NDArray[Any]
    """(n, t2, 10)."""
    s2_doy: npt.NDArray[np.intp]
    """(t2,) or (n, t2)."""
    s2_valid: npt.NDArray[np.bool_]
    """(n, t2)."""
    s1: npt.NDArray[Any]
    """(n, t1, 2)."""
    s1_doy: npt.NDArray[np.intp]
    """(t1,) or (n, t1)."""
    s1_descending: npt.NDArray[np.bool_]
    """(t1,)."""

    def __len__(self) -> int:
        return len(self.s2)

    @property
    def s1_valid(self) -> npt.NDArray[np.bool_]:
        """(n, t1): where any of the two bands is there."""
        return np.asarray((self.s1 != 0).any(axis=2))

    def take(self, pixels: slice | npt.NDArray[np.intp]) -> Block:
        """Return some pixels only."""
        days = [d if d.ndim == 1 else d[pixels] for d in (self.s2_doy, self.s1_doy)]
        return Block(self.s2[pixels], days[0], self.s2_valid[pixels], self.s1[pixels], days[1], self.s1_descending)


def blocks(source: Source) -> Iterator[Block]:
    """Read a source, some pixels at a time.

    Raises
    ------
    SchemaError, CubeError
        If it is none, spans more than a year, or its arrays don't fit.
    """
    if callable(source) and not isinstance(source, (xr.Dataset, DPixels, Mapping)):
        source = source()
    if isinstance(source, xr.Dataset):
        yield from _cube_blocks(source)
        return
    whole = _arrays(source)
    size = max(BLOCK // max(whole.s2.shape[1] + whole.s1.shape[1], 1), 1)
    for start in range(0, len(whole), size):
        yield whole.take(slice(start, start + size))


def ragged_s2(block: Block) -> Ragged:
    """Return the valid Sentinel-2 observations of a block."""
    return _ragged(block.s2, block.s2_doy, block.s2_valid, np.zeros(block.s2.shape[1], dtype=bool), np.uint16)


def ragged_s1(block: Block) -> Ragged:
    """Return the valid Sentinel-1 observations of a block, ascending passes first."""
    return _ragged(block.s1, block.s1_doy, block.s1_valid, block.s1_descending, np.int16)


def fingerprint(block: Block) -> str:
    """Return a short text that tells a source by its first block from others."""
    some = block.take(slice(0, FIRST_PIXELS))
    parts = [np.ascontiguousarray(getattr(some, field.name)) for field in fields(Block)]
    crc = 0
    for part in parts:
        crc = zlib.crc32(part.tobytes(), zlib.crc32(str(part.shape).encode(), crc))
    return f"{crc:08x}"


def _ragged(
    values: npt.NDArray[Any],
    doy: npt.NDArray[np.intp],
    valid: npt.NDArray[np.bool_],
    descending: npt.NDArray[np.bool_],
    dtype: type[np.integer],
) -> Ragged:
    order = np.argsort(descending, kind="stable")
    values, valid = values[:, order], valid[:, order]
    days = np.broadcast_to(doy[..., order], valid.shape)[valid]
    kept, limits = values[valid], np.iinfo(dtype)
    if kept.size and (kept.min() < 0 or kept.max() > limits.max):
        raise SchemaError(
            f"values from {kept.min()} to {kept.max()} are not in TESSERA's units (0 to {limits.max}); "
            "Sentinel-2 is reflectance x 10,000, Sentinel-1 is (dB + 50) * 200"
        )
    group = np.broadcast_to(descending[order], valid.shape)[valid].astype(np.uint8)
    return Ragged(kept.astype(dtype), days.astype(np.uint16), group, offsets_of(valid.sum(axis=1)))


def _arrays(source: object) -> Block:
    if isinstance(source, Mapping):
        unknown = sorted(set(map(str, source)) - set(ARRAYS))
        if unknown:
            raise SchemaError(f"a source of arrays has the names {', '.join(ARRAYS)}, not {', '.join(unknown)}")
        return Block(*check_pixels(*(source.get(name) for name in ARRAYS)))
    if isinstance(source, DPixels):
        return Block(*check_pixels(*(getattr(source, name) for name in ARRAYS)))
    raise SchemaError(
        f"a source of d-pixels is a cube (as_cube), simulated d-pixels (simulate_pixels), a mapping of the arrays "
        f"{', '.join(ARRAYS)}, or a function that returns one of them, not {type(source).__name__}"
    )


def _cube_blocks(cube: xr.Dataset) -> Iterator[Block]:
    if not is_cube(cube):
        raise SchemaError("this Dataset is no cube; make one with as_cube(s2, s1)")
    check_cube(cube)
    require_span(cube, None)
    days = [day_of_year(cube[dim].values).astype(np.intp) for dim in ("s2_time", "s1_time")]
    descending = cube["s1_orbit"].values == "descending"
    rows = max(BLOCK // max(cube.sizes["x"] * (len(days[0]) + len(days[1])), 1), 1)
    for start in range(0, cube.sizes["y"], rows):
        part = cube[["s2", "s2_valid", "s1"]].isel(y=slice(start, start + rows)).load()
        s2, valid, s1 = (part[name].transpose("y", "x", ...).values for name in ("s2", "s2_valid", "s1"))
        n = s2.shape[0] * s2.shape[1]
        s2, valid, s1 = (a.reshape(n, *a.shape[2:]) for a in (s2, valid, s1))
        yield Block(s2, days[0], valid, s1, days[1], descending)
