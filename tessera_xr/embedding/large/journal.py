"""The work folder beside a store that isn't finished: what it is made from, which regions are whole, and a lock."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from tessera_xr.embedding.large.shards import VARIABLES, Sum, consolidate
from tessera_xr.errors import StoreError

SUFFIX = ".unfinished"
RECORD, JOURNAL, STORE, LOCK, OLD = "run.json", "journal.jsonl", "store", "lock", "replaced"
GROUP = "tessera_xr_journal"
"""Group of a finished store that holds what it was made from, and the checksums of its files."""
_KEY = "tessera_xr_run"


class Workplace:
    """The work folder of one store.

    Parameters
    ----------
    path : Path
        Of the store to be.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.folder = path.with_name(path.name + SUFFIX)
        self.store = self.folder / STORE
        self._record, self._journal = self.folder / RECORD, self.folder / JOURNAL

    @contextmanager
    def locked(self) -> Iterator[Workplace]:
        """Hold the work folder, which is made if need be, and taken away again if nothing is in it.

        Raises
        ------
        StoreError
            If another process holds it, or it is foreign.
        """
        from filelock import FileLock, Timeout

        strange = {p.name for p in self.folder.glob("*")} - {RECORD, JOURNAL, STORE, LOCK, OLD, f"{RECORD}.tmp"}
        if strange or (self.folder.exists() and not self.folder.is_dir()):
            raise StoreError(
                f"{self.folder} is for unfinished work, but holds something else ({', '.join(sorted(strange))}); "
                "move it away or choose another path"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise StoreError(
                f"another process is writing {self.path} at this moment; wait for it, or stop it first"
            ) from None
        try:
            yield self
        finally:
            self._leave()
            lock.release()

    def _leave(self) -> None:
        if not self._record.exists():
            shutil.rmtree(self.folder, ignore_errors=True)

    def begin(self, run: Mapping[str, Any]) -> None:
        """Note what the store is made from: from now on there is something to continue."""
        self._journal.touch()
        temporary = self._record.with_name(f"{RECORD}.tmp")
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(run, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._record)

    def clear(self) -> None:
        """Forget unfinished work; the record goes first, so that nothing half removed looks like something."""
        for name in (RECORD, f"{RECORD}.tmp", JOURNAL):
            (self.folder / name).unlink(missing_ok=True)
        for name in (STORE, OLD):
            shutil.rmtree(self.folder / name, ignore_errors=True)

    def run(self) -> dict[str, Any] | None:
        """Return what the unfinished store is made from; None if there is nothing to continue."""
        if not (self._record.is_file() and self.store.is_dir()):
            return None
        found: dict[str, Any] = json.loads(self._record.read_text(encoding="utf-8"))
        return found

    def done(self) -> dict[int, list[Sum]]:
        """Return the files of each region that was written whole.

        A last line that was cut short doesn't count, and is taken away.
        """
        content = self._journal.read_bytes() if self._journal.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            os.truncate(self._journal, len(whole))
        lines = [json.loads(line) for line in whole.splitlines()]
        return {index: [(size, crc) for size, crc in sums] for index, sums in lines if sums is not None}

    def add(self, index: int, sums: list[Sum] | None) -> None:
        """Note that a region is whole; or, without sums, that it isn't after all."""
        with self._journal.open("a", encoding="utf-8") as file:
            file.write(json.dumps([index, sums]) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def publish(self, run: Mapping[str, Any], done: Mapping[int, list[Sum]]) -> None:
        """Put the finished store in its place, in one step; an older one that may be replaced goes first."""
        write_history(self.store, run, done)
        if self.path.exists():
            shutil.rmtree(self.folder / OLD, ignore_errors=True)
            self.path.rename(self.folder / OLD)
        self.store.rename(self.path)
        self.clear()

    def reopen(self, run: Mapping[str, Any], done: Mapping[int, list[Sum]]) -> None:
        """Take a finished store back, to write again the regions that `done` lacks."""
        self.clear()
        for index, sums in done.items():
            self.add(index, sums)
        self.begin(run)
        self.path.rename(self.store)


def write_history(folder: Path, run: Mapping[str, Any], done: Mapping[int, list[Sum]]) -> None:
    """Keep in a store what it was made from, and the checksums of its files."""
    import zarr

    root = zarr.open_group(folder, mode="r+", use_consolidated=False)
    group = root.create_group(GROUP, overwrite=True, attributes={_KEY: dict(run)})
    sums = np.array([done[i] for i in range(len(done))], dtype=np.uint64).reshape(len(done), len(VARIABLES), 2)
    group.create_array("files", data=sums, dimension_names=("region", "variable", "size_and_crc32"))
    consolidate(folder)


def read_history(path: Path) -> tuple[dict[str, Any], dict[int, list[Sum]]]:
    """Return what a finished store was made from, and the checksums of its files.

    Raises
    ------
    StoreError
        If it is none that `embed_to_zarr` finished.
    """
    import zarr

    try:
        group = zarr.open_group(path / GROUP, mode="r", use_consolidated=False)
        attrs: dict[str, Any] = group.attrs.asdict()
        run: dict[str, Any] = attrs[_KEY]
        sums = np.asarray(group["files"][...])  # type: ignore[index]
    except (OSError, KeyError, ValueError) as error:
        work = path.with_name(path.name + SUFFIX)
        if work.is_dir() and not path.exists():
            raise StoreError(f"{path} isn't finished: {_count(work)}; call embed_to_zarr again as before") from None
        if not path.exists():
            raise StoreError(f"there is nothing at {path}; give the path of a store that embed_to_zarr made") from None
        raise StoreError(
            f"{path} is no store that embed_to_zarr has finished; open others with xarray.open_zarr or open_published"
        ) from error
    return run, {i: [(int(size), int(crc)) for size, crc in files] for i, files in enumerate(sums)}


def _count(work: Path) -> str:
    place = Workplace(work.with_name(work.name.removesuffix(SUFFIX)))
    run = place.run()
    return "nothing is written yet" if run is None else f"{len(place.done())} of {run['n_regions']} regions are written"


def is_ours(path: Path) -> bool:
    """Say whether there is a store that `embed_to_zarr` has finished."""
    return (path / GROUP / "zarr.json").is_file()
