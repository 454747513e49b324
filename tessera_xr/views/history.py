"""Undo and redo over questions and labels together, in the order in which they were made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from tessera_xr.errors import SchemaError
from tessera_xr.learning.labels import LabelSet
from tessera_xr.views.answers import Query

Step: TypeAlias = "tuple[Query, Query] | None"
"""A question before and after; None stands for an edit in the labels' own log."""


class History:
    """A question and a set of labels, and the way back through all changes of both.

    Labels may be edited directly too, in a cell of the notebook say: such edits are taken in when next asked.

    Parameters
    ----------
    labels : LabelSet
        Whose own log holds the edits.
    """

    def __init__(self, labels: LabelSet) -> None:
        if not isinstance(labels, LabelSet):
            raise SchemaError(
                f"labels are a LabelSet, not {type(labels).__name__}; LabelSet.from_geodataframe makes one"
            )
        self.labels, self.query = labels, Query()
        self._done: list[Step] = [None] * len(labels.history)
        self._undone: list[Step] = []

    @property
    def can_undo(self) -> bool:
        """Whether there is something to take back."""
        self._follow()
        return bool(self._done)

    @property
    def can_redo(self) -> bool:
        """Whether there is something to make again."""
        self._follow()
        return bool(self._undone)

    @property
    def last_is_label(self) -> bool:
        """Whether the latest change is one of the labels."""
        return self.can_undo and self._done[-1] is None

    def ask(self, query: Query) -> None:
        """Change the question."""
        self._follow()
        if query != self.query:
            self._done.append((self.query, query))
            self._undone.clear()
            self.query = query

    def edit(self, change: Callable[[LabelSet], Any]) -> Any:
        """Change the labels, in any way that they log; returns what `change` does."""
        self._follow()
        done = change(self.labels)
        self._follow()
        return done

    def undo(self) -> None:
        """Take back the latest change."""
        if not self.can_undo:
            raise SchemaError("there is nothing to undo")
        step = self._done.pop()
        if step is None:
            self.labels.undo()
        else:
            self.query = step[0]
        self._undone.append(step)

    def redo(self) -> None:
        """Make it again."""
        if not self.can_redo:
            raise SchemaError("there is nothing to do again")
        step = self._undone.pop()
        if step is None:
            self.labels.redo()
        else:
            self.query = step[1]
        self._done.append(step)

    def become(self, other: History) -> None:
        """Take over another's question and labels; what was done so far can't be undone."""
        self.labels, self.query = other.labels, other.query
        self.forget()

    def forget(self) -> None:
        """Begin anew: what was done so far can't be undone."""
        self._done = [None] * len(self.labels.history)
        self._undone = []

    def _follow(self) -> None:
        """Take in edits that the labels' log has and this hasn't, or the other way round."""
        more = len(self.labels.history) - self._done.count(None)
        if more > 0:
            self._done += [None] * more
            self._undone.clear()
        for _ in range(-more):
            last = len(self._done) - 1 - self._done[::-1].index(None)
            del self._done[last]
            self._undone.clear()
