"""THE cube: any Sentinel dataset in, one Dataset out whose bands, units and dates are what TESSERA expects."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import xarray as xr

from tessera_xr._warn import warn
from tessera_xr.errors import CubeError, SchemaError
from tessera_xr.sentinel.build import KIND, build
from tessera_xr.sentinel.checks import (
    ANEW,
    LAYOUT,
    band_faults,
    grid_faults,
    layout_faults,
    orbit_faults,
    time_faults,
)
from tessera_xr.sentinel.period import MAX_DAYS, Period, PeriodLike, resolve_period
from tessera_xr.sentinel.pieces import Request
from tessera_xr.sentinel.plan import make_plan, missing_sensor


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
    s1_units : "auto", "db", "power" (or "linear"), "amplitude" or "tessera"
        Unit of VV and VH. What no backscatter can be is missing: not above 0 in power and amplitude, outside -80 to 40
        in dB, and 0 dB in both bands at once.
    orbit : "ascending" or "descending", optional
        The orbit of all dates of `s1`.
    source : str, optional
        Where the imagery is from: "planetary-computer" ("mpc"), "earth-search" ("aws"), in any spelling, or another
        text.
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
        With every fault found, each with its fix; or if more than `period` is passed beside a cube.
    SchemaError
        If `period` can't be read, is longer than 366 days, or is a list.

    Warns
    -----
    TesseraWarning
        If nothing tells clouds from clear sky, a sensor has no date in the period, or `s2` holds Sentinel-1 only.
    """
    span = () if period is None else (_one_period(period),)
    if isinstance(s2, xr.Dataset) and is_cube(s2):
        apart: dict[str, object] = {"s1": s1, "s1_ascending": s1_ascending, "s1_descending": s1_descending}
        apart |= {"orbit": orbit, "source": source}
        auto: dict[str, object] = {"mask": mask, "offset": offset, "s1_units": s1_units}
        _refuse_beside_cube(
            [name for name, value in apart.items() if value is not None]
            + [name for name, value in auto.items() if not (isinstance(value, str) and value == "auto")]
        )
        check_cube(s2)
        return select_period(s2, span[0]) if span else s2
    return _made(Request(s2, s1, s1_ascending, s1_descending, mask, offset, s1_units, orbit, source, span))


def as_cube_for(imagery: xr.Dataset | xr.DataArray, periods: Sequence[Period]) -> xr.Dataset:
    """Return THE cube of the dates of `imagery` within `periods`, however long they are together.

    Dates outside are left alone: they need be neither of a known offset nor of known units. See `as_cube`.

    Raises
    ------
    CubeError
        With every fault found, each with its fix.
    """
    return _made(Request(imagery, periods=tuple(periods)))


def is_cube(ds: object) -> bool:
    """Say whether `ds` is THE cube, by its attribute and the names of its variables; `check_cube` looks closer."""
    return isinstance(ds, xr.Dataset) and ds.attrs.get("tessera_xr_kind") == KIND and set(LAYOUT) <= set(ds.data_vars)


def check_cube(ds: xr.Dataset) -> None:
    """Raise `CubeError`, with every fault found, unless `ds` is THE cube in all respects that need no pixels.

    Names, dimensions, dtypes, coordinates and the grid are looked at; nothing lazy but coordinates is computed.
    """
    if not isinstance(ds, xr.Dataset):
        raise CubeError(f"a cube is an xarray Dataset, not {type(ds).__name__}; make one with as_cube(s2, s1)")
    faults = [] if ds.attrs.get("tessera_xr_kind") == KIND else [f"attribute tessera_xr_kind is not {KIND!r}; {ANEW}"]
    faults += layout_faults(ds) + band_faults(ds) + time_faults(ds) + orbit_faults(ds) + grid_faults(ds)
    if faults:
        raise CubeError(faults, heading="this is not a cube, or no longer one")


def select_period(cube: xr.Dataset, period: PeriodLike) -> xr.Dataset:
    """Return the dates of `cube` that fall into `period`.

    Raises
    ------
    CubeError
        If none does.

    Warns
    -----
    TesseraWarning
        If a sensor has dates, but none in the period.
    """
    span = _one_period(period)
    keep = {dim: span.contains(cube[dim].values) for dim in ("s2_time", "s1_time")}
    if not any(k.any() for k in keep.values()):
        raise CubeError(f"no date falls into the period {span}; the cube covers {_covered(cube)}")
    for sensor, dim in (("Sentinel-2", "s2_time"), ("Sentinel-1", "s1_time")):
        if cube.sizes[dim] and not keep[dim].any():
            warn(missing_sensor(sensor, "the cube", str(span)))
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


def _made(request: Request) -> xr.Dataset:
    plan = make_plan(request)
    for text in plan.warnings:
        warn(text)
    return build(plan)


def _one_period(period: PeriodLike) -> Period:
    if isinstance(period, (list, range, np.ndarray)):
        raise SchemaError(
            f"period={period!r} is a list, which means several periods, but a cube is cut to one; make the cube "
            "without period= and pass the list to embed(period=[...]), or give a pair of dates in round brackets"
        )
    return resolve_period(period)


def _refuse_beside_cube(names: list[str]) -> None:
    """Raise `CubeError` if anything was passed beside a cube that only raw imagery can be read with."""
    if names:
        raise CubeError(
            f"s2 is a cube already, so {', '.join(f'{name}=' for name in names)} can't be heeded: its sensors, units, "
            "offset and mask are settled. Pass it alone, or pass the raw imagery (a source can be noted with "
            "cube.assign_attrs(source=...))"
        )


def _span(cube: xr.Dataset) -> tuple[np.datetime64, np.datetime64] | None:
    times = np.concatenate([cube[dim].values.astype("datetime64[D]") for dim in ("s2_time", "s1_time")])
    return (times.min(), times.max()) if len(times) else None


def _covered(cube: xr.Dataset) -> str:
    span = _span(cube)
    return "/".join(map(str, span)) if span else "no date at all"
