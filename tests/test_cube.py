"""`as_cube`: whatever form imagery is in, the cube is the same."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import xarray as xr

from tessera_xr.errors import TesseraWarning
from tessera_xr.grid import geobox_of
from tessera_xr.sentinel import bands
from tessera_xr.sentinel.cube import as_cube, check_cube, is_cube, require_span, select_period
from tessera_xr.sentinel.describe import describe_cube, describe_unknown

COLOURS = {band: names[0] for band, names in bands.S2_ALIASES.items()}
FACTS = ("tessera_xr_kind", "source", "s2_offset", "s2_mask")


def same(left: xr.Dataset, right: xr.Dataset) -> None:
    """Assert that two cubes hold the same data on the same dates, orbits and grid."""
    xr.testing.assert_equal(left, right)
    assert geobox_of(left) == geobox_of(right)


def test_bands_are_found_by_name_and_put_in_order(make_s2, make_s1):
    s2, s1 = make_s2(), make_s1()
    cube = as_cube(s2, s1)
    check_cube(cube)
    assert is_cube(cube)
    assert not is_cube(s2)
    assert cube.s2_band.values.tolist() == ["B04", "B02", "B03", "B08", "B8A", "B05", "B06", "B07", "B11", "B12"]
    for band in bands.S2_BANDS:
        np.testing.assert_array_equal(cube.s2.sel(s2_band=band), s2[band])
    np.testing.assert_array_equal(cube.s2_valid, ~s2.SCL.isin([0, 1, 2, 3, 8, 9]))
    decibel = np.stack([s1.VV, s1.VH], axis=1)
    expected = np.clip((np.nan_to_num(decibel, nan=-50) + 50) * 200, 0, 32767).astype(np.int16)
    np.testing.assert_array_equal(cube.s1, expected)
    assert cube.s1_orbit.values.tolist() == ["descending", "ascending", "ascending"]
    assert (cube.s1[:, :, 1, 1] == 0).all()


FORMS = {
    "colour names": lambda ds: ds.rename(COLOURS),
    "lower case": lambda ds: ds.rename({name: str(name).lower() for name in ds.data_vars}),
    "no leading zero": lambda ds: ds.rename({b: b.replace("B0", "B") for b in bands.S2_BANDS if b.startswith("B0")}),
    "with resolution": lambda ds: ds.rename({b: f"{b}_20m" for b in ("B05", "B11", "SCL")}),
    "t": lambda ds: ds.rename(time="t"),
    "own name of time": lambda ds: ds.rename(time="acquired"),
    "other order": lambda ds: ds.transpose("x", "time", "y"),
    "y ascending": lambda ds: ds.sortby("y"),
    "x descending": lambda ds: ds.isel(x=slice(None, None, -1)),
    "other variables": lambda ds: ds.assign(slope=ds.B02 * 0, B01=ds.B02, B09=ds.B02),
    "band dimension": lambda ds: (
        ds[list(bands.S2_BANDS)].to_dataarray("band").to_dataset(name="refl").assign(SCL=ds.SCL)
    ),
    "stackstac": lambda ds: ds.to_dataarray("band").transpose("time", "band", "y", "x").rename("stackstac-1"),
    "openEO": lambda ds: ds.rename(time="t").to_dataarray("bands").rename(None),
    "boolean mask": lambda ds: ds.drop_vars("SCL").assign(clear=~ds.SCL.isin([0, 1, 2, 3, 8, 9])),
    "0/1 mask": lambda ds: ds.drop_vars("SCL").assign(valid=(~ds.SCL.isin([0, 1, 2, 3, 8, 9])).astype(np.uint8)),
    "reflectance": lambda ds: (ds.drop_vars("SCL") / 10_000).assign(SCL=ds.SCL),
    "float reflectance, float SCL": lambda ds: (ds / 10_000).astype(np.float32).assign(SCL=ds.SCL.astype(float)),
    "float numbers": lambda ds: ds.astype(np.float32),
    "signed integers": lambda ds: ds.astype(np.int32),
    "epsg attribute": lambda ds: ds.drop_vars("spatial_ref").assign_attrs(epsg=32631),
    "squeezed dimension": lambda ds: ds.expand_dims("z"),
    "two grids": lambda ds: [ds[["B02", "B03", "B04", "B08"]], ds.drop_vars(["B02", "B03", "B04", "B08"])],
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("lazy", [False, True], ids=["eager", "dask"])
def test_every_form_gives_the_same_cube(form, lazy, make_s2, make_s1):
    s2, s1 = make_s2(), make_s1()
    expected = as_cube(s2, s1)
    given = FORMS[form](s2)
    if lazy:
        parts = given if isinstance(given, list) else [given]
        given = [part.chunk({d: 3 for d in part.dims if d in ("y", "x")}) for part in parts]
    cube = as_cube(given, s1)
    assert (cube.s2.chunks is not None) == lazy
    same(cube, expected)
    assert {k: cube.attrs[k] for k in FACTS[:3]} == {k: expected.attrs[k] for k in FACTS[:3]}


def test_geographic_grids_are_read(make_s2):
    s2 = make_s2().drop_vars("spatial_ref")
    degrees = s2.assign_coords(y=50 - 1e-4 * np.arange(6), x=3 + 1e-4 * np.arange(6)).rename(y="lat", x="lon")
    cube = as_cube(degrees)
    assert geobox_of(cube).crs.epsg == 4326
    np.testing.assert_array_equal(cube.s2, as_cube(make_s2()).s2)


def test_the_input_is_left_as_it_was(make_s2, make_s1):
    s2, s1 = make_s2(), make_s1()
    s2.B02.attrs["units"] = "1e-4 reflectance"
    before = s2.copy(deep=True), s1.copy(deep=True)
    as_cube(s2, s1)
    xr.testing.assert_identical(s2, before[0])
    xr.testing.assert_identical(s1, before[1])
    assert all(
        v.encoding == w.encoding for v, w in zip(s2.data_vars.values(), before[0].data_vars.values(), strict=True)
    )


def test_coarser_grids_that_nest_are_repeated(make_s2, make_s1):
    fine, coarse = make_s2(size=6), make_s2(size=3, res=20)
    cube = as_cube(
        [fine[["B02", "B03", "B04", "B08"]], coarse[["B05", "B06", "B07", "B8A", "B11", "B12", "SCL"]]],
        make_s1(size=3, res=20),
    )
    assert cube.s2.shape == (3, 10, 6, 6)
    twice = np.repeat(np.repeat(coarse.B11.values, 2, axis=1), 2, axis=2)
    np.testing.assert_array_equal(cube.s2.sel(s2_band="B11"), twice)
    np.testing.assert_array_equal(cube.s1[..., ::2, ::2], cube.s1[..., 1::2, 1::2])
    assert "s1 (3 x 3 px of 20) was cropped or repeated" in cube.attrs["assumptions"]


def test_extents_that_differ_are_cut_to_the_common_part(make_s2, make_s1):
    whole = as_cube(make_s2(), make_s1())
    cut = as_cube(make_s2().isel(y=slice(0, 4)), make_s1().isel(y=slice(1, 6), x=slice(2, 6)))
    same(cut, whole.isel(y=slice(1, 4), x=slice(2, 6)))


def test_scenes_of_one_day_are_joined_first_valid(make_s2):
    s2 = make_s2(("2020-03-01T10:00", "2020-03-01T10:00", "2020-03-01T10:05", "2020-05-01"))
    s2["SCL"][:] = 4
    s2["SCL"][0, :, 1:] = 9  # cloud
    s2["SCL"][1, :, 2:] = 9
    s2["SCL"][:3, :, 3:] = 9  # nobody sees these
    for band in bands.S2_BANDS:
        s2[band][0, :, 4:] = 0  # outside the first scene
    for data in (s2, s2.chunk(time=1, y=3)):
        cube = as_cube(data)
        assert cube.sizes["s2_time"] == 2
        assert cube.s2_time.values[0] == np.datetime64("2020-03-01T10:00")
        scene = [0, 1, 2, 0, 1, 1]
        for x, i in enumerate(scene):
            np.testing.assert_array_equal(cube.s2[0, :, :, x], np.stack([s2[b][i, :, x] for b in bands.S2_BANDS]))
        assert cube.s2_valid[0].values.all(axis=0).tolist() == [True] * 3 + [False] * 3
        np.testing.assert_array_equal(cube.s2[1], np.stack([s2[b][3] for b in bands.S2_BANDS]))


def test_radar_scenes_are_joined_within_day_and_orbit(make_s1):
    dates = ("2020-03-02T05:00", "2020-03-02T17:00:00", "2020-03-02T17:00:25", "2020-03-03T05")
    s1 = make_s1(dates, ("descending", "ascending", "ascending", "descending"))
    s1.VV[1, :, 3:] = s1.VH[1, :, 3:] = np.nan
    s1.VH[1, :, 2] = np.nan  # one band is enough to count
    raw = (np.nan_to_num(np.stack([s1.VV, s1.VH], axis=1), nan=-50) + 50) * 200
    for data in (s1, s1.chunk(time=2)):
        cube = as_cube(s1=data)
        assert cube.s1_orbit.values.tolist() == ["descending", "ascending", "descending"]
        expected = np.concatenate([raw[1, ..., :3], raw[2, ..., 3:]], axis=-1)
        expected[:, 1, 1] = 0
        np.testing.assert_array_equal(cube.s1[1], expected.astype(np.int16))
        np.testing.assert_array_equal(cube.s1[0], raw[0].astype(np.int16))


def test_dask_stays_lazy_and_keeps_its_chunks(make_s2, make_s1, monkeypatch):
    s2, s1 = make_s2(size=64), make_s1(size=64)
    computed = []

    def watched(block):
        computed.append(block.shape)
        return block

    lazy = s2.chunk(time=1, y=32, x=32)
    watch = {
        b: xr.apply_ufunc(watched, lazy[b], dask="parallelized", output_dtypes=[lazy[b].dtype]) for b in lazy.data_vars
    }
    cube = as_cube(lazy.assign(watch), s1.chunk(time=1, y=32, x=32))
    # dask tries the function on blocks of size 0 or 1 to learn its dtype
    assert not [shape for shape in computed if np.prod(shape) > 1]
    assert cube.s2.chunks == ((1, 1, 1), (10,), (32, 32), (32, 32))
    assert cube.s1.chunks[2:] == ((32, 32), (32, 32))
    same(cube.compute(), as_cube(s2, s1))


def test_lazy_floats_are_sampled_not_computed(make_s2):
    s2 = make_s2(size=64)
    read = []

    def watched(block):
        read.append(block.size)
        return block / 10_000

    lazy = s2[list(bands.S2_BANDS)].chunk(time=1, y=16, x=16)
    lazy = xr.Dataset(
        {b: xr.apply_ufunc(watched, lazy[b], dask="parallelized", output_dtypes=[float]) for b in lazy.data_vars},
        attrs=lazy.attrs,
    )
    cube = as_cube(lazy, mask=s2.SCL)
    assert cube.attrs["s2_units"] == "reflectance, inferred from values"
    assert 0 < sum(read) < 0.05 * lazy.B02.size * 10
    same(cube.compute(), as_cube(s2))


def test_both_sensors_on_one_axis_of_time(make_s2, make_s1):
    s2, s1 = make_s2(), make_s1()
    both = xr.merge(
        [s2, s1.drop_vars("orbit_state")],
        compat="no_conflicts",
        join="outer",
        fill_value=dict.fromkeys(s2.data_vars, 0),
    )
    same(as_cube(both, orbit="ascending"), as_cube(s2, s1.drop_vars("orbit_state"), orbit="ascending"))
    labels = s1.orbit_state.reindex(time=both.time, fill_value="")
    same(as_cube(both.assign_coords(orbit_state=labels)), as_cube(s2, s1))
    lazy = as_cube(both.assign_coords(orbit_state=labels).chunk())
    assert lazy.s2.chunks is not None
    np.testing.assert_array_equal(lazy.s1, as_cube(s2, s1).s1)
    seen = lazy.s2_valid.any(("y", "x")).values
    np.testing.assert_array_equal(lazy.s2[seen], as_cube(s2).s2)


def test_both_sensors_with_an_axis_each(make_s2, make_s1):
    s2, s1 = make_s2(), make_s1()
    both = xr.merge([s2.rename(time="s2_time"), s1.rename(time="s1_time")], compat="no_conflicts")
    same(as_cube(both), as_cube(s2, s1))


def test_one_sensor_is_enough(make_s2, make_s1):
    both = as_cube(make_s2(), make_s1())
    optical, radar = as_cube(make_s2()), as_cube(s1=make_s1())
    for cube in (optical, radar):
        check_cube(cube)
    assert (optical.sizes["s1_time"], radar.sizes["s2_time"]) == (0, 0)
    xr.testing.assert_equal(optical.s2, both.s2)
    xr.testing.assert_equal(radar.s1, both.s1)
    with pytest.warns(TesseraWarning, match="no Sentinel-2 band in s2; this makes a Sentinel-1-only cube"):
        same(as_cube(make_s1()), radar)


def test_no_data_is_never_valid(make_s2):
    s2 = make_s2()
    s2["SCL"][:] = 4
    for i, band in enumerate(bands.S2_BANDS):
        s2[band][0, 0, 0] = 0
        s2[band][0, 0, 1] = 65535
        s2[band][0, 0, 2] = 0 if i else 7
    assert as_cube(s2).s2_valid[0, 0, :4].values.tolist() == [False, False, True, True]
    floats = (s2[list(bands.S2_BANDS)] / 10_000).where(s2.B02 > 0).assign(SCL=s2.SCL)
    assert as_cube(floats).s2_valid[0, 0, :1].values.tolist() == [False]
    filled = s2.copy()
    for band in bands.S2_BANDS:
        filled[band] = filled[band].astype(np.int32).where(filled[band] > 0, -9999).assign_attrs(nodata=-9999)
    assert as_cube(filled).s2_valid[0, 0, 0].values.tolist() is False


def test_masks_as_arguments(make_s2):
    s2 = make_s2()
    bare, expected = s2.drop_vars("SCL"), as_cube(s2)
    for mask in (
        s2.SCL,
        ~s2.SCL.isin(bands.SCL_INVALID),
        s2.SCL.drop_vars("spatial_ref"),
        s2.SCL.astype(float).rename("x"),
    ):
        same(as_cube(bare, mask=mask), expected)
    with pytest.warns(TesseraWarning, match="clouds too"):
        assert as_cube(s2, mask=None).s2_valid.all()
    with pytest.warns(TesseraWarning, match="cloud_mask was not used"):
        cube = as_cube(bare.assign(cloud_mask=s2.SCL == 9))
    assert "is clear" in cube.attrs["assumptions"]


def test_periods_are_cut_out(make_s2, make_s1):
    s2, s1 = make_s2(("2019-12-31", "2020-01-01", "2020-12-31", "2021-01-01")), make_s1()
    cube = as_cube(s2, s1)
    year = as_cube(s2, s1, period=2020)
    assert year.s2_time.dt.year.values.tolist() == [2020, 2020]
    same(year, select_period(cube, 2020))
    same(year, as_cube(cube, period="2020"))
    assert as_cube(cube) is cube
    for cut in (lambda: as_cube(s2, s1, period=2021), lambda: select_period(cube, 2021)):
        with pytest.warns(TesseraWarning, match=r"no Sentinel-1 date .* don't compare them") as caught:
            assert cut().sizes["s1_time"] == 0
        assert [w.filename for w in caught if w.category is TesseraWarning] == [__file__]
    with pytest.warns(TesseraWarning, match="no Sentinel-2 date"):
        select_period(as_cube(s2.isel(time=[0, 3]), s1), 2020)
    assert select_period(as_cube(s2), 2021).sizes["s1_time"] == 0  # there never was any: nothing to compare
    require_span(year, None)
    require_span(cube, 2020)


@pytest.mark.parametrize("sensors", ["both", "s2", "s1"])
@pytest.mark.parametrize("lazy", [False, True])
def test_cubes_survive_files(tmp_path, make_s2, make_s1, sensors, lazy):
    cube = as_cube(make_s2() if sensors != "s1" else None, make_s1() if sensors != "s2" else None)
    written = cube.chunk(y=3) if lazy else cube
    written.to_netcdf(tmp_path / "cube.nc", engine="h5netcdf")
    stored = [xr.open_dataset(tmp_path / "cube.nc", engine="h5netcdf")]
    if pytest.importorskip("zarr"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # zarr: strings of fixed length are not in its specification yet
            written.to_zarr(tmp_path / "cube.zarr")
            stored.append(xr.open_zarr(tmp_path / "cube.zarr"))
    for ds in stored:
        check_cube(ds)
        same(as_cube(ds).compute(), cube)
        assert ds.attrs == cube.attrs


def test_descriptions_tell_what_is_there(make_s2, make_s1):
    cube = as_cube(make_s2(), make_s1())
    text = describe_cube(cube)
    for part in (
        "EPSG:32631",
        "3 dates, 2020-03-01 to 2020-07-01",
        "median 3, min 0",
        "2 ascending, 1 descending",
        "3.0",
    ):
        assert part in text
    assert text.splitlines()[-1] == 'Next: .tessera.embed("mini", period=2020)'
    assert "lazy, not counted" in describe_cube(cube.chunk())
    assert "none" in describe_cube(as_cube(s1=make_s1()))
    readable = describe_unknown(make_s2())
    assert "readable as  a cube of Sentinel-2" in readable
    missing = describe_unknown(make_s2().drop_vars("B8A"))
    assert "B8A" in missing.split("missing")[1]
    assert "as_cube" in missing.splitlines()[-1]
    assert "no Sentinel band" in describe_unknown(xr.Dataset())


@pytest.mark.parametrize("year", [2018, 2019])
def test_real_imagery_as_it_is(flanders, year):
    s2, s1 = flanders(year)
    cube = as_cube(s2, s1)
    check_cube(cube)
    assert (cube.sizes["s2_time"], cube.sizes["s1_time"]) == (s2.sizes["time"], s1.sizes["time"])
    np.testing.assert_array_equal(cube.s2.sel(s2_band="B08"), s2.B08)
    np.testing.assert_array_equal(cube.s1[:, 0] == 0, s1.VV.isnull())
    assert set(cube.s1_orbit.values) == {"ascending"}
    assert cube.attrs["s1_units"] == "db, from attributes"
    bare = s1.assign({name: band.drop_attrs() for name, band in s1.data_vars.items()})
    assert as_cube(s1=bare).attrs["s1_units"] == "db, inferred from values"
    same(as_cube(s2.chunk(time=20), s1.chunk(time=20)).compute(), cube)
