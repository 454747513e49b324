"""Plots: what they hold is what was asked for, however it is drawn; and all of them in a real JupyterLab, offline."""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from browser import browser, jupyter, run_notebook, write_notebook

import tessera_xr as txr
from tessera_xr.errors import CubeError, GridError, SchemaError, StoreError, TesseraWarning
from tessera_xr.plot_accessor import DataArrayPlots, DatasetPlots
from tessera_xr.tutorial import cube as make_tutorial_cube
from tessera_xr.tutorial import embeddings
from tessera_xr.views import plots, render
from tessera_xr.views.plots import layers
from tessera_xr.views.plots.brushing import point_table
from tessera_xr.views.plots.layers import frame_of


@pytest.fixture(scope="module")
def every() -> xr.Dataset:
    """All years, int8."""
    return embeddings()


@pytest.fixture(scope="module")
def emb(every: xr.Dataset) -> xr.Dataset:
    """One year of a part that is no square."""
    return every.sel(time=2022).isel(y=slice(0, 40), x=slice(0, 48))


@pytest.fixture(scope="module")
def cube() -> xr.Dataset:
    return make_tutorial_cube(24)


@pytest.fixture(scope="module")
def labels(emb: xr.Dataset) -> txr.LabelSet:
    from geopandas import GeoDataFrame, points_from_xy

    rng = np.random.default_rng(0)
    chosen = rng.choice(emb.sizes["y"] * emb.sizes["x"], 90, replace=False)
    rows, columns = np.unravel_index(chosen, (emb.sizes["y"], emb.sizes["x"]))
    names = np.where(rows < 20, "winter wheat", "bare_rock")
    points = points_from_xy(emb.x.values[columns], emb.y.values[rows], crs="EPSG:32610")
    return txr.LabelSet.from_geodataframe(GeoDataFrame({"class": names}, geometry=points), "class")


@pytest.fixture(scope="module")
def pred(emb: xr.Dataset, labels: txr.LabelSet) -> xr.Dataset:
    return txr.predict(emb, txr.fit_head(emb, labels))


def elements(drawn: Any, kind: str) -> list[Any]:
    """Return the elements of one type, not those of its subclasses, in a plot, the lowest first."""
    return [e for e in drawn.traverse(lambda e: e) if type(e).__name__ == kind]


def north_up(element: Any) -> np.ndarray:
    """Return an image as on the screen: its uppermost row first."""
    return element.dimension_values(2, flat=False)[::-1]


def options(element: Any, group: str = "plot") -> dict[str, Any]:
    import holoviews as hv

    return hv.Store.lookup_options("bokeh", element, group).kwargs


def figure_of(drawn: Any) -> Any:
    """Return what Bokeh draws."""
    import holoviews as hv

    return hv.render(drawn, backend="bokeh")


def images(figure: Any) -> list[Any]:
    return [image for axes in figure.axes for image in axes.images]


# Maps -----------------------------------------------------------------------------------------------------------------


def test_similarity_holds_the_numbers_at_their_places(emb):
    west, south, east, north = (731280, 4285760, 731760, 4286160)
    vector = txr.dequantize(emb).embeddings.isel(y=7, x=9).values
    wanted = txr.similarity(emb, vector)
    drawn = plots.similarity(emb, vector)
    (image,) = elements(drawn, "Image")
    np.testing.assert_array_equal(north_up(image), wanted.values)
    box = (float(emb.x[0]) - 5, float(emb.y[-1]) - 5, float(emb.x[-1]) + 5, float(emb.y[0]) + 5)
    assert image.bounds.lbrt() == pytest.approx(box)
    assert box == pytest.approx((west, south, east, north), abs=10)
    static = plots.similarity(emb, vector, static=True)
    (shown,) = images(static)
    np.testing.assert_array_equal(shown.get_array(), wanted.values)
    assert shown.get_extent() == pytest.approx((box[0], box[2], box[1], box[3]))
    assert shown.get_clim() == options(image)["clim"] == (0.0, 1.0)  # as in the explorer
    against = txr.dequantize(emb).embeddings.isel(y=30, x=30).values
    assert options(elements(plots.similarity(emb, vector, against), "Image")[0])["clim"] == (-1.0, 1.0)


def test_pixels_are_squares_and_axes_say_where(emb):
    figure = figure_of(plots.rgb(emb))
    width = figure.x_range.end - figure.x_range.start
    height = figure.y_range.end - figure.y_range.start
    assert figure.frame_width / figure.frame_height == pytest.approx(width / height, rel=0.01)
    assert (width, height) == pytest.approx((480, 400))
    assert figure.xaxis[0].axis_label == "easting (m), EPSG:32610"
    assert figure.yaxis[0].axis_label == "northing (m)"
    static = plots.rgb(emb, static=True).axes[0]
    assert static.get_aspect() == 1
    assert static.get_xlabel() == figure.xaxis[0].axis_label


def test_a_map_in_degrees_is_not_stretched():
    coords = {"lat": [50.0, 50.01], "lon": [3.0, 3.01, 3.02]}
    frame = frame_of(xr.DataArray(np.zeros((2, 3)), coords, ("lat", "lon")))
    assert frame.aspect == pytest.approx(1 / np.cos(np.radians(50.005)), rel=1e-6)
    assert frame.x_label == "longitude (°), EPSG:4326"
    assert frame.extent == pytest.approx((2.995, 3.025, 49.995, 50.015))


def test_the_best_places_and_the_query_are_marked(emb):
    lon, lat = place(emb, 12, 30)
    drawn = plots.similarity(emb, (lon, lat), k=4)
    query, best = elements(drawn, "Points")
    found = txr.find_similar(emb, (lon, lat), 4)
    assert (best.dimension_values("x") == found["x"]).all()
    assert (best.dimension_values("y") == found["y"]).all()
    assert list(elements(drawn, "Labels")[0].dimension_values("text")) == ["1", "2", "3", "4"]
    assert query.dimension_values("x")[0] == pytest.approx(float(emb.x[30]), abs=0.1)
    assert query.dimension_values("y")[0] == pytest.approx(float(emb.y[12]), abs=0.1)


def place(emb: xr.Dataset, row: int, column: int) -> tuple[float, float]:
    from pyproj import Transformer

    to_degrees = Transformer.from_crs("EPSG:32610", "EPSG:4326", always_xy=True)
    return to_degrees.transform(float(emb.x[column]), float(emb.y[row]))


def test_colours_are_those_of_the_components(every, emb):
    components = txr.fit_components(every)
    wanted = render.to_rgba(components.rgb(emb))
    (image,) = elements(plots.rgb(emb, components=components), "RGB")
    for i, name in enumerate(("R", "G", "B", "A")):
        np.testing.assert_array_equal(image.dimension_values(name, flat=False)[::-1], wanted[..., i])
    np.testing.assert_array_equal(images(plots.rgb(emb, components=components, static=True))[0].get_array(), wanted)


def test_several_times_stand_side_by_side_in_the_same_colours(every):
    some = every.isel(time=slice(3, 7), y=slice(0, 9), x=slice(0, 8))
    components = txr.fit_components(some)
    drawn = elements(plots.rgb(some), "RGB")
    assert len(drawn) == 4
    for i, image in enumerate(drawn):
        wanted = render.to_rgba(components.rgb(some.isel(time=i)))
        np.testing.assert_array_equal(image.dimension_values("R", flat=False)[::-1], wanted[..., 0])
        assert options(image)["title"] == str(some.time.values[i])
    assert len(elements(plots.rgb(some, 2021), "RGB")) == 1
    changed = xr.concat([txr.change(every, 2020, y) for y in (2021, 2022)], "time", coords="minimal", compat="override")
    figure = plots.values((changed * 7).rename("any"), static=True)
    assert len({image.get_clim() for image in images(figure)}) == 1


def test_change_is_on_a_fixed_scale(every):
    small = every.isel(y=slice(0, 12), x=slice(0, 9))
    wanted = txr.change(small, 2020, 2022)
    drawn = plots.change(small, 2020, 2022)
    (image,) = elements(drawn, "Image")
    np.testing.assert_array_equal(north_up(image), wanted.values)
    assert options(image)["clim"] == (0.0, 1.0)
    assert options(image)["title"] == "Change, 2020 to 2022"


def test_true_colour_shows_the_median_or_a_date(cube):
    (image,) = elements(plots.true_colour(cube), "RGB")
    wanted = render.to_rgba(render.true_colour(cube))
    np.testing.assert_array_equal(image.dimension_values("G", flat=False)[::-1], wanted[..., 1])
    date = str(cube.s2_time.values[4])[:10]
    figure = plots.true_colour(cube, date, static=True)
    np.testing.assert_array_equal(images(figure)[0].get_array(), render.to_rgba(render.true_colour(cube, date)))
    assert date in figure.axes[0].get_title()
    with pytest.raises(SchemaError, match="no Sentinel-2 date"):
        plots.true_colour(cube, "1999-01-01")


def test_classes_have_a_legend_with_their_names_and_colours(pred):
    drawn = plots.classes(pred)
    (image,) = elements(drawn, "Image")
    np.testing.assert_array_equal(north_up(image), pred.prediction.values - 1.0)
    figure = figure_of(drawn)
    named = {item.label.value: item.renderers[0].glyph.fill_color for item in figure.legend[0].items}
    assert named == dict(zip(["bare rock", "winter wheat"], pred.prediction.attrs["flag_colors"].split(), strict=True))
    static = plots.classes(pred, static=True)
    texts = {t.get_text(): p.get_facecolor() for t, p in legend(static)}
    assert list(texts) == list(named)
    np.testing.assert_array_equal(images(static)[0].get_array(), pred.prediction.values - 1.0)
    colours = images(static)[0].cmap(images(static)[0].norm(np.arange(2)))
    assert [tuple(c) for c in colours] == list(texts.values())


def test_true_and_false_are_classes(emb):
    found = (emb.s2_obs_count > emb.s2_obs_count.median()) if "s2_obs_count" in emb else emb.scales > 0.03
    (image,) = elements(found.tessera.plot(), "Image")
    np.testing.assert_array_equal(north_up(image), found.values.astype(float))
    assert [t.get_text() for t, _ in legend(plots.classes(found, static=True))] == ["no", "yes"]


def legend(figure: Any) -> list[tuple[Any, Any]]:
    (found,) = figure.legends
    return list(zip(found.get_texts(), found.get_patches(), strict=True))


def test_a_prediction_of_numbers_is_shown_on_a_scale(emb):
    numbers = xr.DataArray(np.arange(1920.0).reshape(40, 48), {"y": emb.y, "x": emb.x}, name="prediction")
    made = xr.Dataset({"prediction": numbers.assign_attrs(long_name="predicted height")}, attrs={"head": "ridge"})
    (image,) = elements(plots.classes(made), "Image")
    assert options(image)["clim"] == pytest.approx(tuple(np.percentile(numbers, (2, 98))))
    with pytest.raises(SchemaError, match="no `confidence`"):
        plots.confidence(made)


def test_confidence_goes_from_nothing_to_one(pred):
    (image,) = elements(plots.confidence(pred), "Image")
    np.testing.assert_array_equal(north_up(image), pred.confidence.values)
    assert options(image)["clim"] == (0.0, 1.0)


def classes_of(codes: Any, n: int) -> xr.DataArray:
    height, width = np.shape(codes)
    coords = {"y": np.arange(height) * -10.0, "x": np.arange(width) * 10.0}
    attrs = {"flag_values": np.arange(1, n + 1), "flag_meanings": " ".join(f"kind_{i}" for i in range(1, n + 1))}
    return xr.DataArray(np.asarray(codes), coords, ("y", "x"), attrs=attrs | {"nodata": 0})


def test_of_many_classes_the_commonest_are_named():
    codes = np.repeat(np.arange(100), np.arange(1, 101))[:5000].reshape(50, 100) + 1
    found = classes_of(codes, 100)
    names = [item.label.value for item in figure_of(plots.classes(found)).legend[0].items]
    assert len(names) == 24
    assert names[0] == "kind 77"
    assert names[-1] == "and 77 more"
    figure = plots.classes(found, static=True)
    assert [t.get_text() for t, _ in legend(figure)] == names


def test_flags_of_any_order_and_no_data_find_their_class():
    found = classes_of(np.array([[9, 0, 4], [4, 7, 9]], np.uint8), 3)
    found.attrs |= {
        "flag_values": [9, 4, 7],
        "flag_meanings": "nine four seven",
        "flag_colors": "#ff0000 #00ff00 #0000ff",
    }
    (image,) = elements(plots.classes(found), "Image")
    np.testing.assert_array_equal(north_up(image), [[0, np.nan, 1], [1, 2, 0]])
    mask = (found == 4).tessera.plot()
    np.testing.assert_array_equal(north_up(elements(mask, "Image")[0]), [[0, 0, 1], [1, 0, 0]])


def test_no_data_is_transparent(emb):
    half = emb.assign(scales=emb.scales.where(emb.x > float(emb.x[20])))
    (image,) = elements(plots.rgb(half), "RGB")
    alpha = image.dimension_values("A", flat=False)[::-1]
    assert (alpha[:, :21] == 0).all()
    assert (alpha[:, 21:] == 255).all()
    mapper = figure_of(plots.values(half.scales)).renderers[0].glyph.color_mapper
    assert mapper.nan_color in ("rgba(0, 0, 0, 0)", (0, 0, 0, 0))


# Grids of other shapes ------------------------------------------------------------------------------------------------


def test_south_up_and_east_first_are_drawn_north_up(emb):
    score = txr.similarity(emb, txr.dequantize(emb).embeddings.isel(y=3, x=4).values)
    turned = score.isel(y=slice(None, None, -1), x=slice(None, None, -1))
    (straight,), (other,) = (elements(plots.values(v), "Image") for v in (score, turned))
    np.testing.assert_array_equal(north_up(straight), north_up(other))
    assert straight.bounds.lbrt() == pytest.approx(other.bounds.lbrt())
    swapped = plots.values(score.transpose("x", "y"), static=True)
    np.testing.assert_array_equal(images(swapped)[0].get_array(), score.values)


@pytest.mark.parametrize("shape", [(1, 1), (1, 30), (30, 1)])
def test_a_single_row_or_pixel_has_an_extent(emb, shape):
    part = emb.isel(y=slice(0, shape[0]), x=slice(0, shape[1]))
    drawn = plots.values(part.scales)
    (image,) = elements(drawn, "Image")
    left, bottom, right, top = image.bounds.lbrt()
    assert (right - left, top - bottom) == pytest.approx((10 * shape[1], 10 * shape[0]))
    figure = figure_of(drawn)
    seen = (figure.x_range.end - figure.x_range.start, figure.y_range.end - figure.y_range.start)
    assert figure.frame_width / figure.frame_height == pytest.approx(seen[0] / seen[1], rel=0.02)
    assert min(figure.frame_width, figure.frame_height) > 50
    plots.values(part.scales, static=True).canvas.draw()


def test_a_map_without_any_data_is_empty_and_not_an_error(emb):
    nothing = emb.scales.where(False)
    (image,) = elements(plots.values(nothing), "Image")
    assert np.isnan(north_up(image)).all()
    assert figure_of(plots.values(nothing)).title.text.endswith("no data")
    plots.values(nothing, static=True).canvas.draw()
    figure_of(plots.classes(classes_of(np.zeros((4, 5), np.uint8), 3)))


def test_lazy_maps_and_floats_are_drawn_the_same(emb):
    vector = txr.dequantize(emb).embeddings.isel(y=7, x=9).values
    (wanted,) = elements(plots.similarity(emb, vector), "Image")
    for other in (emb.chunk(y=16, x=48), txr.dequantize(emb)):
        (found,) = elements(plots.similarity(other, vector), "Image")
        np.testing.assert_allclose(north_up(found), north_up(wanted), atol=1e-6)


def test_lazy_maps_too_large_for_a_picture_are_thinned(emb, monkeypatch):
    monkeypatch.setattr(layers, "MOST_LAZY", 500)
    vector = txr.dequantize(emb).embeddings.isel(y=7, x=9).values
    with pytest.warns(TesseraWarning, match="one of 2 is shown along each axis"):
        drawn = plots.similarity(emb.chunk(y=16, x=48), vector)
    (image,) = elements(drawn, "Image")
    np.testing.assert_array_equal(north_up(image), txr.similarity(emb, vector).values[::2, ::2])


def test_large_maps_go_through_datashader(monkeypatch, emb, pred):
    import holoviews as hv

    from tessera_xr.views.plots import interactive

    monkeypatch.setattr(interactive, "MANY_PIXELS", 1000)
    for drawn, kind in ((plots.classes(pred), hv.Image), (plots.rgb(emb), hv.RGB)):
        assert isinstance(drawn, hv.DynamicMap)
        assert figure_of(drawn).renderers
        assert elements(drawn[()], kind.__name__)
    assert figure_of(plots.classes(pred)).legend[0].items


# Series ---------------------------------------------------------------------------------------------------------------


def test_series_are_those_of_the_pixel(cube):
    lon, lat = middle(cube)
    s2, s1 = txr.pixel_series(cube, lon, lat)
    drawn = plots.series(cube, lon, lat)
    clear, masked = s2[s2.clear], s2[~s2.clear]
    dots = elements(drawn, "Scatter")
    ndvi = [e for e in dots if e.label == "NDVI"]
    assert [len(e) for e in ndvi] == [len(clear.ndvi.dropna()), len(masked.ndvi.dropna())]
    np.testing.assert_allclose(ndvi[0].dimension_values("NDVI"), clear.ndvi.dropna())
    assert options(ndvi[1], "style")["fill_alpha"] == 0  # hollow
    line = next(e for e in elements(drawn, "Curve") if e.label == "NDVI")
    assert len(line) == len(clear.ndvi.dropna())
    radar = {e.label: len(e) for e in elements(drawn, "Curve") if e.label.startswith("V")}
    wanted = {f"{p.upper()} {o}": int((s1.orbit == o).sum()) for o in ("ascending", "descending") for p in ("vv", "vh")}
    assert radar == {k: v for k, v in wanted.items() if v}
    figure = plots.series(cube, lon, lat, static=True)
    optical, index, backscatter = figure.axes
    np.testing.assert_allclose(index.lines[0].get_ydata(), clear.ndvi.dropna())
    assert index.lines[1].get_markerfacecolor() == "none"
    assert optical.get_ylabel() == "reflectance"
    assert len(backscatter.lines) == 2 * len(radar)


def middle(ds: xr.Dataset) -> tuple[float, float]:
    from tessera_xr.grid import bounds_lonlat, geobox_of

    west, south, east, north = bounds_lonlat(geobox_of(ds))
    return (west + east) / 2, (south + north) / 2


def test_series_of_one_satellite_have_its_panels_alone(cube):
    lon, lat = middle(cube)
    radar = cube.isel(s2_time=slice(0, 0))
    assert len(plots.series(radar, lon, lat, static=True).axes) == 1
    optical = cube.isel(s1_time=slice(0, 0))
    assert len(plots.series(optical, lon, lat, static=True).axes) == 2
    figure_of(plots.series(optical, lon, lat))
    nothing = cube.isel(s1_time=slice(0, 0), s2_time=slice(0, 0))
    with pytest.raises(SchemaError, match="ever saw"):
        plots.series(nothing, lon, lat)


# Scatter --------------------------------------------------------------------------------------------------------------


def test_scatter_shows_drawn_pixels_twice_from_one_source(emb):
    drawn = plots.scatter(emb, n=300)
    space, where = elements(drawn, "Points")
    assert space.data is where.data
    table = space.data
    assert len(table) == 300
    vectors = txr.dequantize(emb).embeddings.sel(x=xr.DataArray(table.x, dims="n"), y=xr.DataArray(table.y, dims="n"))
    values = vectors.transpose("n", "band").values
    axes = table.iloc[:, :2].to_numpy()
    centred = values - values.mean(axis=0)
    left, size, _ = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(np.abs(axes), np.abs(left[:, :2] * size[:2]), atol=2e-3)
    layout = figure_of(drawn)
    from bokeh.models import BoxSelectTool, GlyphRenderer, LassoSelectTool, Scatter

    renderers = [r for r in layout.select({"type": GlyphRenderer}) if isinstance(r.glyph, Scatter)]
    assert len(renderers) == 2
    assert len({r.data_source.id for r in renderers}) == 1
    assert {str(r.glyph.x) for r in renderers} >= {"x"}
    assert all(r.nonselection_glyph.fill_alpha < 0.1 for r in renderers)
    assert list(layout.select({"type": BoxSelectTool}))
    assert list(layout.select({"type": LassoSelectTool}))


def test_scatter_is_coloured_by_classes_or_numbers(emb, pred):
    table = elements(plots.scatter(emb, pred.prediction, n=200), "Points")[0].data
    codes = pred.prediction.sel(x=xr.DataArray(table.x, dims="n"), y=xr.DataArray(table.y, dims="n")).values
    assert list(table.colour) == [["bare rock", "winter wheat"][c - 1] for c in codes]
    layout = figure_of(plots.scatter(emb, pred.prediction, n=200))
    from bokeh.models import Legend

    assert len(list(layout.select({"type": Legend}))) >= 1
    numbers = elements(plots.scatter(emb, pred.confidence, n=200), "Points")[0]
    held = pred.confidence.sel(x=xr.DataArray(numbers.data.x, dims="n"), y=xr.DataArray(numbers.data.y, dims="n"))
    np.testing.assert_allclose(numbers.data.colour, held.values, rtol=1e-6)
    assert options(numbers)["clim"] == (0.0, 1.0)


def test_scatter_has_umap_axes(emb, monkeypatch):
    pytest.importorskip("umap")  # whose own minute of compiling is spared
    from tessera_xr.analysis import components, drawing

    def first_two(emb: xr.Dataset, *, n_pixels: int, n_neighbors: int, seed: int) -> xr.DataArray:
        assert n_neighbors == 15
        return drawing.draw_pixels(emb, n_pixels, seed).isel(band=slice(2))

    monkeypatch.setattr(components, "umap", first_two)
    table = point_table(emb, None, "umap", 80, 3)
    vectors = txr.dequantize(emb).embeddings.sel(x=xr.DataArray(table.x, dims="n"), y=xr.DataArray(table.y, dims="n"))
    np.testing.assert_array_equal(table[["UMAP 1", "UMAP 2"]], vectors.transpose("n", "band")[:, :2])
    drawn = plots.scatter(emb, method="umap", n=80, seed=3)
    assert elements(drawn, "Points")[0].data.equals(table)


# Tables ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def table(emb: xr.Dataset, labels: txr.LabelSet) -> pd.DataFrame:
    return txr.evaluate(emb, labels, ["logistic", "knn"], fractions=(3, 10), n_draws=2, n_folds=3, progress=False)


def test_efficiency_has_a_curve_and_a_band_for_each_head(table):
    drawn = plots.efficiency(table, random=True)
    curves = {e.label: e for e in elements(drawn, "Curve")}
    assert list(curves) == ["logistic", "logistic, random pixels", "knn", "knn, random pixels"]
    for head in ("logistic", "knn"):
        rows = table.loc["embeddings", head]
        np.testing.assert_array_equal(curves[head].dimension_values(0), rows.n_pixels)
        np.testing.assert_array_equal(curves[head].dimension_values(1), rows.macro_f1)
        np.testing.assert_array_equal(curves[f"{head}, random pixels"].dimension_values(1), rows.macro_f1_random)
        band = next(e for e in elements(drawn, "Area") if e.label == head)
        np.testing.assert_array_equal(band.dimension_values(1), rows.macro_f1_low)
        np.testing.assert_array_equal(band.dimension_values(2), rows.macro_f1_high)
    axes = plots.efficiency(table, "accuracy", static=True).axes[0]
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), table.loc["embeddings", "logistic"].accuracy)
    assert "accuracy" in axes.get_ylabel()
    figure_of(drawn)
    one = table.iloc[[0, 2]]  # one fraction: heads side by side
    assert figure_of(plots.efficiency(one, random=True)).x_range.factors == ["logistic", "knn"]
    bars = elements(plots.efficiency(one), "ErrorBars")
    assert [float(bar.dimension_values(2)[0]) for bar in bars] == list(one.macro_f1 - one.macro_f1_low)
    plots.efficiency(one, random=True, static=True).canvas.draw()
    figure_of(plots.efficiency(table, "auc"))


def test_inputs_are_told_apart(table):
    both = pd.concat([table, table.rename(index={"embeddings": "medians"}, level=0)])
    names = [e.label for e in elements(plots.efficiency(both), "Curve")]
    assert names == ["embeddings, logistic", "embeddings, knn", "medians, logistic", "medians, knn"]


def test_confusion_shows_shares_of_the_truth(emb, labels):
    found = txr.validate(emb, labels, "knn", n_folds=3)
    drawn = plots.confusion(found)
    cells = elements(drawn, "HeatMap")[0].dframe().set_index(["truth", "predicted"]).share
    wanted = found.confusion.div(found.confusion.sum(axis=1), axis=0)
    for truth in wanted.index:
        for said in wanted.columns:
            assert cells[truth.replace("_", " "), said.replace("_", " ")] == pytest.approx(wanted.loc[truth, said])
    np.testing.assert_allclose(images(plots.confusion(found, static=True))[0].get_array(), wanted)
    figure_of(drawn)
    with pytest.raises(SchemaError, match="no confusion matrix"):
        plots.confusion(emb)


def test_folds_are_those_of_validate(emb, labels):
    found = txr.validate(emb, labels, "knn", n_folds=3, seed=4).predictions
    drawn = plots.folds(emb, labels, 3, seed=4)
    points = elements(drawn, "Points")
    assert [e.label for e in points] == ["fold 1", "fold 2", "fold 3"]
    for number, element in enumerate(points):
        here = found[found.fold == number]
        assert set(map(tuple, element.dframe()[["x", "y"]].to_numpy())) == set(map(tuple, here[["x", "y"]].to_numpy()))
    plots.folds(emb, labels, 3, static=True).canvas.draw()


def test_very_many_labelled_pixels_are_a_raster_of_folds(emb, labels, monkeypatch):
    from tessera_xr.views.plots import held_out

    monkeypatch.setattr(held_out, "MANY", 50)
    for turned in (emb, emb.isel(y=slice(None, None, -1))):
        found = txr.validate(turned, labels, "knn", n_folds=3).predictions
        (image,) = elements(plots.folds(turned, labels, 3), "Image")
        shown = north_up(image)
        rows = np.searchsorted(-emb.y.values, -found.y)
        columns = np.searchsorted(emb.x.values, found.x)
        np.testing.assert_array_equal(shown[rows, columns], found.fold)
        assert np.isfinite(shown).sum() == len(found)


def log(folder: Path, text: str | None = None) -> Path:
    header = "step,pixels,seconds,learning_rate,loss,barlow_twins,mix,rebuild,reconstruction,distillation,rank_me\n"
    lines = "10,640,1.5,0.001,9.5,8.0,1.5,,,,12.0\n20,1280,3.0,0.002,7.5,6.5,1.0,,,,15.5\n30,1920,4.0,0.002,6,5,1,,,,\n"
    (folder / "log.csv").write_text(header + lines if text is None else text)
    return folder


def test_pretraining_curves_are_those_of_the_log(tmp_path):
    drawn = plots.pretraining(log(tmp_path))
    curves = {e.label: e for e in elements(drawn, "Curve")}
    assert list(curves) == ["barlow twins", "mix", ""]
    np.testing.assert_array_equal(curves["barlow twins"].dimension_values(1), [8, 6.5, 5])
    np.testing.assert_array_equal(curves[""].dimension_values(1), [12, 15.5])
    losses, ranks = plots.pretraining(tmp_path / "log.csv", static=True).axes
    np.testing.assert_array_equal(losses.lines[1].get_ydata(), [1.5, 1, 1])
    np.testing.assert_array_equal(ranks.lines[0].get_xdata(), [10, 20])
    figure_of(drawn)


# Bad input ------------------------------------------------------------------------------------------------------------


def test_bad_input_is_told_before_long_work(every, emb, cube, labels, table, pred, tmp_path):
    many = xr.concat([emb.scales] * 13, "time", coords="minimal", compat="override").assign_coords(time=range(13))
    wrong = {
        "no CRS or pixels": (lambda: plots.rgb(emb.isel(y=slice(0, 0))), (GridError, SchemaError), "no pixels|few"),
        "no embeddings": (lambda: plots.rgb(cube), SchemaError, "needs embeddings"),
        "no cube": (lambda: plots.true_colour(emb), CubeError, ""),
        "outside": (lambda: plots.series(cube, 0.0, 0.0), GridError, "outside"),
        "nothing to plot": (lambda: plots.plot(xr.Dataset({"a": ("t", [1])})), SchemaError, "Choose one map"),
        "no such time": (lambda: plots.rgb(every, 1999), SchemaError, "choose one of 2017"),
        "time of a map without": (lambda: plots.values(emb.scales, time=2020), SchemaError, "no dimension"),
        "unclear time": (lambda: plots.scatter(every), SchemaError, "which time"),
        "many times": (lambda: plots.values(many), SchemaError, "12 at most"),
        "method": (lambda: plots.scatter(emb, method="tsne"), SchemaError, "'components', 'umap'"),
        "n": (lambda: plots.scatter(emb, n=10**7), SchemaError, "n=10000000"),
        "colour": (lambda: plots.scatter(emb, "red"), SchemaError, "a DataArray"),
        "another grid": (lambda: plots.scatter(emb, pred.prediction.isel(y=slice(3))), GridError, "different grids"),
        "no flags": (lambda: plots.classes(emb.scales), SchemaError, "flag_values"),
        "colour map": (lambda: plots.values(emb.scales, "rainbowish"), SchemaError, "no colour map"),
        "clim": (lambda: plots.values(emb.scales, clim=(2, 1)), SchemaError, "to a larger one"),
        "not two": (lambda: plots.values(emb.scales, clim=3), SchemaError, "two numbers"),
        "bands": (lambda: plots.values(emb.embeddings), SchemaError, "choose along band"),
        "k": (lambda: plots.similarity(emb, place(emb, 1, 1), k=-2), SchemaError, "k=-2"),
        "table": (lambda: plots.efficiency(pd.DataFrame({"a": [1]})), SchemaError, "no table of evaluate"),
        "score": (lambda: plots.efficiency(table, "f1"), SchemaError, "'macro_f1'"),
        "claim": (lambda: plots.efficiency(table, "accuracy", random=True), SchemaError, "'macro_f1' alone"),
        "folds": (lambda: plots.folds(emb, labels, 1), SchemaError, "at least 2"),
        "no log": (lambda: plots.pretraining(tmp_path), StoreError, "no log"),
        "empty log": (lambda: plots.pretraining(log(tmp_path, "")), StoreError, "can't be read"),
        "other log": (lambda: plots.pretraining(log(tmp_path, "step,loss\n1,2\n")), StoreError, "no column"),
    }
    for name, (call, kind, words) in wrong.items():
        with pytest.raises(kind) as raised:
            call()
        assert re.search(words, str(raised.value)), name


# The accessor ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n in vars(DatasetPlots) if not n.startswith("_")])
def test_the_accessor_has_the_signatures_of_the_functions(name):
    assert_same(getattr(DatasetPlots, name), getattr(plots, name))


@pytest.mark.parametrize("name", [n for n in vars(DataArrayPlots) if not n.startswith("_")])
def test_so_has_that_of_a_map(name):
    assert_same(getattr(DataArrayPlots, name), getattr(plots, name))


def assert_same(method: Any, function: Any) -> None:
    mine = [(p.name, p.kind, p.default) for p in inspect.signature(method).parameters.values()][1:]
    theirs = [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()][1:]
    assert mine == theirs


def test_every_plot_of_data_is_in_the_accessor():
    offered = {name for kind in (DatasetPlots, DataArrayPlots) for name in vars(kind) if not name.startswith("_")}
    assert offered == set(plots.__all__) - {"efficiency", "confusion", "pretraining", "plot", "load"}


def test_a_call_plots_the_obvious(emb, cube, pred):
    cases: dict[str, tuple[Any, Any]] = {
        "embeddings": (emb, plots.rgb(emb, static=True)),
        "cube": (cube, plots.true_colour(cube, static=True)),
        "prediction": (pred, plots.classes(pred, static=True)),
        "classes": (pred.prediction, plots.classes(pred.prediction, static=True)),
        "picture": (txr.fit_components(emb).rgb(emb), plots.rgb(emb, static=True)),
        "numbers": (emb.scales, plots.values(emb.scales, static=True)),
    }
    for obj, wanted in cases.values():
        found = obj.tessera.plot(static=True)
        np.testing.assert_array_equal(images(found)[0].get_array(), images(wanted)[0].get_array())
        assert ".plot()" in repr(obj.tessera.plot)


def test_methods_pass_all_on(emb, every, cube, labels, pred):
    lon, lat = middle(cube)
    query, against = place(emb, 5, 5), place(emb, 30, 30)
    ask = (query, against, "max")
    shown = {"static": True}
    pairs = [
        (emb.tessera.plot.rgb(**shown), plots.rgb(emb, **shown)),
        (emb.tessera.plot.similarity(*ask, **shown), plots.similarity(emb, *ask, **shown)),
        (every.tessera.plot.change(2019, 2021, **shown), plots.change(every, 2019, 2021, **shown)),
        (emb.tessera.plot.folds(labels, 3, 90.0, seed=2, **shown), plots.folds(emb, labels, 3, 90.0, seed=2, **shown)),
        (pred.tessera.plot.confidence(**shown), plots.confidence(pred, **shown)),
        (emb.scales.tessera.plot.values("magma", (0, 2), **shown), plots.values(emb.scales, "magma", (0, 2), **shown)),
    ]
    for one, other in pairs:
        for mine, theirs in zip(images(one), images(other), strict=True):
            np.testing.assert_array_equal(mine.get_array(), theirs.get_array())
            assert mine.get_clim() == theirs.get_clim()
    a, b = (
        [line.get_ydata() for axes in figure.axes for line in axes.lines]
        for figure in (cube.tessera.plot.series(lon, lat, static=True), plots.series(cube, lon, lat, static=True))
    )
    assert len(a) == len(b) > 0
    assert elements(emb.tessera.plot.scatter(n=50, seed=3), "Points")[0].data.equals(
        elements(plots.scatter(emb, n=50, seed=3), "Points")[0].data
    )


# Loading --------------------------------------------------------------------------------------------------------------


def test_figures_show_themselves_without_pyplot(emb):
    assert plots.rgb(emb, static=True)._repr_png_().startswith(b"\x89PNG")


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_plots_imports_no_plotting_library():
    heavy = ("holoviews", "hvplot", "bokeh", "panel", "datashader", "matplotlib", "sklearn", "torch")
    code = f"import sys, tessera_xr as txr; txr.plots; print([m for m in {heavy} if m in sys.modules])"
    assert run_python(code).strip() == "[]"


def test_a_choice_of_backend_is_left_alone():
    code = """
import holoviews as hv
hv.extension("matplotlib")
import tessera_xr as txr
drawn = txr.tutorial.embeddings().isel(time=0).tessera.plot()
print(hv.Store.current_backend, bool(hv.Store.lookup_options("bokeh", drawn, "plot").kwargs))
"""
    assert run_python(code).split() == ["matplotlib", "True"]


# In a real JupyterLab -------------------------------------------------------------------------------------------------

CELLS = (
    "import tessera_xr as txr\nemb = txr.tutorial.embeddings().sel(time=2022)",
    "emb.tessera.plot()",
    "emb.tessera.plot.scatter(n=800)",
    "emb.tessera.cluster(5).tessera.plot()",
    "emb.tessera.plot(static=True)",
)
LASSO = ((0.25, 0.25), (0.7, 0.3), (0.6, 0.6), (0.3, 0.7))
SELECTED = """() => Bokeh.documents.flatMap(d => [...d._all_models.values()])
    .filter(m => m.type == 'ColumnDataSource' && m.selected.indices.length).map(m => m.selected.indices.length)"""
RUN_AGAIN = """async () => {
    const book = jupyterapp.shell.currentWidget.content;
    book.activeCellIndex = 1; book.deselectAll();
    await jupyterapp.commands.execute('notebook:run-cell');
    await jupyterapp.commands.execute('docmanager:save');
}"""


@pytest.mark.slow
@pytest.mark.xdist_group("browser")
def test_plots_in_jupyterlab_offline(tmp_path):
    write_notebook(tmp_path / "plots.ipynb", *CELLS)
    with jupyter(tmp_path) as address, browser(1300, 1100) as watched:
        page = watched.page
        run_notebook(page, address, "plots.ipynb")
        figures = page.locator(".jp-CodeCell .bk-Figure")
        figures.nth(3).wait_for()
        assert figures.count() == 4
        assert page.locator(".jp-CodeCell").nth(4).locator("img").evaluate("i => i.naturalWidth") > 300
        space, where = figures.nth(1), figures.nth(2)
        space.scroll_into_view_if_needed()
        page.wait_for_timeout(500)
        before = where.screenshot()
        box = space.bounding_box()
        corners = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in LASSO]
        page.mouse.move(*corners[0])
        page.mouse.down()
        for corner in corners[1:]:
            page.mouse.move(*corner, steps=3)
        page.mouse.up()
        page.wait_for_function(f"({SELECTED})().length")
        (selected,) = page.evaluate(SELECTED)  # from one source, that both plots draw
        assert 0 < selected < 800
        page.wait_for_timeout(300)
        assert where.screenshot() != before
        if folder := os.environ.get("TESSERA_XR_SCREENSHOTS"):
            Path(folder).mkdir(parents=True, exist_ok=True)
            page.screenshot(path=str(Path(folder) / "plots.png"))
        page.evaluate(RUN_AGAIN)
        page.wait_for_timeout(500)
        assert watched.console == []
        assert watched.outside == []
    # the cell that brought Bokeh ran twice: what is saved still brings it
    outputs = json.loads((tmp_path / "plots.ipynb").read_text())["cells"][1]["outputs"]
    assert any("application/vnd.holoviews_load.v0+json" in output.get("data", {}) for output in outputs)
