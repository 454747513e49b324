"""THE cube: any Sentinel dataset in, one Dataset out whose bands, units and dates are what TESSERA expects."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import xarray as xr

from tessera_xr.errors import CubeError, GridError, TesseraWarning
from tessera_xr.grid import geobox_of
from tessera_xr.sentinel.bands import ORBITS, S1_BANDS, S2_BANDS
from tessera_xr.sentinel.build import KIND, build
from tessera_xr.sentinel.period import MAX_DAYS, PeriodLike, resolve_period
from tessera_xr.sentinel.plan import Request, make_plan

_LAYOUT = {
    "s2": (("s2_time", "s2_band", "y", "x"), np.dtype(np.uint16)),
    "s2_valid": (("s2_time", "y", "x"), np.dtype(np.bool_)),
    "s1": (("s1_time", "s1_band", "y", "x"), np.dtype(np.int16)),
}


def as_cube(
    s2: xr.Dataset | xr.DataArray | Sequence[xr.Dataset | xr.DataArray] | None = None,
    s1: xr.Dataset | xr.DataArray | None = None,
    *,
    s1_ascending: xr.Dataset | xr.DataArray | None = None,
    s1_descending: xr.Dataset | xr.DataArray | None = None,
    mask: xr.DataArray | str | None = "auto",
    offset: npt.ArrayLike | xr.DataArray = "auto",
    s1_units: str = "auto",
    orbit: str | None = None,
    source: str | None = None,
    period: PeriodLike | None = None,
) -> xr.Dataset:
    """Return THE cube of Sentinel-2 and Sentinel-1 imagery in whatever form it is in.

    Bands are found by name, units from attributes or values, and what was inferred is kept in the attributes of the
    result. Scenes of one day are joined: the first clear one counts, pixel by pixel. Dask arrays stay lazy.

    Parameters
    ----------
    s2 : Dataset, DataArray or a sequence of them, optional
        Sentinel-2 L2A: a variable per band ("B04", "red") or a dimension of bands; dimensions in any order. A sequence
        holds bands on different grids that nest (10 m and 20 m). It may hold VV and VH too. A cube is checked and
        returned.
    s1 : Dataset or DataArray, optional
        Sentinel-1 VV and VH, with the orbit ("ascending", "descending") along time.
    s1_ascending, s1_descending : Dataset or DataArray, optional
        Instead of `s1`: the passes apart.
    mask : "auto", None or DataArray
        Which Sentinel-2 pixels are clear: SCL codes, or bool with True = clear. "auto" looks for either in `s2`.
    offset : "auto", 0, 1000 or array_like, shape (s2 dates,)
        What to subtract from Sentinel-2 values of 1000 and above. "auto" decides for each date from metadata,
        source, processing baseline or date, and refuses if none of them tells.
    s1_units : "auto", "db", "power", "amplitude" or "tessera"
        Unit of VV and VH.
    orbit : "ascending" or "descending", optional
        The orbit of all dates of `s1`.
    source : str, optional
        Where the imagery is from: "planetary-computer" ("mpc"), "earth-search" ("aws") or any other text.
    period : int, str, tuple or Period, optional
        Keep these dates only, for example 2024 or ("2023-10-01", "2024-09-30").

    Returns
    -------
    Dataset
        `s2` (s2_time, s2_band, y, x) uint16, reflectance x 10,000, 0 = no data; `s2_valid` (s2_time, y, x) bool;
        `s1` (s1_time, s1_band, y, x) int16, (dB + 50) * 200, 0 = missing; coordinate `s1_orbit` along s1_time.

    Raises
    ------
    CubeError
        With every fault found, each with its fix.

    Warns
    -----
    TesseraWarning
        If nothing tells clouds from clear sky, or a sensor has no date in the period.
    """
    span = None if period is None else resolve_period(period)
    if isinstance(s2, xr.Dataset) and is_cube(s2):
        if any(other is not None for other in (s1, s1_ascending, s1_descending)):
            raise CubeError("s2 is a cube already, with its own s1; pass it alone, or the raw imagery of both sensors")
        check_cube(s2)
        return s2 if span is None else select_period(s2, span)
    plan = make_plan(Request(s2, s1, s1_ascending, s1_descending, mask, offset, s1_units, orbit, source, span))
    for text in plan.warnings:
        warnings.warn(text, TesseraWarning, stacklevel=2)
    return build(plan)


def is_cube(ds: object) -> bool:
    """Say whether `ds` is THE cube, by its attribute and the names of its variables; `check_cube` looks closer."""
    return isinstance(ds, xr.Dataset) and ds.attrs.get("tessera_xr_kind") == KIND and set(_LAYOUT) <= set(ds.data_vars)


def check_cube(ds: xr.Dataset) -> None:
    """Raise `CubeError`, with every fault found, unless `ds` is THE cube in all respects that need no data."""
    if not isinstance(ds, xr.Dataset):
        raise CubeError(f"a cube is an xarray Dataset, not {type(ds).__name__}; make one with as_cube(s2, s1)")
    faults = (
        []
        if ds.attrs.get("tessera_xr_kind") == KIND
        else ["attribute tessera_xr_kind is not 'cube'; use as_cube(s2, s1)"]
    )
    for name, (dims, dtype) in _LAYOUT.items():
        if name not in ds:
            faults.append(f"variable {name!r} is missing; make the cube with as_cube(s2, s1)")
        elif ds[name].dims != dims:
            faults.append(f"{name} has the dimensions {ds[name].dims}, not {dims}; transpose it back")
        elif ds[name].dtype != dtype:
            faults.append(f"{name} has dtype {ds[name].dtype}, not {dtype}; a mask or arithmetic may have changed it")
    if not faults:
        faults = _band_faults(ds) + _time_faults(ds) + _grid_faults(ds)
    if faults:
        raise CubeError(faults)


def select_period(cube: xr.Dataset, period: PeriodLike) -> xr.Dataset:
    """Return the dates of `cube` that fall into `period`.

    Raises
    ------
    CubeError
        If none does.
    """
    span = resolve_period(period)
    keep = {dim: span.contains(cube[dim].values) for dim in ("s2_time", "s1_time")}
    if not any(k.any() for k in keep.values()):
        raise CubeError(f"no date falls into the period {span}; the cube covers {_covered(cube)}")
    keep = {dim: k for dim, k in keep.items() if not k.all()}
    return cube.isel(keep) if keep else cube


def require_span(cube: xr.Dataset, period: PeriodLike | None) -> None:
    """Raise `CubeError` if no `period` is given and `cube` spans more than one embedding can stand for: 366 days."""
    if period is not None:
        return
    span = _span(cube)
    if span is not None and (span[1] - span[0]).astype(int) + 1 > MAX_DAYS:
        raise CubeError(
            f"the cube spans more than {MAX_DAYS} days, but one embedding stands for at most a year; "
            f"pass period={fullest_year(cube)} (or a pair of dates, or a list of years); it covers {_covered(cube)}"
        )


def fullest_year(cube: xr.Dataset) -> int | None:
    """Return the calendar year with the most dates (Sentinel-2 if there is any); None if there are no dates."""
    times = cube["s2_time" if cube.sizes["s2_time"] else "s1_time"].values
    if not len(times):
        return None
    years, counts = np.unique(times.astype("datetime64[Y]").astype(int) + 1970, return_counts=True)
    return int(years[counts.argmax()])


def _span(cube: xr.Dataset) -> tuple[np.datetime64, np.datetime64] | None:
    times = np.concatenate([cube[dim].values.astype("datetime64[D]") for dim in ("s2_time", "s1_time")])
    return (times.min(), times.max()) if len(times) else None


def _covered(cube: xr.Dataset) -> str:
    span = _span(cube)
    return "/".join(map(str, span)) if span else "no date at all"


def _band_faults(ds: xr.Dataset) -> list[str]:
    faults = []
    for dim, bands in (("s2_band", S2_BANDS), ("s1_band", S1_BANDS)):
        found = [str(v) for v in ds[dim].values] if dim in ds.coords else None
        if found != list(bands):
            faults.append(
                f"{dim} is {found}, not {list(bands)}; put the bands into this order with ds.sel({dim}=[...])"
            )
    return faults


def _time_faults(ds: xr.Dataset) -> list[str]:
    faults = []
    for dim in ("s2_time", "s1_time"):
        times = ds[dim].values if dim in ds.coords else np.empty(0)
        if times.dtype.kind != "M":
            faults.append(f"{dim} has no datetime64 values; assign_coords({dim}=...) with dates")
        elif np.isnat(times).any():
            faults.append(f"{dim} has missing dates (NaT); drop these steps")
        elif (np.diff(times) < np.timedelta64(0)).any():
            faults.append(f"{dim} is not in order; sort it with ds.sortby({dim!r})")
        elif dim == "s2_time" and len(np.unique(times)) < len(times):
            faults.append(
                "s2_time holds the same time twice; drop one, or make the cube anew with as_cube, which joins scenes"
            )
    if "s1_orbit" not in ds.coords or ds["s1_orbit"].dims != ("s1_time",):
        return [*faults, "coordinate 's1_orbit' along s1_time is missing; assign it ('ascending', 'descending')"]
    orbits = ds["s1_orbit"].values.astype(str)
    if not np.isin(orbits, ORBITS).all():
        faults.append(f"s1_orbit holds {sorted(set(orbits.tolist()) - set(ORBITS))}; only {ORBITS} are known")
    if not faults and len(set(zip(orbits.tolist(), ds["s1_time"].values.tolist(), strict=True))) < len(orbits):
        faults.append("s1_time holds the same time twice in one orbit; drop one, or make the cube anew with as_cube")
    return faults


def _grid_faults(ds: xr.Dataset) -> list[str]:
    try:
        box = geobox_of(ds)
    except GridError as error:
        return [str(error)]
    return ["y ascends; flip it with ds.isel(y=slice(None, None, -1))"] if box.transform.e > 0 else []
