"""The panel for looking: layers, colours, times."""

from __future__ import annotations

import ipywidgets as widgets

from tessera_xr.views.controls import choice, panel, row, slider
from tessera_xr.views.map_view import BASEMAPS, MapView
from tessera_xr.views.settings import LAYERS
from tessera_xr.views.wiring import Wiring


def looking_panel(wiring: Wiring, view: MapView) -> widgets.VBox:
    """Return the controls of what is shown."""
    session = wiring.session
    rows = [_layer_row(wiring, name) for name in reversed(session.layer_names())]
    parts: list[widgets.Widget] = [widgets.HTML("<b>Layers</b>, the uppermost first"), *rows]
    parts += [*_colours(wiring), *_times(wiring), *_dates(wiring), _clusters(wiring)]
    background = choice("Background", list(BASEMAPS), "none", lambda change: wiring.run(view.set_basemap, change.new))
    background.tooltip = "Backgrounds come from the internet; the map needs none"
    return panel(*parts, background)


def _layer_row(wiring: Wiring, name: str) -> widgets.HBox:
    session = wiring.session
    shown = widgets.Checkbox(
        value=session.settings.layers[name].visible, description=LAYERS[name], indent=False,
        layout=widgets.Layout(width="190px"),
    )  # fmt: skip
    faint = widgets.FloatSlider(
        value=session.settings.layers[name].opacity, min=0, max=1, step=0.05, readout=False,
        layout=widgets.Layout(width="110px"), tooltip=f"Opacity of {LAYERS[name]}",
    )  # fmt: skip

    def change() -> None:
        visible, opacity = shown.value, faint.value
        if not visible or name in ("similarity", "classes"):
            session.show(name, visible=visible, opacity=opacity)
            wiring.tell("layers")
            return
        # a picture may take seconds the first time
        session.show(name, visible=True, opacity=opacity)
        wiring.later("layers", lambda: session.picture(name), lambda _: wiring.tell("layers"), f"{LAYERS[name]} ...")

    def follow() -> None:
        layer = session.settings.layers[name]
        shown.value, faint.value = layer.visible, layer.opacity

    def changed() -> None:
        layer = session.settings.layers[name]
        if (shown.value, faint.value) != (layer.visible, layer.opacity):
            change()

    for widget in (shown, faint):
        widget.observe(wiring.guard(changed), names="value")
    wiring.on("layers", follow)
    return row(shown, faint)


def _colours(wiring: Wiring) -> list[widgets.Widget]:
    session = wiring.session
    n = min(6, session.emb.sizes["band"])
    options = [(str(i + 1), i) for i in range(n)]
    lists = [
        widgets.Dropdown(options=options, value=min(i, n - 1), layout=widgets.Layout(width="60px"), tooltip=colour)
        for i, colour in enumerate(("red", "green", "blue"))
    ]

    def change() -> None:
        session.set(channels=tuple(w.value for w in lists))
        wiring.tell("layers")

    for widget in lists:
        widget.observe(wiring.guard(change), names="value")
    return [row(widgets.HTML("Components as red, green, blue"), *lists)]


def _times(wiring: Wiring) -> list[widgets.Widget]:
    session = wiring.session
    if len(session.times) < 2:
        return []
    year = widgets.SelectionSlider(
        options=session.times, value=session.settings.time, description="Time", continuous_update=False
    )
    before = choice("Change since", session.times, session.settings.before, lambda _: wiring.run(change))

    def change() -> None:
        session.set(time=year.value, before=before.value)
        wiring.tell("time")

    def follow() -> None:
        year.value, before.value = session.settings.time, session.settings.before

    year.observe(lambda _: year.value != session.settings.time and wiring.run(change), names="value")
    wiring.on("time", follow)
    return [year, before]


def _dates(wiring: Wiring) -> list[widgets.Widget]:
    session = wiring.session
    if "true_colour" not in session.layer_names() or session.cube is None:
        return []
    cube = session.cube
    days = cube["s2_time"].values.astype("datetime64[D]").astype(str)
    clear = cube["s2_valid"].mean(("y", "x")).compute().values
    options = [("median of the clear dates", None)]
    options += [(f"{day}, {share:.0%} clear", day) for day, share in zip(days, clear, strict=True)]

    def change(date: str | None) -> None:
        session.set(date=date)
        wiring.tell("layers")

    return [choice("Sentinel-2", options, session.settings.date, lambda event: wiring.run(change, event.new))]


def _clusters(wiring: Wiring) -> widgets.Widget:
    session = wiring.session

    def change(n: float) -> None:
        session.set(n_clusters=int(n))
        if session.settings.layers["clusters"].visible:
            wiring.later("layers", lambda: session.picture("clusters"), lambda _: wiring.tell("layers"), "Clusters ...")

    n = session.settings.n_clusters
    made = slider("Clusters", 2, 20, 1, n, lambda event: wiring.run(change, event.new), live=False)
    made.readout_format = "d"
    return made
