"""How rows are measured: ours, what is beside it and the machine's rates in turn, round by round, with memory."""

from __future__ import annotations

import ctypes
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.rows import Row, Want

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Settings:
    """What is asked of the suite; travels to the process that measures as JSON."""

    repeats: int = 3
    """Rounds of each row, fewer of what takes longer than `patience` in all."""
    patience: float = 15.0
    """Seconds: what is expected to take longer for one call isn't run, and says so."""
    memory_gb: float = 8.0
    """What needs more isn't run, and says so."""
    quick: bool = False
    """Small inputs, to see that all works."""
    peer: str = ""
    """Folder of the authors' code."""
    price: float = 3.0
    """Dollars for an hour of a GPU."""
    models: tuple[str, ...] = ()
    """To embed with; the usual ones if empty."""
    torch_rates: bool = True
    """Whether to measure torch's rates, too."""

    def lacks_memory(self, n_bytes: float) -> str:
        """Return why so many bytes more are too many; "" if they aren't."""
        held = memory("VmRSS") * 1e6
        if (held + n_bytes) / 1e9 <= self.memory_gb:
            return ""
        return f"needs {(held + n_bytes) / 1e9:.1f} GB, more than --memory {self.memory_gb:g}"

    def takes_long(self, seconds: float) -> str:
        """Return why so many seconds are too many; "" if they aren't."""
        if seconds <= self.patience:
            return ""
        return f"would take about {seconds:.0f} s, more than --patience {self.patience:g}"


@dataclass(frozen=True)
class Beside:
    """Something to hold ours against, run in the same rounds."""

    name: str
    call: Callable[[], Any] | None
    """None if it can't be run."""
    want: Want | None = None
    skipped: str = ""
    """Why it can't."""
    factor: float = 1.0
    """What its seconds are multiplied with, if it does a part of the work."""
    note: str = ""


def compare(
    row: Row, ours: Callable[[], Any], beside: Sequence[Beside], settings: Settings, *, warm: bool = True
) -> list[Row]:
    """Measure a task: a row alone if nothing is beside it, else one for each thing beside.

    Parameters
    ----------
    row : Row
        Group, task, size, operations, bytes; what is wanted of it where nothing is beside.
    warm : bool, default True
        Run everything once before, for compiling and fresh memory, unless that takes long.
    """
    running = [b for b in beside if b.call is not None]
    mine: list[float] = []
    theirs: dict[str, list[float]] = {b.name: [] for b in running}
    floors: list[float] = []
    seconds, peak = peak_of(ours)
    once = settings.quick or not warm or seconds > settings.patience / 4  # compiling is little of what takes long
    if not once:
        for b in running:
            if b.factor != 1 or machine.clock(b.call) > settings.patience / 4:  # a slow peer needs no second call
                break
        peak = peak_of(ours)[1]  # fresh pages cost time: what counts memory isn't what is timed
    started = time.perf_counter()
    for _round in range(1 if once else settings.repeats):
        mine.append(seconds if once else machine.clock(ours))
        if row.operations or row.bytes:
            floors.append(machine.floor(row.operations, row.bytes))
        for b in running:
            if sum(theirs[b.name]) < settings.patience:
                theirs[b.name].append(b.factor * machine.clock(b.call))
        if time.perf_counter() - started > settings.patience:
            break
    row = replace(row, ours=mine, floors=floors, peak_mb=peak if row.peak_mb is None else row.peak_mb)
    if not beside:
        return [row]
    return [
        replace(row, beside=b.name, theirs=theirs.get(b.name, []), want=b.want, beside_skipped=b.skipped,
                note="; ".join(filter(None, [row.note, b.note])))
        for b in beside
    ]  # fmt: skip


def peak_of(call: Callable[[], Any]) -> tuple[float, float | None]:
    """Return seconds of a call, and the MB that the process grew by meanwhile; None where that can't be told."""
    trim()
    if not reset_peak():
        return machine.clock(call), None
    before = memory("VmRSS")
    seconds = machine.clock(call)
    return seconds, max(memory("VmHWM") - before, 0.0)


def trim() -> None:
    """Give freed memory back to the system, so that it counts when it is used again."""
    import gc

    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError):  # another C library
        return


def reset_peak() -> bool:
    """Let the peak of resident memory begin anew; False where the system doesn't allow that."""
    try:
        RESET.write_text("5")
    except OSError:
        return False
    return True


def memory(name: str, pid: int | None = None) -> float:
    """Return a figure of /proc/PID/status in MB, such as VmRSS or VmHWM; 0 where there is none."""
    path = STATUS if pid is None else Path(f"/proc/{pid}/status")
    found = re.search(rf"{name}:\s+(\d+) kB", path.read_text()) if path.exists() else None
    return int(found[1]) * 1024 / 1e6 if found else 0.0


def alone(row: Row, seconds: Sequence[float], **more: Any) -> Row:
    """Return a row of what was timed elsewhere."""
    return replace(row, ours=list(seconds), **more)


def with_peak(row: Row, call: Callable[[], Any], repeats: int) -> Iterator[Row]:
    """Yield a row of a call that needs nothing beside it and can't be warmed."""
    found = [peak_of(call) for _ in range(repeats)]
    peaks = [p for _, p in found if p is not None]
    yield replace(row, ours=[s for s, _ in found], peak_mb=max(peaks) if peaks else None)


def children_rss() -> float:
    """Return the resident memory of this process's children in MB."""
    pids = [int(p.name) for p in Path("/proc").glob("[0-9]*") if _parent(p) == os.getpid()]
    return sum(memory("VmRSS", pid) for pid in pids)


def _parent(folder: Path) -> int:
    try:
        return int(re.search(r"PPid:\s+(\d+)", (folder / "status").read_text())[1])  # type: ignore[index]
    except (OSError, TypeError):
        return -1
