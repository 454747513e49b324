"""Scenes: what is kept of a STAC item, after it was looked at as something that a stranger wrote."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from tessera_xr.sentinel.addresses import public_url, url_fault
from tessera_xr.sentinel.bands import S1_BANDS, orbit_name
from tessera_xr.sentinel.catalogues import S2_LAYERS, Catalogue
from tessera_xr.sentinel.radiometry import APPLIED_NAMES, BASELINE_NAMES, OFFSET_BASELINE, OFFSET_FROM

if TYPE_CHECKING:
    from shapely.geometry.base import BaseGeometry

SAME_PASS = timedelta(minutes=5)
"""Products of one tile and satellite that are closer than this are of one pass; the next passes 100 minutes later."""
ID_LENGTH = 120
WIDE = 90.0
"""Degrees of longitude: a footprint wider than this goes round the world because it crosses the antimeridian."""

_BASELINE_KEYS = (*BASELINE_NAMES, "sentinel:processing_baseline")
_APPLIED_KEYS = (*APPLIED_NAMES, "sentinel:boa_offset_applied")
_TILE_KEYS = ("s2:mgrs_tile", "grid:code", "s2:tile_id")


class ItemError(ValueError):
    """A STAC item lacks what a scene needs."""


class UnsafeItemError(ItemError):
    """A STAC item points to where nothing is read from."""


@dataclass(frozen=True)
class Scene:
    """One product of one satellite pass."""

    id: str
    time: np.datetime64
    """UTC."""
    hrefs: tuple[str, ...]
    """Of the files, unsigned: of Sentinel-2 in the order of `S2_LAYERS`, of Sentinel-1 VV and VH."""
    footprint: BaseGeometry | None
    """In degrees, convex; None where it crosses the antimeridian."""
    baseline: float | None = None
    """Sentinel-2: the processing baseline, for example 5.09."""
    offset_applied: bool | None = None
    """Sentinel-2 of Earth Search: what the item says about the offset being removed already."""
    cloud_cover: float | None = None
    """Percent of the whole scene."""
    orbit: str = ""
    """Sentinel-1: "ascending" or "descending"."""
    tile: str = ""
    platform: str = ""


def read_scene(item: Mapping[str, Any], catalogue: Catalogue, sensor: str) -> Scene:
    """Return the scene that a STAC item, as parsed JSON, describes; `sensor` is "s2" or "s1".

    Raises
    ------
    ItemError
        If it lacks a date, a footprint, an asset, or (Sentinel-1) the orbit; `UnsafeItemError` if an address is not
        one to read from.
    """
    properties = item.get("properties")
    if not isinstance(properties, Mapping):
        raise ItemError("has no properties")
    name = re.sub(r"[^\w.:-]", "_", str(item.get("id", "?")))[:ID_LENGTH]
    assets, order = (catalogue.s2_assets, S2_LAYERS) if sensor == "s2" else (catalogue.s1_assets, S1_BANDS)
    orbit = orbit_name(properties.get("sat:orbit_state", "")) or ""
    if sensor == "s1" and not orbit:
        raise ItemError("doesn't say whether the pass is ascending or descending (sat:orbit_state)")
    return Scene(
        name,
        _time(properties),
        tuple(_href(item, assets[layer], catalogue) for layer in order),
        _footprint(item.get("geometry")),
        baseline=_baseline(properties),
        offset_applied=_flag(properties),
        cloud_cover=_number(properties.get("eo:cloud_cover")),
        orbit=orbit,
        tile=next((str(properties[key])[:20].removeprefix("MGRS-") for key in _TILE_KEYS if key in properties), ""),
        platform=str(properties.get("platform", ""))[:20].lower(),
    )


def newest(scenes: Iterable[Scene]) -> list[Scene]:
    """Return the scenes without those that a later processing baseline of the same tile and pass replaces.

    Products of one baseline are all kept: a pass that is cut in two gives each tile on the cut two halves.
    """
    kept: list[Scene] = []
    for scene in sorted(scenes, key=lambda s: (s.time, s.id)):
        twins = [other for other in reversed(kept) if _same_pass(other, scene)]
        if any((other.baseline or 0) > (scene.baseline or 0) for other in twins):
            continue
        kept = [other for other in kept if other not in twins or other.baseline == scene.baseline]
        kept.append(scene)
    return kept


def stamps(scenes: Iterable[Scene], rule: str) -> xr.Dataset:
    """Return a Dataset without pixels: the times of Sentinel-2 scenes, and what tells their offset along them.

    `rule` is a `Catalogue.offset`; the coordinates are those that `radiometry.resolve_offset` knows.
    """
    scenes = list(scenes)
    coords: dict[str, Any] = {"time": np.array([s.time for s in scenes], "datetime64[ns]")}
    if rule == "removed":
        coords["boa_add_offset"] = ("time", np.zeros(len(scenes)))
        return xr.Dataset(coords=coords)
    if any(s.baseline is not None for s in scenes):
        coords[BASELINE_NAMES[0]] = ("time", _column([s.baseline for s in scenes]))
    if rule == "flag":
        coords[APPLIED_NAMES[0]] = ("time", np.array([s.offset_applied is True for s in scenes]))
    return xr.Dataset(coords=coords)


def doubtful(scenes: Iterable[Scene]) -> list[Scene]:
    """Return the scenes of Earth Search that came with an offset and are not said to be rid of it.

    Some of them are, whatever the item says (seen in scenes of 2022 and again of 2025): only their pixels tell.
    """
    return [s for s in scenes if not s.offset_applied and came_with_offset(s)]


def came_with_offset(scene: Scene) -> bool:
    """Say whether ESA put the offset into a scene: from baseline 04.00 on; without one, from its first day."""
    return bool(scene.time >= OFFSET_FROM if scene.baseline is None else scene.baseline >= OFFSET_BASELINE)


def _same_pass(a: Scene, b: Scene) -> bool:
    near = abs(a.time - b.time) <= np.timedelta64(SAME_PASS)
    return bool(a.tile and (a.tile, a.platform) == (b.tile, b.platform) and near)


def _column(values: list[float | None]) -> npt.NDArray[np.float64]:
    return np.array([np.nan if v is None else v for v in values], dtype=np.float64)


def _time(properties: Mapping[str, Any]) -> np.datetime64:
    text = properties.get("datetime") or properties.get("start_datetime")
    try:
        stamp = pd.Timestamp(str(text))
        stamp = stamp if stamp.tzinfo is None else stamp.tz_convert("UTC").tz_localize(None)
        time = stamp.to_datetime64().astype("datetime64[ns]")
    except (ValueError, OverflowError) as error:
        raise ItemError(f"has no date that can be read ({str(text)[:40]!r})") from error
    if np.isnat(time):
        raise ItemError("has no date")
    return np.datetime64(time)


def _href(item: Mapping[str, Any], asset: str, catalogue: Catalogue) -> str:
    assets = item.get("assets")
    entry = assets.get(asset) if isinstance(assets, Mapping) else None
    href = entry.get("href") if isinstance(entry, Mapping) else None
    if not isinstance(href, str) or not href:
        raise ItemError(f"has no asset {asset!r}")
    if "://" not in href and not href.startswith(("/", "\\")):
        links = item.get("links")
        own = [link.get("href") for link in links if link.get("rel") == "self"] if isinstance(links, list) else []
        href = urljoin(str(own[0]), href) if own else href
    if (fault := url_fault(href, loopback=catalogue.is_local)) is not None:
        raise UnsafeItemError(f"points to {public_url(href)[:200]}, which {fault}")
    return href


def _footprint(geometry: Any) -> BaseGeometry | None:
    from shapely.geometry import shape

    try:
        found: BaseGeometry = shape(geometry).convex_hull
        west, south, east, north = found.bounds
    except Exception as error:  # a stranger's GeoJSON: anything may be wrong with it
        raise ItemError("has no footprint that can be read") from error
    if not (-180 <= west < east <= 180 and -90 <= south < north <= 90):
        raise ItemError(f"has a footprint from ({west:g}, {south:g}) to ({east:g}, {north:g}), which is no place")
    return found if east - west < WIDE else None


def _baseline(properties: Mapping[str, Any]) -> float | None:
    for key in _BASELINE_KEYS:
        value = _number(str(properties.get(key, "")).strip().upper().lstrip("N"))
        if value is not None:
            return value / 100 if value > 100 else value  # "0511" and "N0511" are 05.11
    return None


def _flag(properties: Mapping[str, Any]) -> bool | None:
    found = next((properties[key] for key in _APPLIED_KEYS if key in properties), None)
    return None if found is None else str(found).strip().lower() in ("true", "1", "1.0")


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if np.isfinite(number) else None
