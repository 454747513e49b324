"""What a d-pixel can be described by without a trained network: the baselines."""

import numpy as np

from benchmarks.quality.pixels import Pixels
from tessera_xr.learning.features import decibels, fill_seasons, season_medians
from tessera_xr.sentinel.bands import S2_BANDS

MONTHS = 12
HARMONICS = 2
GREEN, RED, NIR, SWIR1, SWIR2 = (S2_BANDS.index(b) for b in ("B03", "B04", "B08", "B11", "B12"))


def raw_medians(pixels: Pixels) -> np.ndarray:
    """Return monthly medians of all bands, gaps filled along time: (n, 144)."""
    return np.concatenate([monthly(*optical(pixels)), monthly(*radar(pixels))], axis=-1).reshape(len(pixels), -1)


def annual_features(pixels: Pixels) -> np.ndarray:
    """Return monthly log-bands, indices and radar, and their annual mean, spread, least and largest: (n, 272)."""
    values, valid, days = optical(pixels)
    values, months = np.maximum(values, 1), []
    pairs = [(NIR, RED), (GREEN, NIR), (NIR, SWIR2), (NIR, SWIR1)]
    index = [(values[..., a] - values[..., b]) / (values[..., a] + values[..., b]) for a, b in pairs]
    months.append(monthly(np.concatenate([np.log(values), np.stack(index, axis=-1)], axis=-1), valid, days))
    values, valid, days = radar(pixels)
    months.append(monthly(np.concatenate([values, values[..., :1] - values[..., 1:]], axis=-1), valid, days))
    series = np.concatenate(months, axis=-1)
    yearly = [series.mean(axis=1), series.std(axis=1), series.min(axis=1), series.max(axis=1)]
    return np.concatenate([series.reshape(len(series), -1), *yearly], axis=1)


def harmonics(pixels: Pixels) -> np.ndarray:
    """Return the coefficients of a mean and two harmonics of the year, for each band and NDVI: (n, 65)."""
    values, valid, days = optical(pixels)
    ndvi = (values[..., NIR] - values[..., RED]) / np.maximum(values[..., NIR] + values[..., RED], 1)
    found = [fit(np.concatenate([values / 10_000, ndvi[..., None]], axis=-1), valid, days), fit(*radar(pixels))]
    return np.concatenate(found, axis=1)


def fit(values: np.ndarray, valid: np.ndarray, days: np.ndarray) -> np.ndarray:
    """Fit the harmonics by least squares with a slight ridge, (n, t, c) to (n, c * (1 + 2 * HARMONICS))."""
    phase = 2 * np.pi * days[:, None] * np.arange(1, HARMONICS + 1) / 365.25
    design = np.concatenate([np.ones((len(days), 1)), np.cos(phase), np.sin(phase)], axis=1)  # (t, k)
    weights = valid.astype(np.float64)
    gram = np.einsum("nt,tj,tk->njk", weights, design, design) + 0.1 * np.diag([0.01, *[1.0] * 2 * HARMONICS])
    target = np.einsum("nt,tk,ntc->nkc", weights, design, np.where(valid[..., None], values, 0))
    return np.linalg.solve(gram, target).reshape(len(values), -1)


def optical(pixels: Pixels) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    arrays = pixels.arrays
    return arrays["s2"].astype(np.float32), arrays["s2_valid"], arrays["s2_doy"]


def radar(pixels: Pixels) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return VV and VH in dB, where there is any, and the days."""
    s1 = pixels.arrays["s1"]
    return decibels(s1), (s1 != 0).all(axis=-1), pixels.arrays["s1_doy"]


def monthly(values: np.ndarray, valid: np.ndarray, days: np.ndarray) -> np.ndarray:
    """Return medians of twelfths of the year, (n, 12, c); months without data lie between their neighbours."""
    return fill(season_medians(values, valid, days, MONTHS))


def fill(series: np.ndarray) -> np.ndarray:
    """Interpolate along a year that closes on itself; what has no data at all gets the mean of the others."""
    out = fill_seasons(series)
    nothing = np.isnan(out[..., 0]).any(axis=1)
    if nothing.any():
        out[nothing] = out[~nothing].mean(axis=0) if not nothing.all() else 0
    return out
