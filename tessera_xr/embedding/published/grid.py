"""The grid of published embeddings that are asked for, and what covers it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from odc.geo.geobox import GeoBox

from tessera_xr.area import resolve_area, utm_geobox, utm_zone
from tessera_xr.embedding.published.mosaic import whole_offset
from tessera_xr.embedding.published.store_checks import FALSE_NORTHING
from tessera_xr.embedding.published.stores import Piece
from tessera_xr.errors import GridError
from tessera_xr.grid import bounds_lonlat, geobox_of

if TYPE_CHECKING:
    from tessera_xr.area import AreaLike


def target_grid(area: AreaLike, pieces: Sequence[Piece], zone: int | None) -> GeoBox:
    """Return the grid of the result: on the pixels of the first piece in its zone."""
    own = northern(geobox_of(area) if isinstance(area, (xr.Dataset, xr.DataArray)) else area)
    if zone is None and isinstance(own, GeoBox) and any(whole_offset(p.box, own) is not None for p in pieces):
        return own
    west, _, east, _ = resolve_area(area).bounds
    middle = utm_zone((west + east) / 2)
    zone = middle if zone is None else zone
    if zone in range(1, 61) and (zone - middle) % 60 not in (0, 1, 59):
        raise GridError(f"the area lies in UTM zone {middle}, far from zone={zone}; leave out zone=")
    box = utm_geobox(area, 10.0, zone)
    here = [p for p in pieces if p.box.crs == box.crs]
    if here and whole_offset(here[0].box, box) is None:
        return _snap(utm_geobox(area, 0.001, zone), here[0].box)
    return box


def northern(box: Any) -> Any:
    """Return a grid of a southern UTM zone as the same pixels in the northern CRS; any other as it is.

    Examples
    --------
    >>> south = GeoBox.from_bbox((500000, 9999900, 500100, 10000000), crs="EPSG:32733", resolution=10)
    >>> northern(south).boundingbox
    BoundingBox(left=500000.0, bottom=-100.0, right=500100.0, top=0.0, crs=CRS('EPSG:32633'))
    """
    epsg = box.crs.to_epsg() if isinstance(box, GeoBox) and box.crs is not None else None
    if epsg is None or not 32701 <= epsg <= 32760:
        return box
    t = box.transform
    return GeoBox(box.shape, type(t)(t.a, t.b, t.c, t.d, t.e, t.f - FALSE_NORTHING), f"EPSG:{epsg - 100}")


def _snap(box: GeoBox, grid: GeoBox) -> GeoBox:
    """Return the smallest part of the endless grid of pixels like those of `grid` that covers `box`."""
    a, c, e, f = (getattr(grid.transform, n) for n in "acef")
    bounds = box.boundingbox
    left, right = np.floor((bounds.left - c) / a + 1e-6), np.ceil((bounds.right - c) / a - 1e-6)
    top, bottom = np.floor((bounds.top - f) / e + 1e-6), np.ceil((bounds.bottom - f) / e - 1e-6)
    shape = (max(int(bottom - top), 1), max(int(right - left), 1))
    return GeoBox(shape, type(grid.transform)(a, 0, c + a * left, 0, e, f + e * top), grid.crs)


def in_order(pieces: Sequence[Piece], box: GeoBox) -> list[Piece]:
    """Return the pieces that touch a grid: those on its pixels first, since nothing need be resampled."""
    touching = [p for p in pieces if _touches(p, box)]
    if not touching:
        west, south, east, north = _around(pieces)
        raise GridError(
            f"the area lies outside what {pieces[0].name} holds there, which reaches from {west:.3f} to {east:.3f} E "
            f"and {south:.3f} to {north:.3f} N"
        )
    return sorted(touching, key=lambda p: (p.box.crs != box.crs, whole_offset(p.box, box) is None))


def _touches(piece: Piece, box: GeoBox) -> bool:
    asked = box.boundingbox if piece.box.crs == box.crs else box.extent.to_crs(str(piece.box.crs)).boundingbox
    own = piece.box.boundingbox
    beside = asked.left < own.right and asked.right > own.left
    return bool(beside and asked.bottom < own.top and asked.top > own.bottom)


def _around(pieces: Sequence[Piece]) -> tuple[float, float, float, float]:
    boxes = np.array([bounds_lonlat(p.box) for p in pieces])
    return (*boxes[:, :2].min(axis=0), *boxes[:, 2:].max(axis=0))


def describe_resampling(pieces: Sequence[Piece], box: GeoBox) -> dict[str, str]:
    """Return the attribute that tells which pieces are not on the pixels of a grid; none if all are."""
    other = [p for p in pieces if whole_offset(p.box, box) is None]
    names = sorted({f"UTM zone {p.zone}" if p.zone is not None else p.name for p in other})
    if not names:
        return {}
    return {"resampled": f"{', '.join(names)}: nearest neighbour, where what is on this grid has no data"}
