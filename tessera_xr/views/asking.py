"""The panel for asking: places like these, unlike those, how alike, how many hectares, where else."""

from __future__ import annotations

import ipywidgets as widgets

from tessera_xr.views.controls import button, choice, panel, row, slider
from tessera_xr.views.map_view import MapView
from tessera_xr.views.wiring import Wiring


class Asking:
    """The controls of a question."""

    def __init__(self, wiring: Wiring, view: MapView) -> None:
        self.wiring, self.view, self.session = wiring, view, wiring.session
        self.told = widgets.HTML()
        self.area = widgets.HTML()
        self.threshold = slider("Show from", -1, 1, 0.004, -1, wiring.guard(self._set_threshold))
        self.combine = choice(
            "Several examples", [("on average", "mean"), ("any of them", "max"), ("all of them", "min")],
            self.session.query.combine, wiring.guard(self._set_combine),
        )  # fmt: skip
        self.panel = panel(
            self.told,
            row(
                button("Forget examples", wiring.guard(self.clear), "Forget all examples (Escape)"),
                button(
                    "Find 10 places", wiring.guard(self.find), "Mark the most similar places, apart from each other"
                ),
            ),
            self.threshold,
            self.area,
            self.combine,
        )
        wiring.on("query threshold time", self.follow)
        self.follow()

    def ask(self, lon: float, lat: float) -> None:
        """Look for places like this one alone."""
        self.session.ask(lon, lat)
        self._show()

    def add(self, lon: float, lat: float, *, like: bool) -> None:
        """Look for places like this one too, or unlike it."""
        self.session.add_example(lon, lat, like=like)
        self._show()

    def _show(self) -> None:
        self.session.show("similarity")
        self.view.places = []
        if not self.session.query.positives:  # counter-examples alone say nothing yet
            self.wiring.tell("query")
            return
        self.wiring.later("similarity", lambda: self.session.picture("similarity"), self._shown)

    def _shown(self, _: object) -> None:
        self.wiring.tell("query layers")
        self.wiring.say("")

    def clear(self) -> None:
        """Forget all examples."""
        self.session.clear_examples()
        self.view.places = []
        self.wiring.tell("query")

    def find(self) -> None:
        """Mark the most similar places."""
        self.wiring.later("places", lambda: self.session.find_places(10), self._found, "Looking for places ...")

    def _found(self, places: object) -> None:
        rows = places.itertuples()  # type: ignore[attr-defined]
        self.view.places = [(p.lon, p.lat, str(p.rank)) for p in rows]
        self.wiring.tell("place")
        self.wiring.say(f"{len(self.view.places)} places, 1 is the most similar.")

    def _set_threshold(self) -> None:
        low = self.session.query.scale.low
        value = self.threshold.value
        self.session.set(threshold=None if value <= max(low, self.threshold.min) else value)
        self.wiring.tell("threshold")

    def _set_combine(self) -> None:
        if self.combine.value != self.session.query.combine:
            self.session.set_combine(self.combine.value)
            self._show()

    def follow(self) -> None:
        """Show the session's question."""
        query = self.session.query
        n, m = len(query.positives), len(query.negatives)
        without = f", {m} unlike" if m else ""
        self.told.value = (
            f"<b>{n} like{without}</b>"
            if n
            else "Click a place on the map: where else does it look like this all year?"
        )
        self.threshold.min = query.scale.low
        self.threshold.value = query.scale.low if self.session.threshold is None else self.session.threshold
        self.combine.value = query.combine
        self.combine.disabled = max(n, m) < 2
        hectares = self.session.hectares_above()
        self.area.value = (
            "" if hectares is None else f"<b>{hectares:,.1f} ha</b> at {self.session.threshold:.3f} or more"
        )
