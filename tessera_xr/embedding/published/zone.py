"""Reading one UTM zone of published embeddings: geotessera's members, computed by this package.

The names, arguments, results and rules are those of the accessor of geotessera 0.11, which uses them itself: places are
eastings and northings in the zone's CRS, arrays have the band last, nothing is resampled. Embeddings in this package's
schema are read in the same way, float32 and int8, as are stores of geotessera's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import xarray as xr

from tessera_xr.embedding.published.pixels import (
    NODATA,
    OUTSIDE,
    VALID,
    WATER,
    Bounds,
    Floats,
    Zone,
    cut,
    find_pixels,
    judge,
    load,
    pixel_size,
    read_pixels,
    select_year,
    values_of,
    zone_crs,
    zone_years,
)
from tessera_xr.embedding.quantize import dequantize_arrays, quantize
from tessera_xr.embedding.schema import EMBEDDINGS, SCALES
from tessera_xr.errors import SchemaError

if TYPE_CHECKING:
    from affine import Affine

__all__ = [
    "dequantise",
    "iter_region",
    "n_bands",
    "pixel_size",
    "probe",
    "read_region",
    "read_region_quantized",
    "sample_at",
    "sample_points",
    "zone_crs",
    "zone_years",
]


def n_bands(ds: xr.Dataset) -> int:
    """Return the length of an embedding."""
    return int(ds.sizes["band"]) if "band" in ds.sizes else int(ds.attrs.get("geoemb:dimensions", 128))


def dequantise(emb_int8: npt.NDArray[np.int8], scales: Floats) -> Floats:
    """Return embeddings of int8 codes and scales, arrays both, with the band last.

    Parameters
    ----------
    emb_int8 : ndarray, shape (band, y, x)
        Codes.
    scales : ndarray, shape (y, x)
        Scales; what is not finite (water, no data) gives NaN.

    Returns
    -------
    ndarray, shape (y, x, band), float32

    Examples
    --------
    >>> dequantise(np.array([[[2]], [[-4]]], np.int8), np.array([[0.5]], np.float32))
    array([[[ 1., -2.]]], dtype=float32)
    """
    return dequantize_arrays(np.moveaxis(emb_int8, 0, -1), scales)


def probe(ds: xr.Dataset, e: float, n: float, year: int, *, search_px: int = 1) -> tuple[Floats | None, str]:
    """Return the embedding at a place, and what is there.

    Parameters
    ----------
    ds : Dataset
        One zone.
    e, n : float
        Easting and northing in the zone's CRS.
    year : int
        Which year.
    search_px : int
        How far from a pixel without data the nearest one with data may be taken instead, in pixels; 0: never. Water
        is an answer, not searched past.

    Returns
    -------
    embedding : ndarray, shape (band,), float32, or None
    status : {"valid", "water", "nodata", "outside"}
    """
    zone = select_year(ds, year)
    rows, columns, inside = find_pixels(zone, np.array([e], float), np.array([n], float))
    if not inside[0]:
        return None, OUTSIDE
    row, column, reach = int(rows[0]), int(columns[0]), max(0, int(search_px))
    top, left = max(0, row - reach), max(0, column - reach)
    near = load(zone.window(slice(top, row + reach + 1), slice(left, column + reach + 1)))
    status = judge(near)
    centre = (row - top, column - left)
    if status[centre] == WATER:
        return None, WATER
    if status[centre] != VALID:
        found = np.argwhere(status == VALID)
        if not len(found):
            return None, NODATA
        centre = tuple(found[np.argmin(((found - centre) ** 2).sum(axis=1))])
    return values_of(near.isel(y=slice(centre[0], centre[0] + 1), x=slice(centre[1], centre[1] + 1)))[0, 0], VALID


def sample_at(ds: xr.Dataset, e: float, n: float, year: int, *, search_px: int = 1) -> Floats:
    """Return the embedding at a place, (band,) float32: see `probe`; NaN where there is none."""
    found, _ = probe(ds, e, n, year, search_px=search_px)
    return np.full(n_bands(ds), np.nan, np.float32) if found is None else found


def sample_points(ds: xr.Dataset, coords: Sequence[tuple[float, float]], year: int, *, progress: bool = True) -> Floats:
    """Return the embeddings at places, (n, band) float32, NaN in water, without data and outside.

    A pixel without data is answered by its nearest neighbour that has some, as by `sample_at`.

    Parameters
    ----------
    ds : Dataset
        One zone.
    coords : sequence of (easting, northing)
        Places in the zone's CRS.
    year : int
        Which year.
    progress : bool
        Show a bar if reading takes more than a second.
    """
    zone = select_year(ds, year)
    xy = np.asarray(list(coords), dtype=np.float64).reshape(-1, 2)
    rows, columns, inside = find_pixels(zone, xy[:, 0], xy[:, 1])
    values = np.full((len(xy), n_bands(ds)), np.nan, np.float32)
    status = np.full(len(xy), OUTSIDE, dtype=object)
    places = np.flatnonzero(inside)
    for batch, found in read_pixels(zone, rows[places], columns[places], progress=progress):
        values[places[batch]] = values_of(found)
        status[places[batch]] = judge(found)
    for i in np.flatnonzero(status == NODATA):
        values[i] = sample_at(ds, xy[i, 0], xy[i, 1], year)
    return values


def read_region(
    ds: xr.Dataset, bbox: Bounds, year: int, *, array: str = EMBEDDINGS, progress: bool = False
) -> tuple[Floats, Affine]:
    """Return the embeddings of the pixels whose centres lie in a rectangle.

    Parameters
    ----------
    ds : Dataset
        One zone.
    bbox : (west, south, east, north)
        Rectangle in the zone's CRS.
    year : int
        Which year.
    array : str
        Variable to read: `embeddings_d16` is the first 16 values, in stores that have it.
    progress : bool
        Show a bar if reading takes more than a second.

    Returns
    -------
    mosaic : ndarray, shape (y, x, band), float32
        NaN in water and without data.
    transform : Affine
        Pixel to map coordinates.

    Raises
    ------
    OutsideError
        If no pixel's centre lies in the rectangle.
    """
    zone = select_year(ds, year, array)
    rows, columns = cut(zone, bbox)
    window = load(zone.window(rows, columns), progress=progress)
    return values_of(window), zone.transform(rows.start, columns.start)


def read_region_quantized(
    ds: xr.Dataset, bbox: Bounds, year: int, *, array: str = EMBEDDINGS, progress: bool = False
) -> tuple[npt.NDArray[np.int8], Floats, Affine]:
    """Return codes (y, x, band) int8, scales (y, x) as they are stored, and the transform: see `read_region`."""
    zone = select_year(ds, year, array)
    rows, columns = cut(zone, bbox)
    window = quantize(load(zone.window(rows, columns), progress=progress))
    codes = window[EMBEDDINGS].transpose("y", "x", "band").values
    return codes, window[SCALES].values, zone.transform(rows.start, columns.start)


def iter_region(
    ds: xr.Dataset,
    bbox: Bounds,
    year: int,
    *,
    array: str = EMBEDDINGS,
    strip_rows: int = 512,
    progress: bool = False,
) -> Iterator[tuple[Floats, Affine]]:
    """Yield `read_region` in strips of `strip_rows` rows from the top, the next one read while one is worked on."""
    if strip_rows <= 0:
        raise SchemaError(f"strip_rows must be positive, not {strip_rows}")
    zone = select_year(ds, year, array)
    return _strips(zone, *cut(zone, bbox), strip_rows, progress)


def _strips(
    zone: Zone, rows: slice, columns: slice, strip_rows: int, progress: bool
) -> Iterator[tuple[Floats, Affine]]:
    from tqdm.auto import tqdm

    tops = range(rows.start, rows.stop, strip_rows)

    def read(top: int) -> tuple[Floats, Affine]:
        strip = zone.window(slice(top, min(top + strip_rows, rows.stop)), columns)
        return values_of(load(strip)), zone.transform(top, columns.start)

    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(read, tops[0])
        for top in tqdm([*tops[1:], None], desc="reading", delay=1, disable=not progress):
            strip = ahead.result()
            if top is not None:
                ahead = pool.submit(read, top)
            yield strip
