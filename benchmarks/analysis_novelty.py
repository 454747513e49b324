"""How fast novelty and change are on int8 maps: `python -m benchmarks.analysis_novelty [SIZE]`.

Ours and what it is held against run in turn, and ratios are medians of the rounds' ratios, so that a machine that slows
down slows both. Novelty is held against one float32 matrix product of the whole map (pixels x 128 by 128 x 128), the
least that a Mahalanobis distance can do; change and trend against plain NumPy from the int8 codes, which dequantises
first. Extra memory is the peak of what NumPy allocates meanwhile, results included.
"""

from __future__ import annotations

import statistics
import sys
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import xarray as xr

from tessera_xr.analysis.change import change, trend
from tessera_xr.analysis.novelty import fit_novelty

BANDS, YEARS, TREND_SIZE = 128, 5, 4


def rows(size: int = 1024, rounds: int = 7) -> list[dict[str, Any]]:
    """Return a row for each task: seconds, those of its peer, their ratio, what is wanted of it, extra memory."""
    emb = simulated(size, 2)
    return [*novelty_rows(emb, rounds), change_row(emb, rounds), trend_row(size // TREND_SIZE, rounds)]


def simulated(size: int, n_years: int, seed: int = 0) -> xr.Dataset:
    """Make int8 maps of several years, ten kinds of place with noise of their own."""
    rng = np.random.default_rng(seed)
    kinds = rng.integers(-60, 60, (10, BANDS)).astype(np.int8)
    which = rng.integers(0, 10, (size, size))
    codes = np.empty((n_years, size, size, BANDS), np.int8)
    for year in range(n_years):
        for i in range(size):
            codes[year, i] = kinds[which[i]] + rng.integers(-40, 41, (size, BANDS), dtype=np.int8)
    scales = rng.uniform(0.01, 0.05, codes.shape[:3]).astype(np.float32)
    maps = {"embeddings": (("time", "y", "x", "band"), codes), "scales": (("time", "y", "x"), scales)}
    return xr.Dataset(maps, {"time": 2020 + np.arange(n_years)}).transpose("time", "band", "y", "x")


def novelty_rows(emb: xr.Dataset, rounds: int) -> list[dict[str, Any]]:
    single = emb.isel(time=0)
    fitted = fit_novelty(single)
    values = dequantized(emb, 0).reshape(-1, BANDS)
    product, matrix = np.empty_like(values), fitted.whitening
    as_float = single.drop_vars("scales").assign(
        embeddings=(("y", "x", "band"), values.reshape(*single["scales"].shape, BANDS))
    )
    found = []
    for name, maps in (("int8", single), ("float32", as_float)):
        row = compared(
            f"novelty, {name}",
            lambda maps=maps: fitted.transform(maps),
            "one float32 matrix product",
            lambda: np.matmul(values, matrix, out=product),
            rounds,
        )
        ratio = 1 / row["ratio"]
        found.append(row | {"ratio": ratio, "ratio_is": "ours / product", "wanted": "<= 3"})
    return found


def change_row(emb: xr.Dataset, rounds: int) -> dict[str, Any]:
    def plain() -> np.ndarray:
        first, second = dequantized(emb, 0), dequantized(emb, 1)
        first /= np.linalg.norm(first, axis=-1, keepdims=True)
        second /= np.linalg.norm(second, axis=-1, keepdims=True)
        return 1 - (first * second).sum(axis=-1)

    row = compared("change, int8", lambda: change(emb, 2020, 2021), "plain NumPy", plain, max(rounds // 2, 1))
    return row | {"ratio_is": "plain / ours", "wanted": ">= 5"}


def trend_row(size: int, rounds: int) -> dict[str, Any]:
    emb = simulated(size, YEARS)

    def plain() -> np.ndarray:
        unit = np.stack([dequantized(emb, year) for year in range(YEARS)])
        unit /= np.linalg.norm(unit, axis=-1, keepdims=True)
        return np.einsum("syxb,tyxb->yxst", unit, unit, optimize=True)  # the cosines alone

    task = f"trend and break, int8, {YEARS} years, 1/{TREND_SIZE**2} of the map"
    row = compared(task, lambda: trend(emb), "plain NumPy, the cosines alone", plain, max(rounds // 2, 1))
    return row | {"ratio_is": "plain / ours", "wanted": "told"}


def dequantized(emb: xr.Dataset, year: int) -> np.ndarray:
    codes = emb["embeddings"].transpose("time", "y", "x", "band").values[year]
    return codes.astype(np.float32) * emb["scales"].values[year][..., None]


def compared(
    task: str, ours: Callable[[], object], peer: str, theirs: Callable[[], object], rounds: int
) -> dict[str, Any]:
    """Time two functions in turn, after a round that counts for nothing; ratio is theirs / ours."""
    times = np.array([[seconds(ours), seconds(theirs)] for _ in range(rounds + 1)])[1:]
    tracemalloc.start()
    ours()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return {
        "task": task,
        "seconds": statistics.median(times[:, 0]),
        "peer": peer,
        "peer_seconds": statistics.median(times[:, 1]),
        "ratio": statistics.median(times[:, 1] / times[:, 0]),
        "peak_mb": peak / 1e6,
    }


def seconds(function: Callable[[], object]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


if __name__ == "__main__":
    for row in rows(*map(int, sys.argv[1:])):
        print(
            f"{row['task']:50} {row['seconds']:8.3f} s  {row['peer']:30} {row['peer_seconds']:8.3f} s  "
            f"{row['ratio']:6.2f} ({row['ratio_is']}, wanted {row['wanted']})  {row['peak_mb']:7.1f} MB extra"
        )
