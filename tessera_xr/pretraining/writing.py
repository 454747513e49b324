"""Write a pool: count once, then put every pixel where the permutation wants it; can be interrupted at any time."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib.format import open_memmap

from tessera_xr.encoder.checkpoints import PathLike
from tessera_xr.encoder.registry import Statistics
from tessera_xr.errors import SchemaError
from tessera_xr.pretraining.pool import MANIFEST, SENSORS, VERSION, Pool, PoolOptions, shard_folder
from tessera_xr.pretraining.ragged import Integers, Ragged, offsets_of, spans
from tessera_xr.pretraining.sources import Block, Source, blocks, fingerprint, ragged_s1, ragged_s2

logger = logging.getLogger(__name__)

_ARRAYS = {"s2": (10, np.uint16), "s1": (2, np.int16)}


@dataclass(frozen=True)
class _Scan:
    """What is known of a source after reading it once."""

    fingerprint: str
    pixel: npt.NDArray[np.int64]
    """(n,) the pixels that are taken in."""
    counts: npt.NDArray[np.int64]
    """(2, n) their valid steps of each sensor."""
    moments: npt.NDArray[np.float64]
    """(3, 14): number, sum and sum of squares of ten S2 bands, then VV and VH ascending and descending."""


def write_pool(
    sources: Sequence[Source],
    folder: PathLike,
    *,
    shard_size: int = 1 << 16,
    seed: int = 0,
    shuffle: bool = True,
    min_s2: int = 10,
    min_s1: int = 10,
) -> Pool:
    """Pool the d-pixels of many places in one folder, permuted across all of them.

    Each source is read twice, block by block: once to count, once to write. Called again after an interruption, it
    goes on where it was; called again on a finished pool of the same sources, it returns that.

    Parameters
    ----------
    sources : sequence of Dataset, DPixels, mapping or callable
        Cubes of at most a year each (as from `as_cube`), simulated d-pixels, the arrays of `embed_pixels` by name, or
        functions without arguments that return one of them (for more than fits in memory). Each keeps its own dates.
    folder : str or path
        Where to write.
    shard_size : int
        Pixels in a shard; 65,536 with 60 dates each take about 150 MB.
    seed : int
        Of the permutation.
    shuffle : bool
        False keeps the pixels source by source: only for measuring what shuffling is worth.
    min_s2, min_s1 : int
        Valid steps that a pixel needs to be taken in.

    Returns
    -------
    Pool

    Raises
    ------
    SchemaError
        If a source or option is not usable, no pixel is left, or the folder holds a pool of other sources.
    """
    options = PoolOptions(shard_size, seed, shuffle, min_s2, min_s1)
    folder = Path(folder)
    if not isinstance(sources, (list, tuple)) or not sources:
        raise SchemaError("sources must be a list of at least one cube, DPixels, mapping of arrays or function")
    if (folder / MANIFEST).is_file():
        return _same_pool(folder, sources, options)
    partial = folder / "partial"
    partial.mkdir(parents=True, exist_ok=True)
    _hold_options(partial, options)
    scans = [_scan(source, partial / f"scan_{i:05d}.npz", options) for i, source in enumerate(sources)]
    _write(sources, scans, folder, options)
    _finish(folder, scans, options)
    return Pool(folder)


def as_pool(d_pixels: Any, folder: Path) -> Pool:
    """Return the pool that is meant: a `Pool`, the folder of one, or sources, written into `folder`."""
    if isinstance(d_pixels, Pool):
        return d_pixels
    if isinstance(d_pixels, (str, os.PathLike)):
        return Pool(d_pixels)
    return write_pool(d_pixels if isinstance(d_pixels, (list, tuple)) else [d_pixels], folder)


def _same_pool(folder: Path, sources: Sequence[Source], options: PoolOptions) -> Pool:
    pool = Pool(folder)
    if pool.options != options or pool.fingerprints != [_first_fingerprint(source) for source in sources]:
        raise SchemaError(f"{folder} holds a pool of other sources or options; choose another folder, or delete it")
    return pool


def _first_fingerprint(source: Source) -> str:
    first = next(blocks(source), None)
    return "" if first is None else fingerprint(first)


def _hold_options(partial: Path, options: PoolOptions) -> None:
    """Keep the options with the unfinished pool, and refuse to go on with others."""
    path = partial / "options.json"
    if not path.is_file():
        write_atomically(path, json.dumps(asdict(options)))
    elif json.loads(path.read_text(encoding="utf-8")) != asdict(options):
        raise SchemaError(f"{partial.parent} holds an unfinished pool of other options; delete it, or use the same")


def _scan(source: Source, path: Path, options: PoolOptions) -> _Scan:
    """Count the valid steps of a source, or take the count that an interrupted run has left."""
    if path.is_file():
        with np.load(path) as stored:
            scan = _Scan(str(stored["fingerprint"]), stored["pixel"], stored["counts"], stored["moments"])
        if scan.fingerprint != _first_fingerprint(source):
            raise SchemaError(
                f"{path.parents[1]} holds an unfinished pool of other sources; delete it, or use the same"
            )
        return scan
    start, name, pixels, counts, moments = 0, "", [], [], np.zeros((3, 14))
    for block in blocks(source):
        name = name or fingerprint(block)
        keep, found = _eligible(block, options)
        pixels.append(start + keep)
        counts.append(found[:, keep])
        moments += _moments(block.take(keep))
        start += len(block)
    if not pixels:
        pixels, counts = [np.zeros(0, np.int64)], [np.zeros((2, 0), np.int64)]
    scan = _Scan(name, np.concatenate(pixels), np.concatenate(counts, axis=1), moments)
    temporary = path.with_suffix(".tmp.npz")
    np.savez(
        temporary,
        fingerprint=np.array(scan.fingerprint),
        pixel=scan.pixel,
        counts=scan.counts,
        moments=scan.moments,
    )
    temporary.replace(path)
    return scan


def _eligible(block: Block, options: PoolOptions) -> tuple[Integers, npt.NDArray[np.int64]]:
    """Return the pixels with enough valid steps, and the steps of all: (2, n)."""
    counts = np.stack([block.s2_valid.sum(axis=1), block.s1_valid.sum(axis=1)]).astype(np.int64)
    enough = (counts[0] >= options.min_s2) & (counts[1] >= options.min_s1) & (counts.sum(axis=0) > 0)
    return np.flatnonzero(enough), counts


def _moments(block: Block) -> npt.NDArray[np.float64]:
    """Return number, sum and sum of squares of each band, (3, 14)."""
    s2, s1 = ragged_s2(block), ragged_s1(block)
    columns = [s2.values, *(s1.values[s1.group == k] for k in (0, 1))]
    parts = []
    for i, column in enumerate(columns):
        values = column.astype(np.float64)
        there = np.ones_like(values) if i == 0 else (values != 0).astype(np.float64)  # one polarisation may be missing
        parts.append(np.stack([there.sum(axis=0), values.sum(axis=0), (values**2).sum(axis=0)]))
    return np.concatenate(parts, axis=1)


def _statistics(moments: npt.NDArray[np.float64]) -> Statistics:
    """Return means and standard deviations; an orbit that no pixel has takes those of the other."""
    moments = moments.copy()
    for here, there in ((slice(10, 12), slice(12, 14)), (slice(12, 14), slice(10, 12))):
        if not moments[0, here].all():
            moments[:, here] = moments[:, there]
    n = np.maximum(moments[0], 1)
    mean = moments[1] / n
    spread = np.sqrt(np.maximum(moments[2] / n - mean**2, 0))
    std = np.where(spread > 0, spread, 1.0)
    rows = [tuple(np.round(row, 4).tolist()) for row in (mean, std)]
    ascending, descending = ((rows[0][part], rows[1][part]) for part in (slice(10, 12), slice(12, 14)))
    return Statistics(rows[0][:10], rows[1][:10], ascending, descending)


def _write(sources: Sequence[Source], scans: list[_Scan], folder: Path, options: PoolOptions) -> None:
    n = sum(len(scan.pixel) for scan in scans)
    if n == 0:
        raise SchemaError(
            f"no d-pixel has {options.min_s2} valid steps of Sentinel-2 and {options.min_s1} of Sentinel-1; "
            "check the cloud masks, or lower min_s2 and min_s1"
        )
    rank = np.random.default_rng([options.seed, n]).permutation(n) if options.shuffle else np.arange(n)
    allocated = folder / "partial" / "allocated"
    if not allocated.is_file():
        _allocate(scans, rank, folder, options)
        write_atomically(allocated, "")
    starts = offsets_of(np.array([len(scan.pixel) for scan in scans]))
    for i, (source, scan) in enumerate(zip(sources, scans, strict=True)):
        done = folder / "partial" / f"written_{i:05d}"
        if done.is_file():
            continue
        _scatter(source, i, scan, rank[starts[i] : starts[i + 1]], folder, options.shard_size)
        write_atomically(done, "")
        logger.info("source %d of %d: %d d-pixels", i + 1, len(sources), len(scan.pixel))


def _allocate(scans: list[_Scan], rank: Integers, folder: Path, options: PoolOptions) -> None:
    """Make the files of all shards in their final size; where each pixel goes is known from the counts."""
    counts = np.empty((2, len(rank)), dtype=np.int64)
    counts[:, rank] = np.concatenate([scan.counts for scan in scans], axis=1)
    for shard, first in enumerate(range(0, len(rank), options.shard_size)):
        place = shard_folder(folder, shard)
        place.mkdir(parents=True, exist_ok=True)
        own = counts[:, first : first + options.shard_size]
        for sensor, steps in zip(SENSORS, own, strict=True):
            offsets, (n_bands, dtype) = offsets_of(steps), _ARRAYS[sensor]
            np.save(place / f"{sensor}_offsets.npy", offsets.astype(np.int64))
            m = int(offsets[-1])
            _new(place / f"{sensor}_values.npy", dtype, (m, n_bands))
            _new(place / f"{sensor}_doy.npy", np.uint16, (m,))
            _new(place / f"{sensor}_group.npy", np.uint8, (m,))
        _new(place / "source.npy", np.int32, (own.shape[1],))
        _new(place / "pixel.npy", np.int64, (own.shape[1],))


def _new(path: Path, dtype: Any, shape: tuple[int, ...]) -> None:
    if 0 in shape:  # an empty file can't be memory-mapped for writing
        np.save(path, np.zeros(shape, dtype))
    else:
        open_memmap(path, mode="w+", dtype=dtype, shape=shape).flush()


def _scatter(source: Source, index: int, scan: _Scan, rank: Integers, folder: Path, shard_size: int) -> None:
    """Write the pixels of one source where they belong; done again, it writes the same."""
    start = 0
    for block in blocks(source):
        inside = slice(*np.searchsorted(scan.pixel, (start, start + len(block))))
        pixel, ranks = scan.pixel[inside], rank[inside]
        chosen = block.take((pixel - start).astype(np.intp))
        sensors = {"s2": ragged_s2(chosen), "s1": ragged_s1(chosen)}
        shards = ranks // shard_size
        for shard in np.unique(shards):
            mine = np.flatnonzero(shards == shard)
            place, rows = shard_folder(folder, int(shard)), ranks[mine] % shard_size
            _put(place / "source.npy", rows, np.full(len(rows), index))
            _put(place / "pixel.npy", rows, pixel[mine])
            for sensor, ragged in sensors.items():
                _put_ragged(place, sensor, rows, ragged.take(mine))
        start += len(block)


def _put_ragged(place: Path, sensor: str, rows: Integers, ragged: Ragged) -> None:
    offsets = np.load(place / f"{sensor}_offsets.npy", mmap_mode="r")
    if not np.array_equal(offsets[rows + 1] - offsets[rows], ragged.counts):
        raise SchemaError("a source gave other d-pixels when it was read again; its values must not change")
    where = spans(offsets[rows], ragged.counts)
    for name in ("values", "doy", "group"):
        _put(place / f"{sensor}_{name}.npy", where, getattr(ragged, name))


def _put(path: Path, where: Integers, values: npt.NDArray[Any]) -> None:
    if len(where):
        array = np.load(path, mmap_mode="r+")
        array[where] = values
        array.flush()


def _finish(folder: Path, scans: list[_Scan], options: PoolOptions) -> None:
    kept = [len(scan.pixel) for scan in scans]
    n = sum(kept)
    statistics = _statistics(np.sum([scan.moments for scan in scans], axis=0))
    manifest = {
        "version": VERSION,
        "options": asdict(options),
        "pixels": n,
        "shards": [min(options.shard_size, n - first) for first in range(0, n, options.shard_size)],
        "kept": kept,
        "sources": [scan.fingerprint for scan in scans],
        "statistics": asdict(statistics),
    }
    write_atomically(folder / MANIFEST, json.dumps(manifest, indent=1))
    shutil.rmtree(folder / "partial")


def write_atomically(path: Path, text: str) -> None:
    """Write a text file that is either whole or not there."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
