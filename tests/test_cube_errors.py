"""Every fault is named, with its fix, and all of them at once."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import xarray as xr

from tessera_xr.errors import CubeError, SchemaError, TesseraWarning
from tessera_xr.sentinel.bands import S2_BANDS
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


def test_one_fault_does_not_hide_another(make_s2, make_s1):
    days = ("2024-01-01", "2024-06-01", "2024-09-01")
    s2 = make_s2(days).drop_vars("B8A").isel(time=[2, 1, 0])
    s2 = s2.assign(B02=s2.B02.astype(str))
    s1 = make_s1(("2024-05-01", "2024-05-13", "2024-06-02")).drop_vars(["VV", "orbit_state"])
    expected = ["s2 lacks B8A", "s1 lacks VV", "B02 of s2 has dtype", "not in order", "pass offset=1000", "orbit="]
    faults = faults_of(s2, s1)
    assert len(faults) == len(expected)
    assert [any(part in fault for fault in faults) for part in expected] == [True] * len(expected)
    more = faults_of(s2, s1, mask="scl", s1_units="bel", source="erth search")
    for part in (*expected[:4], "orbit=", "mask='scl'", "s1_units='bel'", "close to 'earth-search'"):
        assert any(part in fault for fault in more), part
    assert len(more) == 8  # of the offset nothing can be said as long as the source is in doubt


def test_messages_suit_the_number_of_faults(make_s2):
    with pytest.raises(CubeError, match=r"^this can't be read as a Sentinel cube:\n  - s2 lacks B02") as caught:
        as_cube(make_s2().drop_vars("B02"))
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.faults, str(again)) == (caught.value.faults, str(caught.value))
    with pytest.raises(CubeError, match=r"^this can't be read as a Sentinel cube \(2 faults\):"):
        as_cube(make_s2().drop_vars("B02"), mask="scl")
    with pytest.raises(CubeError, match=r"^no date falls into"):
        select_period(as_cube(make_s2()), 1999)
    assert str(CubeError(["a", "b"])) == "2 faults:\n  - a\n  - b"


def test_a_cube_takes_no_arguments_beside_it(make_s2, make_s1):
    s2, s1 = make_s2(), make_s1()
    cube = as_cube(s2, s1)
    passed = {"offset": 1000, "mask": s2.SCL, "s1_units": "db", "orbit": "ascending", "source": "mpc"}
    for name, value in (passed | {"s1": s1, "s1_ascending": s1}).items():
        (fault,) = faults_of(cube, **{name: value})
        assert f"a cube already, so {name}= can't be heeded" in fault
    for part in ([cube[["s2", "s2_valid"]]], cube[["s2", "s2_valid"]]):
        assert as_cube(part).s2.equals(cube.s2)
        (fault,) = faults_of(part, offset=1000)
        assert "removed already" in fault


def test_embeddings_are_no_imagery(make_s2):
    emb = xr.Dataset({"embeddings": (("band", "y", "x"), np.zeros((128, 6, 6)))}, make_s2().drop_vars("time").coords)
    for given in (emb, emb.embeddings):
        (fault,) = faults_of(given)
        assert "s2 holds embeddings already" in fault


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
    "hundredths of dB": (lambda ds: (ds * 100).fillna(0).astype(np.int16), {}, "which is no dB"),
    "far too dark": (lambda ds: ds - 60, {}, "can't be told"),
    "nothing but fills": (lambda ds: ds.where(False, -9999), {}, "nothing but fills"),
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


ARGUMENTS = [
    ({"offset": 900}, "offset=900"),
    ({"offset": -1000}, "offset=-1000"),
    ({"offset": "yes"}, "offset='yes'"),
    ({"source": "planetary computr"}, "close to 'planetary-computer'"),
    ({"source": 5}, "source=5"),
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
    for cut in (lambda: as_cube(make_s2(), period=[2018, 2019]), lambda: select_period(cube, [2018, 2019])):
        with pytest.raises(SchemaError, match=r"pass the list to embed\(period=\[...\]\)"):
            cut()


def test_long_cubes_want_a_period(make_s2):
    cube = as_cube(make_s2(("2018-08-04", "2019-05-01", "2019-11-22")))
    with pytest.raises(CubeError, match=r"pass period=2019 .* it covers 2018-08-04/2019-11-22"):
        require_span(cube, None)
    require_span(cube.isel(s2_time=[0, 1]), None)


CUBE_FAULTS = {
    "attribute": (lambda c: c.drop_attrs(deep=False), ["tessera_xr_kind"]),
    "variable": (lambda c: c.drop_vars("s1"), ["'s1' is missing"]),
    "order": (lambda c: c.transpose("y", ...), ["s2, s2_valid, s1: the dimensions are out of order"]),
    "float s2": (lambda c: c.assign(s2=c.s2.astype(float)), ["s2 has dtype float64, not uint16"]),
    "float s1": (lambda c: c.assign(s1=c.s1.astype("f4")), ["s1 has dtype float32, not int16"]),
    "mask of integers": (lambda c: c.assign(s2_valid=c.s2_valid.astype("u1")), ["s2_valid has dtype uint8"]),
    "where": (lambda c: c.where(c.y < 0), ["s2 has dtype float32, not uint16, s2_valid"]),
    "coarser": (lambda c: c.coarsen(y=2, x=2).mean(), ["s1 has dtype float64, not int16;"]),
    "bands by name": (lambda c: c.sortby("s2_band"), ["reorder with cube.sel(s2_band=['B04', 'B02'"]),
    "bands reversed": (lambda c: c.isel(s2_band=slice(None, None, -1)), ["s2_band is ['B12'"]),
    "polarisations": (lambda c: c.isel(s1_band=[1, 0]), ["reorder with cube.sel(s1_band=['VV', 'VH'])"]),
    "nine bands": (lambda c: c.isel(s2_band=slice(9)), ["B12 are needed, once each; make the cube anew"]),
    "a band twice": (lambda c: c.isel(s2_band=[*range(9), 0]), ["once each"]),
    "nameless bands": (lambda c: c.drop_vars("s2_band"), ["s2_band has no names"]),
    "one band": (lambda c: c.sel(s2_band="B04"), ["s2: the dimension s2_band is gone"]),
    "time": (lambda c: c.isel(s1_time=[1, 0, 2]), ["sort it with cube.sortby('s1_time')"]),
    "time reversed": (lambda c: c.isel(s2_time=[2, 1, 0]), ["sort it with cube.sortby('s2_time')"]),
    "no dates": (lambda c: c.drop_vars("s2_time"), ["s2_time has no datetime64"]),
    "NaT": (lambda c: c.assign_coords(s2_time=[*c.s2_time.values[:2], np.datetime64("NaT")]), ["NaT"]),
    "twice": (lambda c: c.isel(s2_time=[0, 0, 1]), ["same time twice"]),
    "joined with itself": (
        lambda c: xr.concat([c, c], "s2_time", data_vars="minimal"), ["s2_time is not in order", "same time twice"],
    ),
    "joined carelessly": (lambda c: xr.concat([c, c], "run", data_vars="all"), ["run is a dimension too many"]),
    "radar twice": (lambda c: c.isel(s1_time=[0, 0, 1]), ["twice in one orbit"]),
    "no orbit": (lambda c: c.drop_vars("s1_orbit"), ["s1_orbit"]),
    "orbit": (lambda c: c.assign_coords(s1_orbit=("s1_time", ["up"] * 3)), ["['up']"]),
    "orbit in capitals": (lambda c: c.assign_coords(s1_orbit=c.s1_orbit.compute().str.upper()), ["'DESCENDING'"]),
    "one pixel": (lambda c: c.isel(x=0, y=0), ["s2, s2_valid, s1: the dimension y and x is gone; select by a list"]),
    "one row": (lambda c: c.isel(y=0), ["the dimension y is gone"]),
    "upside down": (lambda c: c.sortby("y"), ["y ascends"]),
    "mirrored": (lambda c: c.isel(x=slice(None, None, -1)), ["x descends"]),
    "CRS": (lambda c: c.drop_vars("spatial_ref").assign_coords(x=c.x.values, y=c.y.values), ["no CRS"]),
    "no coordinate": (lambda c: c.drop_vars("x"), ["'x' has no coordinate"]),
    "several": (
        lambda c: c.sortby("y").sortby("s2_band").isel(s2_time=[2, 1, 0]).assign(s1=c.s1 * 1.0).drop_vars("s1_orbit"),
        ["float64", "s2_band", "s2_time", "s1_orbit", "y ascends"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("lazy", [False, True], ids=["eager", "dask"])
@pytest.mark.parametrize("case", CUBE_FAULTS)
def test_checks_of_a_cube(case, lazy, make_s2, make_s1):
    change, expected = CUBE_FAULTS[case]
    cube = as_cube(make_s2(), make_s1())
    check_cube(cube)
    with pytest.raises(CubeError, match=r"^this is not a cube, or no longer one") as caught:
        check_cube(change(cube.chunk() if lazy else cube))
    faults = caught.value.faults
    assert len(faults) == len(expected), faults
    assert [part in fault for part, fault in zip(expected, faults, strict=True)] == [True] * len(faults), faults
    with pytest.raises(CubeError, match="not ndarray"):
        check_cube(cube.s2.values)


def test_the_mending_that_is_advised_mends(make_s2, make_s1):
    cube = as_cube(make_s2(), make_s1())
    broken = cube.sortby("s2_band").isel(s2_time=[2, 1, 0], y=slice(None, None, -1)).transpose("y", ...)
    mended = broken.sel(s2_band=list(S2_BANDS)).sortby("s2_time").isel(y=slice(None, None, -1))
    mended = mended.transpose("s2_time", "s2_band", "s1_time", "s1_band", "y", "x")
    check_cube(mended)
    xr.testing.assert_equal(mended, cube)
    check_cube(cube.isel(x=[0], y=[0]))
    check_cube(xr.concat([cube, cube], "s2_time", data_vars="minimal").sortby("s2_time").drop_duplicates("s2_time"))


def test_checking_computes_no_pixel(make_s2, make_s1):
    def fails(block):
        raise AssertionError("a pixel was computed")

    cube = as_cube(make_s2(), make_s1()).chunk()
    lazy = {n: xr.apply_ufunc(fails, a, dask="parallelized", output_dtypes=[a.dtype]) for n, a in cube.items()}
    check_cube(cube.assign({name: array.assign_attrs(cube[name].attrs) for name, array in lazy.items()}))


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
