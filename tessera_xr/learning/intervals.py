"""How far scores of held-out places may be off: a bootstrap over places, not over pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tessera_xr.learning.held_out import HeldOut
from tessera_xr.learning.metrics import N_MOMENTS, Floats, number_moments, scores_of_confusions, scores_of_moments
from tessera_xr.learning.samples import LabelSample

Interval = tuple[float, float]

N_RESAMPLED = 1000
PIECE = 4_000_000
"""Numbers of draws of places that are in memory at a time."""


def place_sums(unit: npt.NDArray[np.intp], cell: npt.NDArray[np.intp], value: Floats, shape: tuple[int, int]) -> Any:
    """Return sums (unit, cell) of values over rows, a sparse matrix: what resampled places are added up from."""
    from scipy.sparse import coo_array

    return coo_array((value, (unit, cell)), shape=shape).tocsr()


def bootstrap(
    sums: Sequence[Any],
    scores: Callable[[Floats], dict[str, Floats]],
    *,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Interval]:
    """Return the interval of the mean over draws of each score.

    A cluster bootstrap: places are drawn with replacement, all with their predictions in every draw, since the draws
    judge by the same places; draws are drawn with replacement too. The quantiles are those of Hesterberg's expanded
    percentile interval, wider for few places. That heads of several folds learn in part from the same labels is not
    seen by it, so that intervals are a little narrow: no unbiased estimate is known (Bengio and Grandvalet 2004).

    Parameters
    ----------
    sums : sequence of sparse matrices (place, k)
        One for each draw: sums over the pixels of a place, from which scores follow.
    scores : callable
        Total sums (m, k) to scores, (m,) each.
    confidence : float, default 0.95
        Of the interval.
    seed : int, default 0
        Of the resampling; the same seed draws the same places.

    Returns
    -------
    dict
        Name of the score to (low, high); NaN if there are fewer than two places.

    References
    ----------
    Hesterberg (2015), The American Statistician 69, 371-386; Bengio and Grandvalet (2004), JMLR 5, 1089-1105.
    """
    n_places, rng = sums[0].shape[0], np.random.default_rng(seed)
    which = rng.integers(len(sums), size=(N_RESAMPLED, len(sums)))
    step, found = max(1, PIECE // n_places), []
    for start in range(0, N_RESAMPLED, step):
        times = _resampled(n_places, min(step, N_RESAMPLED - start), rng)
        each = [scores(np.asarray(times @ part)) for part in sums]
        found.append({name: np.stack([of_draw[name] for of_draw in each], axis=1) for name in each[0]})  # (m, draw)
    level = _level(confidence, n_places)
    out = {}
    for name in found[0]:
        means = np.take_along_axis(np.concatenate([part[name] for part in found]), which, axis=1).mean(axis=1)
        known = means[np.isfinite(means)]
        low, high = np.quantile(known, [level, 1 - level]) if n_places > 1 and len(known) else (np.nan, np.nan)
        out[name] = (float(low), float(high))
    return out


def _resampled(n_places: int, n: int, rng: np.random.Generator) -> Floats:
    """Return how often each place is drawn, (n, place)."""
    drawn = rng.integers(n_places, size=(n, n_places)) + n_places * np.arange(n)[:, None]
    return np.bincount(drawn.ravel(), minlength=n * n_places).reshape(n, n_places).astype(np.float64)


def _level(confidence: float, n_places: int) -> float:
    """Return the quantile that the lower end is: that of a t distribution, on the scale of the bootstrap's spread."""
    from scipy.stats import norm, t

    if n_places < 2:
        return float("nan")
    far = t.ppf((1 - confidence) / 2, n_places - 1) * np.sqrt(n_places / (n_places - 1))
    return float(norm.cdf(far))


def sums_by_place(sample: LabelSample, found: HeldOut, place: npt.NDArray[np.intp]) -> Any:
    """Return for each place what adds up to the scores of a set of places: (place, k), sparse."""
    weights, where, n_places = sample.weights[found.rows], place[found.rows], int(place.max()) + 1
    if sample.task == "numbers":
        moments = number_moments(sample.y[found.rows], found.predicted, float(sample.y.mean())) * weights[:, None]
        cells = np.tile(np.arange(N_MOMENTS), len(where))
        return place_sums(np.repeat(where, N_MOMENTS), cells, moments.ravel(), (n_places, N_MOMENTS))
    names = np.array(list(sample.classes))
    order = np.argsort(names)
    truth, predicted = (order[np.searchsorted(names, v, sorter=order)] for v in (sample.y[found.rows], found.predicted))
    return place_sums(where, truth * len(names) + predicted, weights, (n_places, len(names) ** 2))


def scores_of_sums(sample: LabelSample) -> Callable[[Floats], dict[str, Floats]]:
    """Return the function from sums (m, k) to scores, (m,) each."""
    if sample.task == "numbers":
        return scores_of_moments
    n = len(sample.classes)
    return lambda total: scores_of_confusions(total.reshape(len(total), n, n))
