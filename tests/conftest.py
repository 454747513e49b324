"""Imagery for the tests: real where it is at hand, else made up."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pytest
import rasterio
import xarray as xr
from odc.geo.geobox import GeoBox

if TYPE_CHECKING:
    from tessera_xr.encoder.checkpoints import Encoder

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


@pytest.fixture
def treesat(shared_data: Path) -> dict[str, Any]:
    """Real imagery of both orbits, 6 x 6 px of 2020, radar in linear power: what `as_cube` is to be called with."""
    order = ["B02", "B03", "B04", "B08", "B05", "B06", "B07", "B8A", "B11", "B12"]
    with h5py.File(next((shared_data / "treesat").glob("*.h5"))) as file:
        s2 = _treesat(file, "sen-2", order)
        mask = s2["B02"].copy(data=(file["sen-2-masks"][:].max(axis=1) == 0))
        ascending, descending = (_treesat(file, f"sen-1-{orbit}", ["VV", "VH"]) for orbit in ("asc", "des"))
    return {"s2": s2, "s1_ascending": ascending, "s1_descending": descending, "mask": mask}


def _treesat(file: h5py.File, key: str, names: list[str]) -> xr.Dataset:
    """Return one sensor of a TreeSatAI time series, its dates read off the product names, on a made-up grid."""
    stamps = [name.decode().split("_")[2 if key == "sen-2" else 4] for name in file[f"{key}-products"][:]]
    times = np.array([f"{s[:4]}-{s[4:6]}-{s[6:11]}:{s[11:13]}:{s[13:15]}" for s in stamps], dtype="datetime64[ns]")
    data = file[f"{key}-data"][:]
    coords = {"time": times, "y": 5_600_000 - 10.0 * np.arange(6), "x": 500_000 + 10.0 * np.arange(6)}
    ds = xr.Dataset({name: (("time", "y", "x"), data[:, i]) for i, name in enumerate(names)}, coords)
    return ds.sortby("time").odc.assign_crs("EPSG:32632")


@pytest.fixture(scope="session")
def write_tile() -> Callable[[Path, Mapping[str, np.ndarray]], Path]:
    """Write the arrays of a reference tile, and a roi.tiff that fits them, into a new folder."""

    def written(folder: Path, arrays: Mapping[str, np.ndarray]) -> Path:
        folder.mkdir()
        for name, array in arrays.items():
            np.save(folder / f"{name}.npy", array)
        height, width = arrays["masks"].shape[1:]
        box = GeoBox.from_bbox((5e5, 56e5, 5e5 + 10 * width, 56e5 + 10 * height), crs="EPSG:32631", resolution=10)
        place = {"height": height, "width": width, "crs": "EPSG:32631", "transform": box.transform}
        with rasterio.open(folder / "roi.tiff", "w", driver="GTiff", dtype="uint8", count=1, **place) as file:
            file.write(np.ones((height, width), np.uint8), 1)
        return folder

    return written


VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "v2": ("v2-nano", {}),
    "v2-qk-norm": ("v2-nano", {"qk_norm": True}),
    "v2-teacher": ("v2-teacher", {"n_out": 64, "qk_norm": True}),
    "v1.1": ("v1.1-mpc", {"n_out": 160, "pooling": "gru", "final_norm": False}),
    "v1.0": ("v1.0", {"pooling": "gru", "deep_reducer": False, "final_norm": False}),
    "v1.0-early": ("v1.0-early", {"pooling": "torch_gru", "deep_reducer": False, "final_norm": False}),
}


@pytest.fixture(scope="session")
def make_encoder() -> Callable[..., Encoder]:
    """Make a tiny encoder of any generation on the CPU, every weight of it random."""
    import torch

    from tessera_xr.encoder.architecture import Architecture
    from tessera_xr.encoder.checkpoints import Encoder
    from tessera_xr.encoder.network import TesseraEncoder
    from tessera_xr.encoder.registry import RECORDS
    from tessera_xr.encoder.teacher import TesseraTeacher

    def made(variant: str = "v2", seed: int = 0) -> Encoder:
        name, changes = VARIANTS[variant]
        arch = replace(Architecture(8, 2, 4, 48), **changes)
        network = (TesseraTeacher if variant == "v2-teacher" else TesseraEncoder)(arch)
        generator = torch.Generator().manual_seed(seed)
        for weight in network.parameters():
            weight.data = (weight.mean() > 0.5) + 0.2 * torch.randn(weight.shape, generator=generator)
        record = replace(RECORDS[name], name=f"tiny-{variant}", arch=arch, n_dims=min(128, arch.n_out))
        network = network.eval().requires_grad_(requires_grad=False)
        return Encoder(record, network, f"{variant}-{seed}", torch.device("cpu"), torch.float32)

    return made


@pytest.fixture(scope="session")
def save_weights() -> Callable[..., Path]:
    """Save the weights of a v2 student as its authors do."""
    import torch

    def saved(encoder: Encoder, path: Path, **args: Any) -> Path:
        arch = encoder.record.arch
        settings = {"nhead": arch.n_heads, "matryoshka_dims": "16,32,64,128", "enable_qk_norm": arch.qk_norm}
        torch.save({"model": encoder.network.state_dict(), "args": settings | args}, path)
        return path

    return saved


@pytest.fixture(scope="session")
def weights(
    make_encoder: Callable[..., Encoder], save_weights: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The file of a tiny v2 student, for tests through the public functions."""
    return save_weights(make_encoder(), tmp_path_factory.mktemp("weights") / "student.pt")


@pytest.fixture
def make_pixels() -> Callable[..., dict[str, Any]]:
    """Make d-pixels as `encode` takes them; the first have: no data, S1 only, S2 only, one S2 step, all steps."""

    def made(n: int = 24, n_s2: int = 21, n_s1: int = 15, seed: int = 0) -> dict[str, Any]:
        rng = np.random.default_rng(seed)
        s2 = rng.integers(200, 6000, (n, n_s2, 10)).astype(np.uint16)
        s1 = rng.integers(2000, 9000, (n, n_s1, 2)).astype(np.int16)
        valid = rng.random((n, n_s2)) < rng.random((n, 1))
        s1[rng.random((n, n_s1)) < 0.3] = 0
        valid[:, 1] = True
        valid[[0, 1, 3]], valid[3, :1], valid[4] = False, True, True
        s1[[0, 2]] = 0
        days = [np.sort(rng.choice(np.arange(1, 367), k, replace=False)) for k in (n_s2, n_s1)]
        return {
            "s2": s2, "s2_doy": days[0], "s2_valid": valid,
            "s1": s1, "s1_doy": days[1], "s1_descending": rng.random(n_s1) < 0.5,
        }  # fmt: skip

    return made


@pytest.fixture
def make_cube(make_s2: Callable[..., xr.Dataset], make_s1: Callable[..., xr.Dataset]) -> Callable[..., xr.Dataset]:
    """Make a cube of two years with clouds, both orbits, and one pixel (0, 0) that nobody ever sees."""
    from tessera_xr.sentinel.cube import as_cube

    def made(size: int = 6) -> xr.Dataset:
        days = [f"{year}-{month:02}-{day}" for year in (2019, 2020) for month in range(2, 12, 2) for day in (10, 20)]
        s2, s1 = make_s2(days, size=size), make_s1(days, ["ascending", "descending"] * 10, size=size)
        clouds = np.random.default_rng(0).random(s2["SCL"].shape) < 0.4
        s2["SCL"] = s2["SCL"].where(~clouds, 9).astype(np.uint8)
        s2["SCL"][:, 0, 0] = 9
        s1["VV"][:, 0, 0] = s1["VH"][:, 0, 0] = np.nan
        return as_cube(s2, s1)

    return made
