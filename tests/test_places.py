"""The places most like a query: against a greedy search by hand, over all pixels."""

from __future__ import annotations

import geopandas as gpd
import numpy as np
import pytest
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox

from tessera_xr.analysis.places import find_similar
from tessera_xr.analysis.similarity import similarity
from tessera_xr.embedding.quantize import quantize
from tessera_xr.errors import SchemaError, TesseraWarning
from tessera_xr.grid import with_grid

GRID = GeoBox.from_bbox((600_000, 4_999_600, 600_600, 5_000_000), crs="EPSG:32631", resolution=10)
DEGREES = GeoBox.from_bbox((3, 45, 3.06, 45.04), crs="EPSG:4326", resolution=0.001)


def make_map(grid: GeoBox = GRID, times: tuple[int, ...] = (), seed: int = 0) -> xr.Dataset:
    """Return embeddings that change slowly from pixel to pixel, so that the best pixels lie in blobs."""
    rng = np.random.default_rng(seed)
    shape = (max(1, len(times)), *grid.shape, 16)
    values = rng.normal(size=(shape[0], *(s // 8 + 2 for s in grid.shape), 16)).repeat(8, 1).repeat(8, 2)
    values = values[:, : shape[1], : shape[2]] + 0.1 * rng.normal(size=shape)
    values[:, 0, 0] = np.nan
    array = xr.DataArray(values.astype(np.float32), dims=("time", "y", "x", "band")).assign_coords(band=np.arange(16))
    array = array.transpose("time", "band", "y", "x").assign_coords(time=list(times) or [0])
    array = array if times else array.isel(time=0, drop=True)
    return with_grid(xr.Dataset({"embeddings": array}, attrs={"model": "m"}), grid)


def greedy(scores: np.ndarray, k: int, distance: float, pixel: float) -> list[tuple[int, int]]:
    """Take the best pixel, then the best far enough from all that were taken, and so on."""
    taken: list[tuple[int, int]] = []
    for flat in np.argsort(-scores.ravel(), kind="stable"):
        y, x = map(int, np.unravel_index(flat, scores.shape))
        far = all(np.hypot(y - v, x - u) * pixel >= distance for v, u in taken)
        if far and np.isfinite(scores[y, x]):
            taken.append((y, x))
        if len(taken) == k:
            break
    return taken


def pixels(places: gpd.GeoDataFrame, emb: xr.Dataset) -> list[tuple[int, int]]:
    rows, columns = (emb.get_index(d).get_indexer(places[d], method="nearest") for d in ("y", "x"))
    return list(zip(rows.tolist(), columns.tolist(), strict=True))


@pytest.mark.parametrize("distance", [0, 10, 25, 73, 110])
@pytest.mark.parametrize("form", ["float32", "int8", "lazy"])
def test_greedy_by_hand(distance, form):
    emb = make_map()
    emb = {"float32": emb, "int8": quantize(emb), "lazy": quantize(emb).chunk(y=17, x=23)}[form]
    scores = similarity(emb, np.ones(16)).compute()
    places = find_similar(emb, np.ones(16), 12, min_distance=distance)
    assert pixels(places, emb) == greedy(scores.values, 12, distance, 10)
    assert places["rank"].tolist() == list(range(1, 13))
    np.testing.assert_array_equal(places["similarity"], [scores.values[p] for p in pixels(places, emb)])


def test_pixels_need_not_be_square():
    emb = make_map(GeoBox((40, 60), Affine(4, 0, 600_000, 0, -25, 5_000_000), "EPSG:32631"))
    places = find_similar(emb, np.ones(16), 12, min_distance=60)
    best = similarity(emb, np.ones(16)).to_series().dropna().sort_values(ascending=False)
    taken: list[np.ndarray] = []
    for y, x in best.index:
        if len(taken) < 12 and all(np.hypot(x - u, y - v) >= 60 for u, v in taken):
            taken.append(np.array([x, y]))
    np.testing.assert_allclose(places[["x", "y"]], taken)


def test_places_are_apart_and_not_one_blob():
    emb = make_map()
    blob, spread = (find_similar(emb, np.ones(16), 8, **options) for options in ({"min_distance": 0}, {}))
    apart = [[a.distance(b) for a in g.geometry for b in g.geometry if a is not b] for g in (blob, spread)]
    assert min(apart[0]) <= 30
    assert min(apart[1]) >= 100, "ten pixels if not told"
    assert blob["similarity"].sum() > spread["similarity"].sum()


@pytest.mark.parametrize("options", [{"metric": "euclidean"}, {"metric": "mahalanobis"}, {"combine": "min"}])
def test_options_reach_similarity(options):
    emb = make_map()
    query, negative = np.random.default_rng(1).normal(size=(2, 3, 16))
    scores = similarity(emb, query, negative=negative, **options)
    places = find_similar(emb, query, 5, negative=negative, **options)
    assert pixels(places, emb) == greedy(scores.values, 5, 100, 10)
    assert pixels(places, emb) != pixels(find_similar(emb, query, 5), emb)


def test_what_comes_back():
    emb = make_map()
    places = find_similar(emb, np.ones(16), 4)
    columns = ["rank", "similarity", "x", "y", "lon", "lat", "geometry"]
    assert isinstance(places, gpd.GeoDataFrame)
    assert list(places.columns) == columns
    assert places.crs == "EPSG:32631"
    assert places.attrs == {"model": "m"}
    assert places.geometry.x.tolist() == places["x"].tolist()
    assert set(places["y"]) <= set(emb.y.values)
    degrees = places.to_crs("EPSG:4326").geometry
    np.testing.assert_allclose(np.stack([degrees.x, degrees.y]), places[["lon", "lat"]].T.values)
    assert 4.2 < places["lon"].min() < 4.3


def test_a_place_finds_itself_first():
    emb = make_map()
    at = (float(emb.x[30]), float(emb.y[20]))
    places = find_similar(emb, at, 3, crs="EPSG:32631")
    assert (places["x"][0], places["y"][0]) == at
    assert places["similarity"][0] == pytest.approx(1, abs=1e-6)


def test_degrees():
    emb = make_map(DEGREES)
    scores = similarity(emb, np.ones(16))
    places = find_similar(emb, np.ones(16), 6, min_distance=0.0042)
    assert pixels(places, emb) == greedy(scores.values, 6, 0.0042, 0.001)
    np.testing.assert_allclose(places["lon"], places["x"])


def test_a_place_counts_once_at_its_best_time():
    emb = make_map(times=(2019, 2020, 2021))
    emb["embeddings"][1, :, 5, 5] = np.nan
    scores = similarity(emb, np.ones(16))
    places = find_similar(emb, np.ones(16), 15)
    assert pixels(places, emb) == greedy(scores.max("time").values, 15, 100, 10)
    for (y, x), time, value in zip(pixels(places, emb), places["time"], places["similarity"], strict=True):
        assert value == scores.sel(time=time).values[y, x] == np.nanmax(scores.values[:, y, x])
    assert places["time"].nunique() > 1


def test_fewer_places_than_asked():
    emb = make_map()
    with pytest.warns(TesseraWarning, match=r"only \d of 50 places fit 300 apart"):
        places = find_similar(emb, np.ones(16), 50, min_distance=300)
    assert pixels(places, emb) == greedy(similarity(emb, np.ones(16)).values, 50, 300, 10)
    with pytest.warns(TesseraWarning, match="only 1 of 2"):
        assert len(find_similar(emb, np.ones(16), 2, min_distance=np.inf)) == 1
    all_pixels = find_similar(emb, np.ones(16), 40 * 60 - 1, min_distance=0)  # and no warning
    assert len(all_pixels) == 40 * 60 - 1
    assert (np.diff(all_pixels["similarity"]) <= 0).all()


def test_the_first_in_reading_order_wins_a_tie():
    emb = make_map()
    emb["embeddings"] = xr.ones_like(emb.embeddings)
    places = find_similar(emb, np.ones(16), 3, min_distance=20)
    assert pixels(places, emb) == [(0, 0), (0, 2), (0, 4)]


def test_faults(monkeypatch):
    emb = make_map()
    with pytest.raises(SchemaError, match="k=2400 must be from 1 to 2399, the number of pixels with data"):
        find_similar(emb, np.ones(16), 2400, min_distance=0)
    with pytest.raises(SchemaError, match="min_distance=-5 must be 0 or more"):
        find_similar(emb, np.ones(16), min_distance=-5)
    with pytest.raises(SchemaError, match="min_distance=nan"):
        find_similar(emb, np.ones(16), min_distance=np.nan)
    monkeypatch.setattr("tessera_xr.analysis.places.similarity", None)  # raised before long work
    for k in (0, 2401):
        with pytest.raises(SchemaError, match=f"k={k} must be from 1 to 2400"):
            find_similar(emb, np.ones(16), k)
