"""Imagery for the tests: real where it is at hand, else made up."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

S2_BANDS = (
    "B02",
    "B03",
    "B04",
    "B05",
    "B06",
    "B07",
    "B08",
    "B8A",
    "B11",
    "B12",
)  # by wavelength, unlike TESSERA's order


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data: TESSERA_XR_DATA, else ../shared/data beside the repository."""
    default = Path(__file__).resolve().parents[1].parent / "shared" / "data"
    folder = Path(os.environ.get("TESSERA_XR_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set TESSERA_XR_DATA")
    return folder


@pytest.fixture(scope="session")
def golden(shared_data: Path) -> Path:
    """The folder of golden vectors, beside the real data."""
    folder = shared_data.parent / "golden"
    if not folder.is_dir():
        pytest.skip(f"no golden vectors at {folder}")
    return folder


@pytest.fixture
def flanders(shared_data: Path) -> Callable[[int], tuple[xr.Dataset, xr.Dataset]]:
    """Open Sentinel-2 and Sentinel-1 of the Flanders chip, 2018 or 2019."""

    def opened(year: int) -> tuple[xr.Dataset, xr.Dataset]:
        s2, s1 = (xr.open_dataset(shared_data / f"flanders/s{n}_{year}.nc", engine="h5netcdf") for n in (2, 1))
        return s2, s1

    return opened


@pytest.fixture
def make_s2() -> Callable[..., xr.Dataset]:
    """Make Sentinel-2 imagery: each band has values of its own, which tell band, date and pixel."""

    def made(
        dates: Any = ("2020-03-01", "2020-05-01", "2020-07-01"), size: int = 6, res: float = 10, scl: bool = True
    ) -> xr.Dataset:
        times = np.array(dates, dtype="datetime64[ns]")
        shape = (len(times), size, size)
        ramp = np.arange(np.prod(shape)).reshape(shape)
        bands = {
            band: (("time", "y", "x"), (1200 + 150 * i + ramp).astype(np.uint16)) for i, band in enumerate(S2_BANDS)
        }
        if scl:
            codes = np.full(shape, 4, np.uint8)
            codes[:, 0, :] = np.arange(size) % 12
            bands["SCL"] = (("time", "y", "x"), codes)
        return xr.Dataset(bands, _coords(times, size, res)).odc.assign_crs("EPSG:32631")

    return made


@pytest.fixture
def make_s1() -> Callable[..., xr.Dataset]:
    """Make Sentinel-1 imagery in dB, with a pixel missing and an orbit label for each date."""

    def made(
        dates: Any = ("2020-03-02T05", "2020-03-02T17", "2020-06-02T17"),
        orbits: Any = ("descending", "ascending", "ascending"),
        size: int = 6,
        res: float = 10,
    ) -> xr.Dataset:
        times = np.array(dates, dtype="datetime64[ns]")
        rng = np.random.default_rng(5)
        vv = rng.normal(-10, 1.5, (len(times), size, size)).astype(np.float32)
        vh = vv - rng.normal(7, 1, vv.shape).astype(np.float32)
        vv[:, 1, 1] = vh[:, 1, 1] = np.nan
        bands = {"VV": (("time", "y", "x"), vv), "VH": (("time", "y", "x"), vh)}
        ds = xr.Dataset(bands, _coords(times, size, res) | {"orbit_state": ("time", list(orbits))})
        return ds.odc.assign_crs("EPSG:32631")

    return made


def _coords(times: np.ndarray, size: int, res: float) -> dict[str, Any]:
    centres = (np.arange(size) + 0.5) * res
    return {"time": times, "y": 5_630_000 - centres, "x": 501_000 + centres}
