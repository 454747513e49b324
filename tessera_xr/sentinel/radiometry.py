"""Sentinel-2 numbers: which scale they are on, whether the +1000 offset is still in them, and uint16 out."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from tessera_xr.errors import CubeError
from tessera_xr.sentinel.bands import S2_BANDS
from tessera_xr.sentinel.forms import nodata_of, sample_values

Decision: TypeAlias = npt.NDArray[np.float64]
"""What to subtract on each date, shape (time,); NaN = undecided."""

OFFSET = 1000
SATURATED = 65535
OFFSET_FROM = np.datetime64("2022-01-25")
OFFSET_BASELINE = 4.0
PLANETARY_COMPUTER = "planetary-computer"
EARTH_SEARCH = "earth-search"

_SOURCES = {
    "mpc": PLANETARY_COMPUTER,
    "planetarycomputer": PLANETARY_COMPUTER,
    "microsoftplanetarycomputer": PLANETARY_COMPUTER,
    "aws": EARTH_SEARCH,
    "earthsearch": EARTH_SEARCH,
    "earthsearchv1": EARTH_SEARCH,
}
"""Names of sources, in lower case and without spaces, hyphens and the like."""

BASELINE_NAMES = ("s2:processing_baseline", "processing_baseline", "processing:version", "processing_version")
APPLIED_NAMES = ("earthsearch:boa_offset_applied", "boa_offset_applied")
GIVEN = "offset_given"
OFFSET_NAMES = ("s2_offset", "boa_add_offset", "BOA_ADD_OFFSET", "s2:boa_add_offset")


def find_source(source: str | None, datasets: list[xr.Dataset]) -> str:
    """Return where the imagery is from: as told, else from the traces that STAC clients leave, else "unknown".

    Raises
    ------
    CubeError
        If what was told is all but the name of a source whose offset is known.
    """
    if source is not None:
        return _known_source(source)
    traces: list[str] = []
    for ds in datasets:
        traces += [str(value) for value in ds.attrs.values() if isinstance(value, str)]
        traces += [str(name) for name in ds.coords]
    text = " ".join(traces).lower().replace("_", "-")
    if "planetarycomputer" in text or "planetary-computer" in text:
        return PLANETARY_COMPUTER
    return EARTH_SEARCH if "earth-search" in text or "earthsearch" in text else "unknown"


def _known_source(source: str) -> str:
    """Return the usual name of a source, however it is written; any other text as it is."""
    if not isinstance(source, str):
        raise CubeError(f"source={source!r} is not known; give a text, such as '{EARTH_SEARCH}'")
    plain = re.sub(r"[\W_]+", "", source.lower())
    if plain in _SOURCES:
        return _SOURCES[plain]
    near = difflib.get_close_matches(plain, [name for name in _SOURCES if len(name) > 3], n=1, cutoff=0.8)
    if near:
        raise CubeError(
            f"source={source!r} is not known, but close to '{_SOURCES[near[0]]}'; write '{PLANETARY_COMPUTER}' or "
            f"'{EARTH_SEARCH}', or a text that is unlike both"
        )
    return source


def reflectance_scale(ds: xr.Dataset) -> tuple[float, str]:
    """Return what to multiply the S2 bands of `ds` by to get reflectance x 10,000, and how that is known.

    Raises
    ------
    CubeError
        If attributes and values contradict each other, or neither tells.
    """
    bands = [ds[name] for name in S2_BANDS if name in ds]
    stated = {scale for band in bands if (scale := _stated_scale(band)) is not None}
    if all(band.dtype.kind in "ui" for band in bands):
        return 1.0, "reflectance x 10,000, " + (
            "from attributes" if stated == {1.0} else "inferred from the integer dtype"
        )
    values = np.concatenate(
        [sample_values(band) for band in bands if band.name in ("B04", "B08")] or [sample_values(bands[0])]
    )
    seen = _seen_scale(values)
    scale = stated.pop() if len(stated) == 1 else seen
    if scale is None or (seen is not None and scale != seen):
        found = (
            f"95 % of a sample are below {np.quantile(values, 0.95):.4g}" if values.size else "a sample holds no data"
        )
        raise CubeError(
            f"the units of the Sentinel-2 bands can't be told ({found}); give reflectance from 0 to 1, or reflectance "
            "x 10,000, and say which with attrs['units'] = 'reflectance' or '1e-4 reflectance' on each band"
        )
    unit = "reflectance" if scale == 10_000 else "reflectance x 10,000"
    return scale, f"{unit}, {'inferred from values' if not stated and scale == seen else 'from attributes'}"


def check_offset(offset: Any) -> None:
    """Raise `CubeError` unless `offset` is "auto", 0, 1000, or some of the latter two."""
    if isinstance(offset, str) and offset == "auto":
        return
    values = np.asarray(offset)
    if values.dtype.kind not in "uif" or not np.isin(values, (0, OFFSET)).all():
        raise CubeError(
            f"offset={offset!r} is not known; it is 'auto', 0 (removed already), 1000 (to be subtracted), "
            "or one of these per date"
        )


def with_offset(ds: xr.Dataset, offset: Any) -> xr.Dataset:
    """Return `ds` with the `offset` that the user gave (0, 1000, or one of these per date) as a coordinate along time.

    So it stays with its dates when steps are dropped. With offset="auto" `ds` is returned as it is.
    """
    if isinstance(offset, str):
        return ds
    n, values = ds.sizes["time"], np.asarray(offset)
    if values.shape not in ((), (n,)):
        raise CubeError(
            f"offset has shape {values.shape}, but Sentinel-2 has {n} dates; give one value, or one per date"
        )
    if values.any() and ds.attrs.get("tessera_xr_kind") == "cube":
        raise CubeError("offset= was passed with the s2 of a cube, where the offset is removed already; leave it out")
    return ds.assign_coords({GIVEN: ("time", np.broadcast_to(values, (n,)))})


def resolve_offset(ds: xr.Dataset, source: str) -> tuple[npt.NDArray[np.uint16], str]:
    """Return what to subtract on each date of `ds`, shape (time,), and how that is known.

    Parameters
    ----------
    ds : Dataset
        With a `time` coordinate and whatever metadata came along it.
    source : str
        Where the imagery is from.

    Raises
    ------
    CubeError
        If some dates can't be decided; it says what to pass.
    """
    n = ds.sizes["time"]
    evidence, decided, notes = Evidence(ds, source), np.full(n, np.nan), []
    for rule, note in _RULES:
        values = rule(evidence)
        fresh = np.isnan(decided) & ~np.isnan(values)
        if fresh.any():
            decided[fresh] = values[fresh]
            notes.append(note)
    if np.isnan(decided).any():
        days = ds["time"].values[np.isnan(decided)].astype("datetime64[D]")
        raise CubeError(
            f"Sentinel-2: can't tell whether the +1000 offset of 2022-01-25 and later is still in the values "
            f"of {len(days)} dates ({days[0]} to {days[-1]}); pass offset=1000 if they are raw L2A (to subtract it), "
            f"offset=0 if it was removed already, or source='{PLANETARY_COMPUTER}' or '{EARTH_SEARCH}'"
        )
    share = f"1000 subtracted on {int((decided > 0).sum())} of {n} dates" if (decided > 0).any() else "none to subtract"
    return decided.astype(np.uint16), f"{share}, from {' and '.join(notes)}"


def to_reflectance(band: xr.DataArray, scale: float, offset: npt.NDArray[np.uint16]) -> xr.DataArray:
    """Return `band` (time, y, x) as uint16 reflectance x 10,000, offset removed, 0 = no data; lazy if it is lazy."""
    per_date: Any = xr.DataArray(offset, dims="time") if offset.any() else 0
    out: xr.DataArray = xr.apply_ufunc(
        _to_reflectance,
        band.drop_vars(list(band.coords)),
        per_date,
        kwargs={"scale": scale if band.dtype.kind == "f" else 1.0, "nodata": nodata_of(band)},
        dask="parallelized",
        output_dtypes=[np.uint16],
    )
    return out


def _to_reflectance(values: Any, offset: Any, *, scale: float, nodata: float | None) -> npt.NDArray[np.uint16]:
    missing = values == (SATURATED if nodata is None else nodata)
    if values.dtype.kind == "f":
        # not a number compares False to everything, so that it becomes 0 here too
        with np.errstate(invalid="ignore"):
            values = np.where(np.isfinite(values) & ~missing, np.rint(values * scale), 0)
    elif np.any(missing):
        values = np.where(missing, 0, values)
    if values.dtype != np.uint16:
        values = np.clip(values, 0, 65535).astype(np.uint16)
    out: npt.NDArray[np.uint16] = values
    return out - np.where(out >= OFFSET, offset, 0).astype(np.uint16) if np.any(offset) else out


def _stated_scale(band: xr.DataArray) -> float | None:
    units = re.sub(r"[\s,_]", "", str(band.attrs.get("units", "")).lower())
    factor = band.attrs.get("scale_factor")
    if any(mark in units for mark in ("1e-4", "1e-04", "10000", "0.0001")) or units in ("dn", "digitalnumber"):
        return 1.0
    if isinstance(factor, (float, np.floating)) and np.isclose(factor, 1e-4):
        return 1.0
    return 10_000.0 if "reflectance" in units and band.dtype.kind == "f" else None


def _seen_scale(values: npt.NDArray[np.float64]) -> float | None:
    if not values.size:
        return None
    high = np.quantile(values, 0.95)
    if high <= 2.5:  # cloud tops and snow reach above 1
        return 10_000.0
    return 1.0 if high >= 100 else None


def _number(value: Any) -> float:
    return float(pd.to_numeric(str(value).strip().upper().lstrip("N"), errors="coerce"))


@dataclass(frozen=True)
class Evidence:
    """What the rules look at."""

    ds: xr.Dataset
    source: str

    def __len__(self) -> int:
        return self.ds.sizes["time"]

    def said(self, *names: str) -> list[Any] | None:
        """Return what coordinates or attributes called one of `names` say for each date; None if there are none."""
        for name in names:
            if name in self.ds.coords and self.ds[name].dims in ((), ("time",)):
                return list(np.broadcast_to(self.ds[name].values, (len(self),)))
            for attrs in (self.ds.attrs, *(self.ds[band].attrs for band in self.ds.data_vars)):
                if name in attrs:
                    return [attrs[name]] * len(self)
        return None

    def numbers(self, *names: str) -> Decision:
        """Return the same as numbers; NaN where there is none."""
        return np.array([_number(value) for value in self.said(*names) or [None] * len(self)])


def _by_argument(evidence: Evidence) -> Decision:
    return evidence.numbers(GIVEN)


def _by_statement(evidence: Evidence) -> Decision:
    if evidence.ds.attrs.get("tessera_xr_kind") == "cube":
        return np.zeros(len(evidence))
    stated = np.abs(evidence.numbers(*OFFSET_NAMES))
    stated[~np.isin(stated, (0, OFFSET))] = np.nan
    applied = evidence.said(*APPLIED_NAMES) or [False] * len(evidence)
    return np.where([str(value).strip().lower() in ("true", "1", "1.0") for value in applied], 0.0, stated)


def _by_earth_search(evidence: Evidence) -> Decision:
    removed = evidence.source == EARTH_SEARCH and evidence.said(*APPLIED_NAMES) is None
    return np.full(len(evidence), 0.0 if removed else np.nan)


def _by_baseline(evidence: Evidence) -> Decision:
    baselines = evidence.numbers(*BASELINE_NAMES)
    baselines[baselines > 100] /= 100  # "0511" and "N0511" are 05.11
    return np.where(np.isnan(baselines), np.nan, np.where(baselines >= OFFSET_BASELINE, float(OFFSET), 0.0))


def _by_date(evidence: Evidence) -> Decision:
    raw = evidence.source == PLANETARY_COMPUTER or evidence.said(*APPLIED_NAMES) is not None
    return np.where(evidence.ds["time"].values >= OFFSET_FROM, float(OFFSET) if raw else np.nan, 0.0)


_RULES: tuple[tuple[Callable[[Evidence], Decision], str], ...] = (
    (_by_argument, "offset="),
    (_by_statement, "attributes that state it"),
    (_by_earth_search, "the source (Earth Search removes it)"),
    (_by_baseline, "the processing baseline"),
    (_by_date, "the dates (it came on 2022-01-25)"),
)
