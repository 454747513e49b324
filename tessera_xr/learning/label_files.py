"""Label sets from and to tables: GeoDataFrame and GeoJSON."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tessera_xr.errors import SchemaError
from tessera_xr.learning.edits import (
    State,
    Value,
    checked_colour,
    checked_name,
    checked_number,
    checked_quality,
    checked_source,
    checked_target,
    coloured,
    filled,
)
from tessera_xr.learning.geometries import (
    LONLAT,
    Geometries,
    are_finite,
    as_valid_as_before,
    canonical_crs,
    check_geometries,
    read_shape,
    reproject,
)

if TYPE_CHECKING:
    from geopandas import GeoDataFrame
    from pandas import Series

FORMAT = "tessera_xr"
VERSION = 1
DIGITS = 9
"""Of degrees: a tenth of a millimetre."""


def column_of(state: State) -> str:
    """Return the name of the column that holds the values."""
    return state.target or "class"


def to_geodataframe(state: State) -> GeoDataFrame:
    """Return labels as a table indexed by id; see `LabelSet.to_geodataframe`."""
    import geopandas as gpd
    import pandas as pd

    labels = list(state.labels.values())
    columns = {
        column_of(state): [label.value for label in labels],
        "quality": np.array([label.quality for label in labels], dtype=np.float64),
        "source": [label.source for label in labels],
    }
    index = pd.Index([label.id for label in labels], name="id", dtype=object)
    geometry = gpd.GeoSeries([label.geometry for label in labels], index=index, crs=state.crs)
    return gpd.GeoDataFrame(columns, geometry=geometry, index=index)


def from_geodataframe(
    gdf: GeoDataFrame,
    column: str,
    *,
    colours: Mapping[str, Any] | None = None,
    quality: str | float | None = None,
    source: str | None = None,
    target: bool = False,
) -> State:
    """Return the labels of a table; see `LabelSet.from_geodataframe`."""
    import pandas as pd

    _check_table(gdf, column)
    crs = canonical_crs(gdf.crs)
    values, is_number = _values(gdf[column], column, target=target)
    qualities = _column(gdf, quality, "quality") if isinstance(quality, str) else [1.0 if quality is None else quality]
    sources = list(gdf[source].fillna("").astype(str)) if source in gdf.columns else [source or ""]
    state = State(target=checked_target(column)) if is_number else State(classes=_found(values, colours), grows=True)
    if is_number and colours:
        raise SchemaError(f"{column!r} holds numbers, which have no colours; leave colours= out")
    state.crs = crs
    n = len(gdf)
    return filled(
        state,
        check_geometries(gdf.geometry.to_numpy(), crs),
        values,
        quality=[checked_quality(q) for q in (qualities if len(qualities) == n else qualities * n)],
        source=[checked_source(s) for s in (sources if len(sources) == n else sources * n)],
        ids=[None if pd.isna(i) else str(i) for i in gdf.index] if gdf.index.name == "id" else None,
    )


def to_geojson(state: State) -> dict[str, Any]:
    """Return labels as a FeatureCollection; see `LabelSet.to_geojson`."""
    from shapely.geometry import mapping

    labels = list(state.labels.values())
    shapes = np.empty(len(labels), dtype=object)
    shapes[:] = [label.geometry for label in labels]
    shapes = reproject(shapes, state.crs, LONLAT)
    lost = [label.id for label, there in zip(labels, are_finite(shapes), strict=True) if not there] if labels else []
    if lost:
        raise SchemaError(f"labels {', '.join(lost[:5])} have no longitude and latitude; move or remove them")
    features = [
        {
            "type": "Feature",
            "id": label.id,
            "geometry": _rounded(mapping(_counterclockwise(shape))),
            "properties": {column_of(state): label.value, "quality": label.quality, "source": label.source},
        }
        for label, shape in zip(labels, shapes, strict=True)
    ]
    facts = {
        "version": VERSION,
        "classes": [{"name": name, "colour": colour} for name, colour in state.classes.items()],
        "target": state.target,
        "crs": state.crs,
        "grows": state.grows,
        "next_id": state.next_id,
    }
    return {"type": "FeatureCollection", FORMAT: facts, "features": features}


def from_geojson(source: Any, column: str | None = None, *, target: bool = False) -> State:
    """Return the labels of a FeatureCollection; see `LabelSet.from_geojson`."""
    name = "this mapping" if isinstance(source, Mapping) else str(source)
    document = source if isinstance(source, Mapping) else read_json(Path(source))
    if not isinstance(document, Mapping) or document.get("type") != "FeatureCollection":
        raise SchemaError(f"{name} is no GeoJSON FeatureCollection; give one, as LabelSet.to_geojson() writes it")
    features = document.get("features")
    if not isinstance(features, list) or not all(isinstance(f, Mapping) for f in features):
        raise SchemaError(f"{name} has no list of features; it is damaged")
    if FORMAT not in document:
        return _foreign(document, features, name, column or "class", target=target)
    if column is not None or target:
        raise SchemaError(f"{name} was written by LabelSet.to_geojson() and says all itself; leave column= out")
    try:
        return _own(document[FORMAT], features)
    except (KeyError, TypeError, AttributeError, ValueError) as error:  # SchemaError is a ValueError
        said = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise SchemaError(f"{name} is damaged: {said}") from error


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise SchemaError(f"{path} is no JSON file, or damaged ({error})") from error


def write_json(document: Mapping[str, Any], path: Path) -> None:
    """Write a JSON file that is either whole or the one before."""
    text = json.dumps(document, ensure_ascii=False, allow_nan=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _own(facts: Any, features: list[Any]) -> State:
    """Return what `to_geojson` wrote, strictly."""
    if facts["version"] != VERSION:
        raise SchemaError(f"its version is {facts['version']!r}, this package reads {VERSION}; update the package")
    target = None if facts["target"] is None else checked_target(facts["target"])
    classes = {checked_name(c["name"]): checked_colour(c["colour"]) for c in facts["classes"]}
    state = State(classes, target, canonical_crs(facts["crs"]), bool(facts["grows"]), next_id=int(facts["next_id"]))
    rows = [feature["properties"] for feature in features]
    values: list[Value] = [row[column_of(state)] for row in rows]
    unknown = sorted({str(v) for v in values if v not in classes}) if target is None else []
    if unknown:
        raise SchemaError(f"its labels are of classes that it doesn't list: {', '.join(unknown[:5])}")
    ids = [feature["id"] for feature in features]
    if len(set(ids)) < len(ids) or not all(isinstance(i, str) and i for i in ids):
        raise SchemaError("its ids are not texts that differ")
    return filled(
        state,
        reproject(check_geometries(as_valid_as_before(_shapes(features)), LONLAT), LONLAT, state.crs),
        values if target is None else [checked_number(v) for v in values],
        quality=[checked_quality(row["quality"]) for row in rows],
        source=[checked_source(row["source"]) for row in rows],
        ids=ids,
    )


def _foreign(document: Mapping[str, Any], features: list[Any], name: str, column: str, *, target: bool) -> State:
    """Return what others wrote: a property of each feature."""
    import geopandas as gpd
    import pandas as pd

    properties = [feature.get("properties") or {} for feature in features]
    found = sorted({str(key) for row in properties for key in row})
    if column not in found:
        raise SchemaError(f"the features of {name} have no property {column!r}; choose column= from {found}")
    old_style = document.get("crs")  # of GeoJSON before RFC 7946, which some programs still write
    crs = LONLAT if old_style is None else canonical_crs(_named_crs(old_style))
    ids = pd.Index([feature.get("id") for feature in features], name="id", dtype=object)
    values = {column: [row.get(column) for row in properties]}
    table = gpd.GeoDataFrame(values, geometry=_shapes(features), index=ids, crs=crs)
    return from_geodataframe(table, column, target=target)


def _named_crs(member: Any) -> Any:
    try:
        return member["properties"]["name"]
    except (KeyError, TypeError) as error:
        raise SchemaError(f"the member 'crs' {member!r} names no coordinate system; take it out") from error


def _shapes(features: list[Any]) -> Geometries:
    """Return the geometries of features."""
    shapes = np.empty(len(features), dtype=object)
    for i, feature in enumerate(features):
        if feature.get("geometry") is None:
            raise SchemaError(f"the feature at position {i} has no geometry; take it out")
        shapes[i] = read_shape(feature["geometry"])
    return shapes


def _counterclockwise(shape: Any) -> Any:
    """Return a geometry with its outer rings counterclockwise, as RFC 7946 has them."""
    from shapely.geometry import MultiPolygon
    from shapely.geometry.polygon import orient

    if shape.geom_type == "Point":
        return shape
    return orient(shape) if shape.geom_type == "Polygon" else MultiPolygon([orient(part) for part in shape.geoms])


def _rounded(shape: Mapping[str, Any]) -> dict[str, Any]:
    def rounded(part: Any) -> Any:
        return [rounded(p) for p in part] if isinstance(part, tuple | list) else round(float(part), DIGITS)

    return {"type": shape["type"], "coordinates": rounded(shape["coordinates"])}


def _check_table(gdf: Any, column: str) -> None:
    geometry = getattr(gdf, "geometry", None)
    if geometry is None or not hasattr(geometry, "geom_type") or not hasattr(gdf, "columns"):
        raise SchemaError(f"labels come from a GeoDataFrame, not {type(gdf).__name__}; see geopandas.GeoDataFrame")
    if column not in gdf.columns or column == geometry.name:
        others = [str(c) for c in gdf.columns if c != geometry.name]
        raise SchemaError(f"the table has no column {column!r} of labels; choose one of {others}")
    if not len(gdf):
        raise SchemaError("the table has no rows; there is nothing to learn from")
    if gdf.crs is None:
        raise SchemaError("the table has no CRS; set it with gdf.set_crs('EPSG:4326') or another that it is in")
    for name, missing in ((column, gdf[column].isna()), (geometry.name, geometry.isna())):
        if missing.any():
            raise SchemaError(
                f"{int(missing.sum())} of {len(gdf)} rows have no {name!r}; drop them with "
                f"gdf.dropna(subset={[column, geometry.name]})"
            )


def _values(series: Series[Any], name: str, *, target: bool) -> tuple[list[Value], bool]:
    """Return the values of a column, and whether they are numbers."""
    import pandas as pd
    from pandas.api import types

    series = series.infer_objects()
    kind = series.cat.categories.dtype if isinstance(series.dtype, pd.CategoricalDtype) else series.dtype
    if target or types.is_float_dtype(series.dtype):
        if not types.is_numeric_dtype(series.dtype) or types.is_bool_dtype(series.dtype):
            raise SchemaError(f"the column {name!r} holds {series.dtype}, not numbers; leave target=True out")
        return [checked_number(value) for value in series.astype(np.float64)], True
    if types.is_bool_dtype(kind):
        return ["true" if value else "false" for value in series], False
    texts = all(isinstance(value, str) for value in series)
    if not texts and not types.is_numeric_dtype(kind):
        raise SchemaError(f"the column {name!r} holds {kind} of mixed or other kinds; make it text with .astype(str)")
    return [checked_name(str(value)) for value in series], False


def _found(values: list[Value], colours: Mapping[str, Any] | None) -> dict[str, str]:
    """Return the classes of values: those with given colours in that order, then the others sorted."""
    given = {checked_name(name): colour for name, colour in (colours or {}).items()}
    others = {str(value) for value in values} - set(given)
    return coloured([*given, *sorted(others, key=_naturally)], given)


def _naturally(name: str) -> tuple[int, float, str]:
    """Sort whole numbers by value, and before text."""
    return (0, int(name), name) if name.isdecimal() else (1, 0, name)


def _column(gdf: Any, name: str, what: str) -> list[Any]:
    if name not in gdf.columns:
        raise SchemaError(f"the table has no column {name!r} for {what}; it has {[str(c) for c in gdf.columns]}")
    return list(gdf[name])
