"""What published embeddings come in: Zarr, Icechunk, tiles, GeoTIFF; which one a location is."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias
from urllib.parse import urlsplit

import numpy as np
from odc.geo.geobox import GeoBox

from tessera_xr._optional import refuse_offline, require
from tessera_xr.embedding.published.guard import GuardedStore
from tessera_xr.embedding.published.releases import identify, resolve_release
from tessera_xr.embedding.published.remote import Folder, Site, resolve_site
from tessera_xr.embedding.published.store_checks import check_array, make_grid, read_years
from tessera_xr.embedding.published.stores import Piece, ZarrRoot, ZarrZone, each_zone, open_root
from tessera_xr.embedding.schema import COUNTS, EMBEDDINGS, SCALES
from tessera_xr.errors import GridError, SchemaError, StoreError
from tessera_xr.sentinel.addresses import is_loopback

StoreLike: TypeAlias = Any  # a URL, a path, a list of GeoTIFFs, or a Zarr store
PUBLIC_BUCKETS = {"tessera-embeddings": "us-west-2"}
"""Buckets that are read without a name, and their regions."""
Bounds: TypeAlias = tuple[float, float, float, float]


class Source(Protocol):
    """Where pieces come from."""

    identity: dict[str, Any]
    """Attributes that say whose embeddings these are."""

    @property
    def name(self) -> str:
        """What to call it."""

    def open_pieces(self, bounds: Bounds, years: Sequence[int], dims: int | None) -> list[Piece]:
        """Return what may hold pixels between (west, south, east, north)."""


def open_source(
    store: StoreLike | None, version: str | None, *, default: str, allow_http: bool, landmasks: str | None
) -> Source:
    """Return the source of a location; of the release itself if there is no location."""
    from zarr.abc.store import Store

    if store is None:
        release = resolve_release(version or default)
        refuse_offline(release.url, "pass store=, a folder on this machine")
        return _open_zarr(Site(release.url), release.url, release.name)
    if isinstance(store, Store):
        return _open_zarr(store, str(store), version)
    if isinstance(store, (list, tuple)):
        return _open_files([Path(p) for p in store], version)
    if not isinstance(store, (str, os.PathLike)):
        raise SchemaError(f"store={store!r} is none; give a URL, a folder, GeoTIFFs or a Zarr store")
    location = os.fspath(store).rstrip("/")
    if location.startswith("s3://") or location.endswith(".icechunk"):
        return _open_icechunk(location, version)
    if "://" in location:
        return _open_url(location, version, allow_http, landmasks)
    return _open_path(Path(location).expanduser(), version, landmasks)


def _open_url(location: str, version: str | None, allow_http: bool, landmasks: str | None) -> Source:
    from tessera_xr.embedding.published.tiles import open_tiles

    site = resolve_site(location, allow_http)
    if not is_loopback(urlsplit(site.url).hostname or ""):
        refuse_offline(location, "pass store=, a folder on this machine")
    root = None if re.search(r"/npy(/|$)", site.url) else open_root(site)
    if root is not None:
        return ZarrSource(root, identify(site.url, root.attrs, version))
    masks = resolve_site(landmasks, allow_http) if landmasks else None
    return open_tiles(site, version, masks)


def _open_path(path: Path, version: str | None, landmasks: str | None) -> Source:
    from tessera_xr.embedding.published.tiles import open_tiles

    if path.suffix.lower() in (".tif", ".tiff"):
        return _open_files([path], version)
    if not path.is_dir():
        raise StoreError(f"there is no store at {path}; give a folder, a .tif file or an https:// URL")
    if (path / "zarr.json").is_file():
        return _open_zarr(Folder(path), str(path), version)
    if (path / "refs").is_dir() or (path / "repo").is_file():
        return _open_icechunk(str(path), version)
    files = sorted(p for p in path.iterdir() if p.suffix.lower() in (".tif", ".tiff"))
    if files and not any(path.rglob("*.npy")):
        return _open_files(files, version)
    return open_tiles(Folder(path), version, Folder(Path(landmasks)) if landmasks else None)


def _open_files(files: list[Path], version: str | None) -> Source:
    from tessera_xr.embedding.published.files import open_geotiffs

    return open_geotiffs(files, version)


def _open_zarr(inner: Any, location: str, version: str | None) -> ZarrSource:
    root = open_root(inner)
    if root is None:
        raise StoreError(f"there is no Zarr v3 store at {location}; check the address, or the network")
    return ZarrSource(root, identify(location, root.attrs, version))


@dataclass
class ZarrSource:
    """A Zarr store of groups utm01 to utm60."""

    root: ZarrRoot
    identity: dict[str, Any]

    @property
    def name(self) -> str:
        """What to call it."""
        return self.root.name

    def open_pieces(self, bounds: Bounds, years: Sequence[int], dims: int | None) -> list[Piece]:  # noqa: ARG002
        """Return its zones between two longitudes."""
        wanted = list(each_zone(bounds[0], bounds[2]))
        zones = [self.root.open_zone(zone, dims) for zone in wanted]
        found: list[Piece] = [z for z in zones if z is not None]
        if not found:
            has = f"; it has the zones {self.root.zones}" if self.root.zones else ""
            raise GridError(f"{self.name} holds nothing in UTM zone {' or '.join(map(str, wanted))}{has}")
        return found


@dataclass
class IcechunkSource:
    """An Icechunk repository of groups 01N to 60S."""

    guard: GuardedStore
    group: Any
    name: str
    identity: dict[str, Any]
    _open: dict[str, ZarrZone] = field(default_factory=dict)

    def open_pieces(self, bounds: Bounds, years: Sequence[int], dims: int | None) -> list[Piece]:  # noqa: ARG002
        """Return its groups between two longitudes, and two latitudes: they reach beyond the equator."""
        wanted = [f"{z:02}{h}" for z in each_zone(bounds[0], bounds[2]) for h in "NS"]
        found: list[Piece] = []
        for name in wanted:
            if (name[2] == "N" and bounds[3] > -0.01) or (name[2] == "S" and bounds[1] < 0.01):
                if name not in self._open and (group := self.group.get(name)) is not None:
                    self._open[name] = open_icechunk_zone(self.guard, group, name, self.name)
                found += [self._open[name]] if name in self._open else []
        if not found:
            raise GridError(f"{self.name} holds none of the groups {wanted}")
        return found


def _open_icechunk(location: str, version: str | None) -> IcechunkSource:
    require("icechunk", "icechunk", "reading an Icechunk store")
    import icechunk
    import zarr

    if location.startswith("s3://"):
        refuse_offline(location, "pass store=, a folder on this machine")
        bucket, _, prefix = location.removeprefix("s3://").partition("/")
        region = PUBLIC_BUCKETS.get(bucket)
        access = {"region": region, "anonymous": True} if region else {"from_env": True}
        storage = icechunk.s3_storage(bucket=bucket, prefix=prefix, **access)
    elif "://" in location:
        raise StoreError(f"{location} is no place of an Icechunk store; give s3://bucket/prefix or a folder")
    else:
        storage = icechunk.local_filesystem_storage(location)
    try:
        session = icechunk.Repository.open(storage).readonly_session(branch="main")
        guard = GuardedStore(session.store, location)
        group = zarr.open_group(guard, mode="r", zarr_format=3, use_consolidated=False)
    except (icechunk.IcechunkError, FileNotFoundError, ValueError) as error:
        why = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise StoreError(f"the Icechunk store at {location} can't be opened: {why[:200]}") from error
    identity = identify(location, dict(group.attrs), version)
    return IcechunkSource(guard, group, f"{location} (snapshot {session.snapshot_id})", identity)


def open_icechunk_zone(guard: GuardedStore, group: Any, key: str, name: str) -> ZarrZone:
    """Return a zone and hemisphere of an Icechunk store on the northern grid, cut at the equator."""
    zone, southern = int(key[:2]), key[2] == "S"
    arrays = {n: a for n in (EMBEDDINGS, SCALES, *COUNTS) if (a := group.get(n)) is not None}
    missing = [n for n in (EMBEDDINGS, SCALES) if n not in arrays]
    if missing:
        raise StoreError(f"{name}/{key} lacks the arrays {missing}; it is no published store of embeddings")
    shape = arrays[SCALES].shape
    for n, array in arrays.items():
        dims = ("time", "northing", "easting", *(["band"] if n == EMBEDDINGS else []))
        check_array(guard, array, n, dims, (*shape, array.shape[-1]) if n == EMBEDDINGS else shape)
    years = read_years(guard, group.get("time"), shape[0], f"{name}/{key}")
    complete = group.attrs.get("years_complete")
    empty = () if not isinstance(complete, list) else tuple(y for y in years if y not in complete)
    box = make_grid(group.attrs.get("spatial:transform"), shape[1:], zone, southern, f"{name}/{key}")
    first, last = _own_rows(box, southern)
    return ZarrZone(
        box=box[first:last, :],
        years=years,
        n_bands=arrays[EMBEDDINGS].shape[-1],
        counts=tuple(n for n in COUNTS if n in arrays),
        zone=zone,
        chunk=arrays[EMBEDDINGS].chunks[1:3],
        remote=False,  # its store fetches by itself, many at once
        name=name,
        arrays=arrays,
        guard=guard,
        band_last=True,
        nan_is_water=False,
        first_row=first,
        empty_years=empty,
    )


def _own_rows(box: GeoBox, southern: bool) -> tuple[int, int]:
    """Return the first row and the one after the last whose pixels are on their own side of the equator."""
    centres = box.transform.f + box.transform.e * (np.arange(box.shape[0]) + 0.5)
    own = np.flatnonzero(centres < 0 if southern else centres > 0)
    if not len(own):
        raise StoreError("a zone of this store lies on the other side of the equator than its name says")
    return int(own[0]), int(own[-1]) + 1


def for_years(pieces: Sequence[Piece], years: Sequence[int], name: str) -> None:
    """Raise `SchemaError` if none of the pieces has one of the years."""
    there = sorted({y for p in pieces for y in p.years if y not in getattr(p, "empty_years", ())})
    absent = [y for y in years if y not in there]
    if absent:
        raise SchemaError(f"{name} holds nothing of {', '.join(map(str, absent))} there; it has {there}")


def with_dims(pieces: Sequence[Piece], dims: int | None) -> None:
    """Raise `StoreError` unless all pieces have embeddings that can be cut to a length."""
    for piece in pieces:
        short = dims is not None and (piece.n_bands < dims or (dims < 16 and piece.n_bands != dims))
        if short or (dims is None and piece.n_bands != pieces[0].n_bands):
            raise StoreError(
                f"{piece.name} has embeddings of {piece.n_bands} values, not of {dims or pieces[0].n_bands}"
            )
