"""Pictures to the map: a raster's pixels looked up in Web Mercator, encoded as a data URL that needs no server.

Leaflet stretches a picture between two corners in Web Mercator. A UTM grid is no rectangle there, and shown as one its
pixels are 5 to 13 off, so that pixels are looked up first: once for a grid, then nine milliseconds a picture.
"""

from __future__ import annotations

import io
import struct
import zlib
from base64 import b64encode
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from odc.geo.geobox import GeoBox

from tessera_xr.area import resolve_area
from tessera_xr.errors import GridError

Bounds: TypeAlias = tuple[float, float, float, float]
"""(west, south, east, north) in degrees."""
Palette: TypeAlias = npt.NDArray[np.uint8]
"""(n, 4) red, green, blue and opacity of the codes 0 to n - 1."""
MOST_PIXELS = 2048
"""Of a side of a picture: more is no sharper on a screen, and takes seconds to send."""
RADIUS = 6378137.0
_LIMIT = 85.0511287798066
_CONTROL = 32
"""Pixels between places that are projected; between them the grid bends by less than a hundredth of a pixel."""


@dataclass(frozen=True)
class Warp:
    """Where on a raster each pixel of a Web Mercator picture lies: see `make_warp`."""

    index: npt.NDArray[np.int32]
    """(height, width) flat index into the raster; the raster's size where the picture reaches beyond it."""
    bounds: Bounds
    """Of the picture, in degrees."""
    shape: tuple[int, int]
    """Of the raster."""
    coarsening: float
    """Raster pixels that a pixel of the picture stands for, along a side; 1 or less where none is lost."""

    @property
    def corners(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """((south, west), (north, east)), as Leaflet wants them."""
        west, south, east, north = self.bounds
        return (south, west), (north, east)

    def apply(self, raster: npt.NDArray[Any], outside: Any = 0) -> npt.NDArray[Any]:
        """Return the picture of a raster (y, x, ...): (height, width, ...), `outside` where the raster isn't."""
        flat = raster.reshape(self.shape[0] * self.shape[1], *raster.shape[2:])
        if flat.dtype == np.uint8 and flat.ndim == 1:
            return np.append(flat, np.uint8(outside)).take(self.index)
        return np.concatenate([flat, np.full_like(flat[:1], outside)]).take(self.index, axis=0)


def make_warp(box: GeoBox, *, within: Bounds | None = None, most_pixels: int = MOST_PIXELS) -> Warp:
    """Return how to show a raster on a Web Mercator map.

    Parameters
    ----------
    box : GeoBox
        The raster's grid, in any CRS.
    within : (west, south, east, north), optional
        Only this part, in degrees: the closer the look, the finer the picture.
    most_pixels : int, default 2048
        Of the longer side of the picture.

    Returns
    -------
    Warp
        Its pixels are about as large as the raster's, or larger if `most_pixels` asks for it.

    Raises
    ------
    GridError
        If the raster has no CRS, or `within` shows nothing of it.
    """
    left, bottom, right, top = _mercator_bounds(box, within)
    size = _pixel_size(box, left, bottom, right, top)
    longest = max(right - left, top - bottom) / size
    coarsening = max(longest / most_pixels, 1.0)
    width, height = (max(int(np.ceil(side / (size * coarsening))), 1) for side in (right - left, top - bottom))
    rows, columns = _raster_positions(box, (left, bottom, right, top), (height, width))
    inside = (rows >= 0) & (rows < box.shape[0]) & (columns >= 0) & (columns < box.shape[1])
    n_pixels = box.shape[0] * box.shape[1]
    if n_pixels >= np.iinfo(np.int32).max:
        raise GridError(f"a raster of {box.shape[0]} x {box.shape[1]} pixels is too large to show; take a part of it")
    index = np.where(inside, np.floor(rows) * box.shape[1] + np.floor(columns), n_pixels).astype(np.int32)
    return Warp(index, _degrees(left, bottom, right, top), (box.shape[0], box.shape[1]), coarsening)


def _mercator_bounds(box: GeoBox, within: Bounds | None) -> Bounds:
    """Return (left, bottom, right, top) in metres of EPSG:3857 of a raster, or of the part of it that is asked for."""
    west, south, east, north = resolve_area(box).bounds
    if within is not None:
        west, south, east, north = (
            max(west, within[0]),
            max(south, within[1]),
            min(east, within[2]),
            min(north, within[3]),
        )
        if west >= east or south >= north:
            raise GridError("there is nothing of this raster in that part of the map")
    x, y = to_mercator(np.array([west, east]), np.array([south, north]))
    return float(x[0]), float(y[0]), float(x[1]), float(y[1])


def _pixel_size(box: GeoBox, left: float, bottom: float, right: float, top: float) -> float:
    """Return the raster's pixel in metres of the map, in its middle."""
    middle = np.array([[(left + right) / 2, (bottom + top) / 2]])
    step = max(right - left, top - bottom) * 1e-3
    around = middle + np.array([[0, 0], [step, 0], [0, step]])
    rows, columns = _to_pixels(box, *from_mercator(*around.T))
    a, b = np.diff(rows)[0], np.diff(columns)[0]
    per_pixel = step / max(np.hypot(a, b), 1e-12)
    c, d = rows[2] - rows[0], columns[2] - columns[0]
    return float(min(per_pixel, step / max(np.hypot(c, d), 1e-12)))


def _raster_positions(box: GeoBox, bounds: Bounds, shape: tuple[int, int]) -> tuple[Any, Any]:
    """Return the fractional (row, column) in the raster of each pixel's centre of a picture."""
    left, bottom, right, top = bounds
    centres = [(np.arange(n) + 0.5) / n for n in shape]
    knots = [np.linspace(0, 1, max(-(-n // _CONTROL), 1) + 1) for n in shape]
    y, x = np.meshgrid(top + (bottom - top) * knots[0], left + (right - left) * knots[1], indexing="ij")
    found = _to_pixels(box, *from_mercator(x.ravel(), y.ravel()))
    rows, columns = (_between(values.reshape(x.shape), knots, centres) for values in found)
    return rows, columns


def _between(values: npt.NDArray[Any], knots: list[Any], centres: list[Any]) -> npt.NDArray[np.float64]:
    """Interpolate values at the knots (K, L) to the centres (h, w), linearly along both axes."""
    for axis in (0, 1):
        place = np.interp(centres[axis], knots[axis], np.arange(len(knots[axis])))
        lower = np.minimum(place.astype(np.intp), len(knots[axis]) - 2)
        share = place - lower
        share = share[:, None] if axis == 0 else share[None]
        values = values.take(lower, axis) * (1 - share) + values.take(lower + 1, axis) * share
    return values


def _to_pixels(box: GeoBox, longitude: Any, latitude: Any) -> tuple[Any, Any]:
    from pyproj import Transformer

    x, y = Transformer.from_crs("EPSG:4326", str(box.crs), always_xy=True).transform(longitude, latitude)
    inverse = ~box.transform
    return inverse.d * x + inverse.e * y + inverse.f, inverse.a * x + inverse.b * y + inverse.c


def to_mercator(longitude: npt.ArrayLike, latitude: npt.ArrayLike) -> tuple[Any, Any]:
    """Return metres of Web Mercator (EPSG:3857) of degrees."""
    phi = np.radians(np.clip(latitude, -_LIMIT, _LIMIT))
    return RADIUS * np.radians(longitude), RADIUS * np.log(np.tan(np.pi / 4 + phi / 2))


def from_mercator(x: npt.ArrayLike, y: npt.ArrayLike) -> tuple[Any, Any]:
    """Return degrees of metres of Web Mercator."""
    return np.degrees(np.asarray(x) / RADIUS), np.degrees(2 * np.arctan(np.exp(np.asarray(y) / RADIUS)) - np.pi / 2)


def _degrees(left: float, bottom: float, right: float, top: float) -> Bounds:
    (west, east), (south, north) = from_mercator([left, right], [bottom, top])
    return float(west), float(south), float(east), float(north)


class PalettePicture:
    """A picture of codes whose colours can change without its pixels being packed again.

    Parameters
    ----------
    codes : ndarray, shape (height, width), uint8
        One code a pixel.
    """

    def __init__(self, codes: npt.NDArray[np.uint8]) -> None:
        self.shape = codes.shape
        # each line is kept as its difference to the one above (filter 2): a quarter smaller; run lengths alone, without
        # a search for repeats, are three times as fast to find
        lines = np.full((codes.shape[0], codes.shape[1] + 1), 2, np.uint8)
        lines[0, 1:] = codes[0]
        np.subtract(codes[1:], codes[:-1], out=lines[1:, 1:])
        packer = zlib.compressobj(1, zlib.DEFLATED, 15, 8, zlib.Z_RLE)
        self._packed = _chunk(b"IDAT", packer.compress(lines.tobytes()) + packer.flush())
        self._head = _chunk(b"IHDR", struct.pack(">IIBBBBB", codes.shape[1], codes.shape[0], 8, 3, 0, 0, 0))

    def png(self, palette: Palette) -> bytes:
        """Return the picture as PNG in these colours."""
        colours = _chunk(b"PLTE", np.ascontiguousarray(palette[:, :3]).tobytes())
        opacity = _chunk(b"tRNS", np.ascontiguousarray(palette[:, 3]).tobytes())
        return b"\x89PNG\r\n\x1a\n" + self._head + colours + opacity + self._packed + _chunk(b"IEND", b"")

    def url(self, palette: Palette) -> str:
        """Return the picture as a data URL."""
        return data_url(self.png(palette), "image/png")


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def colour_url(rgba: npt.NDArray[np.uint8], quality: int = 85) -> str:
    """Return a picture (height, width, 4) of any colours as a data URL, WebP, transparent where its opacity is 0."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(rgba).save(file, "WEBP", quality=quality, method=0)
    return data_url(file.getvalue(), "image/webp")


def data_url(content: bytes, kind: str) -> str:
    """Return bytes as a URL that holds them."""
    return f"data:{kind};base64,{b64encode(content).decode()}"
