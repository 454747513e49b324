"""Areas and accuracies from a reference sample: the example of the paper, and coverage of a known truth."""

from __future__ import annotations

from itertools import pairwise

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from odc.geo.geobox import GeoBox
from pyproj import Geod
from shapely.geometry import box as rectangle

from tessera_xr import tutorial
from tessera_xr.errors import GridError, SchemaError, TesseraWarning
from tessera_xr.grid import geobox_of, with_grid
from tessera_xr.learning.areas import area_estimate, area_estimate_from_counts, stratified_points
from tessera_xr.learning.labels import LabelSet
from tessera_xr.learning.reference import allocate, draw_pixels
from tessera_xr.learning.strata import row_areas, strata_of

GRID = GeoBox.from_bbox((600_000, 4_998_000, 602_000, 5_000_000), crs="EPSG:32631", resolution=10)
NAMES = ["forest", "bare_soil", "water"]

# Olofsson et al. (2014), tables 8 and 9: rows are classes of the map, areas in Landsat pixels
COUNTS = np.array([[66, 0, 5, 4], [0, 55, 8, 12], [1, 0, 153, 11], [2, 1, 9, 313]])
PIXELS = {"deforestation": 200_000, "gain": 150_000, "forest": 3_200_000, "other": 6_450_000}


def as_map(codes: np.ndarray, grid: GeoBox = GRID, names: list[str] = NAMES) -> xr.DataArray:
    attrs = {"flag_values": np.arange(1, len(names) + 1, dtype=np.uint8), "flag_meanings": " ".join(names), "nodata": 0}
    return with_grid(xr.DataArray(codes.astype(np.uint8), dims=("y", "x"), attrs=attrs | {"model": "m"}), grid)


def landscape(seed: int = 0) -> tuple[xr.DataArray, xr.DataArray]:
    """Return a truth of three classes (60, 30 and 10 %) and a map of it with errors of each kind, some of them bias."""
    rng = np.random.default_rng(seed)
    truth = 1 + np.digitize(rng.random((40, 40)), [0.6, 0.9]).repeat(5, 0).repeat(5, 1)
    wrong = np.array([[0.91, 0.07, 0.02], [0.10, 0.88, 0.02], [0.25, 0.15, 0.60]])
    mapped = 1 + (rng.random(truth.shape)[..., None] > wrong.cumsum(axis=1)[truth - 1]).sum(axis=-1)
    return as_map(truth), as_map(mapped)


def judged(points: gpd.GeoDataFrame, truth: xr.DataArray) -> gpd.GeoDataFrame:
    """Look the truth up at each point."""
    at = {d: xr.DataArray(points[d].to_numpy(), dims="point") for d in ("x", "y")}
    names = np.array(["", *truth.attrs["flag_meanings"].split()])
    return points.assign(reference=names[truth.sel(at, method="nearest").values])


@pytest.fixture(scope="module")
def maps() -> tuple[xr.DataArray, xr.DataArray]:
    return landscape()


def test_the_worked_example_of_the_paper():
    hectares = {name: n * 0.09 for name, n in PIXELS.items()}
    result = area_estimate_from_counts(COUNTS, hectares)
    half = 1.96 * result.classes[["area_se", "users_accuracy_se", "producers_accuracy_se"]]
    np.testing.assert_allclose(result.classes["area"], [21_158, 11_686, 285_770, 581_386], atol=0.5)
    np.testing.assert_allclose(half["area_se"], [6_158, 3_756, 15_510, 16_282], atol=0.5)
    np.testing.assert_allclose(result.classes["users_accuracy"], [0.88, 0.73, 0.93, 0.96], atol=0.005)
    np.testing.assert_allclose(half["users_accuracy_se"], [0.07, 0.10, 0.04, 0.02], atol=0.005)
    np.testing.assert_allclose(result.classes["producers_accuracy"], [0.75, 0.85, 0.93, 0.96], atol=0.005)
    # the paper prints 0.23 and 0.01 for the second and last, against its own equation 7, which gives 0.25 and 0.018
    np.testing.assert_allclose(half["producers_accuracy_se"], [0.21, 0.254, 0.03, 0.018], atol=0.005)
    assert result.overall["accuracy"] == pytest.approx(0.95, abs=0.005)
    assert 1.96 * result.overall["se"] == pytest.approx(0.02, abs=0.005)
    in_pixels = area_estimate_from_counts(COUNTS, PIXELS, unit="px").classes.loc["deforestation"]
    assert in_pixels["area"] == pytest.approx(235_086, abs=1)
    assert 1.96 * in_pixels["area_se"] == pytest.approx(68_418, abs=1)


def test_standard_errors_are_the_spread_of_estimates():
    rates, areas = np.array([[0.5, 0.3, 0.2], [0.5, 0.4, 0.1], [0.1, 0.1, 0.8]]), [5.0, 3.0, 2.0]
    rng = np.random.default_rng(0)
    drawn = [np.stack([rng.multinomial(300, p) for p in rates]) for _ in range(250)]
    results = [area_estimate_from_counts(counts, areas) for counts in drawn]
    for name in ("area", "users_accuracy", "producers_accuracy"):
        found = np.stack([r.classes[name] for r in results])
        stated = np.sqrt(np.mean([r.classes[f"{name}_se"] ** 2 for r in results], axis=0))
        np.testing.assert_allclose(found.std(axis=0), stated, rtol=0.12, err_msg=name)
    overall, se = (np.array([r.overall[k] for r in results]) for k in ("accuracy", "se"))
    assert overall.std() == pytest.approx(se.mean(), rel=0.1)


@pytest.mark.parametrize("design", ["balanced", "equal", "random"])
def test_intervals_cover_the_truth_at_their_rate(maps, design):
    truth, mapped = maps
    strata = strata_of(mapped)
    area, counted = (np.bincount(m.values.ravel(), minlength=4)[1:] * 0.01 for m in (truth, mapped))
    assert (abs(counted - area) / area).max() > 0.1, "or counting pixels would do"
    rng = np.random.default_rng(5)
    per_row, covered = strata.counts, []
    shares = None if design == "random" else allocate(600, per_row.sum(axis=0), strata.areas, design, strata.names)
    for _ in range(200):
        if shares is None:
            pixels = rng.integers(0, 200, (600, 2))
        else:
            pixels = np.concatenate([draw_pixels(strata, per_row[:, i], i, n, rng) for i, n in enumerate(shares)])
        counts = np.zeros((3, 3), dtype=int)
        np.add.at(counts, tuple(m.values[tuple(pixels.T)] - 1 for m in (mapped, truth)), 1)
        table = area_estimate_from_counts(counts, counted).classes
        covered.append((table["area_low"] <= area) & (area <= table["area_high"]))
    share = np.mean(covered, axis=0)
    assert ((share > 0.91) & (share < 0.985)).all(), share


def test_estimates_are_unbiased(maps):
    truth, mapped = maps
    areas = np.bincount(truth.values.ravel(), minlength=4)[1:] * 0.01
    right = (truth.values == mapped.values).mean()
    results = [area_estimate(mapped, judged(stratified_points(mapped, 200, seed=s), truth)) for s in range(20)]
    mean = np.mean([r.classes.loc[NAMES, "area"] for r in results], axis=0)
    error = np.mean([r.classes.loc[NAMES, "area_se"] for r in results], axis=0) / np.sqrt(20)
    assert (abs(mean - areas) < 3 * error).all()
    naive = [np.trace(r.confusion) / 200 for r in results]
    assert abs(np.mean([r.overall["accuracy"] for r in results]) - right) < 0.01
    assert abs(np.mean(naive) - right) > 0.01, "points of rare classes weigh less than their number"


def test_a_simulated_landscape():
    truth = tutorial.cube(48).land_cover
    wrong = np.random.default_rng(0).random(truth.shape) < 0.15
    mapped = truth.copy(data=np.where(wrong, np.roll(truth.values, 7, axis=1), truth.values))
    assert list(codes_of(truth)) == list(range(1, 13)), "judged() counts on it"
    points = judged(stratified_points(mapped, 600), truth)
    result = area_estimate(mapped, points, confidence=0.99)
    total = {n: (truth.values == v).sum() * 0.01 for v, n in codes_of(truth).items()}
    inside = [row.area_low <= total[name] <= row.area_high for name, row in result.classes.iterrows()]
    assert np.mean(inside) > 0.85
    assert result.classes["area"].sum() == pytest.approx(0.01 * truth.size)


def codes_of(codes: xr.DataArray) -> dict[int, str]:
    return dict(zip(codes.attrs["flag_values"].tolist(), codes.attrs["flag_meanings"].split(), strict=True))


def test_forms_of_the_map_give_the_same(maps):
    truth, mapped = maps
    points = judged(stratified_points(mapped, 60), truth)
    expected = area_estimate(mapped, points)
    forms = {
        "lazy": mapped.chunk(y=33, x=71),
        "dataset": mapped.to_dataset(name="prediction"),
        "time": mapped.expand_dims(time=[2024]),
        "turned": mapped.transpose("x", "y"),
        "upside down": mapped.isel(y=slice(None, None, -1)),
        "int64": mapped.astype(np.int64),
    }
    for name, form in forms.items():
        found = area_estimate(form, points)
        pd.testing.assert_frame_equal(found.classes, expected.classes, obj=name)
        pd.testing.assert_frame_equal(found.confusion, expected.confusion)
        if name != "upside down":  # whose reading order is another
            assert stratified_points(form, 60).drop(columns="reference").equals(points.drop(columns="reference"))
    codes = points.assign(reference=points.reference.map({n: i + 1 for i, n in enumerate(NAMES)}))
    spaced = points.assign(cover=points.reference.str.replace("_", " ")).drop(columns="reference").to_crs("EPSG:4326")
    for other, column in ((codes, "reference"), (spaced, "cover")):
        pd.testing.assert_frame_equal(area_estimate(mapped, other, column=column).classes, expected.classes)


def test_a_label_set_is_a_reference(maps):
    truth, mapped = maps
    points = judged(stratified_points(mapped, 60), truth)
    labels = LabelSet(NAMES)
    for point, name in zip(points.to_crs("EPSG:4326").geometry, points["reference"], strict=True):
        labels.add(point, name)
    expected = area_estimate(mapped, points)
    pd.testing.assert_frame_equal(area_estimate(mapped, labels).classes, expected.classes)
    heights = LabelSet(target="height")
    heights.add((3, 45), 12.5)
    with pytest.raises(SchemaError, match=r"these labels are numbers \(height\)"):
        area_estimate(mapped, heights)


def test_units_and_confidence(maps):
    truth, mapped = maps
    points = judged(stratified_points(mapped, 90), truth)
    hectares, km2 = (area_estimate(mapped, points, unit=u).classes for u in ("ha", "km2"))
    lengths = ["mapped_area", "area", "area_se", "area_low", "area_high"]
    np.testing.assert_allclose(hectares[lengths], 100 * km2[lengths])
    assert hectares["mapped_area"].sum() == pytest.approx(400), "200 by 200 pixels of 10 m"
    half, whole = (area_estimate(mapped, points, confidence=c).classes for c in (0.5, 0.95))
    width = [(c["area_high"] - c["area_low"]).loc["bare_soil"] for c in (half, whole)]
    assert width[1] / width[0] == pytest.approx(1.959964 / 0.674490, rel=1e-5)
    np.testing.assert_array_equal(half["area_se"], whole["area_se"])


def test_a_class_that_the_map_lacks_has_an_area():
    counts = pd.DataFrame([[40, 5, 5], [2, 46, 2]], index=["a", "b"], columns=["a", "b", "marsh"])
    result = area_estimate_from_counts(counts, {"b": 50.0, "a": 100.0})
    marsh = result.classes.loc["marsh"]
    assert marsh["area"] == pytest.approx(100 * 0.1 + 50 * 0.04)
    assert (marsh["mapped_area"], marsh["producers_accuracy"], marsh["n_map"]) == (0, 0, 0)
    assert np.isnan(marsh["users_accuracy"])
    assert np.isnan(marsh["producers_accuracy_se"])
    assert marsh["area_low"] > 0
    assert result.classes["area"].sum() == pytest.approx(150)
    assert result.overall["accuracy"] == pytest.approx((100 * 0.8 + 50 * 0.92) / 150)
    shuffled = area_estimate_from_counts(counts[["marsh", "b", "a"]], {"a": 100.0, "b": 50.0})
    pd.testing.assert_frame_equal(shuffled.classes, result.classes)


def test_intervals_stay_within_the_map_and_never_found_classes_have_no_accuracy():
    classes = area_estimate_from_counts([[2, 1], [1, 30]], [1.0, 30.0]).classes
    assert classes["area_low"].iloc[0] == 0
    assert classes["area_high"].iloc[1] == 31
    never = area_estimate_from_counts([[0, 10], [0, 10]], [1.0, 30.0]).classes
    assert never["area"].tolist() == [0, 31]
    assert np.isnan(never["producers_accuracy"].iloc[0])
    assert never["users_accuracy"].iloc[0] == 0


def test_true_areas_on_the_ellipsoid():
    degrees = GeoBox.from_bbox((3, 40, 3.5, 60), crs="EPSG:4326", resolution=0.25)
    geod = Geod(ellps="WGS84")
    lat = 60 - 0.25 * np.arange(81)
    edges = [rectangle(3, south, 3.25, north).segmentize(0.01) for north, south in pairwise(lat)]
    expected = [abs(geod.geometry_area_perimeter(edge)[0]) for edge in edges]
    np.testing.assert_allclose(row_areas(degrees), expected, rtol=1e-6)
    upward = with_grid(xr.DataArray(np.ones((4, 4)), dims=("y", "x")), degrees[:4, :2].pad(0)[:4, :2].expand((4, 4)))
    np.testing.assert_allclose(
        row_areas(geobox_of(upward.isel(y=slice(None, None, -1))))[::-1], expected[:4], rtol=1e-6
    )
    assert (row_areas(GRID) == 100).all()
    mercator = GeoBox.from_bbox((0, 6e6, 4000, 9e6), crs="EPSG:3857", resolution=1000)
    lat = np.degrees(2 * np.arctan(np.exp((9e6 - 500 - 1000 * np.arange(3000)) / 6378137)) - np.pi / 2)
    np.testing.assert_allclose(row_areas(mercator), 1e6 * np.cos(np.radians(lat)) ** 2, rtol=0.01)
    feet = GeoBox.from_bbox((6e6, 2e6, 6e6 + 1000, 2e6 + 1000), crs="EPSG:2227", resolution=100)
    np.testing.assert_allclose(row_areas(feet), (100 * 1200 / 3937) ** 2, rtol=1e-6)
    polar = GeoBox.from_bbox((0, 1e6, 6e6, 7e6), crs="EPSG:3413", resolution=1e5)
    with pytest.raises(GridError, match=r"distorts areas by .*reproject the map to UTM"):
        row_areas(polar)


def test_points_on_a_geographic_grid_stand_for_area_not_pixels():
    tall = GeoBox.from_bbox((3, 0, 3.4, 80), crs="EPSG:4326", resolution=0.1)
    mapped = as_map(np.ones(tall.shape), tall)
    lat = stratified_points(mapped, 600)["lat"].to_numpy()
    expected = np.average(mapped.y.values, weights=np.cos(np.radians(mapped.y.values)))
    assert abs(lat.mean() - expected) < 3
    assert abs(lat.mean() - 40) > 5


def test_points_are_drawn_at_random_within_their_class(maps):
    _, mapped = maps
    hole = mapped.where(mapped.x > mapped.x[20], 0).astype(np.uint8).assign_attrs(mapped.attrs)
    points = stratified_points(hole, 300, allocation="equal", seed=3)
    assert list(points.columns) == ["stratum", "reference", "x", "y", "lon", "lat", "geometry"]
    assert points.crs == "EPSG:32631"
    assert points.attrs == {"model": "m"}
    assert points["reference"].isna().all()
    assert points["stratum"].value_counts().to_dict() == dict.fromkeys(NAMES, 100)
    assert (points["x"] > float(hole.x[20])).all(), "none on no data"
    assert not points.duplicated(["x", "y"]).any()
    assert (judged(points, hole)["reference"] == points["stratum"]).all()
    assert (points["stratum"].to_numpy()[:-1] != points["stratum"].to_numpy()[1:]).mean() > 0.4, "in random order"
    assert points.equals(stratified_points(hole, 300, allocation="equal", seed=3))
    assert not points["x"].equals(stratified_points(hole, 300, allocation="equal", seed=4)["x"])
    many = np.concatenate([stratified_points(hole, 300, seed=s)["x"] for s in range(20)])
    assert abs(many.mean() - hole.x[21:].values.mean()) < 25
    everything = stratified_points(hole.isel(y=slice(4)), 4 * 179, allocation="proportional")
    assert len(everything) == 4 * 179
    assert not everything.duplicated(["x", "y"]).any()


def test_allocation():
    available, areas, names = np.array([900, 90, 10]), np.array([90.0, 9.0, 1.0]), ("a", "b", "c")

    def shared(n: int, how: str) -> list[int]:
        return allocate(n, available, areas, how, names).tolist()

    assert shared(100, "proportional") == [89, 9, 2], "two at least"
    assert shared(30, "equal") == [10, 10, 10]
    assert shared(60, "equal") == [25, 25, 10], "no more than there are pixels"
    assert shared(60, "balanced") == [37, 13, 10]
    assert shared(1000, "balanced") == [900, 90, 10]
    for n in range(6, 1001, 7):
        for how in ("proportional", "equal", "balanced"):
            got = allocate(n, available, areas, how, names)
            assert got.sum() == n
            assert ((got >= 2) & (got <= available)).all()


def test_points_that_cannot_be_used_are_left_out(maps):
    truth, mapped = maps
    hole = mapped.where(mapped.x > mapped.x[20], 0).astype(np.uint8).assign_attrs(mapped.attrs)
    good = judged(stratified_points(hole, 90), truth)
    lost = {"stratum": ["forest"] * 3, "reference": ["forest", "water", "forest"]}
    away = gpd.GeoDataFrame(
        lost, geometry=gpd.points_from_xy([1, 600_005, 600_015], [1, 4_999_995, 4_999_995]), crs=32631
    )
    unknown = good.head(4).assign(reference=[None, np.nan, "", " "])
    together = pd.concat([good, away, unknown], ignore_index=True)
    said = "7 of 97 reference points were left out: 1 outside the map, 2 without data in the map, 4 without reference"
    with pytest.warns(TesseraWarning, match=said):
        found = area_estimate(hole, together)
    pd.testing.assert_frame_equal(found.classes, area_estimate(hole, good).classes)
    assert found.left_out == {"outside the map": 1, "without data in the map": 2, "without reference": 4}
    with pytest.raises(SchemaError, match="no reference point can be used: 3 outside the map"):
        area_estimate(hole, away.set_geometry(gpd.points_from_xy([1, 2, 3], [1, 2, 3], crs=32631)))


def test_what_is_shown(maps):
    truth, mapped = maps
    result = area_estimate(mapped, judged(stratified_points(mapped, 90), truth))
    for text in (repr(result), result._repr_html_()):
        assert "90 reference points" in text
        assert "drawn at random" in text
        assert "±" in text
        assert "± 0 means" not in text
    row = result.classes.loc["water"]
    assert f"{row.area:.3g} ± {1.96 * row.area_se:.3g}" in repr(result)
    assert "± 0 means that these points show no error" in repr(area_estimate_from_counts([[9, 0], [0, 9]], [1, 2]))


def test_faults(maps):
    truth, mapped = maps
    points = judged(stratified_points(mapped, 90), truth)
    rare = points[(points.stratum != "water") | (points.index == points.index[points.stratum == "water"][0])]
    with pytest.raises(SchemaError, match=r"needs 2 reference points or more, 50 for .*too few are in: water \(1\)"):
        area_estimate(mapped, rare)
    with pytest.raises(SchemaError, match=r"too few are in: bare_soil \(0\), water \(0\)"):
        area_estimate(mapped, points[points.stratum == "forest"])
    with pytest.raises(SchemaError, match=r"too few are in: c \(0\)"):
        area_estimate_from_counts(
            [[5, 0], [0, 5]], {"a": 1, "b": 1} | {"c": 3}
        ) if False else area_estimate_from_counts(
            pd.DataFrame([[5, 0], [0, 5]], index=["a", "b"], columns=["a", "b"]), {"a": 1, "b": 1, "c": 3}
        )
    moved = points.assign(stratum=np.roll(points["stratum"], 1))
    with pytest.raises(SchemaError, match="is not the class of this map there: they were drawn from another map"):
        area_estimate(mapped, moved)
    with pytest.raises(SchemaError, match="has no column 'cover'; name the one with the true class"):
        area_estimate(mapped, points, column="cover")
    with pytest.raises(SchemaError, match=r"found Polygon\. Draw them with stratified_points"):
        area_estimate(mapped, points.set_geometry(points.buffer(5)))
    with pytest.raises(SchemaError, match="have no CRS"):
        area_estimate(mapped, points.set_crs(None, allow_override=True))
    with pytest.raises(SchemaError, match="is a GeoDataFrame of points, or a LabelSet, not list"):
        area_estimate(mapped, [(1, 2)])
    with pytest.raises(SchemaError, match="choose one of 2020, 2021"):
        area_estimate(xr.concat([mapped, mapped], xr.Variable("time", [2020, 2021])), points)
    with pytest.raises(SchemaError, match="confidence must be above 0 and below 1, not 95"):
        area_estimate(mapped, points, confidence=95)
    with pytest.raises(SchemaError, match="unit='acre' is unknown"):
        area_estimate(mapped, points, unit="acre")
    with pytest.raises(SchemaError, match="map of numbers"):
        area_estimate(with_grid(xr.DataArray(np.ones(GRID.shape), dims=("y", "x")), GRID), points)
    with pytest.raises(SchemaError, match="no pixel of the map has a class"):
        area_estimate(mapped.copy(data=np.zeros_like(mapped.values)), points)
    with pytest.raises(SchemaError, match="3 flag_values and 1 flag_meanings"):
        area_estimate(mapped.assign_attrs(flag_meanings="forest"), points)
    with pytest.raises(SchemaError, match=r"a Dataset with `prediction`; found \['codes'"):
        area_estimate(mapped.to_dataset(name="codes"), points)
    with pytest.raises(SchemaError, match="n=5 must be from 6, two for each of the 3 classes, to 40000"):
        stratified_points(mapped, 5)
    with pytest.raises(SchemaError, match="allocation='best' is unknown"):
        stratified_points(mapped, 50, allocation="best")
    single = mapped.copy(data=np.where(np.arange(mapped.size).reshape(mapped.shape) == 7, 3, 1).astype(np.uint8))
    with pytest.raises(SchemaError, match="classes with a single pixel can't be sampled: water"):
        stratified_points(single, 50)


@pytest.mark.parametrize(
    ("counts", "areas", "message"),
    [
        ([[5, -1], [0, 5]], [1, 1], "numbers from 0 on"),
        ([[5, np.nan], [0, 5]], [1, 1], "numbers from 0 on"),
        ([[5, 1], [0, 5]], [1, 0], "must be above 0"),
        ([[5, 1], [0, 5]], [1, 2, 3], "2 rows and there are 3 mapped areas"),
        ([[5, 1], [0, 5]], {"a": 1.0}, "2 rows and there are 1 mapped areas"),
        ([[5, 1], [0, 5], [1, 1]], [1, 2, 3], r"have the shape \(3, 2\)"),
        (pd.DataFrame([[5, 1], [0, 5]], index=["a", "b"], columns=["a", "b"]), {"a": 1, "c": 1}, "no mapped area of b"),
        (pd.DataFrame([[5, 1], [0, 5]], index=["a", "a"], columns=["a", "b"]), [1, 1], "occur twice"),
    ],
)
def test_faults_of_counts(counts, areas, message):
    with pytest.raises(SchemaError, match=message):
        area_estimate_from_counts(counts, areas)
