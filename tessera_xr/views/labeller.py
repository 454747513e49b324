"""Labels: classes, points and polygons drawn on the map, regions made labels, files in and out."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

import ipyleaflet as leaflet
import ipywidgets as widgets
import numpy as np
from shapely.geometry import Point

from tessera_xr.errors import GridError, SchemaError
from tessera_xr.learning.geometries import reproject
from tessera_xr.learning.labels import LabelSet
from tessera_xr.views.controls import button, panel, row
from tessera_xr.views.map_view import MapView
from tessera_xr.views.session import Session
from tessera_xr.views.wiring import Wiring


class Labeller(widgets.VBox):
    """A map to label on, or the panel for one, usable by itself.

    Parameters
    ----------
    session : Session or Wiring
        Whose labels.
    view : MapView, optional
        The map to draw on; one of its own if not given.
    """

    def __init__(self, session: Session | Wiring, view: MapView | None = None) -> None:
        self.wiring = session if isinstance(session, Wiring) else Wiring(session)
        self.session = self.wiring.session
        self.view = view or MapView(self.wiring)
        guard = self.wiring.guard
        self.classes = widgets.ToggleButtons(options=[], tooltips=[], style={"button_width": "auto"})
        self.classes.observe(guard(self._choose), names="value")
        self.name = widgets.Text(placeholder="name of a class", layout=widgets.Layout(width="130px"))
        self.colour = widgets.ColorPicker(value="#e69f00", concise=True, tooltip="Its colour")
        self.counts = widgets.HTML()
        self.cluster = widgets.BoundedIntText(
            value=1, min=1, max=254, description="Cluster", layout=widgets.Layout(width="130px")
        )
        self.file = widgets.Text(value="labels.geojson", description="File", layout=widgets.Layout(width="auto"))
        self.draw = leaflet.DrawControl(
            marker={}, circle={}, circlemarker={}, polyline={},
            polygon={"shapeOptions": {"color": "#222", "fillOpacity": 0.3}},
            rectangle={"shapeOptions": {"color": "#222", "fillOpacity": 0.3}},
            edit=False, remove=False,
        )  # fmt: skip
        self.draw.on_draw(self._drawn)
        self.view.map.add(self.draw)
        self.panel = self._panel()
        super().__init__([self.panel] if view is not None else [self.view, self.panel])
        if view is None:
            self.view.clicked.append(self.label)
        self.wiring.on("labels", self.follow)
        self.follow()

    def _panel(self) -> widgets.VBox:
        guard = self.wiring.guard
        return panel(
            widgets.HTML("<b>Classes</b>: choose one (keys 1 to 9), click the map, or draw an area"),
            self.classes,
            row(self.name, self.colour, button("Add class", guard(self.add_class))),
            self.counts,
            row(
                button("Remove last label", guard(self.remove_last)),
                button("Similar places", guard(self.promote_similar), "Label places above the threshold"),
            ),
            row(self.cluster, button("Label it", guard(self.promote_cluster), "Label places of this cluster")),
            self.file,
            row(button("Import", guard(self.load)), button("Export", guard(self.save))),
        )

    def label(self, lon: float, lat: float) -> None:
        """Label a place with the chosen class."""
        self.session.pixel_at(lon, lat)
        self.session.label((lon, lat))
        self.wiring.tell("labels")

    def _drawn(self, _: Any, action: str, geo_json: dict[str, Any]) -> None:
        if action == "created":
            self.wiring.run(self._take_back_corners, geo_json["geometry"])
            self.wiring.run(self.label_area, geo_json["geometry"])
            self.draw.clear()

    def _take_back_corners(self, geometry: dict[str, Any]) -> None:
        """Take back labels that clicks made while an area was drawn: the map may see its corners as clicks too."""
        corners = {self._pixel(Point(corner)) for corner in geometry["coordinates"][0]}
        while self.session.history.last_is_label and (labels := list(self.session.labels)):
            last = labels[-1].geometry
            lonlat = reproject(np.array([last], dtype=object), self.session.labels.crs, "EPSG:4326")[0]
            if last.geom_type != "Point" or self._pixel(lonlat) not in corners:
                return
            self.session.undo()

    def _pixel(self, place: Point) -> tuple[int, int] | None:
        try:
            return self.session.pixel_at(place.x, place.y)
        except GridError:
            return None

    def label_area(self, geometry: dict[str, Any]) -> None:
        """Label an area, GeoJSON in degrees, with the chosen class."""
        self.session.label(geometry)
        self.wiring.tell("labels")

    def add_class(self) -> None:
        """Add the class that is named."""
        name = self.name.value.strip()
        if not name:
            raise SchemaError("give the class a name first")
        used = self.colour.value in self.session.labels.classes.values()
        self.session.add_class(name, None if used else self.colour.value)
        self.name.value = ""
        self.wiring.tell("labels")

    def choose_number(self, number: int) -> None:
        """Choose the class of this number, from 1."""
        names = list(self.session.labels.classes)
        if number <= len(names):
            self.session.set(current=names[number - 1])
            self.wiring.tell("labels")

    def _choose(self) -> None:
        if self.classes.value is not None and self.classes.value != self.session.settings.current:
            self.session.set(current=self.classes.value)

    def remove_last(self) -> None:
        """Remove the newest label."""
        labels = list(self.session.labels)
        if not labels:
            raise SchemaError("there are no labels")
        self.session.change_labels(lambda all_labels: all_labels.remove(labels[-1].id))
        self.wiring.tell("labels")

    def _current(self) -> str:
        if self.session.settings.current is None:
            raise SchemaError("choose a class first, or add one")
        return self.session.settings.current

    def promote_similar(self) -> None:
        """Label places that are similar enough."""
        n = self.session.promote_similar(self._current())
        self.wiring.tell("labels")
        self.wiring.say(f"{n} places above the threshold are now {self._current()}.")

    def promote_cluster(self) -> None:
        """Label places of a cluster."""
        n = self.session.promote_cluster(self.cluster.value, self._current())
        self.wiring.tell("labels")
        self.wiring.say(f"{n} places of cluster {self.cluster.value} are now {self._current()}.")

    def load(self) -> None:
        """Add the labels of a GeoJSON file."""
        found = LabelSet.from_geojson(Path(self.file.value))
        self.session.change_labels(lambda labels: labels.extend(found))
        self.wiring.tell("labels")
        self.wiring.say(f"{len(found)} labels of {self.file.value} added.")

    def save(self) -> None:
        """Write the labels to a GeoJSON file."""
        self.session.labels.to_geojson(self.file.value)
        self.wiring.say(f"{len(self.session.labels)} labels are in {self.file.value}.")

    def follow(self) -> None:
        """Show the session's classes."""
        counts, colours = self.session.class_counts(), self.session.labels.classes
        options = [(f"{i} {name}", name) for i, name in enumerate(colours, start=1)]
        if list(self.classes.options) != options:
            self.classes.options = options
        if options:
            self.classes.value = self.session.settings.current
        rows = "".join(
            f'<div><span class="tessera-swatch" style="background:{colours[name]}"></span>'
            f"{escape(name)}: {n} label{'s' * (n != 1)}</div>"
            for name, n in counts.items()
        )
        self.counts.value = rows or "No classes yet."
