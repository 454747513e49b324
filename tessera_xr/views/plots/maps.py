"""Plots of maps: embeddings, imagery, similarity, change, classes and numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from tessera_xr.errors import SchemaError
from tessera_xr.views.plots.interactive import draw
from tessera_xr.views.plots.layers import Layer, Map, Marks, by_time, check_times, frame_of, joined, thinned
from tessera_xr.views.plots.scales import (
    class_key,
    class_layer,
    colour_layer,
    fixed_scale,
    has_flags,
    number_layer,
    spread_of,
)
from tessera_xr.views.plots.static import draw_static

if TYPE_CHECKING:
    from tessera_xr.analysis.change import When
    from tessera_xr.analysis.components import Components
    from tessera_xr.analysis.queries import Query
    from tessera_xr.analysis.similarity import Combine

LIKE, UNLIKE, FOUND = "#0072b2", "#d55e00", "#ffffff"


def plot(obj: xr.Dataset | xr.DataArray, *, time: Any = None, static: bool = False) -> Any:
    """Plot the obvious: embeddings in colours, a cube as the eye sees it, a prediction with its classes.

    Parameters
    ----------
    obj : Dataset or DataArray
        Embeddings, a cube or a prediction; or one map: classes (with flag_values and flag_meanings, or bool), a
        picture (with a dimension rgb) or numbers.
    time : int, str or datetime64, optional
        One time; all of them side by side if not told. Of a cube a date.
    static : bool, default False
        A Matplotlib figure.

    Returns
    -------
    HoloViews object or Figure

    Raises
    ------
    SchemaError
        If it is none of these.
    """
    from tessera_xr.embedding.schema import is_embeddings
    from tessera_xr.sentinel.cube import is_cube

    if isinstance(obj, xr.DataArray):
        return values(obj, time=time, static=static) if not _special(obj) else _special_map(obj, time, static)
    if is_embeddings(obj):
        return rgb(obj, time=time, static=static)
    if "prediction" in obj.data_vars:
        return classes(obj, time=time, static=static)
    if is_cube(obj):
        return true_colour(obj, date=time, static=static)
    raise SchemaError(
        f"there is no plot for a dataset of {list(map(str, obj.data_vars))}: it is no cube, no embeddings and no "
        "prediction. Choose one map of it, as in ds['name'].tessera.plot()"
    )


def _special(array: xr.DataArray) -> bool:
    return "rgb" in array.dims or has_flags(array)


def _special_map(array: xr.DataArray, time: Any, static: bool) -> Any:
    return picture(array, time=time, static=static) if "rgb" in array.dims else classes(array, time=time, static=static)


def rgb(emb: xr.Dataset, time: Any = None, components: Components | None = None, *, static: bool = False) -> Any:
    """Plot embeddings in colours: their first three principal components as red, green and blue.

    Parameters
    ----------
    emb : Dataset
        Embeddings, float32 or int8, eager or lazy.
    time : int, str or datetime64, optional
        One time; all of them side by side, in the same colours, if not told.
    components : Components, optional
        From `fit_components`, so that several maps get the same colours; fitted to all times of `emb` if not given.
    static : bool, default False
        A Matplotlib figure.

    Returns
    -------
    HoloViews object or Figure
    """
    from tessera_xr.analysis.components import fit_components
    from tessera_xr.embedding.schema import check_embeddings

    check_embeddings(emb)
    emb = thinned(emb)
    shown = _at(emb, time)
    check_times(shown)
    frame_of(shown)
    fitted = fit_components(emb, 3) if components is None else components
    return picture(fitted.rgb(shown).compute(), title="Embeddings: three principal components", static=static)


def picture(array: xr.DataArray, *, title: str = "", time: Any = None, static: bool = False) -> Any:
    """Plot a picture ([time,] y, x, rgb) of values from 0 to 1, such as `emb.tessera.rgb()`."""
    title = title or str(array.attrs.get("long_name", array.name or ""))
    array = _at(array, time)
    check_times(array)
    return _shown(lambda one: [colour_layer(one)], array.compute(), title, static)


def true_colour(cube: xr.Dataset, date: Any = None, *, static: bool = False) -> Any:
    """Plot a cube as the eye would see it.

    Parameters
    ----------
    cube : Dataset
        A cube with Sentinel-2.
    date : str or datetime64, optional
        One of its Sentinel-2 dates, clouds and all; the median of the clear observations if not told.
    static : bool, default False
        A Matplotlib figure.

    Returns
    -------
    HoloViews object or Figure

    Raises
    ------
    SchemaError
        If there is no such date.
    """
    from tessera_xr.sentinel.cube import check_cube
    from tessera_xr.views import render

    check_cube(cube)
    shown = render.true_colour(thinned(cube), date)
    when = "median of clear observations" if date is None else str(date)[:10]
    return picture(shown, title=f"Sentinel-2, true colour, {when}", static=static)


def similarity(
    emb: xr.Dataset,
    query: Query,
    negative: Query | None = None,
    combine: Combine = "mean",
    time: Any = None,
    k: int = 0,
    *,
    static: bool = False,
) -> Any:
    """Plot how like a query every pixel is, on a fixed scale, so that two queries compare.

    Parameters
    ----------
    emb : Dataset
        Embeddings.
    query, negative, combine, time
        See `tessera_xr.similarity`. Points of the query are marked.
    k : int, default 0
        Mark so many of the places that are most like it; see `find_similar`.
    static : bool, default False
        A Matplotlib figure.

    Returns
    -------
    HoloViews object or Figure
        From 0 (unlike, or nothing in common) to 1; with counter-examples from -1.
    """
    from tessera_xr.analysis.places import check_count, find_similar
    from tessera_xr.analysis.queries import query_vectors
    from tessera_xr.analysis.similarity import similarity as compared
    from tessera_xr.embedding.schema import check_embeddings

    check_embeddings(emb)
    emb = thinned(emb)
    if k:
        check_count(k, emb.sizes["y"] * emb.sizes["x"])
    vectors = query_vectors(emb, query, time=time)  # of all times shown: places mean one of them
    against = None if negative is None else query_vectors(emb, negative, time=time)
    shown = _at(emb, time)
    check_times(shown)
    found = compared(shown, vectors, negative=against, combine=combine).compute()
    marks = [_query_marks(emb, query, "like this", LIKE), _query_marks(emb, negative, "unlike this", UNLIKE)]
    if k:
        places = find_similar(shown, vectors, k, negative=against, combine=combine)
        ranks = tuple(map(str, places["rank"]))
        marks.append([Marks(places["x"].to_numpy(), places["y"].to_numpy(), f"best {len(places)}", FOUND, ranks,
                            "#000000", size=15)])  # fmt: skip
    layers = [mark for some in marks for mark in some]
    return numbers(found, "Similarity", layers, static=static)


def change(emb: xr.Dataset, before: When | xr.Dataset, after: When | xr.Dataset | None = None, *,
           static: bool = False) -> Any:  # fmt: skip
    """Plot how far every pixel moved between two dates: see `tessera_xr.change`.

    Returns
    -------
    HoloViews object or Figure
        Cosine distance on a fixed scale: 0 the same direction, 1 a right angle.
    """
    from tessera_xr.analysis.change import change as moved

    found = moved(emb, before, after)
    title = f"Change, {found.attrs['before']} to {found.attrs['after']}"
    return numbers(found.compute(), title, (), static=static)


def classes(pred: xr.Dataset | xr.DataArray, *, time: Any = None, static: bool = False) -> Any:
    """Plot the map of a head, or any map of classes, with a legend.

    Parameters
    ----------
    pred : Dataset or DataArray
        What `predict` returns (its numbers are shown on a scale, if it predicts numbers); or one map of whole numbers
        with CF's flag_values, flag_meanings and flag_colors, as clusters are; or one of true and false.
    time : int, str or datetime64, optional
        One time; all of them side by side if not told.
    static : bool, default False
        A Matplotlib figure.

    Returns
    -------
    HoloViews object or Figure
    """
    title = ""
    if isinstance(pred, xr.Dataset):
        head = str(pred.attrs.get("head", ""))
        pred = _variable(pred, "prediction")
        title = joined(str(pred.attrs.get("long_name", "prediction")).capitalize(), head)
        if pred.dtype.kind == "f":
            return numbers(_at(pred, time), title, (), static=static, cmap="cividis")
    title = title or str(pred.attrs.get("long_name", pred.name or "Classes")).capitalize()
    class_key(pred)
    found = _at(pred, time)
    check_times(found)
    return _shown(lambda one: [class_layer(one)], found.compute(), title, static)


def confidence(pred: xr.Dataset, *, time: Any = None, static: bool = False) -> Any:
    """Plot how probable a head holds the class that it says.

    Raises
    ------
    SchemaError
        If the prediction has no confidence: a head without probabilities, or one of numbers.
    """
    found = _variable(pred, "confidence")
    return numbers(_at(found, time), "Confidence of the prediction", (), static=static)


def values(
    array: xr.DataArray,
    cmap: str | None = None,
    clim: Sequence[float] | None = None,
    *,
    time: Any = None,
    static: bool = False,
) -> Any:
    """Plot a map of numbers with a colour bar.

    Parameters
    ----------
    array : DataArray
        ([time,] y, x).
    cmap : str, optional
        A Matplotlib colour map; "viridis" unless the map has one in the explorer.
    clim : (low, high), optional
        Ends of the scale. If not told, those of the explorer for similarity, change, novelty and probabilities; else
        the 2nd and 98th percentile.
    time : int, str or datetime64, optional
        One time; all of them side by side if not told.
    static : bool, default False
        A Matplotlib figure.

    Returns
    -------
    HoloViews object or Figure
    """
    title = str(array.attrs.get("long_name", array.name or "")).capitalize()
    return numbers(_at(array, time), title, (), static=static, cmap=cmap, clim=clim)


def numbers(
    array: xr.DataArray,
    title: str,
    marks: Sequence[Layer],
    *,
    static: bool,
    cmap: str | None = None,
    clim: Sequence[float] | None = None,
) -> Any:
    """Plot numbers ([time,] y, x) under marks, all times on one scale."""
    over = set(map(str, array.dims)) - {"time", "y", "x", "lat", "lon", "latitude", "longitude"}
    if over:
        raise SchemaError(f"one map has dimensions y and x; choose along {', '.join(sorted(over))} with .isel() first")
    if array.dtype.kind not in "iufb":
        raise SchemaError(f"a map of {array.dtype} can't be shown on a scale; give numbers")
    check_times(array)
    frame_of(array)
    array = array.compute()
    first = number_layer(array.isel(time=0) if "time" in array.dims else array, cmap, clim)
    ends = (first.low, first.high) if fixed_scale(array) or clim is not None else spread_of(array.values)
    return _shown(lambda one: [number_layer(one, cmap, ends), *marks], array, title, static)


def _shown(layers: Callable[[xr.DataArray], Sequence[Layer]], array: xr.DataArray, title: str, static: bool) -> Any:
    """Draw each time of a map: one with the whole title, several under it."""
    several = array.sizes.get("time", 1) > 1
    maps = [
        Map(frame_of(one), tuple(layers(one)), label if several else joined(title, label))
        for label, one in by_time(array)
    ]
    return draw_static(maps, title) if static else draw(maps, title)


def _at(obj: Any, time: Any) -> Any:
    """Return one time of a dataset or a map; all of it if not told."""
    if time is None:
        return obj
    from tessera_xr.analysis.queries import matching_times

    if "time" not in obj.dims:
        raise SchemaError(f"time={time!r} can't be chosen: this map has no dimension `time`")
    found = matching_times(obj["time"].values, time)
    if len(found) != 1:
        from tessera_xr.analysis.queries import time_labels

        raise SchemaError(
            f"time={time!r} names {len(found)} times; choose one of {', '.join(time_labels(obj['time']))}"
        )
    return obj.isel(time=found[0])


def _variable(pred: xr.Dataset, name: str) -> xr.DataArray:
    if not isinstance(pred, xr.Dataset) or name not in pred.data_vars:
        there = list(map(str, pred.data_vars)) if isinstance(pred, xr.Dataset) else type(pred).__name__
        raise SchemaError(
            f"there is no `{name}` here, but {there}; emb.tessera.predict(head) makes it"
            + (", of heads that know probabilities" if name == "confidence" else "")
        )
    return pred[name]


def _query_marks(emb: xr.Dataset, query: Any, name: str, colour: str) -> list[Marks]:
    """Return the points of a query on the map, if it is points."""
    from tessera_xr.grid import geobox_of

    if query is None:
        return []
    box = geobox_of(emb)
    geometry = getattr(query, "geometry", None)
    if geometry is not None and hasattr(geometry, "geom_type"):
        if set(geometry.geom_type) != {"Point"}:
            return []
        places = geometry.to_crs(str(box.crs))
        x, y = places.x.to_numpy(), places.y.to_numpy()
    else:
        if isinstance(query, xr.Dataset | xr.DataArray):
            return []
        array = np.asarray(query, dtype=np.float64)
        if array.shape[-1] != 2:
            return []
        from pyproj import Transformer

        to_map = Transformer.from_crs("EPSG:4326", str(box.crs), always_xy=True)
        x, y = (np.asarray(v) for v in to_map.transform(*np.atleast_2d(array).T))
    return [Marks(x, y, name, colour, size=11)]
