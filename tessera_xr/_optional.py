"""What may be missing: optional packages, found without importing them, and the network, if it is forbidden."""

from __future__ import annotations

import os
from importlib.util import find_spec

from tessera_xr.errors import MissingExtraError, StoreError

OFFLINE = "TESSERA_XR_OFFLINE"
"""The environment variable that forbids to leave this machine."""


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


def is_offline() -> bool:
    """Say whether `OFFLINE` is set, to anything but nothing, 0 or false."""
    return os.environ.get(OFFLINE, "").lower() not in ("", "0", "false")


def refuse_offline(address: str, otherwise: str) -> None:
    """Raise `StoreError` if the network is forbidden; `otherwise` names another way."""
    if is_offline():
        raise StoreError(f"{address} isn't asked, since {OFFLINE} is set; unset it, or {otherwise}")
