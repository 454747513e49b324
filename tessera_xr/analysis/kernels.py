"""Every pixel of a map against a few vectors, straight on the int8 codes, as numba kernels.

The cosine of a pixel needs no scale: code * scale has the direction of code. A block of pixels is read once and stays
in the cache for all that is asked of it; blocks run side by side on threads, for which the kernels release the GIL.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from tessera_xr.analysis.compiled import kernel

Floats: TypeAlias = npt.NDArray[np.float32]
Values: TypeAlias = npt.NDArray[Any]
Score: TypeAlias = Callable[[Values, Floats], Floats]

BLOCK = 8192
"""Pixels a block: 1 MB of codes of 128 values, which stays in the cache."""


def n_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def scan(values: Values, scales: Floats | None, score: Score, threads: int = 1) -> Floats:
    """Score every pixel, a block at a time.

    Parameters
    ----------
    values : ndarray (..., d)
        float32 or int8; best with the last axis contiguous.
    scales : ndarray (...), optional
        Of int8 codes.
    score : callable
        From a contiguous block (n, d) and its scales (n,), none of them for floats, to (n,) float32.
    threads : int
        How many blocks at a time.

    Returns
    -------
    ndarray (...)
        float32.
    """
    out = np.empty(values.shape[:-1], dtype=np.float32)
    rows, flat_scales = (values[:, None], None if scales is None else scales[:, None]) if values.ndim == 2 else (
        values, scales)  # fmt: skip
    flat_out = out.reshape(rows.shape[:-1])
    step = max(1, BLOCK // max(1, rows.shape[-2]))
    jobs = [
        (*index, slice(y, y + step)) for index in np.ndindex(rows.shape[:-3]) for y in range(0, rows.shape[-3], step)
    ]
    none = np.empty(0, dtype=np.float32)

    def run(job: tuple[Any, ...]) -> None:
        block = np.ascontiguousarray(rows[job])
        held = none if flat_scales is None else np.ascontiguousarray(flat_scales[job], dtype=np.float32).ravel()
        flat_out[job] = score(block.reshape(-1, block.shape[-1]), held).reshape(block.shape[:-1])

    if threads == 1 or len(jobs) == 1:
        for job in jobs:
            run(job)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(run, jobs))
    return out


@kernel
def cosines(values: Values, scales: Floats, queries: Floats, sign: np.float32, out: Floats) -> None:
    """Write the highest (sign 1) or lowest (sign -1) cosine of each pixel (n, d) with the queries (q, d), to (n,).

    Queries are divided by their own lengths beforehand. Without data, or direction: NaN.
    """
    n, d = values.shape
    for i in range(n):
        if scales.size and not np.isfinite(scales[i]):
            out[i] = np.nan
            continue
        squares, product = np.float32(0), np.float32(0)
        for c in range(d):
            value = np.float32(values[i, c])
            squares += value * value
            product += value * queries[0, c]
        best = product * sign
        for q in range(1, queries.shape[0]):
            product = np.float32(0)
            for c in range(d):
                product += np.float32(values[i, c]) * queries[q, c]
            best = max(best, product * sign)
        # 0 / 0 is the NaN of a vector without direction; squares carry the NaN of a float without data
        out[i] = np.float32(sign * best) / np.sqrt(squares)


@kernel
def nearness(values: Values, scales: Floats, queries: Floats, sign: np.float32, out: Floats) -> None:
    """Write minus the Euclidean distance of each pixel (n, d) to the queries (q, d), to (n,).

    The highest for sign 1, the lowest for -1, the mean for 0.
    Differences are squared and summed as they are: the expanded square would lose short distances.
    """
    n, d = values.shape
    n_queries = queries.shape[0]
    for i in range(n):
        scale = np.float32(1)
        if scales.size:
            scale = scales[i] if np.isfinite(scales[i]) else np.float32(np.nan)
        best, total = np.float32(0), np.float32(0)
        for q in range(n_queries):
            squares = np.float32(0)
            for c in range(d):
                difference = np.float32(values[i, c]) * scale - queries[q, c]
                squares += difference * difference
            near = -np.sqrt(squares)
            total += near
            best = near * sign if q == 0 else max(best, near * sign)
        out[i] = total / np.float32(n_queries) if sign == 0 else np.float32(sign * best)


@kernel
def add_to_segments(values: Values, scales: Floats, rows: Any, sums: Any, squares: Any, counts: Any) -> None:
    """Add pixels (n, d) to the row of their segment (n,), below 0 none: their sum (s, d), squares (s,), number (s,)."""
    for i in range(values.shape[0]):
        scale = np.float32(1)
        if scales.size:
            scale = scales[i] if np.isfinite(scales[i]) else np.float32(np.nan)
        if rows[i] < 0 or np.isnan(scale * values[i, 0]):
            continue
        total = 0.0
        for c in range(values.shape[1]):
            value = np.float32(values[i, c]) * scale
            sums[rows[i], c] += value
            total += np.float64(value) * np.float64(value)
        squares[rows[i]] += total
        counts[rows[i]] += 1


@kernel
def _best_of_row(scores: Floats, row: int, best: Floats, at: npt.NDArray[np.int64]) -> None:
    best[row], at[row] = -np.inf, -1
    for x in range(scores.shape[1]):
        if scores[row, x] > best[row]:  # never true of NaN
            best[row], at[row] = scores[row, x], x


@kernel
def pick(scores: Floats, k: int, distance: float, pixel_y: float, pixel_x: float) -> npt.NDArray[np.int64]:
    """Return the k best pixels (row, column), best first, each at least `distance` from those before it.

    Pixels are `pixel_y` by `pixel_x` in the unit of `distance`. `scores` (h, w) is used up: what was chosen or is too
    near becomes NaN. The first in reading order wins a tie. There are fewer rows when no pixel is left.
    """
    h, w = scores.shape
    best, at = np.empty(h, dtype=np.float32), np.empty(h, dtype=np.int64)
    for y in range(h):
        _best_of_row(scores, y, best, at)
    chosen = np.empty((k, 2), dtype=np.int64)
    reach_y, reach_x = int(min(distance / pixel_y + 1, h)), int(min(distance / pixel_x + 1, w))
    for i in range(k):
        y0 = int(np.argmax(best))
        x0 = at[y0]
        if x0 < 0:
            return chosen[:i]
        chosen[i, 0], chosen[i, 1] = y0, x0
        for y in range(max(0, y0 - reach_y), min(h, y0 + reach_y + 1)):
            for x in range(max(0, x0 - reach_x), min(w, x0 + reach_x + 1)):
                apart = np.hypot((y - y0) * pixel_y, (x - x0) * pixel_x)
                if apart < distance or (y == y0 and x == x0):
                    scores[y, x] = np.nan
            _best_of_row(scores, y, best, at)
    return chosen
