"""Label sets from rasters: regions of one value, or pixels drawn at random."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import xarray as xr

from tessera_xr._warn import warn
from tessera_xr.embedding.schema import check_whole
from tessera_xr.errors import SchemaError
from tessera_xr.grid import geobox_of, spatial_dims
from tessera_xr.learning.edits import State, checked_colour, checked_name, checked_target, coloured, filled
from tessera_xr.learning.geometries import canonical_crs, pixel_centres

if TYPE_CHECKING:
    from odc.geo.geobox import GeoBox

    from tessera_xr.learning.geometries import Geometries

Values = npt.NDArray[Any]
Nodata = float | Literal["auto"] | None


def from_raster(
    da: xr.DataArray,
    *,
    names: Mapping[Any, str] | None = None,
    nodata: Nodata = "auto",
    shapes: Literal["polygons", "points"] | None = None,
    n_per_class: int | None = None,
    seed: int = 0,
    target: str | None = None,
) -> State:
    """Return the labels of a raster; see `LabelSet.from_raster`."""
    da, box = _checked(da)
    shapes = shapes or ("points" if n_per_class is not None or target is not None else "polygons")
    _check_options(da, names, shapes, n_per_class, target)
    values = da.values
    counted = _counted(da, values, nodata, is_number=target is not None)
    if not counted.any():
        raise SchemaError("every pixel of this raster is no data; see nodata=")
    if target is not None:
        rows, columns = _drawn({target: counted}, n_per_class, seed)
        state = State(target=checked_target(target), crs=canonical_crs(box.crs))
        return filled(state, _centres(box, rows, columns), [float(v) for v in values[rows, columns]])
    present = np.unique(values[counted])
    named, colours = _named(da, present, names)
    state = State(coloured(dict.fromkeys(named.values()), colours), crs=canonical_crs(box.crs), grows=True)
    if shapes == "points":
        masks = {
            name: counted & np.isin(values, [code for code in present if named[code] == name])
            for name in state.classes
        }  # fmt: skip
        rows, columns = _drawn(masks, n_per_class, seed)
        return filled(state, _centres(box, rows, columns), [named[v] for v in values[rows, columns]])
    regions, numbers = _regions(np.searchsorted(present, np.where(counted, values, present[0])), counted, box)
    return filled(state, regions, [named[present[number]] for number in numbers])


def _checked(da: object) -> tuple[xr.DataArray, GeoBox]:
    """Return the raster as (y, x), and its grid."""
    if not isinstance(da, xr.DataArray):
        raise SchemaError(f"a raster of labels is a DataArray (y, x), not {type(da).__name__}; choose ds['variable']")
    y, x = spatial_dims(da)
    flat = da.squeeze([d for d in da.dims if d not in (y, x) and da.sizes[d] == 1], drop=True)
    if flat.ndim != 2:
        beside = [str(d) for d in flat.dims if d not in (y, x)]
        raise SchemaError(f"a raster of labels is (y, x); choose one of {', '.join(beside)} first, as with .isel()")
    return flat.transpose(y, x), geobox_of(flat)


def _check_options(
    da: xr.DataArray, names: Mapping[Any, str] | None, shapes: str, n_per_class: int | None, target: str | None
) -> None:
    if shapes not in ("polygons", "points"):
        raise SchemaError(f"shapes={shapes!r} is unknown; choose 'polygons' or 'points'")
    if da.dtype.kind not in "biuf" or (da.dtype.kind == "f" and target is None):
        raise SchemaError(
            f"classes are whole numbers or bool, this raster holds {da.dtype}; fill gaps and convert it, as with "
            ".fillna(0).astype('int32'), or name what is measured: target='biomass'"
        )
    if target is not None and (da.dtype.kind == "b" or names or shapes == "polygons"):
        raise SchemaError("numbers (target=) are drawn as points, of a raster of numbers, and have no names=")
    if shapes == "polygons" and n_per_class is not None:
        raise SchemaError("n_per_class is for shapes='points'; polygons are all regions of the raster")
    if shapes == "points":
        check_whole("n_per_class (how many points to draw)", n_per_class)
        if n_per_class is not None and n_per_class < 1:
            raise SchemaError(f"n_per_class must be 1 or more, not {n_per_class}")


def _counted(da: xr.DataArray, values: Values, nodata: Nodata, *, is_number: bool) -> npt.NDArray[np.bool_]:
    """Say which pixels hold a label."""
    if nodata == "auto":
        stated = [m[k] for m in (da.attrs, da.encoding) for k in ("_FillValue", "nodata") if m.get(k) is not None]
        usual = None if is_number or da.dtype.kind == "b" else 0
        nodata = stated[0] if stated and da.dtype.kind != "b" else usual
    if isinstance(nodata, str):
        raise SchemaError(f"nodata={nodata!r} is no value; give a number, None where every value counts, or 'auto'")
    known = np.isfinite(values) if values.dtype.kind == "f" else np.ones(values.shape, dtype=np.bool_)
    return known if nodata is None else known & (values != nodata)


def _named(da: xr.DataArray, present: Values, names: Mapping[Any, str] | None) -> tuple[dict[Any, str], dict[str, Any]]:
    """Return the name of each code that is there, and the colours that the raster gives them."""
    if names is not None:
        missing = [str(code) for code in present if code not in names]
        if missing:
            raise SchemaError(
                f"names= has no name for {', '.join(missing[:10])}; name every code, or make the others no data, as "
                "with da.where(da.isin(list(names)), 0)"
            )
        return {code: checked_name(names[code]) for code in present}, {}
    if present.dtype.kind == "b":
        return {code: "true" if code else "false" for code in present}, {}
    meanings, colours = _flags(da)
    named = {code: meanings.get(int(code), str(code)) for code in present}
    return named, {named[code]: colours[int(code)] for code in present if int(code) in colours}


def _flags(da: xr.DataArray) -> tuple[dict[int, str], dict[int, str]]:
    """Return names and colours of codes, as CF attributes tell them."""
    if "flag_values" not in da.attrs or "flag_meanings" not in da.attrs:
        return {}, {}
    codes = [int(code) for code in np.atleast_1d(da.attrs["flag_values"])]
    words = {key: str(da.attrs[key]).split() for key in ("flag_meanings", "flag_colors") if key in da.attrs}
    for key, found in words.items():
        if len(found) != len(codes):
            raise SchemaError(f"{key} has {len(found)} words for {len(codes)} flag_values; mend it, or pass names=")
    colours = [checked_colour(colour) for colour in words.get("flag_colors", [])]
    return dict(zip(codes, words["flag_meanings"], strict=True)), dict(zip(codes, colours, strict=False))


def _drawn(
    masks: Mapping[str, npt.NDArray[np.bool_]], n: int | None, seed: int
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Return rows and columns of `n` pixels drawn of each mask, all of it if it has fewer."""
    assert n is not None
    rng = np.random.default_rng(seed)
    drawn, fewer = [], []
    for name, mask in masks.items():
        where = np.flatnonzero(mask)
        if len(where) < n:
            fewer.append(f"{name!r} ({len(where):,})")
        drawn.append(np.sort(rng.choice(where, min(n, len(where)), replace=False)))
    if fewer:
        warn(f"fewer than {n:,} pixels to draw, all were taken: {', '.join(fewer)}")
    rows, columns = np.unravel_index(np.concatenate(drawn), next(iter(masks.values())).shape)
    return rows, columns


def _centres(box: GeoBox, rows: npt.NDArray[np.intp], columns: npt.NDArray[np.intp]) -> Geometries:
    import shapely

    points: Geometries = shapely.points(*pixel_centres(box, rows, columns))
    return points


def _regions(codes: Values, mask: npt.NDArray[np.bool_], box: GeoBox) -> tuple[Geometries, list[int]]:
    """Return the outlines of regions of one code, joined by their sides, and the code of each."""
    from rasterio.features import shapes
    from shapely.geometry import shape

    found = list(shapes(codes.astype(np.int32), mask=mask, connectivity=4, transform=box.transform))
    regions = np.empty(len(found), dtype=object)
    regions[:] = [shape(outline) for outline, _ in found]
    return regions, [int(code) for _, code in found]
