"""Addresses that strangers give: which are safe to read from, and what of them may be shown."""

from __future__ import annotations

import ipaddress
import logging
import re
from urllib.parse import urlsplit

LONGEST = 300
"""Characters of somebody else's message that are passed on."""


def is_loopback(host: str) -> bool:
    """Say whether `host` is this machine, by name or address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def url_fault(url: object, *, loopback: bool) -> str | None:
    """Return what speaks against reading `url`, None if nothing does; http is for this machine, where `loopback`."""
    if not isinstance(url, str) or re.search(r"[\s\x00-\x1f\x7f]", url):
        return "is no address"
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        return "is no address"
    if parts.username is not None or parts.password is not None:
        return "carries a password; give credentials in another way"
    if parts.scheme == "https" and host:
        return None
    if parts.scheme == "http" and is_loopback(host):
        return None if loopback else "is on this machine, though the catalogue isn't"
    return "is not https (and no file, bucket or unencrypted address is read)"


def public_url(url: str) -> str:
    """Return `url` without what may be secret: user, password, query and fragment.

    Examples
    --------
    >>> public_url("https://user:word@a.blob.core.windows.net/s2/B04.tif?sig=secret")
    'https://a.blob.core.windows.net/s2/B04.tif'
    """
    plain = re.split(r"[?#]", str(url), maxsplit=1)[0]
    return re.sub(r"(?<=://)[^/@]*@", "", plain)


def redacted(text: object) -> str:
    """Return `text` with every address in it shortened to its public part."""
    plain = re.sub(r"https?://[^\s'\"<>)\]]+", lambda match: public_url(match[0]), str(text))
    return re.sub(r"\?[^\s'\")]*=[^\s'\")]*", "", plain)


def shortened(text: object) -> str:
    """Return somebody else's message as it may be passed on: redacted, and no longer than a line or two."""
    return redacted(text)[:LONGEST]


class Redaction(logging.Filter):
    """Takes what may be secret out of records, for loggers of packages that write addresses into them."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Change the record; it is always kept."""
        record.msg, record.args = redacted(record.getMessage()), ()
        return True
