"""Folds in space: nothing torn apart, nothing near, all held out once, classes spread, and scikit-learn takes them."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from pyproj import Transformer
from scipy.spatial.distance import cdist

from tessera_xr.errors import SchemaError, TesseraWarning
from tessera_xr.learning.samples import LabelSample
from tessera_xr.learning.splits import SpatialFolds, deal, random_folds, spatial_folds

PIXEL = 10.0
WEST, NORTH = 600_000.0, 5_000_000.0


def made(rows, columns, y, groups, crs="EPSG:32631", shape=(200, 200)) -> LabelSample:
    """Return a sample of pixels of 10 m."""
    rows, columns, groups = (np.asarray(v, dtype=np.intp) for v in (rows, columns, groups))
    y = np.asarray(y)
    classes = {} if y.dtype.kind == "f" else dict.fromkeys(np.unique(y).tolist(), "#000000")
    return LabelSample(
        X=np.random.default_rng(0).normal(size=(len(y), 4)).astype(np.float32),
        y=y,
        groups=groups,
        weights=np.ones(len(y)),
        x_map=WEST + PIXEL * (columns + 0.5),
        y_map=NORTH - PIXEL * (rows + 0.5),
        rows=rows,
        columns=columns,
        classes=classes,
        target=None if classes else "biomass",
        attrs={},
        crs=crs,
        shape=shape,
    )


def fields(n: int = 60, seed: int = 0, names=("barley", "maize", "wheat"), side: int = 9) -> LabelSample:
    """Return square fields strewn over 2 km, of 1 to `side` pixels a side, that don't overlap."""
    rng = np.random.default_rng(seed)
    taken, parts = np.zeros((200, 200), dtype=bool), []
    while len(parts) < n:
        size, (top, left) = int(rng.integers(1, side + 1)), rng.integers(0, 200 - side, 2)
        if not taken[top : top + size, left : left + size].any():
            taken[top : top + size, left : left + size] = True
            parts.append(np.argwhere(np.ones((size, size))) + np.array([top, left]))
    groups = np.repeat(np.arange(n) * 3 + 1, [len(p) for p in parts])
    pixels = np.concatenate(parts)
    return made(pixels[:, 0], pixels[:, 1], np.array(names)[groups % 7 % len(names)], groups)


def strewn(n: int = 400, seed: int = 0) -> LabelSample:
    """Return points as labels, each a group, of two classes."""
    rng = np.random.default_rng(seed)
    pixels = rng.permutation(40_000)[:n]
    return made(pixels // 200, pixels % 200, np.where(rng.random(n) < 0.3, "a", "b"), np.arange(n))


def centres(sample: LabelSample) -> dict[int, np.ndarray]:
    xy = np.column_stack([sample.x_map, sample.y_map])
    return {int(g): xy[sample.groups == g].mean(axis=0) for g in np.unique(sample.groups)}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("options", [{}, {"block": 70.0}, {"by": "polygon"}, {"buffer": 60.0}], ids=str)
def test_all_is_held_out_once_and_nothing_torn_apart(options, seed):
    sample = fields(seed=seed)
    folds = spatial_folds(sample, 4, seed=seed, **options)
    held = []
    for train, test in folds.split():
        held.append(test)
        assert not np.intersect1d(sample.groups[train], sample.groups[test]).size
        assert not np.intersect1d(folds.unit[train], folds.unit[test]).size
        if "buffer" not in options:
            assert len(train) + len(test) == len(sample)
    np.testing.assert_array_equal(np.sort(np.concatenate(held)), np.arange(len(sample)))
    assert folds.get_n_splits() == len(held) == 4


def test_a_label_lies_in_the_block_of_its_centroid():
    sample = fields()
    folds = spatial_folds(sample, 5, block=150.0)
    places = centres(sample)
    unit = np.array([folds.unit[sample.groups == g][0] for g in places])
    xy = np.array(list(places.values()))
    # some corner of a lattice of 150 m puts two centroids into one cell just if they are of one unit
    shifts = np.linspace(0, 1, 101)
    fits = [[_homogeneous(np.floor(xy[:, axis] / 150 + shift), unit) for shift in shifts] for axis in (0, 1)]
    assert all(map(any, fits))
    shift = [shifts[np.argmax(f)] for f in fits]
    cells = np.unique(np.floor(xy / 150 + shift), axis=0, return_inverse=True)[1].ravel()
    np.testing.assert_array_equal(cells[:, None] == cells, unit[:, None] == unit)
    assert 20 < len(np.unique(unit)) < len(unit)


def _homogeneous(line: np.ndarray, unit: np.ndarray) -> bool:
    return all(np.ptp(line[unit == u]) == 0 for u in np.unique(unit))


def test_the_buffer_is_kept_and_takes_no_more_than_it_must():
    sample = strewn(2000)
    xy = np.column_stack([sample.x_map, sample.y_map])
    for buffer in (30.0, 100.0):
        plain, apart = (spatial_folds(sample, 4, block=400, buffer=b) for b in (0.0, buffer))
        for (all_train, test), (train, same) in zip(plain.split(), apart.split(), strict=True):
            np.testing.assert_array_equal(test, same)
            nearest = cdist(xy[all_train], xy[test]).min(axis=1)
            np.testing.assert_array_equal(train, all_train[nearest >= buffer])
            assert len(train) < len(all_train)


def test_folds_are_of_like_size_and_mixture():
    sample = strewn(2000)
    for folds in (spatial_folds(sample, 5, block=200), spatial_folds(sample, 5, by="polygon"), random_folds(sample, 5)):
        sizes = np.bincount(folds.fold)
        shares = np.array([(sample.y[folds.fold == k] == "a").mean() for k in range(5)])
        assert sizes.max() < 1.1 * sizes.min()
        assert np.ptp(shares) < 0.05
    unit, rng = spatial_folds(sample, 5, block=200).unit, np.random.default_rng(0)
    greedy = np.ptp(np.bincount(deal(unit, sample.y, 5, rng)))
    by_chance = np.median([np.ptp(np.bincount(rng.integers(0, 5, unit.max() + 1)[unit])) for _ in range(50)])
    assert greedy < by_chance / 3


@pytest.mark.parametrize("seed", range(3))
def test_fields_of_any_size_are_dealt_evenly(seed):
    sizes = np.bincount(spatial_folds(fields(seed=seed), 4, by="polygon", seed=seed).fold)
    assert sizes.max() < 1.1 * sizes.min()


def test_a_rare_class_is_in_as_many_folds_as_it_can_be():
    sample = strewn(1000)
    y = sample.y.astype("U9")
    y[[3, 90, 400, 700, 950]] = "rare"
    rare = made(sample.rows, sample.columns, y, sample.groups)
    for seed in range(5):
        folds = spatial_folds(rare, 5, block=60, seed=seed)
        assert len(np.unique(folds.fold[y == "rare"])) == len(np.unique(folds.unit[y == "rare"])) == 5


def test_numbers_are_spread_by_quarters():
    sample = strewn(1500)
    y = (sample.rows + np.random.default_rng(0).normal(0, 60, len(sample))).astype(float)
    folds = spatial_folds(made(sample.rows, sample.columns, y, sample.groups), 3, block=150)
    means = [y[folds.fold == k].mean() for k in range(3)]
    assert np.ptp(means) < 0.15 * y.std()


def test_the_seed_decides():
    sample = fields()
    for options in ({"block": 200.0}, {"by": "polygon"}):
        first, again, other = (spatial_folds(sample, seed=s, **options) for s in (0, 0, 1))
        np.testing.assert_array_equal(first.fold, again.fold)
        together = [f.fold[:, None] == f.fold for f in (first, other)]
        assert (together[0] != together[1]).mean() > 0.1
    corners = {tuple(spatial_folds(strewn(), block=200, seed=s).unit[:50]) for s in range(4)}
    assert len(corners) == 4, "the borders of blocks move"
    assert not np.array_equal(random_folds(sample, 5, 0).fold, random_folds(sample, 5, 1).fold)


def test_the_default_block_follows_the_extent():
    sample = strewn(2000)
    extent = np.ptp(sample.x_map) * np.ptp(sample.y_map)
    for n_folds in (3, 6):
        folds = spatial_folds(sample, n_folds)
        assert folds.block == pytest.approx(np.sqrt(extent / (4 * n_folds)))
    corners = made([0, 1, 198, 199] * 5, np.repeat([0, 1, 198, 199, 3], 4), ["a", "b"] * 10, np.arange(20))
    folds = spatial_folds(corners, 4)
    assert len(np.unique(folds.unit)) >= 8
    assert PIXEL <= folds.block < 1000 / 4
    line = made(np.zeros(40), np.arange(40), ["a", "b"] * 20, np.arange(40))
    assert len(np.unique(spatial_folds(line, 4).unit)) >= 8


def test_metres_are_metres_on_any_map():
    sample = strewn(500)
    plain = spatial_folds(sample, 4, block=300)
    lon, lat = Transformer.from_crs("EPSG:32631", "EPSG:4326", always_xy=True).transform(sample.x_map, sample.y_map)
    degrees = LabelSample(**{**vars(sample), "x_map": lon, "y_map": lat, "crs": "EPSG:4326"})
    feet = 0.3048006096012192
    inches = LabelSample(
        **{**vars(sample), "x_map": sample.x_map / feet, "y_map": sample.y_map / feet, "crs": "EPSG:2225"}
    )
    same = spatial_folds(inches, 4, block=300)
    np.testing.assert_array_equal(same.fold, plain.fold)
    np.testing.assert_allclose(same.x, sample.x_map)
    found = spatial_folds(degrees, 4, block=300)
    pairs = cdist(*[np.column_stack([found.x, found.y])] * 2), cdist(*[np.column_stack([plain.x, plain.y])] * 2)
    np.testing.assert_allclose(pairs[0], pairs[1], rtol=5e-3, atol=1)
    for group in np.unique(found.unit):
        held = found.unit == group
        assert max(np.ptp(found.x[held]), np.ptp(found.y[held])) <= 300


def test_scikit_learn_takes_them():
    from sklearn.base import clone
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, cross_val_score, cross_validate

    sample = fields()
    folds = spatial_folds(sample, 4)
    scores = cross_val_score(LogisticRegression(), sample.X, sample.y, cv=folds)
    expected = [
        LogisticRegression().fit(sample.X[a], sample.y[a]).score(sample.X[b], sample.y[b]) for a, b in folds.split()
    ]
    np.testing.assert_allclose(scores, expected)
    search = clone(GridSearchCV(LogisticRegression(), {"C": [0.1, 1]}, cv=folds)).fit(sample.X, sample.y)
    np.testing.assert_allclose(search.cv_results_["split2_test_score"][1], expected[2])
    assert len(cross_validate(LogisticRegression(), sample.X, sample.y, cv=random_folds(sample, 3))["test_score"]) == 3
    with pytest.raises(SchemaError, match="X has 7 rows; pass the X of the sample"):
        next(folds.split(sample.X[:7]))


def test_pixels_of_two_labels_are_never_learnt_and_judged():
    rows = np.repeat(np.arange(30), 2)
    sample = made(rows, rows, ["a", "a", "b", "b"] * 15, np.arange(60))
    for folds in (spatial_folds(sample, 5, by="polygon"), random_folds(sample, 5)):
        assert any(len(np.unique(folds.fold[rows == r])) > 1 for r in range(30))
        for train, test in folds.split():
            assert not np.intersect1d(rows[train], rows[test]).size


def test_a_class_in_one_place_is_told():
    sample = fields(names=("barley", "maize"))
    y = sample.y.astype("U9")
    y[sample.groups == 1] = "rye"
    lonely = made(sample.rows, sample.columns, y, sample.groups)
    with pytest.warns(TesseraWarning, match=r"^rye: in one polygon only, so never learnt from and judged at once"):
        spatial_folds(lonely, 4, by="polygon")
    with pytest.warns(TesseraWarning, match=r"rye: in one block only.*smaller block="):
        spatial_folds(lonely, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        random_folds(lonely, 4)


def test_it_says_what_it_is():
    assert repr(spatial_folds(fields(), 4, block=200, buffer=20)).startswith("SpatialFolds(4 folds, block=200 m, ")
    assert "by='polygon', 60 units" in repr(spatial_folds(fields(), 4, by="polygon"))
    assert repr(random_folds(strewn(50), 5)) == "Folds(5 folds of pixels at random, 50 pixels)"
    assert isinstance(spatial_folds(fields()), SpatialFolds)


def test_faults():
    sample = fields()
    three = sample.take(np.isin(sample.groups, np.unique(sample.groups)[:3]))
    with pytest.raises(
        SchemaError, match=r"there are 3 labels \(polygons or points\), too few for 5 folds; add labels"
    ):
        spatial_folds(three, 5, by="polygon")
    with pytest.raises(SchemaError, match=r"there are 3 labels.*n_folds=3"):
        spatial_folds(three, 5)
    with pytest.raises(SchemaError, match=r"the 60 labels lie in \d blocks? of 5000 m, too few for 5 folds; use .*by="):
        spatial_folds(sample, 5, block=5000.0)
    with pytest.raises(SchemaError, match=r"buffer=5000 m leaves nothing to learn from when fold 0 is held out"):
        list(spatial_folds(sample, 4, buffer=5000.0).split())
    with pytest.raises(SchemaError, match="2 labelled pixels, too few for 3 folds"):
        random_folds(sample.take([0, 1]), 3)
    with pytest.raises(SchemaError, match="there are no labelled pixels"):
        spatial_folds(sample.take([]), 3)
    for options, match in (
        ({"n_folds": 1}, "n_folds must be at least 2, not 1"),
        ({"n_folds": 2.5}, "n_folds must be a whole number"),
        ({"by": "field"}, "by='field' is unknown; choose 'block' or 'polygon'"),
        ({"block": 0}, "block must be a length in metres above 0, not 0"),
        ({"block": np.nan}, "block must be a length"),
        ({"buffer": -1}, "buffer must be a distance in metres of 0 or more"),
        ({"by": "polygon", "block": 50.0}, "block= is for by='block'"),
    ):
        with pytest.raises(SchemaError, match=match):
            spatial_folds(sample, **options)
