"""Where the files of weights are: the package, the user's folder, the hub's cache, the hub."""

from __future__ import annotations

import hashlib
import os
import socket
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

from tessera_xr._optional import OFFLINE, have, is_offline
from tessera_xr.encoder.registry import ModelRecord
from tessera_xr.errors import CheckpointError, ModelUnavailableError

WEIGHTS_FOLDER = "TESSERA_XR_WEIGHTS"
HUB = "https://huggingface.co"
DATA = Path(__file__).resolve().parents[1] / "data"
PATIENCE = 5.0
"""Seconds after which a hub that doesn't answer is out of reach: its client would go on trying for over a minute."""


def locate(record: ModelRecord) -> Path:
    """Return the file of a model, downloading it if need be (with progress; hash checked where known)."""
    path = _on_disk(record)
    if path is None:
        if record.bundled:
            raise ModelUnavailableError(
                f"the package lacks its own file {DATA / record.name / str(record.filename)}; install tessera_xr again"
            )
        if record.repo is None:
            raise ModelUnavailableError(
                f"the weights of {record.name!r} are shared by their authors as a file"
                f"{f' ({record.filename})' if record.filename else ''}, not on a hub: pass its path, "
                f"embed({record.name!r}, weights='path/to/file.pt'), or put it in a folder as {record.name}.pt and "
                f"name that folder in the environment variable {WEIGHTS_FOLDER}"
            )
        path = _download(record)
    _check_file(path, record)
    return path


def is_here(record: ModelRecord) -> bool:
    """Say whether the model can be used offline."""
    path = _on_disk(record)
    return path is not None and record.n_bytes in (None, path.stat().st_size)


def _on_disk(record: ModelRecord) -> Path | None:
    """Return the file if it is in the package, or else in the user's own folder of weights or in the hub's cache."""
    if record.bundled:  # from nowhere else: its name in a folder of weights may be an encoder of one's own
        own = DATA / record.name / str(record.filename)
        return own if own.is_file() else None
    folder = os.environ.get(WEIGHTS_FOLDER)
    for name in (Path(record.filename or "").name, f"{record.name}.pt"):
        if folder and name and (own := Path(folder).expanduser() / name).is_file():
            return own
    return _in_cache(record) if record.repo else None


def _in_cache(record: ModelRecord) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(str(record.repo), local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    found = sorted(folder.rglob(record.filename or "*.pt"))
    return found[0] if len(found) == 1 else None


def _download(record: ModelRecord) -> Path:
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import OfflineModeIsEnabled

    endpoint = os.environ.get("HF_ENDPOINT")
    try:
        if is_offline():
            raise OfflineModeIsEnabled(f"{OFFLINE} is set")
        _knock(endpoint or HUB)
        filename = record.filename or _only_weights(HfApi(endpoint=endpoint).list_repo_files(str(record.repo)))
        return Path(hf_hub_download(str(record.repo), filename, endpoint=endpoint))
    except _download_errors() as error:
        raise ModelUnavailableError(
            f"the weights of {record.name!r} are not on this machine and could not be downloaded "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no details'}). "
            f"Where there is internet, run: hf download {record.repo} {record.filename or ''}".rstrip()
            + f"; then copy the file here and pass embed({record.name!r}, weights='path/to/file.pt'), "
            f"or name it {record.name}.pt and its folder in the environment variable {WEIGHTS_FOLDER}"
        ) from error


def _knock(endpoint: str) -> None:
    """Raise `OSError` if nothing answers there within `PATIENCE`; a proxy answers for others, so it isn't asked."""
    address = urlsplit(endpoint)
    if address.scheme not in getproxies():
        port = address.port or {"http": 80}.get(address.scheme, 443)
        socket.create_connection((address.hostname or "", port), timeout=PATIENCE).close()


def _download_errors() -> tuple[type[Exception], ...]:
    """Return what a download may fail with; the client under huggingface_hub is httpx up to its 1.x, httpx2 since."""
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    of_client = [import_module(name).HTTPError for name in ("httpx", "httpx2") if have(name)]
    return (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError, *of_client)


def _only_weights(files: list[str]) -> str:
    found = [f for f in files if f.endswith((".pt", ".pth"))]
    if len(found) != 1:
        raise FileNotFoundError(f"expected one .pt file in the repository, found {found}")
    return found[0]


def _check_file(path: Path, record: ModelRecord) -> None:
    size = path.stat().st_size
    fix = "install tessera_xr again" if record.bundled else "delete it and download it again"
    if record.n_bytes and size != record.n_bytes:
        raise CheckpointError(
            f"{path} has {size} bytes, {record.name!r} has {record.n_bytes}: "
            f"the file is truncated or another one; {fix}"
        )
    if record.sha256 and hash_file(path, (path.stat().st_mtime_ns, size)) != record.sha256:
        raise CheckpointError(f"{path} is not the published file of {record.name!r} (its SHA-256 differs); {fix}")


@lru_cache(maxsize=16)
def hash_file(path: Path, stamp: tuple[int, int]) -> str:  # noqa: ARG001 (a changed file has another stamp)
    """Return the SHA-256 of a file; `stamp` is its time and size, so that a changed file is read again."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
