"""What a map layer shows: codes with colours, or colours alone, on the grid of the raster; no widget, no projection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import xarray as xr

from tessera_xr.errors import SchemaError
from tessera_xr.views.overlay import Palette
from tessera_xr.views.render import to_rgba

STEPS = 250
"""Colours of a scale: as many as fit into a byte, so that a threshold between two of them is exact."""
NOTHING = 0
"""The code of pixels without data; never shown."""


@dataclass(frozen=True)
class Classes:
    """The key of a map of classes."""

    colours: dict[str, str]
    """Names to #rrggbb, in the order of their codes."""


@dataclass(frozen=True)
class Scale:
    """The key of a map of numbers."""

    low: float
    """What the first colour stands for."""
    high: float
    """What the last one stands for."""
    colours: tuple[str, ...]
    """From low to high, #rrggbb."""
    label: str = ""
    """What is shown."""

    @property
    def step(self) -> float:
        """What one colour spans."""
        return (self.high - self.low) / STEPS


@dataclass(frozen=True)
class Coded:
    """A layer of codes, whose colours can change alone."""

    codes: npt.NDArray[np.uint8]
    """(y, x); 0 is no data."""
    palette: Palette
    """(256, 4)."""
    key: Classes | Scale

    def above(self, threshold: float | None) -> Palette:
        """Return the colours with all below a threshold gone; that of a scale only."""
        if threshold is None or not isinstance(self.key, Scale):
            return self.palette
        palette = self.palette.copy()
        palette[: 1 + code_of(threshold, self.key), 3] = 0
        return palette


@dataclass(frozen=True)
class Coloured:
    """A layer of colours."""

    rgba: npt.NDArray[np.uint8]
    """(y, x, 4)."""
    label: str = ""
    """What red, green and blue are."""


Picture: TypeAlias = Coded | Coloured


def scale_picture(
    values: npt.NDArray[np.floating], low: float, high: float, *, colours: str = "viridis", label: str = ""
) -> Coded:
    """Return numbers (y, x) as a layer on a fixed scale; those beyond it get its ends' colours, NaN none.

    Parameters
    ----------
    values : ndarray, shape (y, x)
        Numbers.
    low, high : float
        The ends of the scale.
    colours : str, default "viridis"
        A Matplotlib colour map.
    label : str
        What is shown.

    Raises
    ------
    SchemaError
        If `high` isn't above `low`.
    """
    import matplotlib as mpl

    if not (np.isfinite([low, high]).all() and high > low):
        raise SchemaError(f"a scale goes from a number to a larger one, not from {low!r} to {high!r}")
    chosen = (mpl.colormaps[colours](np.linspace(0, 1, STEPS))[:, :3] * 255).round().astype(np.uint8)
    palette = np.zeros((256, 4), np.uint8)
    palette[1 : STEPS + 1, :3], palette[1 : STEPS + 1, 3] = chosen, 255
    scaled = (values - np.float32(low)) * np.float32(STEPS / (high - low))
    codes = np.where(np.isnan(scaled), np.float32(-1), np.clip(scaled, 0, STEPS - 1))
    key = Scale(float(low), float(high), tuple(hexed(c) for c in chosen[:: STEPS // 10]), label)
    return Coded((codes + 1).astype(np.uint8), palette, key)


def code_of(value: float, key: Scale) -> int:
    """Return how many colours of a scale lie below a value, from 0 to `STEPS`."""
    return int(np.clip(np.rint((value - key.low) / key.step), 0, STEPS))


def snap(value: float, key: Scale) -> float:
    """Return the border between two colours that is nearest to a value."""
    return key.low + code_of(value, key) * key.step


def count_above(picture: Coded, threshold: float) -> int:
    """Return the number of pixels of at least a threshold, which is taken to the nearest border of colours."""
    if not isinstance(picture.key, Scale):
        raise SchemaError("classes have no threshold")
    sizes = np.bincount(picture.codes.ravel(), minlength=256)
    return int(sizes[1 + code_of(threshold, picture.key) : STEPS + 1].sum())


def class_picture(classes: xr.DataArray, opacity: xr.DataArray | None = None) -> Coded:
    """Return a map of classes, with the CF attributes flag_values, flag_meanings and flag_colors, as a layer.

    Parameters
    ----------
    classes : DataArray
        (y, x) whole numbers.
    opacity : DataArray, optional
        (y, x) from 0 to 1, such as the confidence: the less, the fainter. In as many steps as fit into a byte.

    Raises
    ------
    SchemaError
        If the attributes are missing, or there are more than 254 classes.
    """
    flags = np.atleast_1d(classes.attrs.get("flag_values", []))
    names, colours = (str(classes.attrs.get(k, "")).split() for k in ("flag_meanings", "flag_colors"))
    if not len(flags) or len(flags) != len(names) or len(flags) != len(colours):
        raise SchemaError("a map of classes needs flag_values, flag_meanings and flag_colors of equal length")
    if len(flags) > 254:
        raise SchemaError(f"{len(flags)} classes can't be told apart on a map; 254 at most")
    place = np.zeros(int(max(flags.max(), classes.max())) + 1, np.intp)
    place[flags] = np.arange(1, len(flags) + 1)
    position = place[classes.transpose("y", "x").values]
    levels = 1 if opacity is None else max(min(254 // len(flags), 32), 1)
    palette = np.zeros((256, 4), np.uint8)
    for i, colour in enumerate(colours):
        strip = slice(1 + i * levels, 1 + (i + 1) * levels)
        palette[strip, :3] = parsed(colour)
        palette[strip, 3] = np.linspace(255 / levels, 255, levels).round()
    faintness = 0 if opacity is None else _levels(opacity, levels)
    codes = np.where(position == 0, NOTHING, (position - 1) * levels + 1 + faintness).astype(np.uint8)
    return Coded(codes, palette, Classes(dict(zip(names, colours, strict=True))))


def _levels(opacity: xr.DataArray, levels: int) -> npt.NDArray[np.intp]:
    shown = np.nan_to_num(opacity.transpose("y", "x").values)
    steps: npt.NDArray[np.intp] = np.clip(np.floor(shown * levels), 0, levels - 1).astype(np.intp)
    return steps


def colour_picture(picture: xr.DataArray) -> Coloured:
    """Return a picture (y, x, rgb) of values from 0 to 1 as a layer."""
    return Coloured(to_rgba(picture), str(picture.attrs.get("long_name", "")))


def hexed(rgb: npt.NDArray[np.uint8]) -> str:
    """Return red, green and blue as #rrggbb."""
    return "#" + "".join(f"{int(v):02x}" for v in rgb)


def parsed(colour: str) -> tuple[int, int, int]:
    """Return #rrggbb as red, green and blue."""
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)
