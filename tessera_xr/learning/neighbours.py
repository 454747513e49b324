"""Nearest neighbours by matrix products: the answers of scikit-learn's, on a million pixels in seconds.

Candidates come from float32 products, tile by tile in the cache; their order is settled in float64. Where float32 could
have missed a neighbour, which its error bound tells, the pixel is compared with all training rows in float64.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import Any, Literal, TypeAlias

import numba
import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin

from tessera_xr.analysis.compiled import careful_kernel, finite_kernel
from tessera_xr.errors import SchemaError

Floats: TypeAlias = npt.NDArray[np.float32]
Doubles: TypeAlias = npt.NDArray[np.float64]
Integers: TypeAlias = npt.NDArray[np.int64]
Weights: TypeAlias = Literal["uniform", "distance"]

QUERIES, COLUMNS = 512, 1024
"""Rows and columns of a tile of products: two megabytes; with fewer rows, laying out the columns would weigh."""
SPARE = 8
"""Candidates beyond the neighbours asked for."""
CROWD, PROBES = 8192, 10
"""Of the approximate search: queries at a time, and lists of neighbouring training rows that each is compared with."""
RUN = 32
"""Products that are passed over together when none of them is a candidate."""


class _Limit:
    """Keeps BLAS to one thread while anyone is inside: products are small, and the threads are ours.

    Counts who is inside, for Dask's threads may enter and leave in any order.
    """

    def __init__(self) -> None:
        self._lock, self._inside = Lock(), 0
        self._limit: Any = None

    def __enter__(self) -> None:
        from threadpoolctl import threadpool_limits

        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._limit = threadpool_limits(1, user_api="blas")

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside and self._limit is not None:
                self._limit.restore_original_limits()


one_thread_a_product = _Limit()


class _Neighbours(BaseEstimator):  # type: ignore[misc]
    """What classification and regression share: the training rows, and the search in them."""

    has_own_threads = True

    def __init__(self, n_neighbors: int = 5, *, weights: Weights = "uniform", approximate: bool = False) -> None:
        self.n_neighbors = n_neighbors
        self.weights = weights
        self.approximate = approximate

    def kneighbors(self, X: npt.ArrayLike) -> tuple[Doubles, Integers]:
        """Return the distances to the nearest training rows, and which they are.

        Parameters
        ----------
        X : array (n, d)
            Computed with in float32.

        Returns
        -------
        ndarray (n, n_neighbors) float64
            Euclidean distances, ascending.
        ndarray (n, n_neighbors) int64
            Rows of the training data; of equal distances the first row is first.
        """
        from sklearn.utils.validation import check_is_fitted, validate_data

        check_is_fitted(self)
        return self._search(validate_data(self, X, dtype=np.float32, reset=False, order="C"))

    def _remember(self, X: npt.ArrayLike, y: npt.ArrayLike, **checks: Any) -> npt.NDArray[Any]:
        """Check and keep the training rows; return y."""
        from sklearn.utils.validation import validate_data

        if self.weights not in ("uniform", "distance"):
            raise SchemaError(f"weights={self.weights!r} is unknown; choose 'uniform' or 'distance'")
        rows, y = validate_data(self, X, y, dtype=np.float32, order="C", **checks)
        if not 1 <= self.n_neighbors <= len(rows):
            raise SchemaError(
                f"n_neighbors={self.n_neighbors} must be from 1 to the number of training rows, n_samples={len(rows)}"
            )
        self._index(rows)
        return np.asarray(y)

    def _index(self, rows: Floats) -> None:
        """Lay the training rows out for products: x.t - |t|^2 / 2 is greatest for the nearest t."""
        self.rows_ = rows
        self._origin = rows.mean(axis=0, dtype=np.float64).astype(np.float32)
        centred = rows - self._origin
        halves = (centred.astype(np.float64) ** 2).sum(axis=1, keepdims=True) / 2
        self._longest = float(np.sqrt(2 * halves.max()))
        table = np.concatenate([centred, -halves], axis=1).astype(np.float32)  # (n, d + 1)
        n_lists = int(np.sqrt(len(rows)))
        self._lists = None
        if self.approximate and n_lists > PROBES:
            owner, self._lists = self._listed(centred, n_lists)
            self._order = np.argsort(owner, kind="stable")
            self._starts = np.searchsorted(owner[self._order], np.arange(n_lists + 1))
            table = table[self._order]
        self._table = table

    def _listed(self, centred: Floats, n_lists: int) -> tuple[Integers, Floats]:
        """Return the list of each training row, and the centres of the lists with minus half their squares."""
        from sklearn.cluster import MiniBatchKMeans

        found = MiniBatchKMeans(n_lists, random_state=0, n_init=1, batch_size=4096).fit(centred)
        centres = found.cluster_centers_
        halves = (centres**2).sum(axis=1, keepdims=True) / 2
        return found.labels_.astype(np.int64), np.concatenate([centres, -halves], axis=1).astype(np.float32)

    def _search(self, X: Floats) -> tuple[Doubles, Integers]:
        distances = np.empty((len(X), self.n_neighbors))
        rows = np.empty(distances.shape, dtype=np.int64)
        step = QUERIES if self._lists is None else CROWD

        def work(start: int) -> None:
            part = slice(start, start + step)
            self._search_part(X[part], distances[part], rows[part])

        with one_thread_a_product, ThreadPoolExecutor(numba.get_num_threads()) as pool:
            list(pool.map(work, range(0, len(X), step)))
        return distances, rows

    def _search_part(self, X: Floats, distances: Doubles, rows: Integers) -> None:
        queries = np.concatenate([X - self._origin, np.ones((len(X), 1), np.float32)], axis=1)
        n_candidates = min(self.n_neighbors + SPARE, len(self.rows_))
        best = np.full((len(X), n_candidates), -np.inf, dtype=np.float32)
        found = np.zeros((len(X), n_candidates), dtype=np.int64)
        if self._lists is None:
            self._compare_all(queries, best, found)
        else:
            self._compare_lists(queries, self._lists, best, found)
        settle(X, self.rows_, found, distances, rows)
        if self._lists is None and n_candidates < len(self.rows_):
            self._mend(X, queries, best, distances, rows)

    def _compare_all(self, queries: Floats, best: Floats, found: Integers) -> None:
        into = np.arange(len(queries))
        room = np.empty((len(queries), COLUMNS), dtype=np.float32)  # the same memory for all products
        for start in range(0, len(self._table), COLUMNS):
            tile = self._table[start : start + COLUMNS]
            whole = room if len(tile) == COLUMNS else None
            keep_best(np.matmul(queries, tile.T, out=whole), np.arange(start, start + len(tile)), into, best, found)

    def _compare_lists(self, queries: Floats, lists: Floats, best: Floats, found: Integers) -> None:
        """Compare each query with the members of the nearest lists; with all rows where those are too few."""
        nearness = queries @ lists.T
        probed = np.argpartition(-nearness, PROBES - 1, axis=1)[:, :PROBES]
        by_list = np.argsort(probed, axis=None, kind="stable")
        bounds = np.searchsorted(probed.ravel()[by_list], np.arange(len(self._starts)))
        for j, start in enumerate(self._starts[:-1]):
            into, members = by_list[bounds[j] : bounds[j + 1]] // PROBES, slice(start, self._starts[j + 1])
            for first in range(0, len(into), QUERIES):
                some = into[first : first + QUERIES]
                keep_best(queries[some] @ self._table[members].T, self._order[members], some, best, found)
        short = np.flatnonzero(np.isneginf(best[:, -1]))
        if len(short):
            best[short] = -np.inf
            for start in range(0, len(self._table), COLUMNS):
                members = slice(start, start + COLUMNS)
                keep_best(queries[short] @ self._table[members].T, self._order[members], short, best, found)

    def _mend(self, X: Floats, queries: Floats, best: Floats, distances: Doubles, rows: Integers) -> None:
        """Search in float64 for the queries whose farthest neighbour lies within the error of float32."""
        lengths = np.sqrt((queries[:, :-1].astype(np.float64) ** 2).sum(axis=1))
        reach = lengths + self._longest / 2 + float(np.linalg.norm(self._origin))
        error = queries.shape[1] * np.finfo(np.float32).eps * self._longest * reach
        farthest = (lengths**2 - distances[:, -1] ** 2) / 2  # the product of the last neighbour, had it no error
        for i in np.flatnonzero(farthest <= best[:, -1] + 2 * error):
            settle(X[i : i + 1], self.rows_, np.arange(len(self.rows_))[None], distances[i : i + 1], rows[i : i + 1])

    def _shares(self, distances: Doubles, weights: Doubles) -> Doubles:
        """Return how much each neighbour says, (n, k), summing to one; one at no distance says it all."""
        if self.weights == "distance":
            with np.errstate(divide="ignore"):
                closeness = 1 / distances
            here = np.isinf(closeness)
            closeness[here.any(axis=1)] = here[here.any(axis=1)]
            weights = weights * closeness
        total = weights.sum(axis=1, keepdims=True)
        return np.asarray(np.divide(weights, total, out=np.full_like(weights, 1 / weights.shape[1]), where=total > 0))

    def state(self) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
        """Return what the estimator is made of: settings, and arrays."""
        arrays = {"rows": self.rows_, "targets": self._targets, "weights": self._weights}
        return {"settings": self.get_params(), "n_features": int(self.n_features_in_)}, arrays


class KNNClassifier(ClassifierMixin, _Neighbours):  # type: ignore[misc]
    """Classification by the vote of the nearest training rows, as `sklearn.neighbors.KNeighborsClassifier`.

    Parameters
    ----------
    n_neighbors : int, default 5
        How many vote.
    weights : {"uniform", "distance"}
        Whether all count alike, or by one over their distance. Weights of the training rows (`fit`) count besides.
    approximate : bool, default False
        Part the training rows into lists of neighbours (k-means), and compare a row with those of the ten nearest
        lists only: several times as fast, and other neighbours for a few rows.

    Attributes
    ----------
    classes_ : ndarray (c,)
        The classes, sorted.
    """

    def fit(self, X: npt.ArrayLike, y: npt.ArrayLike, sample_weight: npt.ArrayLike | None = None) -> KNNClassifier:
        """Remember training rows X (n, d) and their classes y (n,)."""
        from sklearn.utils.multiclass import check_classification_targets
        from sklearn.utils.validation import _check_sample_weight

        y = self._remember(X, y)
        check_classification_targets(y)
        self.classes_, codes = np.unique(y, return_inverse=True)
        self._targets = codes.astype(np.int64)
        self._weights = _check_sample_weight(sample_weight, self.rows_, dtype=np.float64)
        return self

    def predict_proba(self, X: npt.ArrayLike) -> Doubles:
        """Return the share of each class in the vote, (n, c)."""
        distances, rows = self.kneighbors(X)
        shares = self._shares(distances, self._weights[rows])
        votes = np.zeros((len(rows), len(self.classes_)))
        for j in range(rows.shape[1]):
            votes[np.arange(len(rows)), self._targets[rows[:, j]]] += shares[:, j]
        return votes

    def predict(self, X: npt.ArrayLike) -> npt.NDArray[Any]:
        """Return the class with most votes, (n,); the first of those that have as many."""
        votes = np.round(self.predict_proba(X), 12)  # sums that differ by their order only are equal
        return np.asarray(self.classes_[votes.argmax(axis=1)])

    @classmethod
    def from_state(cls, facts: dict[str, Any], arrays: dict[str, npt.NDArray[Any]]) -> KNNClassifier:
        """Return the estimator that `state` described."""
        made = cls(**facts["settings"])
        made.n_features_in_ = int(facts["n_features"])
        made._index(np.ascontiguousarray(arrays["rows"], dtype=np.float32))
        made._targets, made._weights = arrays["targets"], arrays["weights"]
        made.classes_ = np.arange(int(made._targets.max()) + 1)
        return made


class KNNRegressor(RegressorMixin, _Neighbours):  # type: ignore[misc]
    """Regression by the mean of the nearest training rows; parameters as of `KNNClassifier`."""

    def fit(self, X: npt.ArrayLike, y: npt.ArrayLike, sample_weight: npt.ArrayLike | None = None) -> KNNRegressor:
        """Remember training rows X (n, d) and their values y (n,)."""
        from sklearn.utils.validation import _check_sample_weight

        self._targets = np.asarray(self._remember(X, y, y_numeric=True), dtype=np.float64)
        self._weights = _check_sample_weight(sample_weight, self.rows_, dtype=np.float64)
        return self

    def predict(self, X: npt.ArrayLike) -> Doubles:
        """Return the weighted mean of the neighbours' values, (n,)."""
        distances, rows = self.kneighbors(X)
        return np.asarray((self._shares(distances, self._weights[rows]) * self._targets[rows]).sum(axis=1))

    @classmethod
    def from_state(cls, facts: dict[str, Any], arrays: dict[str, npt.NDArray[Any]]) -> KNNRegressor:
        """Return the estimator that `state` described."""
        made = cls(**facts["settings"])
        made.n_features_in_ = int(facts["n_features"])
        made._index(np.ascontiguousarray(arrays["rows"], dtype=np.float32))
        made._targets, made._weights = arrays["targets"], arrays["weights"]
        return made


@finite_kernel
def keep_best(products: Floats, rows: Integers, into: Integers, best: Floats, found: Integers) -> None:
    """Merge the products (q, c) of some queries with some training rows into what those queries have as their best.

    `into` (q,) says which queries, `rows` (c,) which training rows; best and found (all queries, m) are descending.
    """
    n_columns, m = products.shape[1], best.shape[1]
    for i in range(products.shape[0]):
        own = into[i]
        least = best[own, m - 1]
        for first in range(0, n_columns, RUN):
            stop = min(first + RUN, n_columns)
            highest = np.float32(-np.inf)
            for j in range(first, stop):
                highest = max(highest, products[i, j])
            if highest <= least:
                continue
            for j in range(first, stop):
                value = products[i, j]
                if value <= least:
                    continue
                at = m - 1
                while at > 0 and best[own, at - 1] < value:
                    best[own, at], found[own, at] = best[own, at - 1], found[own, at - 1]
                    at -= 1
                best[own, at], found[own, at] = value, rows[j]
                least = best[own, m - 1]


@careful_kernel
def settle(queries: Floats, rows: Floats, found: Integers, distances: Doubles, nearest: Integers) -> None:
    """Write the nearest k of the candidates (q, m) by their distances in float64; the lower row wins a tie."""
    k, m, d = nearest.shape[1], found.shape[1], queries.shape[1]
    for i in range(queries.shape[0]):
        filled = 0
        for c in range(m):
            row, square = found[i, c], 0.0
            for b in range(d):
                difference = np.float64(queries[i, b]) - np.float64(rows[row, b])
                square += difference * difference
            at = min(filled, k)
            while at > 0 and (
                distances[i, at - 1] > square or (distances[i, at - 1] == square and nearest[i, at - 1] > row)
            ):
                at -= 1
            for later in range(min(filled, k - 1), at, -1):
                distances[i, later], nearest[i, later] = distances[i, later - 1], nearest[i, later - 1]
            if at < k:
                distances[i, at], nearest[i, at] = square, row
            filled = min(filled + 1, k)
        for j in range(k):
            distances[i, j] = np.sqrt(distances[i, j])
