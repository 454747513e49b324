"""Novelty: how far each pixel is from everything in a reference set, as a map of "you have no labels like this"."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from tessera_xr.analysis.components import pixel_arrays
from tessera_xr.analysis.drawing import FIT_PIXELS, draw_pixels, draw_places
from tessera_xr.analysis.queries import check_same_crs, essentials
from tessera_xr.embedding.schema import (
    EMBEDDINGS,
    check_embeddings,
    check_same_model,
    has_data,
    identity,
    provenance,
)
from tessera_xr.errors import GridError, SchemaError
from tessera_xr.grid import GRID_MAPPING

STRETCH = 2048
"""Pixels at a time: their float32 copy stays in the cache."""


@dataclass(frozen=True)
class Novelty:
    """The mean and spread of a reference set, fitted once and applied to any embeddings of the same model."""

    mean: npt.NDArray[np.float32]
    """(band,) of the reference."""
    whitening: npt.NDArray[np.float32]
    """(band, band): (value - mean) @ whitening has the unit matrix as its covariance."""
    distances: npt.NDArray[np.float32]
    """(n,) the distance of each reference pixel to all others, ascending: what percentiles are taken from."""
    attrs: dict[str, Any]
    """The model of the reference: see `identity`."""

    def __repr__(self) -> str:
        middle, high = np.quantile(self.distances, (0.5, 0.95))
        return (
            f"Novelty: {len(self.distances):,} reference pixels, half within {middle:.1f}, 95% within {high:.1f} "
            f"standard deviations of the others; model {self.attrs.get('model', 'unknown')}"
        )

    def transform(self, emb: xr.Dataset) -> xr.Dataset:
        """Return how new embeddings are.

        Parameters
        ----------
        emb : Dataset
            Embeddings of the same model, float32 or int8, eager or lazy.

        Returns
        -------
        Dataset
            `distance` ([time,] y, x) float32: Mahalanobis distance to the mean of the reference, in standard
            deviations; `percentile` ([time,] y, x) float32, 0 to 100: the share of the reference that is nearer to the
            rest of it. Above 95 a pixel is unlike all but 5 % of the reference. NaN without data.

        Raises
        ------
        VersionMismatchError
            If they are of another model.
        """
        check_embeddings(emb)
        check_same_model(emb, xr.Dataset(coords={"band": np.arange(len(self.mean))}, attrs=self.attrs))
        inputs = pixel_arrays(emb)
        distance: xr.DataArray = xr.apply_ufunc(
            _mahalanobis,
            *inputs,
            input_core_dims=[["band"], []][: len(inputs)],
            kwargs={"mean": self.mean, "whitening": self.whitening},
            dask="parallelized",
            output_dtypes=[np.float32],
            keep_attrs=True,  # those of spatial_ref are the CRS
        )
        rank = partial(_percentile, reference=self.distances)
        percentile: xr.DataArray = xr.apply_ufunc(
            rank, distance, dask="parallelized", output_dtypes=[np.float32], keep_attrs=True
        )
        mapping = emb[EMBEDDINGS].attrs.get("grid_mapping")
        attrs = provenance(emb) | ({"grid_mapping": mapping} if mapping else {})
        said = {
            "distance": {"long_name": "Mahalanobis distance to the reference", "units": "1"},
            "percentile": {"long_name": "share of the reference that is nearer", "units": "percent"},
        }
        maps = {"distance": distance, "percentile": percentile}
        return xr.Dataset({k: v.assign_attrs(said[k] | attrs) for k, v in maps.items()}, attrs=provenance(emb))


def fit_novelty(reference: xr.Dataset, *, ridge: float = 1e-3, seed: int = 0) -> Novelty:
    """Learn what a reference set looks like.

    Mean and covariance in float64, of at most 20,000 pixels. `ridge` times the mean variance is added to the variance
    in every direction, so that fewer pixels than bands will do. The distances behind the percentiles leave each
    reference pixel out of the mean and covariance that it is measured by; in them it would look nearer than a new
    pixel just like it. Neighbouring pixels still vouch for each other: draw a reference that is spread out.

    Parameters
    ----------
    reference : Dataset
        Embeddings of any shape, float32 or int8: what `sample` returns at labelled points, or a map.
    ridge : float, default 1e-3
        Above 0.
    seed : int, default 0
        Of the draw of pixels, where there are more.

    Returns
    -------
    Novelty

    Raises
    ------
    SchemaError
        If fewer than three pixels have data, or they don't vary, or `ridge` is not above 0.
    """
    if not ridge > 0:
        raise SchemaError(f"ridge must be above 0, not {ridge}; 1e-3 suits most references")
    check_embeddings(reference)
    values = draw_pixels(reference, FIT_PIXELS, seed).values.astype(np.float64)
    if len(values) < 3 or not np.ptp(values, axis=0).any():
        raise SchemaError(f"a reference needs three pixels or more that vary; {len(values)} have data. Add labels")
    mean = values.mean(axis=0)
    centred = values - mean
    variances, axes = np.linalg.eigh(centred.T @ centred / (len(values) - 1))
    floor = ridge * variances.mean()
    whitening = axes / np.sqrt(np.maximum(variances, 0) + floor)  # no square root of rounding below 0
    apart = np.sort(_left_out(centred @ axes, variances, floor))
    return Novelty(mean.astype(np.float32), whitening.astype(np.float32), apart.astype(np.float32), identity(reference))


def novelty(emb: xr.Dataset, reference: xr.Dataset | xr.DataArray, *, ridge: float = 1e-3, seed: int = 0) -> xr.Dataset:
    """Return how unlike a reference set each pixel is: where the map has no labels like this.

    Parameters
    ----------
    emb : Dataset
        Embeddings, float32 or int8, eager or lazy.
    reference : Dataset or DataArray
        Embeddings of the same model: at labelled points (`sample`), or another map. Or a mask ([time,] y, x) bool of
        the pixels of `emb` that are labelled.
    ridge, seed
        See `fit_novelty`, which also serves several maps.

    Returns
    -------
    Dataset
        `distance` and `percentile`; see `Novelty.transform`.

    Raises
    ------
    VersionMismatchError
        If the two are of different models.
    SchemaError
        If the reference has fewer than three pixels with data.
    GridError
        If a mask is on another grid.
    """
    check_embeddings(emb)
    if isinstance(reference, xr.DataArray):
        reference = _masked(emb, reference, seed)
    check_embeddings(reference)
    check_same_model(emb, reference)
    return fit_novelty(reference, ridge=ridge, seed=seed).transform(emb)


def _masked(emb: xr.Dataset, mask: xr.DataArray, seed: int) -> xr.Dataset:
    """Return at most `FIT_PIXELS` of the embeddings under a mask, (pixel, band)."""
    if mask.dtype != bool:
        raise SchemaError(f"a mask must be bool, not {mask.dtype}; compare labels with a value, as labels == 3")
    dims = [d for d in emb[EMBEDDINGS].dims if d != "band"]
    beside = set(mask.dims) - set(dims)
    if beside or any(not mask[d].variable.equals(emb[d].variable) for d in mask.dims):
        raise GridError(f"the mask {tuple(mask.dims)} is not on the grid of the embeddings {tuple(dims)}")
    check_same_crs(mask, emb)
    there = has_data(emb).drop_vars(GRID_MAPPING, errors="ignore") & mask.drop_vars(GRID_MAPPING, errors="ignore")
    bare = essentials(emb).drop_vars(emb.coords)
    return bare.isel(draw_places(there.transpose(*dims), FIT_PIXELS, seed))


def _left_out(
    scores: npt.NDArray[np.float64], variances: npt.NDArray[np.float64], floor: float
) -> npt.NDArray[np.float64]:
    """Return the distance of each reference pixel to all others, (n,), from the scores (n, band) on their axes.

    Without one pixel the mean moves along that pixel's deviation r, and the covariance loses a multiple of r r': with
    q the squared length of r under the covariance of all with denominator n - 2, the formula of Sherman and Morrison
    gives (n / (n - 1))^2 q / (1 - q n / ((n - 1) (n - 2))).
    """
    n = len(scores)
    square = (scores**2 / (np.maximum(variances, 0) * (n - 1) / (n - 2) + floor)).sum(axis=1)
    rest = np.maximum(1 - square * n / ((n - 1) * (n - 2)), 1e-12)  # above 0 but for rounding
    return np.asarray(np.sqrt(square / rest) * n / (n - 1))


def _mahalanobis(
    values: npt.NDArray[Any],
    scales: npt.NDArray[np.float32] | None = None,
    *,
    mean: npt.NDArray[np.float32],
    whitening: npt.NDArray[np.float32],
) -> npt.NDArray[np.float32]:
    """(..., band) to (...), a stretch of pixels at a time: never a float32 copy of all codes."""
    out = np.empty(values.shape[:-1], dtype=np.float32)
    if values.ndim > 2 and not values.flags.c_contiguous:  # a slice of a map: flattening would copy it
        for i in range(len(values)):
            row = None if scales is None else scales[i]
            out[i] = _mahalanobis(values[i], row, mean=mean, whitening=whitening)
        return out
    flat, found = values.reshape(-1, values.shape[-1]), out.reshape(-1)
    factors = None if scales is None else np.ravel(scales)
    offset = (mean.astype(np.float64) @ whitening).astype(np.float32)
    for start in range(0, len(flat), STRETCH):
        part = slice(start, start + STRETCH)
        white = flat[part].astype(np.float32, copy=False) @ whitening
        if factors is not None:
            white *= np.where(np.isfinite(factors[part]), factors[part], np.float32(np.nan))[:, None]
        white -= offset
        found[part] = np.sqrt(np.einsum("ij,ij->i", white, white))
    return out


def _percentile(distance: npt.NDArray[np.float32], *, reference: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    nearer = np.searchsorted(reference, distance, side="left") * (100 / len(reference))
    return np.where(np.isnan(distance), np.nan, nearer).astype(np.float32)
