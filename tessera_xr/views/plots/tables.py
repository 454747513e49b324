"""Plots of tables: what an evaluation and a validation say."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tessera_xr.errors import SchemaError
from tessera_xr.views.plots.interactive import BAR, LEGEND
from tessera_xr.views.plots.loading import holoviews
from tessera_xr.views.plots.scales import class_colours
from tessera_xr.views.plots.static import new_figure

if TYPE_CHECKING:
    import pandas as pd

    from tessera_xr.learning.validation import Validation

SCORES = {
    "macro_f1": "macro F1", "weighted_f1": "weighted F1", "balanced_accuracy": "balanced accuracy",
    "accuracy": "accuracy", "auc": "area under the ROC curve", "rmse": "RMSE", "mae": "mean absolute error",
    "r2": "R²", "bias": "bias",
}  # fmt: skip
SHARES = ("macro_f1", "weighted_f1", "balanced_accuracy", "accuracy", "auc")
MOST_WRITTEN = 15
"""Classes up to which the cells of a confusion matrix hold numbers."""


# Label efficiency -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Curve:
    """The score of one head on one input."""

    name: str
    colour: str
    n_pixels: npt.NDArray[np.float64]
    score: npt.NDArray[np.float64]
    low: npt.NDArray[np.float64]
    high: npt.NDArray[np.float64]
    claimed: npt.NDArray[np.float64] | None
    """What random pixels would have claimed."""


def efficiency(
    table: pd.DataFrame, score: str | None = None, *, random: bool = False, static: bool = False
) -> Any:  # fmt: skip
    """Plot how good heads get with how many labels: a curve with its interval for each head and input.

    Parameters
    ----------
    table : DataFrame
        From `evaluate`, with several `fractions`.
    score : str, optional
        A column of it; "macro_f1" of classes and "r2" of numbers if not told.
    random : bool, default False
        Also, dashed, what a validation by random pixels would have claimed; of the default score alone.
    static : bool, default False
        A Matplotlib figure.

    Returns
    -------
    HoloViews Overlay or Figure

    Raises
    ------
    SchemaError
        If it isn't such a table, or has no such score.
    """
    curves, score = curves_of(table, score, random)
    titles = (_efficiency_title(table), f"{SCORES.get(score, score)} on held-out labels")
    limits = _limits(curves, score)
    return _efficiency_static(curves, titles, limits) if static else _efficiency_drawn(curves, titles, limits)


def curves_of(table: pd.DataFrame, score: str | None, random: bool) -> tuple[list[Curve], str]:
    """Return the curves of a table of `evaluate`, and the score that they show."""
    names = list(getattr(getattr(table, "index", None), "names", []))
    if names != ["inputs", "head", "fraction"] or "n_pixels" not in table:
        raise SchemaError("this is no table of evaluate(): make one with emb.tessera.evaluate(labels, fractions=...)")
    lead = "macro_f1" if "macro_f1" in table else "r2"
    score = lead if score is None else score
    known = [name for name in SCORES if name in table]
    if score not in known:
        raise SchemaError(f"score={score!r} isn't in the table; choose one of {', '.join(map(repr, known))}")
    if random and score != lead:
        raise SchemaError(f"what random pixels would claim is known of {lead!r} alone, not of {score!r}")
    pairs = list(dict.fromkeys((i, h) for i, h, _ in table.index))
    parts = [len({pair[k] for pair in pairs}) > 1 for k in (0, 1)]
    found = []
    for pair, colour in zip(pairs, class_colours(len(pairs)), strict=True):
        here = [(i, h) == pair for i, h, _ in table.index]
        rows = table[here].sort_values("n_pixels", kind="stable")
        told = [str(p) for p, several in zip(pair, parts, strict=True) if several] or [str(pair[1])]
        value = rows[score].to_numpy(float)
        low, high = (rows[k].to_numpy(float) if (k := f"{score}_{end}") in rows else value for end in ("low", "high"))
        claimed = rows[f"{lead}_random"].to_numpy(float) if random else None
        found.append(Curve(", ".join(told), colour, rows["n_pixels"].to_numpy(float), value, low, high, claimed))
    return found, score


def _efficiency_title(table: pd.DataFrame) -> str:
    said = table.attrs
    parts = [str(said.get("folds", "")), f"{said['n_draws']} draws" if "n_draws" in said else ""]
    parts.append(f"{said['confidence']:.0%} intervals" if "confidence" in said else "")
    return "; ".join(part for part in parts if part)


def _limits(curves: list[Curve], score: str) -> tuple[float, float]:
    shown = np.concatenate(
        [v for c in curves for v in (c.score, c.low, c.high, *([] if c.claimed is None else [c.claimed]))]
    )
    held = shown[np.isfinite(shown)]
    low, high = (float(held.min()), float(held.max())) if len(held) else (0.0, 1.0)
    room = max(0.05 * (high - low), 0.02 * max(abs(high), 1e-6))
    return (max(0.0, low - room), min(1.0, high + room) + 1e-9) if score in SHARES else (low - room, high + room)


def _efficiency_drawn(curves: list[Curve], titles: tuple[str, str], limits: tuple[float, float]) -> Any:
    hv = holoviews()
    axis, elements = _axis(curves), [part for c in curves for part in _curve(c, titles[1], single=_single(curves))]
    options = {
        "frame_width": 560, "frame_height": 330, "ylim": limits, "title": titles[0], "xlabel": axis,
        "ylabel": titles[1], "show_grid": True, "fontsize": {"title": 10}, **LEGEND,
    }  # fmt: skip
    if not _single(curves):
        options |= {"logx": _is_wide(curves), "xlim": _span(curves), "xticks": _ticks(curves)}
    return hv.Overlay(elements).opts(hv.opts.Overlay(**options, backend="bokeh"))


def _single(curves: list[Curve]) -> bool:
    """Say whether each head learnt from one amount only: then heads stand side by side."""
    return all(len(c.n_pixels) == 1 for c in curves)


def _axis(curves: list[Curve]) -> str:
    return f"head, {curves[0].n_pixels[0]:,.0f} pixels learnt from" if _single(curves) else "pixels learnt from"


def _curve(c: Curve, label: str, *, single: bool) -> list[Any]:
    """Return what shows one head: a curve in its band, or a dot with its error bar."""
    hv = holoviews()
    axis, x = ("head", [c.name]) if single else ("pixels learnt from", c.n_pixels)
    dims: dict[str, Any] = {"kdims": [axis], "vdims": [label], "label": c.name}
    if single:
        ends = hv.ErrorBars((x, c.score, c.score - c.low, c.high - c.score), [axis], [label, "below", "above"])
        drawn = [ends.opts(line_color=c.colour, backend="bokeh")]
    else:
        band = hv.Area((x, c.low, c.high), [axis], [label, "high"], label=c.name)
        line = hv.Curve((x, c.score), **dims)
        drawn = [
            band.opts(color=c.colour, alpha=0.15, line_alpha=0, backend="bokeh"),
            line.opts(color=c.colour, line_width=2, backend="bokeh"),
        ]
    drawn.append(hv.Scatter((x, c.score), **dims).opts(color=c.colour, size=7, tools=["hover"], backend="bokeh"))
    if c.claimed is None:
        return drawn
    name = f"{c.name}, random pixels"
    if single:
        claimed = hv.Scatter((x, c.claimed), [axis], [label], label=name).opts(marker="dash", size=14, backend="bokeh")
    else:
        claimed = hv.Curve((x, c.claimed), [axis], [label], label=name).opts(line_dash="dashed", backend="bokeh")
    return [*drawn, claimed.opts(color=c.colour, line_width=1.5, backend="bokeh")]


def _is_wide(curves: list[Curve]) -> bool:
    counts = np.concatenate([c.n_pixels for c in curves])
    return bool(counts.min() > 0 and counts.max() > 5 * counts.min())


def _span(curves: list[Curve]) -> tuple[float, float]:
    """Return the ends of the axis of pixels, with room for the dots."""
    counts = np.concatenate([c.n_pixels for c in curves])
    low, high = float(counts.min()), float(counts.max())
    if _is_wide(curves):
        room = (high / low) ** 0.04
        return low / room, high * room
    room = max(0.05 * (high - low), 0.02 * high, 1e-3)
    return low - room, high + room


def _ticks(curves: list[Curve]) -> list[tuple[float, str]]:
    """Return the numbers of pixels that were learnt from, those left out that would be written over others."""
    low, high = _span(curves)
    wide = _is_wide(curves)

    def place(count: float) -> float:
        return float(np.log(count / low) / np.log(high / low) if wide else (count - low) / (high - low))

    ticks: list[float] = []
    for count in np.unique(np.concatenate([c.n_pixels for c in curves])):
        if not ticks or place(count) - place(ticks[-1]) > 0.07:
            ticks.append(float(count))
    return [(tick, f"{tick:,.0f}") for tick in ticks]


def _efficiency_static(curves: list[Curve], titles: tuple[str, str], limits: tuple[float, float]) -> Any:
    figure = new_figure(8.4, 4.2)
    axes, single = figure.subplots(), _single(curves)
    for c in curves:
        x: Any = [c.name] if single else c.n_pixels
        if single:
            axes.errorbar(x, c.score, [c.score - c.low, c.high - c.score], color=c.colour, capsize=4)
        else:
            axes.fill_between(x, c.low, c.high, color=c.colour, alpha=0.15, lw=0)
        axes.plot(x, c.score, "o-", color=c.colour, label=c.name)
        if c.claimed is not None:
            axes.plot(x, c.claimed, "_" if single else "--", ms=14, color=c.colour, label=f"{c.name}, random pixels")
    axes.set(xlabel=_axis(curves), ylabel=titles[1], ylim=limits)
    axes.set_title(titles[0], fontsize=10)
    if single:
        axes.margins(x=0.3)
    else:
        axes.set_xscale("log" if _is_wide(curves) else "linear")
        axes.set_xlim(*_span(curves))
        axes.set_xticks(*zip(*_ticks(curves), strict=True))
        axes.minorticks_off()
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=9, frameon=False)
    return figure


# Confusion ------------------------------------------------------------------------------------------------------------


def confusion(validation: Validation, *, static: bool = False) -> Any:
    """Plot which classes were taken for which: the share of each true class that was called what.

    Parameters
    ----------
    validation : Validation
        From `validate` or `score`.
    static : bool, default False
        A Matplotlib figure.

    Returns
    -------
    HoloViews object or Figure
        Rows: the truth; columns: the prediction; each row adds up to 100 %.

    Raises
    ------
    SchemaError
        If it is no validation, or one of numbers.
    """
    table = getattr(validation, "confusion", None)
    if getattr(validation, "task", None) == "numbers":
        raise SchemaError("numbers have no confusion matrix; look at validation.scores and validation.predictions")
    if table is None:
        raise SchemaError(f"{type(validation).__name__} has no confusion matrix; validate(emb, labels) returns one")
    table = table.rename(index=_spaced, columns=_spaced)
    title = f"{validation.name}, macro F1 {validation.scores['macro_f1']:.2f}\n{validation.folds}"
    return _confusion_static(table, title) if static else _confusion_drawn(table, title)


def _spaced(name: Any) -> str:
    return str(name).replace("_", " ")


def shares_of(table: pd.DataFrame) -> pd.DataFrame:
    """Return a confusion matrix as shares of each row; NaN where there was none of a class."""
    return table.div(table.sum(axis=1).where(lambda s: s > 0), axis=0)


def _cells(table: pd.DataFrame) -> Iterator[tuple[str, str, float, float]]:
    """Yield predicted, truth, share and weight of each cell."""
    shares = shares_of(table)
    for truth in table.index:
        for predicted in table.columns:
            yield str(predicted), str(truth), float(shares.loc[truth, predicted]), float(table.loc[truth, predicted])


def _confusion_drawn(table: pd.DataFrame, title: str) -> Any:
    hv = holoviews()
    cells = list(_cells(table))
    side = int(np.clip(52 * len(table), 200, 560))
    bar = {"clim": (0, 1), "cmap": "cividis", "colorbar": True, "clabel": "share of the true class", **BAR}
    grid = hv.HeatMap(cells, ["predicted", "truth"], ["share", "pixels"])
    options = {
        "frame_width": side, "frame_height": side, "title": title, "xrotation": 45, "invert_yaxis": True,
        "xlabel": "predicted", "ylabel": "truth", "fontsize": {"title": 10},
    }  # fmt: skip
    grid = grid.opts(**bar, tools=["hover"], **options, backend="bokeh")
    if len(table) > MOST_WRITTEN:
        return grid
    drawn = [grid]
    for light, colour in ((True, "black"), (False, "white")):
        some = [(p, t, f"{s:.0%}") for p, t, s, _ in cells if (s > 0.5) == light and np.isfinite(s)]
        text = hv.Labels(some, ["predicted", "truth"], "text")
        drawn.append(text.opts(text_color=colour, text_font_size="9pt", backend="bokeh"))
    return hv.Overlay(drawn).opts(hv.opts.Overlay(**options, backend="bokeh"))


def _confusion_static(table: pd.DataFrame, title: str) -> Any:
    n = len(table)
    side = float(np.clip(0.55 * n, 2.6, 7.5))
    figure = new_figure(side + 2.6, side + 1.4)
    axes = figure.subplots()
    shares = shares_of(table).to_numpy(float)
    image = axes.imshow(shares, vmin=0, vmax=1, cmap="cividis")
    axes.set_xticks(range(n), list(table.columns), rotation=45, ha="right")
    axes.set_yticks(range(n), list(table.index))
    axes.set(xlabel="predicted", ylabel="truth")
    axes.set_title(title, fontsize=9)
    for row, column in np.ndindex(n, n) if n <= MOST_WRITTEN else ():
        share = shares[row, column]
        if np.isfinite(share):
            colour = "black" if share > 0.5 else "white"
            axes.text(column, row, f"{share:.0%}", ha="center", va="center", color=colour, fontsize=8)
    figure.colorbar(image, ax=axes, label="share of the true class", shrink=0.8)
    return figure
