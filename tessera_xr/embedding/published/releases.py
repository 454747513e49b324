"""What TESSERA's authors and others have published: names, places, and which model made it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from tessera_xr.embedding.schema import IDENTITY, OFFICIAL
from tessera_xr.errors import SchemaError, VersionMismatchError

BUCKET = "https://s3.us-west-2.amazonaws.com/us-west-2.opendata.source.coop/tessera/tessera"
"""The bucket behind https://data.source.coop/tessera/tessera, whose gateway turns requests away under load."""


@dataclass(frozen=True)
class Release:
    """One set of published embeddings; those of different sets do not mix."""

    name: str
    """What `version=` calls it, and the `model` of its embeddings."""
    family: str
    """As in `ModelRecord`."""
    folder: str
    """Of its Zarr store, and by which a copy of it is known."""
    tiles: str
    """Folder of its tiles."""
    landmasks: str
    """Folder of the masks that go with the tiles."""
    made_by: tuple[str, ...]
    """Models of this package that compute the same."""

    @property
    def url(self) -> str:
        """Where its Zarr store is."""
        return f"{BUCKET}/zarr/{self.folder}"


_V1_1 = ("v1.1-mpc", "v1.1-aws")
RELEASES = {
    r.name: r
    for r in (
        Release("v1", "v1.0", "v1", "v1", "v1", ("v1.0", "v1.0-early")),
        Release("v1.1-dclimate", "v1.1", "v1.1-dclimate", "", "v1.1", _V1_1),
        Release("v1.1-cambridge", "v1.1", "v1.1", "v1.1-cam", "v1.1", _V1_1),
        Release("v2-2B-L~beta1", "v2", "v2-2B-L~beta1", "v2-2B-L~beta1", "v1.1", ("v2-large",)),
        Release("v2-2B-L~beta2", "v2", "v2-2B-L~beta2", "v2-2B-L~beta2", "v1.1", ("v2-large",)),
    )
}
ALIASES = {"v1.0": "v1", "v1.1": "v1.1-dclimate", "v1.1-cam": "v1.1-cambridge", "v2": "v2-2B-L~beta1"}
DEFAULT = "v1.1"


def resolve_release(version: str) -> Release:
    """Return the release of a name.

    Raises
    ------
    SchemaError
        If there is none of that name.

    Examples
    --------
    >>> resolve_release("v1.1").name
    'v1.1-dclimate'
    """
    release = RELEASES.get(ALIASES.get(version, version))
    if release is None:
        raise SchemaError(
            f"version={version!r} is not published; choose one of {sorted(RELEASES)} "
            f"(or {', '.join(f'{a} for {n}' for a, n in ALIASES.items())}), or name a store with store="
        )
    return release


def identify(location: str, attrs: Mapping[str, Any], version: str | None) -> dict[str, Any]:
    """Return the attributes that say whose embeddings a store holds.

    What the store says of itself, if this package wrote it; else the release of that name, from `version` or from the
    name of the store's folder; else that name itself, which mixes with nothing.

    Raises
    ------
    VersionMismatchError
        If `version` and the store contradict each other.
    """
    own = {
        k: v
        for k in (*IDENTITY, OFFICIAL, "weights_licence")
        if isinstance(v := attrs.get(f"tessera_xr:{k}"), str) and len(v) < 300
    }
    if "model" in own:
        known = ALIASES.get(str(version), version)
        if version is not None and known not in (own["model"], own.get("model_family")):
            raise VersionMismatchError(
                f"{location} holds embeddings of {own['model']!r}, not of version={version!r}; leave out version="
            )
        return own
    folders = {r.folder: r for r in RELEASES.values()} | {r.tiles: r for r in RELEASES.values() if r.tiles}
    parts = PurePosixPath(urlsplit(location).path if "://" in location else location).parts
    tail = str(attrs.get("geoemb:model", "")).rpartition("/")[2][:100]
    found = folders.get(parts[-1].removesuffix(".icechunk") if parts else "")
    if found is None and tail in folders and tail not in ("v1.1", "v1"):  # those name no variant
        found = folders[tail]
    if parts[-1:] == ("dclimate.icechunk",):
        found = RELEASES["v1.1-dclimate"]
    if version is not None:
        release = resolve_release(version)
        said = found.family if found else {"v1": "v1.0", "v1.1": "v1.1"}.get(tail)
        if (said or release.family) != release.family:
            raise VersionMismatchError(
                f"{location} holds embeddings of {found.name if found else tail!r}, not {version!r}"
            )
        found = release
    if found is None:
        return {"model": tail or (parts[-1] if parts else "unknown")}
    return {"model": found.name, "model_family": found.family}
