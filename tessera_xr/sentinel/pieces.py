"""What is handed from `as_cube` to the plan and from the plan to the work: plain records."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from odc.geo.geobox import GeoBox

from tessera_xr.sentinel.period import Period

Inputs = dict[str, tuple[xr.Dataset, "str | None"]]
"""Argument -> the dataset, and the orbit that the argument implies."""


@dataclass(frozen=True)
class Request:
    """What the user asked of `as_cube`, with the periods resolved."""

    s2: Any = None
    s1: Any = None
    s1_ascending: Any = None
    s1_descending: Any = None
    mask: Any = "auto"
    offset: Any = "auto"
    s1_units: str = "auto"
    orbit: str | None = None
    source: str | None = None
    periods: tuple[Period, ...] = ()
    """Only dates within any of them are kept; all dates if there is none."""


@dataclass
class Piece:
    """Some bands of one sensor, (time, y, x), on their own grid."""

    data: xr.Dataset
    name: str
    """The argument it came in, for messages."""
    box: GeoBox | None = None
    scale: float = 1.0
    """Sentinel-2: factor to reflectance x 10,000."""
    unit: str = ""
    """Sentinel-1: one of `sar.UNITS`."""
    orbits: npt.NDArray[np.str_] | None = None
    """Sentinel-1: the orbit of each date."""


@dataclass
class Plan:
    """The pieces, the grid that they share, and what was found out about them."""

    optical: list[Piece] = field(default_factory=list)
    radar: list[Piece] = field(default_factory=list)
    offset: npt.NDArray[np.uint16] | None = None
    """Sentinel-2: what to subtract on each date."""
    offset_is_open: bool = False
    """An argument that decides the offset is at fault itself."""
    mask: str | None = None
    """The variable that tells clear pixels: "SCL", "clear" or None."""
    grid: GeoBox | None = None
    attrs: dict[str, str] = field(default_factory=dict)
    assumptions: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
