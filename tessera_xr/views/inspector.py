"""What is known of the clicked pixel: its series, its embedding, its class, its cluster, its novelty."""

from __future__ import annotations

import io
from html import escape
from typing import TYPE_CHECKING

import ipywidgets as widgets

from tessera_xr.views.inspection import Inspection
from tessera_xr.views.session import Session
from tessera_xr.views.wiring import Wiring

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHOWN_BANDS = {"B04": "#d62728", "B08": "#7b3294", "B11": "#8c6d31"}
ORBITS = {"ascending": "o", "descending": "s"}


class Inspector(widgets.VBox):
    """Everything about one pixel, usable by itself: call `inspect(lon, lat)`.

    Parameters
    ----------
    session : Session or Wiring
        What to ask.
    """

    def __init__(self, session: Session | Wiring) -> None:
        self.wiring = session if isinstance(session, Wiring) else Wiring(session)
        self.session = self.wiring.session
        self.facts = widgets.HTML("Click a pixel in the mode <b>Inspect</b>.")
        self.chart = widgets.Image(format="png", layout=widgets.Layout(width="100%", display="none"))
        self.found: Inspection | None = None
        super().__init__([self.facts, self.chart])
        self.add_class("tessera-panel")
        self.wiring.on("head time labels", self._again)

    def inspect(self, lon: float, lat: float) -> None:
        """Show what is known of the pixel that holds a place."""
        self.session.pixel_at(lon, lat)
        self.wiring.later("inspect", lambda: self._look(lon, lat), self._show, "Reading the pixel ...")

    def _again(self) -> None:
        if self.found is not None:
            self.inspect(self.found.lon, self.found.lat)

    def _look(self, lon: float, lat: float) -> tuple[Inspection, bytes]:
        found = self.session.inspect(lon, lat)
        return found, chart_png(found)

    def _show(self, both: tuple[Inspection, bytes]) -> None:
        self.found, png = both
        self.facts.value = facts_html(self.found)
        self.chart.value = png
        self.chart.layout.display = None
        self.wiring.say("")


def facts_html(found: Inspection) -> str:
    """Return what is known of a pixel as a table."""
    rows = []
    if found.similarity is not None:
        rows.append(("similarity", f"{found.similarity:.3f}"))
    if found.prediction is not None:
        number = isinstance(found.prediction, float)
        rows.append(("predicted", f"{found.prediction:.3g}" if number else str(found.prediction)))
    if found.probability:
        ordered = sorted(found.probability.items(), key=lambda pair: -pair[1])[:4]
        rows.append(("probability", ", ".join(f"{name} {p:.0%}" for name, p in ordered)))
    if found.cluster is not None:
        rows.append(("cluster", str(found.cluster)))
    if found.novelty is not None:
        rows.append(("novelty", f"percentile {found.novelty:.0f}"))
    if found.s2 is not None:
        rows.append(("Sentinel-2", f"{int(found.s2['clear'].sum())} of {len(found.s2)} dates clear"))
    if found.embedding is None:
        rows.append(("embedding", "none: no data here"))
    cells = "".join(f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in rows)
    return f"<b>{escape(found.title)}</b><table>{cells}</table>"


def chart_png(found: Inspection) -> bytes:
    """Draw the series of a pixel, masked dates hollow, and its embedding as bars."""
    from matplotlib.figure import Figure

    has_s2 = found.s2 is not None and len(found.s2) > 0
    has_s1 = found.s1 is not None and len(found.s1) > 0
    n = 1 + 2 * has_s2 + has_s1
    figure = Figure(figsize=(4.6, 1.55 * n), dpi=110, layout="constrained")
    axes = list(figure.subplots(n, 1, squeeze=False)[:, 0])
    if has_s2:
        _draw_optical(found, axes.pop(0), axes.pop(0))
    if has_s1:
        _draw_radar(found, axes.pop(0))
    _draw_embedding(found, axes.pop(0))
    for ax in figure.axes:
        ax.tick_params(labelsize=7)
        ax.title.set_fontsize(8)
        ax.yaxis.label.set_fontsize(7)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def _draw_optical(found: Inspection, bands: Axes, ndvi: Axes) -> None:
    assert found.s2 is not None
    clear = found.s2["clear"].to_numpy()
    for ax, columns in ((bands, SHOWN_BANDS), (ndvi, {"ndvi": "#1b7837"})):
        for name, colour in columns.items():
            used, masked = found.s2.loc[clear, name], found.s2.loc[~clear, name]
            ax.plot(used.index, used, "o-", ms=2.5, lw=0.9, color=colour, label=name)
            ax.plot(masked.index, masked, "o", ms=2.5, mfc="none", mew=0.6, color=colour, alpha=0.6)
    bands.legend(fontsize=6, ncols=3, loc="upper right", frameon=False)
    bands.set_ylabel("reflectance")
    top = found.s2.loc[clear, list(SHOWN_BANDS)].to_numpy()
    bands.set_ylim(0, max(0.1, float(top.max()) * 1.25) if top.size else 1)
    bands.set_title("Sentinel-2 (hollow: masked)")
    ndvi.set_ylabel("NDVI")
    ndvi.set_ylim(-0.3, 1)


def _draw_radar(found: Inspection, ax: Axes) -> None:
    assert found.s1 is not None
    for orbit, marker in ORBITS.items():
        here = found.s1[found.s1["orbit"] == orbit]
        for name, colour in (("vv", "#0072b2"), ("vh", "#d55e00")):
            if len(here):
                label = f"{name.upper()} {orbit}"
                ax.plot(here.index, here[name], marker + "-", ms=2, lw=0.7, color=colour, label=label)
    ax.legend(fontsize=6, ncols=2, frameon=False)
    ax.set_ylabel("dB")
    ax.set_title("Sentinel-1")


def _draw_embedding(found: Inspection, ax: Axes) -> None:
    ax.set_title("Embedding")
    if found.embedding is None:
        ax.text(0.5, 0.5, "no data", ha="center", va="center", transform=ax.transAxes)
        return
    values = found.embedding
    colours = ["#0072b2" if v >= 0 else "#d55e00" for v in values]
    ax.bar(range(len(values)), values, width=1.0, color=colours)
    ax.set_xlim(-1, len(values))
