"""Search in many maps, tiles or years at once, from disk.

An index is a folder. Each map at each time is a part of it: the codes of its pixels with data, where they are, and, for
approximate search, usearch's graph of near neighbours (HNSW: Malkov and Yashunin 2018, arXiv 1603.09320). All of it is
memory-mapped. Exact search reads all codes; approximate search walks the graphs.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt
import xarray as xr

from tessera_xr._warn import warn
from tessera_xr.analysis import index_files as files
from tessera_xr.analysis.index_files import Part
from tessera_xr.analysis.places import check_count, spread
from tessera_xr.analysis.queries import Query, Vectors, areas_of, given_vectors, matching_times, pixels_within
from tessera_xr.analysis.similarity import unit
from tessera_xr.errors import SchemaError

if TYPE_CHECKING:
    from geopandas import GeoDataFrame

Rows: TypeAlias = dict[int, "npt.NDArray[np.int64] | None"]  # the parts to search, and which of their rows (None: all)

GRAPH_LIMIT = 2_000
"""Neighbours asked of a graph; for more, reading all codes is as fast, and exact."""


@dataclass(frozen=True)
class Found:
    """Pixels found, best first."""

    similarity: npt.NDArray[np.float32]
    part: npt.NDArray[np.intp]
    row: npt.NDArray[np.int64]
    """Which of the part's pixels with data."""


class SearchIndex:
    """The embeddings of many maps, on disk, to be searched by cosine similarity: see `build` and `open`.

    Parameters
    ----------
    path : path
        The folder.
    parts : list of Part
        What it holds.
    n_dims : int
        The length of the embeddings.
    attrs : dict
        The model that made them.
    """

    def __init__(self, path: Path, parts: list[Part], n_dims: int, attrs: dict[str, Any]) -> None:
        self.path, self.parts, self.n_dims, self.attrs = path, parts, n_dims, attrs
        self.approximate: bool = all(files.has_graph(path, part) for part in parts if part.n)
        """Whether there are graphs for approximate search."""
        self._graphs: dict[str, Any] = {}

    def __len__(self) -> int:
        return sum(part.n for part in self.parts)

    def __repr__(self) -> str:
        times = sorted({part.time for part in self.parts if part.time})
        return (
            f"SearchIndex of {len(self):,} pixels: {len({part.map for part in self.parts})} maps, "
            f"times {', '.join(times) or 'not told'}, model {self.attrs.get('model', 'unknown')}, "
            f"{'approximate and exact' if self.approximate else 'exact'} search, in {self.path}"
        )

    @classmethod
    def build(
        cls,
        maps: xr.Dataset | Iterable[xr.Dataset],
        path: str | os.PathLike[str],
        *,
        approximate: bool = True,
        overwrite: bool = False,
    ) -> SearchIndex:
        """Write the index of one or many maps.

        Maps are read in stripes, one after the other, so that an iterator of lazy maps can be larger than memory;
        float32 is quantised to int8. The graph of a part is made in memory, some 400 bytes a pixel.

        Parameters
        ----------
        maps : Dataset or iterable of Dataset
            Embeddings of one model, each with one time, several, or none.
        path : path
            The folder to write.
        approximate : bool, default True
            Whether to make graphs for approximate search: half a minute a core for a million pixels.
        overwrite : bool, default False
            Whether to replace an index that is there.

        Raises
        ------
        MissingExtraError
            If `approximate` is asked for and usearch isn't installed.
        SchemaError
            If the folder exists, or no map has data.
        VersionMismatchError
            If the maps are of different models.
        """
        if approximate:
            files.need_usearch()
        path = Path(path)
        if path.exists():
            if not overwrite:
                raise SchemaError(f"{path} exists; pass overwrite=True to replace it, or choose another folder")
            files.read_index(path)  # never removes a folder that is no index
        partial = path.with_name(path.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            files.write_index(partial, [maps] if isinstance(maps, xr.Dataset) else maps, approximate=approximate)
            shutil.rmtree(path, ignore_errors=True)
            partial.rename(path)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return cls.open(path)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> SearchIndex:
        """Open an index; its files are memory-mapped. `SchemaError` if the folder holds none, or another version."""
        return cls(Path(path), *files.read_index(Path(path)))

    def search(
        self,
        query: Query,
        k: int = 20,
        *,
        exact: bool = False,
        region: Any = None,
        time: Any = None,
        min_distance: float = 100.0,
    ) -> GeoDataFrame:
        """Return the k places most like a query.

        Parameters
        ----------
        query : ndarray, DataArray or Dataset
            Vectors (band,) or (n, band), or what `sample` returned; several count by the mean of their cosines.
        k : int, default 20
            How many places.
        exact : bool, default False
            Whether to compare with every pixel. An index without graphs always does; so does a part that a region cuts.
        region : (west, south, east, north) in degrees, GeoSeries or GeoDataFrame of polygons, optional
            Where to search: pixels with their centre inside.
        time : int, str, datetime64 or list of them, optional
            Which years or dates to search.
        min_distance : float, default 100
            The least distance between two places in metres, on a sphere; of the times of one place the best is kept.
            0: simply the k best pixels.

        Returns
        -------
        GeoDataFrame
            In longitude and latitude, best first: `rank` from 1, `similarity` (the exact cosine), `map` (its number in
            the order of building), `time`, `x` and `y` of the pixel's centre in `crs`, `lon`, `lat`, points. Fewer than
            k, with a warning, where no more fit.

        Raises
        ------
        SchemaError
            If the query can't be read, k is larger than the number of pixels, or no part has the time or region.
        VersionMismatchError
            If the query is of another model.
        """
        vector = self._vector(query)
        rows = self._rows(region, time)
        n_pixels = sum(self.parts[i].n if r is None else len(r) for i, r in rows.items())
        check_count(k, n_pixels)
        m = min(8 * k if min_distance > 0 else k, n_pixels)
        while True:
            found = self._nearest(vector, m, rows, exact=exact)
            lon, lat, where = self._located(found)
            chosen = spread(lon, lat, k, min_distance)
            if len(chosen) == k or m == n_pixels:
                break
            m = min(8 * m, n_pixels)  # the best pixels lie together: look at more of them
        if len(chosen) < k:
            warn(f"only {len(chosen)} of {k} places lie {min_distance:g} m apart; ask for fewer, or less far apart")
        return self._as_places(found, chosen, where, lon, lat)

    def recall(self, k: int = 10, n_queries: int = 100, *, seed: int = 0) -> float:
        """Return which share of the k best pixels approximate search finds, against exact search.

        Queries are pixels of the index, drawn at random. A pixel as similar as the k-th best counts as found, so that
        equal embeddings don't matter.

        Parameters
        ----------
        k : int, default 10
            How many neighbours.
        n_queries : int, default 100
            How many queries; each reads all codes once.
        seed : int, default 0
            Of the draw.

        Returns
        -------
        float
            From 0 to 1; 1 for an index without graphs, which is always searched exactly.
        """
        check_count(k, len(self))
        rows = self._rows(None, None)
        ends = np.cumsum([part.n for part in self.parts])
        drawn = np.random.default_rng(seed).choice(len(self), min(n_queries, len(self)), replace=False)
        hits = 0
        for i in drawn:
            part = self.parts[int(np.searchsorted(ends, i, side="right"))]
            vector = self._vector(self._codes(part)[i - ends[self.parts.index(part)]])
            best, found = (self._nearest(vector, k, rows, exact=exact).similarity for exact in (True, False))
            hits += int((found >= best[-1] - 1e-6).sum())
        return hits / (k * len(drawn))

    def _vector(self, query: Query) -> Vectors:
        """Return the mean of the query's unit vectors (1, band): its product with a unit vector is the mean cosine."""
        like = xr.Dataset(coords={"band": np.arange(self.n_dims)}, attrs=self.attrs)
        mean = unit(given_vectors(like, query)).mean(axis=0, dtype=np.float64)
        return np.asarray(mean, dtype=np.float32)[None]

    def _codes(self, part: Part) -> npt.NDArray[np.int8]:
        return files.codes_of(self.path, part, self.n_dims)

    def _rows(self, region: Any, time: Any) -> Rows:
        """Return the parts to search, and of those that a region cuts which rows."""
        chosen = [i for i, part in enumerate(self.parts) if part.n]
        if time is not None:
            chosen = self._at_times(chosen, [time] if isinstance(time, str) or np.ndim(time) == 0 else list(time))
        if region is None:
            return dict.fromkeys(chosen)
        areas, shapes = areas_of(region), {}
        rows: Rows = {}
        for i in chosen:
            part = self.parts[i]
            if part.crs not in shapes:
                shapes[part.crs] = areas.to_crs(part.crs).union_all()
            rows[i] = self._inside(part, shapes[part.crs])
        rows = {i: inside for i, inside in rows.items() if inside is None or len(inside)}
        if not rows:
            raise SchemaError("the region holds no pixel of the index that has data; choose another")
        return rows

    def _at_times(self, parts: list[int], labels: list[Any]) -> list[int]:
        """Return those of some parts that are of the times named, each of which must be there."""
        found = {str(label): [i for i in parts if matching_times([str(self.parts[i].time)], label)] for label in labels}
        if missing := [label for label, of_it in found.items() if not of_it]:
            known = ", ".join(sorted({str(part.time) for part in self.parts}))
            raise SchemaError(f"the index has no time {', '.join(missing) or labels}; it has {known}")
        return sorted({i for of_it in found.values() for i in of_it})

    def _inside(self, part: Part, shape: Any) -> npt.NDArray[np.int64] | None:
        """Return the rows of a part whose pixels lie in a shape, None for all."""
        y, x, mask = pixels_within(part.box, shape)
        if mask.shape == part.shape and mask.all():
            return None
        if not mask.any():
            return np.empty(0, dtype=np.int64)
        whole = np.zeros(part.shape, dtype=np.bool_)
        whole[y, x] = mask
        return np.flatnonzero(whole.ravel()[files.pixels_of(self.path, part)])

    def _nearest(self, vector: Vectors, m: int, rows: Rows, *, exact: bool) -> Found:
        """Return the m best pixels of the parts and rows given."""
        found = []
        for i, allowed in rows.items():
            walk = self.approximate and not exact and allowed is None and m <= GRAPH_LIMIT
            near, similarity = self._walk(i, vector, m) if walk else self._read(i, vector, allowed)
            if len(near) > m:
                top = np.argpartition(-similarity, m - 1)[:m]
                near, similarity = near[top], similarity[top]
            found.append((similarity, np.full(len(near), i), near))
        similarity, part, row = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
        order = np.lexsort((row, part, -similarity))[:m]
        return Found(similarity[order], part[order], row[order])

    def _walk(self, i: int, vector: Vectors, m: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Ask a part's graph; somewhat more than m, as it compares with a query rounded to int8."""
        part = self.parts[i]
        if part.name not in self._graphs:
            self._graphs[part.name] = files.graph_of(self.path, part)
        query = np.rint(vector[0] * (127 / (np.abs(vector).max() or 1))).astype(np.int8)
        near = self._graphs[part.name].search(query, min(m + m // 2 + 8, part.n)).keys.astype(np.int64)
        return near, _cosines(self._codes(part)[near], vector)

    def _read(
        self, i: int, vector: Vectors, allowed: npt.NDArray[np.int64] | None
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Compare with all rows of a part, or with those allowed."""
        codes = self._codes(self.parts[i])
        if allowed is None:
            return np.arange(len(codes)), _cosines(codes, vector)
        first, last = allowed[0], allowed[-1] + 1
        return allowed, _cosines(codes[first:last], vector)[allowed - first]

    def _located(
        self, found: Found
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Return longitude (n,), latitude (n,), and x and y in the CRS of the part (n, 2)."""
        from pyproj import Transformer

        where, degrees = np.empty((len(found.row), 2)), np.empty((len(found.row), 2))
        for i in np.unique(found.part):
            part, mine = self.parts[i], found.part == i
            y, x = np.unravel_index(files.pixels_of(self.path, part)[found.row[mine]], part.shape)
            where[mine] = np.stack(part.box.transform * (x + 0.5, y + 0.5), axis=-1)
            to_degrees = Transformer.from_crs(part.crs, "EPSG:4326", always_xy=True)
            degrees[mine] = np.stack(to_degrees.transform(*where[mine].T), axis=-1)
        return degrees[:, 0], degrees[:, 1], where

    def _as_places(
        self,
        found: Found,
        chosen: npt.NDArray[np.intp],
        where: npt.NDArray[np.float64],
        lon: npt.NDArray[np.float64],
        lat: npt.NDArray[np.float64],
    ) -> GeoDataFrame:
        from geopandas import GeoDataFrame, points_from_xy

        parts = [self.parts[i] for i in found.part[chosen]]
        columns = {
            "rank": np.arange(1, len(chosen) + 1),
            "similarity": found.similarity[chosen],
            "map": [part.map for part in parts],
            "time": [part.time for part in parts],
            "x": where[chosen, 0],
            "y": where[chosen, 1],
            "crs": [part.crs for part in parts],
            "lon": lon[chosen],
            "lat": lat[chosen],
        }
        places = GeoDataFrame(columns, geometry=points_from_xy(lon[chosen], lat[chosen], crs="EPSG:4326"))
        places.attrs.update(self.attrs)
        return places


def _cosines(codes: npt.NDArray[np.int8], vector: Vectors) -> npt.NDArray[np.float32]:
    from tessera_xr.analysis.similarity import score

    return score(codes, positives=vector, negatives=vector[:0], sign=1, metric="cosine", parallel=len(codes) > 10_000)
