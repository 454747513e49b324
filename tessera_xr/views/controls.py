"""Small widgets that the panels are made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ipywidgets as widgets

WIDE = widgets.Layout(width="auto")


def button(text: str, press: Callable[..., None], tip: str = "", icon: str = "", style: str = "") -> widgets.Button:
    """Return a button with a tip that screen readers read too."""
    made = widgets.Button(description=text, tooltip=tip or text, icon=icon, button_style=style, layout=WIDE)
    made.on_click(press)
    return made


def choice(label: str, options: Sequence[Any], value: Any, changed: Callable[..., None]) -> widgets.Dropdown:
    """Return a list to choose from."""
    made = widgets.Dropdown(
        options=options, value=value, description=label, layout=WIDE, style={"description_width": "initial"}
    )
    made.observe(changed, names="value")
    return made


def slider(
    label: str, low: float, high: float, step: float, value: float, changed: Callable[..., None], *, live: bool = True
) -> widgets.FloatSlider:
    """Return a slider; not `live`: it tells only when it is let go."""
    made = widgets.FloatSlider(
        value=value, min=low, max=high, step=step, description=label, continuous_update=live, readout_format=".3f",
        layout=WIDE, style={"description_width": "initial"},
    )  # fmt: skip
    made.observe(changed, names="value")
    return made


def row(*children: widgets.Widget) -> widgets.HBox:
    """Return widgets side by side, wrapped where there is no room."""
    return widgets.HBox(list(children), layout=widgets.Layout(flex_flow="row wrap", align_items="center"))


def panel(*children: widgets.Widget) -> widgets.VBox:
    """Return widgets under each other."""
    made = widgets.VBox(list(children), layout=widgets.Layout(padding="4px", width="100%"))
    made.add_class("tessera-panel")
    return made
