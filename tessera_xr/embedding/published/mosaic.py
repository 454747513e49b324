"""One grid out of many: pixels of zones and tiles brought together, codes and scales kept together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from affine import Affine
from odc.geo.geobox import GeoBox

from tessera_xr.embedding.published.stores import Piece
from tessera_xr.embedding.schema import QUALITY_FLAGS
from tessera_xr.errors import StoreError

NOWHERE = np.iinfo(np.uint16).max
RAW = np.dtype([("scale", np.float32), ("piece", np.uint16)])
"""What is known of a pixel before its codes are read: its scale as published, and which piece it comes from."""
SEAM = 0.1
"""Degrees beyond a zone's edge to which its pixels may reach: a tile of that size is in the zone of its middle."""


@dataclass(frozen=True)
class Window:
    """Which part of a piece covers which pixels of a block."""

    rows: slice
    columns: slice
    here: npt.NDArray[np.bool_]
    """The pixels of the block that it covers."""
    row: npt.NDArray[np.intp]
    """For each of them its row in the window."""
    column: npt.NDArray[np.intp]


def is_valid(scales: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """Say which scales are those of embeddings.

    Examples
    --------
    >>> is_valid(np.array([0.02, np.nan, np.inf, -np.inf, 0.0, 1.0, -0.1], np.float32)).tolist()
    [True, False, False, False, False, False, False]
    """
    with np.errstate(invalid="ignore"):
        return np.asarray((scales > 0) & (scales < 1))


def decode_quality(scales: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """Return what scales as published say of their pixels: NaN is water, +inf no data; else in (0, 1), or corrupt."""
    kinds = [is_valid(scales), np.isnan(scales), np.isposinf(scales)]
    flags = [np.uint8(QUALITY_FLAGS[name]) for name in ("valid", "water", "no_data")]
    return np.select(kinds, flags, np.uint8(QUALITY_FLAGS["corrupt"])).astype(np.uint8)


def decode_scales(scales: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return scales as in computed embeddings: NaN where there are none."""
    return np.where(is_valid(scales), scales, np.float32(np.nan)).astype(np.float32)


def read_raw(pieces: Sequence[Piece], box: GeoBox, year: int) -> npt.NDArray[np.void]:
    """Return the scale of each pixel of a grid, and its piece (y, x): the first that has anything there.

    Each pixel is decided for itself, so that blocks can't change a result.
    """
    raw = np.empty(box.shape, RAW)
    raw["scale"], raw["piece"] = np.inf, NOWHERE
    for i, piece in enumerate(pieces):
        empty = np.isposinf(raw["scale"])
        window = find_window(piece, box, empty) if year in piece.years and empty.any() else None
        if window is not None:
            scales = piece.read_scales(year, window.rows, window.columns)
            raw["scale"][window.here] = scales[window.row, window.column]
            raw["piece"][window.here] = i
    return raw


def read_codes(
    raw: npt.NDArray[np.void], pieces: Sequence[Piece], box: GeoBox, year: int, n_bands: int
) -> npt.NDArray[np.int8]:
    """Return codes (y, x, band) where there are embeddings, else 0; nothing else is read."""
    out = np.zeros((*box.shape, n_bands), np.int8)
    good = is_valid(raw["scale"])
    for i in np.unique(raw["piece"][good]):
        piece, wanted = pieces[i], good & (raw["piece"] == i)
        window = find_window(piece, box, wanted)
        assert window is not None
        codes = piece.read_codes(year, window.rows, window.columns)
        check_present(codes, window.row, window.column, piece, (window.rows.start, window.columns.start))
        if codes.shape[:2] == box.shape and window.here.all():
            return np.ascontiguousarray(codes[..., :n_bands])
        out[window.here] = codes[window.row, window.column, :n_bands]
    return out


def read_counts(
    raw: npt.NDArray[np.void], pieces: Sequence[Piece], box: GeoBox, year: int, name: str
) -> npt.NDArray[np.uint16]:
    """Return counts of observations (y, x), each from the piece that its embedding comes from."""
    out = np.zeros(box.shape, np.uint16)
    for i in np.unique(raw["piece"][raw["piece"] != NOWHERE]):
        window = find_window(pieces[i], box, raw["piece"] == i)
        assert window is not None
        counts = pieces[i].read_counts(name, year, window.rows, window.columns)
        out[window.here] = counts[window.row, window.column]
    return out


def check_present(
    codes: npt.NDArray[np.int8],
    row: npt.NDArray[np.intp],
    column: npt.NDArray[np.intp],
    piece: Piece,
    origin: tuple[int, int],
) -> None:
    """Raise `StoreError` if whole chunks of codes are 0 where scales say that there are embeddings.

    That is how a chunk looks that a store lacks, or says it lacks: the largest code of an embedding is 127.
    """
    empty = ~codes[row, column].any(axis=-1)
    if not empty.any():
        return
    chunk = np.stack([(row + origin[0]) // piece.chunk[0], (column + origin[1]) // piece.chunk[1]])
    _, which = np.unique(chunk, axis=1, return_inverse=True)
    n_pixels, n_empty = np.bincount(which.ravel()), np.bincount(which.ravel(), weights=empty)
    # of few bands and few pixels all may be 0 by chance
    if ((n_pixels == n_empty) & (n_pixels * codes.shape[-1] >= 128)).any():
        raise StoreError(
            f"{piece.name} lacks codes where its scales say that there are embeddings (near row "
            f"{row[empty][0] + origin[0]}, column {column[empty][0] + origin[1]}): it is incomplete, or its server "
            "says so; try again, or name another copy with store="
        )


def find_window(piece: Piece, box: GeoBox, wanted: npt.NDArray[np.bool_]) -> Window | None:
    """Return where the wanted pixels (y, x) of a grid are in a piece: the pixel that holds their centre."""
    where, column_of = np.nonzero(wanted)
    offset = whole_offset(piece.box, box)
    if offset is not None:
        row, column = where + offset[0], column_of + offset[1]
        inside = np.ones(len(row), bool)
    else:
        x, y = apply(box.transform, column_of + 0.5, where + 0.5)
        row, column, inside = _map(piece, box, x, y)
    inside &= (row >= 0) & (row < piece.box.shape[0]) & (column >= 0) & (column < piece.box.shape[1])
    if not inside.any():
        return None
    row, column = row[inside], column[inside]
    here = np.zeros(wanted.shape, bool)
    here[where[inside], column_of[inside]] = True
    top, left = int(row.min()), int(column.min())
    rows, columns = slice(top, int(row.max()) + 1), slice(left, int(column.max()) + 1)
    return Window(rows, columns, here, row - top, column - left)


def whole_offset(outer: GeoBox, box: GeoBox) -> tuple[int, int] | None:
    """Return the (row, column) in a grid at which another begins; None unless both have the same pixels."""
    if outer.crs != box.crs or not np.allclose(_linear(outer), _linear(box), rtol=1e-9):
        return None
    column, row = (float(v) for v in apply(~outer.transform, *map(np.float64, (box.transform.c, box.transform.f))))
    if abs(row - round(row)) > 1e-3 or abs(column - round(column)) > 1e-3:
        return None
    return round(row), round(column)


def apply(transform: Affine, x: Any, y: Any) -> tuple[Any, Any]:
    """Return where an affine transform takes places."""
    return transform.a * x + transform.b * y + transform.c, transform.d * x + transform.e * y + transform.f


def _linear(box: GeoBox) -> tuple[float, ...]:
    t = box.transform
    return (t.a, t.b, t.d, t.e)


def _map(
    piece: Piece, box: GeoBox, x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], npt.NDArray[np.bool_]]:
    """Return row and column of places in the CRS of `box`, and which of them the piece may hold."""
    from pyproj import Transformer

    near = np.ones(len(x), bool)
    if piece.box.crs != box.crs:
        if piece.zone is not None:
            longitude, _ = Transformer.from_crs(str(box.crs), "EPSG:4326", always_xy=True).transform(x, y)
            near = in_zone(np.asarray(longitude), piece.zone, SEAM)
        x, y = Transformer.from_crs(str(box.crs), str(piece.box.crs), always_xy=True).transform(x, y)
    with np.errstate(invalid="ignore"):  # places that the CRS can't show are infinitely far away
        column, row = apply(~piece.box.transform, np.asarray(x), np.asarray(y))
    finite = np.isfinite(row) & np.isfinite(column)
    pixels = [np.floor(np.where(finite, v, -1)).astype(np.intp) for v in (row, column)]
    return pixels[0], pixels[1], near & finite


def in_zone(longitude: npt.NDArray[np.float64], zone: int, margin: float = 0.0) -> npt.NDArray[np.bool_]:
    """Say which longitudes lie in a UTM zone, or within a margin of it, in degrees."""
    west = 6.0 * zone - 186
    return (longitude >= west - margin) & (longitude < west + 6 + margin)
