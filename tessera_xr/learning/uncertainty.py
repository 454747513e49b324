"""How sure a map is: entropy and margin, sets and intervals that hold the truth, and where labels can tell at all."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from tessera_xr.embedding.schema import EMBEDDINGS, provenance
from tessera_xr.errors import SchemaError
from tessera_xr.learning.conformal import Conformal, fit_conformal

if TYPE_CHECKING:
    from tessera_xr.learning.labels import LabelSet
    from tessera_xr.learning.samples import LabelSample

__all__ = ["Conformal", "applicability", "entropy", "fit_conformal", "margin"]

Floats = npt.NDArray[np.floating[Any]]


def entropy(pred: xr.Dataset) -> xr.DataArray:
    """Return how spread the probability of each pixel is over the classes: normalised Shannon entropy.

    Parameters
    ----------
    pred : Dataset
        What `Head.predict` returns, with `probability` ([time,] class, y, x); eager or lazy.

    Returns
    -------
    DataArray
        ([time,] y, x) float32: 0 where one class has all the probability, 1 where all classes have the same; NaN
        without data.

    Raises
    ------
    SchemaError
        If there is no `probability`.
    """
    return _per_pixel(pred, _entropy, "entropy", "normalised entropy of the class probabilities")


def margin(pred: xr.Dataset) -> xr.DataArray:
    """Return how close the second class of each pixel comes to the first: 1 - (p1 - p2).

    Parameters
    ----------
    pred : Dataset
        What `Head.predict` returns, with `probability` ([time,] class, y, x); eager or lazy.

    Returns
    -------
    DataArray
        ([time,] y, x) float32: 0 where one class has all the probability, 1 where the first two have the same; NaN
        without data.

    Raises
    ------
    SchemaError
        If there is no `probability`.
    """
    return _per_pixel(pred, _margin, "margin", "1 - (probability of the first class - that of the second)")


def applicability(
    emb: xr.Dataset, labels: LabelSet | LabelSample, *, time: Any = None, beyond: float = 95.0, seed: int = 0
) -> xr.Dataset:
    """Return where a map lies among its labels: elsewhere there are none like it, and no score speaks for it.

    The area of applicability, by Mahalanobis distance to the labelled embeddings; see `fit_novelty`.

    Parameters
    ----------
    emb : Dataset
        Embeddings, float32 or int8, eager or lazy.
    labels : LabelSet or LabelSample
        What a head was taught.
    time : int, str or datetime64, optional
        Which time of `emb` the labels are of, where there are several.
    beyond : float, default 95
        Percentile of the labels' own distances (each to all the others) beyond which a pixel is outside.
    seed : int, default 0
        Of the draw of labelled pixels, where there are over 20,000.

    Returns
    -------
    Dataset
        `distance` and `percentile` as `Novelty.transform` gives them, all times of `emb`; and `inside` ([time,] y, x)
        bool, False without data.

    Raises
    ------
    SchemaError
        If fewer than three labelled pixels have data, or `beyond` is no percentile.
    """
    from tessera_xr.analysis.novelty import fit_novelty
    from tessera_xr.learning.samples import as_sample

    if not 0 < beyond <= 100:
        raise SchemaError(f"beyond={beyond!r} must be a percentile, above 0 and up to 100; 95 is usual")
    sample = as_sample(emb, labels, time)
    reference = xr.Dataset({EMBEDDINGS: (("pixel", "band"), sample.X)}, attrs=sample.attrs)
    found = fit_novelty(reference, seed=seed).transform(emb)
    mapping = found["distance"].attrs.get("grid_mapping")
    said = {"long_name": "among the labels", **({"grid_mapping": mapping} if mapping else {}), **provenance(emb)}
    inside = (found["percentile"] <= beyond).drop_attrs(deep=False).assign_attrs(said)
    return found.assign(inside=inside)


def _per_pixel(pred: xr.Dataset, function: Callable[[Floats], Floats], name: str, title: str) -> xr.DataArray:
    if "probability" not in getattr(pred, "data_vars", ()):
        raise SchemaError(
            "this needs the probability of each class: pass what head.predict(emb) returns, made with "
            "probability=True by a head that has probabilities, as 'logistic', 'forest', 'knn' or 'mlp'"
        )
    shares = pred["probability"]
    found: xr.DataArray = xr.apply_ufunc(
        function,
        shares.chunk({"class": -1}) if shares.chunks is not None else shares,
        input_core_dims=[["class"]],
        dask="parallelized",
        output_dtypes=[np.float32],
        keep_attrs=True,  # those of spatial_ref are the CRS
    )
    mapping = shares.attrs.get("grid_mapping")
    attrs = {"long_name": title, "units": "1", **provenance(pred)} | ({"grid_mapping": mapping} if mapping else {})
    return found.rename(name).drop_attrs(deep=False).assign_attrs(attrs)


def _entropy(shares: Floats) -> Floats:
    """(..., class) to (...)."""
    from scipy.special import entr

    n_classes = shares.shape[-1]
    if n_classes == 1:
        return np.where(np.isnan(shares[..., 0]), np.nan, 0).astype(np.float32)
    return np.asarray(entr(shares).sum(axis=-1) / np.log(n_classes), dtype=np.float32)


def _margin(shares: Floats) -> Floats:
    """(..., class) to (...)."""
    if shares.shape[-1] == 1:
        return np.where(np.isnan(shares[..., 0]), np.nan, 0).astype(np.float32)
    first_two = np.partition(shares, -2, axis=-1)[..., -2:]
    return (1 - (first_two[..., 1] - first_two[..., 0])).astype(np.float32)
