"""How fast heads are fitted and maps drawn, beside peers and floors: `python -m benchmarks.learning [SIZE]`.

A synthetic int8 map of SIZE x SIZE x 128 (1024 by default), ten classes. Each task runs in turn with its peer in one
process; the peers start from float32 values, made beforehand at no charge. scikit-learn's kNN is slow: the peer of
the neighbours sees a quarter of the map at most, and the ratio is per pixel.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import xarray as xr

from benchmarks.analysis import number
from benchmarks.analysis_clusters import BANDS, compared, extra_mb, simulated, timed
from tessera_xr.embedding.quantize import _dequantize
from tessera_xr.embedding.schema import provenance
from tessera_xr.learning.heads import Head, fit_sample
from tessera_xr.learning.samples import LabelSample

CLASSES, NEIGHBOURS, LABELS = 10, 10_000, 20_000
HIDDEN = (512, 256)


def rows(size: int = 1024, rounds: int = 3) -> Iterator[dict[str, Any]]:
    """Yield a row for each task: seconds, those of its peer, their ratio, what is wanted of it, extra memory."""
    emb = simulated(size)
    codes, scales = emb["embeddings"].transpose("y", "x", "band").values, emb["scales"].values
    values = _dequantize(codes, scales).reshape(-1, BANDS)
    truth = classes_of(values)
    yield from logistic_rows(emb, values, truth, rounds)
    yield from mlp_rows(emb, values, truth, rounds)
    yield from forest_rows(emb, values, truth)
    yield from neighbour_rows(emb, values, truth)


def classes_of(values: np.ndarray) -> np.ndarray:
    """Return the class (n,) of each pixel: the greatest of ten noisy directions."""
    rng = np.random.default_rng(1)
    scores = values @ rng.normal(size=(values.shape[1], CLASSES)).astype(np.float32)
    scores += rng.normal(size=scores.shape).astype(np.float32) * scores.std() / 2
    return scores.argmax(axis=1)


def labelled(emb: xr.Dataset, values: np.ndarray, truth: np.ndarray, n: int) -> LabelSample:
    """Draw n labelled pixels."""
    size = emb.sizes["y"]
    drawn = np.random.default_rng(2).permutation(len(values))[:n]
    names = np.array([f"class {i}" for i in range(CLASSES)])
    y, x = drawn // size, drawn % size
    return LabelSample(
        values[drawn], names[truth[drawn]], np.arange(n), np.ones(n), emb["x"].values[x], emb["y"].values[y], y, x,
        dict.fromkeys(names.tolist(), "#888888"), None, provenance(emb), "EPSG:32631", (size, size),
    )  # fmt: skip


def codes_of(head: Head, emb: xr.Dataset) -> np.ndarray:
    """Return the classes (n,) that a head finds on a map."""
    found = head.predict(emb, probability=False)["prediction"].values.ravel()
    return np.array([int(name.split()[1]) for name in head.classes])[found - 1]


def logistic_rows(emb: xr.Dataset, values: np.ndarray, truth: np.ndarray, rounds: int) -> Iterator[dict[str, Any]]:
    head = fit_sample(labelled(emb, values, truth, 2000), "logistic")
    head.predict(emb)
    for width, wanted in ((BANDS, "at most 1.5"), (CLASSES, "")):
        vectors = np.random.default_rng(0).normal(size=(BANDS, width)).astype(np.float32)
        times = [(timed(lambda: head.predict(emb))[1], timed(lambda v=vectors: values @ v)[1]) for _ in range(rounds)]
        row = compared(
            "logistic: classes, all probabilities", times, f"float32 product, {width} wide", "ours/floor", wanted
        )
        yield row | {"peak_mb": extra_mb(lambda: head.predict(emb))}


def mlp_rows(emb: xr.Dataset, values: np.ndarray, truth: np.ndarray, rounds: int) -> Iterator[dict[str, Any]]:
    from sklearn.neural_network import MLPClassifier

    sample = labelled(emb, values, truth, LABELS)
    head, seconds = timed(lambda: fit_sample(sample, "mlp"))
    score = float((codes_of(head, emb) == truth).mean())
    yield alone(f"mlp: fit of {LABELS:,} labels (accuracy {score:.3f})", seconds, "under 60 s")
    peer = MLPClassifier(HIDDEN, max_iter=3, random_state=0).fit(sample.X, sample.y)
    floor = [np.ascontiguousarray(w) for w in peer.coefs_]
    pairs, floors = [], []
    for _ in range(rounds):
        ours = timed(lambda: head.predict(emb))[1]
        pairs.append((ours, timed(lambda: peer.predict(values))[1]))
        floors.append((ours, timed(lambda: products(values, floor))[1]))
    row = compared(
        "mlp 128-512-256-10: classes, all probabilities",
        pairs,
        "sklearn MLPClassifier.predict",
        "peer/ours",
        "at least 5",
    )
    yield row | {"peak_mb": extra_mb(lambda: head.predict(emb))}
    double = MLPClassifier(HIDDEN, max_iter=3, random_state=0).fit(sample.X.astype(np.float64), sample.y)
    quarter = values[: len(values) // 4].astype(np.float64)
    once = (pairs[-1][0], 4 * timed(lambda: double.predict(quarter))[1])
    yield compared("the same", [once], "sklearn in float64, its default", "peer/ours", "") | {"peak_mb": np.nan}
    yield compared("the same", floors, "its three float32 products alone", "ours/floor", "") | {"peak_mb": np.nan}


def products(values: np.ndarray, weights: list[np.ndarray]) -> None:
    """Multiply through the layers, a stretch at a time, without anything between."""
    for start in range(0, len(values), 4096):
        x = values[start : start + 4096]
        for weight in weights:
            x = x @ weight


def forest_rows(emb: xr.Dataset, values: np.ndarray, truth: np.ndarray) -> Iterator[dict[str, Any]]:
    head = fit_sample(labelled(emb, values, truth, 2000), "forest")
    yield alone("forest of 200 trees: classes, all probabilities", timed(lambda: head.predict(emb))[1], "")


def neighbour_rows(emb: xr.Dataset, values: np.ndarray, truth: np.ndarray) -> Iterator[dict[str, Any]]:
    """Compare on a quarter of the map at most; answers must be the same."""
    from sklearn.neighbors import KNeighborsClassifier

    n = max(emb.sizes["y"] // 2, 1)
    part = emb.isel(y=slice(n), x=slice(n))
    inside = values.reshape(emb.sizes["y"], emb.sizes["x"], BANDS)[:n, :n].reshape(-1, BANDS)
    sample = labelled(emb, values, truth, min(NEIGHBOURS, len(values) // 2))
    exact, rough = (
        fit_sample(sample, "knn", standardise=None, class_weight=None, approximate=a) for a in (False, True)
    )
    peer = KNeighborsClassifier().fit(sample.X, sample.y)
    table = np.ascontiguousarray(sample.X)
    codes_of(exact, part.isel(y=slice(8)))
    codes_of(rough, part.isel(y=slice(8)))
    found, seconds = timed(lambda: codes_of(exact, part))
    names, peer_seconds = timed(lambda: peer.predict(inside))
    theirs = np.array([int(name.split()[1]) for name in names])
    close, rough_seconds = timed(lambda: codes_of(rough, part))
    floor = timed(lambda: products_of(inside, table))[1]
    kind = "sklearn KNeighborsClassifier.predict"
    same, near = float((found == theirs).mean()), float((close == theirs).mean())
    exactly = f"knn, {len(sample):,} labels, {len(inside):,} pixels; same answers: {same:.5f}"
    roughly = f"knn, approximate; same answers: {near:.4f}"
    tasks = [
        (exactly, seconds, peer_seconds, kind, "peer/ours", "at least 2"),
        (roughly, rough_seconds, peer_seconds, kind, "peer/ours", "at least 4, 0.98"),
        ("knn, exact", seconds, floor, "its float32 product alone", "ours/floor", ""),
    ]
    for task, ours, other, name, ratio, wanted in tasks:
        yield compared(task, [(ours, other)], name, ratio, wanted) | {"peak_mb": np.nan}


def products_of(values: np.ndarray, table: np.ndarray) -> None:
    """Multiply all pixels with all labels, tile by tile into the same memory."""
    room = np.empty((512, 1024), dtype=np.float32)
    for start in range(0, len(values) - 511, 512):
        for first in range(0, len(table) - 1023, 1024):
            np.matmul(values[start : start + 512], table[first : first + 1024].T, out=room)


def alone(task: str, seconds: float, wanted: str) -> dict[str, Any]:
    row = {"task": task, "seconds": seconds, "peer": "", "peer_seconds": np.nan, "ratio": np.nan}
    return row | {"ratio_is": "", "wanted": wanted, "peak_mb": np.nan}


def main(parts: Callable[..., Iterator[dict[str, Any]]] = rows) -> None:
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("size", type=int, nargs="?", default=1024, help="pixels a side")
    size = parser.parse_args().size
    print(f"| task | s | beside | its s | ratio | of what | wanted | extra MB |\n|---|{'---:|' * 7}")
    for row in parts(size):
        cells = [row["task"], number(row["seconds"]), row["peer"], number(row["peer_seconds"])]
        cells += [number(row["ratio"]), row["ratio_is"], row["wanted"], number(row["peak_mb"])]
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
