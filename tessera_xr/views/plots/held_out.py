"""Which labels are held out together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from tessera_xr.views.plots.interactive import draw
from tessera_xr.views.plots.layers import Classes, Colours, Layer, Map, Marks, frame_of, thinned, top_left
from tessera_xr.views.plots.scales import class_colours, colour_layer
from tessera_xr.views.plots.static import draw_static

if TYPE_CHECKING:
    from tessera_xr.learning.labels import LabelSet
    from tessera_xr.learning.samples import LabelSample

MANY = 2_000
"""Labelled pixels up to which each is a mark."""


def folds(
    emb: xr.Dataset,
    labels: LabelSet | LabelSample,
    n_folds: int = 5,
    block: float | None = None,
    *,
    folds: Any = "spatial",
    buffer: float = 0.0,
    time: Any = None,
    seed: int = 0,
    static: bool = False,
) -> Any:
    """Plot which labels are held out together: those of one colour are judged by a head that learnt from the others.

    The folds are those of `validate` with the same options.

    Parameters
    ----------
    emb : Dataset
        Embeddings, or anything on the grid of a sample.
    labels : LabelSet or LabelSample
        Classes or numbers.
    n_folds, block, folds, buffer, time, seed
        See `validate`; block and buffer in metres.
    static : bool, default False
        A Matplotlib figure.

    Returns
    -------
    HoloViews object or Figure

    Raises
    ------
    SchemaError
        If an option is out of range, or the labels are too few for so many folds.
    """
    from tessera_xr.analysis.queries import at_time
    from tessera_xr.embedding.schema import check_embeddings
    from tessera_xr.learning.draws import deal_folds
    from tessera_xr.learning.samples import as_sample

    check_embeddings(emb)
    emb = at_time(emb, time)
    sample = as_sample(emb, labels, None)
    dealt = deal_folds(sample, folds, n_folds, block, buffer, np.random.default_rng(seed))
    fold = np.full(len(sample), -1)
    for number, (_, test) in enumerate(dealt.splits):
        fold[test] = number
    layers = (_backdrop(emb), *_layers(emb, sample, fold, len(dealt.splits)))
    one = Map(frame_of(emb), layers, f"Labels held out together: {dealt.words}")
    return draw_static([one]) if static else draw([one])


def _layers(emb: xr.Dataset, sample: LabelSample, fold: Any, n: int) -> list[Layer]:
    names = [f"fold {i + 1}" for i in range(n)]
    colours = class_colours(n)
    if len(sample) > MANY:
        index = np.full(sample.shape, np.nan, np.float32)
        index[sample.rows, sample.columns] = np.where(fold < 0, np.nan, fold)
        on_map = xr.DataArray(index, {d: emb[d] for d in ("y", "x")}, ("y", "x"))
        return [Classes(top_left(on_map), tuple(names), tuple(colours), "fold")]
    return [
        Marks(sample.x_map[fold == i], sample.y_map[fold == i], name, colour, marker="s", size=7)
        for i, (name, colour) in enumerate(zip(names, colours, strict=True))
    ]


def _backdrop(emb: xr.Dataset) -> Colours:
    """Return the embeddings, pale and grey: so that colours are those of folds alone."""
    from tessera_xr.analysis.components import rgb

    picture = rgb(thinned(emb)).compute()
    grey = picture.mean("rgb").expand_dims(rgb=3).transpose("y", "x", "rgb")
    return colour_layer(grey, alpha=0.4)
