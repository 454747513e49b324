"""What an explorer asks of embeddings: each answer is worked out once, and again only if the question changed."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import xarray as xr

from tessera_xr.analysis.change import change
from tessera_xr.analysis.clustering import Clusters, fit_clusters
from tessera_xr.analysis.components import Components, fit_components
from tessera_xr.analysis.novelty import Novelty, fit_novelty
from tessera_xr.analysis.queries import at_time, time_labels
from tessera_xr.analysis.similarity import Combine, similarity
from tessera_xr.embedding.schema import EMBEDDINGS, SCALES, has_data
from tessera_xr.errors import SchemaError
from tessera_xr.grid import geobox_of
from tessera_xr.learning.labels import LabelSet
from tessera_xr.views.pictures import Scale
from tessera_xr.views.render import FALSE_COLOUR, TRUE_COLOUR, composite

Answer = TypeVar("Answer")
Pixel: TypeAlias = tuple[int, int]
"""(row, column)."""
KEPT = 24
"""Answers to keep: each is a map or less."""
MOST_BYTES = 4 << 30
"""Of embeddings that an explorer holds."""
COMPONENTS = 6
"""Principal components to choose colours from."""


@dataclass(frozen=True)
class Query:
    """What is looked for: places like these, unlike those."""

    positives: tuple[Pixel, ...] = ()
    negatives: tuple[Pixel, ...] = ()
    combine: Combine = "mean"

    @property
    def scale(self) -> Scale:
        """The scale that its similarity is shown on: fixed, so that two queries compare."""
        return Scale(-1.0 if self.negatives else 0.0, 1.0, ())


class Answers:
    """Maps of embeddings and what they rest on, remembered.

    Parameters
    ----------
    emb : Dataset
        Embeddings in memory, ([time,] band, y, x).
    cube : Dataset, optional
        The imagery they were made of.
    """

    def __init__(self, emb: xr.Dataset, cube: xr.Dataset | None = None) -> None:
        self.emb, self.cube = emb, cube
        self.box = geobox_of(emb)
        self._kept: OrderedDict[Hashable, Any] = OrderedDict()
        self._lock = threading.Lock()

    def once(self, question: Hashable, answer: Callable[[], Answer]) -> Answer:
        """Return the answer to a question, worked out if it isn't remembered."""
        with self._lock:
            if question in self._kept:
                self._kept.move_to_end(question)
                kept: Answer = self._kept[question]
                return kept
        found = answer()
        with self._lock:
            self._kept[question] = found
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return found

    @cached_property
    def times(self) -> list[str]:
        """The times of the embeddings; [""] if they have none."""
        return time_labels(self.emb["time"].values) if "time" in self.emb[EMBEDDINGS].dims else [""]

    def at(self, time: str) -> xr.Dataset:
        """Return the embeddings of one time."""
        return self.once(("at", time), lambda: at_time(self.emb, time or None))

    def vectors(self, time: str, pixels: tuple[Pixel, ...]) -> npt.NDArray[np.float32]:
        """Return the embeddings (n, band) of pixels."""
        emb = self.at(time)
        rows, columns = (xr.DataArray([p[i] for p in pixels], dims="pixel") for i in (0, 1))
        chosen = emb.isel(y=rows, x=columns)
        if not bool(has_data(chosen).all()):
            raise SchemaError("there is no embedding at this place; choose another")
        values = chosen[EMBEDDINGS].transpose("pixel", "band").values.astype(np.float32)
        return values * chosen[SCALES].values[:, None] if SCALES in chosen else values

    def similarity(self, time: str, query: Query) -> xr.DataArray:
        """Return the cosine similarity of the map to a query."""
        if not query.positives:
            raise SchemaError("there is nothing to compare with yet; click a place that you are looking for")

        def compared() -> xr.DataArray:
            negative = self.vectors(time, query.negatives) if query.negatives else None
            positive = self.vectors(time, query.positives)
            return similarity(self.at(time), positive, negative=negative, combine=query.combine)

        return self.once(("similarity", time, query), compared)

    def components(self) -> Components:
        """Return components of all times together, whose colours compare."""
        n = min(COMPONENTS, self.emb.sizes["band"])
        return self.once("components", lambda: fit_components(self.emb, n))

    def colours(self, time: str, channels: tuple[int, int, int] = (0, 1, 2)) -> xr.DataArray:
        """Return three components (y, x, rgb) as colours from 0 to 1."""
        fitted = self.components()
        if max(channels) >= len(fitted.vectors) or min(channels) < 0:
            raise SchemaError(f"there are components 1 to {len(fitted.vectors)}, not {[c + 1 for c in channels]}")
        scores = self.once(("components", time), lambda: fitted.transform(self.at(time)))
        chosen = scores.isel(component=list(channels))
        low, high = (fitted.limits.isel(bound=i, component=list(channels)) for i in (0, 1))
        scaled = ((chosen - low) / (high - low)).clip(0, 1).astype(np.float32).rename(component="rgb")
        said = scores.attrs | {"long_name": "components " + ", ".join(str(c + 1) for c in channels)}
        return scaled.transpose("y", "x", "rgb").assign_attrs(said).rename("rgb")

    def composite(self, kind: str, date: str | None) -> xr.DataArray:
        """Return true or false colour of the cube, (y, x, rgb)."""
        if self.cube is None:
            raise SchemaError("there is no cube to show; open the explorer with explore(cube=cube)")
        cube, bands = self.cube, TRUE_COLOUR if kind == "true_colour" else FALSE_COLOUR
        return self.once((kind, date), lambda: composite(cube, bands, date))

    def clusters(self, n: int) -> Clusters:
        """Return clusters of all times together."""
        return self.once(("fit clusters", n), lambda: fit_clusters(self.emb, n))

    def cluster_map(self, time: str, n: int) -> xr.DataArray:
        """Return the cluster of every pixel."""
        return self.once(("clusters", time, n), lambda: self.clusters(n).predict(self.at(time)))

    def has_data(self, time: str) -> npt.NDArray[np.bool_]:
        """Return where there are embeddings, (y, x)."""
        return self.once(("data", time), lambda: has_data(self.at(time)).transpose("y", "x").values)

    def novelty_model(self, time: str, pixels: tuple[Pixel, ...]) -> Novelty:
        """Return what the embeddings at some pixels, or those of the whole map without any, look like."""

        def fitted() -> Novelty:
            emb = self.at(time)
            if not pixels:
                return fit_novelty(emb)
            values = xr.DataArray(self.vectors(time, pixels), dims=("pixel", "band"))
            return fit_novelty(xr.Dataset({EMBEDDINGS: values}, {"band": emb["band"]}, emb.attrs))

        return self.once(("fit novelty", time, pixels), fitted)

    def novelty(self, time: str, pixels: tuple[Pixel, ...]) -> xr.DataArray:
        """Return how unlike these every pixel is, as a percentile of theirs."""
        fitted = self.novelty_model(time, pixels)
        return self.once(("novelty", time, pixels), lambda: fitted.transform(self.at(time))["percentile"])

    def labelled(self, time: str, labels: LabelSet, key: Hashable) -> tuple[Pixel, ...]:
        """Return the labelled pixels that have data, without doubles; `key` changes when the labels do."""

        def found() -> tuple[Pixel, ...]:
            sample = labels.sample(self.at(time), min_pixels=0)
            return tuple(dict.fromkeys(zip(sample.rows.tolist(), sample.columns.tolist(), strict=True)))

        return self.once(("labelled", time, key), found)

    def change(self, before: str, after: str) -> xr.DataArray:
        """Return the cosine distance between two times."""
        if before == after or len(self.times) < 2:
            raise SchemaError(f"change needs two different times of {', '.join(self.times) or 'these embeddings'}")
        return self.once(("change", before, after), lambda: change(self.emb, before, after))


def loaded(emb: xr.Dataset) -> xr.Dataset:
    """Return lazy embeddings in memory, unless they are too large."""
    if emb[EMBEDDINGS].nbytes > MOST_BYTES:
        raise SchemaError(
            f"these embeddings take {emb[EMBEDDINGS].nbytes / 1e9:.1f} GB, more than an explorer holds "
            f"({MOST_BYTES / 1e9:.0f} GB): choose a part, emb.isel(y=slice(...), x=slice(...)), a year, or int8"
        )
    return emb.compute()
