"""What a client bears: graphs and plans of many chunks, without any worker: `python -m benchmarks scale`.

A lazy cube of N chunks of 256 x 256 pixels (100,000 are 6.6 billion pixels, eight times Austria) is embedded lazily;
its graph is optimised, sent to a scheduler that has no worker, and held beside the plan of as many regions that
`embed_to_zarr` makes. Times are the client's; memory is what the process grows by, and what the scheduler's does.
"""

from __future__ import annotations

import itertools
import logging
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox

import tessera_xr as txr
from benchmarks.measure import Settings, children_rss, peak_of
from benchmarks.rows import Row
from tessera_xr.grid import with_grid

GROUP, SIZED = "scale", False
SIDE = 256
CHUNKS = (1_000, 10_000, 100_000)
HAND_OVER = 1.2e-3
"""Seconds that a scheduler takes for the tasks of a chunk, about."""
REGIONS = 10
"""Regions of a plan that are cut out and packed for a worker."""


def rows(_: int | None, settings: Settings) -> Iterator[Row]:
    """Yield rows for 1,000, 10,000 and 100,000 chunks."""
    txr.embed(lazy_cube(1), dtype="int8")  # imports
    for n in (16, 64) if settings.quick else CHUNKS:
        cube = lazy_cube(n)
        yield from graph_rows(cube, n, settings)
        yield plan_row(cube, n)
        yield region_row(cube, n, "a source of few lines (Zarr)")
        yield region_row(written_out(cube), n, "a source of a task a chunk")


def lazy_cube(n: int) -> xr.Dataset:
    """Return a cube of about n chunks, as square as can be; its values are zeros, which take no memory."""
    import dask.array as da

    down = round(n**0.5)
    shape = (down * SIDE, -(-n // down) * SIDE)
    like = txr.tutorial.cube(16).drop_vars(["y", "x", "spatial_ref"], errors="ignore")
    grown = {}
    for name, array in like.data_vars.items():
        sizes = tuple(dict(zip("yx", shape, strict=True)).get(d, array.sizes[d]) for d in array.dims)
        chunks = tuple(SIDE if d in ("y", "x") else -1 for d in array.dims)
        grown[name] = (array.dims, da.zeros(sizes, dtype=array.dtype, chunks=chunks))
    box = GeoBox(shape, Affine(10, 0, 3e5, 0, -10, 56e5), "EPSG:32631")
    return with_grid(xr.Dataset(grown, like.coords, like.attrs), box)


def graph_rows(cube: xr.Dataset, n: int, settings: Settings) -> Iterator[Row]:
    """Build, optimise and schedule the lazy embeddings."""
    import dask

    found: list[Any] = []
    seconds, peak = peak_of(lambda: found.append(txr.embed(cube, dtype="int8")))
    emb = found.pop()
    tasks = len(emb.__dask_graph__())
    yield Row(GROUP, f"{n:,} chunks: embed, lazily", ours=[seconds], peak_mb=peak, note=f"{tasks:,} tasks written down")
    before = time.process_time()
    seconds, peak = peak_of(lambda: found.append(dask.optimize(emb)[0]))
    busy = time.process_time() - before
    optimised = len(set().union(*(layer for layer in found.pop().__dask_graph__().layers.values())))
    note = f"{optimised:,} tasks, {optimised / n:.0f} a chunk; {busy:.1f} s of computing"
    yield Row(GROUP, f"{n:,} chunks: the graph optimised", ours=[seconds], peak_mb=peak, note=note)
    why = settings.takes_long(HAND_OVER * n)
    task = f"{n:,} chunks: handed to a scheduler without workers"
    yield Row(GROUP, task, skipped=why) if why else scheduled(emb, task, optimised)


def scheduled(emb: xr.Dataset, task: str, tasks: int) -> Row:
    """Send the graph to a scheduler of its own process, which has no worker, and wait until it knows all tasks."""
    try:
        from distributed import Client
    except ImportError:
        return Row(GROUP, task, skipped="distributed is not installed (pip install 'tessera-xr[dask]')")
    import subprocess
    import sys

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "scheduler.json"
        command = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--port", "0", "--no-dashboard"]
        command += ["--scheduler-file", str(file), "--host", "127.0.0.1"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            while not file.exists() or not file.stat().st_size:
                time.sleep(0.1)
            with Client(scheduler_file=str(file), timeout=60) as client:
                logging.getLogger("distributed").setLevel(logging.ERROR)
                before = children_rss()
                kept: list[Any] = []

                def hand_over() -> None:
                    kept.append(client.compute(emb))
                    while client.run_on_scheduler(known) < min(tasks, 2):  # all come at once
                        time.sleep(0.2)

                seconds, peak = peak_of(hand_over)
                found, busy = client.run_on_scheduler(known), client.run_on_scheduler(cpu_seconds)
                grown = children_rss() - before
                note = f"the scheduler knows {found:,} tasks, computed for {busy:.0f} s and grew by {grown:,.0f} MB"
                return Row(GROUP, task, ours=[seconds], peak_mb=peak, note=note)
        finally:
            process.kill()
            process.wait()


def cpu_seconds() -> float:
    """Return the seconds that a process has computed."""
    return time.process_time()


def known(dask_scheduler: Any = None) -> int:
    """Return how many tasks a scheduler knows; runs there."""
    return len(dask_scheduler.tasks)


def plan_row(cube: xr.Dataset, n: int) -> Row:
    """Plan as many regions, and list them."""
    made: list[Any] = []
    plan = lambda: made.append(list(txr.plan_regions(cube, region=SIDE, memory="4 GB").areas[0].regions()))  # noqa: E731
    seconds, peak = peak_of(plan)
    task = f"{n:,} regions: plan_regions, and all listed"
    return Row(GROUP, task, ours=[seconds], peak_mb=peak, note=f"{len(made[0]):,} regions")


def region_row(cube: xr.Dataset, n: int, source: str) -> Row:
    """Cut a few regions out and pack them for workers, as `embed_to_zarr` does one by one while they work."""
    import cloudpickle
    from dask.base import optimize

    from tessera_xr.embedding.large.areas import prepare

    options = {"model": "mini", "weights": None, "dims": None, "device": "cpu", "precision": "auto"}
    undertaking = prepare(cube, None, options | {"seed": 0, "check_imagery": True}, "cpu, float32")
    regions = list(undertaking.cut(4 << 30, {"": (SIDE, SIDE)})[0].regions())
    jobs = undertaking.jobs(Path("nowhere"), regions)
    sizes: list[int] = []

    def pack(count: int) -> None:
        sizes.extend(len(cloudpickle.dumps(optimize(part)[0])) for _, part, _ in itertools.islice(jobs, count))

    pack(2)
    seconds, peak = peak_of(lambda: pack(REGIONS))
    every = seconds * len(regions) / REGIONS / 60
    note = f"{source}; {np.mean(sizes) / 1e3:,.0f} kB go to the worker; {every:.1f} min for all, while workers work"
    return Row(GROUP, f"{n:,} regions: one cut out and packed", ours=[seconds / REGIONS], peak_mb=peak, note=note)


def written_out(cube: xr.Dataset) -> xr.Dataset:
    """Return a cube whose graphs hold a task for each chunk, as most loaders make them, and not a rule for all."""
    import dask.array as da

    made = {}
    for name, array in cube.data_vars.items():
        lazy = array.data
        made[name] = array.copy(data=da.Array(dict(lazy.dask), lazy.name, lazy.chunks, meta=lazy._meta))
    return cube.assign(made)
