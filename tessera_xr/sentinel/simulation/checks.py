"""Checks of the arguments of simulations."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from tessera_xr.errors import SchemaError


def is_whole(value: object) -> bool:
    """Say whether `value` is a whole number, which True and 2.0 are not."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def check_whole(what: str, value: int, least: int) -> None:
    """Raise `SchemaError` unless `value` is a whole number, at least `least`."""
    if not is_whole(value) or value < least:
        raise SchemaError(f"{what}={value!r} is not allowed; give a whole number, {least} or above")


def check_range(what: str, value: float, low: float, high: float) -> None:
    """Raise `SchemaError` unless `low` <= `value` <= `high`."""
    if not low <= value <= high:
        raise SchemaError(f"{what}={value!r} is out of range; give a number from {low:g} to {high:g}")


def check_names(what: str, names: Iterable[str], allowed: tuple[str, ...]) -> tuple[str, ...]:
    """Return the `names`, in the order of `allowed`; raise `SchemaError` if one is not among them."""
    given = (names,) if isinstance(names, str) else tuple(names)
    unknown = [name for name in given if name not in allowed]
    if unknown:
        raise SchemaError(f"{what}: {unknown[0]!r} is not known; choose among {', '.join(map(repr, allowed))}")
    return tuple(name for name in allowed if name in given)
