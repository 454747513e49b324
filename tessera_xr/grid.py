"""Where a pixel is: CRS, transform, and points to pixels, on odc-geo's `GeoBox`."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt
import xarray as xr
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox
from odc.geo.xr import assign_crs, xr_coords
from pyproj.exceptions import CRSError

from tessera_xr.errors import GridError

XarrayObject = TypeVar("XarrayObject", xr.Dataset, xr.DataArray)

X_NAMES = ("x", "lon", "longitude", "easting")
Y_NAMES = ("y", "lat", "latitude", "northing")
GRID_MAPPING = "spatial_ref"


def spatial_dims(obj: xr.Dataset | xr.DataArray) -> tuple[Hashable, Hashable]:
    """Return the names of the y and x dimensions of `obj`.

    Raises
    ------
    GridError
        If there are none under a name that is in use for them.
    """
    found = [next((d for d in obj.dims if str(d).lower() in names), None) for names in (Y_NAMES, X_NAMES)]
    if None in found:
        raise GridError(
            f"no spatial dimensions among {[str(d) for d in obj.dims]}; rename them to 'y' and 'x' "
            f"(also read: {', '.join(Y_NAMES[1:])}; {', '.join(X_NAMES[1:])})"
        )
    return cast("tuple[Hashable, Hashable]", tuple(found))


def crs_of(obj: xr.Dataset | xr.DataArray) -> CRS | None:
    """Return the CRS of `obj`, from CF grid mapping, attributes or STAC style; None if it has none.

    Raises
    ------
    GridError
        If what is stated is no CRS.
    """
    crs = cast("CRS | None", obj.odc.crs)
    if crs is not None:
        return crs
    for name in ("crs", "epsg", "proj:code", "proj:epsg"):
        value = obj.attrs.get(name, obj.coords[name].values if name in obj.coords and not obj[name].ndim else None)
        if value is not None:
            return _parse_crs(str(np.asarray(value).item() if np.asarray(value).ndim == 0 else value))
    dims = {str(d).lower() for d in obj.dims}
    return CRS("EPSG:4326") if {"lat", "latitude"} & dims else None


def geobox_of(obj: xr.Dataset | xr.DataArray) -> GeoBox:
    """Return the pixel grid of `obj`: CRS, transform and shape.

    Raises
    ------
    GridError
        If `obj` has no CRS or its coordinates are not evenly spaced.
    """
    y, x = spatial_dims(obj)
    crs = crs_of(obj)
    if crs is None:
        raise GridError("the grid has no CRS; give it one, for example ds.odc.assign_crs('EPSG:32631')")
    for dim in (y, x):
        check_even_spacing(obj, dim)
    # odc-geo takes the last two dimensions for y and x unless it knows their names
    names = {old: new for old, new in ((y, "y"), (x, "x")) if old != new}
    named = cast("xr.Dataset", obj.drop_vars([n for n in names.values() if n in obj.coords]).rename(names))
    box = cast("GeoBox | None", (named if obj.odc.crs is not None else assign_crs(named, crs)).odc.geobox)
    if box is None:
        raise GridError(f"the grid can't be read off the coordinates {y!r} and {x!r}; they must hold pixel centres")
    return box


def crs_name(crs: CRS | None) -> str:
    """Return a short name for `crs`: its EPSG code if it has one.

    Examples
    --------
    >>> crs_name(CRS("EPSG:32631"))
    'EPSG:32631'
    """
    if crs is None:
        return "no CRS"
    epsg = crs.to_epsg()
    return f"EPSG:{epsg}" if epsg is not None else str(crs.proj.name)


def _parse_crs(text: str) -> CRS:
    try:
        return CRS(f"EPSG:{int(float(text))}" if text.replace(".", "").isdigit() else text)
    except CRSError as error:
        raise GridError(f"{text!r} is not a CRS; give one, for example ds.odc.assign_crs('EPSG:32631')") from error


def check_even_spacing(obj: xr.Dataset | xr.DataArray, dim: Hashable) -> None:
    """Raise `GridError` if the coordinate `dim` of `obj` is missing or unevenly spaced (by over 1 % of a pixel)."""
    if dim not in obj.coords:
        raise GridError(f"dimension {dim!r} has no coordinate; give it the pixel centres")
    values = np.asarray(obj[dim].values, dtype=np.float64)
    steps = np.diff(values)
    # written so that NaN fails
    if len(steps) and not (steps[0] != 0 and np.abs(steps - steps.mean()).max() <= 0.01 * abs(steps.mean())):
        raise GridError(
            f"coordinate {dim!r} is not evenly spaced (steps from {steps.min():g} to {steps.max():g}); "
            "resample to a regular grid first"
        )


def with_grid(obj: XarrayObject, box: GeoBox) -> XarrayObject:
    """Return `obj` with the coordinates of `box` and a `spatial_ref` that every spatial variable points to.

    The dimensions of `obj` must be named y and x, whatever the CRS.
    """
    coords = xr_coords(box, dims=("y", "x"), always_yx=True)
    out = obj.drop_vars([GRID_MAPPING, "y", "x"], errors="ignore").assign_coords(
        {"y": coords["y"], "x": coords["x"], GRID_MAPPING: coords[GRID_MAPPING]}
    )
    for array in _arrays(out):
        array.encoding.pop("grid_mapping", None)
        if {"y", "x"} <= set(array.dims):
            array.attrs["grid_mapping"] = GRID_MAPPING
    return out


def _arrays(obj: xr.Dataset | xr.DataArray) -> list[xr.DataArray]:
    return list(obj.data_vars.values()) if isinstance(obj, xr.Dataset) else [obj]


def points_to_pixels(box: GeoBox, x: npt.ArrayLike, y: npt.ArrayLike, crs: Any = "EPSG:4326") -> npt.NDArray[np.intp]:
    """Return the (row, column) of the pixel that holds each point; (-1, -1) where a point is outside the grid.

    A pixel holds its left and upper edge, so that each point of the map is in exactly one pixel.

    Parameters
    ----------
    box : GeoBox
        The grid.
    x, y : array_like, shape (n,)
        Coordinates in `crs`: longitude and latitude unless told otherwise.
    crs : str or CRS
        The CRS of the points.

    Returns
    -------
    ndarray, shape (n, 2)
    """
    from pyproj import Transformer

    xs, ys = np.atleast_1d(np.asarray(x, dtype=np.float64)), np.atleast_1d(np.asarray(y, dtype=np.float64))
    to_map = Transformer.from_crs(str(crs), str(box.crs), always_xy=True)
    mapped = to_map.transform(xs, ys)
    with np.errstate(invalid="ignore"):  # places that the CRS can't show come out infinite
        to_pixel = ~box.transform
    x_map, y_map = (np.asarray(m) for m in mapped)
    with np.errstate(invalid="ignore"):  # a point that has no place on this map is infinitely far away
        column = to_pixel.a * x_map + to_pixel.b * y_map + to_pixel.c
        row = to_pixel.d * x_map + to_pixel.e * y_map + to_pixel.f
    rows_columns = np.stack([row, column], axis=-1)
    inside = np.isfinite(rows_columns).all(axis=-1)
    pixels = np.full(rows_columns.shape, -1, dtype=np.intp)
    pixels[inside] = np.floor(rows_columns[inside]).astype(np.intp)
    inside &= ((pixels >= 0) & (pixels < np.array(box.shape))).all(axis=-1)
    pixels[~inside] = -1
    return pixels


def swap_hint(box: GeoBox, x: float, y: float, crs: Any = "EPSG:4326") -> str:
    """Return a question to end an error with if a point outside the grid, its coordinates swapped, lies in it."""
    swapped = points_to_pixels(box, y, x, crs)[0]
    return "; are longitude and latitude swapped?" if swapped[0] >= 0 else ""


def bounds_lonlat(box: GeoBox) -> tuple[float, float, float, float]:
    """Return (west, south, east, north) of the grid in degrees."""
    bounds = box.extent.to_crs("EPSG:4326").boundingbox
    return (bounds.left, bounds.bottom, bounds.right, bounds.top)


def pixel_area(box: GeoBox) -> float:
    """Return the area of a pixel in square metres; of a grid in degrees that of its middle."""
    from pyproj import Geod, Transformer

    if box.crs is not None and not box.crs.geographic:
        return abs(box.resolution.x * box.resolution.y)
    height, width = box.shape
    columns, rows = np.array([0, 1, 0]) + width / 2, np.array([0, 0, 1]) + height / 2
    x, y = box.transform.a * columns + box.transform.c, box.transform.e * rows + box.transform.f
    lon, lat = Transformer.from_crs(str(box.crs), "EPSG:4326", always_xy=True).transform(x, y)
    sides = Geod(ellps="WGS84").inv([lon[0]] * 2, [lat[0]] * 2, lon[1:], lat[1:])[2]
    return float(np.prod(sides))
