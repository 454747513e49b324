"""What a search found and what loading it would cost, in plain words, before any pixel is read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from tessera_xr.errors import CubeError
from tessera_xr.grid import bounds_lonlat, crs_name
from tessera_xr.sentinel.bands import ORBITS, S1_BANDS, S2_BANDS
from tessera_xr.sentinel.radiometry import resolve_offset
from tessera_xr.sentinel.scenes import Scene, doubtful, stamps

if TYPE_CHECKING:
    from odc.geo.geobox import GeoBox

    from tessera_xr.sentinel.stac import Scenes

RATE = 20e6
"""Bytes a second that a fair connection gives, all reads together; said wherever a time is."""
BLOCK = 512
"""Pixels: the side of the blocks that files are packed in; whole ones are read."""
PACKED = 0.6
"""Bytes of a file for each byte of its pixels, about."""
S2_FILES = ((10, 2), (10, 2), (10, 2), (10, 2), *[(20, 2)] * 6, (20, 1))
"""(pixel in metres, bytes a pixel) of the files of a Sentinel-2 scene."""
S1_FILES = ((10, 4), (10, 4))


def describe_scenes(scenes: Scenes) -> str:
    """Return the summary of a search: scenes, dates per sensor and orbit, offset, bytes, time, what was left out."""
    n, load = len(scenes.s2) + len(scenes.s1), bytes_to_read(scenes)
    lines = [
        f"{n} scenes from {scenes.name}, {scenes.period}",
        f"  grid         {_grid(scenes.grid)}",
        f"  Sentinel-2   {_optical(scenes.s2)}",
        f"  Sentinel-1   {_radar(scenes.s1)}",
    ]
    if scenes.s2:
        lines.append(f"  S2 offset    {_offset(scenes)}")
    lines += [
        f"  to read      about {_size(load)}, {len(scenes.s2) * len(S2_FILES) + len(scenes.s1) * len(S1_FILES)} files",
        f"  in memory    {_size(bytes_in_memory(scenes))} if all were loaded at once",
        f"  expected     about {_duration(load / RATE)}, if {RATE / 1e6:g} MB arrive a second",
    ]
    lines += [f"  left out     {text}" for text in scenes.left_out]
    return "\n".join([*lines, "Next: cube = scenes.load()"])


def bytes_to_read(scenes: Scenes) -> int:
    """Return about how many bytes of files hold the pixels of the grid, in whole blocks."""
    total = 0.0
    for group, files in ((scenes.s2, S2_FILES), (scenes.s1, S1_FILES)):
        shares = np.sqrt([_share(scene, scenes.grid) for scene in group])
        for pixel, itemsize in files:
            sides = [abs(scenes.grid.resolution.x) * side / pixel for side in scenes.grid.shape]
            pixels = sum(float(np.prod([share * side + BLOCK for side in sides])) for share in shares)
            total += pixels * itemsize * PACKED
    return int(total)


def bytes_in_memory(scenes: Scenes) -> int:
    """Return the bytes of the cube, days joined."""
    days = len({day(s) for s in scenes.s2}), len({(s.orbit, day(s)) for s in scenes.s1})
    per_pixel = days[0] * (2 * len(S2_BANDS) + 1) + days[1] * 2 * len(S1_BANDS)
    return int(np.prod(scenes.grid.shape)) * per_pixel


def day(scene: Scene) -> np.datetime64:
    """Return the day of a scene, UTC."""
    found: np.datetime64 = scene.time.astype("datetime64[D]")
    return found


def _share(scene: Scene, grid: GeoBox) -> float:
    """Return the share of the grid that lies in the footprint of a scene, in degrees."""
    from shapely.geometry import box

    place = box(*bounds_lonlat(grid))
    if scene.footprint is None or not place.area:
        return 1.0
    return float(scene.footprint.intersection(place).area / place.area)


def _grid(grid: GeoBox) -> str:
    west, south, east, north = bounds_lonlat(grid)
    unit = " degree" if grid.crs is not None and grid.crs.geographic else " m"
    return (
        f"{grid.shape[0]} x {grid.shape[1]} px of {abs(grid.resolution.x):g}{unit}, {crs_name(grid.crs)}, "
        f"{west:.3f} to {east:.3f} E, {south:.3f} to {north:.3f} N"
    )


def _optical(scenes: Sequence[Scene]) -> str:
    if not scenes:
        return "none"
    clouds = [s.cloud_cover for s in scenes if s.cloud_cover is not None]
    tiles = sorted({s.tile for s in scenes if s.tile})
    text = _dates(scenes) + (f"; cloud cover of the scenes: median {np.median(clouds):.0f} %" if clouds else "")
    return text + (f"; tile{'s' if len(tiles) > 1 else ''} {', '.join(tiles[:6])}" if tiles else "")


def _radar(scenes: Sequence[Scene]) -> str:
    if not scenes:
        return "none"
    dates = Counter(orbit for orbit, _ in {(s.orbit, day(s)) for s in scenes})
    return f"{_dates(scenes)} ({', '.join(f'{dates[orbit]} {orbit}' for orbit in ORBITS)})"


def _dates(scenes: Sequence[Scene]) -> str:
    days = sorted({day(s) for s in scenes})
    return f"{_count(len(scenes), 'scene')} on {_count(len(days), 'date')}, {days[0]} to {days[-1]}"


def _offset(scenes: Scenes) -> str:
    try:
        text = resolve_offset(stamps(scenes.s2, scenes.catalogue.offset), scenes.catalogue.name)[1]
    except CubeError as error:
        return str(error)
    looks = doubtful(scenes.s2) if scenes.catalogue.offset == "flag" else []
    more = f"; {_count(len(looks), 'scene')} of these are looked at first: their pixels may show that it is gone"
    return text.replace("dates", "scenes", 1) + (more if looks else "")


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"


def _size(n: float) -> str:
    return f"{n / 1e9:.1f} GB" if n >= 1e9 else f"{max(n / 1e6, 1):.0f} MB"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return _count(max(round(seconds), 1), "second")
    return _count(round(seconds / 60), "minute") if seconds < 5400 else f"{seconds / 3600:.1f} hours"
