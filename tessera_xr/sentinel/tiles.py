"""The reference d-pixel tile folder: NPY arrays of one place and year, with a GeoTIFF that says where."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from odc.geo.geobox import GeoBox

from tessera_xr.errors import CubeError, SchemaError
from tessera_xr.grid import crs_name, geobox_of
from tessera_xr.sentinel.bands import ORBITS, S1_BANDS, S2_BANDS, day_of_year
from tessera_xr.sentinel.build import assemble, empty_optical, empty_radar
from tessera_xr.sentinel.cube import check_cube

LEAP_YEAR = 2020
_NAMESPACE = "TESSERA_XR"
_ATTRS = ("source", "s2_offset", "s2_units", "s1_units", "s2_mask")


def open_tile(folder: str | Path, year: int | None = None, geobox: GeoBox | None = None) -> xr.Dataset:
    """Return the cube in a reference d-pixel tile folder; Sentinel-2 stays on disk (memory-mapped) until it is used.

    Parameters
    ----------
    folder : str or Path
        Holds bands.npy (T, H, W, 10), masks.npy (T, H, W; 1 = clear), doys.npy (T,), sar_ascending.npy (T, H, W, 2),
        sar_ascending_doy.npy, the same two for descending, and roi.tiff.
    year : int, optional
        The year of the dates, as the files hold days of the year only. Without it: the year that `save_tile` noted,
        else 2020 is assumed, a leap year.
    geobox : GeoBox, optional
        The grid, if there is no roi.tiff.

    Returns
    -------
    Dataset
        A cube; steps that share a day stay apart, by seconds.

    Raises
    ------
    CubeError
        If files are missing, damaged, or of shapes and dtypes that don't go together; every such fault is listed.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CubeError(f"{folder}: there is no such folder; give one that holds bands.npy, masks.npy and doys.npy")
    faults: list[str] = []
    arrays = _load(folder, faults)
    grid, tags = (geobox, {}) if geobox is not None else _read_roi(folder / "roi.tiff", faults)
    if not faults:
        faults += _shape_faults(arrays, tuple(grid.shape) if grid is not None else None)
    assumed = year is None and "year" not in tags
    year = int(tags.get("year", LEAP_YEAR)) if year is None else year
    if not faults:
        faults += _day_faults(arrays, year)
    if faults or grid is None:
        raise CubeError([f"{folder}: {fault}" for fault in faults], heading="this can't be read as a d-pixel tile")
    attrs = {"source": "unknown", "s2_mask": "masks.npy, 1 = clear"} | {k: tags[k] for k in _ATTRS if k in tags}
    attrs["assumptions"] = f"the dates are of the year {year}; the tile holds days only" if assumed else ""
    return assemble(*_optical(arrays, year, grid), *_radar(arrays, year, grid), grid, attrs)


def save_tile(cube: xr.Dataset, folder: str | Path) -> Path:
    """Write `cube` as a reference d-pixel tile folder, whole or not at all, and return its path.

    Of each date the day of the year is kept. Lazy cubes are computed and written a few dates at a time.

    Raises
    ------
    CubeError
        If `cube` is none, or holds dates of more than one calendar year.
    SchemaError
        If `folder` exists.
    """
    check_cube(cube)
    folder = Path(folder)
    years = {
        int(y) for dim in ("s2_time", "s1_time") for y in cube[dim].values.astype("datetime64[Y]").astype(int) + 1970
    }
    if len(years) != 1:
        raise CubeError(
            f"a tile holds one calendar year, but the cube has {sorted(years) or 'no dates'}; use select_period"
        )
    if folder.exists():
        raise SchemaError(f"{folder} exists already; remove it, or give another name")
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".part", dir=folder.parent))
    try:
        _write(cube, part, years.pop())
        os.chmod(part, 0o755)  # noqa: S103 - as mkdir would; mkdtemp keeps it private
        part.rename(folder)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return folder


def _write(cube: xr.Dataset, folder: Path, year: int) -> None:
    _save_steps(folder / "bands.npy", cube["s2"].transpose("s2_time", "y", "x", "s2_band"))
    _save_steps(folder / "masks.npy", cube["s2_valid"].astype(np.uint8))
    np.save(folder / "doys.npy", day_of_year(cube["s2_time"].values))
    for orbit in ORBITS:
        part = cube["s1"].isel(s1_time=np.flatnonzero(cube["s1_orbit"].values.astype(object).astype(str) == orbit))
        _save_steps(folder / f"sar_{orbit}.npy", part.transpose("s1_time", "y", "x", "s1_band"))
        np.save(folder / f"sar_{orbit}_doy.npy", day_of_year(part["s1_time"].values))
    tags = {name: str(cube.attrs[name]) for name in _ATTRS if cube.attrs.get(name)} | {"year": str(year)}
    _write_roi(folder / "roi.tiff", geobox_of(cube), tags)


def _save_steps(path: Path, array: xr.DataArray) -> None:
    out = np.lib.format.open_memmap(path, mode="w+", dtype=array.dtype, shape=array.shape) if array.size else None
    if out is None:
        np.save(path, np.empty(array.shape, array.dtype))
        return
    dim = array.dims[0]
    for start, stop in _steps(array):
        out[start:stop] = array.isel({dim: slice(start, stop)}).values
    out.flush()


def _steps(array: xr.DataArray) -> Iterator[tuple[int, int]]:
    sizes = array.chunks[0] if array.chunks is not None else (16,) * -(-array.shape[0] // 16)
    stops = np.minimum(np.cumsum(sizes), array.shape[0]).tolist()
    yield from zip([0, *stops[:-1]], stops, strict=True)


def _load(folder: Path, faults: list[str]) -> dict[str, npt.NDArray[Any]]:
    """Map the arrays into memory; a pair of Sentinel-1 files may be absent, and is left out then."""
    names = ["bands", "masks", "doys"]
    for orbit in ORBITS:
        pair = [f"sar_{orbit}", f"sar_{orbit}_doy"]
        names += pair if any((folder / f"{name}.npy").exists() for name in pair) else []
    arrays = {}
    for name in names:
        path = folder / f"{name}.npy"
        try:
            arrays[name] = np.asarray(np.load(path, mmap_mode="r" if path.stat().st_size else None, allow_pickle=False))
        except FileNotFoundError:
            faults.append(f"{path.name} is missing")
        except (ValueError, EOFError, OSError) as error:
            faults.append(f"{path.name} can't be read as a NumPy array ({error}); copy or write it anew")
    return arrays


def _shape_faults(arrays: dict[str, npt.NDArray[Any]], size: tuple[int, ...] | None) -> list[str]:
    h, w = size or arrays["bands"].shape[1:3]
    expected: dict[str, tuple[tuple[Any, ...], str]] = {
        "bands": ((len(arrays["doys"]), h, w, len(S2_BANDS)), "uint16"),
        "masks": ((len(arrays["doys"]), h, w), "uint8 or bool"),
    }
    for orbit in ORBITS:
        if f"sar_{orbit}" in arrays:
            expected[f"sar_{orbit}"] = ((len(arrays[f"sar_{orbit}_doy"]), h, w, len(S1_BANDS)), "int16")
    faults = []
    for name, (shape, dtype) in expected.items():
        found = arrays[name]
        if found.shape != shape or str(found.dtype) not in dtype.split(" or "):
            faults.append(
                f"{name}.npy is {found.dtype} {found.shape}, expected {dtype} {shape} (dates, size of roi.tiff, bands)"
            )
    if not faults and arrays["masks"].size and arrays["masks"].max() > 1:
        faults.append(f"masks.npy holds values up to {arrays['masks'].max()}, expected 0 and 1 (clear)")
    return faults


def _day_faults(arrays: dict[str, npt.NDArray[Any]], year: int) -> list[str]:
    last = int(day_of_year([np.datetime64(f"{year:04d}-12-31")])[0])
    faults = []
    for name, days in ((n, a) for n, a in arrays.items() if n.endswith(("doys", "_doy"))):
        if days.ndim != 1 or days.dtype.kind not in "ui":
            faults.append(f"{name}.npy is {days.dtype} {days.shape}, expected one integer for each date")
        elif days.size and not (days.min() >= 1 and days.max() <= last):
            faults.append(
                f"{name}.npy holds days from {days.min()} to {days.max()}, expected 1 to {last} for the year {year}"
            )
    return faults


def _times(days: npt.NDArray[Any], year: int) -> tuple[npt.NDArray[np.datetime64], Any]:
    """Return the times of `days`, ascending, and what sorts the steps so (a slice if they are sorted already)."""
    order = np.argsort(days, kind="stable")
    sorted_days = np.asarray(days)[order].astype(np.int64)
    again = np.arange(len(order)) - np.searchsorted(sorted_days, sorted_days)  # 0, 1, 2 within one day
    start = np.datetime64(f"{year:04d}-01-01", "s")
    times = start + (sorted_days - 1).astype("timedelta64[D]") + again.astype("timedelta64[s]")
    return times.astype("datetime64[ns]"), slice(None) if (order == np.arange(len(order))).all() else order


def _optical(arrays: dict[str, npt.NDArray[Any]], year: int, grid: GeoBox) -> tuple[xr.DataArray, xr.DataArray]:
    if not len(arrays["doys"]):
        return empty_optical(grid)
    times, order = _times(arrays["doys"], year)
    coords = {"s2_time": times}
    s2 = xr.DataArray(arrays["bands"][order].transpose(0, 3, 1, 2), coords, ("s2_time", "s2_band", "y", "x"))
    return s2, xr.DataArray(arrays["masks"][order] != 0, coords, ("s2_time", "y", "x"))


def _radar(arrays: dict[str, npt.NDArray[Any]], year: int, grid: GeoBox) -> tuple[xr.DataArray, npt.NDArray[np.str_]]:
    parts, times, orbits = [], [], []
    for orbit in ORBITS:
        if len(arrays.get(f"sar_{orbit}_doy", ())):
            when, order = _times(arrays[f"sar_{orbit}_doy"], year)
            parts.append(arrays[f"sar_{orbit}"][order].transpose(0, 3, 1, 2))
            times.append(when)
            orbits.append(np.full(len(when), orbit))
    if not parts:
        return empty_radar(grid)
    order = np.argsort(np.concatenate(times), kind="stable")
    data = np.concatenate(parts)[order] if len(parts) > 1 else parts[0]
    coords = {"s1_time": np.concatenate(times)[order]}
    return xr.DataArray(data, coords, ("s1_time", "s1_band", "y", "x")), np.concatenate(orbits)[order]


def _read_roi(path: Path, faults: list[str]) -> tuple[GeoBox | None, dict[str, str]]:
    import rasterio

    if not path.exists():
        faults.append("roi.tiff is missing, which says where the tile is; pass geobox= (odc.geo.geobox.GeoBox)")
        return None, {}
    try:
        with rasterio.open(path) as file:
            box, tags = GeoBox(file.shape, file.transform, file.crs), file.tags(ns=_NAMESPACE)
    except rasterio.errors.RasterioError as error:
        faults.append(f"roi.tiff can't be read ({error}); write it anew, or pass geobox=")
        return None, {}
    if box.crs is None or box.transform.e >= 0 or box.transform.b or box.transform.d:
        faults.append(
            f"roi.tiff has CRS {crs_name(box.crs)} and transform {tuple(box.transform)[:6]}; it needs a CRS, north up"
        )
    return box, tags


def _write_roi(path: Path, box: GeoBox, tags: dict[str, str]) -> None:
    import rasterio

    profile = {
        "driver": "GTiff",
        "dtype": "uint8",
        "count": 1,
        "height": box.shape[0],
        "width": box.shape[1],
        "compress": "deflate",
    }
    with rasterio.open(path, "w", crs=str(box.crs), transform=box.transform, **profile) as file:
        file.write(np.ones(box.shape, np.uint8), 1)
        file.update_tags(ns=_NAMESPACE, **tags)
