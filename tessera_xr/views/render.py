"""Arrays to pictures, without any widget."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from tessera_xr.errors import SchemaError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TRUE_COLOUR = ("B04", "B03", "B02")
FALSE_COLOUR = ("B08", "B04", "B03")
"""Near infrared as red: vegetation is red, the more the denser."""
STRETCH = (2.0, 98.0)


def true_colour(cube: xr.Dataset, date: Any = None) -> xr.DataArray:
    """Return a picture of a cube as the eye would see it; see `composite`."""
    return composite(cube, TRUE_COLOUR, date).rename("true_colour")


def false_colour(cube: xr.Dataset, date: Any = None) -> xr.DataArray:
    """Return a picture of a cube with near infrared, red and green for red, green and blue; see `composite`."""
    return composite(cube, FALSE_COLOUR, date).rename("false_colour")


def composite(cube: xr.Dataset, bands: Sequence[str], date: Any = None) -> xr.DataArray:
    """Return a picture of three bands: one date, or the median of the clear observations, without clouds.

    Parameters
    ----------
    cube : Dataset
        A cube with Sentinel-2.
    bands : sequence of str
        For red, green and blue.
    date : str or datetime64, optional
        One of the cube's Sentinel-2 dates, clouds and all; the median if not told.

    Returns
    -------
    DataArray
        (y, x, rgb) float32 from 0 to 1, NaN without data. All dates are stretched as the median is, so that they
        compare.

    Raises
    ------
    SchemaError
        If the cube has no Sentinel-2 dates, or not this one.
    """
    if not cube.sizes["s2_time"]:
        raise SchemaError("this cube has no Sentinel-2 dates to make a picture of")
    chosen = cube["s2"].sel(s2_band=list(bands))
    if chosen.chunks:
        chosen = chosen.chunk(s2_time=-1)
    shown = median = chosen.where(cube["s2_valid"]).astype(np.float32).median("s2_time").compute()
    if date is not None:
        scene = chosen.isel(s2_time=_date_index(cube, date)).drop_vars("s2_time").compute()
        shown = scene.where((scene != 0).any("s2_band")).astype(np.float32)
    low, high = np.nanpercentile(median.values, STRETCH) if median.notnull().any() else (0.0, 3000.0)
    picture = ((shown - low) / max(float(high - low), 1e-6)).clip(0, 1)
    said = cube["s2"].attrs | {"long_name": ", ".join(bands)}
    return picture.rename(s2_band="rgb").transpose("y", "x", "rgb").rename("composite").assign_attrs(said)


def _date_index(cube: xr.Dataset, date: Any) -> int:
    dates = cube["s2_time"].values.astype("datetime64[D]").astype(str)
    found = np.flatnonzero(dates == str(date)[:10])
    if not len(found):
        raise SchemaError(f"this cube has no Sentinel-2 date {str(date)[:10]}; choose one of {', '.join(dates)}")
    return int(found[0])


def to_rgba(picture: xr.DataArray) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Return a picture (y, x, rgb) of values from 0 to 1 as bytes (y, x, 4), transparent without data."""
    values = picture.transpose("y", "x", "rgb").values
    clear = np.isfinite(values).all(axis=-1)
    colours = np.where(clear[..., None], np.rint(np.nan_to_num(values) * 255), 0).astype(np.uint8)
    return np.dstack([colours, np.where(clear, 255, 0).astype(np.uint8)])


def save_figure(pictures: dict[str, xr.DataArray], path: str | Path, title: str = "") -> Path:
    """Save pictures side by side as PNG, each with its heading, in the map's coordinates.

    Parameters
    ----------
    pictures : dict of DataArray
        Heading to picture (y, x, rgb).
    path : str or Path
        Where to; the folder is made.
    title : str, optional
        Above all of them.
    """
    figure = _figure(pictures, title)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130, format="png")
    return path


def _figure(pictures: dict[str, xr.DataArray], title: str) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * len(pictures), 5.6), layout="constrained")
    for axes, (heading, picture) in zip(
        figure.subplots(1, len(pictures), squeeze=False)[0], pictures.items(), strict=True
    ):
        x, y = (picture[d].values for d in ("x", "y"))
        half_x, half_y = (abs(v[1] - v[0]) / 2 if len(v) > 1 else 5 for v in (x, y))
        extent = (x.min() - half_x, x.max() + half_x, y.min() - half_y, y.max() + half_y)
        axes.imshow(to_rgba(picture), extent=extent, origin="upper", interpolation="nearest")
        axes.set_title(heading, fontsize=11)
        axes.ticklabel_format(useOffset=False, style="plain")
        axes.tick_params(labelsize=7)
        axes.locator_params(nbins=4)
    if title:
        figure.suptitle(title, fontsize=12)
    return figure
