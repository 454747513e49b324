"""The work that a plan asks for: pieces to the four variables of THE cube, lazily if they are lazy."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from odc.geo.geobox import GeoBox

from tessera_xr.grid import with_grid
from tessera_xr.sentinel.align import onto
from tessera_xr.sentinel.bands import ORBITS, S1_BANDS, S2_BANDS
from tessera_xr.sentinel.masks import clear_from
from tessera_xr.sentinel.mosaic import mosaic_days
from tessera_xr.sentinel.pieces import Piece, Plan
from tessera_xr.sentinel.radiometry import to_reflectance
from tessera_xr.sentinel.sar import to_sar

KIND = "cube"


def build(plan: Plan) -> xr.Dataset:
    """Return THE cube that `plan` describes."""
    if plan.grid is None:
        raise AssertionError("a plan without faults has a grid")
    s2, valid = _optical(plan, plan.grid) if plan.optical else empty_optical(plan.grid)
    s1, orbits = _radar(plan.radar, plan.grid) if plan.radar else empty_radar(plan.grid)
    return assemble(s2, valid, s1, orbits, plan.grid, plan.attrs | {"assumptions": "; ".join(plan.assumptions)})


def assemble(
    s2: xr.DataArray,
    valid: xr.DataArray,
    s1: xr.DataArray,
    orbits: npt.NDArray[np.str_],
    grid: GeoBox,
    attrs: dict[str, str],
) -> xr.Dataset:
    """Return the cube of arrays that are in the cube's own dimensions, dtypes and units already.

    Parameters
    ----------
    s2 : DataArray (s2_time, s2_band, y, x) of uint16
    valid : DataArray (s2_time, y, x) of bool
    s1 : DataArray (s1_time, s1_band, y, x) of int16
    orbits : ndarray of str, shape (s1_time,)
    grid : GeoBox
    attrs : dict
        What was found out: source, s2_offset, s2_units, s2_mask, s1_units, assumptions.
    """
    s1 = s1.assign_coords(s1_orbit=("s1_time", orbits.astype("<U10")), s1_band=list(S1_BANDS))
    cube = xr.Dataset({"s2": s2.assign_coords(s2_band=list(S2_BANDS)), "s2_valid": valid, "s1": s1})
    cube["s2"].attrs = {
        "long_name": "Sentinel-2 surface reflectance, offset removed; 0 = no data",
        "units": "1e-4 reflectance",
    }
    cube["s2_valid"].attrs = {"long_name": "Sentinel-2 pixel is clear and has data"}
    cube["s1"].attrs = {"long_name": "Sentinel-1 backscatter, (dB + 50) * 200; 0 = missing", "units": "tessera"}
    defaults = dict.fromkeys(("source", "s2_offset", "s2_units", "s1_units", "s2_mask", "assumptions"), "")
    cube.attrs = {"tessera_xr_kind": KIND} | defaults | attrs
    return with_grid(cube, grid)


def empty_optical(grid: GeoBox) -> tuple[xr.DataArray, xr.DataArray]:
    """Return `s2` and `s2_valid` without a date."""
    coords = {"s2_time": np.empty(0, "datetime64[ns]")}
    s2 = xr.DataArray(np.empty((0, len(S2_BANDS), *grid.shape), np.uint16), coords, ("s2_time", "s2_band", "y", "x"))
    return s2, xr.DataArray(np.empty((0, *grid.shape), np.bool_), coords, ("s2_time", "y", "x"))


def empty_radar(grid: GeoBox) -> tuple[xr.DataArray, npt.NDArray[np.str_]]:
    """Return `s1` and its orbits without a date."""
    coords = {"s1_time": np.empty(0, "datetime64[ns]")}
    data = np.empty((0, len(S1_BANDS), *grid.shape), np.int16)
    return xr.DataArray(data, coords, ("s1_time", "s1_band", "y", "x")), np.empty(0, "<U10")


def _optical(plan: Plan, grid: GeoBox) -> tuple[xr.DataArray, xr.DataArray]:
    bands: dict[str, tuple[xr.DataArray, float]] = {}
    for piece in plan.optical:
        placed = _placed(piece, grid)
        bands |= {str(name): (array, piece.scale) for name, array in placed.data_vars.items()}
    offset = plan.offset if plan.offset is not None else np.zeros(1, np.uint16)
    converted = (to_reflectance(bands[name][0], bands[name][1], offset) for name in S2_BANDS)
    s2, observed = _stack(converted, len(S2_BANDS), "s2_band")
    clear = clear_from(bands[plan.mask][0]) if plan.mask else True
    rank = observed.astype(np.uint8) + (observed & clear).astype(np.uint8)
    times = {"s2_time": plan.optical[0].data["time"].values}
    s2, rank = mosaic_days(_renamed(s2, times), _renamed(rank, times), "s2_time")
    return s2, rank == 2


def _radar(pieces: list[Piece], grid: GeoBox) -> tuple[xr.DataArray, npt.NDArray[np.str_]]:
    parts, ranks = [], []
    for piece in pieces:
        placed = _placed(piece, grid)
        part, observed = _stack(to_sar(placed, piece.unit), len(S1_BANDS), "s1_band")
        times = {"s1_time": piece.data["time"].values}
        parts.append(_renamed(part, times))
        ranks.append(_renamed(observed.astype(np.uint8), times))
    orbits = np.concatenate([piece.orbits for piece in pieces if piece.orbits is not None])
    s1, order = _sorted(parts)
    rank, orbits = _sorted(ranks)[0], orbits[order]
    days = s1["s1_time"].values.astype("datetime64[D]")
    if len(set(zip(orbits.tolist(), days.tolist(), strict=True))) == len(days):
        return s1, orbits
    flown = [(orbit, np.flatnonzero(orbits == orbit)) for orbit in ORBITS if (orbits == orbit).any()]
    joined = [mosaic_days(s1.isel(s1_time=at), rank.isel(s1_time=at), "s1_time")[0] for _, at in flown]
    s1, order = _sorted(joined)
    names = [name for (name, _), part in zip(flown, joined, strict=True) for _ in range(part.sizes["s1_time"])]
    return s1, np.array(names)[order]


def _sorted(parts: list[xr.DataArray]) -> tuple[xr.DataArray, npt.NDArray[np.intp]]:
    """Return the parts joined in order of time, and that order; one part is in order already."""
    if len(parts) == 1:
        return parts[0], np.arange(parts[0].sizes["s1_time"])
    joined = xr.concat(parts, dim="s1_time", coords="minimal", compat="override")
    order = np.argsort(joined["s1_time"].values, kind="stable")
    return joined.isel(s1_time=order), order


def _stack(arrays: Iterable[xr.DataArray], n: int, dim: str) -> tuple[xr.DataArray, xr.DataArray]:
    """Return `n` bands (time, y, x) as one array (time, dim, y, x), and where any of them is not 0.

    In memory the bands are written one after the other into the result, so that no second copy exists.
    """
    out: npt.NDArray[Any] | None = None
    observed: Any = False
    lazy: list[xr.DataArray] = []
    for i, array in enumerate(arrays):
        observed = (array != 0) | observed
        if array.chunks is not None or lazy:
            lazy.append(array)
            continue
        if out is None:
            out = np.empty((array.sizes["time"], n, *array.shape[1:]), array.dtype)
        out[:, i] = array.values
    if lazy:
        if out is not None:  # some bands in memory, some lazy
            lazy = [xr.DataArray(out[:, i], dims=lazy[0].dims) for i in range(n - len(lazy))] + lazy
        return xr.concat(lazy, dim=dim).transpose("time", dim, "y", "x").chunk({dim: -1}), observed
    return xr.DataArray(out, dims=("time", dim, "y", "x")), observed


def _renamed(array: xr.DataArray, times: dict[str, npt.NDArray[Any]]) -> xr.DataArray:
    (dim,) = times
    return array.rename({"time": dim}).assign_coords(times)


def _placed(piece: Piece, grid: GeoBox) -> xr.Dataset:
    if piece.box is None:
        raise AssertionError("a plan without faults has a grid for each piece")
    return onto(piece.data, piece.box, grid)
