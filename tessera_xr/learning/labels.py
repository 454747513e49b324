"""Labels: classes with colours or numbers, points and polygons with stable ids, and a log to undo and redo edits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import xarray as xr

from tessera_xr.errors import SchemaError
from tessera_xr.learning import label_files, label_rasters
from tessera_xr.learning.edits import (
    Label,
    LabelEdit,
    Log,
    State,
    TableEdit,
    Value,
    checked_colour,
    checked_name,
    checked_number,
    checked_quality,
    checked_source,
    checked_target,
    coloured,
    with_class,
)
from tessera_xr.learning.geometries import as_geometry, canonical_crs, reproject
from tessera_xr.learning.samples import LabelSample, sample_labels

if TYPE_CHECKING:
    from geopandas import GeoDataFrame

__all__ = ["Label", "LabelSet"]


class LabelSet:
    """What was labelled where: points and polygons with a class or a number each, and a way back from every edit.

    Parameters
    ----------
    classes : sequence of str, or mapping of name to colour, optional
        The classes in their order; colours are '#rrggbb' or what matplotlib knows, and chosen if not given. Labels of
        other classes are then refused. Without `classes` and `target`, a label of a new class makes that class.
    target : str, optional
        What is measured, such as "biomass": labels are numbers then.
    crs : str, default "EPSG:4326"
        Of the geometries.

    Raises
    ------
    SchemaError
        If both `classes` and `target` are given, or one of the arguments can't be read.

    Examples
    --------
    >>> labels = LabelSet({"forest": "#1b7837", "burnt": "#b2182b"})
    >>> name = labels.add((-120.33, 38.68), "burnt", source="field visit")
    >>> labels.relabel(name, "forest")
    >>> labels.history
    ['add L1: burnt (Point)', 'relabel L1: burnt -> forest']
    >>> labels.undo()
    'relabel L1: burnt -> forest'
    >>> labels[name].value
    'burnt'
    """

    def __init__(
        self,
        classes: Mapping[str, Any] | Sequence[str] | None = None,
        *,
        target: str | None = None,
        crs: Any = "EPSG:4326",
    ) -> None:
        if classes is not None and target is not None:
            raise SchemaError("labels are classes or numbers: give classes= or target=, not both")
        if isinstance(classes, str):
            raise SchemaError(f"classes are a list of names, not {classes!r}; give [{classes!r}]")
        names = [checked_name(name) for name in classes or ()]
        if len(set(names)) < len(names):
            raise SchemaError(f"classes are named once each; {names} repeats some")
        self._state = State(
            coloured(names, classes if isinstance(classes, Mapping) else None),
            None if target is None else checked_target(target),
            canonical_crs(crs),
            grows=classes is None and target is None,
        )
        self._log = Log()

    @classmethod
    def _of(cls, state: State) -> Self:
        made = cls()
        made._state = state
        return made

    @property
    def classes(self) -> dict[str, str]:
        """Names to colours, '#rrggbb', in order (a copy); {} for numbers."""
        return dict(self._state.classes)

    @property
    def target(self) -> str | None:
        """What the numbers are; None for classes."""
        return self._state.target

    @property
    def task(self) -> Literal["classes", "numbers"]:
        """What is to be learnt."""
        return "classes" if self.target is None else "numbers"

    @property
    def crs(self) -> str:
        """The CRS of the geometries."""
        return self._state.crs

    @property
    def can_undo(self) -> bool:
        """Whether there is an edit to undo."""
        return bool(self._log.done)

    @property
    def can_redo(self) -> bool:
        """Whether there is an undone edit to do again."""
        return bool(self._log.undone)

    @property
    def history(self) -> list[str]:
        """The edits that were made and not undone, a short sentence each."""
        return [command.sentence for command in self._log.done]

    def __len__(self) -> int:
        return len(self._state.labels)

    def __iter__(self) -> Iterator[Label]:
        return iter(list(self._state.labels.values()))

    def __contains__(self, name: object) -> bool:
        return name in self._state.labels

    def __getitem__(self, name: str) -> Label:
        try:
            return self._state.labels[name]
        except (KeyError, TypeError) as error:
            ids = list(self._state.labels)
            shown = ", ".join(ids[:10]) + (" ..." if len(ids) > 10 else "")
            raise SchemaError(f"there is no label {name!r}; there are {shown or 'none'}") from error

    def add(self, geometry: Any, value: Value, *, quality: float = 1.0, source: str = "") -> str:
        """Add a label.

        Parameters
        ----------
        geometry : shapely Point, Polygon or MultiPolygon, (lon, lat), or GeoJSON mapping
            A shapely object is in the set's CRS; (lon, lat) and GeoJSON are in degrees, and are reprojected.
        value : str or float
            The name of a class, or a number if the set has a target.
        quality : float, default 1
            In (0, 1]: the weight of its pixels.
        source : str
            Where it is from.

        Returns
        -------
        str
            Its id, which stays the same for good and is never given to another.

        Raises
        ------
        SchemaError
            If the geometry is no valid point or polygon, the class unknown, or the number not finite.
        """
        geometry, value = as_geometry(geometry, self.crs), self._checked_value(value)
        quality, source = checked_quality(quality), checked_source(source)
        label = Label(self._state.new_id(), geometry, value, quality, source)
        sentence = f"add {label.id}: {value} ({geometry.geom_type})"
        self._log.run(self._state, sentence, *self._growth(value), LabelEdit(None, label, len(self)))
        return label.id

    def extend(self, labels: LabelSet) -> list[str]:
        """Add all labels of another set, as one edit.

        Parameters
        ----------
        labels : LabelSet
            Of the same task. Geometries are reprojected; classes that this set lacks come with their colours, where it
            may grow.

        Returns
        -------
        list of str
            The new ids, in order.

        Raises
        ------
        SchemaError
            If one set holds classes and the other numbers, or a class is unknown here.
        """
        if getattr(labels, "target", labels) != self.target:
            raise SchemaError(
                f"labels of {self.target or 'classes'} can be joined with their like only, not {labels!r}"
            )
        added = list(labels)
        for label in added:
            self._checked_value(label.value)
        before = self._state.classes
        after = dict(before)
        for name in dict.fromkeys(label.value for label in added if self.target is None):
            if name not in after:
                after = with_class(after, str(name), labels.classes[str(name)])
        geometries = reproject(np.array([label.geometry for label in added], dtype=object), labels.crs, self.crs)
        new = [replace(v, id=self._state.new_id(), geometry=g) for v, g in zip(added, geometries, strict=True)]
        edits = [TableEdit("classes", dict(before), after)] if after != before else []
        places = (LabelEdit(None, label, len(self) + i) for i, label in enumerate(new))
        self._log.run(self._state, f"add {len(new)} labels", *edits, *places)
        return [label.id for label in new]

    def move(self, name: str, geometry: Any) -> None:
        """Give the label of id `name` another geometry, in a form that `add` takes."""
        self._replace(f"move {name}", self[name], geometry=as_geometry(geometry, self.crs))

    def relabel(self, name: str, value: Value) -> None:
        """Give the label of id `name` another value."""
        label, value = self[name], self._checked_value(value)
        self._replace(f"relabel {name}: {label.value} -> {value}", label, value=value)

    def remove(self, name: str) -> None:
        """Remove the label of id `name`."""
        label = self[name]
        place = list(self._state.labels).index(name)
        self._log.run(self._state, f"remove {name}: {label.value}", LabelEdit(label, None, place))

    def add_class(self, name: str, colour: Any = None) -> None:
        """Add a class, in a colour of its own if none is given."""
        self._check_classes()
        if checked_name(name) in self._state.classes:
            raise SchemaError(f"there is a class {name!r}; classes are named once each")
        self._set_classes(f"add class {name}", with_class(self._state.classes, name, colour))

    def rename_class(self, name: str, new: str) -> None:
        """Rename a class; its labels, its colour and its place go with it."""
        self._check_class(name)
        if checked_name(new) in self._state.classes:
            raise SchemaError(f"there is a class {new!r}; to join the two, relabel the labels of {name!r}")
        classes = {new if key == name else key: colour for key, colour in self._state.classes.items()}
        before = self._state.labels
        after = {k: replace(label, value=new) if label.value == name else label for k, label in before.items()}
        labels = TableEdit("labels", dict(before), after)
        self._set_classes(f"rename class {name} to {new}", classes, labels)

    def recolour(self, name: str, colour: Any) -> None:
        """Give a class another colour: '#rrggbb', or what matplotlib knows."""
        self._check_class(name)
        hexed = checked_colour(colour)
        self._set_classes(f"recolour class {name}: {hexed}", self._state.classes | {name: hexed})

    def remove_class(self, name: str, *, with_labels: bool = False) -> None:
        """Remove a class; while labels have it, only together with them."""
        self._check_class(name)
        before = self._state.labels
        after = {k: label for k, label in before.items() if label.value != name}
        n = len(before) - len(after)
        if n and not with_labels:
            raise SchemaError(f"{n} labels are {name!r}; relabel them, or remove them too with with_labels=True")
        classes = {key: colour for key, colour in self._state.classes.items() if key != name}
        labels = [TableEdit("labels", dict(before), after)] if n else []
        self._set_classes(f"remove class {name}" + (f" and {n} labels" if n else ""), classes, *labels)

    def undo(self) -> str:
        """Take back the latest edit, exactly, and return its sentence.

        Raises
        ------
        SchemaError
            If there is none; see `can_undo`.
        """
        return self._log.undo(self._state)

    def redo(self) -> str:
        """Make the edit again that was undone last, and return its sentence; a new edit makes that impossible.

        Raises
        ------
        SchemaError
            If there is none; see `can_redo`.
        """
        return self._log.redo(self._state)

    @classmethod
    def from_geodataframe(
        cls,
        gdf: GeoDataFrame,
        column: str,
        *,
        colours: Mapping[str, Any] | None = None,
        quality: str | float | None = None,
        source: str | None = None,
        target: bool = False,
    ) -> Self:
        """Make labels of a table.

        Text, categories, whole numbers and bool are classes, sorted; a column of floats, or any numbers with
        `target`, is a numeric target.

        Parameters
        ----------
        gdf : GeoDataFrame
            Points and polygons with a CRS, which the set takes over. If its index is called `id`, it gives the ids.
        column : str
            Of the classes or numbers.
        colours : mapping of class to colour, optional
            These classes come first, in this order.
        quality : str or float, optional
            The name of a column, or one value for all.
        source : str, optional
            The name of a column, or, if there is none of that name, a text for all.
        target : bool
            Whether whole numbers are measurements.

        Raises
        ------
        SchemaError
            If there is no such column or no CRS, values or geometries are missing, or some can't be labels.
        """
        options = {"colours": colours, "quality": quality, "source": source, "target": target}
        return cls._of(label_files.from_geodataframe(gdf, column, **options))  # type: ignore[arg-type]

    def to_geodataframe(self) -> GeoDataFrame:
        """Return the labels as a table: index `id`, the target or `class`, `quality`, `source` and `geometry`."""
        return label_files.to_geodataframe(self._state)

    @classmethod
    def from_geojson(
        cls, path: str | Path | Mapping[str, Any], column: str | None = None, *, target: bool = False
    ) -> Self:
        """Read a FeatureCollection, from a file or as a mapping.

        One that `to_geojson` wrote gives everything back but the log.

        Parameters
        ----------
        path : path or mapping
            What to read.
        column : str, optional
            For files of others: the property that holds the class or number; "class" if not told.
        target : bool
            For files of others: whether whole numbers are measurements, as in `from_geodataframe`.

        Raises
        ------
        SchemaError
            If it is damaged or something else, or its features can't be labels.
        """
        return cls._of(label_files.from_geojson(path, column, target=target))

    def to_geojson(self, path: str | Path | None = None) -> dict[str, Any]:
        """Return the labels as a FeatureCollection (RFC 7946), and write it to a file if a path is given.

        Coordinates are degrees of longitude and latitude, to 1e-9. The member `tessera_xr` holds classes, colours,
        target and CRS, so that `from_geojson` gives the same set.
        """
        document = label_files.to_geojson(self._state)
        if path is not None:
            label_files.write_json(document, Path(path))
        return document

    @classmethod
    def from_raster(
        cls,
        da: xr.DataArray,
        *,
        names: Mapping[Any, str] | None = None,
        nodata: float | Literal["auto"] | None = "auto",
        shapes: Literal["polygons", "points"] | None = None,
        n_per_class: int | None = None,
        seed: int = 0,
        target: str | None = None,
    ) -> Self:
        """Make labels of a raster.

        Parameters
        ----------
        da : DataArray (y, x)
            Whole numbers or bool for classes; with `target`, any numbers. With a CRS, which the set takes over.
        names : mapping of value to name, optional
            Without it, names and colours are those of the attributes flag_values, flag_meanings and flag_colors (CF);
            without these, the values as text ('true' and 'false' for bool).
        nodata : number, None or "auto"
            The value of pixels without a label. None: every value counts. "auto": what the raster states as
            `_FillValue` or `nodata`, else 0 for whole numbers, and none for bool and with `target`. NaN never counts.
        shapes : {"polygons", "points"}, optional
            Each region of one value joined by pixel sides as a label, so that its pixels are one group; or centres of
            pixels drawn at random. Points if `n_per_class` or `target` is given, else polygons.
        n_per_class : int, optional
            Points to draw of each class, or in all with `target`; where there are fewer pixels, all, with a warning.
        seed : int, default 0
            Of the draw.
        target : str, optional
            What the raster measures.

        Raises
        ------
        SchemaError
            If the raster holds something else, a value without a name, or nothing.
        GridError
            If it has no CRS.
        """
        options = {"names": names, "nodata": nodata, "shapes": shapes, "n_per_class": n_per_class}
        return cls._of(label_rasters.from_raster(da, **options, seed=seed, target=target))  # type: ignore[arg-type]

    def sample(self, emb: xr.Dataset, *, time: Any = None, min_pixels: int = 2) -> LabelSample:
        """Return the labelled pixels of a map.

        See `tessera_xr.learning.samples.sample_labels`.
        """
        return sample_labels(self, emb, time=time, min_pixels=min_pixels)

    def __repr__(self) -> str:
        labels = list(self)
        kinds = Counter("points" if label.geometry.geom_type == "Point" else "polygons" for label in labels)
        shown = ", ".join(f"{n:,} {kind}" for kind, n in sorted(kinds.items())) or "no labels"
        what = f"numbers ({self.target})" if self.target is not None else f"{len(self._state.classes)} classes"
        lines = [f"LabelSet of {what}: {shown}, {self.crs}, {len(self._log.done)} edits to undo"]
        counts = Counter(label.value for label in labels)
        width = max(map(len, self._state.classes), default=0)
        lines += [f"  {name:<{width}}  {colour}  {counts[name]:,}" for name, colour in self._state.classes.items()]
        if self.target is not None and labels:
            lines.append(f"  from {min(counts):g} to {max(counts):g}")
        return "\n".join(lines)

    def _checked_value(self, value: Any) -> Value:
        if self.target is not None:
            return checked_number(value)
        if checked_name(value) not in self._state.classes and not self._state.grows:
            raise SchemaError(
                f"unknown class {value!r}; choose one of {list(self._state.classes)}, or add it: add_class({value!r})"
            )
        return str(value)

    def _growth(self, value: Value) -> list[TableEdit]:
        """Return the edit that makes the class of a label, if there is none."""
        before = self._state.classes
        if self.target is not None or value in before:
            return []
        return [TableEdit("classes", dict(before), with_class(before, str(value)))]

    def _replace(self, sentence: str, label: Label, **changes: Any) -> None:
        after = replace(label, **changes)
        self._log.run(self._state, sentence, *self._growth(after.value), LabelEdit(label, after, 0))

    def _set_classes(self, sentence: str, classes: Mapping[str, str], *others: TableEdit) -> None:
        edit = TableEdit("classes", dict(self._state.classes), dict(classes))
        self._log.run(self._state, sentence, edit, *others)

    def _check_classes(self) -> None:
        if self.target is not None:
            raise SchemaError(f"these labels are numbers ({self.target}) and have no classes")

    def _check_class(self, name: object) -> None:
        self._check_classes()
        if name not in self._state.classes:
            raise SchemaError(f"there is no class {name!r}; choose one of {list(self._state.classes)}")
