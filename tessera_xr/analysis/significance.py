"""Whether a change is more than usual: distances between calm years as the distribution that it is judged by."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from tessera_xr.analysis.change import When, change, decimal_years, distance_map, same_radar, time_index, time_names
from tessera_xr.analysis.drawing import FIT_PIXELS, draw_places
from tessera_xr.embedding.schema import check_embeddings, check_same_model, has_data, identity, provenance
from tessera_xr.errors import SchemaError


@dataclass(frozen=True)
class ChangeNull:
    """How far pixels move when nothing much happens: the distribution that a change is judged by."""

    distances: npt.NDArray[np.float32]
    """(n,) cosine distances between calm years, ascending."""
    years_apart: float
    """How far apart those years are: distance grows with time."""
    pairs: tuple[tuple[str, str], ...]
    """The pairs of dates that they are from."""
    attrs: dict[str, Any]
    """The model of the embeddings: see `identity`."""

    def __repr__(self) -> str:
        middle, high = np.quantile(self.distances, (0.5, 0.95))
        plural = "" if self.years_apart == 1 else "s"
        return (
            f"ChangeNull: {len(self.distances):,} distances over {self.years_apart:g} year{plural}, half below "
            f"{middle:.3f}, 95% below {high:.3f}, of {', '.join('-'.join(pair) for pair in self.pairs)}; "
            f"model {self.attrs.get('model', 'unknown')}"
        )

    def p_value(self, distance: xr.DataArray) -> xr.DataArray:
        """Return the share of this distribution that reaches each distance: (1 + number >= d) / (1 + n).

        Parameters
        ----------
        distance : DataArray
            From `change`, over as many years; eager or lazy.

        Returns
        -------
        DataArray
            Same dimensions, float32 from 1 / (1 + n) to 1; NaN without data.
        """
        rank = partial(_rank, null=self.distances)
        found: xr.DataArray = xr.apply_ufunc(
            rank, distance, dask="parallelized", output_dtypes=[np.float32], keep_attrs=True
        )
        kept = {k: v for k, v in distance.attrs.items() if k not in ("long_name", "units")}
        said = {"long_name": "p-value of the change", "null": ", ".join("-".join(pair) for pair in self.pairs)}
        return found.rename("p_value").assign_attrs(kept | said)


def change_significance(
    emb: xr.Dataset, before: When, after: When, *, null: ChangeNull | None = None, seed: int = 0
) -> xr.Dataset:
    """Return the change between two dates, and how rare it would be if nothing had happened.

    Parameters
    ----------
    emb : Dataset
        Embeddings with `time`, float32 or int8, eager or lazy.
    before, after : int, str or date
        Two times of `emb`.
    null : ChangeNull, optional
        What is usual; else `fit_change_null` on the other years of `emb`, those before the first date and after the
        second. Fit it yourself on years that you know to be calm, or on another map of the same model.
    seed : int, default 0
        Of the draw of pixels for it.

    Returns
    -------
    Dataset
        `distance` (y, x) float32, see `change`; `p_value` (y, x) float32: the share of unchanged pixels that move as
        far in as many years. Over a map, 5 % of the unchanged pixels are below 0.05, if the two years are like those
        of the null: for a bound on the share of false alarms among all alarms put the p-values through
        `scipy.stats.false_discovery_control`.

    Raises
    ------
    SchemaError
        If a date is not there, or no other two dates are as far apart.
    VersionMismatchError
        If `null` is of another model.
    """
    check_embeddings(emb)
    ends = sorted(time_index(emb, when) for when in (before, after))
    if ends[0] == ends[1]:
        raise SchemaError(f"before and after are the same date ({before}); give two")
    years = decimal_years(emb)[ends]
    if null is None:
        null = fit_change_null(emb, years[1] - years[0], around=(before, after), seed=seed)
    check_same_model(emb, xr.Dataset(coords={"band": emb["band"]}, attrs=null.attrs))
    if not _as_far(null.years_apart, years[1] - years[0]):
        raise SchemaError(
            f"the null is of dates {null.years_apart:g} years apart, these are {years[1] - years[0]:g} apart; distance "
            "grows with time, so fit it with fit_change_null(emb, years_apart=...)"
        )
    distance = change(emb, before, after)
    return xr.Dataset({"distance": distance, "p_value": null.p_value(distance)}, attrs=provenance(emb))


def fit_change_null(
    emb: xr.Dataset, years_apart: float = 1, *, around: tuple[When, When] | None = None, seed: int = 0
) -> ChangeNull:
    """Learn how far embeddings move in calm years.

    Distances between pairs of dates that are `years_apart`, at up to 20,000 pixels. Two guards keep out what did
    change: of the pairs only the calmer majority (by their median) is taken, so that years in which much of the map
    changed don't count; and in each pair, pixels beyond the third quartile by three times the interquartile range of
    the log-distances (Tukey's outer fence) are left out. So are pixels with radar in one of the two years only.

    Years are few, and one that is odd as a whole (weather, few observations) moves every pixel: p-values say how rare
    a distance is among pixels of the calm years, not how odd the year is. So the share of unchanged pixels below 0.05
    is 5 % on average over calm years, not in each: on `tutorial.embeddings` 2018-2019 judged by 2017-2018 alone has
    0.8 %, the reverse 8.9 %. Where most pairs hold some change that the guards can't tell from noise, it is less, and
    the map too strict: choose calm years yourself, as ``fit_change_null(emb.sel(time=slice(2017, 2019)))``.

    Parameters
    ----------
    emb : Dataset
        Embeddings with `time`, float32 or int8, eager or lazy.
    years_apart : float, default 1
        Between the dates of a pair.
    around : (before, after), optional
        Use no pair that overlaps with the time between these.
    seed : int, default 0
        Of the draw of pixels.

    Returns
    -------
    ChangeNull

    Raises
    ------
    SchemaError
        If there is no such pair, or none with data.
    """
    check_embeddings(emb)
    pairs = _pairs(emb, years_apart, around)
    drawn = draw_places(has_data(emb).any("time"), FIT_PIXELS, seed)
    samples = [_sample(emb, drawn, *pair) for pair in pairs]
    filled = [i for i, sample in enumerate(samples) if len(sample)]
    if not filled:
        raise SchemaError("no pixel has data at two dates of a pair with radar in both or neither: nothing to learn")
    calm = sorted(filled, key=lambda i: float(np.median(samples[i])))[: len(filled) // 2 + 1]
    kept = np.sort(np.concatenate([_inside_fence(samples[i]) for i in calm]))
    names = tuple((time_names(emb)[pairs[i][0]], time_names(emb)[pairs[i][1]]) for i in sorted(calm))
    return ChangeNull(kept, years_apart, names, identity(emb))


def _as_far(a: float, b: float) -> bool:
    """Say whether two spans of years are the same, give or take a month."""
    return abs(a - b) <= 1 / 12


def _pairs(emb: xr.Dataset, years_apart: float, around: tuple[When, When] | None) -> list[tuple[int, int]]:
    """Return the pairs of dates as far apart that lie on one side of `around`."""
    if "time" not in emb.dims:
        raise SchemaError("what is usual is learned from several years; these embeddings have no `time`")
    years = decimal_years(emb)
    low, high = sorted(years[time_index(emb, when)] for when in around) if around else (np.inf, np.inf)
    found = [
        (s, t)
        for s, a in enumerate(years)
        for t, b in enumerate(years)
        if a < b and _as_far(b - a, years_apart) and (b <= low or a >= high)
    ]
    if not found:
        outside = f" outside {around[0]} to {around[1]}" if around else ""
        raise SchemaError(
            f"no two dates are {years_apart:g} years apart{outside} among {', '.join(time_names(emb))}: nothing to "
            "compare with. Load more years, or pass null=fit_change_null(other, years_apart) from another map"
        )
    return found


def _sample(emb: xr.Dataset, index: dict[Hashable, xr.DataArray], s: int, t: int) -> npt.NDArray[np.float32]:
    """Return the distances of a pair of dates at the drawn pixels that have data, and radar, at both or neither."""
    singles = [emb.isel(index | {"time": i}).drop_vars(emb.coords) for i in (s, t)]
    found, same = distance_map(*singles), same_radar(singles)
    found = found if same is None else found.where(same)
    values = found.values
    return np.asarray(values[np.isfinite(values)], dtype=np.float32)


def _inside_fence(distances: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return distances without those far out on top, by Tukey's outer fence on their logarithms."""
    logs = np.log(np.maximum(distances, 1e-6))  # two identical embeddings are at distance 0
    low, high = np.percentile(logs, [25, 75])
    return np.asarray(distances[logs <= high + 3 * (high - low)])


def _rank(distance: npt.NDArray[np.float32], *, null: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    at_least = len(null) - np.searchsorted(null, distance, side="left")
    return np.where(np.isnan(distance), np.nan, (1 + at_least) / (1 + len(null))).astype(np.float32)
