"""A server on the loopback that serves a folder, and faults on demand: what remote reading is tested against."""

from __future__ import annotations

import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

KINDS = ("500", "503", "404", "429", "reset", "truncate", "slow", "wrong")
"""What can go wrong: a status; the connection reset, or closed halfway; a wait; other bytes of the same size."""


@dataclass
class Fault:
    pattern: re.Pattern[str]
    kind: str
    left: float
    after: int


@dataclass
class Server:
    """A running server."""

    url: str
    """Without a slash at the end."""
    folder: Path
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    """(method, path, Range header) in order of arrival; HEAD too."""
    routes: dict[str, Callable[[str, str, bytes], tuple[int, str, bytes]]] = field(default_factory=dict)
    """An API beside the files: path -> function of (method, path and query, body) to (status, content type, body)."""
    guard: Callable[[str], int | None] | None = None
    """Asked with the full path, query included, of each request: a status to refuse with, or None."""
    slow_seconds: float = 1.0
    _faults: list[Fault] = field(default_factory=list)
    _lock: Any = field(default_factory=threading.Lock)

    def fault(self, pattern: str, kind: str, times: float = 1, after: int = 0) -> None:
        """Let `times` requests whose path matches the regular expression fail, after so many that don't; inf: all."""
        if kind not in KINDS:
            raise ValueError(f"{kind!r} is no fault; choose one of {KINDS}")
        self._faults.append(Fault(re.compile(pattern), kind, times, after))

    def clear(self) -> None:
        """Forget faults and requests."""
        self._faults.clear()
        self.requests.clear()

    def take_fault(self, path: str) -> str | None:
        with self._lock:
            for fault in self._faults:
                if fault.left > 0 and fault.pattern.search(path):
                    if fault.after:
                        fault.after -= 1
                        continue
                    fault.left -= 1
                    return fault.kind
        return None


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: Server

    def do_GET(self) -> None:
        self._answer("GET")

    def do_HEAD(self) -> None:
        self._answer("HEAD")

    def do_POST(self) -> None:
        self._answer("POST")

    def _answer(self, method: str) -> None:
        path = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0) or 0))
        self.state.requests.append((method, path, self.headers.get("Range")))
        fault = self.state.take_fault(path)
        if fault == "reset":
            # linger of 0 seconds: the peer sees a reset, not an end
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.connection.close()
            return
        if fault and fault.isdigit():
            self._send(int(fault), b"fault", "text/plain", method)
            return
        if fault == "slow":
            time.sleep(self.state.slow_seconds)
        refusal = None if self.state.guard is None else self.state.guard(self.path)
        if refusal is not None:
            self._send(refusal, b"refused", "text/plain", method)
            return
        route = next((f for name, f in self.state.routes.items() if path.rstrip("/") == name.rstrip("/")), None)
        if route is not None:
            status, kind, content = route(method, self.path, body)
            self._send(status, content, kind, method, fault)
        else:
            self._file(path, method, fault)

    def _file(self, path: str, method: str, fault: str | None) -> None:
        root = self.state.folder.resolve()
        file = (root / path.lstrip("/")).resolve()
        if not file.is_relative_to(root) or not file.is_file():
            self._send(404, b"not found", "text/plain", method)
            return
        content = file.read_bytes()
        kind = {".json": "application/json", ".geojson": "application/geo+json"}.get(
            file.suffix, "application/octet-stream"
        )
        self._send(200, content, kind, method, fault)

    def _send(self, status: int, content: bytes, kind: str, method: str, fault: str | None = None) -> None:
        total, extra = len(content), {}
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range") or "")
        if status == 200 and asked and asked.group(0) != "bytes=-":
            first, last = asked.groups()
            start = int(first) if first else max(total - int(last), 0)
            stop = min(int(last) + 1 if first and last else total, total)
            if start >= total:
                status, content, extra = 416, b"", {"Content-Range": f"bytes */{total}"}
            else:
                status, content = 206, content[start:stop]
                extra = {"Content-Range": f"bytes {start}-{stop - 1}/{total}"}
        if fault == "wrong":
            content = bytes(b ^ 0x5A for b in content)
        try:
            self.send_response(status)
            for name, value in {"Content-Type": kind, "Accept-Ranges": "bytes", **extra}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if method == "HEAD":
                return
            if fault == "truncate":
                self.wfile.write(content[: len(content) // 2])
                self.wfile.flush()
                self.close_connection = True
                return
            self.wfile.write(content)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def log_message(self, *args: Any) -> None:
        """Keep the tests' output quiet."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news."""


@contextmanager
def serve(folder: Path) -> Iterator[Server]:
    """Serve a folder over HTTP, with ranges, until the block ends."""
    handler = type("BoundHandler", (Handler,), {})
    server = _Server(("127.0.0.1", 0), handler)
    handler.state = Server(f"http://127.0.0.1:{server.server_address[1]}", Path(folder))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield handler.state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
