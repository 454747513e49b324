"""The reference sample that areas are estimated from: points drawn at random, and read back with their truth."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import xarray as xr

from tessera_xr._warn import warn
from tessera_xr.analysis.places import as_places
from tessera_xr.embedding.schema import check_whole
from tessera_xr.errors import SchemaError
from tessera_xr.grid import points_to_pixels
from tessera_xr.learning.prediction import flag_name
from tessera_xr.learning.strata import Floats, Strata, strata_of

if TYPE_CHECKING:
    from geopandas import GeoDataFrame

Allocation: TypeAlias = Literal["balanced", "proportional", "equal"]

LEAST = 2
"""Points a class: the variance of one can't be estimated."""


def stratified_points(
    prediction: xr.DataArray | xr.Dataset, n: int, *, allocation: Allocation = "balanced", seed: int = 0
) -> GeoDataFrame:
    """Draw a reference sample from a map of classes: points at random within each class, to be looked at and labelled.

    Fill the empty column `reference` with what is there in truth, and pass the points to `area_estimate`. Points come
    in random order, so that nobody who looks at them knows their class; hide `stratum` from whoever does.

    Parameters
    ----------
    prediction : DataArray or Dataset
        Codes (y, x), eager or lazy, with flag_values and flag_meanings, or what `Head.predict` returns.
    n : int
        How many points, at least two for each class that occurs.
    allocation : {"balanced", "proportional", "equal"}
        How they are shared between classes: by area, which suits the overall accuracy; equally, which suits the
        accuracies of rare classes; or half by area and half equally, as a compromise (section 5.1.2 of Olofsson et al.
        2014 argues for one). A class has at least two points, and none more than it has pixels.
    seed : int
        Of the draw.

    Returns
    -------
    GeoDataFrame
        In the map's CRS: `stratum`, the map's class; `reference`, empty; `x` and `y` of the pixel's centre, `lon`,
        `lat` and points as geometry.

    Raises
    ------
    SchemaError
        If n is too small or larger than the map; also see `strata_of`.

    Notes
    -----
    The codes of the map are held in memory. On a geographic grid pixels are drawn in proportion to their true area.
    """
    strata = strata_of(prediction)
    counts = strata.counts
    shares = allocate(n, counts.sum(axis=0), strata.areas, allocation, strata.names)
    rng = np.random.default_rng(seed)
    drawn = [draw_pixels(strata, counts[:, i], i, int(share), rng) for i, share in enumerate(shares)]
    pixels, stratum = np.concatenate(drawn), np.repeat(np.array(strata.names, dtype=object), shares)
    order = rng.permutation(len(pixels))
    row, column = pixels[order].T + 0.5
    t = strata.box.transform
    x, y = t.a * column + t.b * row + t.c, t.d * column + t.e * row + t.f
    columns = {"stratum": stratum[order], "reference": np.full(len(order), None, dtype=object)}
    return as_places(x, y, str(strata.box.crs), columns, strata.attrs).drop(columns="rank")


def allocate(
    n: int, available: npt.NDArray[np.int64], areas: Floats, allocation: Allocation, names: tuple[str, ...]
) -> npt.NDArray[np.int64]:
    """Return how many of n points each class gets, (C,); they sum to n.

    Raises
    ------
    SchemaError
        If there are too few points for the classes, or more than pixels.
    """
    check_whole("n", n)
    weights = {"proportional": areas / areas.sum(), "equal": np.full(len(areas), 1 / len(areas))}
    if allocation not in ("balanced", *weights):
        raise SchemaError(f"allocation={allocation!r} is unknown; choose 'balanced', 'proportional' or 'equal'")
    few = [name for name, pixels in zip(names, available, strict=True) if pixels < LEAST]
    if few:
        raise SchemaError(f"classes with a single pixel can't be sampled: {', '.join(few)}; merge or remove them first")
    if not LEAST * len(areas) <= n <= available.sum():
        raise SchemaError(
            f"n={n} must be from {LEAST * len(areas)}, two for each of the {len(areas)} classes, to "
            f"{available.sum()}, the pixels of the map; 50 or more a class give useful intervals"
        )
    share = weights.get(allocation, (weights["proportional"] + weights["equal"]) / 2)
    return _filled(n, share, available)


def _filled(n: int, share: Floats, available: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Share n out one by one, each to the class that is furthest below its share and still has pixels."""
    got = np.maximum(np.minimum(np.floor(n * share).astype(np.int64), available), LEAST)
    while got.sum() > n:  # the least number of each class took more than its share
        got[np.where(got > LEAST, got - n * share, -np.inf).argmax()] -= 1
    while got.sum() < n:
        got[np.where(got < available, n * share - got, -np.inf).argmax()] += 1
    return got


def draw_pixels(
    strata: Strata, per_row: npt.NDArray[np.int64], i: int, n: int, rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Return n pixels (row, column) of a class, numbered in reading order, so that chunks make no difference."""
    uneven = np.ptp(strata.row_area) > 0
    weights = np.repeat(strata.row_area, per_row) if uneven else None
    chosen = np.sort(
        rng.choice(per_row.sum(), n, replace=False, p=None if weights is None else weights / weights.sum())
    )
    ends = np.cumsum(per_row)
    rows = np.searchsorted(ends, chosen, side="right")
    columns = [
        np.flatnonzero(strata.codes[row] == strata.values[i])[at - (ends[row] - per_row[row])]
        for row, at in zip(rows, chosen, strict=True)
    ]
    return np.column_stack([rows, np.array(columns, dtype=np.int64)])


def read_points(reference: Any, column: str) -> GeoDataFrame:
    """Return the reference as points with a column of true classes."""
    points = reference
    if hasattr(reference, "to_geodataframe"):
        if reference.target is not None:
            raise SchemaError(f"these labels are numbers ({reference.target}); areas are of classes")
        points = reference.to_geodataframe()
        points = points.rename(columns={points.columns[0]: column})
    geometry = getattr(points, "geometry", None)
    if geometry is None or not hasattr(points, "columns"):
        raise SchemaError(
            f"a reference sample is a GeoDataFrame of points, or a LabelSet, not {type(reference).__name__}"
        )
    if column not in points.columns:
        raise SchemaError(
            f"the reference has no column {column!r}; name the one with the true class, as in column="
            f"{next((str(c) for c in points.columns if c != geometry.name), 'class')!r}"
        )
    if geometry.crs is None:
        raise SchemaError("the reference points have no CRS; set it with .set_crs('EPSG:4326')")
    kinds = set(geometry.geom_type.fillna("missing")) - {"Point"}
    if kinds or not len(points):
        raise SchemaError(
            f"a reference sample is points drawn at random; found {', '.join(sorted(kinds)) or 'none'}. Draw them with "
            "stratified_points: the pixels of a polygon are not independent"
        )
    return points


def paired(strata: Strata, points: GeoDataFrame, column: str) -> tuple[npt.NDArray[np.intp], list[str], dict[str, int]]:
    """Return the class of the map (n,), counted from 0, and the true one of each point that has both."""
    pixels = points_to_pixels(strata.box, points.geometry.x, points.geometry.y, points.crs)
    inside = pixels[:, 0] >= 0
    mapped = np.where(inside, strata.index(strata.codes[pixels[:, 0], pixels[:, 1]]), -1)
    known = points[column].notna().to_numpy() & (points[column].astype(str).str.strip() != "").to_numpy()
    usable = (mapped >= 0) & known
    left_out = {
        "outside the map": int((~inside).sum()),
        "without data in the map": int((inside & (mapped < 0)).sum()),
        f"without {column}": int(((mapped >= 0) & ~known).sum()),
    }
    if not usable.any():
        why = ", ".join(f"{n} {reason}" for reason, n in left_out.items() if n)
        raise SchemaError(
            f"no reference point can be used: {why}; check the CRS of the points and the column {column!r}"
        )
    _warn_left_out(left_out, len(points))
    if "stratum" in points.columns:
        _check_strata(strata, mapped[mapped >= 0], points["stratum"].to_numpy()[mapped >= 0])
    return mapped[usable], [_name(strata, value) for value in points[column].to_numpy()[usable]], left_out


def _check_strata(strata: Strata, mapped: npt.NDArray[np.intp], stated: npt.NDArray[Any]) -> None:
    """Raise `SchemaError` if points were drawn by other strata: they don't stand for the classes of this map."""
    other = sum(_name(strata, s) != strata.names[i] for s, i in zip(stated, mapped, strict=True))
    if other:
        raise SchemaError(
            f"the column `stratum` of {other} of {len(mapped)} points is not the class of this map there: they were "
            "drawn from another map, and can't be weighted by this one. Pass the map they were drawn from; if they "
            "were drawn at random over the whole map, drop the column"
        )


def _name(strata: Strata, value: Any) -> str:
    """Return the name of a true class, given by name, in which blanks stand for underscores, or by code."""
    if isinstance(value, int | float | np.number) and not isinstance(value, bool):
        at = np.flatnonzero(strata.values == value)
        return strata.names[at[0]] if len(at) else f"{value:g}"
    text = str(value).strip()
    joined = flag_name(text)
    return joined if text not in strata.names and joined in strata.names else text


def _warn_left_out(counts: dict[str, int], total: int) -> None:
    """Say which reference points could not be used."""
    said = [f"{n} {why}" for why, n in counts.items() if n]
    if said:
        warn(
            f"{sum(counts.values())} of {total} reference points were left out: {', '.join(said)}. Points that could "
            "not be judged bias the estimate if they are unlike the others"
        )
