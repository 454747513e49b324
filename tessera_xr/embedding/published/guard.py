"""A Zarr store that is not trusted: every answer has the size that the array's metadata gave, or it is refused."""

from __future__ import annotations

import asyncio
import json
import threading
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from zarr.abc.store import ByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype

from tessera_xr.embedding.published.remote import Folder, Site, Span, TransientError, retry
from tessera_xr.errors import StoreError

MAX_METADATA = 64 << 20
"""Bytes of one zarr.json: those of all zones, consolidated, take about one million."""
MAX_INDEXES = 64 << 20
"""Bytes of shard indexes to keep: of a whole shard of 4096 x 4096 px one takes 262 kB."""
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
N_CONNECTIONS = 16


@dataclass(frozen=True)
class Layout:
    """What the bytes of an array's chunks must be like."""

    n_bytes: int
    """Of a chunk (the inner one, where there are shards), decoded."""
    codec: str = ""
    """The one that compresses: "blosc", "zstd" or none."""
    checksum: bool = False
    """Four bytes of CRC32C follow."""
    n_inner: int = 0
    """Inner chunks of a shard; 0 without shards."""
    index_last: bool = True
    """Where the index of a shard is."""

    @property
    def n_index(self) -> int:
        """Bytes of a shard's index, with its checksum."""
        return 16 * self.n_inner + 4

    @property
    def limit(self) -> int:
        """The most bytes that a chunk may take, encoded: what can't be compressed grows a little."""
        return self.n_bytes + self.n_bytes // 16 + 4096

    def check_chunk(self, data: bytes) -> None:
        """Raise `TransientError` unless encoded bytes say that they become a chunk: its codec would believe them."""
        body = data[:-4] if self.checksum else data
        if self.checksum and _crc(body) != data[-4:]:
            raise TransientError("a chunk is damaged (its checksum differs)")
        if self.codec == "blosc":
            sizes = np.frombuffer(body[4:16], "<u4") if len(body) >= 16 else np.zeros(3)
            right = sizes[0] == self.n_bytes and sizes[2] == len(body)
        elif self.codec == "zstd":
            right = _zstd_size(body) == self.n_bytes
        else:
            right = len(body) == self.n_bytes
        if not right:
            raise TransientError(f"a chunk is damaged, or becomes other than {self.n_bytes:,} bytes")

    def check_index(self, data: bytes) -> None:
        """Raise `TransientError` unless this is the index of a shard."""
        if len(data) != self.n_index or _crc(data[:-4]) != data[-4:]:
            raise TransientError("the index of a shard is damaged (its checksum differs)")

    def check_shard(self, data: bytes) -> None:
        """Raise `TransientError` unless all chunks of a whole shard are right."""
        index = data[-self.n_index :] if self.index_last else data[: self.n_index]
        self.check_index(index)
        for start, size in np.frombuffer(index[:-4], "<u8").reshape(-1, 2).tolist():
            if (start, size) != (2**64 - 1, 2**64 - 1):
                if start + size > len(data):
                    raise TransientError("a shard is damaged: a chunk lies outside it")
                self.check_chunk(data[start : start + size])


def _crc(data: bytes) -> bytes:
    import google_crc32c  # as Zarr does

    return int(google_crc32c.value(data)).to_bytes(4, "little")


def _zstd_size(frame: bytes) -> int:
    """Return the size that a Zstandard frame says it has; -1 if it doesn't say, for then it may have any."""
    if frame[:4] != ZSTD_MAGIC or len(frame) < 6:
        return -1
    flag, single, dictionary = frame[4] >> 6, frame[4] >> 5 & 1, frame[4] & 3
    width = {0: single, 1: 2, 2: 4, 3: 8}[flag]
    start = 5 + (0 if single else 1) + (0, 1, 2, 4)[dictionary]
    if not width or len(frame) < start + width:
        return -1
    return int.from_bytes(frame[start : start + width], "little") + (256 if width == 2 else 0)


class GuardedStore(Store):
    """A Zarr store of a folder, a site, or another store, for reading; `layouts` says what its arrays are like.

    A key that is absent is the fill value to Zarr. So only what its owner says twice is absent counts as that, and a
    chunk that a shard's index names is never.
    """

    supports_writes = False
    supports_deletes = False
    supports_listing = False

    def __init__(self, inner: Folder | Site | Store, name: str = "") -> None:
        super().__init__(read_only=True)
        self.inner = inner
        self.name = name or str(getattr(inner, "name", type(inner).__name__))
        """What to call it."""
        self.layouts: dict[str, Layout] = {}
        self._indexes: OrderedDict[str, bytes | None] = OrderedDict()
        self._locks: dict[str, asyncio.Lock] = {}
        self._thread_locks: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()

    @property
    def remote(self) -> bool:
        """Whether a read has to wait for others."""
        return bool(getattr(self.inner, "remote", True))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GuardedStore) and self.inner == other.inner

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"GuardedStore({self.name!r})"

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_indexes", "_locks", "_thread_locks", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _indexes=OrderedDict(), _locks={}, _thread_locks={}, _lock=threading.Lock())

    def forget(self) -> None:
        """Forget the indexes of shards: what could not be decoded may come of them."""
        self._indexes.clear()

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """Return the bytes of a key, or of a part of it."""
        layout = self._layout(key)
        span, is_index = self._span(key, byte_range, layout)
        if not is_index:
            data = await self._fetch(key, prototype, byte_range, layout, span, is_index=False)
        else:  # several chunks of a shard are asked for at once: its index is fetched once
            async with self._locks.setdefault(key, asyncio.Lock()):
                if key not in self._indexes:
                    self._keep(key, await self._fetch(key, prototype, byte_range, layout, span, is_index=True))
                data = self._indexes[key]
        return None if data is None else prototype.buffer.from_bytes(data)

    async def _fetch(
        self,
        key: str,
        prototype: BufferPrototype,
        asked: ByteRequest | None,
        layout: Layout | None,
        span: Span | None,
        *,
        is_index: bool,
    ) -> bytes | None:
        if isinstance(self.inner, Store):
            found = await self.inner.get(key, prototype, asked)
            data = None if found is None else found.to_bytes()
            _check_guest(data, layout, span, is_index, f"{self.name}/{key}")
            return data
        return await asyncio.get_running_loop().run_in_executor(_threads(), self._read, key, span, layout, is_index)

    def read_index(self, key: str) -> bytes | None:
        """Return the index of a shard, checked; None if there is no such shard. For threads, without Zarr."""
        layout = self.layouts[key.partition("/c/")[0]]
        with self._lock:
            lock = self._thread_locks.setdefault(key, threading.Lock())
        with lock:
            if key not in self._indexes:
                span = Span(last=layout.n_index) if layout.index_last else Span(0, layout.n_index)
                self._keep(key, found := self._read(key, span, layout, is_index=True))
                return found
            return self._indexes.get(key)

    def read_chunk(self, key: str, start: int, size: int) -> bytes:
        """Return the bytes of a chunk that a shard's index names, checked."""
        layout = self.layouts[key.partition("/c/")[0]]
        data = self._read(key, self._chunk_span(key, start, start + size, layout), layout, is_index=False)
        assert data is not None
        return data

    def _chunk_span(self, key: str, start: int, stop: int, layout: Layout) -> Span:
        if not 0 < stop - start <= layout.limit:
            raise StoreError(
                f"{self.name}/{key}: a chunk claims {stop - start:,} bytes, at most {layout.limit:,} are possible; the "
                "store is damaged or not to be trusted"
            )
        return Span(start, stop)

    def _read(self, key: str, span: Span | None, layout: Layout | None, is_index: bool) -> bytes | None:
        inner = self.inner
        assert not isinstance(inner, Store)

        def attempt() -> bytes | None:
            # a chunk is named by its shard's index, so that it must be there
            data = inner.get(key, _limit(layout, span), span, known=span is not None and not is_index)
            if data is not None:
                _check(data, layout, span, is_index)
            return data

        if self.remote:
            return retry(attempt, f"{self.name}/{key}")
        try:
            return attempt()
        except TransientError as error:
            raise StoreError(f"{self.name}/{key}: {error}; copy the store anew") from error

    def _layout(self, key: str) -> Layout | None:
        """Return the layout of a chunk's array; None for metadata."""
        if key.rpartition("/")[2] in ("zarr.json", ".zgroup", ".zarray", ".zattrs", ".zmetadata"):
            return None
        layout = self.layouts.get(key.partition("/c/")[0])
        if layout is None:
            raise StoreError(f"{self.name}/{key} belongs to no array that was checked")
        return layout

    def _span(self, key: str, asked: ByteRequest | None, layout: Layout | None) -> tuple[Span | None, bool]:
        """Return the part that is asked for, and whether it is the index of a shard."""
        if asked is None or layout is None:
            return None, False
        if isinstance(asked, SuffixByteRequest):
            return Span(last=asked.suffix), True
        if not isinstance(asked, RangeByteRequest):
            raise StoreError(f"{self.name}/{key}: parts of chunks are not read")
        if not layout.index_last and (asked.start, asked.end) == (0, layout.n_index):
            return Span(asked.start, asked.end), True
        return self._chunk_span(key, asked.start, asked.end, layout), False

    def _keep(self, key: str, index: bytes | None) -> None:
        with self._lock:
            while sum(len(i or b"") for i in self._indexes.values()) > MAX_INDEXES:
                self._indexes.popitem(last=False)
            self._indexes[key] = index

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Return the bytes of several keys."""
        return list(await asyncio.gather(*(self.get(key, prototype, part) for key, part in key_ranges)))

    async def get_ranges(
        self, key: str, byte_ranges: Sequence[ByteRequest | None], *, prototype: BufferPrototype, **_: Any
    ) -> AsyncIterator[Sequence[tuple[int, Buffer | None]]]:
        """Yield parts of a shard as they come; Zarr 3.3 would merge them, and no chunk be checked for itself."""

        async def one(i: int, part: ByteRequest | None) -> tuple[int, Buffer | None]:
            data = await self.get(key, prototype, part)
            if data is None:  # as Zarr expects it of an absent shard
                raise FileNotFoundError(key)
            return i, data

        for done in asyncio.as_completed([one(i, part) for i, part in enumerate(byte_ranges)]):
            yield [await done]

    async def exists(self, key: str) -> bool:
        """Say whether there is such a key; only asked of metadata."""
        from zarr.core.buffer import default_buffer_prototype

        return await self.get(key, default_buffer_prototype()) is not None

    async def set(self, key: str, value: Buffer) -> None:
        """Refuse."""
        raise NotImplementedError

    async def delete(self, key: str) -> None:
        """Refuse."""
        raise NotImplementedError

    def list(self) -> AsyncIterator[str]:
        """Refuse: a server can't tell."""
        raise NotImplementedError

    def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """Refuse."""
        raise NotImplementedError

    def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Refuse."""
        raise NotImplementedError


def _limit(layout: Layout | None, span: Span | None) -> int:
    if layout is None:
        return MAX_METADATA
    if span is not None:
        return span.size
    return max(layout.n_inner, 1) * layout.limit + (layout.n_index if layout.n_inner else 0)


def _check(data: bytes, layout: Layout | None, span: Span | None, is_index: bool) -> None:
    if layout is None:
        try:
            json.loads(data)
        except ValueError as error:
            raise TransientError("its metadata are no JSON") from error
    elif is_index:
        layout.check_index(data)
    elif span is None and layout.n_inner:
        layout.check_shard(data)
    else:
        layout.check_chunk(data)


def _check_guest(data: bytes | None, layout: Layout | None, span: Span | None, is_index: bool, name: str) -> None:
    """Check what another store answered, which does its own trying again."""
    if data is None:
        if span is not None and not is_index:
            raise StoreError(f"{name}: a chunk that the index of its shard names is not there; try again later")
        return
    if len(data) > _limit(layout, span):
        raise StoreError(f"{name} has {len(data):,} bytes, more than it may; the store is not to be trusted")
    try:
        _check(data, layout, span, is_index)
    except TransientError as error:
        raise StoreError(f"{name}: {error}") from error


@lru_cache(maxsize=1)
def _threads_of(process: int) -> ThreadPoolExecutor:  # noqa: ARG001 (threads don't survive a fork)
    return ThreadPoolExecutor(N_CONNECTIONS, thread_name_prefix="tessera-read")


def _threads() -> ThreadPoolExecutor:
    import os

    return _threads_of(os.getpid())
