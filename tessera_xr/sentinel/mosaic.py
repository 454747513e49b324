"""Scenes of one day joined into one step."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt
import xarray as xr


def mosaic_days(data: xr.DataArray, rank: xr.DataArray, dim: str) -> tuple[xr.DataArray, xr.DataArray]:
    """Return `data` and `rank` with one step a day: each pixel from the scene of that day that ranks highest there.

    Where scenes rank equally the earlier one wins. The step keeps the time of the first scene. If no day repeats,
    both are returned as they came.

    Parameters
    ----------
    data : DataArray (dim, band, y, x)
    rank : DataArray (dim, y, x) of uint8
        0 = no data.
    dim : str
        The dimension of time; its dates never decrease.
    """
    runs = _runs(data[dim].values)
    if not any(repeats for _, repeats in runs):
        return data, rank
    parts = [
        _best(data.isel({dim: scenes}), rank.isel({dim: scenes}), dim)
        if repeats
        else (data.isel({dim: scenes}), rank.isel({dim: scenes}))
        for scenes, repeats in runs
    ]
    joined = [xr.concat(list(side), dim=dim, coords="minimal", compat="override") for side in zip(*parts, strict=True)]
    if data.chunks is not None:  # keep the steps per chunk that the data came with
        steps = max(data.chunksizes[dim])
        joined = [array.chunk({dim: steps}) for array in joined]
    return joined[0], joined[1]


def _runs(times: npt.NDArray[np.datetime64]) -> list[tuple[slice, bool]]:
    """Return runs of steps, and of each whether it is one repeated day (else it is days that come once)."""
    days = times.astype("datetime64[D]")
    edges = np.flatnonzero(np.r_[True, days[1:] != days[:-1], True]).tolist()
    runs: list[tuple[slice, bool]] = []
    for start, stop in pairwise(edges):
        if stop - start == 1 and runs and not runs[-1][1]:
            runs[-1] = (slice(runs[-1][0].start, stop), False)
        else:
            runs.append((slice(start, stop), stop - start > 1))
    return runs


def _best(data: xr.DataArray, rank: xr.DataArray, dim: str) -> tuple[xr.DataArray, xr.DataArray]:
    first = data.isel({dim: [0]})
    step = first[dim].values
    values, best = first.drop_vars(dim), rank.isel({dim: [0]}).drop_vars(dim)
    for i in range(1, data.sizes[dim]):
        other, its_rank = data.isel({dim: [i]}).drop_vars(dim), rank.isel({dim: [i]}).drop_vars(dim)
        values = other.where(its_rank > best, values).transpose(*data.dims)
        best = best.where(best >= its_rank, its_rank)
    return values.assign_coords({dim: step}), best.assign_coords({dim: step})
