"""Weights from a hub: downloaded once, checked, and every way of not getting them explained."""

from __future__ import annotations

import hashlib
import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub.constants
import pytest

import tessera_xr as txr
from tessera_xr._optional import OFFLINE
from tessera_xr.encoder.checkpoints import load_encoder
from tessera_xr.encoder.hub import WEIGHTS_FOLDER
from tessera_xr.encoder.registry import RECORDS
from tessera_xr.errors import CheckpointError, ModelUnavailableError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NANO = RECORDS["v2-nano"]


@dataclass
class Hub:
    """A hub on this machine that serves one repository; what it was asked for is kept."""

    repo: str
    """The repository's name."""
    files: dict[str, bytes]
    """Its files."""
    requests: list[str] = field(default_factory=list)
    """Method and path of every request."""
    url: str = ""
    """Where it listens."""

    def answer(self, path: str) -> tuple[int, bytes]:
        if path.startswith(f"/api/models/{self.repo}/tree/main"):
            tree = [{"type": "file", "path": p, "size": len(b), "oid": COMMIT} for p, b in self.files.items()]
            return 200, json.dumps(tree).encode()
        name = path.removeprefix(f"/{self.repo}/resolve/main/")
        return (200, self.files[name]) if name in self.files else (404, b"")


def serve(hub: Hub) -> Iterator[Hub]:
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            hub.requests.append(f"{self.command} {self.path}")
            status, body = hub.answer(self.path)
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_GET = do_HEAD

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Be quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        hub.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield hub
        server.shutdown()


@pytest.fixture(autouse=True)
def nothing_cached(tmp_path, monkeypatch) -> None:
    """Use an empty cache, and don't wait between the attempts that the hub's client makes."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    for name in (OFFLINE, WEIGHTS_FOLDER):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def hub(weights, monkeypatch) -> Iterator[Hub]:
    """Serve a tiny student in the place of v2-nano."""
    body = weights.read_bytes()
    facts = {"n_bytes": len(body), "sha256": hashlib.sha256(body).hexdigest()}
    arch = load_encoder(weights, device="cpu").record.arch
    monkeypatch.setitem(RECORDS, "v2-nano", replace(NANO, arch=arch, **facts))
    for hub in serve(Hub(str(NANO.repo), {"README.md": b"a model", str(NANO.filename): body})):
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


@pytest.fixture
def no_hub(monkeypatch) -> None:
    """Name a hub that nobody serves."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")


def test_a_model_is_downloaded_once_and_then_works_offline(hub, make_encoder, monkeypatch):
    assert not txr.models().loc["v2-nano", "available"]
    encoder = load_encoder("v2-nano", device="cpu")
    assert (encoder.record.name, encoder.sha256) == ("v2-nano", RECORDS["v2-nano"].sha256)
    assert f"GET /{NANO.repo}/resolve/main/{NANO.filename}" in hub.requests
    asked = len(hub.requests)
    monkeypatch.setenv(OFFLINE, "1")
    assert load_encoder("v2-nano", device="cpu") is encoder
    assert len(hub.requests) == asked
    assert txr.models().loc["v2-nano", "available"]


def test_a_repository_with_one_file_of_weights_needs_no_name(hub, monkeypatch):
    monkeypatch.setitem(RECORDS, "v2-nano", replace(RECORDS["v2-nano"], filename=None))
    assert load_encoder("v2-nano", device="cpu").record.name == "v2-nano"
    asked = len(hub.requests)
    assert load_encoder("v2-nano", device="cpu").record.name == "v2-nano"
    assert len(hub.requests) == asked


def test_a_repository_with_two_files_of_weights_is_not_guessed_at(hub, monkeypatch):
    monkeypatch.setitem(RECORDS, "v2-nano", replace(RECORDS["v2-nano"], filename=None))
    hub.files["other.pt"] = b""
    with pytest.raises(ModelUnavailableError, match=r"expected one \.pt file"):
        load_encoder("v2-nano", device="cpu")


def test_a_download_with_another_hash_is_refused(hub):
    body = bytearray(hub.files[str(NANO.filename)])
    body[len(body) // 2] ^= 1
    hub.files[str(NANO.filename)] = bytes(body)
    with pytest.raises(CheckpointError, match=r"its SHA-256 differs\); delete it and download it again"):
        load_encoder("v2-nano", device="cpu")


def test_a_download_of_another_size_is_refused(hub):
    hub.files[str(NANO.filename)] = hub.files[str(NANO.filename)][:-100]
    with pytest.raises(CheckpointError, match=r"truncated or another one; delete it and download it again"):
        load_encoder("v2-nano", device="cpu")


def test_a_folder_of_weights_comes_before_the_hub(hub, weights, tmp_path, monkeypatch):
    own = tmp_path / "own"
    own.mkdir()
    monkeypatch.setenv(WEIGHTS_FOLDER, str(own))
    (own / "student_nano.pt").write_bytes(weights.read_bytes())
    assert load_encoder("v2-nano", device="cpu").record.name == "v2-nano"
    assert hub.requests == []
    (own / "student_nano.pt").write_bytes(b"half a file")
    with pytest.raises(CheckpointError, match="has 11 bytes"):
        load_encoder("v2-nano", device="cpu")


def test_weights_by_path_need_no_hub(hub, weights, monkeypatch):
    monkeypatch.setenv(OFFLINE, "1")
    assert load_encoder("v2-nano", weights, device="cpu").record.name == "v2-nano"
    assert hub.requests == []


FIX = r"could not be downloaded .*run: hf download geotessera/TESSERA-V-2.0-2B-\w+.*weights='path/to/file.pt'.*WEIGHTS$"


@pytest.mark.parametrize("name", ["v2-nano", "v2-teacher"])
@pytest.mark.parametrize("said", ["1", "true"])
def test_offline(name, said, hub, monkeypatch):
    monkeypatch.setenv(OFFLINE, said)
    with pytest.raises(ModelUnavailableError, match=f"TESSERA_XR_OFFLINE is set.*{FIX[23:]}"):
        load_encoder(name)
    assert hub.requests == []


def test_offline_as_the_hub_means_it(hub, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelUnavailableError, match=FIX):
        load_encoder("v2-nano")
    assert hub.requests == []


@pytest.mark.parametrize("said", ["0", "false", ""])
def test_not_offline(said, hub, monkeypatch):
    monkeypatch.setenv(OFFLINE, said)
    assert load_encoder("v2-nano", device="cpu").record.name == "v2-nano"


@pytest.mark.parametrize("name", ["v2-nano", "v2-teacher"])
def test_a_hub_that_is_not_there(name, no_hub):
    with pytest.raises(ModelUnavailableError, match=FIX):
        load_encoder(name)


def test_a_hub_without_the_file(hub):
    hub.files.clear()
    with pytest.raises(ModelUnavailableError, match=FIX):
        load_encoder("v2-nano")


def test_nothing_half_done_is_left_in_the_cache(no_hub, tmp_path):
    with pytest.raises(ModelUnavailableError):
        load_encoder("v2-nano")
    assert not [p for p in Path(tmp_path / "cache").rglob("*.pt*") if p.is_file()]
