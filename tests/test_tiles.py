"""The reference d-pixel tile folder, in and out."""

from __future__ import annotations

import numpy as np
import pytest
import rasterio
import xarray as xr
from odc.geo.geobox import GeoBox

from tessera_xr.errors import CubeError, SchemaError
from tessera_xr.grid import geobox_of
from tessera_xr.sentinel.bands import day_of_year
from tessera_xr.sentinel.cube import as_cube, check_cube
from tessera_xr.sentinel.tiles import open_tile, save_tile

BOX = GeoBox.from_bbox((500_000, 5_600_000, 500_060, 5_600_050), crs="EPSG:32631", resolution=10)  # 5 rows, 6 columns


def tile_arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    return {
        "bands": rng.integers(0, 9000, (4, 5, 6, 10)).astype(np.uint16),
        "masks": rng.integers(0, 2, (4, 5, 6)).astype(np.uint8),
        "doys": np.array([3, 60, 60, 366]),
        "sar_ascending": rng.integers(0, 8000, (3, 5, 6, 2)).astype(np.int16),
        "sar_ascending_doy": np.array([5, 60, 200]),
        "sar_descending": rng.integers(0, 8000, (2, 5, 6, 2)).astype(np.int16),
        "sar_descending_doy": np.array([60, 61]),
    }


def write(folder, arrays, roi=True):
    folder.mkdir()
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    if roi:
        with rasterio.open(
            folder / "roi.tiff",
            "w",
            driver="GTiff",
            dtype="uint8",
            count=1,
            height=5,
            width=6,
            crs="EPSG:32631",
            transform=BOX.transform,
        ) as file:
            file.write(np.ones((5, 6), np.uint8), 1)
    return folder


def arrays_of(cube: xr.Dataset) -> dict[str, np.ndarray]:
    """Return the arrays of a tile, from a cube: the way back, written apart from `save_tile`."""
    found = {
        "bands": np.moveaxis(cube.s2.values, 1, -1),
        "masks": cube.s2_valid.values.astype(np.uint8),
        "doys": cube.s2_time.dt.dayofyear.values,
    }
    for orbit in ("ascending", "descending"):
        part = cube.isel(s1_time=cube.s1_orbit.values == orbit)
        found[f"sar_{orbit}"] = np.moveaxis(part.s1.values, 1, -1)
        found[f"sar_{orbit}_doy"] = part.s1_time.dt.dayofyear.values
    return found


def assert_holds(cube, arrays):
    for name, array in arrays_of(cube).items():
        np.testing.assert_array_equal(array, arrays[name], err_msg=name)


def test_a_tile_opens_as_it_is(tmp_path):
    arrays = tile_arrays()
    cube = open_tile(write(tmp_path / "tile", arrays))
    check_cube(cube)
    assert_holds(cube, arrays)
    assert geobox_of(cube) == BOX
    assert set(cube.s2_time.dt.year.values) == {2020}
    assert "year 2020" in cube.attrs["assumptions"]
    assert as_cube(cube) is cube
    named = open_tile(tmp_path / "tile", 2016)
    assert named.attrs["assumptions"] == ""
    assert day_of_year(named.s2_time.values).tolist() == [3, 60, 60, 366]


def test_sentinel_2_stays_on_disk(tmp_path):
    cube = open_tile(write(tmp_path / "tile", tile_arrays()))
    base = cube.s2.values
    while base is not None and not isinstance(base, np.memmap):
        base = base.base
    assert isinstance(base, np.memmap)


def test_days_out_of_order_are_sorted(tmp_path):
    arrays = tile_arrays()
    order = [3, 1, 0, 2]
    shuffled = arrays | {name: arrays[name][order] for name in ("bands", "masks", "doys")}
    assert_holds(open_tile(write(tmp_path / "tile", shuffled)), arrays)


@pytest.mark.parametrize("lazy", [False, True])
def test_round_trip_is_exact(tmp_path, lazy):
    cube = open_tile(write(tmp_path / "tile", tile_arrays()), 2024)
    cube.attrs["source"] = "planetary-computer"
    saved = save_tile(cube.chunk(s2_time=3, s1_time=2, y=2) if lazy else cube, tmp_path / "deep" / "again")
    assert sorted(p.name for p in saved.parent.iterdir()) == ["again"]
    xr.testing.assert_identical(open_tile(saved), cube)
    assert (np.load(saved / "masks.npy").dtype, np.load(saved / "bands.npy").dtype) == (np.uint8, np.uint16)


@pytest.mark.parametrize("sensors", ["s2", "s1"])
def test_a_sensor_may_be_absent(tmp_path, sensors, make_s2, make_s1):
    cube = as_cube(
        make_s2() if sensors == "s2" else None,
        make_s1(("2020-03-02", "2020-04-02T05", "2020-05-02")) if sensors == "s1" else None,
    )
    xr.testing.assert_equal(
        open_tile(save_tile(cube, tmp_path / "tile")).drop_vars("s1_time"),
        cube.assign_coords(s1_time=cube.s1_time.dt.floor("D")).drop_vars("s1_time"),
    )


def test_golden_tile(tmp_path, golden):
    with np.load(golden / "tile.npz") as file:
        arrays = dict(file)
    cube = open_tile(write(tmp_path / "tile", arrays))
    check_cube(cube)
    assert_holds(cube, arrays)
    again = open_tile(save_tile(cube, tmp_path / "again"))
    assert_holds(again, arrays)


def change(**changes):
    return lambda arrays: {k: v for k, v in (arrays | changes).items() if v is not None}


TILE_FAULTS = {
    "missing": (change(masks=None), "masks.npy is missing"),
    "half a pair": (change(sar_ascending_doy=None), "sar_ascending_doy.npy is missing"),
    "dates": (change(doys=np.arange(1, 4)), "bands.npy is uint16 (4, 5, 6, 10), expected uint16 (3, 5, 6, 10)"),
    "bands": (change(bands=np.zeros((4, 5, 6, 9), np.uint16)), "expected uint16 (4, 5, 6, 10)"),
    "size": (change(sar_ascending=np.zeros((3, 6, 6, 2), np.int16)), "sar_ascending.npy is int16 (3, 6, 6, 2)"),
    "dtype": (change(bands=np.zeros((4, 5, 6, 10))), "bands.npy is float64"),
    "mask values": (change(masks=np.full((4, 5, 6), 4, np.uint8)), "masks.npy holds values up to 4"),
    "day 0": (change(doys=np.array([0, 1, 2, 3])), "doys.npy holds days from 0 to 3, expected 1 to 366"),
    "fractions of days": (change(doys=np.array([1.5, 2, 3, 4])), "doys.npy is float64"),
    "pickles": (change(doys=np.array([{}, {}, {}, {}], dtype=object)), "doys.npy can't be read"),
}


@pytest.mark.parametrize("case", TILE_FAULTS)
def test_bad_tiles_are_refused(tmp_path, case):
    damage, expected = TILE_FAULTS[case]
    folder = write(tmp_path / "tile", damage(tile_arrays()))
    with pytest.raises(CubeError) as caught:
        open_tile(folder)
    assert expected in str(caught.value)
    assert str(folder) in str(caught.value)


def test_damaged_files_are_named(tmp_path):
    folder = write(tmp_path / "tile", tile_arrays())
    whole = (folder / "bands.npy").read_bytes()
    (folder / "bands.npy").write_bytes(whole[: len(whole) // 2])
    (folder / "doys.npy").write_bytes(b"")
    (folder / "roi.tiff").write_bytes(b"no picture")
    with pytest.raises(CubeError) as caught:
        open_tile(folder)
    assert [name in str(caught.value) for name in ("bands.npy can't", "doys.npy can't", "roi.tiff can't")] == [True] * 3
    with pytest.raises(CubeError, match="no such folder") as caught:
        open_tile(tmp_path / "elsewhere")
    assert len(caught.value.faults) == 1


def test_the_grid_may_be_given(tmp_path):
    folder = write(tmp_path / "tile", tile_arrays(), roi=False)
    with pytest.raises(CubeError, match="pass geobox="):
        open_tile(folder)
    assert geobox_of(open_tile(folder, geobox=BOX)) == BOX
    with pytest.raises(CubeError, match=r"expected uint16 \(4, 6, 6, 10\)"):
        open_tile(folder, geobox=BOX.pad_wh(6, 6)[:6, :6])


def test_day_366_wants_a_leap_year(tmp_path):
    with pytest.raises(CubeError, match="expected 1 to 365 for the year 2021"):
        open_tile(write(tmp_path / "tile", tile_arrays()), 2021)


def test_saving_is_whole_or_not_at_all(tmp_path, make_s2, monkeypatch):
    cube = as_cube(make_s2())

    def fails(*args):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr("tessera_xr.sentinel.tiles._write_roi", fails)
        with pytest.raises(OSError, match="disk full"):
            save_tile(cube, tmp_path / "tile")
    assert list(tmp_path.iterdir()) == []
    save_tile(cube, tmp_path / "tile")
    with pytest.raises(SchemaError, match="exists already"):
        save_tile(cube, tmp_path / "tile")
    with pytest.raises(CubeError, match=r"\[2019, 2020\]"):
        save_tile(as_cube(make_s2(("2019-12-01", "2020-01-01"))), tmp_path / "two years")
