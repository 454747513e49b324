"""The Embeddings dataset: checks, int8 and back, points, and not mixing models."""

from __future__ import annotations

import geopandas as gpd
import numpy as np
import pytest
import xarray as xr
from shapely.geometry import Point

import tessera_xr as txr
from tessera_xr import tutorial
from tessera_xr.embedding.schema import (
    COUNTS,
    build_embeddings,
    check_embeddings,
    check_same_model,
    describe_embeddings,
    has_data,
    identity,
    is_embeddings,
    provenance,
)
from tessera_xr.errors import GridError, SchemaError, VersionMismatchError
from tessera_xr.grid import geobox_of

X0, Y0 = 501_000, 5_630_000


@pytest.fixture
def make_emb(make_cube):
    """Make random embeddings, 7 rows and 5 columns, of which pixel (0, 0) has no data."""

    def made(time: bool = False, seed: int = 0, lazy: bool = False, **attrs: str) -> xr.Dataset:
        rng = np.random.default_rng(seed)
        shape, dims = ((2, 7, 5), ("time", "y", "x")) if time else ((7, 5), ("y", "x"))
        values = rng.normal(0, rng.uniform(0.1, 5, (*shape, 1)), (*shape, 128)).astype(np.float32)
        values[..., 0, 0, :] = np.nan
        variables = {"embeddings": xr.DataArray(values, dims=(*dims, "band"))}
        variables |= {name: xr.DataArray(np.full(shape, i, np.uint16), dims=dims) for i, name in enumerate(COUNTS)}
        if time:
            variables = {name: array.assign_coords(time=[2019, 2020]) for name, array in variables.items()}
        emb = build_embeddings(variables, make_cube(7).isel(x=slice(5)), {"model": "m", "weights_sha256": "a"} | attrs)
        return emb.chunk(y=3) if lazy else emb

    return made


@pytest.mark.parametrize("lazy", [False, True], ids=["eager", "dask"])
@pytest.mark.parametrize("time", [False, True], ids=["single", "years"])
def test_quantised_codes_are_within_half_a_step(time, lazy, make_emb):
    emb = make_emb(time, lazy=lazy)
    codes = emb.tessera.quantize()
    assert (codes.embeddings.chunks is not None) == lazy
    assert codes.embeddings.dims == emb.embeddings.dims
    assert (codes.embeddings.dtype, codes.scales.dtype) == (np.int8, np.float32)
    assert codes.scales.dims == emb.s2_obs_count.dims
    values, loaded = emb.embeddings.transpose(..., "band").values, codes.compute()
    found, scales = loaded.embeddings.transpose(..., "band").values, loaded.scales.values
    np.testing.assert_allclose(scales, np.abs(values).max(axis=-1) / 127, rtol=1e-6)
    assert np.isnan(scales[..., 0, 0]).all()
    assert (found[..., 0, 0, :] == 0).all()
    seen = np.isfinite(scales)
    assert (np.abs(found[seen]).max(axis=-1) == 127).all()
    error = np.abs(found[seen] * scales[seen][:, None] - values[seen])
    assert (error <= scales[seen][:, None] * 0.5001).all()
    back = codes.tessera.dequantize()
    assert back.embeddings.dtype == np.float32
    assert "scales" not in back
    np.testing.assert_allclose(back.embeddings.transpose(..., "band"), found * scales[..., None], rtol=1e-6)
    assert np.isnan(back.embeddings[..., 0, 0]).all()
    unchanged = back.drop_vars("embeddings"), emb.drop_vars("embeddings")
    xr.testing.assert_identical(*unchanged)
    assert back.embeddings.attrs == emb.embeddings.attrs == codes.embeddings.attrs
    assert geobox_of(codes) == geobox_of(emb)
    assert codes.scales.attrs["grid_mapping"] == "spatial_ref"


def test_the_round_trip_keeps_the_direction(make_emb):
    emb = make_emb()
    back = emb.tessera.quantize().tessera.dequantize()
    norm = (emb.embeddings**2).sum("band") ** 0.5 * (back.embeddings**2).sum("band") ** 0.5
    cosine = (emb.embeddings * back.embeddings).sum("band") / norm
    assert cosine.min() > 0.9999
    xr.testing.assert_equal(back.tessera.quantize().embeddings, emb.tessera.quantize().embeddings)


def test_what_is_there_already_comes_back_as_it_is(make_emb):
    emb = make_emb()
    assert txr.dequantize(emb) is emb
    codes = txr.quantize(emb)
    assert txr.quantize(codes) is codes


def test_a_vector_of_zeros_is_data(make_emb):
    emb = make_emb()
    emb["embeddings"][:, 3, 3] = 0
    codes = txr.quantize(emb)
    assert (codes.embeddings[:, 3, 3] == 0).all()
    assert (txr.dequantize(codes).embeddings[:, 3, 3] == 0).all()


def test_published_scales_tell_what_has_no_data(make_emb):
    codes = txr.quantize(make_emb())
    codes["scales"][1, 1], codes["scales"][1, 2] = np.nan, np.inf  # water; land that was not computed
    expected = np.ones((7, 5), dtype=bool)
    expected[0, 0] = expected[1, 1] = expected[1, 2] = False
    np.testing.assert_array_equal(has_data(codes), expected)
    np.testing.assert_array_equal(has_data(txr.dequantize(codes)), expected)
    assert np.isnan(txr.dequantize(codes).embeddings[:, 1, 1:3]).all()


def test_checks(make_emb, make_cube):
    emb = make_emb()
    check_embeddings(emb)
    assert is_embeddings(emb)
    assert not is_embeddings(make_cube())
    for wrong in (make_cube(), emb.embeddings, None, emb.drop_vars("embeddings")):
        with pytest.raises(SchemaError, match=r"needs embeddings: .* found .* Make them with cube\.tessera\.embed\(\)"):
            check_embeddings(wrong)
    with pytest.raises(SchemaError, match="must be float32 or int8, not int16"):
        check_embeddings(emb.assign(embeddings=emb.embeddings.fillna(0).astype(np.int16)))
    with pytest.raises(SchemaError, match="int8 `embeddings` need `scales`"):
        check_embeddings(txr.quantize(emb).drop_vars("scales"))


def test_models_are_not_mixed(make_emb):
    emb = make_emb()
    check_same_model(emb, make_emb(seed=1), txr.quantize(emb))
    check_same_model(emb, emb.drop_attrs(deep=False))
    for key in ("model", "model_family", "weights_sha256"):
        one, other = make_emb(**{key: "one"}), make_emb(**{key: "two"})
        with pytest.raises(VersionMismatchError, match=rf"differ in {key} \(one, two\); .* with the same model"):
            check_same_model(one, other)
        assert identity(one)[key] == provenance(one)[key] == "one"
    with pytest.raises(VersionMismatchError, match=r"different lengths \(\[64, 128\]\)"):
        check_same_model(emb, emb.isel(band=slice(64)))


def test_variants_of_one_generation_are_not_mixed():
    """The same place and year as Cambridge and as dClimate computed it, both with a v1.1 of their own."""
    dclimate = tutorial.embeddings()
    cambridge = dclimate.assign_attrs(model="v1.1-cambridge")
    assert cambridge.model_family == dclimate.model_family == "v1.1"
    with pytest.raises(VersionMismatchError, match=r"differ in model \(v1\.1-cambridge, v1\.1-dclimate\)"):
        dclimate.sel(time=2022).tessera.change(cambridge.sel(time=2020))


@pytest.mark.parametrize("key", ["model", "model_family", "weights_sha256"])
def test_what_is_fitted_to_one_model_refuses_another(key, tmp_path):
    emb = tutorial.embeddings().isel(y=slice(12), x=slice(12)).assign_attrs({key: "one"})
    null, index = txr.fit_change_null(emb), txr.SearchIndex.build(emb, tmp_path / "index", approximate=False)
    point = emb.isel(time=0).tessera.sample((float(emb.x[3]), float(emb.y[3])), crs="EPSG:32610")
    uses = {
        "similarity": lambda other: other.tessera.similarity(point),
        "clusters": txr.fit_clusters(emb, 2).predict,
        "components": txr.fit_components(emb).transform,
        "novelty": txr.fit_novelty(emb).transform,
        "null": lambda other: txr.change_significance(other, 2018, 2019, null=null),
        "index": lambda other: index.search(point.assign_attrs(other.attrs), 1),
    }
    for use in uses.values():
        use(emb)
        with pytest.raises(VersionMismatchError, match=f"differ in {key}"):
            use(emb.assign_attrs({key: "two"}))


def test_inventory(make_emb):
    emb = make_emb(time=True, weights_sha256="0123456789abcdef")
    text = repr(emb.tessera)
    assert text == describe_embeddings(emb)
    for part in (
        "128 dimensions, float32",
        "weights 0123456789ab\n",
        "2019, 2020",
        "7 x 5 px of 10 m, EPSG:32631",
        "97%",
    ):
        assert part in text
    lazy = repr(txr.quantize(make_emb(lazy=True)).tessera)
    assert "lazy: not counted" in lazy
    assert "int8 with scales" in lazy
    assert repr(emb.s2_obs_count.tessera) == (
        "s2_obs_count {'time': 2, 'y': 7, 'x': 5}\nNext: .tessera.plot(), .tessera.to_geotiff('map.tif')"
    )


# Points ------------------------------------------------------------------------------------------------------------


def centre(row: float, column: float) -> tuple[float, float]:
    """Return the place of a pixel's centre in the CRS of the map."""
    return X0 + 10 * (column + 0.5), Y0 - 10 * (row + 0.5)


@pytest.mark.parametrize("lazy", [False, True], ids=["eager", "dask"])
@pytest.mark.parametrize("quantized", [False, True])
def test_points_get_the_pixels_that_hold_them(lazy, quantized, make_emb):
    emb = make_emb(time=True, lazy=lazy)
    emb = txr.quantize(emb) if quantized else emb
    places = [(0, 0), (6, 4), (2, 3), (2, 3)]
    found = emb.tessera.sample([centre(r + 0.4, c - 0.4) for r, c in places], crs="EPSG:32631")
    assert found.embeddings.dims == ("time", "band", "point")
    assert (found.embeddings.chunks is not None) == lazy
    for i, (r, c) in enumerate(places):
        for name in emb.data_vars:
            np.testing.assert_array_equal(found[name].isel(point=i), emb[name].isel(y=r, x=c))
    np.testing.assert_array_equal(found.x, emb.x.values[[0, 4, 3, 3]])
    np.testing.assert_array_equal(found.y, emb.y.values[[0, 6, 2, 2]])
    assert found.attrs == emb.attrs


def test_points_in_every_form(make_emb):
    emb = make_emb()
    xy = np.array([centre(1, 2), centre(5, 0)])
    points = gpd.GeoSeries([Point(p) for p in xy], index=["a", "b"], crs="EPSG:32631")
    expected = emb.tessera.sample(xy, crs="EPSG:32631")
    np.testing.assert_array_equal(expected.embeddings[:, 0], emb.embeddings[:, 1, 2])
    lonlat = points.to_crs("EPSG:4326")
    degrees = np.column_stack([lonlat.x, lonlat.y])
    frame = gpd.GeoDataFrame({"class": [1, 2]}, index=["a", "b"], geometry=lonlat.to_crs("EPSG:3857"))
    for form in (points, lonlat, frame, degrees, [tuple(p) for p in degrees]):
        found = txr.sample(emb, form)
        np.testing.assert_array_equal(found.embeddings, expected.embeddings)
        if hasattr(form, "crs"):
            assert found.point.values.tolist() == ["a", "b"]
    one = txr.sample(emb, tuple(degrees[1]))
    assert one.sizes["point"] == 1
    np.testing.assert_array_equal(one.embeddings[:, 0], emb.embeddings[:, 5, 0])


@pytest.mark.parametrize("quantized", [False, True])
def test_points_outside(quantized, make_emb):
    emb = txr.quantize(make_emb()) if quantized else make_emb()
    points = [centre(1, 2), centre(-1, 2), centre(1, 5)]
    with pytest.raises(GridError, match=r"2 of 3 points lie outside .* pass outside='nodata'"):
        emb.tessera.sample(points, crs="EPSG:32631")
    found = emb.tessera.sample(points, crs="EPSG:32631", outside="nodata")
    np.testing.assert_array_equal(has_data(found), [True, False, False])
    np.testing.assert_array_equal(found.embeddings[:, 0], emb.embeddings[:, 1, 2])
    assert found.s1_desc_obs_count.values.tolist() == [2, 0, 0]
    assert {n: a.dtype for n, a in found.data_vars.items()} == {n: a.dtype for n, a in emb.data_vars.items()}
    assert np.isnan(found.x.values).tolist() == [False, True, True]


def test_points_that_cannot_be_read(make_emb):
    emb = make_emb()
    for wrong in ("here", [1, 2, 3], {"lon": 3}, [[["a", "b"]]], np.zeros((2, 3))):
        with pytest.raises(SchemaError, match=r"can't be read as points; give \(lon, lat\)"):
            emb.tessera.sample(wrong)
    with pytest.raises(SchemaError, match=r"outside='skip' is unknown; choose 'raise' or 'nodata'"):
        emb.tessera.sample((3, 50), outside="skip")
    with pytest.raises(SchemaError, match=r"these geometries are \['Polygon'\]; .*representative_point"):
        emb.tessera.sample(gpd.GeoSeries([Point(3, 50).buffer(1)], crs=4326))
    with pytest.raises(SchemaError, match=r"these geometries are \['Point', 'missing'\]"):
        emb.tessera.sample(gpd.GeoSeries([Point(3, 50), None], crs=4326))
    with pytest.raises(SchemaError, match=r"no CRS; set it with .set_crs"):
        emb.tessera.sample(gpd.GeoSeries([Point(3, 50)]))


def test_codes_that_became_numbers_are_refused():
    """As where() makes them: without a word they would be taken for embeddings."""
    emb = tutorial.embeddings().sel(time=2022)
    masked = emb.where(emb.x > emb.x.mean())
    with pytest.raises(SchemaError, match="codes that became numbers"):
        check_embeddings(masked)
    with pytest.raises(SchemaError, match="codes that became numbers"):
        masked.tessera.quantize()
    check_embeddings(emb.assign(scales=emb.scales.where(emb.x > emb.x.mean())))
