"""A row of the suite: a task, our time, that of what is beside it, the floor, and the ratios; as JSON and Markdown."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass, field
from typing import Any

KINDS = ("faster", "longer", "share", "seconds", "MB")


@dataclass(frozen=True)
class Want:
    """What is wanted of a row."""

    kind: str
    """"faster": at least so many times as fast as what is beside; "longer": at most so many times its time;
    "share": at least so much of the floor; "seconds" and "MB": at most."""
    limit: float

    def __str__(self) -> str:
        n = f"{self.limit:g}"
        if self.kind in ("faster", "longer"):
            return f"at least {n}x as fast" if self.kind == "faster" else f"at most {n}x as long"
        if self.kind == "share":
            return f"at least {n} of the rate"
        return f"at most {n} {'s' if self.kind == 'seconds' else 'MB'}"


@dataclass(frozen=True)
class Row:
    """One measurement, or the reason why there is none. Lists hold one value for each round; rounds run in turn."""

    group: str
    task: str
    size: int | None = None
    """Pixels along a side."""
    ours: list[float] = field(default_factory=list)
    """Seconds."""
    beside: str = ""
    """Name of what ours is held against: a peer, or the least work that could do."""
    theirs: list[float] = field(default_factory=list)
    """Its seconds; fewer rounds if it is slow."""
    beside_skipped: str = ""
    """Why it has none."""
    operations: float = 0.0
    """Floating-point operations that the task needs."""
    bytes: float = 0.0
    """Bytes that it must read and write."""
    floors: list[float] = field(default_factory=list)
    """Seconds that this machine would take for those, at the rates of each round; see `machine.floor`."""
    want: Want | None = None
    peak_mb: float | None = None
    """Memory that it took beyond what the process held before, in MB."""
    note: str = ""
    skipped: str = ""
    """Why the row couldn't run."""

    @property
    def seconds(self) -> float | None:
        """Median of ours."""
        return statistics.median(self.ours) if self.ours else None

    @property
    def spread(self) -> float | None:
        """Slowest round less the fastest, as a share of the median."""
        return (max(self.ours) - min(self.ours)) / statistics.median(self.ours) if len(self.ours) > 1 else None

    @property
    def beside_seconds(self) -> float | None:
        """Median of theirs."""
        return statistics.median(self.theirs) if self.theirs else None

    @property
    def speedup(self) -> float | None:
        """Theirs over ours, the median of the rounds."""
        pairs = list(zip(self.ours, self.theirs, strict=False))
        return statistics.median(b / a for a, b in pairs) if pairs else None

    @property
    def floor(self) -> float | None:
        """Median of the floors."""
        return statistics.median(self.floors) if self.floors else None

    @property
    def over_floor(self) -> float | None:
        """Ours over the floor, the median of the rounds."""
        pairs = list(zip(self.ours, self.floors, strict=False))
        return statistics.median(a / b for a, b in pairs) if pairs else None

    @property
    def met(self) -> bool | None:
        """Whether what is wanted was found; None if nothing is, or nothing was measured."""
        if self.want is None:
            return None
        found, limit = self._wanted(), self.want.limit
        if found is None:
            return None
        return bool(found >= limit if self.want.kind in ("faster", "share") else found <= limit)

    def _wanted(self) -> float | None:
        kind = self.want.kind if self.want else ""
        ratio = {"faster": self.speedup, "longer": self.speedup, "share": self.over_floor}.get(kind)
        if kind in ("longer", "share"):
            return None if ratio is None else 1 / ratio
        return ratio if kind == "faster" else self.seconds if kind == "seconds" else self.peak_mb

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold: what was measured, and what follows from it."""
        names = ("seconds", "spread", "beside_seconds", "speedup", "floor", "over_floor", "met")
        return asdict(self) | {"follows": {name: getattr(self, name) for name in names}}

    @classmethod
    def from_dict(cls, found: dict[str, Any]) -> Row:
        """Return the row that `to_dict` told of."""
        kept = {k: v for k, v in found.items() if k != "follows"}
        return cls(**kept | {"want": Want(**kept["want"]) if kept.get("want") else None})


HEADS = (
    "task",
    "size",
    "s",
    "spread",
    "beside",
    "its s",
    "ratio",
    "floor s",
    "over floor",
    "wanted",
    "peak MB",
    "note",
)


def cells(row: Row) -> list[str]:
    """Return a row's cells, in the order of `HEADS`."""
    size = "" if row.size is None else str(row.size)
    if row.skipped:
        return [row.task, size, *[""] * (len(HEADS) - 3), f"not run: {row.skipped}"]
    wanted = "" if row.want is None else f"{row.want}{'' if row.met is not False else ' (**not met**)'}"
    note = "; ".join(filter(None, [row.note, row.beside_skipped and f"{row.beside}: {row.beside_skipped}"]))
    return [
        row.task, size, number(row.seconds), "" if row.spread is None else f"{row.spread:.0%}",
        row.beside, number(row.beside_seconds), as_ratio(row.speedup), number(row.floor), number(row.over_floor),
        wanted, number(row.peak_mb), note,
    ]  # fmt: skip


def as_ratio(speedup: float | None) -> str:
    """Return "4x as fast" or "3x as long"."""
    if speedup is None:
        return ""
    return f"{number(speedup)}x as fast" if speedup >= 1 else f"{number(1 / speedup)}x as long"


def number(value: float | None) -> str:
    """Return two significant digits, all those before the point; nothing for what was not measured."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2g}" if abs(value) < 10 else f"{value:.0f}"


def markdown(rows: list[Row], machine: dict[str, Any]) -> str:
    """Return the tables, a group each, with the machine above."""
    lines = [describe(machine), ""]
    for group in dict.fromkeys(row.group for row in rows):
        lines += [f"### {group}", "", "| " + " | ".join(HEADS) + " |", "|" + "|".join(aligned(h) for h in HEADS) + "|"]
        lines += [
            "| " + " | ".join(c.replace("|", "/") for c in cells(row)) + " |" for row in rows if row.group == group
        ]
        lines.append("")
    return "\n".join(lines)


def aligned(head: str) -> str:
    return "---" if head in ("task", "beside", "ratio", "wanted", "note") else "---:"


def describe(machine: dict[str, Any]) -> str:
    """Return a paragraph on the machine."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    rates = ", ".join(f"{name} {value:.3g}" for name, value in machine["rates"].items())
    return (
        f"{machine['date']}, {machine['processor']}, {machine['cores']} cores, {machine['memory_gb']:.0f} GB; {rates}. "
        f"{versions}. `{machine['command']}`, {machine['seconds'] / 60:.0f} min."
    )
