"""The files of a search index: codes, pixels and graphs of each part, written once and memory-mapped afterwards."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox

from tessera_xr._optional import require
from tessera_xr.analysis.queries import essentials, stripes, time_labels
from tessera_xr.embedding.quantize import quantize
from tessera_xr.embedding.schema import EMBEDDINGS, check_embeddings, check_same_model, has_data, provenance
from tessera_xr.errors import GridError, SchemaError
from tessera_xr.grid import geobox_of

FORMAT, VERSION = "tessera_xr search index", 1
EXPANSION = 128
"""How many candidates a walk through a graph keeps: more is slower, with better recall."""
_ADDED = 65_536


@dataclass(frozen=True)
class Part:
    """One map at one time."""

    name: str
    """The stem of its files."""
    map: int
    """The number of the map, in the order of building."""
    time: str | None
    """A year or a date, if the map has a time."""
    crs: str
    transform: tuple[float, ...]
    """a, b, c, d, e, f of the affine transform from column and row to x and y."""
    shape: tuple[int, int]
    n: int = 0
    """How many of its pixels have data."""

    @property
    def box(self) -> GeoBox:
        """The pixel grid."""
        return GeoBox(self.shape, Affine(*self.transform), self.crs)


def need_usearch() -> None:
    """Raise `MissingExtraError` unless usearch is installed."""
    exactly = "search exactly, with approximate=False when building or exact=True when searching"
    require("usearch", "search", "approximate search", exactly)


def write_index(folder: Path, maps: Iterable[xr.Dataset], *, approximate: bool) -> None:
    """Write all parts of an index, and `index.json` last."""
    parts: list[Part] = []
    like: xr.Dataset | None = None
    for number, emb in enumerate(maps):
        check_embeddings(emb)
        like = emb if like is None else like
        check_same_model(like, emb)
        for at, time in _times(emb):
            part = _write_part(folder, at, len(parts), number, time)
            if approximate and part.n:
                _write_graph(folder, part, emb.sizes["band"])
            parts.append(part)
    if like is None or not any(part.n for part in parts):
        raise SchemaError("there is nothing to index: no map, or none with data")
    held = {"format": FORMAT, "version": VERSION, "n_dims": like.sizes["band"], "attrs": _plain(provenance(like))}
    text = json.dumps(held | {"parts": [asdict(part) for part in parts]}, indent=1)
    (folder / "index.json").write_text(text, encoding="utf-8")


def read_index(folder: Path) -> tuple[list[Part], int, dict[str, Any]]:
    """Return the parts of an index, the length of its embeddings, and what is known of their model."""
    file = folder / "index.json"
    held = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if held.get("format") != FORMAT or held.get("version") != VERSION:
        raise SchemaError(f"{folder} holds no search index of version {VERSION}; make one with SearchIndex.build")
    parts = [
        Part(**part | {"shape": tuple(part["shape"]), "transform": tuple(part["transform"])}) for part in held["parts"]
    ]
    return parts, held["n_dims"], held["attrs"]


def codes_of(folder: Path, part: Part, n_dims: int) -> npt.NDArray[np.int8]:
    """Return the codes of a part (n, band), memory-mapped."""
    if not part.n:
        return np.empty((0, n_dims), dtype=np.int8)
    return np.memmap(folder / f"{part.name}.codes", dtype=np.int8, mode="r", shape=(part.n, n_dims))


def pixels_of(folder: Path, part: Part) -> npt.NDArray[np.uint32]:
    """Return the flat index of each of the part's pixels with data (n,), rising, memory-mapped."""
    if not part.n:
        return np.empty(0, dtype=np.uint32)
    return np.memmap(folder / f"{part.name}.pixels", dtype="<u4", mode="r", shape=(part.n,))


def has_graph(folder: Path, part: Part) -> bool:
    """Say whether a part can be searched approximately."""
    return (folder / f"{part.name}.graph").is_file()


def graph_of(folder: Path, part: Part) -> Any:
    """Return the graph of a part, memory-mapped."""
    return _usearch().Index.restore(folder / f"{part.name}.graph", view=True, expansion_search=EXPANSION)


def _usearch() -> Any:
    need_usearch()
    import pyproj  # noqa: F401  loaded after usearch, whose own C++ runtime it would meet, PROJ can't read numbers
    import usearch.index

    return usearch.index


def _times(emb: xr.Dataset) -> Iterator[tuple[xr.Dataset, str | None]]:
    if "time" in emb[EMBEDDINGS].dims:
        times = emb["time"].values if "time" in emb.coords else np.arange(emb.sizes["time"])
        yield from ((emb.isel(time=i), label) for i, label in enumerate(time_labels(times)))
    else:
        yield emb, time_labels(emb["time"].values)[0] if "time" in emb.coords else None


def _write_part(folder: Path, emb: xr.Dataset, serial: int, number: int, time: str | None) -> Part:
    box = geobox_of(emb)
    if box.shape[0] * box.shape[1] > np.iinfo(np.uint32).max:
        raise GridError(f"a map of {box.shape[0]} x {box.shape[1]} px is too large for one part; cut it into tiles")
    epsg = box.crs.to_epsg() if box.crs is not None else None
    crs = f"EPSG:{epsg}" if epsg is not None else str(box.crs)
    part = Part(f"{serial:05}", number, time, crs, tuple(box.transform)[:6], (box.shape[0], box.shape[1]))
    n = 0
    with (folder / f"{part.name}.codes").open("wb") as codes, (folder / f"{part.name}.pixels").open("wb") as pixels:
        for rows in stripes(emb):
            held, found = _stripe(emb.isel(y=rows))
            codes.write(found.data)
            pixels.write((held + rows.start * box.shape[1]).astype("<u4").data)
            n += len(held)
    return replace(part, n=n)


def _stripe(emb: xr.Dataset) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.int8]]:
    """Return the pixels of a stripe that have data and a direction, and their codes."""
    part = quantize(essentials(emb)).compute()
    codes = part[EMBEDDINGS].transpose("y", "x", "band").values
    held = np.flatnonzero(has_data(part).transpose("y", "x").values & codes.any(axis=-1))
    return held, np.ascontiguousarray(codes.reshape(-1, codes.shape[-1])[held])


def _write_graph(folder: Path, part: Part, n_dims: int) -> None:
    graph = _usearch().Index(ndim=n_dims, metric="cos", dtype="i8")
    codes = codes_of(folder, part, n_dims)
    for start in range(0, part.n, _ADDED):
        block = np.ascontiguousarray(codes[start : start + _ADDED])
        graph.add(np.arange(start, start + len(block), dtype=np.uint64), block)
    graph.save(folder / f"{part.name}.graph")


def _plain(attrs: dict[str, Any]) -> dict[str, Any]:
    """Return attributes as JSON holds them."""
    return {key: value.item() if isinstance(value, np.generic) else value for key, value in attrs.items()}
