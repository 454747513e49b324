"""A cube to embeddings, eagerly: real imagery, periods, attributes, files."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

import tessera_xr as txr
from tessera_xr.embedding.engine import encode
from tessera_xr.embedding.schema import check_embeddings
from tessera_xr.errors import (
    CheckpointError,
    CubeError,
    DeviceError,
    ModelUnavailableError,
    SchemaError,
    VersionMismatchError,
)
from tessera_xr.grid import geobox_of
from tessera_xr.sentinel.bands import day_of_year
from tessera_xr.sentinel.cube import as_cube, select_period

COUNTS = ["s2_obs_count", "s1_asc_obs_count", "s1_desc_obs_count"]
TOLERANCE = 2e-5


@pytest.fixture
def cube(make_cube) -> xr.Dataset:
    return make_cube()


@pytest.fixture
def embed(weights):
    """Embed with a tiny model."""

    def called(ds: xr.Dataset, **options: Any) -> xr.Dataset:
        return txr.embed(ds, weights, **({"device": "cpu", "progress": False} | options))

    return called


def same(left: xr.Dataset, right: xr.Dataset) -> None:
    """Assert that two embeddings are the same but for rounding; xarray's own check overlooks attributes and dtypes."""
    xr.testing.assert_allclose(left, right, rtol=TOLERANCE, atol=TOLERANCE)
    assert left.attrs == right.attrs
    for name in left.variables:
        assert (left[name].dtype, left[name].dims) == (right[name].dtype, right[name].dims)
        assert left[name].attrs == right[name].attrs


# Real imagery ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("year", [2018, 2019])
def test_flanders(year, flanders, embed):
    s2, s1 = flanders(year)
    emb = embed(as_cube(s2, s1), period=year)
    check_embeddings(emb)
    assert emb.embeddings.sizes == {"band": 128, "y": 64, "x": 64}
    assert emb.embeddings.notnull().all()
    assert (emb.embeddings.std(["y", "x"]) > 0).all()
    assert geobox_of(emb) == geobox_of(as_cube(s2, s1))
    optical, radar = s2.sel(time=str(year)), s1.sel(time=str(year))
    clear = ~np.isin(optical.SCL, [0, 1, 2, 3, 8, 9])
    np.testing.assert_array_equal(emb.s2_obs_count, clear.sum(axis=0))
    np.testing.assert_array_equal(emb.s1_asc_obs_count, (radar.VV.notnull() | radar.VH.notnull()).sum("time"))
    assert (emb.s1_desc_obs_count == 0).all()


def test_treesat_in_linear_power_of_both_orbits(treesat, embed):
    cube = as_cube(**treesat)
    emb = embed(cube, period=2020)
    assert emb.embeddings.sizes == {"band": 128, "y": 6, "x": 6}
    assert emb.embeddings.notnull().all()
    np.testing.assert_array_equal(emb.s2_obs_count, cube.s2_valid.sum("s2_time"))
    for orbit, count in (("ascending", emb.s1_asc_obs_count), ("descending", emb.s1_desc_obs_count)):
        days = np.unique(treesat[f"s1_{orbit}"].time.dt.dayofyear)
        assert (count == len(days)).all()


def test_imagery_need_not_be_a_cube_first(make_s2, embed, weights):
    s2 = make_s2()
    same(embed(s2), embed(as_cube(s2)))
    same(s2.tessera.embed(weights, device="cpu"), embed(s2))


# What an embedding is ----------------------------------------------------------------------------------------------


def test_every_pixel_is_what_the_engine_makes_of_it(cube, embed, make_encoder):
    emb = embed(cube, period=2020)
    year = select_period(cube, 2020)
    days = [day_of_year(year[f"{sensor}_time"].values) for sensor in ("s2", "s1")]
    descending = year.s1_orbit.values == "descending"
    for y, x in ((0, 0), (0, 4), (1, 1), (3, 5), (5, 2)):
        pixel = year.isel(y=[y], x=[x])
        s2, valid, s1 = (pixel[name].values[..., 0, 0][None] for name in ("s2", "s2_valid", "s1"))
        expected = encode(make_encoder(), s2, days[0], valid, s1, days[1], descending, dims=128).values[0]
        np.testing.assert_allclose(emb.embeddings[:, y, x], expected, rtol=TOLERANCE, atol=TOLERANCE)
    assert np.isnan(emb.embeddings[:, 0, 0]).all()
    assert [int(emb[name][0, 0]) for name in COUNTS] == [0, 0, 0]


def test_counts_are_plain_counts(cube, embed):
    emb, year = embed(cube, period=2019), cube.s1_time.dt.year == 2019
    np.testing.assert_array_equal(emb.s2_obs_count, cube.s2_valid.sel(s2_time="2019").sum("s2_time"))
    for orbit, name in (("ascending", "s1_asc_obs_count"), ("descending", "s1_desc_obs_count")):
        radar = cube.s1.values[year.values & (cube.s1_orbit.values == orbit)]
        np.testing.assert_array_equal(emb[name], (radar != 0).any(axis=1).sum(axis=0))
        assert emb[name].dtype == np.uint16


def test_accessor_is_the_function(cube, embed, weights):
    options = {
        "period": 2020,
        "dims": 32,
        "dtype": "int8",
        "device": "cpu",
        "precision": "bfloat16",
        "token_budget": 99,
        "seed": 3,
        "check_imagery": False,
        "progress": False,
    }
    same(cube.tessera.embed(weights, **options), txr.embed(cube, weights, **options))


def test_int8(cube, embed):
    codes, values = embed(cube, period=2020, dtype="int8"), embed(cube, period=2020)
    assert codes.embeddings.dtype == np.int8
    assert codes.scales.dims == ("y", "x")
    assert (codes.embeddings[:, 0, 0] == 0).all()
    assert np.isnan(codes.scales[0, 0])
    quantized = values.tessera.quantize()
    np.testing.assert_allclose(codes.scales, quantized.scales, rtol=TOLERANCE)
    assert np.abs(codes.embeddings.astype(int) - quantized.embeddings).max() <= 1
    assert codes.drop_vars(["embeddings", "scales"]).identical(values.drop_vars("embeddings"))


def test_band_is_last_in_memory(cube, embed):
    for emb in (embed(cube, period=2020), embed(cube, period=[2019, 2020], dtype="int8")):
        assert emb.embeddings.dims[-3:] == ("band", "y", "x")
        assert emb.embeddings.transpose(..., "y", "x", "band").values.flags.c_contiguous


def test_one_sensor_alone(make_s2, make_s1, embed):
    optical, radar = embed(as_cube(make_s2())), embed(as_cube(s1=make_s1()))
    assert (optical.s1_asc_obs_count == 0).all()
    assert (radar.s2_obs_count == 0).all()
    for emb in (optical, radar):
        seen = sum(emb[name] for name in COUNTS) > 0
        xr.testing.assert_equal(emb.embeddings.notnull().all("band"), seen)
        assert seen.any()
        assert not seen.all()


# Periods -----------------------------------------------------------------------------------------------------------


def test_a_list_of_years_is_the_single_years(cube, embed):
    both = embed(cube, period=[2020, 2019])
    assert both.embeddings.dims == ("time", "band", "y", "x")
    assert both.s2_obs_count.dims == ("time", "y", "x")
    assert both.time.dtype == np.int64
    assert both.time.values.tolist() == [2020, 2019]
    assert "period" not in both.attrs  # it would be wrong once a year is chosen
    for year in (2019, 2020):
        single = embed(cube, period=year)
        assert "time" not in single.coords
        chosen = both.sel(time=year, drop=True)
        same(chosen.assign_attrs(period=single.attrs["period"]), single)
    assert np.abs(both.embeddings[0] - both.embeddings[1]).max() > 1e-3


def test_ranges_of_dates(cube, embed):
    season = ("2019-07-01", "2020-06-30")
    emb = embed(cube, period=season)
    assert emb.attrs["period"] == "2019-07-01/2020-06-30"
    np.testing.assert_array_equal(emb.s2_obs_count, cube.s2_valid.sel(s2_time=slice(*season)).sum("s2_time"))
    several = embed(cube, period=[season, 2020])
    assert several.time.values.astype("datetime64[D]").astype(str).tolist() == ["2019-07-01", "2020-01-01"]
    assert several.time_end.values.astype("datetime64[D]").astype(str).tolist() == ["2020-06-30", "2020-12-31"]
    np.testing.assert_allclose(several.embeddings[0], emb.embeddings, rtol=TOLERANCE, atol=TOLERANCE)
    np.testing.assert_allclose(several.embeddings[1], embed(cube, period=2020).embeddings, rtol=1e-5, atol=TOLERANCE)
    assert embed(cube, period=[2020]).sizes["time"] == 1


def test_no_period_is_needed_for_a_year(cube, embed):
    emb = embed(select_period(cube, 2020))
    assert emb.attrs["period"] == "2020-02-10/2020-10-20"
    np.testing.assert_allclose(emb.embeddings, embed(cube, period=2020).embeddings, rtol=1e-5, atol=TOLERANCE)
    with pytest.raises(CubeError, match="pass period="):
        embed(cube)


# Attributes and files ----------------------------------------------------------------------------------------------


def test_attributes_tell_where_it_is_from(cube, embed, weights):
    cube.attrs["source"] = "planetary-computer"
    emb = embed(cube, period=2020)
    expected = {
        "tessera_xr_kind": "embeddings",
        "model": "v2-custom",
        "model_family": "v2",
        "weights_licence": "CC0-1.0",
        "period": "2020-01-01/2020-12-31",
        "source": "planetary-computer",
        "tessera_xr_version": txr.__version__,
    }
    assert emb.attrs.items() >= expected.items()
    assert len(emb.attrs["weights_sha256"]) == 64
    assert geobox_of(emb) == geobox_of(cube)
    assert emb.spatial_ref.attrs["crs_wkt"]
    assert {array.attrs["grid_mapping"] for array in emb.data_vars.values()} == {"spatial_ref"}
    assert emb.band.values.tolist() == list(range(128))
    assert repr(emb.tessera).startswith("TESSERA embeddings, 128 dimensions, float32")


@pytest.mark.parametrize("period", [2020, [2019, 2020], [("2019-03-01", "2020-02-28")]], ids=["year", "years", "dates"])
@pytest.mark.parametrize("dtype", ["float32", "int8"])
@pytest.mark.parametrize("kind", ["netcdf", "zarr"])
@pytest.mark.filterwarnings("ignore::zarr.errors.ZarrUserWarning", "ignore:Consolidated metadata")
def test_files_hold_it_all(kind, dtype, period, cube, embed, tmp_path):
    emb = embed(cube, period=period, dtype=dtype)
    path = tmp_path / f"emb.{kind}"
    if kind == "zarr":
        emb.to_zarr(path)
        back = xr.open_zarr(path).load()
    else:
        emb.to_netcdf(path, engine="h5netcdf")
        with xr.open_dataset(path, engine="h5netcdf", decode_coords="all") as opened:
            back = opened.load()
    check_embeddings(back)
    assert geobox_of(back) == geobox_of(emb)
    xr.testing.assert_equal(back, emb)
    assert back.attrs == emb.attrs
    assert {n: back[n].dtype for n in emb.data_vars} == {n: emb[n].dtype for n in emb.data_vars}


# Faults ------------------------------------------------------------------------------------------------------------


FAULTS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "period without a date": ({"period": 2011}, CubeError, "no date .*2011.*covers 2019-02-10/2020-10-20"),
    "period": ({"period": "summer"}, SchemaError, "can't be read as a period"),
    "dims": ({"period": 2020, "dims": 100}, SchemaError, r"its lengths are \(16, 32, 64, 128\)"),
    "dtype": ({"period": 2020, "dtype": "int16"}, SchemaError, "choose 'float32' or 'int8'"),
    "budget": ({"period": 2020, "token_budget": -1}, SchemaError, "at least 1"),
    "device": ({"period": 2020, "device": "tpu"}, DeviceError, "choose 'auto' or one of"),
    "precision": ({"period": 2020, "precision": "half"}, DeviceError, "choose 'auto', 'float32' or 'bfloat16'"),
    "weights": ({"period": 2020, "weights": "lost.pt"}, CheckpointError, "weights= goes with the name of the model"),
}


@pytest.mark.parametrize("lazy", [False, True], ids=["eager", "dask"])
@pytest.mark.parametrize("case", FAULTS)
def test_faults(case, lazy, cube, embed):
    options, error, message = FAULTS[case]
    with pytest.raises(error, match=message):
        embed(cube.chunk(y=3) if lazy else cube, **options)


def test_a_file_that_is_not_there(cube, tmp_path):
    with pytest.raises(ModelUnavailableError, match="there is no file"):
        txr.embed(cube, tmp_path / "lost.pt", period=2020)


def test_v1_1_is_not_cut_and_wants_its_own_imagery(cube, make_encoder, tmp_path):
    path = tmp_path / "tessera_v1_1_mpc_encoder.pt"
    torch.save({"model_state": make_encoder("v1.1").network.state_dict(), "config": {}}, path)
    with pytest.raises(SchemaError, match="not a Matryoshka model and must not be cut"):
        txr.embed(cube, path, period=2020, dims=64)
    emb = txr.embed(cube, path, period=2020, device="cpu")
    assert (emb.attrs["model"], emb.sizes["band"]) == ("v1.1-mpc-custom", 128)
    cube.attrs["source"] = "earth-search"
    with pytest.raises(VersionMismatchError, match=r"this cube is from 'earth-search'.*pass check_imagery=False"):
        txr.embed(cube, path, period=2020, device="cpu")
    forced = txr.embed(cube, path, period=2020, device="cpu", check_imagery=False)
    np.testing.assert_allclose(forced.embeddings, emb.embeddings, rtol=TOLERANCE, atol=TOLERANCE)


def test_the_cube_is_left_as_it_was(cube, embed):
    before = cube.copy(deep=True)
    embed(cube, period=2020)
    xr.testing.assert_identical(cube, before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.sortby("s2_band"), "reorder with cube.sel"),
        (lambda c: c.isel(s1_band=[1, 0]), "reorder with cube.sel"),
        (lambda c: c.assign(s2=c.s2 / 10_000), "s2 has dtype float"),
        (lambda c: c.isel(x=0, y=0), "dimension"),
        (lambda c: c.isel(s2_time=slice(None, None, -1)), "s2_time"),
        (lambda c: c.where(c.s2_valid.any("s2_time")), "dtype"),
    ],
)
def test_a_cube_that_was_changed_is_looked_at_again(change, message, cube, embed):
    with pytest.raises(CubeError, match=message):
        embed(change(cube), period=2020)


def test_of_raw_imagery_only_the_periods_asked_for_are_read(make_s2, embed):
    imagery = make_s2(["2021-07-01", "2021-09-01", "2022-03-01", "2022-05-01"])
    with pytest.raises(CubeError, match="offset"):
        embed(imagery)
    cropped = embed(imagery, period=2021)
    np.testing.assert_array_equal(cropped.embeddings, embed(imagery.sel(time="2021")).embeddings)
