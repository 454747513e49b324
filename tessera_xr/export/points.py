"""Places as tables that others open: GeoJSON and GeoParquet."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from tessera_xr._optional import require
from tessera_xr._version import __version__
from tessera_xr.embedding.quantize import dequantize
from tessera_xr.embedding.schema import EMBEDDINGS, check_embeddings
from tessera_xr.errors import SchemaError
from tessera_xr.export.files import PathLike, plain, replacing
from tessera_xr.grid import GRID_MAPPING, crs_of

if TYPE_CHECKING:
    from geopandas import GeoDataFrame, GeoSeries

DIGITS = 7
"""Decimals of degrees: a centimetre."""


def to_geojson(places: GeoDataFrame, path: PathLike) -> Path:
    """Write places or outlines as GeoJSON (RFC 7946): longitude and latitude, 7 decimals, columns as properties.

    The file appears whole or not at all.

    Parameters
    ----------
    places : GeoDataFrame
        In any CRS: what `find_similar`, `suggest`, `stratified_points` or `outline_segments` return, or your own.
    path : str or path
        Where to; an existing file is replaced.

    Returns
    -------
    Path
        The file. What `places.attrs` says of the origin is its member `provenance`.

    Raises
    ------
    SchemaError
        If these are no places, or they have no CRS.
    """
    if isinstance(places, xr.Dataset):
        raise SchemaError("embeddings at points are too long for GeoJSON; write them with to_geoparquet(points, path)")
    _check_places(places)
    table = places.to_crs("EPSG:4326")
    table = table.set_geometry([shape and _counterclockwise(shape) for shape in table.geometry], crs="EPSG:4326")
    document = table.to_geo_dict(na="null", drop_id=places.index.name is None)
    for feature in document["features"]:
        feature["properties"] = plain(feature["properties"])
        if feature["geometry"] is not None:
            feature["geometry"] = _rounded(feature["geometry"])
    document["provenance"] = plain({**places.attrs, "tessera_xr_version": __version__})
    with replacing(path, "places.geojson") as temporary:
        temporary.write_text(json.dumps(document, ensure_ascii=False, allow_nan=False), encoding="utf-8")
    return Path(path)


def to_geoparquet(places: GeoDataFrame | xr.Dataset, path: PathLike) -> Path:
    """Write places, or embeddings at points, as GeoParquet, which geopandas, QGIS, DuckDB and R open.

    The file appears whole or not at all. Needs pyarrow.

    Parameters
    ----------
    places : GeoDataFrame or Dataset
        Places or outlines in any CRS, or what `sample` returns: a row for each point (and time), its embedding as one
        column of lists, float32, and its counts of observations.
    path : str or path
        Where to; an existing file is replaced.

    Returns
    -------
    Path
        The file. What the attributes say of the origin is in its metadata; `geopandas.read_parquet` gives it back as
        ``.attrs``.

    Raises
    ------
    SchemaError
        If these are no places, or they have no CRS.
    MissingExtraError
        If pyarrow isn't installed.
    """
    require("pyarrow", "parquet", "GeoParquet")
    table = _as_table(places) if isinstance(places, xr.Dataset) else places
    _check_places(table)
    table = table.copy(deep=False)
    table.attrs = plain({**table.attrs, "tessera_xr_version": __version__})
    with replacing(path, "places.parquet") as temporary:
        table.to_parquet(temporary, index=table.index.name is not None)
    return Path(path)


def _as_table(points: xr.Dataset) -> GeoDataFrame:
    """Return embeddings at points as a row for each point and time."""
    from geopandas import GeoDataFrame

    check_embeddings(points)
    if "point" not in points[EMBEDDINGS].dims:
        raise SchemaError(
            "these embeddings are a map; sample them at points first, emb.tessera.sample(points), or write the map "
            "with to_zarr or to_geotiff"
        )
    place = _place(points)
    points = dequantize(points).compute()
    rows = ("point", "time") if "time" in points[EMBEDDINGS].dims else ("point",)
    vectors = points[EMBEDDINGS].transpose(*rows, "band").values.reshape(-1, points.sizes["band"])
    flat = points.drop_vars([EMBEDDINGS, "band", GRID_MAPPING], errors="ignore")
    table = flat.to_dataframe(dim_order=rows).reset_index()
    table = table.assign(embedding=list(vectors))
    each = np.repeat(np.arange(len(place)), len(table) // len(place))  # as often as there are times
    placed = GeoDataFrame(table, geometry=place.iloc[each].array)
    placed.attrs = dict(points.attrs)
    return placed


def _place(points: xr.Dataset) -> GeoSeries:
    """Return where the points are; in degrees if they lie in several UTM zones."""
    import pandas as pd
    from geopandas import GeoSeries

    stated = points[GRID_MAPPING].attrs if GRID_MAPPING in points.coords else {}
    crs = stated.get("crs_wkt") or stated.get("spatial_ref") or crs_of(points)
    zones = points["utm_zone"].values if "utm_zone" in points.coords else None
    if not {"x", "y"} <= set(points.coords) or (crs is None and zones is None):
        raise SchemaError("these points have no place or no CRS; take them with emb.tessera.sample(points)")
    x, y = points["x"].values, points["y"].values
    if zones is None:
        return GeoSeries.from_xy(x, y, crs=str(crs))
    parts = [
        GeoSeries.from_xy(x[i], y[i], index=i, crs=32600 + int(zones[i[0]])).to_crs(4326)
        for i in (np.flatnonzero(zones == zone) for zone in np.unique(zones))
    ]
    return pd.concat(parts).sort_index()


def _check_places(places: object) -> None:
    from geopandas import GeoDataFrame

    if not isinstance(places, GeoDataFrame):
        raise SchemaError(
            f"{type(places).__name__} is no table of places; give a GeoDataFrame, as find_similar returns it"
        )
    if places.crs is None:
        raise SchemaError("these places have no CRS; set it with .set_crs('EPSG:4326')")


def _counterclockwise(shape: Any) -> Any:
    """Return a geometry with its outer rings counterclockwise, as RFC 7946 has them."""
    from shapely.geometry import MultiPolygon
    from shapely.geometry.polygon import orient

    if shape.geom_type == "MultiPolygon":
        return MultiPolygon([orient(part) for part in shape.geoms])
    return orient(shape) if shape.geom_type == "Polygon" else shape


def _rounded(shape: Mapping[str, Any]) -> dict[str, Any]:
    def rounded(part: Any) -> Any:
        return [rounded(p) for p in part] if isinstance(part, tuple | list) else round(float(part), DIGITS)

    return {"type": shape["type"], "coordinates": rounded(shape["coordinates"])}
