"""Zarr stores that open as they were, with the attributes by which GIS finds the place."""

from __future__ import annotations

import math
import warnings
from collections.abc import Hashable, Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from tessera_xr.errors import GridError, SchemaError
from tessera_xr.export.files import PathLike, local
from tessera_xr.grid import geobox_of, spatial_dims

if TYPE_CHECKING:
    from odc.geo.geobox import GeoBox

CHUNK, SHARD = 256 * 1024, 64 * 1024 * 1024
"""Bytes of a chunk, what one look costs, and of a shard, one file, at most."""
_LEAST, _MOST = 32, 256
"""Pixels a side of a chunk: 32 with 128 bands, as in the published stores."""
_CONVENTIONS = {
    "proj": ("f17cb550-5864-4468-aeb7-f3180cfb622f", "Coordinate reference system information for geospatial data"),
    "spatial": ("689b58e2-cf7b-45e0-9fff-9cfc0883d6b4", "Spatial coordinate information"),
}


def to_zarr(obj: xr.Dataset | xr.DataArray, path: PathLike, *, overwrite: bool = False, progress: bool = True) -> Path:
    """Write embeddings, a cube, a prediction or any map as a Zarr store (version 3) with GeoZarr and CF attributes.

    `xarray.open_zarr` gives back the same dataset, lazily. The store appears whole or not at all. Lazy input is
    computed piece by piece, on a `dask.distributed` cluster if there is one.

    Parameters
    ----------
    obj : Dataset or DataArray
        What to write, in memory or lazy.
    path : str or path
        The folder of the store, such as `emb.zarr`.
    overwrite : bool, default False
        Whether a store that is there already is replaced.
    progress : bool, default True
        Whether to show it, where it takes longer than a second.

    Returns
    -------
    Path
        The store.

    Raises
    ------
    SchemaError
        If there is something at `path` and `overwrite` is False, or it is no Zarr store; or if an attribute can't be
        written.

    Notes
    -----
    Chunks are small, 32 x 32 pixels of embeddings as in the published stores, so that one pixel costs one chunk; many
    of them share a file. For areas larger than the memory, see `embed_to_zarr`.
    """
    path = local(path)
    _check_free(path, overwrite=overwrite)
    ds, encoding = _prepared(obj)
    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=path.parent, prefix=".tessera-") as folder:
        temporary = Path(folder) / "new.zarr"
        _write(ds, temporary, encoding, progress=progress)
        old = Path(folder) / "old.zarr"
        if path.exists():
            path.rename(old)
        try:
            temporary.rename(path)
        except OSError:
            if old.exists():
                old.rename(path)
            raise
    return path


def geozarr_attrs(box: GeoBox, dims: tuple[Hashable, Hashable] = ("y", "x")) -> dict[str, Any]:
    """Return the attributes by which GeoZarr's conventions `proj` and `spatial` tell a grid."""
    t, bounds = box.transform, box.extent.boundingbox
    epsg = box.crs.to_epsg() if box.crs is not None else None
    place = {"proj:code": f"EPSG:{epsg}"} if epsg else {"proj:wkt2": box.crs.to_wkt()} if box.crs is not None else {}
    home = "https://{}/zarr-conventions/{}/{}"
    return {
        "Conventions": "CF-1.11",
        "zarr_conventions": [
            {
                "uuid": uuid,
                "name": name,
                "description": description,
                "schema_url": home.format("raw.githubusercontent.com", name, "refs/tags/v0.1/schema.json"),
                "spec_url": home.format("github.com", name, "blob/v0.1/README.md"),
            }
            for name, (uuid, description) in _CONVENTIONS.items()
        ],
        **place,
        "spatial:dimensions": [str(d) for d in dims],
        "spatial:transform": [float(v) for v in (t.a, t.b, t.c, t.d, t.e, t.f)],
        "spatial:shape": [int(n) for n in box.shape],
        "spatial:bbox": [float(v) for v in (bounds.left, bounds.bottom, bounds.right, bounds.top)],
        "spatial:registration": "pixel",
    }


def _check_free(path: Path, *, overwrite: bool) -> None:
    if not path.exists():
        return
    if not overwrite:
        raise SchemaError(f"{path} is there already; give another name, or pass overwrite=True")
    if not any((path / name).is_file() for name in ("zarr.json", ".zgroup", ".zarray")):
        raise SchemaError(f"{path} is no Zarr store and is left alone; give another name, or remove it yourself")


# What to write -------------------------------------------------------------------------------------------------------


def _prepared(obj: xr.Dataset | xr.DataArray) -> tuple[xr.Dataset, dict[str, dict[str, Any]]]:
    """Return the dataset as it is written, and the chunks and shards of its maps."""
    ds = _freed(obj if isinstance(obj, xr.Dataset) else obj.to_dataset(name=obj.name or "values"))
    try:
        dims = spatial_dims(ds)
    except GridError:
        return _rechunked(ds, {}), {}
    with suppress(GridError):  # no CRS, say: what is there is written as it is
        ds = ds.assign_attrs(geozarr_attrs(geobox_of(ds), dims))
    maps = {name: v for name, v in ds.variables.items() if set(dims) <= set(v.dims)}
    chunks = {name: _chunk(v, dims) for name, v in maps.items()}
    side = min((_shard_side(chunks[name], v.dtype.itemsize, dims) for name, v in maps.items()), default=0)
    shards = {
        name: {d: min(side, _ceil(maps[name].sizes[d], n)) if d in dims else n for d, n in chunk.items()}
        for name, chunk in chunks.items()
    }
    encoding = {
        str(name): {"chunks": tuple(chunks[name].values()), "shards": tuple(shards[name].values())} for name in maps
    }
    return _rechunked(ds, shards), encoding


def _freed(ds: xr.Dataset) -> xr.Dataset:
    """Return a dataset without the encoding of the file that it came from, words as Zarr 3 knows them."""
    mappings = {name: v.encoding["grid_mapping"] for name, v in ds.variables.items() if "grid_mapping" in v.encoding}
    ds = ds.drop_encoding()
    for name, mapping in mappings.items():
        ds[name].attrs.setdefault("grid_mapping", mapping)
    words = {name: v.compute().astype(object) for name, v in ds.variables.items() if v.dtype.kind in "UT"}
    ds = ds.assign_coords({n: v for n, v in words.items() if n in ds.coords})
    ds = ds.assign({n: v for n, v in words.items() if n not in ds.coords})
    for name, attrs in (("the dataset", ds.attrs), *((repr(n), v.attrs) for n, v in ds.variables.items())):
        _check_attrs(name, attrs)
    return ds


def _check_attrs(name: str, attrs: Mapping[Any, Any]) -> None:
    for key, value in attrs.items():
        if isinstance(value, np.ndarray | np.generic | list | tuple | dict | str | bool | int | float | None):
            continue
        raise SchemaError(
            f"attribute {key!r} of {name} is a {type(value).__name__}, which a store can't hold; make it text, or "
            f"drop it"
        )


def _chunk(variable: xr.Variable, dims: tuple[Hashable, Hashable]) -> dict[Hashable, int]:
    """Return the chunk of a map: one time, all other dimensions whole, and as many pixels as stay within its size."""
    whole = {d: 1 if d == "time" else max(n, 1) for d, n in variable.sizes.items()}
    depth = variable.dtype.itemsize * math.prod(n for d, n in whole.items() if d not in dims)
    side = _MOST
    while side > _LEAST and side * side * depth > CHUNK:
        side //= 2
    return whole | {d: min(side, _ceil(variable.sizes[d], _LEAST)) for d in dims}


def _shard_side(chunk: Mapping[Hashable, int], itemsize: int, dims: tuple[Hashable, Hashable]) -> int:
    """Return the greatest power of two, in pixels a side, with which a shard stays within its size."""
    depth = itemsize * math.prod(n for d, n in chunk.items() if d not in dims)
    side = _MOST
    while side < 16 * _MOST and 4 * side * side * depth <= SHARD:
        side *= 2
    return side


def _ceil(n: int, step: int) -> int:
    return -(-n // step) * step


def _rechunked(ds: xr.Dataset, shards: Mapping[Hashable, Mapping[Hashable, int]]) -> xr.Dataset:
    """Return a dataset of which each lazy piece fills whole files."""
    for name, v in ds.variables.items():
        if v.chunks is not None:
            ds[name] = ds[name].chunk(shards.get(name) or {d: max(sizes) for d, sizes in v.chunksizes.items()})
    return ds


# How it is written ---------------------------------------------------------------------------------------------------


def _write(ds: xr.Dataset, path: Path, encoding: dict[str, dict[str, Any]], *, progress: bool) -> None:
    import zarr
    from tqdm.dask import TqdmCallback

    work = ds.to_zarr(path, mode="w-", zarr_format=3, consolidated=False, encoding=encoding, compute=False)
    with TqdmCallback(desc="writing", delay=1, disable=not progress):
        work.compute()
    with warnings.catch_warnings():
        # open_zarr looks for the summary and warns where there is none; zarr warns that its place in the
        # specification isn't settled
        warnings.filterwarnings("ignore", message="Consolidated metadata is currently not part")
        zarr.consolidate_metadata(path, zarr_format=3)
