"""The time series of one pixel of a cube, as tables to plot."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from tessera_xr.errors import GridError
from tessera_xr.grid import geobox_of, points_to_pixels, swap_hint
from tessera_xr.sentinel.cube import check_cube

if TYPE_CHECKING:
    import pandas as pd

REFLECTANCE = 1e-4


def pixel_series(cube: xr.Dataset, lon: float, lat: float) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return what Sentinel-2 and Sentinel-1 saw of the pixel that holds a place.

    Parameters
    ----------
    cube : Dataset
        A cube, eager or lazy.
    lon, lat : float
        Degrees.

    Returns
    -------
    s2 : DataFrame
        Indexed by `time`: a column of reflectance (0 to 1) for each band, `ndvi`, and `clear`, whether the observation
        is used. Dates without data are left out.
    s1 : DataFrame
        Indexed by `time`: `vv` and `vh` in dB (NaN missing) and `orbit`. Dates without data are left out.

    Raises
    ------
    CubeError
        If it is no cube.
    GridError
        If the place lies outside the cube.
    """
    check_cube(cube)
    box = geobox_of(cube)
    row, column = points_to_pixels(box, lon, lat)[0]
    if row < 0:
        raise GridError(f"({lon:g}, {lat:g}) lies outside the cube{swap_hint(box, lon, lat)}; choose a place inside it")
    pixel = cube[["s2", "s2_valid", "s1", "s1_orbit"]].isel(y=int(row), x=int(column)).compute()
    return _optical(pixel), _radar(pixel)


def _optical(pixel: xr.Dataset) -> pd.DataFrame:
    import pandas as pd

    values = pixel["s2"].transpose("s2_time", "s2_band").values
    bands = [str(b) for b in pixel["s2_band"].values]
    table = pd.DataFrame(values * REFLECTANCE, pd.Index(pixel["s2_time"].values, name="time"), bands)
    red, infrared = table["B04"], table["B08"]
    with np.errstate(invalid="ignore", divide="ignore"):
        table["ndvi"] = (infrared - red) / (infrared + red)
    table["clear"] = pixel["s2_valid"].values
    seen: pd.DataFrame = table.loc[(values != 0).any(axis=1)]
    return seen


def _radar(pixel: xr.Dataset) -> pd.DataFrame:
    import pandas as pd

    values = pixel["s1"].transpose("s1_time", "s1_band").values
    decibels = np.where(values == 0, np.nan, values / 200 - 50)  # TESSERA's scale, undone
    table = pd.DataFrame(decibels, pd.Index(pixel["s1_time"].values, name="time"), ["vv", "vh"])
    table["orbit"] = pixel["s1_orbit"].values
    seen: pd.DataFrame = table.loc[(values != 0).any(axis=1)]
    return seen
