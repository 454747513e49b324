"""Pixels drawn at random: what anything is fitted to, so that a map of any size takes a moment."""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np
import xarray as xr

from tessera_xr.embedding.quantize import dequantize
from tessera_xr.embedding.schema import EMBEDDINGS, SCALES, has_data

FIT_PIXELS = 20_000
"""Enough for the mean and covariance of some hundred dimensions, and for percentiles of what follows from them."""
_PIECE = 65_536


def draw_places(mask: xr.DataArray, n_pixels: int, seed: int) -> dict[Hashable, xr.DataArray]:
    """Return where at most `n_pixels` of the pixels in a mask are, by dimension, (pixel,) each, in their order.

    Holds the mask, a byte for each pixel, of lazy ones too, and no position of those that aren't drawn.
    """
    held = mask.values.ravel()
    n_held = int(np.count_nonzero(held))
    rng = np.random.default_rng(seed)
    few = n_held <= n_pixels
    ranks = np.arange(n_held) if few else np.sort(rng.choice(n_held, n_pixels, replace=False, shuffle=False))
    where, before = [], 0
    for start in range(0, len(held), _PIECE):
        inside = np.flatnonzero(held[start : start + _PIECE])
        low, high = np.searchsorted(ranks, [before, before + len(inside)])
        where.append(start + inside[ranks[low:high] - before])
        before += len(inside)
    places = np.unravel_index(np.concatenate(where) if where else np.empty(0, np.intp), mask.shape)
    return {d: xr.DataArray(p, dims="pixel") for d, p in zip(mask.dims, places, strict=True)}


def draw_pixels(emb: xr.Dataset, n_pixels: int, seed: int) -> xr.DataArray:
    """Return at most `n_pixels` embeddings with data, (pixel, band) float32, with the y, x and time of each."""
    first = ("time", "y", "x")
    dims = sorted((d for d in emb[EMBEDDINGS].dims if d != "band"), key=lambda d: first.index(d) if d in first else 3)
    index = draw_places(has_data(emb).transpose(*dims), n_pixels, seed)
    # in the order of memory, a pixel is one read
    stored = emb[[EMBEDDINGS, *([SCALES] if emb[EMBEDDINGS].dtype == np.int8 else [])]].transpose(*dims, "band")
    drawn = dequantize(stored.isel(index))[EMBEDDINGS].transpose("pixel", "band")
    kept = {"band", *first, *dims}
    return drawn.drop_vars([c for c in drawn.coords if c not in kept]).astype(np.float32).compute()
