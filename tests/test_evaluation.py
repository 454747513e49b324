"""What accuracy to expect elsewhere: honest where pixels at random are not, the same draws for all, and intervals."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from odc.geo.geobox import GeoBox
from scipy.ndimage import gaussian_filter
from sklearn import metrics as sk
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import Ridge, RidgeClassifier
from sklearn.model_selection import GroupKFold, LeaveOneGroupOut
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor

from tessera_xr import tutorial
from tessera_xr.embedding.quantize import quantize
from tessera_xr.embedding.schema import COUNTS, build_embeddings
from tessera_xr.errors import GridError, SchemaError, TesseraWarning, VersionMismatchError
from tessera_xr.grid import with_grid
from tessera_xr.learning.comparison import compared_subjects
from tessera_xr.learning.draws import draw_labels, draw_priorities, make_draw, match_counts
from tessera_xr.learning.evaluation import evaluate, validate
from tessera_xr.learning.heads import fit_sample
from tessera_xr.learning.intervals import bootstrap, place_sums
from tessera_xr.learning.labels import LabelSet
from tessera_xr.learning.metrics import (
    class_scores,
    confusion,
    number_moments,
    number_scores,
    per_class,
    scores_of_confusions,
    scores_of_moments,
)
from tessera_xr.learning.samples import LabelSample
from tessera_xr.learning.splits import random_folds, spatial_folds

SIZE, BANDS, SIDE = 60, 6, 5
NAMES = ("barley", "maize", "wheat")
COLOURS = dict(zip(NAMES, ("#aa0000", "#00aa00", "#0000aa"), strict=True))


def made(values: np.ndarray, west: float = 600_000, **attrs: str) -> xr.Dataset:
    """Return embeddings of values (y, x, band), pixels of 10 m."""
    ny, nx = values.shape[:2]
    box = GeoBox.from_bbox((west, 5_000_000, west + 10 * nx, 5_000_000 + 10 * ny), "EPSG:32631", resolution=10)
    variables = {name: xr.DataArray(np.full((ny, nx), 30, np.uint16), dims=("y", "x")) for name in COUNTS}
    variables["embeddings"] = xr.DataArray(values.astype(np.float32), dims=("y", "x", "band"))
    return build_embeddings(variables, with_grid(xr.Dataset(), box), {"model": "m", "weights_sha256": "a"} | attrs)


def landscape(seed: int = 0, noise: float = 1.5) -> tuple[np.ndarray, np.ndarray]:
    """Return the class of square fields (y, x) and values (y, x, band) that tell it, with noise."""
    rng = np.random.default_rng(seed)
    fields = rng.integers(0, len(NAMES), (SIZE // SIDE, SIZE // SIDE))
    cover = np.kron(fields, np.ones((SIDE, SIDE), int))
    values = rng.normal(size=(len(NAMES), BANDS))[cover] * 1.5
    own = np.kron(rng.normal(size=(*fields.shape, BANDS)), np.ones((SIDE, SIDE, 1)))  # what a field has for itself
    return cover, values + noise * own + 0.3 * rng.normal(size=values.shape)


def labelled(emb: xr.Dataset, y: np.ndarray, groups: np.ndarray, target: str | None = None) -> LabelSample:
    """Return every pixel of a map as labelled, with qualities."""
    rows, columns = (i.ravel() for i in np.indices(y.shape))
    return LabelSample(
        X=emb.embeddings.transpose("y", "x", "band").values.reshape(y.size, -1),
        y=y.ravel(),
        groups=groups.ravel().astype(np.intp),
        weights=np.random.default_rng(7).uniform(0.2, 1, y.size),
        x_map=emb.x.values[columns],
        y_map=emb.y.values[rows],
        rows=rows.astype(np.intp),
        columns=columns.astype(np.intp),
        classes={} if target else dict(COLOURS),
        target=target,
        attrs={k: emb.attrs[k] for k in ("model", "weights_sha256")},
        crs="EPSG:32631",
        shape=y.shape,
    )


FIELD = np.kron(np.arange((SIZE // SIDE) ** 2).reshape(SIZE // SIDE, -1), np.ones((SIDE, SIDE), int))


@pytest.fixture(scope="module")
def emb() -> xr.Dataset:
    return made(landscape()[1])


@pytest.fixture(scope="module")
def sample(emb) -> LabelSample:
    return labelled(emb, np.array(NAMES)[landscape()[0]], FIELD)


@pytest.fixture(scope="module")
def numbers(emb) -> LabelSample:
    values = landscape()[1]
    y = values[..., 0] * 10 + np.random.default_rng(1).normal(size=values.shape[:2])
    return labelled(emb, y, FIELD, target="biomass")


# Scores ---------------------------------------------------------------------------------------------------------------


def drawn_classes(n: int = 500, k: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, k, n)
    predicted = np.where(rng.random(n) < 0.6, truth, rng.integers(0, k, n))
    return truth, predicted, rng.uniform(0.1, 1, n)


@pytest.mark.parametrize("seed", range(3))
def test_class_scores_are_scikit_learns_and_those_of_sums_the_same(seed):
    truth, predicted, weights = drawn_classes(seed=seed)
    found = class_scores(truth, predicted, weights)
    expected = {
        "macro_f1": sk.f1_score(truth, predicted, average="macro", sample_weight=weights),
        "weighted_f1": sk.f1_score(truth, predicted, average="weighted", sample_weight=weights),
        "balanced_accuracy": sk.balanced_accuracy_score(truth, predicted, sample_weight=weights),
        "accuracy": sk.accuracy_score(truth, predicted, sample_weight=weights),
    }
    assert found == pytest.approx(expected)
    cells = sk.confusion_matrix(truth, predicted, sample_weight=weights)
    many = scores_of_confusions(np.stack([cells, cells * 3]))
    for name, value in expected.items():
        np.testing.assert_allclose(many[name], [value, value])


def test_classes_that_the_truth_lacks_are_in_no_mean():
    truth, predicted, weights = drawn_classes()
    truth[truth == 2] = 3
    there = [0, 1, 3]
    found = class_scores(truth, predicted, weights)
    each = sk.f1_score(truth, predicted, labels=there, average=None, sample_weight=weights)
    assert found["macro_f1"] == pytest.approx(each.mean())
    many = scores_of_confusions(sk.confusion_matrix(truth, predicted, sample_weight=weights)[None])
    assert {name: value[0] for name, value in many.items()} == pytest.approx(found)


@pytest.mark.parametrize("shift", [0.0, 1e4])
def test_number_scores_are_scikit_learns_and_those_of_sums_the_same(shift):
    rng = np.random.default_rng(0)
    truth, weights = rng.normal(size=300) + shift, rng.uniform(0.1, 1, 300)
    predicted = truth * 0.9 + 0.1 * shift + rng.normal(0.2, 0.5, 300)
    expected = {
        "rmse": sk.root_mean_squared_error(truth, predicted, sample_weight=weights),
        "mae": sk.mean_absolute_error(truth, predicted, sample_weight=weights),
        "r2": sk.r2_score(truth, predicted, sample_weight=weights),
        "bias": np.average(predicted - truth, weights=weights),
    }
    assert number_scores(truth, predicted, weights) == pytest.approx(expected)
    sums = (number_moments(truth, predicted, shift) * weights[:, None]).sum(axis=0)
    for name, values in scores_of_moments(np.stack([sums, 2 * sums])).items():
        np.testing.assert_allclose(values, expected[name])


def test_the_table_of_classes_and_the_confusion_agree():
    truth, predicted, weights = drawn_classes()
    names = np.array(["a", "b", "c", "d"])
    table = per_class(names[truth], names[predicted], list("dcba"), weights)
    cells = confusion(names[truth], names[predicted], list("dcba"), weights)
    assert list(table.index) == list(cells.index) == list(cells.columns) == list("dcba")
    np.testing.assert_allclose(cells.sum(axis=1), table.support)
    np.testing.assert_allclose(np.diag(cells) / cells.sum(axis=0), table.precision)
    np.testing.assert_allclose(np.diag(cells) / cells.sum(axis=1), table.recall)
    assert cells.loc["a", "b"] == pytest.approx(weights[(truth == 0) & (predicted == 1)].sum())


# Validation -----------------------------------------------------------------------------------------------------------


def test_predictions_are_of_heads_that_had_not_seen_them(sample):
    found = validate(None, sample, GaussianNB(), n_folds=3, block=100.0, buffer=20.0, seed=5)
    folds = spatial_folds(sample, 3, block=100.0, buffer=20.0, seed=5)
    held = found.predictions
    np.testing.assert_array_equal(held.index, np.arange(len(sample)))
    np.testing.assert_array_equal(held["fold"], folds.fold)
    for number, (train, test) in enumerate(folds.split()):
        head = fit_sample(sample.take(train), GaussianNB())
        np.testing.assert_array_equal(held.loc[held["fold"] == number, "predicted"], head.predict_rows(sample.X[test]))
        chances = head.probability_rows(sample.X[test])
        np.testing.assert_allclose(held.loc[test, "probability"], chances.max(axis=1))
        np.testing.assert_allclose(found.probabilities.loc[test, list(head.classes)], chances)
    for column, expected in {"truth": sample.y, "row": sample.rows, "column": sample.columns, "group": sample.groups,
                             "weight": sample.weights, "x": sample.x_map, "y": sample.y_map}.items():  # fmt: skip
        np.testing.assert_array_equal(held[column], expected)


def test_scores_are_of_all_folds_together_and_weighted(sample):
    found = validate(None, sample, GaussianNB(), folds="polygon")
    held = found.predictions
    expected = sk.f1_score(held["truth"], held["predicted"], average="macro", sample_weight=sample.weights)
    assert found.scores["macro_f1"] == pytest.approx(expected)
    assert found.scores["macro_f1"] != pytest.approx(sk.f1_score(held["truth"], held["predicted"], average="macro"))
    auc = sk.roc_auc_score(held["truth"] == "maize", found.probabilities["maize"], sample_weight=held["weight"])
    others = [n for n in NAMES if n != "maize"]
    auc += sum(
        sk.roc_auc_score(held["truth"] == n, found.probabilities[n], sample_weight=held["weight"]) for n in others
    )
    assert found.scores["auc"] == pytest.approx(auc / 3)
    assert found.per_class["support"].sum() == pytest.approx(sample.weights.sum())
    assert found.confusion.to_numpy().sum() == pytest.approx(sample.weights.sum())
    assert list(found.per_class.index) == list(NAMES)


def test_numbers_are_validated_too(numbers):
    found = validate(None, numbers, Ridge(), folds="polygon", n_folds=4)
    held = found.predictions
    assert held["truth"].dtype == held["predicted"].dtype == np.float64
    expected = number_scores(held["truth"], held["predicted"], numbers.weights)
    assert found.scores == pytest.approx(expected)
    assert found.scores["r2"] > 0.9
    assert found.per_class is found.confusion is found.probabilities is None
    assert "r2 0.9" in repr(found)


def test_it_can_be_read(sample):
    found = validate(None, sample, {"my <head>": GaussianNB()}["my <head>"], n_folds=3, block=100)
    text = repr(found)
    assert text.startswith("Validation of GaussianNB: 3 folds of blocks of 100 m; 3,600 pixels of 144 labels\n")
    for word in ("macro_f1 0.", "precision", "support", "Rows: truth", "wheat"):
        assert word in text
    html = found._repr_html_()
    assert html.count("<table") == 2
    assert "precision" in html


def test_a_head_without_probabilities_has_none(sample):
    found = validate(None, sample, RidgeClassifier(), n_folds=3)
    assert found.probabilities is None
    assert found.predictions["probability"].isna().all()
    assert "auc" not in found.scores
    assert np.isnan(evaluate(None, sample, RidgeClassifier(), n_draws=1, n_folds=3, progress=False)["auc"]).all()


def test_who_has_seen_one_class_says_that(sample):
    two = sample.take(np.isin(sample.y, NAMES[:2]))
    place = np.where(two.groups == two.groups[two.y == "barley"][0], "barley", "maize")
    lonely = replace(two, y=place)
    others = [
        (np.flatnonzero(place == a), np.flatnonzero(place == b)) for a, b in (("maize", "barley"), ("barley", "maize"))
    ]
    found = validate(None, lonely, GaussianNB(), folds=PredefinedFolds(others))
    held = found.predictions[found.predictions["truth"] == "barley"]
    assert (held["predicted"] == "maize").all()
    assert (held["probability"] == 1).all()
    assert found.per_class.loc["barley", "recall"] == 0


class PredefinedFolds:
    """A splitter that someone made by hand."""

    def __init__(self, folds):
        self.folds = folds

    def split(self, X=None, y=None, groups=None):
        yield from self.folds


def test_a_class_in_one_place_is_told_and_two_are_needed_to_judge(sample):
    lonely = replace(
        sample,
        y=np.where(sample.groups == sample.groups[0], "orchard", sample.y),
        classes={**sample.classes, "orchard": "#123456"},
    )
    with pytest.warns(TesseraWarning, match="orchard: in one polygon only"):
        found = validate(None, lonely, GaussianNB(), folds="polygon", n_folds=3)
    assert found.per_class.loc["orchard", "recall"] == 0
    one = np.where(sample.groups == sample.groups[0], "orchard", "maize")
    hopeless = replace(sample, y=one, classes={"orchard": "#123456", "maize": "#654321"})
    for ask in (validate, evaluate):
        with pytest.raises(SchemaError, match="only 1 of 2 classes lie in two polygons or more"):
            ask(None, hopeless, GaussianNB(), folds="polygon", n_folds=3)


def test_a_class_that_is_only_predicted_counts_against_the_interval_too(sample):
    head = fit_sample(sample, GaussianNB())
    some = sample.take(sample.y != "maize")
    found = head.score(None, some)
    assert (found.predictions["predicted"] == "maize").any()
    low, high = found.intervals["accuracy"]
    assert low < found.scores["accuracy"] < high
    assert found.scores["accuracy"] == pytest.approx(
        np.average(head.predict_rows(some.X) == some.y, weights=some.weights)
    )
    zebra = replace(
        sample,
        y=np.where(sample.y == "maize", "zebra", sample.y),
        classes={"zebra": "#000000", **{k: v for k, v in sample.classes.items() if k != "maize"}},
    )
    again = fit_sample(zebra, GaussianNB()).score(None, some)
    for name, ends in found.intervals.items():
        np.testing.assert_allclose(again.intervals[name], ends)


def test_labels_are_sampled_from_the_map(emb, sample):
    raster = emb.s2_obs_count.copy(data=(landscape()[0] + 1).astype(np.uint8)).assign_attrs(
        flag_values=[1, 2, 3], flag_meanings=" ".join(NAMES)
    )
    labels = LabelSet.from_raster(raster)
    found = validate(emb, labels, GaussianNB(), n_folds=3, block=100)
    assert len(found.predictions) == len(sample)
    two = xr.concat([emb, emb], "time").assign_coords(time=[2020, 2021])
    table = evaluate(two, labels, GaussianNB(), time=2021, n_draws=1, n_folds=3, progress=False)
    assert table["macro_f1"].item() > 0.4
    with pytest.raises(VersionMismatchError):
        validate(emb.assign_attrs(model="other"), sample, GaussianNB())


class Painted(ClassifierMixin, BaseEstimator):
    """Naive Bayes that learns from and draws images, as a UNet does."""

    takes_images, margin = True, 0

    def fit(self, images, targets, weights=None, groups=None):
        there = [target >= 0 for target in targets]
        X = np.concatenate([image[:, at].T for image, at in zip(images, there, strict=True)])
        y, w = (np.concatenate([a[at] for a, at in zip(b, there, strict=True)]) for b in (targets, weights))
        self.inner_ = GaussianNB().fit(X, y, w)
        self.classes_ = self.inner_.classes_
        return self

    def predict_proba(self, image):
        return self.inner_.predict_proba(image.reshape(len(image), -1).T).T.reshape(-1, *image.shape[1:])


def test_heads_that_learn_from_maps_are_judged_in_the_same_folds(emb, sample):
    options = {"n_folds": 3, "block": 100.0, "buffer": 20.0}
    painted, plain = (validate(emb, sample, model, **options) for model in (Painted(), GaussianNB()))
    pd.testing.assert_frame_equal(painted.predictions, plain.predictions, check_exact=False, atol=1e-4)
    assert painted.scores == pytest.approx(plain.scores)
    models, options = [Painted(), GaussianNB()], {"n_draws": 1, "n_folds": 3, "fractions": (20,), "progress": False}
    dated = xr.concat([emb, emb], "time").assign_coords(time=[2020, 2021]).assign_attrs(emb.attrs)
    table = evaluate(dated, sample, models, time=2021, **options)
    np.testing.assert_allclose(table.iloc[0], table.iloc[1], atol=1e-3)
    several = evaluate(None, sample, models, inputs={"codes": quantize(emb), "floats": emb}, **options)
    np.testing.assert_allclose(several.loc["floats"].iloc[0], table.iloc[0], atol=1e-3)
    np.testing.assert_allclose(several.loc["codes"].iloc[0], several.loc["codes"].iloc[1], atol=1e-3)


# The lesson -----------------------------------------------------------------------------------------------------------


def smooth(seed: int, n: int, reach: float, size: int = 80) -> np.ndarray:
    """Return n fields (y, x, n) that vary over some `reach` pixels, of variance 1."""
    rng = np.random.default_rng(seed)
    each = [gaussian_filter(rng.normal(size=(size, size)), reach, mode="wrap") for _ in range(n)]
    return np.stack([(f - f.mean()) / f.std() for f in each], axis=-1)


@pytest.fixture(scope="module")
def noise() -> LabelSample:
    """Smooth truth, and smooth inputs that have nothing to do with it."""
    inputs, truth = made(smooth(1, 12, 4)), smooth(2, 1, 4)[..., 0]
    y = np.where(truth > 0, "maize", "wheat")
    whole = labelled(inputs, y, np.arange(y.size).reshape(y.shape))
    return whole.take(np.random.default_rng(3).permutation(y.size)[:1500])


def test_noise_has_no_skill_in_space_but_would_claim_it(noise):
    options = {"block": 200, "n_draws": 2, "progress": False}
    table = evaluate(None, noise, KNeighborsClassifier(5), buffer=80, **options).iloc[0]
    assert 0.4 < table["macro_f1"] < 0.6
    assert table["macro_f1_low"] < 0.5 < table["macro_f1_high"]
    assert 0.4 < table["auc"] < 0.6
    assert table["macro_f1_random"] > 0.8
    assert table["gap"] > 0.3
    assert table["gap"] == pytest.approx(table["macro_f1_random"] - table["macro_f1"])
    touching = evaluate(None, noise, KNeighborsClassifier(5), **options).iloc[0]
    assert table["macro_f1"] + 0.05 < touching["macro_f1"] < touching["macro_f1_random"] - 0.2, "borders leak"
    claimed = evaluate(None, noise, KNeighborsClassifier(5), folds="random", n_draws=2, progress=False).iloc[0]
    assert claimed["macro_f1_low"] > 0.8, "pixels at random believe it, interval and all"
    assert claimed["gap"] == 0


def test_noise_has_no_skill_for_numbers_either():
    inputs, truth = made(smooth(1, 12, 4)), smooth(2, 1, 4)[..., 0]
    whole = labelled(inputs, truth, np.arange(truth.size).reshape(truth.shape), target="height")
    some = whole.take(np.random.default_rng(3).permutation(truth.size)[:1500])
    table = evaluate(None, some, KNeighborsRegressor(5), block=200, buffer=80, n_draws=2, progress=False).iloc[0]
    assert table["r2_low"] < table["r2"] < 0 < 0.6 < table["r2_random"]
    assert table["gap"] == pytest.approx(table["r2_random"] - table["r2"])


def test_what_fields_have_for_themselves_makes_the_gap(sample):
    own = evaluate(None, sample, KNeighborsClassifier(5), n_draws=2, progress=False).iloc[0]
    plain = labelled(made(landscape(noise=0)[1]), sample.y.reshape(SIZE, SIZE), FIELD)
    none = evaluate(None, plain, KNeighborsClassifier(5), n_draws=2, progress=False).iloc[0]
    assert own["gap"] > 0.06
    assert abs(none["gap"]) < 0.02


# Draws ----------------------------------------------------------------------------------------------------------------


def first_of(sample: LabelSample, seed: int = 0):
    return draw_priorities(sample, np.random.default_rng(seed))


@pytest.mark.parametrize("seed", range(3))
def test_fractions_are_whole_labels_of_each_class_one_in_the_other(sample, seed):
    train = np.flatnonzero(sample.groups % 4 != seed)
    first, before = first_of(sample, seed), np.array([], dtype=int)
    for fraction in (0.02, 0.1, 0.3, 0.8, 1):
        chosen = draw_labels(sample, train, fraction, first)
        assert np.isin(before, chosen).all()
        assert np.isin(chosen, train).all()
        for name in NAMES:
            labels = np.unique(sample.groups[train[sample.y[train] == name]])
            drawn = np.unique(sample.groups[chosen[sample.y[chosen] == name]])
            assert len(drawn) == max(1, round(fraction * len(labels)))
            if fraction * len(labels) > 0.5:
                whole = np.isin(sample.groups, drawn)
                assert np.isin(np.flatnonzero(whole), chosen).all()
        before = chosen
    np.testing.assert_array_equal(before, train)


def test_less_than_half_a_label_is_some_of_its_pixels(sample):
    train = np.flatnonzero(sample.groups < 20)
    chosen = draw_labels(sample, train, 0.01, first_of(sample))
    for name in np.unique(sample.y[train]):
        rows = chosen[sample.y[chosen] == name]
        assert len(np.unique(sample.groups[rows])) == 1
        assert len(rows) == max(1, round(0.01 * (sample.y[train] == name).sum()))


def test_whole_numbers_are_pixels_of_each_class(sample):
    train, first = np.flatnonzero(sample.groups % 3 > 0), first_of(sample)
    five, twenty, all_of_them = (draw_labels(sample, train, n, first) for n in (5, 20, 10_000))
    assert {int((sample.y[five] == n).sum()) for n in NAMES} == {5}
    assert {int((sample.y[twenty] == n).sum()) for n in NAMES} == {20}
    assert np.isin(five, twenty).all()
    np.testing.assert_array_equal(all_of_them, train)
    assert len(np.unique(sample.groups[twenty])) > 30, "wherever they lie"


def test_numbers_are_drawn_by_quarters(numbers):
    train = np.arange(len(numbers))
    chosen = draw_labels(numbers, train, 0.1, first_of(numbers))
    means = pd.Series(numbers.y).groupby(numbers.groups).mean()
    drawn = np.unique(numbers.groups[chosen])
    counts = np.histogram(means[drawn], np.quantile(means, [0, 0.25, 0.5, 0.75, 1]))[0]
    assert counts.tolist() == [4, 4, 4, 4]
    assert len(draw_labels(numbers, train, 50, first_of(numbers))) == 50


def test_the_reference_learns_from_as_many_of_each_class(sample, numbers):
    draw = make_draw(sample, "spatial", 4, None, 0.0, [0, 0])
    for fraction in (0.05, 0.3, 7):
        apart = draw.apart(sample, fraction)
        mixed = draw.mixed(sample, apart)
        for (train, test), (other, judged) in zip(apart, mixed, strict=True):
            for name in NAMES:
                assert (sample.y[train] == name).sum() == (sample.y[other] == name).sum()
            assert not np.intersect1d(other, judged).size
            assert not np.intersect1d(train, test).size
    some = match_counts(numbers, np.arange(1000), np.arange(70), first_of(numbers))
    assert len(some) == 70
    assert not np.array_equal(some, np.arange(70))


def test_heads_and_inputs_get_the_same_draws(emb, sample):
    options = {"fractions": (4, 0.3), "n_draws": 2, "n_folds": 3, "progress": False}
    twice = evaluate(None, sample, {"a": GaussianNB(), "b": GaussianNB()}, inputs={"x": emb, "y": emb}, **options)
    assert list(twice.index.names) == ["inputs", "head", "fraction"]
    assert len(twice) == 8
    assert list(twice.index[:3]) == [("x", "a", 4), ("x", "a", 0.3), ("x", "b", 4)]
    for key in (("x", "b"), ("y", "a"), ("y", "b")):
        pd.testing.assert_frame_equal(twice.loc[key], twice.loc["x", "a"])
    alone = evaluate(emb, sample, GaussianNB(), **{**options, "fractions": (0.3,)})
    np.testing.assert_allclose(alone.iloc[0], twice.loc["x", "a"].iloc[1])
    other = evaluate(emb, sample, GaussianNB(), seed=1, **options)
    assert not np.allclose(other["macro_f1"], twice.loc["x", "a"]["macro_f1"])
    assert twice["n_pixels"].tolist() == [12, *twice["n_pixels"][1:2], *[12, twice["n_pixels"].iloc[1]] * 3]
    assert twice.attrs["folds"].startswith("3 folds of blocks of ")


def test_one_draw_of_all_labels_is_a_validation(sample, numbers):
    for labels, model in ((sample, GaussianNB()), (numbers, Ridge())):
        for folds in (spatial_folds(labels, 4), GroupKFold(4), random_folds(labels, 4)):
            table = evaluate(None, labels, model, folds=folds, n_draws=1, progress=False).iloc[0]
            expected = validate(None, labels, model, folds=folds).scores
            assert {k: table[k] for k in expected} == pytest.approx(expected)
            assert table["n_pixels"] == pytest.approx(
                np.mean([len(a) for a, _ in folds.split(labels.X, labels.y, labels.groups)])
            )
    assert np.isnan(table["r2_sd"])


def test_more_labels_are_better_in_the_mean(sample):
    table = evaluate(None, sample, GaussianNB(), fractions=(6, 0.1, 1.0), n_draws=2, progress=False)
    assert (np.diff(table["macro_f1"]) > 0).all()
    assert (np.diff(table["n_pixels"]) > 0).all()
    for name in ("macro_f1", "weighted_f1", "balanced_accuracy", "accuracy"):
        assert (table[f"{name}_low"] < table[name]).all()
        assert (table[name] < table[f"{name}_high"]).all()
    assert list(table.columns[:4]) == ["n_pixels", "macro_f1", "macro_f1_low", "macro_f1_high"]
    assert list(table.columns[-4:]) == ["auc", "macro_f1_sd", "macro_f1_random", "gap"]


# Intervals ------------------------------------------------------------------------------------------------------------


def accuracy(total: np.ndarray) -> dict[str, np.ndarray]:
    return {"accuracy": total[:, 1] / total.sum(axis=1)}


@pytest.mark.parametrize("n_places", [6, 40])
def test_intervals_cover_the_truth_as_often_as_they_say(n_places):
    rng, inside, naive = np.random.default_rng(0), [], []
    for seed in range(200):
        rate = rng.beta(7, 3, n_places)  # of each place; 0.7 in the mean
        hits = rng.binomial(50, rate).astype(float)
        sums = place_sums(
            np.tile(np.arange(n_places), 2), np.repeat([1, 0], n_places), np.r_[hits, 50 - hits], (n_places, 2)
        )
        low, high = bootstrap([sums], accuracy, confidence=0.9, seed=seed)["accuracy"]
        inside.append(low < 0.7 < high)
        mean, n = hits.sum() / (50 * n_places), 50 * n_places
        naive.append(abs(mean - 0.7) < 1.645 * np.sqrt(mean * (1 - mean) / n))
    assert 0.85 <= np.mean(inside) <= 0.95
    assert np.mean(naive) < 0.6, "an interval over pixels is too narrow"


def test_intervals_are_of_the_mean_over_draws():
    rng, places = np.random.default_rng(0), np.arange(30)

    def sums(hits: np.ndarray) -> object:
        return place_sums(np.tile(places, 2), np.repeat([1, 0], 30), np.r_[hits, 50 - hits], (30, 2))

    hits = rng.binomial(50, 0.7, 30).astype(float)
    low, high = bootstrap([sums(hits)], accuracy)["accuracy"]
    again = bootstrap([sums(hits)] * 5, accuracy)["accuracy"]
    assert again == pytest.approx((low, high), abs=0.01), "draws that agree tell nothing new"
    spread = [sums(np.clip(hits + shift, 0, 50)) for shift in (-10, -5, 0, 5, 10)]
    wider = bootstrap(spread, accuracy)["accuracy"]
    assert wider[1] - wider[0] > 1.5 * (high - low)
    wide = bootstrap([sums(hits)], accuracy, confidence=0.99)["accuracy"]
    assert wide[0] < low < high < wide[1]


def test_one_place_tells_no_interval():
    sums = place_sums(np.zeros(2, int), np.array([0, 1]), np.array([3.0, 7.0]), (1, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isnan(bootstrap([sums], accuracy)["accuracy"]).all()


def test_the_interval_follows_places_not_pixels(sample):
    """A map drawn twice as fine holds four times the pixels, and no more to know."""
    fine = sample.take(np.repeat(np.arange(len(sample)), 4))
    tables = [
        evaluate(None, s, GaussianNB(), folds="polygon", n_draws=2, progress=False).iloc[0] for s in (sample, fine)
    ]
    widths = [t["accuracy_high"] - t["accuracy_low"] for t in tables]
    assert widths[1] > 0.8 * widths[0]


# Inputs ---------------------------------------------------------------------------------------------------------------


def test_inputs_are_compared_pixel_by_pixel(emb, sample):
    values = emb.embeddings.transpose("y", "x", "band").values.copy()
    values[:3] = np.nan
    short = made(values[..., :2], model="raw medians")
    codes = quantize(emb)
    codes["scales"][:, 5] = np.inf
    inputs = {"whole": emb, "codes": codes, "short": short.chunk(y=7, x=9)}
    with pytest.warns(TesseraWarning, match=r"^237 of 3600 labelled pixels have no data in some input"):
        found = {name: subject.sample for name, subject in compared_subjects(sample, None, inputs).items()}
    held = (sample.rows >= 3) & (sample.columns != 5)
    for name, one in found.items():
        np.testing.assert_array_equal(one.rows, sample.rows[held])
        np.testing.assert_array_equal(one.y, sample.y[held])
        assert one.attrs["model"] == inputs[name].attrs["model"]
    np.testing.assert_array_equal(found["whole"].X, sample.X[held])
    np.testing.assert_array_equal(found["short"].X, sample.X[held][:, :2])
    np.testing.assert_allclose(
        found["codes"].X,
        sample.X[held],
        atol=float(np.nanmax(np.where(np.isfinite(codes.scales), codes.scales, 0))) / 2 + 1e-6,
    )
    with pytest.warns(TesseraWarning, match="left out of all"):
        table = evaluate(emb, sample, GaussianNB(), inputs=inputs, n_draws=1, progress=False)
    assert table.attrs["n_pixels"] == held.sum()
    assert abs(table.loc["codes", "macro_f1"].item() - table.loc["whole", "macro_f1"].item()) < 0.03
    assert table.loc["short", "macro_f1"].item() < table.loc["whole", "macro_f1"].item()


def test_inputs_with_and_without_times(emb, sample):
    dated = xr.concat([emb, emb * 0 + 1], "time").assign_coords(time=[2020, 2021]).assign_attrs(emb.attrs)
    found = compared_subjects(sample, 2020, {"dated": dated, "plain": emb})
    np.testing.assert_array_equal(found["dated"].sample.X, found["plain"].sample.X)
    with pytest.raises(SchemaError, match="which time"):
        compared_subjects(sample, None, {"dated": dated})


def test_inputs_that_can_not_be_compared(emb, sample):
    moved = made(landscape()[1], west=600_010)
    with pytest.raises(GridError, match=r"'a' and 'b' are on different grids \(60 x 60 px from 600000"):
        evaluate(None, sample, inputs={"a": emb, "b": moved}, progress=False)
    with pytest.raises(GridError, match="different grids"):
        evaluate(None, sample, inputs={"a": emb, "b": emb.isel(y=slice(50))}, progress=False)
    small = emb.isel(y=slice(50))
    with pytest.raises(GridError, match=r"the sample is of a map of \(60, 60\) pixels"):
        evaluate(None, sample, inputs={"a": small}, progress=False)
    nothing = emb.assign(embeddings=emb.embeddings * np.nan)
    with pytest.raises(SchemaError, match="no labelled pixel has data in all inputs"):
        evaluate(None, sample, inputs={"a": emb, "b": nothing}, progress=False)
    with pytest.raises(SchemaError, match="inputs= is empty"):
        evaluate(None, sample, inputs={}, progress=False)
    with pytest.raises(SchemaError, match="needs embeddings"):
        evaluate(None, sample, inputs={"a": emb.drop_vars("embeddings")}, progress=False)


# Faults ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"folds": "blocks"}, "folds='blocks' is unknown; choose 'spatial', 'polygon' or 'random', or give"),
        ({"folds": 5}, "folds=5 is unknown"),
        ({"folds": "random", "buffer": 10}, "block= and buffer= are for folds='spatial'"),
        ({"folds": GroupKFold(3), "block": 10}, "block= and buffer= are for"),
        ({"folds": "polygon", "block": 10}, "block= is for by='block'"),
        ({"folds": GroupKFold(300)}, "GroupKFold can't divide these labels: Cannot have number of splits"),
        ({"n_folds": 200, "folds": "polygon"}, r"there are 144 labels .*too few for 200 folds"),
        ({"n_folds": 50, "block": 300}, r"144 labels lie in \d+ blocks of 300 m, too few for 50 folds"),
        ({"model": "unet"}, "a UNet learns from the map around the labels; pass the embeddings too"),
        ({"model": "oracle"}, "model='oracle' is unknown"),
        ({"model": "ridge"}, "is for numbers"),
    ],
    ids=str,
)
def test_faults_of_both(sample, options, match):
    with pytest.raises(SchemaError, match=match):
        validate(None, sample, **options)
    with pytest.raises(SchemaError, match=match):
        evaluate(None, sample, **options, progress=False)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"fractions": (0,)}, "fraction 0 is neither a share"),
        ({"fractions": (1.5,)}, "fraction 1.5 is neither"),
        ({"fractions": ("all",)}, "fraction 'all' is neither"),
        ({"fractions": (True,)}, "fraction True is neither"),
        ({"fractions": ()}, "fractions must be one or more"),
        ({"fractions": (1, 1.0)}, "each once"),
        ({"n_draws": 0}, "n_draws must be at least 1"),
        ({"n_draws": 1.5}, "n_draws must be a whole number"),
        ({"confidence": 95}, "confidence must be between 0 and 1"),
        ({"model": []}, "there is no head"),
        ({"model": [GaussianNB(), GaussianNB()]}, "have one name"),
    ],
    ids=str,
)
def test_faults_of_evaluate(sample, options, match):
    with pytest.raises(SchemaError, match=match):
        evaluate(None, sample, **options, progress=False)


def test_labels_that_can_not_be_learnt(sample, numbers):
    alone = sample.take(sample.y == "maize")
    holed = LabelSample(**{**vars(numbers), "y": np.where(numbers.rows == 7, np.nan, numbers.y)})
    unknown = LabelSample(**{**vars(sample), "classes": {"barley": "#000000", "maize": "#ffffff"}})
    for labels, match in (
        (alone, "all labels are 'maize'; a head needs two classes"),
        (holed, "60 of 3600 targets are NaN"),
        (unknown, "unknown classes .*wheat"),
        (sample.take([]), "no labelled pixels"),
    ):
        for judge in (validate, evaluate):
            with pytest.raises(SchemaError, match=match):
                judge(None, labels, GaussianNB())


def test_options_reach_the_head(sample):
    tables = [
        evaluate(None, sample, DummyClassifier(), strategy=s, constant=0, n_draws=1, progress=False)
        for s in ("constant", "uniform")
    ]
    assert tables[0]["macro_f1"].item() < 0.22 < 0.3 < tables[1]["macro_f1"].item()


def test_a_splitter_that_holds_out_one_label_at_a_time(sample):
    some = sample.take(sample.groups < 12)
    table = evaluate(None, some, GaussianNB(), folds=LeaveOneGroupOut(), n_draws=1, progress=False).iloc[0]
    assert table["n_pixels"] == pytest.approx(len(some) * 11 / 12)
    assert validate(None, some, GaussianNB(), folds=LeaveOneGroupOut()).predictions["fold"].nunique() == 12


def test_burnt_forest_of_caldor():
    emb, loss = tutorial.embeddings().sel(time=2022), tutorial.labels().lossyear
    raster = xr.where(loss == 21, 2, xr.where(loss == 0, 1, 0)).astype(np.uint8).assign_coords(loss.coords)
    labels = LabelSet.from_raster(raster, names={1: "kept", 2: "lost"}, n_per_class=200)
    table = evaluate(emb, labels, GaussianNB(), fractions=(5, 1.0), n_draws=3, progress=False)
    assert table["n_pixels"].tolist()[0] == 10
    assert table["macro_f1"].iloc[1] > 0.8
    assert table["macro_f1"].iloc[1] > table["macro_f1"].iloc[0]
    assert (table["macro_f1_low"] < table["macro_f1"]).all()


# Other labels ---------------------------------------------------------------------------------------------------------


def test_a_head_is_scored_by_labels_it_has_not_seen():
    emb = tutorial.embeddings().sel(time=2022)
    lost = tutorial.labels().lossyear == 21
    points = LabelSet.from_raster(lost, names={True: "lost", False: "there"}, shapes="points", n_per_class=80).sample(
        emb
    )
    first, second = (
        points.take(points.x_map < np.median(points.x_map)),
        points.take(points.x_map > np.median(points.x_map)),
    )
    head = fit_sample(first)
    found = head.score(None, second)
    assert found.scores["accuracy"] == pytest.approx((head.predict_rows(second.X) == second.y).mean())
    np.testing.assert_allclose(found.probabilities, head.probability_rows(second.X)[:, [0, 1]])
    assert found.confusion.to_numpy().sum() == len(second)
    for name, (low, high) in found.intervals.items():
        assert low < found.scores[name] < high
    few = head.score(None, second.take(np.arange(0, len(second), 8)))
    assert np.diff(few.intervals["accuracy"]) > np.diff(found.intervals["accuracy"])
    kept = head.with_scores(found)
    assert kept.scores == found.scores
    with pytest.raises(SchemaError, match=r"this head says classes, the labels are numbers"):
        head.score(None, replace(second, y=np.ones(len(second)), classes={}, target="height"))
    with pytest.raises(VersionMismatchError, match="differ in model"):
        head.score(None, replace(second, attrs=second.attrs | {"model": "mini"}))
    strange = replace(
        second, y=np.where(second.y == "lost", "water", second.y), classes={"water": "#0000ff", "there": "#00ff00"}
    )
    with pytest.warns(TesseraWarning, match="the head was not taught water and can only get those labels wrong"):
        assert head.score(None, strange).per_class.loc["water", "recall"] == 0
    with pytest.raises(SchemaError, match=r"none of the labels, which are \['water'\]"):
        head.score(None, strange.take(strange.y == "water"))
