"""Reflectance of canopies (a table made by PROSAIL, shipped) and of materials (set by hand), in the ten bands."""

from __future__ import annotations

import math
from functools import lru_cache
from importlib.resources import files
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tessera_xr.sentinel.bands import S2_BANDS

Floats = npt.NDArray[np.float32]

BY_WAVELENGTH = ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12")
TWENTY_METRES = tuple(S2_BANDS.index(band) for band in ("B8A", "B05", "B06", "B07", "B11", "B12"))

# Typical values of textbooks and spectral libraries, by wavelength: no measurement stands behind a single number.
_BY_HAND = {
    "clear_water": (0.035, 0.030, 0.018, 0.015, 0.010, 0.010, 0.008, 0.007, 0.004, 0.003),
    "turbid_water": (0.055, 0.085, 0.078, 0.072, 0.040, 0.038, 0.033, 0.028, 0.008, 0.005),
    "tiles": (0.090, 0.120, 0.190, 0.220, 0.250, 0.265, 0.280, 0.290, 0.340, 0.310),
    "concrete": (0.180, 0.210, 0.235, 0.250, 0.260, 0.270, 0.275, 0.285, 0.310, 0.290),
    "metal_roof": (0.300, 0.320, 0.335, 0.340, 0.345, 0.350, 0.350, 0.355, 0.340, 0.320),
    "asphalt": (0.080, 0.090, 0.100, 0.110, 0.118, 0.123, 0.130, 0.135, 0.165, 0.155),
    "burnt": (0.032, 0.037, 0.046, 0.055, 0.066, 0.076, 0.086, 0.096, 0.200, 0.210),
    "flowers": (0.060, 0.200, 0.190, 0.300, 0.450, 0.490, 0.510, 0.510, 0.250, 0.130),
    "snow": (0.880, 0.880, 0.870, 0.860, 0.850, 0.840, 0.820, 0.800, 0.120, 0.100),
    "cloud": (0.780, 0.760, 0.760, 0.760, 0.765, 0.770, 0.775, 0.775, 0.560, 0.450),
    "haze": (1.000, 0.780, 0.600, 0.540, 0.470, 0.430, 0.360, 0.330, 0.080, 0.040),
}
GAPS = 0.07  # bare share of any canopy (rows, tracks, clearings), which the even canopy of the model lacks
_LAI_STEPS, _STAGE_STEPS, _MAX_LAI = 96, 16, 8.0
_EXTINCTION = 0.45  # even steps of the light intercepted, not of leaf area, are even steps of reflectance
_INTERCEPTED = 1 - math.exp(-_EXTINCTION * _MAX_LAI)


class _Fine(NamedTuple):
    """The table on an even grid, so that a look-up is one index: (band, type * stage * lai)."""

    dark: Floats
    slope: Floats
    types: tuple[str, ...]


def material(name: str) -> Floats:
    """Return the reflectance of a material set by hand, (10,) in TESSERA's band order."""
    return np.array([_BY_HAND[name][BY_WAVELENGTH.index(band)] for band in S2_BANDS], dtype=np.float32)


def canopy_index(name: str) -> int:
    """Return the place of the vegetation type `name` in the table."""
    return _fine_table().types.index(name)


def canopy_reflectance(canopy: npt.NDArray[np.integer], lai: Floats, stage: Floats, soil: Floats) -> Floats:
    """Return canopy reflectance, looked up in the table.

    Parameters
    ----------
    canopy : ndarray of int
        Vegetation type, see `canopy_index`; broadcast against the rest.
    lai : ndarray
        Leaf area index, 0 to 8.
    stage : ndarray
        0 fresh, 1 mature, 2 senescing, 3 dry.
    soil : ndarray
        Brightness of the soil below: 0 the table's wet soil, 1 its dry one. Reflectance is linear in it.

    Returns
    -------
    ndarray, shape (10, ...)
    """
    table = _fine_table()
    column = np.rint((1 - np.exp(-_EXTINCTION * lai)) * ((_LAI_STEPS - 1) / _INTERCEPTED)).astype(np.int32)
    row = np.rint(stage * ((_STAGE_STEPS - 1) / 3)).astype(np.int32)
    index = (canopy.astype(np.int32) * _STAGE_STEPS + row) * _LAI_STEPS
    index = index + np.clip(column, 0, _LAI_STEPS - 1)
    out = np.empty((len(S2_BANDS), *index.shape), dtype=np.float32)
    for band, (dark, slope) in enumerate(zip(table.dark, table.slope, strict=True)):
        np.multiply(slope[index], soil, out=out[band])
        out[band] += dark[index]
        out[band] += GAPS * (dark[0] + slope[0] * soil - out[band])  # row 0 has no leaves: soil
    return out


@lru_cache(maxsize=1)
def _fine_table() -> _Fine:
    with (files("tessera_xr") / "data" / "spectra" / "canopy.npz").open("rb") as file, np.load(file) as stored:
        table, coarse, types = stored["reflectance"], stored["lai"], tuple(map(str, stored["types"]))
        if tuple(map(str, stored["bands"])) != S2_BANDS:
            raise RuntimeError("the shipped table of spectra is damaged: its bands are not the ten of TESSERA")
    fine = -np.log(1 - np.linspace(0, _INTERCEPTED, _LAI_STEPS)) / _EXTINCTION
    table = _interpolate(table, axis=2, at=np.interp(fine, coarse, np.arange(len(coarse))))
    table = _interpolate(table, axis=1, at=np.linspace(0, table.shape[1] - 1, _STAGE_STEPS))
    dark, bright = np.moveaxis(table, (3, 4), (0, 1)).reshape(2, len(S2_BANDS), -1)
    return _Fine(np.ascontiguousarray(dark), np.ascontiguousarray(bright - dark), types)


def _interpolate(table: Floats, axis: int, at: npt.NDArray[np.float64]) -> Floats:
    below = np.minimum(at.astype(int), table.shape[axis] - 2)
    weight = (at - below).astype(np.float32).reshape([-1 if i == axis else 1 for i in range(table.ndim)])
    low, high = np.take(table, below, axis=axis), np.take(table, below + 1, axis=axis)
    return np.asarray(low + weight * (high - low), dtype=np.float32)
