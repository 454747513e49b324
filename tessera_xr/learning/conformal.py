"""Sets of classes and intervals of numbers that hold the truth as often as they say: conformal prediction in space."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from tessera_xr.embedding.schema import provenance
from tessera_xr.errors import SchemaError
from tessera_xr.learning.calibration import (
    Method,
    balanced_rows,
    calibrate,
    class_positions,
    default_block,
    draw_units,
    normalised,
)
from tessera_xr.learning.heads import Head, fit_head, fit_sample
from tessera_xr.learning.samples import LabelSample, as_sample
from tessera_xr.learning.splits import By, deal_spatially

if TYPE_CHECKING:
    import pandas as pd

    from tessera_xr.learning.labels import LabelSet

METHODS = {"classes": ("lac", "aps"), "numbers": ("absolute",)}
STRETCH = 65_536
"""Pixels at a time."""
NO_DATA = 255
"""Of `set_size`."""


@dataclass(frozen=True, eq=False)
class Conformal:
    """A head with a calibrated statement of how far it can be trusted."""

    head: Head
    """Fitted to the one part of the labels."""
    calibrator: Any
    """MAPIE's split-conformal object, calibrated on the other part."""
    confidence: float
    """How often the truth is to be in the set, or the interval."""
    method: Method
    """How conformity is scored."""
    n_blocks: tuple[int, int]
    """Blocks (or polygons) that the head was fitted to, and that it was calibrated on."""
    block: float | None
    """Side of a block in metres; None by polygon."""

    def predict(self, emb: xr.Dataset, *, time: Any = None) -> xr.Dataset:
        """Draw the map of a head with its sets or intervals.

        Parameters
        ----------
        emb : Dataset
            Embeddings of the head's model, float32 or int8, eager or lazy.
        time : int, str or datetime64, optional
            One time of `emb`; all of them if not told.

        Returns
        -------
        Dataset
            For classes: `prediction` ([time,] y, x) codes as `Head.predict` gives them; `set` ([time,] class, y, x)
            bool, whether the class may be the true one; `set_size` ([time,] y, x) uint8, 255 without data. With "lac" a
            set may be empty: no class fits a pixel as well as true classes did.
            For numbers: `prediction`, `lower` and `upper` ([time,] y, x) float32, NaN without data.

        Raises
        ------
        VersionMismatchError
            If the embeddings are of another model than the head's.
        """
        pred = self.head.predict(emb, time=time)
        attrs = pred.attrs | {"confidence": self.confidence, "conformal_method": self.method}
        return (self._sets(pred) if self.head.task == "classes" else self._intervals(pred)).assign_attrs(attrs)

    def coverage(self, emb: xr.Dataset | None, labels: LabelSet | LabelSample, *, time: Any = None) -> pd.DataFrame:
        """Return how often the truth is in the set or interval, on labels that were kept away from `fit_conformal`.

        Parameters
        ----------
        emb : Dataset
            Embeddings; None will do where `labels` is a sample.
        labels : LabelSet or LabelSample
            Labels of other places than those fitted and calibrated with.
        time : int, str or datetime64, optional
            Which time of `emb` the labels are of, where there are several.

        Returns
        -------
        DataFrame
            A row "all", and for classes one for each true class. `n` pixels; `coverage`, the share whose truth is
            covered; `coverage_labels`, its mean over labels, so that large polygons count like small ones; for classes
            `set_size`, the mean number of classes in a set, and `empty`, the share of empty sets; for numbers `width`,
            the mean width of an interval. Coverage holds for all classes together: of a rare one it may be lower.
        """
        import pandas as pd

        sample = as_sample(emb, labels, time)
        outputs = _outputs(self.head, emb, sample, time)
        if self.head.task == "classes":
            sets = self._rows(outputs)
            truth = class_positions(self.head, sample)
            covered = np.where(truth >= 0, sets[np.arange(len(sets)), truth], False)
            facts = {"set_size": sets.sum(axis=1), "empty": ~sets.any(axis=1)}
        else:
            edges, y = self._rows(outputs), sample.y.astype(np.float64)
            covered = (edges[:, 0] <= y) & (y <= edges[:, 1])
            facts = {"width": edges[:, 1] - edges[:, 0]}
        table = pd.DataFrame({"coverage": covered, **facts, "group": sample.groups, "truth": sample.y}).astype(
            dict.fromkeys(["coverage", *facts], np.float64)
        )
        parts = {"all": table}
        if self.head.task == "classes":
            parts |= {name: table[table["truth"] == name] for name in sample.classes if (sample.y == name).any()}
        return pd.DataFrame({name: _summary(part, list(facts)) for name, part in parts.items()}).T.astype({"n": int})

    def _sets(self, pred: xr.Dataset) -> xr.Dataset:
        shares = pred["probability"]
        sets: xr.DataArray = self._over(shares, "class", "class", len(self.head.classes), bool)
        sets = sets.transpose(*shares.dims).assign_coords({"class": shares["class"]})
        held = pred["prediction"] != 0
        size = sets.sum("class").where(held, NO_DATA).astype(np.uint8)
        said = f"classes that hold the truth in {self.confidence:.0%} of places like the labelled ones"
        return _named(
            pred,
            {
                "set": (sets, {"long_name": said}),
                "set_size": (size, {"long_name": f"number of {said}", "nodata": NO_DATA}),
            },
        )

    def _intervals(self, pred: xr.Dataset) -> xr.Dataset:
        edges: xr.DataArray = self._over(pred["prediction"].expand_dims("one"), "one", "edge", 2, np.float32)
        said = (
            f"end of the interval of {self.head.target}, right in {self.confidence:.0%} of places like those labelled"
        )
        return _named(
            pred,
            {name: (edges.isel(edge=i), {"long_name": f"{name} {said}"}) for i, name in enumerate(("lower", "upper"))},
        )

    def _over(self, array: xr.DataArray, core: str, out: str, size: int, dtype: Any) -> xr.DataArray:
        found: xr.DataArray = xr.apply_ufunc(
            _block,
            array.chunk({core: -1}) if array.chunks is not None else array,
            input_core_dims=[[core]],
            output_core_dims=[[out]],
            exclude_dims={core},
            kwargs={"conformal": self, "size": size, "dtype": dtype},
            dask="parallelized",
            output_dtypes=[dtype],
            dask_gufunc_kwargs={"output_sizes": {out: size}},
            keep_attrs=True,  # those of spatial_ref are the CRS
        )
        return found.drop_attrs(deep=False)

    def _rows(self, outputs: npt.NDArray[np.floating[Any]]) -> npt.NDArray[Any]:
        """Return sets (n, class) of probabilities (n, class), or edges (n, 2) of numbers (n, 1)."""
        calibrator = deepcopy(self.calibrator)  # it keeps state while it predicts, and Dask has threads
        if self.head.task == "numbers":
            return np.asarray(calibrator.predict_interval(outputs.astype(np.float64))[1][..., 0])
        return np.asarray(calibrator.predict_set(normalised(outputs))[1][..., 0], dtype=np.bool_)

    def __repr__(self) -> str:
        units = "polygons" if self.block is None else f"blocks of {self.block:.0f} m"
        return (
            f"<Conformal: {self.confidence:.0%} {'sets' if self.head.task == 'classes' else 'intervals'} "
            f"({self.method}), fitted to {self.n_blocks[0]} and calibrated on {self.n_blocks[1]} {units}>\n{self.head}"
        )


def fit_conformal(
    emb: xr.Dataset | None,
    labels: LabelSet | LabelSample,
    model: Any = "logistic",
    *,
    confidence: float = 0.9,
    time: Any = None,
    by: By = "block",
    block: float | None = None,
    calibration: float = 0.5,
    method: Method | None = None,
    guarantee: bool = False,
    seed: int = 0,
    **options: Any,
) -> Conformal:
    """Fit a head to some of the labelled places, and calibrate on the others how often it is right.

    The sets of classes (intervals of numbers) of the result hold the truth in a share `confidence` of pixels, however
    good the head is; a bad one has large sets. Whole blocks or polygons calibrate, since a pixel between pixels that
    were learnt from is too easy, and each counts alike: blocks drawn at random are exchangeable, the pixels within one
    are not. The statement is about places among the labels, not about another region.

    Parameters
    ----------
    emb : Dataset
        Embeddings, float32 or int8, eager or lazy. None will do where `labels` is a sample.
    labels : LabelSet or LabelSample
        Classes or numbers.
    model : str or scikit-learn estimator, default "logistic"
        For `fit_head`; for classes it must give probabilities.
    confidence : float, default 0.9
        How often the truth is to be covered.
    time : int, str or datetime64, optional
        Which time of `emb` the labels are of, where there are several.
    by : {"block", "polygon"}
        What is fitted to or calibrated on as a whole. Labels are never torn apart; a block holds those whose centroid
        is in it.
    block : float, optional
        Side of a block in metres; by default such that the labels take up some 80 blocks.
    calibration : float, default 0.5
        The share of blocks that calibrate. The head learns from the others only.
    method : {"lac", "aps", "absolute"}, optional
        For classes "lac" (if not told), whose sets are smallest, or, for three classes or more, "aps", whose sets adapt
        more to how hard a pixel is and are never empty, but cover more than is asked for: without a lottery for the
        last class a set must err on one side. For numbers "absolute": the absolute error.
    guarantee : bool, default False
        Without, coverage is right on average for many blocks. With, it is at least `confidence` on average for any
        number of blocks, at the price of larger sets, the larger the fewer blocks there are.
    seed : int, default 0
        Of the draw of blocks, and of the model.
    **options
        For `fit_head`.

    Returns
    -------
    Conformal

    Raises
    ------
    SchemaError
        If there are too few blocks for this confidence, a class lies in one block only, the head gives no
        probabilities, or an option is out of range.

    Notes
    -----
    MAPIE does the calibration, on equally many pixels of each block: the pooled distribution of Dunn, Wasserman and
    Ramdas (2023), JASA 118, 2491-2502. `guarantee` raises its level by (k + 1) / k for k blocks: Lee, Barber and
    Willett (2023), arXiv:2306.06342.
    """
    sample = as_sample(emb, labels, time)
    method = _resolve(sample, confidence, calibration, method)
    block = (default_block(sample) if block is None else block) if by == "block" else None
    unit = deal_spatially(sample, 2, by=by, block=block, buffer=0.0, rng=np.random.default_rng(seed)).unit
    chosen = draw_units(sample, unit, calibration, confidence, seed, by)
    head = _fitted(emb, sample.take(~chosen), model, time, {"seed": seed, **options})
    if head.task == "classes" and not head.has_probability:
        raise SchemaError(f"{head.name} gives no probabilities; use 'logistic', 'forest', 'knn' or 'mlp' instead")
    held = sample.take(chosen)
    n_held = len(np.unique(unit[chosen]))
    level = confidence * (n_held + 1) / n_held if guarantee else confidence
    rows = balanced_rows(unit[chosen], np.random.default_rng(seed))
    outputs = _outputs(head, emb, held, time)[rows]
    calibrator = calibrate(head, held.take(rows), outputs, level, method, seed)
    return Conformal(head, calibrator, confidence, method, (len(np.unique(unit)) - n_held, n_held), block)


def _resolve(sample: LabelSample, confidence: float, calibration: float, method: Method | None) -> Method:
    """Return the method; raise if an option is out of range."""
    for name, value, usual in (("confidence", confidence, 0.9), ("calibration", calibration, 0.5)):
        if not 0 < value < 1:
            raise SchemaError(f"{name} must be above 0 and below 1, not {value!r}; {usual} is usual")
    allowed = METHODS[sample.task]
    if method is not None and method not in allowed:
        raise SchemaError(
            f"method={method!r} is not for labels that are {sample.task}; choose {' or '.join(map(repr, allowed))}"
        )
    return method or allowed[0]  # type: ignore[return-value]


def _fitted(emb: xr.Dataset | None, sample: LabelSample, model: Any, time: Any, settings: dict[str, Any]) -> Head:
    if (isinstance(model, str) and model == "unet") or getattr(model, "takes_images", False):
        return fit_head(emb, sample, model, time=time, **settings)
    return fit_sample(sample, model, **settings)


def _outputs(head: Head, emb: xr.Dataset | None, sample: LabelSample, time: Any) -> npt.NDArray[np.float64]:
    """Return what a head says of sampled pixels: probabilities (n, class), or numbers (n, 1)."""
    if not head.is_spatial:
        return head.probability_rows(sample.X) if head.task == "classes" else head.predict_rows(sample.X)[:, None]
    if emb is None:
        raise SchemaError(f"{head.name} looks at the neighbours of a pixel: pass the embeddings, not a sample alone")
    pred = head.predict(emb, time=time)
    at = {d: xr.DataArray(i, dims="pixel") for d, i in (("y", sample.rows), ("x", sample.columns))}
    if head.task == "numbers":
        return np.asarray(pred["prediction"].isel(at).values[:, None], dtype=np.float64)
    return np.asarray(pred["probability"].isel(at).transpose("pixel", "class").values, dtype=np.float64)


def _block(array: npt.NDArray[Any], *, conformal: Conformal, size: int, dtype: Any) -> npt.NDArray[Any]:
    """(..., class) to sets (..., class), or (..., 1) to edges (..., 2); a stretch at a time, without data none."""
    flat = array.reshape(-1, array.shape[-1])
    held = np.flatnonzero(np.isfinite(flat).all(axis=1))
    out = np.full((len(flat), size), False if dtype is bool else np.nan, dtype=dtype)
    for start in range(0, len(held), STRETCH):
        rows = held[start : start + STRETCH]
        out[rows] = conformal._rows(flat[rows])
    return out.reshape(*array.shape[:-1], size)


def _named(pred: xr.Dataset, maps: dict[str, tuple[xr.DataArray, dict[str, Any]]]) -> xr.Dataset:
    mapping = pred["prediction"].attrs.get("grid_mapping")
    attrs = provenance(pred) | ({"grid_mapping": mapping} if mapping else {})
    named = {name: array.assign_attrs(said | attrs) for name, (array, said) in maps.items()}
    return xr.Dataset({"prediction": pred["prediction"], **named})


def _summary(part: pd.DataFrame, facts: list[str]) -> dict[str, float]:
    return {
        "n": len(part),
        "coverage": part["coverage"].mean(),
        "coverage_labels": part.groupby("group")["coverage"].mean().mean(),
        **{name: part[name].mean() for name in facts},
    }
