"""The same work without a cluster, and on one and two Dask workers: `python -m benchmarks dask`.

A worker is a process with one thread. Embeddings and maps are read from and written to Zarr on disk, chunk by chunk, as
on a real cluster. On a machine of two cores the client and the scheduler share them with the workers.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

import tessera_xr as txr
from benchmarks import machine
from benchmarks.learning import classes_of, labelled
from benchmarks.maps import BANDS, float_values, simulated
from benchmarks.measure import Settings, children_rss
from benchmarks.rows import Row
from tessera_xr.learning.heads import fit_sample

GROUP, SIZED = "dask", False
CHUNK = 512


def rows(_: int | None, settings: Settings) -> Iterator[Row]:
    """Yield rows for each task: here, and on one and two workers."""
    try:
        import distributed  # noqa: F401
    except ImportError:
        yield Row(GROUP, "all tasks", skipped="distributed is not installed (pip install 'tessera-xr[dask]')")
        return
    with tempfile.TemporaryDirectory() as folder:
        tasks = make_tasks(Path(folder), settings)
        here = {name: timed(lambda c=call: c(False), settings) for name, (call, _) in tasks.items()}
        for name, (_, size) in tasks.items():
            yield Row(GROUP, f"{name}: without a cluster, all cores", size, here[name])
        last: dict[str, list[float]] = {}
        for workers in (1, 2):
            with cluster(workers) as client:
                for name, (call, size) in tasks.items():
                    seconds = timed(lambda c=call: c(client), settings)
                    row = Row(GROUP, f"{name}: {workers} worker{'s' * (workers > 1)}", size, seconds)
                    row = replace(row, note=f"workers hold {children_rss():,.0f} MB at the end")
                    if name in last:
                        row = replace(row, beside="1 worker", theirs=last[name])
                    last[name] = seconds
                    yield row


def make_tasks(folder: Path, settings: Settings) -> dict[str, tuple[Callable[[Any], Any], int]]:
    """Return what to do, given a client or False, and the size of it."""
    side, chip = (256, 32) if settings.quick else (2048, 64)
    step = min(CHUNK, side // 2)
    emb = simulated(side)
    path = folder / "map.zarr"
    chunked = emb.chunk({"y": step, "x": step})
    for name in ("embeddings", "scales"):
        chunked[name].encoding.clear()
    chunked.to_zarr(path, zarr_format=3)
    opened = xr.open_zarr(path)
    corner = emb.isel(y=slice(128), x=slice(128))
    head = fit_sample(labelled(corner, classes_of(float_values(corner)), 1000), "logistic")
    query = np.random.default_rng(1).normal(size=BANDS).astype(np.float32)
    cube = txr.tutorial.cube(chip).chunk({"y": 32, "x": 32})

    def written(result: xr.Dataset | xr.DataArray) -> None:
        ds = result if isinstance(result, xr.Dataset) else result.to_dataset(name="found")
        for array in ds.variables.values():
            array.encoding.clear()
        ds.to_zarr(folder / "out.zarr", mode="w", zarr_format=3, consolidated=False)

    return {
        "embed with mini, embed_to_zarr": (lambda client: embedded(cube, folder, client), chip),
        "similarity": (lambda _client: written(opened.tessera.similarity(query)), side),
        "logistic head's map": (lambda _client: written(opened.tessera.predict(head)), side),
    }


def embedded(cube: xr.Dataset, folder: Path, client: Any) -> None:
    txr.embed_to_zarr(cube, folder / "emb.zarr", region=32, overwrite=True, progress=False, client=client)


def timed(call: Callable[[], Any], settings: Settings) -> list[float]:
    call()  # workers import and compile
    return [machine.clock(call) for _ in range(settings.repeats)]


@contextmanager
def cluster(workers: int) -> Iterator[Any]:
    """Give a client of as many processes, one thread each."""
    import dask
    from distributed import Client, LocalCluster

    with (
        dask.config.set({"distributed.worker.daemon": False}),
        LocalCluster(n_workers=workers, threads_per_worker=1, processes=True, dashboard_address=None,
                     memory_limit="3GB", silence_logs=logging.ERROR) as found,
        Client(found) as client,
    ):  # fmt: skip
        yield client
