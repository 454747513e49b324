"""Shards of Zarr v3, written to files chunk by chunk: a whole one of the published layout would take 2 GB of memory."""

from __future__ import annotations

import os
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from tessera_xr.embedding.schema import QUALITY, QUALITY_FLAGS, SCALES

INNER = 32
"""Pixels a side of a chunk."""
LEVEL = 3
"""How hard Zstandard tries."""
CORRUPT = -np.inf
"""Scale of a pixel that has embeddings which can't be right; other readers take it for no data."""


def encode_scales(strip: xr.Dataset) -> tuple[npt.NDArray[np.float32], int]:
    """Return scales as published: NaN water, +inf no data, -inf corrupt; and how many are so without having said it."""
    scales = strip[SCALES].transpose("y", "x").values.astype(np.float32)
    missing = ~np.isfinite(scales)
    with np.errstate(invalid="ignore"):
        bad = ~missing & ~((scales > 0) & (scales < 1))
    out = np.where(missing, np.float32(np.inf), np.where(bad, np.float32(CORRUPT), scales))
    if QUALITY in strip:
        quality = strip[QUALITY].transpose("y", "x").values
        out = np.where(missing & (quality == QUALITY_FLAGS["water"]), np.float32(np.nan), out)
        out = np.where(missing & (quality == QUALITY_FLAGS["corrupt"]), np.float32(CORRUPT), out)
    return out.astype(np.float32), int(bad.sum())


def fill_of(name: str) -> float:
    """Return the fill value of an array."""
    return np.inf if name == SCALES else 0


class ShardWriter:
    """One shard, written chunk by chunk to a file, its index at the end; chunks of the fill value are left out."""

    def __init__(self, file: Path, shape: tuple[int, int], fill: float) -> None:
        self.file, self.fill = file, fill
        self.index = np.full((shape[0] // INNER, shape[1] // INNER, 2), 2**64 - 1, np.uint64)
        self.size = 0
        self.stream: Any = None

    def add(self, row: int, column: int, array: npt.NDArray[Any]) -> None:
        """Write the chunks of a block, ([band,] y, x), that begins with the chunk (row, column); fill up the last."""
        from numcodecs import Blosc

        codec = Blosc("zstd", LEVEL, Blosc.SHUFFLE)
        lacking = [(0, -n % INNER) for n in array.shape[-2:]]
        array = np.pad(array, [(0, 0)] * (array.ndim - 2) + lacking, constant_values=self.fill)
        for r, c in product(*(range(n // INNER) for n in array.shape[-2:])):
            chunk = np.ascontiguousarray(array[..., r * INNER : (r + 1) * INNER, c * INNER : (c + 1) * INNER])
            if not (chunk == self.fill).all():
                data = codec.encode(chunk.astype(chunk.dtype.newbyteorder("<"), copy=False))
                self.index[row + r, column + c] = self.size, len(data)
                self._write(data)
                self.size += len(data)

    def _write(self, data: bytes) -> None:
        if self.stream is None:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self.stream = self.file.open("xb")
        self.stream.write(data)

    def close(self) -> None:
        """Write the index; a shard of nothing but the fill value leaves no file."""
        if self.stream is None:
            return
        import google_crc32c

        index = self.index.astype("<u8").tobytes()
        self._write(index + int(google_crc32c.value(index)).to_bytes(4, "little"))
        self.stream.flush()
        os.fsync(self.stream.fileno())
        self.stream.close()
