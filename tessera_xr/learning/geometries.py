"""Points and polygons of labels: read, checked, and taken from one CRS to another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from odc.geo import CRS

from tessera_xr.errors import SchemaError

if TYPE_CHECKING:
    from odc.geo.geobox import GeoBox

Geometries = npt.NDArray[np.object_]
Geometry = Any  # a shapely Point, Polygon or MultiPolygon

LONLAT = "EPSG:4326"
KINDS = ("Point", "Polygon", "MultiPolygon")
LIMITS = np.array([360.0, 90.0])
"""Degrees beyond which a coordinate is no longitude or latitude."""
MENDED = 1e-3
"""Share of its area that a polygon may change by when it is made valid."""
PIECES = 20
"""Pieces at least that the longest side of a polygon is cut into where another CRS bends it."""


def canonical_crs(crs: Any) -> str:
    """Return a CRS as text, an EPSG code if it has one.

    Raises
    ------
    SchemaError
        If it is none.

    Examples
    --------
    >>> canonical_crs(32631)
    'EPSG:32631'
    """
    try:
        given = CRS(crs)
    except (ValueError, TypeError, RuntimeError) as error:  # pyproj's CRSError is a RuntimeError
        raise SchemaError(f"crs={crs!r} is no coordinate system; give a code such as 'EPSG:32631'") from error
    epsg = given.to_epsg()
    if epsg is not None and given.proj.equals(CRS(epsg).proj, ignore_axis_order=True):
        return f"EPSG:{epsg}"
    return str(given)


def as_geometry(geometry: Any, crs: str) -> Geometry:
    """Return one geometry, checked, in `crs`.

    Parameters
    ----------
    geometry : shapely Point, Polygon or MultiPolygon, (lon, lat), or mapping
        A shapely object is in `crs`; (lon, lat) and GeoJSON (a geometry or a feature) are in degrees, and are
        reprojected.
    crs : str
        Of the result.

    Raises
    ------
    SchemaError
        If it can't be read, or is no valid point or polygon.
    """
    import shapely

    if isinstance(geometry, shapely.Geometry):
        return check_geometries([geometry], crs)[0]
    shape = read_shape(geometry) if isinstance(geometry, Mapping) else _point(geometry, crs)
    in_degrees = check_geometries([shape], LONLAT)
    there = reproject(in_degrees, LONLAT, crs)
    if not are_finite(there).all():
        raise SchemaError(f"this geometry, given in degrees, has no place in {crs}; check longitude and latitude")
    return there[0]


def read_shape(geometry: Mapping[str, Any]) -> Geometry:
    """Return a GeoJSON geometry, or that of a feature, as a shapely one.

    Raises
    ------
    SchemaError
        If it is none.
    """
    from shapely.errors import ShapelyError
    from shapely.geometry import shape

    inner = geometry.get("geometry") if geometry.get("type") == "Feature" else geometry
    try:
        return shape(inner)
    except (AttributeError, KeyError, TypeError, ValueError, IndexError, ShapelyError) as error:
        raise SchemaError(
            f"this mapping can't be read as a GeoJSON geometry ({error}); give 'type' ({', '.join(KINDS)}) and "
            "'coordinates'"
        ) from error


def check_geometries(geometries: Sequence[Geometry] | Geometries, crs: str) -> Geometries:
    """Return geometries without heights, if all can be labels.

    Raises
    ------
    SchemaError
        If some are missing, of another kind, empty, not finite, beyond the degrees of a geographic CRS, or invalid:
        how many, the first of them, and what to do.
    """
    import shapely

    array = np.empty(len(geometries), dtype=object)
    array[:] = list(geometries)
    _refuse(~shapely.is_geometry(array), array, "no geometry", "drop them, as with .dropna(subset='geometry')")
    kinds = np.array([geometry.geom_type for geometry in array], dtype=str)
    _refuse(
        ~np.isin(kinds, KINDS), array, f"of a kind that no label has ({', '.join(sorted(set(kinds) - set(KINDS)))})",
        "labels are points and polygons: .explode() a MultiPoint or a collection, .buffer() a line",
    )  # fmt: skip
    _refuse(shapely.is_empty(array), array, "empty", "leave empty geometries out, as with gdf[~gdf.is_empty]")
    array = np.asarray(shapely.force_2d(array), dtype=object)
    _refuse(
        _any_coordinate(array, lambda xy: ~np.isfinite(xy)),
        array,
        "not finite (NaN or infinity)",
        "mend the coordinates",
    )
    if CRS(crs).geographic:
        _refuse(
            _any_coordinate(array, lambda xy: np.abs(xy) > LIMITS), array,
            f"beyond 90 degrees of latitude or 360 of longitude, but {crs} is in degrees",
            "state the CRS that the coordinates are in, and give x (longitude) before y",
        )  # fmt: skip
    _refuse(~shapely.is_valid(array), array, "invalid", "mend them with shapely.make_valid() or gdf.make_valid()")
    return array


def are_finite(geometries: Geometries) -> npt.NDArray[np.bool_]:
    """Say which geometries have finite coordinates: those that have a place in their CRS."""
    import shapely

    return np.asarray(np.isfinite(shapely.bounds(geometries)).all(axis=-1))


def reproject(geometries: Geometries, source: str, target: str, *, dense: bool = False) -> Geometries:
    """Return geometries in another CRS, infinite where they have no place in it.

    Parameters
    ----------
    geometries : ndarray (n,) of shapely geometries
        In `source`.
    source, target : str
        The two systems.
    dense : bool
        Cut the sides of polygons into pieces first, so that they bend as the other CRS makes them.
    """
    import shapely
    from pyproj import Transformer

    if source == target or not len(geometries):
        return geometries
    if dense:
        west, south, east, north = shapely.bounds(geometries).T
        longest = np.maximum(east - west, north - south)
        geometries = shapely.segmentize(geometries, np.where(longest > 0, longest / PIECES, 1))
    transformer = Transformer.from_crs(source, target, always_xy=True)
    moved: Geometries = shapely.transform(
        geometries, lambda xy: np.column_stack(transformer.transform(xy[:, 0], xy[:, 1]))
    )
    return as_valid_as_before(moved)


def as_valid_as_before(geometries: Geometries) -> Geometries:
    """Return geometries valid again that another CRS made invalid: a corner may lie beyond a side that it lay on."""
    import shapely

    out = geometries.copy()
    broken = np.flatnonzero(~shapely.is_valid(out) & are_finite(out))
    mended = shapely.buffer(out[broken], 0)
    area = shapely.area(out[broken])
    small = np.abs(shapely.area(mended) - area) <= MENDED * area
    out[broken[small]] = mended[small]
    return out


def pixel_centres(
    box: GeoBox, rows: npt.NDArray[np.intp], columns: npt.NDArray[np.intp]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return x and y of the centres of pixels, in the CRS of their grid."""
    t = box.transform
    across, down = columns + 0.5, rows + 0.5
    return t.a * across + t.b * down + t.c, t.d * across + t.e * down + t.f


def _point(pair: Any, crs: str) -> Geometry:
    """Return (lon, lat) as a point."""
    import shapely

    try:
        xy = np.asarray(pair, dtype=np.float64)
    except (TypeError, ValueError):
        xy = np.zeros(0)
    if xy.shape != (2,):
        raise SchemaError(
            f"{type(pair).__name__} can't be read as a label's place; give (lon, lat), a shapely Point, Polygon or "
            f"MultiPolygon in {crs}, or a GeoJSON geometry"
        )
    if (np.abs(xy) > LIMITS).any():
        raise SchemaError(
            f"({xy[0]:g}, {xy[1]:g}) is not (lon, lat) in degrees; give coordinates of another CRS as "
            f"shapely.Point(x, y), in the set's own: {crs}"
        )
    return shapely.Point(xy)


def _any_coordinate(array: Geometries, fault: Any) -> npt.NDArray[np.bool_]:
    """Say which geometries have a coordinate at fault."""
    import shapely

    xy, owner = shapely.get_coordinates(array, return_index=True)
    marked = np.zeros(len(array), dtype=np.bool_)
    marked[owner[fault(xy).any(axis=1)]] = True
    return marked


def _refuse(fault: npt.NDArray[np.bool_], array: Geometries, problem: str, fix: str) -> None:
    import shapely

    if not fault.any():
        return
    first = int(np.flatnonzero(fault)[0])
    if problem == "invalid":
        problem = f"invalid ({shapely.is_valid_reason(array[first])})"
    one = len(array) == 1
    which = "this geometry is" if one else f"{int(fault.sum())} of {len(array)} geometries are"
    raise SchemaError(f"{which} {problem}{'' if one else f', the first at position {first}'}; {fix}")
