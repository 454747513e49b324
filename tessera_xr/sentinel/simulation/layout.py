"""The map of a simulated landscape: fields, forest, a river, a village, and where changes happen."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tessera_xr.sentinel.simulation.covers import CHANGE_CODES, CODES

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
SMALLEST = 16  # pixels a side; below, there is no room for the parts of a landscape

# How often a field grows what, by zone.
_FIELDS = {
    "boreal": {"winter_cereal": 3, "rapeseed": 1, "root_crop": 1, "grassland": 4, "bare_soil": 0.3},
    "temperate": {
        "winter_cereal": 3,
        "maize": 2.5,
        "root_crop": 1.8,
        "rapeseed": 1,
        "double_crop": 0.8,
        "grassland": 2.5,
    },
    "tropical": {"maize": 3, "double_crop": 3, "root_crop": 1.5, "grassland": 2.5, "bare_soil": 0.6},
}
_FOREST = ("deciduous_forest", "evergreen_forest")
_BURNS = ("evergreen_forest", "deciduous_forest", "grassland")
_BUILT_ON = ("grassland", "maize", "winter_cereal", "root_crop", "rapeseed", "double_crop", "bare_soil")


@dataclass(frozen=True)
class Layout:
    """A map of patches."""

    patch: npt.NDArray[np.int32]
    """Patch of each pixel, (y, x)."""
    cover: npt.NDArray[np.uint8]
    """Land cover of each patch, (n_patches,)."""
    roads: Ints
    """The patches that are roads."""


def field_weights(latitude: float) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float64]]:
    """Return codes of what fields grow at `latitude`, and how often each."""
    distance = abs(latitude)
    zone = "tropical" if distance < 25 else "temperate" if distance < 58 else "boreal"
    weights = np.array(list(_FIELDS[zone].values()), dtype=np.float64)
    return np.array([CODES[name] for name in _FIELDS[zone]], dtype=np.uint8), weights / weights.sum()


def lay_out(shape: tuple[int, int], latitude: float, rng: np.random.Generator) -> Layout:
    """Draw a landscape of `shape` (rows, columns of 10 m)."""
    y, x = (grid.astype(np.float32) for grid in np.indices(shape))
    warped = y + 1.3 * smooth_field(shape, 7, rng), x + 1.3 * smooth_field(shape, 7, rng)
    parcel = _split(*_rotate(*warped, rng.uniform(0, np.pi)), rng)
    codes, weights = field_weights(latitude)
    cover = rng.choice(codes, size=parcel.max() + 1, p=weights)[parcel]
    _grow_forest(cover, parcel, latitude, rng)
    _dig_quarry(cover, y, x, rng)
    for _ in range(max(1, round(cover.size / 16000))):
        _build_village(cover, parcel, y, x, rng)
    _let_flow(cover, parcel, y, x, rng)
    roads = _draw_roads(cover, parcel, y, x, rng)
    return _number(cover, parcel, roads)


def place_changes(
    layout: Layout, events: tuple[str, ...], rng: np.random.Generator
) -> tuple[npt.NDArray[np.int32], Ints, npt.NDArray[np.uint8]]:
    """Place each of the `events` somewhere it can happen.

    Returns
    -------
    patch : ndarray of int32, shape (y, x)
        The map with a new patch wherever an event meets an old one.
    parents : ndarray of int, shape (n_new,)
        The old patch of each new one.
    codes : ndarray of uint8, shape (n_new,)
        The event of each new patch.
    """
    patch = layout.patch.copy()
    parents: list[int] = []
    codes: list[int] = []
    for event in events:
        area = _area_of(event, layout, patch, rng)
        for parent in np.unique(patch[area]):
            patch[area & (patch == parent)] = len(layout.cover) + len(parents)
            parents.append(int(parent))
            codes.append(CHANGE_CODES[event])
    return patch, np.array(parents, dtype=np.int64), np.array(codes, dtype=np.uint8)


def smooth_field(shape: tuple[int, int], scale: float, rng: np.random.Generator) -> Floats:
    """Return Gaussian noise of mean 0 and deviation 1, correlated over about `scale` pixels."""
    padded = tuple(int(n + 4 * scale) for n in shape)
    squared = np.square(np.fft.fftfreq(padded[0]))[:, None] + np.square(np.fft.rfftfreq(padded[1]))[None]
    spectrum = np.fft.rfft2(rng.standard_normal(padded)) * np.exp(-2 * (np.pi * scale / 2) ** 2 * squared)
    field = np.fft.irfft2(spectrum, s=padded)[: shape[0], : shape[1]]
    return np.asarray((field - field.mean()) / field.std(), dtype=np.float32)


def _rotate(y: Floats, x: Floats, angle: float) -> tuple[Floats, Floats]:
    sine, cosine = np.float32(np.sin(angle)), np.float32(np.cos(angle))
    return cosine * y - sine * x, sine * y + cosine * x


def _split(u: Floats, v: Floats, rng: np.random.Generator) -> Ints:
    """Cut the plane in two along its longer side, again and again, until every piece is a field."""
    flat_u, flat_v = u.ravel(), v.ravel()
    parcel = np.zeros(u.size, dtype=np.int64)
    pieces, number = [np.arange(u.size)], 0
    while pieces:
        pixels = pieces.pop()
        along = flat_u[pixels], flat_v[pixels]
        if len(pixels) < rng.lognormal(np.log(190), 0.6) or len(pixels) < 12:
            parcel[pixels], number = number, number + 1
            continue
        longer = int(np.ptp(along[1]) > np.ptp(along[0]))
        across = along[longer] + rng.normal(0, 0.12) * along[1 - longer]  # seldom at right angles
        first = across < np.quantile(across, rng.uniform(0.34, 0.66))
        pieces += [pixels[first], pixels[~first]]
    return parcel.reshape(u.shape)


def _grow_forest(cover: npt.NDArray[np.uint8], parcel: Ints, latitude: float, rng: np.random.Generator) -> None:
    share = 0.24 + 0.2 * np.clip((abs(latitude) - 52) / 12, 0, 1)
    field = smooth_field((cover.shape[0], cover.shape[1]), 14, rng)
    forest = field > np.quantile(field, 1 - share)
    evergreen = (rng.random(parcel.max() + 1) < 0.42)[parcel]
    strangers = (rng.uniform(0, 0.3, parcel.max() + 1))[parcel]  # stands are seldom pure
    evergreen ^= rng.random(cover.shape) < strangers
    cover[forest & evergreen] = CODES["evergreen_forest"]
    cover[forest & ~evergreen] = CODES["deciduous_forest"]


def _dig_quarry(cover: npt.NDArray[np.uint8], y: Floats, x: Floats, rng: np.random.Generator) -> None:
    ny, nx = cover.shape
    centre = rng.uniform(0.1, 0.9, 2) * (ny, nx)
    size = 0.06 * min(ny, nx, 160) * rng.uniform(0.8, 1.3, 2)
    cover[_ellipse(y, x, centre, size)] = CODES["bare_soil"]


def _build_village(cover: npt.NDArray[np.uint8], parcel: Ints, y: Floats, x: Floats, rng: np.random.Generator) -> None:
    ny, nx = cover.shape
    centre = rng.uniform(0.2, 0.8, 2) * (ny, nx)
    radius = 0.13 * min(ny, nx, 140) * rng.uniform(0.85, 1.3, 2)
    ragged = 1 + 0.22 * smooth_field((ny, nx), 5, rng)
    inside = np.hypot((y - centre[0]) / radius[0], (x - centre[1]) / radius[1]) < ragged
    u, v = _rotate(y, x, rng.uniform(0, np.pi))
    block = (np.floor(u / 4) * 4099 + np.floor(v / 3)).astype(np.int64)
    _, block = np.unique(block, return_inverse=True)
    block = block.reshape(cover.shape)
    green = (rng.random(block.max() + 1) < 0.15)[block]
    cover[inside] = np.where(green[inside], CODES["grassland"], CODES["built_up"])
    parcel[inside] = parcel.max() + 1 + block[inside]


def _let_flow(cover: npt.NDArray[np.uint8], parcel: Ints, y: Floats, x: Floats, rng: np.random.Generator) -> None:
    """Let a meandering river through, with a lake beside it and reeds along it."""
    ny, nx = cover.shape
    u, v = _rotate(y - ny / 2, x - nx / 2, rng.uniform(0, np.pi))
    reach, phase = 0.5 * min(ny, nx, 400), rng.uniform(0, 2 * np.pi, 2)
    middle = rng.uniform(-0.25, 0.25) * min(ny, nx)
    middle = (
        middle
        + 0.10 * reach * np.sin(u / (0.25 * reach) + phase[0])
        + 0.16 * reach * np.sin(u / (0.6 * reach) + phase[1])
    )
    distance = np.abs(v - middle)
    lake = _ellipse(y, x, rng.uniform(0.15, 0.85, 2) * (ny, nx), 0.085 * min(ny, nx, 200) * rng.uniform(0.8, 1.4, 2))
    near = smooth_field((ny, nx), 6, rng)
    reeds = (distance < 3.5 + 2.5 * near) | (_grown(lake) & (near > 0))
    reeds &= cover != CODES["built_up"]
    river = distance < rng.uniform(1.3, 2.4)
    cover[reeds] = CODES["wetland"]
    parcel[reeds] = parcel.max() + 1 + (u[reeds] > 0)
    for water in (river, lake):
        cover[water] = CODES["water"]
        parcel[water] = parcel.max() + 1


def _draw_roads(cover: npt.NDArray[np.uint8], parcel: Ints, y: Floats, x: Floats, rng: np.random.Generator) -> Mask:
    ny, nx = cover.shape
    village = np.argwhere(cover == CODES["built_up"])
    centre = village.mean(axis=0) if len(village) else np.array([ny / 2, nx / 2])
    angle = rng.uniform(0, np.pi)
    roads = np.zeros(cover.shape, dtype=bool)
    for turn in (0, rng.uniform(1.1, 2.0)):
        u, v = _rotate(y - centre[0], x - centre[1], angle + turn)
        roads |= np.abs(v + 2.5 * np.sin(u / 17)) < 0.6
    roads &= cover != CODES["water"]
    cover[roads] = CODES["built_up"]
    parcel[roads] = parcel.max() + 1
    return roads


def _number(cover: npt.NDArray[np.uint8], parcel: Ints, roads: Mask) -> Layout:
    """Give a number to each patch: what is one parcel and one cover."""
    keys, patch = np.unique(parcel * 256 + cover, return_inverse=True)
    patch = patch.reshape(cover.shape).astype(np.int32)
    return Layout(patch, (keys % 256).astype(np.uint8), np.unique(patch[roads]).astype(np.int64))


def _ellipse(y: Floats, x: Floats, centre: npt.NDArray[np.float64], size: npt.NDArray[np.float64]) -> Mask:
    return np.asarray(np.hypot((y - centre[0]) / size[0], (x - centre[1]) / size[1]) < 1)


def _grown(mask: Mask, by: int = 2) -> Mask:
    out = mask.copy()
    for axis in (0, 1):
        for step in (*range(-by, 0), *range(1, by + 1)):
            out |= np.roll(mask, step, axis=axis)
    return out


def _area_of(event: str, layout: Layout, patch: npt.NDArray[np.int32], rng: np.random.Generator) -> Mask:
    """Return the pixels of one event: of a few places tried, the one with most room."""
    old = patch < len(layout.cover)
    cover = np.where(old, layout.cover[np.where(old, patch, 0)], 0)
    wanted = {"clear_cut": _FOREST, "fire": _BURNS, "building": _BUILT_ON}[event]
    possible = np.isin(cover, [CODES[name] for name in wanted])
    if not possible.any():
        possible = old & ~np.isin(cover, [CODES["water"], CODES["built_up"]])
    size = min(patch.shape) * 0.08
    size = float(np.clip(size * (1.25 if event == "fire" else 1.0), 2, 14))
    y, x = (grid.astype(np.float32) for grid in np.indices(patch.shape))
    angle = rng.uniform(0, np.pi)
    seeds = rng.choice(np.flatnonzero(possible), size=24)
    areas = [
        _outline(event, y - seed // patch.shape[1], x - seed % patch.shape[1], size, angle) & possible for seed in seeds
    ]
    return max(areas, key=lambda area: int(area.sum()))


def _outline(event: str, y: Floats, x: Floats, size: float, angle: float) -> Mask:
    u, v = _rotate(y, x, angle)
    if event == "fire":  # driven by the wind, with a ragged edge
        return np.asarray(np.hypot(u / 1.4, v) + 1.2 * np.sin(3 * np.arctan2(v, u)) < size)
    return np.asarray((np.abs(u) < size) & (np.abs(v) < 0.7 * size))
