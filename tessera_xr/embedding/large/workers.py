"""Regions to embeddings on disk: here, or on the workers of a `dask.distributed` cluster, each once."""

from __future__ import annotations

import gc
import os
import pickle
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

import xarray as xr

from tessera_xr.embedding.embed import embed
from tessera_xr.embedding.large.regions import Region
from tessera_xr.embedding.large.shards import Sum, write_region
from tessera_xr.encoder.device import Precision, resolve_device, resolve_precision
from tessera_xr.errors import DeviceError, StoreError, VersionMismatchError

ATTEMPTS = 3
"""How often a region is handed out anew after a worker was lost."""
WORTH_FREEING = 8 << 20
"""Bytes of a region above which its memory is freed at once; looking for cycles takes half a second."""
ROOM = threading.BoundedSemaphore(2)
"""Regions that a process holds at a time: one is read while another is computed, whatever its number of threads."""
COMPUTE = threading.Lock()
"""One region is computed at a time in a process: there is one model, on one device, and it takes all of it."""

Job: TypeAlias = "tuple[Region, xr.Dataset, Task]"
"""A region, the part of the cube that it needs, not read yet, and what to do."""
Done: TypeAlias = Callable[[Region, list[Sum]], object]


@dataclass(frozen=True)
class Task:
    """All that a worker needs to know besides the region."""

    folder: Path
    """Of the group that holds the area."""
    period: Any
    """Which the embeddings stand for."""
    options: dict[str, Any]
    """Of `embed`: model, weights, dims, device, precision, seed, check_imagery."""
    sha256: str
    """Of the weights."""
    kind: str
    """Kind of device and precision that the whole store is computed with; see `kind_of`."""


def kind_of(device: str, precision: Precision) -> str:
    """Return the kind of device and the precision that would be used in this process."""
    place = resolve_device(device)
    return f"{place.type}, {str(resolve_precision(precision, place)).removeprefix('torch.')}"


def embed_region(cube: xr.Dataset, region: Region, task: Task) -> list[Sum]:
    """Embed one region that is in memory and write it; return its files.

    Raises
    ------
    DeviceError, VersionMismatchError
        If this process would compute otherwise than those before it.
    """
    options = task.options
    kind = kind_of(options["device"], options["precision"])
    if kind != task.kind:
        raise DeviceError(
            f"this process computes on {kind}, the store was begun on {task.kind}, and the two round differently; "
            "name device= and precision= that all processes have, or start anew with overwrite=True"
        )
    result = embed(cube, period=task.period, dtype="int8", progress=False, **options)
    if result.attrs["weights_sha256"] != task.sha256:
        raise VersionMismatchError(
            f"the weights of {options['model']!r} here ({result.attrs['weights_sha256'][:12]}) are not those that the "
            f"store was begun with ({task.sha256[:12]}); put the same file in every place"
        )
    return write_region(task.folder, region, result)


def work_here(jobs: Iterator[Job], done: Done) -> None:
    """Embed regions in this process, one after the other; the next one is read while one is computed."""
    reader = ThreadPoolExecutor(1, "tessera-xr-reader")
    following = next(jobs, None)
    ahead = following and reader.submit(_read, following[1])
    try:
        while following and ahead:
            (region, _, task), held = following, ahead.result()
            following = next(jobs, None)
            ahead = following and reader.submit(_read, following[1])
            size = held.nbytes
            done(region, embed_region(held, region, task))
            del held
            _let_go(size)
    finally:
        reader.shutdown(wait=False, cancel_futures=True)


def _read(cube: xr.Dataset) -> xr.Dataset:
    return cube.compute()


def work_on(client: Any, jobs: Iterator[Job], done: Done) -> None:
    """Embed regions on the workers of a cluster, two on their way to each of them.

    A region is one task, which reads, embeds and writes: if its worker is lost, another does it all again.

    Raises
    ------
    StoreError
        If a region was lost with its worker time and again.
    """
    from distributed import as_completed

    running: dict[Any, tuple[Job, int]] = {}
    queue = as_completed([], raise_errors=False)  # type: ignore[no-untyped-call]

    def send(job: Job, attempt: int) -> None:
        region, cube, task = job
        future = client.submit(_embed_on_worker, _packed(cube, client), region, task, pure=False)
        running[future] = (job, attempt)
        queue.add(future)  # type: ignore[no-untyped-call]

    try:
        for job in islice(jobs, 2 * max(len(client.nthreads()), 1)):
            send(job, 1)
        while running:
            future = next(queue)
            job, attempt = running.pop(future)
            if _is_lost(future):
                if attempt == ATTEMPTS:
                    raise StoreError(
                        f"the worker of region {job[0].index} was lost {attempt} times; a region may need more memory "
                        "than a worker has (memory=), or the workers are being stopped"
                    )
                send(job, attempt + 1)
                continue
            done(job[0], future.result())
            for following in islice(jobs, 1):
                send(following, 1)
    finally:
        client.cancel(list(running))


def _is_lost(future: Any) -> bool:
    """Say whether a worker was lost with a region, rather than the region failed."""
    from distributed import KilledWorker

    return future.status in ("cancelled", "lost") or isinstance(future.exception(), KilledWorker)


def _packed(cube: xr.Dataset, client: Any) -> Any:
    """Return a region for its journey: its part of the graph, or its values; what is on the cluster stays there."""
    import cloudpickle  # type: ignore[import-untyped]
    from dask.base import optimize
    from distributed import futures_of

    if futures_of(cube):  # type: ignore[no-untyped-call]  # persisted
        return client.compute(cube)
    return cloudpickle.dumps(optimize(cube)[0])


def _let_go(size: int) -> None:
    """Free a region: a Dataset whose accessor was used is a cycle, which would keep it. Small ones aren't worth it."""
    if size > WORTH_FREEING:
        gc.collect()


def _embed_on_worker(packed: bytes | xr.Dataset, region: Region, task: Task) -> list[Sum]:
    from distributed import get_worker

    threads = get_worker().state.nthreads
    with ROOM:
        cube = pickle.loads(packed) if isinstance(packed, bytes) else packed  # noqa: S301 - from our own client
        _let_go(cube.nbytes)  # what the one before, of about this size, left
        cube = cube.compute(scheduler="threads", num_workers=threads)
        with COMPUTE:
            _use_threads(threads)
            options = task.options | {"device": _own_device(task.options["device"])}
            return embed_region(cube, region, Task(task.folder, task.period, options, task.sha256, task.kind))


def _use_threads(n: int) -> None:
    """Let the encoder compute on all threads of this worker: Dask sets one for each, expecting as many tasks."""
    import torch

    if torch.get_num_threads() < n:
        torch.set_num_threads(n)


def _own_device(device: str) -> str:
    """Return the device of this worker: of several GPUs that it sees, one that no other worker here has taken."""
    import torch

    if device not in ("auto", "cuda") or resolve_device(device).type != "cuda" or torch.cuda.device_count() < 2:
        return device
    return f"cuda:{take_gpu(torch.cuda.device_count())}"


@cache
def take_gpu(n: int) -> int:
    """Return which of the `n` GPUs that this process sees is its own until it ends; if all are taken, one is shared.

    Other processes on the machine are told by locked files, which the system unlocks however a process ends.
    """
    from filelock import FileLock, Timeout

    ids = [part.strip() for part in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if part.strip()]
    folder = Path(tempfile.gettempdir()) / f"tessera-xr-gpus-{os.getuid() if hasattr(os, 'getuid') else 'all'}"
    folder.mkdir(exist_ok=True)
    for i in range(n):
        name = ids[i] if i < len(ids) else str(i)
        lock = FileLock(folder / f"{name.replace(os.sep, '_')}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            continue
        _HELD.append(lock)  # as long as the process lives
        return i
    return os.getpid() % n


_HELD: list[Any] = []


def find_client(client: Any) -> Any:
    """Return the client to use: the one given, else the active one; None for none, or if given False."""
    if client is None and "distributed" in sys.modules:
        from distributed import default_client

        try:
            return default_client()  # type: ignore[no-untyped-call]
        except ValueError:
            return None
    return client or None
