"""What a label set holds, and edits of it that can be undone exactly."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np

from tessera_xr.errors import SchemaError
from tessera_xr.learning.geometries import Geometries, Geometry

Value = str | float
RESERVED = ("class", "quality", "source", "geometry", "id")
"""Columns of a label set's tables that a target can't be called by."""


@dataclass(frozen=True)
class Label:
    """One labelled point or polygon."""

    id: str
    """Stable, and never given twice."""
    geometry: Geometry
    """A shapely Point, Polygon or MultiPolygon in the set's CRS."""
    value: Value
    """The name of a class, or a number."""
    quality: float = 1.0
    """In (0, 1]: the weight of its pixels."""
    source: str = ""
    """Where it is from, free text."""


@dataclass
class State:
    """All that a label set holds, but for its log."""

    classes: dict[str, str] = field(default_factory=dict)
    """Names to colours, #rrggbb, in order."""
    target: str | None = None
    """What the numbers are; None for classes."""
    crs: str = "EPSG:4326"
    grows: bool = False
    """Whether a label of an unknown class makes that class."""
    labels: dict[str, Label] = field(default_factory=dict)
    """By id, in order."""
    next_id: int = 1
    """Number of the next label; it only ever rises."""

    def new_id(self) -> str:
        """Return an id that no label has or had."""
        self.next_id += 1
        return f"L{self.next_id - 1}"


class Edit(Protocol):
    """A change of the state that knows its way back."""

    def do(self, state: State) -> None:
        """Make the change."""

    def undo(self, state: State) -> None:
        """Take it back, exactly."""


@dataclass(frozen=True)
class LabelEdit:
    """One label comes (`before` is None), changes, or goes (`after` is None)."""

    before: Label | None
    after: Label | None
    place: int
    """Its position in the order of labels."""

    def do(self, state: State) -> None:
        """Make the change."""
        _swap(state.labels, self.before, self.after, self.place)

    def undo(self, state: State) -> None:
        """Take it back, exactly."""
        _swap(state.labels, self.after, self.before, self.place)


@dataclass(frozen=True)
class TableEdit:
    """All classes, or all labels, give way to others: for edits that touch many and are rare."""

    table: Literal["classes", "labels"]
    before: Mapping[str, Any]
    after: Mapping[str, Any]

    def do(self, state: State) -> None:
        """Make the change."""
        setattr(state, self.table, dict(self.after))

    def undo(self, state: State) -> None:
        """Take it back, exactly."""
        setattr(state, self.table, dict(self.before))


@dataclass(frozen=True)
class Command:
    """What the user did: one step of undo."""

    sentence: str
    edits: tuple[Edit, ...]


@dataclass
class Log:
    """The commands that were done, and those undone that can be done again."""

    done: list[Command] = field(default_factory=list)
    undone: list[Command] = field(default_factory=list)

    def run(self, state: State, sentence: str, *edits: Edit) -> None:
        """Do a command and keep it; what was undone before can no longer be done again."""
        for edit in edits:
            edit.do(state)
        self.done.append(Command(sentence, edits))
        self.undone.clear()

    def undo(self, state: State) -> str:
        """Take back the latest command and return its sentence."""
        if not self.done:
            raise SchemaError("there is nothing to undo")
        command = self.done.pop()
        for edit in reversed(command.edits):
            edit.undo(state)
        self.undone.append(command)
        return command.sentence

    def redo(self, state: State) -> str:
        """Do the command again that was undone last and return its sentence."""
        if not self.undone:
            raise SchemaError("there is nothing to do again")
        command = self.undone.pop()
        for edit in command.edits:
            edit.do(state)
        self.done.append(command)
        return command.sentence


def checked_quality(quality: Any) -> float:
    """Return a quality as a number in (0, 1].

    Raises
    ------
    SchemaError
        If it is none.
    """
    # written so that NaN fails
    if isinstance(quality, bool | np.bool_) or not isinstance(quality, int | float | np.number) or not 0 < quality <= 1:
        raise SchemaError(f"quality must be a number above 0 and at most 1, not {quality!r}")
    return float(quality)


def checked_source(source: Any) -> str:
    """Return a source, which must be text."""
    if not isinstance(source, str):
        raise SchemaError(f"source must be text, not {source!r}")
    return str(source)


def checked_name(name: Any) -> str:
    """Return the name of a class, which must be text that isn't blank."""
    if not isinstance(name, str) or not name.strip():
        raise SchemaError(f"a class is named by text, not {name!r}" + (f"; give {str(name)!r}" if name != "" else ""))
    return str(name).strip()


def checked_number(value: Any) -> float:
    """Return the value of a numeric label, which must be finite."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.number) or not np.isfinite(value):
        raise SchemaError(f"the value of a label must be a finite number here, not {value!r}")
    return float(value)


def checked_target(target: Any) -> str:
    """Return the name of a numeric target."""
    if not isinstance(target, str) or not target.strip() or target in RESERVED:
        raise SchemaError(f"target={target!r} is no name for numbers; give text other than {', '.join(RESERVED)}")
    return str(target)


def checked_colour(colour: Any) -> str:
    """Return a colour as #rrggbb.

    Examples
    --------
    >>> checked_colour("red"), checked_colour((0, 0.5, 1))
    ('#ff0000', '#0080ff')
    """
    from matplotlib.colors import to_hex

    try:
        return to_hex(colour, keep_alpha=False)
    except (ValueError, TypeError) as error:
        raise SchemaError(f"{colour!r} is no colour; give '#rrggbb', or a name such as 'forestgreen'") from error


def coloured(names: Iterable[str], given: Mapping[str, Any] | None = None) -> dict[str, str]:
    """Return a colour for each name: the given ones, and colours of the palette that differ from them."""
    from tessera_xr.analysis.clustering import palette

    colours = {name: checked_colour(colour) for name, colour in (given or {}).items()}
    names = list(names)
    flags: dict[str, str] = {}
    for name in names:
        other = flags.setdefault("_".join(name.split()), name)
        if other != name:
            raise SchemaError(f"classes {other!r} and {name!r} can't be told apart in a map's flags; rename one")
    used = {colours[name] for name in names if name in colours}
    free = (colour for colour in palette(len(names) + len(used)) if colour not in used)
    return {name: colours[name] if name in colours else next(free) for name in names}


def with_class(classes: Mapping[str, str], name: str, colour: Any = None) -> dict[str, str]:
    """Return the classes and one more, in a colour of its own if none is given."""
    return coloured([*classes, name], {**classes, **({} if colour is None else {name: colour})})


def filled(
    state: State,
    geometries: Geometries,
    values: Sequence[Value],
    *,
    quality: Sequence[float] | None = None,
    source: Sequence[str] | None = None,
    ids: Sequence[str | None] | None = None,
) -> State:
    """Return the state with labels, all checked before; where `ids` holds None or an id again, a new one is made."""
    n = len(geometries)
    given = _first_of_each(ids or [None] * n)
    numbers = [int(i[1:]) for i in given if i is not None and re.fullmatch(r"L[0-9]{1,15}", i)]
    state.next_id = max([state.next_id, *(number + 1 for number in numbers)])
    for name, *row in zip(given, geometries, values, quality or [1.0] * n, source or [""] * n, strict=True):
        label = Label(name or state.new_id(), *row)
        state.labels[label.id] = label
    return state


def _first_of_each(ids: Iterable[str | None]) -> list[str | None]:
    """Return ids with None for those that were there before."""
    seen: set[str | None] = set()
    once = []
    for name in ids:
        once.append(None if name in seen else name)
        seen.add(name)
    return once


def _swap(labels: dict[str, Label], old: Label | None, new: Label | None, place: int) -> None:
    if new is None:
        assert old is not None
        del labels[old.id]
    elif old is not None or place == len(labels):
        labels[new.id] = new
    else:
        items = list(labels.items())
        items.insert(place, (new.id, new))
        labels.clear()
        labels.update(items)
