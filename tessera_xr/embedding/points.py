"""Embeddings at points."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import xarray as xr
from odc.geo import CRS

from tessera_xr.embedding.schema import SCALES, check_embeddings
from tessera_xr.errors import GridError, SchemaError
from tessera_xr.grid import bounds_lonlat, geobox_of, points_to_pixels, swap_hint

PointsLike: TypeAlias = Any  # (lon, lat), a sequence of them, an (n, 2) array, or a geopandas object


def sample(
    emb: xr.Dataset, points: PointsLike, *, crs: str | None = None, outside: Literal["raise", "nodata"] = "raise"
) -> xr.Dataset:
    """Return the embeddings of the pixels that hold the given points.

    Parameters
    ----------
    emb : Dataset
        Embeddings, float32 or int8, eager or lazy.
    points : (lon, lat), sequence of them, array (n, 2), GeoSeries or GeoDataFrame
        Where. A geopandas object brings its CRS and must hold points.
    crs : str, optional
        The CRS of plain coordinates, given as (x, y); longitude and latitude if not told.
    outside : {"raise", "nodata"}
        What to do with points outside the map: refuse, or return no data for them.

    Returns
    -------
    Dataset
        The variables of `emb` over `point` instead of y and x, with the coordinates `y` and `x` of the pixel centres
        and `spatial_ref`, their CRS.

    Raises
    ------
    GridError
        If a point lies outside the map.
    SchemaError
        If the points can't be read.
    """
    check_embeddings(emb)
    if outside not in ("raise", "nodata"):
        raise SchemaError(f"outside={outside!r} is unknown; choose 'raise' or 'nodata'")
    xy, points_crs, index = resolve_points(points, crs)
    if not len(xy):
        raise SchemaError("there are no points; give at least one (lon, lat)")
    box = geobox_of(emb)
    pixels = points_to_pixels(box, xy[:, 0], xy[:, 1], points_crs)
    lost = pixels[:, 0] < 0
    if lost.any() and outside == "raise":
        west, south, east, north = bounds_lonlat(box)
        first = float(xy[lost][0, 0]), float(xy[lost][0, 1])
        raise GridError(
            f"{int(lost.sum())} of {len(xy)} points lie outside the map, the first at "
            f"{first}; it reaches from {west:.5f} to {east:.5f} E and {south:.5f} to "
            f"{north:.5f} N{swap_hint(box, *first, points_crs)}. Leave them out, or pass outside='nodata'"
        )
    rows, columns = (xr.DataArray(np.maximum(pixels[:, i], 0), dims="point") for i in (0, 1))
    found = emb.isel(y=rows, x=columns)
    if index is not None:
        found = found.assign_coords(point=("point", index))
    return _blank(found, lost) if lost.any() else found


def _blank(found: xr.Dataset, lost: npt.NDArray[np.bool_]) -> xr.Dataset:
    """Return the points with no data in those that are lost: NaN, 0 for whole numbers, and NaN scales."""
    keep = xr.DataArray(~lost, dims="point")
    blanked = {
        name: array.where(keep, 0 if array.dtype.kind in "iu" and name != SCALES else np.nan).astype(array.dtype)
        for name, array in found.data_vars.items()
    }
    return found.assign(blanked).assign_coords(y=found["y"].where(keep), x=found["x"].where(keep))


def resolve_points(points: PointsLike, crs: str | None) -> tuple[npt.NDArray[np.float64], str, Any]:
    """Return coordinates (n, 2) of points in any form, their CRS, and the index of a geopandas object."""
    geometry = getattr(points, "geometry", None)
    if geometry is not None and hasattr(geometry, "geom_type"):
        kinds = set(geometry.geom_type.fillna("missing"))
        if kinds - {"Point"}:
            raise SchemaError(f"these geometries are {sorted(kinds)}; give points, for example .representative_point()")
        if geometry.crs is None and crs is None:
            raise SchemaError("these points have no CRS; set it with .set_crs('EPSG:4326'), or pass crs=")
        return np.column_stack([geometry.x, geometry.y]), str(geometry.crs or crs), geometry.index.to_numpy()
    crs = crs or "EPSG:4326"
    try:
        CRS(crs)
    except (ValueError, TypeError, RuntimeError) as error:  # pyproj's CRSError is a RuntimeError
        raise SchemaError(f"crs={crs!r} is no coordinate system; give a code such as 'EPSG:4326'") from error
    try:
        xy = np.asarray(points, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise SchemaError(_cannot_read(points)) from error
    xy = xy.reshape(-1, 2) if xy.size in (0, 2) else xy
    if xy.ndim != 2 or xy.shape[1] != 2:
        raise SchemaError(_cannot_read(points))
    return xy, crs, None


def _cannot_read(points: object) -> str:
    return (
        f"{type(points).__name__} can't be read as points; give (lon, lat), a list of them, or a GeoDataFrame of points"
    )
