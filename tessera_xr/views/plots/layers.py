"""What a map shows, told apart from how it is drawn: Bokeh and Matplotlib draw the same layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import xarray as xr

from tessera_xr._warn import warn
from tessera_xr.analysis.queries import time_labels
from tessera_xr.errors import GridError, SchemaError
from tessera_xr.grid import crs_name, crs_of, geobox_of, spatial_dims

MOST_LAZY = 1 << 24
"""Pixels of a lazy map that are computed for a picture; of a larger one every second, third ... is."""
MOST_TIMES = 12
"""Maps side by side."""
SLENDER = 2.0
"""How many times longer than wide a frame may be."""
OKABE_ITO = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#000000")
"""Colours that people with any colour vision tell apart (Okabe and Ito 2008)."""

Floats: TypeAlias = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True, eq=False)
class Frame:
    """Where a map lies."""

    extent: tuple[float, float, float, float]
    """(left, right, bottom, top) of its pixels' outer edges."""
    x_label: str
    y_label: str
    aspect: float = 1.0
    """How long a unit of y is, in units of x."""

    @property
    def view(self) -> tuple[float, float, float, float]:
        """The extent to show: a slender map gets room beside it."""
        left, right, bottom, top = self.extent
        width, height = right - left, (top - bottom) * self.aspect
        more_x = max(0.0, height / SLENDER - width) / 2
        more_y = max(0.0, width / SLENDER - height) / 2 / self.aspect
        return left - more_x, right + more_x, bottom - more_y, top + more_y

    @property
    def ratio(self) -> float:
        """Height of the view, in widths."""
        left, right, bottom, top = self.view
        return (top - bottom) * self.aspect / (right - left)


@dataclass(frozen=True, eq=False)
class Numbers:
    """Numbers on a scale."""

    values: Floats
    """(y, x) from the top left; NaN no data."""
    low: float
    high: float
    colours: str
    """A Matplotlib colour map."""
    label: str
    """What is shown, with its unit."""


@dataclass(frozen=True, eq=False)
class Classes:
    """Classes with their colours."""

    index: Floats
    """(y, x) from the top left: the position in `names`; NaN no data."""
    names: tuple[str, ...]
    colours: tuple[str, ...]
    """#rrggbb."""
    label: str = "class"


@dataclass(frozen=True, eq=False)
class Colours:
    """A picture."""

    rgba: npt.NDArray[np.uint8]
    """(y, x, 4) from the top left."""
    alpha: float = 1.0


@dataclass(frozen=True, eq=False)
class Marks:
    """Places on a map."""

    x: Floats
    """(n,) in the map's CRS."""
    y: Floats
    name: str
    """In the legend."""
    colour: str
    text: tuple[str, ...] = ()
    """Written beside each."""
    edge: str = "#ffffff"
    marker: str = "o"
    """"o" or "s"."""
    size: float = 9.0
    """In screen pixels."""


Layer: TypeAlias = Numbers | Classes | Colours | Marks


@dataclass(frozen=True, eq=False)
class Map:
    """One map: layers, the lowest first."""

    frame: Frame
    layers: tuple[Layer, ...]
    title: str

    @property
    def is_empty(self) -> bool:
        """Whether its rasters hold no data at all, and only a title can say so."""
        rasters = [layer for layer in self.layers if not isinstance(layer, Marks)]
        return bool(rasters) and all(_is_empty(layer) for layer in rasters)


def _is_empty(layer: Numbers | Classes | Colours) -> bool:
    if isinstance(layer, Colours):
        return not layer.rgba[..., 3].any()
    return bool(np.isnan(layer.values if isinstance(layer, Numbers) else layer.index).all())


# From xarray ----------------------------------------------------------------------------------------------------------


def frame_of(array: xr.DataArray | xr.Dataset) -> Frame:
    """Return where a map lies: its outer edges, and axes named as its CRS has them.

    Raises
    ------
    GridError
        If there are no spatial dimensions, or they have no evenly spaced coordinates.
    """
    y, x = spatial_dims(array)
    if not array.sizes[x] or not array.sizes[y]:
        raise GridError(f"this map has no pixels: {dict(array.sizes)}; choose a part that has some")
    crs = crs_of(array)
    spans = [_edges(array, dim, other) for dim, other in ((x, y), (y, x))]
    extent = (*spans[0], *spans[1])
    if crs is None:
        return Frame(extent, str(x), str(y))
    labels = [_axis_label(crs, direction, str(dim)) for direction, dim in (("east", x), ("north", y))]
    middle = np.deg2rad(np.clip(np.mean(spans[1]), -85, 85)) if crs.geographic else 0.0
    return Frame(extent, f"{labels[0]}, {crs_name(crs)}", labels[1], float(1 / np.cos(middle)))


def _edges(array: xr.DataArray | xr.Dataset, dim: Any, other: Any) -> tuple[float, float]:
    if dim not in array.coords:
        raise GridError(f"dimension {dim!r} has no coordinate; give it the pixel centres")
    centres = np.asarray(array[dim].values, dtype=np.float64)
    half = _step(array, dim, other) / 2
    return float(centres.min() - half), float(centres.max() + half)


def _step(array: xr.DataArray | xr.Dataset, dim: Any, other: Any) -> float:
    """Return the size of a pixel along a dimension; of a single one as the grid tells it, or as along the other."""
    for name in (dim, other):
        centres = np.asarray(array[name].values, dtype=np.float64) if name in array.coords else np.empty(0)
        if name == other and len(centres) < 2:
            try:
                resolution = geobox_of(array).resolution
            except (GridError, ValueError, IndexError):
                return 1.0
            return float(abs(resolution.x))
        if len(centres) > 1:
            steps = np.diff(centres)
            if not (steps[0] != 0 and np.abs(steps - steps.mean()).max() <= 0.01 * abs(steps.mean())):
                raise GridError(f"coordinate {name!r} is not evenly spaced; resample to a regular grid first")
            return float(abs(steps.mean()))
    return 1.0


def _axis_label(crs: Any, direction: str, fallback: str) -> str:
    for axis in crs.proj.axis_info:
        if axis.direction == direction:
            unit = {"metre": "m", "degree": "°"}.get(axis.unit_name, axis.unit_name)
            return f"{axis.name.lower().replace('geodetic ', '')} ({unit})"
    return fallback


def top_left(array: xr.DataArray) -> npt.NDArray[Any]:
    """Return the values of one map (y, x[, rgb]), north up and west left, in memory."""
    y, x = spatial_dims(array)
    values = array.transpose(y, x, ...).values
    rows, columns = (np.asarray(array[d].values) for d in (y, x))
    values = values[::-1] if len(rows) > 1 and rows[0] < rows[-1] else values
    return values[:, ::-1] if len(columns) > 1 and columns[0] > columns[-1] else values


def thinned(obj: xr.Dataset) -> xr.Dataset:
    """Return a dataset as it is; of a lazy one that is too large for a picture every second, third ... pixel."""
    lazy = any(v.chunks is not None for v in obj.data_vars.values())
    size = obj.sizes.get("y", 1) * obj.sizes.get("x", 1)
    step = int(np.ceil(np.sqrt(size / MOST_LAZY))) if lazy else 1
    if step == 1:
        return obj
    warn(
        f"{size:,} lazy pixels are more than a picture needs: one of {step} is shown along each axis. For all of them "
        "choose a part, .isel(y=slice(...), x=slice(...)), or load the map, .compute()"
    )
    return obj.isel(y=slice(None, None, step), x=slice(None, None, step))


def by_time(array: xr.DataArray) -> list[tuple[str, xr.DataArray]]:
    """Return each time of a map and its label, "" where it has none.

    Raises
    ------
    SchemaError
        If there are more times than fit side by side.
    """
    if "time" not in array.dims:
        return [(time_labels(array["time"].values)[0] if "time" in array.coords else "", array)]
    check_times(array)
    labels = time_labels(array["time"].values) if "time" in array.coords else list(map(str, range(len(array["time"]))))
    return [(label, array.isel(time=i)) for i, label in enumerate(labels)]


def check_times(array: xr.DataArray | xr.Dataset) -> None:
    """Raise `SchemaError` if there are more times than fit side by side."""
    if array.sizes.get("time", 1) > MOST_TIMES:
        raise SchemaError(
            f"{array.sizes['time']} maps side by side can't be told apart ({MOST_TIMES} at most); choose one with "
            "time=, or some with .isel(time=slice(...))"
        )


def joined(*parts: str) -> str:
    """Return what there is of a title, with commas."""
    return ", ".join(part for part in parts if part)
