"""Warnings that point at the user's line, however deep in the package they arise."""

from __future__ import annotations

import sys
import warnings

from tessera_xr.errors import TesseraWarning


def warn(message: str) -> None:
    """Issue a `TesseraWarning` as if from the first caller outside this package."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == __package__:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, TesseraWarning, stacklevel=level)
