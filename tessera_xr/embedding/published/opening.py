"""Embeddings that others have computed and published, in the same Dataset as one's own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np
import numpy.typing as npt
import xarray as xr
from odc.geo.geobox import GeoBox

from tessera_xr.area import resolve_area
from tessera_xr.embedding.published.agreement import check_against
from tessera_xr.embedding.schema import (
    COUNTS,
    EMBEDDINGS,
    QUALITY,
    SCALES,
    build_embeddings,
    check_whole,
    describe_variables,
)
from tessera_xr.errors import GridError, SchemaError
from tessera_xr.grid import GRID_MAPPING, with_grid
from tessera_xr.sentinel.period import resolve_period

if TYPE_CHECKING:
    from tessera_xr.area import AreaLike
    from tessera_xr.embedding.points import PointsLike
    from tessera_xr.embedding.published.sources import Source, StoreLike
    from tessera_xr.embedding.published.stores import Piece

__all__ = ["check_against", "open_published"]

LENGTHS = (4, 16, 32, 64, 128)
CUTTABLE = ("v2",)
"""Families whose embeddings may be cut."""
MAX_BLOCKS = 1_000_000

RELEASED = {
    "licence": "CC0-1.0",
    "attribution": "TESSERA (arXiv:2506.20380); contains modified Copernicus Sentinel data",
}
"""Terms of the embeddings that TESSERA's authors and dClimate publish."""


def open_published(
    area: AreaLike | PointsLike,
    years: int | Sequence[int],
    *,
    version: str | None = None,
    store: StoreLike | None = None,
    dims: int | None = None,
    zone: int | None = None,
    chunks: int = 256,
    landmasks: str | None = None,
    allow_http: bool = False,
    progress: bool = True,
) -> xr.Dataset:
    """Open published embeddings of an area, or read them at points; nothing is computed, no weights are needed.

    The result is what `embed` returns with `dtype="int8"`, and `quality` beside. An area is lazy: pixels are read when
    they are needed, in the small chunks of the store. Points are read at once, one chunk for each place.

    Parameters
    ----------
    area : bbox, geometry, GeoDataFrame, GeoJSON, GeoBox, Dataset or DataArray; or points
        See `resolve_area`; a Dataset or GeoBox on the pixels of the store is opened on exactly these. The grid covers
        the bounds of a geometry. Points are (lon, lat), a list of them, an array (n, 2) or a geopandas object.
    years : int or list of int
        Calendar years. A list gives a `time` dimension, as in `embed`.
    version : str, optional
        "v1.1" (dClimate's, the default), "v1.1-cambridge", "v1", "v2-2B-L~beta1" or "v2-2B-L~beta2". Embeddings of
        different versions or variants don't mix. With `store` it need only be given where the store doesn't tell.
    store : URL, path, list of paths, or Zarr store, optional
        Another place than the public one: a Zarr v3 store of the published layout, an Icechunk store (`s3://...`, or a
        folder), a folder or site of NPY tiles, GeoTIFF exports.
    dims : int, optional
        Only the first 16, 32 or 64 values of v2 embeddings, or 4 where the store has them; fewer bytes where the store
        holds them apart.
    zone : int, optional
        UTM zone of the grid, 1 to 60; without it that of the middle of the area. Pixels that only a neighbouring zone
        has are brought in by nearest neighbour, codes and scale together; `attrs["resampled"]` tells of it.
    chunks : int, default 256
        Pixels a side of the result's Dask chunks; they end where the chunks of the store do.
    landmasks : URL or path, optional
        Where the landmasks of NPY tiles are, if not beside them.
    allow_http : bool, default False
        Read from a server without encryption, other than this machine.
    progress : bool, default True
        Show a bar if reading points takes longer than a second.

    Returns
    -------
    Dataset
        `embeddings` ([time,] band, y, x) int8, `scales` ([time,] y, x) float32, NaN without data, `quality`
        ([time,] y, x) uint8 (0 no data, 1 valid, 2 water, 3 corrupt), and counts of observations where the store has
        them; on 10 m pixels in EPSG:326NN, with negative northings in the south. For points: over `point`, as `sample`;
        of several zones with x and y in degrees, and `utm_zone`.

    Raises
    ------
    GridError
        If the area or points lie outside the store, or the area is none.
    SchemaError
        If a year isn't there (those that are, are listed), or an option is out of range.
    StoreError
        If the store can't be read, or isn't to be trusted.
    VersionMismatchError
        If the store is of another version than `version`, or its embeddings must not be cut.
    MissingExtraError
        If a package that the kind of store needs isn't installed.
    """
    from tessera_xr.embedding.published.grid import describe_resampling, in_order, target_grid
    from tessera_xr.embedding.published.points import as_points, read_points
    from tessera_xr.embedding.published.releases import DEFAULT
    from tessera_xr.embedding.published.sources import open_source

    wanted = _resolve_years(years)
    check_whole("chunks", chunks)
    if chunks < 1:
        raise SchemaError(f"chunks must be a positive number of pixels, not {chunks}")
    if dims is not None and dims not in LENGTHS:
        raise SchemaError(f"dims={dims!r} is no length of an embedding; choose one of {LENGTHS[:-1]}")
    points = as_points(area)
    geometry = None if points is not None else resolve_area(area)
    source = open_source(store, version, default=DEFAULT, allow_http=allow_http, landmasks=landmasks)
    _check_dims(dims, source)
    if points is not None:
        found = read_points(points, source, wanted, dims, progress=progress)
        return _at_points(_dated(found, wanted, years), _attributes(source, wanted, years))
    assert geometry is not None
    pieces = _open_pieces(source, geometry.bounds, wanted, dims)
    box = target_grid(area, pieces, zone)
    pieces = in_order(pieces, box)
    variables = _dated(_lazy(pieces, box, wanted, chunks, dims), wanted, years)
    attrs = _attributes(source, wanted, years) | describe_resampling(pieces, box)
    return build_embeddings(variables, with_grid(xr.Dataset(), box), attrs)


def _resolve_years(years: int | Sequence[int]) -> list[int]:
    listed: Any = [years] if isinstance(years, (int, np.integer)) else years
    if isinstance(listed, str) or not isinstance(listed, Iterable):
        raise SchemaError(f"years={years!r} are none; give a year, such as 2024, or a list of them")
    out = list(listed)
    for year in out:
        check_whole("each of years", year)
    if not out or len(set(out)) < len(out) or not all(1900 < y < 2200 for y in out):
        raise SchemaError(f"years={years!r} must be calendar years, each once, at least one")
    return [int(y) for y in out]


def _check_dims(dims: int | None, source: Source) -> None:
    family = source.identity.get("model_family", "unknown")
    if dims not in (None, 128) and family not in CUTTABLE:
        raise SchemaError(
            f"dims={dims} cuts embeddings, which only those of {' and '.join(CUTTABLE)} bear; {source.name} holds "
            f"{source.identity.get('model', 'unknown')} ({family}). Leave out dims="
        )


def _open_pieces(
    source: Source, bounds: tuple[float, float, float, float], years: Sequence[int], dims: int | None
) -> list[Piece]:
    from tessera_xr.embedding.published.sources import for_years, with_dims

    pieces = source.open_pieces(bounds, years, dims)
    with_dims(pieces, dims)
    for_years(pieces, years, source.name)
    return pieces


def _lazy(
    pieces: list[Piece], box: GeoBox, years: Sequence[int], chunks: int, dims: int | None
) -> dict[str, xr.DataArray]:
    """Return the variables of a grid, as Dask arrays whose blocks are read when they are needed."""
    import dask.array as da

    from tessera_xr.embedding.published.mosaic import RAW, decode_quality, decode_scales

    sizes = ((1,) * len(years), *(_edges(*edge, chunks) for edge in _phases(pieces[0], box)))
    n_blocks = int(np.prod([len(s) for s in sizes]))
    if n_blocks > MAX_BLOCKS:
        raise GridError(f"the area would be {n_blocks:,} chunks, over {MAX_BLOCKS:,}; ask for less, or larger chunks=")
    ranges = [da.arange(sum(s), chunks=(s,), dtype=np.int64) for s in sizes]
    index = (ranges[0][:, None, None], ranges[1][None, :, None], ranges[2][None, None, :])
    task: dict[str, Any] = {"pieces": tuple(pieces), "box": box, "years": tuple(years)}
    token = uuid4().hex

    def over_blocks(what: str, dtype: Any, *inputs: Any, **extra: Any) -> Any:
        bands = {"new_axis": 3, "chunks": (*sizes, (extra["n_bands"],))} if "n_bands" in extra else {"chunks": sizes}
        return da.map_blocks(
            partial(_read_block, what=what, **task, **extra),
            *index,
            *inputs,
            dtype=dtype,
            meta=np.empty((0,) * (4 if "n_bands" in extra else 3), dtype),
            name=f"published-{what}-{token}",
            **bands,
        )

    raw = over_blocks("raw", RAW)
    named = {
        EMBEDDINGS: over_blocks("codes", np.int8, raw, n_bands=dims or pieces[0].n_bands),
        SCALES: raw.map_blocks(_decode, decode_scales, dtype=np.float32, meta=np.empty((0, 0, 0), np.float32)),
        QUALITY: raw.map_blocks(_decode, decode_quality, dtype=np.uint8, meta=np.empty((0, 0, 0), np.uint8)),
    }
    shared = [n for n in COUNTS if all(n in p.counts for p in pieces)]
    named |= {n: over_blocks(n, np.uint16, raw) for n in shared}
    pixel = ("time", "y", "x")
    return {n: xr.DataArray(a, dims=(*pixel, "band") if a.ndim == 4 else pixel) for n, a in named.items()}


def _decode(raw: npt.NDArray[np.void], decode: Any) -> npt.NDArray[Any]:
    return np.asarray(decode(raw["scale"]))


def _read_block(
    t: npt.NDArray[np.int64],
    y: npt.NDArray[np.int64],
    x: npt.NDArray[np.int64],
    *raw: npt.NDArray[np.void],
    what: str,
    pieces: tuple[Piece, ...],
    box: GeoBox,
    years: tuple[int, ...],
    n_bands: int = 0,
) -> npt.NDArray[Any]:
    """Read a block of one year, (1, y, x[, band]); the indices along its dimensions say which."""
    from tessera_xr.embedding.published import mosaic

    part = box[int(y.flat[0]) : int(y.flat[-1]) + 1, int(x.flat[0]) : int(x.flat[-1]) + 1]
    year = years[int(t.flat[0])]
    if what == "raw":
        return mosaic.read_raw(pieces, part, year)[None]
    if what == "codes":
        return mosaic.read_codes(raw[0][0], pieces, part, year, n_bands)[None]
    return mosaic.read_counts(raw[0][0], pieces, part, year, what)[None]


def _phases(piece: Piece, box: GeoBox) -> list[tuple[int, int, int]]:
    """Return for rows and columns: how many there are, where the first lies in the piece, and the piece's chunk."""
    from tessera_xr.embedding.published.mosaic import whole_offset

    offset = whole_offset(piece.box, box) or (0, 0)
    return [(n, o + getattr(piece, "first_row", 0) * (i == 0), c) for i, (n, o, c) in
            enumerate(zip(box.shape, offset, piece.chunk, strict=True))]  # fmt: skip


def _edges(n: int, first: int, inner: int, size: int) -> tuple[int, ...]:
    """Return sizes of chunks of about `size` that end where those of the store do.

    Examples
    --------
    >>> _edges(600, 40, 32, 256), _edges(5, 7, 1, 256), _edges(50, 0, 32, 10)
    ((216, 256, 128), (5,), (10, 10, 10, 10, 10))
    """
    step = max(size // inner, 1) * inner if inner <= size else size
    cuts = [0, *range(step - first % step, n, step), n] if inner > 1 else [*range(0, n, step), n]
    return tuple(int(d) for d in np.diff(cuts) if d)


def _dated(variables: dict[str, xr.DataArray], years: Sequence[int], asked: Any) -> dict[str, xr.DataArray]:
    """Return variables with the years that were asked for; without `time` for a single one."""
    if isinstance(asked, (int, np.integer)):
        return {name: array.isel(time=0) for name, array in variables.items()}
    return {n: a.assign_coords(time=np.array(years, np.int64)) for n, a in variables.items()}


def _at_points(variables: dict[str, xr.DataArray], attrs: dict[str, Any]) -> xr.Dataset:
    """Return what `sample` returns: the variables over points."""
    ds = xr.Dataset(variables).transpose(..., "band", "point")
    found = describe_variables(ds.assign_coords(band=np.arange(ds.sizes["band"])), attrs)
    for array in found.data_vars.values():
        array.attrs["grid_mapping"] = GRID_MAPPING
    return found


def _attributes(source: Source, years: Sequence[int], asked: int | Sequence[int]) -> dict[str, Any]:
    one = isinstance(asked, (int, np.integer))
    licence = source.identity.get("weights_licence", RELEASED["licence"])
    return {
        **source.identity,
        "weights_licence": licence,
        **({"period": str(resolve_period(years[0]))} if one else {}),
        "source": f"published embeddings, {source.name}",
        **(RELEASED if licence == RELEASED["licence"] else {}),  # one's own have terms of their own
    }
