"""Principal components of embeddings: seeded, signs fixed, with a stretch that several maps can share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from tessera_xr.embedding.quantize import dequantize
from tessera_xr.embedding.schema import EMBEDDINGS, SCALES, check_embeddings, check_same_model, has_data, provenance
from tessera_xr.errors import SchemaError

FIT_PIXELS = 50_000
STRETCH = (2.0, 98.0)


@dataclass(frozen=True)
class Components:
    """Axes of greatest variance, fitted once and applied to any embeddings of the same model."""

    mean: xr.DataArray
    """(band,) what is subtracted first."""
    vectors: xr.DataArray
    """(component, band) unit vectors, the greatest loading of each positive."""
    explained: xr.DataArray
    """(component,) share of the variance."""
    limits: xr.DataArray
    """(bound, component) the 2nd and 98th percentile of the scores, for shared colours."""
    attrs: dict[str, Any]
    """The attributes of the embeddings that they were fitted to: model and weights."""

    def transform(self, emb: xr.Dataset) -> xr.DataArray:
        """Return the scores of embeddings.

        Parameters
        ----------
        emb : Dataset
            Embeddings of the same model, float32 or int8, eager or lazy.

        Returns
        -------
        DataArray
            ([time,] component, y, x) float32, NaN without data.

        Raises
        ------
        VersionMismatchError
            If they are of another model.
        """
        check_embeddings(emb)
        check_same_model(emb, xr.Dataset(coords={"band": self.mean["band"]}, attrs=self.attrs))
        quantized = SCALES in emb
        scores = xr.apply_ufunc(
            _project,
            emb[EMBEDDINGS],
            *([emb[SCALES]] if quantized else []),
            input_core_dims=[["band"], *([[]] if quantized else [])],
            output_core_dims=[["component"]],
            kwargs={"mean": self.mean.values, "vectors": self.vectors.values},
            dask="parallelized",
            output_dtypes=[np.float32],
            dask_gufunc_kwargs={"output_sizes": {"component": len(self.vectors)}},
        )
        scores = scores.assign_coords(component=self.vectors["component"])
        order = ["component" if d == "band" else d for d in emb[EMBEDDINGS].dims]
        scores = scores.transpose(*order).rename("components")
        mapping = emb[EMBEDDINGS].attrs.get("grid_mapping")
        attrs = {"long_name": "principal components", **provenance(emb)}
        attrs |= {"grid_mapping": mapping} if mapping else {}
        named: xr.DataArray = scores.assign_attrs(attrs)
        return named

    def rgb(self, emb: xr.Dataset) -> xr.DataArray:
        """Return the first three components as red, green and blue.

        Parameters
        ----------
        emb : Dataset
            Embeddings of the same model.

        Returns
        -------
        DataArray
            ([time,] y, x, rgb) float32 from 0 to 1, NaN without data: what `.plot.imshow()` takes.
        """
        if len(self.vectors) < 3:
            raise SchemaError(
                f"a picture needs three components, these are {len(self.vectors)}; fit with n_components=3"
            )
        scores = self.transform(emb).isel(component=slice(3))
        low, high = (self.limits.isel(bound=i, component=slice(3)) for i in (0, 1))
        scaled = ((scores - low) / (high - low)).clip(0, 1).astype(np.float32)
        picture = scaled.rename(component="rgb").assign_coords(rgb=["red", "green", "blue"]).transpose(..., "rgb")
        return picture.rename("rgb").assign_attrs(scores.attrs, long_name="first three principal components")


def fit_components(emb: xr.Dataset, n_components: int = 3, *, seed: int = 0) -> Components:
    """Find the principal components of embeddings.

    The covariance is that of at most 50,000 pixels drawn at random, so that a map of any size takes a moment.

    Parameters
    ----------
    emb : Dataset
        Embeddings, float32 or int8, eager or lazy.
    n_components : int, default 3
        How many.
    seed : int, default 0
        Of the draw of pixels.

    Raises
    ------
    SchemaError
        If there are fewer pixels with data, or dimensions, than components.
    """
    from xarray_einstats import linalg

    check_embeddings(emb)
    if not 1 <= n_components <= emb.sizes["band"]:
        raise SchemaError(f"n_components must be from 1 to {emb.sizes['band']}, not {n_components}")
    sample = _draw(emb, seed)
    if sample.sizes["pixel"] <= n_components:
        raise SchemaError(f"{sample.sizes['pixel']} pixels have data: too few for {n_components} components")
    mean = sample.mean("pixel")
    centred = sample - mean
    covariance = xr.dot(centred, centred.rename(band="band2"), dim="pixel") / (sample.sizes["pixel"] - 1)
    values, vectors = linalg.eigh(covariance, dims=("band", "band2"))
    return _components(values.values, vectors.transpose("band", ...).values, mean, centred, n_components, emb.attrs)


def components(emb: xr.Dataset, n_components: int = 3, *, seed: int = 0) -> xr.DataArray:
    """Return the principal components of embeddings, ([time,] component, y, x); see `fit_components` to reuse them."""
    return fit_components(emb, n_components, seed=seed).transform(emb)


def rgb(emb: xr.Dataset, *, seed: int = 0) -> xr.DataArray:
    """Return a picture of embeddings: the first three principal components as colours; see `Components.rgb`."""
    return fit_components(emb, 3, seed=seed).rgb(emb)


def _draw(emb: xr.Dataset, seed: int) -> xr.DataArray:
    """Return at most `FIT_PIXELS` embeddings with data, (pixel, band) float64."""
    dims = [d for d in ("time", "y", "x") if d in emb[EMBEDDINGS].dims]
    where = np.argwhere(has_data(emb).transpose(*dims).values)
    chosen = np.sort(np.random.default_rng(seed).permutation(len(where))[:FIT_PIXELS])
    index = {d: xr.DataArray(where[chosen, i], dims="pixel") for i, d in enumerate(dims)}
    drawn = dequantize(emb.isel(index))[EMBEDDINGS].transpose("pixel", "band")
    return drawn.drop_vars([c for c in drawn.coords if c != "band"]).astype(np.float64).compute()


def _components(
    values: npt.NDArray[np.float64],
    vectors: npt.NDArray[np.float64],
    mean: xr.DataArray,
    centred: xr.DataArray,
    n_components: int,
    attrs: dict[str, Any],
) -> Components:
    order = np.argsort(values)[::-1][:n_components]
    chosen = vectors[:, order].T
    signs = np.sign(chosen[np.arange(n_components), np.abs(chosen).argmax(axis=1)])
    axes = xr.DataArray(
        (chosen * signs[:, None]).astype(np.float32),
        dims=("component", "band"),
        coords={"component": np.arange(1, n_components + 1), "band": mean["band"]},
    )
    scores = centred.values @ axes.values.T
    limits = np.percentile(scores, STRETCH, axis=0).astype(np.float32)
    coords = {"component": axes["component"]}
    explained = xr.DataArray(values[order] / values.sum(), dims="component", coords=coords)
    bounds = xr.DataArray(limits, dims=("bound", "component"), coords=coords)
    kept: dict[str, Any] = {k: attrs[k] for k in ("model", "weights_sha256") if k in attrs}
    return Components(mean.astype(np.float32), axes, explained, bounds, kept)


def _project(
    values: npt.NDArray[Any],
    scales: npt.NDArray[np.float32] | None = None,
    *,
    mean: npt.NDArray[np.float32],
    vectors: npt.NDArray[np.float32],
) -> npt.NDArray[np.float32]:
    """(..., band) to (..., component), a stretch of rows at a time: never a float32 copy of all codes."""
    offset = vectors @ mean
    out = np.empty((*values.shape[:-1], len(vectors)), dtype=np.float32)
    for i in range(len(values)):
        scores = values[i].astype(np.float32) @ vectors.T
        if scales is not None:
            scores *= np.where(np.isfinite(scales[i]), scales[i], np.nan)[..., None]
        out[i] = scores - offset
    return out
