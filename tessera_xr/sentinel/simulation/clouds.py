"""Between ground and sensor: clouds, their shadows, haze, and the imperfect mask that judges them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tessera_xr.sentinel.simulation.spectra import material

Floats = npt.NDArray[np.float32]
EDGE = 0.10  # share of the field's range over which a cloud goes from nothing to thick
LARGEST = 0.005  # cycles a pixel: weather systems look the same beyond 2 km
MARGIN = 48  # pixels of sky around a landscape, whose clouds may throw a shadow into it


def opacity(sky: Floats, cover: Floats | float) -> Floats:
    """Return cloud opacity, 0 to 1, where `sky` (evenly spread over 0..1) lies below the cloud `cover`."""
    return np.asarray(np.clip((cover - sky) / EDGE, 0, 1), dtype=np.float32)


def sky_field(shape: tuple[int, int], rng: np.random.Generator) -> Floats:
    """Return a spatially correlated field of `shape`, evenly spread over 0..1, by filtering noise."""
    padded = tuple(n + 2 * MARGIN for n in shape)
    spectrum = np.fft.rfft2(rng.standard_normal(padded, dtype=np.float32))
    radius = np.hypot(np.fft.fftfreq(padded[0])[:, None], np.fft.rfftfreq(padded[1])[None])
    power = 1 / (np.square(radius) + LARGEST**2) ** 0.85
    power[0, 0] = 0
    field = np.fft.irfft2(spectrum * power, s=padded)
    # white noise of unit variance gets the mean square of the (full-plane) filter
    full = np.hypot(np.fft.fftfreq(padded[0])[:, None], np.fft.fftfreq(padded[1])[None])
    weight = 1 / (np.square(full) + LARGEST**2) ** 1.7
    field /= np.sqrt((weight.sum() - weight[0, 0]) / weight.size)
    return np.asarray(1 / (1 + np.exp(-1.702 * field)), dtype=np.float32)  # the normal distribution, nearly


def cast_shadow(cloud: Floats, offset: tuple[int, int]) -> tuple[Floats, Floats]:
    """Return (opacity, shadow) over the landscape, given `cloud` with its margin and the (row, column) offset."""
    centre = cloud[MARGIN:-MARGIN, MARGIN:-MARGIN]
    row, column = (int(np.clip(o, -MARGIN, MARGIN)) for o in offset)
    rows = slice(MARGIN - row, MARGIN - row + centre.shape[0])
    columns = slice(MARGIN - column, MARGIN - column + centre.shape[1])
    return centre, cloud[rows, columns] * (1 - centre)


def shadow_offset(elevation: float, latitude: float, height: float) -> tuple[int, int]:
    """Return the (row, column) offset, in 10 m pixels, of the shadow of a cloud at `height` metres, mid-morning."""
    length = height / np.tan(np.deg2rad(max(elevation, 10.0))) / 10
    poleward = -1 if latitude >= 0 else 1  # the sun stands to the south-east in the north
    return round(poleward * 0.88 * length), round(-0.47 * length)


def believed_clear(cloud: Floats, shadow: Floats, detection: Floats | float) -> npt.NDArray[np.bool_]:
    """Return where a mask sees no cloud: it finds what is thicker than `detection`, and shadows less well."""
    return (cloud < detection) & (shadow < detection + 0.25)


def through_air(surface: Floats, cloud: Floats, shadow: Floats, haze: Floats | float) -> Floats:
    """Return what the sensor sees of `surface` (10, ...), which is overwritten."""
    cloud_colour, haze_colour = material("cloud"), material("haze")
    for band in range(len(surface)):
        seen = surface[band]
        seen *= 1 - 0.62 * (1 - 0.35 * haze_colour[band]) * shadow  # blue sky lights the shadows
        weight = haze_colour[band] * haze
        seen += weight * (0.32 - seen)
        seen += cloud * (cloud_colour[band] - seen)
    return surface
