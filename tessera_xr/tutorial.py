"""Sample data that need no network."""

from __future__ import annotations

import xarray as xr

from tessera_xr.sentinel.simulate import simulate_landscape


def cube(size: int = 96, year: int = 2024, seed: int = 1) -> xr.Dataset:
    """Return a simulated Sentinel cube with its truth, in memory.

    Made anew at each call, in a second or two; the same arguments give the same cube, bit for bit.

    Parameters
    ----------
    size : int
        Pixels a side, of 10 m; at least 16.
    year : int
        Calendar year, from 2016 on.
    seed : int
        Another seed is another landscape.

    Returns
    -------
    xarray.Dataset
        See `tessera_xr.sentinel.simulate.simulate_landscape`: `land_cover`, `parcel` and `change` are its labels.
    """
    return simulate_landscape((size, size), year, seed=seed)
