"""Predictions of what was held out, each by a head that did not learn from it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from tessera_xr.errors import SchemaError
from tessera_xr.learning.samples import LabelSample
from tessera_xr.learning.splits import Rows

if TYPE_CHECKING:
    from tessera_xr.learning.heads import Head

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Predictions of rows of a sample, each by a head that did not learn from them. m rows, in the order of folds."""

    rows: Rows
    """(m,) rows of the sample."""
    fold: Rows
    """(m,) the fold that each was held out in."""
    predicted: npt.NDArray[Any]
    """(m,) names of classes, or numbers."""
    probabilities: Floats | None
    """(m, class), in the order of the sample's classes; None if the head gives none."""
    n_train: float
    """Mean number of pixels learnt from."""


def predict_held_out(
    sample: LabelSample,
    splits: Iterable[tuple[Rows, Rows]],
    model: Any,
    *,
    emb: xr.Dataset | None = None,
    seed: int = 0,
    options: dict[str, Any] | None = None,
    step: Callable[[], object] = lambda: None,
) -> HeldOut:
    """Fit a head to the training rows of each split and predict its test rows; `step` is called after each.

    `emb` is the map of one time that the sample is of; heads that see the neighbourhood of a pixel need it.
    """
    splits = list(splits)
    parts = []
    for train, test in splits:
        parts.append(_predict(sample.take(train), sample.take(test), model, emb, seed, options or {}))
        step()
    tests = [test for _, test in splits]
    return HeldOut(
        np.concatenate(tests),
        np.repeat(np.arange(len(tests)), [len(test) for test in tests]),
        np.concatenate([predicted for predicted, _ in parts]),
        None if any(p is None for _, p in parts) else np.concatenate([p for _, p in parts if p is not None]),
        float(np.mean([len(train) for train, _ in splits])),
    )


def is_spatial(model: Any) -> bool:
    """Say whether a model sees the neighbourhood of a pixel, and so learns from a map."""
    return (isinstance(model, str) and model == "unet") or bool(getattr(model, "takes_images", False))


def _predict(
    learnt: LabelSample,
    judged: LabelSample,
    model: Any,
    emb: xr.Dataset | None,
    seed: int,
    options: dict[str, Any],
) -> tuple[npt.NDArray[Any], Floats | None]:
    """Return predictions (m,) and probabilities (m, class) of pixels by a head that learnt from others."""
    place = {name: i for i, name in enumerate(learnt.classes)}
    if len(found := np.unique(learnt.y)) == 1:  # who has seen one class, or one number, can say nothing else
        certain = np.zeros((len(judged), len(place)))
        certain[:, [place[str(name)] for name in found if place]] = 1
        return np.repeat(found, len(judged)), certain if place else None
    from tessera_xr.learning.heads import fit_head, fit_sample

    if is_spatial(model):
        head = fit_head(emb, learnt, model, seed=seed, **options)
    else:
        head = fit_sample(learnt, model, seed=seed, **options)
    predicted, known = _said(head, judged, emb)
    if known is None:
        return predicted, None
    probabilities = np.zeros((len(judged), len(place)))
    probabilities[:, [place[name] for name in head.classes]] = known
    return predicted, probabilities


def predict_all(head: Head, sample: LabelSample, emb: xr.Dataset | None) -> HeldOut:
    """Return what a head says of a sample that it did not learn from, as one fold."""
    rows = np.arange(len(sample))
    predicted, known = _said(head, sample, emb)
    probabilities = None
    if known is not None:
        probabilities = np.zeros((len(sample), len(sample.classes)))
        probabilities[:, [list(sample.classes).index(name) for name in head.classes]] = known
    return HeldOut(rows, np.zeros_like(rows), predicted, probabilities, float(sum(head.n_labelled.values())))


def _said(head: Head, sample: LabelSample, emb: xr.Dataset | None) -> tuple[npt.NDArray[Any], Floats | None]:
    """Return predictions (m,) and probabilities (m, class) of a head; of one that sees neighbourhoods, off its map."""
    if not head.is_spatial:
        return head.predict_rows(sample.X), head.probability_rows(sample.X) if head.has_probability else None
    if emb is None:
        raise SchemaError(f"{head.name} looks at the neighbours of a pixel: pass the embeddings too")
    where = {"y": xr.DataArray(sample.rows, dims="pixel"), "x": xr.DataArray(sample.columns, dims="pixel")}
    shown = head.predict(emb).drop_vars(["y", "x"], errors="ignore").isel(where).compute()
    if head.task == "numbers":
        return np.asarray(shown["prediction"].values, dtype=np.float64), None
    known = shown["probability"].transpose("pixel", "class").values if "probability" in shown else None
    return np.array(head.classes)[shown["prediction"].values - 1], known
