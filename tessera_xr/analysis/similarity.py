"""How like a query every pixel of a map is, exactly and straight on int8."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import xarray as xr

from tessera_xr.analysis.metrics import Whitening, whitening_of
from tessera_xr.analysis.queries import Query, Vectors, query_vectors
from tessera_xr.embedding.schema import EMBEDDINGS, SCALES, check_embeddings, provenance
from tessera_xr.errors import SchemaError

Combine: TypeAlias = Literal["mean", "max", "min"]
Metric: TypeAlias = Literal["cosine", "euclidean", "mahalanobis"]

SIGNS = {"mean": 0, "max": 1, "min": -1}
_NAMES = {
    "cosine": "cosine similarity to the query",
    "euclidean": "minus the Euclidean distance to the query",
    "mahalanobis": "minus the Mahalanobis distance to the query",
}


def similarity(
    emb: xr.Dataset,
    query: Query,
    *,
    negative: Query | None = None,
    combine: Combine = "mean",
    metric: Metric = "cosine",
    time: Any = None,
    crs: str | None = None,
) -> xr.DataArray:
    """Return how like a query every pixel is; higher is more alike, whatever the metric.

    With positives p and negatives n the value of a pixel v is ``C(s(v, p)) - C(s(v, n))``: C is `combine`, over all
    positives and over all negatives; without negatives the second term is left out. For the cosine s lies in -1..1, as
    it is, never stretched, so that two queries compare (with negatives the value lies in -2..2). For distances s is
    minus the distance: 0 is the query itself.

    The Mahalanobis distance is that of the map's own covariance, of at most 20,000 pixels of all times drawn with a
    fixed seed, in float64, with a ridge of a thousandth of the mean variance: directions in which the whole map varies
    count less.

    Parameters
    ----------
    emb : Dataset
        Embeddings, float32 or int8, eager or lazy. Codes are read as they are: the cosine needs no scales.
    query : (lon, lat), sequence of them, GeoSeries or GeoDataFrame, DataArray, Dataset or ndarray
        One or several positives: points, polygons (the mean of their pixels), a mask (the mean of its pixels), vectors
        (band,) or (n, band), or what `sample` returned. See `tessera_xr.analysis.queries.query_vectors`.
    negative : as `query`, optional
        What the places looked for are not like.
    combine : {"mean", "max", "min"}
        How several become one: on average, like any of them, or like all of them.
    metric : {"cosine", "euclidean", "mahalanobis"}
        How two embeddings are compared.
    time : int, str or datetime64, optional
        Which time of the map the query's places mean; needed where there are several. All times are compared.
    crs : str, optional
        The CRS of plain coordinates; longitude and latitude if not told.

    Returns
    -------
    DataArray
        ([time,] y, x) float32, NaN without data.

    Raises
    ------
    GridError
        If a place lies outside the map, or a mask on another grid.
    SchemaError
        If the query has no data, can't be read, or an option is unknown.
    VersionMismatchError
        If the query's vectors come from another model.
    """
    check_embeddings(emb)
    check_options(combine, metric)
    positives = query_vectors(emb, query, time=time, crs=crs)
    negatives = query_vectors(emb, negative, time=time, crs=crs) if negative is not None else positives[:0]
    if metric == "cosine":
        positives, negatives = unit(positives), unit(negatives)
    whitening = whitening_of(emb) if metric == "mahalanobis" else None
    scores = _apply(emb, positives, negatives, combine, whitening, metric)
    limit = 2.0 if len(negatives) else 1.0
    return scores.assign_attrs({"valid_min": -limit, "valid_max": limit} if metric == "cosine" else {})


def check_options(combine: str, metric: str) -> None:
    """Raise `SchemaError` for an unknown `combine` or `metric`."""
    for name, value, known in (("combine", combine, SIGNS), ("metric", metric, _NAMES)):
        if value not in known:
            raise SchemaError(f"{name}={value!r} is unknown; choose one of {', '.join(map(repr, known))}")


def unit(vectors: Vectors) -> Vectors:
    """Return vectors (n, band) divided by their lengths."""
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    if not lengths.all():
        raise SchemaError("a vector of the query is all zeros: it has no direction; use metric='euclidean'")
    found: Vectors = (vectors / lengths).astype(np.float32)
    return found


def _apply(
    emb: xr.Dataset,
    positives: Vectors,
    negatives: Vectors,
    combine: Combine,
    whitening: Whitening | None,
    metric: Metric,
) -> xr.DataArray:
    array = emb[EMBEDDINGS]
    lazy = array.chunks is not None
    if lazy and len(array.chunksizes["band"]) > 1:
        array = array.chunk(band=-1)
    quantized = array.dtype == np.int8
    scores: xr.DataArray = xr.apply_ufunc(
        score,
        array,
        *([emb[SCALES]] if quantized else []),
        input_core_dims=[["band"], *([[]] if quantized else [])],
        kwargs={
            "positives": positives, "negatives": negatives, "sign": SIGNS[combine], "metric": metric,
            "whitening": whitening, "parallel": not lazy,
        },
        dask="parallelized",
        output_dtypes=[np.float32],
    )  # fmt: skip
    mapping = array.attrs.get("grid_mapping")
    attrs = {"long_name": _NAMES[metric], "units": "1", "metric": metric, "combine": combine, **provenance(emb)}
    attrs |= {"grid_mapping": mapping} if mapping else {}
    dims = [d for d in array.dims if d != "band"]
    return scores.transpose(*dims).rename("similarity").assign_attrs(attrs)


def score(
    values: npt.NDArray[Any],
    scales: npt.NDArray[np.float32] | None = None,
    *,
    positives: Vectors,
    negatives: Vectors,
    sign: int,
    metric: Metric,
    whitening: Whitening | None = None,
    parallel: bool = False,
) -> npt.NDArray[np.float32]:
    """(..., band) to (...): the combined similarity; positives and negatives of unit length for the cosine."""
    from tessera_xr.analysis import kernels

    limit = np.float32(2 if len(negatives) else 1)
    if metric == "cosine" and sign == 0:  # the mean of products is the product with the mean
        mean = positives.mean(axis=0, dtype=np.float64)
        if len(negatives):
            mean -= negatives.mean(axis=0, dtype=np.float64)
        positives, negatives, sign = mean.astype(np.float32)[None], negatives[:0], 1
    compare = kernels.cosines if metric == "cosine" else kernels.nearness
    if whitening is not None:
        positives, negatives = whitening.apply(positives), whitening.apply(negatives)

    def block(values: npt.NDArray[Any], scales: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        if whitening is not None:
            values, scales = whitening.apply(values, scales), scales[:0]
        out = np.empty(len(values), dtype=np.float32)
        compare(values, scales, positives, np.float32(sign), out)
        if len(negatives):
            against = np.empty_like(out)
            compare(values, scales, negatives, np.float32(sign), against)
            out -= against
        return np.clip(out, -limit, limit) if metric == "cosine" else out

    # the product that whitens uses all cores by itself
    threads = kernels.n_cores() if parallel and whitening is None else 1
    return kernels.scan(values, scales, block, threads)
