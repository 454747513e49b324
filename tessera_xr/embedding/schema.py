"""The one Dataset that holds embeddings, computed or published: names, dimensions, attributes, checks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from tessera_xr._version import __version__
from tessera_xr.errors import GridError, SchemaError, VersionMismatchError
from tessera_xr.grid import bounds_lonlat, crs_name, geobox_of, with_grid

EMBEDDINGS, SCALES = "embeddings", "scales"
COUNTS = ("s2_obs_count", "s1_asc_obs_count", "s1_desc_obs_count")
QUALITY = "quality"
QUALITY_FLAGS = {"no_data": 0, "valid": 1, "water": 2, "corrupt": 3}
"""What a pixel of published embeddings is, as the uint8 variable `quality`; only those that are valid have data."""
KIND = "tessera_xr_kind"
IDENTITY = ("model", "model_family", "weights_sha256")
"""Attributes that say whose embeddings these are: where they differ, distances between embeddings mean nothing."""
OFFICIAL = "model_official"
"""Attribute of embeddings whose model TESSERA's authors did not train; absent from all others."""
_COUNT_NAMES = ("clear Sentinel-2", "ascending Sentinel-1", "descending Sentinel-1")


def build_embeddings(variables: Mapping[str, xr.DataArray], like: xr.Dataset, attrs: Mapping[str, Any]) -> xr.Dataset:
    """Assemble an Embeddings dataset.

    Parameters
    ----------
    variables : mapping of DataArray
        `embeddings` ([time,] y, x, band) float32 or int8, `scales` ([time,] y, x) with int8, the counts of
        observations and `quality` ([time,] y, x) where they are known.
    like : Dataset
        Gives the grid.
    attrs : mapping
        Model, weights, period, source.

    Returns
    -------
    Dataset
        `embeddings` as ([time,] band, y, x), band last in memory.
    """
    arrays = {name: array.drop_vars([c for c in array.coords if c not in ("time", "time_end")])
              for name, array in variables.items()}  # fmt: skip
    embeddings = arrays[EMBEDDINGS]
    leading = ("time",) if "time" in embeddings.dims else ()
    arrays[EMBEDDINGS] = embeddings.transpose(*leading, "band", "y", "x")
    out = xr.Dataset(arrays).assign_coords(band=np.arange(embeddings.sizes["band"]))
    return with_grid(describe_variables(out, attrs), geobox_of(like))


def describe_variables(ds: xr.Dataset, attrs: Mapping[str, Any]) -> xr.Dataset:
    """Return embeddings with the attributes of the schema on each variable, and the given ones on the whole."""
    out = ds.copy()
    out[EMBEDDINGS].attrs = {"long_name": "TESSERA embedding"}
    if SCALES in out:
        out[SCALES].attrs = {"long_name": "scale of the int8 codes: embedding = code * scale"}
    for name, sensor in zip(COUNTS, _COUNT_NAMES, strict=True):
        if name in out:
            out[name].attrs = {"long_name": f"number of {sensor} observations"}
    if QUALITY in out:
        out[QUALITY].attrs = quality_attrs()
    out.attrs = {KIND: "embeddings", **attrs, "tessera_xr_version": __version__}
    return out


def quality_attrs() -> dict[str, Any]:
    """Return the attributes of `quality`: its flags in CF's words."""
    return {
        "long_name": "what the pixel is",
        "flag_values": np.array(list(QUALITY_FLAGS.values()), dtype=np.uint8),
        "flag_meanings": " ".join(QUALITY_FLAGS),
    }


def is_embeddings(ds: xr.Dataset) -> bool:
    """Say whether a dataset looks like embeddings, ours or published."""
    return EMBEDDINGS in ds.data_vars and "band" in ds[EMBEDDINGS].dims


def check_embeddings(ds: object) -> None:
    """Raise `SchemaError` unless `ds` holds embeddings in the one schema."""
    if not isinstance(ds, xr.Dataset) or not is_embeddings(ds):
        names = list(map(str, ds.data_vars)) if isinstance(ds, xr.Dataset) else type(ds).__name__
        raise SchemaError(
            f"this function needs embeddings: a Dataset with `embeddings` ([time,] band, y, x); found {names}. "
            "Make them with cube.tessera.embed(), or read published ones"
        )
    embeddings = ds[EMBEDDINGS]
    if embeddings.dtype not in (np.float32, np.float64, np.int8):
        raise SchemaError(f"`embeddings` must be float32 or int8, not {embeddings.dtype}")
    if embeddings.dtype == np.int8 and SCALES not in ds:
        raise SchemaError("int8 `embeddings` need `scales` ([time,] y, x) beside them")
    if embeddings.dtype != np.int8 and SCALES in ds:
        raise SchemaError(
            f"`embeddings` are {embeddings.dtype} but have `scales` beside them: int8 codes that became numbers, as "
            "where() and arithmetic make them. Do that with emb.tessera.dequantize(), or mask the scales alone: "
            "emb.assign(scales=emb.scales.where(mask))"
        )


def check_whole(name: str, value: object) -> None:
    """Raise `SchemaError` unless a value is a whole number."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise SchemaError(f"{name} must be a whole number, not {value!r}")


def check_same_model(*embeddings: xr.Dataset) -> None:
    """Raise `VersionMismatchError` if embeddings of different models, families, weights or lengths were to be mixed.

    What an attribute doesn't say can't contradict.
    """
    for key in IDENTITY:
        found = sorted({str(ds.attrs[key]) for ds in embeddings if key in ds.attrs})
        if len(found) > 1:
            raise VersionMismatchError(
                f"these embeddings can't be compared: they differ in {key} ({', '.join(found)}); "
                "embed both with the same model"
            )
    sizes = sorted({ds.sizes["band"] for ds in embeddings})
    if len(sizes) > 1:
        raise VersionMismatchError(f"these embeddings have different lengths ({sizes}); embed both with the same dims=")


def describe_embeddings(ds: xr.Dataset) -> str:
    """Return an inventory of embeddings: model, period, grid, memory, and what can be done next."""
    emb = ds[EMBEDDINGS]
    sha = str(ds.attrs.get("weights_sha256", "unknown"))[:12]
    times = [np.atleast_1d(ds[c].values) for c in ("time", "time_end") if c in ds.coords]
    spans = ["/".join(str(t)[:10] for t in span) for span in zip(*times, strict=True)]
    spans = spans or [str(ds.attrs.get("period", "unknown"))]
    lazy = emb.chunks is not None
    share = "lazy: not counted" if lazy else f"{has_data(ds).mean().item():.0%} of the pixels have data"
    lines = [
        f"TESSERA embeddings, {emb.sizes['band']} dimensions, {emb.dtype}{' with scales' if SCALES in ds else ''}",
        f"  model        {ds.attrs.get('model', 'unknown')}, weights {sha}",
        *([f"  official     {ds.attrs[OFFICIAL]}"] if OFFICIAL in ds.attrs else []),
        f"  period       {', '.join(spans)}",
        f"  grid         {describe_grid(ds)}",
        f"  data         {share}, {emb.nbytes / 1e6:,.1f} MB",
        'Next: .tessera.plot(), .tessera.similarity((lon, lat)), .tessera.cluster(8), .tessera.to_geotiff("emb.tif")',
    ]
    return "\n".join(lines)


def identity(ds: xr.Dataset | xr.DataArray) -> dict[str, Any]:
    """Return the attributes by which `check_same_model` knows a model: what an object fitted to embeddings keeps."""
    return {name: ds.attrs[name] for name in IDENTITY if name in ds.attrs}


def provenance(ds: xr.Dataset | xr.DataArray) -> dict[str, Any]:
    """Return what says where embeddings, or what was made of them, come from."""
    names = (OFFICIAL, "weights_licence", "period", "source")
    return identity(ds) | {name: ds.attrs[name] for name in names if name in ds.attrs}


def has_data(ds: xr.Dataset) -> xr.DataArray:
    """Return where embeddings have data, ([time,] y, x) bool."""
    if ds[EMBEDDINGS].dtype == np.int8:
        return ds[SCALES].notnull() & (abs(ds[SCALES]) != np.inf)
    return ds[EMBEDDINGS].isel(band=0).notnull().drop_vars("band", errors="ignore")


def describe_grid(ds: xr.Dataset) -> str:
    """Return one line on the grid of a dataset: CRS, size, resolution and place."""
    try:
        box = geobox_of(ds)
    except GridError as error:
        return f"none ({error})"
    west, south, east, north = bounds_lonlat(box)
    unit = "degree" if box.crs is not None and box.crs.geographic else "m"
    return (
        f"{box.shape[0]} x {box.shape[1]} px of {abs(box.resolution.x):g} {unit}, {crs_name(box.crs)}, "
        f"{south:.4f} to {north:.4f} N, {west:.4f} to {east:.4f} E"
    )
