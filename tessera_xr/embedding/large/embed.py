"""Areas larger than memory: region by region into a Zarr store, which is there whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xarray as xr

from tessera_xr.embedding.large.areas import measure, prepare
from tessera_xr.embedding.large.completion import Completion, find_faults, free_bytes
from tessera_xr.embedding.large.fingerprint import list_changes
from tessera_xr.embedding.large.journal import Workplace, is_ours, read_history
from tessera_xr.embedding.large.regions import AreaPlan, Plan, Region, check_memory, check_region
from tessera_xr.embedding.large.workers import find_client, kind_of
from tessera_xr.encoder.checkpoints import PathLike
from tessera_xr.encoder.device import Precision
from tessera_xr.errors import SchemaError, StoreError
from tessera_xr.sentinel.period import PeriodLike

if TYPE_CHECKING:
    import pandas as pd

MEMORY = "2 GB"


def embed_to_zarr(
    cube: xr.Dataset | Mapping[str, xr.Dataset],
    path: PathLike,
    model: PathLike = "mini",
    *,
    period: PeriodLike | Sequence[PeriodLike] | None = None,
    weights: PathLike | None = None,
    dims: int | None = None,
    device: str = "auto",
    precision: Precision = "auto",
    region: int | tuple[int, int] | None = None,
    memory: str | int = MEMORY,
    seed: int = 0,
    check_imagery: bool = True,
    overwrite: bool = False,
    progress: bool = True,
    client: Any = None,
) -> Any:
    """Embed an area larger than memory into a Zarr store, region by region; what was interrupted goes on.

    The work is done in the folder `path` + ".unfinished". The store appears at `path` when every region is written
    and checked, never before. However a run ends (an error, Ctrl-C, a power cut), the same call continues it, and the
    result is the same to the bit on machines alike; it refuses to if the cube, the model or an option has changed.
    Called for a finished store, it reads it all, holds it against its checksums, and makes damaged regions anew.

    Parameters
    ----------
    cube : Dataset, or mapping of names to Dataset
        As in `embed`, best lazy: one region is read at a time. Several areas by name become groups of one store.
    path : str or path
        Of the store, in a folder that all workers see.
    model, period, weights, dims, device, precision, seed, check_imagery
        As in `embed`. With several periods, each is read and embedded by itself.
    region : int or (int, int), optional
        Sides of a region in pixels (down, across), multiples of 32. By default the largest that `memory` allows,
        along the chunks of the cube where that saves reading them again.
    memory : str or int, default "2 GB"
        What one process may take beside what it took before, in bytes or as text.
    overwrite : bool, default False
        Start anew, and replace a finished store at the end. Only what this function wrote is ever replaced.
    progress : bool, default True
        Show a bar with pixels a second if it takes longer than a second.
    client : distributed.Client or False, optional
        Compute on its workers, one region at a time in each. By default those of the active client, if there is one;
        False computes in this process. Of several GPUs of a machine each worker takes one: start as many workers.

    Returns
    -------
    Dataset, or dict of Dataset
        The embeddings, equal to ``embed(cube, dtype="int8")`` beyond rounding, lazy, a chunk for each region; what
        ``xarray.open_zarr(path)`` gives, too (``group=name`` with several areas).

    Raises
    ------
    StoreError
        If something else is at `path`, unfinished work is of another cube, model or option, the disk is too small,
        or workers are lost time and again.
    SchemaError
        If `memory` is too little for any region, or an option can't be read.
    TesseraError
        As `embed`.
    """
    target = _check_path(path)
    limit, sides = check_memory(memory), check_region(region)
    options = {"model": model, "weights": weights, "dims": dims, "device": device, "precision": precision}
    options |= {"seed": seed, "check_imagery": check_imagery}
    client = find_client(client)
    with Workplace(target).locked() as place:
        before, finished = _begun(place, overwrite=overwrite)
        undertaking = prepare(cube, period, options, _kind(client, device, precision))
        made_from = undertaking.made_from()
        settled = dict.fromkeys((a.name for a in undertaking.areas), sides)
        if before is not None:
            _refuse_changes(before, made_from, settled, target, finished=finished)
            settled = {name: (int(r[0]), int(r[1])) for name, r in before["regions"].items()}
        plans = undertaking.cut(limit, settled, at_least=2 * len(client.nthreads()) if client is not None else 1)
        run = {"format": 1, "made_from": made_from, "regions": {p.name: list(p.region) for p in plans}}
        run |= {"n_regions": sum(p.n_regions for p in plans), "overwrite": overwrite}
        if before is not None:
            run["overwrite"] = before["overwrite"]
        work = Completion(place, undertaking, plans, run, progress=progress)
        if work.resume(finished=finished, new=before is None):
            with _told(work, target):
                work.complete(client)
    return open_large(target)


def plan_regions(
    cube: xr.Dataset | Mapping[str, xr.Dataset],
    model: PathLike = "mini",
    *,
    path: PathLike = ".",
    period: PeriodLike | Sequence[PeriodLike] | None = None,
    weights: PathLike | None = None,
    dims: int | None = None,
    device: str = "auto",
    precision: Precision = "auto",
    region: int | tuple[int, int] | None = None,
    memory: str | int = MEMORY,
    check_imagery: bool = True,
    probe: bool = False,
) -> Plan:
    """Return what `embed_to_zarr` is going to do: regions, memory, disk, time. Print it before the work.

    Parameters
    ----------
    cube, model, path, period, weights, dims, device, precision, region, memory, check_imagery
        As in `embed_to_zarr`; `path` only tells which disk.
    probe : bool, default False
        Read and embed a few pixels in this process, a matter of seconds, to tell the time that all of them will take.

    Returns
    -------
    Plan
        With `n_regions`, `n_pixels`, `memory` and `disk` in bytes, `seconds`, and `areas`.

    Raises
    ------
    TesseraError
        As `embed_to_zarr`.
    """
    target = _check_path(path)
    limit, sides = check_memory(memory), check_region(region)
    options = {"model": model, "weights": weights, "dims": dims, "device": device, "precision": precision}
    options |= {"seed": 0, "check_imagery": check_imagery}
    undertaking = prepare(cube, period, options, kind_of(device, precision))
    plans = undertaking.cut(limit, dict.fromkeys((a.name for a in undertaking.areas), sides))
    seconds = measure(undertaking, plans) if probe else None
    return Plan(tuple(plans), undertaking.attrs["model"], undertaking.kind, free_bytes(target), seconds)


def open_large(path: PathLike) -> Any:
    """Open a store that `embed_to_zarr` has finished.

    Parameters
    ----------
    path : str or path

    Returns
    -------
    Dataset, or dict of Dataset
        Lazy, a chunk for each region; a dict by name if it holds several areas.

    Raises
    ------
    StoreError
        If it isn't finished, or no such store.
    """
    target = _check_path(path)
    run, _ = read_history(target)
    opened = {}
    for name, (height, width) in run["regions"].items():
        chunks = {"time": 1, "band": -1, "y": height, "x": width}
        ds = xr.open_zarr(target, group=name or None, chunks=None)
        opened[name] = ds.chunk({d: n for d, n in chunks.items() if d in ds.dims})
    return opened.get("", opened)


def verify_store(path: PathLike, progress: bool = True) -> pd.DataFrame:
    """Read a finished store and hold every region against its checksums.

    Parameters
    ----------
    path : str or path
        Of a store that `embed_to_zarr` has finished.
    progress : bool, default True
        Show a bar if it takes longer than a second.

    Returns
    -------
    pandas.DataFrame
        One row a region: `area`, `time` (which of the periods), `y_start`, `y_stop`, `x_start`, `x_stop` in pixels,
        and `fault`, None if it is whole. The `embed_to_zarr` that made the store makes damaged regions anew.

    Raises
    ------
    StoreError
        If it isn't finished, or no such store.
    """
    import pandas as pd

    target = _check_path(path)
    run, sums = read_history(target)
    regions: list[Region] = []
    timed = False
    for name, sides in run["regions"].items():
        ds = xr.open_zarr(target, group=name or None, chunks=None)
        timed, shape = "time" in ds.dims, (ds.sizes["y"], ds.sizes["x"])
        plan = AreaPlan(name, shape, tuple(sides), ds.sizes.get("time", 1), ds.sizes["band"], 0, 1.0)
        regions += plan.regions(len(regions))
    faults = find_faults(target, regions, sums, timed=timed, thorough=True, progress=progress)
    rows = [
        (r.area, r.time, r.y.start, r.y.stop, r.x.start, r.x.stop, faults.get(r.index)) for r in regions
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["area", "time", "y_start", "y_stop", "x_start", "x_stop", "fault"])


def _begun(place: Workplace, *, overwrite: bool) -> tuple[dict[str, Any] | None, bool]:
    """Return what there is to go on with, and whether it is finished.

    Raises
    ------
    StoreError
        If it is in the way.
    """
    path = place.path
    if path.exists() and not is_ours(path) and not (path.is_dir() and not any(path.iterdir())):
        raise StoreError(
            f"{path} exists and is no store of embed_to_zarr, so it is never replaced; move it away, or choose "
            "another path"
        )
    run = None if overwrite else place.run()
    if run is None:
        place.clear()
        return (read_history(path)[0], True) if is_ours(path) and not overwrite else (None, False)
    if is_ours(path) and not run["overwrite"]:
        raise StoreError(
            f"there is a finished store {path}, and unfinished work for it in {place.folder}; delete the one that you "
            "don't want, or start anew with overwrite=True"
        )
    return run, False


def _refuse_changes(
    before: Mapping[str, Any],
    made_from: Mapping[str, Any],
    sides: Mapping[str, tuple[int, int] | None],
    path: Path,
    *,
    finished: bool,
) -> None:
    """Raise `StoreError` if what there is comes from anything else than what is asked for now."""
    changes = list_changes(before["made_from"], made_from)
    for name, asked in sides.items():
        kept = tuple(before["regions"].get(name, ()))
        if asked is not None and kept and asked != kept:
            changes.append(f"region: {kept[0]} x {kept[1]} px before, {asked[0]} x {asked[1]} px now")
    if changes:
        what = "the finished store" if finished else "the unfinished store for"
        raise StoreError(
            f"{what} {path} was begun with something else:\n"
            + "\n".join(f"  - {change}" for change in changes)
            + "\nCall it as before, choose another path, or start anew with overwrite=True"
        )


@contextmanager
def _told(work: Completion, path: Path) -> Iterator[None]:
    """Tell with any error, an interrupt too, what is kept and how to go on."""
    try:
        yield
    except BaseException as error:
        done, total = len(work.done), len(work.regions)
        error.add_note(
            f"{done:,} of {total:,} regions of {path} are written and kept in {work.place.folder}; the same call of "
            "embed_to_zarr goes on from there"
        )
        raise


def _kind(client: Any, device: str, precision: Precision) -> str:
    """Return the kind of device and precision of the processes that compute, asking a worker if there are any."""
    if client is None:
        return kind_of(device, precision)
    return str(client.submit(kind_of, device, precision, pure=False).result())


def _check_path(path: PathLike) -> Path:
    if "://" in str(path):
        raise SchemaError(
            f"{path} is not on this machine: regions are written to a folder; copy it there when finished"
        )
    return Path(os.path.abspath(Path(path).expanduser()))  # not resolved: a link stays what it is
