"""How fast similarity and search are, beside what memory allows and what plain NumPy takes.

`python -m benchmarks.analysis_similarity`. All are timed in turn, round by round; seconds are medians of the rounds,
and ratios medians of each round's ratio, so that a machine that slows down slows both.
"""

from __future__ import annotations

import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from odc.geo.geobox import GeoBox

ROUNDS = 9
DIMS = 128


def rows(size: int = 1024) -> list[dict[str, Any]]:
    """Measure on an int8 map of `size` by `size` pixels, 128 values each."""
    from tessera_xr.analysis.kernels import n_cores
    from tessera_xr.analysis.places import find_similar
    from tessera_xr.analysis.similarity import similarity

    emb = make_map(size)
    codes, scales = emb["embeddings"].transpose("y", "x", "band").values, emb["scales"].values
    query = np.random.default_rng(1).normal(size=DIMS).astype(np.float32)
    matrix = np.random.default_rng(2).normal(size=(DIMS, DIMS)).astype(np.float32)
    floats = codes.astype(np.float32).reshape(-1, DIMS)
    read = reader(codes, n_cores())
    calls: dict[str, Callable[[], Any]] = {
        "read": read,
        "numpy": lambda: plain_numpy(codes, scales, query),
        "cosine": lambda: similarity(emb, query),
        "find": lambda: find_similar(emb, query, 20),
        "max": lambda: similarity(emb, np.stack([query, query[::-1]]), negative=-query, combine="max"),
        "mahalanobis": lambda: similarity(emb, query, metric="mahalanobis"),
        "product": lambda: floats @ matrix,
    }
    seconds = in_turn(calls)
    table = [
        ("int8 cosine of every pixel", "cosine", "plain NumPy from int8", "numpy", "peer / ours", ">= 5"),
        ("int8 cosine of every pixel", "cosine", "reading the codes once", "read", "ours / floor", "<= 4"),
        ("find_similar, 20 places 100 m apart", "find", "similarity alone", "cosine", "ours / floor", "<= 1.5"),
        ("2 positives and a negative, combine='max'", "max", "similarity to one", "cosine", "ours / floor", "-"),
        ("Mahalanobis, covariance fitted too", "mahalanobis", "one float32 product", "product", "ours / floor", "<= 3"),
    ]
    return [row(*line, seconds=seconds, peak=peak_mb(calls[line[1]])) for line in table] + [search(size // 4)]


def search(size: int) -> dict[str, Any]:
    """Measure approximate search in an index of one map, against exact search."""
    from tessera_xr.analysis.index import SearchIndex

    emb = make_map(size)
    codes = emb["embeddings"].transpose("y", "x", "band").values.reshape(-1, DIMS)
    query = codes[len(codes) // 3]
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        index = SearchIndex.build(emb, Path(folder) / "index")
        built = time.perf_counter() - start
        calls = {str(exact): lambda exact=exact: index.search(query, 20, exact=exact) for exact in (True, False)}
        seconds = in_turn(calls)
        recall = index.recall(10, 50)
        task = f"SearchIndex.search of {len(index):,} pixels (built in {built:.1f} s; recall at 10: {recall:.3f})"
        return row(
            task, "False", "exact=True", "True", "peer / ours", "-", seconds=seconds, peak=peak_mb(calls["False"])
        )


def make_map(size: int) -> xr.Dataset:
    """Return int8 embeddings with few degrees of freedom, as real ones have."""
    from tessera_xr.grid import with_grid

    rng = np.random.default_rng(0)
    axes = rng.normal(size=(12, DIMS)).astype(np.float32)
    codes = np.empty((size, size, DIMS), dtype=np.int8)
    for y in range(size):
        values = rng.normal(size=(size, 12)).astype(np.float32) @ axes + 0.5 * rng.standard_normal(
            (size, DIMS), np.float32
        )
        codes[y] = np.rint(values * (127 / np.abs(values).max(axis=1, keepdims=True)))
    scales = np.full((size, size), 0.02, dtype=np.float32)
    array = xr.DataArray(codes, dims=("y", "x", "band")).transpose("band", "y", "x")
    ds = xr.Dataset({"embeddings": array, "scales": (("y", "x"), scales)})
    return with_grid(ds, GeoBox.from_bbox((5e5, 5e6, 5e5 + 10 * size, 5e6 + 10 * size), "EPSG:32631", resolution=10))


def reader(codes: np.ndarray, threads: int) -> Callable[[], int]:
    """Return a function that reads all codes once, as 8-byte words, on as many threads as the kernels have."""
    import numba

    @numba.njit(nogil=True)
    def total(words: np.ndarray) -> int:
        out = np.uint64(0)
        for i in range(len(words)):
            out ^= words[i]
        return out

    parts = np.array_split(codes.reshape(-1).view(np.uint64), 8 * threads)
    pool = ThreadPoolExecutor(threads)
    return lambda: sum(map(int, pool.map(total, parts)))


def plain_numpy(codes: np.ndarray, scales: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Dequantise, normalise, multiply."""
    values = codes.astype(np.float32) * scales[..., None]
    values /= np.linalg.norm(values, axis=-1, keepdims=True)
    return values @ (query / np.linalg.norm(query))


def in_turn(calls: dict[str, Callable[[], Any]]) -> dict[str, list[float]]:
    """Time each call once a round."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()  # compiles, and touches the memory
    for _ in range(ROUNDS):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def row(
    task: str, ours: str, peer: str, other: str, kind: str, wanted: str, *, seconds: dict[str, list[float]], peak: float
) -> dict[str, Any]:
    pairs = list(zip(seconds[ours], seconds[other], strict=True))
    ratios = [a / b if kind == "ours / floor" else b / a for a, b in pairs]
    return {
        "task": task,
        "seconds": statistics.median(seconds[ours]),
        "peer": peer,
        "peer_seconds": statistics.median(seconds[other]),
        "ratio": statistics.median(ratios),
        "kind": kind,
        "wanted": wanted,
        "peak_mb": peak,
    }


def peak_mb(call: Callable[[], Any]) -> float:
    """Return the most memory that a call held beyond what was there, in MB."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1] / 1e6
    finally:
        tracemalloc.stop()


def main() -> None:
    for r in rows():
        print(
            f"{r['task']:42} {r['seconds'] * 1e3:8.1f} ms  {r['peer']:24} {r['peer_seconds'] * 1e3:8.1f} ms  "
            f"{r['kind']} {r['ratio']:6.2f} (wanted {r['wanted']})  peak {r['peak_mb']:.1f} MB"
        )


if __name__ == "__main__":
    main()
