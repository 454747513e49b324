"""Nearest neighbours: scikit-learn's answers, on whatever data."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.utils.estimator_checks import parametrize_with_checks

from tessera_xr import tutorial
from tessera_xr.embedding.quantize import dequantize
from tessera_xr.errors import SchemaError
from tessera_xr.learning import neighbours
from tessera_xr.learning.neighbours import KNNClassifier, KNNRegressor


def not_of_neighbours(estimator: object) -> dict[str, str]:
    return {"check_sample_weight_equivalence_on_dense_data": "a row that stands twice takes two of the k seats"}


@parametrize_with_checks([KNNClassifier(), KNNRegressor(weights="distance")], expected_failed_checks=not_of_neighbours)
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


def data(n: int = 1200, d: int = 24, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(12, d)) * 3
    X = (centres[rng.integers(12, size=2 * n)] + rng.normal(size=(2 * n, d))).astype(np.float32)
    y = (X @ rng.normal(size=(d, 4))).argmax(axis=1)
    return X[:n], y[:n], X[n:]


@pytest.mark.parametrize("weights", ["uniform", "distance"])
@pytest.mark.parametrize("k", [1, 2, 5, 30])
def test_the_answers_are_those_of_scikit_learn(k, weights):
    X, y, Q = data()
    ours, theirs = (kind(k, weights=weights).fit(X, y) for kind in (KNNClassifier, KNeighborsClassifier))
    np.testing.assert_array_equal(ours.kneighbors(Q)[1], theirs.kneighbors(Q.astype(np.float64))[1])
    np.testing.assert_allclose(ours.kneighbors(Q)[0], theirs.kneighbors(Q.astype(np.float64))[0], rtol=1e-12)
    np.testing.assert_array_equal(ours.predict(Q), theirs.predict(Q))
    np.testing.assert_allclose(ours.predict_proba(Q), theirs.predict_proba(Q), atol=1e-6)
    regression = KNNRegressor(k, weights=weights).fit(X, X[:, 0])
    expected = KNeighborsRegressor(k, weights=weights).fit(X.astype(np.float64), X[:, 0].astype(np.float64))
    np.testing.assert_allclose(regression.predict(Q), expected.predict(Q.astype(np.float64)), rtol=1e-9, atol=1e-9)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 1000),
    n=st.integers(1, 40),
    d=st.integers(1, 6),
    k=st.integers(1, 40),
    shift=st.sampled_from([0, 100, 10_000]),
    spread=st.sampled_from([1e-3, 1, 50]),
)
def test_equal_to_brute_force_in_double_precision(seed, n, d, k, shift, spread):
    rng = np.random.default_rng(seed)
    rows = (rng.integers(-3, 4, size=(n, d)) * spread + shift).astype(np.float32)  # many rows are equal
    queries = np.concatenate([rows[:5], (rng.normal(size=(7, d)) * spread + shift).astype(np.float32)])
    k = min(k, n)
    found, which = KNNRegressor(k).fit(rows, np.arange(n)).kneighbors(queries)
    squares = ((queries[:, None].astype(np.float64) - rows[None].astype(np.float64)) ** 2).sum(axis=2)
    order = np.argsort(squares, axis=1, kind="stable")[:, :k]
    np.testing.assert_allclose(found, np.sqrt(np.take_along_axis(squares, order, axis=1)), rtol=1e-12)
    np.testing.assert_array_equal(which, order)


def test_neighbours_that_float32_cannot_tell_apart_are_settled_in_double_precision():
    """All rows lie far out and nearly on one sphere around the query: their products are equal in float32."""
    rng = np.random.default_rng(3)
    way = rng.normal(size=(2000, 8))
    rows = (1000 * way / np.linalg.norm(way, axis=1, keepdims=True)).astype(np.float32)
    queries = np.zeros((3, 8), np.float32) + np.array([[0], [1e-4], [1e-3]], dtype=np.float32)
    found = KNNRegressor(3).fit(rows, np.arange(2000)).kneighbors(queries)[1]
    squares = ((queries[:, None].astype(np.float64) - rows[None].astype(np.float64)) ** 2).sum(axis=2)
    np.testing.assert_array_equal(found, np.argsort(squares, axis=1, kind="stable")[:, :3])


def test_the_approximate_search_finds_nearly_the_same_on_real_embeddings():
    emb = dequantize(tutorial.embeddings().sel(time=[2019, 2022])).embeddings
    pixels = emb.transpose("time", "y", "x", "band").values.reshape(-1, 128)
    y = (tutorial.labels().lossyear.values.ravel() == 21).astype(int)
    truth = np.concatenate([0 * y, y])
    drawn = np.random.default_rng(0).permutation(len(pixels))
    train, rest = drawn[:3000], drawn[3000:]
    exact, rough = (KNNClassifier(approximate=a).fit(pixels[train], truth[train]) for a in (False, True))
    assert (exact.predict(pixels[rest]) == rough.predict(pixels[rest])).mean() >= 0.98
    same = exact.kneighbors(pixels[rest])[1] == rough.kneighbors(pixels[rest])[1]
    assert 0.9 < same.mean() < 1  # it is another search


def test_queries_whose_lists_hold_too_few_rows_are_compared_with_all():
    X, y, Q = data(n=400)
    exact, rough = (KNNClassifier(60, approximate=a).fit(X, y) for a in (False, True))
    assert (rough.kneighbors(Q)[0] < np.inf).all()
    np.testing.assert_array_equal(exact.kneighbors(Q[:50])[0].shape, rough.kneighbors(Q[:50])[0].shape)
    assert (exact.predict(Q) == rough.predict(Q)).mean() > 0.95


def test_weights_of_the_training_rows_count_in_the_vote():
    X = np.array([[0.0], [1.0], [1.1], [9.0]])
    y = ["a", "b", "b", "b"]
    assert KNNClassifier(3).fit(X, y).predict([[0.2]]) == ["b"]
    heavy = KNNClassifier(3).fit(X, y, sample_weight=[3, 1, 1, 1])
    assert heavy.predict([[0.2]]) == ["a"]
    np.testing.assert_allclose(heavy.predict_proba([[0.2]]), [[0.6, 0.4]])


def test_threads_that_come_and_go_leave_blas_as_it_was():
    from threadpoolctl import threadpool_info

    def threads() -> list[int]:
        return [info["num_threads"] for info in threadpool_info() if info["user_api"] == "blas"]

    before = threads()
    X, y, Q = data(n=600)
    model = KNNClassifier().fit(X, y)
    asked = [threading.Thread(target=model.predict, args=(Q[: 100 + 60 * i],)) for i in range(8)]
    for thread in asked:
        thread.start()
    for thread in asked:
        thread.join()
    assert threads() == before
    with neighbours.one_thread_a_product:
        assert set(threads()) == {1}


def test_bad_settings_are_named():
    X, y, _ = data(n=20)
    with pytest.raises(SchemaError, match=r"n_neighbors=21 must be from 1 to the number .* n_samples=20"):
        KNNClassifier(21).fit(X, y)
    with pytest.raises(SchemaError, match=r"weights='near' is unknown; choose 'uniform' or 'distance'"):
        KNNClassifier(weights="near").fit(X, y)


@pytest.mark.parametrize("approximate", [False, True])
def test_a_restored_one_answers_alike(approximate):
    X, y, Q = data(n=500)
    model = KNNClassifier(4, weights="distance", approximate=approximate).fit(X, y, sample_weight=1 + y)
    again = KNNClassifier.from_state(*model.state())
    np.testing.assert_array_equal(again.predict_proba(Q), model.predict_proba(Q))
