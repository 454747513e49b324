"""Parts of sharded arrays, chunk by chunk: what Zarr does too, at a fraction of its cost for each small chunk."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from tessera_xr.embedding.published.guard import GuardedStore, Layout
from tessera_xr.embedding.published.remote import Folder, Site

READ_AT_ONCE = 8
"""Chunks of a remote store that one task asks for at the same time."""


def can_read(guard: GuardedStore, array: Any) -> bool:
    """Say whether an array is laid out as published ones are: shards of whole vectors, compressed in the plain way."""
    layout = guard.layouts.get(array.path)
    if layout is None or not layout.n_inner or not isinstance(guard.inner, Folder | Site):
        return False
    names = [c.to_dict()["name"] for c in array.metadata.codecs[0].codecs]
    bands = array.ndim == 3 or array.chunks[1] == array.shards[1] == array.shape[1]
    return "transpose" not in names and bands and array.chunks[0] == array.shards[0] == 1


def read_part(guard: GuardedStore, array: Any, time: int, rows: slice, columns: slice) -> npt.NDArray[Any]:
    """Return ([band,] y, x) of an array at a time."""
    layout, inner, outer = guard.layouts[array.path], array.chunks[-2:], array.shards[-2:]
    bands = array.shape[1:-2]
    out = np.full((*bands, rows.stop - rows.start, columns.stop - columns.start), array.fill_value, array.dtype)
    jobs: list[Callable[[], None]] = []
    for r, c in product(_numbers(rows, outer[0]), _numbers(columns, outer[1])):
        key = "/".join(map(str, (array.path, "c", time, *(0 for _ in bands), r, c)))
        index = guard.read_index(key)
        if index is None:
            continue
        table = np.frombuffer(index[:-4], "<u8").reshape(outer[0] // inner[0], outer[1] // inner[1], 2)
        shard_rows, shard_columns = _clip(rows, r, outer[0]), _clip(columns, c, outer[1])
        for i, j in product(_numbers(shard_rows, inner[0]), _numbers(shard_columns, inner[1])):
            start, size = (int(v) for v in table[i % table.shape[0], j % table.shape[1]])
            if (start, size) != (2**64 - 1, 2**64 - 1):
                place = _clip(rows, i, inner[0]), _clip(columns, j, inner[1])
                jobs.append(
                    _job(guard, array, layout, key, (start, size), place, (i, j), out, (rows.start, columns.start))
                )
    if guard.remote and len(jobs) > 1:
        with ThreadPoolExecutor(READ_AT_ONCE) as pool:
            list(pool.map(lambda job: job(), jobs))
    else:
        for job in jobs:
            job()
    return out


def _job(
    guard: GuardedStore,
    array: Any,
    layout: Layout,
    key: str,
    where: tuple[int, int],
    place: tuple[slice, slice],
    number: tuple[int, int],
    out: npt.NDArray[Any],
    origin: tuple[int, int],
) -> Callable[[], None]:
    """Return the task that reads one chunk and puts what is wanted of it into `out`."""

    def read() -> None:
        data = guard.read_chunk(key, *where)
        values = _decode(data, layout).view(array.dtype.newbyteorder("<")).reshape(array.chunks[1:])
        (rows, columns), (i, j), (height, width) = place, number, array.chunks[-2:]
        found = values[..., _shift(rows, i * height), _shift(columns, j * width)]
        out[..., _shift(rows, origin[0]), _shift(columns, origin[1])] = found

    return read


def _decode(data: bytes, layout: Layout) -> npt.NDArray[np.uint8]:
    import numcodecs

    body = data[:-4] if layout.checksum else data
    if layout.codec == "blosc":
        body = numcodecs.Blosc().decode(body)
    elif layout.codec == "zstd":
        body = numcodecs.Zstd().decode(body)
    return np.frombuffer(body, np.uint8)


def _numbers(span: slice, size: int) -> range:
    """Return the numbers of the chunks of a size that a span touches."""
    return range(span.start // size, -(-span.stop // size))


def _clip(span: slice, number: int, size: int) -> slice:
    """Return the part of a span that lies in a chunk."""
    return slice(max(span.start, number * size), min(span.stop, (number + 1) * size))


def _shift(span: slice, by: int) -> slice:
    return slice(span.start - by, span.stop - by)
