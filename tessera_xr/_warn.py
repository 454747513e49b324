"""Warnings that point at the user's line, however deep in the package they arise."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from tessera_xr.errors import TesseraWarning

_GATHERED: ContextVar[list[str] | None] = ContextVar("gathered", default=None)


def warn(message: str) -> None:
    """Issue a `TesseraWarning` as if from the first caller outside this package."""
    gathered = _GATHERED.get()
    if gathered is not None:
        gathered.append(message)
        return
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == __package__:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, TesseraWarning, stacklevel=level)


@contextmanager
def gathered_warnings() -> Iterator[list[str]]:
    """Gather the warnings of a block in a list instead, of this thread alone; `warnings` would take those of all."""
    gathered: list[str] = []
    token = _GATHERED.set(gathered)
    try:
        yield gathered
    finally:
        _GATHERED.reset(token)
