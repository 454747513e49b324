"""The estimators that heads are made of: those with a name, and any of scikit-learn's."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from inspect import signature
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from tessera_xr.errors import SchemaError

Task = Literal["classes", "numbers"]
Standardise = Literal["auto", "each", "together"] | None
NAMES: dict[Task, tuple[str, ...]] = {
    "classes": ("logistic", "knn", "forest", "gradient_boosting", "mlp", "unet"),
    "numbers": ("ridge", "knn", "forest", "gradient_boosting", "mlp", "unet"),
}
OWN: dict[str, tuple[str, str, dict[str, Any]]] = {
    "knn": ("neighbours", "KNN", {}),
    "mlp": ("estimators", "MLP", {"standardise": False}),  # the head has done it
    "unet": ("unet", "UNet", {"standardise": False}),
}
"""Module, class without its suffix, and settings of the package's own estimators."""
_HINT: dict[Task, str] = {
    "classes": "codes of classes must be whole numbers or text",
    "numbers": "make whole numbers a target with target=True",
}
ALPHAS = np.logspace(-2, 5, 15)
"""Strengths of the ridge to choose from: by polygons held out, or, if all labels are single pixels, by each of them."""


def make_estimator(model: Any, task: Task, seed: int, options: dict[str, Any]) -> tuple[str, Any]:
    """Return the name of a model and a fresh estimator for a task.

    Parameters
    ----------
    model : str or scikit-learn estimator
        One of `NAMES`, or an estimator or pipeline, of which a clone is made.
    task : {"classes", "numbers"}
        Classification or regression.
    seed : int
        For what is drawn at random, unless the estimator has its own.
    options : dict
        Parameters of a named model; of a given estimator they are set on the clone.

    Raises
    ------
    SchemaError
        If there is no such model for the task, or no such option.
    """
    if isinstance(model, str):
        if model not in NAMES[task]:
            other: Task = "classes" if task == "numbers" else "numbers"
            elsewhere = f" ({model!r} is for {other}: {_HINT[other]})" if model in NAMES[other] else ""
            raise SchemaError(
                f"model={model!r} is unknown for {task}{elsewhere}; choose one of {list(NAMES[task])}, or give a "
                "scikit-learn estimator"
            )
        name, estimator = model, _named(model, task, options)
    else:
        name, estimator = type(model).__name__, _given(model, task)
    allowed = estimator.get_params(deep=not isinstance(model, str))
    if unknown := sorted(set(options) - set(allowed)):
        raise SchemaError(f"{name} has no option {', '.join(unknown)}; its options are {', '.join(sorted(allowed))}")
    if isinstance(model, str) and "random_state" in allowed:
        options = {"random_state": seed} | options
    return name, _seeded(estimator.set_params(**options), seed)


def _named(name: str, task: Task, options: dict[str, Any]) -> Any:
    classes = task == "classes"
    if name in OWN:
        module, kind, settings = OWN[name]
        suffix = "Classifier" if classes else "Regressor"
        settings = settings | ({"class_weight": None} if name == "unet" and classes else {})  # in the pixels' weights
        return getattr(import_module(f"tessera_xr.learning.{module}"), kind + suffix)(**settings)
    from sklearn import ensemble, linear_model

    if name == "logistic":
        return linear_model.LogisticRegression(max_iter=1000)
    if name == "ridge":
        return linear_model.Ridge() if "alpha" in options else linear_model.RidgeCV(ALPHAS)
    if name == "forest":
        kind = ensemble.RandomForestClassifier if classes else ensemble.RandomForestRegressor
        return kind(n_estimators=200, n_jobs=-1)
    # its own early stopping would hold out pixels at random, neighbours of those it learns from
    kind = ensemble.HistGradientBoostingClassifier if classes else ensemble.HistGradientBoostingRegressor
    return kind(early_stopping=False)


def _given(model: Any, task: Task) -> Any:
    """Return a clone of a scikit-learn estimator that fits the task."""
    from sklearn.base import clone, is_classifier, is_regressor

    if isinstance(model, type) or not (hasattr(model, "fit") and hasattr(model, "get_params")):
        raise SchemaError(
            f"model={model!r} is no model; choose one of {list(NAMES[task])}, or give a scikit-learn estimator such as "
            "LinearSVC()"
        )
    if not (is_classifier(model) if task == "classes" else is_regressor(model)):
        raise SchemaError(
            f"{type(model).__name__} is no {'classifier' if task == 'classes' else 'regressor'}, and the labels are "
            f"{task}; choose one of {list(NAMES[task])}, or another estimator"
        )
    return clone(model)


def _seeded(estimator: Any, seed: int) -> Any:
    """Set every random_state that is not set, also inside a pipeline."""
    unset = [k for k, v in estimator.get_params().items() if k.rpartition("__")[2] == "random_state" and v is None]
    return estimator.set_params(**dict.fromkeys(unset, seed))


def takes(estimator: Any, argument: str) -> bool:
    """Say whether `fit` of an estimator, or of the last step of a pipeline, takes an argument."""
    return argument in signature(last_step(estimator).fit).parameters


def fit_estimator(
    estimator: Any,
    X: npt.NDArray[np.float32],
    y: npt.NDArray[Any],
    weights: npt.NDArray[np.float64] | None,
    groups: npt.NDArray[np.intp],
) -> Any:
    """Fit, with weights and with the groups that a validation split must not tear apart, where `fit` takes them."""
    if type(estimator).__name__ == "RidgeCV" and estimator.cv is None and 2 <= len(np.unique(groups)) < len(X):
        return _fit_ridge(estimator, X, y, weights, groups)
    prefix = f"{estimator.steps[-1][0]}__" if hasattr(estimator, "steps") else ""
    given: dict[str, Any] = {} if weights is None else {"sample_weight": weights}
    given |= {"groups": groups} if takes(estimator, "groups") else {}
    return estimator.fit(X, y, **{prefix + key: value for key, value in given.items()})


def _fit_ridge(
    estimator: Any,
    X: npt.NDArray[np.float32],
    y: npt.NDArray[Any],
    weights: npt.NDArray[np.float64] | None,
    groups: npt.NDArray[np.intp],
) -> Any:
    """Choose the strength by whole polygons held out: beside a pixel of its own polygon hardly any looks too weak."""
    from sklearn.model_selection import GroupKFold

    folds = GroupKFold(min(5, len(np.unique(groups))))
    estimator.set_params(cv=list(folds.split(X, groups=groups)))
    return estimator.fit(X, y, sample_weight=weights).set_params(cv=None)


def last_step(estimator: Any) -> Any:
    """Return the estimator that a pipeline ends with, or the estimator itself."""
    return estimator.steps[-1][1] if hasattr(estimator, "steps") else estimator


@dataclass(frozen=True)
class Scaling:
    """What is taken off the embeddings, and what they are divided by, before an estimator sees them."""

    mean: npt.NDArray[np.float32]
    """(band,)"""
    scale: npt.NDArray[np.float32]
    """(band,)"""

    def apply(self, X: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return embeddings (..., band) on the scale of the estimator."""
        return np.asarray((X - self.mean) / self.scale, dtype=np.float32)


def fit_scaling(X: npt.NDArray[np.float32], how: Standardise) -> Scaling:
    """Learn from pixels (n, band) how to scale: each band to unit variance, all bands by one number, or not at all."""
    if how not in ("each", "together", None):
        raise SchemaError(f"standardise={how!r} is unknown; choose 'auto', 'each', 'together' or None")
    n_bands = X.shape[1]
    if how is None:
        return Scaling(np.zeros(n_bands, np.float32), np.ones(n_bands, np.float32))
    spread = X.std(axis=0, dtype=np.float64)
    if how == "together":
        spread = np.full(n_bands, np.sqrt((spread**2).mean()))
    # a band that hardly varies among the labels is left small, not blown up
    spread = np.maximum(spread, 1e-3 * spread.max())
    spread = np.where(spread > 0, spread, 1)
    return Scaling(X.mean(axis=0, dtype=np.float64).astype(np.float32), spread.astype(np.float32))
