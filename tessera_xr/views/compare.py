"""Two layers or two years beside each other: a swipe on one map, or two maps that move together."""

from __future__ import annotations

from typing import Any

import ipyleaflet as leaflet
import ipywidgets as widgets

from tessera_xr.grid import geobox_of
from tessera_xr.views.controls import choice, row
from tessera_xr.views.map_view import Drawn, fitting_zoom
from tessera_xr.views.overlay import make_warp
from tessera_xr.views.session import Session
from tessera_xr.views.settings import LAYERS, OF_CUBE
from tessera_xr.views.wiring import Wiring

SIDES = ("left", "right")
HEIGHT = "420px"


class Compare(widgets.VBox):
    """Compare two layers, or one layer at two times; usable by itself.

    Parameters
    ----------
    session : Session or Wiring
        Whose layers.
    """

    def __init__(self, session: Session | Wiring) -> None:
        self.wiring = session if isinstance(session, Wiring) else Wiring(session)
        self.session = self.wiring.session
        guard = self.wiring.guard
        names = [(LAYERS[name], name) for name in self.session.layer_names()]
        times = self.session.times
        self.layers = {side: choice(side.capitalize(), names, "embedding", guard(self.refresh)) for side in SIDES}
        starts = dict(zip(SIDES, (times[0], self.session.settings.time), strict=True))
        self.times = {side: choice("at", times, starts[side], guard(self.refresh)) for side in SIDES}
        self.how = choice("As", [("a swipe", "swipe"), ("two maps", "maps")], "swipe", guard(self._arrange))
        self.overlays: dict[str, leaflet.ImageOverlay] = {}
        self.maps: list[leaflet.Map] = []
        self.stage = widgets.HBox()
        pickers = [w for side in SIDES for w in (self.layers[side], self.times[side])]
        shown = [w for w in pickers if len(times) > 1 or w not in self.times.values()]
        super().__init__([row(*shown, self.how), self.stage])
        self.wiring.on("query head labels", self.refresh)
        self._arrange()

    def _arrange(self) -> None:
        """Make the map, or both, and fill them."""
        for old in self.maps:
            old.close()
        self.overlays = {side: leaflet.ImageOverlay(pane=side, name=side) for side in SIDES}
        count = 1 if self.how.value == "swipe" else 2
        self.maps = [self._map() for _ in range(count)]
        self._fill()
        if count == 1:
            for side in SIDES:
                self.maps[0].add(self.overlays[side])
            control = leaflet.SplitMapControl(left_layer=self.overlays["left"], right_layer=self.overlays["right"])
            self.maps[0].add(control)
        else:
            for one, side in zip(self.maps, SIDES, strict=True):
                one.add(self.overlays[side])
            self._link()
        self.stage.children = self.maps

    def _map(self) -> leaflet.Map:
        bounds = make_warp(self.session.box, most_pixels=64).bounds
        centre = ((bounds[1] + bounds[3]) / 2, (bounds[0] + bounds[2]) / 2)
        settings = self.session.settings
        # each side has a pane of its own: in a shared one the left picture would vanish
        made = leaflet.Map(
            center=settings.centre or centre, zoom=settings.zoom or fitting_zoom(bounds) - 0.5, layers=(),
            panes={side: {"zIndex": 210 + i} for i, side in enumerate(SIDES)}, scroll_wheel_zoom=True,
            interpolation="nearest", zoom_snap=0.5, max_zoom=22,
        )  # fmt: skip
        made.layout.height, made.layout.flex = HEIGHT, "1 1 50%"
        return made

    def _link(self) -> None:
        def follow(change: Any) -> None:
            for other in self.maps:
                if other is not change.owner and getattr(other, change.name) != change.new:
                    setattr(other, change.name, change.new)

        for one in self.maps:
            one.observe(follow, names=["center", "zoom"])

    def refresh(self) -> None:
        """Bring both sides up to date."""
        self.wiring.later("compare", self._pictures, self._put, "Comparing ...")

    def _pictures(self) -> dict[str, Drawn]:
        drawn = {}
        for side in SIDES:
            layer = self.layers[side].value
            cube = self.session.cube
            box = geobox_of(cube) if layer in OF_CUBE and cube is not None else self.session.box
            drawn[side] = Drawn.of(self.session.picture(layer, self.times[side].value), make_warp(box), None)
        return drawn

    def _fill(self) -> None:
        found = self.wiring.run(self._pictures)
        if found is not None:
            self._put(found)

    def _put(self, drawn: dict[str, Drawn]) -> None:
        for side, one in drawn.items():
            south_west, north_east = one.warp.corners
            with self.overlays[side].hold_trait_notifications():
                self.overlays[side].bounds = [list(south_west), list(north_east)]
                self.overlays[side].url = one.url(None)
        self.wiring.say("")
