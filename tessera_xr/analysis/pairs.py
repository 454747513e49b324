"""Cosines between the dates of a pixel, as compiled loops: int8 codes are never made into floats of their own.

The scale of a pixel cancels in a cosine, so codes are enough, and their sums are whole numbers: exact. Import this
module inside functions: numba is heavy.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from tessera_xr.analysis.compiled import careful_kernel


@careful_kernel
def distances(a: npt.NDArray[Any], b: npt.NDArray[Any], zero: Any, out: npt.NDArray[np.float32]) -> None:
    """Write the cosine distance of each row of a and b, (n, band), into out (n,); NaN where one has no length.

    `zero` sets the type of the sums: see `zero_of`.
    """
    for i in range(a.shape[0]):
        aa, ab, bb = zero, zero, zero
        for k in range(a.shape[1]):
            p, q = zero + a[i, k], zero + b[i, k]
            aa += p * p
            ab += p * q
            bb += q * q
        length = np.sqrt(np.float64(aa) * np.float64(bb))
        out[i] = 1.0 - ab / length if length > 0 else np.nan


@careful_kernel
def cosines(series: npt.NDArray[Any], zero: Any, out: npt.NDArray[np.float64]) -> None:
    """Write the cosines between all times of each pixel: series (t, n, band) into out (n, t, t)."""
    n_times, n, n_bands = series.shape
    for i in range(n):
        for s in range(n_times):
            for t in range(s + 1):
                dot = zero
                for k in range(n_bands):
                    dot += (zero + series[s, i, k]) * (zero + series[t, i, k])
                out[i, s, t] = dot
        for s in range(n_times):
            for t in range(s):
                length = np.sqrt(out[i, s, s] * out[i, t, t])
                out[i, s, t] = out[i, t, s] = out[i, s, t] / length if length > 0 else np.nan
        for s in range(n_times):
            out[i, s, s] = 1.0 if out[i, s, s] > 0 else np.nan


@careful_kernel
def line_and_step(
    grams: npt.NDArray[np.float64],
    valid: npt.NDArray[np.bool_],
    years: npt.NDArray[np.float64],
    out: npt.NDArray[np.float32],
) -> None:
    """Fit a line and a step to unit vectors by their cosines: (n, t, t), (n, t) and (t,) into out (n, 5).

    NaN where fewer than three dates have data.
    """
    there = np.empty(len(years))  # 1 or 0
    for i in range(len(grams)):
        count = mean = 0.0
        for t in range(len(years)):
            there[t] = 1.0 if valid[i, t] and grams[i, t, t] > 0 else 0.0
            count += there[t]
            mean += there[t] * years[t]
        if count < 3:
            out[i, :] = np.nan
            continue
        mean /= count
        both = line = spread = 0.0
        for s in range(len(years)):
            spread += there[s] * (years[s] - mean) ** 2
            for t in range(len(years)):
                if there[s] * there[t] > 0:  # other cosines are NaN
                    both += grams[i, s, t]
                    line += grams[i, s, t] * (years[s] - mean) * (years[t] - mean)
        total = count - both / count  # of squares about the mean vector
        k, square, apart = find_step(grams[i], there, count)
        steady = total <= 1e-12 * count  # all alike: there is nothing to explain
        out[i, 0] = 0.0 if steady else np.sqrt(max(line, 0.0)) / spread
        out[i, 1] = 0.0 if steady else line / spread / total
        out[i, 2], out[i, 3], out[i, 4] = years[k], apart, 0.0 if steady else square / total


@careful_kernel
def find_step(gram: npt.NDArray[np.float64], there: npt.NDArray[np.float64], count: float) -> tuple[int, float, float]:
    """Return the date from which on the mean differs most from that before, by the sum of squares between the two.

    With that sum, and the cosine distance between the two means: sums over three blocks of the cosines give both.
    """
    best, square, apart, n = 0, -1.0, np.nan, there[0]
    for k in range(1, len(there)):
        if there[k] > 0 and n > 0:
            before = between = after = 0.0
            for s in range(len(there)):
                for t in range(len(there)):
                    if there[s] * there[t] > 0:
                        if s < k and t < k:
                            before += gram[s, t]
                        elif s < k:
                            between += gram[s, t]
                        elif t >= k:
                            after += gram[s, t]
            m = count - n
            found = n * m / count * (before / n**2 - 2 * between / (n * m) + after / m**2)
            if found > square:
                best, square, apart = k, found, 1 - between / np.sqrt(before * after)
        n += there[k]
    return best, square, apart


def zero_of(dtype: np.dtype[Any]) -> np.float32 | np.float64:
    """Return the zero that sums over vectors of `dtype` start from; float32 is exact for codes (sums < 2**24)."""
    return np.float32(0) if dtype == np.int8 else np.float64(0)


def distance_rows(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Return the cosine distances of vectors (..., band), a row at a time: slices of a map are never copied whole."""
    if a.ndim == 1:
        return np.asarray(distance_rows(a[None], b[None])[0])
    a, b = np.broadcast_arrays(a, b)
    out = np.empty(a.shape[:-1], dtype=np.float32)
    zero = zero_of(np.result_type(a, b))
    for first, second, row in zip(_rows(a), _rows(b), _rows(out[..., None]), strict=True):
        distances(np.ascontiguousarray(first), np.ascontiguousarray(second), zero, row[:, 0])
    return out


def trend_rows(
    series: npt.NDArray[Any], valid: npt.NDArray[np.bool_], years: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float32], ...]:
    """Return speed, its r2, break year, break distance and break r2, each (...), of series (..., t, band)."""
    if valid.ndim == 1:
        return tuple(found[0] for found in trend_rows(series[None], valid[None], years))
    out = np.empty((*valid.shape[:-1], 5), dtype=np.float32)
    zero = zero_of(series.dtype)
    flat = series[None] if valid.ndim == 2 else series
    for block, there, row in zip(flat, _rows(valid), _rows(out), strict=True):
        grams = np.empty((len(block), len(years), len(years)))
        cosines(np.ascontiguousarray(block.swapaxes(0, 1)), zero, grams)
        line_and_step(grams, np.ascontiguousarray(there), years, row)
    return tuple(np.moveaxis(out, -1, 0))


def _rows(values: npt.NDArray[Any]) -> Iterator[npt.NDArray[Any]]:
    """Yield (n, last) pieces, views of `values` (..., last)."""
    if values.ndim == 2:
        yield values
    else:
        for part in values:
            yield from _rows(part)
