"""Which of a pixel's observations enter the network, how often and in which order: integers only.

Three policies, one for each generation of checkpoints (the network only knows sequences drawn like its training's):
"v1.1" and "v2" are functions of the number of valid steps alone, "v1.0" draws at random.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

Policy: TypeAlias = Literal["v1.0", "v1.1", "v2"]
Integers: TypeAlias = npt.NDArray[np.intp]

BIN = 8
MAX_STEPS = 256
N_DRAWN = 40
ZERO_TOKEN = -1


def next_bin(n: int) -> int:
    """Return the smallest of 8, 16, ..., 256 that holds `n` steps (256 for more).

    Examples
    --------
    >>> [next_bin(n) for n in (1, 8, 9, 300)]
    [8, 8, 16, 256]
    """
    return min(max(-(-n // BIN), 1) * BIN, MAX_STEPS)


def sequence_v1_1(n: int) -> Integers:
    """Return the positions, among `n` valid steps, that TESSERA v1.1 reads; -1 is a zero token of DOY 0.

    Examples
    --------
    >>> sequence_v1_1(5).tolist()
    [0, 1, 2, 3, 4, 1, 2, 3]
    """
    if n == 0:
        return np.full(BIN, ZERO_TOKEN)
    size = next_bin(n)
    if n > size:
        return _middles(n, size)
    extras = np.rint(np.linspace(0, n - 1, size - n + 2)[1:-1]).astype(np.intp)
    return np.concatenate([np.arange(n), extras])


def sequence_v2(n: int) -> Integers:
    """Return the positions, among `n` valid steps, that the TESSERA v2 students and teacher read; -1 is a zero token.

    Examples
    --------
    >>> sequence_v2(5).tolist()
    [0, 1, 2, 3, 4, 1, 3, 4]
    """
    if n == 0:
        return np.array([ZERO_TOKEN])
    size = next_bin(n)
    if n >= size:
        return np.linspace(0, n - 1, size).astype(np.intp)
    n_extra = size - n
    extras = _middles(n, n_extra) if n_extra <= n else np.arange(n_extra) % n
    return np.concatenate([np.arange(n), extras])


def _middles(n: int, n_runs: int) -> Integers:
    """Split 0..n-1 into `n_runs` near-equal runs, the longer ones first, and take the middle of each."""
    length, n_longer = divmod(n, n_runs)
    lengths = np.full(n_runs, length)
    lengths[:n_longer] += 1
    middles: Integers = np.cumsum(lengths) - lengths + lengths // 2
    return middles


@dataclass(frozen=True)
class Pattern:
    """What the network reads of a pixel with a given number of valid steps, repeats taken out."""

    steps: Integers
    """(m,) the distinct positions among the valid steps, ascending; -1 is a zero token."""
    counts: Integers
    """(m,) how often each stands in the sequence."""
    sequence: Integers
    """(L,) the sequence itself, as indices into `steps`."""


_SEQUENCES: dict[str, Callable[[int], Integers]] = {"v1.1": sequence_v1_1, "v2": sequence_v2}


@lru_cache(maxsize=4096)
def pattern(policy: Policy, n: int) -> Pattern:
    """Return the `Pattern` of a pixel with `n` valid steps under a policy without chance ("v1.1", "v2")."""
    steps, sequence, counts = np.unique(_SEQUENCES[policy](n), return_inverse=True, return_counts=True)
    return Pattern(steps, counts, sequence)


def draw_v1_0(valid: npt.NDArray[np.bool_], pixel_keys: npt.NDArray[np.uint64], seed: int) -> Integers:
    """Draw, for each pixel, the 40 steps that TESSERA v1.0 reads, in order of time.

    Valid steps, without replacement where there are 40 of them, else with; a pixel without any draws from all steps.

    Parameters
    ----------
    valid : ndarray of bool, shape (n, t)
        Which steps of each pixel are valid; t at least 1.
    pixel_keys : ndarray of uint64, shape (n,)
        What the draw of each pixel hangs on (see `pixel_keys`), beside the seed: never its place in the batch.
    seed : int
        Another seed draws other steps.

    Returns
    -------
    ndarray of int, shape (n, 40)
        Indices along t.
    """
    n_pixels, n_steps = valid.shape
    usable = np.where(valid.any(axis=1, keepdims=True), valid, True)
    n_usable = usable.sum(axis=1)
    order = np.argsort(~usable, axis=1, kind="stable")  # usable steps first, in order of time
    ranks = np.empty((n_pixels, N_DRAWN), dtype=np.intp)
    seeded = _mix(pixel_keys ^ _mix(np.array([seed], dtype=np.int64).astype(np.uint64)))
    few = n_usable < N_DRAWN
    ranks[few] = (_numbers(seeded[few], N_DRAWN) % n_usable[few, None].astype(np.uint64)).astype(np.intp)
    tickets = _numbers(seeded[~few], n_steps)
    tickets[np.arange(n_steps) >= n_usable[~few, None]] = np.iinfo(np.uint64).max
    if len(tickets):
        ranks[~few] = np.argpartition(tickets, N_DRAWN - 1, axis=1)[:, :N_DRAWN]
    return np.take_along_axis(order, np.sort(ranks, axis=1), axis=1)


def pixel_keys(
    values: npt.NDArray[np.integer], doy: npt.NDArray[np.integer], valid: npt.NDArray[np.bool_]
) -> npt.NDArray[np.uint64]:
    """Return a number for each pixel made of its valid observations alone, so that no chunking can change it.

    Parameters
    ----------
    values : ndarray of int, shape (n, t, c)
    doy : ndarray of int, shape (n, t) or (t,)
    valid : ndarray of bool, shape (n, t)

    Returns
    -------
    ndarray of uint64, shape (n,)
    """
    words = np.broadcast_to(doy, valid.shape).astype(np.uint64)
    for channel in range(values.shape[2]):
        words = _mix(words) ^ values[:, :, channel].astype(np.uint64)
    return _mix(np.where(valid, _mix(words), np.uint64(0)).sum(axis=1, dtype=np.uint64))


def _numbers(keys: npt.NDArray[np.uint64], n: int) -> npt.NDArray[np.uint64]:
    """Return `n` random 64-bit numbers for each key: a counter through `_mix`, hence the same on every machine."""
    counter = np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return _mix(keys[:, None] + counter)


def _mix(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Scramble 64-bit words (the finaliser of SplitMix64: Steele, Lea and Flood 2014)."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
