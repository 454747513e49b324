"""Which colours stand for which numbers or classes: the same here as in the explorer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from tessera_xr.analysis.clustering import palette
from tessera_xr.errors import SchemaError
from tessera_xr.views.plots.layers import OKABE_ITO, Classes, Colours, Numbers, top_left
from tessera_xr.views.render import to_rgba
from tessera_xr.views.showing import FARTHEST, NUMBERS

SHARES = ("confidence", "probability")
"""Maps of numbers from 0 to 1."""


def has_flags(array: xr.DataArray) -> bool:
    """Say whether a map is one of classes."""
    return array.dtype.kind == "b" or ("flag_values" in array.attrs and "flag_meanings" in array.attrs)


def class_layer(array: xr.DataArray) -> Classes:
    """Return a map of classes: CF's flag_values, flag_meanings and flag_colors, or true and false.

    Raises
    ------
    SchemaError
        If there are no flags, or as many names or colours as there are not values.
    """
    flags, names, colours = class_key(array)
    values = top_left(array.astype(np.uint8) if array.dtype.kind == "b" else array)
    index = np.full(values.shape, np.nan, np.float32)
    held = np.isfinite(values) if values.dtype.kind == "f" else np.ones(values.shape, bool)
    order = np.argsort(flags, kind="stable")
    place = np.clip(np.searchsorted(flags[order], values), 0, len(flags) - 1)
    found = held & (flags[order][place] == values)
    nodata = array.attrs.get("nodata")
    if nodata is not None and nodata not in flags:
        found &= values != nodata
    index[found] = order[place[found]]
    return Classes(index, names, colours, str(array.attrs.get("long_name", array.name or "class")))


def class_key(array: xr.DataArray) -> tuple[npt.NDArray[Any], tuple[str, ...], tuple[str, ...]]:
    """Return values (n,), names and colours of the classes of a map."""
    if array.dtype.kind == "b":
        return np.array([0, 1]), ("no", "yes"), class_colours(2)
    flags = np.atleast_1d(np.asarray(array.attrs.get("flag_values", [])))
    names = str(array.attrs.get("flag_meanings", "")).split()
    colours = str(array.attrs.get("flag_colors", "")).split() or list(class_colours(len(flags)))
    if not len(flags) or len(flags) != len(names) or len(flags) != len(colours):
        raise SchemaError(
            "a map of classes needs the attributes flag_values and flag_meanings (and, if any, flag_colors) of equal "
            f"length, as clusters and predictions have; here they are {len(flags)}, {len(names)} and {len(colours)}. "
            "Show numbers with .plot.values()"
        )
    return flags, tuple(name.replace("_", " ") for name in names), tuple(colours)


def class_colours(n: int) -> tuple[str, ...]:
    """Return colours for n classes that have none."""
    return OKABE_ITO[:n] if n <= len(OKABE_ITO) else palette(n)


def number_layer(array: xr.DataArray, cmap: str | None = None, clim: Sequence[float] | None = None) -> Numbers:
    """Return a map of numbers; similarity, change, novelty and probabilities on the explorer's fixed scales.

    Others go from their 2nd to their 98th percentile.

    Raises
    ------
    SchemaError
        If there is no such colour map, or `clim` isn't two numbers, the second larger.
    """
    values = top_left(array).astype(np.float32, copy=False)
    known = fixed_scale(array)
    colours = check_colours(cmap) if cmap is not None else known[0] if known else "viridis"
    low, high = checked_limits(clim) if clim is not None else known[1:] if known else spread_of(values)
    return Numbers(values, low, high, colours, label_of(array))


def fixed_scale(array: xr.DataArray) -> tuple[str, float, float] | None:
    """Return colours and ends for what has a scale of its own."""
    if array.name == "similarity" and array.attrs.get("metric", "cosine") == "cosine":
        return NUMBERS["similarity"][0], -1.0 if array.attrs.get("valid_max", 1) > 1 else 0.0, 1.0
    if array.name == "change":
        return NUMBERS["change"][0], 0.0, FARTHEST
    if array.name == "percentile":
        return NUMBERS["novelty"][0], 0.0, 100.0
    return ("cividis", 0.0, 1.0) if array.name in SHARES else None


def label_of(array: xr.DataArray) -> str:
    """Return what a map shows, with its unit."""
    units = str(array.attrs.get("units", ""))
    name = str(array.attrs.get("long_name", array.name or "value"))
    return f"{name} ({units})" if units not in ("", "1") else name


def spread_of(values: npt.NDArray[Any]) -> tuple[float, float]:
    """Return the 2nd and 98th percentile of what there is, apart."""
    held = values[np.isfinite(values)]
    if not len(held):
        return 0.0, 1.0
    low, high = (float(v) for v in np.percentile(held, (2, 98)))
    if high <= low:
        low, high = float(held.min()), float(held.max())
    half = abs(low) / 2 or 0.5  # one value in the middle of its scale
    return (low, high) if high > low else (low - half, low + half)


def checked_limits(clim: Sequence[float]) -> tuple[float, float]:
    """Return the ends of a scale."""
    try:
        low, high = map(float, clim)
    except (TypeError, ValueError) as error:
        raise SchemaError(f"clim is two numbers, (low, high), not {clim!r}") from error
    if not (np.isfinite([low, high]).all() and high > low):
        raise SchemaError(f"clim goes from a number to a larger one, not from {low!r} to {high!r}")
    return low, high


def check_colours(cmap: str) -> str:
    """Return the name of a colour map of Matplotlib."""
    import matplotlib as mpl

    if not isinstance(cmap, str) or cmap not in mpl.colormaps:
        raise SchemaError(f"cmap={cmap!r} is no colour map; try 'viridis', 'cividis', 'magma' or 'RdBu'")
    return cmap


def colour_layer(picture: xr.DataArray, alpha: float = 1.0) -> Colours:
    """Return a picture (y, x, rgb) of values from 0 to 1."""
    if picture.sizes.get("rgb") != 3:
        raise SchemaError(f"a picture has dimensions y, x and rgb (3), not {dict(picture.sizes)}")
    values = picture.copy(data=picture.values).transpose("y", "x", "rgb")
    return Colours(to_rgba(values.copy(data=top_left(values))), alpha)
