"""`as_cube`: what numbers mean: units, orbits, offset, and where the imagery is from."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from tessera_xr.errors import CubeError
from tessera_xr.sentinel import bands
from tessera_xr.sentinel.cube import as_cube, as_cube_for, check_cube, select_period
from tessera_xr.sentinel.period import resolve_period


def test_decibel_power_and_amplitude_give_the_same_cube(make_s2, make_s1):
    s1 = make_s1()
    power = (10 ** (s1.astype(np.float64) / 10)).astype(np.float32)
    cubes = {unit: as_cube(make_s2(), data) for unit, data in (("db", s1), ("power", power), ("amplitude", power**0.5))}
    for unit, cube in cubes.items():
        assert cube.attrs["s1_units"] == f"{unit}, inferred from values"
        assert np.abs(cube.s1.astype(int) - cubes["db"].s1).max() <= 1
        told = as_cube(make_s2(), {"db": s1, "power": power, "amplitude": power**0.5}[unit], s1_units=unit)
        xr.testing.assert_equal(told, cube)
    again = as_cube(make_s2(), cubes["db"].s1.to_dataset("s1_band").assign_coords(orbit=cubes["db"].s1_orbit))
    np.testing.assert_array_equal(again.s1, cubes["db"].s1)


FILLS = (-9999, -32768, np.nan)


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("unit", ["db", "power", "amplitude", "tessera"])
def test_fills_of_radar_are_missing_and_mislead_nobody(unit, fill, make_s1):
    decibel = make_s1(size=64)
    clean = as_cube(s1=decibel).s1
    power = 10 ** (decibel / 10)
    scaled = clean.to_dataset("s1_band").rename(s1_time="time", s1_orbit="orbit")
    data = {"db": decibel, "power": power, "amplitude": power**0.5, "tessera": scaled}[unit]
    swath = data.x.isin(data.x[:45])
    filled = data.where(~swath, fill).astype(data.VV.dtype if fill == fill or unit != "tessera" else float)
    cube = as_cube(s1=filled)
    assert cube.s1_units == f"{unit}, inferred from values"
    assert (cube.s1[..., :45] == 0).all()
    assert np.abs(cube.s1.astype(int) - clean)[..., 45:].max() <= 1
    assert as_cube(s1=filled, s1_units=unit).s1.equals(cube.s1)


@pytest.mark.parametrize("share", [0.02, 0.3])
def test_power_less_its_noise_may_be_negative(share, make_s1):
    power = 10 ** (make_s1(size=64) / 10)
    below = xr.DataArray(np.random.default_rng(0).random(power.VH.shape) < share, dims=power.VH.dims)
    noisy = power.assign(VH=power.VH.where(~below, -1e-4))
    cube, clean = as_cube(s1=noisy), as_cube(s1=power)
    assert cube.s1_units == "power, inferred from values"
    np.testing.assert_array_equal(cube.s1[:, 1], np.where(below, 0, clean.s1[:, 1]))
    assert cube.s1[:, 0].equals(clean.s1[:, 0])
    assert as_cube(s1=noisy, s1_units="linear").s1.equals(cube.s1)


def test_0_dB_in_both_bands_is_missing(make_s1):
    s1 = make_s1(size=8)
    s1.VV[:, :3, :2] = 0
    s1.VH[:, :3, 1:3] = 0
    expected = as_cube(s1=s1.assign(VH=s1.VH.where(s1.VV != 0, -9999), VV=s1.VV.where((s1.VV != 0) | (s1.VH != 0))))
    for data in (s1, s1.chunk(y=4)):
        cube = as_cube(s1=data)
        assert (cube.s1[:, :, :3, 1] == 0).all()
        assert (cube.s1[:, 0, :3, 0] == 10_000).all()
        assert (cube.s1[:, 1, :3, 2] == 10_000).all()
    assert cube.s1[:, :, 3:].equals(expected.s1[:, :, 3:])


def test_silly_radar_values_are_missing(make_s2, make_s1):
    s1 = make_s1()
    power = 10 ** (s1 / 10)
    power.VV[0, 0, :4] = [0, -1, np.inf, np.nan]
    s1.VV[0, 0, :4] = [-np.inf, np.nan, 9999, -60]
    for data, unit in ((power, "power"), (s1, "db")):
        assert (as_cube(make_s2(), data, s1_units=unit).s1[0, 0, 0, :4] == 0).all()


@pytest.mark.parametrize("unit", ["dB", "linear power", "amplitude"])
def test_units_are_read_from_attributes(unit, make_s1):
    s1 = make_s1()
    power = 10 ** (s1 / 10)
    data = {"dB": s1, "linear power": power, "amplitude": power**0.5}[unit]
    for band in data.data_vars.values():
        band.attrs["units"] = unit
    assert as_cube(s1=data).attrs["s1_units"].endswith("from attributes")
    assert np.abs(as_cube(s1=data).s1.astype(int) - as_cube(s1=s1, s1_units="db").s1).max() <= 1


def test_units_are_read_from_names(make_s1):
    s1 = make_s1()
    assert as_cube(s1=s1.rename(VV="VV_db", VH="VH_db")).attrs["s1_units"] == "db, from attributes"


@pytest.mark.parametrize("spelling", ["sat:orbit_state", "orbit", "orbit_direction", "s1_orbit"])
def test_orbits_are_read_from_coordinates(spelling, make_s1):
    s1 = make_s1().rename(orbit_state=spelling).assign_coords({spelling: ("time", ["D", "ASC", "Ascending"])})
    assert as_cube(s1=s1).s1_orbit.values.tolist() == ["descending", "ascending", "ascending"]


def test_numbers_of_orbits_are_passed_over(make_s1):
    numbered = make_s1().assign_coords(orbit=("time", [8, 88, 110])).assign_attrs(orbit_direction="descending")
    assert as_cube(s1=numbered).s1_orbit.values.tolist() == ["descending", "ascending", "ascending"]
    assert set(as_cube(s1=numbered.drop_vars("orbit_state")).s1_orbit.values) == {"descending"}


def test_orbits_from_arguments_and_attributes(make_s1):
    s1 = make_s1()
    apart = {f"s1_{o}": s1.isel(time=s1.orbit_state.values == o).drop_vars("orbit_state") for o in bands.ORBITS}
    xr.testing.assert_equal(as_cube(**apart), as_cube(s1=s1))
    bare = s1.drop_vars("orbit_state")
    assert set(as_cube(s1=bare, orbit="desc").s1_orbit.values) == {"descending"}
    assert set(as_cube(s1=bare.assign_attrs(orbit_state="ascending")).s1_orbit.values) == {"ascending"}


DATES = ("2021-06-01", "2022-01-24T23:59", "2022-01-25T10:00", "2022-06-01")
BASELINES = ("s2:processing_baseline", ["03.01", "03.01", "04.00", "05.09"])
ES = {"earthsearch:boa_offset_applied": ("time", [False, False, True, True])}
OFFSETS = {
    "planetary computer by date": ({}, {"source": "mpc"}, [0, 0, 1000, 1000]),
    "earth search": ({}, {"source": "earth-search"}, [0, 0, 0, 0]),
    "earth search, applied or too old": (ES, {}, [0, 0, 0, 0]),
    "baseline": ({BASELINES[0]: ("time", BASELINES[1])}, {}, [0, 0, 1000, 1000]),
    "baseline, reprocessed": ({"processing:version": ("time", ["05.00"] * 4)}, {}, [1000] * 4),
    "baseline as in file names": (
        {"processing_baseline": ("time", ["N0300", "N0301", "N0400", "N0509"])},
        {},
        [0, 0, 1000, 1000],
    ),
    "source in capitals": ({}, {"source": "EARTH_SEARCH"}, [0, 0, 0, 0]),
    "source in words": ({}, {"source": " Planetary Computer"}, [0, 0, 1000, 1000]),
    "told 0": ({}, {"offset": 0}, [0] * 4),
    "told 1000": ({}, {"offset": 1000}, [1000] * 4),
    "told per date": ({}, {"offset": [0, 1000, 0, 1000]}, [0, 1000, 0, 1000]),
    "told against baseline": ({BASELINES[0]: ("time", BASELINES[1])}, {"offset": 0}, [0] * 4),
    "stated": ({"boa_add_offset": ("time", [0, 0, -1000, -1000])}, {}, [0, 0, 1000, 1000]),
}


@pytest.mark.parametrize("case", OFFSETS)
def test_offset_is_decided_for_each_date(case, make_s2):
    coords, arguments, expected = OFFSETS[case]
    s2 = make_s2(DATES).assign_coords(coords)
    s2.B02[:, 0, 5] = [999, 1000, 1000, 0]
    cube = as_cube(s2, **arguments)
    raw = np.stack([s2[band] for band in bands.S2_BANDS], axis=1).astype(int)
    subtract = np.array(expected)[:, None, None, None]
    np.testing.assert_array_equal(cube.s2, np.where(raw >= 1000, raw - subtract, raw))
    year = as_cube(s2, period=2022, **arguments)  # an offset for each date stays with its date
    np.testing.assert_array_equal(year.s2, cube.s2[1:])


def test_dates_outside_the_periods_need_not_be_understood(make_s2, make_s1):
    days = ("2018-05-01", "2019-12-31", "2020-07-01", "2021-06-01", "2023-01-01", "2024-05-01")
    s2, s1 = make_s2(days), make_s1(days, ["ascending"] * 6)
    with pytest.raises(CubeError, match="pass offset=1000"):
        as_cube(s2, s1)
    periods = [resolve_period(year) for year in (2018, 2021)]
    for data in (s2, s2.chunk(time=1)):
        both = xr.merge([data.rename(time="s2_time"), s1.rename(time="s1_time")], compat="no_conflicts")
        cube = as_cube_for(both, periods)
        assert cube.s2_time.dt.year.values.tolist() == cube.s1_time.dt.year.values.tolist() == [2018, 2021]
        for period in periods:
            xr.testing.assert_equal(select_period(cube, period), as_cube(s2, s1, period=period))
    assert as_cube_for(s2.to_dataarray("band"), periods).sizes["s2_time"] == 2
    with pytest.raises(CubeError, match="no date falls into the period 2022-01-01/2022-12-31"):
        as_cube_for(both, [resolve_period(2022)])


def test_the_source_is_inferred_from_traces(make_s2):
    s2 = make_s2(DATES)
    assert (
        as_cube(s2.assign_attrs(href="https://planetarycomputer.microsoft.com/api/stac/v1")).source
        == "planetary-computer"
    )
    assert as_cube(s2.assign_attrs(catalog="Earth-Search v1")).source == "earth-search"
    assert as_cube(s2, source="my archive", offset=0).source == "my archive"


def test_real_power_is_told_from_amplitude(treesat):
    cube = as_cube(**treesat)
    check_cube(cube)
    assert cube.attrs["s1_units"] == "power, inferred from values"
    passes = {name: treesat[name] for name in ("s1_ascending", "s1_descending")}
    assert cube.sizes["s1_time"] == sum(len(set(s1.time.dt.floor("D").values)) for s1 in passes.values())
    amplitude = as_cube(**{name: s1**0.5 for name, s1 in passes.items()})
    assert amplitude.attrs["s1_units"] == "amplitude, inferred from values"
    assert np.abs(amplitude.s1.astype(int) - cube.s1).max() <= 1
