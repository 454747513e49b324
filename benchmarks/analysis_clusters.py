"""How fast clusters, components and segments are on an int8 map: `python -m benchmarks.analysis_clusters [SIZE]`.

The map is simulated: 24 kinds of place in smooth patches, with a spectrum of variances like that of real embeddings.
Ours and the peer run in turn, and ratios are medians of the rounds, so that a machine that slows down slows both. The
peers start from float32 values, made beforehand at no charge. Extra memory is the peak of what NumPy allocates
meanwhile, results included.
"""

from __future__ import annotations

import statistics
import sys
import time
import tracemalloc
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox
from scipy.ndimage import gaussian_filter

from tessera_xr.analysis.clustering import Clusters, fit_clusters
from tessera_xr.analysis.components import fit_components
from tessera_xr.analysis.segments import describe_segments, segment
from tessera_xr.embedding.quantize import _dequantize, _quantize
from tessera_xr.embedding.schema import COUNTS, build_embeddings
from tessera_xr.grid import with_grid

BANDS, KINDS, K = 128, 24, 20


def rows(size: int = 1024, rounds: int = 5) -> list[dict[str, Any]]:
    """Return a row for each task: seconds, those of its peer, their ratio, what is wanted of it, extra memory."""
    emb = simulated(size)
    codes, scales = emb["embeddings"].transpose("y", "x", "band").values, emb["scales"].values
    values = _dequantize(codes, scales).reshape(-1, BANDS)
    return [*cluster_rows(emb, values, rounds), *component_rows(emb, values, rounds), segment_row(emb)]


def simulated(size: int, seed: int = 0) -> xr.Dataset:
    """Make an int8 map, row by row, so that it needs no float32 copy of itself."""
    rng = np.random.default_rng(seed)
    kinds = np.argmax([gaussian_filter(rng.normal(size=(size, size)), size / 60) for _ in range(KINDS)], axis=0)
    axes = np.linalg.qr(rng.normal(size=(BANDS, BANDS)))[0] * np.arange(1, BANDS + 1) ** -0.9  # the variance decays
    centres = 6 * rng.normal(size=(KINDS, BANDS)) @ axes.T
    codes, scales = np.empty((size, size, BANDS), np.int8), np.empty((size, size), np.float32)
    for i in range(size):
        noise = 2 * rng.normal(size=(size, BANDS)) @ axes.T + 0.3 * rng.normal(size=(size, BANDS))
        codes[i], scales[i] = _quantize((centres[kinds[i]] + noise).astype(np.float32))
    dims = ("y", "x")
    variables = {name: xr.DataArray(np.ones((size, size), np.uint16), dims=dims) for name in COUNTS}
    variables |= {"embeddings": xr.DataArray(codes, dims=(*dims, "band")), "scales": xr.DataArray(scales, dims=dims)}
    box = GeoBox((size, size), Affine(10, 0, 5e5, 0, -10, 56e5), "EPSG:32631")
    like = with_grid(xr.Dataset({"a": (dims, np.zeros(box.shape, np.uint8))}), box)
    return build_embeddings(variables, like, {"model": "simulated"})


def cluster_rows(emb: xr.Dataset, values: np.ndarray, rounds: int) -> list[dict[str, Any]]:
    """Time k-means of every pixel and compare the inertia; a seed a round, for each finds another optimum."""
    both_ways(emb, values, 0)  # compiles, and warms up
    times, inertias = zip(*(both_ways(emb, values, seed) for seed in range(rounds)), strict=True)
    row = compared(f"k-means, k = {K}, of all pixels", times, "MiniBatchKMeans on all", "peer/ours", "at least 4")
    row["peak_mb"] = extra_mb(lambda: predicted(emb, 0))
    clusters = fit_clusters(emb, K)
    only = [timed(lambda: clusters.predict(emb))[1] for _ in range(rounds)]
    ratio = statistics.median(a / b for a, b in inertias)
    quality = {"task": "inertia of the same", "ratio": ratio, "ratio_is": "ours/peer", "wanted": "at most 1.01"}
    quality |= {"peer": "MiniBatchKMeans", "seconds": np.nan, "peer_seconds": np.nan, "peak_mb": np.nan}
    alone = {"task": "of which prediction", "seconds": statistics.median(only), "peer": "", "peer_seconds": np.nan}
    alone |= {"ratio": np.nan, "ratio_is": "", "wanted": "", "peak_mb": extra_mb(lambda: clusters.predict(emb))}
    return [row, alone, quality]


def both_ways(emb: xr.Dataset, values: np.ndarray, seed: int) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return the seconds and the inertias of ours and of the peer."""
    from sklearn.cluster import MiniBatchKMeans

    clusters, ours = timed(lambda: predicted(emb, seed))
    peer, theirs = timed(lambda: MiniBatchKMeans(K, random_state=seed).fit(values))
    return (ours, theirs), (inertia(clusters, emb), nearest_inertia(values, peer.cluster_centers_))


def predicted(emb: xr.Dataset, seed: int) -> Clusters:
    clusters = fit_clusters(emb, K, seed=seed)
    clusters.predict(emb)
    return clusters


def inertia(clusters: Clusters, emb: xr.Dataset) -> float:
    table = clusters.describe(emb)
    return float((table["pixels"] * table["spread"] ** 2).sum())


def nearest_inertia(values: np.ndarray, centres: np.ndarray) -> float:
    """Return the inertia of all pixels about the nearest centres."""
    total = 0.0
    for part in np.array_split(values, 64):
        away = (part**2).sum(1)[:, None] - 2 * part @ centres.T + (centres**2).sum(1)
        total += float(away.min(axis=1).sum(dtype=np.float64))
    return total


def component_rows(emb: xr.Dataset, values: np.ndarray, rounds: int) -> list[dict[str, Any]]:
    """Transform every pixel, against the float32 matrix product of the same size."""
    found = [component_row(emb, values, n, rounds) for n in (3, BANDS)]
    _, seconds = timed(lambda: fit_components(emb))
    fit = {"task": "fit of 3 components", "seconds": seconds, "peer": "", "peer_seconds": np.nan, "ratio": np.nan}
    return [*found, fit | {"ratio_is": "", "wanted": "", "peak_mb": extra_mb(lambda: fit_components(emb))}]


def component_row(emb: xr.Dataset, values: np.ndarray, n: int, rounds: int) -> dict[str, Any]:
    fitted = fit_components(emb, n)
    vectors = np.ascontiguousarray(fitted.vectors.values.T)
    fitted.transform(emb)
    times = [(timed(lambda: fitted.transform(emb))[1], timed(lambda: values @ vectors)[1]) for _ in range(rounds)]
    row = compared(f"{n} components of all pixels", times, "float32 matrix product", "ours/floor", "at most 3")
    return row | {"peak_mb": extra_mb(lambda: fitted.transform(emb))}


def segment_row(emb: xr.Dataset) -> dict[str, Any]:
    """Cut a quarter of each side into segments and describe them."""
    part = emb.isel(y=slice(emb.sizes["y"] // 4), x=slice(emb.sizes["x"] // 4))
    _, seconds = timed(lambda: describe_segments(part, segment(part)))
    row = {"task": f"segments and statistics of {part.sizes['y']} x {part.sizes['x']}", "seconds": seconds, "peer": ""}
    peak = extra_mb(lambda: describe_segments(part, segment(part)))
    return row | {"peer_seconds": np.nan, "ratio": np.nan, "ratio_is": "", "wanted": "", "peak_mb": peak}


def compared(task: str, times: Sequence[tuple[float, float]], peer: str, kind: str, wanted: str) -> dict[str, Any]:
    ours, theirs = (statistics.median(t[i] for t in times) for i in (0, 1))
    ratio = statistics.median(b / a if kind == "peer/ours" else a / b for a, b in times)
    row = {"task": task, "seconds": ours, "peer": peer, "peer_seconds": theirs, "ratio": ratio}
    return row | {"ratio_is": kind, "wanted": wanted}


def timed(function: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    result = function()
    return result, time.perf_counter() - start


def extra_mb(function: Callable[[], Any]) -> float:
    tracemalloc.start()
    function()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 1e6


def main() -> None:
    warnings.simplefilter("ignore", category=FutureWarning)
    size = int(sys.argv[1]) if len(sys.argv) > 1 else 1024
    print(f"{size} x {size} x {BANDS} int8: codes of {size * size * BANDS / 1e6:.0f} MB")
    print(f"{'task':40} {'s':>7} {'peer s':>7} {'ratio':>6}  {'which':10} {'wanted':12} {'extra MB':>8}  peer")
    for row in rows(size):
        print(
            f"{row['task']:40} {row['seconds']:7.3f} {row['peer_seconds']:7.3f} {row['ratio']:6.3g}  "
            f"{row['ratio_is']:10} {row['wanted']:12} {row['peak_mb']:8.1f}  {row['peer']}"
        )


if __name__ == "__main__":
    main()
