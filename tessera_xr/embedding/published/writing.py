"""Embeddings of one's own in the published layout, which `open_published` and geotessera read."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import xarray as xr
from odc.geo.geobox import GeoBox

from tessera_xr._version import __version__
from tessera_xr._warn import warn
from tessera_xr.embedding.published.agreement import years_of
from tessera_xr.embedding.published.releases import ALIASES, RELEASES, Release
from tessera_xr.embedding.published.shard_writing import INNER, LEVEL, ShardWriter, encode_scales, fill_of
from tessera_xr.embedding.quantize import quantize
from tessera_xr.embedding.schema import (
    COUNTS,
    EMBEDDINGS,
    IDENTITY,
    OFFICIAL,
    QUALITY,
    SCALES,
    check_embeddings,
)
from tessera_xr.errors import GridError, SchemaError, StoreError, VersionMismatchError
from tessera_xr.grid import crs_name, geobox_of

SHARD = 4096
"""Pixels a side of a shard."""
BLOCK = 256
"""Pixels a side to write at once of what is in memory."""
_CONVENTIONS = [
    {"name": "geoemb:", "description": "geospatial embeddings: what they are and how they are stored"},
    {"name": "proj:", "description": "the CRS, as a code"},
    {"name": "spatial:", "description": "the transform, shape and bounds of the grid"},
]


def to_published(
    emb: xr.Dataset, path: str | os.PathLike[str], *, version: str | None = None, progress: bool = True
) -> Path:
    """Write embeddings as a Zarr v3 store in the layout of the published ones.

    A group for the UTM zone (utm31), codes in shards of chunks, scales that tell water from no data, the years. A store
    that is there already takes another zone, or other years of the same grid; embeddings of another model are refused.
    What is new appears when all of it is written, or not at all. Memory stays small, however large the area: lazy
    embeddings are computed a row of chunks at a time.

    Parameters
    ----------
    emb : Dataset
        Embeddings of calendar years, float32 (then quantised) or int8, on a north-up UTM grid.
    path : str or path
        The store, a folder; made, or added to.
    version : str, optional
        What to call these embeddings in the store (`geoemb:model`); without it their model.
    progress : bool, default True
        Show a bar if it takes longer than a second.

    Returns
    -------
    Path
        The store.

    Raises
    ------
    SchemaError
        If `emb` holds no embeddings, or not of calendar years, or years that are there already.
    GridError
        If its grid is not UTM, or another than that of the zone in the store.
    VersionMismatchError
        If the store holds embeddings of another model or length.
    StoreError
        If there is something else at `path`.
    """
    check_embeddings(emb)
    years, box = years_of(emb), utm_grid(emb)
    if years is None:
        raise SchemaError(
            "the published layout holds calendar years, and these embeddings are of none, or don't say so: "
            "embed(..., period=[2024]), or set emb.attrs['period'] = '2024'"
        )
    path = Path(path).absolute()
    plan = Plan(path, box, tuple(years), emb.sizes["band"], _root_attrs(emb, version))
    old = _read_store(plan)
    emb = quantize(emb if "time" in emb.dims else emb.expand_dims("time"))
    names = [EMBEDDINGS, SCALES, *(n for n in COUNTS if n in emb)]
    if old is not None and old.years and set(old.arrays) != set(names):
        raise SchemaError(
            f"{path} holds {sorted(old.arrays)} of zone {plan.zone}, these embeddings {sorted(names)}; bring both to "
            "the same variables, or name another path"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    work = Path(mkdtemp(dir=path.parent if old is None else path, prefix=".tessera-"))
    try:
        lost = _write_shards(emb, names, plan, work / plan.zone, progress)
        _write_metadata(plan, names, old, work / plan.zone)
        _put_in_place(plan, old, work)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    if lost:
        warn(
            f"{lost:,} pixels have a scale outside (0, 1), which the published layout can't hold (embeddings of zeros, "
            "for example): they are marked corrupt"
        )
    return path


@dataclass(frozen=True)
class Plan:
    """What is to be written."""

    path: Path
    box: GeoBox
    """In the northern CRS."""
    years: tuple[int, ...]
    n_bands: int
    root: dict[str, Any]
    """Attributes of the store."""

    @property
    def zone(self) -> str:
        """Name of the group."""
        return f"utm{int(crs_name(self.box.crs)[-2:]):02}"

    @property
    def shard(self) -> tuple[int, int]:
        """Rows and columns of a shard: no more than the area needs."""
        rows, columns = (min(SHARD, -(-n // INNER) * INNER) for n in self.box.shape)
        return rows, columns


@dataclass(frozen=True)
class Old:
    """What the store holds already."""

    attrs: dict[str, Any]
    years: tuple[int, ...]
    """Of the zone; none if the zone is new."""
    arrays: tuple[str, ...] = ()
    """Of the zone."""


def utm_grid(emb: xr.Dataset) -> GeoBox:
    """Return the grid of embeddings in the northern UTM CRS; raise `GridError` if it is not in UTM, or not north up."""
    from tessera_xr.embedding.published.grid import northern

    box: GeoBox = northern(geobox_of(emb))
    epsg, t = None if box.crs is None else box.crs.to_epsg(), box.transform
    if not (32601 <= (epsg or 0) <= 32660 and t.b == t.d == 0 and t.a > 0 and abs(t.e + t.a) < 1e-9 * t.a):
        raise GridError(
            f"the published layout holds north-up UTM grids of square pixels; this is {crs_name(box.crs)}, with the "
            f"transform {tuple(t)[:6]}. Embed a cube in UTM, or turn the rows: emb.sortby('y', ascending=False)"
        )
    return box


def _root_attrs(emb: xr.Dataset, version: str | None) -> dict[str, Any]:
    model = str(emb.attrs.get("model", "unknown"))
    published = RELEASES.get(model) if version is None else _named_release(emb, model, version)
    name = published.name if published else version or model
    own = {f"tessera_xr:{k}": str(emb.attrs[k]) for k in (*IDENTITY, OFFICIAL, "weights_licence") if k in emb.attrs}
    return {
        "zarr_conventions": _CONVENTIONS,
        "geoemb:type": "pixel",
        "geoemb:dimensions": emb.sizes["band"],
        "geoemb:model": f"https://geotessera.org/model/{published.folder}" if published else name,
        "geoemb:source_data": [f"https://sentinel.esa.int/web/sentinel/missions/sentinel-{n}" for n in (1, 2)],
        "geoemb:data_type": "int8",
        "geoemb:gsd": float(abs(geobox_of(emb).resolution.x)),
        "geoemb:spatial_layout": "utm_zones",
        "geoemb:build_version": f"tessera_xr {__version__}",
        "geoemb:quantization": {
            "method": "per_pixel_scale",
            "original_dtype": "float32",
            "quantized_dtype": "int8",
            "scale": {"type": "array", "array_name": SCALES, "nodata": "+inf"},
        },
        "tessera_xr:model": model,
        **own,
        "tessera_xr:source": str(emb.attrs.get("source", "unknown")),
    }


def _named_release(emb: xr.Dataset, model: str, version: str) -> Release | None:
    """Return the release that a version names; None for a name of one's own, which only one's own model may have."""
    release, family = RELEASES.get(ALIASES.get(version, version)), emb.attrs.get("model_family")
    if (release is None and model in RELEASES) or (release and family not in (None, release.family)):
        raise VersionMismatchError(f"these are embeddings of {model!r}, not of version={version!r}; leave out version=")
    return release


def _read_store(plan: Plan) -> Old | None:
    """Return what is at the path already; raise unless it can take what is to be written."""
    from tessera_xr.embedding.published.remote import Folder
    from tessera_xr.embedding.published.stores import open_root

    if not plan.path.exists() or (plan.path.is_dir() and not any(plan.path.iterdir())):
        return None
    root = open_root(Folder(plan.path)) if (plan.path / "zarr.json").is_file() else None
    if root is None or "geoemb:type" not in root.attrs:
        raise StoreError(f"there is something at {plan.path} that is no published store; name another path")
    same = ("geoemb:dimensions", *(f"tessera_xr:{i}" for i in IDENTITY))
    other = [k for k in same if root.attrs.get(k) != plan.root.get(k)]
    if other or "tessera_xr:model" not in root.attrs:
        raise VersionMismatchError(
            f"{plan.path} holds embeddings of {root.attrs.get('tessera_xr:model', root.attrs.get('geoemb:model'))!r}, "
            f"which don't mix with those of {plan.root['tessera_xr:model']!r}"
            f"{f' ({other[0]} differs)' if other else ''}; name another path"
        )
    zone = root.open_zone(int(plan.zone[3:]))
    if zone is None:
        return Old(root.attrs, ())
    if zone.box != plan.box:
        raise GridError(
            f"{plan.path} holds zone {plan.zone} on the grid {zone.box.shape} from {tuple(zone.box.transform)[2::3]}, "
            f"these embeddings are on {plan.box.shape} from {tuple(plan.box.transform)[2::3]}; name another path"
        )
    if again := sorted(set(zone.years) & set(plan.years)):
        raise SchemaError(f"{plan.path} has {again} of zone {plan.zone} already; choose other years, or another path")
    return Old(root.attrs, zone.years, tuple(zone.arrays))


def _write_shards(emb: xr.Dataset, names: list[str], plan: Plan, work: Path, progress: bool) -> int:
    """Write all shards into a folder; return how many scales were bad."""
    from tqdm.auto import tqdm

    corners = [range(0, n, s) for n, s in zip(plan.box.shape, plan.shard, strict=True)]
    shards, lost = list(product(range(len(plan.years)), *corners)), 0
    with tqdm(total=len(shards), desc="writing shards", unit="shard", delay=1, disable=not progress) as bar:
        for t, top, left in shards:
            part = emb.isel(time=t, y=slice(top, top + plan.shard[0]), x=slice(left, left + plan.shard[1]))
            place = (top // plan.shard[0], left // plan.shard[1])
            writers = {n: ShardWriter(_shard_file(work, n, t, place), plan.shard, fill_of(n)) for n in names}
            lost += _write_blocks(part, writers)
            bar.update()
    return lost


def _shard_file(folder: Path, name: str, t: int, place: tuple[int, int]) -> Path:
    return folder / name / "c" / "/".join(map(str, (t, *([0] if name == EMBEDDINGS else []), *place)))


def _write_blocks(part: xr.Dataset, writers: Mapping[str, ShardWriter]) -> int:
    """Write the shards of all arrays at one place and time, as much at once as a Dask chunk holds."""
    part, lost = part[[*writers, *([QUALITY] if QUALITY in part else [])]], 0
    steps = [_step(part, d) for d in ("y", "x")]
    for top, left in product(*(range(0, part.sizes[d], s) for d, s in zip("yx", steps, strict=True))):
        block = part.isel(y=slice(top, top + steps[0]), x=slice(left, left + steps[1])).compute()
        scales, bad = encode_scales(block)
        lost += bad
        for name, writer in writers.items():
            array = block[name].transpose(*(["band"] if name == EMBEDDINGS else []), "y", "x").values
            if name == EMBEDDINGS:
                array = np.where(np.isfinite(scales), array, np.int8(0))
            writer.add(top // INNER, left // INNER, scales if name == SCALES else array)
    for writer in writers.values():
        writer.close()
    return lost


def _step(part: xr.Dataset, dim: str) -> int:
    """Return how many pixels along a dimension to compute at once: a Dask chunk, in whole chunks of the store."""
    size = max(part.chunksizes.get(dim, (BLOCK,)))
    return -(-size // INNER) * INNER


def _write_metadata(plan: Plan, names: list[str], old: Old | None, folder: Path) -> None:
    """Write the metadata and coordinates of the zone into a folder, for all years that it will have."""
    import zarr
    from zarr.codecs import BloscCodec

    years = [*(old.years if old else ()), *plan.years]
    rows, columns = plan.box.shape
    group = zarr.open_group(folder, mode="a", zarr_format=3)
    group.attrs.update(_zone_attrs(plan.box))
    for name in names:
        bands = (plan.n_bands,) if name == EMBEDDINGS else ()
        dtype = {EMBEDDINGS: np.int8, SCALES: np.float32}.get(name, np.uint16)
        group.create_array(
            name,
            shape=(len(years), *bands, rows, columns),
            shards=(1, *bands, *plan.shard),
            chunks=(1, *bands, INNER, INNER),
            dtype=dtype,
            fill_value=fill_of(name),
            compressors=BloscCodec(typesize=np.dtype(dtype).itemsize, cname="zstd", clevel=LEVEL, shuffle="shuffle"),
            dimension_names=("time", *(["band"] if bands else []), "y", "x"),
        )
    t = plan.box.transform
    coordinates = {
        "time": np.array(years, np.int32),
        "band": np.arange(plan.n_bands, dtype=np.int32),
        "y": t.f + t.e * (np.arange(rows) + 0.5),
        "x": t.c + t.a * (np.arange(columns) + 0.5),
    }
    for name, values in coordinates.items():
        # a chunk for each year, so that another year is another file
        chunks = (1,) if name == "time" else values.shape
        codec = BloscCodec(cname="zstd", clevel=LEVEL)
        options: dict[str, Any] = {"shape": values.shape, "chunks": chunks, "dtype": values.dtype, "fill_value": 0}
        array = group.create_array(name, **options, compressors=codec, dimension_names=(name,))
        array[:] = values


def _zone_attrs(box: GeoBox) -> dict[str, Any]:
    bounds, t = box.boundingbox, box.transform
    return {
        "zarr_conventions": _CONVENTIONS[1:],
        "proj:code": crs_name(box.crs),
        "spatial:dimensions": ["y", "x"],
        "spatial:bbox": [bounds.left, bounds.bottom, bounds.right, bounds.top],
        "spatial:transform_type": "affine",
        "spatial:transform": [t.a, 0.0, t.c, 0.0, t.e, t.f],
        "spatial:shape": list(box.shape),
        "spatial:registration": "pixel",
    }


def _put_in_place(plan: Plan, old: Old | None, work: Path) -> None:
    """Move what was written to where it belongs; the root's metadata come last, by which readers see it."""
    zone = work / plan.zone
    metadata = {plan.zone: _read_json(zone / "zarr.json")}
    metadata |= {f"{plan.zone}/{p.parent.name}": _read_json(p) for p in sorted(zone.glob("*/zarr.json"))}
    if old is not None:
        known = _read_json(plan.path / "zarr.json").get("consolidated_metadata") or {}
        metadata = known.get("metadata", {}) | metadata
    attrs = plan.root if old is None else old.attrs
    listed = {"kind": "inline", "must_understand": False, "metadata": metadata}
    root = {"zarr_format": 3, "node_type": "group", "attributes": attrs, "consolidated_metadata": listed}
    if old is None:
        _write_json(work / "zarr.json", root)
        work.chmod(0o755)  # a temporary folder is for its maker alone
        _replace_folder(work, plan.path)
        return
    if old.years:
        _add_years(plan, len(old.years), zone)
    else:
        _replace_folder(zone, plan.path / plan.zone)
    _write_json(plan.path / "zarr.json", root)


def _add_years(plan: Plan, n_old: int, new: Path) -> None:
    """Move shards of new years behind those that are there, then the metadata that count them."""
    zone = plan.path / plan.zone
    arrays = sorted(p.parent for p in new.glob("*/zarr.json"))
    for array in arrays:
        for folder in sorted((array / "c").iterdir()) if (array / "c").is_dir() else []:
            # a shard's folder counts the new years alone; the file of a coordinate's chunk counts all
            number = int(folder.name) + (n_old if folder.is_dir() else 0)
            if (array.name == "time" and number < n_old) or array.name in ("x", "y", "band"):
                continue
            target = zone / array.name / "c" / str(number)
            target.parent.mkdir(parents=True, exist_ok=True)
            _replace_folder(folder, target)
    for array in arrays:
        (array / "zarr.json").replace(zone / array.name / "zarr.json")


def _replace_folder(source: Path, target: Path) -> None:
    """Rename, over what a killed run may have left behind and no metadata count."""
    if target.is_dir():
        shutil.rmtree(target)
    source.replace(target)


def _read_json(file: Path) -> Any:
    return json.loads(file.read_text())


def _write_json(file: Path, content: Any) -> None:
    part = file.with_name(".zarr.json.part")
    with part.open("w") as stream:
        json.dump(content, stream, indent=1)
        stream.flush()
        os.fsync(stream.fileno())
    part.replace(file)
