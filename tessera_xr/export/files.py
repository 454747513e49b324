"""Files that appear whole or not at all, and attributes as files hold them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from tessera_xr.errors import SchemaError

PathLike = str | os.PathLike[str]


@contextmanager
def replacing(path: PathLike, example: str) -> Iterator[Path]:
    """Give a name to write to, and put the file in its place once it is whole.

    Raises
    ------
    SchemaError
        If `path` is a folder, or on another machine.
    """
    path = local(path)
    if path.is_dir():
        raise SchemaError(f"{path} is a folder; give the name of a file, for example {path / example}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=path.parent, prefix=".tessera-") as folder:
        temporary = Path(folder) / path.name
        yield temporary
        temporary.replace(path)


def local(path: PathLike) -> Path:
    """Return a path on this machine; `SchemaError` if it is an address."""
    if "://" in os.fspath(path):
        raise SchemaError(f"{os.fspath(path)} is an address; write to a local path, and copy what was written there")
    return Path(path)


def plain(value: Any) -> Any:
    """Return an attribute as JSON holds it.

    Examples
    --------
    >>> plain({"years": np.array([2020, 2021]), "share": np.float32(0.5)})
    {'years': [2020, 2021], 'share': 0.5}
    """
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.astype(str).tolist() if value.dtype.kind in "mM" else value.tolist())
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain(v) for v in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None  # JSON has no word for it
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return value.isoformat() if isinstance(value, date) else str(value)
