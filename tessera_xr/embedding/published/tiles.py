"""Published tiles of 0.1 degrees, as NPY files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from odc.geo.geobox import GeoBox

from tessera_xr.embedding.published.files import raster_grid
from tessera_xr.embedding.published.releases import RELEASES, identify
from tessera_xr.embedding.published.remote import Folder, Site, Span
from tessera_xr.embedding.published.store_checks import MAX_BANDS
from tessera_xr.embedding.published.stores import Piece
from tessera_xr.embedding.quantize import quantize_arrays
from tessera_xr.errors import GridError, SchemaError, StoreError

MAX_SIDE = 5_000
"""Pixels of a tile's side that are believed: a tile of 0.1 degrees has some 1,100."""
MAX_TILES = 2_500
Bounds: TypeAlias = tuple[float, float, float, float]
MAX_MASK = 256 << 20
_HEADER = 4096
_EMBEDDINGS = ("global_0.1_degree_representation", "")
_MASKS = ("global_0.1_degree_tiff_all", "landmasks", "")


def tile_centre(longitude: float, latitude: float) -> tuple[int, int]:
    """Return the number of the tile that holds a place: its lower left corner, in tenths of a degree.

    Examples
    --------
    >>> tile_centre(0.17, 52.23), tile_centre(-0.12, -0.03)
    ((1, 522), (-2, -1))
    """
    return int(np.floor(longitude * 10 + 1e-9)), int(np.floor(latitude * 10 + 1e-9))


def tile_name(column: int, row: int) -> str:
    """Return the name of a tile: its middle, in degrees.

    Examples
    --------
    >>> tile_name(-2, 522)
    'grid_-0.15_52.25'
    """
    return f"grid_{(column * 10 + 5) / 100:.2f}_{(row * 10 + 5) / 100:.2f}"


@dataclass
class TileSource:
    """A folder of NPY tiles, here or on a server."""

    files: Folder | Site
    masks: tuple[tuple[Folder | Site, str], ...]
    """Where the landmasks may be: a folder, and one in it."""
    identity: dict[str, Any]
    _opened: dict[str, NpyTile | None] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What to call it."""
        return self.files.name

    def open_pieces(self, bounds: Bounds, years: Sequence[int], dims: int | None) -> list[Piece]:
        """Return the tiles between (west, south, east, north) that are there in any of the years."""
        if dims is not None and dims < 16:
            raise StoreError(f"{self.name} has embeddings of 128 values; dims={dims} needs a store that holds it")
        west, south, east, north = bounds
        (left, bottom), (right, top) = (
            tile_centre(west - 0.001, south - 0.001),
            tile_centre(east + 0.001, north + 0.001),
        )
        n = (right - left + 1) * (top - bottom + 1)
        if n > MAX_TILES:
            raise GridError(f"the area covers {n:,} tiles of 0.1 degrees, over {MAX_TILES:,}; ask for less of it")
        places = [(c, r) for r in range(top, bottom - 1, -1) for c in range(left, right + 1)]
        found: list[Piece] = [t for c, r in places if (t := self._open(tile_name(c, r), years)) is not None]
        if not found:
            raise SchemaError(
                f"{self.name} holds none of the {n} tiles there (the first is {tile_name(left, top)}) in "
                f"{', '.join(map(str, years))}; {self._years()}"
            )
        return found

    def _years(self) -> str:
        if not isinstance(self.files, Folder):
            return "try another year or area"
        names = {p.name for base in _EMBEDDINGS for p in (self.files.path / base).glob("[12][0-9][0-9][0-9]")}
        return f"it has folders for {sorted(names)}"

    def _open(self, name: str, years: Sequence[int]) -> NpyTile | None:
        if name not in self._opened:
            self._opened[name] = self._read(name, years)
        return self._opened[name]

    def _read(self, name: str, years: Sequence[int]) -> NpyTile | None:
        at = {}
        for year in years:
            for base in _EMBEDDINGS if isinstance(self.files, Folder) else ("",):
                stem = "/".join(p for p in (base, str(year), name, name) if p)
                header = read_header(self.files, f"{stem}.npy", np.int8, (3,))
                if header is not None:
                    at[year] = (stem, header)
                    break
        if not at:
            return None
        box, land = self._mask(name)
        scales = {}
        for year, (stem, header) in at.items():
            found = read_header(self.files, f"{stem}_scales.npy", np.float32, (2, 3))
            if found is None or found.shape[:2] != header.shape[:2] or header.shape[:2] != box.shape:
                raise StoreError(
                    f"{self.name}/{stem}: the embeddings are {header.shape}, their scales "
                    f"{found.shape if found else 'not there'}, the landmask {tuple(box.shape)}; they don't belong "
                    "together"
                )
            scales[year] = found
        bands = {h.shape[2] for _, h in at.values()}
        if len(bands) > 1:
            raise StoreError(f"{self.name}/{name}: its years have embeddings of {sorted(bands)} values")
        return NpyTile(box, tuple(at), bands.pop(), self.files, {y: h for y, (_, h) in at.items()}, scales, land)

    def _mask(self, name: str) -> tuple[GeoBox, npt.NDArray[np.bool_]]:
        for folder, base in self.masks:
            data = folder.get(f"{base}/{name}.tiff" if base else f"{name}.tiff", MAX_MASK)
            if data is not None:
                return read_mask(data, f"{folder.name}/{name}.tiff")
        raise StoreError(
            f"{self.name} has the tile {name} but not its landmask {name}.tiff, which says where it lies; "
            "name the folder of the masks with landmasks="
        )


@dataclass(frozen=True)
class NpyFile:
    """An NPY file: what its header says, checked."""

    key: str
    shape: tuple[int, ...]
    start: int
    """Where its values begin."""
    item: int
    """Bytes of a value."""


def read_header(files: Folder | Site, key: str, dtype: Any, ndims: tuple[int, ...]) -> NpyFile | None:
    """Return the checked header of an NPY file; None if there is no such file. Nothing is unpickled."""
    head = files.get(key, _HEADER, Span(0, 10))
    if head is None:
        return None
    where = f"{files.name}/{key}"
    size = int.from_bytes(head[8:10], "little") + 10
    if head[:6] != b"\x93NUMPY" or head[6] != 1 or size > _HEADER:
        raise StoreError(f"{where} is no NPY file of version 1")
    stream = BytesIO(files.get(key, _HEADER, Span(0, size), known=True) or b"")
    try:
        np.lib.format.read_magic(stream)
        shape, fortran, found = np.lib.format.read_array_header_1_0(stream, max_header_size=_HEADER)
    except (ValueError, SyntaxError) as error:
        raise StoreError(f"{where} has a header that can't be read ({error})") from error
    small = (
        len(shape) in ndims and all(0 < n <= MAX_SIDE for n in shape[:2]) and all(0 < n <= MAX_BANDS for n in shape[2:])
    )
    if found != np.dtype(dtype) or fortran or not small:
        raise StoreError(f"{where} holds {found} {shape}; {np.dtype(dtype)} (rows, columns, 128) was expected")
    return NpyFile(key, shape, size, found.itemsize)


@dataclass(frozen=True)
class NpyTile:
    """One tile; only the rows that are asked for are read."""

    box: GeoBox
    years: tuple[int, ...]
    n_bands: int
    files: Folder | Site = field(repr=False)
    codes: dict[int, NpyFile] = field(repr=False)
    scales: dict[int, NpyFile] = field(repr=False)
    land: npt.NDArray[np.bool_] = field(repr=False)
    counts: tuple[str, ...] = ()
    zone: int | None = None
    chunk: tuple[int, int] = (1, MAX_SIDE)

    @property
    def remote(self) -> bool:
        """Whether a read has to wait for others."""
        return self.files.remote

    @property
    def name(self) -> str:
        """What to call it."""
        return f"{self.files.name}/{next(iter(self.codes.values())).key}"

    def read_scales(self, year: int, rows: slice, columns: slice) -> npt.NDArray[np.float32]:
        """Return scales (y, x), NaN for water."""
        scales = self._read(self.scales[year], np.float32, rows, columns)
        if scales.ndim == 3:
            scales = quantize_arrays(self._values(year, rows, columns, scales))[1]
        return np.where(self.land[rows, columns], scales, np.float32(np.nan)).astype(np.float32)

    def read_codes(self, year: int, rows: slice, columns: slice) -> npt.NDArray[np.int8]:
        """Return codes (y, x, band); one scale for each band becomes one for each pixel."""
        if len(self.scales[year].shape) == 2:
            return self._read(self.codes[year], np.int8, rows, columns)
        scales = self._read(self.scales[year], np.float32, rows, columns)
        return quantize_arrays(self._values(year, rows, columns, scales))[0]

    def read_counts(self, name: str, year: int, rows: slice, columns: slice) -> npt.NDArray[np.uint16]:
        """Refuse: tiles have none."""
        raise NotImplementedError

    def _values(
        self, year: int, rows: slice, columns: slice, scales: npt.NDArray[np.float32]
    ) -> npt.NDArray[np.float32]:
        values: npt.NDArray[np.float32] = self._read(self.codes[year], np.int8, rows, columns) * scales
        return values

    def _read(self, file: NpyFile, dtype: Any, rows: slice, columns: slice) -> npt.NDArray[Any]:
        pixel = int(np.prod(file.shape[2:], dtype=np.int64)) * file.item
        width = file.shape[1]
        first = rows.start * width + (columns.start if rows.stop - rows.start == 1 else 0)
        n = (rows.stop - rows.start) * width if rows.stop - rows.start > 1 else columns.stop - columns.start
        span = Span(file.start + first * pixel, file.start + (first + n) * pixel)
        data = self.files.get(file.key, span.size, span, known=True)
        assert data is not None
        values = np.frombuffer(data, dtype).reshape(rows.stop - rows.start, -1, *file.shape[2:])
        part = values if values.shape[1] != width else values[:, columns]
        return np.array(part)


def read_mask(data: bytes, name: str) -> tuple[GeoBox, npt.NDArray[np.bool_]]:
    """Return the grid of a landmask GeoTIFF, in the northern CRS, and where there is land."""
    import rasterio
    from rasterio.errors import RasterioError
    from rasterio.io import MemoryFile

    try:
        with MemoryFile(data) as memory, rasterio.open(memory.name, driver="GTiff") as file:
            box = raster_grid(file, name, MAX_SIDE)
            return box, file.read(1) != 0
    except RasterioError as error:
        raise StoreError(f"{name} can't be read as a GeoTIFF ({error})") from error


def open_tiles(files: Folder | Site, version: str | None, masks: Folder | Site | None) -> TileSource:
    """Return the tiles of a folder or a site."""
    identity = identify(files.name, {}, version)
    if masks is not None:
        return TileSource(files, ((masks, ""),), identity)
    if isinstance(files, Folder):
        if not any(files.path.rglob("*.npy")):
            raise StoreError(f"{files.name} holds no store that is known: no zarr.json, no tiles (.npy), no .tif")
        release = RELEASES.get(str(identity["model"]))
        versions = [release.landmasks] if release else ["v1", "v1.1"]
        bases = [
            *_MASKS,
            *(f"{v}/{b}".rstrip("/") for v in versions for b in _MASKS),
            *(f"landmasks/{v}" for v in versions),
        ]
        return TileSource(files, tuple((files, b) for b in bases), identity)
    base, found, rest = files.url.partition("/npy/")
    release = next((r for r in RELEASES.values() if r.tiles and r.tiles == rest), None)
    if not found or release is None:
        raise StoreError(
            f"there is no Zarr store at {files.url}; if it holds tiles, name the place of their masks with landmasks="
        )
    site = Site(f"{base}/landmasks/{release.landmasks}", files.query, files.allow_http)
    return TileSource(files, ((site, ""),), identity)
