"""How loops over pixels are compiled. Import this inside functions: numba is heavy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

Kernel = TypeVar("Kernel", bound=Callable[..., Any])


def kernel(function: Kernel) -> Kernel:
    """Compile for the CPU; the GIL is released. Sums may be reordered, but NaN keeps its meaning: no data."""
    return _compiled(function, {"reassoc", "contract", "nsz", "arcp"})


def careful_kernel(function: Kernel) -> Kernel:
    """Compile as `kernel` does, but divide as written, not by a rounded reciprocal."""
    return _compiled(function, {"reassoc", "contract"})


def finite_kernel(function: Kernel) -> Kernel:
    """Compile for values that are never NaN, whose greatest can be taken many at a time."""
    return _compiled(function, {"reassoc", "nsz", "nnan"})


def _compiled(function: Kernel, fastmath: set[str]) -> Kernel:
    options: Any = {"nogil": True, "fastmath": fastmath, "cache": True, "error_model": "numpy"}
    return cast("Kernel", numba.njit(**options)(function))
