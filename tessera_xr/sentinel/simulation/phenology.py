"""Leaf area and its ageing through the years: double logistic cycles, drawn per field and year."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tessera_xr.sentinel.simulation.covers import COVERS, Cycle
from tessera_xr.sentinel.simulation.weather import tropical

Floats = npt.NDArray[np.float32]
MIDSUMMER, YEAR_DAYS = 196.0, 365.25
_CYCLE_FIELDS = ("start", "end", "rise", "fall", "senescence", "lai")


@dataclass(frozen=True)
class Calendar:
    """How the seasons of a place differ from those at 45 degrees north."""

    shift: Floats
    """Days by which they come later, half a year in the south, (n_patches,)."""
    stretch: Floats
    """Their length relative to 45 degrees north: below 1 towards the poles, (n_patches,)."""


@dataclass(frozen=True)
class Seasons:
    """The cycles of every patch, as arrays (n_patches, n_cycles) of days since the first year began."""

    start: Floats
    end: Floats
    rise: Floats
    fall: Floats
    senescence: Floats
    lai: Floats
    cuts: Floats
    """Days of mowing, (n_patches, n_cuts); infinite where there is none."""
    flowering: Floats
    """Days of the yellow peak, (n_patches, n_years); infinite where there is none."""


def calendar(latitude: Floats, rng: np.random.Generator) -> Calendar:
    """Return the calendar of places at `latitude`; in the tropics the rains decide, and they differ by place."""
    distance = np.abs(latitude)
    shift = np.where(latitude < 0, YEAR_DAYS / 2, 0) + tropical(latitude) * rng.uniform(-60, 60, latitude.shape)
    stretch = np.clip(1 + (45 - distance) * 0.013, 0.72, 1.4)
    return Calendar(shift.astype(np.float32), stretch.astype(np.float32))


def draw_seasons(
    cover: npt.NDArray[np.uint8],
    place: npt.NDArray[np.intp],
    places: Calendar,
    n_years: int,
    rng: np.random.Generator,
) -> Seasons:
    """Draw the cycles of every patch for `n_years` and for the year before and after, which reach into them."""
    when = Calendar(places.shift[place], places.stretch[place])
    columns: dict[str, list[Floats]] = {name: [] for name in (*_CYCLE_FIELDS, "cuts", "flowering")}
    for year in range(-1, n_years + 1):
        early = rng.normal(0, 5, len(places.shift)).astype(np.float32)[
            place
        ]  # a whole place has an early or a late year
        _draw_year(columns, cover, when, year * YEAR_DAYS, early, rng)
    return Seasons(**{name: np.stack(arrays, axis=1) for name, arrays in columns.items()})


def canopy_state(seasons: Seasons, base_lai: Floats, base_stage: Floats, days: npt.ArrayLike) -> tuple[Floats, Floats]:
    """Return leaf area index and stage (0 fresh to 3 dry) of every patch, each (n_patches, n_days)."""
    day = np.asarray(days, dtype=np.float32)[None]
    lai = np.repeat(base_lai[:, None], day.shape[1], axis=1)
    aged = lai * base_stage[:, None]
    for cycle in range(seasons.start.shape[1]):
        rows = _alive(seasons, cycle, day)
        if len(rows):
            leaves, stage = _one_cycle(seasons, rows, cycle, day)
            lai[rows] += leaves
            aged[rows] += leaves * stage
    stage = np.clip(aged / np.maximum(lai, np.float32(1e-3)), 0, 3)
    _mow(lai, seasons.cuts, day)
    return lai, stage


def flowers(seasons: Seasons, days: npt.ArrayLike) -> Floats:
    """Return the share of yellow flowers, (n_patches, n_days)."""
    day = np.asarray(days, dtype=np.float32)[None, :, None]
    away = (day - seasons.flowering[:, None]) / 9
    return np.asarray(0.5 * np.exp(-np.square(np.minimum(np.abs(away), 9)).min(axis=-1)), dtype=np.float32)


def _alive(seasons: Seasons, cycle: int, day: Floats) -> npt.NDArray[np.intp]:
    """Return the patches whose cycle has leaves at any of the days: most cycles of the years beside have none."""
    begins = seasons.start[:, cycle] - 6 * seasons.rise[:, cycle]
    ends = seasons.end[:, cycle] + 6 * seasons.fall[:, cycle]
    return np.flatnonzero(
        (seasons.lai[:, cycle] > 0) & (begins < day.max(initial=-np.inf)) & (ends > day.min(initial=np.inf))
    )


def _one_cycle(seasons: Seasons, rows: npt.NDArray[np.intp], cycle: int, day: Floats) -> tuple[Floats, Floats]:
    start, end, rise, fall, senescence, lai = (getattr(seasons, f)[rows, cycle][:, None] for f in _CYCLE_FIELDS)
    leaves = lai * _logistic((day - start) / rise) * _logistic((end - day) / fall)
    browning = end - senescence
    stage = np.clip((day - start) / np.maximum(browning - start, 1), 0, 1)
    stage += 2 * np.clip((day - browning) / np.maximum(senescence, 1), 0, 1)
    return leaves, stage


def _logistic(x: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-np.clip(x, -30, 30))), dtype=np.float32)


def _mow(lai: Floats, cuts: Floats, day: Floats) -> None:
    for cut in cuts.T:
        rows = np.flatnonzero(np.isfinite(cut))
        since = day - cut[rows, None]
        lai[rows] *= np.where(since >= 0, 1 - 0.7 * np.exp(-np.maximum(since, 0) / 22), 1)


def _draw_year(
    columns: dict[str, list[Floats]],
    cover: npt.NDArray[np.uint8],
    when: Calendar,
    origin: float,
    early: Floats,
    rng: np.random.Generator,
) -> None:
    n_cycles = max(len(c.cycles) for c in COVERS.values())
    for slot in range(n_cycles):
        for name, values in _draw_cycle(cover, slot, when, origin, early, rng).items():
            columns[name].append(values)
    for slot in range(max(len(c.cuts) for c in COVERS.values())):
        day = _by_cover(cover, [c.cuts[slot] if slot < len(c.cuts) else np.inf for c in COVERS.values()])
        mown = rng.random(len(cover)) < 0.75
        columns["cuts"].append(_local(np.where(mown, day + rng.normal(0, 9, len(cover)), np.inf), when, origin))
    day = _by_cover(cover, [np.inf if c.flowering is None else c.flowering for c in COVERS.values()])
    columns["flowering"].append(_local(day + early + rng.normal(0, 4, len(cover)), when, origin))


def _draw_cycle(
    cover: npt.NDArray[np.uint8], slot: int, when: Calendar, origin: float, early: Floats, rng: np.random.Generator
) -> dict[str, Floats]:
    empty = Cycle(0, 1, 0, chance=0)
    cycles = [c.cycles[slot] if slot < len(c.cycles) else empty for c in COVERS.values()]
    usual = {
        name: _by_cover(cover, [getattr(c, name) for c in cycles]) for name in (*_CYCLE_FIELDS, "spread", "chance")
    }
    n = len(cover)
    drawn: dict[str, npt.NDArray[np.floating]] = {
        "start": _local(usual["start"] + early + usual["spread"] * rng.standard_normal(n), when, origin),
        "end": _local(usual["end"] + early / 2 + usual["spread"] * rng.standard_normal(n), when, origin),
        "lai": usual["lai"] * rng.uniform(0.75, 1.25, n) * (rng.random(n) < usual["chance"]),
    }
    for name in ("rise", "fall", "senescence"):
        drawn[name] = usual[name] * when.stretch * rng.uniform(0.8, 1.25, n)
    return {name: values.astype(np.float32) for name, values in drawn.items()}


def _local(day: npt.NDArray[np.floating], when: Calendar, origin: float) -> Floats:
    return np.asarray(origin + when.shift + MIDSUMMER + (day - MIDSUMMER) * when.stretch, dtype=np.float32)


def _by_cover(cover: npt.NDArray[np.uint8], values: list[float]) -> Floats:
    return np.array([0, *values], dtype=np.float32)[cover]
