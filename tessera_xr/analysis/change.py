"""Change: how far embeddings moved between two dates, whether that is more than usual, and when a series broke."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from functools import reduce
from operator import or_
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import xarray as xr

from tessera_xr._warn import warn
from tessera_xr.embedding.schema import (
    COUNTS,
    EMBEDDINGS,
    SCALES,
    check_embeddings,
    check_same_model,
    has_data,
    provenance,
)
from tessera_xr.errors import GridError, SchemaError
from tessera_xr.grid import GRID_MAPPING, crs_of

When: TypeAlias = int | str | date | np.datetime64

RADAR_SHARE = 0.01
"""Warn from this share of pixels on that have radar in one of two years only."""


def change(emb: xr.Dataset, before: When | xr.Dataset, after: When | xr.Dataset | None = None) -> xr.DataArray:
    """Return the cosine distance between the embeddings of two dates.

    Taken from int8 codes as they are: scales cancel in a cosine, and sums of codes are exact.

    Parameters
    ----------
    emb : Dataset
        Embeddings, float32 or int8, eager or lazy.
    before, after : int, str, date or Dataset
        Two times of `emb` (a year, or a date where `time` holds dates), or embeddings of one date on the same grid.
        Without `after`, `emb` itself, which then has one date.

    Returns
    -------
    DataArray
        `change` (y, x) float32: 0 = the same direction, 1 = a right angle, 2 = opposite; NaN where either has no data.

    Raises
    ------
    SchemaError
        If a date is not there.
    VersionMismatchError
        If the two are of different models.
    GridError
        If they are on different grids.

    Warns
    -----
    TesseraWarning
        If radar was there in one of the two years only, which alone moves embeddings by 0.13 to 0.25. For lazy
        embeddings that is seen, block by block, when they are computed.
    """
    first, second = _single(emb, before), _single(emb, after)
    check_same_model(emb, first, second)
    if any(isinstance(when, xr.Dataset) for when in (before, after)):
        _check_same_grid(first, second)
    names = (_name(first, before), _name(second, after))
    found = distance_map(first, second)
    found = _watch_radar(found, [first, second], f"only one of {names[0]} and {names[1]}")
    attrs = {"long_name": f"cosine distance from {names[0]} to {names[1]}", "units": "1"}
    attrs |= {"before": names[0], "after": names[1], **_kept(emb)}
    return found.rename("change").assign_attrs(attrs)


def trend(emb: xr.Dataset) -> xr.Dataset:
    """Return how each pixel drifts along a series of years, and the year at which it breaks.

    Both are least squares on the embeddings scaled to length one: a straight line through them, and a step from one
    mean to another at the year where the step explains most. All of it follows from the cosines between the years of
    a pixel, so int8 codes need no scales.

    Parameters
    ----------
    emb : Dataset
        Embeddings of three dates or more, float32 or int8, eager or lazy.

    Returns
    -------
    Dataset
        All (y, x) float32, NaN for pixels with data at fewer than three dates:
        `speed`, the length of the line's slope, per year; `speed_r2`, the share of the variance along the series that
        the line explains; `break_year`, the first year after the step (decimal where `time` holds dates: an event
        late in a year may show in the next); `break_distance`, the cosine distance between the means before and
        after; `break_r2`, the share of the variance that the step explains. A step is found in every series: look at
        `break_distance` and `break_r2` before you believe it.

    Raises
    ------
    SchemaError
        If there are fewer than three dates.

    Warns
    -----
    TesseraWarning
        If radar was there in some of the years only; see `change`.
    """
    check_embeddings(emb)
    if emb.sizes.get("time", 1) < 3:
        raise SchemaError(f"a trend needs three dates or more along `time`, these are {emb.sizes.get('time', 1)}")
    if len(np.unique(decimal_years(emb))) < emb.sizes["time"]:
        raise SchemaError("a trend needs dates that differ; some of these stand more than once along `time`")
    emb = emb.sortby("time") if (np.diff(decimal_years(emb)) < 0).any() else emb
    series, valid = _bare(emb[EMBEDDINGS]), _bare(has_data(emb))
    if series.chunks is not None:
        # the vector last, as in memory: joining times across it takes ten times as long
        series, valid = series.transpose(..., "band").chunk(time=-1, band=-1), valid.chunk(time=-1)
    outputs = xr.apply_ufunc(
        _trend,
        series,
        valid,
        input_core_dims=[["time", "band"], ["time"]],
        output_core_dims=[[]] * len(TREND),
        kwargs={"years": decimal_years(emb)},
        dask="parallelized",
        output_dtypes=[np.float32] * len(TREND),
        keep_attrs=True,
    )
    maps = {name: found.assign_attrs(TREND[name] | _kept(emb)) for name, found in zip(TREND, outputs, strict=True)}
    maps["break_distance"] = _watch_radar(
        maps["break_distance"], [emb.isel(time=i) for i in range(emb.sizes["time"])], "some of the years"
    )
    return xr.Dataset(maps, attrs=provenance(emb))


TREND: dict[str, dict[str, Any]] = {
    "speed": {"long_name": "speed of the linear drift of the unit embedding", "units": "year-1"},
    "speed_r2": {"long_name": "share of the variance explained by the drift", "units": "1"},
    "break_year": {"long_name": "first year after the greatest step"},
    "break_distance": {"long_name": "cosine distance between the means before and after the step", "units": "1"},
    "break_r2": {"long_name": "share of the variance explained by the step", "units": "1"},
}


# Dates ----------------------------------------------------------------------------------------------------------------


def _single(emb: xr.Dataset, when: When | xr.Dataset | None) -> xr.Dataset:
    """Return embeddings of one date, ([y, x], band)."""
    found = emb if when is None else when
    check_embeddings(emb)
    if not isinstance(found, xr.Dataset):
        return emb.isel(time=time_index(emb, found))
    check_embeddings(found)
    if found.sizes.get("time", 1) != 1:
        raise SchemaError(f"these embeddings have {found.sizes['time']} dates; say which, as change(emb, 2020, 2022)")
    return found.squeeze("time") if "time" in found.dims else found


def time_index(emb: xr.Dataset, when: object) -> int:
    """Return where along `time` a date is."""
    if "time" not in emb[EMBEDDINGS].dims or "time" not in emb.coords:
        raise SchemaError("these embeddings have no `time`; give two maps: change(after_map, before_map)")
    times = emb["time"]
    if times.dtype.kind == "M":
        try:
            wanted = np.datetime64(str(when)), np.datetime64(str(when)) + 1
        except ValueError:
            wanted = (np.datetime64("NaT"),) * 2
        hits = np.flatnonzero((times.values >= wanted[0]) & (times.values < wanted[1]))
    else:
        hits = np.flatnonzero(times.values.astype(str) == str(when))
    if len(hits) != 1:
        raise SchemaError(f"{when!r} is {len(hits)} of the dates; choose one of {', '.join(time_names(emb))}")
    return int(hits[0])


def decimal_years(emb: xr.Dataset) -> npt.NDArray[np.float64]:
    """Return the dates as decimal years."""
    times = emb["time"].values
    if times.dtype.kind != "M":
        return times.astype(np.float64)
    years = times.astype("datetime64[Y]")
    days = (times - years) / np.timedelta64(1, "D")
    return np.asarray(years.astype(int) + 1970 + days / 365.25, dtype=np.float64)


def time_names(emb: xr.Dataset) -> list[str]:
    """Return the dates as text."""
    return [str(t)[:10] for t in emb["time"].values]


def _name(single: xr.Dataset, when: object) -> str:
    if "time" in single.coords:
        return str(single["time"].values)[:10]
    return str(single.attrs.get("period", "before" if isinstance(when, xr.Dataset) else "after"))


def _check_same_grid(first: xr.Dataset, second: xr.Dataset) -> None:
    dims = [set(ds[EMBEDDINGS].dims) for ds in (first, second)]
    same = dims[0] == dims[1] and all(first[d].variable.equals(second[d].variable) for d in dims[0] - {"band"})
    if not same or (GRID_MAPPING in first.coords and crs_of(first) != crs_of(second)):
        raise GridError("the two maps are on different grids; reproject one to that of the other first")


# Distances ------------------------------------------------------------------------------------------------------------


def distance_map(first: xr.Dataset, second: xr.Dataset) -> xr.DataArray:
    """Return the cosine distance between two single dates; NaN unless both have data."""
    a, b = (_bare(ds[EMBEDDINGS]) for ds in (first, second))
    a, b = (array.chunk(band=-1) if array.chunks is not None else array for array in (a, b))
    found: xr.DataArray = xr.apply_ufunc(
        _cosine_distance,
        a,
        b,
        input_core_dims=[["band"], ["band"]],
        join="exact",
        dask="parallelized",
        output_dtypes=[np.float32],
        keep_attrs=True,  # those of spatial_ref are the CRS
    )
    for ds in (first, second):
        found = found.where(_bare(has_data(ds))) if SCALES in ds else found
    return found


def _cosine_distance(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """(..., band) twice to (...), on a worker too."""
    from tessera_xr.analysis.pairs import distance_rows

    return distance_rows(a, b)


def _trend(
    series: npt.NDArray[Any], valid: npt.NDArray[np.bool_], *, years: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float32], ...]:
    """Series (..., t, band) and valid (..., t) to the maps of `TREND`, each (...)."""
    from tessera_xr.analysis.pairs import trend_rows

    return trend_rows(series, valid, years)


def _bare(array: xr.DataArray) -> xr.DataArray:
    """Return an array with its grid as the only coordinates: those of a date would get in each other's way."""
    return array.drop_vars([c for c in array.coords if c not in ("y", "x", "point", GRID_MAPPING)])


def _kept(emb: xr.Dataset) -> dict[str, Any]:
    mapping = emb[EMBEDDINGS].attrs.get("grid_mapping")
    return provenance(emb) | ({"grid_mapping": mapping} if mapping else {})


# Radar ----------------------------------------------------------------------------------------------------------------


def same_radar(singles: Sequence[xr.Dataset]) -> xr.DataArray | None:
    """Return where dates agree on whether they have radar, counting those with data; None if counts are missing."""
    if not all(name in ds for ds in singles for name in COUNTS[1:]):
        return None
    seen = [(_bare(ds[COUNTS[1]]) > 0) | (_bare(ds[COUNTS[2]]) > 0) for ds in singles]
    filled = [_bare(has_data(ds)) for ds in singles]
    having = reduce(or_, [s & f for s, f in zip(seen, filled, strict=True)])
    lacking = reduce(or_, [~s & f for s, f in zip(seen, filled, strict=True)])
    return ~(having & lacking)


def _watch_radar(found: xr.DataArray, singles: Sequence[xr.Dataset], which: str) -> xr.DataArray:
    """Return `found` as it is; warn where dates differ in radar: now if the counts are here, else block by block."""
    same = same_radar(singles)
    if same is None:
        return found
    if same.chunks is None:
        _warn_radar(same.values, which)
        return found
    watched: xr.DataArray = xr.apply_ufunc(
        _watch_block, found, same, kwargs={"which": which}, dask="parallelized", output_dtypes=[found.dtype],
        keep_attrs=True,
    )  # fmt: skip
    return watched


def _watch_block(found: npt.NDArray[np.float32], same: npt.NDArray[np.bool_], *, which: str) -> npt.NDArray[np.float32]:
    _warn_radar(same, which)
    return found


def _warn_radar(same: npt.NDArray[np.bool_], which: str) -> None:
    share = 1 - float(same.mean()) if same.size else 0.0
    if share >= RADAR_SHARE:
        warn(
            f"{share:.0%} of the pixels have Sentinel-1 observations in {which}: for that reason alone embeddings are "
            "0.13 to 0.25 apart. Compare years that all have radar, or all lack it (see the counts of observations)"
        )
