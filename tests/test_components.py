"""Principal components: against scikit-free arithmetic, and the same whatever the form of the embeddings."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr

import tessera_xr as txr
from tessera_xr import _optional
from tessera_xr.analysis import components as module
from tessera_xr.analysis import drawing
from tessera_xr.embedding.schema import COUNTS, build_embeddings
from tessera_xr.errors import SchemaError, VersionMismatchError
from tessera_xr.grid import geobox_of


@pytest.fixture
def emb(make_cube) -> xr.Dataset:
    """Embeddings of two years that vary along five axes, the first the most; pixel (0, 0) has no data."""
    rng = np.random.default_rng(0)
    spread = np.array([9, 5, 3, 1, 0.5]) * np.linalg.qr(rng.normal(size=(32, 5)))[0]
    values = (rng.normal(size=(2, 12, 10, 5)) @ spread.T + rng.normal(size=32)).astype(np.float32)
    values[:, 0, 0] = np.nan
    dims = ("time", "y", "x")
    variables = {name: xr.DataArray(np.ones((2, 12, 10), np.uint16), dims=dims) for name in COUNTS}
    variables["embeddings"] = xr.DataArray(values, dims=(*dims, "band"))
    variables = {name: array.assign_coords(time=[2019, 2020]) for name, array in variables.items()}
    attrs = {"model": "m", "weights_sha256": "a"}
    return build_embeddings(variables, make_cube(12).isel(x=slice(10)), attrs)


def rows(emb: xr.Dataset) -> np.ndarray:
    """Return the embeddings with data, (n, band) float64."""
    values = emb.embeddings.transpose(..., "band").values.reshape(-1, emb.sizes["band"]).astype(float)
    return values[np.isfinite(values).all(axis=1)]


def test_they_are_the_axes_of_greatest_variance(emb):
    fitted = txr.fit_components(emb, 4)
    values = rows(emb)
    _, s, vt = np.linalg.svd(values - values.mean(axis=0))
    for i in range(4):
        assert abs(fitted.vectors[i].values @ vt[i]) == pytest.approx(1, abs=1e-4)
    np.testing.assert_allclose(fitted.explained, (s**2 / (s**2).sum())[:4], rtol=1e-4)
    np.testing.assert_allclose(fitted.mean, values.mean(axis=0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(fitted.vectors.values @ fitted.vectors.values.T, np.eye(4), atol=1e-5)


def test_they_say_what_they_hold(emb):
    shares = np.linalg.eigvalsh(np.cov(rows(emb), rowvar=False))[::-1]
    shares = shares / shares.sum()
    said = f"Components: 2, holding {shares[0]:.0%}, {shares[1]:.0%} of the variance, together {shares[:2].sum():.0%}"
    assert repr(txr.fit_components(emb, 2)) == f"{said}; model m"
    assert ", ... of the variance" in repr(txr.fit_components(emb, 4))


def test_signs_are_fixed(emb):
    vectors = txr.fit_components(emb).vectors.values
    assert (vectors[np.arange(3), np.abs(vectors).argmax(axis=1)] > 0).all()
    mirrored = emb.assign(embeddings=-emb.embeddings)
    np.testing.assert_allclose(txr.fit_components(mirrored).vectors, vectors, atol=1e-4)


def test_scores_are_projections(emb):
    scores = emb.tessera.components(3)
    fitted = txr.fit_components(emb, 3)
    assert scores.dims == ("time", "component", "y", "x")
    assert scores.dtype == np.float32
    assert scores.component.values.tolist() == [1, 2, 3]
    expected = (emb.embeddings.transpose(..., "band").values - fitted.mean.values) @ fitted.vectors.values.T
    np.testing.assert_allclose(scores.transpose(..., "component"), expected, rtol=1e-3, atol=1e-4)
    assert np.isnan(scores[..., 0, 0]).all()
    assert int(np.isnan(scores).sum()) == 2 * 3
    variance = scores.var(["time", "y", "x"]).values
    assert (np.diff(variance) < 0).all()
    assert geobox_of(scores) == geobox_of(emb)
    assert scores.attrs["grid_mapping"] == "spatial_ref"


def test_int8_and_dask_give_the_same(emb):
    fitted = txr.fit_components(emb)
    expected = fitted.transform(emb)
    lazy = fitted.transform(emb.chunk(y=5, x=3, time=1))
    assert lazy.chunks is not None
    xr.testing.assert_allclose(lazy.compute(), expected, rtol=1e-5, atol=1e-5)
    codes = emb.tessera.quantize()
    step = float(codes.scales.max())
    for quantized in (codes, codes.chunk(y=5)):
        np.testing.assert_allclose(fitted.transform(quantized).compute(), expected, atol=step * 3)
        refitted = txr.fit_components(quantized)
        np.testing.assert_allclose(refitted.vectors, fitted.vectors, atol=0.02)
    np.testing.assert_allclose(txr.fit_components(emb.chunk(y=5)).vectors, fitted.vectors, atol=1e-5)


def test_one_fit_serves_many_maps(emb):
    fitted = txr.fit_components(emb)
    single = emb.sel(time=2020)
    xr.testing.assert_allclose(fitted.transform(single), fitted.transform(emb).sel(time=2020), rtol=1e-5, atol=1e-5)
    part = emb.isel(y=slice(3, 7))
    xr.testing.assert_allclose(fitted.rgb(part), fitted.rgb(emb).isel(y=slice(3, 7)), rtol=1e-5, atol=1e-5)


def test_a_picture_is_between_0_and_1(emb):
    picture = emb.tessera.rgb()
    assert picture.dims == ("time", "y", "x", "rgb")
    assert picture.dtype == np.float32
    assert picture.rgb.values.tolist() == ["red", "green", "blue"]
    assert (float(picture.min()), float(picture.max())) == (0, 1)
    assert np.isnan(picture[:, 0, 0]).all()
    fitted = txr.fit_components(emb)
    scores = fitted.transform(emb)
    low, high = np.nanpercentile(scores.sel(component=2), [2, 98])
    np.testing.assert_allclose(fitted.limits.sel(component=2), [low, high], rtol=1e-3, atol=1e-4)
    expected = ((scores.sel(component=2) - low) / (high - low)).clip(0, 1)
    np.testing.assert_allclose(picture.sel(rgb="green"), expected, atol=1e-3)
    xr.testing.assert_allclose(picture, fitted.rgb(emb))


def test_the_draw_is_seeded(emb, monkeypatch):
    monkeypatch.setattr(module, "FIT_PIXELS", 60)
    first, again, other = (txr.fit_components(emb, seed=s).vectors.values for s in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-4
    assert np.abs((first * other).sum(axis=1)).min() > 0.9, "other pixels, much the same axes"


def test_places_are_drawn_evenly_from_a_mask_and_in_their_order(monkeypatch):
    monkeypatch.setattr(drawing, "_PIECE", 7)
    rng = np.random.default_rng(2)
    mask = xr.DataArray(rng.random((5, 11, 9)) < 0.4, dims=("time", "y", "x"))
    where = np.flatnonzero(mask)
    for n in (len(where) + 1, len(where), 40, 1):
        index = drawing.draw_places(mask, n, seed=3)
        found = np.ravel_multi_index([index[d].values for d in mask.dims], mask.shape)
        assert len(found) == min(n, len(where))
        assert (np.diff(found) > 0).all()
        assert np.isin(found, where).all()
    drawn = [drawing.draw_places(mask, 40, seed)["y"].values for seed in range(200)]
    held = mask.sum(("time", "x")) / mask.sum()
    np.testing.assert_allclose(np.bincount(np.concatenate(drawn)) / 8000, held, atol=0.012)
    assert drawing.draw_places(mask & False, 40, 0)["x"].size == 0


def test_pixels_without_data_are_not_drawn(emb, monkeypatch):
    expected = txr.fit_components(emb)
    padded = emb.reindex(y=np.concatenate([emb.y, emb.y - 120]))
    found = txr.fit_components(padded)
    np.testing.assert_allclose(found.mean, expected.mean, rtol=1e-5, atol=1e-6)
    assert not np.isnan(found.vectors).any()


def test_faults(emb):
    for n in (0, 33):
        with pytest.raises(SchemaError, match=f"from 1 to 32, not {n}"):
            txr.fit_components(emb, n)
    with pytest.raises(SchemaError, match="2 pixels have data: too few for 3 components"):
        txr.fit_components(emb.isel(time=[0], y=[5], x=[5, 6]))
    with pytest.raises(SchemaError, match="a picture needs three components, these are 2; fit with n_components=3"):
        txr.fit_components(emb, 2).rgb(emb)
    with pytest.raises(SchemaError, match="needs embeddings"):
        txr.fit_components(emb.drop_vars("embeddings"))
    fitted = txr.fit_components(emb)
    with pytest.raises(VersionMismatchError, match="differ in model"):
        fitted.transform(emb.assign_attrs(model="other"))
    with pytest.raises(VersionMismatchError, match="different lengths"):
        fitted.transform(emb.isel(band=slice(16)))


def test_whitened_scores_all_vary_alike(emb):
    plain, white = txr.fit_components(emb, 4), txr.fit_components(emb, 4, whiten=True)
    scores = white.transform(emb)
    np.testing.assert_allclose(scores.std(["time", "y", "x"], ddof=1), 1, rtol=1e-3)
    np.testing.assert_allclose(scores.mean(["time", "y", "x"]), 0, atol=1e-3)
    deviations = plain.transform(emb).std(["time", "y", "x"], ddof=1)
    xr.testing.assert_allclose(scores * deviations, plain.transform(emb).drop_attrs(), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(white.limits * deviations, plain.limits, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(white.explained, plain.explained)
    assert (white.whiten, plain.whiten) == (True, False)
    xr.testing.assert_identical(module.components(emb, 4, whiten=True), scores)
    np.testing.assert_allclose(white.rgb(emb), plain.rgb(emb), atol=1e-4)  # the stretch undoes the whitening
    with pytest.raises(SchemaError, match=r"only 5 of 6 components vary.*n_components=5 or fewer, or without whiten"):
        txr.fit_components(emb, 6, whiten=True)


def test_any_order_in_memory_gives_the_same(emb):
    fitted = txr.fit_components(emb)
    expected = fitted.transform(emb)
    part = emb.isel(x=slice(1, 9, 3), y=slice(None, None, -1))
    xr.testing.assert_equal(fitted.transform(part), expected.isel(x=slice(1, 9, 3), y=slice(None, None, -1)))
    band_first = emb.assign(embeddings=emb.embeddings.copy(data=np.ascontiguousarray(emb.embeddings.values)))
    xr.testing.assert_equal(fitted.transform(band_first), expected)
    xr.testing.assert_equal(fitted.transform(emb.chunk(band=10)).compute(), expected)
    np.testing.assert_array_equal(fitted.transform(emb.isel(time=1, y=2, x=3)), expected[1, :, 2, 3])


def test_int8_without_data_has_no_scores(emb):
    codes = emb.tessera.quantize()
    codes["scales"][1, 4, 4] = np.inf
    scores = txr.fit_components(emb).transform(codes)
    missing = np.isnan(scores).all("component")
    assert int(missing.sum()) == 3
    assert missing[1, 4, 4]
    assert missing[:, 0, 0].all()


class StandIn:
    """In place of UMAP, which takes longer to compile than all these tests."""

    def __init__(self, **options):
        self.options = options

    def fit_transform(self, values):
        assert values.dtype == np.float32
        return values[:, : self.options["n_components"]] + self.options["random_state"]


@pytest.mark.parametrize("form", ["float32", "lazy", "int8"])
def test_umap_places_a_sample(emb, form, monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", SimpleNamespace(UMAP=StandIn))
    monkeypatch.setattr(_optional, "have", lambda name: name == "umap")
    given = {"float32": emb, "lazy": emb.chunk(y=5), "int8": emb.tessera.quantize()}[form]
    places = module.umap(given, 3, n_pixels=50, seed=7)
    assert (places.dims, places.shape, places.dtype) == (("pixel", "component"), (50, 3), np.float32)
    assert places.component.values.tolist() == [1, 2, 3]
    assert places.attrs["model"] == "m"
    at = emb.embeddings.sel(time=places.time, y=places.y, x=places.x).isel(band=slice(3)).transpose("pixel", "band")
    np.testing.assert_allclose(places, at + 7, atol=0.2 if form == "int8" else 1e-5)
    xr.testing.assert_identical(places, module.umap(given, 3, n_pixels=50, seed=7))
    assert module.umap(given, n_pixels=10_000).sizes["pixel"] == 2 * (120 - 1)
    with pytest.raises(SchemaError, match="8 pixels have data or were asked for: too few for n_neighbors=15"):
        module.umap(given, n_pixels=8)


def test_umap_missing(emb, monkeypatch):
    monkeypatch.setattr(_optional, "have", lambda name: False)
    with pytest.raises(ImportError, match=r"UMAP needs umap, .*pip install 'tessera-xr\[umap\]'"):
        module.umap(emb)
