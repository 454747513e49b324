"""Optional packages, found without importing them."""

from __future__ import annotations

from importlib.util import find_spec


def have(package: str) -> bool:
    """Say whether `package` can be imported, without importing it."""
    return find_spec(package) is not None
