"""Baselines in the shape of embeddings: medians of the year, by hand and at any chunking; lengths that may be cut."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from tessera_xr import tutorial
from tessera_xr.embedding.quantize import dequantize, quantize
from tessera_xr.embedding.schema import COUNTS, check_embeddings, check_same_model, has_data
from tessera_xr.errors import CubeError, SchemaError, VersionMismatchError
from tessera_xr.grid import geobox_of
from tessera_xr.learning import features as module
from tessera_xr.learning.features import fill_seasons, first_dims, season_medians, seasonal_medians
from tessera_xr.sentinel.bands import day_of_year


def months_of(times: np.ndarray) -> np.ndarray:
    return np.minimum((day_of_year(times) - 1) * 12 // 366, 11)


def by_hand(cube: xr.Dataset, y: int, x: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the medians of one pixel, (12, 10) and (12, 2), by the plainest code."""
    s2, valid, s1 = (cube[name].transpose("y", "x", ...).values[y, x] for name in ("s2", "s2_valid", "s1"))
    found = []
    for values, good, times in (
        (s2.astype(float), valid, cube.s2_time.values),
        (s1 / 200 - 50, (s1 != 0).all(axis=1), cube.s1_time.values),
    ):
        month = months_of(times)
        rows = [
            np.median(values[good & (month == m)], axis=0) if (good & (month == m)).any() else None for m in range(12)
        ]
        known = [m for m in range(12) if rows[m] is not None]
        table = np.full((12, values.shape[1]), np.nan)
        for band in range(values.shape[1]) if known else ():
            table[:, band] = np.interp(range(12), known, [rows[m][band] for m in known], period=12)
        found.append(table)
    return found[0], found[1]


@pytest.fixture
def cube(make_cube) -> xr.Dataset:
    """Two years, both orbits; nobody ever sees the pixel (0, 0), Sentinel-1 nothing at (1, 1)."""
    return make_cube(6)


def test_medians_are_those_by_hand(cube):
    found = seasonal_medians(cube, 2020)
    check_embeddings(found)
    assert found.embeddings.dtype == np.float32
    assert dict(found.sizes) == {"band": 144, "y": 6, "x": 6}
    one = cube.isel(s2_time=cube.s2_time.dt.year == 2020, s1_time=cube.s1_time.dt.year == 2020)
    values = found.embeddings.transpose("y", "x", "band").values
    seen = 0
    for y, x in np.ndindex(6, 6):
        optical, radar = by_hand(one, y, x)
        if np.isnan(optical).all() or np.isnan(radar).all():
            continue
        seen += 1
        np.testing.assert_allclose(values[y, x, :120].reshape(12, 10), optical, rtol=1e-6)
        np.testing.assert_allclose(values[y, x, 120:].reshape(12, 2), radar, rtol=1e-5)
    assert seen > 20


def test_what_a_sensor_never_saw_is_the_mean_of_the_others(cube):
    found = seasonal_medians(cube, 2020).embeddings.transpose("y", "x", "band").values
    assert np.isnan(found[0, 0]).all(), "nothing from nothing"
    others = np.array([found[y, x] for y, x in np.ndindex(6, 6) if (y, x) not in ((0, 0), (1, 1))])
    np.testing.assert_allclose(found[1, 1, 120:], others[:, 120:].mean(axis=0), rtol=1e-5)
    assert np.isfinite(found.reshape(36, -1)[1:]).all()
    without = cube.isel(s1_time=slice(0))
    found = seasonal_medians(without.isel(s2_time=cube.s2_time.dt.year == 2020)).embeddings
    assert (found.isel(band=slice(120, None), y=3) == 0).all()


def test_counts_and_attributes_are_those_of_embeddings(cube, weights):
    from tessera_xr.embedding.embed import embed

    cube = cube.copy(deep=True)
    cube["s1"][{"s1_time": -1, "y": 2, "x": 2}] = 0  # one orbit has less than the other,
    cube["s1"][{"s1_time": -2, "s1_band": 0, "y": 3, "x": 3}] = 0  # and one polarisation than the other
    found, embedded = seasonal_medians(cube, 2020), embed(cube, weights, period=2020, progress=False)
    for name in COUNTS:
        xr.testing.assert_identical(found[name], embedded[name])
    assert (found.s1_asc_obs_count != found.s1_desc_obs_count).any()
    np.testing.assert_array_equal(has_data(found), has_data(embedded))
    assert geobox_of(found) == geobox_of(embedded)
    assert found.attrs["model"] == "raw medians"
    assert found.attrs["period"] == embedded.attrs["period"]
    assert "model_family" not in found.attrs
    with pytest.raises(VersionMismatchError, match="differ in model"):
        check_same_model(found, embedded)


@pytest.mark.parametrize("chunks", [{"y": 4, "x": 3}, {"y": 1, "s2_time": 2, "s2_band": 3}, {"s1_time": 1}], ids=str)
def test_any_layout_gives_the_same(cube, chunks, monkeypatch):
    expected = seasonal_medians(cube, 2020)
    found = seasonal_medians(cube.chunk(chunks), 2020)
    assert found.embeddings.chunks is None
    xr.testing.assert_identical(found, expected)
    monkeypatch.setattr(module, "PIECE", 7)
    xr.testing.assert_identical(seasonal_medians(cube, 2020), expected)


def test_a_lazy_cube_is_read_once(cube):
    import dask

    reads = []

    def counted(block: np.ndarray) -> np.ndarray:
        reads.append(block.shape)
        return block

    lazy = cube.chunk(y=3)
    lazy["s2"] = lazy.s2.copy(
        data=lazy.s2.data.map_blocks(counted, dtype=np.uint16, meta=np.empty((0,) * 4, np.uint16))
    )
    with dask.config.set(scheduler="synchronous"):
        seasonal_medians(lazy, 2020)
    assert len(reads) == 2


def test_the_year_closes_on_itself():
    series = np.full((1, 12, 1), np.nan, np.float32)
    series[0, [10, 2], 0] = 1, 5
    np.testing.assert_allclose(fill_seasons(series)[0, :, 0], [3, 4, 5, 4.5, 4, 3.5, 3, 2.5, 2, 1.5, 1, 2])
    alone = np.where(np.arange(12)[None, :, None] == 7, np.float32(3), np.float32(np.nan))
    assert (fill_seasons(alone) == 3).all()
    assert np.isnan(fill_seasons(np.full((2, 12, 3), np.nan, np.float32))).all()


@pytest.mark.parametrize("seed", range(5))
def test_gaps_are_filled_as_numpy_interpolates(seed):
    rng = np.random.default_rng(seed)
    series = rng.normal(size=(60, 7, 2)).astype(np.float32)
    series[rng.random((60, 7)) < rng.random((60, 1))] = np.nan
    before, found = series.copy(), fill_seasons(series)
    np.testing.assert_array_equal(series, before)
    for row, filled in zip(series, found, strict=True):
        known = np.flatnonzero(~np.isnan(row[:, 0]))
        for band in range(2) if len(known) else ():
            np.testing.assert_allclose(
                filled[:, band], np.interp(range(7), known, row[known, band], period=7), rtol=1e-5, atol=1e-6
            )


def test_medians_are_numpys():
    rng = np.random.default_rng(0)
    values, valid = rng.integers(0, 5000, (30, 40, 3)), rng.random((30, 40)) < 0.5
    days = rng.integers(1, 367, 40)
    found = season_medians(values, valid, days, 4)
    for part in range(4):
        inside = np.minimum((days - 1) * 4 // 366, 3) == part
        for pixel in range(30):
            some = values[pixel][inside & valid[pixel]]
            expected = np.median(some, axis=0) if len(some) else np.full(3, np.nan)
            np.testing.assert_allclose(found[pixel, part], expected)


def test_parts_of_the_year_can_be_fewer(cube):
    found = seasonal_medians(cube, 2020, n_seasons=4)
    assert found.sizes["band"] == 48
    assert found.attrs["n_seasons"] == 4
    whole = seasonal_medians(cube, 2020, n_seasons=1).embeddings.isel(y=4, x=4).values
    one = cube.isel(s2_time=(cube.s2_time.dt.year == 2020) & cube.s2_valid[:, 4, 4], y=4, x=4)
    np.testing.assert_allclose(whole[:10], one.s2.median("s2_time"))


def test_faults_of_medians(cube):
    with pytest.raises(CubeError, match="pass period="):
        seasonal_medians(cube)
    with pytest.raises(CubeError, match="no date falls into"):
        seasonal_medians(cube, 1999)
    with pytest.raises(SchemaError, match="n_seasons must be from 1 to 24, not 0"):
        seasonal_medians(cube, 2020, n_seasons=0)
    with pytest.raises(SchemaError, match="n_seasons must be a whole number"):
        seasonal_medians(cube, 2020, n_seasons=2.5)
    with pytest.raises(CubeError):
        seasonal_medians(xr.Dataset(), 2020)


def test_medians_tell_a_simulated_landscape():
    """They are a baseline that knows something: a head on them tells land cover in blocks that it has not seen."""
    from sklearn.naive_bayes import GaussianNB

    from tessera_xr.learning.evaluation import evaluate
    from tessera_xr.learning.labels import LabelSet

    cube = tutorial.cube(48)
    labels = LabelSet.from_raster(cube["land_cover"], shapes="polygons")
    table = evaluate(
        seasonal_medians(cube), labels, GaussianNB(), folds="polygon", n_folds=3, n_draws=1, progress=False
    )
    assert table["accuracy"].item() > 0.6


# Shorter embeddings ---------------------------------------------------------------------------------------------------


@pytest.fixture
def matryoshka() -> xr.Dataset:
    rng = np.random.default_rng(0)
    values = xr.DataArray(rng.normal(size=(128, 5, 4)).astype(np.float32), dims=("band", "y", "x"))
    return xr.Dataset({"embeddings": values}, attrs={"model": "v2-nano", "model_family": "v2"})


@pytest.mark.parametrize("n", [16, 32, 64])
def test_the_first_values_are_kept(matryoshka, n):
    found = first_dims(matryoshka, n)
    xr.testing.assert_identical(found, matryoshka.isel(band=slice(n)))
    codes = quantize(matryoshka)
    short = first_dims(codes, n)
    xr.testing.assert_identical(short.scales, codes.scales)
    away = abs(dequantize(short).embeddings - found.embeddings)
    assert (away <= codes.scales / 2 + 1e-6).all()
    lazy = first_dims(matryoshka.chunk(y=2), n)
    assert lazy.embeddings.chunks is not None
    assert found.attrs == matryoshka.attrs
    with pytest.raises(VersionMismatchError, match="different lengths"):
        check_same_model(found, matryoshka)


def test_a_cut_can_be_cut_again(matryoshka):
    xr.testing.assert_identical(first_dims(first_dims(matryoshka, 64), 16), first_dims(matryoshka, 16))
    with pytest.raises(SchemaError, match=r"embeddings of 32 values can't be cut to 64; their lengths are \[16\]"):
        first_dims(first_dims(matryoshka, 32), 64)


@pytest.mark.parametrize(
    "attrs", [{"model": "mini"}, {"model": "v2-large"}, {"model": "my own", "model_family": "v2"}], ids=str
)
def test_who_may_be_cut(matryoshka, attrs):
    assert first_dims(matryoshka.drop_attrs().assign_attrs(attrs), 16).sizes["band"] == 16


@pytest.mark.parametrize(
    "attrs",
    [
        {"model": "v1.1-mpc", "model_family": "v1.1"},
        {"model": "v1.1-dclimate", "model_family": "v1.1"},
        {"model": "v1.0"},
        {"model": "v2-teacher", "model_family": "v2-teacher"},
        {"model": "raw medians"},
        {"model": "v1.1-aws", "model_family": "v2"},
        {},
    ],
    ids=str,
)
def test_who_must_not_be_cut(matryoshka, attrs):
    emb = matryoshka.drop_attrs().assign_attrs(attrs)
    with pytest.raises(SchemaError, match=r"must not be cut: only TESSERA v2's students and 'mini'"):
        first_dims(emb, 16)
    assert first_dims(emb, 128) is emb


def test_faults_of_lengths(matryoshka):
    for n in (0, 20, 127, 200, -16):
        with pytest.raises(SchemaError, match=r"can't be cut to -?\d+; their lengths are \[16, 32, 64\]"):
            first_dims(matryoshka, n)
    with pytest.raises(SchemaError, match="n must be a whole number"):
        first_dims(matryoshka, 16.0)
    with pytest.raises(SchemaError, match="needs embeddings"):
        first_dims(matryoshka.rename(embeddings="values"), 16)
    with pytest.raises(SchemaError, match="must not be cut"):
        first_dims(tutorial.embeddings(), 16)
