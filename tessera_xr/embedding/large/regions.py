"""A large area as regions that fit in memory: how many, how large, what they take. No pixel is read here."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from tessera_xr.embedding.schema import COUNTS
from tessera_xr.errors import SchemaError

INNER = 32
"""Pixels along a side of an inner chunk, as in the published stores: what reading one pixel costs."""
LARGEST = 4096
"""Pixels along a side of the largest region: a shard of the published stores."""
COPIES = 5
"""What a pixel's observations take in all, in units of themselves, while the next region is read."""
OUTPUTS = 6
"""The same for what is made of them: the result, its shards before and after compression."""
FIXED = 128 << 20
"""Bytes that the encoder works in, whatever the region."""
FULL = 0.25
"""Share of the memory that a region fills at least, so that it may follow the chunks of the source."""


@dataclass(frozen=True)
class Region:
    """One shard of each variable: a rectangle of pixels of one area and period."""

    index: int
    """Place in the order of work, by which the journal knows it."""
    area: str
    """Name of the area, "" if there is only one."""
    time: int
    """Which of the periods."""
    row: int
    """Place in the grid of regions, from the top."""
    column: int
    """The same from the left."""
    y: slice
    """Rows of pixels."""
    x: slice
    """Columns of pixels."""

    @property
    def pixels(self) -> int:
        """Number of pixels."""
        return int((self.y.stop - self.y.start) * (self.x.stop - self.x.start))


@dataclass(frozen=True)
class AreaPlan:
    """How one area is cut."""

    name: str
    """Name of the area, "" if there is only one."""
    shape: tuple[int, int]
    """Pixels down and across."""
    region: tuple[int, int]
    """Pixels of a region down and across, multiples of 32."""
    n_times: int
    """Periods, each a map of its own."""
    dims: int
    """Values of an embedding."""
    memory: int
    """Bytes that a process takes for it, beside what it took before."""
    reads: float
    """How often a pixel of the source is read, 1 at best: more where regions cut its chunks."""

    @property
    def grid(self) -> tuple[int, int]:
        """Regions down and across."""
        return (-(-self.shape[0] // self.region[0]), -(-self.shape[1] // self.region[1]))

    @property
    def n_regions(self) -> int:
        """Regions of all periods."""
        return self.n_times * self.grid[0] * self.grid[1]

    @property
    def n_pixels(self) -> int:
        """Pixels of all periods."""
        return self.n_times * self.shape[0] * self.shape[1]

    def __str__(self) -> str:
        (height, width), (down, across) = self.shape, self.region
        times = f", {self.n_times} periods" if self.n_times > 1 else ""
        again = f"; the source is read {self.reads:.1f} times, as regions cut its chunks" if self.reads > 1.05 else ""
        return f"{height:,} x {width:,} px{times}: {_count(self.n_regions)} of up to {down} x {across} px{again}"

    def regions(self, first: int = 0) -> Iterator[Region]:
        """Yield all regions in the order of work, numbered from `first`."""
        (height, width), (rows, columns) = self.region, self.grid
        for i, place in enumerate(np.ndindex(self.n_times, rows, columns), start=first):
            time, row, column = place
            y = slice(row * height, min((row + 1) * height, self.shape[0]))
            x = slice(column * width, min((column + 1) * width, self.shape[1]))
            yield Region(i, self.name, time, row, column, y, x)


@dataclass(frozen=True)
class Plan:
    """What `embed_to_zarr` is going to do; printed, it reads as a few lines."""

    areas: tuple[AreaPlan, ...]
    """How each area is cut."""
    model: str
    """Name of the model."""
    kind: str
    """Kind of device and precision."""
    free: int
    """Bytes that are free on the disk."""
    seconds: float | None = None
    """What it is going to take in one process, if that was measured."""

    @property
    def n_regions(self) -> int:
        """Regions of all areas and periods."""
        return sum(area.n_regions for area in self.areas)

    @property
    def n_pixels(self) -> int:
        """Pixels of all areas and periods."""
        return sum(area.n_pixels for area in self.areas)

    @property
    def memory(self) -> int:
        """Bytes that a process takes, beside what it took before."""
        return max(area.memory for area in self.areas)

    @property
    def disk(self) -> int:
        """Bytes of the store, at most: what doesn't compress."""
        return int(sum(area.n_pixels * pixel_disk(area.dims) for area in self.areas))

    def __str__(self) -> str:
        time = "not measured; plan_regions(..., probe=True) does"
        if self.seconds is not None:
            time = f"about {_duration(self.seconds)} in one process, {self.n_pixels / self.seconds:,.0f} px/s"
        return "\n".join(
            [
                f"{self.n_pixels:,} pixels in {_count(self.n_regions)}, model {self.model} on {self.kind}",
                *(f"  {'area ' + a.name if a.name else 'area':<10} {a}" for a in self.areas),
                f"  memory     {_size(self.memory)} in each process, beside what it takes already",
                f"  disk       at most {_size(self.disk)}; {_size(self.free)} are free",
                f"  time       {time}",
            ]
        )

    __repr__ = __str__


def pixel_disk(dims: int) -> float:
    """Return the bytes of a pixel on disk, at most: no compression, and the indices of shards."""
    return 1.01 * (dims + 4 + 2 * len(COUNTS)) + 1


def cut_area(
    name: str,
    parts: Sequence[xr.Dataset],
    dims: int,
    memory: int,
    region: tuple[int, int] | None = None,
    *,
    at_least: float = 1,
) -> AreaPlan:
    """Return how to cut an area, so that one region at a time stays within `memory`.

    Among the regions that fit and fill at least a quarter of the memory, one is taken that reads the chunks of the
    source as few times as can be; among those the squarest.

    Parameters
    ----------
    name : str
    parts : sequence of Dataset
        The cube of each period.
    dims : int
        Values of an embedding.
    memory : int
        Bytes that a process may take.
    region : (int, int), optional
        Pixels down and across, instead.
    at_least : float, default 1
        How many regions there should be, so that every worker has one.

    Raises
    ------
    SchemaError
        If not even the smallest region fits, or the one asked for doesn't.
    """
    shape = (parts[0].sizes["y"], parts[0].sizes["x"])
    chunks = [_chunks(parts, dim) for dim in ("y", "x")]
    per_pixel, fixed = _needs(parts, dims)
    room = (memory - fixed) / per_pixel
    if region is None:
        if room < INNER**2:
            least = fixed + per_pixel * INNER**2
            raise SchemaError(
                f"memory={_size(memory)} is too little: one region of {INNER} x {INNER} px takes {_size(least)}, of "
                f"which the chunks of the source and the encoder take {_size(fixed)}; give at least that, or make the "
                "cube in smaller chunks"
            )
        region = _choose(shape, chunks, max(min(room, len(parts) * shape[0] * shape[1] / at_least), INNER**2))
    taken = int(fixed + per_pixel * region[0] * region[1])
    if taken > memory:
        raise SchemaError(
            f"a region of {region[0]} x {region[1]} px takes {_size(taken)}, more than memory={_size(memory)}; "
            "give that much, or start anew with smaller regions (overwrite=True)"
        )
    reads = math.prod(_reads(n, c, r) for n, c, r in zip(shape, chunks, region, strict=True))
    return AreaPlan(name, shape, region, len(parts), dims, taken, reads)


def cut_out(cube: xr.Dataset, y: slice, x: slice) -> xr.Dataset:
    """Return a part of a cube, each lazy block copied as it is cut: a view would keep the whole chunk of the source."""
    part = cube.isel(y=y, x=x)
    lazy = {n: a for n, a in part.data_vars.items() if a.chunks}
    copied = {n: a.copy(data=a.data.map_blocks(np.copy, dtype=a.dtype, meta=a.data._meta)) for n, a in lazy.items()}
    return part.assign(copied)


def _needs(parts: Sequence[xr.Dataset], dims: int) -> tuple[float, int]:
    """Return the bytes that a pixel takes, and those that a region of any size does."""
    from dask.system import CPU_COUNT

    names = ("s2", "s2_valid", "s1")
    held = max(sum(part[name].nbytes for name in names) / max(part.sizes["y"] * part.sizes["x"], 1) for part in parts)
    chunk = max(_largest_chunk(part[name]) for part in parts for name in names)
    return COPIES * held + OUTPUTS * pixel_disk(dims), FIXED + 2 * CPU_COUNT * chunk


def _largest_chunk(array: xr.DataArray) -> int:
    return math.prod(map(max, array.chunks)) * array.dtype.itemsize if array.chunks and array.size else 0


def _chunks(parts: Sequence[xr.Dataset], dim: str) -> npt.NDArray[np.intp]:
    """Return the edges of the chunks along y or x, those of the first variable that has any; none if not lazy."""
    arrays: list[Any] = [part[name] for part in parts for name in ("s2", "s2_valid", "s1")]
    found = next((a.chunksizes[dim] for a in arrays if a.chunks and a.size), ())
    return np.concatenate([[0], np.cumsum(found, dtype=np.intp)])


def _reads(size: int, edges: npt.NDArray[np.intp], step: int) -> float:
    """Return how often a place along one axis is read, if each region reads whole chunks."""
    if len(edges) == 1:
        return 1.0
    starts = np.arange(0, size, step)
    ends = np.minimum(starts + step, size)
    lower = edges[np.searchsorted(edges, starts, side="right") - 1]
    return float((edges[np.searchsorted(edges, ends)] - lower).sum() / size)


def _choose(shape: tuple[int, int], edges: Sequence[npt.NDArray[np.intp]], room: float) -> tuple[int, int]:
    """Return the sides of a region of at most `room` pixels."""
    whole = [min(-(-n // INNER) * INNER, LARGEST) for n in shape]
    sides = [np.arange(INNER, n + 1, INNER) for n in whole]
    reads = [np.array([_reads(n, e, int(s)) for s in side]) for n, e, side in zip(shape, edges, sides, strict=True)]
    height, width = np.meshgrid(*sides, indexing="ij")
    area = height * width
    fits = (area <= room) & (area >= FULL * min(room, whole[0] * whole[1]))
    fits |= area == area[area <= room].max()
    cost = np.round(reads[0][:, None] * reads[1][None, :], 2)
    order = np.lexsort([-area[fits], np.abs(np.log(height[fits] / width[fits])).round(6), cost[fits]])
    return int(height[fits][order[0]]), int(width[fits][order[0]])


def check_region(region: object) -> tuple[int, int] | None:
    """Return the sides of a region as a pair, from one number or two.

    Raises
    ------
    SchemaError
        Unless they are multiples of 32 from 32 to 4096.
    """
    if region is None:
        return None
    sides = region if isinstance(region, (tuple, list)) else (region, region)
    whole = [isinstance(s, (int, np.integer)) and not isinstance(s, bool) for s in sides]
    if len(sides) != 2 or not all(whole) or any(s % INNER or not INNER <= s <= LARGEST for s in sides):
        raise SchemaError(
            f"region={region!r} must be the side of a region in pixels, or a pair (down, across): multiples of "
            f"{INNER} from {INNER} to {LARGEST}"
        )
    return int(sides[0]), int(sides[1])


def check_memory(memory: object) -> int:
    """Return bytes, from a number or a text such as "2 GB".

    Raises
    ------
    SchemaError
        If it can't be read, or isn't above 0.
    """
    from dask.utils import parse_bytes

    try:
        found = int(parse_bytes(memory)) if isinstance(memory, (str, int, float)) else 0
    except (ValueError, OverflowError):
        found = 0
    if found <= 0 or isinstance(memory, bool):
        raise SchemaError(f"memory={memory!r} can't be read; give bytes, or a text such as '2 GB'")
    return found


def _count(n: int) -> str:
    return f"{n:,} region{'' if n == 1 else 's'}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _size(n: float) -> str:
    from dask.utils import format_bytes

    return str(format_bytes(int(n)))
