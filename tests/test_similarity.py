"""Similarity: against its formulas in float64, and the same whatever the form of the embeddings and of the query."""

from __future__ import annotations

import tracemalloc

import dask
import geopandas as gpd
import numpy as np
import pytest
import xarray as xr
from odc.geo.geobox import GeoBox
from shapely.geometry import LineString, Point, Polygon, box

from tessera_xr import tutorial
from tessera_xr.analysis import metrics
from tessera_xr.analysis.queries import pixels_within, query_vectors
from tessera_xr.analysis.similarity import similarity
from tessera_xr.embedding.points import sample
from tessera_xr.embedding.quantize import dequantize, quantize
from tessera_xr.errors import GridError, SchemaError, TesseraWarning, VersionMismatchError
from tessera_xr.grid import geobox_of, with_grid

HEIGHT, WIDTH, DIMS = 13, 11, 24
GRID = GeoBox.from_bbox((500_000, 4_999_870, 500_110, 5_000_000), crs="EPSG:32631", resolution=10)


def make_map(values: np.ndarray, grid: GeoBox = GRID, times: tuple[int, ...] = (2019, 2020)) -> xr.Dataset:
    """Return values (time, y, x, band) as embeddings, band last in memory."""
    dims = ("time", "y", "x", "band")
    array = xr.DataArray(values, dims=dims, coords={"time": list(times), "band": np.arange(values.shape[-1])})
    ds = xr.Dataset({"embeddings": array.transpose("time", "band", "y", "x")}, attrs={"model": "m", "source": "s"})
    return with_grid(ds, grid)


@pytest.fixture
def emb() -> xr.Dataset:
    """Two years of embeddings with a mean and unequal spread; pixel (0, 0) never has data, (5, 6) not in 2020."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(2, HEIGHT, WIDTH, DIMS)) * np.geomspace(3, 0.05, DIMS) + 0.5 * rng.normal(size=DIMS)
    values[:, 0, 0] = values[1, 5, 6] = np.nan
    return make_map(values.astype(np.float32))


def rows(emb: xr.Dataset) -> np.ndarray:
    """Return embeddings as (time, y, x, band) float64, NaN without data."""
    return dequantize(emb).embeddings.transpose("time", "y", "x", "band").values.astype(np.float64)


def centre(emb: xr.Dataset, y: int, x: int) -> tuple[float, float]:
    """Return longitude and latitude of the middle of a pixel."""
    point = gpd.GeoSeries([Point(float(emb.x[x]), float(emb.y[y]))], crs="EPSG:32631").to_crs("EPSG:4326")[0]
    return point.x, point.y


def measure(values: np.ndarray, query: np.ndarray, metric: str, emb: xr.Dataset) -> np.ndarray:
    """Compare pixels (..., d) with one vector, by the book and in float64."""
    if metric == "cosine":
        return (values @ query) / np.linalg.norm(values, axis=-1) / np.linalg.norm(query)
    inverse = np.eye(len(query))
    if metric == "mahalanobis":
        pixels = rows(emb).reshape(-1, len(query))
        covariance = np.cov(pixels[np.isfinite(pixels[:, 0])], rowvar=False)
        ridge = metrics.RIDGE * np.trace(covariance) / len(query)
        inverse = np.linalg.inv(covariance + ridge * np.eye(len(query)))
    difference = values - query
    return -np.sqrt(np.einsum("...i,ij,...j->...", difference, inverse, difference))


@pytest.mark.parametrize("metric", ["cosine", "euclidean", "mahalanobis"])
@pytest.mark.parametrize("combine", ["mean", "max", "min"])
@pytest.mark.parametrize("form", ["float32", "int8"])
def test_formula(emb, metric, combine, form):
    emb = emb if form == "float32" else quantize(emb)
    rng = np.random.default_rng(1)
    positives, negatives = (rng.normal(size=(n, DIMS)).astype(np.float32) for n in (3, 2))
    one, alone, both = (
        similarity(emb, p, negative=n, combine=combine, metric=metric)
        for p, n in ((positives[0], None), (positives, None), (positives, negatives))
    )
    values = rows(emb)
    reduce = getattr(np, combine)
    expected = [reduce([measure(values, q, metric, emb) for q in qs], axis=0) for qs in (positives, negatives)]
    np.testing.assert_allclose(one, measure(values, positives[0], metric, emb), rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(alone, expected[0], rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(both, expected[0] - expected[1], rtol=1e-4, atol=2e-5)


def test_a_cosine_stays_within_its_limits_and_reaches_them(emb):
    pixels = rows(emb)[0].reshape(-1, DIMS)[1:]
    itself = similarity(emb.isel(time=0), pixels, combine="max").values.ravel()[1:]
    assert itself.max() == 1, "not 1.0000001"
    np.testing.assert_allclose(itself, 1, atol=1e-6)
    against = similarity(emb.isel(time=0), pixels[:1], negative=-pixels[:1], combine="max")
    assert float(against[0, 1]) == pytest.approx(2, abs=1e-6)


def test_what_comes_back(emb):
    found = similarity(emb, np.ones(DIMS), negative=np.arange(DIMS))
    assert found.dims == ("time", "y", "x")
    assert found.dtype == np.float32
    assert found.name == "similarity"
    assert geobox_of(found) == GRID
    assert found.time.values.tolist() == [2019, 2020]
    expected = {"grid_mapping": "spatial_ref", "model": "m", "source": "s", "metric": "cosine", "valid_min": -2}
    assert found.attrs.items() >= expected.items()
    missing = np.zeros((2, HEIGHT, WIDTH), bool)
    missing[:, 0, 0] = missing[1, 5, 6] = True
    np.testing.assert_array_equal(found.isnull(), missing)
    single = similarity(emb.sel(time=2020), np.ones(DIMS))
    assert single.dims == ("y", "x")
    assert single.attrs["valid_max"] == 1


@pytest.mark.parametrize("nothing", [np.nan, np.inf])
@pytest.mark.parametrize("metric", ["cosine", "euclidean", "mahalanobis"])
def test_codes_without_a_scale_have_no_data(emb, nothing, metric):
    codes = quantize(emb)
    codes["embeddings"][0, :, 3, 4] = 7  # published stores don't clear them
    codes["scales"][0, 3, 4] = nothing
    found = similarity(codes, np.ones(DIMS), metric=metric)
    assert int(found.isnull().sum()) == 4
    assert np.isnan(found[0, 3, 4])


def test_the_cosine_needs_no_scales(emb):
    codes = quantize(emb)
    query = np.random.default_rng(2).normal(size=(2, DIMS))
    scaled = codes.assign(scales=codes.scales * np.random.default_rng(3).uniform(0.1, 9, codes.scales.shape))
    for combine in ("mean", "max"):
        xr.testing.assert_identical(
            similarity(codes, query, combine=combine), similarity(scaled, query, combine=combine)
        )


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_int8_is_within_the_bound_of_quantisation(emb, metric):
    query = np.random.default_rng(2).normal(size=(3, DIMS))
    codes = quantize(emb)
    error = abs(similarity(codes, query, metric=metric) - similarity(emb, query, metric=metric))
    moved = np.sqrt(DIMS) / 2 * codes.scales  # every value by half a step
    bound = moved if metric == "euclidean" else 2 * moved / np.sqrt((emb.embeddings**2).sum("band"))
    assert bool((error <= bound + 1e-6).where(error.notnull(), True).all())
    assert float(error.max()) > 1e-5, "the bound is there to be used"


@pytest.mark.parametrize("metric", ["cosine", "euclidean", "mahalanobis"])
@pytest.mark.parametrize("form", ["float32", "int8"])
def test_lazy_is_eager_in_odd_chunks(emb, metric, form):
    emb = emb if form == "float32" else quantize(emb)
    place = centre(emb, 4, 7)
    expected = similarity(emb, place, combine="max", metric=metric, time=2019)
    for chunks in ({"y": 5, "x": 3, "time": 1}, {"y": 4, "band": 7}):
        lazy = similarity(emb.chunk(chunks), place, combine="max", metric=metric, time=2019)
        assert lazy.chunks is not None
        xr.testing.assert_allclose(lazy.compute(), expected, rtol=1e-5, atol=2e-5)
        assert lazy.attrs == expected.attrs


def test_nothing_is_computed_until_asked(emb):
    def refuse(*args, **kwargs):
        raise AssertionError("computed")

    with dask.config.set(scheduler=refuse):
        similarity(quantize(emb).chunk(y=5), np.ones((2, DIMS)), negative=np.arange(DIMS), metric="euclidean")


def test_memory_order_does_not_matter(emb):
    query = np.arange(DIMS)
    shuffled = emb.copy(deep=True)
    shuffled["embeddings"] = emb.embeddings.copy(data=np.ascontiguousarray(emb.embeddings.values))
    assert shuffled.embeddings.values.flags.c_contiguous
    xr.testing.assert_allclose(similarity(shuffled, query), similarity(emb, query))
    xr.testing.assert_allclose(similarity(emb.isel(x=slice(2, 9)), query), similarity(emb, query).isel(x=slice(2, 9)))


def test_permuted_pixels_permute_answers(emb):
    flat = rows(emb).reshape(2, -1, DIMS)
    order = np.random.default_rng(0).permutation(flat.shape[1])
    permuted = make_map(flat[:, order].reshape(2, HEIGHT, WIDTH, DIMS).astype(np.float32))
    for metric in ("cosine", "mahalanobis"):
        found, expected = (similarity(e, np.ones(DIMS), metric=metric).values for e in (permuted, emb))
        np.testing.assert_allclose(found.reshape(2, -1), expected.reshape(2, -1)[:, order], rtol=1e-4, atol=1e-4)


def test_a_pixel_is_most_like_itself(emb):
    codes = quantize(emb)
    for metric, highest in (("cosine", 1), ("euclidean", 0), ("mahalanobis", 0)):
        found = similarity(codes, centre(emb, 8, 2), time=2020, metric=metric)
        assert float(found[1, 8, 2]) == pytest.approx(highest, abs=1e-4)
        assert int(np.nanargmax(found.values)) == np.ravel_multi_index((1, 8, 2), found.shape)


# What a query can be -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["float32", "int8", "lazy"])
def test_places_are_the_pixels_that_hold_them(emb, form):
    emb = {"float32": emb, "int8": quantize(emb), "lazy": quantize(emb).chunk(y=4, x=6)}[form]
    expected = rows(emb)[1, [2, 9], [3, 4]]
    points = [centre(emb, 2, 3), centre(emb, 9, 4)]
    np.testing.assert_allclose(query_vectors(emb, points, time=2020), expected, rtol=1e-6)
    np.testing.assert_allclose(query_vectors(emb, np.array(points), time=2020), expected, rtol=1e-6)
    np.testing.assert_allclose(query_vectors(emb, points[0], time=2020), expected[:1], rtol=1e-6)
    xy = [(float(emb.x[3]), float(emb.y[2])), (float(emb.x[4]), float(emb.y[9]))]
    np.testing.assert_allclose(query_vectors(emb, xy, time="2020", crs="EPSG:32631"), expected, rtol=1e-6)
    places = gpd.GeoDataFrame(geometry=[Point(*p) for p in points], crs="EPSG:4326")
    for crs in ("EPSG:4326", "EPSG:3857", "EPSG:32632"):
        np.testing.assert_allclose(query_vectors(emb, places.to_crs(crs), time=2020), expected, rtol=1e-6)
    np.testing.assert_allclose(query_vectors(emb, places.geometry, time=2020), expected, rtol=1e-6)


@pytest.mark.parametrize("form", ["float32", "int8", "lazy"])
def test_areas_are_the_mean_of_their_pixels(emb, form):
    emb = {"float32": emb, "int8": quantize(emb), "lazy": quantize(emb).chunk(y=4, x=6)}[form]
    left, top = float(emb.x[2]) - 5, float(emb.y[4]) + 5
    area, hut = box(left, top - 30, left + 50, top), box(left + 3, top - 4, left + 4, top - 3)
    values = rows(emb)
    expected = np.nanmean(values[1, 4:7, 2:7].reshape(-1, DIMS), axis=0)  # without (5, 6), which has no data
    places = gpd.GeoDataFrame(geometry=[area, Point(left + 5, top - 5), hut], crs="EPSG:32631").to_crs("EPSG:3035")
    found = query_vectors(emb, places, time=2020)
    np.testing.assert_allclose(found, [values[1, 4, 2], expected, values[1, 4, 2]], rtol=1e-5, atol=1e-6)
    mask = xr.zeros_like(emb.embeddings[0, 0], dtype=bool).compute()
    mask[4:7, 2:7] = True
    np.testing.assert_allclose(query_vectors(emb, mask, time=2020)[0], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(query_vectors(emb, mask.T, time=2020)[0], expected, rtol=1e-5, atol=1e-6)
    both = mask.expand_dims(time=emb.time).copy()
    both[0] = False
    np.testing.assert_allclose(query_vectors(emb, both)[0], expected, rtol=1e-5, atol=1e-6)


def test_many_pixels_are_averaged_in_pieces(emb, monkeypatch):
    monkeypatch.setattr("tessera_xr.analysis.queries.PIECE", 17)
    monkeypatch.setattr("tessera_xr.analysis.queries.STRIPE", 50)
    mask = xr.ones_like(emb.embeddings[:, 0], dtype=bool)
    expected = np.nanmean(rows(emb).reshape(-1, DIMS), axis=0)
    for form in (emb, emb.chunk(y=6), emb.chunk(y=3)):
        np.testing.assert_allclose(query_vectors(form, mask)[0], expected, rtol=1e-5, atol=1e-6)


def test_pixels_within_are_those_whose_centre_is():
    triangle = Polygon([(500_012, 4_999_990), (500_096, 4_999_975), (500_030, 4_999_883)])
    for shape in (triangle, triangle.buffer(300), triangle.buffer(40), box(500_031, 0, 500_062, 9e6)):
        y, x, mask = pixels_within(GRID, shape)
        whole = np.zeros(GRID.shape, bool)
        whole[y, x] = mask
        centres = [Point(500_005 + 10 * i, 4_999_995 - 10 * j) for j in range(HEIGHT) for i in range(WIDTH)]
        np.testing.assert_array_equal(whole.ravel(), [shape.contains(c) for c in centres])
    assert not pixels_within(GRID, box(0, 0, 9, 9), touched=True)[2].any()


def test_what_sample_returns_is_a_query(emb):
    place = centre(emb, 3, 3)
    taken = sample(quantize(emb.sel(time=2019)), place)
    found = query_vectors(emb, taken)  # no time to choose: it has been chosen
    np.testing.assert_array_equal(found, query_vectors(quantize(emb), place, time=2019))
    np.testing.assert_array_equal(query_vectors(emb, dequantize(taken).embeddings), found)
    with pytest.raises(VersionMismatchError, match="differ in model"):
        query_vectors(emb.assign_attrs(model="other"), taken)
    with pytest.raises(VersionMismatchError, match="different lengths"):
        query_vectors(emb.isel(band=slice(9)), taken)


def test_places_without_data_are_left_out_and_said(emb):
    places = [centre(emb, 0, 0), centre(emb, 2, 3)]
    with pytest.warns(TesseraWarning, match="1 of 2 places or vectors of the query have no data"):
        found = query_vectors(emb, places, time=2020)
    np.testing.assert_allclose(found, rows(emb)[1, 2:3, 3], rtol=1e-6)


def test_faults(emb):
    def refused(error, match, query=(3.0, 45.15), emb=emb, time=2020, **options):
        with pytest.raises(error, match=match):
            similarity(emb, query, time=time, **options)

    inside = centre(emb, 2, 3)
    refused(GridError, r"1 of 1 points lie outside the map.*reaches from 3\.0", (4.0, 45.15))
    far = gpd.GeoDataFrame(geometry=[box(0, 0, 1, 1)], crs="EPSG:4326")
    refused(GridError, r"a polygon lies outside the map, which reaches from 3\.0", far)
    refused(SchemaError, "the query has no data", centre(emb, 0, 0))
    refused(SchemaError, "the query has no data", np.full(DIMS, np.nan))
    refused(SchemaError, "it isn't clear which time is meant: choose one of 2019, 2020", inside, time=None)
    refused(SchemaError, "time=1999 names 0 times: choose one of 2019, 2020", inside, time=1999)
    refused(SchemaError, "time=20 names 0 times", inside, time=20)
    refused(SchemaError, r"shape \(25,\); give vectors of 24 values", np.ones(25))
    refused(SchemaError, "metric='manhattan' is unknown; choose one of 'cosine'", metric="manhattan")
    refused(SchemaError, "combine='median' is unknown; choose one of 'mean'", combine="median")
    refused(SchemaError, "all zeros: it has no direction", np.zeros(DIMS))
    refused(SchemaError, "str can't be read as a query", "here")
    lines = gpd.GeoSeries([LineString([(0, 0), (1, 1)])], crs="EPSG:4326")
    refused(SchemaError, r"needs points or polygons, these are \['LineString'\]", lines)
    refused(SchemaError, "have no CRS", gpd.GeoSeries([Point(inside)]))
    mask = xr.zeros_like(emb.embeddings[0, 0], dtype=bool)
    refused(SchemaError, "marks no pixel", mask)
    refused(SchemaError, "a mask is bool", mask.astype(int))
    refused(GridError, "on another grid", mask.assign_coords(x=mask.x + 10))
    refused(GridError, "on another grid", mask.isel(x=slice(5)))
    refused(SchemaError, "neither vectors .* nor a mask", mask.isel(y=0))
    refused(SchemaError, "needs embeddings", inside, emb=emb.drop_vars("embeddings"))
    same = emb.copy(data={"embeddings": np.ones_like(emb.embeddings)})
    refused(SchemaError, "needs pixels that vary", np.ones(DIMS), emb=same, metric="mahalanobis")


# Memory --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["cosine", "euclidean", "mahalanobis"])
def test_no_float_copy_is_ever_held(metric, monkeypatch):
    monkeypatch.setattr(metrics, "FIT_PIXELS", 2000)
    rng = np.random.default_rng(0)
    grid = GeoBox.from_bbox((0, 0, 5120, 5120), crs="EPSG:32631", resolution=10)
    codes = quantize(make_map(np.ones((1, 1, 1, 128), np.float32), grid[:1, :1], (2020,)))
    values = rng.integers(-127, 128, (1, 512, 512, 128), dtype=np.int8)
    codes = make_map(values, grid, (2020,)).assign(scales=(("time", "y", "x"), np.ones((1, 512, 512), np.float32)))
    mask = xr.ones_like(codes.embeddings[0, 0], dtype=bool)
    similarity(codes.isel(y=slice(4)), np.ones(128), metric=metric)  # compile first
    tracemalloc.start()
    try:
        similarity(codes, mask, negative=np.ones(128), combine="max", metric=metric)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 0.4 * values.nbytes


# Real embeddings -----------------------------------------------------------------------------------------------------


def test_on_published_embeddings(shared_data):
    file = shared_data / "caldor" / "caldor_64.npz"
    if not file.is_file():
        pytest.skip(f"no {file}")
    with np.load(file) as held:
        codes, scales, years = (held[name] for name in ("embeddings", "scales", "years"))
    grid = GeoBox.from_bbox((731_280, 4_285_520, 731_920, 4_286_160), crs="EPSG:32610", resolution=10)
    emb = make_map(codes, grid, tuple(years.tolist())).assign(scales=(("time", "y", "x"), scales))
    point = gpd.GeoSeries([Point(731_595, 4_285_835)], crs="EPSG:32610")
    found = similarity(emb, point, time=2020)
    query = codes[3, 32, 31].astype(float) * scales[3, 32, 31]
    values = codes * scales[..., None].astype(float)
    np.testing.assert_allclose(found, measure(values, query, "cosine", emb), atol=2e-6)
    mahalanobis = similarity(emb, point, time=2020, metric="mahalanobis")
    drawn = -measure(values, query, "mahalanobis", emb)  # of all 36,864 pixels, not of 20,000
    assert float(abs(-mahalanobis - drawn).max()) < 0.05 * drawn.max()


def test_codes_without_scales_and_masks_of_another_crs_are_refused():
    one = tutorial.embeddings().sel(time=2022)
    point = one.tessera.sample([(-120.3375, 38.6890)])
    with pytest.raises(SchemaError, match="int8 codes without their scales"):
        one.tessera.similarity(point.embeddings, metric="euclidean")
    mask = (tutorial.labels().lossyear == 21).odc.assign_crs("EPSG:32611")
    for ask in (one.tessera.similarity, one.tessera.novelty):
        with pytest.raises(GridError, match=r"EPSG:32611, the map in EPSG:32610; reproject"):
            ask(mask)
    with pytest.raises(SchemaError, match=r"k must be a whole number, not 2\.5"):
        one.tessera.find_similar((-120.3375, 38.6890), k=2.5)
