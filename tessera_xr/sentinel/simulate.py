"""Simulated landscapes: Sentinel cubes of which the truth is known, made offline and to the bit from a seed.

Canopies come from a radiative-transfer model (PROSAIL) seen through Sentinel-2's response functions, radar from the
water cloud model; seasons, harvests, weather, clouds and an imperfect cloud mask are drawn. It is a test bench and a
teaching sample, not a substitute for imagery: no accuracy measured on it says anything about a real place.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import date

import numpy as np
import numpy.typing as npt
import xarray as xr
from odc.geo.geobox import GeoBox

from tessera_xr.errors import SchemaError
from tessera_xr.grid import with_grid
from tessera_xr.sentinel.bands import ORBITS, S1_BANDS, S2_BANDS
from tessera_xr.sentinel.simulation.acquisitions import (
    LOWEST_SUN,
    S1_COVERAGE,
    S2_COVERAGE,
    Passes,
    n_tracks,
    passes,
    s1_repeat,
    s2_repeat,
    sun_elevation,
    timestamps,
)
from tessera_xr.sentinel.simulation.checks import check_names, check_range, check_whole, is_whole
from tessera_xr.sentinel.simulation.covers import CHANGE_CODES, CHANGES, COVERS
from tessera_xr.sentinel.simulation.layout import SMALLEST, Layout, lay_out, place_changes
from tessera_xr.sentinel.simulation.phenology import calendar
from tessera_xr.sentinel.simulation.pixels import DPixels, simulate_pixels
from tessera_xr.sentinel.simulation.scene import Ground, Optical, observe_optical, observe_radar
from tessera_xr.sentinel.simulation.surface import append_changes, draw_patches, pave
from tessera_xr.sentinel.simulation.weather import draw_weather

__all__ = ["EVENTS", "DPixels", "simulate_landscape", "simulate_pixels"]

EVENTS = ("clear_cut", "fire", "building")
FIRST_YEAR, LAST_YEAR = 2016, 2100
LOST = 0.03  # share of passes that never make a product


def simulate_landscape(
    shape: tuple[int, int] = (96, 96),
    year: int | Sequence[int] = 2024,
    *,
    latitude: float = 51.0,
    longitude: float = 3.5,
    cloudiness: float = 0.5,
    seed: int = 0,
    events: Iterable[str] = EVENTS,
    orbits: Iterable[str] = ORBITS,
    looks: float = 4.5,
) -> xr.Dataset:
    """Simulate one landscape through one or more years, as a cube with its truth.

    Parameters
    ----------
    shape : (int, int)
        Rows and columns of 10 m; at least 16 each.
    year : int or sequence of int
        Calendar year or years, from 2016 on: the same landscape, other weather. Years between those asked for pass
        unobserved.
    latitude, longitude : float
        The centre, in degrees; latitude within 75 degrees of the equator.
    cloudiness : float
        Mean share of the land that clouds and their shadows hide, 0 to 0.95. 0 gives a sky without a cloud or haze.
    seed : int
        The same arguments and seed give the same cube, bit for bit.
    events : iterable of str
        Changes to place: "clear_cut", "fire", "building". Each happens once, between a quarter and two thirds
        through the years.
    orbits : iterable of str
        Sentinel-1 passes to simulate: "ascending", "descending", both or none.
    looks : float
        Equivalent number of looks of the radar's speckle.

    Returns
    -------
    xarray.Dataset
        The cube (`s2`, `s2_valid`, `s1`), and the truth:

        - `land_cover` (y, x) uint8, before any change, with CF flag attributes;
        - `parcel` (y, x) int32, field, stand or block;
        - `change` (y, x) uint8 and `change_time` (y, x), NaT where nothing changes;
        - `s2_clear` (s2_time, y, x) bool, where there truly is neither cloud nor shadow.

    Raises
    ------
    SchemaError
        If an argument is outside what is allowed.

    Examples
    --------
    >>> cube = simulate_landscape((32, 32), 2024, seed=1)
    >>> cube.s2.dims
    ('s2_time', 's2_band', 'y', 'x')
    """
    years = _check_years(year)
    shape, events, orbits = (
        _check_shape(shape),
        check_names("events", events, EVENTS),
        check_names("orbits", orbits, ORBITS),
    )
    check_range("latitude", latitude, -75, 75)
    check_range("longitude", longitude, -180, 180)
    check_range("cloudiness", cloudiness, 0, 0.95)
    check_range("looks", looks, 0.5, 1000)
    check_whole("seed", seed, 0)
    seeds = np.random.SeedSequence(int(seed)).spawn(5)  # one for each part, so that one part can't disturb another
    layout_rng, ground_rng, date_rng, optical_rng, radar_rng = map(np.random.default_rng, seeds)
    layout = lay_out(shape, latitude, layout_rng)
    ground, shift = _settle(layout, years, latitude, events, layout_rng, ground_rng)
    optical_passes = _optical_passes(years, latitude, date_rng)
    optical = observe_optical(ground, optical_passes, cloudiness, shift, optical_rng)
    day, ascending, incidence = _radar_passes(years, latitude, orbits, date_rng)
    s1 = observe_radar(ground, day, incidence, ascending, looks, radar_rng)
    cube = xr.merge(
        [
            _optical_dataset(optical, timestamps(years[0], optical_passes.day, 10.6, longitude)),
            _radar_dataset(s1, timestamps(years[0], day, np.where(ascending, 17.8, 5.8), longitude), ascending, orbits),
            _truth(ground, layout, years[0]),
        ]
    )
    span = str(years[0]) if len(years) == 1 else f"{years[0]}-{years[-1]}"
    cube.attrs = {
        "tessera_xr_kind": "cube",
        "source": "simulated",
        "title": f"Simulated landscape {span} at {latitude:g}, {longitude:g} (seed {seed})",
    }
    return with_grid(cube, _geobox(shape, latitude, longitude))


def _settle(
    layout: Layout,
    years: list[int],
    latitude: float,
    events: tuple[str, ...],
    layout_rng: np.random.Generator,
    rng: np.random.Generator,
) -> tuple[Ground, float]:
    """Return the landscape with its patches and weather, and the shift of its seasons in days."""
    place = np.array([latitude], dtype=np.float32)
    when = calendar(place, rng)
    span = years[-1] - years[0] + 1
    n_days = (date(years[-1] + 1, 1, 1) - date(years[0], 1, 1)).days
    patches = draw_patches(layout.cover, np.zeros(len(layout.cover), dtype=np.intp), when, span, rng)
    patches = pave(patches, layout.roads)
    weather = draw_weather(place, when.shift, n_days, rng)
    patch, parents, codes = place_changes(layout, events, layout_rng)
    day_of = {CHANGE_CODES[event]: float(rng.integers(n_days // 4, n_days * 2 // 3)) for event in events}
    days = np.array([day_of[code] for code in codes.tolist()], dtype=np.float32)
    patches = append_changes(patches, parents, codes, days)
    return Ground(patch, patches, weather, latitude), float(when.shift[0])


def _optical_passes(years: list[int], latitude: float, rng: np.random.Generator) -> Passes:
    tracks, first = int(n_tracks(np.array([latitude]), S2_COVERAGE, rng)[0]), int(rng.integers(10))
    found = passes(years, [s2_repeat(y) for y in years], [first + 3 * k for k in range(tracks)], LOST, rng)
    lit = sun_elevation(latitude, found.day) > LOWEST_SUN
    return Passes(found.day[lit], found.track[lit])


def _radar_passes(
    years: list[int], latitude: float, orbits: tuple[str, ...], rng: np.random.Generator
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_], npt.NDArray[np.float32]]:
    """Return day, look direction and incidence angle (degrees) of each pass, in time order."""
    days, ascendings, incidences = [], [], []
    for orbit in ORBITS:  # drawn for both, so that leaving one out leaves the other as it was
        tracks = int(n_tracks(np.array([latitude]), S1_COVERAGE, rng)[0])
        found = passes(years, [s1_repeat(y) for y in years], rng.choice(12, tracks, replace=False).tolist(), LOST, rng)
        angles = np.linspace(33, 43, tracks) + rng.uniform(-2, 2) if tracks > 1 else rng.uniform(33, 43, 1)
        if orbit in orbits:
            days.append(found.day)
            ascendings.append(np.full(len(found.day), orbit == "ascending"))
            incidences.append(angles[found.track])
    if not days:
        return np.zeros(0, np.int64), np.zeros(0, bool), np.zeros(0, np.float32)
    day, ascending, incidence = (np.concatenate(part) for part in (days, ascendings, incidences))
    order = np.lexsort((ascending, day))  # the descending pass is the morning's
    # two tracks of a direction never meet on one day: their offsets differ, but a shorter cycle can bring them together
    _, first = np.unique(np.stack([day[order], ascending[order]]), axis=1, return_index=True)
    order = order[np.sort(first)]
    return day[order], ascending[order], incidence[order].astype(np.float32)


def _optical_dataset(optical: Optical, times: npt.NDArray[np.datetime64]) -> xr.Dataset:
    mask = ("s2_time", "y", "x")
    return xr.Dataset(
        {
            "s2": (("s2_time", "s2_band", "y", "x"), optical.s2, {"long_name": "reflectance x 10,000, 0 = no data"}),
            "s2_valid": (mask, optical.valid, {"long_name": "believed clear by the cloud mask"}),
            "s2_clear": (mask, optical.clear, {"long_name": "free of clouds and shadows in truth"}),
        },
        coords={"s2_time": times, "s2_band": list(S2_BANDS)},
    )


def _radar_dataset(
    s1: npt.NDArray[np.int16],
    times: npt.NDArray[np.datetime64],
    ascending: npt.NDArray[np.bool_],
    orbits: tuple[str, ...],
) -> xr.Dataset:
    return xr.Dataset(
        {"s1": (("s1_time", "s1_band", "y", "x"), s1, {"long_name": "backscatter, (dB + 50) * 200, 0 = missing"})},
        coords={
            "s1_time": times,
            "s1_band": list(S1_BANDS),
            "s1_orbit": ("s1_time", np.where(ascending, *ORBITS) if orbits else np.zeros(0, "U10")),
        },
    )


def _truth(ground: Ground, layout: Layout, first_year: int) -> xr.Dataset:
    change, day = ground.patches.change[ground.patch], ground.patches.change_day[ground.patch]
    start = np.datetime64(f"{first_year}-01-01", "ns")
    time = np.full(day.shape, np.datetime64("NaT", "ns"))
    time[change > 0] = start + day[change > 0].astype("timedelta64[D]")
    return xr.Dataset(
        {
            "land_cover": (("y", "x"), ground.patches.cover[ground.patch], land_cover_attrs()),
            "parcel": (("y", "x"), layout.patch, {"long_name": "field, stand or block"}),
            "change": (("y", "x"), change, _flags(list(CHANGES), list(CHANGES.values()), "what happened here")),
            "change_time": (("y", "x"), time, {"long_name": "day of the change"}),
        }
    )


def land_cover_attrs() -> dict[str, object]:
    """Return the CF flag attributes of simulated land cover: codes, names and colours."""
    attrs = _flags(list(COVERS), [cover.name for cover in COVERS.values()], "land cover")
    return attrs | {"flag_colors": " ".join(cover.colour for cover in COVERS.values())}


def _flags(codes: list[int], names: list[str], title: str) -> dict[str, object]:
    return {"long_name": title, "flag_values": np.array(codes, dtype=np.uint8), "flag_meanings": " ".join(names)}


def _geobox(shape: tuple[int, int], latitude: float, longitude: float) -> GeoBox:
    """Return a grid of 10 m around the centre, in its UTM zone, with edges on multiples of 10 m."""
    from pyproj import Transformer

    zone = min(int((longitude + 180) // 6) + 1, 60)
    crs = f"EPSG:{(32600 if latitude >= 0 else 32700) + zone}"
    x, y = Transformer.from_crs("EPSG:4326", crs, always_xy=True).transform(longitude, latitude)
    left = round(x / 10) * 10 - 10 * (shape[1] // 2)
    bottom = round(y / 10) * 10 - 10 * (shape[0] // 2)
    return GeoBox.from_bbox(
        (left, bottom, left + 10 * shape[1], bottom + 10 * shape[0]), crs=crs, resolution=10, tight=True
    )


def _check_years(year: int | Sequence[int]) -> list[int]:
    given = [year] if isinstance(year, (int, np.integer)) else list(year)
    if not given or not all(is_whole(y) and FIRST_YEAR <= y <= LAST_YEAR for y in given):
        raise SchemaError(
            f"year={year!r} can't be simulated; give a year from {FIRST_YEAR} to {LAST_YEAR}, or a list of such years"
        )
    return sorted({int(y) for y in given})


def _check_shape(shape: tuple[int, int]) -> tuple[int, int]:
    rows, columns = shape
    for what, size in (("rows", rows), ("columns", columns)):
        check_whole(f"shape ({what})", size, SMALLEST)
    return int(rows), int(columns)
