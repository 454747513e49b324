"""The layers of a session: the numbers behind each, and what it shows."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from tessera_xr.errors import SchemaError
from tessera_xr.views.pictures import Picture, class_picture, colour_picture, scale_picture

if TYPE_CHECKING:
    from tessera_xr.views.session import Session

NUMBERS = {
    "similarity": ("viridis", "cosine similarity"),
    "novelty": ("magma", "novelty, percentile"),
    "change": ("inferno", "cosine distance"),
}
"""Layers on a scale: the Matplotlib colours and what they show."""
FARTHEST = 1.0
"""Cosine distance at the end of the scale of change: a right angle."""


def layer_array(session: Session, layer: str, time: str) -> xr.DataArray:
    """Return the numbers behind a layer, (y, x[, rgb])."""
    answers, settings = session.answers, session.settings
    make: dict[str, Callable[[], xr.DataArray]] = {
        "embedding": lambda: answers.colours(time, settings.channels),
        "true_colour": lambda: answers.composite("true_colour", settings.date),
        "false_colour": lambda: answers.composite("false_colour", settings.date),
        "similarity": lambda: answers.similarity(time, session.query),
        "clusters": lambda: answers.cluster_map(time, settings.n_clusters),
        "classes": lambda: session.prediction(time)["prediction"],
        "novelty": lambda: answers.novelty(time, session.labelled_pixels()),
        "change": lambda: answers.change(settings.before, time),
    }
    if layer not in make:
        raise SchemaError(f"there is no layer {layer!r}; choose one of {', '.join(make)}")
    return make[layer]()


def layer_question(session: Session, layer: str, time: str) -> Hashable:
    """Return all that a layer's picture hangs on: while it stays the same, so does the picture."""
    settings = session.settings
    parts: dict[str, Hashable] = {
        "embedding": settings.channels,
        "true_colour": settings.date,
        "false_colour": settings.date,
        "similarity": session.query,
        "clusters": settings.n_clusters,
        "classes": (session.n_fits, settings.fade),
        "novelty": session.labelled_pixels() if layer == "novelty" else (),
        "change": settings.before,
    }
    return ("picture", layer, time, parts.get(layer))


def layer_picture(session: Session, layer: str, time: str) -> Picture:
    """Return what a layer shows, made anew only if the question changed."""
    return session.answers.once(layer_question(session, layer, time), lambda: _picture(session, layer, time))


def _picture(session: Session, layer: str, time: str) -> Picture:
    if layer == "classes":
        return _predicted(session, time)
    array = layer_array(session, layer, time)
    if layer == "clusters":
        return class_picture(array)
    if "rgb" in array.dims:
        return colour_picture(array)
    ends = {"similarity": (session.query.scale.low, 1.0), "novelty": (0.0, 100.0), "change": (0.0, FARTHEST)}[layer]
    colours, label = NUMBERS[layer]
    return scale_picture(array.values, *ends, colours=colours, label=label)


def _predicted(session: Session, time: str) -> Picture:
    found = session.prediction(time)
    if found["prediction"].dtype.kind != "f":
        return class_picture(found["prediction"], found.get("confidence") if session.settings.fade else None)
    values = found["prediction"].values
    low, high = np.nanpercentile(values, (2, 98)) if np.isfinite(values).any() else (0.0, 1.0)
    label = session.labels.target or "prediction"
    return scale_picture(values, float(low), float(max(high, low + 1e-6)), colours="cividis", label=label)
