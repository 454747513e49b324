"""Daily weather of places: soil moisture, temperature, snow, wind, and the cloud cover of each pass."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Weather:
    """Daily series, each (n_places, n_days) from the first day of the first year."""

    moisture: Floats
    """Volumetric water of the top soil, 0.04 to 0.45."""
    wetness: Floats
    """The same, averaged over some weeks: what roots and floods feel."""
    frost: Floats
    """1 in frozen weather, 0 above."""
    snow: Floats
    """Snow cover, 0 to 1."""
    wind: Floats
    """0 calm to 1 rough."""


def draw_weather(latitude: Floats, shift: Floats, n_days: int, rng: np.random.Generator) -> Weather:
    """Draw the daily weather of places, given `latitude` (degrees) and `shift` of the seasons (days), (n_places,)."""
    spin_up = 60
    day = np.arange(-spin_up, n_days, dtype=np.float32)[None]
    warmth = np.cos(2 * np.pi * (day - 200) / 365.25) * np.where(latitude < 0, -1, 1)[:, None]
    shape = (len(latitude), day.shape[1])
    distance = np.abs(latitude)[:, None]
    spell = _smooth(rng.standard_normal(shape, dtype=np.float32), 0.85)
    temperature = 27 - 0.48 * np.maximum(distance - 15, 0) + 0.14 * distance * warmth + 3.2 * spell
    rains = -tropical(latitude)[:, None] * _dull_season(shift, day)
    moisture = _soil(warmth, 0.3 * (1 + rains), rng)
    snow = _snow(temperature, rng)
    wetness = _running_mean(moisture, 0.96)
    frost = np.clip(-temperature / 2, 0, 1)
    wind = rng.beta(2, 3, shape)
    daily = (moisture, wetness, frost, snow, wind)
    return Weather(*(np.ascontiguousarray(series[:, spin_up:], dtype=np.float32) for series in daily))


def cloud_cover(
    latitude: Floats, cloudiness: Floats, shift: Floats, days: npt.ArrayLike, rng: np.random.Generator
) -> Floats:
    """Draw the cloud cover of passes, (n_places, n_days): mostly clear or overcast, more so in the dull season.

    `cloudiness` is the mean share that clouds and their shadows hide; shadows take about a fifth of it.
    """
    # dull winters outside the tropics, rains with the growing season within
    season = _dull_season(shift, np.asarray(days)[None]) * (1 - 2 * tropical(latitude)[:, None])
    mean = np.clip(0.8 * cloudiness[:, None] * (1 + 0.3 * season), 0.0, 0.97)
    drawn = rng.beta(np.maximum(mean, 1e-3) * 0.45, np.maximum(1 - mean, 1e-3) * 0.45)
    return np.where(cloudiness[:, None] > 0, drawn, 0).astype(np.float32)


def tropical(latitude: Floats) -> Floats:
    """Return how far rains, not warmth, make the seasons: 1 within 18 degrees of the equator, 0 beyond 28."""
    return np.asarray(np.clip((28 - np.abs(latitude)) / 10, 0, 1), dtype=np.float32)


def _dull_season(shift: Floats, days: npt.NDArray[np.number]) -> Floats:
    """Return 1 in the middle of winter, -1 in that of summer, (n_places, n_days)."""
    return np.asarray(np.cos(2 * np.pi * (days - shift[:, None] - 15) / 365.25), dtype=np.float32)


def _soil(warmth: Floats, chance: Floats, rng: np.random.Generator) -> Floats:
    rain = (rng.random(warmth.shape) < chance) * rng.exponential(0.07, warmth.shape)
    keep = 0.945 - 0.03 * warmth
    water = np.empty(warmth.shape, dtype=np.float32)
    level = np.full(warmth.shape[0], 0.22)
    for day in range(warmth.shape[1]):
        level = np.clip(0.04 + (level - 0.04) * keep[:, day] + 0.5 * rain[:, day], 0.04, 0.45)
        water[:, day] = level
    return water


def _snow(temperature: npt.NDArray[np.floating], rng: np.random.Generator) -> Floats:
    falls = rng.random(temperature.shape) < 0.16
    cover = np.empty(temperature.shape, dtype=np.float32)
    depth = np.zeros(temperature.shape[0])
    for day in range(temperature.shape[1]):
        now = temperature[:, day]
        depth = np.clip(depth + 0.5 * (falls[:, day] & (now < 0)) - 0.12 * np.maximum(now - 0.5, 0), 0, 6)
        cover[:, day] = np.clip(depth / 0.5, 0, 1)
    return cover


def _smooth(noise: Floats, keep: float) -> Floats:
    out = noise.copy()
    for day in range(1, noise.shape[1]):
        out[:, day] = keep * out[:, day - 1] + np.sqrt(1 - keep**2) * noise[:, day]
    return out


def _running_mean(series: Floats, keep: float) -> Floats:
    out = series.copy()
    for day in range(1, series.shape[1]):
        out[:, day] = keep * out[:, day - 1] + (1 - keep) * series[:, day]
    return out
