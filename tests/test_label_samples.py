"""Labels on a map: which pixels they claim, against a test of every pixel centre by hand, and what the report says."""

from __future__ import annotations

import warnings
from typing import Any

import dask
import geopandas as gpd
import numpy as np
import pytest
import shapely
import xarray as xr
from odc.geo.geobox import GeoBox
from scipy.ndimage import label
from shapely.geometry import MultiPolygon, Point, Polygon, box

from tessera_xr import tutorial
from tessera_xr.embedding.quantize import dequantize, quantize
from tessera_xr.errors import GridError, SchemaError, TesseraWarning, VersionMismatchError
from tessera_xr.grid import geobox_of, with_grid
from tessera_xr.learning.labels import LabelSet
from tessera_xr.learning.samples import LabelReport, LabelSample, as_sample

BANDS = 5
GRID = GeoBox.from_bbox((600_000, 4_999_700, 600_400, 5_000_000), crs="EPSG:32631", resolution=10)
LABELLED = ("X", "y", "groups", "weights", "x_map", "y_map", "rows", "columns")


@pytest.fixture
def emb() -> xr.Dataset:
    """30 x 40 pixels of 10 m whose embeddings tell row and column; the lower left has no data."""
    row, column = np.mgrid[:30, :40]
    values = np.stack([row, column, row * column, row - column, np.ones_like(row)]).astype(np.float32)
    values[:, 25:, :5] = np.nan
    array = xr.DataArray(values, dims=("band", "y", "x"), coords={"band": np.arange(BANDS)})
    return with_grid(xr.Dataset({"embeddings": array}, attrs={"model": "m", "weights_sha256": "a"}), GRID)


def at(row: float, column: float) -> Point:
    """Return the place of (row, column) counted from the centre of the upper left pixel."""
    return Point(600_005 + 10 * column, 4_999_995 - 10 * row)


def block(top: float, left: float, bottom: float, right: float) -> Polygon:
    """Return a rectangle around the pixels from (top, left) to (bottom, right), all of them in it."""
    a, b = at(top - 0.5, left - 0.5), at(bottom + 0.5, right + 0.5)
    return box(a.x, b.y, b.x, a.y)


def made(*labels: tuple[Any, Any], crs: Any = 32631, **options: Any) -> LabelSet:
    out = LabelSet(crs=crs, **options)
    for geometry, value in labels:
        out.add(geometry, value)
    return out


def quiet(labels: LabelSet, emb: xr.Dataset, **options: Any) -> LabelSample:
    """Return a sample whose warning is of no interest, if there is one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TesseraWarning)
        return labels.sample(emb, **options)


def cells(sample: LabelSample) -> set[tuple[int, int]]:
    return set(zip(sample.rows.tolist(), sample.columns.tolist(), strict=True))


def same(a: LabelSample, b: LabelSample) -> None:
    for name in LABELLED:
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
        assert getattr(a, name).dtype == getattr(b, name).dtype
    assert (a.report, a.classes, a.ids, a.crs, a.shape) == (b.report, b.classes, b.ids, b.crs, b.shape)


def test_a_polygon_claims_the_centres_in_it(emb):
    rng = np.random.default_rng(0)
    centres = np.array([[at(r, c) for c in range(40)] for r in range(30)])
    for _ in range(20):
        area = shapely.convex_hull(shapely.multipoints([at(*rng.uniform((0, 8), (24, 39))) for _ in range(5)]))
        if len(cells(sample := quiet(made((area, "a")), emb))) > 1:
            assert cells(sample) == set(map(tuple, np.argwhere(shapely.contains(area, centres)).tolist()))
    holed = MultiPolygon([block(2, 8, 9, 15).difference(block(4, 10, 5, 11)), block(20, 20, 21, 21)])
    sample = made((holed, "a")).sample(emb)
    assert len(sample) == 64 - 4 + 4
    assert set(sample.groups) == {0}, "one group, though in two parts"


def test_rows_columns_and_values_belong_together(emb):
    labels = made((block(3, 10, 6, 20), "a"), (at(8, 30), "b"), (at(9.3, 31.4), "b"))
    sample = labels.sample(emb)
    np.testing.assert_array_equal(sample.X[:, 0], sample.rows)
    np.testing.assert_array_equal(sample.X[:, 1], sample.columns)
    np.testing.assert_array_equal(emb.x.values[sample.columns], sample.x_map)
    np.testing.assert_array_equal(emb.y.values[sample.rows], sample.y_map)
    assert cells(sample) == {(r, c) for r in range(3, 7) for c in range(10, 21)} | {(8, 30), (9, 31)}
    assert sample.y.tolist() == ["a"] * 44 + ["b", "b"]
    assert sample.groups.tolist() == [0] * 44 + [1, 2]
    assert (sample.X.dtype, sample.groups.dtype, sample.rows.dtype) == (np.float32, np.intp, np.intp)
    assert (sample.ids, sample.crs, sample.shape) == (("L1", "L2", "L3"), "EPSG:32631", (30, 40))
    assert sample.attrs == {"model": "m", "weights_sha256": "a"}
    assert sample.report.problems == []


def test_a_polygon_too_small_for_a_centre_means_the_pixels_it_touches(emb):
    sliver = box(600_090, 4_999_951, 600_112, 4_999_954)
    assert cells(made((sliver, "a")).sample(emb)) == {(4, 9), (4, 10), (4, 11)}


def test_any_crs(emb):
    shapes = [block(1, 10, 8, 20), at(9, 9), at(12, 30), block(15, 20, 20, 30)]
    gdf = gpd.GeoDataFrame({"c": ["a", "b", "b", "b"]}, geometry=shapes, crs=32631)
    expected = LabelSet.from_geodataframe(gdf, "c").sample(emb)
    for crs in (4326, 3857, 32632, 3035):
        same(LabelSet.from_geodataframe(gdf.to_crs(crs), "c").sample(emb), expected)
    same(LabelSet.from_geojson(LabelSet.from_geodataframe(gdf.to_crs(4326), "c").to_geojson()).sample(emb), expected)


def test_sides_are_straight_in_the_crs_of_the_labels():
    """A degree wide, a parallel is more than 100 m off the straight line between its ends."""
    wide = GeoBox.from_bbox((500_000, 4_993_000, 580_000, 4_996_000), crs="EPSG:32631", resolution=50)
    emb = with_grid(xr.Dataset({"embeddings": (("band", "y", "x"), np.ones((1, *wide.shape), np.float32))}), wide)
    emb = emb.assign_coords(band=[0])
    sample = made((box(3, 45.1, 4, 45.3), "a"), crs=4326).sample(emb)
    degrees = gpd.GeoSeries(gpd.points_from_xy(sample.x_map, sample.y_map), crs=32631).to_crs(4326)
    assert degrees.y.min() > 45.1 - 1e-5
    assert len(sample) > 20_000
    ((x, y),) = gpd.GeoSeries([Point(3.5, 45.1)], crs=4326).to_crs(32631)[0].coords
    assert sample.y_map[abs(sample.x_map - x) < 30].min() == pytest.approx(y, abs=55)


@pytest.mark.parametrize("form", ["int8", "dask", "int8 dask", "band last", "one time"])
def test_any_form_of_embeddings_gives_the_same(emb, form):
    labels = made((block(3, 10, 6, 20), "a"), (at(8, 30), "b"), (at(9, 31), "b"), (block(24, 0, 29, 8), "b"))
    expected = quiet(labels, emb)
    if "int8" in form:
        codes = quantize(emb)
        expected = quiet(labels, dequantize(codes))
        emb = codes
    if "dask" in form:
        emb = emb.chunk(y=7, x=9, band=2)
    if form == "band last":
        emb = emb.transpose("y", "x", "band")
    if form == "one time":
        emb = emb.expand_dims(time=[2020])
    same(quiet(labels, emb), expected)


def test_only_the_chunks_needed_are_read_and_once(emb):
    read: list[int] = []

    def block_of(values: np.ndarray, block_id: tuple[int, ...]) -> np.ndarray:
        read.append(block_id[1] * 4 + block_id[2])
        return values

    lazy = quantize(emb).chunk(y=10, x=10)
    counted = lazy.embeddings.data.map_blocks(block_of, dtype=np.int8, meta=np.zeros((0, 0, 0), np.int8))
    labels = made((block(11, 11, 12, 12), "a"), (at(5, 35), "a"))
    with dask.config.set(scheduler="sync"):
        labels.sample(lazy.assign(embeddings=lazy.embeddings.copy(data=counted)))
    assert sorted(read) == [3, 5]


def test_which_time():
    emb = tutorial.embeddings()
    labels = LabelSet.from_raster(tutorial.labels().lossyear == 21, n_per_class=50)
    with pytest.raises(SchemaError, match=r"it isn't clear which time .* choose one of 2017, 2018"):
        labels.sample(emb)
    sample = labels.sample(emb, time=2022)
    expected = dequantize(emb.sel(time=2022)).embeddings.transpose("y", "x", "band").values
    np.testing.assert_array_equal(sample.X, expected[sample.rows, sample.columns])
    same(as_sample(emb, labels, time=2022), sample)
    with pytest.raises(SchemaError, match="time=1999 names 0 times"):
        labels.sample(emb, time=1999)


# What is left out


def test_conflicting_pixels_are_left_out(emb):
    labels = made((block(2, 10, 5, 15), "a"), (block(4, 12, 9, 20), "b"), (at(3, 11), "b"), (at(20, 20), "b"))
    with pytest.warns(TesseraWarning, match="of 4 labels: 9 pixels with conflicting labels left out") as caught:
        sample = labels.sample(emb)
    assert len([w for w in caught if w.category is TesseraWarning]) == 1
    inside = {(r, c) for r in range(2, 6) for c in range(10, 16)}, {(r, c) for r in range(4, 10) for c in range(12, 21)}
    assert cells(sample) == (inside[0] ^ inside[1]) - {(3, 11)} | {(20, 20)}
    assert sample.report.n_conflicting == len(inside[0] & inside[1]) + 1 == 9
    assert sample.report.pixels == {"a": 15, "b": 47}
    assert sample.report.labels == {"a": 1, "b": 2}, "the point in the conflict gave no pixel"


def test_a_pixel_claimed_twice_counts_once_for_the_first(emb):
    labels = made((at(3, 11), "a"), (block(2, 10, 5, 15), "a"), (at(2, 10), "a"))
    sample = labels.sample(emb)
    assert len(sample) == len(cells(sample)) == 24
    assert sample.groups.tolist() == [0] + [1] * 23
    assert sample.report.n_repeated == 2
    assert "2 pixels claimed twice, counted once" in str(sample.report)


def test_numbers(emb):
    labels = made((block(2, 10, 3, 11), 1.5), (block(3, 11, 4, 12), 2.5), (at(2, 10), 1.5), (at(9, 9), 3), target="h")
    with pytest.warns(TesseraWarning, match="1 pixel with conflicting labels left out"):
        sample = labels.sample(emb)
    assert sample.y.tolist() == [1.5] * 3 + [2.5] * 3 + [3]
    assert (sample.y.dtype, sample.task, sample.target, sample.classes) == (np.float64, "numbers", "h", {})
    with pytest.raises(SchemaError, match=r"holds numbers \(h\)"):
        sample.class_codes()


def test_no_data_and_outside(emb):
    far = [at(-3, 10), at(40, 40), block(50, 50, 60, 60), Point(3e6, 0)]
    labels = made(
        (block(24, 0, 29, 9), "a"), (at(28, 2), "a"), (block(26, 1, 27, 2), "b"), *((place, "b") for place in far),
        (block(-5, -5, 1, 1), "b"),
    )  # fmt: skip
    with pytest.warns(TesseraWarning) as caught:
        sample = labels.sample(emb)
    (warned,) = (w for w in caught if w.category is TesseraWarning)
    assert str(warned.message) == (
        "of 8 labels: 4 labels outside the map (L4, L5, L6, L7); 2 labels all on no-data (L2, L3); "
        "25 pixels without data left out. See .report of the sample"
    )
    assert warned.filename == __file__
    assert sample.report.outside == ("L4", "L5", "L6", "L7")
    assert sample.report.no_data == ("L2", "L3")
    assert sample.report.n_no_data == 25
    assert cells(sample) == {(r, c) for r in range(24, 30) for c in range(10) if r < 25 or c > 4} | {
        (r, c) for r in (0, 1) for c in (0, 1)
    }
    assert np.isfinite(sample.X).all()
    scales = quantize(emb)
    for nothing in (np.nan, np.inf):
        blank = scales.assign(scales=scales.scales.where(scales.scales.notnull(), nothing))
        assert quiet(labels, blank).report == sample.report


def test_classes_with_few_pixels(emb):
    labels = made((block(2, 10, 3, 11), "a"), (at(9, 9), "b"), classes=["a", "b", "c"])
    with pytest.warns(TesseraWarning, match=r"of 2 labels: classes with few pixels: 'b' \(1\), 'c' \(0\)\. See"):
        sample = labels.sample(emb)
    assert sample.report.few == {"b": 1, "c": 0}
    assert list(sample.classes) == ["a", "b", "c"]
    assert sample.class_codes().tolist() == [0, 0, 0, 0, 1]
    assert quiet(labels, emb, min_pixels=0).report.problems == []
    assert quiet(labels, emb, min_pixels=5).report.few == {"a": 4, "b": 1, "c": 0}


def test_the_report_is_a_short_table(emb):
    sample = quiet(made((block(2, 10, 3, 11), "forest"), (at(9, 9), "b"), (at(99, 9), "b")), emb)
    assert str(sample.report).splitlines() == [
        "5 pixels of 3 labels",
        "  class    labels   pixels",
        "  forest        1        4",
        "  b             1        1",
        "  - 1 label outside the map (L3)",
        "  - classes with few pixels: 'b' (1)",
    ]
    assert repr(sample).startswith("<LabelSample: 5 pixels x 5 bands, 2 classes>\n5 pixels of 3 labels")
    many = LabelReport(9, 0, outside=tuple(f"L{i}" for i in range(9)))
    assert many.problems == ["9 labels outside the map (L0, L1, L2, L3, L4 and 4 more)"]


def test_nothing_left(emb):
    with pytest.raises(GridError, match=r"all 2 labels lie outside the map, which reaches from 4\.2.*x before y"):
        made((at(99, 9), "a"), (block(99, 9, 100, 10), "b")).sample(emb)
    with pytest.raises(SchemaError, match=r"no labelled pixel is left: 1 label all on no-data \(L1\); 1 pixel without"):
        made((at(28, 2), "a")).sample(emb)
    with pytest.raises(SchemaError, match="no labelled pixel is left: 1 pixel with conflicting labels"):
        made((at(8, 8), "a"), (at(8, 8), "b")).sample(emb)
    with pytest.raises(SchemaError, match="there are no labels"):
        LabelSet().sample(emb)
    with pytest.raises(SchemaError, match="needs embeddings"):
        made((at(8, 8), "a")).sample(xr.Dataset())
    with pytest.raises(SchemaError, match="min_pixels must be a whole number"):
        made((at(8, 8), "a")).sample(emb, min_pixels=1.5)


# The sample


def test_take(emb):
    labels = made((block(3, 10, 6, 20), "a"), (block(8, 30, 9, 31), "b"))
    sample = labels.sample(emb)
    mask = sample.columns > 15
    chosen = sample.take(mask)
    same(sample.take(np.flatnonzero(mask)), chosen)
    assert len(chosen) == mask.sum() < len(sample)
    for name in LABELLED:
        np.testing.assert_array_equal(getattr(chosen, name), getattr(sample, name)[mask])
    assert (chosen.classes, chosen.attrs, chosen.report) == (sample.classes, sample.attrs, sample.report)
    assert len(sample.take([])) == 0
    assert sample.take([3, 3]).rows.tolist() == [3, 3]


def test_as_sample(emb):
    labels = made((block(3, 10, 6, 20), "a"))
    sample = as_sample(emb, labels)
    same(sample, labels.sample(emb))
    assert as_sample(None, sample) is sample
    assert as_sample(emb, sample) is sample
    with pytest.raises(VersionMismatchError, match="differ in model"):
        as_sample(emb.assign_attrs(model="other"), sample)
    with pytest.raises(VersionMismatchError, match="different lengths"):
        as_sample(emb.isel(band=slice(3)), sample)
    with pytest.raises(SchemaError, match="a LabelSet needs embeddings"):
        as_sample(None, labels)
    with pytest.raises(
        SchemaError, match=r"not GeoDataFrame; make one with LabelSet\.from_geodataframe\(gdf, column\)"
    ):
        as_sample(emb, labels.to_geodataframe())


def test_a_sample_that_does_not_fit_together(emb):
    sample = made((block(3, 10, 6, 20), "a")).sample(emb)
    facts = {name: getattr(sample, name) for name in ("classes", "target", "attrs", "crs", "shape")}
    arrays = {name: getattr(sample, name) for name in LABELLED}
    with pytest.raises(SchemaError, match="one row per pixel"):
        LabelSample(**arrays | {"y": sample.y[1:]}, **facts)
    with pytest.raises(SchemaError, match=r"unknown classes \['z'\]"):
        LabelSample(**arrays | {"y": np.full(len(sample), "z")}, **facts).class_codes()


# Real maps


def test_a_raster_comes_back_pixel_for_pixel():
    emb, loss = tutorial.embeddings(), tutorial.labels().lossyear
    for shapes in ({}, {"n_per_class": 10_000}):
        labels = quiet_raster(loss, **shapes)
        sample = labels.sample(emb, time=2022)
        found = np.full(loss.shape, -1)
        found[sample.rows, sample.columns] = sample.y.astype(int)
        np.testing.assert_array_equal(found, loss.values)
        np.testing.assert_array_equal(loss.x.values[sample.columns], sample.x_map)
        np.testing.assert_array_equal(loss.y.values[sample.rows], sample.y_map)
    back = LabelSet.from_geojson(labels.to_geojson()).sample(emb, time=2022)
    np.testing.assert_array_equal(back.rows, sample.rows)


def quiet_raster(da: xr.DataArray, **options: Any) -> LabelSet:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TesseraWarning)
        return LabelSet.from_raster(da, nodata=None, **options)


def test_noise_comes_back_pixel_for_pixel(emb):
    """Regions that touch at corners, with holes that touch their outlines."""
    full = emb.fillna(0)
    for seed in range(3):
        values = np.random.default_rng(seed).integers(1, 4, GRID.shape)
        sample = LabelSet.from_raster(with_grid(xr.DataArray(values, dims=("y", "x")), GRID)).sample(full)
        found = np.zeros(GRID.shape, dtype=int)
        found[sample.rows, sample.columns] = sample.y.astype(int)
        np.testing.assert_array_equal(found, values)
        assert len(sample.ids) == sum(label(values == k)[1] for k in (1, 2, 3))


def test_flanders_parcels(shared_data):
    crops = xr.open_dataset(shared_data / "flanders" / "labels_2018.nc", engine="h5netcdf")
    da = next(array for array in crops.data_vars.values() if {"y", "x"} <= set(array.dims)).squeeze(drop=True)
    box_ = geobox_of(da if da.odc.crs is not None else da.odc.assign_crs("EPSG:32631"))
    da = with_grid(da.astype(np.int32), box_)
    shape = (3, *box_.shape)
    emb = with_grid(xr.Dataset({"embeddings": (("band", "y", "x"), np.ones(shape, np.float32))}), box_)
    sample = quiet(LabelSet.from_raster(da), emb.assign_coords(band=np.arange(3)))
    found = np.zeros(da.shape, dtype=int)
    found[sample.rows, sample.columns] = sample.y.astype(int)
    np.testing.assert_array_equal(found, da.values)
    assert len(np.unique(sample.groups)) >= 9
