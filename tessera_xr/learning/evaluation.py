"""What accuracy to expect where there are no labels, and how much more random pixels would have claimed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr
from tqdm.auto import tqdm

from tessera_xr._warn import warn
from tessera_xr.embedding.schema import EMBEDDINGS, check_whole
from tessera_xr.errors import SchemaError
from tessera_xr.learning.comparison import Subject, compared_subjects, named_models, one_subject
from tessera_xr.learning.draws import Draw, deal_folds, make_draw
from tessera_xr.learning.heads import check_targets
from tessera_xr.learning.held_out import HeldOut, is_spatial, predict_all, predict_held_out
from tessera_xr.learning.intervals import bootstrap, scores_of_sums, sums_by_place
from tessera_xr.learning.metrics import area_under_curve
from tessera_xr.learning.samples import LabelSample, as_sample
from tessera_xr.learning.splits import Splits, warn_of_lonely
from tessera_xr.learning.validation import Validation, summarise

if TYPE_CHECKING:
    from tessera_xr.learning.heads import Head
    from tessera_xr.learning.labels import LabelSet


def validate(
    emb: xr.Dataset | None,
    labels: LabelSet | LabelSample,
    model: Any = "logistic",
    *,
    time: Any = None,
    folds: Any = "spatial",
    n_folds: int = 5,
    block: float | None = None,
    buffer: float = 0.0,
    seed: int = 0,
    **options: Any,
) -> Validation:
    """Predict every label with a head that did not learn from its surroundings, and score that.

    Parameters
    ----------
    emb : Dataset
        Embeddings, float32 or int8, eager or lazy. None will do where `labels` is a sample.
    labels : LabelSet or LabelSample
        Classes or numbers.
    model : str or scikit-learn estimator, default "logistic"
        As `fit_head` takes it. "unet" needs `emb`; it is trained and draws the whole map once a fold, which takes
        minutes, and sees 24 pixels around each: a `buffer` of as much keeps what it has seen from what it is judged by.
    time : int, str or datetime64, optional
        Which time of `emb` the labels are of, where there are several.
    folds : {"spatial", "polygon", "random"} or scikit-learn splitter, default "spatial"
        What is held out together: blocks of the map; whole labels; pixels at random, which claims too much. See
        `spatial_folds`.
    n_folds, block, buffer
        See `spatial_folds`; block and buffer in metres.
    seed : int, default 0
        Of folds and head.
    **options
        What `fit_head` takes: class_weight, standardise, parameters of the model.

    Returns
    -------
    Validation
        Predictions, scores, table of classes and confusion matrix over all folds together.

    Raises
    ------
    SchemaError
        If an option is out of range, the labels can't be learnt (one class, NaN), or are too few for so many folds.

    Warns
    -----
    TesseraWarning
        If a class lies in one block or polygon only.

    Examples
    --------
    >>> validate(emb, labels, "logistic", folds="polygon").per_class  # doctest: +SKIP
    """
    ((name, kind),) = named_models([model]).items()
    subject = one_subject(emb, labels, time, with_map=is_spatial(kind))
    sample = subject.sample
    check_targets(sample)
    dealt = deal_folds(sample, folds, n_folds, block, buffer, np.random.default_rng(seed))
    if isinstance(folds, str):  # whoever made a splitter has been told
        warn_of_lonely(sample, dealt.source)
    found = predict_held_out(sample, dealt.splits, kind, emb=subject.emb, seed=seed, options=options)
    return summarise(name, dealt.words, sample, found, dealt.place)


def score(head: Head, emb: xr.Dataset | None, labels: LabelSet | LabelSample, *, time: Any = None) -> Validation:
    """Score a head by labels of another year or another place, which it must not have learnt from.

    Parameters
    ----------
    head : Head
        Fitted; nothing is fitted again.
    emb : Dataset
        Embeddings of the head's model. None will do where `labels` is a sample, unless the head sees neighbourhoods.
    labels : LabelSet or LabelSample
        With classes (or numbers) that the head knows.
    time : int, str or datetime64, optional
        Which time of `emb` the labels are of, where there are several.

    Returns
    -------
    Validation
        As `validate` returns it; places that the intervals resample are labels.

    Raises
    ------
    SchemaError
        If the labels are of another task, or none is of a class that the head knows.
    VersionMismatchError
        If they are of another model.

    Warns
    -----
    TesseraWarning
        If labels are of classes that the head was not taught, which it can only get wrong.
    """
    sample = as_sample(emb, labels, time)
    if sample.task != head.task:
        raise SchemaError(f"this head says {head.task}, the labels are {sample.task}; score it by labels of its task")
    head.check_fits(xr.Dataset({EMBEDDINGS: (("pixel", "band"), sample.X)}, attrs=sample.attrs))
    if head.task == "classes":
        sample = replace(sample, classes={**dict(zip(head.classes, head.colours, strict=True)), **sample.classes})
        strange = sorted(set(map(str, np.unique(sample.y))) - set(head.classes))
        if len(strange) == len(np.unique(sample.y)):
            raise SchemaError(f"the head knows {list(head.classes)} and none of the labels, which are {strange}")
        if strange:
            warn(f"the head was not taught {', '.join(strange)} and can only get those labels wrong")
    return summarise(head.name, "the labels that were given", sample, predict_all(head, sample, emb), sample.groups)


def evaluate(
    emb: xr.Dataset | None,
    labels: LabelSet | LabelSample,
    model: Any = "logistic",
    *,
    time: Any = None,
    folds: Any = "spatial",
    n_folds: int = 5,
    block: float | None = None,
    buffer: float = 0.0,
    fractions: Sequence[float] = (1.0,),
    n_draws: int = 5,
    inputs: Mapping[str, xr.Dataset] | None = None,
    seed: int = 0,
    confidence: float = 0.95,
    progress: bool = True,
    **options: Any,
) -> pd.DataFrame:
    """Tell what accuracy to expect in places without labels, by heads, inputs and amounts of labels.

    Each draw deals the labels to folds anew, draws those that are learnt from, and judges by all that is held out.
    Heads, inputs and fractions get the same folds and the same draws, so that rows compare. Beside it stands what a
    validation by pixels at random would have claimed, of heads that learnt from as many pixels of each class (of
    numbers: in all). The difference, `gap`, is optimism: neighbours of the pixels that were judged had been learnt.
    What is left of that across the borders of blocks, a `buffer` takes away: as long as the ground is alike.

    Intervals are a cluster bootstrap (see `intervals.bootstrap`): places (the blocks of the first draw; labels with
    folds="polygon", "random" or a splitter that knows no places) are resampled, and draws. They are intervals of the
    mean score over draws, of the ground that these labels stand for; they can't know of ground that has none. Heads
    of several folds share labels, which makes them narrow: on 50 simulated maps of 144 fields, one draw, 86 to 90 % of
    the intervals at 95 % held the score on fresh ground. A single set of few labels may do better or worse: `*_sd` is
    the standard deviation over draws.

    Parameters
    ----------
    emb : Dataset
        Embeddings, float32 or int8, eager or lazy. None will do where `labels` is a sample, or `inputs` are given.
    labels : LabelSet or LabelSample
        Classes or numbers.
    model : str, estimator, sequence or mapping of them, default "logistic"
        One head or several, as `fit_head` takes them; a mapping names them.
    time : int, str or datetime64, optional
        Which time the labels are of; of inputs without times it is not asked.
    folds : {"spatial", "polygon", "random"} or scikit-learn splitter, default "spatial"
        See `validate`. A splitter with fixed folds gives the same ones in each draw.
    n_folds, block, buffer
        See `spatial_folds`; block and buffer in metres.
    fractions : sequence of float or int, default (1.0,)
        How many of the labels of the training folds to learn from. Up to 1: a share of the labels of each class, whole
        labels and at least one; where the share is less than half a label, that share of the pixels, within one. From
        2: so many pixels of each class, of numbers in all.
    n_draws : int, default 5
        Repetitions.
    inputs : mapping of str to Dataset, optional
        What to compare, in the shape of embeddings and on one grid: `seasonal_medians(cube)`, `first_dims(emb, 16)`,
        `quantize(emb)`. In place of `emb`: name that too if it is to be among them. Pixels without data in any are left
        out of all.
    seed : int, default 0
        Of folds, draws, heads and intervals.
    confidence : float, default 0.95
        Of the intervals.
    progress : bool, default True
        Show a bar if it takes longer than a second.
    **options
        What `fit_head` takes, for each head: class_weight, standardise, parameters of the model.

    Returns
    -------
    DataFrame
        A row for each of inputs, head, fraction (the index). `n_pixels`: mean number of pixels learnt from. Then each
        score, `*_low` and `*_high`: macro_f1, weighted_f1, balanced_accuracy, accuracy (means over classes are over
        those in the truth), `auc` without interval (NaN if a head has no probabilities); of numbers rmse, mae, r2,
        bias. `macro_f1_sd`, `macro_f1_random` and `gap` = random - held out apart; of numbers of r2.

    Raises
    ------
    SchemaError
        If an option is out of range, the labels can't be learnt (one class, NaN), or are too few for so many folds.
    GridError
        If inputs are on different grids.

    Warns
    -----
    TesseraWarning
        If a class lies in one block or polygon only, or pixels are left out that an input has no data for.

    Examples
    --------
    >>> evaluate(emb, labels, ["logistic", "knn"], fractions=(5, 20, 1.0))  # doctest: +SKIP
    """
    shares = [_check_fraction(fraction) for fraction in fractions]
    _check(shares, n_draws, confidence)
    models = named_models(model)
    if inputs is None:
        subjects = {"embeddings": one_subject(emb, labels, time, with_map=any(map(is_spatial, models.values())))}
    else:
        subjects = compared_subjects(labels, time, inputs)
    sample = next(iter(subjects.values())).sample
    check_targets(sample)
    draws = [make_draw(sample, folds, n_folds, block, buffer, [seed, number]) for number in range(n_draws)]
    if isinstance(folds, str):
        warn_of_lonely(sample, draws[0].dealt.source)
    settings: dict[str, Any] = {"confidence": confidence, "seed": seed, "options": options}
    index = _index(list(subjects), list(models), shares)
    n_fits = len(index) * sum(len(draw.dealt.splits) * (2 - draw.is_random) for draw in draws)
    with tqdm(total=n_fits, unit="fit", desc="evaluating", delay=1, disable=not progress) as bar:
        rows = [
            _row(subjects[name], models[head], draws, share, step=bar.update, **settings) for name, head, share in index
        ]
    table = pd.DataFrame(rows, index=index)
    words = " or ".join(dict.fromkeys(draw.dealt.words for draw in draws))  # default blocks may differ a little
    table.attrs = {"folds": words, "n_draws": n_draws, "confidence": confidence, "n_pixels": len(sample)}
    return table


def _index(*levels: list[Any]) -> pd.MultiIndex:
    """Return all combinations in order; unlike `from_product` it counts that order as sorted, so that look-ups work."""
    codes = np.indices([len(level) for level in levels]).reshape(len(levels), -1)
    return pd.MultiIndex(levels, codes.tolist(), names=("inputs", "head", "fraction"))


def _row(
    subject: Subject,
    model: Any,
    draws: list[Draw],
    fraction: float,
    *,
    confidence: float,
    seed: int,
    options: dict[str, Any],
    step: Callable[[], object],
) -> dict[str, float]:
    """Return what one head makes of one input and one amount of labels."""
    sample = subject.sample

    def held_out(splits: list[Splits]) -> list[HeldOut]:
        return [
            predict_held_out(sample, of_draw, model, emb=subject.emb, seed=draw.seed, options=options, step=step)
            for draw, of_draw in zip(draws, splits, strict=True)
        ]

    place, of_sums = draws[0].dealt.place, scores_of_sums(sample)
    apart = [draw.apart(sample, fraction) for draw in draws]
    found = held_out(apart)
    sums = mixed = [sums_by_place(sample, one, place) for one in found]
    if not draws[0].is_random:
        at_random = held_out([draw.mixed(sample, splits) for draw, splits in zip(draws, apart, strict=True)])
        mixed = [sums_by_place(sample, one, place) for one in at_random]
    each, claimed = (of_sums(np.stack([one.sum(axis=0) for one in several])) for several in (sums, mixed))
    ends = bootstrap(sums, of_sums, confidence=confidence, seed=seed)
    row = {"n_pixels": float(np.mean([one.n_train for one in found]))}
    for name in each:
        row |= {name: float(each[name].mean()), f"{name}_low": ends[name][0], f"{name}_high": ends[name][1]}
    lead = "macro_f1" if sample.task == "classes" else "r2"
    row |= {"auc": _mean_area(sample, found)} if sample.task == "classes" else {}
    spread = float(np.std(each[lead], ddof=1)) if len(draws) > 1 else float("nan")
    row |= {f"{lead}_sd": spread, f"{lead}_random": float(claimed[lead].mean())}
    return row | {"gap": row[f"{lead}_random"] - row[lead]}


def _mean_area(sample: LabelSample, found: list[HeldOut]) -> float:
    """Return the mean area under the ROC curve over draws, NaN without probabilities."""
    classes = list(sample.classes)
    return float(np.mean([
        np.nan if one.probabilities is None
        else area_under_curve(sample.y[one.rows], one.probabilities, classes, sample.weights[one.rows])
        for one in found
    ]))  # fmt: skip


def _check_fraction(fraction: Any) -> float:
    """Return a share of up to 1, or a whole number of pixels."""
    good = isinstance(fraction, int | float | np.integer | np.floating) and not isinstance(fraction, bool)
    if not good or not (0 < fraction <= 1 or (fraction > 1 and float(fraction).is_integer())):
        raise SchemaError(
            f"fraction {fraction!r} is neither a share of the labels, above 0 and up to 1, nor a whole number of "
            "pixels of each class, from 2"
        )
    return int(fraction) if fraction > 1 else float(fraction)


def _check(fractions: list[float], n_draws: int, confidence: float) -> None:
    check_whole("n_draws", n_draws)
    if n_draws < 1:
        raise SchemaError(f"n_draws must be at least 1, not {n_draws}; 5 or more tell the spread")
    if not fractions or len(set(fractions)) < len(fractions):
        raise SchemaError(f"fractions must be one or more, each once; they are {fractions}")
    if not 0 < confidence < 1:
        raise SchemaError(f"confidence must be between 0 and 1, not {confidence}; 0.95 is usual")
