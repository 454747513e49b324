"""What to look for, in the forms that people have it in: places, areas, masks or vectors, to query vectors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt
import xarray as xr
from odc.geo.geobox import GeoBox

from tessera_xr._warn import warn
from tessera_xr.embedding.points import sample
from tessera_xr.embedding.quantize import dequantize
from tessera_xr.embedding.schema import EMBEDDINGS, SCALES, check_embeddings, check_same_model, has_data
from tessera_xr.errors import GridError, SchemaError
from tessera_xr.grid import bounds_lonlat, crs_name, crs_of, geobox_of

if TYPE_CHECKING:
    from geopandas import GeoSeries

Query: TypeAlias = Any  # (lon, lat) or several, geopandas points or polygons, a bool mask, vectors, sampled embeddings
Vectors: TypeAlias = npt.NDArray[np.float32]

STRIPE = 16_384
"""Pixels and times that are read at a time where many are."""
PIECE = 4_096
"""Pixels of them that are float32 at a time."""
_AREAS = {"Polygon", "MultiPolygon"}


def query_vectors(emb: xr.Dataset, query: Query, *, time: Any = None, crs: str | None = None) -> Vectors:
    """Return the vectors that a query stands for.

    A point is the pixel that holds it; a polygon or a mask is the mean of its pixels. Places without data are left
    out, with a warning.

    Parameters
    ----------
    emb : Dataset
        Embeddings, float32 or int8, eager or lazy.
    query : (lon, lat), sequence of them, GeoSeries or GeoDataFrame, DataArray, Dataset or ndarray
        Where: points, or geopandas points and polygons of any CRS; a mask (y, x) or (time, y, x), bool, on the grid of
        `emb`. Or what: vectors (band,) or (n, band), or what `sample` returned for another map.
    time : int, str or datetime64, optional
        Which time of `emb` places and masks mean; needed where there are several.
    crs : str, optional
        The CRS of plain coordinates, given as (x, y); longitude and latitude if not told.

    Returns
    -------
    ndarray (n, band)
        float32.

    Raises
    ------
    GridError
        If a place lies outside the map, or a mask on another grid.
    SchemaError
        If the query can't be read, has no data, or its time is not clear.
    VersionMismatchError
        If vectors come with the name of another model.
    """
    check_embeddings(emb)
    if isinstance(query, xr.Dataset | xr.DataArray) and not {"y", "x"} <= set(query.dims):
        return given_vectors(emb, query)
    if isinstance(query, xr.DataArray):
        return _kept(_masked(emb, query, time))
    geometry = getattr(query, "geometry", None)
    if geometry is not None and hasattr(geometry, "geom_type"):
        return _kept(_places(at_time(emb, time), geometry))
    array = _numbers(query)
    if array.ndim in (1, 2) and array.size and array.shape[-1] == 2:
        return _kept(_sampled(at_time(emb, time), array, crs))
    return given_vectors(emb, array)


def given_vectors(like: xr.Dataset, query: Query) -> Vectors:
    """Return the vectors (n, band) of a query that is no place: arrays, or embeddings that `sample` returned.

    `like` has the dimension `band`, and attributes that name the model which the vectors must be of.
    """
    if isinstance(query, xr.Dataset | xr.DataArray):
        return _kept(_labelled(like, query))
    array = _numbers(query)
    if array.ndim not in (1, 2) or not array.size or array.shape[-1] != like.sizes["band"]:
        raise SchemaError(
            f"the query has shape {array.shape}; give vectors of {like.sizes['band']} values, the length of these "
            "embeddings, or, to look for places of a map, (lon, lat) or a list of them"
        )
    return _kept(np.atleast_2d(array).astype(np.float32))


def matching_times(times: npt.ArrayLike, time: Any) -> list[int]:
    """Return the positions of the times that `time` names: a year, a date, or the beginning of one.

    Examples
    --------
    >>> matching_times(np.array(["2019-01-01", "2020-01-01"], "datetime64[s]"), 2020)
    [1]
    """
    wanted = str(time)[:10]
    return [i for i, label in enumerate(time_labels(times)) if label == wanted or label.startswith(f"{wanted}-")]


def time_labels(times: npt.ArrayLike) -> list[str]:
    """Return times as text: years as they are, dates as year-month-day."""
    return [str(t)[:10] for t in np.atleast_1d(np.asarray(times))]


def at_time(emb: xr.Dataset, time: Any) -> xr.Dataset:
    """Return embeddings at one time, ([band,] y, x).

    Raises
    ------
    SchemaError
        Unless exactly one time is meant.
    """
    if "time" not in emb[EMBEDDINGS].dims:
        if time is not None and not matching_times(emb.coords["time"].values if "time" in emb.coords else [], time):
            raise SchemaError(f"there is no time {time!r}: these embeddings have one time only; leave time= out")
        return emb
    if time is None and emb.sizes["time"] == 1:
        return emb.isel(time=0)
    times = emb["time"].values if "time" in emb.coords else np.arange(emb.sizes["time"])
    found = [] if time is None else matching_times(times, time)
    if len(found) != 1:
        labels = time_labels(times)
        problem = "it isn't clear which time is meant" if time is None else f"time={time!r} names {len(found)} times"
        raise SchemaError(f"{problem}: choose one of {', '.join(labels)}, as in time={labels[-1]!r}")
    return emb.isel(time=found[0])


def pixels_within(box: GeoBox, area: Any, *, touched: bool = False) -> tuple[slice, slice, npt.NDArray[np.bool_]]:
    """Return rows, columns and the mask within them of the pixels whose centre lies in a shape.

    Parameters
    ----------
    box : GeoBox
        The grid.
    area : shapely geometry
        In the CRS of the grid.
    touched : bool
        Whether a shape too small to hold a centre means the pixels that it touches.
    """
    from rasterio.features import geometry_mask
    from shapely.geometry import box as rectangle

    if area.is_empty:
        return slice(0, 0), slice(0, 0), np.zeros((0, 0), dtype=np.bool_)
    west, south, east, north = area.bounds
    corners = [~box.transform * corner for corner in ((west, south), (west, north), (east, south), (east, north))]
    (left, right), (top, bottom) = (
        [int(np.clip(edge, 0, size)) for edge in (np.floor(min(at)), np.ceil(max(at)))]
        for at, size in zip(zip(*corners, strict=True), box.shape[::-1], strict=True)
    )
    rows, columns = slice(top, bottom), slice(left, right)
    if left >= right or top >= bottom:
        return rows, columns, np.zeros((0, 0), dtype=np.bool_)
    window = box[rows, columns]
    if area.contains(rectangle(*window.extent.buffer(0).boundingbox)):
        return rows, columns, np.ones(window.shape, dtype=np.bool_)
    mask: npt.NDArray[np.bool_] = geometry_mask([area], window.shape, window.transform, invert=True)
    if touched and not mask.any():
        mask = geometry_mask([area], window.shape, window.transform, invert=True, all_touched=True)
    return rows, columns, mask


def areas_of(region: Any) -> GeoSeries:
    """Return a region as polygons."""
    from geopandas import GeoSeries
    from shapely.geometry import box

    geometry = getattr(region, "geometry", None)
    if geometry is not None and hasattr(geometry, "geom_type"):
        if geometry.crs is None or set(geometry.geom_type) - {"Polygon", "MultiPolygon"}:
            raise SchemaError("a region needs polygons with a CRS; see .buffer() and .set_crs() of geopandas")
        return geometry
    try:
        west, south, east, north = map(float, region)
    except (TypeError, ValueError) as error:
        raise SchemaError("a region is (west, south, east, north) in degrees, or geopandas polygons") from error
    if not (west < east and south < north):
        raise SchemaError(f"the region {region} is empty; give (west, south, east, north) in degrees")
    # edges bend in other coordinate systems
    return GeoSeries([box(west, south, east, north)], crs="EPSG:4326").segmentize((east - west) / 50)


def _kept(vectors: Vectors) -> Vectors:
    """Return the vectors that hold data."""
    held = np.asarray(np.isfinite(vectors).all(axis=1))
    if not held.any():
        raise SchemaError("the query has no data: every place or vector in it is no-data (NaN); choose other ones")
    if not held.all():
        warn(f"{int((~held).sum())} of {len(held)} places or vectors of the query have no data and were left out")
    return vectors[held]


def _numbers(query: object) -> npt.NDArray[np.float64]:
    try:
        return np.asarray(query, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise SchemaError(
            f"{type(query).__name__} can't be read as a query; give (lon, lat), a list of them, a GeoDataFrame of "
            "points or polygons, a mask (y, x) of bool, or vectors"
        ) from error


def _labelled(like: xr.Dataset, query: xr.Dataset | xr.DataArray) -> Vectors:
    """Vectors that xarray holds, with the name of their model if it is there."""
    if "band" not in query.dims:
        raise SchemaError(
            f"a query with dimensions {tuple(map(str, query.dims))} is neither vectors (they have `band`) nor a mask "
            "(it has y and x)"
        )
    if isinstance(query, xr.DataArray) and query.dtype == np.int8:
        raise SchemaError(
            "these are int8 codes without their scales; pass the Dataset that holds both, or dequantize it first"
        )
    check_same_model(like, xr.Dataset(coords={"band": np.arange(query.sizes["band"])}, attrs=query.attrs))
    if isinstance(query, xr.Dataset):
        query = dequantize(query.compute())[EMBEDDINGS]
    return np.asarray(query.transpose(..., "band").values, dtype=np.float32).reshape(-1, query.sizes["band"])


def _sampled(emb: xr.Dataset, points: Any, crs: str | None) -> Vectors:
    found = dequantize(sample(essentials(emb), points, crs=crs).compute())[EMBEDDINGS]
    return np.asarray(found.transpose("point", "band").values, dtype=np.float32)


def _places(emb: xr.Dataset, geometry: Any) -> Vectors:
    """Points and polygons of geopandas, in any CRS."""
    kinds = geometry.geom_type.fillna("missing")
    unknown = set(kinds) - _AREAS - {"Point"}
    if unknown or not len(geometry):
        found = f"these are {sorted(unknown)}" if unknown else "there is none"
        raise SchemaError(f"a query needs points or polygons, {found}; take .explode() or .buffer() of them")
    if geometry.crs is None:
        raise SchemaError("these places have no CRS; set it with .set_crs('EPSG:4326')")
    is_point = (kinds == "Point").to_numpy()
    points = [_sampled(emb, geometry[is_point], None)] if is_point.any() else []
    box = geobox_of(emb)
    areas = geometry[~is_point].to_crs(str(box.crs))
    return np.concatenate([*points, *(_area(emb, box, area) for area in areas)])


def _area(emb: xr.Dataset, box: GeoBox, area: Any) -> Vectors:
    rows, columns, mask = pixels_within(box, area, touched=True)
    if not mask.any():
        west, south, east, north = bounds_lonlat(box)
        raise GridError(
            f"a polygon lies outside the map, which reaches from {west:.5f} to {east:.5f} E and {south:.5f} to "
            f"{north:.5f} N; leave it out"
        )
    return _mean(emb.isel(y=rows, x=columns), xr.DataArray(mask, dims=("y", "x")))


def _masked(emb: xr.Dataset, mask: xr.DataArray, time: Any) -> Vectors:
    if mask.dtype != np.bool_ or not set(mask.dims) <= {"time", "y", "x"}:
        raise SchemaError(f"a mask is bool over ([time,] y, x), this is {mask.dtype} over {mask.dims}; try `mask > 0`")
    at = emb if "time" in mask.dims else at_time(emb, time)
    try:
        xr.align(mask, at[EMBEDDINGS], join="exact", copy=False)
    except ValueError as error:
        raise GridError("the mask is on another grid than the map; resample it to the map's pixels first") from error
    check_same_crs(mask, at)
    if set(mask.dims) - set(at[EMBEDDINGS].dims):
        raise SchemaError("the mask has times and the map hasn't; choose one, as in mask.isel(time=0)")
    if not bool(mask.any()):
        raise SchemaError("the mask marks no pixel; there is nothing to look for")
    return _mean(at, mask)


def check_same_crs(mask: xr.DataArray, emb: xr.Dataset) -> None:
    """Raise `GridError` if a mask states another CRS than the map."""
    if crs_of(mask) not in (None, crs_of(emb)):
        names = [crs_name(crs_of(obj)) for obj in (mask, emb)]
        raise GridError(f"the mask is in {names[0]}, the map in {names[1]}; reproject it first")


def _mean(emb: xr.Dataset, mask: xr.DataArray) -> Vectors:
    """Return the mean embedding of the pixels in a mask (1, band), NaN if none has data."""
    total, count = np.zeros(emb.sizes["band"]), 0
    dims = [d for d in ("time", "y", "x") if d in mask.dims]
    for rows in stripes(emb):
        part = essentials(emb.isel(y=rows))
        inside = mask.isel(y=rows).transpose(*dims).values
        if not inside.any():
            continue
        held = has_data(part).transpose(*dims).values
        where = np.nonzero(inside & held)
        index = {d: xr.DataArray(i, dims="pixel") for d, i in zip(dims, where, strict=True)}
        pixels = part.isel(index).compute()
        for start in range(0, pixels.sizes["pixel"], PIECE):
            values = dequantize(pixels.isel(pixel=slice(start, start + PIECE)))[EMBEDDINGS].transpose("pixel", "band")
            total += values.values.sum(axis=0, dtype=np.float64)
        count += pixels.sizes["pixel"]
    return (total / count if count else np.full_like(total, np.nan)).astype(np.float32)[None]


def stripes(emb: xr.Dataset, n_pixels: int = STRIPE) -> Iterator[slice]:
    """Rows a step: those of a chunk, so that each is read once, else some `n_pixels` pixels and times."""
    array = emb[EMBEDDINGS]
    if array.chunks is not None:
        stops = np.cumsum(array.chunksizes["y"])
    else:
        width = max(1, array.size // max(1, array.sizes["band"] * array.sizes["y"]))
        step = max(1, n_pixels // width)
        stops = np.minimum(np.arange(step, array.sizes["y"] + step, step), array.sizes["y"])
    yield from (slice(int(start), int(stop)) for start, stop in zip([0, *stops[:-1]], stops, strict=True))


def essentials(emb: xr.Dataset) -> xr.Dataset:
    """Return the embeddings without the counts beside them."""
    return emb[[name for name in (EMBEDDINGS, SCALES) if name in emb]]
