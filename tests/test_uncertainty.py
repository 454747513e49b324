"""Entropy and margin, and sets and intervals that hold the truth as often as they say, on places that were held out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from odc.geo.geobox import GeoBox

from tessera_xr import tutorial
from tessera_xr.embedding.quantize import quantize
from tessera_xr.errors import SchemaError, TesseraWarning, VersionMismatchError
from tessera_xr.grid import geobox_of, with_grid
from tessera_xr.learning.calibration import balanced_rows, draw_units
from tessera_xr.learning.labels import LabelSet
from tessera_xr.learning.samples import LabelSample
from tessera_xr.learning.splits import deal_spatially
from tessera_xr.learning.uncertainty import applicability, entropy, fit_conformal, margin

SIZE, SIDE, BANDS = 60, 5, 8
GRID = GeoBox.from_bbox((600_000, 4_999_400, 600_600, 5_000_000), crs="EPSG:32631", resolution=10)
NAMES = ["a", "b", "c"]


def as_pred(shares: np.ndarray, grid: GeoBox = GRID) -> xr.Dataset:
    array = xr.DataArray(shares.astype(np.float32), dims=("y", "x", "class")).transpose("class", "y", "x")
    array = array.assign_coords({"class": list("abcd")[: shares.shape[-1]]})
    return with_grid(xr.Dataset({"probability": array}, attrs={"model": "m"}), grid)


def landscape(seed: int = 0) -> tuple[xr.Dataset, np.ndarray, np.ndarray]:
    """Return embeddings, classes and numbers of blocks that each deviate in their own way, so that pixels are alike."""
    rng = np.random.default_rng(seed)

    def blocks(*tail: int) -> np.ndarray:
        return rng.normal(size=(SIZE // SIDE, SIZE // SIDE, *tail)).repeat(SIDE, 0).repeat(SIDE, 1)

    truth = np.digitize(blocks(), [-0.4, 0.8])
    values = np.eye(BANDS)[truth] * 2 + 0.8 * blocks(BANDS) + 0.5 * rng.normal(size=(SIZE, SIZE, BANDS))
    numbers = values @ np.arange(BANDS) + blocks() + 0.3 * rng.normal(size=(SIZE, SIZE))
    values[0, :7] = np.nan
    array = xr.DataArray(values.astype(np.float32), dims=("y", "x", "band")).transpose("band", "y", "x")
    emb = xr.Dataset({"embeddings": array.assign_coords(band=np.arange(BANDS))}, attrs={"model": "m"})
    return with_grid(emb, GRID), truth, numbers


def sampled(emb: xr.Dataset, y: np.ndarray, target: str | None = None, seed: int = 0, n: int = 900) -> LabelSample:
    """Return n labelled pixels, each a label of its own."""
    held = np.argwhere(emb.embeddings[0].notnull().values)
    rows, columns = held[np.random.default_rng(seed).permutation(len(held))[:n]].T
    return LabelSample(
        X=emb.embeddings.values[:, rows, columns].T.copy(),
        y=y[rows, columns] if target else np.array(NAMES)[y[rows, columns]],
        groups=np.arange(n),
        weights=np.ones(n),
        x_map=emb.x.values[columns],
        y_map=emb.y.values[rows],
        rows=rows,
        columns=columns,
        classes={} if target else dict.fromkeys(NAMES, "#000000"),
        target=target,
        attrs={"model": "m"},
        crs="EPSG:32631",
        shape=(SIZE, SIZE),
    )


def covered(sample: LabelSample, seeds: range, block: float = 50, **options: Any) -> pd.DataFrame:
    """Return the coverage of held-out blocks, a third of all, over many draws of blocks."""
    found = []
    for seed in seeds:
        rng = np.random.default_rng(1000 + seed)
        held = deal_spatially(sample, 3, by="block", block=block, buffer=0.0, rng=rng).fold == 0
        conformal = fit_conformal(None, sample.take(~held), seed=seed, **({"block": block} | options))
        found.append(conformal.coverage(None, sample.take(held)).loc["all"])
    return pd.DataFrame(found)


# Entropy and margin --------------------------------------------------------------------------------------------------


def test_entropy_and_margin_of_known_probabilities():
    shares = [[1, 0, 0, 0], [0.25] * 4, [0.5, 0.5, 0, 0], [0.1, 0.7, 0.2, 0], [np.nan] * 4]
    pred = as_pred(np.array(shares)[None], GRID[:1, :5])
    np.testing.assert_allclose(entropy(pred)[0], [0, 1, 0.5, 0.578389, np.nan], atol=1e-5)
    np.testing.assert_allclose(margin(pred)[0], [0, 1, 1, 0.5, np.nan], atol=1e-6)
    single = as_pred(np.array([[[1.0], [np.nan]]]), GRID[:1, :2])
    for function in (entropy, margin):
        np.testing.assert_array_equal(function(single)[0], [0, np.nan])


@pytest.mark.parametrize("function", [entropy, margin])
def test_they_are_maps_like_others(function):
    shares = np.random.default_rng(0).dirichlet([0.3] * 4, (SIZE, SIZE))
    shares[3, 4] = np.nan
    pred = as_pred(shares)
    found = function(pred)
    assert found.dims == ("y", "x")
    assert found.dtype == np.float32
    assert found.name == function.__name__
    assert geobox_of(found) == GRID
    assert found.attrs["grid_mapping"] == "spatial_ref"
    assert found.attrs["model"] == "m"
    assert found.attrs["long_name"]
    assert float(found.min()) >= 0
    assert float(found.max()) <= 1
    np.testing.assert_array_equal(found.isnull().values, np.isnan(shares[..., 0]))
    lazy = function(pred.chunk({"y": 17, "x": 23, "class": 2}))
    assert lazy.chunks is not None
    xr.testing.assert_allclose(lazy.compute(), found)
    both = xr.concat([pred, pred.isel(y=slice(None, None, -1)).assign_coords(y=pred.y)], "time")
    assert function(both).dims == ("time", "y", "x")
    np.testing.assert_array_equal(function(both)[1], found[::-1])
    shuffled = pred.isel({"class": [2, 0, 3, 1]})
    np.testing.assert_allclose(function(shuffled), found, atol=1e-6)
    for nothing in (pred.drop_vars("probability"), pred.probability):
        with pytest.raises(SchemaError, match="needs the probability of each class"):
            function(nothing)


# Coverage ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("confidence", [0.9, 0.8])
@pytest.mark.parametrize("case", ["lac", "aps", "absolute"])
def test_held_out_blocks_are_covered_as_often_as_said(case, confidence):
    emb, classes, numbers = landscape()
    sample = sampled(emb, numbers, "height") if case == "absolute" else sampled(emb, classes, n=600)
    model = "ridge" if case == "absolute" else "logistic"
    found = covered(sample, range(12), model=model, confidence=confidence, method=case)
    mean = found["coverage"].mean()
    if case == "aps":  # it errs on the side of larger sets
        assert mean > confidence - 0.03
        assert (found["empty"] == 0).all()
    else:
        assert abs(mean - confidence) < 0.03


def test_burnt_forest_is_covered_as_often_as_said():
    emb, loss = tutorial.embeddings().sel(time=2022), tutorial.labels().lossyear
    burnt = LabelSet.from_raster((loss == 21).assign_attrs(loss.attrs), n_per_class=300).sample(emb)
    sample = replace(burnt, X=burnt.X[:, :16])  # enough to see, and fast
    for confidence in (0.9, 0.8):
        found = covered(sample, range(16), block=60, confidence=confidence)
        assert abs(found["coverage"].mean() - confidence) < 0.03, confidence
        assert found["set_size"].mean() < 1.5, "it would be no feat with both classes in every set"


def test_pixels_among_those_learnt_from_promise_too_much():
    emb, classes, _ = landscape()
    sample, options = sampled(emb, classes, n=2400), {"model": "knn", "n_neighbors": 5, "confidence": 0.8}
    apart, among = (covered(sample, range(6), by=by, **options)["coverage"].mean() for by in ("block", "polygon"))
    assert among < apart - 0.05


def test_a_guarantee_costs_larger_sets_the_fewer_blocks_there_are():
    emb, classes, _ = landscape()
    sample = sampled(emb, classes)
    sizes = {}
    for block in (50, 100):
        plain, sure = (fit_conformal(None, sample, block=block, guarantee=g) for g in (False, True))
        sizes[block] = [c.coverage(None, sample).loc["all", "set_size"] for c in (plain, sure)]
        assert plain.head.predict_rows(sample.X).tolist() == sure.head.predict_rows(sample.X).tolist()
    assert sizes[50][0] < sizes[50][1]
    assert sizes[50][1] - sizes[50][0] < sizes[100][1] - sizes[100][0]
    found = covered(sample, range(8), block=80, guarantee=True)
    assert found["coverage"].mean() > 0.9


def test_the_quantile_is_that_of_held_out_pixels_each_block_counting_alike():
    emb, classes, numbers = landscape()
    keep = np.random.default_rng(0).random(900) < np.where(np.arange(900) % 2, 1, 0.3)
    for sample, model in ((sampled(emb, classes), "logistic"), (sampled(emb, numbers, "h"), "ridge")):
        conformal = fit_conformal(None, sample.take(keep), model, block=50, confidence=0.85)
        unit = deal_spatially(sample.take(keep), 2, by="block", block=50, buffer=0.0, rng=np.random.default_rng(0)).unit
        chosen = draw_units(sample.take(keep), unit, 0.5, 0.85, 0, "block")
        held, blocks = sample.take(keep).take(chosen), unit[chosen]
        assert conformal.n_blocks == (len(np.unique(unit[~chosen])), len(np.unique(blocks)))
        head = conformal.head
        assert sum(head.n_labelled.values()) == (~chosen).sum()
        if model == "ridge":
            scores = abs(held.y - head.predict_rows(held.X))
            outputs = head.predict_rows(sample.X)[:, None]
            half = np.ptp(conformal._rows(outputs), axis=1) / 2
            assert np.ptp(half) < 1e-9
            quantile = half[0]
        else:
            shares = head.probability_rows(held.X)
            scores = 1 - shares[np.arange(len(held)), [head.classes.index(y) for y in held.y]]
            shares = head.probability_rows(sample.X)
            sets = conformal._rows(shares)
            quantile = (1 - shares)[sets].max()
            assert quantile < (1 - shares)[~sets].min()
        weights = 1 / np.bincount(blocks)[blocks]
        below, under = (np.average(scores < quantile + d, weights=weights) for d in (1e-9, -1e-9))
        assert below >= 0.85 - 0.003
        assert under <= 0.85 + 0.003


def test_units_are_whole_and_count_alike():
    emb, classes, _ = landscape()
    sample = sampled(emb, classes)
    unit = np.arange(900) // 45
    chosen = draw_units(sample, unit, 0.6, 0.9, 0, "block")
    assert len(np.unique(unit[chosen])) == 12
    assert not np.isin(unit[chosen], unit[~chosen]).any()
    uneven = np.repeat([3, 5, 9], [7, 200, 650])
    rows = balanced_rows(uneven, np.random.default_rng(0))
    assert np.bincount(uneven[rows]).tolist() == [0, 0, 0, 200, 0, 200, 0, 0, 0, 200]
    assert set(np.bincount(rows)[:7]) <= {28, 29}
    assert set(np.bincount(rows)[7:207]) == {1}
    rare = replace(sample, y=np.where(np.isin(unit, [0, 1]), "c", np.where(sample.y == "c", "a", sample.y)))
    for seed in range(10):
        learnt = ~draw_units(rare, unit, 0.9, 0.9, seed, "block")
        assert set(rare.y[learnt]) == set(NAMES), "no class is kept from the head"


# Maps ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def problem() -> tuple[xr.Dataset, LabelSample, LabelSample]:
    emb, classes, numbers = landscape()
    return emb, sampled(emb, classes), sampled(emb, numbers, "height")


@pytest.mark.parametrize("method", ["lac", "aps"])
def test_maps_of_sets(problem, method):
    emb, sample, _ = problem
    conformal = fit_conformal(emb, sample, confidence=0.85, method=method)
    found = conformal.predict(emb)
    pred = conformal.head.predict(emb)
    assert set(found.data_vars) == {"prediction", "set", "set_size"}
    assert found["set"].dims == ("class", "y", "x")
    assert found["set"].dtype == bool
    assert found["class"].values.tolist() == NAMES
    xr.testing.assert_identical(found["prediction"], pred["prediction"])
    empty = np.isnan(emb.embeddings.values[0])
    assert (found["set_size"].values[empty] == 255).all()
    assert found["set_size"].attrs["nodata"] == 255
    assert not found["set"].values[:, empty].any()
    np.testing.assert_array_equal(found["set_size"].values[~empty], found["set"].sum("class").values[~empty])
    rows = conformal._rows(conformal.head.probability_rows(sample.X))
    np.testing.assert_array_equal(found["set"].values[:, sample.rows, sample.columns].T, rows)
    table = conformal.coverage(emb, sample)
    hit = rows[np.arange(len(sample)), [NAMES.index(y) for y in sample.y]]
    assert table.loc["all", "coverage"] == pytest.approx(hit.mean())
    assert table["n"].tolist() == [900, *(int((sample.y == n).sum()) for n in NAMES)]
    np.testing.assert_allclose(np.average(table["coverage"][1:], weights=table["n"][1:]), hit.mean())
    assert found.attrs["confidence"] == 0.85
    assert found.attrs["conformal_method"] == method
    for name in found.data_vars:
        assert geobox_of(found[name]) == GRID
        assert found[name].attrs["grid_mapping"] == "spatial_ref"
        assert found[name].attrs["model"] == "m"


def test_maps_of_intervals(problem):
    emb, _, sample = problem
    conformal = fit_conformal(emb, sample, "ridge", confidence=0.85)
    found = conformal.predict(emb)
    assert set(found.data_vars) == {"prediction", "lower", "upper"}
    assert {v.dtype for v in found.values()} == {np.dtype(np.float32)}
    empty = np.isnan(emb.embeddings.values[0])
    for name in found:
        np.testing.assert_array_equal(np.isnan(found[name].values), empty)
    np.testing.assert_allclose(found.upper - found.prediction, found.prediction - found.lower, rtol=1e-3)
    edges = conformal._rows(conformal.head.predict_rows(sample.X)[:, None])
    for i, name in enumerate(("lower", "upper")):
        np.testing.assert_allclose(found[name].values[sample.rows, sample.columns], edges[:, i], rtol=1e-3, atol=1e-3)
    table = conformal.coverage(None, sample)
    assert table.index.tolist() == ["all"]
    assert table.loc["all", "width"] == pytest.approx(np.ptp(edges, axis=1).mean())
    assert table.loc["all", "coverage"] == pytest.approx(((edges[:, 0] <= sample.y) & (sample.y <= edges[:, 1])).mean())


def test_surer_sets_and_intervals_hold_those_that_are_less_sure(problem):
    emb, classes, numbers = problem
    sets = [fit_conformal(None, classes, confidence=c).predict(emb)["set"] for c in (0.7, 0.9)]
    assert (sets[0] <= sets[1]).all()
    assert (sets[0] < sets[1]).any()
    widths = [fit_conformal(None, numbers, "ridge", confidence=c).coverage(None, numbers).width for c in (0.7, 0.9)]
    assert widths[0]["all"] < widths[1]["all"]


@pytest.mark.parametrize("task", ["classes", "numbers"])
def test_any_layout_gives_the_same(problem, task, monkeypatch):
    emb, classes, numbers = problem
    conformal = fit_conformal(None, *((classes, "logistic") if task == "classes" else (numbers, "ridge")))
    expected = conformal.predict(emb)
    lazy = conformal.predict(emb.chunk(y=17, x=23, band=5))
    assert all(v.chunks is not None for v in lazy.values())
    xr.testing.assert_allclose(lazy.compute(), expected, rtol=1e-4)
    monkeypatch.setattr("tessera_xr.learning.conformal.STRETCH", 7)
    part = {"y": slice(0, 3)}
    xr.testing.assert_allclose(conformal.predict(emb.isel(part)), expected.isel(part), rtol=1e-4)
    monkeypatch.undo()
    codes = quantize(emb)
    xr.testing.assert_allclose(conformal.predict(codes.chunk(y=20)).compute(), conformal.predict(codes), rtol=1e-4)
    both = xr.concat([emb, emb.isel(x=slice(None, None, -1)).assign_coords(x=emb.x)], xr.Variable("time", [2020, 2021]))
    found = conformal.predict(both)
    assert all("time" in v.dims for v in found.values())
    xr.testing.assert_allclose(found.sel(time=2020, drop=True), expected)
    xr.testing.assert_allclose(conformal.predict(both, time=2020).drop_vars("time"), expected)
    for name in expected:
        np.testing.assert_allclose(found[name].sel(time=2021), expected[name].isel(x=slice(None, None, -1)))


def test_polygons_are_held_out_whole_and_count_alike(problem):
    _, sample, _ = problem
    grouped = replace(sample, groups=np.minimum(np.arange(900) // 10, 30))
    conformal = fit_conformal(None, grouped, by="polygon")
    assert sum(conformal.n_blocks) == 31
    assert conformal.block is None
    assert "calibrated on 16 polygons" in repr(conformal)
    table = conformal.coverage(None, grouped)
    assert table.loc["all", "coverage"] != table.loc["all", "coverage_labels"]
    single = conformal.coverage(None, sample)
    assert single.loc["all", "coverage"] == pytest.approx(single.loc["all", "coverage_labels"])


def test_the_draw_is_seeded(problem):
    emb, sample, _ = problem
    first, again, other = (fit_conformal(None, sample, seed=s).predict(emb)["set"] for s in (0, 0, 1))
    xr.testing.assert_identical(first, again)
    assert not first.equals(other)
    assert "90% sets (lac), fitted to" in repr(fit_conformal(None, sample))


def test_a_class_that_was_never_taught_is_never_covered(problem):
    _, sample, _ = problem
    known = sample.take(sample.y != "c")
    table = fit_conformal(None, known).coverage(None, sample)
    assert table.loc["c", "coverage"] == 0
    assert table.index.tolist() == ["all", *NAMES]


def test_faults(problem):
    from sklearn.svm import LinearSVC

    emb, sample, numbers = problem
    with pytest.raises(SchemaError, match=r"takes 10 blocks or more to calibrate on, here are \d of \d+; .*smaller bl"):
        fit_conformal(None, sample, block=200)
    with pytest.raises(SchemaError, match="takes 100 blocks or more"):
        fit_conformal(None, sample, confidence=0.99)
    few = replace(sample, groups=np.arange(900) // 100)
    with pytest.raises(SchemaError, match=r"takes 10 polygons or more .* here are 4 of 9; .*at most confidence=0.75"):
        fit_conformal(None, few, by="polygon")
    lonely = replace(sample, y=np.where(np.arange(900) == 5, "c", np.where(sample.y == "c", "a", sample.y)))
    with pytest.warns(TesseraWarning, match="no block to calibrate on holds c; label such places"):
        assert "c" in fit_conformal(None, lonely).head.classes
    with pytest.raises(SchemaError, match=r"\(c: in one block only\); label rare classes in more places"):
        fit_conformal(None, lonely, calibration=0.99)
    for name in ("confidence", "calibration"):
        with pytest.raises(SchemaError, match=f"{name} must be above 0 and below 1, not 1"):
            fit_conformal(None, sample, **{name: 1})
    with pytest.raises(
        SchemaError, match="method='absolute' is not for labels that are classes; choose 'lac' or 'aps'"
    ):
        fit_conformal(None, sample, method="absolute")
    with pytest.raises(SchemaError, match="method='lac' is not for labels that are numbers; choose 'absolute'"):
        fit_conformal(None, numbers, "ridge", method="lac")
    with pytest.raises(SchemaError, match="'aps' needs labels of three classes or more"):
        fit_conformal(None, sample.take(sample.y != "c"), method="aps")
    with pytest.raises(SchemaError, match="gives no probabilities"):
        fit_conformal(None, sample, LinearSVC())
    conformal = fit_conformal(None, sample)
    with pytest.raises(VersionMismatchError, match="differ in model"):
        conformal.predict(emb.assign_attrs(model="other"))
    with pytest.raises(VersionMismatchError, match="differ in model"):
        conformal.coverage(emb.assign_attrs(model="other"), sample)


def test_a_map_is_told_where_no_label_is_like_it():
    emb = tutorial.embeddings().sel(time=2022)
    lost = (tutorial.labels().lossyear == 21).values
    everywhere = LabelSet.from_raster(
        tutorial.labels().lossyear == 21, names={True: "lost", False: "there"}, shapes="points", n_per_class=700
    ).sample(emb)
    forest = everywhere.take(everywhere.y == "there")
    found, partial = applicability(emb, everywhere), applicability(emb, forest)
    assert 0.9 < float(found.inside.mean()) < 1
    assert float(partial.inside.values[lost].mean()) < float(found.inside.values[lost].mean()) - 0.2
    np.testing.assert_array_equal(found.inside, found.percentile <= 95)
    assert (applicability(emb, everywhere, beyond=50).inside <= found.inside).all()
    lazy = applicability(emb.chunk(y=20), everywhere)
    assert lazy.inside.chunks is not None
    np.testing.assert_array_equal(lazy.inside, found.inside)
    assert found.inside.odc.crs == emb.odc.crs
    with pytest.raises(SchemaError, match="beyond=0 must be a percentile"):
        applicability(emb, everywhere, beyond=0)
