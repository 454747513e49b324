"""What held-out predictions say of a head: scores, a table of classes, a confusion matrix."""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from tessera_xr.learning.held_out import HeldOut
from tessera_xr.learning.intervals import bootstrap, scores_of_sums, sums_by_place
from tessera_xr.learning.metrics import area_under_curve, class_scores, confusion, number_scores, per_class
from tessera_xr.learning.samples import LabelSample


@dataclass(frozen=True, eq=False)
class Validation:
    """Predictions of every label by a head that had not seen it nor, by default, its surroundings; and their scores."""

    name: str
    """Of the head."""
    task: Literal["classes", "numbers"]
    """Whether it says classes or numbers."""
    folds: str
    """How labels were held out, in words."""
    predictions: pd.DataFrame
    """A row for each held-out pixel, whose index is the row of the sample: `fold`, `truth`, `predicted`, `probability`
    (of the class predicted; NaN if the head gives none, and for numbers), `row`, `column`, `group` (its label),
    `weight`, `x`, `y` (CRS of the map)."""
    scores: dict[str, float]
    """Over all predictions together, weighted by the quality of labels. Classes: macro_f1, weighted_f1,
    balanced_accuracy, accuracy, and auc if there are probabilities; means over classes are over those in the truth.
    Numbers: rmse, mae, r2, bias."""
    intervals: dict[str, tuple[float, float]]
    """(low, high) of each score but auc, 95 %: a bootstrap over places, see `intervals.bootstrap`; NaN if there is one
    place only."""
    per_class: pd.DataFrame | None = None
    """precision (user's accuracy), recall (producer's accuracy), f1 and support of each class; None for numbers."""
    confusion: pd.DataFrame | None = None
    """Weights of pixels by truth (rows) and prediction (columns); None for numbers."""
    probabilities: pd.DataFrame | None = field(default=None)
    """A column for each class, rows as in `predictions`; None if the head gives none."""

    def __repr__(self) -> str:
        tables = [self.per_class.round(3).to_string()] if self.per_class is not None else []
        if self.confusion is not None:
            tables.append("Rows: truth, columns: predicted\n" + self.confusion.round(1).to_string())
        return "\n\n".join([f"{self._heading()}\n  {self._told()}", *tables])

    def _repr_html_(self) -> str:
        tables = [self.per_class.round(3).to_html()] if self.per_class is not None else []
        if self.confusion is not None:
            tables.append("<p>Rows: truth, columns: predicted</p>" + self.confusion.round(1).to_html())
        return f"<p><b>{escape(self._heading())}</b><br>{escape(self._told())}</p>{''.join(tables)}"

    def _heading(self) -> str:
        labels = self.predictions["group"].nunique()
        return f"Validation of {self.name}: {self.folds}; {len(self.predictions):,} pixels of {labels:,} labels"

    def _told(self) -> str:
        ends = {name: f" ({low:.2g} to {high:.2g})" for name, (low, high) in self.intervals.items()}
        return ", ".join(f"{name} {value:.3g}{ends.get(name, '')}" for name, value in self.scores.items())


def summarise(name: str, folds: str, sample: LabelSample, found: HeldOut, place: npt.NDArray[np.intp]) -> Validation:
    """Return what held-out predictions of a sample say; `place` (n,) is what intervals resample as a whole."""
    ends = bootstrap([sums_by_place(sample, found, place)], scores_of_sums(sample))
    held = sample.take(found.rows)
    table = _predictions(held, found)
    truth, predicted, weights = held.y, found.predicted, held.weights
    if sample.task == "numbers":
        scores = number_scores(truth, predicted, weights)
        return Validation(name, "numbers", folds, table.sort_index(kind="stable"), scores, ends)
    classes = list(sample.classes)
    scores, chances = class_scores(truth, predicted, weights), None
    if found.probabilities is not None:
        chances = pd.DataFrame(found.probabilities, index=table.index, columns=pd.Index(classes, name="class"))
        scores["auc"] = area_under_curve(truth, found.probabilities, classes, weights)
        place = pd.Index(classes).get_indexer(pd.Index(predicted))
        table["probability"] = found.probabilities[np.arange(len(place)), place]
    shown = [c for c in classes if (truth == c).any() or (predicted == c).any()]
    return Validation(
        name,
        "classes",
        folds,
        table.sort_index(kind="stable"),
        scores,
        ends,
        per_class(truth, predicted, shown, weights),
        confusion(truth, predicted, shown, weights),
        None if chances is None else chances.sort_index(kind="stable"),
    )


def _predictions(held: LabelSample, found: HeldOut) -> pd.DataFrame:
    columns = {
        "fold": found.fold,
        "truth": held.y,
        "predicted": found.predicted,
        "probability": np.full(len(held), np.nan),
        "row": held.rows,
        "column": held.columns,
        "group": held.groups,
        "weight": held.weights,
        "x": held.x_map,
        "y": held.y_map,
    }
    return pd.DataFrame(columns, index=pd.Index(found.rows, name="sample_row"))
