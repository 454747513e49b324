"""Every fault is named, with its fix, and all of them at once."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import xarray as xr

from tessera_xr.errors import CubeError, SchemaError, TesseraWarning
from tessera_xr.sentinel.cube import as_cube, check_cube, require_span, select_period

pytestmark = pytest.mark.filterwarnings("ignore::tessera_xr.errors.TesseraWarning")


def faults_of(*args, **kwargs) -> list[str]:
    with pytest.raises(CubeError) as caught:
        as_cube(*args, **kwargs)
    assert all(fault in str(caught.value) for fault in caught.value.faults)
    return caught.value.faults


def test_all_faults_come_at_once(make_s2, make_s1):
    s2 = make_s2(("2023-01-01", "2023-06-01", "2023-09-01")).drop_vars(["B8A", "B11"])
    s1 = (10 ** ((make_s1() + 7) / 10).clip(0.22)).drop_vars("orbit_state")
    faults = faults_of(s2, s1)
    assert len(faults) == 5
    text = "\n".join(faults)
    for part in (
        "s2 lacks B8A, B11",
        "nir08",
        "pass offset=1000",
        "s1_units='db', 'power'",
        "no overlap in time",
        "orbit='ascending'",
    ):
        assert part in text


def test_faults_survive_pickling(make_s2):
    with pytest.raises(CubeError) as caught:
        as_cube(make_s2().drop_vars("B02"))
    assert pickle.loads(pickle.dumps(caught.value)).faults == caught.value.faults


def no_crs(ds):
    return ds.drop_vars("spatial_ref")


S2_FAULTS = {
    "nothing": (lambda ds: None, "nothing to read"),
    "not xarray": (lambda ds: ds.B02.values, "ndarray"),
    "missing band": (lambda ds: ds.drop_vars("B06"), "s2 lacks B06; it holds B02, "),
    "band twice": (lambda ds: ds.assign(blue=ds.B02), "B02 is in s2 2 times"),
    "no time": (lambda ds: ds.isel(time=0, drop=True), "one of time is needed"),
    "no dates": (lambda ds: ds.drop_vars("time"), "no dates"),
    "dates as text": (lambda ds: ds.assign_coords(time=["a", "b", "c"]), "not datetime64"),
    "unsorted": (lambda ds: ds.isel(time=[1, 0, 2]), "sortby"),
    "NaT": (
        lambda ds: ds.assign_coords(time=[ds.time.values[0], np.datetime64("NaT"), ds.time.values[2]]),
        "1 dates of s2 are missing",
    ),
    "no space": (lambda ds: ds.rename(y="a", x="b"), "no spatial dimensions"),
    "extra dimension": (lambda ds: ds.expand_dims(member=2), "select along the others"),
    "no CRS": (no_crs, "assign_crs"),
    "bad CRS": (lambda ds: no_crs(ds).assign_attrs(crs="over there"), "'over there' is not a CRS"),
    "uneven": (lambda ds: ds.assign_coords(x=ds.x.values + np.array([0, 0, 3, 0, 0, 0])), "not evenly spaced"),
    "no coordinates": (lambda ds: ds.drop_vars("x"), "no coordinate"),
    "text": (lambda ds: ds.assign(B02=ds.B02.astype(str)), "dtype"),
    "objects": (lambda ds: ds.assign(B02=ds.B02.astype(object)), "numbers are needed"),
    "unclear units": (lambda ds: (ds.astype(float) / 100).assign(SCL=ds.SCL), "attrs['units']"),
    "no data at all": (lambda ds: ds.where(False).assign(SCL=ds.SCL), "a sample holds no data"),
    "nameless bands": (lambda ds: ds.to_dataarray("band").drop_vars("band"), "has no names"),
    "nameless array": (lambda ds: ds.B02.rename(None), "neither a name nor a band dimension"),
    "pieces of other dates": (lambda ds: [ds[["B02"]], ds.drop_vars("B02").isel(time=[0, 1])], "same dates"),
    "pieces that do not nest": (lambda ds: [ds[["B02"]], ds.drop_vars("B02").assign_coords(x=ds.x + 4)], "do not nest"),
    "far apart": (lambda ds: [ds[["B02"]], ds.drop_vars("B02").assign_coords(x=ds.x + 4000)], "no overlap in space"),
    "other CRS": (
        lambda ds: [ds[["B02"]], no_crs(ds.drop_vars("B02")).odc.assign_crs("EPSG:32632")],
        "s2[1] is in EPSG:32632",
    ),
}


@pytest.mark.filterwarnings("ignore:Failed to parse CRS")
@pytest.mark.parametrize("case", S2_FAULTS)
def test_faults_of_sentinel_2(case, make_s2):
    change, expected = S2_FAULTS[case]
    ds = make_s2()
    ds["B02"].attrs.clear()
    faults = faults_of(change(ds))
    assert any(expected in fault for fault in faults), faults
    assert len(faults) == 1, faults


S1_FAULTS = {
    "missing band": (lambda ds: ds.drop_vars("VH"), {}, "s1 lacks VH"),
    "not radar": (lambda ds: ds.rename(VV="a", VH="b"), {}, "s1 lacks VV, VH; it holds a, b"),
    "no orbit": (lambda ds: ds.drop_vars("orbit_state"), {}, "orbit='ascending'"),
    "orbit number": (
        lambda ds: ds.assign_coords(orbit=("time", [8, 88, 110])).drop_vars("orbit_state"),
        {},
        "orbit hold",
    ),
    "strange orbit": (
        lambda ds: ds.assign_coords(orbit_state=("time", ["up", "ascending", "down"])),
        {},
        "hold ['down', 'up']",
    ),
    "orbit gaps": (
        lambda ds: ds.assign_coords(orbit_state=("time", ["", "ascending", "ascending"])),
        {},
        "1 dates of s1 have no orbit",
    ),
    "unknown orbit": (lambda ds: ds, {"orbit": "sideways"}, "orbit='sideways'"),
    "unknown unit": (lambda ds: ds, {"s1_units": "bel"}, "s1_units='bel'"),
    "units disagree": (
        lambda ds: ds.assign(VV=ds.VV.assign_attrs(units="dB"), VH=ds.VH.assign_attrs(units="power")),
        {},
        "different units",
    ),
    "power or amplitude": (lambda ds: 10 ** ((ds + 7) / 10).clip(0.22), {}, "power or amplitude?"),
    "other numbers": (lambda ds: (10 ** ((ds + 83) / 20)).fillna(0).astype(np.uint16), {}, "20*log10(DN) - 83"),
}


@pytest.mark.parametrize("case", S1_FAULTS)
def test_faults_of_sentinel_1(case, make_s1):
    change, arguments, expected = S1_FAULTS[case]
    faults = faults_of(s1=change(make_s1()), **arguments)
    assert any(expected in fault for fault in faults), faults
    assert len(faults) == 1, faults


def test_faults_between_the_sensors(make_s2, make_s1):
    s2, s1 = make_s2(), make_s1()
    later = s1.assign_coords(time=s1.time + np.timedelta64(800, "D"))
    (fault,) = faults_of(s2, later)
    assert "no overlap in time: Sentinel-2 covers 2020-03-01/2020-07-01, Sentinel-1 2022-" in fault
    (fault,) = faults_of(s2, s1.assign_coords(y=s1.y - 1000))
    assert "no overlap in space: s2 covers x 501000 to 501060, y 5629940 to 5630000; s1 covers" in fault
    (fault,) = faults_of(s2, s1.assign_coords(y=s1.y - 3))
    assert "s1.odc.reproject(s2.odc.geobox)" in fault
    (fault,) = faults_of(s2, s1, s1_ascending=s1)
    assert "the one or the others" in fault
    assert any("a cube already" in fault for fault in faults_of(as_cube(s2), s1))


ARGUMENTS = [
    ({"offset": 900}, "offset=900"),
    ({"offset": "yes"}, "offset='yes'"),
    ({"offset": [0, 1000]}, "shape (2,)"),
    ({"mask": "scl"}, "mask='scl'"),
    ({"mask": np.ones(3)}, "ndarray"),
]


@pytest.mark.parametrize(("arguments", "expected"), ARGUMENTS)
def test_faults_of_arguments(arguments, expected, make_s2):
    (fault,) = faults_of(make_s2(), **arguments)
    assert expected in fault


def test_masks_that_mean_something_else(make_s2):
    s2 = make_s2()
    assert "astype(bool)" in faults_of(s2, mask=(s2.SCL == 4).astype(np.uint8))[0]
    assert "not SCL codes" in faults_of(s2, mask=s2.SCL + 100)[0]


def test_the_offset_is_never_guessed(make_s2):
    s2 = make_s2(("2022-01-24", "2022-01-25", "2022-06-01"))
    (fault,) = faults_of(s2)
    assert "of 2 dates (2022-01-25 to 2022-06-01)" in fault
    assert as_cube(s2, period=("2021-12-01", "2022-01-24")).sizes["s2_time"] == 1


def test_periods_without_a_date(make_s2, make_s1):
    (fault,) = faults_of(make_s2(), make_s1(), period=2018)
    assert "no date falls into the period 2018-01-01/2018-12-31; the imagery covers 2020-03-01/2020-07-01" in fault
    cube = as_cube(make_s2(), make_s1())
    with pytest.raises(CubeError, match=r"covers 2020-03-01/2020-07-01"):
        select_period(cube, 2018)
    with pytest.raises(SchemaError):
        as_cube(make_s2(), period="last summer")


def test_long_cubes_want_a_period(make_s2):
    cube = as_cube(make_s2(("2018-08-04", "2019-05-01", "2019-11-22")))
    with pytest.raises(CubeError, match=r"pass period=2019 .* it covers 2018-08-04/2019-11-22"):
        require_span(cube, None)
    require_span(cube.isel(s2_time=[0, 1]), None)


CUBE_FAULTS = {
    "attribute": (lambda c: c.drop_attrs(deep=False), "tessera_xr_kind"),
    "variable": (lambda c: c.drop_vars("s1"), "'s1' is missing"),
    "order": (lambda c: c.transpose("y", ...), "transpose"),
    "dtype": (lambda c: c.assign(s2=c.s2.astype(float)), "float64"),
    "bands": (lambda c: c.isel(s2_band=slice(None, None, -1)), "s2_band is ['B12'"),
    "time": (lambda c: c.isel(s1_time=[1, 0, 2]).isel(s1_time=[0, 1, 2]), "s1_time is not in order"),
    "twice": (lambda c: c.isel(s2_time=[0, 0, 1]), "same time twice"),
    "no orbit": (lambda c: c.drop_vars("s1_orbit"), "s1_orbit"),
    "orbit": (lambda c: c.assign_coords(s1_orbit=("s1_time", ["up"] * 3)), "['up']"),
    "upside down": (lambda c: c.sortby("y"), "y ascends"),
    "CRS": (lambda c: c.drop_vars("spatial_ref").assign_coords(x=c.x.values, y=c.y.values), "no CRS"),
}


@pytest.mark.parametrize("case", CUBE_FAULTS)
def test_checks_of_a_cube(case, make_s2, make_s1):
    change, expected = CUBE_FAULTS[case]
    cube = as_cube(make_s2(), make_s1())
    check_cube(cube)
    with pytest.raises(CubeError) as caught:
        check_cube(change(cube))
    assert any(expected in fault for fault in caught.value.faults), caught.value.faults
    with pytest.raises(CubeError, match="not ndarray"):
        check_cube(cube.s2.values)


def test_monthly_composites_are_refused_with_all_reasons(shared_data):
    ds = xr.open_dataset(shared_data / "cubes" / "worldcereal_2021_month.nc", engine="h5netcdf")
    faults = faults_of(ds)
    assert [any(word in fault for fault in faults) for word in ("lacks B8A", "20*log10(DN) - 83", "orbit=")] == [
        True
    ] * 3
    assert len(faults) == 3


def test_the_warning_about_clouds_is_not_silent(make_s2):
    with pytest.warns(TesseraWarning, match="believed clear"):
        as_cube(make_s2(scl=False))
