"""Heads that see the neighbourhood of a pixel: labels to images with few labelled pixels, and maps without seams."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from tessera_xr.analysis.queries import at_time, essentials
from tessera_xr.embedding.quantize import dequantize
from tessera_xr.embedding.schema import EMBEDDINGS, has_data
from tessera_xr.errors import GridError, SchemaError
from tessera_xr.learning.heads import (
    ClassWeight,
    Head,
    check_targets,
    make_head,
    pixel_weights,
    resolve_standardise,
)
from tessera_xr.learning.prediction import NO_DATA, code_type
from tessera_xr.learning.recipes import Scaling, Standardise, fit_scaling, make_estimator

if TYPE_CHECKING:
    import dask.array as da

    from tessera_xr.learning.samples import LabelSample

Floats = npt.NDArray[np.float32]
CELL = 128
"""Pixels a side of the squares that hold labels: they and their surroundings are read to learn from."""
STRIP = 512
"""Rows and columns of a map at a time."""


def fit_unet(
    emb: xr.Dataset | None,
    sample: LabelSample,
    model: Any = "unet",
    *,
    time: Any = None,
    class_weight: ClassWeight = "auto",
    standardise: Standardise = "auto",
    seed: int = 0,
    **options: Any,
) -> Head:
    """Fit a UNet to the squares of a map that hold labels; see `tessera_xr.fit_head`."""
    if emb is None:
        raise SchemaError("a UNet learns from the map around the labels; pass the embeddings too")
    at = essentials(at_time(emb, time)).transpose("y", "x", "band")
    if sample.shape != (at.sizes["y"], at.sizes["x"]):
        raise GridError(
            f"the labels were sampled on a map of {sample.shape} pixels, this has {(at.sizes['y'], at.sizes['x'])}; "
            "pass the map that they were sampled on"
        )
    targets, classes = check_targets(sample)
    name, estimator = make_estimator(model, sample.task, seed, options)
    weights = pixel_weights(sample, targets, class_weight)
    scaling = fit_scaling(sample.X, resolve_standardise(standardise, sample, estimator))
    cells = np.unique(np.stack([sample.rows // CELL, sample.columns // CELL], axis=1), axis=0)
    parts = [_cell(at, sample, tuple(cell), targets, weights, scaling, estimator.margin) for cell in cells]
    images, wanted, counts, groups = (list(column) for column in zip(*parts, strict=True))
    estimator.fit(images, wanted, weights=counts, groups=groups)
    return make_head(name, sample, classes, estimator, scaling)


def _cell(
    at: xr.Dataset,
    sample: LabelSample,
    cell: tuple[int, ...],
    targets: npt.NDArray[Any],
    weights: npt.NDArray[np.float64],
    scaling: Scaling,
    around: int,
) -> tuple[Floats, npt.NDArray[Any], Floats, npt.NDArray[np.intp]]:
    """Return the image (band, y, x) of a square and its surroundings, and what its pixels are to be, weigh and go by.

    Pixels without a label are -1 (NaN for numbers).
    """
    starts = [max(c * CELL - around, 0) for c in cell]
    stops = [min((c + 1) * CELL + around, n) for c, n in zip(cell, sample.shape, strict=True)]
    (top, left), (bottom, right) = starts, stops
    values = dequantize(at.isel(y=slice(top, bottom), x=slice(left, right)).compute())[EMBEDDINGS]
    image = np.moveaxis(scaling.apply(values.transpose("y", "x", "band").values), -1, 0)
    inside = (sample.rows // CELL == cell[0]) & (sample.columns // CELL == cell[1])
    place = sample.rows[inside] - top, sample.columns[inside] - left
    numbers = sample.task == "numbers"
    shape = image.shape[1:]
    wanted = np.full(shape, np.nan) if numbers else np.full(shape, -1, dtype=np.intp)
    counts, groups = np.zeros(shape, np.float32), np.full(shape, -1, dtype=np.intp)
    wanted[place], counts[place], groups[place] = targets[inside], weights[inside], sample.groups[inside]
    return np.ascontiguousarray(image), wanted, counts, groups


def predict_images(emb: xr.Dataset, head: Head) -> list[xr.DataArray]:
    """Return the codes, confidence and probabilities of classes, or numbers, of every pixel of a map."""
    steps = [emb.isel(time=i) for i in range(emb.sizes["time"])] if "time" in emb[EMBEDDINGS].dims else [emb]
    maps = [_outputs(step, head) for step in steps]
    if "time" not in emb[EMBEDDINGS].dims:
        return maps[0]
    return [xr.concat(arrays, dim="time").transpose("time", ...) for arrays in zip(*maps, strict=True)]


def _outputs(emb: xr.Dataset, head: Head) -> list[xr.DataArray]:
    """Return what `predict_images` does, of one time."""
    held = has_data(emb)
    values = dequantize(emb)[EMBEDDINGS].transpose("y", "x", "band") if emb.chunks else None
    if values is not None and values.chunks is not None:
        scores: Any = _lazy_scores(values.data, head)
    else:
        scores = _eager_scores(essentials(emb).transpose("y", "x", "band"), head)
    named = xr.DataArray(scores, dims=("y", "x", "class"), coords=held.coords).where(held)
    if head.task == "numbers":
        return [named.isel({"class": 0}, drop=True).astype(np.float32)]
    codes = xr.where(held, named.fillna(0).argmax("class") + 1, NO_DATA).astype(code_type(head))
    return [codes, named.max("class"), named.transpose("class", "y", "x")]


def _scores(image: Floats, head: Head) -> Floats:
    """(y, x, band) to probabilities (y, x, class), or numbers (y, x, 1)."""
    scaled = np.ascontiguousarray(np.moveaxis(head.scaling.apply(image), -1, 0))
    if head.task == "numbers":
        return np.asarray(head.estimator.predict(scaled), dtype=np.float32)[..., None]
    return np.asarray(np.moveaxis(head.estimator.predict_proba(scaled), 0, -1), dtype=np.float32)


def _eager_scores(emb: xr.Dataset, head: Head) -> Floats:
    """Go over a map square by square, each with the margin that the network sees: only a square is ever float32."""
    rows, columns, margin = emb.sizes["y"], emb.sizes["x"], int(head.estimator.margin)
    out = np.empty((rows, columns, len(head.classes) or 1), dtype=np.float32)
    for top in range(0, rows, STRIP):
        for left in range(0, columns, STRIP):
            begin = max(top - margin, 0), max(left - margin, 0)
            window = {"y": slice(begin[0], top + STRIP + margin), "x": slice(begin[1], left + STRIP + margin)}
            found = _scores(dequantize(emb.isel(window))[EMBEDDINGS].transpose("y", "x", "band").values, head)
            target = out[top : top + STRIP, left : left + STRIP]
            y, x = top - begin[0], left - begin[1]
            target[:] = found[y : y + target.shape[0], x : x + target.shape[1]]
    return out


def _lazy_scores(values: da.Array, head: Head) -> Any:
    """Do the same for each chunk of (y, x, band), with its margin from the chunks around it."""
    import dask.array as da

    margin, n = int(head.estimator.margin), len(head.classes) or 1
    # the network halves its image: chunks must begin at multiples of its step for pixels to be paired alike
    chunks = [c if _fits(c, margin, int(head.estimator.step)) else STRIP for c in values.chunks[:2]]
    values = values.rechunk((*chunks, -1))
    depth = {0: margin, 1: margin, 2: 0}
    around = da.overlap.overlap(values, depth=depth, boundary="none")
    work = partial(_scores, head=head)
    found = around.map_blocks(work, dtype=np.float32, chunks=(*around.chunks[:2], (n,)), meta=np.empty((0, 0, 0), "f4"))
    return da.overlap.trim_overlap(found, depth, boundary="none")


def _fits(chunks: tuple[int, ...], margin: int, step: int) -> bool:
    return all(c % step == 0 for c in chunks[:-1]) and all(c >= margin for c in chunks)
