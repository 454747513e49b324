"""The pixels of one UTM zone of embeddings: of one year, in a rectangle, nearest to places, and what is in them."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt
import xarray as xr

from tessera_xr.embedding.quantize import dequantize
from tessera_xr.embedding.schema import EMBEDDINGS, KIND, QUALITY, QUALITY_FLAGS, SCALES, check_embeddings
from tessera_xr.errors import GridError, OutsideError, SchemaError
from tessera_xr.grid import crs_name, crs_of, geobox_of
from tessera_xr.sentinel.period import resolve_period

if TYPE_CHECKING:
    from affine import Affine

Floats: TypeAlias = npt.NDArray[np.float32]
Indices: TypeAlias = npt.NDArray[np.intp]
Bounds: TypeAlias = Sequence[float]
VALID, WATER, NODATA, OUTSIDE = "valid", "water", "nodata", "outside"
BLOCK = 32
"""Pixels a side of a published chunk: points are read from blocks of this size, never from a whole shard."""
BATCH = 256
"""Blocks of points in memory at once: 32 MB of codes."""


def zone_crs(ds: xr.Dataset) -> str:
    """Return the CRS of a zone, 'EPSG:32630' say."""
    crs = crs_of(ds)
    if crs is None:
        raise GridError("the zone has no CRS: neither a grid mapping nor an attribute `proj:code`")
    return crs_name(crs)


def pixel_size(ds: xr.Dataset) -> float:
    """Return the side of a pixel, in units of the CRS (m in UTM)."""
    x = ds["x"].values
    if len(x) > 1:  # read off the coordinates, which stay true where a map was cut or made coarser
        return float(abs(x[-1] - x[0]) / (len(x) - 1))
    if "spatial:transform" in ds.attrs:
        return abs(float(ds.attrs["spatial:transform"][0]))
    return float(abs(geobox_of(ds).resolution.x))


def zone_years(ds: xr.Dataset) -> list[int]:
    """Return the years in the order of `time`; none if the embeddings name no year."""
    if "time" in ds.coords:
        times = np.atleast_1d(ds["time"].values)
        if np.issubdtype(times.dtype, np.datetime64):
            return [int(year) + 1970 for year in times.astype("datetime64[Y]").astype(int)]
        return [int(time) for time in times]
    try:
        year = resolve_period(str(ds.attrs.get("period"))).year
    except SchemaError:
        return []
    return [] if year is None else [year]


@dataclass(frozen=True)
class Zone:
    """One year of a zone; rows count from the north."""

    ds: xr.Dataset
    """`embeddings`, `scales` with int8, `quality` if it is known; of all years, lazy or not."""
    time: dict[Hashable, int]
    """Index of the year; empty without a dimension `time`."""
    x: npt.NDArray[np.float64]
    """Centres of the columns, eastwards."""
    y: npt.NDArray[np.float64]
    """Centres of the rows, southwards."""
    upwards: bool
    """Whether the dataset counts its rows from the south."""
    size: float
    """Side of a pixel."""

    def window(self, rows: slice, columns: slice) -> xr.Dataset:
        """Return (band, y, x) of a window.

        In one step with the year: of a selection in two, Dask reads whole chunks, gigabytes in the published stores.
        """
        if self.upwards:
            last, (start, stop, _) = len(self.y) - 1, rows.indices(len(self.y))
            rows = slice(last - start, last - stop if stop <= last else None, -1)
        return self.ds.isel(self.time | {"y": rows, "x": columns})

    def transform(self, row: int, column: int) -> Affine:
        """Return the transform of a window with its first pixel there."""
        from affine import Affine

        half = 0.5 * self.size
        return Affine(self.size, 0, self.x[column] - half, 0, -self.size, self.y[row] + half)

    def pick(self, rows: Indices, columns: Indices) -> xr.Dataset:
        """Return (band, point) of some pixels; for arrays in memory, or lazy by xarray alone."""
        rows = len(self.y) - 1 - rows if self.upwards else rows
        return self.ds.isel(
            self.time | {"y": xr.DataArray(rows, dims="point"), "x": xr.DataArray(columns, dims="point")}
        )


def select_year(ds: xr.Dataset, year: int, array: str = EMBEDDINGS) -> Zone:
    """Return one year of a dataset; raise `SchemaError` unless it has embeddings of that year."""
    if array not in ds.data_vars:
        names = [str(name) for name in ds.data_vars if str(name).startswith(EMBEDDINGS)]
        raise SchemaError(f"there is no array {array!r} in this dataset; its embeddings are {names}")
    band = next((d for d in ds[array].dims if str(d).startswith("band")), "band")
    kept: dict[Hashable, xr.DataArray] = {EMBEDDINGS: ds[array].rename({band: "band"} if band != "band" else {})}
    kept |= {name: ds[name] for name in (SCALES, QUALITY) if name in ds}
    zone = xr.Dataset(kept, attrs=ds.attrs)
    check_embeddings(zone)
    years = zone_years(ds)
    found = [i for i, known in enumerate(years) if known == year]
    if len(found) != 1:
        several = f"{len(found)} times of" if found else "no"
        raise SchemaError(f"these embeddings have {several} year {year}; years: {years}")
    x, y = zone["x"].values, zone["y"].values
    upwards = len(y) > 1 and bool(y[0] < y[-1])
    time: dict[Hashable, int] = {"time": found[0]} if "time" in zone.dims else {}
    return Zone(zone, time, x, y[::-1] if upwards else y, upwards, pixel_size(ds))


def cut(zone: Zone, bbox: Bounds) -> tuple[slice, slice]:
    """Return the rows and columns whose centres lie in a rectangle."""
    bounds = np.asarray(bbox, dtype=np.float64)
    if bounds.shape != (4,) or not np.isfinite(bounds).all():
        raise SchemaError(f"bbox must be four finite numbers (west, south, east, north), not {bbox!r}")
    (west, east), (south, north) = sorted(bounds[[0, 2]]), sorted(bounds[[1, 3]])
    left, right = np.searchsorted(zone.x, west, "left"), np.searchsorted(zone.x, east, "right")
    top, bottom = np.searchsorted(-zone.y, -north, "left"), np.searchsorted(-zone.y, -south, "right")
    if right <= left or bottom <= top:
        raise OutsideError(
            f"no pixel of the zone has its centre in {tuple(bbox)}; its centres reach from {zone.x[0]:.1f} to "
            f"{zone.x[-1]:.1f} E and from {zone.y[-1]:.1f} to {zone.y[0]:.1f} N"
        )
    return slice(int(top), int(bottom)), slice(int(left), int(right))


def find_pixels(
    zone: Zone, e: npt.NDArray[np.float64], n: npt.NDArray[np.float64]
) -> tuple[Indices, Indices, npt.NDArray[np.bool_]]:
    """Return the row and column whose centre is nearest, and whether it is within a pixel of the place."""
    rows, columns = np.zeros(len(e), np.intp), np.zeros(len(e), np.intp)
    inside = np.isfinite(e) & np.isfinite(n)
    columns[inside], rows[inside] = _nearest(zone.x, e[inside]), _nearest(-zone.y, -n[inside])
    near = (np.abs(zone.x[columns] - e) <= zone.size) & (np.abs(zone.y[rows] - n) <= zone.size)
    return rows, columns, inside & near


def _nearest(axis: npt.NDArray[np.float64], values: npt.NDArray[np.float64]) -> Indices:
    """Return the index of the nearest value of an ascending axis; half-way, the first of two."""
    after = np.minimum(np.searchsorted(axis, values), len(axis) - 1)
    before = np.maximum(after - 1, 0)
    return np.where(values - axis[before] <= axis[after] - values, before, after)


def read_pixels(zone: Zone, rows: Indices, columns: Indices, *, progress: bool) -> Iterator[tuple[Indices, xr.Dataset]]:
    """Yield which of the pixels, and what they hold, in memory, over `point`.

    Lazy by Dask, they are read by blocks of the stores' chunks, `BATCH` of them at once: picked one by one, Dask would
    read a whole chunk for each, of a whole shard perhaps.
    """
    from dask.base import compute
    from tqdm.auto import tqdm

    if not zone.ds.chunks:
        yield np.arange(len(rows)), zone.pick(rows, columns).load()
        return
    blocks, owner = np.unique(np.stack([rows, columns], axis=1) // BLOCK, axis=0, return_inverse=True)
    with tqdm(total=len(blocks), desc="reading", delay=1, disable=not progress) as bar:
        for first in range(0, len(blocks), BATCH):
            corners = blocks[first : first + BATCH] * BLOCK
            lazy = [zone.window(slice(y, y + BLOCK), slice(x, x + BLOCK)) for y, x in corners]
            for i, (corner, block) in enumerate(zip(corners, compute(*lazy), strict=True), start=first):
                chosen = np.flatnonzero(owner.ravel() == i)
                y, x = (xr.DataArray(k[chosen] - c, dims="point") for k, c in zip((rows, columns), corner, strict=True))
                yield chosen, block.isel(y=y, x=x)
            bar.update(len(corners))


def load(window: xr.Dataset, *, progress: bool = False) -> xr.Dataset:
    """Return a window in memory."""
    from tqdm.dask import TqdmCallback

    with TqdmCallback(desc="reading", delay=1) if progress else nullcontext():
        return window.compute()


def values_of(window: xr.Dataset) -> Floats:
    """Return embeddings as (..., band) float32."""
    values = dequantize(window)[EMBEDDINGS].astype(np.float32)
    return cast("Floats", values.transpose(..., "band").values)


def judge(window: xr.Dataset) -> npt.NDArray[Any]:
    """Return what each pixel is: VALID, WATER or NODATA.

    A NaN scale is water, but for embeddings of this package, and those of Icechunk stores as geotessera opens them:
    there it says no more than that there are none, and `quality` tells of water where it is known.
    """
    if window[EMBEDDINGS].dtype != np.int8:
        valid = water = window[EMBEDDINGS].isel(band=0).notnull().values
    else:
        scales = window[SCALES].values
        bare = KIND in window.attrs or window.attrs.get("geotessera:mask_source") == "source_nodata"
        valid, water = np.isfinite(scales), np.isnan(scales) & (not bare)
    if QUALITY in window:
        water = window[QUALITY].values == QUALITY_FLAGS["water"]
    return np.select([valid, water], [VALID, WATER], NODATA).astype(object)
