"""Heads fitted, and their maps of ten classes, beside peers and floors: `python -m benchmarks learning`.

The peers start from float32 values, made beforehand at no charge. A corner is predicted first; what that says would
take too long on the whole map isn't run. Neighbours see a quarter of the map at most, theirs and ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import xarray as xr

from benchmarks import machine
from benchmarks.analysis_similarity import float_product
from benchmarks.maps import BANDS, float_values, simulated
from benchmarks.measure import Beside, Settings, alone, compare
from benchmarks.rows import Row, Want
from tessera_xr.embedding.schema import provenance
from tessera_xr.learning.heads import Head, fit_sample
from tessera_xr.learning.samples import LabelSample

GROUP, SIZED = "learning", True
CLASSES, NEIGHBOURS, LABELS = 10, 10_000, 20_000
HIDDEN = (512, 256)
CORNER = 256
PREDICTED = BANDS + 4 + 4 * CLASSES + 8
"""Bytes of a pixel: read, and written with the probabilities of all classes."""


def rows(size: int, settings: Settings) -> Iterator[Row]:
    """Yield a row for each task and each thing beside it."""
    n = size * size
    why = settings.lacks_memory(n * (1.2 * BANDS + PREDICTED))
    if why:
        yield Row(GROUP, "all tasks", size, skipped=why)
        return
    emb = simulated(size)
    corner = emb.isel(y=slice(CORNER), x=slice(CORNER))
    inside = float_values(corner)
    truth = classes_of(inside)
    why = settings.lacks_memory(4.2 * n * BANDS)
    values = None if why else float_values(emb)
    yield from logistic_rows(emb, corner, values, why, truth, settings)
    yield from mlp_rows(emb, corner, values, why, truth, settings)
    yield from forest_rows(emb, corner, values, why, truth, settings)
    yield from neighbour_rows(emb, corner, truth, settings)


def classes_of(values: np.ndarray) -> np.ndarray:
    """Return the class (n,) of each pixel: the greatest of ten noisy directions."""
    rng = np.random.default_rng(1)
    scores = values @ rng.normal(size=(values.shape[1], CLASSES)).astype(np.float32)
    scores += rng.normal(size=scores.shape).astype(np.float32) * scores.std() / 2
    return scores.argmax(axis=1)


def labelled(corner: xr.Dataset, truth: np.ndarray, n: int) -> LabelSample:
    """Draw n labelled pixels of the corner."""
    size, values = corner.sizes["x"], float_values(corner)
    drawn = np.random.default_rng(2).permutation(len(values))[:n]
    names = np.array([f"class {i}" for i in range(CLASSES)])
    y, x = drawn // size, drawn % size
    shape = (corner.sizes["y"], size)
    return LabelSample(
        values[drawn], names[truth[drawn]], np.arange(len(drawn)), np.ones(len(drawn)), corner["x"].values[x],
        corner["y"].values[y], y, x, dict.fromkeys(names.tolist(), "#888888"), None, provenance(corner), "EPSG:32631",
        shape,
    )  # fmt: skip


def codes_of(head: Head, emb: xr.Dataset) -> np.ndarray:
    """Return the classes (n,) that a head finds on a map."""
    found = head.predict(emb, probability=False)["prediction"].values.ravel()
    return np.array([int(name.split()[1]) for name in head.classes])[found - 1]


def expected(emb: xr.Dataset, corner: xr.Dataset, call: Callable[[xr.Dataset], Any], settings: Settings) -> str:
    """Return why a call on the whole map would take too long, from one on its corner; "" if it wouldn't."""
    call(corner)
    seconds = machine.clock(lambda: call(corner))
    return settings.takes_long(seconds * emb["scales"].size / corner["scales"].size)


def predictions(
    emb: xr.Dataset, corner: xr.Dataset, head: Head, row: Row, beside: list[Beside], settings: Settings
) -> Iterator[Row]:
    """Yield the rows of a head's map, or why there are none."""
    why = expected(emb, corner, head.predict, settings)
    if why:
        yield replace(row, skipped=why)
        return
    yield from compare(row, lambda: head.predict(emb), beside, settings)


def beside_sklearn(
    name: str,
    predict: Callable[[np.ndarray], Any],
    values: np.ndarray | None,
    why: str,
    part: np.ndarray,
    want: Want | None,
    settings: Settings,
    width: int = 4 * CLASSES,
) -> Beside:
    """Return a peer that predicts from values, unless it takes too long, as a part tells, or too much memory.

    `width` is how many numbers of each pixel it holds at once.
    """
    if values is None:
        return Beside(name, None, want, why)
    seconds = machine.clock(lambda: predict(part)) * len(values) / len(part)
    why = settings.lacks_memory(len(values) * values.itemsize * width) or settings.takes_long(seconds)
    return Beside(name, None if why else lambda: predict(values), want, why)


def logistic_rows(
    emb: xr.Dataset, corner: xr.Dataset, values: np.ndarray | None, why: str, truth: np.ndarray, settings: Settings
) -> Iterator[Row]:
    from sklearn.linear_model import LogisticRegression

    size, n = emb.sizes["y"], emb["scales"].size
    sample = labelled(corner, truth, 2000)
    head = fit_sample(sample, "logistic")
    peer = LogisticRegression(max_iter=50).fit(sample.X, sample.y)
    room = why or settings.lacks_memory(4.2 * n * BANDS)
    beside = [
        float_product(None if room else values, BANDS, room, Want("longer", 1.5)),
        float_product(values, CLASSES, why, None),
        beside_sklearn("scikit-learn's LogisticRegression", peer.predict_proba, values, why, sample.X, None, settings),
    ]
    row = Row(GROUP, "logistic: classes and all probabilities", size, operations=2.0 * n * BANDS * CLASSES,
              bytes=n * PREDICTED)  # fmt: skip
    yield from predictions(emb, corner, head, row, beside, settings)


def mlp_rows(
    emb: xr.Dataset, corner: xr.Dataset, values: np.ndarray | None, why: str, truth: np.ndarray, settings: Settings
) -> Iterator[Row]:
    from sklearn.neural_network import MLPClassifier

    size, n = emb.sizes["y"], emb["scales"].size
    sample = labelled(corner, truth, LABELS if not settings.quick else 1000)
    if size == 1024 or settings.quick:  # the fit doesn't depend on the size of the map
        row = Row(GROUP, f"mlp: fit of {len(sample):,} labels", None, want=Want("seconds", 60))
        yield alone(row, [machine.clock(lambda: fit_sample(sample, "mlp"))])
        sample = labelled(corner, truth, 1000)
    head = fit_sample(labelled(corner, truth, 1000), "mlp")  # as fast on a map as one of all labels
    few = sample.X[:1000], sample.y[:1000]
    single, double = (
        MLPClassifier(HIDDEN, max_iter=3, random_state=0).fit(few[0].astype(t), few[1]) for t in (np.float32, float)
    )
    weights = [np.ascontiguousarray(w, dtype=np.float32) for w in single.coefs_]
    quarter = None if values is None else values[: len(values) // 4].astype(np.float64)
    name = "scikit-learn's MLP, float32"
    beside = [beside_sklearn(name, single.predict, values, why, few[0], Want("faster", 5), settings, sum(HIDDEN))]
    twice = beside_sklearn(
        "the same in float64, its default", double.predict, quarter, why, few[0], None, settings, sum(HIDDEN)
    )
    beside += [replace(twice, factor=4, note="a quarter of the pixels, times four")]
    beside += [
        Beside("its three float32 products alone", None if why else lambda: products(values, weights), skipped=why)
    ]
    sizes = (BANDS, *HIDDEN, CLASSES)
    operations = 2.0 * n * sum(a * b for a, b in pairwise(sizes))
    row = Row(
        GROUP, "mlp 128-512-256-10: classes and all probabilities", size, operations=operations, bytes=n * PREDICTED
    )
    yield from predictions(emb, corner, head, row, beside, settings)


def products(values: np.ndarray | None, weights: list[np.ndarray]) -> None:
    """Multiply through the layers, a stretch at a time, without anything between."""
    assert values is not None
    for start in range(0, len(values), 4096):
        x = values[start : start + 4096]
        for weight in weights:
            x = x @ weight


def forest_rows(
    emb: xr.Dataset, corner: xr.Dataset, values: np.ndarray | None, why: str, truth: np.ndarray, settings: Settings
) -> Iterator[Row]:
    from sklearn.ensemble import RandomForestClassifier

    sample = labelled(corner, truth, 2000)
    head = fit_sample(sample, "forest")
    peer = RandomForestClassifier(200, n_jobs=-1, random_state=0).fit(sample.X, sample.y)
    name = "scikit-learn's forest, all cores"
    beside = [beside_sklearn(name, peer.predict_proba, values, why, sample.X, None, settings)]
    row = Row(
        GROUP,
        "forest of 200 trees: classes and all probabilities",
        emb.sizes["y"],
        bytes=emb["scales"].size * PREDICTED,
    )
    yield from predictions(emb, corner, head, row, beside, settings)


def neighbour_rows(emb: xr.Dataset, corner: xr.Dataset, truth: np.ndarray, settings: Settings) -> Iterator[Row]:
    """Compare on a quarter of the map; answers must be the same."""
    from sklearn.neighbors import KNeighborsClassifier

    side = max(emb.sizes["y"] // 2, 1)
    part = emb.isel(y=slice(side), x=slice(side))
    sample = labelled(corner, truth, min(NEIGHBOURS, truth.size // 2))
    operations = 2.0 * side * side * BANDS * len(sample)
    row = Row(GROUP, f"kNN of {len(sample):,} labels, exact: half of each side", side, operations=operations)
    heads = [fit_sample(sample, "knn", standardise=None, class_weight=None, approximate=a) for a in (False, True)]
    tiny = corner.isel(y=slice(64), x=slice(64))
    why = expected(part, tiny, lambda ds: codes_of(heads[0], ds), settings)
    near = replace(row, task="kNN, approximate", operations=0.0)
    if why:
        yield from (replace(r, skipped=f"the exact one {why}") for r in (row, near))
        return
    inside = float_values(part)
    peer = KNeighborsClassifier().fit(sample.X, sample.y)
    seconds = machine.clock(lambda: peer.predict(inside[:4096])) * len(inside) / min(len(inside), 4096)
    long = settings.takes_long(seconds)
    theirs: list[np.ndarray] = []
    name, call = "scikit-learn's kNN", None if long else lambda: theirs.append(peer.predict(inside))
    for head, one, factor in zip(heads, (row, near), (2, 4), strict=True):
        ours: list[np.ndarray] = []
        found = compare(
            one, lambda h=head, kept=ours: kept.append(codes_of(h, part)),
            [Beside(name, call, Want("faster", factor), long)], replace(settings, repeats=1), warm=False,
        )  # fmt: skip
        names = np.array([int(n.split()[1]) for n in theirs[-1]]) if theirs else None
        note = "" if names is None else f"the same answers at {np.mean(ours[-1] == names):.2%} of pixels"
        yield from (replace(r, note=note) for r in found)
