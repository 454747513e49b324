"""The ground: patches of one cover each, their reflectance and their radar backscatter day by day."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
import numpy.typing as npt

from tessera_xr.sentinel.simulation.covers import CHANGE_CODES, CODES, COVERS
from tessera_xr.sentinel.simulation.phenology import (
    Calendar,
    Floats,
    Seasons,
    canopy_state,
    draw_seasons,
    flowers,
)
from tessera_xr.sentinel.simulation.spectra import canopy_index, canopy_reflectance, material
from tessera_xr.sentinel.simulation.weather import Weather

Codes = npt.NDArray[np.uint8]
# Attema and Ulaby's water cloud: volume scattering and extinction per unit of leaf area, VV and VH (C-band).
SCATTER, EXTINCTION = (0.0225, 0.0071), (0.080, 0.070)
NOISE_FLOOR = 10**-2.55  # power that the instrument reports where nothing comes back
REFERENCE_INCIDENCE = 38.0


@dataclass(frozen=True)
class Patches:
    """Fields, stands, blocks and ponds: what does not change from day to day. Arrays of length n_patches."""

    cover: Codes
    place: npt.NDArray[np.intp]
    """Row of the weather."""
    seasons: Seasons
    soil: Floats
    """Brightness of the dry soil, 0 to 1 in the spectral table's terms."""
    colour: Floats
    """Factor of reflectance, (10, n_patches)."""
    hard: Floats
    """Share of water, roofs, asphalt."""
    material: Floats
    """Reflectance of that share, (10, n_patches)."""
    hard_db: Floats
    """Backscatter of that share in calm wind, VV and VH, (2, n_patches)."""
    roughness: Floats
    """dB relative to a tilled field."""
    facing: Floats
    """Difference of backscatter between the two look directions, dB: walls and slopes."""
    change: Codes
    change_day: Floats
    """Days since the first year began; infinite where nothing happens."""


@dataclass(frozen=True)
class State:
    """The patches on given days; arrays (n_patches, n_days)."""

    lai: Floats
    stage: Floats
    moisture: Floats
    hard: Floats
    flood: Floats
    snow: Floats
    frost: Floats
    wind: Floats
    since: Floats
    """Days since the change; negative before it."""


def draw_patches(
    cover: Codes, place: npt.NDArray[np.intp], when: Calendar, n_years: int, rng: np.random.Generator
) -> Patches:
    """Draw patches of the given `cover`, (n_patches,), in the given `place`s; no changes among them."""
    n = len(cover)
    low, high = (np.array([0, *(c.hard[i] for c in COVERS.values())], dtype=np.float32)[cover] for i in (0, 1))
    spectra, backscatter = _draw_materials(cover, rng)
    tint = rng.normal(0, 0.03, (10, n)) + rng.normal(0, 0.04, n)
    return Patches(
        cover=cover,
        place=place,
        seasons=draw_seasons(cover, place, when, n_years, rng),
        soil=rng.uniform(0.45, 0.9, n).astype(np.float32),
        colour=(1 + tint).astype(np.float32),
        hard=(low + (high - low) * rng.random(n)).astype(np.float32),
        material=spectra,
        hard_db=backscatter,
        roughness=(_trait(cover, "roughness") + rng.normal(0, 0.8, n)).astype(np.float32),
        facing=np.where(cover == CODES["built_up"], rng.normal(0, 1.2, n), rng.normal(0, 0.2, n)).astype(np.float32),
        change=np.zeros(n, dtype=np.uint8),
        change_day=np.full(n, np.inf, dtype=np.float32),
    )


def pave(patches: Patches, roads: npt.NDArray[np.int64]) -> Patches:
    """Return `patches` with asphalt, which radar hardly sees, in place of houses on the `roads`."""
    spectra, decibels, hard = patches.material.copy(), patches.hard_db.copy(), patches.hard.copy()
    spectra[:, roads] = material("asphalt")[:, None]
    decibels[:, roads] = np.array([[-14.0], [-21.5]])
    hard[roads] = 0.75
    return replace(patches, material=spectra, hard_db=decibels, hard=hard)


def take_patches(patches: Patches, rows: npt.NDArray[np.intp]) -> Patches:
    """Return copies of some of the patches."""
    taken = {f.name: getattr(patches, f.name)[..., rows] for f in fields(Patches) if f.name != "seasons"}
    return Patches(seasons=_rows(patches.seasons, rows), **taken)


def append_changes(patches: Patches, parents: npt.NDArray[np.intp], change: Codes, day: Floats) -> Patches:
    """Return `patches` with a copy of each of the `parents` at the end, to which `change` happens on `day`."""
    n = len(patches.cover)
    grown = take_patches(patches, np.concatenate([np.arange(n), parents]))
    codes, days, spectra, decibels = grown.change, grown.change_day, grown.material, grown.hard_db
    codes[n:], days[n:] = change, day
    for i, code in enumerate(change, start=n):
        if code == CHANGE_CODES["fire"]:
            spectra[:, i], decibels[:, i] = material("burnt"), (-11.5, -18.5)
        if code == CHANGE_CODES["building"]:
            spectra[:, i], decibels[:, i] = 0.5 * material("concrete") + 0.5 * material("metal_roof"), (-2.5, -10.5)
    return replace(grown, change=codes, change_day=days, material=spectra, hard_db=decibels)


def state_on(patches: Patches, weather: Weather, days: npt.NDArray[np.int64]) -> State:
    """Return what the patches look like on `days`."""
    lai, stage = canopy_state(
        patches.seasons, _trait(patches.cover, "base_lai"), _trait(patches.cover, "base_stage"), days
    )
    moisture, wetness, frost, snow, wind = (
        series[patches.place[:, None], days[None]]
        for series in (weather.moisture, weather.wetness, weather.frost, weather.snow, weather.wind)
    )
    _drought(patches.cover, lai, stage, wetness)
    since = days[None].astype(np.float32) - patches.change_day[:, None]
    flood = _trait(patches.cover, "flooding")[:, None] * np.clip((wetness - 0.17) / 0.12, 0.05, 1)
    hard = np.clip(patches.hard[:, None] + flood, 0, 1)
    state = State(lai, stage, moisture, hard, flood, snow * _trait(patches.cover, "snow")[:, None], frost, wind, since)
    _apply_changes(patches, state)
    return state


def reflectance(patches: Patches, state: State, days: npt.NDArray[np.int64], vigour: float | Floats = 1.0) -> Floats:
    """Return surface reflectance, (10, n_patches, n_days), with leaf area multiplied by `vigour`."""
    kind = np.array([0, *(canopy_index(c.canopy) for c in COVERS.values())])[patches.cover]
    dryness = 1.1 - 2.2 * (state.moisture - 0.04)
    out = canopy_reflectance(kind[:, None], state.lai * vigour, state.stage, patches.soil[:, None] * dryness)
    out *= patches.colour[:, :, None]
    bloom = np.flatnonzero(np.isfinite(patches.seasons.flowering).any(axis=1))
    if len(bloom):
        out[:, bloom] = _blend(
            out[:, bloom], material("flowers")[:, None, None], flowers(_rows(patches.seasons, bloom), days)
        )
    mixed = np.flatnonzero(state.hard.any(axis=1))
    out[:, mixed] = _blend(out[:, mixed], patches.material[:, mixed, None], state.hard[mixed])
    if state.snow.any():
        out = _blend(out, material("snow")[:, None, None], 0.9 * state.snow)
    return np.maximum(out, 0.002)


def backscatter(patches: Patches, state: State, incidence: Floats, ascending: npt.NDArray[np.bool_]) -> Floats:
    """Return mean backscatter without speckle, power, (2, n_patches, n_days) for VV and VH.

    Parameters
    ----------
    patches, state
        The ground and its state on the days of the passes.
    incidence : ndarray, shape (n_days,)
        Degrees.
    ascending : ndarray, shape (n_days,)
        The look direction, which matters for walls.
    """
    cosine = np.cos(np.deg2rad(incidence))[None]
    water = _trait(patches.cover, "wood")[:, None] * _left_standing(patches, state)
    water = water + _trait(patches.cover, "leaf_weight")[:, None] * state.lai * (1 - 0.22 * state.stage)
    water *= 1 - 0.4 * state.frost  # frozen sap is transparent
    soil = -12.6 + 18 * state.moisture - 4.0 * state.frost + patches.roughness[:, None]
    soil = soil - 0.12 * (incidence - REFERENCE_INCIDENCE)[None]
    look = np.where(ascending, 0.5, -0.5)[None] * patches.facing[:, None]
    out = np.empty((2, *state.lai.shape), dtype=np.float32)
    for band in (0, 1):
        extinction = EXTINCTION[band] * (_trait(patches.cover, "attenuation")[:, None] if band == 0 else 1.0)
        through = np.exp(-2 * extinction * water / cosine)
        volume = SCATTER[band] * _trait(patches.cover, "scatter")[:, None] * water * cosine * (1 - through)
        ground = volume + through * _power(soil - 9.5 * band)
        ground *= 1 + 1.2 * state.flood * np.clip(water / 2, 0, 1)  # stems over water: double bounce
        out[band] = _blend(ground, _hard_power(patches, state, band), state.hard) * _power(look) + NOISE_FLOOR
    return out


def _left_standing(patches: Patches, state: State) -> Floats:
    """Return the share of the wood that a change leaves."""
    after = np.array([1.0, 0.05, 0.6, 0.0], dtype=np.float32)[patches.change][:, None]
    return np.where(state.since >= 0, after, 1).astype(np.float32)


def _hard_power(patches: Patches, state: State, band: int) -> Floats:
    calm = patches.hard_db[band][:, None]
    water = np.isin(patches.cover, [CODES["water"], CODES["wetland"]])[:, None]
    return _power(calm + np.where(water, (7.0, 4.0)[band] * state.wind, 0))


def _apply_changes(patches: Patches, state: State) -> None:
    for name, alter in (("clear_cut", _cut), ("fire", _burn), ("building", _build)):
        rows = np.flatnonzero(patches.change == CHANGE_CODES[name])
        if len(rows):
            alter(state, rows, state.since[rows] >= 0, np.maximum(np.nan_to_num(state.since[rows], neginf=0), 0))


def _cut(state: State, rows: npt.NDArray[np.intp], after: npt.NDArray[np.bool_], since: Floats) -> None:
    regrowth = np.minimum(0.3 + since / 365, 3)
    state.lai[rows] = np.where(after, regrowth, state.lai[rows])
    state.stage[rows] = np.where(after, np.maximum(2.8 - since / 500, 1), state.stage[rows])


def _burn(state: State, rows: npt.NDArray[np.intp], after: npt.NDArray[np.bool_], since: Floats) -> None:
    state.lai[rows] *= np.where(after, np.minimum(0.1 + since / 900, 1), 1)
    state.stage[rows] = np.where(after, np.maximum(2.5 - since / 300, 0.5), state.stage[rows])
    state.hard[rows] = np.where(after, 0.9 * np.exp(-since / 240), state.hard[rows])


def _build(state: State, rows: npt.NDArray[np.intp], after: npt.NDArray[np.bool_], since: Floats) -> None:
    state.lai[rows] *= np.where(after, 0.03, 1)
    state.hard[rows] = np.where(after, np.clip((since - 45) / 60, 0, 0.9), state.hard[rows])  # earthworks first


def _drought(cover: Codes, lai: Floats, stage: Floats, wetness: Floats) -> None:
    shallow = np.isin(cover, [CODES["grassland"], CODES["built_up"]])
    stress = np.clip((0.17 - wetness[shallow]) / 0.08, 0, 1)
    lai[shallow] *= 1 - 0.6 * stress
    stage[shallow] = np.minimum(stage[shallow] + 1.2 * stress, 3)


def _draw_materials(cover: Codes, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Draw reflectance (10, n) and calm backscatter in dB (2, n) of the hard share of every patch."""
    n = len(cover)
    turbid = rng.beta(1.5, 2.5, n)
    water = _mix(["clear_water", "turbid_water"], np.stack([1 - turbid, turbid]))
    town = _mix(["tiles", "concrete", "metal_roof", "asphalt"], rng.dirichlet((2, 1.5, 0.4, 2), n).T)
    built = cover == CODES["built_up"]
    spectra = np.where(built, town, water).astype(np.float32)
    walls = rng.normal(-3.8, 1.8, n)
    vv = np.where(built, walls, rng.normal(-21, 0.7, n))
    vh = np.where(built, walls - rng.normal(8.0, 0.7, n), rng.normal(-28, 0.7, n))
    return spectra, np.stack([vv, vh]).astype(np.float32)


def _mix(names: list[str], shares: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.asarray(np.stack([material(name) for name in names], axis=1).astype(np.float64) @ shares)


def _blend(below: Floats, above: npt.NDArray[np.floating], share: npt.NDArray[np.floating]) -> Floats:
    return np.asarray(below + share * (above - below), dtype=np.float32)


def _power(decibel: npt.NDArray[np.floating]) -> Floats:
    return np.asarray(10 ** (decibel / 10), dtype=np.float32)


def _rows(seasons: Seasons, rows: npt.NDArray[np.intp]) -> Seasons:
    return Seasons(**{f.name: getattr(seasons, f.name)[rows] for f in fields(Seasons)})


def _trait(cover: Codes, name: str) -> Floats:
    return np.array([0, *(getattr(c, name) for c in COVERS.values())], dtype=np.float32)[cover]
