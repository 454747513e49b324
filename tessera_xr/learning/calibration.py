"""What calibrates a head: places that it did not learn from, all counting alike, and MAPIE's conformal scores."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from tessera_xr._warn import warn
from tessera_xr.errors import SchemaError
from tessera_xr.learning.samples import LabelSample
from tessera_xr.learning.splits import By, in_metres

if TYPE_CHECKING:
    from tessera_xr.learning.heads import Head

Method: TypeAlias = Literal["lac", "aps", "absolute"]
Rows: TypeAlias = npt.NDArray[np.intp]

N_BLOCKS = 80
"""Blocks to cut the labels into, if not told: some 40 to calibrate on."""
PER_BLOCK = 200
"""Pixels that stand for a calibrating block, so that all blocks count alike."""
TRIES = 100


def default_block(sample: LabelSample) -> float:
    """Return the side, in metres, of which some 80 squares cover the rectangle around the labels."""
    x, y = in_metres(sample.x_map, sample.y_map, sample.crs)
    spans = [(float(np.ptp(v)), int(np.ptp(i))) for v, i in ((x, sample.columns), (y, sample.rows))]
    pixel = max((length / count for length, count in spans if count), default=1.0)
    width, height = (length + pixel for length, _ in spans)
    return max(float(np.sqrt(width * height / N_BLOCKS)), pixel)


def draw_units(
    sample: LabelSample, unit: Rows, calibration: float, confidence: float, seed: int, by: By
) -> npt.NDArray[np.bool_]:
    """Return the rows (n,) of units drawn at random to calibrate on; every class is left something to learn from."""
    n_units = int(unit.max()) + 1
    n_held = int(np.clip(round(calibration * n_units), 1, n_units - 1))
    least = int(np.ceil(1 / (1 - confidence) - 1e-9))
    if n_held < least:
        smaller = "a smaller block=" if by == "block" else "by='block'"
        raise SchemaError(
            f"confidence={confidence:g} takes {least} {by}s or more to calibrate on, here are {n_held} of {n_units}; "
            f"label more places, use {smaller}, a larger calibration=, or at most confidence={1 - 1 / n_held:.2f}"
        )
    rng = np.random.default_rng(seed)
    names = np.unique(sample.y) if sample.task == "classes" else np.array([])
    for _ in range(TRIES):
        chosen = np.isin(unit, rng.permutation(n_units)[:n_held])
        if np.isin(names, sample.y[~chosen]).all():
            untested = [str(name) for name in names if not (sample.y[chosen] == name).any()]
            if untested:
                warn(f"no {by} to calibrate on holds {', '.join(untested)}; label such places elsewhere too")
            return chosen
    lonely = [str(name) for name in names if len(np.unique(unit[sample.y == name])) < 2]
    why = f" ({', '.join(lonely)}: in one {by} only)" if lonely else ""
    raise SchemaError(
        f"a draw of {n_units - n_held} {by}s does not hold all classes to learn from{why}; label rare classes in more "
        "places, or use a smaller calibration="
    )


def balanced_rows(unit: Rows, rng: np.random.Generator) -> Rows:
    """Return rows, 200 of each unit: all of them as often as they fit in, and the rest drawn."""
    drawn = []
    for number in np.unique(unit):
        rows = np.flatnonzero(unit == number)
        whole, rest = divmod(PER_BLOCK, len(rows))
        drawn += [np.tile(rows, whole), rng.choice(rows, rest, replace=False)]
    return np.concatenate(drawn)


class _AsGiven:
    """An estimator for MAPIE whose features are a head's predictions, and which returns them as they are."""

    def __init__(self, n_outputs: int) -> None:
        self.classes_ = np.arange(n_outputs)
        self.n_features_in_ = n_outputs

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def fit(self, X: Any, y: Any) -> _AsGiven:  # noqa: ARG002
        return self

    def predict(self, X: Any) -> npt.NDArray[Any]:
        outputs = np.asarray(X)
        return outputs[:, 0] if self.n_features_in_ == 1 else outputs.argmax(axis=1)

    def predict_proba(self, X: Any) -> npt.NDArray[Any]:
        return np.asarray(X)


def calibrate(head: Head, held: LabelSample, outputs: npt.NDArray[Any], level: float, method: Method, seed: int) -> Any:
    """Return MAPIE's object, calibrated on the outputs (n, class) or (n, 1) of held-out pixels."""
    if head.task == "numbers":
        from mapie.regression import SplitConformalRegressor

        regressor = SplitConformalRegressor(_AsGiven(1), level, method, prefit=True)
        return regressor.conformalize(outputs.astype(np.float64), held.y.astype(np.float64))
    from mapie.classification import SplitConformalClassifier

    truth = class_positions(head, held)
    if method == "aps" and len(np.unique(truth)) < 3:
        raise SchemaError("method='aps' needs labels of three classes or more to calibrate on; use method='lac'")
    classifier = SplitConformalClassifier(_AsGiven(len(head.classes)), level, method, prefit=True, random_state=seed)
    with warnings.catch_warnings():  # draw_units has told of classes that are missing
        warnings.filterwarnings("ignore", "WARNING: your conformalization dataset", UserWarning)
        return classifier.conformalize(normalised(outputs), truth)


def class_positions(head: Head, sample: LabelSample) -> Rows:
    """Return the position of each true class among those of the head, (n,); -1 if it was never taught."""
    place = {name: i for i, name in enumerate(head.classes)}
    return np.array([place.get(str(name), -1) for name in sample.y], dtype=np.intp)


def normalised(shares: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
    """Return probabilities (n, class) that add up to 1 in float64, as MAPIE wants them."""
    shares = shares.astype(np.float64)
    return np.asarray(shares / shares.sum(axis=1, keepdims=True))
