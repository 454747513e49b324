"""Single d-pixels from places all over the world, for pretraining: the same ground and sky, without the map."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tessera_xr.errors import SchemaError
from tessera_xr.sentinel.bands import ORBITS
from tessera_xr.sentinel.simulation.acquisitions import LOWEST_SUN, S2_COVERAGE, n_tracks, sun_elevation
from tessera_xr.sentinel.simulation.checks import check_range, check_whole
from tessera_xr.sentinel.simulation.clouds import believed_clear, opacity, through_air
from tessera_xr.sentinel.simulation.covers import CODES
from tessera_xr.sentinel.simulation.layout import field_weights
from tessera_xr.sentinel.simulation.phenology import Calendar, calendar
from tessera_xr.sentinel.simulation.scene import (
    Floats,
    draw_detection,
    draw_haze,
    speckled,
    to_counts,
    to_sar_scale,
    view_factor,
)
from tessera_xr.sentinel.simulation.surface import (
    Patches,
    backscatter,
    draw_patches,
    reflectance,
    state_on,
    take_patches,
)
from tessera_xr.sentinel.simulation.weather import Weather, cloud_cover, draw_weather

Ints = npt.NDArray[np.int64]
_Mixing = tuple[Ints, Ints, Floats]  # own field, neighbour, share of the own
PIXELS, FIELDS = 64, 16  # per place
PLACES_AT_ONCE, PLACES_DRAWN = 4, 1024  # per step of rendering, so that it stays in cache; and of drawing
N_DAYS = 365
# How often places hold what is no field.
_WILD = {
    "deciduous_forest": 0.13,
    "evergreen_forest": 0.13,
    "wetland": 0.05,
    "water": 0.06,
    "built_up": 0.09,
    "bare_soil": 0.04,
}


@dataclass(frozen=True)
class DPixels:
    """Simulated d-pixels, on dates that they share."""

    s2: npt.NDArray[np.uint16]
    """Reflectance times 10,000, (n, t2, 10) in TESSERA's band order; 0 = no data."""
    s2_doy: Ints
    """Day of the year, (t2,)."""
    s2_valid: npt.NDArray[np.bool_]
    """What the cloud mask believes clear, (n, t2)."""
    s1: npt.NDArray[np.int16]
    """VV and VH in TESSERA's scale, (n, t1, 2); 0 = missing."""
    s1_doy: Ints
    """Day of the year, (t1,)."""
    s1_orbit: npt.NDArray[np.str_]
    """"ascending" or "descending", (t1,)."""
    land_cover: npt.NDArray[np.uint8]
    """Cover of the largest part of the pixel, (n,); coded as in `simulate_landscape`."""
    latitude: Floats
    """Degrees, (n,)."""
    place: Ints
    """Pixels of one place share weather, clouds and passes, (n,)."""

    def __len__(self) -> int:
        return len(self.s2)


@dataclass(frozen=True)
class _Places:
    """Places, and what passes over them. Arrays (n_places, ...)."""

    latitude: Floats
    when: Calendar
    weather: Weather
    optical: npt.NDArray[np.bool_]
    """Which optical passes see the place, (n_places, t2)."""
    radar: npt.NDArray[np.bool_]
    """The same of radar, (n_places, t1)."""
    cover: Floats
    """Cloud cover, (n_places, t2)."""
    haze: Floats
    detection: Floats
    view: Floats
    """Factor of reflectance, (n_places, t2)."""
    kind: Ints
    """Which tracks and orbits see the place, as one number."""


def simulate_pixels(
    n: int,
    *,
    seed: int = 0,
    latitudes: tuple[float, float] = (-55, 70),
    cloudiness: tuple[float, float] = (0.2, 0.75),
    looks: float = 4.5,
) -> DPixels:
    """Simulate `n` d-pixels of one year, drawn across places, covers, seasons and hemispheres.

    All share two optical tracks and both radar orbits as their dates; what a place does not see is no data. In the
    tropics mostly one optical track is seen, at high latitudes two, less in the dark months; three places in ten
    lack a radar orbit, and half of them have a pass every 12 days instead of 6.

    Parameters
    ----------
    n : int
        How many; 64 come from each place, in a row: shuffle before training.
    seed : int
        The same arguments and seed give the same d-pixels.
    latitudes : (float, float)
        Range of the places, degrees within -75 and 75.
    cloudiness : (float, float)
        Range of their mean cloud cover, within 0 and 0.95.
    looks : float
        Equivalent number of looks of the radar's speckle.

    Returns
    -------
    DPixels

    Raises
    ------
    SchemaError
        If an argument is outside what is allowed.
    """
    _check(n, seed, latitudes, cloudiness, looks)
    rng = np.random.default_rng([seed, 2])
    s2_day, s2_track = _dates([(int(rng.integers(5)), 5), (int(rng.integers(5)) + 3, 5)])
    s1_day, s1_track = _dates([(int(rng.integers(6)), 6), (int(rng.integers(6)), 6)])
    out = DPixels(
        s2=np.zeros((n, len(s2_day), 10), dtype=np.uint16),
        s2_doy=s2_day + 1,
        s2_valid=np.zeros((n, len(s2_day)), dtype=bool),
        s1=np.zeros((n, len(s1_day), 2), dtype=np.int16),
        s1_doy=s1_day + 1,
        s1_orbit=np.array(ORBITS)[s1_track],
        land_cover=np.empty(n, dtype=np.uint8),
        latitude=np.empty(n, dtype=np.float32),
        place=np.arange(n) // PIXELS,
    )
    for start in range(0, n, PIXELS * PLACES_DRAWN):
        n_places = min(PLACES_DRAWN, -(-(n - start) // PIXELS))
        places = _draw_places(n_places, latitudes, cloudiness, s2_day, s2_track, s1_day, s1_track, rng)
        fields = _draw_fields(places, rng)
        alike = np.argsort(places.kind, kind="stable")  # dates that none of some places sees cost nothing
        for first in range(0, n_places, PLACES_AT_ONCE):
            _render(out, start, places, fields, alike[first : first + PLACES_AT_ONCE], looks, rng)
    return out


def _dates(tracks: list[tuple[int, int]]) -> tuple[Ints, Ints]:
    """Return days and track of passes, given each track's first day and cycle."""
    days = [np.arange(first % cycle, N_DAYS, cycle) for first, cycle in tracks]
    track = np.repeat(np.arange(len(tracks)), [len(d) for d in days])
    day = np.concatenate(days)
    order = np.lexsort((track, day))
    return day[order], track[order]


def _draw_places(
    n: int,
    latitudes: tuple[float, float],
    cloudiness: tuple[float, float],
    s2_day: Ints,
    s2_track: Ints,
    s1_day: Ints,
    s1_track: Ints,
    rng: np.random.Generator,
) -> _Places:
    latitude = rng.uniform(*latitudes, n).astype(np.float32)
    cloudy = rng.uniform(*cloudiness, n).astype(np.float32)
    when = calendar(latitude, rng)
    tracks = np.minimum(n_tracks(latitude, S2_COVERAGE, rng), 2)
    optical = s2_track[None] < tracks[:, None]
    optical &= (rng.random(optical.shape) > 0.03) & (sun_elevation(latitude[:, None], s2_day) > LOWEST_SUN)
    absent = rng.choice([-1, 0, 1], n, p=[0.7, 0.15, 0.15])  # the orbit that no satellite flies
    rare = rng.random(n) < 0.5
    turn = np.array([np.cumsum(s1_track == k)[i] for i, k in enumerate(s1_track)])
    skipped = rare[:, None] & (turn % 2 == 0)[None]
    radar = (s1_track[None] != absent[:, None]) & ~skipped & (rng.random((n, len(s1_day))) > 0.03)
    cover = cloud_cover(latitude, cloudy, when.shift, s2_day, rng)
    return _Places(
        latitude=latitude,
        when=when,
        weather=draw_weather(latitude, when.shift, N_DAYS, rng),
        optical=optical,
        radar=radar,
        cover=cover,
        haze=draw_haze(cover.shape, 0.5, rng),
        detection=draw_detection(cover.shape, rng),
        view=np.stack([view_factor(s2_day, s2_track, float(lat), rng) for lat in latitude]),
        kind=tracks + 4 * (absent + 1) + 16 * rare,
    )


def _draw_fields(places: _Places, rng: np.random.Generator) -> Patches:
    """Draw the fields of all places, `FIELDS` for each."""
    n = len(places.latitude)
    cover = np.empty((n, FIELDS), dtype=np.uint8)
    wild, chances = np.array([CODES[name] for name in _WILD], dtype=np.uint8), np.array(list(_WILD.values()))
    for i, latitude in enumerate(places.latitude):
        codes, weights = field_weights(float(latitude))
        share = np.concatenate([chances, weights * (1 - chances.sum())])
        cover[i] = np.concatenate([wild, codes])[np.searchsorted(share.cumsum(), rng.random(FIELDS) * share.sum())]
    return draw_patches(cover.ravel(), np.repeat(np.arange(n), FIELDS), places.when, 1, rng)


def _render(
    out: DPixels, start: int, places: _Places, fields: Patches, some: Ints, looks: float, rng: np.random.Generator
) -> None:
    """Fill the rows of `out` that belong to the places `some`; `start` is the row of place 0."""
    rows = (start + some[:, None] * PIXELS + np.arange(PIXELS)).ravel()
    local = np.repeat(np.arange(len(some)), PIXELS)[rows < len(out)]
    rows, place = rows[rows < len(out)], some[local]
    some_fields = take_patches(fields, (some[:, None] * FIELDS + np.arange(FIELDS)).ravel())
    own, other = (rng.integers(FIELDS, size=len(place)) + local * FIELDS for _ in range(2))
    # a third of the pixels lie on an edge
    share = np.where(rng.random(len(place)) < 0.65, 1, rng.uniform(0.5, 1, len(place))).astype(np.float32)[:, None]
    out.land_cover[rows], out.latitude[rows] = some_fields.cover[own], places.latitude[place]
    mixing = (own, other, share)
    _fill_optical(out, rows, places, some_fields, place, mixing, rng)
    _fill_radar(out, rows, places, some_fields, place, mixing, looks, rng)


def _fill_optical(
    out: DPixels, rows: Ints, places: _Places, fields: Patches, place: Ints, mixing: _Mixing, rng: np.random.Generator
) -> None:
    when = np.flatnonzero(places.optical[place].any(axis=0))
    of, days = np.ix_(place, when), out.s2_doy[when] - 1
    vigour = rng.uniform(0.8, 1.2, (len(fields.cover), 1)).astype(np.float32)
    image = _mixed(reflectance(fields, state_on(fields, places.weather, days), days, vigour), mixing)
    image *= places.view[of] * (1 + 0.03 * rng.standard_normal((len(place), 1), dtype=np.float32))
    sky = rng.random((2, *image.shape[1:]), dtype=np.float32)
    cloud = opacity(sky[0], places.cover[of])
    shadow = opacity(sky[1], 0.3 * places.cover[of]) * (1 - cloud)
    image = through_air(image, cloud, shadow, places.haze[of])
    counts = to_counts(image, rng.standard_normal(image.shape, dtype=np.float32)) * places.optical[of]
    believed = believed_clear(cloud, shadow, places.detection[of]) & places.optical[of]
    out.s2[np.ix_(rows, when)], out.s2_valid[np.ix_(rows, when)] = np.moveaxis(counts, 0, -1), believed


def _fill_radar(
    out: DPixels,
    rows: Ints,
    places: _Places,
    fields: Patches,
    place: Ints,
    mixing: _Mixing,
    looks: float,
    rng: np.random.Generator,
) -> None:
    when = np.flatnonzero(places.radar[place].any(axis=0))
    ascending = out.s1_orbit[when] == ORBITS[0]
    incidence = _incidence(ascending, rng)
    mean = backscatter(fields, state_on(fields, places.weather, out.s1_doy[when] - 1), incidence, ascending)
    counts = to_sar_scale(speckled(_mixed(mean, mixing), looks, rng)) * places.radar[np.ix_(place, when)]
    out.s1[np.ix_(rows, when)] = np.moveaxis(counts, 0, -1)


def _incidence(ascending: npt.NDArray[np.bool_], rng: np.random.Generator) -> Floats:
    """Draw one angle for each orbit; return the angle of each pass, degrees."""
    up, down = rng.uniform(32, 44, 2).astype(np.float32)
    return np.asarray(np.where(ascending, up, down), dtype=np.float32)


def _mixed(series: Floats, mixing: _Mixing) -> Floats:
    """Return the series of pixels, (bands, n, t), each a mixture of two fields'."""
    own, other, share = mixing
    below = np.take(series, other, axis=1)
    return np.asarray(below + share * (np.take(series, own, axis=1) - below), dtype=np.float32)


def _check(n: int, seed: int, latitudes: tuple[float, float], cloudiness: tuple[float, float], looks: float) -> None:
    check_whole("n", n, 1)
    check_whole("seed", seed, 0)
    for what, (low, high), (least, most) in (
        ("latitudes", latitudes, (-75, 75)),
        ("cloudiness", cloudiness, (0, 0.95)),
    ):
        if not least <= low <= high <= most:
            raise SchemaError(f"{what}={(low, high)!r} is no range; give (low, high) within {least} and {most}")
    check_range("looks", looks, 0.5, 1000)
