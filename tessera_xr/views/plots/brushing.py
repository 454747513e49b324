"""Embedding space and map side by side, from one table: what is selected in one shows in the other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import xarray as xr

from tessera_xr.errors import GridError, SchemaError
from tessera_xr.views.plots.interactive import BAR, LEGEND, draw_colours, frame_options
from tessera_xr.views.plots.layers import frame_of, thinned
from tessera_xr.views.plots.loading import holoviews
from tessera_xr.views.plots.scales import class_key, class_layer, colour_layer, has_flags, label_of, number_layer

if TYPE_CHECKING:
    import pandas as pd

METHODS = ("components", "umap")
MOST_POINTS = 50_000
"""A browser draws no more with ease."""
BRUSHES = {
    "default_tools": ["lasso_select", "box_select", "wheel_zoom", "save", "reset"],
    "active_tools": ["lasso_select", "wheel_zoom"],
}
"""A drag draws a lasso; there is no tool to pan with, which would take its place in the bar of both plots."""
SIDE = 325
"""Screen pixels of a side of either plot: both fit into a notebook beside JupyterLab's list of files."""
LEFT_OUT = 0.04
"""Opacity of points that aren't selected."""


def scatter(
    emb: xr.Dataset,
    colour: xr.DataArray | None = None,
    method: Literal["components", "umap"] = "components",
    time: Any = None,
    n: int = 5000,
    *,
    seed: int = 0,
) -> Any:
    """Plot pixels drawn at random in the embedding space and on the map; select in one, and see them in the other.

    Drag to draw a lasso; a box is in the bar above the plots, and the arrow there that resets them ends a selection.
    No kernel is needed for that: it works in a saved page too.

    Parameters
    ----------
    emb : Dataset
        Embeddings, float32 or int8, eager or lazy.
    colour : DataArray, optional
        A map of classes or of numbers on the same grid, to colour the points; the colours of the embeddings, as `rgb`
        shows them, if not told.
    method : {"components", "umap"}
        Axes of the embedding space: the two principal components with most of the variance, or UMAP (extra `umap`;
        a minute for 5,000 pixels), which shows groups better and whose axes have no meaning.
    time : int, str or datetime64, optional
        Which time; needed where there are several.
    n : int, default 5,000
        How many pixels at most.
    seed : int, default 0
        Of the draw, and of UMAP.

    Returns
    -------
    HoloViews Layout
        Two plots over one data source.

    Raises
    ------
    SchemaError
        If an option is unknown, the time isn't clear, or too few pixels have data.
    GridError
        If `colour` is on another grid.
    """
    from tessera_xr.analysis.queries import at_time
    from tessera_xr.embedding.schema import check_embeddings

    check_embeddings(emb)
    _check(method, n)
    emb = at_time(emb, time)
    frame_of(emb)
    colour = None if colour is None else _of_time(colour, emb)
    table = point_table(emb, colour, method, n, seed)
    return _linked(emb, table, colour)


def _check(method: str, n: int) -> None:
    from tessera_xr._optional import require
    from tessera_xr.embedding.schema import check_whole

    if method not in METHODS:
        raise SchemaError(f"method={method!r} is unknown; choose one of {', '.join(map(repr, METHODS))}")
    check_whole("n", n)
    if not 3 < n <= MOST_POINTS:
        raise SchemaError(f"n={n} must be from 4 to {MOST_POINTS:,}, the number of points a browser draws with ease")
    if method == "umap":
        require("umap", "umap", "method='umap'", "use method='components'")


def _of_time(colour: xr.DataArray, emb: xr.Dataset) -> xr.DataArray:
    """Return the map of colours at the time of the embeddings, checked to lie on their grid."""
    if not isinstance(colour, xr.DataArray):
        raise SchemaError(f"colour is a map, a DataArray (y, x) of classes or numbers, not {type(colour).__name__}")
    if "time" in colour.dims and "time" in emb.coords and "time" in colour.coords:
        colour = colour.sel(time=emb["time"].values)
    if set(colour.dims) != {"y", "x"}:
        raise SchemaError(f"colour has dimensions {tuple(map(str, colour.dims))}; give one map (y, x)")
    for dim in ("y", "x"):
        same = colour.sizes[dim] == emb.sizes[dim] and (
            dim not in colour.coords or np.allclose(colour[dim], emb[dim], rtol=0, atol=1e-6 * _span(emb[dim].values))
        )
        if not same:
            raise GridError(f"colour and embeddings are on different grids along {dim}; reproject one to the other")
    return colour


def _span(values: Any) -> float:
    return float(np.ptp(values)) or 1.0


def point_table(emb: xr.Dataset, colour: xr.DataArray | None, method: str, n: int, seed: int) -> pd.DataFrame:
    """Return pixels drawn at random: their two axes, `x` and `y` on the map, and `colour`.

    `colour` holds the name of a class (or "no data"), a number, or #rrggbb.
    """
    import pandas as pd

    from tessera_xr.analysis.components import fit_to_pixels, umap
    from tessera_xr.analysis.drawing import draw_pixels

    drawn = draw_pixels(emb, n, seed)
    if drawn.sizes["pixel"] < 4:
        raise SchemaError(f"{drawn.sizes['pixel']} pixels have data: too few for a scatter plot")
    if method == "umap":
        found = umap(emb, n_pixels=n, n_neighbors=min(15, drawn.sizes["pixel"] - 1), seed=seed)
        assert np.array_equal(found["x"], drawn["x"]), "UMAP draws the same pixels"
        axes, names = found.values, ["UMAP 1", "UMAP 2"]
    else:
        fitted = fit_to_pixels(drawn, 2)
        axes = (drawn.values - fitted.mean.values) @ fitted.vectors.values.T
        names = [f"component {i + 1} ({share:.0%})" for i, share in enumerate(fitted.explained.values)]
    table = pd.DataFrame({names[0]: axes[:, 0], names[1]: axes[:, 1], "x": drawn["x"].values, "y": drawn["y"].values})
    table["colour"] = _own_colours(drawn) if colour is None else _colours_at(colour, drawn)
    return table


def _own_colours(drawn: xr.DataArray) -> list[str]:
    """Return the first three components of pixels as #rrggbb."""
    from tessera_xr.analysis.components import fit_to_pixels
    from tessera_xr.views.pictures import hexed

    fitted = fit_to_pixels(drawn, min(3, *drawn.shape))
    scores = (drawn.values - fitted.mean.values) @ fitted.vectors.values.T
    low, high = fitted.limits.values
    shares = np.clip((scores - low) / np.maximum(high - low, 1e-9), 0, 1)
    rgb = np.zeros((len(shares), 3))
    rgb[:, : shares.shape[1]] = shares
    return [hexed(row) for row in np.rint(rgb * 255).astype(np.uint8)]


def _colours_at(colour: xr.DataArray, drawn: xr.DataArray) -> Any:
    at = colour.sel(y=drawn["y"], x=drawn["x"], method="nearest") if "y" in colour.coords else None
    assert at is not None
    if not has_flags(colour):
        return at.values.astype(np.float64)
    index = class_layer(at.drop_vars(["y", "x"]).rename(pixel="x").expand_dims("y")).index[0]
    names = class_key(colour)[1]
    return ["no data" if np.isnan(i) else names[int(i)] for i in index]


# Drawing --------------------------------------------------------------------------------------------------------------


def _linked(emb: xr.Dataset, table: pd.DataFrame, colour: xr.DataArray | None) -> Any:
    hv = holoviews()
    frame = frame_of(emb)
    first, second = table.columns[:2]
    style = _style(table, colour)
    told = [first, second, "x", "y", *([] if colour is None else ["colour"])]
    space = hv.Points(table, [first, second], ["x", "y", "colour"])
    places = hv.Points(table, ["x", "y"], [first, second, "colour"])
    common = {
        "size": 4, "alpha": 0.8, "line_width": 0, "selection_alpha": 1.0, "nonselection_alpha": LEFT_OUT,
        "tools": ["hover"], "hover_tooltips": told, "backend": "bokeh", **style,
    }  # fmt: skip
    side = {"frame_width": SIDE, "frame_height": SIDE, "fontsize": {"title": 11}}
    left = space.opts(title=f"Embedding space, {len(table):,} pixels", **side, **BRUSHES, **common)
    left = left.opts(show_legend=False, colorbar=False, backend="bokeh")
    options = frame_options(frame, SIDE) | BRUSHES | {"title": "Where they are", "fontsize": {"title": 11}}
    right = _backdrop(emb, frame) * places.opts(**BRUSHES, **common)
    right = right.opts(hv.opts.Overlay(**options, **LEGEND, backend="bokeh"))
    return (left + right).opts(hv.opts.Layout(shared_axes=False, shared_datasource=True, backend="bokeh"))


def _style(table: pd.DataFrame, colour: xr.DataArray | None) -> dict[str, Any]:
    if colour is None:
        return {"color": "colour"}
    if not has_flags(colour):
        layer = number_layer(colour)
        limits = {"clim": (layer.low, layer.high), "cmap": layer.colours}
        return {"color": "colour", **limits, "colorbar": True, "clabel": label_of(colour), **BAR}
    _, names, colours = class_key(colour)
    known = dict(zip(names, colours, strict=True)) | {"no data": "#c8c8c8"}
    here = set(table["colour"])
    return {"color": "colour", "cmap": {k: v for k, v in known.items() if k in here}, "show_legend": True}


def _backdrop(emb: xr.Dataset, frame: Any) -> Any:
    """Return the embeddings in pale colours."""
    from tessera_xr.analysis.components import rgb

    hv = holoviews()
    picture = draw_colours(colour_layer(rgb(thinned(emb)).compute(), alpha=0.35), frame)
    return picture.opts(hv.opts.RGB(**BRUSHES, backend="bokeh"))
