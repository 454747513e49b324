"""When the satellites pass: dates by relative orbit, mission year and latitude."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date

import numpy as np
import numpy.typing as npt

S2_CYCLE, S1_CYCLE = 10, 12  # days in which one satellite repeats its track
# Swath width over the distance between neighbouring tracks at the equator; tracks close up with latitude.
S2_COVERAGE, S1_COVERAGE = 1.035, 1.09
LOWEST_SUN = 8.0  # degrees; below it, no optical products


@dataclass(frozen=True)
class Passes:
    """The passes of one sensor over a place, in time order."""

    day: npt.NDArray[np.int64]
    """Days since the first day of the first year, (t,)."""
    track: npt.NDArray[np.int64]
    """Which of the relative orbits, (t,)."""


def n_tracks(latitude: npt.ArrayLike, coverage: float, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Draw how many relative orbits see a place at `latitude`: one at the equator, two at 60 degrees."""
    expected = coverage / np.cos(np.deg2rad(np.minimum(np.abs(latitude), 75)))
    return np.maximum(1, np.floor(expected + rng.random(expected.shape))).astype(np.int64)


def s2_repeat(year: int) -> int:
    """Return the days between passes on one track: two satellites from 2017 on (the second since July 2017)."""
    return S2_CYCLE if year < 2017 else S2_CYCLE // 2


def s1_repeat(year: int) -> int:
    """Return the days between passes on one track: Sentinel-1B flew from late 2016 to 2021, 1C from 2025."""
    return S1_CYCLE // 2 if 2017 <= year <= 2021 or year >= 2025 else S1_CYCLE


def passes(years: list[int], repeats: list[int], offsets: list[int], lost: float, rng: np.random.Generator) -> Passes:
    """Return the passes over `years` on the tracks of which `offsets` (days) are given, less the share `lost`."""
    days, tracks = [], []
    for year, repeat in zip(years, repeats, strict=True):
        first = (date(year, 1, 1) - date(years[0], 1, 1)).days
        length = (date(year + 1, 1, 1) - date(year, 1, 1)).days
        for track, offset in enumerate(offsets):
            found = np.arange(first + (offset - first) % repeat, first + length, repeat)
            days.append(found)
            tracks.append(np.full(len(found), track))
    day, track_of = np.concatenate(days), np.concatenate(tracks)
    order = np.lexsort((track_of, day))
    order = order[rng.random(len(order)) >= lost]
    return Passes(day[order].astype(np.int64), track_of[order].astype(np.int64))


def sun_elevation(latitude: npt.ArrayLike, day: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Return the sun's elevation in degrees at half past ten, local solar time; `day` counts from a 1 January."""
    phi = np.deg2rad(np.asarray(latitude, dtype=np.float64))
    declination = np.deg2rad(-23.44) * np.cos(2 * np.pi * (np.asarray(day) + 10) / 365.25)
    hour = np.deg2rad(-22.5)
    sine = np.sin(phi) * np.sin(declination) + np.cos(phi) * np.cos(declination) * np.cos(hour)
    return np.asarray(np.rad2deg(np.arcsin(sine)))


def timestamps(
    first_year: int, day: npt.NDArray[np.int64], hour: npt.ArrayLike, longitude: float
) -> npt.NDArray[np.datetime64]:
    """Return times (UTC) of passes at a local solar `hour`; the date kept is that of `day`."""
    utc = np.clip(np.asarray(hour) - longitude / 15, 0.1, 23.8)
    seconds = np.rint(utc * 3600).astype("timedelta64[s]")
    start = np.datetime64(f"{first_year}-01-01", "s")
    return np.asarray(start + day.astype("timedelta64[D]") + seconds, dtype="datetime64[ns]")
