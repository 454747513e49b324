"""The search index: exact search against brute force, approximate search against exact, and what is kept on disk."""

from __future__ import annotations

import json

import geopandas as gpd
import numpy as np
import pytest
import xarray as xr
from odc.geo.geobox import GeoBox
from pyproj import Geod
from shapely.geometry import Point

from tessera_xr import _optional
from tessera_xr.analysis import index_files
from tessera_xr.analysis.index import SearchIndex
from tessera_xr.analysis.places import spread
from tessera_xr.embedding.points import sample
from tessera_xr.embedding.quantize import dequantize, quantize
from tessera_xr.errors import MissingExtraError, SchemaError, TesseraWarning, VersionMismatchError
from tessera_xr.grid import with_grid

DIMS = 16
WEST = GeoBox.from_bbox((780_000, 4_999_700, 780_400, 5_000_000), crs="EPSG:32631", resolution=10)
EAST = GeoBox.from_bbox((230_000, 4_999_750, 230_300, 5_000_000), crs="EPSG:32632", resolution=10)


def make_map(grid: GeoBox, times: tuple[int, ...], seed: int) -> xr.Dataset:
    """Return embeddings that change slowly from pixel to pixel; 20 pixels have no data."""
    rng = np.random.default_rng(seed)
    shape = (len(times), *grid.shape, DIMS)
    values = rng.normal(size=(shape[0], *(s // 6 + 2 for s in grid.shape), DIMS)).repeat(6, 1).repeat(6, 2)
    values = values[:, : shape[1], : shape[2]] + 0.2 * rng.normal(size=shape)
    values[:, 3, 5:25] = np.nan
    array = xr.DataArray(values.astype(np.float32), dims=("time", "y", "x", "band"), coords={"time": list(times)})
    array = array.transpose("time", "band", "y", "x").assign_coords(band=np.arange(DIMS))
    return with_grid(xr.Dataset({"embeddings": array}, attrs={"model": "m", "weights_sha256": "a"}), grid)


@pytest.fixture(scope="module")
def maps() -> list[xr.Dataset]:
    """Two tiles of two UTM zones; the first has two years, int8, the second one year, float32."""
    return [quantize(make_map(WEST, (2019, 2020), 0)), make_map(EAST, (2020,), 1)]


@pytest.fixture(scope="module")
def index(maps, tmp_path_factory) -> SearchIndex:
    return SearchIndex.build(maps, tmp_path_factory.mktemp("index") / "maps.index")


@pytest.fixture(scope="module")
def truth(maps) -> gpd.GeoDataFrame:
    """Every pixel of every map and year, with its int8 codes as float64."""
    tables = []
    for number, emb in enumerate(maps):
        codes = quantize(emb).embeddings.transpose("time", "y", "x", "band")
        held = dequantize(emb).embeddings.isel(band=0).notnull().values
        t, y, x = np.nonzero(held)
        points = gpd.points_from_xy(emb.x.values[x], emb.y.values[y], crs=emb.odc.crs.to_epsg()).to_crs("EPSG:4326")
        columns = {"map": number, "time": emb.time.values[t].astype(str), "x": emb.x.values[x], "y": emb.y.values[y]}
        table = gpd.GeoDataFrame(columns, geometry=points)
        table["codes"] = list(codes.values[t, y, x].astype(float))
        tables.append(table)
    return gpd.GeoDataFrame(gpd.pd.concat(tables, ignore_index=True), geometry="geometry", crs="EPSG:4326")


def ranked(truth: gpd.GeoDataFrame, query: np.ndarray) -> gpd.GeoDataFrame:
    """Return all pixels with their similarity, best first."""
    codes = np.stack(truth["codes"].to_list())
    cosines = codes @ query / np.linalg.norm(codes, axis=1) / np.linalg.norm(query)
    return truth.assign(similarity=cosines).sort_values("similarity", ascending=False, kind="stable")


def same(found: gpd.GeoDataFrame, expected: gpd.GeoDataFrame) -> None:
    np.testing.assert_allclose(found["similarity"], expected["similarity"], atol=1e-6)
    for name in ("map", "time", "x", "y"):
        assert found[name].tolist() == expected[name].tolist()


QUERY = np.random.default_rng(5).normal(size=DIMS)


def test_exact_is_brute_force(index, truth):
    found = index.search(QUERY, 30, exact=True, min_distance=0)
    expected = ranked(truth, QUERY)[:30]
    same(found, expected)
    assert found["rank"].tolist() == list(range(1, 31))
    assert expected["map"].nunique() == 2
    assert found.crs == "EPSG:4326"
    assert found.attrs == {"model": "m", "weights_sha256": "a"}
    assert set(zip(found["map"], found["crs"], strict=True)) == {(0, "EPSG:32631"), (1, "EPSG:32632")}
    for place, point in zip(found.itertuples(), expected.geometry, strict=True):
        assert place.geometry.distance(point) < 1e-9
        assert (place.lon, place.lat) == pytest.approx((point.x, point.y))


def test_several_vectors_count_by_their_mean_cosine(index, truth):
    queries = np.random.default_rng(6).normal(size=(3, DIMS)) * [[1], [9], [0.1]]
    mean = (queries / np.linalg.norm(queries, axis=1, keepdims=True)).mean(axis=0)
    expected = ranked(truth, mean)[:9]
    expected["similarity"] *= np.linalg.norm(mean)
    same(index.search(queries, 9, exact=True, min_distance=0), expected)


def test_approximate_finds_nearly_all(index, truth):
    share = index.recall(10, 60)
    assert share > 0.95
    assert index.approximate
    found = index.search(QUERY, 50, min_distance=0)
    expected = ranked(truth, QUERY)[:50]
    assert (found["similarity"] >= expected["similarity"].iloc[-1] - 1e-6).mean() > 0.9
    merged = found.merge(ranked(truth, QUERY), on=["map", "time", "x", "y"])
    np.testing.assert_allclose(merged["similarity_x"], merged["similarity_y"], atol=1e-6)
    assert len(merged) == 50


@pytest.mark.parametrize("lost", [0, 1, 10])
def test_recall_is_the_share_found(index, monkeypatch, lost):
    def lossy(self, i, vector, m):
        near, similarity = self._read(i, vector, None)
        found = np.argsort(similarity)[: len(near) - lost]  # the best of each part are never found
        return near[found], similarity[found]

    monkeypatch.setattr(SearchIndex, "_walk", lossy)
    share = index.recall(10, 40)
    assert {0: share == 1, 1: 0.7 <= share <= 0.9, 10: share == 0}[lost]


def test_opening_gives_the_same(index):
    again = SearchIndex.open(index.path)
    assert repr(again) == repr(index)
    assert len(again) == 2 * (1200 - 20) + 750 - 20
    for exact in (True, False):
        xr.testing.assert_equal(
            index.search(QUERY, 5, exact=exact).drop(columns="geometry").to_xarray(),
            again.search(QUERY, 5, exact=exact).drop(columns="geometry").to_xarray(),
        )
    part = again.parts[0]
    assert isinstance(index_files.codes_of(again.path, part, DIMS), np.memmap)
    assert isinstance(index_files.pixels_of(again.path, part), np.memmap)
    assert "2 maps, times 2019, 2020, model m, approximate and exact search" in repr(again)


@pytest.mark.parametrize("time", [2019, "2020", [2019, 2020]])
def test_times(index, truth, time):
    wanted = [str(t) for t in (time if isinstance(time, list) else [time])]
    expected = ranked(truth[truth["time"].isin(wanted)], QUERY)[:20]
    same(index.search(QUERY, 20, exact=True, time=time, min_distance=0), expected)
    assert set(index.search(QUERY, 5, time=time)["time"]) <= set(wanted)


def test_regions(index, truth):
    west, south, east, north = truth[truth["map"] == 0].total_bounds
    half = (west - 1e-4, south - 1e-4, (west + east) / 2, north + 1e-4)
    cut = (truth["map"] == 0) & (truth.geometry.x < half[2])
    place = truth.geometry.iloc[700]
    disc = gpd.GeoSeries([place], crs="EPSG:4326").to_crs("EPSG:3035").buffer(90)
    everywhere = tuple(truth.total_bounds + np.array([-1, -1, 1, 1]))
    for region, inside in (
        (half, cut),
        (disc, truth.geometry.to_crs("EPSG:3035").within(disc.iloc[0])),
        (everywhere, np.ones(len(truth), bool)),
    ):
        expected = ranked(truth[inside], QUERY)[:15]
        same(index.search(QUERY, 15, exact=True, region=region, min_distance=0), expected)
        assert len(expected) == 15
        near = index.search(QUERY, 15, region=region, min_distance=0)  # cut parts are read, whole ones are walked
        np.testing.assert_allclose(near["similarity"], expected["similarity"], atol=1e-2)


@pytest.mark.parametrize("exact", [True, False])
def test_places_are_apart_in_metres(index, truth, exact):
    found = index.search(QUERY, 12, exact=exact, min_distance=85)
    geod = Geod(ellps="sphere")
    taken = []
    for place in ranked(truth, QUERY).itertuples():
        point = place.geometry
        far = (geod.inv(point.x, point.y, other.geometry.x, other.geometry.y)[2] for other in taken)
        if all(d >= 85 for d in far):
            taken.append(place)
        if len(taken) == 12:
            break
    expected = [place.similarity for place in taken]
    np.testing.assert_allclose(found["similarity"], expected, atol=1e-6 if exact else 0.02)
    assert len(found) == 12


def test_spread_looks_at_all_times_of_a_place_once():
    lon, lat = np.array([3, 3, 3, 179.9999, -179.9999]), np.array([45, 45, 45.001, 0, 0.0])
    assert spread(lon, lat, 9, 50).tolist() == [0, 2, 3], "22 m over the date line"
    assert spread(lon, lat, 9, 150).tolist() == [0, 3]
    assert spread(lon, lat, 9, 0).tolist() == [0, 1, 2, 3, 4]
    assert spread(lon, lat, 2, 50).tolist() == [0, 2]


def test_fewer_places_than_asked(index):
    with pytest.warns(TesseraWarning, match=r"only 2 of 9 places lie 5000 m apart"):
        assert len(index.search(QUERY, 9, min_distance=5_000)) == 2


def test_form_does_not_matter(maps, tmp_path):
    found = []
    forms = [maps, (m.chunk(y=7, x=9) for m in maps), [quantize(m) for m in maps]]
    for i, form in enumerate(forms):
        index = SearchIndex.build(form, tmp_path / str(i), approximate=False)
        assert not index.approximate
        assert not list(index.path.glob("*.graph"))
        assert index.recall(5, 10) == 1
        found.append(index.search(QUERY, 10).drop(columns="geometry"))
    for other in found[1:]:
        gpd.pd.testing.assert_frame_equal(other, found[0])


def test_a_sample_is_a_query(maps, index):
    emb = maps[0]
    point = gpd.GeoSeries([Point(float(emb.x[9]), float(emb.y[9]))], crs="EPSG:32631")
    taken = sample(emb.isel(time=1), point)
    place = index.search(taken, 1).iloc[0]
    assert (place["time"], place["x"], place["y"]) == ("2020", float(emb.x[9]), float(emb.y[9]))
    with pytest.raises(VersionMismatchError, match="differ in weights_sha256"):
        index.search(taken.assign_attrs(weights_sha256="b"))


def test_a_failure_leaves_nothing_behind(maps, tmp_path):
    other = maps[1].assign_attrs(model="other")
    with pytest.raises(VersionMismatchError, match="differ in model"):
        SearchIndex.build([maps[1], other], tmp_path / "i", approximate=False)
    assert list(tmp_path.iterdir()) == []
    kept = SearchIndex.build(maps[1], tmp_path / "i", approximate=False)
    with pytest.raises(VersionMismatchError):
        SearchIndex.build([maps[1], other], tmp_path / "i", approximate=False, overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["i"]
    assert len(kept.search(QUERY, 3)) == 3
    replaced = SearchIndex.build(maps, tmp_path / "i", approximate=False, overwrite=True)
    assert len(replaced) > len(kept)
    (tmp_path / "precious").mkdir()
    with pytest.raises(SchemaError, match="holds no search index"):
        SearchIndex.build(maps, tmp_path / "precious", approximate=False, overwrite=True)
    assert (tmp_path / "precious").is_dir()


def test_faults(index, maps, tmp_path, monkeypatch):
    with pytest.raises(SchemaError, match="exists; pass overwrite=True"):
        SearchIndex.build(maps, index.path)
    with pytest.raises(SchemaError, match="holds no search index of version 1"):
        SearchIndex.open(tmp_path)
    with pytest.raises(SchemaError, match="nothing to index"):
        SearchIndex.build([], tmp_path / "i")
    with pytest.raises(SchemaError, match="nothing to index"):
        SearchIndex.build(maps[1].isel(y=[3], x=slice(5, 25)), tmp_path / "i")
    with pytest.raises(SchemaError, match="k=731 must be from 1 to 730"):
        SearchIndex.build(maps[1], tmp_path / "i", approximate=False).search(QUERY, 731)
    with pytest.raises(SchemaError, match="no time 2031; it has 2019, 2020"):
        index.search(QUERY, time=2031)
    with pytest.raises(SchemaError, match="holds no pixel of the index"):
        index.search(QUERY, region=(0, 0, 1, 1))
    with pytest.raises(SchemaError, match="is empty; give"):
        index.search(QUERY, region=(2, 0, 1, 1))
    with pytest.raises(SchemaError, match="a region is"):
        index.search(QUERY, region="Ghent")
    with pytest.raises(SchemaError, match="polygons with a CRS"):
        index.search(QUERY, region=gpd.GeoSeries([Point(0, 0)], crs="EPSG:4326"))
    with pytest.raises(SchemaError, match="give vectors of 16 values"):
        index.search(np.ones(17))
    text = json.loads((index.path / "index.json").read_text())
    (tmp_path / "index.json").write_text(json.dumps(text | {"version": 2}))
    with pytest.raises(SchemaError, match="holds no search index of version 1"):
        SearchIndex.open(tmp_path)
    monkeypatch.setattr(_optional, "have", lambda package: False)
    with pytest.raises(MissingExtraError, match=r"pip install 'tessera-xr\[search\]'"):
        SearchIndex.build(maps, tmp_path / "j")
    with pytest.raises(ImportError, match="exact=True when searching"):
        SearchIndex.open(index.path).search(QUERY)
    assert len(SearchIndex.open(index.path).search(QUERY, 7, exact=True)) == 7
