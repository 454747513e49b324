"""Observations of many pixels, each with dates of its own, one after the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.intp]
Floats = npt.NDArray[np.float32]
N_MONTHS = 12


@dataclass(frozen=True)
class Ragged:
    """One sensor's valid observations of B pixels: pixel i owns offsets[i] to offsets[i + 1]."""

    values: npt.NDArray[Any]
    """(M, C) in TESSERA's units and band order."""
    doy: npt.NDArray[Any]
    """(M,) day of year, 1 to 366."""
    group: npt.NDArray[np.uint8]
    """(M,) which statistics apply: 0 (Sentinel-2, ascending) or 1 (descending)."""
    offsets: Integers
    """(B + 1,) where each pixel begins."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def counts(self) -> Integers:
        """(B,) number of observations of each pixel."""
        return np.diff(self.offsets)

    @property
    def owner(self) -> Integers:
        """(M,) the pixel of each observation."""
        return np.repeat(np.arange(len(self)), self.counts)

    def take(self, pixels: Integers) -> Ragged:
        """Return the observations of some pixels, in the order given."""
        counts = self.offsets[pixels + 1] - self.offsets[pixels]
        rows = spans(self.offsets[pixels], counts)
        return Ragged(self.values[rows], self.doy[rows], self.group[rows], offsets_of(counts))


@dataclass(frozen=True)
class PixelBatch:
    """B d-pixels as they lie in a pool."""

    s2: Ragged
    """Reflectance x 10,000, ten bands."""
    s1: Ragged
    """VV and VH in TESSERA's SAR scale, ascending passes first."""
    source: Integers
    """(B,) which of the pool's sources each pixel is from."""
    pixel: Integers
    """(B,) its position there."""

    def __len__(self) -> int:
        return len(self.s2)


def offsets_of(counts: npt.NDArray[Any]) -> Integers:
    """Return where each run begins, and the end: (B,) to (B + 1,)."""
    return np.concatenate([[0], np.cumsum(counts, dtype=np.intp)]).astype(np.intp)


def spans(starts: npt.NDArray[Any], counts: npt.NDArray[Any]) -> Integers:
    """Return start, start + 1, ... for each run, one after the other.

    Examples
    --------
    >>> spans(np.array([5, 0]), np.array([2, 3])).tolist()
    [5, 6, 0, 1, 2]
    """
    ends = offsets_of(counts)
    return np.arange(ends[-1]) + np.repeat(np.asarray(starts, dtype=np.intp) - ends[:-1], counts)


def join(parts: list[Ragged]) -> Ragged:
    """Return the pixels of all parts, one part after the other."""
    if len(parts) == 1:
        return parts[0]
    values, doy, group = (np.concatenate([getattr(p, name) for p in parts]) for name in ("values", "doy", "group"))
    return Ragged(values, doy, group, offsets_of(np.concatenate([p.counts for p in parts])))


def month_of(doy: npt.NDArray[Any]) -> Integers:
    """Return the twelfth of the year, 0 to 11, of each day."""
    return np.minimum((doy.astype(np.intp) - 1) * N_MONTHS // 366, N_MONTHS - 1)


def monthly_means(ragged: Ragged, values: npt.NDArray[Any] | None = None) -> tuple[Floats, Integers]:
    """Average the observations of each pixel by twelfths of the year.

    Parameters
    ----------
    ragged : Ragged
        B pixels.
    values : ndarray, shape (M, F), optional
        What to average instead of the bands.

    Returns
    -------
    means : ndarray of float32, shape (B, 12, F)
        0 where there is nothing.
    counts : ndarray of int, shape (B, 12)
    """
    values = ragged.values if values is None else values
    cell, n_cells = ragged.owner * N_MONTHS + month_of(ragged.doy), len(ragged) * N_MONTHS
    counts = np.bincount(cell, minlength=n_cells)
    sums = [np.bincount(cell, weights=values[:, k], minlength=n_cells) for k in range(values.shape[1])]
    means = np.stack(sums, axis=1) / np.maximum(counts, 1)[:, None]
    return means.reshape(len(ragged), N_MONTHS, -1).astype(np.float32), counts.reshape(-1, N_MONTHS)


def dense(ragged: Ragged) -> tuple[npt.NDArray[Any], npt.NDArray[np.intp], npt.NDArray[np.bool_]]:
    """Return values (B, T, C), days (B, T) and validity (B, T), padded behind with zeros, day 1 and False."""
    held = np.arange(ragged.counts.max(initial=0)) < ragged.counts[:, None]
    values = np.zeros((*held.shape, ragged.values.shape[1]), dtype=ragged.values.dtype)
    doy = np.ones(held.shape, dtype=np.intp)
    values[held], doy[held] = ragged.values, ragged.doy
    return values, doy, held
