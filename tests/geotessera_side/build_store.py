"""Write a store by geotessera's own tools: `python build_store.py STORE.zarr`, in its environment.

The embeddings are the real ones of the Caldor fire, of two years, as geotessera's pipeline takes them: a folder of
tiles of 0.1 degrees, int8 codes and scales, and their land masks. Ten pixels of Caldor are water and one was never
written, as happens between tiles; the rest of the tile has no scales, which geotessera stores as it does water.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import numpy as np
import pandas as pd
import rasterio
import zarr
from geotessera import zarr as builder
from geotessera.registry import tile_to_landmask_filename

import tessera_xr as txr

YEARS = (2020, 2022)
WATER = (slice(20, 22), slice(30, 35))  # rows and columns of Caldor
HOLE = (40, 12)
SHARD = 256


def main(path: str) -> None:
    """Write the store: geotessera's layout, its tiles and attributes, in shards of 256 pixels instead of 4096.

    A shard of 4096 takes gigabytes to write, and a process of its own; neither says more about the layout.
    """
    builder.SHARD_SIZE = SHARD
    builder._write_shards = write_here
    caldor = txr.tutorial.embeddings().sel(time=list(YEARS))
    lon, lat = centre(caldor)
    with TemporaryDirectory() as folder:
        source = builder.TileSource(f"{folder}/embeddings", f"{folder}/landmasks")
        write_tiles(source, caldor, lon, lat)
        registry = SimpleNamespace(available_landmasks=[(lon, lat)], _registry_gdf=inventory(lon, lat))
        builder.init_store(registry, path, list(YEARS), "0.11.0", "1.1")
        builder.fill_store(registry, path, source=source, workers=1)
    zone = zarr.open_group(path)["utm10"]
    row, column = (int(np.argmin(abs(zone[d][:] - float(caldor[d][i])))) for d, i in zip("yx", HOLE, strict=True))
    zone["scales"][:, row, column] = np.inf


def write_here(*, store, zone_group, shard_specs, depths, use_landmask, **_):
    """Write the shards one after another, by the same function that geotessera's workers call."""
    group = store.open_group(mode="r+", path=zone_group, zarr_format=3)
    for spec in shard_specs:
        builder._write_one_shard(spec, group, depths=depths, use_landmask=use_landmask)
    return len(shard_specs), set(), []


def centre(caldor) -> tuple[float, float]:
    """Return the centre of the tile that holds the middle of the sample, by geotessera's grid of 0.1 degrees."""
    west, south, east, north = caldor.odc.geobox.geographic_extent.boundingbox
    return tuple(round(math.floor(v * 10) / 10 + 0.05, 2) for v in ((west + east) / 2, (south + north) / 2))


def write_tiles(source, caldor, lon: float, lat: float) -> None:
    """Write the tile that holds the sample for each year, and its land mask."""
    tile = builder.project_tile(lon, lat)
    # a tile's pixels begin at the edge of the 10 m grid left of and above its corner
    left, top = math.floor(tile.transform.c / 10) * 10, math.ceil(tile.transform.f / 10) * 10
    row, column = round((top - 5 - float(caldor.y[0])) / 10), round((float(caldor.x[0]) - left - 5) / 10)
    inside = (slice(row, row + 64), slice(column, column + 64))
    land = np.ones((tile.height, tile.width), np.uint8)
    land[inside][WATER] = 0
    place = {"crs": f"EPSG:{tile.epsg}", "transform": tile.transform, "height": tile.height, "width": tile.width}
    Path(source.landmasks_root).mkdir()
    name = Path(source.landmasks_root) / tile_to_landmask_filename(lon, lat)
    with rasterio.open(name, "w", driver="GTiff", dtype="uint8", count=1, **place) as file:
        file.write(land, 1)
    for year in YEARS:
        one = caldor.sel(time=year)
        paths = source.embedding_locations(lon, lat, year)
        Path(paths[0]).parent.mkdir(parents=True)
        shape = (tile.height, tile.width)
        codes = np.lib.format.open_memmap(paths[0], mode="w+", dtype=np.int8, shape=(*shape, 128))
        scales = np.lib.format.open_memmap(paths[1], mode="w+", dtype=np.float32, shape=shape)
        codes[inside] = one["embeddings"].transpose("y", "x", "band").values
        scales[inside] = one["scales"].values


def inventory(lon: float, lat: float) -> pd.DataFrame:
    """Return the table by which geotessera knows its tiles."""
    rows = [(year, round(lon * 100), round(lat * 100)) for year in YEARS]
    index = pd.MultiIndex.from_tuples(rows, names=["year", "lon_i", "lat_i"])
    return pd.DataFrame({"grid_size": 1, "scales_size": 1}, index=index)


if __name__ == "__main__":
    main(sys.argv[1])
