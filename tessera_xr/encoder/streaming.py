"""Slabs of raw pixels through an encoder on a GPU: copied once, drawn there, the next one prepared while one computes.

The host stages a slab in pinned memory, as it lies in its own; a stream of its own copies it, ranks its steps and sorts
its pixels. Meanwhile the slab before it computes. All that the host waits for are the counts of pixels by their number
of observations, a few hundred numbers, and the results of the slab before the last.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tessera_xr.encoder import forward
from tessera_xr.encoder.checkpoints import Encoder
from tessera_xr.encoder.gpu import RaggedBackbone, can_run
from tessera_xr.encoder.network import Backbone
from tessera_xr.encoder.ragged import (
    Ragged,
    RawSeries,
    Reading,
    Tables,
    as_tensor,
    count_kinds,
    draw,
    make_tables,
    rank_steps,
    read_in_order,
)
from tessera_xr.encoder.tokens import Floats, Integers

MOST_TOKENS = 1 << 21
"""Of a batch: a recurrent unit, which takes a step of all its pixels at once, keeps a GPU busy with so many."""
LEAST_STEPS, MOST_STEPS = 1 << 19, 1 << 23
"""Observations (pixels x steps of both sensors) of a slab: four batches' worth between these two."""

Finish = Callable[[Tensor, Tensor], tuple[Tensor, ...]]
Receive = Callable[[slice, list[npt.NDArray[Any]]], None]


@dataclass(frozen=True)
class Source:
    """One sensor's observations of all pixels on the host, in any layout."""

    values: npt.NDArray[Any]
    """(N, T, C) integers."""
    doy: npt.NDArray[Any]
    """(T,) or (N, T)."""
    valid: npt.NDArray[np.bool_] | None
    """(N, T); None if a step is valid where any of its bands isn't 0."""
    mean: Floats
    """(T, C)."""
    std: Floats
    """(T, C)."""
    order: Integers | None = None
    """(T,) in which order steps are read, if not that of time."""


@dataclass(frozen=True)
class Constants:
    """What one sensor's slabs share on the device."""

    tables: Tables
    mean: Tensor
    std: Tensor
    doy: Tensor | None
    order: Tensor | None


@dataclass
class Slab:
    """Some pixels on the device, and what the host must learn of them."""

    pixels: slice
    series: list[RawSeries]
    empty: Tensor
    """(P,) pixels without any observation."""
    counts: Tensor
    """Pixels by number of valid steps, both sensors' one after the other, on the host once `ready` is."""
    ready: torch.cuda.Event | None


@dataclass
class Results:
    """What is on its way to the host; holds the slab, whose memory is in use until it has come."""

    slab: Slab
    tensors: list[Tensor]
    done: torch.cuda.Event | None

    def wait(self) -> tuple[slice, list[npt.NDArray[Any]]]:
        """Return the slab's pixels and the results once they are there."""
        if self.done is not None:
            self.done.synchronize()
        return self.slab.pixels, [tensor.numpy() for tensor in self.tensors]


def can_stream(encoder: Encoder) -> bool:
    """Say whether `stream` runs this encoder faster than batches made on the host: on CUDA, but for v1.0's draws."""
    return encoder.device.type == "cuda" and encoder.record.policy != "v1.0"


def token_budget(encoder: Encoder) -> int:
    """Return how many tokens to run at once, so that memory is bounded and the device is busy."""
    arch, device = encoder.record.arch, encoder.device
    if device.type != "cuda" or not can_run(encoder.network.s2_backbone):
        return forward.token_budget(arch, device)
    # at most at once: tokens, queries, keys, values and what they give; or tokens and the hidden layer; and indices
    bytes_per_token = encoder.precision.itemsize * (6 * arch.width + arch.feedforward) + 256
    free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(np.clip(forward.GPU_SHARE * free / bytes_per_token, 4096, MOST_TOKENS))


def stream(encoder: Encoder, sources: list[Source], budget: int, finish: Finish, receive: Receive) -> None:
    """Encode all pixels, slab by slab.

    Parameters
    ----------
    encoder : Encoder
        With a sampling policy without chance.
    sources : list of Source
        Sentinel-2, then Sentinel-1.
    budget : int
        Tokens in a batch.
    finish : callable
        From vectors (P, n_out) and which pixels are empty, (P,), to tensors (P, ...) that are wanted on the host.
    receive : callable
        Called with a slice of the pixels and what `finish` returned for them, as arrays that it must copy.
    """
    n_pixels, device = len(sources[0].values), encoder.device
    n_steps = max(sum(source.values.shape[1] for source in sources), 1)
    size = max(int(np.clip(4 * budget, LEAST_STEPS, MOST_STEPS)) // n_steps, 1)
    slabs = [slice(first, min(first + size, n_pixels)) for first in range(0, n_pixels, size)]
    with torch.inference_mode(), _on(device):
        constants = [_constants(source, encoder) for source in sources]
        prepare = Preparation(sources, constants, device)
        runner = Runner(encoder, budget)
        upcoming = [prepare(pixels) for pixels in slabs[:1]]
        computing: list[Results] = []
        for following in (*slabs[1:], None):
            for slab in upcoming:
                tensors = _download(finish(runner(slab, constants), slab.empty))
                computing.append(Results(slab, tensors, _record(device)))
            upcoming = [] if following is None else [prepare(following)]
            while len(computing) > len(upcoming):  # while there is a next slab, this one may go on computing
                receive(*computing.pop(0).wait())


class Runner:
    """Both backbones and the reducer over slabs, in batches that fit: smaller ones once memory has run out."""

    def __init__(self, encoder: Encoder, budget: int) -> None:
        self.encoder, self.budget = encoder, budget

    def __call__(self, slab: Slab, constants: list[Constants]) -> Tensor:
        """Return the vectors of all pixels of a slab, (P, n_out); those of empty ones mean nothing."""
        network = self.encoder.network
        if slab.ready is not None:
            slab.ready.synchronize()
            torch.cuda.current_stream(self.encoder.device).wait_event(slab.ready)
        sizes = [len(c.tables.lengths) for c in constants]
        pooled = []
        backbones = (network.s2_backbone, network.s1_backbone)
        each = zip(backbones, slab.series, constants, np.split(slab.counts.numpy(), sizes[:1]), strict=True)
        for backbone, series, constant, counts in each:
            assert isinstance(backbone, Backbone)
            reading = read_in_order(series.n_valid, slab.empty, counts, constant.tables)
            pooled.append(self.pool(backbone, series, reading))
        with self._mixed():
            return network.fuse(*pooled)

    def pool(self, backbone: Backbone, series: RawSeries, reading: Reading) -> Tensor:
        """Return one sensor's vectors in the order of the slab, (P, d); zeros for pixels that aren't read."""
        out = torch.zeros(len(series.n_valid), backbone.doy_table.shape[1], device=self.encoder.device)
        run = self._way(backbone)
        first = 0
        while first < len(reading.kinds):
            part = next(reading.rest(first, self.budget))
            try:
                out.index_copy_(0, reading.pixels[part], run(draw(series, reading, part)))
            except torch.OutOfMemoryError as error:
                self._take_less(part, reading, error)
                continue
            first = part.stop
        return out

    def _way(self, backbone: Backbone) -> Callable[[Ragged], Tensor]:
        if can_run(backbone):
            return _prepared(backbone, self.encoder.precision)
        return lambda tokens: self._padded(backbone, tokens)

    def _padded(self, backbone: Backbone, tokens: Ragged) -> Tensor:
        """Run any backbone, as `forward.run_padded` does."""
        with self._mixed():
            return cast("Tensor", backbone(*pad(tokens)).float())

    def _mixed(self) -> AbstractContextManager[Any]:
        precision, device = self.encoder.precision, self.encoder.device
        return torch.autocast(device.type, precision, enabled=precision != torch.float32)

    def _take_less(self, part: slice, reading: Reading, error: Exception) -> None:
        if part.stop - part.start == 1:
            raise forward.too_little(self.encoder.device) from error
        self.budget = max(int(reading.tables.lengths[reading.kinds[part]].sum()) // 2, 1)
        forward.shrink(self.encoder.device, self.budget)


@lru_cache(maxsize=8)
def _prepared(backbone: Backbone, precision: torch.dtype) -> RaggedBackbone:
    return RaggedBackbone(backbone, precision)


def pad(tokens: Ragged) -> tuple[Tensor, ...]:
    """Return (x, doy, log_counts, sequence, padding) as `Backbone.forward` takes them."""
    longest = tokens.runs[-1].length
    begin, sizes = tokens.offsets[:-1, None], tokens.offsets.diff()[:, None]
    place = torch.arange(longest, device=tokens.x.device)
    held = place < sizes  # (B, longest)
    rows = torch.where(held, begin + place, begin)
    x = tokens.x[rows] * held[..., None]
    log_counts = tokens.log_counts[rows].masked_fill(~held, -torch.inf)
    read = torch.arange(tokens.sequence.shape[1], device=tokens.x.device) < tokens.sequence_sizes[:, None]
    padding = torch.zeros(read.shape, device=tokens.x.device).masked_fill_(~read, -torch.inf)
    return x, tokens.doy[rows] * held, log_counts, tokens.sequence - begin, padding


def _constants(source: Source, encoder: Encoder) -> Constants:
    device = encoder.device
    mean, std = (torch.from_numpy(a).to(device) for a in (source.mean, source.std))
    doy = torch.from_numpy(source.doy.astype(np.int64)).to(device) if source.doy.ndim == 1 else None
    order = None if source.order is None else torch.from_numpy(source.order).to(device)
    return Constants(make_tables(encoder.record.policy, source.values.shape[1], device), mean, std, doy, order)


class Preparation:
    """Sends slabs and settles what their batches hang on, on a stream beside the one that computes."""

    def __init__(self, sources: list[Source], constants: list[Constants], device: torch.device) -> None:
        self.sources, self.constants, self.device = sources, constants, device
        self.side = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        if self.side is not None:
            self.side.wait_stream(torch.cuda.current_stream(device))  # that made the constants

    def __call__(self, pixels: slice) -> Slab:
        """Begin to prepare some pixels."""
        with torch.cuda.stream(self.side) if self.side is not None else nullcontext():
            pairs = zip(self.sources, self.constants, strict=True)
            series = [_send(source, constants, pixels, self.device) for source, constants in pairs]
            empty = (series[0].n_valid + series[1].n_valid) == 0
            kinds = [count_kinds(s.n_valid, empty, s.values.shape[1]) for s in series]
            [counts] = _download((torch.cat(kinds),))
            return Slab(pixels, series, empty, counts, _record(self.device))


def _send(source: Source, constants: Constants, pixels: slice, device: torch.device) -> RawSeries:
    values = upload(source.values[pixels], device)
    valid = (values != 0).any(dim=2) if source.valid is None else upload(source.valid[pixels], device)
    doy = upload(source.doy[pixels], device).to(torch.int64) if constants.doy is None else constants.doy
    order, n_valid = rank_steps(valid, constants.order)
    unsigned = source.values.dtype.kind == "u" and source.values.dtype.itemsize == 2
    return RawSeries(values, unsigned, doy, constants.mean, constants.std, order, n_valid)


def upload(array: npt.NDArray[Any], device: torch.device) -> Tensor:
    """Copy an array of any layout to the device, its axes in memory as they were: no turning on the host."""
    axes = sorted(range(array.ndim), key=lambda axis: -abs(array.strides[axis]))
    turned = array.transpose(axes)
    turned = turned.astype(turned.dtype.newbyteorder("="), copy=False)
    if turned.dtype.kind == "u" and turned.dtype.itemsize > 2:
        turned = turned.astype(np.int64)
    like = as_tensor(np.empty(0, turned.dtype)).dtype
    staged = torch.empty(turned.shape, dtype=like, pin_memory=device.type == "cuda")
    np.copyto(staged.numpy().view(turned.dtype), turned)
    return staged.to(device, non_blocking=True).permute([axes.index(axis) for axis in range(array.ndim)])


def _download(tensors: tuple[Tensor, ...]) -> list[Tensor]:
    """Begin to copy tensors to pinned memory; they are there when the stream has come so far."""
    if tensors[0].device.type != "cuda":
        return [t.cpu() for t in tensors]
    staged = [torch.empty(t.shape, dtype=t.dtype, pin_memory=True) for t in tensors]
    for to, t in zip(staged, tensors, strict=True):
        to.copy_(t, non_blocking=True)
    return staged


def _record(device: torch.device) -> torch.cuda.Event | None:
    if device.type != "cuda":
        return None
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(device))
    return event


def _on(device: torch.device) -> AbstractContextManager[Any]:
    """Make the device the current one, which new streams and Triton's kernels go by."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
