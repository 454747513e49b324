"""A landscape as the two satellites see it, scene by scene."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tessera_xr.sentinel.simulation.acquisitions import Passes, sun_elevation
from tessera_xr.sentinel.simulation.clouds import (
    MARGIN,
    believed_clear,
    cast_shadow,
    opacity,
    shadow_offset,
    sky_field,
    through_air,
)
from tessera_xr.sentinel.simulation.covers import CODES
from tessera_xr.sentinel.simulation.layout import smooth_field
from tessera_xr.sentinel.simulation.spectra import TWENTY_METRES
from tessera_xr.sentinel.simulation.surface import Patches, backscatter, reflectance, state_on
from tessera_xr.sentinel.simulation.weather import Weather, cloud_cover

Floats = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
VIGOUR = (0.75, 1.25)  # leaf area of the weakest and the strongest pixels of a patch
SPREAD = 0.12  # share of a pixel's light that comes from each neighbour on a side
SAR_OFFSET, SAR_STEPS = 50.0, 200.0  # TESSERA's scale of backscatter: (dB + 50) * 200


@dataclass(frozen=True)
class Ground:
    """A landscape: its map, its patches, its weather and its place."""

    patch: npt.NDArray[np.int32]
    """Row of `patches` of each pixel, (y, x)."""
    patches: Patches
    weather: Weather
    latitude: float


@dataclass(frozen=True)
class Optical:
    """Sentinel-2 scenes."""

    s2: npt.NDArray[np.uint16]
    """Reflectance times 10,000, (t, 10, y, x); 0 = no data."""
    valid: Mask
    """What the mask believes clear, (t, y, x)."""
    clear: Mask
    """What is clear, (t, y, x)."""


def observe_optical(ground: Ground, when: Passes, cloudiness: float, shift: float, rng: np.random.Generator) -> Optical:
    """Simulate the Sentinel-2 scenes of the passes `when`."""
    days, shape = when.day, ground.patch.shape
    state = state_on(ground.patches, ground.weather, days)
    weak, strong = (reflectance(ground.patches, state, days, vigour) for vigour in VIGOUR)
    vigour, grain = _textures(shape, rng)
    air = _Air(ground.latitude, cloudiness, shift, days, rng)
    bidirectional = view_factor(days, when.track, ground.latitude, rng)
    seen = _seen_by_track(shape, int(when.track.max(initial=0)) + 1, rng)
    snow = ground.weather.snow[0, days]
    roofs = (ground.patches.cover[ground.patch] == CODES["built_up"]) & (rng.random(shape) < 0.25)
    s2 = np.empty((len(days), 10, *shape), dtype=np.uint16)
    valid, clear = np.empty((2, len(days), *shape), dtype=bool)
    for t in range(len(days)):
        low = weak[:, :, t][:, ground.patch]
        image = (low + vigour * (strong[:, :, t][:, ground.patch] - low)) * (grain * bidirectional[t])
        image, valid[t], clear[t] = air.look(t, spread_light(image), rng)
        valid[t] &= ~(roofs & (rng.random(shape) < 0.3))  # masks take bright roofs for cloud, the same ones again
        if snow[t] > 0.5 and rng.random() < 0.4:  # and bright snow, now and then
            valid[t] &= rng.random(shape) < 0.3
        s2[t] = _digitise(image, rng) * seen[when.track[t]]
        valid[t] &= seen[when.track[t]]
        clear[t] &= seen[when.track[t]]
    return Optical(s2, valid, clear)


def observe_radar(
    ground: Ground,
    days: npt.NDArray[np.int64],
    incidence: Floats,
    ascending: Mask,
    looks: float,
    rng: np.random.Generator,
) -> npt.NDArray[np.int16]:
    """Simulate the Sentinel-1 passes on `days`, (t, 2, y, x) in TESSERA's scale."""
    state = state_on(ground.patches, ground.weather, days)
    mean = backscatter(ground.patches, state, incidence, ascending)
    texture = 1 + 0.06 * rng.standard_normal(ground.patch.shape, dtype=np.float32)
    out = np.empty((len(days), 2, *ground.patch.shape), dtype=np.int16)
    for t in range(len(days)):
        power = spread_light(mean[:, :, t][:, ground.patch] * texture)
        out[t] = to_sar_scale(speckled(power, looks, rng))
    return out


def speckled(power: Floats, looks: float, rng: np.random.Generator) -> Floats:
    """Return `power` times speckle of mean 1 and variance 1/looks, the mean of `looks` exponential returns."""
    return power * (rng.standard_gamma(looks, power.shape, dtype=np.float32) / np.float32(looks))


def to_sar_scale(power: Floats) -> npt.NDArray[np.int16]:
    """Return backscatter power as int16 in TESSERA's scale; at least 1, since 0 means missing."""
    decibel = 10 * np.log10(np.maximum(power, 1e-5))
    return np.clip((decibel + SAR_OFFSET) * SAR_STEPS, 1, 32767).astype(np.int16)


def view_factor(
    days: npt.NDArray[np.int64], track: npt.NDArray[np.int64], latitude: float, rng: np.random.Generator
) -> Floats:
    """Return a factor of reflectance per pass: which way the track looks, and how low the sun stands."""
    sides = np.array([0.965, 1.035, 1.0, 1.015])[track % 4]
    low_sun = (45 - sun_elevation(latitude, days)) / 45
    return (sides * (1 - 0.05 * low_sun) * (1 + 0.012 * rng.standard_normal(len(days)))).astype(np.float32)


def spread_light(image: Floats, share: float = SPREAD) -> Floats:
    """Return `image` (..., y, x) with each pixel's light spread over its neighbours, so that edges mix."""
    for axis in (-1, -2):
        padded = np.pad(image, [(0, 0)] * (image.ndim - 2) + [(int(axis == a),) * 2 for a in (-2, -1)], mode="edge")
        n = image.shape[axis]
        before, here, after = (np.take(padded, range(i, i + n), axis=axis) for i in range(3))
        image = np.float32(1 - 2 * share) * here + np.float32(share) * (before + after)
    return image


class _Air:
    """Clouds and haze of every pass, and how well the mask finds them."""

    def __init__(
        self, latitude: float, cloudiness: float, shift: float, days: npt.NDArray[np.int64], rng: np.random.Generator
    ) -> None:
        place = np.array([latitude], np.float32), np.array([cloudiness], np.float32), np.array([shift], np.float32)
        self.latitude = latitude
        self.cover = cloud_cover(*place, days, rng)[0]
        self.haze = draw_haze(self.cover.shape, cloudiness, rng)
        self.detection = draw_detection(self.cover.shape, rng)
        self.elevation = sun_elevation(latitude, days)
        self.height = rng.uniform(300, 1800, len(days))

    def look(self, t: int, surface: Floats, rng: np.random.Generator) -> tuple[Floats, Mask, Mask]:
        """Return the image of pass `t`, what the mask believes clear, and what is."""
        shape = (surface.shape[-2], surface.shape[-1])
        sky = sky_field(shape, rng)
        offset = shadow_offset(float(self.elevation[t]), self.latitude, float(self.height[t]))
        cloud, shadow = cast_shadow(opacity(sky, self.cover[t]), offset)
        haze = self.haze[t] * (1.4 - sky[MARGIN:-MARGIN, MARGIN:-MARGIN])
        believed = believed_clear(cloud, shadow, self.detection[t])
        clear = (cloud == 0) & (shadow == 0)
        image = twenty_metres(through_air(surface, cloud, shadow, haze))
        return image, believed, clear


def draw_haze(shape: tuple[int, ...], cloudiness: float, rng: np.random.Generator) -> Floats:
    """Draw haze per pass: a trace always, more on some days, none in a sky without clouds."""
    thick = rng.uniform(0.03, 0.2, shape) * (rng.random(shape) < 0.2)
    return ((rng.exponential(0.012, shape) + thick) * min(1.0, 2 * cloudiness)).astype(np.float32)


def draw_detection(shape: tuple[int, ...], rng: np.random.Generator) -> Floats:
    """Draw the opacity from which the mask finds clouds, per pass; on some it only finds the thickest."""
    return np.where(rng.random(shape) < 0.05, 0.7, rng.uniform(0.08, 0.35, shape)).astype(np.float32)


def twenty_metres(image: Floats) -> Floats:
    """Return `image` (10, y, x), the bands of 20 m averaged over 2 x 2 pixels and repeated; it is overwritten."""
    ny, nx = image.shape[1:]
    bands = image[list(TWENTY_METRES)]
    bands = np.pad(bands, [(0, 0), (0, ny % 2), (0, nx % 2)], mode="edge")
    coarse = 0.25 * (bands[:, ::2, ::2] + bands[:, 1::2, ::2] + bands[:, ::2, 1::2] + bands[:, 1::2, 1::2])
    image[list(TWENTY_METRES)] = coarse.repeat(2, axis=1).repeat(2, axis=2)[:, :ny, :nx]
    return image


def _digitise(image: Floats, rng: np.random.Generator) -> npt.NDArray[np.uint16]:
    return to_counts(image, rng.standard_normal(image.shape, dtype=np.float32))


def to_counts(reflected: Floats, noise: Floats) -> npt.NDArray[np.uint16]:
    """Return reflectance times 10,000 with the sensor's noise, at least 1; both arguments may be overwritten."""
    noise *= 0.0015 + 0.01 * reflected
    reflected += noise
    reflected *= 10_000
    return np.clip(reflected, 1, 16_000, out=reflected).astype(np.uint16)


def _textures(shape: tuple[int, ...], rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Return the vigour of each pixel (0 weak, 1 strong) and its brightness (about 1)."""
    flat = (shape[0], shape[1])
    vigour = 0.5 + 0.2 * smooth_field(flat, 4, rng) + 0.08 * rng.standard_normal(flat, dtype=np.float32)
    grain = 1 + 0.025 * rng.standard_normal(flat, dtype=np.float32)
    return np.clip(vigour, 0, 1).astype(np.float32), grain


def _seen_by_track(shape: tuple[int, ...], n_tracks: int, rng: np.random.Generator) -> Mask:
    """Return what each track sees, (n_tracks, y, x): the swath of the last may end within the landscape."""
    seen = np.ones((n_tracks, *shape), dtype=bool)
    if n_tracks > 1 and rng.random() < 0.35:
        y, x = np.indices(shape)
        edge = rng.uniform(0.3, 0.9) * shape[1]
        seen[-1] = x + 0.2 * y < edge
    return seen
