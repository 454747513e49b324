"""Embeddings that were exported as GeoTIFF, by this package or by geotessera."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from odc.geo.geobox import GeoBox

from tessera_xr.embedding.published.releases import identify
from tessera_xr.embedding.published.store_checks import FALSE_NORTHING
from tessera_xr.embedding.published.stores import Piece
from tessera_xr.embedding.quantize import quantize_arrays
from tessera_xr.embedding.schema import IDENTITY, OFFICIAL
from tessera_xr.errors import StoreError

MAX_SIDE = 200_000
"""Pixels of a file's side that are believed."""
Bounds: TypeAlias = tuple[float, float, float, float]


def raster_grid(file: Any, name: str, limit: int) -> GeoBox:
    """Return the grid of an open raster in northern UTM, after checking that its size can be believed."""
    if not 0 < max(file.height, file.width) <= limit or file.crs is None:
        raise StoreError(f"{name} claims {file.height} x {file.width} px in {file.crs}; that is not trusted")
    epsg, transform = file.crs.to_epsg(), file.transform
    if epsg is not None and 32701 <= epsg <= 32760:
        transform, epsg = type(transform).translation(0, -FALSE_NORTHING) @ transform, epsg - 100
    if epsg is None or not 32601 <= epsg <= 32660 or transform.b or transform.d or transform.e >= 0:
        raise StoreError(f"{name} is in {file.crs}, not on a north-up grid in UTM")
    return GeoBox((file.height, file.width), transform, f"EPSG:{epsg}")


@dataclass(frozen=True)
class GeoTiff:
    """One file of float32 embeddings, one band each."""

    box: GeoBox
    years: tuple[int, ...]
    n_bands: int
    path: Path
    counts: tuple[str, ...] = ()
    zone: int | None = None
    chunk: tuple[int, int] = (1, MAX_SIDE)
    remote: bool = False

    @property
    def name(self) -> str:
        """What to call it."""
        return str(self.path)

    def read_scales(self, year: int, rows: slice, columns: slice) -> npt.NDArray[np.float32]:  # noqa: ARG002
        """Return scales (y, x); +inf where there is no data."""
        values = self._values(rows, columns)
        scales = quantize_arrays(values)[1]
        return np.where(np.isnan(scales) | ~values.any(axis=-1), np.float32(np.inf), scales).astype(np.float32)

    def read_codes(self, year: int, rows: slice, columns: slice) -> npt.NDArray[np.int8]:  # noqa: ARG002
        """Return codes (y, x, band)."""
        return quantize_arrays(self._values(rows, columns))[0]

    def read_counts(self, name: str, year: int, rows: slice, columns: slice) -> npt.NDArray[np.uint16]:
        """Refuse: files have none."""
        raise NotImplementedError

    def _values(self, rows: slice, columns: slice) -> npt.NDArray[np.float32]:
        import rasterio
        from rasterio.errors import RasterioError

        try:
            with rasterio.open(self.path, driver="GTiff") as file:
                values = file.read(window=((rows.start, rows.stop), (columns.start, columns.stop)))
                if file.nodata is not None and np.isfinite(file.nodata):
                    values = np.where((values == file.nodata).all(axis=0), np.float32(np.nan), values)
        except RasterioError as error:
            raise StoreError(f"{self.path} can't be read ({error}); copy it anew") from error
        return np.ascontiguousarray(np.moveaxis(values, 0, -1))


@dataclass
class FileSource:
    """GeoTIFF files."""

    files: list[GeoTiff]
    identity: dict[str, Any]

    @property
    def name(self) -> str:
        """What to call it."""
        return (
            self.files[0].name if len(self.files) == 1 else f"{self.files[0].path.parent} ({len(self.files)} GeoTIFFs)"
        )

    def open_pieces(self, bounds: Bounds, years: Sequence[int], dims: int | None) -> list[Piece]:  # noqa: ARG002
        """Return all files: those that aren't there cost nothing."""
        if dims is not None and dims < 16:
            raise StoreError(f"{self.name} has embeddings of 128 values; dims={dims} needs a store that holds it")
        return list(self.files)


def open_geotiffs(paths: list[Path], version: str | None) -> FileSource:
    """Return exported files as a source; year and model come from their tags and names."""
    import rasterio
    from rasterio.errors import RasterioError

    files, identities = [], []
    for path in paths:
        try:
            with rasterio.open(path, driver="GTiff") as file:
                if file.dtypes[0] != "float32" or file.count < 16:
                    raise StoreError(
                        f"{path} holds {file.count} bands of {file.dtypes[0]}; embeddings are 128 of float32"
                    )
                year, tags = _year_of(file.tags(), path), file.tags()
                files.append(GeoTiff(raster_grid(file, str(path), MAX_SIDE), (year,), file.count, path))
        except RasterioError as error:
            raise StoreError(f"{path} can't be read as a GeoTIFF ({error})") from error
        own = {f"tessera_xr:{k}": tags[k] for k in (*IDENTITY, OFFICIAL) if k in tags}
        identities.append(identify(str(path.parent), own, version))
    if any(i != identities[0] for i in identities):
        raise StoreError(f"these GeoTIFFs hold embeddings of different models: {identities}; open them apart")
    return FileSource(files, identities[0])


def _year_of(tags: dict[str, str], path: Path) -> int:
    for text in (tags.get("time", ""), tags.get("period", ""), tags.get("TESSERA_YEAR", ""), path.stem):
        found = re.findall(r"(?<!\d)(?:19|20)\d\d(?!\d)", text)
        if found:
            return int(found[-1] if text == path.stem else found[0])
    raise StoreError(f"{path} doesn't say which year it holds; put it into its name, such as {path.stem}_2024.tif")
