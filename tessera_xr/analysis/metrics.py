"""The algebra of the Mahalanobis distance: a whitening, fitted in float64 and applied in float32."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from tessera_xr.analysis.drawing import FIT_PIXELS, draw_pixels
from tessera_xr.errors import SchemaError

RIDGE = 1e-3


@dataclass(frozen=True)
class Whitening:
    """An affine map to where the covariance is the unit matrix, and Euclidean distance is Mahalanobis distance."""

    matrix: npt.NDArray[np.float32]
    """(d, d): whitened = value @ matrix - offset."""
    offset: npt.NDArray[np.float32]
    """(d,) the whitened mean."""

    def apply(self, values: npt.NDArray[Any], scales: npt.NDArray[np.float32] | None = None) -> npt.NDArray[np.float32]:
        """Return values (n, d), or codes and their scales (n,), whitened; NaN without data."""
        whitened: npt.NDArray[np.float32] = values.astype(np.float32, copy=False) @ self.matrix
        if scales is not None and scales.size:
            whitened *= np.where(np.isfinite(scales), scales, np.float32(np.nan))[:, None]
        whitened -= self.offset
        return whitened


def fit_whitening(pixels: npt.NDArray[np.floating[Any]], ridge: float = RIDGE) -> Whitening:
    """Fit a whitening to pixels (n, d).

    `ridge` times the mean variance is added to the variance of every direction, so that directions in which the pixels
    hardly vary, or don't, stay finite.

    Raises
    ------
    SchemaError
        If the pixels don't vary at all.
    """
    centred = pixels.astype(np.float64)
    mean = centred.mean(axis=0)
    centred -= mean
    covariance = centred.T @ centred / max(1, len(pixels) - 1)
    level = float(np.trace(covariance)) / len(mean)
    if not level > 0:
        raise SchemaError(
            f"the Mahalanobis distance needs pixels that vary, found {len(pixels)} that don't; use metric='euclidean'"
        )
    variances, axes = np.linalg.eigh(covariance)
    matrix = axes / np.sqrt(np.maximum(variances, 0) + ridge * level)
    return Whitening(matrix.astype(np.float32), (mean @ matrix).astype(np.float32))


def whitening_of(emb: xr.Dataset, seed: int = 0) -> Whitening:
    """Fit a whitening to a map: to at most 20,000 of its pixels with data, of all times, drawn at random."""
    return fit_whitening(draw_pixels(emb, FIT_PIXELS, seed).values)
