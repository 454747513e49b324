"""Optional packages, found without importing them."""

from __future__ import annotations

from importlib.util import find_spec

from tessera_xr.errors import MissingDependencyError


def have(package: str) -> bool:
    """Say whether `package` can be imported, without importing it."""
    return find_spec(package) is not None


def require(package: str, extra: str, purpose: str) -> None:
    """Raise `MissingDependencyError`, naming the extra to install, unless `package` can be imported."""
    if not have(package):
        raise MissingDependencyError(
            f"{purpose} needs the package {package!r}, which is not installed. "
            f"Install it with: pip install 'tessera-xr[{extra}]'"
        )
