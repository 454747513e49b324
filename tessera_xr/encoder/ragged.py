"""From raw integers to the tokens of a backbone, on the device that computes: in one ragged row, without padding.

What `tokens.gather` does with NumPy, as tensor operations that never wait for the device: everything whose size the
host must know follows from how many pixels have how many valid observations.

Sizes: P pixels, T steps, C bands, M tokens.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tessera_xr.encoder.sampling import ZERO_TOKEN, Policy, pattern
from tessera_xr.encoder.tokens import STD_EPSILON, Floats, Integers

UINT16 = 0xFFFF


@dataclass(frozen=True)
class Tables:
    """What a backbone reads of a pixel, a row for each number of valid steps, 0 to T."""

    lengths: Integers
    """(T + 1,) number of distinct observations, on the host."""
    sequence_lengths: Integers
    """(T + 1,) length of the sequence, on the host."""
    sizes: Tensor
    """(T + 1,) `lengths` on the device."""
    sequence_sizes: Tensor
    """(T + 1,) `sequence_lengths` on the device."""
    steps: Tensor
    """(T + 1, longest) which of the valid steps; -1 is a zero token."""
    log_counts: Tensor
    """(T + 1, longest) logarithm of how often each stands in the sequence."""
    sequence: Tensor
    """(T + 1, longest sequence) the sequence, as indices into the distinct observations."""


def make_tables(policy: Policy, n_steps: int, device: torch.device) -> Tables:
    """Return the tables of a policy without chance ("v1.1", "v2") for up to `n_steps` valid steps."""
    patterns = [pattern(policy, n) for n in range(n_steps + 1)]
    lengths = np.array([len(p.steps) for p in patterns])
    sequence_lengths = np.array([len(p.sequence) for p in patterns])
    steps, sequence = (np.zeros((n_steps + 1, n.max()), dtype=np.int64) for n in (lengths, sequence_lengths))
    log_counts = np.zeros(steps.shape, dtype=np.float32)
    for n, p in enumerate(patterns):
        steps[n, : len(p.steps)] = p.steps
        log_counts[n, : len(p.steps)] = np.log(p.counts)
        sequence[n, : len(p.sequence)] = p.sequence
    arrays = (lengths, sequence_lengths, steps, log_counts, sequence)
    return Tables(lengths, sequence_lengths, *(torch.from_numpy(a).to(device) for a in arrays))


@dataclass(frozen=True)
class RawSeries:
    """One sensor's observations of P pixels on the device, as they came."""

    values: Tensor
    """(P, T, C) raw integers; those that were uint16 stand as int16, see `unsigned`."""
    unsigned: bool
    """Whether `values` are the bits of uint16."""
    doy: Tensor
    """(T,) or (P, T) day of year."""
    mean: Tensor
    """(T, C) float32, what is subtracted from each step."""
    std: Tensor
    """(T, C) float32, what it is divided by."""
    order: Tensor
    """(P, T) the steps of each pixel, valid ones first, in the order in which they are read."""
    n_valid: Tensor
    """(P,) number of valid steps."""


def rank_steps(valid: Tensor, by: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the steps of each pixel, valid ones first and else in order of time, and how many are valid.

    Parameters
    ----------
    valid : Tensor of bool, shape (P, T)
    by : Tensor of int, shape (T,), optional
        Another order of the steps than that of time.

    Returns
    -------
    order : Tensor of int, shape (P, T)
    n_valid : Tensor of int, shape (P,)
    """
    ranked = valid if by is None else valid[:, by]
    n_valid = ranked.sum(dim=1)
    if not valid.shape[1]:
        return torch.zeros(valid.shape, dtype=torch.int64, device=valid.device), n_valid
    place = torch.where(ranked, ranked.cumsum(dim=1), n_valid[:, None] + (~ranked).cumsum(dim=1)) - 1
    steps = torch.arange(valid.shape[1], device=valid.device) if by is None else by
    return torch.empty_like(place).scatter_(1, place, steps.expand_as(place)), n_valid


@dataclass(frozen=True)
class Run:
    """Neighbouring pixels with the same number of tokens."""

    n_pixels: int
    length: int
    """Tokens of each pixel."""
    first: int
    """The first pixel."""
    token: int
    """Its first token."""


@dataclass(frozen=True)
class Ragged:
    """The distinct observations of B pixels, sorted by their number, one after the other on the device."""

    x: Tensor
    """(M, C) standardised values, float32."""
    doy: Tensor
    """(M,) day of year."""
    log_counts: Tensor
    """(M,) float32, logarithm of how often each observation stands in its pixel's sequence."""
    offsets: Tensor
    """(B + 1,) where each pixel begins."""
    runs: list[Run]
    """Where the number of tokens stays the same."""
    sequence: Tensor
    """(B, L) the sequences, as rows of `x`; behind their end the pixel's first token."""
    sequence_sizes: Tensor
    """(B,) length of each sequence."""
    read: Integers
    """(B,) the same on the host, ascending."""

    def __len__(self) -> int:
        return len(self.read)


@dataclass(frozen=True)
class Reading:
    """The pixels of a slab in the order in which one sensor's backbone reads them: fewest observations first."""

    pixels: Tensor
    """(P,) pixel of the slab, on the device."""
    kinds: Integers
    """(P,) number of valid steps of each, ascending, on the host."""
    tables: Tables

    def batches(self, budget: int) -> Iterator[slice]:
        """Cut into batches of near-equal size, at most `budget` tokens though never less than one pixel."""
        return self._cut(slice(0, len(self.kinds)), budget)

    def rest(self, first: int, budget: int) -> Iterator[slice]:
        """Cut what comes from the pixel `first` on."""
        return self._cut(slice(first, len(self.kinds)), budget)

    def _cut(self, pixels: slice, budget: int) -> Iterator[slice]:
        ends = np.cumsum(self.tables.lengths[self.kinds[pixels]])
        if not len(ends):
            return
        target = np.ceil(ends[-1] / max(-(-int(ends[-1]) // budget), 1))
        first, done = 0, 0
        while first < len(ends):
            last = max(int(np.searchsorted(ends, done + min(target, budget), side="right")), first + 1)
            yield slice(pixels.start + first, pixels.start + last)
            first, done = last, int(ends[last - 1])


def read_in_order(n_valid: Tensor, empty: Tensor, counts: Integers, tables: Tables) -> Reading:
    """Sort pixels by their number of valid steps, `empty` ones left out.

    Parameters
    ----------
    n_valid : Tensor of int, shape (P,)
    empty : Tensor of bool, shape (P,)
    counts : ndarray of int, shape (T + 1,)
        How many pixels that are not empty have 0, 1, ... T valid steps, on the host.
    """
    order = torch.where(empty, len(counts), n_valid).argsort(stable=True)
    kinds = np.repeat(np.arange(len(counts)), counts)
    return Reading(order[: len(kinds)], kinds, tables)


def count_kinds(n_valid: Tensor, empty: Tensor, n_steps: int) -> Tensor:
    """Return how many pixels that are not empty have 0, 1, ... `n_steps` valid steps: (n_steps + 1,)."""
    counts = torch.zeros(n_steps + 1, dtype=torch.int64, device=n_valid.device)
    return counts.scatter_add_(0, n_valid, (~empty).to(torch.int64))


def draw(series: RawSeries, reading: Reading, part: slice) -> Ragged:
    """Gather and standardise the tokens of some pixels of a `Reading`, as `tokens.gather` does on the host."""
    tables, kinds = reading.tables, reading.kinds[part]
    lengths = tables.lengths[kinds]
    n_tokens, device = int(lengths.sum()), series.n_valid.device
    pixels = reading.pixels[part]
    kind = series.n_valid[pixels]
    offsets = torch.zeros(len(kinds) + 1, dtype=torch.int64, device=device)
    torch.cumsum(tables.sizes[kind], 0, out=offsets[1:])
    owner = torch.arange(len(kinds), device=device).repeat_interleave(tables.sizes[kind], output_size=n_tokens)
    position = torch.arange(n_tokens, device=device) - offsets[owner]
    rank = tables.steps[kind[owner], position]
    x, doy = _observations(series, pixels[owner], rank)
    read = tables.sequence_lengths[kinds]
    longest = int(read.max(initial=0))
    sequence = tables.sequence[kind, :longest] + offsets[:-1, None]
    log_counts = tables.log_counts[kind[owner], position]
    return Ragged(x, doy, log_counts, offsets, _runs(lengths), sequence, tables.sequence_sizes[kind], read)


def _observations(series: RawSeries, pixel: Tensor, rank: Tensor) -> tuple[Tensor, Tensor]:
    """Return standardised values (M, C) and days (M,) of the given valid steps; rank -1 gives zeros."""
    n_steps, n_bands = series.values.shape[1:]
    if not n_steps:
        return torch.zeros(len(rank), n_bands, device=rank.device), torch.zeros_like(rank)
    step = series.order[pixel, rank.clamp(min=0)]
    raw = series.values[pixel, step]
    raw = raw.to(torch.int32) & UINT16 if series.unsigned else raw
    x = (raw.float() - series.mean[step]) / (series.std[step] + float(STD_EPSILON))
    doy = series.doy[step] if series.doy.ndim == 1 else series.doy[pixel, step]
    missing = rank == ZERO_TOKEN
    return x.masked_fill_(missing[:, None], 0), doy.masked_fill(missing, 0)


def _runs(lengths: Integers) -> list[Run]:
    """Cut pixels where their number of tokens changes."""
    cuts = np.flatnonzero(np.diff(lengths, prepend=-1, append=-1))
    ends = np.concatenate([[0], np.cumsum(lengths)])
    return [
        Run(int(end - begin), int(lengths[begin]), int(begin), int(ends[begin]))
        for begin, end in itertools.pairwise(cuts)
    ]


def as_tensor(values: npt.NDArray[np.generic] | Floats) -> Tensor:
    """Return a tensor of the same memory; uint16 as the int16 of its bits, which every device can index."""
    return torch.from_numpy(values.view(np.int16) if values.dtype == np.uint16 else values)
