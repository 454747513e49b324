"""What a dataset holds, in plain words: for a cube, and for what is not one yet."""

from __future__ import annotations

import numpy as np
import xarray as xr

from tessera_xr.errors import CubeError
from tessera_xr.grid import bounds_lonlat, crs_name, geobox_of
from tessera_xr.sentinel.bands import ORBITS, canonical_name
from tessera_xr.sentinel.cube import fullest_year
from tessera_xr.sentinel.pieces import Request
from tessera_xr.sentinel.plan import make_plan


def describe_cube(cube: xr.Dataset) -> str:
    """Return the inventory of `cube`: sensors, dates, clear observations, grid, source, and what can be done next.

    Nothing lazy is computed.
    """
    lines = [
        "Sentinel cube",
        f"  grid         {_grid(cube)}",
        f"  Sentinel-2   {_optical(cube)}",
        f"  Sentinel-1   {_radar(cube)}",
    ]
    lines += [f"  {label:<12} {text}" for label, text in _facts(cube) if text]
    lines += [f"  assumed      {text}" for text in str(cube.attrs.get("assumptions", "")).split("; ") if text]
    year = fullest_year(cube)
    period = f", period={year}" if year is not None else ""
    return "\n".join([*lines, f'Next: .tessera.embed("mini"{period})'])


def describe_unknown(ds: xr.Dataset | xr.DataArray) -> str:
    """Return what is recognised in a dataset that is no cube, what is missing, and how to go on."""
    names = [*ds.data_vars] if isinstance(ds, xr.Dataset) else [ds.name]
    bands = sorted({band for name in names if name is not None and (band := canonical_name(name))})
    kind = "Dataset" if isinstance(ds, xr.Dataset) else "DataArray"
    lines = [
        f"{kind} with {', '.join(f'{dim}: {size}' for dim, size in ds.sizes.items()) or 'no dimensions'}",
        f"  recognised   {', '.join(bands) or 'no Sentinel band among the variables'}",
    ]
    try:
        plan = make_plan(Request(s2=ds))
    except CubeError as error:
        lines += [f"  missing      {fault}" for fault in error.faults]
        return "\n".join([*lines, "Next: mend this, then cube = tessera_xr.as_cube(s2, s1)"])
    sensors = [name for name, pieces in (("Sentinel-2", plan.optical), ("Sentinel-1", plan.radar)) if pieces]
    lines += [
        f"  readable as  a cube of {' and '.join(sensors)}",
        *(f"  note         {text}" for text in plan.warnings),
    ]
    return "\n".join([*lines, 'Next: cube = tessera_xr.as_cube(ds), then cube.tessera.embed("mini")'])


def _grid(cube: xr.Dataset) -> str:
    box = geobox_of(cube)
    west, south, east, north = bounds_lonlat(box)
    lon, lat = (west + east) / 2, (south + north) / 2
    place = f"{abs(lat):.3f} {'N' if lat >= 0 else 'S'}, {abs(lon):.3f} {'E' if lon >= 0 else 'W'}"
    unit = "degree" if box.crs is not None and box.crs.geographic else "m"
    return f"{box.shape[0]} x {box.shape[1]} px of {abs(box.resolution.x):g} {unit}, {crs_name(box.crs)}, at {place}"


def _optical(cube: xr.Dataset) -> str:
    if not cube.sizes["s2_time"]:
        return "none"
    return f"{_dates(cube['s2_time'])}; clear observations per pixel: {_clear(cube['s2_valid'])}"


def _clear(valid: xr.DataArray) -> str:
    if valid.chunks is not None:
        return "lazy, not counted"
    counts = valid.values.sum(axis=0)
    return f"median {np.median(counts):.0f}, min {counts.min()}" if counts.size else "no pixels"


def _radar(cube: xr.Dataset) -> str:
    if not cube.sizes["s1_time"]:
        return "none"
    orbits = cube["s1_orbit"].values.astype(object).astype(str)
    counts = ", ".join(f"{int((orbits == orbit).sum())} {orbit}" for orbit in ORBITS)
    return f"{_dates(cube['s1_time'])} ({counts})"


def _dates(times: xr.DataArray) -> str:
    days = times.values.astype("datetime64[D]")
    return f"{len(days)} date{'s' if len(days) > 1 else ''}, {days.min()} to {days.max()}"


def _facts(cube: xr.Dataset) -> list[tuple[str, str]]:
    labels = {
        "source": "source",
        "s2_units": "S2 units",
        "s2_offset": "S2 offset",
        "s2_mask": "S2 mask",
        "s1_units": "S1 units",
    }
    return [(label, str(cube.attrs.get(name, ""))) for name, label in labels.items()]
