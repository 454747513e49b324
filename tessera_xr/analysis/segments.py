"""Segments: patches of neighbouring pixels that are alike, and what each of them is like."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from tessera_xr._optional import require
from tessera_xr.analysis.components import Components, fit_components
from tessera_xr.analysis.queries import essentials
from tessera_xr.embedding.schema import EMBEDDINGS, SCALES, check_embeddings, check_whole, has_data, provenance
from tessera_xr.errors import GridError, SchemaError
from tessera_xr.grid import GRID_MAPPING, geobox_of

if TYPE_CHECKING:
    import geopandas as gpd

SEGMENT_PIXELS = 100
SIDE = 256
Floats = npt.NDArray[np.float64]


def segment(
    emb: xr.Dataset,
    n_segments: int | None = None,
    *,
    n_components: int = 3,
    compactness: float = 0.1,
    components: Components | None = None,
    seed: int = 0,
) -> xr.DataArray:
    """Cut a map into superpixels: SLIC on its first components, each connected and of pixels that are alike.

    The components are cut off at their 2nd and 98th percentile and scaled together, the widest to 0..1, so that they
    keep their weights and `compactness` means much the same on every map. Maps of several times are cut once, by the
    components of all times together, so that the segments serve to compare the years. Needs the extra `segments`.

    Parameters
    ----------
    emb : Dataset
        Embeddings, float32 or int8, eager or lazy. The components of the whole map are held in memory: 4 bytes for
        each component, pixel and time, and about ten times as much while SLIC runs.
    n_segments : int, optional
        About how many; one for every 100 pixels with data by default.
    n_components : int, default 3
        How many components to look at.
    compactness : float, default 0.1
        How much nearness in space counts against likeness: from 0.01 (ragged, true to edges) to 10 (squares).
    components : Components, optional
        Fitted before, in place of those of this map; all of them count.
    seed : int, default 0
        Of the draw of pixels for the components.

    Returns
    -------
    DataArray
        (y, x) int32: 0 no data, segments from 1 on.

    Raises
    ------
    MissingExtraError
        If scikit-image is not installed.
    SchemaError
        If there are fewer pixels with data than segments.

    Notes
    -----
    Achanta et al. (2012), SLIC superpixels compared to state-of-the-art superpixel methods, IEEE TPAMI 34.
    """
    check_embeddings(emb)
    require("skimage", "segments", "segmentation")
    if not compactness > 0:
        raise SchemaError(f"compactness must be above 0 (0.01 ragged, 10 squares), not {compactness}")
    mask = has_data(emb)
    mask = (mask.all("time") if "time" in mask.dims else mask).compute()
    n_pixels = int(mask.sum())
    n_segments = max(n_pixels // SEGMENT_PIXELS, 1) if n_segments is None else n_segments
    check_whole("n_segments", n_segments)
    if not 1 <= n_segments <= n_pixels:
        raise SchemaError(f"n_segments must be from 1 to the {n_pixels} pixels with data, not {n_segments}")
    labels = _slic(_picture(emb, components, n_components, seed), mask.values, n_segments, compactness)
    named = xr.DataArray(labels, dims=("y", "x"), coords=_grid(emb), name="segment")
    attrs = {"long_name": "segment", "nodata": 0, "grid_mapping": GRID_MAPPING, **provenance(emb)}
    return named.assign_attrs(attrs)


def describe_segments(emb: xr.Dataset, segments: xr.DataArray) -> xr.Dataset:
    """Return what each segment is like.

    Works on 256 x 256 pixels at a time, of lazy maps on a chunk.

    Parameters
    ----------
    emb : Dataset
        Embeddings on the grid of the segments; of another year too.
    segments : DataArray
        (y, x) whole numbers, 0 for none: of `segment`, or parcels of your own.

    Returns
    -------
    Dataset
        Over `segment`: `mean` ([time,] segment, band) the mean embedding, NaN where nothing has data; `spread`
        ([time,] segment) the root mean square distance from it; `pixels`; `area` and `perimeter` in the units of the
        CRS; `compactness` 4 pi area / perimeter^2 (a square has pi/4 = 0.79, a line of pixels near 0); and the
        coordinates `x` and `y` of the middle.

    Raises
    ------
    GridError
        If the two are not on the same grid.
    """
    check_embeddings(emb)
    numbers, places = _ranked(segments)
    if geobox_of(emb) != geobox_of(segments):
        raise GridError("the segments are on another grid than the embeddings; make them with segment(emb)")
    means, spread = _means(emb, places, len(numbers))
    times = ("time",) if "time" in emb[EMBEDDINGS].dims else ()
    out = xr.Dataset(
        {"mean": ((*times, "segment", "band"), means), "spread": ((*times, "segment"), spread)}
        | {name: ("segment", values) for name, values in _shapes(places, len(numbers), emb).items()},
        coords={"segment": numbers, **{c: emb[c] for c in ("band", *times) if c in emb.coords}},
    )
    out["mean"].attrs["long_name"] = "mean embedding"
    out["spread"].attrs["long_name"] = "root mean square distance from the mean embedding"
    return out.set_coords(["x", "y"]).assign_attrs(provenance(emb))


def outline_segments(segments: xr.DataArray) -> gpd.GeoDataFrame:
    """Return the segments as polygons.

    Parameters
    ----------
    segments : DataArray
        (y, x) whole numbers, 0 for none.

    Returns
    -------
    GeoDataFrame
        A row for each `segment`, in the CRS of the map, with `pixels`, `area`, `perimeter` and `compactness` as in
        `describe_segments`; a segment of several parts is one row.
    """
    import geopandas as gpd
    from rasterio.features import shapes
    from shapely.geometry import shape

    box = geobox_of(segments)
    numbers, places = _ranked(segments)
    pieces = shapes(places.astype(np.int32), mask=places >= 0, transform=box.transform)
    polygons, rows = zip(*((shape(outline), int(row)) for outline, row in pieces), strict=True)
    frame = gpd.GeoDataFrame({"segment": numbers[list(rows)]}, geometry=list(polygons), crs=str(box.crs))
    frame = frame.dissolve("segment").sort_index()
    frame["area"], frame["perimeter"] = frame.area, frame.length
    frame["compactness"] = 4 * np.pi * frame["area"] / frame["perimeter"] ** 2
    frame["pixels"] = np.bincount(places[places >= 0])
    return frame


def _picture(emb: xr.Dataset, components: Components | None, n_components: int, seed: int) -> npt.NDArray[np.float32]:
    """Return the components of all times, (y, x, channel) float32; NaN without data."""
    fitted = components or fit_components(emb, n_components, seed=seed)
    scores = fitted.transform(emb).compute()
    low, high = (fitted.limits.isel(bound=i) for i in (0, 1))
    clipped = scores.clip(low, high)  # SLIC goes by the greatest range, which a few odd pixels must not set
    channels = [d for d in scores.dims if d not in ("y", "x")]
    image: npt.NDArray[np.float32] = clipped.stack(channel=channels).transpose("y", "x", "channel").values
    return np.ascontiguousarray(image, dtype=np.float32)


def _slic(
    image: npt.NDArray[np.float32], mask: npt.NDArray[np.bool_], n_segments: int, compactness: float
) -> npt.NDArray[np.int32]:
    from skimage.segmentation import slic

    options: dict[str, Any] = {"n_segments": n_segments, "compactness": compactness, "channel_axis": -1}
    # its start without a mask is a grid of squares, with one k-means of the places: slower, and only where needed
    partial = {} if mask.all() else {"mask": mask}
    image = np.nan_to_num(image)
    labels = slic(image, **options, **partial, start_label=1, convert2lab=False, enforce_connectivity=True)
    return np.where(mask, labels, 0).astype(np.int32)


def _grid(emb: xr.Dataset) -> dict[str, Any]:
    return {name: emb.coords[name] for name in ("y", "x", GRID_MAPPING) if name in emb.coords}


def _ranked(segments: xr.DataArray) -> tuple[npt.NDArray[Any], npt.NDArray[np.intp]]:
    """Return the numbers of the segments, and for each pixel (y, x) the row of its own; below 0: none."""
    if set(segments.dims) != {"y", "x"} or segments.dtype.kind not in "iu":
        raise SchemaError(f"segments must be whole numbers (y, x), not {segments.dtype} {segments.dims}")
    codes = np.asarray(segments.transpose("y", "x").values)
    numbers, rows = np.unique(codes, return_inverse=True)
    first = int(np.searchsorted(numbers, 1))
    if first == len(numbers):
        raise SchemaError("there are no segments: all are 0")
    return numbers[first:], rows.reshape(codes.shape) - first


def _windows(sizes: Mapping[Any, Sequence[int]]) -> Iterator[dict[str, slice]]:
    """Yield windows (y, x) of the sizes given along each of the two."""
    y, x = ([slice(int(end - n), int(end)) for n, end in zip(sizes[d], np.cumsum(sizes[d]), strict=True)] for d in "yx")
    yield from ({"y": rows, "x": columns} for rows in y for columns in x)


def _cut(n: int) -> list[int]:
    """Return the lengths of pieces of at most `SIDE`."""
    return [min(SIDE, n - start) for start in range(0, n, SIDE)]


def _means(emb: xr.Dataset, places: npt.NDArray[np.intp], n: int) -> tuple[Floats, Floats]:
    """Return the mean of each segment ([time,] segment, band) and its spread ([time,] segment)."""
    times = ("time",) if "time" in emb[EMBEDDINGS].dims else ()
    # in the order of memory: lazy chunks come in the order that is asked for
    stored = essentials(emb).transpose(..., "y", "x", "band")
    n_times = emb.sizes["time"] if times else 1
    sums = np.zeros((n_times, n, emb.sizes["band"]))
    squares, counts = np.zeros((n_times, n)), np.zeros((n_times, n))
    whole = {d: (emb.sizes[d],) for d in "yx"}
    for window in _windows(whole | dict(emb[EMBEDDINGS].chunksizes)):  # no chunk twice for a time
        for t in range(n_times):
            chunk = stored.isel({"time": t} if times else {}).isel(window).compute()
            inside = places[window["y"], window["x"]]
            for piece in _windows({d: _cut(chunk.sizes[d]) for d in "yx"}):
                _add(chunk.isel(piece), inside[piece["y"], piece["x"]], sums[t], squares[t], counts[t])
    with np.errstate(invalid="ignore"):
        means = sums / counts[..., None]
        variance = squares / counts - (means**2).sum(axis=-1)
    spread = np.sqrt(np.maximum(variance, 0))
    return (means, spread) if times else (means[0], spread[0])


def _add(piece: xr.Dataset, places: npt.NDArray[np.intp], sums: Floats, squares: Floats, counts: Floats) -> None:
    """Add the pixels of a piece to what their segments hold so far, codes as they are."""
    from tessera_xr.analysis.kernels import add_to_segments

    values = piece[EMBEDDINGS].values
    scales = piece[SCALES].values if values.dtype == np.int8 else np.empty(0)
    flat = np.ascontiguousarray(values).reshape(-1, values.shape[-1])
    add_to_segments(flat, np.ravel(scales).astype(np.float32), places.ravel(), sums, squares, counts)


def _shapes(places: npt.NDArray[np.intp], n: int, emb: xr.Dataset) -> dict[str, npt.NDArray[Any]]:
    """Return the size, outline and middle of each segment."""
    box = geobox_of(emb)
    width, height = abs(box.resolution.x), abs(box.resolution.y)
    inside = places >= 0
    count = np.bincount(places[inside], minlength=n)
    padded = np.pad(places, 1, constant_values=-1)
    perimeter = np.zeros(n)
    for axis, length in ((0, width), (1, height)):  # an edge wherever the neighbour is another
        for shift in (1, -1):
            edge = (padded != np.roll(padded, shift, axis))[1:-1, 1:-1] & inside
            perimeter += length * np.bincount(places[edge], minlength=n)
    y, x = (np.broadcast_to(a, places.shape)[inside] for a in (emb["y"].values[:, None], emb["x"].values[None]))
    return {
        "pixels": count,
        "area": count * width * height,
        "perimeter": perimeter,
        "compactness": 4 * np.pi * count * width * height / perimeter**2,
        "x": np.bincount(places[inside], x, minlength=n) / count,
        "y": np.bincount(places[inside], y, minlength=n) / count,
    }
