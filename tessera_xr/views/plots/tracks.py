"""What Sentinel saw of one pixel, over time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from tessera_xr.errors import SchemaError
from tessera_xr.views.plots.interactive import LEGEND
from tessera_xr.views.plots.loading import holoviews
from tessera_xr.views.plots.static import new_figure

if TYPE_CHECKING:
    import pandas as pd

BANDS = {"B04": ("red B04", "#d55e00"), "B08": ("near infrared B08", "#cc79a7"), "B11": ("SWIR B11", "#8c6d31")}
RADAR = {"vv": "#0072b2", "vh": "#e69f00"}
ORBITS = {"ascending": "o", "descending": "s"}
WIDTH, HEIGHT = 600, 170
"""Screen pixels of a panel."""


@dataclass(frozen=True, eq=False)
class Track:
    """One quantity over time."""

    name: str
    colour: str
    table: pd.DataFrame
    """`time`, `value`, `used` (bool): dates that aren't used are hollow, and off the line."""
    marker: str = "o"
    """"o" or "s"."""


@dataclass(frozen=True, eq=False)
class Panel:
    """Tracks on one axis."""

    title: str
    label: str
    limits: tuple[float, float]
    tracks: tuple[Track, ...]

    @property
    def dates(self) -> tuple[Any, Any]:
        """The first and the last date, with room at both ends."""
        found = [track.table["time"] for track in self.tracks if len(track.table)]
        first, last = min(t.min() for t in found), max(t.max() for t in found)
        room = max((last - first) / 50, np.timedelta64(2, "D"))
        return first - room, last + room


def series(cube: xr.Dataset, lon: float, lat: float, *, static: bool = False) -> Any:
    """Plot what Sentinel-2 and Sentinel-1 saw of the pixel that holds a place.

    Three panels on one time axis: reflectance of red, near infrared and short-wave infrared; NDVI; backscatter of both
    polarisations, apart by orbit. Dates that a cloud hides are hollow.

    Parameters
    ----------
    cube : Dataset
        A cube, eager or lazy: one pixel is read.
    lon, lat : float
        Degrees.
    static : bool, default False
        A Matplotlib figure.

    Returns
    -------
    HoloViews Layout or Figure

    Raises
    ------
    CubeError
        If it is no cube.
    GridError
        If the place lies outside the cube.
    SchemaError
        If neither satellite ever saw the pixel.
    """
    from tessera_xr.sentinel.series import pixel_series

    s2, s1 = pixel_series(cube, lon, lat)
    if not len(s2) and not len(s1):
        raise SchemaError(f"neither Sentinel-2 nor Sentinel-1 ever saw the pixel at ({lon:g}, {lat:g}); choose another")
    place = f"{abs(lat):.5f}° {'NS'[lat < 0]}, {abs(lon):.5f}° {'EW'[lon < 0]}"
    panels = [panel for panel in panels_of(s2, s1, place) if panel.tracks]
    return _static(panels) if static else _interactive(panels)


def panels_of(s2: pd.DataFrame, s1: pd.DataFrame, place: str) -> Iterator[Panel]:
    """Yield the panels of two series, in order from the top."""
    clear = s2["clear"].astype(bool)
    told = f"Sentinel-2 at {place}: {int(clear.sum())} of {len(s2)} dates clear (hollow: masked)"
    if len(s2):
        used = s2.loc[clear, list(BANDS)].to_numpy(float)
        top = max(0.1, 1.2 * float(used.max())) if used.size else 1.0
        tracks = tuple(_track(s2, name, said, colour, clear) for name, (said, colour) in BANDS.items())
        yield Panel(told, "reflectance", (0.0, top), tracks)
        yield Panel("", "NDVI", (-0.3, 1.0), (_track(s2, "ndvi", "NDVI", "#009e73", clear),))
    if len(s1):
        yield Panel(f"Sentinel-1: {len(s1)} dates", "backscatter (dB)", _decibels(s1), tuple(_radar(s1)))


def _track(table: pd.DataFrame, column: str, name: str, colour: str, used: Any, marker: str = "o") -> Track:
    import pandas as pd

    values = {"time": table.index, "value": table[column].to_numpy(float), "used": np.asarray(used, bool)}
    held = pd.DataFrame(values).dropna(subset=["value"]).sort_values("time")
    return Track(name, colour, held.reset_index(drop=True), marker)


def _radar(s1: pd.DataFrame) -> Iterator[Track]:
    for orbit, marker in ORBITS.items():
        here = s1[s1["orbit"] == orbit]
        for column, colour in RADAR.items():
            if len(here):
                yield _track(here, column, f"{column.upper()} {orbit}", colour, np.ones(len(here), bool), marker)


def _decibels(s1: pd.DataFrame) -> tuple[float, float]:
    values = s1[list(RADAR)].to_numpy(float)
    held = values[np.isfinite(values)]
    return (float(held.min()) - 2, float(held.max()) + 2) if held.size else (-30.0, 0.0)


# Drawing --------------------------------------------------------------------------------------------------------------


def _interactive(panels: list[Panel]) -> Any:
    hv = holoviews()
    drawn = [_panel(panel) for panel in panels]
    return hv.Layout(drawn).cols(1).opts(hv.opts.Layout(shared_axes=True, backend="bokeh"))


def _panel(panel: Panel) -> Any:
    hv = holoviews()
    elements = []
    for track in panel.tracks:
        dims: dict[str, Any] = {"kdims": ["time"], "vdims": [(panel.label, panel.label)], "label": track.name}
        renamed = track.table.rename(columns={"value": panel.label})
        used, masked = (renamed[renamed["used"] == flag] for flag in (True, False))
        line = hv.Curve(used, **dims).opts(color=track.colour, line_width=1.3, backend="bokeh")
        marker = {"o": "circle", "s": "square"}[track.marker]
        common = {"marker": marker, "line_color": track.colour, "backend": "bokeh"}
        elements += [
            line,
            hv.Scatter(used, **dims).opts(size=5, fill_color=track.colour, tools=["hover"], **common),
            hv.Scatter(masked, **dims).opts(size=5, fill_alpha=0, line_alpha=0.7, tools=["hover"], **common),
        ]
    options = {
        "frame_width": WIDTH, "frame_height": HEIGHT, "ylim": panel.limits, "title": panel.title, "xlabel": "",
        "ylabel": panel.label, "fontsize": {"title": 11}, "show_grid": True, "xlim": panel.dates, **LEGEND,
    }  # fmt: skip
    return hv.Overlay(elements).opts(hv.opts.Overlay(**options, backend="bokeh"))


def _static(panels: list[Panel]) -> Any:
    figure = new_figure(9.5, 2.3 * len(panels))
    for axes, panel in zip(figure.subplots(len(panels), 1, squeeze=False, sharex=True)[:, 0], panels, strict=True):
        for track in panel.tracks:
            used, masked = (track.table[track.table["used"] == flag] for flag in (True, False))
            shape: dict[str, Any] = {"color": track.colour, "marker": track.marker, "ms": 3.5}
            axes.plot(used["time"], used["value"], lw=1.1, label=track.name, **shape)
            axes.plot(masked["time"], masked["value"], ls="", mfc="none", mew=0.8, alpha=0.7, **shape)
        axes.set_ylim(*panel.limits)
        axes.set_ylabel(panel.label)
        axes.set_title(panel.title, fontsize=10)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure
