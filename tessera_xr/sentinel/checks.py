"""What makes a Dataset THE cube, looked at one thing at a time: faults as text, none if all is well."""

from __future__ import annotations

from typing import Final

import numpy as np
import xarray as xr

from tessera_xr.errors import GridError
from tessera_xr.grid import geobox_of
from tessera_xr.sentinel.bands import ORBITS, S1_BANDS, S2_BANDS

LAYOUT: Final = {
    "s2": (("s2_time", "s2_band", "y", "x"), np.dtype(np.uint16)),
    "s2_valid": (("s2_time", "y", "x"), np.dtype(np.bool_)),
    "s1": (("s1_time", "s1_band", "y", "x"), np.dtype(np.int16)),
}
"""The variables, each with its dimensions and dtype."""

ANEW: Final = "make the cube anew with as_cube(s2, s1)"


def layout_faults(ds: xr.Dataset) -> list[str]:
    """Hold the variables, their dimensions and dtypes against `LAYOUT`; a fault of several variables is told once."""
    there = {name: ds[name] for name in LAYOUT if name in ds.data_vars}
    faults = [f"variable {name!r} is missing; {ANEW}" for name in LAYOUT if name not in there]
    dims: dict[str, list[str]] = {}
    for name, array in there.items():
        if (fault := _dims_fault(array, LAYOUT[name][0])) is not None:
            dims.setdefault(fault, []).append(name)
    faults += [f"{', '.join(names)}: {fault}" for fault, names in dims.items()]
    wrong = {name: array.dtype for name, array in there.items() if array.dtype != LAYOUT[name][1]}
    if wrong:
        found = ", ".join(f"{name} has dtype {dtype}, not {LAYOUT[name][1]}" for name, dtype in wrong.items())
        faults.append(
            f"{found}; where(), means and arithmetic change it. To leave pixels out set s2_valid to False there; "
            f"else {ANEW}"
        )
    return faults


def band_faults(ds: xr.Dataset) -> list[str]:
    """Hold the names of the bands against TESSERA's, in TESSERA's order."""
    faults = []
    for dim, bands in (("s2_band", S2_BANDS), ("s1_band", S1_BANDS)):
        found = [str(v) for v in ds[dim].values] if dim in ds.coords and ds[dim].dims == (dim,) else None
        if dim not in ds.dims or found == list(bands):
            continue
        if found is None:
            faults.append(f"{dim} has no names; if the bands are in this order: assign_coords({dim}={list(bands)})")
        elif sorted(found) == sorted(bands):
            faults.append(f"{dim} is {found}, in another order; reorder with cube.sel({dim}={list(bands)})")
        else:
            faults.append(f"{dim} is {found}, but {', '.join(bands)} are needed, once each; {ANEW}")
    return faults


def time_faults(ds: xr.Dataset) -> list[str]:
    """Find dates that are missing, out of order, or, for Sentinel-2, there twice."""
    faults = []
    for dim in (dim for dim in ("s2_time", "s1_time") if dim in ds.dims):
        times = ds[dim].values if dim in ds.coords else np.empty(0)
        if times.dtype.kind != "M":
            faults.append(f"{dim} has no datetime64 values; assign_coords({dim}=...) with dates")
            continue
        if np.isnat(times).any():
            faults.append(f"{dim} has missing dates (NaT); drop them with cube.sel({dim}=cube.{dim}.notnull())")
        if (np.diff(times) < np.timedelta64(0)).any():
            faults.append(f"{dim} is not in order; sort it with cube.sortby({dim!r})")
        if dim == "s2_time" and len(np.unique(times)) < len(times):
            faults.append("s2_time holds the same time twice; drop one with cube.drop_duplicates('s2_time')")
    return faults


def orbit_faults(ds: xr.Dataset) -> list[str]:
    """Look at the orbit of each Sentinel-1 date, and for one that comes twice in an orbit."""
    if "s1_time" not in ds.dims:
        return []
    if "s1_orbit" not in ds.coords or ds["s1_orbit"].dims != ("s1_time",):
        return ["coordinate 's1_orbit' along s1_time is missing; assign it ('ascending', 'descending')"]
    orbits = ds["s1_orbit"].values.astype(object).astype(str).tolist()
    if strange := sorted(set(orbits) - set(ORBITS)):
        return [
            f"s1_orbit holds {strange}; only {ORBITS} are known, spelt so: assign_coords(s1_orbit=('s1_time', ...))"
        ]
    steps = list(zip(orbits, ds["s1_time"].values.tolist(), strict=True))
    if len(set(steps)) < len(steps):
        return [f"s1_time holds the same time twice in one orbit; drop one by isel(s1_time=...), or {ANEW}"]
    return []


def grid_faults(ds: xr.Dataset) -> list[str]:
    """Look for a grid, north up; without y and x the layout says so."""
    if not {"y", "x"} <= set(ds.dims):
        return []
    try:
        box = geobox_of(ds)
    except GridError as error:
        return [str(error)]
    if box.transform.e > 0:
        return ["y ascends; flip it with cube.isel(y=slice(None, None, -1))"]
    return ["x descends; flip it with cube.isel(x=slice(None, None, -1))"] if box.transform.a < 0 else []


def _dims_fault(array: xr.DataArray, dims: tuple[str, ...]) -> str | None:
    lacking, foreign = [d for d in dims if d not in array.dims], [str(d) for d in array.dims if d not in dims]
    if lacking:
        return (
            f"the dimension {' and '.join(lacking)} is gone; select by a list or a slice, as in isel(x=[0], y=[0]), "
            f"which keeps it, or {ANEW}"
        )
    if foreign:
        return (
            f"{' and '.join(foreign)} is a dimension too many; select along it, and join cubes with "
            "xarray.concat(..., data_vars='minimal')"
        )
    order = ("s2_time", "s2_band", "s1_time", "s1_band", "y", "x")
    return None if array.dims == dims else f"the dimensions are out of order; restore it with cube.transpose{order}"
