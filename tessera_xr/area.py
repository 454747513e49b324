"""Where on Earth: what users name an area by, and the UTM grid over it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import xarray as xr
from odc.geo.geobox import GeoBox

from tessera_xr.errors import GridError
from tessera_xr.grid import geobox_of

if TYPE_CHECKING:
    import geopandas as gpd
    from shapely.geometry.base import BaseGeometry

    AreaLike: TypeAlias = (
        Sequence[float]
        | BaseGeometry
        | gpd.GeoDataFrame
        | gpd.GeoSeries
        | Mapping[str, Any]
        | GeoBox
        | xr.Dataset
        | xr.DataArray
    )

_FORMS = (
    "a bbox (west, south, east, north) in degrees, a shapely geometry in degrees, a GeoDataFrame, GeoJSON, "
    "a GeoBox, or an xarray object with a grid"
)
UTM_SOUTH, UTM_NORTH = -80.0, 84.0
"""Latitudes between which UTM is defined, and Sentinel-2 tiles with it."""


def resolve_area(area: AreaLike) -> BaseGeometry:
    """Return an area as a geometry in degrees, longitude first (EPSG:4326).

    Parameters
    ----------
    area : bbox, geometry, GeoDataFrame, GeoJSON, GeoBox, Dataset or DataArray
        A bbox is (west, south, east, north) in degrees. Geometries and GeoJSON without a CRS are in degrees.

    Returns
    -------
    shapely geometry
        Valid and not empty.

    Raises
    ------
    GridError
        If it is none of these, empty, invalid, or outside the range of degrees.

    Examples
    --------
    >>> resolve_area((3.0, 51.0, 3.5, 51.5)).bounds
    (3.0, 51.0, 3.5, 51.5)
    """
    geometry = _geometry(area)
    if geometry.is_empty:
        raise GridError("the area is empty; give one with an extent or a point")
    if not geometry.is_valid:
        from shapely.validation import explain_validity

        raise GridError(f"the area is no valid geometry ({explain_validity(geometry)}); mend it with .buffer(0)")
    west, south, east, north = geometry.bounds
    if not (west >= -180 and east <= 180 and south >= -90 and north <= 90):
        raise GridError(
            f"the area reaches from ({west:g}, {south:g}) to ({east:g}, {north:g}), which are no degrees of longitude "
            "and latitude; give a GeoDataFrame with its CRS, or convert to EPSG:4326 first"
        )
    return geometry


def _geometry(area: Any) -> BaseGeometry:
    from shapely.geometry import shape
    from shapely.geometry.base import BaseGeometry

    if isinstance(area, BaseGeometry):
        return area
    if isinstance(area, (xr.Dataset, xr.DataArray)):
        return _footprint(geobox_of(area))
    if isinstance(area, GeoBox):
        return _footprint(area)
    if hasattr(area, "to_crs") and hasattr(area, "union_all"):
        if area.crs is None:
            raise GridError("the GeoDataFrame has no CRS; give it one, for example gdf.set_crs('EPSG:4326')")
        whole: BaseGeometry = area.to_crs("EPSG:4326").union_all()
        return whole
    if isinstance(area, Mapping):
        try:
            return _geojson(area, shape)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise GridError(f"the area can't be read as GeoJSON ({type(error).__name__}: {error})") from error
    return _bbox(area)


def _geojson(area: Mapping[str, Any], shape: Any) -> BaseGeometry:
    from shapely import union_all

    if area.get("type") == "FeatureCollection":
        return union_all([shape(feature["geometry"]) for feature in area["features"]])
    geometry: BaseGeometry = shape(area["geometry"] if area.get("type") == "Feature" else area)
    return geometry


def _bbox(area: Any) -> BaseGeometry:
    from shapely.geometry import Point, box

    try:
        west, south, east, north = (float(v) for v in area)
    except (TypeError, ValueError):
        raise GridError(f"{area!r} is no area; give {_FORMS}") from None
    if not np.isfinite([west, south, east, north]).all():
        raise GridError(f"the bbox {tuple(area)} is not finite; give (west, south, east, north) in degrees")
    if west > east:
        raise GridError(
            f"the bbox begins at {west:g} east and ends at {east:g}, west of it: write (west, south, east, north). "
            "An area across the antimeridian is two areas: ask for each"
        )
    if south > north:
        raise GridError(f"the bbox has its south ({south:g}) above its north ({north:g}): (west, south, east, north)")
    if west == east or south == north:
        if (west, south) != (east, north):
            raise GridError(f"the bbox {tuple(area)} has no area; widen it, or give one point")
        return Point(west, south)
    return box(west, south, east, north)


def _footprint(box: GeoBox) -> BaseGeometry:
    if box.crs is None:
        raise GridError("the grid has no CRS; give it one, for example ds.odc.assign_crs('EPSG:32631')")
    # edges as polylines: a straight line of a UTM grid is a curve in degrees
    step = max(abs(box.resolution.x), abs(box.resolution.y)) * max(max(box.shape) / 16, 1)
    geometry: BaseGeometry = box.extent.to_crs("EPSG:4326", resolution=step).geom
    return geometry


def utm_zone(longitude: float) -> int:
    """Return the UTM zone, 1 to 60, of a longitude in degrees; plain six-degree zones, as published embeddings use.

    Examples
    --------
    >>> utm_zone(3.5), utm_zone(-180), utm_zone(180)
    (31, 1, 60)
    """
    return int(np.clip(np.floor((longitude + 180) / 6) + 1, 1, 60))


def utm_geobox(area: AreaLike, resolution: Any = 10.0, zone: int | None = None) -> GeoBox:
    """Return the smallest UTM grid over an area whose edges are multiples of the resolution.

    The CRS is the northern one in the south too (EPSG:326NN, negative northings): the grid of published embeddings,
    so that what is computed lies on their pixels.

    Parameters
    ----------
    area : bbox, geometry, GeoDataFrame, GeoJSON, GeoBox, Dataset or DataArray
        See `resolve_area`. A point gives the one pixel that holds it.
    resolution : float, default 10
        Of a pixel, in metres.
    zone : int, optional
        1 to 60; without it that of the middle of the area.

    Returns
    -------
    GeoBox

    Raises
    ------
    GridError
        If the area is none, lies outside UTM (80 S to 84 N), or zone or resolution are out of range.
    """
    geometry = resolve_area(area)
    west, south, east, north = geometry.bounds
    if south < UTM_SOUTH or north > UTM_NORTH:
        raise GridError(f"the area reaches from {south:g} to {north:g} degrees north; UTM covers -80 to 84")
    is_number = isinstance(resolution, (int, float, np.number)) and not isinstance(resolution, bool)
    if not is_number or not 0 < resolution < np.inf:
        raise GridError(f"resolution must be a positive number of metres, not {resolution!r}")
    zone = utm_zone((west + east) / 2) if zone is None else zone
    if zone not in range(1, 61):
        raise GridError(f"zone must be a whole number from 1 to 60, not {zone!r}")
    crs = f"EPSG:{32600 + zone}"
    left, bottom, right, top = _bounds_in(geometry, crs)
    first = np.floor(np.array([left, bottom]) / resolution + 1e-6)
    last = np.ceil(np.array([right, top]) / resolution - 1e-6)
    last = np.maximum(last, first + 1)
    left, bottom, right, top = (float(v) for v in np.concatenate([first, last]) * resolution)
    return GeoBox.from_bbox((left, bottom, right, top), crs=crs, resolution=resolution, tight=True)


def _bounds_in(geometry: BaseGeometry, crs: str) -> tuple[float, float, float, float]:
    """Return the bounds of a geometry in another CRS, its edges followed closely."""
    from pyproj import Transformer
    from shapely import get_coordinates, segmentize

    to_map = Transformer.from_crs("EPSG:4326", crs, always_xy=True)
    x, y = to_map.transform(*get_coordinates(segmentize(geometry, 0.02)).T)
    return float(x.min()), float(y.min()), float(x.max()), float(y.max())
