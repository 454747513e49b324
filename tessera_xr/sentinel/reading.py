"""The files of a scene, read through GDAL: tried again when a read fails, given up one scene at a time."""

from __future__ import annotations

import itertools
import logging
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
from odc.geo.geobox import GeoBox

from tessera_xr._warn import warn
from tessera_xr.errors import StoreError
from tessera_xr.sentinel.addresses import Redaction, public_url, shortened
from tessera_xr.sentinel.catalogues import signed

Sign: TypeAlias = "str | Callable[[str], str] | None"

ATTEMPTS = 4
WAIT = 0.5
"""Seconds before the second attempt; doubled before each further one."""
GDAL_OPTIONS: Final = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "GDAL_HTTP_MAX_RETRY": "1",
    "GDAL_HTTP_RETRY_DELAY": "0.5",
    "GDAL_HTTP_CONNECTTIMEOUT": "10",
    "GDAL_HTTP_TIMEOUT": "60",
    "GDAL_INGESTED_BYTES_AT_OPEN": "32768",
    "CPL_VSIL_CURL_USE_HEAD": "NO",
}
OUTAGE = 5
"""So many scenes in a row that can't be read are no longer single scenes that fail: it is the source."""
LOST_SHARE = 0.5
TOLERANCE = 1e-6
"""Pixels by which a transformation may be approximated; rasterio fails at 0."""
MAX_SIDE = 200_000
"""Pixels; the side of a Sentinel-2 tile has 10,980, of a Sentinel-1 scene up to 30,000."""
MAX_BLOCK = 1 << 27
"""Bytes of one block of a file, which GDAL unpacks whole."""

_GONE = re.compile(r"response code: (404|410)|no such file|does not exist", re.IGNORECASE)
_REFUSED = re.compile(r"response code: (401|403)", re.IGNORECASE)
_TALKATIVE = ("_base", "_env", "_io", "_warp", "env")
_REDACTION = Redaction()
_FRESH = itertools.count(1)
_RENAMED: dict[str, int] = {}
"""Address -> number under which it is read anew: GDAL remembers that a file could not be read, and its broken parts."""


@dataclass
class ReadLog:
    """What came of reading the scenes of one sensor, in this process."""

    sensor: str
    n_scenes: int
    failed: dict[str, str] = field(default_factory=dict)
    """Scene -> why it (or a part of it) could not be read."""
    parts: set[tuple[str, Any]] = field(default_factory=set)
    """(scene, block) that failed and was not read since."""
    streak: int = 0
    """Scenes in a row that failed, though they are there."""
    _lock: Any = field(default_factory=Lock)

    def succeeded(self, scene: str, block: Any) -> None:
        """Note that a block of a scene was read; one that had failed before is forgiven."""
        with self._lock:
            self.streak = 0
            self.parts.discard((scene, block))
            if scene in self.failed and not any(name == scene for name, _ in self.parts):
                del self.failed[scene]

    def give_up(self, scene: str, block: Any, reason: str, *, gone: bool) -> None:
        """Note that a block of a scene can't be read; warn of it, or raise if there is hardly anything left."""
        with self._lock:
            fresh = scene not in self.failed
            self.failed[scene] = reason
            self.parts.add((scene, block))
            self.streak += 0 if gone or not fresh else 1
            lost, streak = len(self.failed), self.streak
        if streak >= OUTAGE or lost > LOST_SHARE * self.n_scenes:
            raise StoreError(
                f"{lost} of {self.n_scenes} {self.sensor} scenes could not be read, the last {scene}: {reason}. "
                "The source seems to be out of reach; nothing was lost: compute again later, or choose another source"
            )
        if fresh:
            warn(
                f"{self.sensor} scene {scene} could not be read and counts as no data ({reason}); "
                f"{lost} of {self.n_scenes} scenes so far"
            )


_LOGS: dict[str, ReadLog] = {}


def log_of(key: str, sensor: str, n_scenes: int) -> ReadLog:
    """Return the log that goes by `key` in this process; a new one where there is none."""
    return _LOGS.setdefault(key, ReadLog(sensor, n_scenes))


class SceneMetadata:
    """What odc-stac asks about items: every item has one asset, all layers of the scene."""

    def __init__(self, layers: Sequence[str], dtype: str, fill: float, sources: Mapping[str, tuple[str, ...]]) -> None:
        self.layers, self.dtype, self.fill, self.sources = tuple(layers), dtype, fill, dict(sources)

    def extract(self, md: Any) -> Any:  # noqa: ARG002 - all items are alike
        """Return what the layers of any scene are."""
        from odc.loader.types import FixedCoord, RasterBandMetadata, RasterGroupMetadata

        band = RasterBandMetadata(self.dtype, self.fill, dims=("band", "y", "x"))
        size = {"band": len(self.layers)}
        return RasterGroupMetadata({("scene", 1): band}, {}, size, [FixedCoord("band", list(self.layers))])

    def driver_data(self, md: Any, band_key: Any) -> tuple[str, tuple[str, ...]]:  # noqa: ARG002
        """Return the name and the files of the scene that an item stands for."""
        return str(md.properties["scene"]), self.sources[md.id]


class SceneDriver:
    """A reader for odc-stac that reads all layers of a scene in one task: the scene fails whole or not at all."""

    dask_reader = None
    aux_reader = None

    def __init__(self, log: str, sensor: str, n_scenes: int, sign: Sign) -> None:
        self.log_key, self.sensor, self.n_scenes, self.sign = log, sensor, n_scenes, sign
        self.md_parser: SceneMetadata | None = None

    def __reduce__(self) -> tuple[Any, ...]:  # a worker needs no metadata of the other scenes
        return type(self), (self.log_key, self.sensor, self.n_scenes, self.sign)

    @property
    def log(self) -> ReadLog:
        """The log of this process."""
        return log_of(self.log_key, self.sensor, self.n_scenes)

    def new_load(self, geobox: GeoBox, *, chunks: Any = None) -> None:
        """Nothing is shared between the reads of a load."""

    def finalise_load(self, load_state: Any) -> None:
        """Nothing is left to close."""

    def capture_env(self) -> dict[str, Any]:
        """Return nothing: GDAL's options are set where a file is read."""
        return {}

    @contextmanager
    def restore_env(self, env: Any, load_state: Any) -> Iterator[None]:  # noqa: ARG002
        """See `capture_env`."""
        yield

    def open(self, src: Any, ctx: Any) -> SceneReader:  # noqa: ARG002
        """Return the reader of one scene; nothing is opened yet."""
        return SceneReader(self, *src.driver_data)


@dataclass(frozen=True)
class SceneReader:
    """Reads blocks of one scene."""

    driver: SceneDriver
    scene: str
    hrefs: tuple[str, ...]

    def read(
        self,
        cfg: Any,
        dst_geobox: GeoBox,
        *,
        dst: Any = None,  # noqa: ARG002
        selection: Any = None,  # noqa: ARG002
    ) -> tuple[tuple[slice, slice], npt.NDArray[Any]]:
        """Return all layers (band, y, x) of the scene on a grid, and where in it they belong: everywhere or nowhere."""
        height, width = dst_geobox.shape
        block = (tuple(dst_geobox.transform), height, width)
        dtype = np.dtype(cfg.dtype)

        def read(url: str) -> npt.NDArray[Any]:
            return read_patiently(url, dst_geobox, dtype, cfg.fill_value, self.driver.sign)

        try:
            with ThreadPoolExecutor(len(self.hrefs)) as pool:
                layers = list(pool.map(read, self.hrefs))
        except UnreadableError as error:
            self.driver.log.give_up(self.scene, block, str(error), gone=error.gone)
            return np.s_[0:0, 0:0], np.empty((len(self.hrefs), 0, 0), dtype)
        self.driver.log.succeeded(self.scene, block)
        return np.s_[0:height, 0:width], np.stack(layers)


class UnreadableError(Exception):
    """A file that can't be read, after all attempts; its message holds nothing secret."""

    def __init__(self, message: str, *, gone: bool = False) -> None:
        super().__init__(message)
        self.gone = gone
        """The file isn't there, or isn't what it should be: trying again is no use."""


def read_patiently(
    url: str, grid: GeoBox | None, dtype: np.dtype[Any], fill: float | None, sign: Sign
) -> npt.NDArray[Any]:
    """Return the first layer of a GeoTIFF on `grid`, nearest neighbour; without a grid, small.

    Raises
    ------
    UnreadableError
        If it can't be read after `ATTEMPTS` attempts, or at once if it isn't there.
    """
    if sign is not None:  # else a debug log of rasterio holds the signature
        for name in _TALKATIVE:
            logging.getLogger(f"rasterio.{name}").addFilter(_REDACTION)
    reason, renew = "", False
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(WAIT * 2 ** (attempt - 1) * random.uniform(1, 1.5))  # noqa: S311 - so that threads spread out
        try:
            return _read(_address(url, signed(url, sign, renew=renew)), grid, dtype, fill)
        except UnreadableError as error:
            raise UnreadableError(f"{public_url(url)}: {shortened(error)}", gone=True) from None
        except StoreError as error:
            reason = str(error)
        except Exception as error:  # GDAL's errors have no common base that is public
            reason = f"{public_url(url)}: {shortened(error)}"
        _RENAMED[url] = next(_FRESH)
        if _GONE.search(reason):
            raise UnreadableError(reason, gone=True) from None
        renew = bool(_REFUSED.search(reason))
        if renew and sign is None:
            break
    raise UnreadableError(reason) from None


def _address(url: str, full: str) -> str:
    """Return the path for GDAL; the fragment never reaches the server, it only makes another name."""
    number = _RENAMED.get(url)
    return f"/vsicurl/{full}" + (f"#{number}" if number else "")


def _read(path: str, grid: GeoBox | None, dtype: np.dtype[Any], fill: float | None) -> npt.NDArray[Any]:
    import rasterio
    from rasterio.vrt import WarpedVRT

    with rasterio.Env(**GDAL_OPTIONS), rasterio.open(path, driver="GTiff", sharing=False) as file:
        _check(file, dtype)
        if grid is None:
            shape = tuple(min(512, side) for side in file.shape)
            return np.asarray(file.read(1, out_shape=shape))
        crs, transform = _in_crs_of(file, grid)
        place: dict[str, Any] = {"crs": crs, "transform": transform, "height": grid.shape[0], "width": grid.shape[1]}
        nodata = fill if file.nodata is None else file.nodata
        # hardly any tolerance: an approximate transformation depends on the block, and so would the nearest pixel
        place |= {"src_nodata": nodata, "nodata": fill, "dtype": _working(file, dtype), "tolerance": TOLERANCE}
        with WarpedVRT(file, **place) as warped:
            return np.asarray(warped.read(1)).astype(dtype, copy=False)


def _in_crs_of(file: Any, grid: GeoBox) -> tuple[str, Any]:
    """Return CRS and transform of a grid, those of the southern UTM zone if the file is in it and the grid north."""
    ours, its = grid.crs.to_epsg() if grid.crs is not None else None, file.crs.to_epsg()
    if ours is not None and its == ours + 100 and 32601 <= ours <= 32660:
        from affine import Affine

        return f"EPSG:{its}", Affine.translation(0, 10_000_000) * grid.transform
    return str(grid.crs), grid.transform


def _working(file: Any, dtype: np.dtype[Any]) -> str:
    """Return the dtype to warp in: that of the file unless no data (NaN) needs a float."""
    return str(dtype) if dtype.kind == "f" else str(file.dtypes[0])


def _check(file: Any, dtype: np.dtype[Any]) -> None:
    """Raise `UnreadableError` if a file is of no size, type or place that a scene can have."""
    height, width = file.shape
    block = int(np.prod(file.block_shapes[0], dtype=np.int64)) * np.dtype(file.dtypes[0]).itemsize
    if max(height, width) > MAX_SIDE:
        raise UnreadableError(f"claims {height} x {width} pixels, more than any scene has")
    if block > MAX_BLOCK:
        raise UnreadableError(f"is packed in blocks of {block >> 20} MiB, too large to read in parts")
    if not np.can_cast(file.dtypes[0], dtype, "same_kind"):
        raise UnreadableError(f"holds {file.dtypes[0]}, where {dtype} is needed")
    if file.crs is None:
        raise UnreadableError("has no CRS")
