"""D-pixels to train and to judge on: real ones, from the files of other projects, and simulated ones."""

import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import xarray as xr

from tessera_xr.errors import TesseraWarning
from tessera_xr.sentinel.bands import S2_BANDS, day_of_year
from tessera_xr.sentinel.cube import as_cube
from tessera_xr.sentinel.simulate import simulate_pixels
from tessera_xr.sentinel.simulation.covers import COVERS

YEARS = (2018, 2019)
BLOCK = 0.25  # degrees: a region is a block of a grid; neighbouring ones touch
NO_DATA = 65535
TREESAT_BANDS = ("B02", "B03", "B04", "B08", "B05", "B06", "B07", "B8A", "B11", "B12")


@dataclass(frozen=True)
class Pixels:
    """D-pixels, what they are, and which belong together."""

    name: str
    arrays: dict[str, np.ndarray]
    """What `embed_pixels` takes: s2 (n, t, 10), s2_doy (t,), s2_valid (n, t), s1, s1_doy, s1_orbit."""
    labels: np.ndarray
    """(n,) names of classes; "" is none."""
    group: np.ndarray
    """(n,) parcel or region."""
    held: np.ndarray
    """(n,) kept apart from pretraining."""

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, chosen: np.ndarray) -> "Pixels":
        """Return some of them."""
        arrays = {k: v[chosen] if k in ("s2", "s2_valid", "s1") else v for k, v in self.arrays.items()}
        return Pixels(self.name, arrays, self.labels[chosen], self.group[chosen], self.held[chosen])

    def with_arrays(self, **changed: np.ndarray) -> "Pixels":
        """Return the same places, seen otherwise."""
        return replace(self, arrays={**self.arrays, **changed})


def flanders(folder: Path, year: int) -> Pixels:
    """Return the chip of Flanders; every other parcel of a crop is held out."""
    s2, s1 = (xr.open_dataset(folder / f"flanders/s{n}_{year}.nc", engine="h5netcdf").load() for n in (2, 1))
    with xr.open_dataset(folder / f"flanders/labels_{year}.nc", engine="h5netcdf") as ds:
        crops = ds["crop_type"].values.astype(int)
    names = pd.read_csv(folder / "flanders/crop_type_names.csv").set_index("croptype")["name"]
    parcel, held = parcels(crops)
    labels = np.array([names.get(code, str(code)) if code else "" for code in crops.ravel()])
    arrays = arrays_of(quietly(as_cube, s2, s1, period=year))
    return Pixels(f"Flanders {year}", arrays, labels, parcel.ravel(), held.ravel())


def parcels(crops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the parcel's number (0 where there is none) and whether it is held out, (y, x) each."""
    from scipy.ndimage import label

    number, held = np.zeros_like(crops), np.zeros(crops.shape, dtype=bool)
    for i, code in enumerate(np.unique(crops[crops > 0])):
        patch = label(crops == code)[0]
        number[patch > 0] = 1000 * (i + 1) + patch[patch > 0]
        held |= (patch > 0) & (patch % 2 == 0)
    return number, held


def uganda(folder: Path) -> Pixels:
    """Return the table of 2017: a row a pixel, a column a band and month."""
    table = pd.read_parquet(folder / "tables/uganda_2017_month.parquet")
    days = pd.date_range("2016-12-15", periods=12, freq=pd.DateOffset(months=1)).day_of_year.to_numpy()
    order = np.argsort(days)

    def series(prefix: str, resolution: str) -> np.ndarray:
        return table[[f"{prefix}-ts{t}-{resolution}" for t in range(12)]].to_numpy()[:, order]

    s2 = np.stack([series(f"OPTICAL-{b}", "10m" if b in ("B02", "B03", "B04", "B08") else "20m") for b in S2_BANDS], -1)
    s1 = np.stack([series(f"SAR-{band}", "20m") for band in ("VV", "VH")], axis=-1)
    labels = table["ewoc_code"].map(uganda_class).to_numpy()
    return from_table("Uganda 2017", s2, s1, days[order], labels, table)


def uganda_class(code: int) -> str:
    known = {1101060000: "maize", 1101070000: "sorghum"}
    return known.get(code) or ("other crops" if code // 100_000_000 == 11 else "not cropland")


def france(folder: Path, name: str, table_name: str, year: int, days_in: int) -> Pixels:
    """Return a table of France: a row a pixel and date; its months or ten days are dated in their middle."""
    table = pd.read_parquet(folder / f"tables/{table_name}.parquet")
    table = table[pd.to_datetime(table["timestamp"]).dt.year == year]
    first = table.drop_duplicates("sample_id").set_index("sample_id").sort_index()
    dates = np.sort(table["timestamp"].unique())

    def series(column: str) -> np.ndarray:
        wide = table.pivot_table(index="sample_id", columns="timestamp", values=column, aggfunc="first")
        return wide.reindex(index=first.index, columns=dates).fillna(NO_DATA).to_numpy()

    s2 = np.stack([series(f"S2-L2A-{'B08' if b == 'B8A' else b}") for b in S2_BANDS], axis=-1)
    s1 = np.stack([series(f"S1-SIGMA0-{band}") for band in ("VV", "VH")], axis=-1)
    days = pd.to_datetime(pd.Series(dates)).dt.day_of_year.to_numpy() + days_in // 2
    classify = corsica_class if "corsica" in table_name else france_class
    return from_table(name, s2, s1, days, first["ewoc_code"].map(classify).to_numpy(), first)


def corsica_class(code: int) -> str:
    if code == 1115000000:
        return "fallow"
    kinds = {"25": "rangeland", "20": "grassland", "12": "permanent crops", "11": "arable crops"}
    return kinds.get(str(code)[:2], "trees" if code >= 4000000000 else "")


def france_class(code: int) -> str:
    if 1101060000 <= code <= 1101060001:
        return "maize"
    if 1101010000 <= code < 1101060000:
        return "cereals"
    kinds = {"1106": "oilseeds", "1115": "fallow"}
    return kinds.get(str(code)[:4]) or {"20": "grassland", "12": "permanent crops"}.get(str(code)[:2], "")


def from_table(
    name: str, s2: np.ndarray, s1: np.ndarray, days: np.ndarray, labels: np.ndarray, table: pd.DataFrame
) -> Pixels:
    """Bring composites into TESSERA's units; their regions are blocks of a quarter of a degree."""
    valid = (s2[..., 0] != NO_DATA) & (s2 > 0).all(axis=-1) & (s2 != NO_DATA).all(axis=-1)
    there = (s1 != NO_DATA) & (s1 > 0)
    db = 20 * np.log10(np.where(there, s1, 1).astype(np.float64)) - 83
    scaled = np.where(there, np.clip(np.rint((db + 50) * 200), 1, 32767), 0).astype(np.int16)
    block = np.floor(table["lat"].to_numpy() / BLOCK) * 10_000 + np.floor(table["lon"].to_numpy() / BLOCK)
    arrays = {
        "s2": np.where(valid[..., None], s2, 0).astype(np.uint16),
        "s2_doy": days,
        "s2_valid": valid,
        "s1": scaled,
        "s1_doy": days,
        "s1_orbit": np.repeat("ascending", len(days)),
    }
    return Pixels(name, arrays, labels.astype(str), block, np.ones(len(table), dtype=bool))


def simulated(n: int, seed: int) -> Pixels:
    """Return simulated d-pixels; a region is a place with weather of its own."""
    pixels = simulate_pixels(n, seed=seed)
    arrays = {k: getattr(pixels, k) for k in ("s2", "s2_doy", "s2_valid", "s1", "s1_doy", "s1_orbit")}
    labels = np.array([COVERS[code].name for code in pixels.land_cover])
    return Pixels("Simulated", arrays, labels, pixels.place, np.ones(n, dtype=bool))


def treesat(path: Path) -> dict[str, np.ndarray]:
    """Read a TreeSatAI time series; its dates stand in the names of the products."""
    with h5py.File(path) as file:
        s2 = on_a_grid(file["sen-2-data"][:], times_of(file["sen-2-products"][:], 2), TREESAT_BANDS)
        clear = (file["sen-2-masks"][:].max(axis=1) == 0)[np.argsort(times_of(file["sen-2-products"][:], 2))]
        orbits = [
            on_a_grid(file[f"sen-1-{k}-data"][:], times_of(file[f"sen-1-{k}-products"][:], 4), ("VV", "VH"))
            for k in ("asc", "des")
        ]
    mask = s2["B02"].copy(data=clear)
    return arrays_of(quietly(as_cube, s2, s1_ascending=orbits[0], s1_descending=orbits[1], mask=mask))


def times_of(products: np.ndarray, position: int) -> np.ndarray:
    stamps = [name.decode().split("_")[position] for name in products]
    iso = [f"{s[:4]}-{s[4:6]}-{s[6:11]}:{s[11:13]}:{s[13:15]}" for s in stamps]
    return np.array(iso, dtype="datetime64[ns]")


def on_a_grid(data: np.ndarray, times: np.ndarray, names: tuple[str, ...]) -> xr.Dataset:
    rows, columns = data.shape[2:]
    coords = {"time": times, "y": 5_600_000 - 10.0 * np.arange(rows), "x": 500_000 + 10.0 * np.arange(columns)}
    ds = xr.Dataset({name: (("time", "y", "x"), data[:, i]) for i, name in enumerate(names)}, coords)
    return ds.sortby("time").odc.assign_crs("EPSG:32632")


def check_data(folder: Path) -> Path:
    """Return the folder, or exit with what it lacks."""
    parts = ("cubes", "flanders", "tables", "treesat")
    if missing := [name for name in parts if not (folder / name).is_dir()]:
        raise SystemExit(f"--data {folder} lacks the folders {', '.join(missing)} of real d-pixels; it needs {parts}")
    return folder


def monthly_cube(folder: Path) -> dict[str, np.ndarray]:
    """Read the cube of monthly composites; it lacks B8A, for which B08 stands in."""
    ds = xr.open_dataset(folder / "cubes/worldcereal_2021_month.nc", engine="h5netcdf").load().rename(t="time")
    ds = ds.assign_coords(time=ds["time"] + np.timedelta64(15, "D"))  # stated is the first day of each month
    names = {f"S2-L2A-{band}": band for band in TREESAT_BANDS if band != "B8A"}
    s2 = ds[list(names)].rename(names).assign(B8A=ds["S2-L2A-B08"])
    numbers = ds[["S1-SIGMA0-VV", "S1-SIGMA0-VH"]].astype("float32")
    s1 = 20 * np.log10(numbers.where(numbers < NO_DATA)) - 83
    s1 = s1.rename({"S1-SIGMA0-VV": "VV", "S1-SIGMA0-VH": "VH"})
    s2, s1 = (part.odc.assign_crs("EPSG:32631") for part in (s2, s1))
    there = ds["S2-L2A-B08"] != NO_DATA
    kind = {"mask": there, "offset": 0, "s1_units": "db", "orbit": "ascending"}
    return arrays_of(quietly(as_cube, s2.where(there, 0).astype("uint16"), s1, **kind))


def arrays_of(cube: xr.Dataset) -> dict[str, np.ndarray]:
    """Return the d-pixels of a cube as arrays, row by row."""
    s2, valid, s1 = (cube[name].transpose("y", "x", ...).values for name in ("s2", "s2_valid", "s1"))
    flat = [a.reshape(-1, *a.shape[2:]) for a in (s2, valid, s1)]
    days = [day_of_year(cube[name].values) for name in ("s2_time", "s1_time")]
    orbit = cube["s1_orbit"].values
    return {
        "s2": flat[0],
        "s2_doy": days[0],
        "s2_valid": flat[1],
        "s1": flat[2],
        "s1_doy": days[1],
        "s1_orbit": orbit,
    }


def quietly(function: Any, *args: Any, **options: Any) -> xr.Dataset:
    """Call without the package's warnings, of what these files are known to lack."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TesseraWarning)
        result: xr.Dataset = function(*args, **options)
        return result
