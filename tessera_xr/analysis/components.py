"""Principal components of embeddings: seeded, signs fixed, with a stretch that several maps can share; and UMAP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from tessera_xr._optional import require
from tessera_xr.analysis.drawing import FIT_PIXELS, draw_pixels
from tessera_xr.embedding.schema import (
    EMBEDDINGS,
    SCALES,
    check_embeddings,
    check_same_model,
    check_whole,
    identity,
    provenance,
)
from tessera_xr.errors import SchemaError

UMAP_PIXELS = 5_000
STRETCH = (2.0, 98.0)


@dataclass(frozen=True)
class Components:
    """Axes of greatest variance, fitted once and applied to any embeddings of the same model."""

    mean: xr.DataArray
    """(band,) what is subtracted first."""
    vectors: xr.DataArray
    """(component, band) unit vectors, the greatest loading of each positive; if whitened, divided by the deviation."""
    explained: xr.DataArray
    """(component,) share of the variance."""
    limits: xr.DataArray
    """(bound, component) the 2nd and 98th percentile of the scores, for shared colours."""
    attrs: dict[str, Any]
    """The model of the embeddings that they were fitted to: see `identity`."""
    whiten: bool = False
    """Whether the scores are divided by their standard deviation in the fit."""

    def __repr__(self) -> str:
        shares = self.explained.values
        first = ", ".join(f"{share:.0%}" for share in shares[:3])
        more = ", ..." if len(shares) > 3 else ""
        whitened = ", whitened" if self.whiten else ""
        return (
            f"Components: {len(shares)}, holding {first}{more} of the variance, together {shares.sum():.0%}{whitened}; "
            f"model {self.attrs.get('model', 'unknown')}"
        )

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
        from tessera_xr.analysis.blocks import project

        check_embeddings(emb)
        check_same_model(emb, xr.Dataset(coords={"band": self.mean["band"]}, attrs=self.attrs))
        vectors = self.vectors.values
        offsets = (vectors.astype(np.float64) @ self.mean.values).astype(np.float32)
        inputs = pixel_arrays(emb)
        scores = xr.apply_ufunc(
            project,
            *inputs,
            input_core_dims=[["band"], []][: len(inputs)],
            output_core_dims=[["component"]],
            kwargs={"vectors": vectors, "offsets": offsets, "lazy": inputs[0].chunks is not None},
            dask="parallelized",
            output_dtypes=[np.float32],
            dask_gufunc_kwargs={"output_sizes": {"component": len(vectors)}},
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


def fit_components(emb: xr.Dataset, n_components: int = 3, *, seed: int = 0, whiten: bool = False) -> Components:
    """Find the principal components of embeddings.

    The covariance is that of at most 20,000 pixels drawn at random, so that a map of any size takes a moment.

    Parameters
    ----------
    emb : Dataset
        Embeddings, float32 or int8, eager or lazy.
    n_components : int, default 3
        How many.
    seed : int, default 0
        Of the draw of pixels.
    whiten : bool, default False
        Divide each score by its standard deviation, so that all components count alike.

    Raises
    ------
    SchemaError
        If there are fewer pixels with data, or dimensions, than components; or if a component to be whitened doesn't
        vary.
    """
    check_embeddings(emb)
    check_whole("n_components", n_components)
    if not 1 <= n_components <= emb.sizes["band"]:
        raise SchemaError(f"n_components must be from 1 to {emb.sizes['band']}, not {n_components}")
    drawn = draw_pixels(emb, FIT_PIXELS, seed)
    if drawn.sizes["pixel"] <= n_components:
        raise SchemaError(f"{drawn.sizes['pixel']} pixels have data: too few for {n_components} components")
    return fit_to_pixels(drawn, n_components, whiten=whiten, attrs=identity(emb))


def components(emb: xr.Dataset, n_components: int = 3, *, seed: int = 0, whiten: bool = False) -> xr.DataArray:
    """Return the principal components of embeddings, ([time,] component, y, x); see `fit_components` to reuse them."""
    return fit_components(emb, n_components, seed=seed, whiten=whiten).transform(emb)


def rgb(emb: xr.Dataset, *, seed: int = 0) -> xr.DataArray:
    """Return a picture of embeddings: the first three principal components as colours; see `Components.rgb`."""
    return fit_components(emb, 3, seed=seed).rgb(emb)


def umap(
    emb: xr.Dataset,
    n_components: int = 2,
    *,
    n_pixels: int = UMAP_PIXELS,
    n_neighbors: int = 15,
    min_dist: float = 0.1,
    seed: int = 0,
) -> xr.DataArray:
    """Return the UMAP of pixels drawn at random: a scatter plot that shows which embeddings are neighbours.

    Its axes have no meaning and its distances little: for maps use `components`. Needs the extra `umap`.

    Parameters
    ----------
    emb : Dataset
        Embeddings, float32 or int8, eager or lazy.
    n_components : int, default 2
        Axes of the plot.
    n_pixels : int, default 5,000
        How many pixels to draw; all, if fewer have data.
    n_neighbors, min_dist
        Of UMAP: how far it looks, and how tightly it packs.
    seed : int, default 0
        Of the draw and of UMAP.

    Returns
    -------
    DataArray
        (pixel, component) float32, with the coordinates `y`, `x` (and `time`) of each pixel.

    Raises
    ------
    MissingExtraError
        If umap-learn is not installed.
    SchemaError
        If too few pixels have data.

    Notes
    -----
    McInnes, Healy, Melville (2018), UMAP: uniform manifold approximation and projection for dimension reduction.
    """
    check_embeddings(emb)
    require("umap", "umap", "UMAP")
    drawn = draw_pixels(emb, n_pixels, seed)
    if drawn.sizes["pixel"] <= max(n_neighbors, n_components + 1):
        raise SchemaError(
            f"{drawn.sizes['pixel']} pixels have data or were asked for: too few for n_neighbors={n_neighbors}; "
            "take more pixels or fewer neighbours"
        )
    from umap import UMAP

    reducer = UMAP(n_components=n_components, n_neighbors=n_neighbors, min_dist=min_dist, random_state=seed, n_jobs=1)
    places = xr.DataArray(
        np.asarray(reducer.fit_transform(drawn.values), dtype=np.float32),
        dims=("pixel", "component"),
        coords={name: drawn[name] for name in drawn.coords if name != "band"},
        name="umap",
    )
    attrs = {"long_name": "UMAP of a sample of pixels", **provenance(emb)}
    return places.assign_coords(component=np.arange(1, n_components + 1)).assign_attrs(attrs)


def pixel_arrays(emb: xr.Dataset) -> list[xr.DataArray]:
    """Return `embeddings`, and `scales` with int8; lazy ones with all of the vector in one chunk."""
    arrays = [emb[EMBEDDINGS], *([emb[SCALES]] if emb[EMBEDDINGS].dtype == np.int8 else [])]
    return [a.chunk(band=-1) if a.chunks is not None and "band" in a.dims else a for a in arrays]


def fit_to_pixels(
    drawn: xr.DataArray, n_components: int, *, whiten: bool = False, attrs: dict[str, Any] | None = None
) -> Components:
    """Find the principal components of embeddings (pixel, band)."""
    from xarray_einstats import linalg

    mean = drawn.mean("pixel", dtype=np.float64)
    centred = drawn.drop_vars([c for c in drawn.coords if c != "band"]) - mean
    covariance = xr.dot(centred, centred.rename(band="band2"), dim="pixel") / (drawn.sizes["pixel"] - 1)
    values, vectors = linalg.eigh(covariance, dims=("band", "band2"))
    order = np.argsort(values.values)[::-1][:n_components]
    variances = values.values[order]
    axes = _signed(vectors.transpose("band", ...).values[:, order].T)
    if whiten:
        _check_varies(variances)
        axes = axes / np.sqrt(variances)[:, None]
    component = {"component": np.arange(1, n_components + 1)}
    dims = ("component", "band")
    limits = np.percentile(centred.values @ axes.T, STRETCH, axis=0).astype(np.float32)
    return Components(
        mean.astype(np.float32),
        xr.DataArray(axes.astype(np.float32), dims=dims, coords={**component, "band": mean["band"]}),
        xr.DataArray(variances / values.values.sum(), dims="component", coords=component),
        xr.DataArray(limits, dims=("bound", "component"), coords=component),
        attrs or {},
        whiten,
    )


def _signed(axes: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Turn each axis (component, band) so that its greatest loading is positive."""
    signs = np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(axis=1)])
    turned: npt.NDArray[np.float64] = axes * signs[:, None]
    return turned


def _check_varies(variances: npt.NDArray[np.float64]) -> None:
    n_varying = int((variances > 1e-10 * variances[0]).sum())
    if n_varying < len(variances):
        raise SchemaError(
            f"only {n_varying} of {len(variances)} components vary, and the others can't be whitened; "
            f"fit with n_components={n_varying} or fewer, or without whiten"
        )
