"""Stores of published embeddings for tests, made with Zarr alone, as SPEC's section 7 has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import zarr
from affine import Affine
from odc.geo.geobox import GeoBox
from zarr.codecs import BloscCodec

YEARS = (2023, 2024)


def make_arrays(shape: tuple[int, int], n_years: int = 2, n_bands: int = 128, seed: int = 0) -> dict[str, np.ndarray]:
    """Random codes (time, band, y, x), whose largest is 127, and scales (time, y, x)."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(-126, 127, (n_years, n_bands, *shape), dtype=np.int8)
    codes[:, 0] = 127
    return {"embeddings": codes, "scales": rng.uniform(0.005, 0.05, (n_years, *shape)).astype(np.float32)}


def zone_box(zone: int, left: float, top: float, shape: tuple[int, int], res: float = 10.0) -> GeoBox:
    """The grid of a zone, in its northern CRS."""
    return GeoBox(shape, Affine(res, 0, left, 0, -res, top), f"EPSG:{32600 + zone}")


def write_store(
    path: Path | Any,
    zones: dict[GeoBox, dict[str, np.ndarray]],
    years: tuple[int, ...] = YEARS,
    *,
    inner: int = 32,
    shard: int | None = 64,
    depths: tuple[int, ...] = (),
    root_attrs: dict[str, Any] | None = None,
    zone_attrs: dict[str, Any] | None = None,
    consolidate: bool = True,
    compressor: Any = "blosc",
    **changes: Any,
) -> Path | Any:
    """Write a store of the published layout; `changes` are options of its embeddings that a test wants otherwise."""
    root = zarr.open_group(path, mode="w", zarr_format=3)
    root.attrs.update({"geoemb:type": "pixel", "geoemb:dimensions": 128} | (root_attrs or {}))
    for box, arrays in zones.items():
        group = root.create_group(f"utm{box.crs.to_epsg() - 32600:02}")
        group.attrs.update(attributes(box) | (zone_attrs or {}))
        for name, values in _all(arrays, depths).items():
            codec = BloscCodec(typesize=values.dtype.itemsize, cname="zstd", clevel=1, shuffle="shuffle")
            bands = values.shape[1:2] if values.ndim == 4 else ()
            options: dict[str, Any] = {
                "shape": values.shape,
                "dtype": values.dtype,
                "chunks": (1, *bands, inner, inner),
                "shards": None if shard is None else (1, *bands, shard, shard),
                "fill_value": np.inf if name == "scales" else 0,
                "compressors": codec if compressor == "blosc" else compressor,
                "dimension_names": ("time", *((f"band{name[10:]}",) if bands else ()), "y", "x"),
            }
            array = group.create_array(name, **options | (changes if name == "embeddings" else {}))
            array[...] = values
        write_coordinates(group, box, years, depths)
    if consolidate:
        zarr.consolidate_metadata(root.store)
    return path


def _all(arrays: dict[str, np.ndarray], depths: tuple[int, ...]) -> dict[str, np.ndarray]:
    return arrays | {f"embeddings_d{d}": arrays["embeddings"][:, :d] for d in depths}


def attributes(box: GeoBox) -> dict[str, Any]:
    """Attributes of a zone."""
    return {
        "proj:code": f"EPSG:{box.crs.to_epsg()}",
        "spatial:transform": list(box.transform)[:6],
        "spatial:shape": list(box.shape),
        "spatial:bbox": list(box.boundingbox.bbox),
    }


def write_coordinates(group: Any, box: GeoBox, years: tuple[int, ...], depths: tuple[int, ...] = ()) -> None:
    """Write time, band, y and x."""
    t = box.transform
    coords = {
        "time": np.array(years, np.int32),
        "band": np.arange(128, dtype=np.int32),
        "y": t.f + t.e * (np.arange(box.shape[0]) + 0.5),
        "x": t.c + t.a * (np.arange(box.shape[1]) + 0.5),
    } | {f"band_d{d}": np.arange(d, dtype=np.int32) for d in depths}
    for name, values in coords.items():
        array = group.create_array(name, shape=values.shape, dtype=values.dtype, dimension_names=(name,), fill_value=0)
        array[:] = values
