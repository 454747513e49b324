"""The int8 maps that questions and heads are measured on: simulated, their variances spread like those of real ones."""

from __future__ import annotations

import numpy as np
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox
from scipy.ndimage import gaussian_filter

from tessera_xr.embedding.quantize import dequantize_arrays, quantize_arrays
from tessera_xr.embedding.schema import COUNTS, build_embeddings
from tessera_xr.grid import with_grid

BANDS, KINDS, TILE = 128, 24, 512
NOISE = 4


def simulated(size: int, n_years: int = 1, seed: int = 0) -> xr.Dataset:
    """Return a map of `size` x `size` pixels: 24 kinds of place in smooth patches; each year is another map.

    Above 512 pixels a tile is repeated, each pixel with noise of its own, made row by row: no float32 copy is needed.
    """
    rng = np.random.default_rng(seed)
    codes = np.empty((n_years, size, size, BANDS), np.int8)
    scales = np.empty((n_years, size, size), np.float32)
    n = -(-size // TILE)
    noise = rng.integers(-NOISE, NOISE, 4 * size * BANDS, dtype=np.int8, endpoint=True)
    for year in range(n_years):
        tile_codes, tile_scales = tile(min(size, TILE), rng)
        np.clip(tile_codes, NOISE - 127, 127 - NOISE, out=tile_codes)
        scales[year] = np.tile(tile_scales, (n, n))[:size, :size]
        for i in range(size):
            start = rng.integers(3 * size * BANDS)  # another stretch for each row: drawing them all takes a minute
            row = np.tile(tile_codes[i % TILE], (n, 1))[:size]
            codes[year, i] = row if n == 1 else row + noise[start : start + size * BANDS].reshape(size, BANDS)
    return as_embeddings(codes, scales)


def tile(size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return codes (size, size, band) and scales (size, size)."""
    kinds = np.argmax([gaussian_filter(rng.normal(size=(size, size)), size / 60) for _ in range(KINDS)], axis=0)
    axes = np.linalg.qr(rng.normal(size=(BANDS, BANDS)))[0] * np.arange(1, BANDS + 1) ** -0.9  # the variance decays
    centres = 6 * rng.normal(size=(KINDS, BANDS)) @ axes.T
    codes, scales = np.empty((size, size, BANDS), np.int8), np.empty((size, size), np.float32)
    for i in range(size):
        noise = 2 * rng.normal(size=(size, BANDS)) @ axes.T + 0.3 * rng.normal(size=(size, BANDS))
        codes[i], scales[i] = quantize_arrays((centres[kinds[i]] + noise).astype(np.float32))
    return codes, scales


def as_embeddings(codes: np.ndarray, scales: np.ndarray) -> xr.Dataset:
    """Return embeddings of codes (time, y, x, band) and scales (time, y, x), without a time if there is one only."""
    n_years, size = codes.shape[:2]
    dims = ("time", "y", "x") if n_years > 1 else ("y", "x")
    if n_years == 1:
        codes, scales = codes[0], scales[0]
    time = {"time": 2020 + np.arange(n_years)} if n_years > 1 else {}
    counts = {name: xr.DataArray(np.ones(scales.shape, np.uint16), dims=dims, coords=time) for name in COUNTS}
    found = counts | {"embeddings": xr.DataArray(codes, dims=(*dims, "band"), coords=time)}
    found |= {"scales": xr.DataArray(scales, dims=dims, coords=time)}
    box = GeoBox((size, size), Affine(10, 0, 5e5, 0, -10, 56e5), "EPSG:32631")
    like = with_grid(xr.Dataset({"a": (("y", "x"), np.zeros(box.shape, np.uint8))}), box)
    return build_embeddings(found, like, {"model": "simulated"})


def arrays(emb: xr.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Return codes (..., y, x, band) and scales (..., y, x)."""
    return emb["embeddings"].transpose(..., "y", "x", "band").values, emb["scales"].values


def float_values(emb: xr.Dataset) -> np.ndarray:
    """Return float32 values (pixels, band)."""
    return dequantize_arrays(*arrays(emb)).reshape(-1, BANDS)


def plainly(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Return float32 values as plain NumPy makes them."""
    return codes.astype(np.float32) * scales[..., None]
