"""Tokens of any number of pixels through a backbone, in batches that fit."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache, lru_cache
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from tessera_xr._warn import warn
from tessera_xr.encoder.architecture import Architecture
from tessera_xr.encoder.cpu import FastBackbone, can_run
from tessera_xr.encoder.network import Backbone
from tessera_xr.encoder.products import Room, rounds
from tessera_xr.encoder.tokens import Tokens
from tessera_xr.errors import DeviceError

Batch = TypeVar("Batch")
Result = TypeVar("Result")

logger = logging.getLogger(__name__)

CPU_BYTES = 16 << 20
"""What the widest array of one batch may take on a CPU: more leaves the cache, less leaves the cores to Python."""
GPU_SHARE = 0.25
"""Share of the free memory of a GPU that one batch may take."""


def token_budget(arch: Architecture, device: torch.device) -> int:
    """Return how many tokens to run at once, so that memory is bounded and the device is busy."""
    if device.type == "cpu":
        # a recurrent unit multiplies one step of all pixels of the batch at once: it needs many of them
        least = 4096 if arch.pooling == "attention" else 8192
        return int(np.clip(CPU_BYTES // (4 * arch.feedforward), least, 8192))
    bytes_per_token = 4 * (arch.feedforward + 12 * arch.width)
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 4 << 30
    return int(np.clip(GPU_SHARE * free / bytes_per_token, 4096, 1 << 20))


def run_backbone(
    backbone: Backbone, tokens: Tokens, budget: int, done: Callable[[int], object], precision: torch.dtype
) -> Tensor:
    """Run a backbone on the device where it is, by the fastest way that gives its result; see the two below."""
    if is_fast(backbone, precision):
        return run_fast(_prepare(backbone, precision), tokens, budget, done)
    return run_padded(backbone, tokens, budget, done, precision)


def is_fast(backbone: Backbone, precision: torch.dtype) -> bool:
    """Say whether `run_backbone` takes the CPU's fast path, which is best called from several threads."""
    known = precision == torch.float32 or (precision == torch.bfloat16 and rounds())
    return known and backbone.doy_table.device.type == "cpu" and can_run(backbone)


@lru_cache(maxsize=8)
def _prepare(backbone: Backbone, precision: torch.dtype) -> FastBackbone:
    return FastBackbone(backbone, precision)


_THREAD = threading.local()


def run_fast(backbone: FastBackbone, tokens: Tokens, budget: int, done: Callable[[int], object]) -> Tensor:
    """Run the CPU's fast path in the calling thread.

    Parameters
    ----------
    backbone : FastBackbone
    tokens : Tokens
        Pixels sorted by length.
    budget : int
        Tokens in a batch.
    done : callable
        Called with the number of tokens finished, after each batch.

    Returns
    -------
    Tensor, shape (P, d)
    """
    if not hasattr(_THREAD, "room"):
        _THREAD.room = Room()
    out = np.empty((len(tokens), backbone.width), dtype=np.float32)
    with torch.inference_mode():
        for pixels in tokens.batches(budget):
            batch = tokens.take(pixels)
            out[pixels] = backbone(batch, _THREAD.room)
            done(len(batch.x))
    return torch.from_numpy(out)


def run_padded(
    backbone: Backbone, tokens: Tokens, budget: int, done: Callable[[int], object], precision: torch.dtype
) -> Tensor:
    """Run any backbone on its device, each batch padded to its longest series; smaller batches if memory runs out.

    Padding is masked, so that it changes nothing.

    Parameters
    ----------
    backbone : Backbone
    tokens : Tokens
        Pixels sorted by length.
    budget : int
        Tokens in a batch.
    done : callable
        Called with the number of tokens finished, after each batch.
    precision : torch.dtype
        Of the matrix products.

    Returns
    -------
    Tensor, shape (P, d), on the backbone's device
    """
    device = backbone.doy_table.device
    pooled = [torch.empty(0, backbone.doy_table.shape[1], device=device)]
    first = 0
    while first < len(tokens):
        rest = tokens.take(slice(first, None))
        batch = rest.take(next(rest.batches(budget)))
        try:
            mixed = torch.autocast(device.type, precision, enabled=precision != torch.float32)
            with torch.inference_mode(), mixed, _true_to(precision, device):
                pooled.append(backbone(*_padded(batch, device)).float())
        except torch.OutOfMemoryError as error:
            if len(batch) == 1:
                raise too_little(device) from error
            budget = max(len(batch.x) // 2, 1)
            shrink(device, budget)
            continue
        first += len(batch)
        done(len(batch.x))
    return torch.cat(pooled)


def _true_to(precision: torch.dtype, device: torch.device) -> AbstractContextManager[object]:
    """Keep cuDNN away from torch's GRU in float32: by default it would compute in TF32, which is not float32."""
    exact = device.type == "cuda" and precision == torch.float32
    return torch.backends.cudnn.flags(enabled=False) if exact else nullcontext()


def _padded(tokens: Tokens, device: torch.device) -> tuple[Tensor, ...]:
    """Return (x, doy, log_counts, sequence, padding) as `Backbone.forward` takes them."""
    lengths, steps = tokens.lengths, np.diff(tokens.sequence_offsets)
    held, read = (np.arange(n.max(initial=0)) < n[:, None] for n in (lengths, steps))
    x = np.zeros((*held.shape, tokens.x.shape[1]), dtype=np.float32)
    doy, sequence = np.zeros(held.shape, dtype=np.int64), np.zeros(read.shape, dtype=np.int64)
    log_counts = np.full(held.shape, -np.inf, dtype=np.float32)
    x[held], doy[held], log_counts[held], sequence[read] = tokens.x, tokens.doy, tokens.log_counts, tokens.sequence
    padding = np.where(read, np.float32(0), np.float32(-np.inf))
    return tuple(torch.from_numpy(a).to(device) for a in (x, doy, log_counts, sequence, padding))


def too_little(device: torch.device) -> DeviceError:
    """Return the error of a device that can't hold even one pixel."""
    return DeviceError(f"{device} has not enough memory for one pixel of this model")


def shrink(device: torch.device, size: int) -> None:
    """Warn that batches get smaller, and give back what memory is held in reserve."""
    message = f"{device} ran out of memory; going on with batches of {size} tokens"
    logger.warning(message)
    warn(f"{message} (pass token_budget={size} to start there)")
    if device.type == "cuda":
        torch.cuda.empty_cache()


def in_threads(work: Callable[[Batch], Result], batches: Iterable[Batch]) -> Iterator[Result]:
    """Yield the results of `work` in order, each computed on one core: every core then works in its own cache.

    Only a few batches are ahead at any time; an interrupt drops those that have not begun.
    """
    workers, n_workers = _workers()
    pending: list[Future[Result]] = []
    try:
        for batch in batches:
            pending.append(workers.submit(work, batch))
            if len(pending) >= 4 * n_workers:
                yield pending.pop(0).result()
        while pending:
            yield pending.pop(0).result()
    finally:
        for future in pending:
            future.cancel()


def count_workers() -> int:
    """Return how many batches `in_threads` computes side by side."""
    return _workers()[1]


@cache
def _workers() -> tuple[ThreadPoolExecutor, int]:
    """Return this process's worker threads, one a core that torch may use, each computing on one core."""
    with _thread_setting():
        n = torch.get_num_threads()
        pool = ThreadPoolExecutor(n, "tessera-xr", initializer=_use_one_core)
        barrier = threading.Barrier(n)
        list(pool.map(lambda _: barrier.wait(), range(n)))  # all threads start now, inside the setting
    return pool, n


def _use_one_core() -> None:
    torch.set_num_threads(1)
    torch.get_num_threads()  # settles it for this thread: else its first operation would take the process's setting


@contextmanager
def _thread_setting() -> Iterator[None]:
    """Keep torch's number of threads as it was: a worker's setting would become that of threads started later."""
    n = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(n)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_workers.cache_clear)  # threads don't survive a fork
