"""Places to label next: uncertain, apart, unlike each other, with data; and they teach more than random ones."""

from __future__ import annotations

import geopandas as gpd
import numpy as np
import pytest
import xarray as xr
from odc.geo.geobox import GeoBox
from shapely.geometry import Point

from tessera_xr.analysis.novelty import fit_novelty
from tessera_xr.embedding.quantize import quantize
from tessera_xr.errors import GridError, SchemaError, TesseraWarning, VersionMismatchError
from tessera_xr.grid import with_grid
from tessera_xr.learning.active import suggest
from tessera_xr.learning.heads import Head, fit_head
from tessera_xr.learning.labels import LabelSet
from tessera_xr.learning.uncertainty import entropy, margin

NAMES = np.array(["common", "frequent", "rare"])
SIZE, FIELD, BANDS = 60, 5, 16


def landscape(seed: int = 0) -> tuple[xr.Dataset, np.ndarray, np.ndarray]:
    """Return embeddings of fields of three classes (3 % rare), of some kinds, and both; two rows have no data."""
    rng = np.random.default_rng(seed)
    n = SIZE // FIELD
    truth = rng.choice(3, p=(0.60, 0.37, 0.03), size=(n, n))
    truth.ravel()[rng.choice(np.arange(n, n * n), 4, replace=False)] = 2
    kind = rng.integers(0, 3, (n, n))
    truth, kind = (a.repeat(FIELD, 0).repeat(FIELD, 1) for a in (truth, kind))
    kind[truth == 2] %= 2
    centres = 2 * np.eye(BANDS)[:3, None] + rng.normal(size=(3, 3, BANDS))
    values = centres[truth, kind] + 0.6 * rng.normal(size=(SIZE, SIZE, BANDS))
    values[:2] = np.nan
    grid = GeoBox.from_bbox(
        (600_000, 5_000_000 - 10 * SIZE, 600_000 + 10 * SIZE, 5_000_000), "EPSG:32631", resolution=10
    )
    array = xr.DataArray(values.astype(np.float32), dims=("y", "x", "band")).transpose("band", "y", "x")
    array = array.assign_coords(band=np.arange(BANDS))
    return with_grid(xr.Dataset({"embeddings": array}, attrs={"model": "m"}), grid), truth, kind


def first_labels(emb: xr.Dataset, truth: np.ndarray, seed: int = 0) -> LabelSet:
    labels, rng = LabelSet(NAMES.tolist(), crs="EPSG:32631"), np.random.default_rng(seed)
    for code, name in enumerate(NAMES):
        places = np.argwhere((truth == code) & (np.arange(SIZE)[:, None] > 1))
        for y, x in places[rng.choice(len(places), 2, replace=False)]:
            labels.add(Point(float(emb.x[x]), float(emb.y[y])), name)
    return labels


@pytest.fixture(scope="module")
def problem() -> tuple[xr.Dataset, np.ndarray, LabelSet, Head]:
    emb, truth, _ = landscape()
    labels = first_labels(emb, truth)
    return emb, truth, labels, fit_head(emb, labels)


def pixels(places: gpd.GeoDataFrame, emb: xr.Dataset) -> tuple[np.ndarray, np.ndarray]:
    rows, columns = (emb.get_index(d).get_indexer(places[d], method="nearest") for d in ("y", "x"))
    return rows, columns


def apart(places: gpd.GeoDataFrame) -> float:
    return min(a.distance(b) for i, a in enumerate(places.geometry) for b in places.geometry[:i])


def test_it_teaches_more_than_random_places():
    reached: dict[str, list[float]] = {"margin": [], "random": []}
    for strategy, found in reached.items():
        for seed in range(6):
            emb, truth, _ = landscape(seed)
            labels = first_labels(emb, truth, seed)
            for _ in range(2):
                head = fit_head(emb, labels)
                places = suggest(emb, head, 8, labels=labels, strategy=strategy, min_distance=30, seed=seed)
                for point, y, x in zip(places.geometry, *pixels(places, emb), strict=True):
                    labels.add(point, str(NAMES[truth[y, x]]))
            codes = fit_head(emb, labels).predict(emb, probability=False).prediction.values[2:]
            hits = [(codes == k + 1) & (truth[2:] == k) for k in range(3)]
            either = [((codes == k + 1).sum() + (truth[2:] == k).sum()) / 2 for k in range(3)]
            found.append(np.mean([h.sum() / e for h, e in zip(hits, either, strict=True)]))
    gain = np.subtract(reached["margin"], reached["random"])
    assert gain.mean() > 0.02, reached


@pytest.mark.parametrize("distance", [None, 0, 35])
def test_places_are_apart_and_away_from_labels_and_have_data(problem, distance):
    emb, _, labels, head = problem
    least = 100 if distance is None else distance
    places = suggest(emb, head, 8, labels=labels, min_distance=distance)
    assert len(places) == 8
    assert apart(places) >= max(least, 10)
    given = [label.geometry for label in labels]
    assert min(p.distance(g) for p in places.geometry for g in given) >= max(least, 10)
    assert (pixels(places, emb)[0] >= 2).all()
    near = suggest(emb, head, 300, min_distance=0, diversity=1)
    assert min(p.distance(g) for p in near.geometry for g in given) < 60, "labels that aren't told are no bar"


def test_what_comes_back(problem):
    emb, _, labels, head = problem
    places = suggest(emb, head, 6, labels=labels, min_distance=50)
    assert list(places.columns) == ["rank", "uncertainty", "prediction", "x", "y", "lon", "lat", "geometry"]
    assert places.crs == "EPSG:32631"
    assert places.attrs == {"model": "m"}
    assert places["rank"].tolist() == [1, 2, 3, 4, 5, 6]
    assert (np.diff(places["uncertainty"]) <= 0).all(), "the most uncertain first"
    pred = head.predict(emb)
    rows, columns = pixels(places, emb)
    np.testing.assert_array_equal(places["uncertainty"], margin(pred).values[rows, columns])
    assert places["prediction"].tolist() == [head.classes[c - 1] for c in pred.prediction.values[rows, columns]]
    degrees = places.to_crs("EPSG:4326").geometry
    np.testing.assert_allclose(np.stack([degrees.x, degrees.y]), places[["lon", "lat"]].T.values)
    np.testing.assert_allclose(places["x"], emb.x.values[columns])


def test_strategies_rank_by_what_they_say(problem):
    emb, _, labels, head = problem
    pred, sampled = head.predict(emb), labels.sample(emb)
    reference = xr.Dataset({"embeddings": (("pixel", "band"), sampled.X)}, attrs=sampled.attrs)
    maps = {"margin": margin(pred), "entropy": entropy(pred), "novelty": fit_novelty(reference).transform(emb).distance}
    chosen = {}
    for strategy, scores in maps.items():
        places = suggest(emb, head, 4, labels=labels, strategy=strategy, min_distance=0, diversity=1)
        values = scores.values.copy()
        values[sampled.rows, sampled.columns] = np.nan
        expected = np.sort(values[np.isfinite(values)])[::-1][:4]
        np.testing.assert_allclose(places["uncertainty"], expected, rtol=1e-6, err_msg=strategy)
        chosen[strategy] = set(zip(*pixels(places, emb), strict=True))
    assert chosen["novelty"] != chosen["margin"]
    random = [suggest(emb, head, 40, strategy="random", min_distance=0, seed=s) for s in (0, 0, 1)]
    assert random[0].equals(random[1])
    assert not random[0]["x"].equals(random[2]["x"])
    assert abs(random[0]["uncertainty"].mean() - float(margin(pred).mean())) < 0.15
    assert suggest(emb, head, 40, min_distance=0)["uncertainty"].mean() > random[0]["uncertainty"].mean() + 0.3


def test_they_differ_more_than_the_most_uncertain_do():
    found: dict[int, list[int]] = {1: [], 10: []}
    for seed in range(8):
        emb, truth, kind = landscape(seed)
        head = fit_head(emb, first_labels(emb, truth, seed))
        for diversity, kinds in found.items():
            at = pixels(suggest(emb, head, 8, min_distance=0, diversity=diversity), emb)
            kinds.append(len({(truth[p], kind[p]) for p in zip(*at, strict=True)}))
    assert np.mean(found[10]) > np.mean(found[1]) + 0.7, found


def test_of_identical_places_one_is_asked_about(problem):
    emb, _, _, head = problem
    doubtful = suggest(emb, head, 1, diversity=1, min_distance=0)
    y, x = (int(i[0]) for i in pixels(doubtful, emb))
    same = emb.copy(deep=True)
    for row in range(10, 60, 10):
        same.embeddings[:, row, 3:60:10] = emb.embeddings[:, y, x]
    copies = np.zeros((SIZE, SIZE), dtype=bool)
    copies[10:60:10, 3:60:10] = True
    copies[y, x] = True
    chosen = [copies[pixels(suggest(same, head, 6, min_distance=0, diversity=d), same)].sum() for d in (1, 20)]
    assert chosen[0] == 6, "they are the most uncertain"
    assert chosen[1] <= 2
    flat = emb.assign(embeddings=xr.where(emb.embeddings.notnull(), emb.embeddings[:, y, x], np.nan))
    assert len(suggest(flat.transpose("band", "y", "x"), head, 6)) == 6, "if nothing differs there is no choice"


@pytest.mark.parametrize("strategy", ["margin", "novelty", "random"])
def test_any_layout_gives_the_same(problem, strategy):
    emb, _, labels, head = problem
    options = {"labels": labels, "strategy": strategy, "min_distance": 40}
    expected = suggest(emb, head, 6, **options)
    for form in (emb.chunk(y=17, x=23, band=5), emb.transpose("y", "x", "band")):
        found = suggest(form, head, 6, **options)
        np.testing.assert_array_equal(found["x"], expected["x"])
        np.testing.assert_allclose(found["uncertainty"], expected["uncertainty"], rtol=1e-4)
    codes = quantize(emb)
    eager, lazy = (suggest(e, head, 6, **options) for e in (codes, codes.chunk(y=17, x=23)))
    assert eager["x"].equals(lazy["x"])
    assert (pixels(eager, emb)[0] >= 2).all()
    np.testing.assert_allclose(eager["uncertainty"].mean(), expected["uncertainty"].mean(), rtol=0.1)


def test_one_time_is_meant(problem):
    emb, _, _, head = problem
    both = xr.concat([emb * np.nan, emb], xr.Variable("time", [2020, 2021]), combine_attrs="override")
    both = both.assign_attrs(emb.attrs)
    found = suggest(both, head, 5, time=2021, min_distance=50)
    assert found.equals(suggest(emb, head, 5, min_distance=50))
    with pytest.raises(SchemaError, match="choose one of 2020, 2021"):
        suggest(both, head, 5)


def test_numbers_are_ranked_by_novelty(problem):
    emb, truth, _, _ = problem
    labels, rng = LabelSet(target="height", crs="EPSG:32631"), np.random.default_rng(0)
    for y, x in zip(rng.integers(2, SIZE, 12), rng.integers(0, SIZE // 2, 12), strict=True):
        labels.add(Point(float(emb.x[x]), float(emb.y[y])), float(truth[y, x] + rng.random()))
    head = fit_head(emb, labels, "ridge")
    places = suggest(emb, head, 5, labels=labels, min_distance=50)
    assert places["prediction"].dtype == np.float32
    assert places.equals(suggest(emb, head, 5, labels=labels, strategy="novelty", min_distance=50))
    assert suggest(emb, head, 5, strategy="random")["uncertainty"].isna().all()
    with pytest.raises(SchemaError, match="pass them as labels=, or use strategy='random'"):
        suggest(emb, head, 5)
    with pytest.raises(SchemaError, match="ridge predicts numbers, so strategy='margin' can't rank places"):
        suggest(emb, head, 5, labels=labels, strategy="margin")


def test_fewer_places_than_asked(problem):
    emb, _, labels, head = problem
    with pytest.warns(TesseraWarning, match=r"only \d+ of 50 places fit 300 apart"):
        places = suggest(emb, head, 50, min_distance=300)
    assert apart(places) >= 300
    with pytest.raises(SchemaError, match="no place with data is 5000 or more from all labels"):
        suggest(emb, head, 5, labels=labels, min_distance=5000)


def test_faults(problem):
    from sklearn.svm import LinearSVC

    emb, _, labels, head = problem
    with pytest.raises(SchemaError, match="strategy='best' is unknown; choose one of 'margin', 'entropy'"):
        suggest(emb, head, strategy="best")
    with pytest.raises(SchemaError, match="gives no probabilities, so strategy='margin' can't rank"):
        suggest(emb, fit_head(emb, labels, LinearSVC()))
    with pytest.raises(SchemaError, match="n must be 1 or more, not 0"):
        suggest(emb, head, 0)
    with pytest.raises(SchemaError, match="diversity must be a whole number"):
        suggest(emb, head, diversity=0.5)
    with pytest.raises(SchemaError, match="min_distance=-1 must be 0 or more"):
        suggest(emb, head, min_distance=-1)
    with pytest.raises(VersionMismatchError, match="differ in model"):
        suggest(emb.assign_attrs(model="other"), head)
    with pytest.raises(GridError, match="sampled on a map of"):
        suggest(emb.isel(x=slice(40)), head, labels=labels.sample(emb))
