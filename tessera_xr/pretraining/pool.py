"""A pool of d-pixels on disk: pixels of all places, permuted, so that no batch is from one place.

Only valid observations are kept, in shards of npy files that are memory-mapped; the pool may be larger than memory.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tessera_xr.encoder.checkpoints import PathLike
from tessera_xr.encoder.files import read_statistics
from tessera_xr.errors import SchemaError
from tessera_xr.pretraining.ragged import Integers, PixelBatch, Ragged, join, offsets_of, spans

VERSION = 1
MANIFEST = "manifest.json"
SENSORS = ("s2", "s1")


@dataclass(frozen=True)
class PoolOptions:
    """How a pool is made."""

    shard_size: int = 1 << 16
    """Pixels in a shard."""
    seed: int = 0
    """Of the permutation."""
    shuffle: bool = True
    """Permute the pixels of all sources; False keeps them source by source (the ablation, not for use)."""
    min_s2: int = 10
    """Valid Sentinel-2 steps that a pixel needs to be taken in."""
    min_s1: int = 10
    """Likewise of Sentinel-1; 0 takes in pixels without radar."""

    def __post_init__(self) -> None:
        for name, least in (("shard_size", 1), ("seed", 0), ("min_s2", 0), ("min_s1", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
                raise SchemaError(f"{name} must be a whole number, {least} or above, not {value!r}")


class Pool:
    """A finished pool, open for reading; make one with `write_pool`.

    Parameters
    ----------
    folder : str or path
        Where it lies.

    Raises
    ------
    SchemaError
        If there is none, or it is unfinished or of another version.
    """

    def __init__(self, folder: PathLike) -> None:
        self.folder = Path(folder)
        path = self.folder / MANIFEST
        if not path.is_file():
            unfinished = (self.folder / "partial").is_dir()
            raise SchemaError(
                f"the pool in {self.folder} is unfinished: call write_pool again with the same sources and options"
                if unfinished
                else f"there is no pool in {self.folder}; make one with write_pool(sources, folder)"
            )
        text = path.read_text(encoding="utf-8")
        manifest = json.loads(text)
        if manifest.get("version") != VERSION:
            raise SchemaError(f"{path} has version {manifest.get('version')!r}, not {VERSION}; write the pool anew")
        self.options = PoolOptions(**manifest["options"])
        self.sizes: list[int] = manifest["shards"]
        self.kept: list[int] = manifest["kept"]
        self.fingerprints: list[str] = manifest["sources"]
        self.statistics = read_statistics(manifest["statistics"])
        self.id = hashlib.sha256(text.encode()).hexdigest()[:16]
        self._starts = offsets_of(np.array(self.sizes))
        self._shard = lru_cache(maxsize=32)(self._open)
        self._permutation = lru_cache(maxsize=4)(self._permute)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __repr__(self) -> str:
        return f"<Pool of {len(self):,} d-pixels from {len(self.kept)} sources in {self.folder}>"

    def read(self, rows: npt.ArrayLike) -> PixelBatch:
        """Read some pixels, in the order given.

        Parameters
        ----------
        rows : array_like of int, shape (B,)
            Positions in the pool.

        Raises
        ------
        SchemaError
            If there is no such pixel.
        """
        rows = np.asarray(rows, dtype=np.intp)
        if rows.ndim != 1 or not rows.size or rows.min() < 0 or rows.max() >= len(self):
            raise SchemaError(f"rows must be a list of at least one position from 0 to {len(self) - 1}")
        shards = np.searchsorted(self._starts, rows, side="right") - 1
        cuts = np.flatnonzero(np.diff(shards)) + 1
        parts = [
            self._read_shard(int(k[0]), r) for k, r in zip(np.split(shards, cuts), np.split(rows, cuts), strict=True)
        ]
        s2, s1 = (join([getattr(p, sensor) for p in parts]) for sensor in SENSORS)
        source, pixel = (np.concatenate([getattr(p, name) for p in parts]) for name in ("source", "pixel"))
        return PixelBatch(s2, s1, source, pixel)

    def batches_per_epoch(self, batch_size: int) -> int:
        """Return the number of whole batches in the pool.

        Raises
        ------
        SchemaError
            If there is none.
        """
        n = len(self) // batch_size
        if n == 0:
            raise SchemaError(f"a batch of {batch_size} needs as many d-pixels; the pool has {len(self)}")
        return n

    def batch_rows(self, step: int, batch_size: int, seed: int) -> Integers:
        """Return the positions of one batch: a function of its number alone, so that training can go on anywhere.

        Every epoch visits the shards, and the pixels within each, in an order of its own. A pool that is not
        shuffled keeps its pixels in order.

        Parameters
        ----------
        step : int
            Number of the batch, counted on through the epochs.
        batch_size : int
        seed : int

        Returns
        -------
        ndarray of int, shape (batch_size,)
        """
        epoch, position = divmod(step, self.batches_per_epoch(batch_size))
        shards = np.random.default_rng([seed, epoch]).permutation(len(self.sizes))
        ends = offsets_of(np.array(self.sizes)[shards])
        first, last = position * batch_size, (position + 1) * batch_size
        pieces = []
        for k in range(int(np.searchsorted(ends, first, side="right")) - 1, len(shards)):
            if ends[k] >= last:
                break
            inside = slice(max(first - ends[k], 0), last - ends[k])
            pieces.append(self._starts[shards[k]] + self._permutation(seed, epoch, int(shards[k]))[inside])
        return np.concatenate(pieces)

    def _permute(self, seed: int, epoch: int, shard: int) -> Integers:
        size = self.sizes[shard]
        if not self.options.shuffle:
            return np.arange(size)
        return np.random.default_rng([seed, epoch, shard]).permutation(size)

    def _open(self, shard: int) -> dict[str, npt.NDArray[Any]]:
        return {path.stem: np.load(path, mmap_mode="r") for path in shard_folder(self.folder, shard).glob("*.npy")}

    def _read_shard(self, shard: int, rows: Integers) -> PixelBatch:
        arrays, inside = self._shard(shard), rows - self._starts[shard]

        def sensor_of(sensor: str) -> Ragged:
            offsets = arrays[f"{sensor}_offsets"]
            starts = offsets[inside]
            counts = offsets[inside + 1] - starts
            steps = spans(starts, counts)
            taken = [np.asarray(arrays[f"{sensor}_{name}"][steps]) for name in ("values", "doy", "group")]
            return Ragged(taken[0], taken[1], taken[2], offsets_of(counts))

        source, pixel = (arrays[name][inside].astype(np.intp) for name in ("source", "pixel"))
        return PixelBatch(sensor_of("s2"), sensor_of("s1"), source, pixel)


def shard_folder(folder: Path, shard: int) -> Path:
    """Return where a shard lies."""
    return folder / "shards" / f"{shard:05d}"
