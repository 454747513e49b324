"""Heads: small estimators fitted to the embeddings of a few labels, which know their classes and their model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import xarray as xr

from tessera_xr._warn import warn
from tessera_xr.embedding.schema import OFFICIAL, check_embeddings, check_same_model, identity
from tessera_xr.errors import SchemaError, VersionMismatchError
from tessera_xr.learning.recipes import (
    Scaling,
    Standardise,
    Task,
    fit_estimator,
    fit_scaling,
    make_estimator,
    takes,
)
from tessera_xr.learning.samples import LabelSample, as_sample

if TYPE_CHECKING:
    from tessera_xr.learning.labels import LabelSet
    from tessera_xr.learning.validation import Validation

ClassWeight = Literal["auto", "balanced"] | None
RESIDUAL_FOLDS = 5


@dataclass(frozen=True, eq=False)
class Head:
    """A fitted estimator with its classes, the model of its embeddings, and its scores."""

    name: str
    """Of the model: "logistic", or the class of a given estimator."""
    task: Task
    """Whether it says classes or numbers."""
    classes: tuple[str, ...]
    """The classes that it was taught, in the order of the labels; empty for numbers."""
    colours: tuple[str, ...]
    """A colour (#rrggbb) for each class."""
    target: str | None
    """What the numbers are; None for classes."""
    estimator: Any
    """scikit-learn's, or one of the package's own; it predicts the positions of classes, or numbers."""
    scaling: Scaling
    """What embeddings go through before it."""
    attrs: Mapping[str, Any]
    """Model and weights of the embeddings."""
    n_labelled: Mapping[str, int]
    """Pixels that it was taught, by class (or by target)."""
    residuals: npt.NDArray[np.float64] | None = None
    """(n,) absolute errors at labels that were held out in turn, ascending: what intervals are made of."""
    scores: Mapping[str, Any] = field(default_factory=dict)
    """What was found out about its accuracy; see `with_scores`."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Of the packages that it was saved with; empty for one fitted here."""

    @property
    def n_bands(self) -> int:
        """The length of the embeddings that it takes."""
        return len(self.scaling.mean)

    @property
    def has_probability(self) -> bool:
        """Whether the estimator says how sure it is."""
        return self.task == "classes" and hasattr(self.estimator, "predict_proba")

    @property
    def is_spatial(self) -> bool:
        """Whether it looks at the neighbours of a pixel too, and so needs a map."""
        from tessera_xr.learning.recipes import last_step

        return bool(getattr(last_step(self.estimator), "takes_images", False))

    def predict_rows(self, X: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
        """Return the class names (n,), or numbers (n,) float64, of embeddings (n, band)."""
        found = self.estimator.predict(self._scaled(X))
        if self.task == "numbers":
            return np.asarray(found, dtype=np.float64)
        return np.array(self.classes)[np.asarray(found, dtype=np.intp)]

    def probability_rows(self, X: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """Return the probabilities (n, class) of embeddings (n, band), in the order of `classes`.

        Raises
        ------
        SchemaError
            If the estimator has none.
        """
        if not self.has_probability:
            raise SchemaError(f"{self.name} gives no probabilities; fit 'logistic', 'forest', 'knn' or 'mlp' instead")
        return np.asarray(self.estimator.predict_proba(self._scaled(X)), dtype=np.float64)

    def predict(
        self, emb: xr.Dataset, *, time: Any = None, probability: bool = True, interval: float = 0.9
    ) -> xr.Dataset:
        """Draw a map: see `tessera_xr.predict`."""
        from tessera_xr.learning.prediction import predict

        return predict(emb, self, time=time, probability=probability, interval=interval)

    def score(self, emb: xr.Dataset | None, labels: LabelSet | LabelSample, *, time: Any = None) -> Validation:
        """Score the head by labels of another year or place: see `tessera_xr.score`."""
        from tessera_xr.learning.evaluation import score

        return score(self, emb, labels, time=time)

    def save(self, path: str | Path) -> Path:
        """Write the head into one file without pickle; `tessera_xr.load_head` opens it again.

        Raises
        ------
        SchemaError
            If the estimator can't be written without pickle.
        """
        from tessera_xr.learning.saving import save_head

        return save_head(self, path)

    def with_scores(self, scores: Any) -> Head:
        """Return the head with scores to keep in its file: a Validation, a row of `evaluate`, or a mapping."""
        found = getattr(scores, "scores", scores)
        return replace(self, scores={str(k): float(v) for k, v in dict(found).items() if isinstance(v, Real)})

    def check_fits(self, emb: xr.Dataset) -> None:
        """Raise unless the head can be used on these embeddings.

        Raises
        ------
        VersionMismatchError
            If they are of another model, other weights or another length.
        """
        check_embeddings(emb)
        if emb.sizes["band"] != self.n_bands:
            raise VersionMismatchError(
                f"this head takes embeddings of {self.n_bands} values, these have {emb.sizes['band']}; embed with "
                f"dims={self.n_bands}, or fit a head to these"
            )
        check_same_model(emb, xr.Dataset(coords={"band": np.arange(self.n_bands)}, attrs=dict(self.attrs)))

    def _scaled(self, X: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        if self.is_spatial:
            raise SchemaError(f"{self.name} looks at the neighbours of a pixel, and needs a map: use head.predict(emb)")
        X = np.atleast_2d(np.asarray(X, dtype=np.float32))
        if X.ndim != 2 or X.shape[1] != self.n_bands:
            raise SchemaError(f"embeddings must be (n, {self.n_bands}), not {X.shape}")
        return self.scaling.apply(X)

    def __repr__(self) -> str:
        taught = ", ".join(f"{k} ({n:,})" for k, n in self.n_labelled.items())
        lines = [
            f"<Head: {self.name}, {self.task}, {self.n_bands} bands>",
            f"  taught       {taught} pixels",
            f"  embeddings   {self.attrs.get('model', 'unknown model')}",
        ]
        told = ", ".join(f"{k} {v:.3g}" for k, v in list(self.scores.items())[:6])
        return "\n".join([*lines, *([f"  scores       {told}"] if told else [])])


def fit_head(
    emb: xr.Dataset | None,
    labels: LabelSet | LabelSample,
    model: Any = "logistic",
    *,
    time: Any = None,
    class_weight: ClassWeight = "auto",
    standardise: Standardise = "auto",
    seed: int = 0,
    **options: Any,
) -> Head:
    """Fit a light head to labelled pixels.

    Parameters
    ----------
    emb : Dataset
        Embeddings, float32 or int8, eager or lazy. None will do where `labels` is a sample.
    labels : LabelSet or LabelSample
        Classes, or numbers: they say what the task is.
    model : str or scikit-learn estimator, default "logistic"
        For classes "logistic", for numbers "ridge"; for both "knn", "forest", "gradient_boosting", "mlp" and "unet"
        (which sees the neighbourhood of a pixel); or any scikit-learn classifier or regressor, or pipeline.
    time : int, str or datetime64, optional
        Which time of `emb` the labels are of, where there are several.
    class_weight : {"auto", "balanced", None}
        "balanced": all classes count alike, however many pixels they have; "auto": so where the model takes weights.
    standardise : {"auto", "each", "together", None}
        "each": each band to mean 0 and variance 1 among the labels; "together": means to 0, and all bands divided by
        one number, which keeps their sizes. "auto" is "together" for encoders that are not TESSERA's own ("mini"),
        whose values carry meaning in their size, "each" for others, None for a pipeline, which has its own steps.
    seed : int, default 0
        Of what the model draws at random.
    **options
        Parameters of the model, as n_neighbors=10 for "knn" or C=0.1 for "logistic".

    Returns
    -------
    Head

    Raises
    ------
    SchemaError
        If there is one class only, a number that is none, an unknown model or option, or a model of the other task.
    VersionMismatchError
        If the labels were sampled from embeddings of another model.

    Examples
    --------
    >>> head = fit_head(emb, labels, "knn", time=2022, n_neighbors=10)  # doctest: +SKIP
    """
    sample = as_sample(emb, labels, time)
    settings: dict[str, Any] = {"class_weight": class_weight, "standardise": standardise, "seed": seed}
    if (isinstance(model, str) and model == "unet") or getattr(model, "takes_images", False):
        from tessera_xr.learning.images import fit_unet

        return fit_unet(emb, sample, model, time=time, **settings, **options)
    head = fit_sample(sample, model, **settings, **options)
    if head.task == "classes":
        return head
    return replace(head, residuals=_held_out_residuals(sample, model, settings | options))


def fit_sample(
    sample: LabelSample,
    model: Any = "logistic",
    *,
    class_weight: ClassWeight = "auto",
    standardise: Standardise = "auto",
    seed: int = 0,
    **options: Any,
) -> Head:
    """Fit a head to sampled labels; without the held-out errors that intervals of numbers need. See `fit_head`."""
    targets, classes = check_targets(sample)
    name, estimator = make_estimator(model, sample.task, seed, options)
    if getattr(estimator, "takes_images", False):
        raise SchemaError("a UNet learns from maps, not from sampled pixels; call fit_head(emb, labels, 'unet')")
    weights = pixel_weights(sample, targets, class_weight if takes(estimator, "sample_weight") else None)
    if class_weight == "balanced" and not takes(estimator, "sample_weight"):
        raise SchemaError(f"{name} takes no weights; leave out class_weight='balanced', or choose another model")
    scaling = fit_scaling(sample.X, resolve_standardise(standardise, sample, estimator))
    given = weights if takes(estimator, "sample_weight") else None
    fit_estimator(estimator, scaling.apply(sample.X), targets, given, sample.groups)
    return make_head(name, sample, classes, estimator, scaling)


def make_head(name: str, sample: LabelSample, classes: tuple[str, ...], estimator: Any, scaling: Scaling) -> Head:
    """Put a fitted estimator and what is known of its labels together."""
    if sample.task == "classes":
        n_labelled = {k: int((sample.y == k).sum()) for k in classes}
    else:
        n_labelled = {str(sample.target): len(sample)}
    colours = tuple(sample.classes[name] for name in classes)
    attrs = identity(xr.Dataset(attrs=sample.attrs))
    return Head(name, sample.task, classes, colours, sample.target, estimator, scaling, attrs, n_labelled)


def check_targets(sample: LabelSample) -> tuple[npt.NDArray[Any], tuple[str, ...]]:
    """Return what an estimator is to learn, positions in the classes or numbers (n,), and the classes that are there.

    Raises
    ------
    SchemaError
        If that can't be learnt.
    """
    if not len(sample):
        raise SchemaError("there are no labelled pixels to learn from; add labels")
    if sample.task == "numbers":
        y = sample.y.astype(np.float64)
        if not np.isfinite(y).all():
            raise SchemaError(f"{int((~np.isfinite(y)).sum())} of {len(y)} targets are NaN or infinite; remove them")
        if np.ptp(y) == 0:
            raise SchemaError(f"all {len(y)} targets are {y[0]:g}; a head needs values that differ")
        return y, ()
    codes = sample.class_codes()
    present, targets = np.unique(codes, return_inverse=True)
    classes = tuple(np.array(list(sample.classes))[present].tolist())
    if len(classes) < 2:
        raise SchemaError(f"all labels are {classes[0]!r}; a head needs two classes or more: label something else too")
    return targets, classes


def pixel_weights(sample: LabelSample, targets: npt.NDArray[Any], class_weight: ClassWeight) -> npt.NDArray[np.float64]:
    """Return how much each pixel counts (n,), 1 on average: its quality, and less in a class that has many."""
    if class_weight not in ("auto", "balanced", None):
        raise SchemaError(f"class_weight={class_weight!r} is unknown; choose 'auto', 'balanced' or None")
    weights = sample.weights.astype(np.float64)
    if class_weight is not None and sample.task == "classes":
        weights = weights / np.bincount(targets, weights)[targets]
    return np.asarray(weights / weights.mean())


def resolve_standardise(how: Standardise, sample: LabelSample, estimator: Any) -> Standardise:
    """Return what "auto" means for these embeddings and this estimator."""
    if how != "auto":
        return how
    if hasattr(estimator, "steps"):
        return None
    return "together" if OFFICIAL in sample.attrs else "each"


def _held_out_residuals(sample: LabelSample, model: Any, settings: dict[str, Any]) -> npt.NDArray[np.float64] | None:
    """Return absolute errors at labels that were held out in turn, blocks of the map at a time, ascending."""
    folds = _folds(sample, settings["seed"])
    if folds is None:
        warn("all targets are of one label: there is none to hold out, and predictions will have no interval")
        return None
    errors = np.full(len(sample), np.nan)
    for train, test in folds:
        if np.ptp(sample.y[train].astype(float)) > 0:
            held = fit_sample(sample.take(train), model, **settings).predict_rows(sample.X[test])
            errors[test] = np.abs(held - sample.y[test].astype(float))
    return np.sort(errors[np.isfinite(errors)])


def _folds(sample: LabelSample, seed: int) -> list[tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]] | None:
    """Return training and test rows: by blocks, else, where labels are few, by polygons; None if there is one only."""
    from sklearn.model_selection import GroupKFold

    from tessera_xr.learning.splits import spatial_folds

    try:
        return list(spatial_folds(sample, RESIDUAL_FOLDS, seed=seed).split())
    except SchemaError:
        n_groups = len(np.unique(sample.groups))
        if n_groups < 2:
            return None
        folds = GroupKFold(min(RESIDUAL_FOLDS, n_groups), shuffle=True, random_state=seed)
        return list(folds.split(sample.X, groups=sample.groups))
