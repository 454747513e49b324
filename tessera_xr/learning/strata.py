"""A map of classes as strata: their names, and the true area of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import xarray as xr
from odc.geo.geobox import GeoBox

from tessera_xr.analysis.queries import time_labels
from tessera_xr.embedding.schema import provenance
from tessera_xr.errors import GridError, SchemaError
from tessera_xr.grid import crs_name, geobox_of

Floats: TypeAlias = npt.NDArray[np.float64]

DISTORTED = 0.01
"""Share by which areas on a map projection may be off before they are corrected, or refused."""


@dataclass(frozen=True)
class Strata:
    """A map of classes, in memory."""

    codes: npt.NDArray[Any]
    """(rows, columns) what the map holds."""
    values: npt.NDArray[Any]
    """(C,) the codes of the classes that occur, ascending; all other codes are no data."""
    names: tuple[str, ...]
    """(C,) what they are called."""
    row_area: Floats
    """(rows,) square metres of a pixel of each row."""
    box: GeoBox
    """The grid."""
    attrs: dict[str, Any]
    """Where the map comes from."""

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """(rows, C) pixels of each class in each row."""
        found = np.zeros((len(self.codes), len(self.values)), dtype=np.int64)
        for i, row in enumerate(self.codes):
            index = self.index(row)
            found[i] = np.bincount(index[index >= 0], minlength=len(self.values))
        return found

    @property
    def areas(self) -> Floats:
        """(C,) square metres of each class."""
        return self.row_area @ self.counts

    def index(self, codes: npt.NDArray[Any]) -> npt.NDArray[np.intp]:
        """Return which class codes are, counted from 0; -1 where none."""
        at = np.searchsorted(self.values, codes)
        at[at == len(self.values)] = 0
        return np.where(self.values[at] == codes, at, -1)


def strata_of(prediction: xr.DataArray | xr.Dataset) -> Strata:
    """Read a map of classes.

    Parameters
    ----------
    prediction : DataArray or Dataset
        Codes (y, x), eager or lazy, or a Dataset with them as `prediction`. With the attributes flag_values and
        flag_meanings the classes are those, and any other code is no data; without, every whole number is a class but
        that in the attribute `nodata` or `_FillValue`.

    Raises
    ------
    SchemaError
        If it is no map of classes at one time, or no pixel has a class.
    GridError
        If it has no grid, or areas on it are distorted beyond repair.
    """
    codes = _one_map(prediction)
    box = geobox_of(codes)
    values = codes.transpose("y", "x").values
    found, names = _classes(codes, values)
    if not len(found):
        raise SchemaError("no pixel of the map has a class; there is nothing to count")
    return Strata(values, found, names, row_areas(box), box, provenance(codes))


def row_areas(box: GeoBox) -> Floats:
    """Return the square metres of a pixel of each row, (rows,).

    On a geographic grid that is its true area on the ellipsoid. On a projected one it is the area of the pixel as the
    grid states it, if that is within 1 % of the true one on all of the map, as it is in UTM or in equal-area
    projections; else, as in Web Mercator, the true area at the middle of each row.

    Raises
    ------
    GridError
        If true areas change by over 1 % along a row.
    """
    crs = box.crs
    assert crs is not None  # geobox_of has seen to it
    size = abs(box.transform.determinant)
    if crs.geographic:
        if box.transform.b or box.transform.d:
            raise GridError("the areas of a rotated grid in degrees can't be told; reproject the map first")
        return _ellipsoid_rows(box)
    size *= crs.proj.axis_info[0].unit_conversion_factor ** 2
    scale = _areal_scale(box)
    if np.abs(scale - 1).max() <= DISTORTED:
        return np.full(box.shape[0], size)
    middle = scale[:, scale.shape[1] // 2]
    if np.abs(scale / middle[:, None] - 1).max() > DISTORTED:
        raise GridError(
            f"{crs_name(crs)} distorts areas by {scale.min():.3g} to {scale.max():.3g}; reproject the map to UTM or to "
            "an equal-area projection first, as in ds.odc.reproject('EPSG:6933', resampling='nearest')"
        )
    return np.asarray(size / middle)


def _areal_scale(box: GeoBox) -> Floats:
    """Return area on the map over area on the ground for each row and nine places along it, (rows, 9)."""
    from pyproj import Proj, Transformer

    rows, columns = np.mgrid[: box.shape[0], :9].astype(np.float64)
    x, y = box.transform * np.stack([columns / 8 * box.shape[1], rows + 0.5])
    lon, lat = Transformer.from_crs(str(box.crs), "EPSG:4326", always_xy=True).transform(x, y)
    return np.asarray(Proj(str(box.crs)).get_factors(lon, lat).areal_scale)


def _ellipsoid_rows(box: GeoBox) -> Floats:
    """Return the area between meridians and parallels, from the closed form of the area below a latitude."""
    assert box.crs is not None
    ellipsoid = box.crs.proj.ellipsoid
    assert ellipsoid is not None
    a, b = ellipsoid.semi_major_metre, ellipsoid.semi_minor_metre
    edges = np.radians(box.transform.f + box.transform.e * np.arange(box.shape[0] + 1))
    s, e = np.sin(edges), np.sqrt(1 - (b / a) ** 2)
    below = b**2 / 2 * (s / (1 - (e * s) ** 2) + (np.arctanh(e * s) / e if e else s))
    return np.asarray(np.abs(np.diff(below)) * np.radians(abs(box.transform.a)))


def _one_map(prediction: xr.DataArray | xr.Dataset) -> xr.DataArray:
    codes = prediction
    if isinstance(codes, xr.Dataset):
        if "prediction" not in codes:
            raise SchemaError(
                f"a map of classes is a DataArray, or a Dataset with `prediction`; found {list(map(str, codes))}"
            )
        codes = codes["prediction"].assign_attrs(provenance(codes) | codes["prediction"].attrs)
    if not isinstance(codes, xr.DataArray):
        raise SchemaError(
            f"a map of classes is a DataArray (y, x) or what predict returned, not {type(codes).__name__}"
        )
    if "time" in codes.dims and codes.sizes["time"] == 1:
        codes = codes.isel(time=0)
    if "time" in codes.dims:
        times = time_labels(codes["time"].values) if "time" in codes.coords else range(codes.sizes["time"])
        raise SchemaError(f"areas are of one time: choose one of {', '.join(map(str, times))}, as in .sel(time=...)")
    names = {"latitude": "y", "lat": "y", "longitude": "x", "lon": "x"}
    codes = codes.rename({old: new for old, new in names.items() if old in codes.dims})
    if set(codes.dims) != {"y", "x"}:
        raise SchemaError(f"a map of classes has the dimensions y and x, not {tuple(map(str, codes.dims))}")
    if codes.dtype.kind not in "iub" and "flag_values" not in codes.attrs:
        raise SchemaError(
            "this is a map of numbers; areas are of classes: cut it first, as in (pred > 50).astype('uint8')"
        )
    return codes


def _classes(codes: xr.DataArray, values: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], tuple[str, ...]]:
    """Return the codes that occur and are classes, and their names."""
    found = np.unique(values)
    if "flag_values" not in codes.attrs:
        empty = codes.attrs.get("nodata", codes.attrs.get("_FillValue", codes.encoding.get("_FillValue")))
        found = found[found != empty] if empty is not None else found
        return found, tuple(str(v) for v in found.tolist())
    flags = np.atleast_1d(codes.attrs["flag_values"])
    meanings = codes.attrs.get("flag_meanings", "")
    words = meanings.split() if isinstance(meanings, str) else list(map(str, meanings))
    if len(words) != len(flags):
        raise SchemaError(f"the map has {len(flags)} flag_values and {len(words)} flag_meanings; give each a name")
    named = dict(zip(flags.tolist(), words, strict=True))
    named.pop(codes.attrs.get("nodata"), None)
    found = np.array([v for v in found if v.item() in named], dtype=found.dtype)
    return found, tuple(named[v] for v in found.tolist())
