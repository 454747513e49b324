"""Two views of each d-pixel: sparse random samplings of its year, independent of each other and of the sensor."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tessera_xr.encoder.registry import Row, Statistics
from tessera_xr.encoder.sampling import ZERO_TOKEN
from tessera_xr.encoder.tokens import STD_EPSILON
from tessera_xr.errors import SchemaError
from tessera_xr.pretraining.ragged import N_MONTHS, Floats, Integers, PixelBatch, Ragged, monthly_means, offsets_of

YEAR = 365


@dataclass(frozen=True)
class ViewOptions:
    """How views are drawn. The default is the paper's own; what else there is leaves a pixel what it is."""

    n_steps: int = 40
    """Steps of each sensor, drawn with replacement from the valid ones."""
    season_shift: int = 0
    """Days, at most, by which both views of a pixel are moved through the year; 183 reaches the other hemisphere."""
    s2_gain: float = 0.0
    """Standard deviation of a factor on each Sentinel-2 band of a pixel (logarithm), the same in both views."""
    s1_offset: float = 0.0
    """Standard deviation, in dB, of what is added to VV and VH of a pixel, the same in both views."""
    date_dropout: float = 0.0
    """Largest share of the dates that is left out before drawing; each view and sensor of a pixel has its own."""
    monthly: float = 0.0
    """Chance that a view (of a whole batch) is made of monthly means, twelve steps, as users bring them."""
    sensor_dropout: float = 0.0
    """Chance that a view of a pixel is without Sentinel-1."""

    def __post_init__(self) -> None:
        limits = {
            "n_steps": (1, 256),
            "season_shift": (0, 183),
            "s2_gain": (0, 1),
            "s1_offset": (0, 10),
            "date_dropout": (0, 0.95),
            "monthly": (0, 1),
            "sensor_dropout": (0, 1),
        }
        for name, (low, high) in limits.items():
            value, whole = getattr(self, name), name in ("n_steps", "season_shift")
            if not low <= value <= high or (whole and not isinstance(value, int)):
                kind = "a whole number" if whole else "a number"
                raise SchemaError(f"{name} must be {kind} from {low} to {high}, not {value!r}")


@dataclass(frozen=True)
class SensorView:
    """Series of equal length of one sensor."""

    x: Tensor
    """(B, T, C) standardised, float32."""
    doy: Tensor
    """(B, T) int64; float32 in a mixture."""

    def to(self, device: torch.device) -> SensorView:
        """Return it on another device."""
        return SensorView(self.x.to(device, non_blocking=True), self.doy.to(device, non_blocking=True))


@dataclass(frozen=True)
class View:
    """What one view shows of B pixels."""

    s2: SensorView
    s1: SensorView

    def __len__(self) -> int:
        return len(self.s2.x)

    def to(self, device: torch.device) -> View:
        """Return it on another device."""
        return View(self.s2.to(device), self.s1.to(device))


@dataclass(frozen=True)
class Scaling:
    """Means and standard deviations, one row for each group of `Ragged`."""

    mean: Floats
    """(G, C)."""
    std: Floats
    """(G, C)."""

    def __call__(self, values: npt.NDArray[np.float32], group: npt.NDArray[np.uint8]) -> Floats:
        """Standardise values (..., C) of the given groups (...)."""
        return np.asarray((values - self.mean[group]) / self.std[group], dtype=np.float32)


def scalings(statistics: Statistics) -> tuple[Scaling, Scaling]:
    """Return how Sentinel-2 and Sentinel-1 are standardised."""

    def rows(*pairs: tuple[Row, Row]) -> Scaling:
        mean, std = (np.array([p[i] for p in pairs], dtype=np.float32) for i in (0, 1))
        return Scaling(mean, std + STD_EPSILON)

    s2 = rows((statistics.s2_mean, statistics.s2_std))
    return s2, rows(statistics.s1_ascending, statistics.s1_descending)


def augment(batch: PixelBatch, options: ViewOptions, rng: np.random.Generator) -> PixelBatch:
    """Return other pixels that could as well be: moved in season, brighter or darker; both views will share it."""
    s2, s1 = batch.s2, batch.s1
    if options.season_shift:
        shift = rng.integers(-options.season_shift, options.season_shift + 1, len(batch))
        s2, s1 = _shifted(s2, shift), _shifted(s1, shift)
    if options.s2_gain:
        gain = np.exp(options.s2_gain * rng.standard_normal((len(batch), s2.values.shape[1]), dtype=np.float32))
        s2 = replace(s2, values=s2.values * gain[s2.owner])
    if options.s1_offset:
        offset = 200 * options.s1_offset * rng.standard_normal((len(batch), s1.values.shape[1]), dtype=np.float32)
        s1 = replace(s1, values=np.where(s1.values == 0, np.float32(0), s1.values + offset[s1.owner]))
    return replace(batch, s2=s2, s1=s1)


def draw_view(
    batch: PixelBatch, options: ViewOptions, scaling: tuple[Scaling, Scaling], rng: np.random.Generator
) -> View:
    """Draw one view of each pixel of a batch.

    A sensor without a valid step is one zero token on day 0, repeated, as in v2.

    Parameters
    ----------
    batch : PixelBatch
        B pixels.
    options : ViewOptions
    scaling : pair of Scaling
        Of Sentinel-2 and of Sentinel-1.
    rng : numpy.random.Generator

    Returns
    -------
    View
        With `options.n_steps` steps for each sensor, or twelve.
    """
    monthly = bool(rng.random() < options.monthly)
    draw = _monthly if monthly else _sparse
    views = [draw(ragged, options, scale, rng) for ragged, scale in zip((batch.s2, batch.s1), scaling, strict=True)]
    if options.sensor_dropout:
        lost = torch.from_numpy(rng.random(len(batch)) < options.sensor_dropout)
        views[1] = SensorView(
            views[1].x.masked_fill(lost[:, None, None], 0), views[1].doy.masked_fill(lost[:, None], 0)
        )
    return View(*views)


def mix_views(first: View, second: View, share: float, permutation: Tensor) -> View:
    """Return share * first + (1 - share) * second[permutation], days included (SPEC: the mix regulariser).

    Views of unequal length are brought to the shorter one, by steps evenly spread.
    """

    def mixed(a: SensorView, b: SensorView) -> SensorView:
        n = min(a.doy.shape[1], b.doy.shape[1])
        parts = []
        for v in (a, b):
            steps = torch.linspace(0, v.doy.shape[1] - 1, n, device=v.doy.device).round().long()
            parts.append((v.x[:, steps], v.doy[:, steps].float()))
        (x1, doy1), (x2, doy2) = parts
        x2, doy2 = x2[permutation], doy2[permutation]
        return SensorView(share * x1 + (1 - share) * x2, share * doy1 + (1 - share) * doy2)

    return View(mixed(first.s2, second.s2), mixed(first.s1, second.s1))


def spread_view(batch: PixelBatch, n_steps: int, scaling: tuple[Scaling, Scaling]) -> View:
    """Return a view without chance: steps evenly spread over the valid ones, near to what an encoder reads in use."""
    views = []
    for ragged, scale in zip((batch.s2, batch.s1), scaling, strict=True):
        counts = ragged.counts[:, None]
        step = ragged.offsets[:-1, None] + np.arange(n_steps) * counts // n_steps
        views.append(_shown(ragged, np.where(counts == 0, ZERO_TOKEN, step), scale))
    return View(*views)


def _sparse(ragged: Ragged, options: ViewOptions, scaling: Scaling, rng: np.random.Generator) -> SensorView:
    kept, offsets = _thinned(ragged, options.date_dropout, rng)
    step = draw_steps(offsets, options.n_steps, rng)
    return _shown(ragged, np.where(step == ZERO_TOKEN, ZERO_TOKEN, kept[step]) if len(kept) else step, scaling)


def _shown(ragged: Ragged, step: Integers, scaling: Scaling) -> SensorView:
    """Return the given rows (B, T) of a sensor; -1 is a zero token."""
    if not len(ragged.doy):
        return SensorView(torch.zeros(*step.shape, ragged.values.shape[1]), torch.zeros(step.shape, dtype=torch.int64))
    doy, group = ragged.doy[step].astype(np.int64), ragged.group[step]
    x = scaling(ragged.values[step].astype(np.float32), group)
    missing = step == ZERO_TOKEN
    x[missing], doy[missing] = 0, 0
    return SensorView(torch.from_numpy(x), torch.from_numpy(doy))


def draw_steps(offsets: Integers, n_steps: int, rng: np.random.Generator) -> Integers:
    """Draw steps of each pixel with replacement, each pixel's in the order they lie in.

    Parameters
    ----------
    offsets : ndarray of int, shape (B + 1,)
        Where the valid steps of each pixel begin.
    n_steps : int
    rng : numpy.random.Generator

    Returns
    -------
    ndarray of int, shape (B, n_steps)
        Rows of the ragged arrays; -1 for a pixel without valid steps.
    """
    counts = np.diff(offsets)[:, None]
    rank = (rng.random((len(counts), n_steps)) * counts).astype(np.intp)
    return np.sort(np.where(counts == 0, ZERO_TOKEN, offsets[:-1, None] + rank), axis=1)


def _thinned(ragged: Ragged, largest: float, rng: np.random.Generator) -> tuple[Integers, Integers]:
    """Return the observations that remain after leaving out a random share of each pixel's, and their offsets."""
    if not largest:
        return np.arange(len(ragged.doy)), ragged.offsets
    share, owner = 1 - largest * rng.random(len(ragged)), ragged.owner
    keep = rng.random(len(owner)) < share[owner]
    left = np.bincount(owner[keep], minlength=len(ragged))
    keep |= (left == 0)[owner]
    return np.flatnonzero(keep), offsets_of(np.bincount(owner[keep], minlength=len(ragged)))


def _monthly(ragged: Ragged, options: ViewOptions, scaling: Scaling, rng: np.random.Generator) -> SensorView:  # noqa: ARG001
    """Return means of the twelfths of the year; months without data repeat others. Of radar, the fuller orbit."""
    n, owner = len(ragged), ragged.owner
    descending = 2 * np.bincount(owner[ragged.group == 1], minlength=n) > ragged.counts
    chosen = ragged.group == descending[owner]
    counts = np.bincount(owner[chosen], minlength=n)
    one_orbit = Ragged(ragged.values[chosen], ragged.doy[chosen], ragged.group[chosen], offsets_of(counts))
    means, found = monthly_means(one_orbit)
    order = np.argsort(found == 0, axis=1, kind="stable")  # months with data first
    n_there = (found > 0).sum(axis=1, keepdims=True)
    other = np.take_along_axis(order, (rng.random((n, N_MONTHS)) * n_there).astype(np.intp), axis=1)
    month = np.sort(np.where(found > 0, np.arange(N_MONTHS), other), axis=1)
    x = scaling(np.take_along_axis(means, month[:, :, None], axis=1), descending.astype(np.uint8)[:, None])
    doy = (month * 366 // N_MONTHS + 16).astype(np.int64)
    empty = n_there[:, 0] == 0
    x[empty], doy[empty] = 0, 0
    return SensorView(torch.from_numpy(x), torch.from_numpy(doy))


def _shifted(ragged: Ragged, shift: Integers) -> Ragged:
    """Move the days of each pixel around the year; within a pixel, the order stays that of time."""
    doy = (ragged.doy.astype(np.intp) - 1 + shift[ragged.owner]) % YEAR + 1
    order = np.lexsort((doy, ragged.group, ragged.owner))
    return replace(ragged, values=ragged.values[order], doy=doy[order])
