"""What an embedding is asked to rebuild beside the recipe: the pixel's year in familiar quantities."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tessera_xr.pretraining.ragged import Floats, PixelBatch, Ragged, monthly_means
from tessera_xr.sentinel.bands import S2_BANDS

_RED, _GREEN, _NIR, _SWIR1, _SWIR2 = (S2_BANDS.index(b) for b in ("B04", "B03", "B08", "B11", "B12"))
N_STATISTICS = 4  # mean, spread, minimum, maximum
N_MONTHLY = len(S2_BANDS) + 4 + 3
N_TARGETS = (12 + N_STATISTICS) * N_MONTHLY


@dataclass(frozen=True)
class TargetScaling:
    """Brings the targets to mean 0 and standard deviation 1."""

    mean: Floats
    """(F,)."""
    std: Floats
    """(F,)."""


def yearly_targets(batch: PixelBatch) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Return twelve monthly values of log-bands, indices and radar, and their mean, spread, minimum and maximum.

    Parameters
    ----------
    batch : PixelBatch
        B pixels.

    Returns
    -------
    targets : ndarray of float32, shape (B, F)
        0 where unknown. F is `N_TARGETS`.
    known : ndarray of bool, shape (B, F)
    """
    parts = [
        _summary(ragged, values) for ragged, values in ((batch.s2, _optical(batch.s2)), (batch.s1, _radar(batch.s1)))
    ]
    targets, known = (np.concatenate(p, axis=1) for p in zip(*parts, strict=True))
    return targets, known


def fit_targets(batch: PixelBatch) -> TargetScaling:
    """Return means and standard deviations of the targets over the pixels that have them."""
    targets, known = yearly_targets(batch)
    n = np.maximum(known.sum(axis=0), 1)
    mean = targets.sum(axis=0) / n
    spread = np.sqrt((np.where(known, targets - mean, 0) ** 2).sum(axis=0) / n)
    return TargetScaling(mean.astype(np.float32), np.maximum(spread, 1e-3).astype(np.float32))


def scaled_targets(batch: PixelBatch, scaling: TargetScaling) -> tuple[Tensor, Tensor]:
    """Return the targets of a batch, scaled, and which are known: tensors (B, F)."""
    targets, known = yearly_targets(batch)
    return torch.from_numpy((targets - scaling.mean) / scaling.std), torch.from_numpy(known)


def _summary(ragged: Ragged, values: Floats) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Return monthly means and annual statistics, (B, 16 F), and which are known."""
    months, counts = monthly_means(ragged, values)
    there = np.broadcast_to((counts > 0)[:, :, None], months.shape)
    any_month = there.any(axis=1)
    n = np.maximum(there.sum(axis=1), 1)
    mean = months.sum(axis=1) / n
    spread = np.sqrt((np.where(there, months - mean[:, None], 0) ** 2).sum(axis=1) / n)
    low, high = (extreme.min(axis=1) for extreme in (np.where(there, months, np.inf), np.where(there, -months, np.inf)))
    yearly = [np.where(any_month, s, 0) for s in (mean, spread, low, -high)]
    targets = np.concatenate([months.reshape(len(months), -1), *yearly], axis=1)
    known = np.concatenate([there.reshape(len(months), -1), *[any_month] * N_STATISTICS], axis=1)
    return targets.astype(np.float32), known


def _optical(s2: Ragged) -> Floats:
    """Return log-bands, NDVI, NDWI, NBR and NDMI of each observation, (M, 14)."""
    bands = np.maximum(s2.values.astype(np.float32), 1)

    def index(a: int, b: int) -> Floats:
        return np.asarray((bands[:, a] - bands[:, b]) / (bands[:, a] + bands[:, b]), dtype=np.float32)

    pairs = [(_NIR, _RED), (_GREEN, _NIR), (_NIR, _SWIR2), (_NIR, _SWIR1)]
    return np.concatenate([np.log(bands), np.stack([index(a, b) for a, b in pairs], axis=1)], axis=1)


def _radar(s1: Ragged) -> Floats:
    """Return VV, VH and their difference, (M, 3), in dB."""
    db = s1.values.astype(np.float32) / 200 - 50
    return np.concatenate([db, db[:, :1] - db[:, 1:]], axis=1)
