"""Similarity, places and search, beside what memory allows, plain NumPy, xarray and zeit-cdts."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from benchmarks import machine, peers
from benchmarks.maps import BANDS, arrays, plainly
from benchmarks.measure import Beside, Settings, compare
from benchmarks.rows import Row, Want

INDEX_SECONDS = 6e-5
"""A pixel takes about so long to enter an index; told again by each row."""


def rows(one: xr.Dataset, _: xr.Dataset, values: np.ndarray | None, why: str, settings: Settings) -> Iterator[Row]:
    """Yield a row for each task; `why` tells why there are no float32 values."""
    from tessera_xr.analysis.places import find_similar
    from tessera_xr.analysis.similarity import similarity

    size, n = one.sizes["y"], one.sizes["y"] * one.sizes["x"]
    codes, scales = arrays(one)
    query = np.random.default_rng(1).normal(size=BANDS).astype(np.float32)
    numpy_why = settings.lacks_memory(8.5 * codes.size)
    row = Row("analysis", "int8 cosine of every pixel", size, operations=4.0 * n * BANDS, bytes=n * (BANDS + 8))
    beside = [
        Beside("reading the codes once", machine.reader(codes, machine.cores()), Want("longer", 4)),
        Beside("plain NumPy from int8", None if numpy_why else lambda: plain_cosine(codes, scales, query),
               Want("faster", 5), numpy_why),
        *xarray_peers(one, values, why, query, settings),
    ]  # fmt: skip
    yield from compare(row, lambda: similarity(one, query), beside, settings)
    row = replace(row, task="find_similar, 20 places 100 m apart")
    alone = [Beside("similarity alone", lambda: similarity(one, query), Want("longer", 1.5))]
    yield from compare(row, lambda: find_similar(one, query, 20), alone, settings)
    several = {"negative": -query, "combine": "max"}
    row = replace(row, task="two examples and a counter-example, combine='max'", operations=8.0 * n * BANDS)
    pair = np.stack([query, query[::-1]])
    yield from compare(row, lambda: similarity(one, pair, **several), [replace(alone[0], want=None)], settings)
    row = replace(row, task="Mahalanobis, covariance fitted too", operations=2.0 * n * BANDS * BANDS)
    product = [float_product(values, BANDS, why, Want("longer", 3))]
    yield from compare(row, lambda: similarity(one, query, metric="mahalanobis"), product, settings)
    yield from search(one, settings)


def float_product(values: np.ndarray | None, width: int, why: str, want: Want | None) -> Beside:
    """Return the float32 product of all pixels with a matrix (128, width), into fresh memory each time."""
    name = f"one float32 product, {width} wide"
    if values is None:
        return Beside(name, None, want, why)
    matrix = np.random.default_rng(2).normal(size=(BANDS, width)).astype(np.float32)
    return Beside(name, lambda: values @ matrix, want)


def plain_cosine(codes: np.ndarray, scales: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Dequantise, normalise, multiply."""
    values = plainly(codes, scales)
    values /= np.linalg.norm(values, axis=-1, keepdims=True)
    return values @ (query / np.linalg.norm(query))


def xarray_peers(
    one: xr.Dataset, values: np.ndarray | None, why: str, query: np.ndarray, settings: Settings
) -> list[Beside]:
    """Return plain xarray, and zeit-cdts, both on float32 values made beforehand."""
    names = ("xarray on float32", "zeit-cdts 'similarity' on float32")
    why = why or settings.lacks_memory(12.0 * values.size)  # two products as large as the values
    if values is None or why:
        return [Beside(name, None, skipped=why) for name in names]
    maps = xr.DataArray(
        np.moveaxis(values.reshape(one.sizes["y"], one.sizes["x"], BANDS), -1, 0), dims=("band", "y", "x"),
        coords={"band": np.arange(BANDS), "y": one["y"].values, "x": one["x"].values},
    )  # fmt: skip
    vector = xr.DataArray(query, dims="band", coords={"band": maps["band"]})
    zeit, missing = peers.zeit()
    return [
        Beside(names[0], lambda: xr.dot(maps, vector) / np.sqrt((maps * maps).sum("band"))),
        Beside(names[1], None if missing else lambda: zeit.similarity(maps, query).values, skipped=missing),
    ]


def search(one: xr.Dataset, settings: Settings) -> Iterator[Row]:
    """Measure approximate search in an index of one map, a quarter of each side, against exact search."""
    from tessera_xr.analysis.index import SearchIndex

    side = one.sizes["y"] // 4
    task, part = "SearchIndex.search, a quarter of each side", one.isel(y=slice(side), x=slice(side))
    why = settings.takes_long(INDEX_SECONDS * side * side)
    if why:
        yield Row("analysis", task, side, skipped=f"the index {why}")
        return
    query = arrays(part)[0].reshape(-1, BANDS)[side * side // 3]
    with tempfile.TemporaryDirectory() as folder:
        built: list[Any] = []
        seconds = machine.clock(lambda: built.append(SearchIndex.build(part, Path(folder) / "index")))
        index = built[0]
        calls: list[Callable[[], Any]] = [lambda exact=e: index.search(query, 20, exact=exact) for e in (False, True)]
        note = f"{len(index):,} pixels, built in {seconds:.1f} s; recall at 10: {index.recall(10, 50):.3f}"
        row = Row("analysis", task, side, note=note)
        yield from compare(row, calls[0], [Beside("exact search", calls[1])], settings)
