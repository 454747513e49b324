"""What a result depends on, in a few lines of text: so that a run goes on only with what it began with."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from tessera_xr._version import __version__
from tessera_xr.embedding.large.regions import cut_out
from tessera_xr.grid import crs_name, geobox_of

PLACES = ((0.5, 0.5), (0.15, 0.2), (0.2, 0.85), (0.85, 0.15), (0.8, 0.8))
"""Where d-pixels are looked at, as shares of the height and the width."""
DATES = 16
"""How many dates of each sensor are looked at, so that a lazy cube needs few reads."""
VOLATILE = ("history", "date_created", "date_modified")
"""Attributes that change without the data."""


def describe_cube(cube: xr.Dataset) -> dict[str, str]:
    """Return the grid, dates, orbits and attributes of a cube, and the hash of a few of its d-pixels.

    A few dozen chunks of a lazy cube are read.
    """
    box = geobox_of(cube)
    transform = ", ".join(f"{v:.10g}" for v in tuple(box.transform)[:6])
    orbits = cube["s1_orbit"].values.astype(object).astype(str)  # words of Zarr v3 have a type of their own
    return {
        "grid": f"{box.shape[0]} x {box.shape[1]} px, {crs_name(box.crs)}, transform ({transform})",
        "Sentinel-2 dates": _dates(cube["s2_time"].values),
        "Sentinel-1 dates": _dates(cube["s1_time"].values),
        "Sentinel-1 orbits": f"{(orbits == 'ascending').sum()} ascending [{_hash(*orbits.tolist())}]",
        **{f"attribute {k}": str(v) for k, v in sorted(cube.attrs.items()) if k not in VOLATILE},
        **_samples(cube),
    }


def describe_run(attrs: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, str]:
    """Return the model, by its attributes in the embeddings, and the options."""
    model = {"model": str(attrs["model"]), "weights": str(attrs["weights_sha256"])}
    return model | {k: str(v) for k, v in options.items()} | {"version of tessera_xr": __version__}


def list_changes(before: Mapping[str, Any], now: Mapping[str, Any], where: str = "") -> list[str]:
    """Return what differs between two descriptions, a line each."""
    changes = []
    for key in [*before, *(k for k in now if k not in before)]:
        old, new = before.get(key), now.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            changes += list_changes(old, new, f"{where}{key}: " if key else where)
        elif old != new:
            name = f"{where}{key}" if key else where or "the area"
            changes.append(f"{name}: {_told(old)} before, {_told(new)} now")
    return changes


def _told(value: object) -> str:
    return "none" if value is None else "another" if isinstance(value, Mapping) else str(value)


def _dates(times: np.ndarray[Any, Any]) -> str:
    days = times.astype("datetime64[D]")
    span = f", {days.min()} to {days.max()}" if len(days) else ""
    return f"{len(days)} dates{span} [{_hash(times.astype('datetime64[s]'))}]"


def _samples(cube: xr.Dataset) -> dict[str, str]:
    from dask.base import compute

    pixels, names = [], []
    for share_y, share_x in PLACES:
        row, column = int(share_y * cube.sizes["y"]), int(share_x * cube.sizes["x"])
        names.append(f"values at row {row}, column {column}")
        pixel = cut_out(cube[["s2", "s2_valid", "s1"]], slice(row, row + 1), slice(column, column + 1))
        pixels.append([_thinned(array) for array in pixel.data_vars.values()])
    return dict(zip(names, [_hash(*(a.values for a in found)) for found in compute(*pixels)], strict=True))


def _thinned(array: xr.DataArray) -> xr.DataArray:
    """Return a few of the dates, evenly spread."""
    n = array.shape[0]
    return array[np.unique(np.linspace(0, n - 1, min(n, DATES)).astype(int))] if n else array


def _hash(*values: Any) -> str:
    found = hashlib.sha256()
    for value in values:
        found.update(value.encode() + b"\0" if isinstance(value, str) else np.ascontiguousarray(value).tobytes())
    return found.hexdigest()[:12]
