"""Novelty: Mahalanobis distance against the textbook, and percentiles that a fresh pixel keeps to."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import xarray as xr
from odc.geo.geobox import GeoBox

from tessera_xr import tutorial
from tessera_xr.analysis import novelty as module
from tessera_xr.analysis.novelty import fit_novelty, novelty
from tessera_xr.embedding.quantize import dequantize, quantize
from tessera_xr.embedding.schema import COUNTS, build_embeddings
from tessera_xr.errors import GridError, SchemaError, VersionMismatchError
from tessera_xr.grid import geobox_of, with_grid

BANDS = 24
MIX = np.random.default_rng(9).normal(size=(BANDS, BANDS))


def made(values: np.ndarray) -> xr.Dataset:
    """Return embeddings of values (y, x, band)."""
    ny, nx = values.shape[:2]
    box = GeoBox.from_bbox((600_000, 5_000_000, 600_000 + 10 * nx, 5_000_000 + 10 * ny), "EPSG:32631", resolution=10)
    variables = {name: xr.DataArray(np.full((ny, nx), 30, np.uint16), dims=("y", "x")) for name in COUNTS}
    variables["embeddings"] = xr.DataArray(values.astype(np.float32), dims=("y", "x", "band"))
    return build_embeddings(variables, with_grid(xr.Dataset(), box), {"model": "m", "weights_sha256": "a"})


def drawn(ny: int, nx: int, seed: int) -> np.ndarray:
    """Return correlated values far from zero, (y, x, band)."""
    return np.random.default_rng(seed).normal(size=(ny, nx, BANDS)) @ MIX + 5


@pytest.fixture
def emb() -> xr.Dataset:
    """9 x 7 pixels; the first has no data."""
    values = drawn(9, 7, 0)
    values[0, 0] = np.nan
    return made(values)


@pytest.fixture
def reference() -> xr.Dataset:
    return made(drawn(20, 12, 1))


def rows(emb: xr.Dataset) -> np.ndarray:
    return dequantize(emb).embeddings.transpose(..., "band").values.reshape(-1, emb.sizes["band"]).astype(float)


def textbook(values: np.ndarray, reference: np.ndarray, ridge: float, level: float | None = None) -> np.ndarray:
    """Return sqrt((v - m)' (S + ridge * level * 1)^-1 (v - m)), level the mean variance."""
    covariance = np.cov(reference, rowvar=False)
    level = np.trace(covariance) / BANDS if level is None else level
    away = values - reference.mean(axis=0)
    return np.sqrt((away * np.linalg.solve(covariance + ridge * level * np.eye(BANDS), away.T).T).sum(axis=1))


def test_it_is_the_mahalanobis_distance(emb, reference):
    for ridge in (1e-3, 0.5):
        found = novelty(emb, reference, ridge=ridge)
        expected = textbook(rows(emb), rows(reference), ridge)
        np.testing.assert_allclose(found.distance.values.ravel(), expected, rtol=1e-4)
    assert found.distance.dtype == found.percentile.dtype == np.float32
    assert np.isnan(found.distance[0, 0])
    assert np.isnan(found.percentile[0, 0])
    assert int(np.isnan(found.percentile).sum()) == 1


@pytest.mark.parametrize("n", [12, 60], ids=["fewer pixels than bands", "more"])
def test_reference_pixels_are_left_out_in_turn(n):
    values = drawn(1, n, 2)
    fitted = fit_novelty(made(values), ridge=0.01)
    values = values[0].astype(np.float32).astype(float)
    level = np.trace(np.cov(values, rowvar=False)) / BANDS
    each = [textbook(values[[i]], np.delete(values, i, axis=0), 0.01, level)[0] for i in range(n)]
    np.testing.assert_allclose(fitted.distances, np.sort(each), rtol=1e-4)


def test_it_says_what_is_usual(reference):
    fitted = fit_novelty(reference)
    middle, high = np.percentile(fitted.distances, [50, 95])
    said = f"Novelty: 240 reference pixels, half within {middle:.1f}, 95% within {high:.1f} standard deviations"
    assert repr(fitted) == f"{said} of the others; model m"


def test_percentiles_hold_for_new_pixels_of_the_same_kind():
    fresh = made(drawn(60, 60, 3))
    shares = []
    for seed in range(4, 10):
        found = novelty(fresh, made(drawn(10, 10, seed)))
        shares.append([float((found.percentile > level).mean()) for level in (50, 90)])
    np.testing.assert_allclose(np.mean(shares, axis=0), [0.5, 0.1], atol=0.04)


def test_percentile_is_the_share_of_the_reference_that_is_nearer(emb, reference):
    fitted = fit_novelty(reference)
    found = fitted.transform(emb)
    distance = found.distance.values
    share = 100 * (fitted.distances < distance[..., None]).mean(axis=-1)
    np.testing.assert_allclose(found.percentile, np.where(np.isnan(distance), np.nan, share), rtol=1e-5)
    assert float(fitted.transform(emb.assign(embeddings=emb.embeddings + 50)).percentile[1, 1]) == 100


@pytest.mark.parametrize("form", [lambda e: e, quantize], ids=["float32", "int8"])
def test_any_layout_gives_the_same(emb, reference, form, monkeypatch):
    fitted, emb = fit_novelty(reference), form(emb)
    whole = fitted.transform(emb)
    lazy = fitted.transform(emb.chunk(y=4, x=3, band=5))
    assert lazy.distance.chunks is not None
    xr.testing.assert_allclose(lazy.compute(), whole, rtol=1e-5)
    part = {"y": slice(1, 8, 3), "x": slice(1, 6)}
    xr.testing.assert_allclose(fitted.transform(emb.isel(part)), whole.isel(part), rtol=1e-5)
    bands_first = emb.assign(embeddings=emb.embeddings.copy(data=np.ascontiguousarray(emb.embeddings.values)))
    xr.testing.assert_allclose(fitted.transform(bands_first), whole, rtol=1e-5)
    order = np.random.default_rng(2).permutation(9)
    xr.testing.assert_allclose(fitted.transform(emb.isel(y=order)), whole.isel(y=order), rtol=1e-5)
    monkeypatch.setattr(module, "STRETCH", 5)
    xr.testing.assert_allclose(fitted.transform(emb), whole, rtol=1e-5)
    stacked = xr.concat([emb, emb.isel(y=slice(None, None, -1)).assign_coords(y=emb.y)], "time")
    both = fitted.transform(stacked.transpose("time", "band", "y", "x"))
    assert both.distance.dims == ("time", "y", "x")
    np.testing.assert_allclose(both.distance[1], whole.distance[::-1], rtol=1e-5)


def test_int8_is_within_the_bound_of_quantisation(emb, reference):
    fitted = fit_novelty(reference, ridge=0.1)
    codes = quantize(emb)
    off = abs(fitted.transform(codes).distance - fitted.transform(emb).distance).values
    stretch = np.linalg.norm(fitted.whitening, 2)
    bound = codes.scales.values / 2 * np.sqrt(BANDS) * stretch + 1e-3
    assert (off[1:] <= bound[1:]).all()
    assert np.nanmax(bound) < 2
    exact = fitted.transform(dequantize(codes))
    xr.testing.assert_allclose(fitted.transform(codes), exact, rtol=1e-4)
    assert np.isnan(fitted.transform(codes).distance[0, 0])
    for nothing in (np.nan, np.inf):
        blank = fitted.transform(codes.assign(scales=codes.scales.where(codes.x > codes.x[1], nothing)))
        assert np.isnan(blank.distance[:, :2]).all()
        assert not np.isnan(blank.distance[:, 2:]).any()


def test_the_reference_can_come_in_any_form(emb, reference):
    expected = novelty(emb, reference)
    flat = reference.embeddings.stack(point=("y", "x")).reset_index("point", drop=True).transpose("band", "point")
    points = flat.to_dataset(name="embeddings").assign_attrs(reference.attrs)
    xr.testing.assert_allclose(novelty(emb, points), expected, rtol=1e-5)
    xr.testing.assert_allclose(novelty(emb, reference.chunk(y=7)), expected, rtol=1e-5)
    codes = quantize(reference)
    xr.testing.assert_allclose(novelty(emb, codes), novelty(emb, dequantize(codes)), rtol=1e-5)
    with_gap = reference.reindex(y=np.concatenate([reference.y, reference.y - 200]))
    xr.testing.assert_allclose(novelty(emb, with_gap), expected, rtol=1e-5)


def test_a_mask_says_which_pixels_are_labelled(emb):
    mask = emb.x < emb.x[4]
    chosen = emb.isel(x=slice(4))
    expected = novelty(emb, chosen)
    xr.testing.assert_identical(novelty(emb, mask.broadcast_like(emb.s2_obs_count)), expected)
    xr.testing.assert_identical(novelty(emb, mask), expected)
    with pytest.raises(GridError, match="not on the grid"):
        novelty(emb, mask.assign_coords(x=mask.x + 10))
    with pytest.raises(SchemaError, match="a mask must be bool, not int64"):
        novelty(emb, mask.astype(int))


def test_the_result_is_labelled(emb, reference):
    with xr.set_options(keep_attrs=False):
        found = novelty(quantize(emb), reference)
    assert set(found.data_vars) == {"distance", "percentile"}
    assert set(found.coords) == {"y", "x", "spatial_ref"}
    assert geobox_of(found) == geobox_of(emb)
    assert all(found[name].attrs["grid_mapping"] == "spatial_ref" for name in found.data_vars)
    assert found.attrs["model"] == found.distance.attrs["model"] == "m"


def test_the_draw_is_seeded(emb, reference, monkeypatch):
    monkeypatch.setattr(module, "FIT_PIXELS", 100)
    first, again, other = (fit_novelty(reference, seed=s) for s in (0, 0, 1))
    np.testing.assert_array_equal(first.distances, again.distances)
    assert len(first.distances) == 100
    assert not np.array_equal(first.distances, other.distances)


def test_faults(emb, reference):
    with pytest.raises(VersionMismatchError, match="differ in model"):
        novelty(emb, reference.assign_attrs(model="other"))
    with pytest.raises(VersionMismatchError, match="differ in model"):  # before any work is done
        novelty(emb, reference.isel(y=[0], x=[0]).assign_attrs(model="other"))
    with pytest.raises(VersionMismatchError, match="differ in weights_sha256"):
        fit_novelty(reference).transform(emb.assign_attrs(weights_sha256="b"))
    with pytest.raises(VersionMismatchError, match="different lengths"):
        novelty(emb, reference.isel(band=slice(16)))
    with pytest.raises(SchemaError, match="three pixels or more that vary; 2 have data"):
        fit_novelty(reference.isel(y=[0], x=[0, 1]))
    with pytest.raises(SchemaError, match="three pixels or more that vary; 4 have data"):
        fit_novelty(reference.isel(y=[0], x=[0, 0, 0, 0]))
    with pytest.raises(SchemaError, match="0 have data"):
        novelty(emb, emb.x < 0)
    with pytest.raises(SchemaError, match="ridge must be above 0, not 0"):
        novelty(emb, reference, ridge=0)
    with pytest.raises(SchemaError, match="needs embeddings"):
        novelty(emb, reference.drop_vars("embeddings"))


@pytest.mark.parametrize("strided", [False, True])
def test_it_needs_little_memory(strided):
    rng = np.random.default_rng(0)
    ones = xr.DataArray(np.ones((256, 512), np.float32), dims=("y", "x"))
    values = xr.DataArray(rng.integers(-127, 128, (256, 512, 128)).astype(np.int8), dims=("y", "x", "band"))
    emb = xr.Dataset({"embeddings": values.transpose("band", "y", "x"), "scales": ones})
    fitted = fit_novelty(emb.isel(y=slice(0, 256, 16), x=slice(0, 512, 16)))
    emb = emb.isel(x=slice(1, None, 2)) if strided else emb
    fitted.transform(emb)
    tracemalloc.start()
    fitted.transform(emb)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.4 * emb.embeddings.nbytes


def test_burnt_forest_is_new_to_unburnt_forest():
    emb, loss = tutorial.embeddings(), tutorial.labels().lossyear
    found = novelty(emb.sel(time=2022), (emb.sel(time=2022).y > 4_286_000) & (loss == 0))
    assert float(found.percentile.where(loss == 21).median()) > 99
    west = emb.x < 731_600
    found = novelty(emb.sel(time=2018), west).percentile
    assert 30 < float(found.where(west).mean()) < 60, "a reference is not new to itself"
    assert found.where(~west).mean() > found.where(west).mean()
