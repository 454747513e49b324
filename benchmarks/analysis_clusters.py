"""Clusters, components and segments, beside scikit-learn and the product that they can't do without."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import xarray as xr

from benchmarks import machine
from benchmarks.analysis_similarity import float_product
from benchmarks.maps import BANDS
from benchmarks.measure import Beside, Settings, compare
from benchmarks.rows import Row, Want
from tessera_xr.analysis.clustering import Clusters, fit_clusters
from tessera_xr.analysis.components import fit_components
from tessera_xr.analysis.segments import describe_segments, segment

K = 20
PEER_SECONDS = 1.2e-5
"""MiniBatchKMeans takes about so long for a pixel."""


def rows(one: xr.Dataset, _: xr.Dataset, values: np.ndarray | None, why: str, settings: Settings) -> Iterator[Row]:
    """Yield a row for each task; `why` tells why there are no float32 values."""
    yield from cluster_rows(one, values, why, settings)
    yield from component_rows(one, values, why, settings)
    yield segment_row(one, settings)


def cluster_rows(one: xr.Dataset, values: np.ndarray | None, why: str, settings: Settings) -> Iterator[Row]:
    """Time k-means of every pixel and compare the inertia; a seed a round, for each finds another optimum."""
    from sklearn.cluster import MiniBatchKMeans

    size, n = one.sizes["y"], one.sizes["y"] * one.sizes["x"]
    why = why or settings.takes_long(PEER_SECONDS * n)
    ours: list[float] = []
    theirs: list[float] = []
    seeds = iter(range(1000)), iter(range(1000))

    def mine() -> None:
        ours.append(inertia(predicted(one, next(seeds[0])), one))

    def peer() -> None:
        fitted = MiniBatchKMeans(K, random_state=next(seeds[1])).fit(values)
        theirs.append(nearest_inertia(values, fitted.cluster_centers_))

    # at least one assignment of every pixel
    row = Row("analysis", f"k-means, k = {K}, of all pixels", size, operations=2.0 * n * BANDS * K, bytes=n * BANDS)
    clusters = predicted(one, 0)
    fitting = [Beside("MiniBatchKMeans on all", None if why else lambda: MiniBatchKMeans(K, random_state=0).fit(values),
                      Want("faster", 4), why)]  # fmt: skip
    found = compare(row, lambda: predicted(one, 0), fitting, settings)
    if not why:
        for _round in range(min(settings.repeats, 2)):
            mine()
            peer()
        ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
        found = [replace(r, note=f"inertia {ratio:.3f} of its, wanted at most 1.01") for r in found]
    yield from found
    yield from compare(replace(row, task="of which prediction"), lambda: clusters.predict(one), [], settings)


def predicted(emb: xr.Dataset, seed: int) -> Clusters:
    clusters = fit_clusters(emb, K, seed=seed)
    clusters.predict(emb)
    return clusters


def inertia(clusters: Clusters, emb: xr.Dataset) -> float:
    table = clusters.describe(emb)
    return float((table["pixels"] * table["spread"] ** 2).sum())


def nearest_inertia(values: np.ndarray | None, centres: np.ndarray) -> float:
    """Return the inertia of all pixels about the nearest centres."""
    assert values is not None
    total = 0.0
    for part in np.array_split(values, 64):
        away = (part**2).sum(1)[:, None] - 2 * part @ centres.T + (centres**2).sum(1)
        total += float(away.min(axis=1).sum(dtype=np.float64))
    return total


def component_rows(one: xr.Dataset, values: np.ndarray | None, why: str, settings: Settings) -> Iterator[Row]:
    """Transform every pixel, beside the float32 product of the same size."""
    size, n = one.sizes["y"], one.sizes["y"] * one.sizes["x"]
    for width in (3, BANDS):
        row = Row("analysis", f"{width} components of all pixels", size)
        too_large = settings.lacks_memory(4.2 * n * width)
        if too_large:
            yield replace(row, skipped=too_large)
            continue
        fitted = fit_components(one, width)
        row = replace(row, operations=2.0 * n * BANDS * width, bytes=n * (BANDS + 4 + 4 * width))
        product = float_product(values, width, why or settings.lacks_memory(8.4 * n * width), Want("longer", 3))
        yield from compare(row, lambda: fitted.transform(one), [product], settings)  # noqa: B023
    row = Row("analysis", "fit of 3 components", size, bytes=n * BANDS)
    too_large = why or settings.lacks_memory(4.2 * n * BANDS)
    beside = [Beside("scikit-learn's PCA on all", None if too_large else lambda: pca(values), skipped=too_large)]
    yield from compare(row, lambda: fit_components(one), beside, settings)


def pca(values: np.ndarray | None) -> None:
    from sklearn.decomposition import PCA

    PCA(3, svd_solver="covariance_eigh").fit(values)


def segment_row(one: xr.Dataset, settings: Settings) -> Row:
    """Cut a quarter of each side into segments and describe them."""
    side = one.sizes["y"] // 4
    part = one.isel(y=slice(side), x=slice(side))
    row = Row("analysis", "segments and their statistics, a quarter of each side", side)
    small = part.isel(y=slice(64), x=slice(64))
    seconds = machine.clock(lambda: describe_segments(small, segment(small)))
    seconds = machine.clock(lambda: describe_segments(small, segment(small)))
    why = settings.takes_long(seconds * (side / min(side, 64)) ** 2)
    if why:
        return replace(row, skipped=why)
    return compare(row, lambda: describe_segments(part, segment(part)), [], settings)[0]
