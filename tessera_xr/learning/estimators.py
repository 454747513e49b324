"""Multilayer perceptrons as scikit-learn estimators: the heads of the TESSERA paper, quick to draw maps with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from sklearn.base import ClassifierMixin, RegressorMixin

from tessera_xr.errors import SchemaError
from tessera_xr.learning.perceptrons import Doubles, Floats, Perceptrons
from tessera_xr.learning.training import as_schema_error, deviation, pack_classes, unpack_classes

if TYPE_CHECKING:
    from torch import Tensor


class MLPClassifier(ClassifierMixin, Perceptrons):  # type: ignore[misc]
    """Classes of rows, by a perceptron with BatchNorm and dropout.

    Parameters
    ----------
    hidden : tuple of int
        Widths of the hidden layers.
    dropout : float
        Share of the hidden values left out in training.
    learning_rate, weight_decay : float
        Of AdamW.
    batch_size : int
        Rows in a step, at most: few labels are cut into 16 batches, of 32 rows at least.
    max_epochs : int
        Passes through the labels, at most.
    patience : int
        Passes without a better score after which to stop.
    validation_fraction : float
        Share of the labels held out to find the best pass; 0 for none. Where they are too few to hold some out (ten
        rows, of half of the classes), training takes about 600 steps instead.
    standardise : bool
        Whether to bring each feature to mean 0 and variance 1 first.
    device : str
        "auto" is a GPU, if there is one.
    random_state : int, RandomState or None
        An int gives the same result each time. No global random state is used or changed.

    Attributes
    ----------
    classes_ : ndarray (C,)
    n_iter_ : int
        Passes made.
    loss_curve_ : list of float
        Mean loss of each pass.
    validation_scores_ : list of float, or None
        Weighted F1 on the labels held out, after each pass; None if none could be.

    References
    ----------
    Feng et al. (2025), TESSERA, arXiv:2506.20380: the widths, the optimiser and the best validation F1 are theirs.

    Examples
    --------
    >>> import numpy as np
    >>> X = np.random.default_rng(0).normal(size=(80, 4))
    >>> MLPClassifier(hidden=(16,)).fit(X, np.where(X[:, 0] > 0, "wheat", "maize")).predict([[2, 0, 0, 0]])
    array(['wheat'], dtype='<U5')
    """

    _is_regression = False
    classes_: npt.NDArray[Any]

    def __init__(
        self,
        hidden: Sequence[int] = (512, 256),
        *,
        dropout: float = 0.3,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.01,
        batch_size: int = 8192,
        max_epochs: int = 200,
        patience: int = 10,
        validation_fraction: float = 0.1,
        standardise: bool = True,
        device: str = "auto",
        random_state: Any = 0,
    ) -> None:
        self.hidden = hidden
        self.dropout = dropout
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.batch_size = batch_size
        self.max_epochs = max_epochs
        self.patience = patience
        self.validation_fraction = validation_fraction
        self.standardise = standardise
        self.device = device
        self.random_state = random_state

    def partial_fit(
        self,
        X: npt.ArrayLike,
        y: npt.ArrayLike,
        classes: npt.ArrayLike | None = None,
        sample_weight: npt.ArrayLike | None = None,
    ) -> MLPClassifier:
        """Learn a little more: a few passes through these rows, from the present weights on.

        Parameters
        ----------
        X, y, sample_weight
            As `fit` takes them.
        classes : array (C,)
            All classes that there will ever be; needed at the first call only.

        Returns
        -------
        self

        Raises
        ------
        SchemaError
            As `fit`; and if `classes` is missing at the first call, differs later, or doesn't hold all of y.
        """
        first = not hasattr(self, "_folded")
        self._check_parameters()
        rows, column = self._rows(X, y, reset=first)
        self._check_kind(column)
        self._settle_classes(classes, first=first)
        unknown = sorted(set(np.unique(column).tolist()) - set(self.classes_.tolist()), key=str)
        if unknown:
            raise SchemaError(f"y holds {unknown}, not among the classes {self.classes_.tolist()} of the first call")
        targets = np.searchsorted(self.classes_, column)
        self._continue(rows, targets, sample_weight, first=first)
        return self

    def predict(self, X: npt.ArrayLike) -> npt.NDArray[Any]:
        """Return the class (n,) of rows (n, d)."""
        rows = self._checked(X)
        found: npt.NDArray[Any] = self.classes_[self.predict_logits(rows).argmax(axis=1)]
        return found

    def predict_proba(self, X: npt.ArrayLike) -> Floats:
        """Return the probability (n, C) float32 of each of `classes_` for rows (n, d)."""
        return self.predict_proba_float32(self._checked(X))

    def predict_proba_float32(self, X: npt.NDArray[Any]) -> Floats:
        """Return the probabilities (n, C) of rows (n, d) of floats, without any check.

        Rows with NaN give NaN, or nonsense; other rows don't suffer.
        """
        return self._run(X, softmax=True)

    def _settle_classes(self, classes: npt.ArrayLike | None, *, first: bool) -> None:
        if classes is None:
            if first:
                raise SchemaError("partial_fit needs classes=... at its first call: all classes that there will be")
            return
        given = np.unique(np.asarray(classes))
        if len(given) < 2:
            raise SchemaError(f"{len(given)} class is too few; give two classes or more")
        if not first and not np.array_equal(given, self.classes_):
            raise SchemaError(
                f"classes are {self.classes_.tolist()} since the first call, not {given.tolist()}; fit anew"
            )
        self.classes_ = given

    def _check_kind(self, y: npt.NDArray[Any]) -> None:
        from sklearn.utils.multiclass import check_classification_targets

        with as_schema_error():
            check_classification_targets(y)

    def _learn_targets(self, y: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        self._check_kind(y)
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise SchemaError(f"all labels are of one class, {self.classes_[0]!r}; two classes or more are needed")
        return codes, codes.astype(np.int64)

    def _standardised(self, targets: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return targets

    def _widths(self) -> list[int]:
        return [*map(int, np.atleast_1d(self.hidden)), len(self.classes_)]

    def _losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        from torch.nn import functional

        return functional.cross_entropy(outputs, targets, reduction="none")

    def _score(self, outputs: Floats, targets: npt.NDArray[Any], weights: Floats) -> float:
        from sklearn.metrics import f1_score

        found = outputs.argmax(axis=1)
        return float(f1_score(targets, found, average="weighted", sample_weight=weights, zero_division=0))

    def _more_facts(self) -> dict[str, Any]:
        return {"classes": pack_classes(self.classes_)}

    def _take_facts(self, facts: dict[str, Any]) -> None:
        self.classes_ = unpack_classes(facts["classes"])


class MLPRegressor(RegressorMixin, Perceptrons):  # type: ignore[misc]
    """Numbers of rows, by a perceptron with BatchNorm; the target is standardised.

    Parameters
    ----------
    hidden : int or tuple of int
        Width of the first hidden layer, followed by a half and a quarter of it; or the widths of all.
    dropout : float
        Share of the hidden values left out in training.
    learning_rate, weight_decay : float
        Of AdamW.
    batch_size : int
        Rows in a step, at most: few labels are cut into 16 batches, of 32 rows at least.
    max_epochs : int
        Passes through the labels, at most.
    patience : int
        Passes without a better score after which to stop.
    validation_fraction : float
        Share of the labels held out to find the best pass; 0 for none. Where they are too few to hold some out (ten
        rows), training takes about 600 steps instead.
    standardise : bool
        Whether to bring each feature to mean 0 and variance 1 first.
    device : str
        "auto" is a GPU, if there is one.
    random_state : int, RandomState or None
        An int gives the same result each time. No global random state is used or changed.

    Attributes
    ----------
    n_iter_ : int
        Passes made.
    loss_curve_ : list of float
        Mean loss of each pass: squared errors of the standardised target.
    validation_scores_ : list of float, or None
        The same on the labels held out, after each pass; None if none could be.

    References
    ----------
    Feng et al. (2025), TESSERA, arXiv:2506.20380.
    """

    _is_regression = True

    def __init__(
        self,
        hidden: int | Sequence[int] = 512,
        *,
        dropout: float = 0.0,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.01,
        batch_size: int = 8192,
        max_epochs: int = 200,
        patience: int = 10,
        validation_fraction: float = 0.1,
        standardise: bool = True,
        device: str = "auto",
        random_state: Any = 0,
    ) -> None:
        self.hidden = hidden
        self.dropout = dropout
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.batch_size = batch_size
        self.max_epochs = max_epochs
        self.patience = patience
        self.validation_fraction = validation_fraction
        self.standardise = standardise
        self.device = device
        self.random_state = random_state

    def partial_fit(
        self, X: npt.ArrayLike, y: npt.ArrayLike, sample_weight: npt.ArrayLike | None = None
    ) -> MLPRegressor:
        """Learn a little more: a few passes through these rows, from the present weights on; arguments as in `fit`."""
        first = not hasattr(self, "_folded")
        self._check_parameters()
        rows, column = self._rows(X, y, reset=first)
        _, targets = self._learn_targets(column)
        self._continue(rows, targets, sample_weight, first=first)
        return self

    def predict(self, X: npt.ArrayLike) -> Doubles:
        """Return the numbers (n,) float64 of rows (n, d)."""
        return self.predict_numbers(self._checked(X))

    def predict_numbers(self, X: npt.NDArray[Any]) -> Doubles:
        """Return the numbers (n,) of rows (n, d) of floats, without any check.

        Rows with NaN give NaN, or nonsense; other rows don't suffer.
        """
        mean, scale = self._target_scale()
        return self.predict_logits(X)[:, 0].astype(np.float64) * scale + mean

    def _target_scale(self) -> tuple[float, float]:
        mean, variance = self._target
        return mean, float(deviation(np.array(mean), np.array(variance)))

    def _rescale_output(self, mean: float, variance: float) -> None:
        """Take on the scale of the target, the last layer changed so that the predictions stay."""
        old_mean, old_scale = self._target_scale()
        was_known = self._count > 0
        self._target = (mean, variance)
        new_mean, new_scale = self._target_scale()
        if was_known:
            last = self._network.linears[-1]
            last.weight.data *= old_scale / new_scale
            last.bias.data = (last.bias.data * old_scale + old_mean - new_mean) / new_scale

    def _learn_targets(self, y: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        with as_schema_error():
            targets = y.astype(np.float64)
        if not np.isfinite(targets).all():
            raise SchemaError(f"{int((~np.isfinite(targets)).sum())} of {len(y)} targets are NaN or infinite")
        return np.zeros(len(y), dtype=np.intp), targets

    def _standardised(self, targets: npt.NDArray[Any]) -> Floats:
        mean, scale = self._target_scale()
        return ((targets - mean) / scale).astype(np.float32)

    def _widths(self) -> list[int]:
        if isinstance(self.hidden, Sequence):
            return [*map(int, self.hidden), 1]
        width = int(self.hidden)
        return [width, max(width // 2, 1), max(width // 4, 1), 1]

    def _losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs[:, 0] - targets) ** 2

    def _score(self, outputs: Floats, targets: npt.NDArray[Any], weights: Floats) -> float:
        return -float(np.average((outputs[:, 0] - targets) ** 2, weights=weights))

    def _more_facts(self) -> dict[str, Any]:
        return {}

    def _take_facts(self, facts: dict[str, Any]) -> None:
        pass
