"""Bytes from a folder or from afar: https only, asked again after a fault, no more of them than expected."""

from __future__ import annotations

import email.utils
import hashlib
import ipaddress
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urljoin, urlsplit, urlunsplit

from tessera_xr._optional import require
from tessera_xr._version import __version__
from tessera_xr.errors import StoreError

if TYPE_CHECKING:
    import urllib3

T = TypeVar("T")

PAUSES: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0)
"""Seconds between tries; a server that names a time is given that, up to `LONGEST_PAUSE`."""
LONGEST_PAUSE = 30.0
TIMEOUT = 60.0
"""Seconds that a server may say nothing."""
DEADLINE = 300.0
"""Seconds that one answer may take as a whole."""
MAX_REDIRECTS = 5
_PIECE = 1 << 16


class TransientError(Exception):
    """A fault that may pass; `wait` is how long the server asks us to stay away."""

    def __init__(self, why: str, wait: float = 0.0) -> None:
        super().__init__(why)
        self.wait = wait


@dataclass(frozen=True)
class Span:
    """Which bytes of an object: from `start` to before `stop`, or its last `last`."""

    start: int = 0
    stop: int = 0
    last: int = 0

    @property
    def size(self) -> int:
        """Number of bytes."""
        return self.last or self.stop - self.start

    @property
    def header(self) -> str:
        """As HTTP says it."""
        return f"bytes=-{self.last}" if self.last else f"bytes={self.start}-{self.stop - 1}"


def retry(attempt: Callable[[], T], name: str) -> T:
    """Return what `attempt` returns, trying again after a `TransientError`; then raise `StoreError` on `name`."""
    pauses = iter(PAUSES)
    while True:
        try:
            return attempt()
        except TransientError as error:
            pause = next(pauses, None)
            if pause is None:
                raise StoreError(
                    f"{name} could not be read, in {len(PAUSES) + 1} tries: {error}. Try again later, or name another "
                    "copy with store="
                ) from error
            time.sleep(max(pause, min(error.wait, LONGEST_PAUSE)))


@dataclass(frozen=True)
class Folder:
    """A folder on this machine; nothing outside it is read."""

    path: Path

    @property
    def name(self) -> str:
        """What to call it."""
        return str(self.path)

    remote = False

    def get(self, key: str, limit: int, span: Span | None = None, *, known: bool = False) -> bytes | None:
        """Return the bytes of a file, or of a part of it; None if there is no such file.

        One that is known has been read from, and where it leads was checked then.
        """
        file = os.path.join(self.path, key)
        if not known:
            if not os.path.isfile(file):
                return None
            if not Path(file).resolve().is_relative_to(self.path.resolve()):
                raise StoreError(f"{file} leads out of {self.path}; a store that does is not read")
        try:
            with open(file, "rb") as opened:
                size = os.fstat(opened.fileno()).st_size
                start, stop = (0, size) if span is None else (span.start, span.stop)
                if span is not None and span.last:
                    start, stop = max(size - span.last, 0), size
                _check_size(min(stop, size) - start, limit, file)
                opened.seek(start)
                data = opened.read(stop - start)
        except FileNotFoundError:
            raise StoreError(f"{file} is gone") from None
        if span is not None and len(data) != span.size:
            raise StoreError(f"{file} ends early: {len(data)} bytes are there of {span.size}; copy it anew")
        return data


@dataclass(frozen=True)
class Site:
    """A folder on a server."""

    url: str
    """Without a slash at its end, without a query."""
    query: str = ""
    """What follows the question mark (a signature, say): sent, never shown or kept."""
    allow_http: bool = False

    remote = True

    @property
    def name(self) -> str:
        """What to call it."""
        return self.url

    def get(self, key: str, limit: int, span: Span | None = None, *, known: bool = False) -> bytes | None:
        """Return the bytes of an object, or of a part of it; None if the server twice says that there is none.

        Parameters
        ----------
        key : str
            Its path below the URL.
        limit : int
            The most bytes to accept.
        span : Span, optional
            The part to ask for.
        known : bool
            It is known to be there: "not found" is then a fault, too.
        """
        name = f"{self.url}/{key}"
        found = retry(lambda: self._try(key, limit, span, absent_is_fault=known), name)
        if found is None and not known:  # a store in trouble says this, too, and silence would look like no data
            time.sleep(PAUSES[0] / 2)
            return retry(lambda: self._try(key, limit, span, absent_is_fault=False), name)
        return found

    def _try(self, key: str, limit: int, span: Span | None, *, absent_is_fault: bool) -> bytes | None:
        import urllib3

        url = f"{self.url}/{key}" if key else self.url
        headers = {"Accept-Encoding": "identity", "User-Agent": f"tessera-xr/{__version__}"} | (
            {"Range": span.header} if span else {}
        )
        try:
            response = self._open(url, headers)
            try:
                if response.status == 404 and not absent_is_fault:
                    return None
                _check_answer(response, span, self.url)
                return _read(response, limit if span is None else min(limit, span.size), span, f"{self.url}/{key}")
            finally:
                response.close()
        except urllib3.exceptions.HTTPError as error:
            raise TransientError(f"{type(error).__name__}, {_plain(error)}") from error

    def _open(self, url: str, headers: dict[str, str]) -> urllib3.BaseHTTPResponse:
        """Send a request, following redirections only to where we would have gone ourselves."""
        target = f"{url}?{self.query}" if self.query else url
        for _ in range(MAX_REDIRECTS):
            response = _pool(urlsplit(target).scheme).request(
                "GET", target, headers=headers, preload_content=False, redirect=False, retries=False
            )
            where = response.headers.get("Location")
            if response.status not in (301, 302, 303, 307, 308) or not where:
                return response
            response.close()
            target = urljoin(target, where)
            check_url(target, self.allow_http, f"{self.url} sends on to an address that is not read: ")
        raise StoreError(f"{self.url} sends on from address to address, over {MAX_REDIRECTS} times")


def resolve_site(url: str, allow_http: bool = False) -> Site:
    """Return the site of a URL, which must be https (http for this machine, or if it is allowed)."""
    require("urllib3", "published", "reading over the network")
    check_url(url, allow_http)
    parts = urlsplit(url)
    return Site(urlunsplit((parts.scheme, parts.netloc, parts.path.rstrip("/"), "", "")), parts.query, allow_http)


def check_url(url: str, allow_http: bool = False, why: str = "") -> None:
    """Raise `StoreError` unless a URL is https, or http to this machine, and carries no password."""
    parts = urlsplit(url)
    shown = f"{parts.scheme}://{parts.hostname or ''}{parts.path}"
    if parts.username or parts.password:
        raise StoreError(f"{why}{shown} is given with a name or password in it, which end in logs; leave them out")
    if parts.scheme == "https" and parts.hostname:
        return
    if parts.scheme != "http":
        raise StoreError(f"{why}{shown} is no address to read from; give an https:// URL or a folder")
    if not allow_http and not _is_loopback(parts.hostname or ""):
        raise StoreError(
            f"{why}{shown} is not encrypted: anyone on the way can change it; use https, or allow_http=True"
        )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@lru_cache(maxsize=4)
def _pool_of(scheme: str, process: int) -> Any:  # noqa: ARG001 (a forked process must not share sockets)
    from urllib.request import getproxies

    import urllib3

    options: dict[str, Any] = {"num_pools": 8, "maxsize": 32, "timeout": urllib3.Timeout(connect=15.0, read=TIMEOUT)}
    proxy = getproxies().get(scheme)
    return urllib3.ProxyManager(proxy, **options) if proxy else urllib3.PoolManager(**options)


class _pool:  # noqa: N801
    """The pool of connections for a scheme; this machine is never asked through a proxy."""

    def __init__(self, scheme: str) -> None:
        self.scheme = scheme

    def request(self, method: str, url: str, **options: Any) -> urllib3.BaseHTTPResponse:
        from urllib.request import proxy_bypass

        host = urlsplit(url).hostname or ""
        scheme = "direct" if _is_loopback(host) or proxy_bypass(host) else self.scheme
        response: urllib3.BaseHTTPResponse = _pool_of(scheme, os.getpid()).request(method, url, **options)
        return response


def _check_answer(response: urllib3.BaseHTTPResponse, span: Span | None, name: str) -> None:
    """Raise unless an answer brings what was asked for."""
    if response.status not in (200, 206):
        raise TransientError(f"the server answers {response.status}", _wait_of(response))
    if span is None:
        if response.status == 206:
            raise TransientError("the server answers with a part of what was asked for")
        return
    if response.status == 200:
        raise StoreError(
            f"{name}: the server does not serve parts of files (it answered a Range with everything); "
            "download the store and name its folder"
        )
    found = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", response.headers.get("Content-Range") or "")
    begin = int(found.group(1)) if found else -1
    right = begin + span.size == int(found.group(3)) if found and span.last and found.group(3) != "*" else True
    if not found or (not span.last and begin != span.start) or not right:
        raise TransientError("the server answers with another part than was asked for")


def _read(response: urllib3.BaseHTTPResponse, limit: int, span: Span | None, name: str) -> bytes:
    _check_size(int(response.headers.get("Content-Length") or 0), limit, name)
    parts, size, end = [], 0, time.monotonic() + DEADLINE
    for part in response.stream(_PIECE, decode_content=False):
        size += len(part)
        _check_size(size, limit, name)
        parts.append(part)
        if time.monotonic() > end:
            raise TransientError(f"the answer takes over {DEADLINE:.0f} s")
    data = b"".join(parts)
    if span is not None and len(data) != span.size:
        raise TransientError(f"the answer has {len(data)} bytes, {span.size} were asked for")
    tag = (response.headers.get("ETag") or "").strip('"')
    # object stores tag what was uploaded in one piece with its MD5
    hashed = span is None and re.fullmatch(r"[0-9a-f]{32}", tag)
    if hashed and hashlib.md5(data, usedforsecurity=False).hexdigest() != tag:
        raise TransientError("the answer is not what its checksum says")
    return data


def _check_size(size: int, limit: int, name: str) -> None:
    if size > limit:
        raise StoreError(f"{name} is larger than it may be ({size:,} bytes, at most {limit:,}): it is not trusted")


def _wait_of(response: urllib3.BaseHTTPResponse) -> float:
    said = response.headers.get("Retry-After") or ""
    if said.isdigit():
        return float(said)
    when = email.utils.parsedate_tz(said)
    return max(email.utils.mktime_tz(when) - time.time(), 0.0) if when else 0.0


def _plain(error: Exception) -> str:
    """Return the words of an error without an address, whose query may be a signature."""
    return re.sub(r"\?[^\s'\")]*", "", str(error).splitlines()[0] if str(error) else "no details")[:200]
