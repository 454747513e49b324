"""Cubes from STAC catalogues: search first, see what it would cost, then load lazily."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import xarray as xr
from odc.geo.geobox import GeoBox

from tessera_xr._optional import require
from tessera_xr._warn import warn
from tessera_xr.area import resolve_area, utm_geobox
from tessera_xr.errors import CubeError, GridError, SchemaError
from tessera_xr.grid import geobox_of
from tessera_xr.sentinel.catalogues import CATALOGUES, Catalogue, resolve_catalogue
from tessera_xr.sentinel.loading import cube_from, optical_pixels, optical_steps, radar_pixels, radar_steps
from tessera_xr.sentinel.offsets import settled
from tessera_xr.sentinel.period import Period, PeriodLike, resolve_period
from tessera_xr.sentinel.radiometry import EARTH_SEARCH, PLANETARY_COMPUTER
from tessera_xr.sentinel.reading import SceneDriver, log_of
from tessera_xr.sentinel.scenes import WIDE, Scene, newest
from tessera_xr.sentinel.searching import SENSORS, find_scenes, nothing_found
from tessera_xr.sentinel.summary import describe_scenes

if TYPE_CHECKING:
    from shapely.geometry.base import BaseGeometry

    from tessera_xr.area import AreaLike

_LOGGER = logging.getLogger(__name__)
CHUNK: Final = 512
MAX_READS: Final = 2_000_000
"""Blocks of scenes in one lazy cube: beyond, the graph alone fills the memory."""


@dataclass(frozen=True)
class Scenes:
    """What a search found. Printed, it says what loading would cost; `load` gives the cube."""

    grid: GeoBox
    period: Period
    catalogue: Catalogue
    """Of Sentinel-2."""
    radar: Catalogue
    """Of Sentinel-1."""
    s2: tuple[Scene, ...]
    s1: tuple[Scene, ...]
    left_out: tuple[str, ...] = ()
    """Which scenes were found and not kept, and why."""
    key: str = field(default_factory=lambda: uuid.uuid4().hex)
    """Under which failures are kept."""

    def __str__(self) -> str:
        return describe_scenes(self)

    __repr__ = __str__

    @property
    def name(self) -> str:
        """Where the imagery is from."""
        mixed = self.s1 and self.radar.name != self.catalogue.name
        return f"{self.catalogue.name}, Sentinel-1 from {self.radar.name}" if mixed else self.catalogue.name

    @property
    def failures(self) -> dict[str, str]:
        """Scene -> why it could not be read, of what was computed in this process so far."""
        return {**self._log("s2").failed, **self._log("s1").failed}

    def load(
        self, *, offset: Any = "auto", chunks: int | Mapping[str, int] | None = None, progress: bool = True
    ) -> xr.Dataset:
        """Return the cube, lazy: pixels are read when it is computed. See `load_cube`."""
        sides = _sides(chunks)
        _refuse_too_many(self, sides)
        scenes, n_gone = list(self.s2), 0
        if self.catalogue.offset == "flag" and isinstance(offset, str):
            scenes, n_gone = settled(scenes, self.catalogue.sign, progress=progress)
        s2 = s1 = None
        if scenes:
            driver = self._driver("s2", self.catalogue)
            s2 = optical_pixels(optical_steps(scenes), self.catalogue.offset, self.grid, sides, driver)
        if self.s1:
            driver = self._driver("s1", self.radar)
            s1 = radar_pixels(radar_steps(self.s1), self.radar.s1_units, self.grid, sides, driver)
        cube = cube_from(s2, s1, self.grid, self.name, offset)
        cube.attrs |= {
            "period": str(self.period),
            "scenes": f"{len(self.s2)} of Sentinel-2, {len(self.s1)} of Sentinel-1",
        }
        if n_gone:
            note = f"the pixels of {n_gone} scenes show that their offset was removed, which their items deny"
            cube.attrs["assumptions"] = "; ".join(filter(None, (cube.attrs["assumptions"], note)))
        return cube

    def _log(self, sensor: str) -> Any:
        return log_of(f"{self.key}-{sensor}", SENSORS[sensor], len(getattr(self, sensor)))

    def _driver(self, sensor: str, catalogue: Catalogue) -> SceneDriver:
        return SceneDriver(f"{self.key}-{sensor}", SENSORS[sensor], len(getattr(self, sensor)), catalogue.sign)


def search_scenes(
    area: AreaLike | None,
    period: PeriodLike,
    source: str | Catalogue = EARTH_SEARCH,
    *,
    s1: bool | str | Catalogue = True,
    like: GeoBox | xr.Dataset | xr.DataArray | None = None,
    resolution: float = 10.0,
    max_cloud_cover: float | None = None,
    progress: bool = True,
) -> Scenes:
    """Find the scenes that `load_cube` would load, without reading a pixel; print the result to see what it costs.

    The arguments are those of `load_cube`.

    Returns
    -------
    Scenes
        With `s2`, `s1`, `grid`, `left_out`; `Scenes.load` gives the cube.

    Raises
    ------
    SchemaError, GridError
        If an argument is out of range.
    CubeError
        If no scene is found.
    StoreError
        If the catalogue can't be searched.
    MissingExtraError
        If the packages of the extra `stac` aren't installed.

    Warns
    -----
    TesseraWarning
        If items are left out because they lack what is needed, or a sensor has no scene.
    """
    catalogue, span = resolve_catalogue(source), resolve_period(period)
    radar = catalogue if isinstance(s1, bool) else resolve_catalogue(s1, "s1")
    if max_cloud_cover is not None and not 0 <= max_cloud_cover <= 100:
        raise SchemaError(f"max_cloud_cover is a percentage from 0 to 100, not {max_cloud_cover!r}")
    grid, place = _grid(area, like, resolution)
    for package in ("odc.stac", "pystac_client", *(["planetary_computer"] if _signs(catalogue, radar) else [])):
        require(package, "stac", "load_cube")
    left_out: list[str] = []
    optical = newest(find_scenes(catalogue, "s2", place, span, left_out, progress=progress))
    if max_cloud_cover is not None:
        clear = [s for s in optical if s.cloud_cover is None or s.cloud_cover <= max_cloud_cover]
        if len(clear) < len(optical):
            left_out.append(
                f"{len(optical) - len(clear)} Sentinel-2 scenes with more than {max_cloud_cover:g} % clouds"
            )
        optical = clear
    backscatter = find_scenes(radar, "s1", place, span, left_out, progress=progress) if s1 is not False else []
    if not optical and not backscatter:
        raise CubeError(nothing_found(catalogue, span, place, left_out))
    scenes = Scenes(grid, span, catalogue, radar, tuple(optical), tuple(backscatter), tuple(left_out))
    _warn_of_gaps(scenes, wanted=s1 is not False)
    return scenes


def load_cube(
    area: AreaLike | None,
    period: PeriodLike,
    source: str | Catalogue = EARTH_SEARCH,
    *,
    s1: bool | str | Catalogue = True,
    like: GeoBox | xr.Dataset | xr.DataArray | None = None,
    resolution: float = 10.0,
    max_cloud_cover: float | None = None,
    offset: npt.ArrayLike = "auto",
    chunks: int | Mapping[str, int] | None = None,
    progress: bool = True,
) -> xr.Dataset:
    """Return the cube of an area and a year from a STAC catalogue, lazy: pixels are read when it is computed.

    All scenes that touch the area are found, brought onto its grid (nearest neighbour, from any UTM zone), freed of
    Sentinel-2's offset where their metadata say that it is in them, and joined day by day (Sentinel-1: by orbit too).
    A read that fails is tried again; a scene that can't be read counts as no data, with a warning that names it, and
    if it is more than half of them the computation stops.

    Parameters
    ----------
    area : bbox, geometry, GeoDataFrame, GeoJSON, GeoBox, Dataset or DataArray
        Where: a bbox is (west, south, east, north) in degrees. None with `like` means all of its grid.
    period : int, str, tuple or Period
        When: a year, or a pair of dates, both included; at most 366 days.
    source : "earth-search", "planetary-computer" or Catalogue
        Earth Search has no terrain-corrected Sentinel-1. A `Catalogue` describes any other STAC API.
    s1 : bool, str or Catalogue, default True
        Whether to load Sentinel-1, or from where, if not from `source`: "planetary-computer".
    like : GeoBox, Dataset or DataArray, optional
        Grid to load onto, so that the result lies pixel on pixel with it. Without it the UTM grid of the area whose
        edges are multiples of `resolution`, which published embeddings lie on.
    resolution : float, default 10
        Of a pixel in metres, without `like`. TESSERA was trained on 10.
    max_cloud_cover : float, optional
        Leave out Sentinel-2 scenes with more clouds than this, in percent of the whole scene.
    offset : "auto", 0, 1000 or array_like
        See `as_cube`; "auto" is right for the catalogues known by name.
    chunks : int or mapping, optional
        Pixels of a block along y and x, 512 unless told otherwise; along time it is always one scene.
    progress : bool, default True
        Show a bar if the search takes longer than a second.

    Returns
    -------
    Dataset
        THE cube; see `as_cube`. Its `source` is what models are held against.

    Raises
    ------
    SchemaError, GridError, CubeError, StoreError, MissingExtraError
        See `search_scenes`. When the cube is computed, `StoreError` if most scenes can't be read.

    Warns
    -----
    TesseraWarning
        See `search_scenes`. When the cube is computed, for each scene that can't be read.

    Examples
    --------
    >>> cube = load_cube((3.0, 51.0, 3.05, 51.03), 2024, source="planetary-computer")  # doctest: +SKIP
    >>> cube.tessera.embed("mini").compute()  # doctest: +SKIP
    """
    _sides(chunks)
    scenes = search_scenes(
        area,
        period,
        source,
        s1=s1,
        like=like,
        resolution=resolution,
        max_cloud_cover=max_cloud_cover,
        progress=progress,
    )
    _LOGGER.info("%s", scenes)
    return scenes.load(offset=offset, chunks=chunks, progress=progress)


def _grid(area: AreaLike | None, like: Any, resolution: float) -> tuple[GeoBox, BaseGeometry]:
    """Return the grid to load onto, and the area in degrees to search."""
    if like is None:
        if area is None:
            raise GridError("neither area nor like was given; say where, for example (3.0, 51.0, 3.05, 51.03)")
        grid = utm_geobox(area, resolution)
    else:
        if not isinstance(like, (GeoBox, xr.Dataset, xr.DataArray)):
            raise GridError(
                f"like is a GeoBox or an opened raster (Dataset, DataArray), not {type(like).__name__}; open it first, "
                "as xarray.open_dataset(path, engine='rasterio') or odc.geo do"
            )
        grid = like if isinstance(like, GeoBox) else geobox_of(like)
    place = resolve_area(grid)
    west, _, east, _ = place.bounds
    if east - west > WIDE:
        if area is None or like is not None:
            raise GridError("the grid of like crosses the antimeridian, or is a continent wide; cut it first")
        place = resolve_area(area)
    if area is not None and like is not None and not place.intersects(resolve_area(area)):
        raise GridError("the area lies outside the grid of like; leave the area out (None) to load all of the grid")
    return grid, place


def _signs(*catalogues: Catalogue) -> bool:
    return any(catalogue.sign == PLANETARY_COMPUTER for catalogue in catalogues)


def _sides(chunks: int | Mapping[str, int] | None) -> dict[str, int]:
    """Return the sides of a block along y and x."""
    given = dict.fromkeys(("y", "x"), chunks) if isinstance(chunks, int) else dict(chunks or {})
    if set(given) - {"y", "x"} or not all(n == -1 or n > 0 for n in given.values()):
        raise SchemaError(f"chunks={chunks!r} can't be used; give pixels along y and x: 512, or {{'y': 256, 'x': -1}}")
    return {"y": CHUNK, "x": CHUNK} | given


def _refuse_too_many(scenes: Scenes, sides: Mapping[str, int]) -> None:
    blocks = np.prod(
        [-(-n // (sides[dim] if sides[dim] > 0 else n)) for dim, n in zip("yx", scenes.grid.shape, strict=True)]
    )
    reads = int(blocks) * (len(scenes.s2) + len(scenes.s1))
    if reads > MAX_READS:
        raise CubeError(
            f"{len(scenes.s2) + len(scenes.s1)} scenes over {scenes.grid.shape[0]} x {scenes.grid.shape[1]} px are "
            f"{reads:,} blocks to read, more than one lazy cube can hold; take a smaller area, or larger chunks="
        )


def _warn_of_gaps(scenes: Scenes, *, wanted: bool) -> None:
    """Warn of a sensor without a scene."""
    if not scenes.s2:
        warn(
            f"{scenes.catalogue.name} has no Sentinel-2 scene of {scenes.period} here; this cube is of Sentinel-1 only"
        )
    if wanted and not scenes.s1:
        other = next(name for name, catalogue in CATALOGUES.items() if catalogue.s1_collection)
        why = "has no Sentinel-1 RTC" if scenes.radar.s1_collection is None else f"has none of {scenes.period} here"
        warn(
            f"no Sentinel-1 in this cube: {scenes.radar.name} {why}; embeddings with and without radar differ (by "
            f"0.13-0.25 in cosine distance), so don't compare them. s1={other!r} "
            "loads it from there, s1=False says that it isn't wanted"
        )
