"""Which Sentinel-2 pixels are clear: the scene classification, or a mask that says so."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from tessera_xr.errors import CubeError
from tessera_xr.sentinel.bands import CLEAR, SCL, SCL_INVALID, VAGUE_MASK_NAMES
from tessera_xr.sentinel.forms import sample_values

_VALID_CODES = tuple(code for code in range(12) if code not in SCL_INVALID)


def mask_dataset(mask: xr.DataArray) -> xr.Dataset:
    """Return the mask that the user passed as a Dataset with a variable `clear` (bool) or `SCL` (codes)."""
    if not isinstance(mask, xr.DataArray):
        raise CubeError(
            f"mask is a {type(mask).__name__}; give 'auto', None, or a DataArray: SCL codes, or bool with True = clear"
        )
    return mask.to_dataset(name=CLEAR if mask.dtype.kind == "b" else SCL)


def clear_from(variable: xr.DataArray) -> xr.DataArray:
    """Return True where `variable`, called SCL or clear, says that the pixel is clear; lazy if it is lazy."""
    rule = _clear_from_codes if variable.name == SCL else _clear_from_flags
    out: xr.DataArray = xr.apply_ufunc(
        rule, variable.drop_vars(list(variable.coords)), dask="parallelized", output_dtypes=[np.bool_]
    )
    return out


def check_codes(variable: xr.DataArray) -> None:
    """Raise `CubeError` if a variable of SCL codes holds what looks like flags of 0 and 1, or like no codes at all."""
    codes = np.unique(sample_values(variable))
    if codes.tolist() == [1]:
        raise CubeError(
            "the mask holds only 0 and 1, which as SCL codes mean no data and saturated; if 1 means clear, "
            "pass mask=mask.astype(bool)"
        )
    if codes.size and not np.isin(codes, range(12)).any():
        raise CubeError(
            f"the mask holds {codes[:4].tolist()}, not SCL codes from 0 to 11; pass SCL, or bool with True = clear"
        )


def vague_masks(ds: xr.Dataset) -> list[str]:
    """Return the variables that look like a mask but don't say what True means."""
    return [str(name) for name in ds.data_vars if str(name).lower() in {n.lower() for n in VAGUE_MASK_NAMES}]


def _clear_from_codes(codes: Any) -> npt.NDArray[np.bool_]:
    return np.isin(codes, _VALID_CODES)


def _clear_from_flags(flags: Any) -> npt.NDArray[np.bool_]:
    # not a number is not equal to itself: no flag, not clear
    return np.asarray(flags if flags.dtype.kind == "b" else (flags != 0) & (flags == flags))
