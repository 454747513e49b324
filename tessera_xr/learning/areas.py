"""How much of each class there is, and how good a map is, with confidence intervals from a reference sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import xarray as xr

from tessera_xr.errors import SchemaError
from tessera_xr.learning.reference import LEAST, paired, read_points, stratified_points
from tessera_xr.learning.strata import strata_of

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["AreaEstimate", "area_estimate", "area_estimate_from_counts", "stratified_points"]

Floats: TypeAlias = npt.NDArray[np.float64]
Unit: TypeAlias = Literal["ha", "km2", "m2"]

UNITS = {"ha": 1e4, "km2": 1e6, "m2": 1.0}
ENOUGH = 50
"""Points that a rare class should have (Olofsson et al. 2014, section 5.1.1: 50 to 100)."""


@dataclass(frozen=True)
class AreaEstimate:
    """Areas and accuracies of classes, estimated from a reference sample.

    They hold where the points were drawn at random from the whole map, or at random within each class of the map, as
    `stratified_points` does. Places chosen by hand, near roads or where labels were easy, support no such statement.
    """

    classes: pd.DataFrame
    """One row a class: `mapped_area`, `area`, `area_se`, `area_low`, `area_high` in `unit`; `proportion` and
    `proportion_se` of the whole; `users_accuracy`, `producers_accuracy` and their `_se`; `n_map` and `n_reference`,
    the points of that class in the map and in truth."""
    overall: dict[str, float]
    """Overall accuracy: `accuracy`, `se`, `low`, `high`."""
    confusion: pd.DataFrame
    """Counts of points: rows classes of the map, columns of the reference."""
    confidence: float
    """Of the intervals."""
    unit: str
    """Of the areas."""
    left_out: dict[str, int]
    """Points that could not be used: outside the map, without data, without reference."""

    def table(self) -> pd.DataFrame:
        """Return the estimates as text, estimate and half the width of its interval, for reading."""
        import pandas as pd

        z = _quantile(self.confidence)
        rows = self.classes

        def both(name: str, form: str) -> list[str]:
            pairs = zip(rows[name], rows[f"{name}_se"], strict=True)
            return ["-" if np.isnan(v) else f"{v:{form}} ± {z * s:{form}}" for v, s in pairs]

        form = ",.0f" if rows["area"].sum() >= 1_000 else ",.3g"
        columns = {
            f"area ({self.unit})": both("area", form),
            f"mapped ({self.unit})": [f"{v:{form}}" for v in rows["mapped_area"]],
            "user's accuracy": both("users_accuracy", ".2f"),
            "producer's accuracy": both("producers_accuracy", ".2f"),
            "points": rows["n_map"].tolist(),
        }
        return pd.DataFrame(columns, index=rows.index)

    def __repr__(self) -> str:
        return f"{self._heading()}\n{self.table().to_string()}\n{self._terms()}"

    def _repr_html_(self) -> str:
        return f"<p>{self._heading()}</p>{self.table().to_html()}<p>{self._terms()}</p>"

    def _heading(self) -> str:
        half = _quantile(self.confidence) * self.overall["se"]
        n = int(self.confusion.to_numpy().sum())
        return (
            f"Areas and accuracies from {n} reference points, ± {self.confidence:.0%} confidence; overall accuracy "
            f"{self.overall['accuracy']:.2f} ± {half:.2f}"
        )

    def _terms(self) -> str:
        exact = " ± 0 means that these points show no error, not that there is none." * bool(
            (self.classes["area_se"] == 0).any()
        )
        return f"Valid for points drawn at random, over the map or within each of its classes.{exact}"


def area_estimate(
    prediction: xr.DataArray | xr.Dataset,
    reference: Any,
    *,
    column: str = "reference",
    confidence: float = 0.95,
    unit: Unit = "ha",
) -> AreaEstimate:
    """Estimate areas and accuracies of classes from a map and a reference sample.

    Counting the pixels of a map gives a wrong area wherever the map errs more one way than the other. A sample of
    places where the truth was looked up corrects that, and says how sure the area is.

    The sample must be a random one: drawn over the whole map, or within each class of this map (`stratified_points`).

    Parameters
    ----------
    prediction : DataArray or Dataset
        The map: codes (y, x), eager or lazy, with flag_values and flag_meanings, or what `Head.predict` returned.
    reference : GeoDataFrame or LabelSet
        Points with the true class of each, of any CRS. The class of the map at each point is looked up. Classes are
        named as in the map, or given as its codes. Points outside the map, without data or without a class are left
        out, with a warning. A column `stratum`, if there is one, must be the class of the map at each point.
    column : str
        The column with the true class.
    confidence : float
        Of the intervals, above 0 and below 1.
    unit : {"ha", "km2", "m2"}
        Of the areas.

    Returns
    -------
    AreaEstimate

    Raises
    ------
    SchemaError
        If the map or the points can't be read, or a class of the map has fewer than two points.
    GridError
        If the map has no usable grid.

    Notes
    -----
    Areas are those of the pixels, on geographic grids true ones on the ellipsoid; see `row_areas`. The codes of the map
    are held in memory. For the algebra see `area_estimate_from_counts`.
    """
    if unit not in UNITS:
        raise SchemaError(f"unit={unit!r} is unknown; choose one of {', '.join(UNITS)}")
    _quantile(confidence)
    strata = strata_of(prediction)
    points = read_points(reference, column)
    mapped, truth, left_out = paired(strata, points, column)
    names = [*strata.names, *sorted(set(truth) - set(strata.names))]
    _check_enough(strata.names, np.bincount(mapped, minlength=len(strata.names)))
    counts = np.zeros((len(strata.names), len(names)), dtype=np.int64)
    np.add.at(counts, (mapped, np.array([names.index(t) for t in truth])), 1)
    import pandas as pd

    confusion = pd.DataFrame(counts, index=list(strata.names), columns=names)
    areas = dict(zip(strata.names, (strata.areas / UNITS[unit]).tolist(), strict=True))
    return area_estimate_from_counts(confusion, areas, confidence, unit=unit, left_out=left_out)


def area_estimate_from_counts(
    confusion: Any,
    mapped_area: Mapping[str, float] | Sequence[float] | npt.ArrayLike,
    confidence: float = 0.95,
    *,
    unit: str = "ha",
    left_out: Mapping[str, int] | None = None,
) -> AreaEstimate:
    """Estimate areas and accuracies of classes from counts of reference points.

    Parameters
    ----------
    confusion : DataFrame or array_like (M, C)
        Counts of points: rows classes of the map, columns true classes. In an array the first M columns are the
        classes of the rows, in their order; a DataFrame is matched by name and may have columns without a row.
    mapped_area : mapping or sequence of float (M,)
        Area of each class of the map; a mapping is matched by name.
    confidence : float
        Of the intervals, above 0 and below 1.
    unit : str
        Of `mapped_area`, and so of the areas: a name only.
    left_out : mapping, optional
        Points that were not counted, to be kept with the result.

    Returns
    -------
    AreaEstimate

    Raises
    ------
    SchemaError
        If counts and areas don't fit, are negative, or a class of the map has fewer than two points.

    Notes
    -----
    Stratified estimators, with the classes of the map as strata, and normal intervals (equations 2 to 11 of Olofsson
    et al. 2014); for points drawn at random from the whole map they are the poststratified ones. The intervals of areas
    end at zero and at the area of the map. Where only a few points show a kind of error they are too narrow: in a
    simulation with two points of a class that the map missed, 95 % intervals of its area held the truth 90 % of the
    time, with six 93 %, with a dozen 95 %. A class that is confused in no point has a standard error of zero, which
    says that the sample was too small to see its errors, not that there are none.

    References
    ----------
    Olofsson, Foody, Herold, Stehman, Woodcock, Wulder (2014), Good practices for estimating area and assessing accuracy
    of land change, Remote Sensing of Environment 148, 42-57, https://doi.org/10.1016/j.rse.2014.02.015

    Examples
    --------
    >>> result = area_estimate_from_counts([[97, 3], [12, 288]], {"forest": 250.0, "other": 750.0})
    >>> result.classes["area"].round(1).to_dict()
    {'forest': 272.5, 'other': 727.5}
    """
    import pandas as pd

    z = _quantile(confidence)
    table = _counts(confusion, mapped_area)
    areas = _areas(table, mapped_area)
    _check_enough(table.index, table.to_numpy().sum(axis=1))
    columns, overall = _estimators(table.to_numpy(dtype=np.float64), areas)
    classes = pd.DataFrame(columns, index=table.columns.rename("class"))
    half = z * classes["area_se"]
    low, high = (classes["area"] - half).clip(lower=0), (classes["area"] + half).clip(upper=areas.sum())
    classes.insert(3, "area_low", low)
    classes.insert(4, "area_high", high)
    overall |= {"low": max(0.0, overall["accuracy"] - z * overall["se"])}
    overall |= {"high": min(1.0, overall["accuracy"] + z * overall["se"])}
    table.index.name, table.columns.name = "map", "reference"
    return AreaEstimate(classes, overall, table, confidence, unit, dict(left_out or {}))


def _estimators(counts: Floats, areas: Floats) -> tuple[dict[str, Any], dict[str, float]]:
    """Return estimates of each true class, and of the overall accuracy, from counts (M, C) and mapped areas (M,)."""
    n_map, n_classes = counts.shape
    n = counts.sum(axis=1)
    weights, total = areas / areas.sum(), areas.sum()
    rates = counts / n[:, None]  # (M, C) of a class of the map, the share that is each true class
    spread = rates * (1 - rates) / (n - 1)[:, None]  # (M, C) the variance of that share
    cells = weights[:, None] * rates  # eq. 4
    proportion = cells.sum(axis=0)  # eq. 9
    proportion_se = np.sqrt((weights[:, None] ** 2 * spread).sum(axis=0))  # eq. 10
    users, producers, users_se, producers_se = (np.full(n_classes, np.nan) for _ in range(4))
    own = np.arange(n_map)
    users[own], users_se[own] = rates[own, own], np.sqrt(spread[own, own])  # eqs. 2, 6
    with np.errstate(invalid="ignore", divide="ignore"):  # a true class that no point found has no producer's accuracy
        producers[own] = cells[own, own] / proportion[own]  # eq. 3
        commission = weights**2 * (1 - producers[own]) ** 2 * spread[own, own]
        others = (weights[:, None] ** 2 * spread).sum(axis=0)[own] - weights**2 * spread[own, own]
        producers_se[own] = np.sqrt(commission + producers[own] ** 2 * others) / proportion[own]  # eq. 7
    producers[n_map:] = 0.0  # what the map lacks it never finds
    padded = {"mapped": np.append(areas, np.zeros(n_classes - n_map)), "n": np.append(n, np.zeros(n_classes - n_map))}
    overall = {
        "accuracy": float(cells[own, own].sum()),  # eq. 1
        "se": float(np.sqrt((weights**2 * spread[own, own]).sum())),  # eq. 5
    }
    return {
        "mapped_area": padded["mapped"],
        "area": total * proportion,  # eq. 11
        "area_se": total * proportion_se,
        "proportion": proportion,
        "proportion_se": proportion_se,
        "users_accuracy": users,
        "users_accuracy_se": users_se,
        "producers_accuracy": producers,
        "producers_accuracy_se": producers_se,
        "n_map": padded["n"].astype(np.int64),
        "n_reference": counts.sum(axis=0).astype(np.int64),
    }, overall


def _counts(confusion: Any, mapped_area: Any) -> pd.DataFrame:
    """Return counts with named rows and columns, those of the rows first and in their order."""
    import pandas as pd

    if isinstance(confusion, pd.DataFrame):
        table = confusion.rename(index=str, columns=str)
    else:
        array = np.asarray(confusion)
        if array.ndim != 2 or array.shape[0] > array.shape[1]:
            raise SchemaError(
                f"counts have the shape {array.shape}; give rows of classes of the map and a column for each true class"
            )
        names = [str(k) for k in _keys(mapped_area)] or [f"class_{i + 1}" for i in range(len(array))]
        extra = [f"class_{i + 1}" for i in range(len(names), array.shape[1])]
        if len(names) != len(array):
            raise SchemaError(f"counts have {len(array)} rows and there are {len(names)} mapped areas; give one each")
        table = pd.DataFrame(array, index=names, columns=[*names, *extra])
    if not (table.index.is_unique and table.columns.is_unique):
        raise SchemaError("classes occur twice in the counts; add them up first")
    table = table.reindex(columns=[*table.index, *table.columns.difference(table.index, sort=False)], fill_value=0)
    values = table.to_numpy()
    if values.dtype.kind not in "iuf" or not np.isfinite(values.astype(float)).all() or (values < 0).any():
        raise SchemaError("counts of points must be numbers from 0 on")
    return table


def _areas(table: pd.DataFrame, mapped_area: Any) -> Floats:
    """Return the area of each row of the counts."""
    keys = [str(k) for k in _keys(mapped_area)]
    if keys:
        lost, spare = set(table.index) - set(keys), set(keys) - set(table.index)
        if lost:
            raise SchemaError(
                f"there is no mapped area of {', '.join(sorted(lost))}; mapped_area has {', '.join(keys)}"
            )
        if spare:
            _check_enough(sorted(spare), np.zeros(len(spare)))
        values = dict(zip(keys, (mapped_area[k] for k in _keys(mapped_area)), strict=True))
        areas = np.array([values[name] for name in table.index], dtype=np.float64)
    else:
        areas = np.asarray(mapped_area, dtype=np.float64).ravel()
    if len(areas) != len(table):
        raise SchemaError(f"counts have {len(table)} rows and there are {len(areas)} mapped areas; give one each")
    if not (np.isfinite(areas).all() and (areas > 0).all()):
        raise SchemaError("mapped areas must be above 0; leave classes that the map doesn't have out of its rows")
    return areas


def _keys(mapped_area: Any) -> list[Any]:
    return list(mapped_area.keys()) if hasattr(mapped_area, "keys") else []


def _check_enough(names: Any, counts: npt.NDArray[Any]) -> None:
    """Raise `SchemaError` if a class of the map has too few points for a variance."""
    few = [f"{name} ({int(count)})" for name, count in zip(names, counts, strict=True) if count < LEAST]
    if few:
        raise SchemaError(
            f"each class of the map needs {LEAST} reference points or more, {ENOUGH} for useful intervals; too few are "
            f"in: {', '.join(few)}. Draw more there with stratified_points, or merge classes of the map first"
        )


def _quantile(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise SchemaError(f"confidence must be above 0 and below 1, not {confidence!r}; 0.95 is usual")
    return NormalDist().inv_cdf(0.5 + confidence / 2)
