"""Maps as Matplotlib figures."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tessera_xr.views.plots.interactive import key_of, title_of
from tessera_xr.views.plots.layers import Classes, Colours, Map, Marks, Numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 100


def new_figure(width: float, height: float, layout: Literal["constrained", "compressed"] = "constrained") -> Figure:
    """Return an empty figure in inches, that a notebook shows without pyplot; "compressed" for axes of equal scale."""
    from matplotlib.figure import Figure

    class Shown(Figure):
        """A figure that a notebook shows, whether or not pyplot was imported."""

        def _repr_png_(self) -> bytes:
            file = io.BytesIO()
            self.savefig(file, format="png", dpi=DPI)
            return file.getvalue()

    return Shown(figsize=(width, height), dpi=DPI, layout=layout)


def draw_static(maps: Sequence[Map], title: str = "") -> Figure:
    """Return maps side by side, three in a row, under a title."""
    columns = min(3, len(maps))
    rows = -(-len(maps) // columns)
    alone = len(maps) == 1
    side, ratio = (4.4, 2.6)[not alone], maps[0].frame.ratio
    width, height = side / max(1.0, ratio), side * min(1.0, ratio)
    beside = _beside(maps[0])
    figure = new_figure(columns * (width + 0.75) + beside, rows * (height + 0.75) + 0.4, "compressed")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    images = [draw_axes(axes, one, small=not alone, inner=i % columns > 0)
              for i, (axes, one) in enumerate(zip(grid, maps, strict=False))]  # fmt: skip
    for axes in grid[len(maps) :]:
        axes.remove()
    _key(figure, list(grid[: len(maps)]), maps[0], images[0])
    if not alone and title:
        figure.suptitle(title, fontsize=11)
    return figure


def _beside(one: Map) -> float:
    """Return the room for colour bar and legend, in inches."""
    names = [name for layer in one.layers if isinstance(layer, Classes) for name in key_of(layer)[0]]
    names += [layer.name for layer in one.layers if isinstance(layer, Marks)]
    bar = any(isinstance(layer, Numbers) for layer in one.layers)
    return 0.3 + bar * 1.0 + (0.7 + 0.065 * max(map(len, names)) if names else 0.0)


def draw_axes(axes: Axes, one: Map, *, small: bool = False, inner: bool = False) -> Any:
    """Draw a map and return its image, for a colour bar; `inner`: not the first of its row."""
    frame, image = one.frame, None
    for layer in one.layers:
        if isinstance(layer, Marks):
            _marks(axes, layer)
        else:
            image = _image(axes, layer, frame.extent)
    left, right, bottom, top = frame.view
    axes.set(xlim=(left, right), ylim=(bottom, top), xlabel=frame.x_label)
    axes.set_ylabel("" if inner else frame.y_label)
    axes.set_title(title_of(one), fontsize=9 if small else 11)
    axes.set_aspect(frame.aspect)
    axes.ticklabel_format(useOffset=False, style="plain")
    axes.tick_params(labelsize=7)
    axes.locator_params(axis="x", nbins=3 if small else 4)
    axes.locator_params(axis="y", nbins=5)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set_fontsize(8)
    return image


def _image(axes: Axes, layer: Numbers | Classes | Colours, extent: tuple[float, float, float, float]) -> Any:
    place: dict[str, Any] = {"extent": extent, "origin": "upper", "interpolation": "nearest", "aspect": "auto"}
    if isinstance(layer, Colours):
        return axes.imshow(layer.rgba, alpha=layer.alpha, **place)
    if isinstance(layer, Numbers):
        return axes.imshow(layer.values, vmin=layer.low, vmax=layer.high, cmap=layer.colours, **place)
    from matplotlib.colors import ListedColormap

    top = len(layer.names) - 0.5
    return axes.imshow(layer.index, vmin=-0.5, vmax=top, cmap=ListedColormap(list(layer.colours)), **place)


def _marks(axes: Axes, layer: Marks) -> None:
    axes.scatter(
        layer.x, layer.y, s=layer.size**2 * 0.5, c=layer.colour, edgecolors=layer.edge, linewidths=0.8,
        marker=layer.marker, label=layer.name, zorder=3,
    )  # fmt: skip
    for x, y, text in zip(layer.x, layer.y, layer.text, strict=False):
        axes.text(x, y, text, fontsize=6.5, ha="center", va="center", weight="bold", zorder=4, clip_on=True)


def _key(figure: Figure, axes: list[Axes], one: Map, image: Any) -> None:
    """Put a colour bar beside maps of numbers, a legend beside classes and marks."""
    from matplotlib.patches import Patch

    bar = next((layer for layer in one.layers if isinstance(layer, Numbers)), None)
    if bar is not None:
        made = figure.colorbar(image, ax=axes, shrink=0.85, extend=_extend(bar))
        made.set_label(bar.label, fontsize=9)
        made.ax.tick_params(labelsize=7)
    handles: list[Any] = []
    for layer in one.layers:
        if isinstance(layer, Classes):
            names, colours = key_of(layer)
            handles += [Patch(fc=c, ec="#00000055", label=n) for n, c in zip(names, colours, strict=True)]
    handles += axes[0].get_legend_handles_labels()[0]
    if handles:
        size = 8 if len(handles) <= 12 else 6.5
        figure.legend(handles=handles, loc="outside right upper", fontsize=size, frameon=False)


def _extend(bar: Numbers) -> str:
    """Say which ends of a scale values lie beyond."""
    held = bar.values[np.isfinite(bar.values)]
    below, above = (bool((held < bar.low).any()), bool((held > bar.high).any())) if held.size else (False, False)
    return {(False, False): "neither", (True, False): "min", (False, True): "max", (True, True): "both"}[below, above]
