"""What a run of pretraining logged."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tessera_xr.errors import StoreError
from tessera_xr.views.plots.loading import holoviews
from tessera_xr.views.plots.scales import class_colours
from tessera_xr.views.plots.static import new_figure

if TYPE_CHECKING:
    import pandas as pd

PARTS = ("barlow_twins", "mix", "rebuild", "reconstruction", "distillation")
LOG = "log.csv"


def pretraining(folder: str | os.PathLike[str], *, static: bool = False) -> Any:
    """Plot the log of a run of `pretrain`: the parts of its loss, and RankMe, the number of dimensions in use.

    Parameters
    ----------
    folder : str or path
        Of the run, with its ``log.csv``; or that file.
    static : bool, default False
        A Matplotlib figure.

    Returns
    -------
    HoloViews Layout or Figure

    Raises
    ------
    StoreError
        If there is no log, or it has no lines yet.

    References
    ----------
    Garrido et al. (2023), RankMe: assessing the downstream performance of pretrained self-supervised representations
    by their rank.
    """
    table = read_log(folder)
    parts = [name for name in PARTS if table[name].notna().any()] or ["loss"]
    curves = [
        (name.replace("_", " "), table[["step", name]].dropna(), c)
        for name, c in zip(parts, class_colours(len(parts)), strict=True)
    ]
    rank = table[["step", "rank_me"]].dropna()
    return _pretraining_static(curves, rank) if static else _pretraining_drawn(curves, rank)


def read_log(folder: str | os.PathLike[str]) -> pd.DataFrame:
    """Return the log of a run."""
    import pandas as pd

    path = Path(folder)
    path = path / LOG if path.is_dir() else path
    if not path.is_file():
        raise StoreError(f"there is no log of a run at {path}; give the folder= that pretrain() wrote to")
    try:
        table = pd.read_csv(path)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise StoreError(f"{path} can't be read as the log of a run ({type(error).__name__})") from error
    missing = [name for name in ("step", "loss", "rank_me", *PARTS) if name not in table]
    if missing:
        raise StoreError(f"{path} is no log of pretrain(): it has no column {', '.join(missing)}")
    if not len(table):
        raise StoreError(f"{path} has no lines yet; wait until the run has logged something")
    return table


Lines = list[tuple[str, Any, str]]


def _pretraining_drawn(curves: Lines, rank: pd.DataFrame) -> Any:
    hv = holoviews()
    size = {"frame_width": 380, "frame_height": 270, "show_grid": True}
    parts = [
        hv.Curve(table.to_numpy(), ["update"], ["loss, weighted"], label=name).opts(
            color=colour, line_width=1.5, tools=["hover"], backend="bokeh"
        )
        for name, table, colour in curves
    ]
    positive = all((table.iloc[:, 1] > 0).all() for _, table, _ in curves)
    words = {"title": "Loss", "legend_position": "top_right", "logy": positive}
    losses = hv.Overlay(parts).opts(hv.opts.Overlay(**size, **words, backend="bokeh"))
    measured = hv.Curve(rank.to_numpy(), ["update"], ["RankMe"]).opts(color="#0072b2", backend="bokeh")
    dots = hv.Scatter(rank.to_numpy(), ["update"], ["RankMe"]).opts(
        color="#0072b2", size=5, tools=["hover"], backend="bokeh"
    )
    ranks = (measured * dots).opts(hv.opts.Overlay(**size, title="Dimensions in use", backend="bokeh"))
    return (losses + ranks).opts(hv.opts.Layout(shared_axes=False, backend="bokeh"))


def _pretraining_static(curves: Lines, rank: pd.DataFrame) -> Any:
    figure = new_figure(9, 3.6)
    losses, ranks = figure.subplots(1, 2)
    for name, table, colour in curves:
        losses.plot(table.iloc[:, 0], table.iloc[:, 1], label=name, color=colour, lw=1.2)
    losses.set(xlabel="update", ylabel="loss, weighted", title="Loss")
    if all((table.iloc[:, 1] > 0).all() for _, table, _ in curves):
        losses.set_yscale("log")
    losses.legend(fontsize=8, frameon=False)
    ranks.plot(rank["step"], rank["rank_me"], "o-", color="#0072b2", ms=3)
    ranks.set(xlabel="update", ylabel="RankMe", title="Dimensions in use")
    for axes in (losses, ranks):
        axes.grid(alpha=0.3)
    return figure
