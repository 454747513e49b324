"""Every pixel against a few vectors, straight from its int8 codes: kernels that never write a float32 map."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias

import numba
import numpy as np
import numpy.typing as npt

from tessera_xr.analysis.compiled import kernel

Floats: TypeAlias = npt.NDArray[np.float32]

STRETCH = 16_384
"""Pixels a call of a kernel."""


def project(
    values: npt.NDArray[Any], scales: Floats | None = None, *, vectors: Floats, offsets: Floats, lazy: bool = False
) -> Floats:
    """Return the product of every pixel with some vectors, less their offsets.

    Parameters
    ----------
    values : ndarray (..., band)
        float32, or int8 codes with their scales.
    scales : ndarray (...), optional
        Of the codes; what is not finite is no data.
    vectors, offsets : ndarray (k, band) and (k,)
        In float32.
    lazy : bool
        Whether Dask calls this: then it has the threads, and one is enough here.

    Returns
    -------
    ndarray (..., k) float32
        NaN without data.
    """
    out = np.empty((*values.shape[:-1], len(vectors)), dtype=np.float32)
    table = np.ascontiguousarray(vectors)  # in another order the loops are several times as slow
    over_pixels(project_pixels, values, scales, (table, offsets), [out.reshape(-1, len(vectors))], lazy)
    return out


def nearest(
    values: npt.NDArray[Any], scales: Floats | None = None, *, vectors: Floats, reach: Floats, lazy: bool = False
) -> tuple[npt.NDArray[np.int16], Floats]:
    """Return which vector is nearest to every pixel, and its squared Euclidean distance.

    Parameters
    ----------
    values, scales, lazy
        As for `project`.
    vectors, reach : ndarray (k, band) and (k,)
        In float32; a pixel further from the nearest vector than its reach belongs to none.

    Returns
    -------
    ndarray (...) int16
        Row of `vectors`; -1 without data, -2 beyond reach.
    ndarray (...) float32
        Squared distance to the nearest vector, NaN without data.
    """
    rows = np.empty(values.shape[:-1], dtype=np.int16)
    distance = np.empty(values.shape[:-1], dtype=np.float32)
    halves = (vectors.astype(np.float64) ** 2).sum(axis=1).astype(np.float32) / 2
    args = (np.ascontiguousarray(vectors), halves, reach.astype(np.float32) ** 2)
    over_pixels(nearest_pixels, values, scales, args, [rows.reshape(-1), distance.reshape(-1)], lazy)
    return rows, distance


def over_pixels(
    function: Callable[..., None],
    values: npt.NDArray[Any],
    scales: Floats | None,
    args: tuple[Floats, ...],
    outs: Sequence[npt.NDArray[Any]],
    lazy: bool,
    stretch: int = STRETCH,
) -> None:
    """Call `function` on stretches of pixels; rows of a map that don't lie side by side are gathered for it."""
    values = np.atleast_2d(values)
    n_pixels, width = math.prod(values.shape[:-1]), max(values.shape[-2], 1)
    flat = values.reshape(n_pixels, -1) if values.flags.c_contiguous else None
    step = stretch if flat is not None else max(stretch // width, 1) * width
    factors = None if scales is None else np.ravel(scales)

    def work(start: int) -> None:
        part = slice(start, min(start + step, n_pixels))
        if flat is not None:
            pixels = flat[part]
        else:
            rows = np.unravel_index(np.arange(start, part.stop, width) // width, values.shape[:-2])
            pixels = values[rows].reshape(-1, values.shape[-1])
        ones = np.ones(len(pixels), dtype=np.float32)
        function(pixels, ones if factors is None else factors[part], *args, *(out[part] for out in outs))

    starts = range(0, n_pixels, step)
    if lazy or len(starts) < 2:
        for start in starts:
            work(start)
    else:
        with ThreadPoolExecutor(numba.get_num_threads()) as pool:
            list(pool.map(work, starts))


@kernel
def project_pixels(values: Any, scales: Floats, vectors: Floats, offsets: Floats, out: Floats) -> None:
    """Write scales * (values @ vectors.T) - offsets: (n, band), (n,), (k, band), (k,) to (n, k)."""
    n_bands = values.shape[1]
    row = np.empty(n_bands, dtype=np.float32)
    for i in range(values.shape[0]):
        scale = scales[i] if np.isfinite(scales[i]) else np.float32(np.nan)
        for b in range(n_bands):
            row[b] = values[i, b]
        for j in range(vectors.shape[0]):
            total = np.float32(0)
            for b in range(n_bands):
                total += row[b] * vectors[j, b]
            out[i, j] = total * scale - offsets[j]


@kernel
def nearest_pixels(
    values: Any, scales: Floats, vectors: Floats, halves: Floats, reach: Floats, rows: Any, distance: Floats
) -> None:
    """Write the row of the nearest vector and its squared distance |x|^2 - 2 (x.v - |v|^2 / 2)."""
    n_bands = values.shape[1]
    row = np.empty(n_bands, dtype=np.float32)
    for i in range(values.shape[0]):
        scale = scales[i] if np.isfinite(scales[i]) else np.float32(np.nan)
        square = np.float32(0)
        for b in range(n_bands):
            row[b] = values[i, b]
            square += row[b] * row[b]
        best, chosen = np.float32(-np.inf), -1
        for j in range(vectors.shape[0]):
            total = np.float32(0)
            for b in range(n_bands):
                total += row[b] * vectors[j, b]
            total = total * scale - halves[j]
            if total > best:  # never true of NaN
                best, chosen = total, j
        away = max(square * scale * scale - 2 * best, np.float32(0))
        distance[i] = away if chosen >= 0 else np.float32(np.nan)
        rows[i] = -2 if chosen >= 0 and away > reach[chosen] else chosen
