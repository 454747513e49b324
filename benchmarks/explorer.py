"""How long the explorer takes to answer, in the kernel: `python -m benchmarks.explorer [--size 1024]`.

The map is the Caldor sample, tiled with noise to the size that is asked for. Each row is the median of repeats, each of
a question that wasn't asked before. What a browser and a network add is not in it.
"""

import argparse
import statistics
import time

import numpy as np
import xarray as xr

import tessera_xr as txr
from tessera_xr.grid import with_grid
from tessera_xr.views.explorer import Explorer
from tessera_xr.views.session import Session


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    emb = tiled(options.size)
    warm(Explorer(Session(emb.isel(y=slice(0, 64), x=slice(0, 64))), background=False))
    opened = timed(lambda: Explorer(Session(emb), background=False), 2)
    explorer = Explorer(Session(emb), background=False)
    rng = np.random.default_rng(0)

    def pixel() -> tuple[float, float]:
        return explorer.session.place_of(tuple(rng.integers(0, options.size, 2)))

    click = timed(lambda: explorer.click(*pixel()), options.repeats)
    megabytes = len(explorer.view.overlays["similarity"].url) / 1e6
    threshold = timed(lambda: slide(explorer, rng.uniform(0.1, 0.9)), options.repeats)
    teach(explorer)
    refit = timed(lambda: (edit(explorer, pixel()), explorer.teaching.fit()), options.repeats)
    inspect = timed(lambda: explorer.inspector.inspect(*pixel()), options.repeats)
    assert explorer.session.errors == [], explorer.session.errors
    print(f"{options.size} x {options.size} int8 embeddings, ms in the kernel (limit at 1024 x 1024)")
    rows = [("open", opened, 3000), ("click to new overlay", click, 120), ("threshold", threshold, 40)]
    rows += [("refit 200 labels and the new map", refit, 2000), ("inspect a pixel", inspect, None)]
    for name, seconds, limit in rows:
        print(f"  {name:34} {1e3 * seconds:7.0f}   {'' if limit is None else f'({limit})'}")
    print(f"  {'overlay, MB':34} {megabytes:7.2f}   (1)")


def tiled(size: int) -> xr.Dataset:
    """Return the sample of 2022 repeated to a map of size x size, each pixel a little different."""
    emb = txr.tutorial.embeddings().sel(time=2022)
    n = -(-size // 64)
    rng = np.random.default_rng(0)
    codes = np.tile(emb["embeddings"].transpose("y", "x", "band").values, (n, n, 1))[:size, :size].astype(np.int16)
    for row in codes:
        row += rng.integers(-6, 7, row.shape, dtype=np.int16)
    codes = np.clip(codes, -127, 127).astype(np.int8)
    scales = np.tile(emb["scales"].values, (n, n))[:size, :size]
    box = emb.odc.geobox
    grid = type(box)((size, size), box.transform, box.crs)
    made = xr.Dataset({"embeddings": (("y", "x", "band"), codes), "scales": (("y", "x"), scales)})
    made = made.assign_coords(band=emb["band"]).transpose("band", "y", "x").assign_attrs(emb.attrs)
    return with_grid(made, grid)


def warm(explorer: Explorer) -> None:
    """Compile what is compiled when first used."""
    explorer.click(*explorer.session.place_of((3, 3)))
    teach(explorer, 20)
    explorer.teaching.fit()
    explorer.inspector.inspect(*explorer.session.place_of((3, 3)))


def teach(explorer: Explorer, n: int = 200) -> None:
    session, rng = explorer.session, np.random.default_rng(1)
    height, width = session.box.shape
    lost = np.tile(txr.tutorial.labels().lossyear.values == 21, (-(-height // 64), -(-width // 64)))
    for value, mask in (("lost", lost), ("kept", ~lost)):
        session.add_class(value)
        places = np.argwhere(mask[:height, :width])
        for row, column in places[rng.choice(len(places), n // 2, replace=False)]:
            session.label(session.place_of((int(row), int(column))), value)


def edit(explorer: Explorer, place: tuple[float, float]) -> None:
    explorer.session.label(place, "kept")


def slide(explorer: Explorer, value: float) -> None:
    explorer.asking.threshold.value = value


def timed(work, repeats: int) -> float:
    """Return the median seconds of a call."""
    took = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        took.append(time.perf_counter() - start)
    return statistics.median(took)


if __name__ == "__main__":
    main()
