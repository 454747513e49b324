"""Simulated landscapes: the contract of the cube, and that what is simulated behaves as on Earth."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import xarray as xr

from tessera_xr import tutorial
from tessera_xr.errors import SchemaError
from tessera_xr.grid import bounds_lonlat, geobox_of
from tessera_xr.sentinel.simulate import simulate_landscape
from tessera_xr.sentinel.simulation.covers import CODES, COVERS

S2_BANDS = ["B04", "B02", "B03", "B08", "B8A", "B05", "B06", "B07", "B11", "B12"]
VEGETATION = [
    "winter_cereal",
    "maize",
    "root_crop",
    "rapeseed",
    "double_crop",
    "grassland",
    "deciduous_forest",
    "evergreen_forest",
]


@pytest.fixture(scope="module")
def cube() -> xr.Dataset:
    return simulate_landscape((96, 96), 2024, seed=3)


@pytest.fixture(scope="module")
def clear_sky() -> xr.Dataset:
    return simulate_landscape((96, 96), 2024, seed=3, cloudiness=0)


def index(cube: xr.Dataset, a: str, b: str) -> xr.DataArray:
    """Normalised difference of two bands."""
    first, second = (cube.s2.sel(s2_band=band).astype(float) for band in (a, b))
    return (first - second) / (first + second)


def where(cube: xr.Dataset, name: str) -> xr.DataArray:
    return (cube.land_cover == CODES[name]) & (cube.change == 0)


def inner(mask: xr.DataArray) -> xr.DataArray:
    """The pixels whose eight neighbours are in the mask too."""
    return mask.rolling(y=3, x=3, center=True).sum() == 9


def decibel(cube: xr.Dataset, band: str) -> xr.DataArray:
    return cube.s1.sel(s1_band=band) / 200.0 - 50


def test_contract(cube):
    assert cube.s2.dims == ("s2_time", "s2_band", "y", "x")
    assert cube.s1.dims == ("s1_time", "s1_band", "y", "x")
    assert cube.s2_valid.dims == cube.s2_clear.dims == ("s2_time", "y", "x")
    dtypes = {name: cube[name].dtype for name in ("s2", "s2_valid", "s1", "land_cover", "parcel", "change")}
    assert dtypes == {"s2": "u2", "s2_valid": "?", "s1": "i2", "land_cover": "u1", "parcel": "i4", "change": "u1"}
    assert cube.s2_band.values.tolist() == S2_BANDS
    assert cube.s1_band.values.tolist() == ["VV", "VH"]
    assert set(cube.s1_orbit.values) == {"ascending", "descending"}
    assert cube.attrs["tessera_xr_kind"] == "cube"
    assert cube.attrs["source"] == "simulated"
    assert cube.s2_time.dtype == cube.s1_time.dtype == "M8[ns]"
    assert (np.diff(cube.s2_time) > np.timedelta64(0)).all()
    assert (np.diff(cube.s1_time) >= np.timedelta64(0)).all()
    assert set(cube.s2_time.dt.year.values) == set(cube.s1_time.dt.year.values) == {2024}


def test_ranges(cube):
    seen = (cube.s2 > 0).all("s2_band")
    assert not (cube.s2_valid & ~seen).any()
    assert cube.s2.max() <= 16_000
    assert cube.s2.where(seen).min() >= 1
    assert cube.s1.min() > 0


def test_grid_lies_where_asked():
    north, south = (simulate_landscape((20, 30), 2024, latitude=lat, longitude=-60.2, events=()) for lat in (40, -40))
    for cube, epsg, latitude in ((north, 32620, 40), (south, 32720, -40)):
        box = geobox_of(cube)
        assert (box.crs.epsg, box.resolution.x, box.resolution.y, box.shape) == (epsg, 10, -10, (20, 30))
        assert all(edge % 10 == 0 for edge in box.boundingbox)
        west, bottom, east, top = bounds_lonlat(box)
        assert west < -60.2 < east
        assert bottom < latitude < top


def test_land_cover_follows_cf_and_every_class_appears(cube):
    attrs = cube.land_cover.attrs
    assert attrs["flag_meanings"].split() == [cover.name for cover in COVERS.values()]
    assert len(attrs["flag_colors"].split()) == len(attrs["flag_values"]) == len(COVERS)
    found = set().union(*(np.unique(simulate_landscape((96, 96), 2024, seed=s).land_cover) for s in range(2)))
    assert found == set(attrs["flag_values"].tolist())


def test_parcels_hold_one_cover_each(cube):
    pairs = np.unique(np.stack([cube.parcel.values.ravel(), cube.land_cover.values.ravel()]), axis=1)
    assert len(np.unique(pairs[0])) == pairs.shape[1] > 50


def test_same_seed_same_cube_other_seed_other_cube():
    first, again, other = (tutorial.cube(size=32, seed=seed) for seed in (5, 5, 6))
    xr.testing.assert_identical(first, again)
    assert not np.array_equal(first.land_cover, other.land_cover)


def test_netcdf_keeps_it(tmp_path, cube):
    small = cube.isel(y=slice(4), x=slice(5))
    small.to_netcdf(tmp_path / "cube.nc", engine="h5netcdf")
    with xr.open_dataset(tmp_path / "cube.nc", engine="h5netcdf") as back:
        assert np.array_equal(back.s2, small.s2)
        assert back.s1_orbit.values.tolist() == small.s1_orbit.values.tolist()
        xr.testing.assert_equal(back.change_time.drop_vars("spatial_ref"), small.change_time.drop_vars("spatial_ref"))


@pytest.mark.parametrize("name", VEGETATION)
def test_vegetation_is_green_at_its_peak(clear_sky, name):
    series = index(clear_sky, "B08", "B04").where(where(clear_sky, name)).median(["y", "x"])
    assert series.max() > 0.6


def test_water_is_never_green_and_radar_dark(clear_sky):
    water, town = inner(where(clear_sky, "water")), inner(where(clear_sky, "built_up"))
    snowless = clear_sky.s2_time.dt.month.isin([5, 6, 7, 8, 9])
    assert index(clear_sky, "B08", "B04").where(water & snowless).median(["y", "x"]).max() < 0.1
    assert decibel(clear_sky, "VV").where(water).median() < decibel(clear_sky, "VV").where(town).median() - 6
    assert decibel(clear_sky, "VH").median() < decibel(clear_sky, "VV").median() - 4


def test_crops_are_harvested_and_conifers_stay(clear_sky):
    ndvi = index(clear_sky, "B08", "B04")
    august = clear_sky.s2_time.dt.month == 8
    june = clear_sky.s2_time.dt.month == 6
    wheat, conifers = (ndvi.where(where(clear_sky, name)) for name in ("winter_cereal", "evergreen_forest"))
    assert wheat.sel(s2_time=june).median() - wheat.sel(s2_time=august).median() > 0.25
    assert abs(conifers.sel(s2_time=june).median() - conifers.sel(s2_time=august).median()) < 0.1


def test_years_share_the_land_and_differ_in_weather():
    cube = simulate_landscape((32, 32), [2021, 2022], seed=4, cloudiness=0, events=())
    alone = simulate_landscape((32, 32), 2021, seed=4, cloudiness=0, events=())
    assert np.array_equal(cube.land_cover, alone.land_cover)
    wheat = index(cube, "B08", "B04").where(where(cube, "winter_cereal")).median(["y", "x"])
    first, second = (wheat.sel(s2_time=str(year)).groupby("s2_time.month").mean() for year in (2021, 2022))
    assert np.abs(first - second).max() > 0.03
    assert np.corrcoef(first, second)[0, 1] > 0.6


def test_clouds_raise_blue_and_the_mask_finds_most_of_them(cube):
    seen = (cube.s2 > 0).all("s2_band")
    hidden = seen & ~cube.s2_clear
    blue = cube.s2.sel(s2_band="B02")
    assert blue.where(hidden & ~cube.s2_valid).median() > 2 * blue.where(cube.s2_clear).median()
    missed = (hidden & cube.s2_valid).sum() / hidden.sum()
    false_alarms = (cube.s2_clear & ~cube.s2_valid).sum() / cube.s2_clear.sum()
    assert 0.002 < missed < 0.15
    assert 0.0005 < false_alarms < 0.15


def test_cloudiness_is_what_is_asked_and_none_is_none(clear_sky):
    assert clear_sky.s2_clear.equals((clear_sky.s2 > 0).all("s2_band"))
    shares = [
        float(simulate_landscape((32, 32), [2018, 2019], seed=1, cloudiness=c, events=()).s2_clear.mean())
        for c in (0.2, 0.5, 0.8)
    ]
    assert shares == sorted(shares, reverse=True)
    assert abs(1 - shares[1] - 0.5) < 0.12


@pytest.mark.parametrize("code", [1, 2, 3])
def test_a_change_has_one_day_and_a_place(clear_sky, code):
    changed = clear_sky.change == code
    assert changed.sum() > 30
    assert len(np.unique(clear_sky.change_time.values[changed.values])) == 1
    assert clear_sky.change_time.isnull().equals(clear_sky.change == 0)


@pytest.mark.parametrize("code", [1, 2])
def test_cutting_and_burning_lower_the_burn_ratio_from_their_day_on(clear_sky, code):
    changed = (clear_sky.change == code).values
    day = clear_sky.change_time.values[changed][0]
    nbr = index(clear_sky, "B08", "B12").where(inner(clear_sky.change == code)).median(["y", "x"])
    summer = nbr.s2_time.dt.month.isin([4, 5, 6, 7, 8, 9])
    before, after = nbr[(nbr.s2_time < day) & summer], nbr[(nbr.s2_time > day) & summer]
    assert before.max() > 0.35
    assert after.max() < before.max() - 0.15


def test_burnt_ground_is_charred_and_a_clear_cut_is_not(clear_sky):
    nbr = index(clear_sky, "B08", "B12")
    first_weeks = {}
    for code in (1, 2):
        changed = clear_sky.change == code
        since = clear_sky.s2_time - clear_sky.change_time.values[changed.values][0]
        soon = (since > np.timedelta64(0)) & (since < np.timedelta64(40, "D"))
        first_weeks[code] = nbr.where(inner(changed) & soon).median()
    assert first_weeks[2] < -0.2 < first_weeks[1]


def test_a_building_brightens_blue_and_radar_after_its_earthworks(clear_sky):
    built = inner(clear_sky.change == 3)
    day = clear_sky.change_time.values[(clear_sky.change == 3).values][0]
    done = day + np.timedelta64(110, "D")
    blue = clear_sky.s2.sel(s2_band="B02").where(built).median(["y", "x"])
    vv = decibel(clear_sky, "VV").where(built).median(["y", "x"])
    assert blue[blue.s2_time > done].median() > 1.5 * blue[blue.s2_time < day].median()
    assert vv[vv.s1_time > done].median() > vv[vv.s1_time < day].median() + 3


def test_change_leaves_the_past_alone():
    with_fire, without = (
        simulate_landscape((48, 48), 2024, seed=2, cloudiness=0, events=events) for events in (("fire",), ())
    )
    burnt = with_fire.change == 2
    day = with_fire.change_time.values[burnt.values][0]
    ahead = with_fire.s2_time < day
    assert ahead.any()
    xr.testing.assert_equal(with_fire.s2.sel(s2_time=ahead), without.s2.sel(s2_time=ahead))
    drop = index(without, "B08", "B12") - index(with_fire, "B08", "B12")
    assert drop.where(inner(burnt)).sel(s2_time=~ahead).median() > 0.2


def test_high_latitudes_are_seen_more_often_but_not_in_the_dark():
    counts = {
        lat: np.mean(
            [simulate_landscape((16, 16), 2024, latitude=lat, seed=s, events=()).sizes["s2_time"] for s in range(4)]
        )
        for lat in (0, 60)
    }
    assert counts[60] > 1.4 * counts[0]
    polar = simulate_landscape((16, 16), 2024, latitude=70, events=())
    assert 12 not in polar.s2_time.dt.month
    assert 12 in polar.s1_time.dt.month


@pytest.mark.parametrize("longitude", [-45.0, 3.5, 60.0])
def test_satellites_pass_at_their_local_hour(longitude):
    cube = simulate_landscape((16, 16), 2024, longitude=longitude, events=())

    def local_hour(times: xr.DataArray) -> xr.DataArray:
        return times.dt.hour + times.dt.minute / 60 + longitude / 15

    ascending = cube.s1_orbit == "ascending"
    assert abs(local_hour(cube.s2_time) - 10.6).max() < 0.1
    assert abs(local_hour(cube.s1_time[ascending]) - 17.8).max() < 0.1
    assert abs(local_hour(cube.s1_time[~ascending]) - 5.8).max() < 0.1


def test_some_scenes_end_within_the_landscape():
    cubes = [simulate_landscape((24, 24), 2024, latitude=60, seed=seed, events=()) for seed in range(8)]
    seen = [(cube.s2 > 0).all("s2_band").mean(["y", "x"]) for cube in cubes]
    assert any(((share > 0) & (share < 1)).any() for share in seen)
    assert all((share == 1).any() for share in seen)


@pytest.mark.parametrize("orbits", [("ascending",), ("descending",), ()])
def test_missing_orbit_is_missing_and_leaves_the_rest(orbits):
    both = simulate_landscape((16, 16), 2024, seed=1)
    some = simulate_landscape((16, 16), 2024, seed=1, orbits=orbits)
    assert set(some.s1_orbit.values) == set(orbits)
    assert some.s1.dtype == np.int16
    xr.testing.assert_equal(some.s2, both.s2)
    kept = both.s1_time[both.s1_orbit.isin(list(orbits))]
    assert np.array_equal(kept, some.s1_time)


def test_speckle_in_the_cube(clear_sky):
    """Within a forest, neighbours in time and space differ by speckle alone, nearly."""
    forest = inner(where(clear_sky, "deciduous_forest")).values
    power = 10 ** (decibel(clear_sky, "VH").values[:, forest] / 10)
    enl = np.median(power.mean(axis=1) ** 2 / power.var(axis=1))
    assert 3.3 < enl < 5.0


def test_snow_falls_in_the_north_in_winter_only():
    cube = simulate_landscape((24, 24), 2024, latitude=64, cloudiness=0, seed=1, events=())
    ndsi = index(cube, "B03", "B11").median(["y", "x"]).groupby("s2_time.month").median()
    assert ndsi.sel(month=2) > 0.4
    assert ndsi.sel(month=7) < 0


def test_shores_are_mixed_pixels(clear_sky):
    water = where(clear_sky, "water")
    july = clear_sky.s2.sel(s2_band="B08")[clear_sky.s2_time.dt.month == 7].median("s2_time")
    deep, shore = july.where(inner(water)).median(), july.where(water & ~inner(water)).median()
    assert deep * 1.5 < shore < july.where(where(clear_sky, "grassland")).median()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"shape": (8, 40)}, "16 or above"),
        ({"shape": (32.5, 40)}, "whole number"),
        ({"year": 1999}, "2016"),
        ({"year": []}, "list"),
        ({"year": True}, "2016"),
        ({"latitude": 80}, "from -75 to 75"),
        ({"longitude": float("nan")}, "from -180 to 180"),
        ({"cloudiness": 1.2}, "from 0 to 0.95"),
        ({"seed": -1}, "0 or above"),
        ({"events": ("flood",)}, "'clear_cut', 'fire', 'building'"),
        ({"orbits": "ascnding"}, "'ascending', 'descending'"),
        ({"looks": 0}, "from 0.5"),
    ],
)
def test_bad_arguments_are_named_with_what_is_allowed(arguments, words):
    with pytest.raises(SchemaError, match=next(iter(arguments))) as caught:
        simulate_landscape(**{"shape": (16, 16), **arguments})
    assert words in str(caught.value)


def test_import_is_light():
    heavy = ("torch", "sklearn", "matplotlib", "numba")
    code = f"import sys, tessera_xr.tutorial; print(any(m in sys.modules for m in {heavy}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
