"""From the rows of a sensor's time series to the tokens that enter its backbone: gathered, standardised, ragged."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tessera_xr.encoder.registry import ModelRecord
from tessera_xr.encoder.sampling import ZERO_TOKEN, Pattern, Policy, draw_v1_0, pattern, pixel_keys

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.intp]
STD_EPSILON = np.float32(1e-9)


@dataclass(frozen=True)
class Series:
    """One sensor's observations of P pixels at T steps, as integers, ready to draw from."""

    values: npt.NDArray[np.integer]
    """(P, T, C) raw values."""
    doy: npt.NDArray[np.integer]
    """(T,) or (P, T) day of year."""
    valid: npt.NDArray[np.bool_]
    """(P, T) which steps are usable."""
    mean: Floats
    """(T, C) what is subtracted from each step."""
    std: Floats
    """(T, C) what it is divided by."""

    def __len__(self) -> int:
        return len(self.values)

    def take(self, pixels: slice | Integers) -> Series:
        """Return the series of some pixels only."""
        doy = self.doy if self.doy.ndim == 1 else self.doy[pixels]
        return Series(self.values[pixels], doy, self.valid[pixels], self.mean, self.std)


@dataclass(frozen=True)
class Tokens:
    """The distinct observations of some pixels, one after the other: pixel i owns offsets[i] to offsets[i + 1]."""

    x: Floats
    """(M, C) standardised values."""
    doy: Integers
    """(M,) day of year."""
    log_counts: Floats
    """(M,) logarithm of how often each observation stands in its pixel's sequence."""
    offsets: Integers
    """(P + 1,) where each pixel begins."""
    sequence: Integers
    """(S,) the sequences in full, as indices into their own pixel's observations."""
    sequence_offsets: Integers
    """(P + 1,) where each pixel's sequence begins."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Integers:
        """(P,) number of distinct observations of each pixel."""
        return np.diff(self.offsets)

    def take(self, pixels: slice) -> Tokens:
        """Return the tokens of consecutive pixels: views, no copies."""
        first, last, _ = pixels.indices(len(self))
        m, s = slice(*self.offsets[[first, last]]), slice(*self.sequence_offsets[[first, last]])
        return Tokens(
            self.x[m],
            self.doy[m],
            self.log_counts[m],
            self.offsets[first : last + 1] - self.offsets[first],
            self.sequence[s],
            self.sequence_offsets[first : last + 1] - self.sequence_offsets[first],
        )

    def batches(self, budget: int) -> Iterator[slice]:
        """Cut the pixels into consecutive batches of at most `budget` tokens, though never less than one pixel.

        Batches are of near-equal size, so that no small rest is left over.
        """
        n_batches = max(-(-int(self.offsets[-1]) // max(budget, 1)), 1)
        target = self.offsets[-1] / n_batches
        first = 0
        while first < len(self):
            limit = self.offsets[first] + min(np.ceil(target), budget)
            last = int(np.searchsorted(self.offsets, limit, side="right")) - 1
            last = min(max(last, first + 1), len(self))
            yield slice(first, last)
            first = last


def step_statistics(
    record: ModelRecord, n_s2: int, s1_descending: npt.NDArray[np.bool_]
) -> tuple[tuple[Floats, Floats], tuple[Floats, Floats]]:
    """Return what every step is standardised with: (mean, std) of Sentinel-2, (n_s2, 10), and of Sentinel-1, (t, 2).

    `s1_descending` (t,) says which steps of Sentinel-1 are of a descending orbit.
    """
    known = record.statistics
    s2 = [np.tile(np.array(row, dtype=np.float32), (n_s2, 1)) for row in (known.s2_mean, known.s2_std)]
    by_orbit = np.array([known.s1_ascending, known.s1_descending], dtype=np.float32)  # (orbit, mean or std, band)
    s1 = by_orbit[s1_descending.astype(np.intp)]
    return (s2[0], s2[1]), (s1[:, 0], s1[:, 1])


def gather(series: Series, policy: Policy, seed: int) -> tuple[Tokens, Integers]:
    """Draw and standardise the tokens of every pixel.

    Parameters
    ----------
    series : Series
        Observations of P pixels.
    policy : {"v1.0", "v1.1", "v2"}
        The sampling policy of the checkpoint.
    seed : int
        For "v1.0", which draws at random.

    Returns
    -------
    tokens : Tokens
        Pixels sorted by their number of tokens, so that equal lengths are neighbours.
    pixels : ndarray of int, shape (P,)
        Which pixel of `series` each of them is.
    """
    if policy == "v1.0":
        return _gather_drawn(series, seed)
    n_valid = series.valid.sum(axis=1)
    kinds, kind_of = np.unique(n_valid, return_inverse=True)
    patterns = [pattern(policy, int(n)) for n in kinds]
    pixels = np.argsort(n_valid, kind="stable")
    kind_of = kind_of[pixels]
    lengths = np.array([len(p.steps) for p in patterns])[kind_of]
    offsets = _offsets(lengths)
    owner, position = np.repeat(np.arange(len(pixels)), lengths), _positions(offsets)
    kind = kind_of[owner]
    rank = _stack([p.steps for p in patterns])[kind, position]
    # valid steps first, in order of time: the rank-th valid step of a pixel is order[pixel, rank]
    order = np.argsort(~series.valid, axis=1, kind="stable")[pixels] if series.valid.shape[1] else None
    step = np.where(rank == ZERO_TOKEN, ZERO_TOKEN, 0 if order is None else order[owner, np.maximum(rank, 0)])
    x, doy = _observations(series, pixels[owner], step)
    log_counts = _stack([np.log(p.counts).astype(np.float32) for p in patterns])[kind, position]
    sequence, sequence_offsets = _sequences(patterns, kind_of)
    return Tokens(x, doy, log_counts, offsets, sequence, sequence_offsets), pixels


def _gather_drawn(series: Series, seed: int) -> tuple[Tokens, Integers]:
    n_pixels, n_steps = series.valid.shape
    if n_steps:
        keys = pixel_keys(series.values, series.doy, series.valid)
        step = draw_v1_0(series.valid, keys, seed)
    else:
        step = np.full((n_pixels, 40), ZERO_TOKEN)
    length = step.shape[1]
    pixels = np.arange(n_pixels)
    x, doy = _observations(series, np.repeat(pixels, length), step.ravel())
    offsets = np.arange(n_pixels + 1) * length
    counts = np.zeros(len(x), dtype=np.float32)
    return Tokens(x, doy, counts, offsets, np.tile(np.arange(length), n_pixels), offsets), pixels


def _observations(series: Series, pixel: Integers, step: Integers) -> tuple[Floats, Integers]:
    """Return standardised values (M, C) and days (M,) of the given (pixel, step) pairs; step -1 gives zeros."""
    n_bands = series.values.shape[2]
    if not series.values.shape[1]:
        return np.zeros((len(step), n_bands), dtype=np.float32), np.zeros(len(step), dtype=np.intp)
    x = (series.values[pixel, step].astype(np.float32) - series.mean[step]) / (series.std[step] + STD_EPSILON)
    doy = series.doy[step] if series.doy.ndim == 1 else series.doy[pixel, step]
    missing = step == ZERO_TOKEN
    x[missing] = 0
    return x, np.where(missing, 0, doy).astype(np.intp)


def _sequences(patterns: list[Pattern], kind_of: Integers) -> tuple[Integers, Integers]:
    lengths = np.array([len(p.sequence) for p in patterns])[kind_of]
    offsets = _offsets(lengths)
    return _stack([p.sequence for p in patterns])[np.repeat(kind_of, lengths), _positions(offsets)], offsets


def _offsets(lengths: Integers) -> Integers:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.intp)


def _positions(offsets: Integers) -> Integers:
    """Return 0, 1, 2, ... within each run."""
    return np.arange(offsets[-1]) - np.repeat(offsets[:-1], np.diff(offsets))


def _stack(rows: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """Stack rows of unequal length, zeros behind."""
    table = np.zeros((len(rows), max(map(len, rows), default=0)), dtype=rows[0].dtype if rows else np.intp)
    for line, row in zip(table, rows, strict=True):
        line[: len(row)] = row
    return table
