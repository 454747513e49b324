"""Maps as HoloViews objects for Bokeh."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import mul
from typing import Any

import numpy as np

from tessera_xr.views.plots.layers import Classes, Colours, Frame, Map, Marks, Numbers, joined
from tessera_xr.views.plots.loading import holoviews

SIZE = 430
"""Screen pixels of the longer side of a map."""
SMALL = 205
"""That of one of several maps."""
MANY_PIXELS = 1_000_000
"""A raster with more goes through Datashader, which sends what the screen can show."""
MOST_NAMES = 24
"""Classes in a legend."""


COLUMNS = 3
BAR = {"colorbar_position": "bottom", "colorbar_opts": {"height": 12, "title_standoff": 4, "padding": 4}}
"""A bar below, its title above it: beside the map Bokeh would turn the title, over the map's edge."""
LEGEND = {
    "legend_position": "right",
    "legend_opts": {
        "location": "top_left", "padding": 6, "margin": 4, "spacing": 0, "glyph_height": 18, "label_height": 17,
        "label_text_font_size": "9pt",
    },
}  # fmt: skip


def draw(maps: Sequence[Map], title: str = "") -> Any:
    """Return one map as an overlay, several as a layout of three columns under a title, with one key."""
    hv = holoviews()
    if len(maps) == 1:
        return draw_map(maps[0])
    last = min(COLUMNS, len(maps)) - 1
    drawn = [draw_map(one, SMALL, key=i == last, inner=i % COLUMNS > 0) for i, one in enumerate(maps)]
    return hv.Layout(drawn).cols(COLUMNS).opts(hv.opts.Layout(shared_axes=True, title=title, backend="bokeh"))


def draw_map(one: Map, size: int = SIZE, *, key: bool = True, inner: bool = False) -> Any:
    """Return a map as an overlay; `key`: with its legend or colour bar; `inner`: not the first of its row."""
    hv = holoviews()
    elements = [part for layer in one.layers for part in _draw_layer(layer, one.frame, key=key)]
    options = frame_options(one.frame, size) | {"title": title_of(one)} | ({"ylabel": ""} if inner else {})
    if len(elements) == 1:
        return elements[0].opts(**options, backend="bokeh")
    whole = reduce(mul, elements)  # hv.Overlay would not take what Datashader makes anew at each zoom
    return whole.opts(hv.opts.Overlay(**options, **LEGEND, show_legend=key, backend="bokeh"))


def title_of(one: Map) -> str:
    """Return the title of a map, which says if there is nothing to see."""
    return joined(one.title, "no data") if one.is_empty else one.title


def frame_options(frame: Frame, size: int = SIZE) -> dict[str, Any]:
    """Return the options of HoloViews that put a map in its frame, with pixels as wide as they are high."""
    left, right, bottom, top = frame.view
    longer = max(1.0, frame.ratio)
    ticks = {"xformatter": _digits(right - left), "yformatter": _digits(top - bottom)}
    return {
        "xlim": (left, right), "ylim": (bottom, top), "xlabel": frame.x_label, "ylabel": frame.y_label,
        "frame_width": round(size / longer), "frame_height": round(size * frame.ratio / longer),
        "xticks": 3 if size < SIZE else 4, "yticks": 5, "fontsize": {"title": 11 if size >= SIZE else 9},
        "active_tools": ["pan", "wheel_zoom"], **ticks,
    }  # fmt: skip


def _digits(span: float) -> str:
    """Return the format of ticks along a span: all digits before the point, and those after that differ."""
    return f"%.{_decimals(span)}f"


def _decimals(span: float) -> int:
    return max(0, int(np.ceil(-np.log10(span / 6))))


def _draw_layer(layer: Any, frame: Frame, *, key: bool) -> list[Any]:
    if isinstance(layer, Marks):
        return _draw_marks(layer)
    if isinstance(layer, Numbers):
        return [_draw_numbers(layer, frame, key=key)]
    return _draw_classes(layer, frame, key=key) if isinstance(layer, Classes) else [draw_colours(layer, frame)]


def _bounds(frame: Frame) -> tuple[float, float, float, float]:
    left, right, bottom, top = frame.extent
    return left, bottom, right, top


def _draw_numbers(layer: Numbers, frame: Frame, *, key: bool) -> Any:
    hv = holoviews()
    value = hv.Dimension(layer.label, range=(layer.low, layer.high))
    image = hv.Image(layer.values, ["x", "y"], value, bounds=_bounds(frame))
    options = {"clim": (layer.low, layer.high), "cmap": layer.colours, "colorbar": key, "tools": ["hover"]}
    return sent(image, "mean").opts(hv.opts.Image(**options, **BAR, clabel=layer.label, backend="bokeh"))


def _draw_classes(layer: Classes, frame: Frame, *, key: bool) -> list[Any]:
    hv = holoviews()
    top = len(layer.names) - 0.5
    code = hv.Dimension(layer.label, range=(-0.5, top))
    image = hv.Image(layer.index, ["x", "y"], code, bounds=_bounds(frame))
    options = {
        "clim": (-0.5, top),
        "cmap": list(layer.colours),
        "tools": ["hover"],
        "hooks": [_hover_names(layer, frame)],
    }
    shown = sent(image, "mode").opts(hv.opts.Image(**options, colorbar=False, backend="bokeh"))
    return [shown, *(_keys(layer) if key else [])]


def _keys(layer: Classes) -> list[Any]:
    """Return an element without points for each class: its line in the legend."""
    hv = holoviews()
    names, colours = key_of(layer)
    nothing = np.full((1, 2), np.nan)
    options = {"marker": "square", "size": 11, "show_legend": True, "line_color": "#00000055"}
    return [
        hv.Points(nothing, ["x", "y"], label=name).opts(color=colour, **options, backend="bokeh")
        for name, colour in zip(names, colours, strict=True)
    ]


def key_of(layer: Classes) -> tuple[list[str], list[str]]:
    """Return names and colours for a legend; of very many classes those with most pixels, and how many are left."""
    if len(layer.names) <= MOST_NAMES:
        return list(layer.names), list(layer.colours)
    held = layer.index[np.isfinite(layer.index)].astype(np.intp)
    sizes = np.bincount(held, minlength=len(layer.names))
    kept = sorted(np.argsort(-sizes, kind="stable")[: MOST_NAMES - 1].tolist())
    names, colours = ([values[i] for i in kept] for values in (layer.names, layer.colours))
    return [*names, f"and {len(layer.names) - len(kept)} more"], [*colours, "#ffffff"]


def _hover_names(layer: Classes, frame: Frame) -> Any:
    """Return a hook that has the pointer tell the name of a class."""
    names = list(layer.names)
    decimals = _decimals(frame.extent[1] - frame.extent[0])
    form = "{0." + "0" * decimals + "}" if decimals else "{0}"

    def hook(plot: Any, element: Any) -> None:  # noqa: ARG001
        from bokeh.models import CustomJSHover

        tool = plot.handles.get("hover")
        if tool is not None:
            code = "const name = names[Math.round(value)]; return name === undefined ? 'no data' : name;"
            tool.tooltips = [(layer.label, "@image{custom}"), ("x", f"$x{form}"), ("y", f"$y{form}")]
            tool.formatters = {"@image": CustomJSHover(args={"names": names}, code=code)}

    return hook


def draw_colours(layer: Colours, frame: Frame) -> Any:
    """Return a picture as an element."""
    hv = holoviews()
    picture = hv.RGB(layer.rgba, ["x", "y"], bounds=_bounds(frame), vdims=[*hv.RGB.vdims, hv.RGB.alpha_dimension])
    return sent(picture, "mean").opts(hv.opts.RGB(alpha=layer.alpha, backend="bokeh"))


def sent(image: Any, aggregator: str) -> Any:
    """Return an image as it is; a large one through Datashader, which sends as many pixels as the screen has."""
    rows, columns = image.dimension_values(2, flat=False).shape
    if rows * columns <= MANY_PIXELS:
        return image
    from holoviews.operation.datashader import rasterize

    return rasterize(image, aggregator=aggregator, precompute=True)


def _draw_marks(layer: Marks) -> list[Any]:
    hv = holoviews()
    points = hv.Points((layer.x, layer.y), ["x", "y"], label=layer.name)
    marker = {"o": "circle", "s": "square"}[layer.marker]
    options = {"color": layer.colour, "line_color": layer.edge, "size": layer.size, "marker": marker}
    drawn = [points.opts(**options, backend="bokeh")]
    if layer.text:
        text = hv.Labels((layer.x, layer.y, list(layer.text)), ["x", "y"], "text")
        style = {"text_font_size": "8pt", "text_color": "black", "text_font_style": "bold"}
        drawn.append(text.opts(**style, show_legend=False, backend="bokeh"))
    return drawn
