"""Optional packages, found without importing them."""

from __future__ import annotations

from importlib.util import find_spec

from tessera_xr.errors import MissingExtraError


def have(package: str) -> bool:
    """Say whether `package` can be imported, without importing it."""
    return find_spec(package) is not None


def require(package: str, extra: str, what: str, otherwise: str = "") -> None:
    """Raise `MissingExtraError` unless `package` can be imported; `what` needs it, `otherwise` names another way."""
    if not have(package):
        way = f"; or {otherwise}" if otherwise else ""
        raise MissingExtraError(
            f"{what} needs {package}, which isn't installed: pip install 'tessera-xr[{extra}]'{way}"
        )
