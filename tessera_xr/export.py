"""Files that GIS opens."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import xarray as xr

from tessera_xr._version import __version__
from tessera_xr.embedding.quantize import dequantize
from tessera_xr.embedding.schema import EMBEDDINGS, is_embeddings
from tessera_xr.errors import SchemaError
from tessera_xr.grid import geobox_of

_BAND_DIMS = ("band", "component", "rgb")


def to_geotiff(obj: xr.Dataset | xr.DataArray, path: str | os.PathLike[str]) -> Path:
    """Write embeddings, components or a picture as a cloud-optimised GeoTIFF with overviews, band names and provenance.

    The file appears whole or not at all.

    Parameters
    ----------
    obj : Dataset or DataArray
        Embeddings (written as float32, whatever they are), the map of a head, of which `prediction` is written, or a
        DataArray (y, x) or with one further dimension, which becomes the bands. Pictures from 0 to 1 become bytes.
    path : str or path
        Where to; an existing file is replaced.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    SchemaError
        If there is more than one further dimension, such as `time`: choose one step first.
    """
    array = _array(obj)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        raise SchemaError(f"{path} is a folder; give the name of a file, for example {path / 'map.tif'}")
    attrs = {**array.attrs, **obj.attrs}
    attrs |= {str(c): str(obj[c].values)[:10] for c in ("time", "time_end") if c in obj.coords and not obj[c].ndim}
    tags = {k: str(v) for k, v in attrs.items() if isinstance(v, (str, int, float)) and k != "grid_mapping"}
    with TemporaryDirectory(dir=path.parent, prefix=".tessera-") as folder:
        temporary = Path(folder) / "out.tif"
        _write(array, temporary, {**tags, "tessera_xr_version": __version__})
        temporary.replace(path)
    return path


def _array(obj: xr.Dataset | xr.DataArray) -> xr.DataArray:
    """Return what to write as (band, y, x)."""
    if isinstance(obj, xr.Dataset) and "prediction" in obj:
        obj = obj["prediction"]
    if isinstance(obj, xr.Dataset):
        if not is_embeddings(obj):
            raise SchemaError(f"a Dataset must hold embeddings to be written; choose one of {list(obj.data_vars)}")
        obj = dequantize(obj)[EMBEDDINGS]
    others = [d for d in obj.dims if d not in ("y", "x")]
    if len(others) > 1 or not {"y", "x"} <= set(obj.dims):
        raise SchemaError(
            f"a GeoTIFF holds bands over y and x, but this has dimensions {obj.dims}; choose one step, "
            "for example emb.sel(time=2020)"
        )
    if not others:
        return obj.expand_dims("band").transpose("band", "y", "x")
    return obj.transpose(others[0], "y", "x")


def _write(array: xr.DataArray, path: Path, tags: Mapping[str, Any]) -> None:
    import rasterio
    from rasterio.shutil import copy

    box, values = geobox_of(array), array.values
    nodata: float | None = None
    if array.dims[0] == "rgb":
        values = np.where(np.isfinite(values), 1 + np.rint(np.nan_to_num(values) * 254), 0).astype(np.uint8)
        nodata = 0
    elif values.dtype == bool:
        values = values.astype(np.uint8)
    elif values.dtype.kind == "f":
        nodata = float("nan")
    elif "nodata" in array.attrs:
        nodata = float(array.attrs["nodata"])
    plain = path.with_name("plain.tif")
    profile = {"driver": "GTiff", "count": len(values), "height": box.shape[0], "width": box.shape[1]}
    place = {"crs": str(box.crs), "transform": box.transform, "nodata": nodata, "dtype": values.dtype.name}
    with rasterio.open(plain, "w", **profile, **place, tiled=True, BIGTIFF="IF_SAFER") as file:
        file.write(values)
        file.update_tags(**tags)
        labels = array[array.dims[0]].values if array.dims[0] in array.coords else range(len(values))
        for i, label in enumerate(labels, start=1):
            file.set_band_description(i, f"{array.dims[0]} {label}")
    is_float = values.dtype.kind == "f"
    # the mean of two classes is a third: whole numbers other than colours keep the commonest
    resampling = "average" if is_float or array.dims[0] == "rgb" else "mode"
    options = {"compress": "deflate", "predictor": "3" if is_float else "2", "bigtiff": "IF_SAFER"}
    copy(plain, path, driver="COG", overview_resampling=resampling, **options)
