"""Cloud-optimised GeoTIFF."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt
import xarray as xr
from tqdm.auto import tqdm

from tessera_xr._version import __version__
from tessera_xr.embedding.quantize import dequantize
from tessera_xr.embedding.schema import EMBEDDINGS, is_embeddings
from tessera_xr.errors import SchemaError
from tessera_xr.export.files import PathLike, local, plain, replacing
from tessera_xr.export.legend import Legend, read_legend
from tessera_xr.grid import geobox_of, spatial_dims, with_grid

if TYPE_CHECKING:
    from odc.geo.geobox import GeoBox

VARIABLE = "variable"
STRIP = 256
"""Rows that are computed and written at a time, at least."""
_OF_THE_BAND = ("long_name", "standard_name", "valid_min", "valid_max", "flag_values", "flag_meanings", "flag_colors")
_SAID_OTHERWISE = ("units", "nodata", "_FillValue", "grid_mapping", "Conventions", "zarr_conventions", "proj:code")


def to_geotiff(obj: xr.Dataset | xr.DataArray, path: PathLike, *, progress: bool = True) -> Path:
    """Write embeddings, a map or a picture as a cloud-optimised GeoTIFF: overviews, band names, provenance, legend.

    The file appears whole or not at all. Lazy input is computed a strip at a time, so that it may exceed the memory.

    Parameters
    ----------
    obj : Dataset or DataArray
        Embeddings (written as float32, whatever they are: a GeoTIFF can't hold a scale for each pixel), the map of a
        head, of which `prediction` is written, a Dataset of maps (y, x) of one type, which become the bands, or a
        DataArray (y, x) or with one further dimension, which becomes the bands. Pictures from 0 to 1 become bytes.
    path : str or path
        Where to; an existing file is replaced.
    progress : bool, default True
        Whether to show it, where it takes longer than a second.

    Returns
    -------
    Path
        The file. Maps with flag_values, flag_meanings and flag_colors (predictions, clusters) carry a colour table,
        and have the names of the classes beside them in `<path>.aux.xml`, where GDAL and QGIS read them.

    Raises
    ------
    SchemaError
        If there is more than one further dimension, such as `time`: choose one step first. If the values are neither
        numbers nor true and false.
    GridError
        If there is no usable grid.
    """
    path = local(path)
    obj = _north_up(obj)
    sheet = _sheet(obj)
    with replacing(path, "map.tif") as temporary:
        rough = temporary.with_name("rough.tif")
        with _created(rough, sheet) as file, tqdm(
            total=sheet.box.shape[0], unit="row", desc="writing", delay=1, disable=not progress
        ) as bar:  # fmt: skip
            for rows in _strips(obj):
                _write_strip(file, sheet, obj, rows)
                bar.update(rows.stop - rows.start)
        _optimise(rough, temporary, sheet)
        beside = path.with_name(f"{path.name}.aux.xml")
        beside.unlink(missing_ok=True)  # names and statistics of the file before
        if sheet.legend is not None:
            names = temporary.with_name("names.xml")
            sheet.legend.write(names, len(sheet.bands))
            names.replace(beside)
    return path


@dataclass(frozen=True)
class Sheet:
    """All that a file says beside its values."""

    box: GeoBox
    dtype: np.dtype[Any]
    nodata: float | None
    bands: tuple[str, ...]
    units: tuple[str, ...]
    tags: dict[str, str]
    band_tags: tuple[dict[str, str], ...]
    legend: Legend | None
    is_picture: bool


# What to write -------------------------------------------------------------------------------------------------------


def _north_up(obj: xr.Dataset | xr.DataArray) -> xr.Dataset | xr.DataArray:
    """Return a map with rows from north to south and dimensions y and x, as programs expect them."""
    y, x = spatial_dims(obj)
    geobox_of(obj)  # checks that there is one
    for dim, falls in ((y, True), (x, False)):
        first, last = obj[dim].values[[0, -1]]
        if (first < last) if falls else (first > last):
            obj = obj.isel({dim: slice(None, None, -1)})
    names = {old: new for old, new in ((y, "y"), (x, "x")) if old != new}
    if not names:
        return obj
    renamed = obj.drop_vars([n for n in names.values() if n in obj.coords]).rename(names)
    return with_grid(cast("xr.Dataset", renamed), geobox_of(obj))


def _sheet(obj: xr.Dataset | xr.DataArray) -> Sheet:
    array = _layers(obj.isel(y=slice(0, 1)))
    is_picture, legend = array.dims[0] == "rgb", read_legend(array.attrs)
    dtype = _stored_type(array, legend)
    tags = {k: v for k, v in {**array.attrs, **obj.attrs}.items() if k not in (*_OF_THE_BAND, *_SAID_OTHERWISE)}
    tags |= {str(c): str(obj[c].values)[:10] for c in ("time", "time_end") if c in obj.coords and not obj[c].ndim}
    own = {"TIFFTAG_SOFTWARE": f"tessera_xr {__version__}", "tessera_xr_version": __version__}
    each = _attrs_of_bands(obj, array)
    return Sheet(
        geobox_of(obj),
        dtype,
        _nodata(array, dtype, legend),
        _names(array),
        tuple(str(attrs.get("units", "")) for attrs in each),
        _as_tags(tags) | own,
        tuple(_as_tags({k: attrs[k] for k in _OF_THE_BAND if k in attrs}, sequences=True) for attrs in each),
        legend if dtype.kind in "ui" else None,
        is_picture,
    )


def _attrs_of_bands(obj: xr.Dataset | xr.DataArray, array: xr.DataArray) -> list[Mapping[Any, Any]]:
    if array.dims[0] == VARIABLE and isinstance(obj, xr.Dataset):
        return [obj[name].attrs for name in array[VARIABLE].values]
    return [array.attrs] * len(array)


def _layers(obj: xr.Dataset | xr.DataArray) -> xr.DataArray:
    """Return what to write as (band, y, x)."""
    if isinstance(obj, xr.Dataset):
        obj = _chosen(obj)
    others = [d for d in obj.dims if d not in ("y", "x")]
    if len(others) > 1:
        raise SchemaError(
            f"a GeoTIFF holds bands over y and x, but this has dimensions {obj.dims}; choose one step, "
            f"for example {_example(obj, others)}"
        )
    if not others:
        return obj.expand_dims("band").transpose("band", "y", "x")
    return obj.transpose(others[0], "y", "x")


def _example(obj: xr.DataArray, others: Sequence[Any]) -> str:
    """Say how to choose one step of a further dimension, and how to write them all."""
    if "time" not in obj.coords or "time" not in others:
        return f".isel({others[0]}=0)"
    last = obj["time"].values[-1]
    when = repr(str(last)[:10]) if last.dtype.kind == "M" else last
    return (
        f"emb.sel(time={when}), or write a file for each: "
        "for t in emb.time.values: emb.sel(time=t).tessera.to_geotiff(f'{str(t)[:10]}.tif')"
    )


def _chosen(ds: xr.Dataset) -> xr.DataArray:
    """Return the variable of a Dataset that is meant, or all of its maps as bands."""
    if "prediction" in ds:
        return ds["prediction"]
    if is_embeddings(ds):
        return dequantize(ds)[EMBEDDINGS]
    maps = list(ds.data_vars.values())
    if not maps or any(set(m.dims) != {"y", "x"} or m.dtype != maps[0].dtype for m in maps):
        raise SchemaError(
            "a Dataset must hold embeddings, a prediction, or maps (y, x) of one type to be written; "
            f"choose one of {list(ds.data_vars)}"
        )
    return maps[0] if len(maps) == 1 else ds.to_dataarray(VARIABLE)


def _names(array: xr.DataArray) -> tuple[str, ...]:
    """Return the descriptions of the bands: the labels along their dimension, or the name of a single map."""
    dim = array.dims[0]
    if len(array) == 1 and dim not in array.coords:
        return (str(array.attrs.get("long_name") or array.name or "band 1"),)
    labels = array[dim].values if dim in array.coords else np.arange(len(array))
    words = labels.dtype.kind in "OUST"
    return tuple(str(label) if words else f"{dim} {str(label)[:10]}" for label in labels)


def _stored_type(array: xr.DataArray, legend: Legend | None) -> np.dtype[Any]:
    """Return the type in the file."""
    kind = array.dtype
    if array.dims[0] == "rgb" or kind.kind == "b":
        return np.dtype(np.uint8)
    if kind.kind not in "iuf":
        raise SchemaError(
            f"{array.name or 'this'} holds {kind}, which a GeoTIFF can't; turn it into numbers first, "
            "for example .dt.dayofyear of dates"
        )
    if legend is not None and kind.kind == "f":  # codes of which some were masked
        return np.dtype(np.uint8 if max(legend.codes) < 256 else np.uint16)
    return np.dtype(np.float32) if kind == np.float16 else kind


def _nodata(array: xr.DataArray, dtype: np.dtype[Any], legend: Legend | None) -> float | None:
    if array.dims[0] == "rgb":
        return 0
    if dtype.kind == "f":
        return float("nan")
    stated = array.attrs.get("nodata", array.attrs.get("_FillValue", array.encoding.get("_FillValue")))
    if array.dtype.kind == "f" and legend is not None:
        stated = 0 if stated is None or not np.isfinite(stated) else stated
        if stated in legend.codes:
            raise SchemaError(f"code {stated} is a class and can't stand for what was masked; set the attribute nodata")
    limits = np.iinfo(dtype)
    return float(stated) if stated is not None and limits.min <= stated <= limits.max else None


def _as_tags(attrs: Mapping[Any, Any], *, sequences: bool = False) -> dict[str, str]:
    kinds = (str, int, float, np.number, *((np.ndarray, list, tuple) if sequences else ()))
    found = {str(k): plain(v) for k, v in attrs.items() if isinstance(v, kinds)}
    return {k: " ".join(map(str, v)) if isinstance(v, list) else str(v) for k, v in found.items()}


# How it is written ---------------------------------------------------------------------------------------------------


def _created(path: Path, sheet: Sheet) -> Any:
    """Return a new open file, plain, with all but its values."""
    import rasterio

    shape = {"count": len(sheet.bands), "height": sheet.box.shape[0], "width": sheet.box.shape[1]}
    place = {"crs": str(sheet.box.crs), "transform": sheet.box.transform, "nodata": sheet.nodata}
    kind = {"dtype": sheet.dtype.name, "interleave": "band", "tiled": True, "bigtiff": "IF_SAFER"}
    file = rasterio.open(path, "w", driver="GTiff", **shape, **place, **kind)
    file.update_tags(**sheet.tags)
    for i, name in enumerate(sheet.bands, start=1):
        file.set_band_description(i, name)
        file.update_tags(i, **sheet.band_tags[i - 1])
    if any(sheet.units):
        file.units = sheet.units
    if sheet.legend is not None and len(sheet.bands) == 1 and sheet.dtype.name in ("uint8", "uint16"):
        file.write_colormap(1, sheet.legend.palette)  # no data is clear by itself
    return file


def _strips(obj: xr.Dataset | xr.DataArray) -> Iterator[slice]:
    """Yield stretches of rows, of lazy maps whole chunks."""
    arrays = obj.data_vars.values() if isinstance(obj, xr.Dataset) else [obj]
    lazy = [a.chunksizes["y"] for a in arrays if a.chunks is not None and "y" in a.dims]
    n = obj.sizes["y"]
    start = 0
    for stop in accumulate(max(lazy, key=max) if lazy else [STRIP] * -(-n // STRIP)):
        if stop - start >= STRIP or stop >= n:
            yield slice(start, min(stop, n))
            start = stop


def _write_strip(file: Any, sheet: Sheet, obj: xr.Dataset | xr.DataArray, rows: slice) -> None:
    from rasterio.windows import Window

    values = _values(_layers(obj.isel(y=rows)).values, sheet)
    file.write(values, window=Window(0, rows.start, values.shape[2], values.shape[1]))


def _values(values: npt.NDArray[Any], sheet: Sheet) -> npt.NDArray[Any]:
    """Return values as they are stored."""
    if sheet.is_picture and values.dtype != np.uint8:
        return np.where(np.isfinite(values), 1 + np.rint(np.nan_to_num(values) * 254), 0).astype(np.uint8)
    if sheet.legend is not None and values.dtype.kind == "f":
        filled = np.where(np.isnan(values), float(sheet.nodata or 0), values)
        stored = filled.astype(sheet.dtype)
        if (stored != filled).any():
            raise SchemaError(
                "this map has flag_values, but holds other numbers than codes; drop the attribute to write numbers"
            )
        return stored
    return values.astype(sheet.dtype, copy=False)


def _optimise(rough: Path, path: Path, sheet: Sheet) -> None:
    """Write a plain file as a COG."""
    from rasterio.shutil import copy

    is_float, is_classes = sheet.dtype.kind == "f", sheet.legend is not None
    # a block holds all bands: with 128 of them the usual 512 pixels a side would be 134 MB for a look at one
    side = next(s for s in (512, 256, 128) if s == 128 or s * s * len(sheet.bands) * sheet.dtype.itemsize <= 16_000_000)
    copy(
        rough,
        path,
        driver="COG",
        blocksize=side,
        compress="DEFLATE",
        predictor="NO" if is_classes else "FLOATING_POINT" if is_float else "STANDARD",
        bigtiff="IF_SAFER",
        num_threads="ALL_CPUS",
        # the mean of two classes is a third: whole numbers other than colours keep the commonest
        overview_resampling="AVERAGE" if is_float or sheet.is_picture else "MODE",
    )
