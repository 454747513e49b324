"""Heads to maps: every pixel predicted, a block at a time, straight from int8 codes."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from tessera_xr._warn import warn
from tessera_xr.analysis.compiled import kernel
from tessera_xr.analysis.components import pixel_arrays
from tessera_xr.analysis.queries import at_time
from tessera_xr.embedding.schema import EMBEDDINGS, provenance
from tessera_xr.errors import SchemaError
from tessera_xr.learning.recipes import last_step

if TYPE_CHECKING:
    from tessera_xr.learning.heads import Head

Floats = npt.NDArray[np.float32]
NO_DATA = 0
CROWD = 65_536
"""Pixels a call of an estimator that parts them among threads itself: 33 MB of embeddings of 128 values."""
_JOBLIB = Lock()
MOST_CLASSES = 65_534


def predict(
    emb: xr.Dataset, head: Head, *, time: Any = None, probability: bool = True, interval: float = 0.9
) -> xr.Dataset:
    """Draw the map of a head.

    Parameters
    ----------
    emb : Dataset
        Embeddings of the head's model, float32 or int8, eager or lazy.
    head : Head
        From `fit_head` or `load_head`.
    time : int, str or datetime64, optional
        One time of `emb`; all of them if not told.
    probability : bool, default True
        Whether to keep the probability of every class, 4 bytes a pixel and class.
    interval : float, default 0.9
        For numbers: how often the truth shall lie between `lower` and `upper`, where it does as it did for labels that
        were held out. For a guarantee, see `fit_conformal`.

    Returns
    -------
    Dataset
        For classes: `prediction` ([time,] y, x) uint8, 0 no data, then 1 for the first of `head.classes`, with the CF
        attributes flag_values, flag_meanings and flag_colors; and, if the estimator has probabilities, `confidence`
        ([time,] y, x) float32, that of the predicted class, and `probability` ([time,] class, y, x) float32.
        For numbers: `prediction`, and, if it could be learnt, `lower` and `upper`, all ([time,] y, x) float32.
        NaN without data.

    Raises
    ------
    VersionMismatchError
        If the embeddings are of another model than the head's, or of another length.
    SchemaError
        If there is no such time, or `interval` does not lie between 0 and 1.
    """
    if not hasattr(head, "check_fits"):
        raise SchemaError(f"{head!r} is no head; fit one with emb.tessera.fit(labels), or open it with load_head(path)")
    head.check_fits(emb)
    if not 0 < interval < 1:
        raise SchemaError(f"interval={interval!r} must lie between 0 and 1, as 0.9 for nine times in ten")
    if time is not None:
        emb = at_time(emb, time)
    if head.is_spatial:
        from tessera_xr.learning.images import predict_images

        outputs = predict_images(emb, head)
    else:
        outputs = _predict_pixels(emb, head, probability=probability)
    named = _describe_classes(outputs, head) if head.task == "classes" else _intervals(outputs[0], head, interval)
    mapping = emb[EMBEDDINGS].attrs.get("grid_mapping")
    kept = provenance(emb) | ({"grid_mapping": mapping} if mapping else {})
    found = {k: v.assign_attrs(v.attrs | kept) for k, v in named.items() if probability or k != "probability"}
    return xr.Dataset(found, attrs={**provenance(emb), "head": head.name})


def _predict_pixels(emb: xr.Dataset, head: Head, *, probability: bool) -> list[xr.DataArray]:
    """Return the codes, confidence and probabilities of classes, or numbers."""
    inputs = pixel_arrays(emb)
    lazy = inputs[0].chunks is not None
    outputs: list[list[str]] = [[]]
    if head.has_probability:
        outputs += [[], ["class"]] if probability else [[]]
    first = code_type(head) if head.task == "classes" else np.float32
    types = [first, *[np.float32] * (len(outputs) - 1)]
    found = xr.apply_ufunc(
        predict_block,
        *inputs,
        input_core_dims=[["band"], []][: len(inputs)],
        output_core_dims=outputs,
        kwargs={"head": head, "n_outputs": len(outputs), "lazy": lazy},
        dask="parallelized",
        output_dtypes=types,
        dask_gufunc_kwargs={"output_sizes": {"class": len(head.classes)}} if ["class"] in outputs else {},
        keep_attrs=True,  # those of spatial_ref are the CRS
    )
    arrays = list(found) if isinstance(found, tuple) else [found]
    order = ["class" if d == "band" else d for d in emb[EMBEDDINGS].dims]
    return [a.transpose(*(d for d in order if d in a.dims)).drop_attrs(deep=False) for a in arrays]


def code_type(head: Head) -> type[np.uint8] | type[np.uint16]:
    """Return the type that holds the codes of a head's classes."""
    if len(head.classes) > MOST_CLASSES:
        raise SchemaError(f"a map can't show {len(head.classes)} classes; {MOST_CLASSES} at most")
    return np.uint8 if len(head.classes) < 255 else np.uint16


def predict_block(
    values: npt.NDArray[Any], scales: Floats | None = None, *, head: Head, n_outputs: int, lazy: bool
) -> tuple[npt.NDArray[Any], ...] | npt.NDArray[Any]:
    """Predict pixels (..., band), or codes and scales (...), a stretch at a time; see `_predict_pixels`.

    `lazy`: Dask has the threads, and one is enough here.
    """
    from tessera_xr.analysis.blocks import STRETCH, over_pixels

    shape = values.shape[:-1]
    kinds = [np.float32] * 3 if head.task == "numbers" else [code_type(head), np.float32, np.float32]
    tails: list[tuple[int, ...]] = [(), (), (len(head.classes),)]
    outs = [np.empty((*shape, *tail), kind) for tail, kind in zip(tails[:n_outputs], kinds, strict=False)]
    flat = [out.reshape(-1, *tail) for out, tail in zip(outs, tails, strict=False)]
    linear = linear_map(head)
    work = partial(_estimate, head=head) if linear is None else partial(_estimate_linear, linear=linear, task=head.task)
    alone = linear is None and has_own_threads(head.estimator)
    over_pixels(work, values, scales, (), flat, lazy or alone, CROWD if alone else STRETCH)
    return tuple(outs) if n_outputs > 1 else outs[0]


def says_most_probable(estimator: Any) -> bool:
    """Say whether what an estimator predicts is known to be what it holds most probable: others are asked for both."""
    from sklearn import ensemble

    last = last_step(estimator)
    known = (
        ensemble.RandomForestClassifier,
        ensemble.ExtraTreesClassifier,
        ensemble.HistGradientBoostingClassifier,
    )
    return type(last) in known or type(last).__module__.startswith("tessera_xr.")


def has_own_threads(estimator: Any) -> bool:
    """Say whether an estimator keeps all cores busy by itself."""
    last = last_step(estimator)
    by_itself = getattr(last, "has_own_threads", False) or type(last).__name__.startswith("HistGradientBoosting")
    return bool(by_itself) or hasattr(last, "n_jobs")


# Any estimator -------------------------------------------------------------------------------------------------------


def _estimate(values: npt.NDArray[Any], scales: Floats, *outs: npt.NDArray[Any], head: Head) -> None:
    """Write the outputs of pixels (n, band) with scales (n,), those with data passed through the estimator."""
    held = np.isfinite(scales)
    if values.dtype.kind == "f":
        held &= np.isfinite(values).all(axis=1)
    for out in outs:
        out[~held] = NO_DATA if out.dtype.kind == "u" else np.nan
    if not held.any():
        return
    pixels = values[held].astype(np.float32, copy=False)
    if values.dtype == np.int8:
        pixels *= scales[held, None]
    scaled = head.scaling.apply(pixels)
    # joblib's workers set and reset the process's warning filters, and must not do so side by side
    with _JOBLIB if hasattr(last_step(head.estimator), "n_jobs") else nullcontext():
        shares = np.asarray(head.estimator.predict_proba(scaled), np.float32) if len(outs) > 1 else None
        if shares is not None and says_most_probable(head.estimator):
            said = shares.argmax(axis=1)
        else:
            said = np.asarray(head.estimator.predict(scaled))
    outs[0][held] = said + (head.task == "classes")
    if shares is not None:
        chosen = shares[np.arange(len(shares)), said.astype(np.intp)]
        for out, found in zip(outs[1:], (chosen, shares), strict=False):
            out[held] = found


# Linear ones ---------------------------------------------------------------------------------------------------------


def linear_map(head: Head) -> tuple[Floats, Floats] | None:
    """Return vectors (k, band) and offsets (k,) whose products with embeddings, less the offsets, are the logits.

    For numbers they are the numbers. Scaling is folded in. None if the estimator isn't one that is known to be linear.
    """
    from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge, RidgeCV

    estimator, kinds = head.estimator, (LogisticRegression, LinearRegression, Ridge, RidgeCV)
    if type(estimator) not in kinds:
        return None
    weights = np.atleast_2d(estimator.coef_).astype(np.float64)
    constant = np.atleast_1d(estimator.intercept_).astype(np.float64)
    if head.task == "classes" and len(weights) == 1:  # two classes: that of the first is 0
        weights, constant = np.stack([0 * weights[0], weights[0]]), np.array([0, constant[0]])
    vectors = np.ascontiguousarray(weights / head.scaling.scale)  # coefficients may lie in Fortran's order
    return vectors.astype(np.float32), (vectors @ head.scaling.mean.astype(np.float64) - constant).astype(np.float32)


def _estimate_linear(
    values: npt.NDArray[Any], scales: Floats, *outs: npt.NDArray[Any], linear: tuple[Floats, Floats], task: str
) -> None:
    """Write the outputs of pixels (n, band): a product, and for classes a softmax in place."""
    from tessera_xr.analysis.blocks import project_pixels

    logits = outs[2] if len(outs) > 2 else np.empty((len(values), len(linear[0])), np.float32)
    project_pixels(values, scales, *linear, logits)
    if task == "numbers":
        outs[0][:] = logits[:, 0]
        return
    confidence = outs[1] if len(outs) > 1 else np.empty(len(values), np.float32)
    softmax_rows(logits, outs[0], confidence)


@kernel
def softmax_rows(logits: Floats, codes: npt.NDArray[Any], confidence: Floats) -> None:
    """Turn logits (n, k) into probabilities; write the greatest, and its position from 1 on. NaN and 0 without data."""
    k = logits.shape[1]
    for i in range(logits.shape[0]):
        best, at = np.float32(-np.inf), -1
        for j in range(k):
            if logits[i, j] > best:  # never true of NaN
                best, at = logits[i, j], j
        codes[i] = at + 1
        total = np.float32(0)
        for j in range(k):
            logits[i, j] = np.exp(logits[i, j] - best)
            total += logits[i, j]
        for j in range(k):
            logits[i, j] /= total
        confidence[i] = np.float32(1) / total


# What the outputs are called -----------------------------------------------------------------------------------------


def _describe_classes(outputs: list[xr.DataArray], head: Head) -> dict[str, xr.DataArray]:
    """Name the outputs for classes, with the attributes of CF."""
    numbers = np.arange(1, len(head.classes) + 1, dtype=code_type(head))
    flags = {
        "long_name": "predicted class",
        "flag_values": numbers,
        "flag_meanings": " ".join(flag_name(name) for name in head.classes),
        "flag_colors": " ".join(head.colours),
        "nodata": NO_DATA,
    }
    named = {"prediction": outputs[0].assign_attrs(flags)}
    if len(outputs) > 1:
        named["confidence"] = outputs[1].assign_attrs(long_name="probability of the predicted class", units="1")
    if len(outputs) > 2:
        shares = outputs[2].assign_coords({"class": list(head.classes)})
        named["probability"] = shares.assign_attrs(long_name="probability of each class", units="1")
    return named


def flag_name(name: str) -> str:
    """Return the name of a class as CF's flag_meanings want it: without blanks.

    Examples
    --------
    >>> flag_name("winter wheat")
    'winter_wheat'
    """
    return "_".join(name.split())


def _intervals(found: xr.DataArray, head: Head, interval: float) -> dict[str, xr.DataArray]:
    """Name the numbers, and say how far off they may be: by the errors at labels that were held out."""
    said = {"long_name": f"predicted {head.target}"}
    named = {"prediction": found.assign_attrs(said)}
    half = half_width(head.residuals, interval)
    if half is not None:
        for name, sign in (("lower", -1), ("upper", 1)):
            edge = (found + np.float32(sign * half)).astype(np.float32)
            named[name] = edge.assign_attrs(long_name=f"{name} end of the {interval:.0%} interval of {head.target}")
    return named


def half_width(residuals: npt.NDArray[np.float64] | None, interval: float) -> float | None:
    """Return the error that a share `interval` of held-out errors stays within; None if there are too few to say."""
    if residuals is None:
        return None
    n = len(residuals)
    rank = int(np.ceil((n + 1) * interval))  # as in split-conformal prediction
    if rank > n:
        most = np.floor(1000 * n / (n + 1)) / 10
        warn(f"{n} labelled pixels are too few for an interval of {interval:.4g}: ask for one of {most:g} % at most")
        return None
    return float(residuals[rank - 1])
