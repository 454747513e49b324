"""float32 embeddings to int8 codes with one scale a pixel, and back: 132 bytes a pixel, not 512."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from tessera_xr.embedding.schema import EMBEDDINGS, SCALES, check_embeddings


def quantize(emb: xr.Dataset) -> xr.Dataset:
    """Return embeddings as int8 codes and `scales`; those that are int8 already come back as they are.

    For each pixel scale = max|e| / 127 and code = round(e / scale), so that code * scale is within scale / 2 of e.
    No data becomes code 0 with scale NaN. Lazy for Dask.

    Parameters
    ----------
    emb : Dataset
        Embeddings, float32 or int8.

    Returns
    -------
    Dataset
        With `embeddings` int8 and `scales` ([time,] y, x) float32.
    """
    check_embeddings(emb)
    if emb[EMBEDDINGS].dtype == np.int8:
        return emb
    codes, scales = xr.apply_ufunc(
        quantize_arrays,
        emb[EMBEDDINGS],
        input_core_dims=[["band"]],
        output_core_dims=[["band"], []],
        dask="parallelized",
        dask_gufunc_kwargs={"allow_rechunk": True},
        output_dtypes=[np.int8, np.float32],
        keep_attrs=True,
    )
    return _replaced(emb, codes).assign({SCALES: scales.assign_attrs(scale_attrs(emb))})


def dequantize(emb: xr.Dataset) -> xr.Dataset:
    """Return embeddings as float32, NaN without data; those that are float32 already come back as they are.

    Parameters
    ----------
    emb : Dataset
        Embeddings, float32 or int8.

    Returns
    -------
    Dataset
        With `embeddings` float32 and no `scales`.
    """
    check_embeddings(emb)
    if emb[EMBEDDINGS].dtype != np.int8:
        return emb
    values = xr.apply_ufunc(
        dequantize_arrays,
        emb[EMBEDDINGS],
        emb[SCALES],
        input_core_dims=[["band"], []],
        output_core_dims=[["band"]],
        dask="parallelized",
        dask_gufunc_kwargs={"allow_rechunk": True},  # published stores may be chunked along band
        output_dtypes=[np.float32],
        keep_attrs=True,
    )
    return _replaced(emb, values).drop_vars(SCALES)


def scale_attrs(emb: xr.Dataset) -> dict[str, Any]:
    """Return the attributes of `scales` on the grid of `emb`."""
    mapping = emb[EMBEDDINGS].attrs.get("grid_mapping")
    return {"long_name": "scale of the int8 codes: embedding = code * scale"} | (
        {"grid_mapping": mapping} if mapping else {}
    )


def _replaced(emb: xr.Dataset, values: xr.DataArray) -> xr.Dataset:
    values = values.transpose(*emb[EMBEDDINGS].dims).assign_attrs(emb[EMBEDDINGS].attrs)
    return emb.assign({EMBEDDINGS: values})


def quantize_arrays(values: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Return codes (..., band) and scales (...) of (..., band) float32; without data, 0 and NaN."""
    scales = (np.abs(values).max(axis=-1) / np.float32(127)).astype(np.float32)
    divisor = np.where(scales == 0, np.float32(1), scales)  # a vector of zeros has codes of zero
    with np.errstate(invalid="ignore"):
        codes = np.rint(values / divisor[..., None])
    return np.where(np.isnan(codes), 0, np.clip(codes, -127, 127)).astype(np.int8), divisor


def dequantize_arrays(codes: npt.NDArray[np.int8], scales: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return (..., band) float32 of codes (..., band) and scales (...); a scale that is no number means no data."""
    usable = np.where(np.isfinite(scales), scales, np.float32(np.nan)).astype(np.float32)
    return codes.astype(np.float32) * usable[..., None]
