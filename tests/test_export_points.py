"""GeoJSON and GeoParquet of places: what another program reads is where and what they are."""

from __future__ import annotations

import json

import geopandas as gpd
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import xarray as xr
from pyproj import Transformer
from shapely.geometry import MultiPolygon, Point, box

import tessera_xr as txr
from tessera_xr import _optional
from tessera_xr.errors import MissingExtraError, SchemaError
from tessera_xr.export import to_geojson, to_geoparquet


@pytest.fixture(scope="module")
def caldor() -> xr.Dataset:
    return txr.tutorial.embeddings()


@pytest.fixture(scope="module")
def places(caldor) -> gpd.GeoDataFrame:
    return caldor.sel(time=2024).tessera.find_similar(np.ones(128), 6)


# GeoJSON -------------------------------------------------------------------------------------------------------------


def test_places_as_geojson(places, tmp_path):
    path = to_geojson(places, tmp_path / "deep" / "p.geojson")
    assert [p.name for p in path.parent.iterdir()] == ["p.geojson"]
    document = json.loads(path.read_text())
    assert "crs" not in document
    assert document["provenance"]["model"] == places.attrs["model"]
    for feature, place in zip(document["features"], places.itertuples(), strict=True):
        assert feature["geometry"]["type"] == "Point"
        lon, lat = feature["geometry"]["coordinates"]
        assert (lon, lat) == (round(place.lon, 7), round(place.lat, 7))
        assert feature["properties"]["rank"] == place.rank
        assert feature["properties"]["similarity"] == pytest.approx(place.similarity)
    found = gpd.read_file(path)
    assert found.crs.to_epsg() == 4326
    assert found.to_crs(places.crs).distance(places.geometry).max() < 0.02


def test_outlines_as_geojson_turn_left(tmp_path):
    clockwise = box(0, 0, 2, 1).reverse() if box(0, 0, 2, 1).exterior.is_ccw else box(0, 0, 2, 1)
    shapes = [clockwise, MultiPolygon([clockwise, box(5, 5, 6, 6)]), None]
    frame = gpd.GeoDataFrame({"n": [1, 2, 3]}, geometry=shapes, crs=4326)
    to_geojson(frame, tmp_path / "o.geojson")
    found = gpd.read_file(tmp_path / "o.geojson")
    assert found.geometry[0].exterior.is_ccw
    assert all(part.exterior.is_ccw for part in found.geometry[1].geoms)
    assert found.geometry[2] is None
    assert found.geometry[1].equals(shapes[1])


def test_segments_keep_their_numbers(caldor, tmp_path):
    outlines = txr.outline_segments(caldor.sel(time=2024).tessera.segment(20))
    document = json.loads(to_geojson(outlines, tmp_path / "s.geojson").read_text())
    assert [int(f["id"]) for f in document["features"]] == list(outlines.index)
    assert document["features"][0]["properties"]["pixels"] == int(outlines["pixels"].iloc[0])


def test_odd_columns_as_geojson(tmp_path):
    columns = {
        "when": pd.to_datetime(["2020-01-02T03:04:05", None]),
        "share": [np.inf, np.nan],
        "whole": np.array([1, 2], np.uint8),
        "list": [np.array([1.5, np.nan]), None],
        "name": ["Löwe", None],
    }
    frame = gpd.GeoDataFrame(columns, geometry=[Point(0, 0), Point(1, 1)], crs=4326)
    first, second = (
        f["properties"] for f in json.loads(to_geojson(frame, tmp_path / "o.geojson").read_text())["features"]
    )
    assert first == {"when": "2020-01-02T03:04:05", "share": None, "whole": 1, "list": [1.5, None], "name": "Löwe"}
    assert second == {"when": None, "share": None, "whole": 2, "list": None, "name": None}


# GeoParquet ----------------------------------------------------------------------------------------------------------


def test_places_as_geoparquet(places, caldor, tmp_path):
    found = gpd.read_parquet(to_geoparquet(places, tmp_path / "p.parquet"))
    pd.testing.assert_frame_equal(pd.DataFrame(found), pd.DataFrame(places), check_like=True)
    assert found.crs == places.crs
    assert found.attrs == {**places.attrs, "tessera_xr_version": txr.__version__}
    assert "tessera_xr_version" not in places.attrs, "what was given is left as it was"
    outlines = txr.outline_segments(caldor.sel(time=2024).tessera.segment(20))
    assert list(gpd.read_parquet(to_geoparquet(outlines, tmp_path / "s.parquet")).index) == list(outlines.index)
    geo = json.loads(pq.read_schema(tmp_path / "p.parquet").metadata[b"geo"])
    assert geo["columns"]["geometry"]["encoding"] == "WKB"


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("quantized", [False, True])
def test_a_sample_as_geoparquet(lazy, quantized, places, caldor, tmp_path):
    emb = caldor if quantized else caldor.tessera.dequantize()
    sample = (emb.chunk(y=20) if lazy else emb).tessera.sample(places)
    found = gpd.read_parquet(to_geoparquet(sample, tmp_path / "s.parquet"))
    assert len(found) == 6 * 9
    expected = caldor.tessera.dequantize().tessera.sample(places)
    for point, year in ((0, 2017), (5, 2025), (3, 2020)):
        row = found[(found["point"] == point) & (found["time"] == year)].iloc[0]
        here = expected.isel(point=point).sel(time=year)
        assert row["embedding"].dtype == np.float32
        np.testing.assert_array_equal(row["embedding"], here.embeddings)
        assert row["s2_obs_count"] == here.s2_obs_count
        assert row.geometry.equals(places.geometry.iloc[point])
    assert found.crs.to_epsg() == 32610
    assert found.attrs["model"] == caldor.attrs["model"]
    assert pq.read_schema(tmp_path / "s.parquet").field("embedding").type.value_type == "float"


def test_one_year_of_a_sample_and_points_outside(caldor, places, tmp_path):
    emb = caldor.sel(time=2024)
    xy = [(places.x[0], places.y[0]), (0, 0)]
    sample = emb.tessera.sample(xy, crs="EPSG:32610", outside="nodata")
    found = gpd.read_parquet(to_geoparquet(sample, tmp_path / "s.parquet"))
    assert found["time"].tolist() == [2024, 2024]
    assert np.isnan(found["embedding"][1]).all()
    assert found.geometry[0].equals(places.geometry[0])
    assert found.geometry[1] is None or found.geometry[1].is_empty


def test_points_of_several_zones(caldor, tmp_path):
    """As published embeddings at far places come: metres of the zone that each lies in."""
    lonlat = [(2.9, 50.0), (3.1, 50.0), (9.0, 47.0)]
    zones = [31, 31, 32]
    xy = [
        Transformer.from_crs(4326, 32600 + z, always_xy=True).transform(*p) for z, p in zip(zones, lonlat, strict=True)
    ]
    sample = caldor.isel(time=[0, 1]).tessera.sample([(731_300.0, 4_286_000.0)] * 3, crs="EPSG:32610")
    coords = {"x": ("point", [p[0] for p in xy]), "y": ("point", [p[1] for p in xy]), "utm_zone": ("point", zones)}
    found = gpd.read_parquet(
        to_geoparquet(sample.drop_vars("spatial_ref").assign_coords(coords), tmp_path / "z.parquet")
    )
    assert found.crs.to_epsg() == 4326
    np.testing.assert_allclose(found.geometry.x, np.repeat([p[0] for p in lonlat], 2), atol=1e-9)
    np.testing.assert_allclose(found.geometry.y, np.repeat([p[1] for p in lonlat], 2), atol=1e-9)


# What is refused -----------------------------------------------------------------------------------------------------


def test_what_are_no_places(caldor, places, tmp_path, monkeypatch):
    emb, out = caldor.sel(time=2024), tmp_path / "no"
    for write in (to_geojson, to_geoparquet):
        with pytest.raises(SchemaError, match="DataFrame is no table of places; give a GeoDataFrame"):
            write(pd.DataFrame({"a": [1]}), out)
        with pytest.raises(SchemaError, match=r"no CRS; set it with .set_crs"):
            write(gpd.GeoDataFrame(geometry=[Point(0, 0)]), out)
        with pytest.raises(SchemaError, match="is a folder; give the name of a file"):
            write(places, tmp_path)
    sample = emb.tessera.sample(places)
    with pytest.raises(SchemaError, match=r"too long for GeoJSON; write them with to_geoparquet"):
        to_geojson(sample, out)
    with pytest.raises(SchemaError, match=r"are a map; sample them at points first"):
        to_geoparquet(emb, out)
    with pytest.raises(SchemaError, match="no place or no CRS"):
        to_geoparquet(sample.drop_vars("spatial_ref"), out)
    monkeypatch.setattr(_optional, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"GeoParquet needs pyarrow.*pip install 'tessera-xr\[parquet\]'"):
        to_geoparquet(places, out)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_is_replaced_whole_or_not_at_all(places, tmp_path, monkeypatch):
    path = to_geoparquet(places, tmp_path / "p.parquet")
    before = path.read_bytes()

    def failing(self, target, **options):
        target.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(gpd.GeoDataFrame, "to_parquet", failing)
    with pytest.raises(OSError, match="disk full"):
        to_geoparquet(places.head(2), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["p.parquet"]
