"""What this machine has, what works on it, and what to install for the rest: for `tessera-xr doctor`."""

from __future__ import annotations

import os
import platform
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from tessera_xr._version import __version__

if TYPE_CHECKING:
    from packaging.requirements import Requirement

PACKAGE = "tessera-xr"
EXTRAS = {
    "stac": "cubes from STAC catalogues: load_cube",
    "published": "published embeddings over the network: open_published",
    "icechunk": "published embeddings in Icechunk stores: open_published",
    "dask": "regions on a cluster: embed_to_zarr with a dask.distributed client",
    "parquet": "GeoParquet files: to_geoparquet",
    "search": "approximate search in large indexes: SearchIndex",
    "segments": "superpixels: segment",
    "umap": "UMAP of embeddings: umap",
    "lab": "notebooks and the map",
}
"""What each extra of the package is for; the packages it needs are read from the installed metadata."""
CONTROL_GROUP = Path("/sys/fs/cgroup")
PATIENCE = 5.0
"""Seconds for a site to answer."""
SHOWN = ("numpy", "xarray", "dask", "zarr", "torch", "rasterio", "odc-geo", "geopandas", "scikit-learn", "numba")

Report = dict[str, Any]


def examine(*, online: bool = False) -> Report:
    """Look at this machine; never raises, and stays off the network unless told.

    Parameters
    ----------
    online : bool, default False
        Also ask the sites that weights, imagery and embeddings come from for an answer.

    Returns
    -------
    dict
        `versions`, `machine`, `device`, `weights`, `works`, `extras` and, if asked for, `online`: plain values, ready
        for JSON. Where looking failed, a text says how.
    """
    parts: dict[str, Callable[[], Any]] = {
        "versions": _versions,
        "machine": _machine,
        "device": _device,
        "weights": _weights,
        "works": lambda: {name: _tried(trial) for name, trial in TRIALS.items()},
        "extras": _extras,
    }
    if online:
        parts["online"] = lambda: {name: _tried(partial(_ask, url)) for name, url in _sites().items()}
    return {name: _guarded(look) for name, look in parts.items()}


def describe(report: Mapping[str, Any]) -> str:
    """Return a report of `examine` as text."""
    lines: list[str] = []
    for name, found in report.items():
        lines += ["", name.capitalize()] if lines else [name.capitalize()]
        if not isinstance(found, Mapping):
            lines.append(f"  could not be looked at: {found}")
            continue
        width = max(map(len, found), default=0)
        lines += [f"  {key:<{width}}  {_line(value)}" for key, value in found.items()]
    return "\n".join(lines)


def _line(value: Any) -> str:
    return ", ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)


def _guarded(look: Callable[[], Any]) -> Any:
    """Return what was found, or how looking failed, whatever it was: broken installations are what this is for."""
    try:
        return look()
    except Exception as error:
        return _said(error)


def _tried(trial: Callable[[], Any]) -> str:
    start = time.perf_counter()
    failure = _guarded(trial)
    return f"NO: {failure}" if isinstance(failure, str) else f"yes ({time.perf_counter() - start:.1f} s)"


def _said(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


# What is here --------------------------------------------------------------------------------------------------------


def _versions() -> dict[str, str]:
    own = {"tessera_xr": __version__, "python": platform.python_version(), "system": platform.platform()}
    lacking = _lacking([r for r in _requirements() if r.marker is None])
    return own | {
        "dependencies": f"NO: pip install --upgrade {PACKAGE} ({', '.join(lacking)})" if lacking else "all there",
        **{name: _version(name) or "not installed" for name in SHOWN},
    }


def _requirements() -> list[Requirement]:
    """Return what the installed package says that it needs, extras included."""
    from packaging.requirements import Requirement

    return [Requirement(text) for text in metadata.requires(PACKAGE) or []]


def _lacking(wanted: Iterable[Requirement]) -> list[str]:
    """Return which of some packages are missing or too old, in words."""
    found = {r: _version(r.name) for r in wanted}
    missing = [f"lacks {r.name}" for r, version in found.items() if version is None]
    old = [f"{r.name} {v} is too old" for r, v in found.items() if v and not r.specifier.contains(v, prereleases=True)]
    return missing + old


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _machine() -> dict[str, Any]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cores": cores,
        "memory": _memory(),
        "free disk here": f"{shutil.disk_usage(Path.cwd()).free / 1e9:.1f} GB",
    }


def _memory() -> str:
    """Return what memory there is: of the container, where one is limited."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return "unknown"
    for name in ("memory.max", "memory/memory.limit_in_bytes"):  # of control groups 2 and 1
        limit = CONTROL_GROUP / name
        text = limit.read_text(encoding="ascii").strip() if limit.is_file() else ""
        if text.isdigit() and int(text) < total:
            return f"{int(text) / 1e9:.1f} GB (limit of the container)"
    return f"{total / 1e9:.1f} GB"


def _device() -> dict[str, Any]:
    import torch

    from tessera_xr.encoder.device import resolve_device, resolve_precision

    device = resolve_device("auto")
    found: dict[str, Any] = {"embed uses": str(device), "threads": torch.get_num_threads()}
    if device.type == "cuda":
        gpu = torch.cuda.get_device_properties(device)
        found["GPU"] = f"{gpu.name}, {gpu.total_memory / 1e9:.0f} GB"
    elif device.type == "cpu":
        found["GPU"] = "none that this build of PyTorch can use"
    return found | {"precision": str(resolve_precision("auto", device)).removeprefix("torch.")}


def _weights() -> dict[str, Any]:
    from huggingface_hub.constants import HF_HUB_CACHE

    from tessera_xr._optional import OFFLINE
    from tessera_xr.encoder.checkpoints import models
    from tessera_xr.encoder.hub import WEIGHTS_FOLDER

    table, cache = models(), Path(HF_HUB_CACHE)
    stored = sum(f.stat().st_size for f in cache.rglob("*") if f.is_file() and not f.is_symlink())
    return {
        "here": list(table.index[table["available"]]),
        "to download": list(table.index[~table["available"] & (table["source"] != "a file that you have")]),
        "to be given as a file": list(table.index[~table["available"] & (table["source"] == "a file that you have")]),
        "cache": f"{cache}, {stored / 1e6:.0f} MB",
        WEIGHTS_FOLDER: os.environ.get(WEIGHTS_FOLDER, "not set"),
        OFFLINE: os.environ.get(OFFLINE, "not set"),
    }


def _extras() -> dict[str, str]:
    """Return for each extra whether its packages are here, and else how to get them."""
    found = {}
    for name, purpose in EXTRAS.items():
        wanted = [r for r in _requirements() if r.marker is not None and r.marker.evaluate({"extra": name})]
        lacking = _lacking(wanted)
        if lacking:
            found[name] = f"no: {purpose}; pip install '{PACKAGE}[{name}]' ({', '.join(lacking)})"
        elif wanted:
            found[name] = f"yes: {purpose}"
    return found


# What works ----------------------------------------------------------------------------------------------------------


def _embed() -> None:
    import numpy as np

    import tessera_xr.embedding.engine as engine

    rng = np.random.default_rng(0)
    pixels = rng.integers(300, 4000, (2, 6, 10)).astype(np.uint16)
    vectors = engine.embed_pixels(pixels, np.arange(30, 330, 50), np.ones((2, 6), bool), progress=False)
    if not np.isfinite(vectors).all():
        raise ArithmeticError("the embeddings are not finite")


def _map() -> Any:
    """Return a small map to write."""
    import numpy as np
    import xarray as xr
    from odc.geo.geobox import GeoBox

    from tessera_xr.grid import with_grid

    box = GeoBox.from_bbox((500_000, 5_000_000, 500_320, 5_000_320), "EPSG:32631", resolution=10)
    return with_grid(xr.Dataset({"map": (("y", "x"), np.eye(32, dtype=np.float32))}), box)


def _geotiff() -> None:
    import rasterio

    from tessera_xr.export import to_geotiff

    with TemporaryDirectory() as folder:
        path = to_geotiff(_map(), Path(folder) / "map.tif")
        with rasterio.open(path) as file:
            if file.read(1).trace() != 32:
                raise OSError("a GeoTIFF was read otherwise than it was written")


def _zarr() -> None:
    import xarray as xr

    from tessera_xr.export import to_zarr

    with TemporaryDirectory() as folder:
        path = to_zarr(_map(), Path(folder) / "map.zarr", progress=False)
        if xr.open_zarr(path)["map"].sum() != 32:
            raise OSError("a Zarr store was read otherwise than it was written")


def _projections() -> None:
    from tessera_xr.grid import bounds_lonlat, geobox_of

    west, south, *_ = bounds_lonlat(geobox_of(_map()))
    if abs(west - 3) > 0.1 or abs(south - 45.15) > 0.1:
        raise ArithmeticError(
            f"the origin of a UTM zone came out at {west:.2f} E, {south:.2f} N: PROJ's data are broken"
        )


TRIALS: dict[str, Callable[[], None]] = {
    "embedding two pixels with mini": _embed,
    "projections": _projections,
    "writing a GeoTIFF": _geotiff,
    "writing a Zarr store": _zarr,
}


def _sites() -> dict[str, str]:
    from tessera_xr.embedding.published.releases import BUCKET
    from tessera_xr.encoder.hub import HUB
    from tessera_xr.sentinel.catalogues import CATALOGUES

    imagery = {f"imagery ({name})": catalogue.url for name, catalogue in CATALOGUES.items()}
    return {"weights": HUB, **imagery, "published embeddings": BUCKET}


def _ask(url: str) -> None:
    """Raise unless a site answers; any answer will do."""
    from urllib.error import HTTPError
    from urllib.request import Request, urlopen

    try:
        urlopen(Request(url, method="HEAD"), timeout=PATIENCE).close()  # noqa: S310 (https addresses of our own)
    except HTTPError as error:
        error.close()
