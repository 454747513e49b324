"""The places of a map that are most like a query: k places, not one blob."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from tessera_xr._warn import warn
from tessera_xr.analysis.queries import Query
from tessera_xr.analysis.similarity import Combine, Metric, similarity
from tessera_xr.embedding.schema import EMBEDDINGS, check_embeddings, check_whole, provenance
from tessera_xr.errors import SchemaError
from tessera_xr.grid import geobox_of

if TYPE_CHECKING:
    from geopandas import GeoDataFrame

PIXELS_APART = 10
EARTH_RADIUS = 6_371_008.8


def find_similar(
    emb: xr.Dataset,
    query: Query,
    k: int = 20,
    *,
    min_distance: float | None = None,
    negative: Query | None = None,
    combine: Combine = "mean",
    metric: Metric = "cosine",
    time: Any = None,
    crs: str | None = None,
) -> GeoDataFrame:
    """Return the k places most like a query, no two of them close together.

    The best pixel is taken first, then the best of those at least `min_distance` from all that were taken. A query that
    is a place of the map finds itself. With several times a place counts once, at its best time.

    Holds the similarity of the map in memory, 4 bytes a pixel and time, also for lazy embeddings.

    Parameters
    ----------
    emb : Dataset
        Embeddings, float32 or int8, eager or lazy.
    query : see `similarity`
        What to look for.
    k : int, default 20
        How many places.
    min_distance : float, optional
        The least distance between the centres of two places, in the unit of the map's CRS (metres, or degrees); ten
        pixels if not told. 0: simply the k best pixels.
    negative, combine, metric, time, crs
        See `similarity`.

    Returns
    -------
    GeoDataFrame
        In the map's CRS, best first: `rank` from 1, `similarity`, `x` and `y` of the pixel's centre, `lon`, `lat`,
        `time` where the map has several, and points as geometry. Fewer than k, with a warning, where no more fit.

    Raises
    ------
    SchemaError
        If k is larger than the number of pixels with data; also see `similarity`.
    """
    check_embeddings(emb)
    sizes = emb[EMBEDDINGS].sizes
    check_count(k, sizes["y"] * sizes["x"])
    box = geobox_of(emb)
    pixel_y, pixel_x = abs(box.resolution.y), abs(box.resolution.x)
    distance = PIXELS_APART * max(pixel_y, pixel_x) if min_distance is None else min_distance
    if not distance >= 0:
        raise SchemaError(f"min_distance={min_distance!r} must be 0 or more, in the unit of the map's CRS")
    scores = similarity(emb, query, negative=negative, combine=combine, metric=metric, time=time, crs=crs).compute()
    chosen, values, times = _best(scores, k, distance, (pixel_y, pixel_x))
    if len(chosen) < k:
        _explain_few(scores, k, len(chosen), distance)
    columns: dict[str, Any] = {"similarity": values} | ({} if times is None else {"time": times})
    x, y = (emb[name].values[chosen[:, i]] for name, i in (("x", 1), ("y", 0)))
    return as_places(x, y, str(box.crs), columns, provenance(emb))


def check_count(k: int, n_pixels: int) -> None:
    """Raise `SchemaError` unless k is a whole number from 1 to the number of pixels."""
    if n_pixels == 0:
        raise SchemaError("no pixel of the map has data; there is nothing to find")
    check_whole("k", k)
    if not 1 <= k <= n_pixels:
        raise SchemaError(f"k={k} must be from 1 to {n_pixels}, the number of pixels with data; ask for fewer places")


def spread(
    lon: npt.NDArray[np.float64], lat: npt.NDArray[np.float64], k: int, min_distance: float
) -> npt.NDArray[np.intp]:
    """Return which places (n,), best first, to keep: at most k, each far enough from all before it."""
    if min_distance <= 0:
        return np.arange(min(k, len(lon)))
    east, north = np.radians(lon), np.radians(lat)
    places = np.stack([np.cos(north) * np.cos(east), np.cos(north) * np.sin(east), np.sin(north)], axis=-1)
    chord = 2 * np.sin(min(min_distance / EARTH_RADIUS, np.pi) / 2)
    left, chosen = np.arange(len(places)), list[int]()
    while len(left) and len(chosen) < k:
        chosen.append(int(left[0]))
        left = left[np.linalg.norm(places[left] - places[left[0]], axis=-1) >= chord]
        if len(left) and left[0] == chosen[-1]:
            left = left[1:]
    return np.array(chosen, dtype=np.intp)


def as_places(
    x: npt.NDArray[np.float64],
    y: npt.NDArray[np.float64],
    crs: str,
    columns: dict[str, Any],
    attrs: dict[str, Any],
) -> GeoDataFrame:
    """Return places in order of rank as a GeoDataFrame, their coordinates beside the given columns."""
    from geopandas import GeoDataFrame, points_from_xy

    points = points_from_xy(x, y, crs=crs)
    degrees = points.to_crs("EPSG:4326")
    places = GeoDataFrame(
        {"rank": np.arange(1, len(x) + 1), **columns, "x": x, "y": y, "lon": degrees.x, "lat": degrees.y},
        geometry=points,
    )
    places.attrs.update(attrs)
    return places


def _best(
    scores: xr.DataArray, k: int, distance: float, pixel: tuple[float, float]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32], npt.NDArray[Any] | None]:
    """Return the pixels chosen (n, 2), their scores, and their times if there are several."""
    from tessera_xr.analysis.kernels import pick

    values = scores.values
    best = np.fmax.reduce(values, axis=0) if values.ndim == 3 else values
    chosen = pick(np.array(best, order="C"), k, float(distance), *pixel)
    rows, columns = chosen.T
    if values.ndim == 2:
        return chosen, values[rows, columns], None
    series = values[:, rows, columns]
    when = np.where(np.isnan(series), -np.inf, series).argmax(axis=0)
    times = scores["time"].values if "time" in scores.coords else np.arange(len(values))
    return chosen, best[rows, columns], times[when]


def _explain_few(scores: xr.DataArray, k: int, found: int, distance: float) -> None:
    held = scores.notnull()
    check_count(k, int((held.any("time") if "time" in held.dims else held).sum()))
    warn(f"only {found} of {k} places fit {distance:g} apart on this map; ask for fewer, or a smaller min_distance")
