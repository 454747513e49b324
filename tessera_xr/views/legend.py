"""The key of what is shown, as HTML."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from tessera_xr.views.pictures import Classes, Coded, Picture, Scale
from tessera_xr.views.settings import LAYERS

MOST_CLASSES = 12


def legend_html(pictures: Mapping[str, Picture], threshold: float | None = None) -> str:
    """Return the key of some layers, the uppermost first."""
    parts = []
    for name, picture in reversed(list(pictures.items())):
        if isinstance(picture, Coded):
            key = picture.key
            body = (
                _classes(key) if isinstance(key, Classes) else _scale(key, threshold if name == "similarity" else None)
            )
        else:
            body = f"<div>red, green, blue: {escape(picture.label)}</div>" if picture.label else ""
        parts.append(f"<div><b>{escape(LAYERS[name])}</b>{body}</div>")
    return f'<div class="tessera-legend">{"".join(parts)}</div>' if parts else ""


def _classes(key: Classes) -> str:
    shown = list(key.colours.items())[:MOST_CLASSES]
    rows = [
        f'<div><span class="tessera-swatch" style="background:{colour}"></span>{escape(name.replace("_", " "))}</div>'
        for name, colour in shown
    ]
    more = len(key.colours) - len(shown)
    return "".join(rows) + (f"<div>and {more} more</div>" if more else "")


def _scale(key: Scale, threshold: float | None) -> str:
    bar = f'<div class="tessera-bar" style="background:linear-gradient(to right,{",".join(key.colours)})"></div>'
    words = "".join(f"<span>{escape(word)}</span>" for word in (f"{key.low:g}", key.label, f"{key.high:g}"))
    ends = f'<div class="tessera-ends">{words}</div>'
    above = f"<div>shown from {threshold:.3f}</div>" if threshold is not None else ""
    return bar + ends + above
