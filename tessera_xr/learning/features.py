"""What to compare embeddings with, in the shape of embeddings: medians of the raw imagery, and shorter embeddings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from tessera_xr.embedding.schema import COUNTS, EMBEDDINGS, build_embeddings, check_embeddings, check_whole
from tessera_xr.encoder.registry import MATRYOSHKA, RECORDS
from tessera_xr.errors import SchemaError
from tessera_xr.sentinel.bands import S1_BANDS, S2_BANDS, day_of_year
from tessera_xr.sentinel.cube import as_cube, check_cube, is_cube, require_span, select_period
from tessera_xr.sentinel.period import PeriodLike, resolve_period

Floats = npt.NDArray[np.float32]

RAW_MEDIANS = "raw medians"
"""The model that `seasonal_medians` names."""
PIECE = 8192
"""Pixels whose observations are float32 at a time."""


def seasonal_medians(cube: xr.Dataset, period: PeriodLike | None = None, *, n_seasons: int = 12) -> xr.Dataset:
    """Return what a pixel can be told by without a network: medians of each band over equal parts of the year.

    The usual baseline, in the shape of embeddings, so that heads and `evaluate` take it as they take those. A part of
    the year without a clear observation lies on the line between its neighbours in time; the year closes on itself. A
    pixel that one sensor never saw gets the mean of the others for it; one that neither saw has no data.

    A lazy cube is computed, the rows of a chunk at a time; the result is in memory.

    Parameters
    ----------
    cube : Dataset
        A cube, or anything that `as_cube` reads without being told more.
    period : int or (start, end), optional
        The year or the dates; not needed if the cube is no longer than 366 days.
    n_seasons : int, default 12
        Parts of the calendar year, 1 to 24: 12 are about months.

    Returns
    -------
    Dataset
        `embeddings` (band, y, x) float32, NaN without data: the ten bands of Sentinel-2 in TESSERA's order
        (reflectance x 10,000) for the first part of the year, then for the second, and so on; after them VV and VH
        (dB) likewise. Beside it the counts of observations. Its `model` is "raw medians".

    Raises
    ------
    CubeError
        If `cube` can't be read as one, spans more than a year without `period`, or the period holds no date.
    SchemaError
        If an option is out of range.
    """
    check_whole("n_seasons", n_seasons)
    if not 1 <= n_seasons <= 24:
        raise SchemaError(f"n_seasons must be from 1 to 24, not {n_seasons}; 12 are about months")
    cube, span = _read(cube, period)
    pieces = [_medians(piece, n_seasons) for piece in _pieces(cube)]
    s2, s1, counts = (np.concatenate(part) for part in zip(*pieces, strict=True))
    nothing = np.isnan(s2[..., 0]) & np.isnan(s1[..., 0])
    values = np.concatenate([_with_mean(s2), _with_mean(s1)], axis=-1)
    values[nothing] = np.nan
    variables = {name: xr.DataArray(counts[..., i], dims=("y", "x")) for i, name in enumerate(COUNTS)}
    variables[EMBEDDINGS] = xr.DataArray(values, dims=("y", "x", "band"))
    attrs = {"model": RAW_MEDIANS, "n_seasons": n_seasons, "period": span}
    out = build_embeddings(variables, cube, attrs | {"source": str(cube.attrs.get("source", "unknown"))})
    out[EMBEDDINGS].attrs["long_name"] = f"medians of {n_seasons} parts of the year"
    return out


def season_medians(
    values: npt.NDArray[Any], valid: npt.NDArray[np.bool_], days: npt.NDArray[Any], n_seasons: int = 12
) -> Floats:
    """Return medians over equal parts of the year, NaN where a part holds no valid observation.

    Parameters
    ----------
    values : ndarray (n, t, c)
        Observations of pixels.
    valid : ndarray (n, t) of bool
        Which of them count.
    days : ndarray (t,)
        Their days of the year, 1 to 366.
    n_seasons : int, default 12
        Parts of the year.

    Returns
    -------
    ndarray (n, n_seasons, c)
        float32.
    """
    season = np.minimum((np.asarray(days) - 1) * n_seasons // 366, n_seasons - 1)
    out = np.full((len(values), n_seasons, values.shape[-1]), np.nan, dtype=np.float32)
    for number in np.unique(season):
        seen = valid[:, season == number]
        found = np.where(seen[..., None], values[:, season == number], np.float32(np.inf)).astype(np.float32)
        found.sort(axis=1)  # what doesn't count comes last
        count = seen.sum(axis=1)
        some = np.flatnonzero(count)
        middle = [found[some, place[some]] for place in ((count - 1) // 2, count // 2)]
        out[some, number] = (middle[0] + middle[1]) / 2
    return out


def fill_seasons(series: Floats) -> Floats:
    """Interpolate gaps along a year that closes on itself, (n, season, c); a pixel of gaps only stays NaN."""
    n_seasons = series.shape[1]
    there = np.asarray(~np.isnan(series[..., 0]))
    row, gap = np.nonzero(~there & there.any(axis=1, keepdims=True))
    if not len(row):
        return series.copy()
    # over three years in a row, the last known season up to each and the first known from it on
    place = np.arange(3 * n_seasons)
    thrice = np.tile(there, 3)
    before = np.maximum.accumulate(np.where(thrice, place, -1), axis=1)[row, gap + n_seasons]
    after = np.minimum.accumulate(np.where(thrice, place, 3 * n_seasons)[:, ::-1], axis=1)[:, ::-1][
        row, gap + n_seasons
    ]
    start, end = (series[row, at % n_seasons].astype(np.float64) for at in (before, after))
    share = (gap + n_seasons - before) / (after - before)
    out = series.copy()
    out[row, gap] = start + (end - start) * share[:, None]
    return out


def first_dims(emb: xr.Dataset, n: int) -> xr.Dataset:
    """Return shorter embeddings: the first 16, 32 or 64 values of a Matryoshka model's.

    Such a model is trained so that its first values work alone, with no normalising anew: TESSERA v2's students and
    the bundled "mini". v1.x and the v2 teacher are not, and must not be cut.

    Parameters
    ----------
    emb : Dataset
        Embeddings, float32 or int8, eager or lazy. Codes of int8 keep their scales, which are those of the whole
        vectors: what is cut off may have held the largest value, so that the codes are somewhat coarser than those of
        quantising the shorter vectors.
    n : int
        16, 32 or 64; or the length that they have.

    Returns
    -------
    Dataset
        Of the same model; functions that compare embeddings refuse to mix lengths.

    Raises
    ------
    SchemaError
        If the model must not be cut, isn't known, or not at that length.
    """
    check_embeddings(emb)
    check_whole("n", n)
    length = emb.sizes["band"]
    if n == length:
        return emb
    _check_matryoshka(emb)
    allowed = [k for k in MATRYOSHKA if k < length]
    if n not in allowed:
        raise SchemaError(f"these embeddings of {length} values can't be cut to {n}; their lengths are {allowed}")
    return emb.isel(band=slice(n))


def _check_matryoshka(emb: xr.Dataset) -> None:
    name, family = (str(emb.attrs.get(key, "unknown")) for key in ("model", "model_family"))
    if name in RECORDS:
        family = RECORDS[name].family
    if family not in {record.family for record in RECORDS.values() if record.matryoshka}:
        raise SchemaError(
            f"embeddings of model {name!r} (family {family!r}) must not be cut: only TESSERA v2's students and 'mini' "
            "are Matryoshka models, whose first values work alone. If these are of one, say so with "
            "emb.assign_attrs(model_family='v2'); else shorten them with components(n)"
        )


def _read(cube: xr.Dataset, period: PeriodLike | None) -> tuple[xr.Dataset, str]:
    """Return a checked cube of one period, and that period."""
    if not is_cube(cube):
        cube = as_cube(cube, period=period)
    check_cube(cube)
    require_span(cube, period)
    if period is not None:
        cube = select_period(cube, period)
        return cube, str(resolve_period(period))
    days = np.concatenate([cube["s2_time"].values, cube["s1_time"].values]).astype("datetime64[D]")
    return cube, f"{days.min()}/{days.max()}"


def _pieces(cube: xr.Dataset) -> Iterator[xr.Dataset]:
    """Yield rows of a cube in memory, some `PIECE` pixels at a time; chunks of a lazy one are read once."""
    step, n_rows = max(1, PIECE // max(1, cube.sizes["x"])), cube.sizes["y"]
    cube = cube[["s2", "s2_valid", "s1"]]
    stops = np.cumsum(cube.unify_chunks().chunksizes.get("y", (n_rows,)))
    for top, bottom in zip([0, *stops[:-1]], stops, strict=True):
        loaded = cube.isel(y=slice(int(top), int(bottom))).compute()
        yield from (loaded.isel(y=slice(i, i + step)) for i in range(0, loaded.sizes["y"], step))


def _medians(cube: xr.Dataset, n_seasons: int) -> tuple[Floats, Floats, npt.NDArray[np.uint16]]:
    """Return medians of both sensors (y, x, season * band), NaN where a sensor saw nothing, and counts (y, x, 3)."""
    s2, valid, s1 = (cube[name].transpose("y", "x", ...).values for name in ("s2", "s2_valid", "s1"))
    shape = s2.shape[:2]
    s2, valid, s1 = (a.reshape(shape[0] * shape[1], *a.shape[2:]) for a in (s2, valid, s1))
    descending = cube["s1_orbit"].values == "descending"
    days = [day_of_year(cube[dim].values) for dim in ("s2_time", "s1_time")]
    both = (s1 != 0).all(axis=-1)
    seen = (s1 != 0).any(axis=-1)
    medians = [
        fill_seasons(season_medians(s2, valid, days[0], n_seasons)),
        fill_seasons(season_medians(decibels(s1), both, days[1], n_seasons)),
    ]
    counts = np.stack([valid.sum(axis=1), seen[:, ~descending].sum(axis=1), seen[:, descending].sum(axis=1)], axis=-1)
    found = [m.reshape(*shape, n_seasons * n) for m, n in zip(medians, (len(S2_BANDS), len(S1_BANDS)), strict=True)]
    return found[0], found[1], counts.astype(np.uint16).reshape(*shape, 3)


def decibels(s1: npt.NDArray[Any]) -> Floats:
    """Return backscatter in dB of TESSERA's SAR scale."""
    return np.asarray(s1.astype(np.float32) / 200 - 50, dtype=np.float32)


def _with_mean(values: Floats) -> Floats:
    """Return values (y, x, band) with the mean of all pixels where there are none; 0 where no pixel has any."""
    known = ~np.isnan(values[..., 0])
    if known.all():
        return values
    out = values.copy()
    out[~known] = values[known].mean(axis=0, dtype=np.float64) if known.any() else 0
    return out
