"""How long the explorer takes to answer, in the kernel: `python -m benchmarks explorer`.

The map is the Caldor sample, tiled with noise. Each row is of questions that weren't asked before. What a browser and a
network add is not in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import xarray as xr

import tessera_xr as txr
from benchmarks.measure import Settings, compare
from benchmarks.rows import Row, Want
from tessera_xr.grid import with_grid
from tessera_xr.views.explorer import Explorer
from tessera_xr.views.session import Session

GROUP, SIZED = "explorer", True
LIMITS = {"open": 3.0, "click": 0.12, "threshold": 0.04, "refit": 2.0}
"""Seconds, at 1024 x 1024."""


def rows(size: int, settings: Settings) -> Iterator[Row]:
    """Yield a row for each thing that a hand does."""
    why = settings.lacks_memory(2.6 * size * size * 128)
    if why:
        yield Row(GROUP, "all tasks", size, skipped=why)
        return
    emb = tiled(size)
    warm(Explorer(Session(emb.isel(y=slice(0, 64), x=slice(0, 64))), background=False))
    yield from measured(
        "open, embeddings in memory", "open", size, lambda: Explorer(Session(emb), background=False), settings
    )
    explorer = Explorer(Session(emb), background=False)
    rng = np.random.default_rng(0)

    def pixel() -> tuple[float, float]:
        return explorer.session.place_of(tuple(rng.integers(0, size, 2)))

    click = "click to new overlay (similarity, colour, warp, encode)"
    for row in measured(click, "click", size, lambda: explorer.click(*pixel()), settings):
        yield replace(row, note=f"overlay of {len(explorer.view.overlays['similarity'].url) / 1e6:.2f} MB, limit 1 MB")
    yield from measured("threshold: the same pixels in new colours", "threshold", size,
                        lambda: slide(explorer, rng.uniform(0.1, 0.9)), settings)  # fmt: skip
    teach(explorer)
    yield from measured("refit on 200 labels, and the new map", "refit", size,
                        lambda: (edit(explorer, pixel()), explorer.teaching.fit()), settings)  # fmt: skip
    yield from measured("everything about a pixel, with its chart", "", size,
                        lambda: explorer.inspector.inspect(*pixel()), settings)  # fmt: skip
    assert explorer.session.errors == [], explorer.session.errors


def measured(task: str, limit: str, size: int, call: Callable[[], Any], settings: Settings) -> list[Row]:
    """Measure one; limits hold up to 1024 x 1024."""
    want = Want("seconds", LIMITS[limit]) if limit and size <= 1024 else None
    return compare(Row(GROUP, task, size, want=want), call, [], settings)


def tiled(size: int) -> xr.Dataset:
    """Return the sample of 2022 repeated to a map of size x size, each pixel a little different."""
    emb = txr.tutorial.embeddings().sel(time=2022)
    n = -(-size // 64)
    rng = np.random.default_rng(0)
    sample = emb["embeddings"].transpose("y", "x", "band").values
    codes = np.empty((size, size, sample.shape[-1]), dtype=np.int8)
    for i in range(size):
        row = np.tile(sample[i % 64], (n, 1))[:size].astype(np.int16)
        codes[i] = np.clip(row + rng.integers(-6, 7, row.shape, dtype=np.int16), -127, 127)
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
