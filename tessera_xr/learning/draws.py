"""Draws of an evaluation: labels dealt to folds, and those of the training folds that are learnt from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tessera_xr.errors import SchemaError
from tessera_xr.learning.samples import LabelSample
from tessera_xr.learning.splits import Folds, Rows, SpatialFolds, Splits, deal_randomly, deal_spatially, strata

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Priorities:
    """Which labels and pixels are drawn first, one draw for all heads, inputs, folds and fractions.

    The labels of a small fraction are among those of a larger one, so that fractions differ by nothing else.
    """

    row: Floats
    """(n,) of each pixel, lowest first."""
    group: Floats
    """(groups.max() + 1,) of each label."""


def draw_priorities(sample: LabelSample, rng: np.random.Generator) -> Priorities:
    """Return an order at random."""
    return Priorities(rng.random(len(sample)), rng.random(int(sample.groups.max()) + 1))


def draw_labels(sample: LabelSample, train: Rows, fraction: float, first: Priorities) -> Rows:
    """Return the training rows of a fraction of the labels.

    Parameters
    ----------
    sample : LabelSample
        All labels.
    train : ndarray (k,)
        Rows that may be learnt from.
    fraction : float
        1: all. Below 1: that share of the labels of each class (of numbers: of each quarter), whole labels; where it
        comes to less than half a label, that share of the pixels, all of one label. Above 1: so many pixels of each
        class (of numbers: in all), wherever they lie.
    first : Priorities
        What is drawn first.

    Returns
    -------
    ndarray
        Of `train`, in its order.
    """
    if fraction == 1:
        return train
    if fraction > 1:
        stratum = strata(sample.y[train]) if sample.task == "classes" else np.zeros(len(train), dtype=np.intp)
        return train[_first_of_each(stratum, first.row[train], np.full(int(stratum.max()) + 1, int(fraction)))]
    label, inverse = np.unique(sample.groups[train], return_inverse=True)
    of_label = _strata_of_labels(sample.y[train], inverse, len(label))
    chosen = [
        _some_labels(train, inverse, np.flatnonzero(of_label == s), sample, fraction, first)
        for s in np.unique(of_label)
    ]
    return np.sort(np.concatenate(chosen))


def match_counts(sample: LabelSample, train: Rows, like: Rows, first: Priorities) -> Rows:
    """Return training rows at random, as many of each class (of numbers: in all) as `like` has, if there are."""
    if sample.task == "numbers":
        return train[np.sort(np.argsort(first.row[train], kind="stable")[: len(like)])]
    stratum = strata(sample.y)
    wanted = np.bincount(stratum[like], minlength=int(stratum.max()) + 1)
    return train[_first_of_each(stratum[train], first.row[train], wanted)]


def _first_of_each(stratum: Rows, priority: Floats, wanted: Rows) -> Rows:
    """Return the positions of the first `wanted[s]` of each stratum s, in their order."""
    order = np.lexsort((priority, stratum))
    sizes = np.bincount(stratum, minlength=len(wanted))
    rank = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.sort(order[rank < wanted[stratum[order]]])


def _strata_of_labels(y: npt.NDArray[Any], label: Rows, n_labels: int) -> Rows:
    """Return the class of each label, or the quarter that its mean lies in."""
    if y.dtype.kind == "f":
        return strata(np.bincount(label, y) / np.bincount(label))
    first_row = np.empty(n_labels, dtype=np.intp)
    first_row[label[::-1]] = np.arange(len(label))[::-1]
    return strata(y[first_row])


def _some_labels(
    train: Rows, label: Rows, labels: Rows, sample: LabelSample, fraction: float, first: Priorities
) -> Rows:
    """Return the rows of a fraction of some labels of one stratum."""
    rows_of = train[np.isin(label, labels)]
    groups = sample.groups[rows_of]
    names = np.unique(groups)
    names = names[np.argsort(first.group[names], kind="stable")]
    n_labels = round(fraction * len(names))
    if n_labels:
        return rows_of[np.isin(groups, names[:n_labels])]
    one: Rows = rows_of[np.asarray(groups == names[0])]
    order = np.argsort(first.row[one], kind="stable")
    return one[order[: max(1, round(fraction * len(rows_of)))]]


@dataclass(frozen=True, eq=False)
class Dealt:
    """A division of a sample."""

    splits: Splits
    """(training rows, test rows) of each fold."""
    words: str
    """What it is, for people."""
    place: Rows
    """(n,) the place of each row, 0 and up: what the bootstrap resamples."""
    source: Any
    """The splitter."""


@dataclass(frozen=True, eq=False)
class Draw:
    """A division of a sample, another at random, and an order in which labels are drawn."""

    dealt: Dealt
    """What is judged."""
    random: Splits
    """What a validation by pixels at random would learn from and judge by."""
    first: Priorities
    """Which labels are learnt from first."""
    is_random: bool
    """Whether the two divisions are the same."""
    seed: int
    """For heads."""

    def apart(self, sample: LabelSample, fraction: float) -> Splits:
        """Return what is learnt from and judged by."""
        return [(draw_labels(sample, train, fraction, self.first), test) for train, test in self.dealt.splits]

    def mixed(self, sample: LabelSample, apart: Splits) -> Splits:
        """Return what a validation at random learns from, as many pixels, and judges by."""
        pairs = zip(self.random, apart, strict=False)
        return [(match_counts(sample, train, like, self.first), test) for (train, test), (like, _) in pairs]


def deal_folds(
    sample: LabelSample, folds: Any, n_folds: int, block: float | None, buffer: float, rng: np.random.Generator
) -> Dealt:
    """Divide a sample as `folds` says: "spatial", "polygon", "random" or a splitter.

    Raises
    ------
    SchemaError
        If it is none of these, or the sample can't be divided so.
    """
    source: Any = folds
    if isinstance(folds, str) and folds in ("spatial", "polygon"):
        by: Any = "block" if folds == "spatial" else "polygon"
        source = deal_spatially(sample, n_folds, by=by, block=block, buffer=buffer, rng=rng)
    elif block is not None or buffer:
        raise SchemaError("block= and buffer= are for folds='spatial' (buffer= for 'polygon' too); leave them out")
    elif isinstance(folds, str) and folds == "random":
        source = deal_randomly(sample, n_folds, rng)
    elif not hasattr(folds, "split") or isinstance(folds, str):
        raise SchemaError(
            f"folds={folds!r} is unknown; choose 'spatial', 'polygon' or 'random', or give a scikit-learn splitter"
        )
    try:
        splits = [(np.asarray(a), np.asarray(b)) for a, b in source.split(sample.X, sample.y, sample.groups)]
    except SchemaError:
        raise
    except ValueError as error:
        raise SchemaError(f"{type(folds).__name__} can't divide these labels: {error}") from error
    unit = source.unit if isinstance(source, SpatialFolds) else sample.groups
    return Dealt(splits, _words(source, len(splits)), np.unique(unit, return_inverse=True)[1].reshape(-1), source)


def _words(source: Any, n: int) -> str:
    if not isinstance(source, SpatialFolds):
        return (
            f"{n} folds of pixels at random" if isinstance(source, Folds) else f"{n} folds of {type(source).__name__}"
        )
    what = "whole labels" if source.block is None else f"blocks of {source.block:.4g} m"
    return f"{n} folds of {what}" + (f", {source.buffer:g} m apart" if source.buffer else "")


def make_draw(
    sample: LabelSample, folds: Any, n_folds: int, block: float | None, buffer: float, key: list[int]
) -> Draw:
    """Return the draw that a key (seed, number) stands for."""
    rng = np.random.default_rng(key)
    dealt = deal_folds(sample, folds, n_folds, block, buffer, rng)
    is_random = isinstance(dealt.source, Folds) and not isinstance(dealt.source, SpatialFolds)
    mixed = dealt.splits if is_random else list(deal_randomly(sample, max(2, len(dealt.splits)), rng).split())
    return Draw(dealt, mixed, draw_priorities(sample, rng), is_random, int(rng.integers(2**31)))
