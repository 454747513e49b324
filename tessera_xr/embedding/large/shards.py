"""One group of a Zarr store for one area: made empty, written a region at a time, held against checksums."""

from __future__ import annotations

import os
import warnings
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xarray as xr

from tessera_xr.embedding.large.regions import INNER, AreaPlan, Region
from tessera_xr.embedding.schema import COUNTS, EMBEDDINGS, SCALES

VARIABLES = (EMBEDDINGS, SCALES, *COUNTS)
"""What a region holds, a shard of each."""
PROGRESS = "tessera_xr_complete"
"""Attribute of a store that isn't finished yet, False then; gone when it is."""
_COMPRESSION = 1  # codes are close to noise: more effort gains nothing

Sum = tuple[int, int]
"""Size and CRC-32 of a file."""


def create_store(folder: Path, template: xr.Dataset, plan: AreaPlan) -> None:
    """Write the metadata and coordinates of a lazy Embeddings dataset, every value no data yet."""
    from zarr.codecs import ZstdCodec

    encoding: dict[str, dict[str, Any]] = {}
    for name in VARIABLES:
        sides = {"time": 1, "band": plan.dims}
        inner = tuple(sides.get(str(d), INNER) for d in template[name].dims)
        shard = tuple((sides | {"y": plan.region[0], "x": plan.region[1]})[str(d)] for d in template[name].dims)
        # the checksum lets any reader of the store notice a damaged chunk
        codec = ZstdCodec(level=_COMPRESSION, checksum=True)
        encoding[name] = {"chunks": inner, "shards": shard, "compressors": [codec]}
    encoding[EMBEDDINGS]["fill_value"] = 0
    unfinished = template.assign_attrs({PROGRESS: False})
    unfinished.to_zarr(
        folder, mode="w-", compute=False, encoding=encoding, zarr_format=3, consolidated=False, safe_chunks=False
    )


def write_region(folder: Path, region: Region, result: xr.Dataset) -> list[Sum]:
    """Write a region, and return the size and checksum of each of its files once they are on the disk.

    Parameters
    ----------
    folder : Path
        Of the group.
    region : Region
    result : Dataset
        Its embeddings, without `time`.

    Returns
    -------
    list of (int, int)
        In the order of `VARIABLES`.
    """
    import zarr

    sums = []
    for name in VARIABLES:
        array = zarr.open_array(folder / name, mode="r+").with_config({"write_empty_chunks": True})
        timed = len(array.shape) > result[name].ndim
        file = shard_file(folder, name, region, timed=timed)
        file.unlink(missing_ok=True)  # else a damaged shard at the edge would be read, to be merged with
        band = (slice(None),) if "band" in result[name].dims else ()
        values = result[name].transpose(*(d for d in ("band", "y", "x") if d in result[name].dims)).values
        index = ((region.time,) if timed else ()) + (*band, region.y, region.x)
        array[index] = values
        _flush(file)
        sums.append(sum_file(file))
    return sums


def shard_file(folder: Path, name: str, region: Region, *, timed: bool) -> Path:
    """Return the file of one variable of a region."""
    places = [*([region.time] if timed else []), *([0] if name == EMBEDDINGS else []), region.row, region.column]
    return folder.joinpath(name, "c", *map(str, places))


def sum_file(file: Path) -> Sum:
    """Return the size and CRC-32 of a file."""
    size, crc = 0, 0
    with file.open("rb") as opened:
        while part := opened.read(1 << 23):
            size, crc = size + len(part), zlib.crc32(part, crc)
    return size, crc


def find_fault(folder: Path, region: Region, sums: list[Sum], *, timed: bool, thorough: bool) -> str | None:
    """Return what is wrong with the files of a region; None if nothing. `thorough` reads them, else sizes only."""
    for name, expected in zip(VARIABLES, sums, strict=True):
        file = shard_file(folder, name, region, timed=timed)
        if not file.is_file():
            return f"{name}: file missing"
        if file.stat().st_size != expected[0]:
            return f"{name}: {file.stat().st_size:,} bytes, not {expected[0]:,}"
        if thorough and sum_file(file) != tuple(expected):
            return f"{name}: contents changed"
    return None


def finish_group(folder: Path, attrs: Mapping[str, Any] | None = None) -> None:
    """Settle the metadata of a group: no longer unfinished, other attributes if given, consolidated."""
    import zarr

    group = zarr.open_group(folder, mode="r+", use_consolidated=False)
    kept = {k: v for k, v in group.attrs.asdict().items() if k != PROGRESS}
    group.attrs.put(kept | dict(attrs or {}))
    consolidate(folder)


def consolidate(folder: Path) -> None:
    """Gather the metadata of a group and all below it in one file."""
    import zarr

    with warnings.catch_warnings():  # not yet in the specification of Zarr 3, which any reader survives
        warnings.filterwarnings("ignore", "Consolidated metadata", UserWarning)
        zarr.consolidate_metadata(folder)


def drop_leftovers(folder: Path) -> None:
    """Remove what a killed process was writing under a temporary name."""
    for file in folder.rglob("*.partial"):
        file.unlink(missing_ok=True)


def _flush(file: Path) -> None:
    """Wait until a file is on the disk, so that the journal never knows more than the disk holds."""
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
