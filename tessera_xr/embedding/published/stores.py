"""Published Zarr stores, one UTM zone at a time: what they claim is checked before it is believed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise, product
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
from odc.geo.geobox import GeoBox

from tessera_xr.embedding.published.guard import GuardedStore
from tessera_xr.embedding.published.remote import Folder, Site
from tessera_xr.embedding.published.shard_reading import READ_AT_ONCE, can_read, read_part
from tessera_xr.embedding.published.store_checks import check_array, child, read_grid, read_years
from tessera_xr.embedding.schema import COUNTS, EMBEDDINGS, SCALES
from tessera_xr.errors import StoreError

if TYPE_CHECKING:
    import zarr


class Piece(Protocol):
    """Embeddings of several years on one grid: a zone of a store, a tile, a file."""

    @property
    def box(self) -> GeoBox:
        """Its grid, in the northern UTM CRS."""

    @property
    def years(self) -> tuple[int, ...]:
        """Years that it has."""

    @property
    def n_bands(self) -> int:
        """Length of its embeddings."""

    @property
    def counts(self) -> tuple[str, ...]:
        """Which counts of observations it has."""

    @property
    def zone(self) -> int | None:
        """Its UTM zone, if it is one."""

    @property
    def chunk(self) -> tuple[int, int]:
        """Rows and columns that are read together, however few are asked for."""

    @property
    def remote(self) -> bool:
        """Whether a read has to wait for others."""

    @property
    def name(self) -> str:
        """What to call it."""

    def read_scales(self, year: int, rows: slice, columns: slice) -> npt.NDArray[np.float32]:
        """Return scales (y, x) as published: NaN water, +inf no data."""

    def read_codes(self, year: int, rows: slice, columns: slice) -> npt.NDArray[np.int8]:
        """Return codes (y, x, band)."""

    def read_counts(self, name: str, year: int, rows: slice, columns: slice) -> npt.NDArray[np.uint16]:
        """Return counts of observations (y, x)."""


@dataclass(frozen=True)
class ZarrZone:
    """One zone of a Zarr store."""

    box: GeoBox
    years: tuple[int, ...]
    n_bands: int
    counts: tuple[str, ...]
    zone: int | None
    chunk: tuple[int, int]
    remote: bool
    name: str
    arrays: Mapping[str, Any] = field(repr=False)
    """Its Zarr arrays; "embeddings" is the one of the length asked for."""
    guard: GuardedStore = field(repr=False)
    band_last: bool = False
    """Embeddings are (time, y, x, band), as Icechunk stores have them."""
    nan_is_water: bool = True
    """A scale of NaN means water, not merely no data."""
    first_row: int = 0
    """Row of the arrays where `box` begins."""
    empty_years: tuple[int, ...] = ()
    """Years for which nothing was written."""

    def read_scales(self, year: int, rows: slice, columns: slice) -> npt.NDArray[np.float32]:
        """Return scales (y, x), NaN for water and +inf for no data."""
        scales: npt.NDArray[np.float32] = self._read(SCALES, year, rows, columns)
        if not self.nan_is_water:
            scales[np.isnan(scales)] = np.inf
        return scales

    def read_codes(self, year: int, rows: slice, columns: slice) -> npt.NDArray[np.int8]:
        """Return codes (y, x, band)."""
        codes = self._read(EMBEDDINGS, year, rows, columns)
        return codes if self.band_last else np.ascontiguousarray(np.moveaxis(codes, 0, -1))

    def read_counts(self, name: str, year: int, rows: slice, columns: slice) -> npt.NDArray[np.uint16]:
        """Return counts (y, x)."""
        return self._read(name, year, rows, columns).astype(np.uint16)

    def _read(self, name: str, year: int, rows: slice, columns: slice) -> npt.NDArray[Any]:
        array, time = self.arrays[name], self.years.index(year)
        rows = slice(rows.start + self.first_row, rows.stop + self.first_row)
        if year in self.empty_years:
            return self._fill(name, rows, columns)
        if not self.band_last and can_read(self.guard, array):
            return self._decode(array, partial(read_part, self.guard, array, time, rows, columns))
        bands = array.ndim == 4
        parts = [(rows, columns)]
        if self.remote:  # Zarr asks for one after the other
            parts = list(product(_cuts(rows, self.chunk[0]), _cuts(columns, self.chunk[1])))

        def read(part: tuple[slice, slice]) -> npt.NDArray[Any]:
            key = (time, *part) if not bands or self.band_last else (time, slice(None), *part)
            return self._decode(array, partial(array.__getitem__, key))

        if len(parts) == 1:
            return read(parts[0])
        out = self._fill(name, rows, columns)
        with ThreadPoolExecutor(READ_AT_ONCE) as pool:
            for (r, c), block in zip(parts, pool.map(read, parts), strict=True):
                place = (_shift(r, rows.start), _shift(c, columns.start))
                out[place if not bands or self.band_last else (slice(None), *place)] = block
        return out

    def _fill(self, name: str, rows: slice, columns: slice) -> npt.NDArray[Any]:
        array, size = self.arrays[name], (rows.stop - rows.start, columns.stop - columns.start)
        if array.ndim == 4:
            size = (*size, array.shape[-1]) if self.band_last else (array.shape[1], *size)  # type: ignore[assignment]
        return np.full(size, np.inf if name == SCALES else 0, dtype=array.dtype)

    def _decode(self, array: zarr.Array[Any], read: Callable[[], Any]) -> npt.NDArray[Any]:
        """Read a part of an array; what can't be decoded is read once more, from the beginning."""
        last: Exception | None = None
        for _ in range(2):
            try:
                return np.array(read())
            except StoreError:
                raise
            except (ValueError, RuntimeError, OSError, TypeError) as error:
                last = error
                self.guard.forget()
        raise StoreError(
            f"{self.name}/{array.path} can't be decoded there ({type(last).__name__}: {str(last)[:200]}): it is "
            "damaged, or written in another way; try again, or name another copy with store="
        ) from last


def _cuts(span: slice, size: int) -> list[slice]:
    """Cut a span where chunks begin."""
    edges = [span.start, *range((span.start // size + 1) * size, span.stop, size), span.stop]
    return [slice(a, b) for a, b in pairwise(edges)]


def _shift(span: slice, by: int) -> slice:
    return slice(span.start - by, span.stop - by)


@dataclass
class ZarrRoot:
    """An open published store."""

    guard: GuardedStore
    group: Any
    """Its root group in Zarr."""
    attrs: dict[str, Any]
    _open: dict[tuple[int, int | None], ZarrZone | None] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What to call it."""
        return self.guard.name

    @property
    def zones(self) -> list[int]:
        """Zones that it says it has; none if it can't tell."""
        listed = getattr(self.group.metadata, "consolidated_metadata", None)
        names = list(listed.metadata) if listed else []
        return sorted(int(n[3:]) for n in names if re.fullmatch(r"utm\d\d", n))

    def open_zone(self, zone: int, dims: int | None = None) -> ZarrZone | None:
        """Return a zone with embeddings of a length; None if the store lacks it."""
        if (zone, dims) not in self._open:
            group = child(self.group, f"utm{zone:02}")
            self._open[zone, dims] = None if group is None else open_zone(self.guard, group, zone, dims)
        return self._open[zone, dims]


def open_root(inner: Folder | Site | Any) -> ZarrRoot | None:
    """Return a published Zarr store; None if there is no Zarr group."""
    import zarr
    from zarr.errors import GroupNotFoundError

    guard = GuardedStore(inner)
    try:
        group = zarr.open_group(guard, mode="r", zarr_format=3)
    except (GroupNotFoundError, FileNotFoundError):
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"the metadata of {guard.name} can't be read ({type(error).__name__}: {error})") from error
    return ZarrRoot(guard, group, dict(group.attrs))


def open_zone(guard: GuardedStore, group: Any, zone: int, dims: int | None) -> ZarrZone:
    """Return a zone of the layout utmNN, its arrays checked."""
    name = f"{guard.name}/utm{zone:02}"
    arrays = {n: child(group, n) for n in (EMBEDDINGS, SCALES, *COUNTS)}
    arrays = {n: a for n, a in arrays.items() if a is not None}
    n_bands = _checked(arrays, name, (EMBEDDINGS, SCALES))[EMBEDDINGS].shape[1]
    if dims is not None and dims != n_bands:
        shorter = child(group, f"{EMBEDDINGS}_d{dims}")
        if shorter is not None:
            arrays[EMBEDDINGS] = shorter
    shape = arrays[SCALES].shape
    for key, array in arrays.items():
        wanted = (shape[0], array.shape[1] if array.ndim == 4 else 0, *shape[1:]) if key == EMBEDDINGS else shape
        check_array(guard, array, key, ("time", "band", "y", "x") if key == EMBEDDINGS else ("time", "y", "x"), wanted)
    box = read_grid(guard, group, zone, shape[1:], name)
    return ZarrZone(
        box=box,
        years=read_years(guard, child(group, "time"), shape[0], name),
        n_bands=arrays[EMBEDDINGS].shape[1],
        counts=tuple(n for n in COUNTS if n in arrays),
        zone=zone,
        chunk=arrays[EMBEDDINGS].chunks[-2:],
        remote=guard.remote,
        name=guard.name,
        arrays=arrays,
        guard=guard,
        nan_is_water=group.attrs.get("geotessera:mask_source") != "source_nodata",
    )


def _checked(arrays: Mapping[str, Any], name: str, needed: tuple[str, ...]) -> Mapping[str, Any]:
    missing = [n for n in needed if not hasattr(arrays.get(n), "chunks")]
    if missing:
        raise StoreError(f"{name} lacks the arrays {missing}; it is no published store of embeddings")
    return arrays


def each_zone(west: float, east: float, margin: float = 0.1) -> Iterator[int]:
    """Yield the zones that may hold pixels between two longitudes: a tile at an edge is in the zone of its middle."""
    from tessera_xr.area import utm_zone

    yield from range(utm_zone(max(west - margin, -180)), utm_zone(min(east + margin, 180)) + 1)
