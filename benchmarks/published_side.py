"""Runs where geotessera is: `python published_side.py STORE REPEATS` reads a store both ways and prints the times."""

from __future__ import annotations

import importlib.metadata
import json
import sys
import time

import numpy as np
import zarr
from geotessera import GeoTesseraZarr
from pyproj import Transformer

from tessera_xr.embedding.published.opening import open_published


def main(path: str, repeats: int) -> None:
    root = zarr.open_group(path, mode="r")
    name = next(iter(sorted(root.group_keys())))
    x, y = root[name]["x"][:], root[name]["y"][:]
    crs = root[name].attrs["proj:code"]
    degrees = Transformer.from_crs(crs, "EPSG:4326", always_xy=True)
    lon, _ = degrees.transform([x[0], x[-1]], [y[-1], y[0]])
    inside = len(x) // 8, len(y) // 8
    edges = (x[inside[0]], y[-inside[1]], x[-inside[0]], y[inside[1]])
    corners = degrees.transform([edges[0], edges[2]], [edges[1], edges[3]])
    box = (min(corners[0]), min(corners[1]), max(corners[0]), max(corners[1]))
    rng = np.random.default_rng(0)
    columns, lines = (rng.integers(i, len(a) - i, 100) for i, a in zip(inside, (x, y), strict=True))
    points = list(zip(*degrees.transform(x[columns], y[lines]), strict=True))
    year = int(np.asarray(root[name]["time"][:])[0])
    opened = open_published(box, year, store=path, progress=False)
    rectangle = tuple(float(v) for v in (opened.x[0], opened.y[-1], opened.x[-1], opened.y[0]))
    middle = (lon[0] + lon[-1]) / 2
    calls = {
        "region": (
            lambda: open_published(box, year, store=path, progress=False).tessera.dequantize().embeddings.values,
            lambda: GeoTesseraZarr(path).open_zone(lon=middle).tessera.read_region(rectangle, year)[0],
        ),
        "points": (
            lambda: open_published(points, year, store=path, progress=False).tessera.dequantize().embeddings.values,
            lambda: GeoTesseraZarr(path).sample_points(points, year),
        ),
    }
    found = {}
    for task, (ours, theirs) in calls.items():
        mine, other = ours(), theirs()
        ok = same(mine, np.asarray(other))
        times = [(clock(ours), clock(theirs)) for _ in range(repeats)]
        where = f"{opened.sizes['y']} x {opened.sizes['x']} pixels, " if task == "region" else ""
        note = f"{where}opening included"
        found[task] = {
            "ours": [t[0] for t in times], "theirs": [t[1] for t in times], "bytes": float(np.prod(mine.shape)),
            "version": importlib.metadata.version("geotessera"), "note": f"{note}; {ok}",
        }  # fmt: skip
    print(json.dumps(found))


def same(ours: np.ndarray, theirs: np.ndarray) -> str:
    """Say whether both found the same values; ours has bands first."""
    mine = np.moveaxis(ours, 0, -1) if ours.shape != theirs.shape else ours
    return (
        "the same values"
        if mine.shape == theirs.shape and np.allclose(mine, theirs, equal_nan=True)
        else "other values"
    )


def clock(call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
