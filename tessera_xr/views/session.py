"""The explorer without its widgets: what is shown, asked, labelled and learnt; every action of a user is a method."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import xarray as xr

from tessera_xr.analysis.places import find_similar
from tessera_xr.embedding.schema import EMBEDDINGS, check_embeddings
from tessera_xr.errors import GridError, SchemaError
from tessera_xr.grid import geobox_of, pixel_area, points_to_pixels
from tessera_xr.learning.active import suggest
from tessera_xr.learning.evaluation import validate
from tessera_xr.learning.heads import fit_head
from tessera_xr.learning.labels import LabelSet
from tessera_xr.learning.prediction import predict
from tessera_xr.sentinel.cube import check_cube
from tessera_xr.views.answers import Answers, Pixel, Query, loaded
from tessera_xr.views.history import History
from tessera_xr.views.inspection import Inspection, inspect_pixel
from tessera_xr.views.labelling import balance_warning, class_counts, drawn_labels
from tessera_xr.views.pictures import Coded, Picture, count_above, snap
from tessera_xr.views.settings import LAYERS, OF_CUBE, Layer, Settings, checked_settings
from tessera_xr.views.showing import layer_array, layer_picture

if TYPE_CHECKING:
    from geopandas import GeoDataFrame
    from odc.geo.geobox import GeoBox

    from tessera_xr.learning.heads import Head
    from tessera_xr.learning.validation import Validation

PROMOTED = 50
"""Points that a cluster or a similar region gives when it becomes labels."""


class Session:
    """The state of an explorer.

    Parameters
    ----------
    emb : Dataset
        Embeddings, ([time,] band, y, x). Lazy ones are loaded.
    cube : Dataset, optional
        The imagery they were made of, for its pictures and series.
    labels : LabelSet, optional
        To go on with.

    Raises
    ------
    SchemaError
        If `emb` holds no embeddings, none of them has data, or they are too large to hold.
    GridError
        If they have no usable grid.
    CubeError
        If `cube` is none.
    """

    def __init__(self, emb: xr.Dataset, cube: xr.Dataset | None = None, labels: LabelSet | None = None) -> None:
        check_embeddings(emb)
        geobox_of(emb)
        if cube is not None:
            check_cube(cube)
        if emb[EMBEDDINGS].chunks is not None:
            emb = loaded(emb)
        self.answers = Answers(emb, cube)
        if not any(self.answers.has_data(time).any() for time in self.times):
            raise SchemaError("none of these embeddings has data; choose another area or another time")
        self.history = History(LabelSet() if labels is None else labels)
        self.head: Head | None = None
        self.validation: Validation | None = None
        self.errors: list[str] = []
        """What went wrong in callbacks, newest last."""
        layers = {name: Layer(visible=name == "embedding") for name in self.layer_names()}
        self.settings = Settings(time=self.times[-1], before=self.times[0], layers=layers)
        self.n_fits = 0
        """How often a head was fitted."""
        self._taught: Any = None

    @property
    def emb(self) -> xr.Dataset:
        """The embeddings."""
        return self.answers.emb

    @property
    def cube(self) -> xr.Dataset | None:
        """The imagery, if any."""
        return self.answers.cube

    @property
    def labels(self) -> LabelSet:
        """The labels; edit them here or directly, both can be undone."""
        return self.history.labels

    @property
    def query(self) -> Query:
        """What is looked for."""
        return self.history.query

    @property
    def box(self) -> GeoBox:
        """The grid of the embeddings."""
        return self.answers.box

    @property
    def times(self) -> list[str]:
        """The times to choose from; [""] if the embeddings have none."""
        return self.answers.times

    def layer_names(self) -> list[str]:
        """Return the layers that there may be here, from the bottom up."""
        without = [] if self.cube is not None and self.cube.sizes["s2_time"] else list(OF_CUBE)
        without += ["change"] if len(self.times) < 2 else []
        return [name for name in LAYERS if name not in without]

    # Looking ---------------------------------------------------------------------------------------------------------

    def set(self, **changes: Any) -> None:
        """Change settings, checked: see `Settings`.

        Raises
        ------
        SchemaError
            If there is no such setting, or its value isn't allowed; nothing is changed then.
        """
        self.settings = replace(self.settings, **checked_settings(changes, self.times, list(self.labels.classes)))

    @property
    def threshold(self) -> float | None:
        """Similarity below which nothing is shown: the setting, taken to the nearest border between two colours."""
        asked = self.settings.threshold
        return None if asked is None else snap(asked, self.query.scale)

    def show(self, layer: str, *, visible: bool = True, opacity: float | None = None) -> None:
        """Show or hide a layer, and say how opaque it is, 0 to 1."""
        if layer not in self.settings.layers:
            raise SchemaError(f"there is no layer {layer!r} here; choose one of {', '.join(self.settings.layers)}")
        old = self.settings.layers[layer]
        opacity = old.opacity if opacity is None else float(np.clip(opacity, 0, 1))
        self.settings.layers = self.settings.layers | {layer: Layer(visible, opacity)}

    def array(self, layer: str, time: str | None = None) -> xr.DataArray:
        """Return the numbers behind a layer, (y, x[, rgb]), at the session's time unless told otherwise."""
        return layer_array(self, layer, self.settings.time if time is None else time)

    def picture(self, layer: str, time: str | None = None) -> Picture:
        """Return what a layer shows, on the grid that `array` is on."""
        return layer_picture(self, layer, self.settings.time if time is None else time)

    # Asking ----------------------------------------------------------------------------------------------------------

    def pixel_at(self, lon: float, lat: float) -> Pixel:
        """Return the (row, column) that holds a place, or raise `GridError`."""
        row, column = points_to_pixels(self.box, lon, lat)[0]
        if row < 0:
            raise GridError(f"({lon:.5f}, {lat:.5f}) lies outside the embeddings; click inside them")
        return int(row), int(column)

    def place_of(self, pixel: Pixel) -> tuple[float, float]:
        """Return (lon, lat) of a pixel's centre."""
        from pyproj import Transformer

        x, y = self.box.transform * (pixel[1] + 0.5, pixel[0] + 0.5)
        lon, lat = Transformer.from_crs(str(self.box.crs), "EPSG:4326", always_xy=True).transform(x, y)
        return float(lon), float(lat)

    def ask(self, lon: float, lat: float) -> None:
        """Look for places like this one alone."""
        pixel = self.pixel_at(lon, lat)
        self.answers.vectors(self.settings.time, (pixel,))
        self.history.ask(replace(self.query, positives=(pixel,), negatives=()))

    def add_example(self, lon: float, lat: float, *, like: bool = True) -> None:
        """Look for places like this one too, or unlike it."""
        pixel = self.pixel_at(lon, lat)
        self.answers.vectors(self.settings.time, (pixel,))
        query = self.query
        if like and pixel not in query.positives:
            self.history.ask(replace(query, positives=(*query.positives, pixel)))
        elif not like and pixel not in query.negatives:
            self.history.ask(replace(query, negatives=(*query.negatives, pixel)))

    def remove_example(self, pixel: Pixel) -> None:
        """Forget an example."""
        kept = [tuple(p for p in side if p != pixel) for side in (self.query.positives, self.query.negatives)]
        self.history.ask(replace(self.query, positives=kept[0], negatives=kept[1]))

    def clear_examples(self) -> None:
        """Forget all examples."""
        self.history.ask(replace(self.query, positives=(), negatives=()))

    def set_combine(self, combine: Literal["mean", "max", "min"]) -> None:
        """Choose how several examples become one question."""
        if combine not in ("mean", "max", "min"):
            raise SchemaError(f"combine={combine!r} is unknown; choose 'mean', 'max' or 'min'")
        self.history.ask(replace(self.query, combine=combine))

    def hectares_above(self) -> float | None:
        """Return the area of the places above the threshold, in hectares; None without a question or a threshold."""
        if self.threshold is None or not self.query.positives:
            return None
        picture = self.picture("similarity")
        assert isinstance(picture, Coded)
        return count_above(picture, self.threshold) * pixel_area(self.box) / 1e4

    def find_places(self, k: int = 10) -> GeoDataFrame:
        """Return the most similar places of the session's time, apart from each other."""
        time = self.settings.time
        self.answers.similarity(time, self.query)
        vectors = self.answers.vectors(time, self.query.positives)
        negative = self.answers.vectors(time, self.query.negatives) if self.query.negatives else None
        return find_similar(self.answers.at(time), vectors, k, negative=negative, combine=self.query.combine)

    # Labelling -------------------------------------------------------------------------------------------------------

    def add_class(self, name: str, colour: str | None = None) -> None:
        """Add a class and choose it."""
        self.history.edit(lambda labels: labels.add_class(name, colour))
        self.settings.current = name.strip()

    def label(self, geometry: Any, value: str | float | None = None) -> str:
        """Label a place, (lon, lat) or GeoJSON in degrees, with a class: the current one unless told."""
        value = self.settings.current if value is None else value
        if value is None:
            raise SchemaError("choose a class first, or add one")
        name: str = self.history.edit(lambda labels: labels.add(geometry, value, source="explorer"))
        if self.labels.task == "classes":
            self.settings.current = str(value)
        return name

    def change_labels(self, change: Callable[[LabelSet], Any]) -> Any:
        """Make any change of the labels that they log, so that it can be undone here."""
        done = self.history.edit(change)
        self._check_current()
        return done

    def promote(self, mask: xr.DataArray, value: str, n: int = PROMOTED, *, source: str = "explorer") -> int:
        """Label `n` places drawn from a region (y, x) bool, as one edit; returns how many there were."""
        drawn = drawn_labels(mask, value, n, source)
        self.change_labels(lambda labels: labels.extend(drawn))
        self.settings.current = value
        return len(drawn)

    def promote_cluster(self, number: int, value: str) -> int:
        """Make labels of a cluster."""
        clusters = self.array("clusters")
        return self.promote((clusters == number).assign_attrs(clusters.attrs), value, source=f"cluster {number}")

    def promote_similar(self, value: str) -> int:
        """Make labels of the places above the threshold."""
        if self.threshold is None:
            raise SchemaError("set a threshold first: the places above it become labels")
        scores = self.array("similarity")
        return self.promote((scores >= self.threshold).assign_attrs(scores.attrs), value, source="similarity")

    def undo(self) -> None:
        """Take back the latest question or edit of labels."""
        self.history.undo()
        self._check_current()

    def redo(self) -> None:
        """Make it again."""
        self.history.redo()
        self._check_current()

    @property
    def can_undo(self) -> bool:
        """Whether there is something to take back."""
        return self.history.can_undo

    @property
    def can_redo(self) -> bool:
        """Whether there is something to make again."""
        return self.history.can_redo

    def _check_current(self) -> None:
        if self.settings.current not in self.labels.classes:
            self.settings.current = next(iter(self.labels.classes), None)

    # Learning --------------------------------------------------------------------------------------------------------

    def labelled_pixels(self) -> tuple[Pixel, ...]:
        """Return the labelled pixels that have data, without doubles; none if there are fewer than three."""
        pixels = self.answers.labelled(self.settings.time, self.labels, self._labels_key()) if len(self.labels) else ()
        return pixels if len(pixels) >= 3 else ()

    def _labels_key(self) -> Any:
        return tuple(self.labels), tuple(self.labels.classes.items())

    def class_counts(self) -> Mapping[str, int]:
        """Return the number of labels of each class."""
        return class_counts(self.labels)

    def balance_warning(self) -> str | None:
        """Return what is wrong with the balance of classes, if anything."""
        return balance_warning(class_counts(self.labels))

    def fit(self) -> Head:
        """Teach a head all labels."""
        key = (self._labels_key(), self.settings.model, self.settings.time)
        if self.head is None or self._taught != key:
            self.head = fit_head(self.answers.at(self.settings.time), self.labels, self.settings.model)
            self._taught, self.validation = key, None
            self.n_fits += 1
        return self.head

    @property
    def is_stale(self) -> bool:
        """Whether the head was taught other labels than there are now, or in another way."""
        return bool(self._taught != (self._labels_key(), self.settings.model, self.settings.time))

    def prediction(self, time: str | None = None) -> xr.Dataset:
        """Return the head's map."""
        if self.head is None:
            raise SchemaError("there is no head yet; label two classes and fit one")
        time, head = self.settings.time if time is None else time, self.head
        return self.answers.once(("prediction", time, self.n_fits), lambda: predict(self.answers.at(time), head))

    def validate(self, **options: Any) -> Validation:
        """Score the head on labels held out in blocks of the map."""
        self.fit()
        at = self.answers.at(self.settings.time)
        self.validation = validate(at, self.labels, self.settings.model, **options)
        return self.validation

    def suggest(self, n: int = 10, **options: Any) -> GeoDataFrame:
        """Return the places whose labels would teach the head most; see `tessera_xr.suggest`."""
        return suggest(self.answers.at(self.settings.time), self.fit(), n, labels=self.labels, **options)

    def inspect(self, lon: float, lat: float) -> Inspection:
        """Return all that is known of the pixel that holds a place."""
        return inspect_pixel(self, lon, lat)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the session to a JSON file; see `open_session`."""
        from tessera_xr.views.session_files import save_session

        return save_session(self, path)

    def export_geotiff(self, layer: str, path: str | os.PathLike[str]) -> Path:
        """Write a layer as a GeoTIFF: the numbers behind it, or its colours."""
        from tessera_xr.export import to_geotiff

        return to_geotiff(self.prediction() if layer == "classes" else self.array(layer), path)
