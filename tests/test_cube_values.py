"""`as_cube`: what numbers mean: units, orbits, offset, and where the imagery is from."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
import xarray as xr

from tessera_xr.sentinel import bands
from tessera_xr.sentinel.cube import as_cube, check_cube


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


def test_silly_radar_values_are_missing(make_s2, make_s1):
    s1 = make_s1()
    power = 10 ** (s1 / 10)
    power.VV[0, 0, :4] = [0, -1, np.inf, np.nan]
    s1.VV[0, 0, :4] = [-np.inf, np.nan, np.inf, -60]
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


def test_the_source_is_inferred_from_traces(make_s2):
    s2 = make_s2(DATES)
    assert (
        as_cube(s2.assign_attrs(href="https://planetarycomputer.microsoft.com/api/stac/v1")).source
        == "planetary-computer"
    )
    assert as_cube(s2.assign_attrs(catalog="Earth-Search v1")).source == "earth-search"
    assert as_cube(s2, source="my archive", offset=0).source == "my archive"


def test_real_power_is_told_from_amplitude(shared_data):
    order = ["B02", "B03", "B04", "B08", "B05", "B06", "B07", "B8A", "B11", "B12"]
    with h5py.File(next((shared_data / "treesat").glob("*.h5"))) as file:
        s2 = _treesat(file, "sen-2", order)
        mask = s2.B02.copy(data=(file["sen-2-masks"][:].max(axis=1) == 0))
        asc, des = (_treesat(file, f"sen-1-{orbit}", ["VV", "VH"]) for orbit in ("asc", "des"))
    cube = as_cube(s2, s1_ascending=asc, s1_descending=des, mask=mask)
    check_cube(cube)
    assert cube.attrs["s1_units"] == "power, inferred from values"
    assert cube.sizes["s1_time"] == len(set(asc.time.dt.floor("D").values)) + len(set(des.time.dt.floor("D").values))
    amplitude = as_cube(s1_ascending=asc**0.5, s1_descending=des**0.5)
    assert amplitude.attrs["s1_units"] == "amplitude, inferred from values"
    assert np.abs(amplitude.s1.astype(int) - cube.s1).max() <= 1


def _treesat(file: h5py.File, key: str, names: list[str]) -> xr.Dataset:
    """Return one sensor of a TreeSatAI time series, its dates read off the product names, on a made-up grid."""
    stamps = [name.decode().split("_")[2 if key == "sen-2" else 4] for name in file[f"{key}-products"][:]]
    times = np.array([f"{s[:4]}-{s[4:6]}-{s[6:11]}:{s[11:13]}:{s[13:15]}" for s in stamps], dtype="datetime64[ns]")
    data = file[f"{key}-data"][:]
    coords = {"time": times, "y": 5_600_000 - 10.0 * np.arange(6), "x": 500_000 + 10.0 * np.arange(6)}
    ds = xr.Dataset({name: (("time", "y", "x"), data[:, i]) for i, name in enumerate(names)}, coords)
    return ds.sortby("time").odc.assign_crs("EPSG:32632")
