"""Published embeddings at points: for each place the one chunk that holds it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from odc.geo.xr import assign_crs

from tessera_xr.area import utm_zone
from tessera_xr.embedding.points import resolve_points
from tessera_xr.embedding.published.mosaic import apply, check_present, decode_quality, decode_scales, is_valid
from tessera_xr.embedding.published.sources import Source, for_years, with_dims
from tessera_xr.embedding.published.stores import Piece
from tessera_xr.embedding.schema import COUNTS, EMBEDDINGS, QUALITY, SCALES
from tessera_xr.errors import GridError, SchemaError
from tessera_xr.grid import GRID_MAPPING

Indices = npt.NDArray[np.intp]
AT_ONCE = 8


@dataclass(frozen=True)
class Places:
    """Points, as they were given and in degrees."""

    x: npt.NDArray[np.float64]
    y: npt.NDArray[np.float64]
    crs: str
    lonlat: npt.NDArray[np.float64]
    index: Any
    """Of a geopandas object."""


def as_points(area: Any) -> Places | None:
    """Return points if that is what was given: not an area."""
    geometry = getattr(area, "geometry", None)
    if geometry is not None and hasattr(geometry, "geom_type"):
        if set(geometry.geom_type.fillna("missing")) != {"Point"}:
            return None
    elif getattr(area, "geom_type", "") in ("Point", "MultiPoint"):
        area = [(p.x, p.y) for p in getattr(area, "geoms", [area])]
    else:
        try:
            shape = np.shape(area) if isinstance(area, (list, tuple, np.ndarray)) else ()
        except ValueError:
            return None
        if shape not in ((2,), (*shape[:1], 2)) or not shape:
            return None
    xy, crs, index = resolve_points(area, None)
    if not len(xy):
        raise SchemaError("there are no points; give at least one (lon, lat)")
    lonlat = np.column_stack(_transform(crs, "EPSG:4326", xy[:, 0], xy[:, 1]))
    bad = ~(np.isfinite(lonlat).all(axis=1) & (abs(lonlat[:, 0]) <= 180) & (abs(lonlat[:, 1]) <= 90))
    if bad.any():
        raise GridError(
            f"{int(bad.sum())} of {len(xy)} points are no places on Earth, the first at "
            f"{tuple(map(float, xy[bad][0]))}; give (longitude, latitude)"
        )
    return Places(xy[:, 0], xy[:, 1], crs, lonlat, index)


def _transform(
    crs: str, to: str, x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    from pyproj import Transformer

    mapped = Transformer.from_crs(crs, to, always_xy=True).transform(x, y)
    return np.asarray(mapped[0]), np.asarray(mapped[1])


@dataclass
class Candidates:
    """For each point the pieces that may hold it, best first, and its pixel in each."""

    pieces: list[Piece] = field(default_factory=list)
    of: list[list[tuple[int, int, int]]] = field(default_factory=list)
    """For each point (piece, row, column)."""


def read_points(
    places: Places, source: Source, years: Sequence[int], dims: int | None, *, progress: bool
) -> dict[str, xr.DataArray]:
    """Return variables over (time, point[, band]), and the pixels' centres as coordinates y and x."""
    found = _find(places, source, years, dims)
    with_dims(found.pieces, dims)
    for_years(found.pieces, years, source.name)
    n, n_bands = len(places.x), dims or found.pieces[0].n_bands
    shared = [c for c in COUNTS if all(c in p.counts for p in found.pieces)]
    out: dict[str, npt.NDArray[Any]] = {
        SCALES: np.full((len(years), n), np.inf, np.float32),
        EMBEDDINGS: np.zeros((len(years), n, n_bands), np.int8),
        **{c: np.zeros((len(years), n), np.uint16) for c in shared},
    }
    used = np.array([c[0] for c in found.of])
    for turn in range(max(map(len, found.of))):
        jobs = _jobs(found, years, turn, out[SCALES])
        _run([_job(found.pieces[piece], job, years, out, shared) for piece, job in jobs], found.pieces, progress)
        if turn:  # where the pixel was found at last
            for piece, job in jobs:
                got = ~np.isposinf(out[SCALES][:, job.point]).all(axis=0)
                used[job.point[got]] = np.column_stack([np.full(len(job.point), piece), job.row, job.column])[got]
    return _named(out, found.pieces, used, places)


def _find(places: Places, source: Source, years: Sequence[int], dims: int | None) -> Candidates:
    """Return which pixels of which pieces hold the points."""
    found, why = Candidates(of=[[] for _ in places.x]), None
    numbers: dict[int, int] = {}
    lost: list[int] = []
    cells = np.floor(places.lonlat * 10 + 1e-9).astype(np.intp)
    _, which = np.unique(cells, axis=0, return_inverse=True)
    which = which.ravel()
    order = np.argsort(which, kind="stable")
    for points in np.split(order, np.flatnonzero(np.diff(which[order])) + 1):
        low, high = places.lonlat[points].min(axis=0), places.lonlat[points].max(axis=0)
        try:
            pieces = source.open_pieces((low[0], low[1], high[0], high[1]), years, dims)
        except (GridError, SchemaError) as error:
            lost, why = [*lost, *points], error
            continue
        for piece in pieces:
            if id(piece) not in numbers:
                numbers[id(piece)] = len(found.pieces)
                found.pieces.append(piece)
            _place(found, places, points, numbers[id(piece)])
        lost += [int(p) for p in points if not found.of[p]]
    if lost:
        if len(lost) == len(places.x) and why is not None:
            raise why
        raise GridError(
            f"{len(lost)} of {len(places.x)} points lie outside what {source.name} holds, the first at "
            f"{tuple(float(v) for v in places.lonlat[lost[0]])}; leave them out"
        )
    for candidates, longitude in zip(found.of, places.lonlat[:, 0], strict=True):
        home = utm_zone(longitude)
        candidates.sort(key=lambda c: found.pieces[c[0]].zone not in (None, home))
    return found


def _place(found: Candidates, places: Places, points: Indices, number: int) -> None:
    box = found.pieces[number].box
    x, y = _transform(places.crs, str(box.crs), places.x[points], places.y[points])
    with np.errstate(invalid="ignore"):
        column, row = apply(~box.transform, x, y)
        inside = (row >= 0) & (row < box.shape[0]) & (column >= 0) & (column < box.shape[1])
    for point, r, c in zip(points[inside], row[inside], column[inside], strict=True):
        found.of[point].append((number, int(r), int(c)))


@dataclass(frozen=True)
class Job:
    """Points of one year that lie in one chunk."""

    year: int
    """Its number among those asked for."""
    point: Indices
    row: Indices
    column: Indices


def _jobs(found: Candidates, years: Sequence[int], turn: int, scales: npt.NDArray[np.float32]) -> list[tuple[int, Job]]:
    """Return what to read at a turn: the next candidate of each point that has found nothing so far."""
    left = [(p, *c[turn]) for p, c in enumerate(found.of) if len(c) > turn]
    point, number, row, column = np.array(left, dtype=np.intp).reshape(-1, 4).T
    jobs = []
    for t, year in enumerate(years):
        open_ = np.isposinf(scales[t, point]) & np.array([year in found.pieces[i].years for i in number], bool)
        chunks = np.array([found.pieces[i].chunk for i in number[open_]]).reshape(-1, 2)
        first = np.array([getattr(found.pieces[i], "first_row", 0) for i in number[open_]], dtype=np.intp)
        key = np.column_stack([number[open_], (row[open_] + first) // chunks[:, 0], column[open_] // chunks[:, 1]])
        _, which = np.unique(key, axis=0, return_inverse=True)
        order = np.argsort(which.ravel(), kind="stable")
        for group in np.split(order, np.flatnonzero(np.diff(which.ravel()[order])) + 1) if len(order) else ():
            chosen = np.flatnonzero(open_)[group]
            jobs.append((int(number[chosen[0]]), Job(t, point[chosen], row[chosen], column[chosen])))
    return jobs


def _job(
    piece: Piece, job: Job, years: Sequence[int], out: dict[str, npt.NDArray[Any]], counts: Sequence[str]
) -> Callable[[], None]:
    """Return the task that reads a job into `out`: scales, and what else only where there is something."""
    rows, columns = (slice(int(v.min()), int(v.max()) + 1) for v in (job.row, job.column))
    row, column, year = job.row - rows.start, job.column - columns.start, years[job.year]

    def read() -> None:
        scales = piece.read_scales(year, rows, columns)[row, column]
        out[SCALES][job.year, job.point] = scales
        good = is_valid(scales)
        if good.any():
            codes = piece.read_codes(year, rows, columns)
            check_present(codes, row[good], column[good], piece, (rows.start, columns.start))
            out[EMBEDDINGS][job.year, job.point[good]] = codes[row[good], column[good], : out[EMBEDDINGS].shape[2]]
        for name in counts:
            out[name][job.year, job.point] = piece.read_counts(name, year, rows, columns)[row, column]

    return read


def _run(tasks: list[Callable[[], None]], pieces: Sequence[Piece], progress: bool) -> None:
    from tqdm.auto import tqdm

    n = AT_ONCE if any(p.remote for p in pieces) else 1
    bar = tqdm(total=len(tasks), desc="reading points", unit="chunk", delay=1, disable=not progress)
    with bar, ThreadPoolExecutor(n) as pool:
        for _ in pool.map(lambda task: task(), tasks):
            bar.update()


def _named(
    out: dict[str, npt.NDArray[Any]], pieces: Sequence[Piece], used: Indices, places: Places
) -> dict[str, xr.DataArray]:
    """Return the arrays with names, decoded, and where their pixels are."""
    centres = np.array([apply(pieces[i].box.transform, c + 0.5, r + 0.5) for i, r, c in used])
    epsg = np.array([pieces[i].box.crs.to_epsg() for i in used[:, 0]])
    coords: dict[str, Any] = {}
    if len(set(epsg)) > 1:  # metres of different zones: degrees instead
        coords["utm_zone"] = ("point", epsg - 32600)
        for code in set(epsg):
            here = epsg == code
            centres[here] = np.column_stack(_transform(f"EPSG:{code}", "EPSG:4326", *centres[here].T))
    coords |= {"x": ("point", centres[:, 0]), "y": ("point", centres[:, 1])}
    crs = f"EPSG:{epsg[0]}" if len(set(epsg)) == 1 else "EPSG:4326"
    coords[GRID_MAPPING] = assign_crs(xr.Dataset(), crs)[GRID_MAPPING]
    if places.index is not None:
        coords["point"] = places.index
    raw = out.pop(SCALES)
    out |= {SCALES: decode_scales(raw), QUALITY: decode_quality(raw)}
    names = [EMBEDDINGS, SCALES, QUALITY, *(n for n in out if n in COUNTS)]
    dims = ("time", "point", "band")
    return {n: xr.DataArray(out[n], dims=dims[: out[n].ndim], coords=coords) for n in names}
