"""What a Zarr store claims of itself, checked before it is believed: sizes, codecs, years, grid."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from affine import Affine
from odc.geo.geobox import GeoBox

from tessera_xr.embedding.published.guard import GuardedStore, Layout
from tessera_xr.embedding.schema import EMBEDDINGS, SCALES
from tessera_xr.errors import StoreError

MAX_PIXELS = (2_100_000, 200_000)
"""Rows and columns of the largest zone that there can be: 80 S to 84 N of 10 m pixels, with room at the sides."""
MAX_YEARS, MAX_BANDS = 200, 4096
MAX_CHUNK = 256 << 20
"""Bytes of one chunk, decoded; those published take 131 kB."""
MAX_INNER = 1 << 18
"""Chunks of a shard; those published have 16,384."""
FALSE_NORTHING = 10_000_000.0
"""Metres by which southern UTM differs from northern."""


def child(group: Any, name: str) -> Any:
    """Return a group or an array in a group, or None."""
    try:
        return group[name]
    except KeyError:
        return None
    except (ValueError, TypeError, NotImplementedError) as error:
        raise StoreError(f"the metadata of {group.store_path}/{name} can't be read ({error})") from error


DTYPES = {EMBEDDINGS: ("int8",), SCALES: ("float32",)}


def check_array(
    guard: GuardedStore, array: Any, name: str, dims: tuple[str, ...], shape: tuple[int, ...] | None = None
) -> None:
    """Raise `StoreError` unless an array is what it should be; tell the guard what its chunks are like."""
    where, faults = f"{guard.name}/{array.path}", []
    if array.ndim != len(dims) or (shape is not None and array.shape != shape):
        raise StoreError(f"{where} has the shape {array.shape}; {dims} of {shape} were expected")
    given = array.metadata.dimension_names
    if given is not None and tuple(re.sub(r"_d\d+$", "", str(d)) for d in given) != dims:
        faults.append(f"has dimensions {given}, not {dims}")
    limits = dict(zip(("time", "band"), (MAX_YEARS, MAX_BANDS), strict=True))
    limits |= dict(zip(("y", "x", "northing", "easting"), MAX_PIXELS * 2, strict=True))
    if any(not 0 < n <= limits[d] for n, d in zip(array.shape, dims, strict=True)):
        faults.append(f"claims the shape {array.shape}, which no zone of the Earth has")
    kinds = DTYPES.get(name)
    if (kinds and str(array.dtype) not in kinds) or array.dtype.kind not in "iufM" or array.dtype.itemsize > 8:
        faults.append(f"holds {array.dtype}, not {' or '.join(kinds or ('numbers',))}")
    if array.metadata.zarr_format != 3 or array.metadata.chunk_key_encoding.name != "default":
        faults.append("names its chunks in another way than Zarr v3 does by default")
    if not faults:
        layout = _layout(array, faults)
        if layout is not None:
            guard.layouts[array.path] = layout
    if faults:
        raise StoreError(f"{where} is not trusted: it {'; it '.join(faults)}")


def _layout(array: Any, faults: list[str]) -> Layout | None:
    """Return what an array's chunks are like; add to the faults what rules them out."""
    codecs = [c.to_dict() for c in array.metadata.codecs]
    n_inner, index_last = 0, True
    if any(c["name"] == "sharding_indexed" for c in codecs):
        settings = codecs[0]["configuration"]
        index = [c["name"] for c in settings["index_codecs"]]
        if len(codecs) > 1 or index != ["bytes", "crc32c"]:
            faults.append(f"wraps its shards in {[c['name'] for c in codecs]}, indexed by {index}")
            return None
        n_inner = int(np.prod([s // c for s, c in zip(array.shards, array.chunks, strict=True)], dtype=object))
        index_last = str(settings["index_location"]) == "end"
        codecs = list(settings["codecs"])
        if n_inner > MAX_INNER:
            faults.append(f"claims {n_inner:,} chunks in a shard, over {MAX_INNER:,}")
    names = [c["name"] for c in codecs]
    checksum = names[-1:] == ["crc32c"]
    plain = [n for n in names if n not in ("transpose", "crc32c")]
    codec = plain[1] if plain[1:] in (["blosc"], ["zstd"]) else ""
    if plain[:1] != ["bytes"] or len(plain) > 1 + bool(codec) or names.count("crc32c") > checksum:
        faults.append(f"is encoded by {names}; only bytes, blosc, zstd, transpose and crc32c are read")
    size = int(np.prod(array.chunks, dtype=object)) * array.dtype.itemsize
    if not 0 < size <= MAX_CHUNK:
        faults.append(f"claims chunks of {size:,} bytes ({array.chunks}), over {MAX_CHUNK:,}")
    return None if faults else Layout(size, codec, checksum, n_inner, index_last)


def read_years(guard: GuardedStore, time: Any, n: int, name: str) -> tuple[int, ...]:
    """Return the years of a zone; datetimes and nanoseconds become the year in which they lie."""
    if not hasattr(time, "chunks"):
        raise StoreError(f"{name} lacks the array `time`; it is no published store of embeddings")
    check_array(guard, time, "time", ("time",), (n,))
    values = np.asarray(time[:])
    if str(time.attrs.get("units", "")).startswith("nanoseconds since 1970-01-01"):
        values = values.astype("datetime64[ns]")
    if values.dtype.kind == "M":
        values = values.astype("datetime64[Y]").astype(np.int64) + 1970
    if values.dtype.kind not in "iu" or not ((values > 1900) & (values < 2200)).all():
        raise StoreError(
            f"{name}: `time` holds {values[:3].tolist()} ..., which are no years; try again, or name another copy with "
            "store="
        )
    years = tuple(int(v) for v in values)
    if len(set(years)) < len(years):
        raise StoreError(f"{name}: `time` names a year twice ({years})")
    return years


def read_grid(guard: GuardedStore, group: Any, zone: int, shape: tuple[int, int], name: str) -> GeoBox:
    """Return a zone's grid from its attributes, checked against its coordinates where that costs nothing."""
    attrs = group.attrs
    code, given, size = attrs.get("proj:code"), attrs.get("spatial:transform"), attrs.get("spatial:shape")
    if code is not None and code not in (f"EPSG:{32600 + zone}", f"EPSG:{32700 + zone}"):
        raise StoreError(f"{name} claims the CRS {str(code)[:40]!r}, not that of its zone")
    if size is not None and tuple(size) != tuple(shape):
        raise StoreError(f"{name} claims {size} pixels, its arrays have {shape}")
    if given is None or not guard.remote:
        ends = [_ends(guard, child(group, axis), axis, n, name) for axis, n in zip(("y", "x"), shape, strict=True)]
        found = _from_coordinates(ends, shape)
        if given is None:
            given = list(found)[:6]
        else:
            make_grid(given, shape, zone, southern=False, name=name)
        if not np.allclose(found[:6], given, rtol=0, atol=0.01):
            raise StoreError(f"{name}: its coordinates say {list(found)[:6]}, its attributes {given}; which is right?")
    return make_grid(given, shape, zone, southern=str(code) == f"EPSG:{32700 + zone}", name=name)


def make_grid(given: Any, shape: tuple[int, int], zone: int, southern: bool, name: str) -> GeoBox:
    """Return the grid of a claimed transform in the northern CRS of its zone, if it is plausible."""
    try:
        a, b, c, d, e, f = (float(v) for v in given)
    except (TypeError, ValueError):
        raise StoreError(f"{name}: its transform {str(given)[:80]} is not six numbers") from None
    f -= FALSE_NORTHING if southern else 0
    inside = abs(c) < 3e6 and abs(f) < 1.2e7 and abs(f + e * shape[0]) < 1.2e7
    if not (np.isfinite([a, b, c, d, e, f]).all() and b == d == 0 and 0.1 <= a <= 10_000 and e == -a and inside):
        raise StoreError(f"{name}: its transform {str(given)[:120]} is no north-up grid of square pixels in UTM")
    return GeoBox(shape, Affine(a, b, c, d, e, f), f"EPSG:{32600 + zone}")


def _ends(guard: GuardedStore, array: Any, axis: str, n: int, name: str) -> tuple[float, float]:
    if not hasattr(array, "chunks"):
        raise StoreError(f"{name} lacks the array `{axis}`; it is no published store of embeddings")
    check_array(guard, array, axis, (axis,), (n,))
    return float(array[0]), float(array[-1])


def _from_coordinates(ends: list[tuple[float, float]], shape: tuple[int, int]) -> Affine:
    (top, bottom), (left, right) = ends
    x = (right - left) / max(shape[1] - 1, 1)
    y = (bottom - top) / max(shape[0] - 1, 1)
    x, y = x or -y, y or -x
    return Affine(x, 0, left - x / 2, 0, y, top - y / 2)
