"""A session on an ipyleaflet map: its layers as pictures, its examples, places and labels as marks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ipyleaflet as leaflet
import ipywidgets as widgets
from odc.geo.geobox import GeoBox

from tessera_xr.errors import GridError
from tessera_xr.grid import geobox_of
from tessera_xr.views.legend import legend_html
from tessera_xr.views.overlay import MOST_PIXELS, Bounds, PalettePicture, Warp, colour_url, make_warp
from tessera_xr.views.pictures import Coded, Picture
from tessera_xr.views.session import Session
from tessera_xr.views.settings import LAYERS, OF_CUBE
from tessera_xr.views.style import style_sheet
from tessera_xr.views.wiring import Wiring

BASEMAPS = {
    "none": None,
    "OpenStreetMap": "https://tile.openstreetmap.org/{z}/{x}/{y}.png",
    "Satellite (Esri)": "https://server.arcgisonline.com/ArcGIS/rest/services/World_Imagery/MapServer/tile/{z}/{y}/{x}",
}
"""Backgrounds, all over https; the map needs none."""
ATTRIBUTION = {"OpenStreetMap": "OpenStreetMap contributors", "Satellite (Esri)": "Esri, Maxar, Earthstar Geographics"}
HEIGHT = "620px"
WIDTH_PX, HEIGHT_PX = 900, 620
"""About the map's size on a screen, from which the first zoom is chosen."""


@dataclass(frozen=True)
class Drawn:
    """A picture in Web Mercator, packed."""

    picture: Picture
    warp: Warp
    window: Bounds | None
    packed: PalettePicture | str
    """Codes whose colours can change, or a picture that is done."""

    @classmethod
    def of(cls, picture: Picture, warp: Warp, window: Bounds | None) -> Drawn:
        """Look its pixels up and pack them."""
        if isinstance(picture, Coded):
            return cls(picture, warp, window, PalettePicture(warp.apply(picture.codes)))
        return cls(picture, warp, window, colour_url(warp.apply(picture.rgba)))

    def url(self, threshold: float | None) -> str:
        """Return it as a data URL, on a scale only what is above the threshold."""
        if isinstance(self.packed, str):
            return self.packed
        assert isinstance(self.picture, Coded)
        return self.packed.url(self.picture.above(threshold))


class MapView(widgets.VBox):
    """A map of a session's layers, usable by itself.

    Parameters
    ----------
    session : Session or Wiring
        What to show.
    """

    def __init__(self, session: Session | Wiring) -> None:
        self.wiring = session if isinstance(session, Wiring) else Wiring(session)
        self.session = self.wiring.session
        self.clicked: list[Callable[[float, float], object]] = []
        """Called with (lon, lat) of each click."""
        self.map = _make_map(self.session)
        self.overlays: dict[str, leaflet.ImageOverlay] = {}
        self._drawn: dict[str, Drawn] = {}
        self._window: Bounds | None = None
        self.marks = leaflet.LayerGroup(name="examples and places")
        self.label_layer = leaflet.GeoJSON(data={"type": "FeatureCollection", "features": []}, name="labels")
        self.label_layer.point_style = {"radius": 6, "weight": 2, "fillOpacity": 0.9}
        self.map.add(self.label_layer)
        self.map.add(self.marks)
        self.legend = widgets.HTML()
        self.map.add(leaflet.WidgetControl(widget=self.legend, position="bottomleft"))
        self.map.add(leaflet.ScaleControl(position="bottomright", imperial=False))
        self.note = widgets.HTML()
        super().__init__([style_sheet(), self.map, self.note])
        self.add_class("tessera-map")
        self.map.on_interaction(self._interaction)
        self.map.observe(self.wiring.guard(self._moved), names="bounds")
        self.wiring.on("layers query threshold head time labels", self.refresh)
        self.wiring.on("labels", self.show_labels)
        self.wiring.on("query place", self.show_marks)
        self.places: list[tuple[float, float, str]] = []
        """(lon, lat, text) of numbered places to mark."""
        self.wiring.run(self.refresh)
        self.wiring.run(self.show_labels)

    def set_basemap(self, name: str) -> None:
        """Show a background, or "none"."""
        self.map.layers = tuple(layer for layer in self.map.layers if not isinstance(layer, leaflet.TileLayer))
        if (url := BASEMAPS[name]) is not None:
            tiles = leaflet.TileLayer(
                url=url, attribution=ATTRIBUTION[name], name=name, max_zoom=22, max_native_zoom=18
            )
            self.map.layers = (tiles, *self.map.layers)

    def refresh(self) -> None:
        """Bring every layer up to date; only what changed is drawn anew."""
        for name, layer in self.session.settings.layers.items():
            if layer.visible:
                self.wiring.run(self._draw, name)
            elif name in self.overlays:
                self._hide(name)
        self._describe()

    def _draw(self, name: str) -> None:
        nothing = {"similarity": not self.session.query.positives, "classes": self.session.head is None}
        if nothing.get(name):
            self._hide(name)
            return
        picture = self.session.picture(name)
        drawn = self._drawn.get(name)
        if drawn is None or drawn.picture is not picture or drawn.window != self._window:
            drawn = Drawn.of(picture, self._warp(name), self._window)
            self._drawn[name] = drawn
        threshold = self.session.threshold if name == "similarity" else None
        self._put(name, drawn.url(threshold), drawn.warp, self.session.settings.layers[name].opacity)

    def _put(self, name: str, url: str, warp: Warp, opacity: float) -> None:
        south_west, north_east = warp.corners
        bounds = [list(south_west), list(north_east)]
        overlay = self.overlays.get(name)
        if overlay is None:
            overlay = leaflet.ImageOverlay(url=url, bounds=bounds, opacity=opacity, pane=name, name=LAYERS[name])
            self.overlays[name] = overlay
            self.map.add(overlay)
            return
        with overlay.hold_trait_notifications():
            overlay.url, overlay.bounds, overlay.opacity = url, bounds, opacity

    def _hide(self, name: str) -> None:
        overlay = self.overlays.pop(name, None)
        self._drawn.pop(name, None)
        if overlay is not None:
            self.map.remove(overlay)
            overlay.close()

    def _grid(self, name: str) -> GeoBox:
        cube = self.session.cube
        return self.session.box if cube is None or name not in OF_CUBE else geobox_of(cube)

    def _warp(self, name: str) -> Warp:
        box = self._grid(name)

        def made() -> Warp:
            whole = make_warp(box, most_pixels=MOST_PIXELS)
            if whole.coarsening <= 1 or self._window is None:
                return whole
            try:
                return make_warp(box, within=self._window, most_pixels=MOST_PIXELS)
            except GridError:  # the view has left the raster
                return whole

        return self.session.answers.once(("warp", box, self._window), made)

    def _moved(self) -> None:
        """Keep the view; where the whole map is coarser than its pixels, draw what is on screen sharper."""
        (south, west), (north, east) = self.map.bounds
        self.session.set(centre=tuple(map(float, self.map.center)), zoom=float(self.map.zoom))
        window = (west, south, east, north) if east > west and north > south else None
        if window is not None and self._is_coarse() and window != self._window:
            self.wiring.later("view", lambda: window, self._look_closer)

    def _look_closer(self, window: Bounds) -> None:
        self._window = window
        self.refresh()

    def _is_coarse(self) -> bool:
        return any(self._whole(name).coarsening > 1 for name in self.overlays)

    def _whole(self, name: str) -> Warp:
        box = self._grid(name)
        return self.session.answers.once(("warp", box, None), lambda: make_warp(box, most_pixels=MOST_PIXELS))

    def _describe(self) -> None:
        shown = {n: self.session.settings.layers[n] for n in self.overlays}
        self.legend.value = legend_html({n: self.session.picture(n) for n in shown}, self.session.threshold)
        coarse = max((drawn.warp.coarsening for drawn in self._drawn.values()), default=1)
        told = f"One of {coarse:.1f} x {coarse:.1f} pixels is shown; zoom in to see all."
        self.note.value = f'<span class="tessera-note">{told}</span>' if coarse > 1 else ""

    def show_marks(self) -> None:
        """Mark the examples of the question, and the places found."""
        place_of, query = self.session.place_of, self.session.query
        marks = [_mark(place_of(p), "+", "like") for p in query.positives]
        marks += [_mark(place_of(p), "&minus;", "unlike") for p in query.negatives]
        marks += [_mark((lon, lat), text, "found") for lon, lat, text in self.places]
        self.marks.layers = tuple(marks)

    def show_labels(self) -> None:
        """Draw the labels in the colours of their classes."""
        colours = self.session.labels.classes
        document = self.session.labels.to_geojson()
        features = []
        for feature in document["features"]:
            value = feature["properties"].get("class")
            style = {"color": "#ffffff", "weight": 2, "fillColor": colours.get(value, "#3388ff"), "fillOpacity": 0.7}
            features.append({**feature, "properties": {**feature["properties"], "style": style}})
        self.label_layer.data = {"type": "FeatureCollection", "features": features}

    def _interaction(self, **event: Any) -> None:
        if event.get("type") == "click":
            lat, lon = event["coordinates"]
            for listener in self.clicked:
                self.wiring.run(listener, float(lon), float(lat))


def _make_map(session: Session) -> leaflet.Map:
    warp = make_warp(session.box, most_pixels=64)
    (south, west), (north, east) = warp.corners
    centre = session.settings.centre or ((south + north) / 2, (west + east) / 2)
    zoom = session.settings.zoom or fitting_zoom(warp.bounds)
    # above tiles (200) and below labels and tools (400), each in a pane of its own, which keeps their order
    panes = {name: {"zIndex": 210 + 10 * i} for i, name in enumerate(LAYERS)}
    made = leaflet.Map(
        center=centre, zoom=zoom, layers=(), panes=panes, scroll_wheel_zoom=True, max_zoom=22, zoom_snap=0.5,
        interpolation="nearest", double_click_zoom=False,
    )  # fmt: skip
    made.layout.height = HEIGHT
    return made


def fitting_zoom(bounds: Bounds) -> float:
    """Return the zoom at which an area fills the map."""
    import numpy as np

    from tessera_xr.views.overlay import RADIUS, to_mercator

    x, y = to_mercator(np.array(bounds[::2]), np.array(bounds[1::2]))
    world = 2 * np.pi * RADIUS
    per_pixel = max((x[1] - x[0]) / WIDTH_PX, (y[1] - y[0]) / HEIGHT_PX, 1e-3)
    return float(np.clip(np.floor(2 * np.log2(world / 256 / per_pixel)) / 2, 1, 20))


def _mark(place: tuple[float, float], text: str, kind: str) -> leaflet.Marker:
    icon = leaflet.DivIcon(html=f'<div class="tessera-mark tessera-{kind}">{text}</div>', icon_size=[24, 24])
    title = {"like": "example", "unlike": "counter-example"}.get(kind, f"place {text}")
    return leaflet.Marker(location=place[::-1], icon=icon, draggable=False, title=title, alt=title)
