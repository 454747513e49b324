"""UNets that learn from sparse labels, and draw maps of any size without seams."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from sklearn.base import ClassifierMixin, RegressorMixin

from tessera_xr.errors import SchemaError
from tessera_xr.learning.training import deviation, pack_classes, unpack_classes
from tessera_xr.learning.unets import Floats, UNets

if TYPE_CHECKING:
    from torch import Tensor


class UNetClassifier(ClassifierMixin, UNets):  # type: ignore[misc]
    """Classes of pixels, from embeddings of the pixel and its surroundings (23 pixels around it by default).

    Parameters
    ----------
    features : tuple of int
        Channels on the way down, from the full resolution on; each step halves it.
    bottleneck : int
        Channels at the coarsest resolution.
    learning_rate : float
        Of Adam.
    patch_size : int
        Pixels a side of the patches cut around labels to learn from; a multiple of `step`, 4 by default.
    batch_size : int
        Patches in a step.
    max_epochs : int
        Passes through the labels, at most.
    patience : int
        Passes without a better score after which to stop.
    validation_fraction : float
        Share of the labels held out, by whole groups, to find the best pass; 0 for none.
    standardise : bool
        Whether to bring each band to mean 0 and variance 1 first.
    class_weight : {"balanced", None}
        "balanced": all classes count alike, however many pixels they have.
    device : str
        "auto" is a GPU, if there is one.
    random_state : int, RandomState or None
        An int gives the same result each time (on a CPU). No global random state is used or changed.
    progress : bool
        Whether to show a bar where fitting takes longer than a second.

    Attributes
    ----------
    classes_ : ndarray (C,) of int
        The codes that are among the targets.
    n_iter_ : int
        Passes made.
    loss_curve_ : list of float
        Mean loss of each pass.
    validation_scores_ : list of float, or None
        Weighted F1 on the labels held out, after each pass; None if none could be.

    References
    ----------
    Feng et al. (2025), TESSERA, arXiv:2506.20380; Ronneberger et al. (2015), U-Net, arXiv:1505.04597.
    """

    classes_: npt.NDArray[Any]

    def __init__(
        self,
        features: Sequence[int] = (256, 512),
        *,
        bottleneck: int = 1024,
        learning_rate: float = 1e-4,
        patch_size: int = 64,
        batch_size: int = 8,
        max_epochs: int = 80,
        patience: int = 15,
        validation_fraction: float = 0.1,
        standardise: bool = True,
        class_weight: str | None = "balanced",
        device: str = "auto",
        random_state: Any = 0,
        progress: bool = True,
    ) -> None:
        super().__init__(
            features, bottleneck=bottleneck, learning_rate=learning_rate, patch_size=patch_size, batch_size=batch_size,
            max_epochs=max_epochs, patience=patience, validation_fraction=validation_fraction,
            standardise=standardise, device=device, random_state=random_state, progress=progress,
        )  # fmt: skip
        self.class_weight = class_weight

    def predict(
        self, image: npt.NDArray[Any], *, origin: tuple[int, int] = (0, 0), tile: int = 256
    ) -> npt.NDArray[Any]:
        """Return the code (y, x) of an image (band, y, x), -1 where there are no data; see `predict_logits`."""
        logits = self.predict_logits(image, origin=origin, tile=tile)
        empty = np.isnan(logits[0])
        found: npt.NDArray[Any] = np.where(empty, -1, self.classes_[np.where(empty, 0, logits).argmax(axis=0)])
        return found

    def predict_proba(self, image: npt.NDArray[Any], *, origin: tuple[int, int] = (0, 0), tile: int = 256) -> Floats:
        """Return the probability (C, y, x) float32 of each of `classes_`; NaN without data; see `predict_logits`."""
        logits = self.predict_logits(image, origin=origin, tile=tile)
        logits -= logits.max(axis=0)
        np.exp(logits, out=logits)
        logits /= logits.sum(axis=0)
        return logits

    def _labelled(self, targets: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        if targets.dtype.kind not in "iu":
            raise SchemaError(f"targets must be integers, the codes of classes and -1, not {targets.dtype}")
        return targets >= 0

    def _learn_targets(self, flat: npt.NDArray[Any]) -> tuple[npt.NDArray[np.intp], npt.NDArray[Any]]:
        if self.class_weight not in ("balanced", None):
            raise SchemaError(f"class_weight={self.class_weight!r} is unknown; choose 'balanced' or None")
        self.classes_, codes = np.unique(flat, return_inverse=True)
        if len(self.classes_) < 2:
            raise SchemaError(f"all labels are of one class, {self.classes_[0]}; two classes or more are needed")
        self.classes_ = self.classes_.astype(np.int64)
        return codes.astype(np.intp), codes.astype(np.int64)

    def _balance(self, codes: npt.NDArray[np.intp], counts: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        if self.class_weight is None:
            return counts
        found: npt.NDArray[np.float64] = counts / np.bincount(codes, counts)[codes]
        return found

    def _n_out(self) -> int:
        return len(self.classes_)

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


class UNetRegressor(RegressorMixin, UNets):  # type: ignore[misc]
    """Numbers of pixels, from embeddings of the pixel and its surroundings; the target is standardised.

    Parameters and attributes are those of `UNetClassifier`, but for classes; `validation_scores_` holds mean squared
    errors of the standardised target.
    """

    def predict(self, image: npt.NDArray[Any], *, origin: tuple[int, int] = (0, 0), tile: int = 256) -> Floats:
        """Return the numbers (y, x) float32 of an image (band, y, x), NaN without data; see `predict_logits`."""
        mean, scale = self._target
        numbers = self.predict_logits(image, origin=origin, tile=tile)[0].astype(np.float64) * scale + mean
        return np.asarray(numbers, dtype=np.float32)

    def _labelled(self, targets: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        if targets.dtype.kind != "f":
            raise SchemaError(f"targets must be floats, NaN where unlabelled, not {targets.dtype}")
        if np.isinf(targets).any():
            raise SchemaError("targets must not be infinite")
        return np.asarray(~np.isnan(targets))

    def _learn_targets(self, flat: npt.NDArray[Any]) -> tuple[npt.NDArray[np.intp], npt.NDArray[Any]]:
        values = flat.astype(np.float64)
        self._target = (float(values.mean()), float(deviation(values.mean(), values.var())))
        return np.zeros(len(values), dtype=np.intp), ((values - self._target[0]) / self._target[1]).astype(np.float32)

    def _n_out(self) -> int:
        return 1

    def _losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs[:, 0] - targets) ** 2

    def _score(self, outputs: Floats, targets: npt.NDArray[Any], weights: Floats) -> float:
        return -float(np.average((outputs[:, 0] - targets) ** 2, weights=weights))

    def _more_facts(self) -> dict[str, Any]:
        return {"target": list(self._target)}

    def _take_facts(self, facts: dict[str, Any]) -> None:
        self._target = tuple(facts["target"])
