"""How good a prediction is: scores with weights, per class, and for thousands of resamplings at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

Floats = npt.NDArray[np.float64]
N_MOMENTS = 6


def class_scores(
    truth: npt.ArrayLike, predicted: npt.ArrayLike, weights: npt.ArrayLike | None = None
) -> dict[str, float]:
    """Return macro F1, weighted F1, balanced accuracy and accuracy of predicted classes.

    Means over classes are over those that the truth holds: a class that is only ever predicted has no recall, and
    counts against the precision of the others.

    Parameters
    ----------
    truth, predicted : array_like (n,)
        Names of classes.
    weights : array_like (n,), optional
        Of the rows.
    """
    from sklearn.metrics import accuracy_score, f1_score, recall_score

    there = np.unique(np.asarray(truth))
    options: dict[str, Any] = {"labels": there, "sample_weight": weights, "zero_division": 0}
    return {
        "macro_f1": float(f1_score(truth, predicted, average="macro", **options)),
        "weighted_f1": float(f1_score(truth, predicted, average="weighted", **options)),
        # what balanced_accuracy_score gives, which warns of classes that are only predicted
        "balanced_accuracy": float(recall_score(truth, predicted, average="macro", **options)),
        "accuracy": float(accuracy_score(truth, predicted, sample_weight=weights)),
    }


def number_scores(
    truth: npt.ArrayLike, predicted: npt.ArrayLike, weights: npt.ArrayLike | None = None
) -> dict[str, float]:
    """Return RMSE, MAE, R2 and bias (mean of predicted - truth) of predicted numbers, (n,) each."""
    from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

    error = np.asarray(predicted, dtype=np.float64) - np.asarray(truth, dtype=np.float64)
    varied = len(error) > 1 and bool(np.ptp(np.asarray(truth, dtype=np.float64)))
    return {
        "rmse": float(root_mean_squared_error(truth, predicted, sample_weight=weights)),
        "mae": float(mean_absolute_error(truth, predicted, sample_weight=weights)),
        "r2": float(r2_score(truth, predicted, sample_weight=weights)) if varied else float("nan"),
        "bias": float(np.average(error, weights=None if weights is None else np.asarray(weights))),
    }


def area_under_curve(
    truth: npt.NDArray[Any], probabilities: Floats, classes: Sequence[str], weights: npt.ArrayLike | None = None
) -> float:
    """Return the area under the ROC curve, each class against the rest and averaged over those in the truth.

    NaN unless the truth holds two classes. `probabilities` is (n, class), in the order of `classes`.
    """
    from sklearn.metrics import roc_auc_score

    there = [i for i, name in enumerate(classes) if (truth == name).any()]
    if len(there) < 2:
        return float("nan")
    there = there[:1] if len(classes) == 2 else there  # of two the areas are the same
    each = [roc_auc_score(truth == classes[i], probabilities[:, i], sample_weight=weights) for i in there]
    return float(np.mean(each))


def per_class(
    truth: npt.ArrayLike, predicted: npt.ArrayLike, classes: Sequence[str], weights: npt.ArrayLike | None = None
) -> pd.DataFrame:
    """Return precision, recall, F1 and support (sum of weights) of each class, a row each; NaN where undefined.

    Precision is the user's accuracy of a map, recall the producer's.
    """
    from sklearn.metrics import precision_recall_fscore_support

    labels = list(classes)
    # zero_division=nan would leave F1 0 where a class is neither there nor predicted
    found = precision_recall_fscore_support(
        truth, predicted, labels=labels, sample_weight=weights, zero_division=np.nan, average=None
    )
    table = pd.DataFrame(dict(zip(("precision", "recall", "f1", "support"), found, strict=True)), index=labels)
    table.index.name = "class"
    return table.astype(np.float64)


def confusion(
    truth: npt.ArrayLike, predicted: npt.ArrayLike, classes: Sequence[str], weights: npt.ArrayLike | None = None
) -> pd.DataFrame:
    """Return how often each class (rows: the truth) was predicted as each (columns), sums of weights."""
    from sklearn.metrics import confusion_matrix

    labels = list(classes)
    counts = confusion_matrix(truth, predicted, labels=labels, sample_weight=weights)
    return pd.DataFrame(counts, index=pd.Index(labels, name="truth"), columns=pd.Index(labels, name="predicted"))


# Sums over places, from which scores follow ---------------------------------------------------------------------------


def scores_of_confusions(counts: Floats) -> dict[str, Floats]:
    """Return what `class_scores` does, for many confusion matrices (..., class, class) at once: (...) each."""
    hits = np.diagonal(counts, axis1=-2, axis2=-1)
    support, said = counts.sum(axis=-1), counts.sum(axis=-2)
    there = support > 0
    with np.errstate(invalid="ignore", divide="ignore"):
        f1 = np.where(there, 2 * hits / (support + said), 0)
        recall = np.where(there, hits / support, 0)
        n_there, total = there.sum(axis=-1), support.sum(axis=-1)
        return {
            "macro_f1": f1.sum(axis=-1) / n_there,
            "weighted_f1": (f1 * support).sum(axis=-1) / total,
            "balanced_accuracy": recall.sum(axis=-1) / n_there,
            "accuracy": hits.sum(axis=-1) / total,
        }


def number_moments(truth: Floats, predicted: Floats, origin: float) -> Floats:
    """Return what of each row adds up to the scores of numbers, (n, 6): 1, t, t^2, e^2, |e|, e.

    t is the truth less `origin`, some number in the midst of it, so that sums of squares keep their digits.
    """
    away, error = truth - origin, predicted - truth
    return np.stack([np.ones_like(truth), away, away**2, error**2, np.abs(error), error], axis=-1)


def scores_of_moments(sums: Floats) -> dict[str, Floats]:
    """Return what `number_scores` does, for many sums (..., 6) of weighted `number_moments` at once: (...) each."""
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = sums / sums[..., :1]
        spread = mean[..., 2] - mean[..., 1] ** 2
        return {
            "rmse": np.sqrt(mean[..., 3]),
            "mae": mean[..., 4],
            "r2": np.where(spread > 0, 1 - mean[..., 3] / spread, np.nan),
            "bias": mean[..., 5],
        }
