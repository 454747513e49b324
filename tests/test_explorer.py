"""The explorer's widgets, driven without a browser by the messages that a browser would send."""

from __future__ import annotations

import io
from base64 import b64decode

import ipyleaflet as leaflet
import numpy as np
import pytest
import xarray as xr
from PIL import Image

import tessera_xr as txr
from tessera_xr.errors import SchemaError
from tessera_xr.views.compare import Compare
from tessera_xr.views.explorer import Explorer, explore
from tessera_xr.views.inspector import Inspector
from tessera_xr.views.labeller import Labeller
from tessera_xr.views.map_view import MapView
from tessera_xr.views.session import Session
from tessera_xr.views.settings import LAYERS
from tessera_xr.views.wiring import Wiring

PART = {"y": slice(16, 48), "x": slice(16, 40)}


@pytest.fixture(scope="module")
def emb() -> xr.Dataset:
    return txr.tutorial.embeddings().sel(time=[2020, 2022]).isel(PART)


@pytest.fixture
def explorer(emb) -> Explorer:
    return Explorer(Session(emb), background=False)


def click(view: MapView, lon: float, lat: float) -> None:
    """Send what a browser sends."""
    view.map._handle_custom_msg({"event": "interaction", "type": "click", "coordinates": [lat, lon]}, [])


def click_pixel(explorer: Explorer, row: int, column: int) -> None:
    lon, lat = explorer.session.place_of((row, column))
    click(explorer.view, lon, lat)


def press(explorer: Explorer, key: str) -> None:
    explorer.keyboard._handle_custom_msg({"key": key}, [])


def shown(explorer: Explorer, layer: str) -> np.ndarray:
    content = b64decode(explorer.view.overlays[layer].url.split(",", 1)[1])
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGBA"))


def label_two_classes(explorer: Explorer, n: int = 8) -> None:
    lost = txr.tutorial.labels().lossyear.isel(PART).values == 21
    rng = np.random.default_rng(0)
    press(explorer, "l")
    for value, mask in (("lost", lost), ("kept", ~lost)):
        explorer.labeller.name.value = value
        explorer.labeller.add_class()
        for row, column in rng.permutation(np.argwhere(mask))[:n]:
            click_pixel(explorer, row, column)


def test_a_click_asks_and_the_map_answers(explorer):
    assert list(explorer.view.overlays) == ["embedding"]
    click_pixel(explorer, 3, 4)
    assert explorer.session.query.positives == ((3, 4),)
    first = shown(explorer, "similarity")
    assert first[..., 3].max() == 255
    click_pixel(explorer, 20, 11)
    assert explorer.session.query.positives == ((20, 11),)
    assert (shown(explorer, "similarity") != first).any()
    assert explorer.tabs.selected_index == 0
    assert explorer.session.errors == []


def test_examples_and_counterexamples_by_keys(explorer):
    press(explorer, "p")
    assert explorer.modes.value == "like"
    click_pixel(explorer, 3, 4)
    click_pixel(explorer, 20, 11)
    press(explorer, "n")
    click_pixel(explorer, 8, 21)
    query = explorer.session.query
    assert (query.positives, query.negatives) == (((3, 4), (20, 11)), ((8, 21),))
    assert [m.title for m in explorer.view.marks.layers] == ["example", "example", "counter-example"]
    assert "2 like, 1 unlike" in explorer.asking.told.value
    assert not explorer.asking.combine.disabled
    explorer.asking.combine.value = "max"
    assert explorer.session.query.combine == "max"
    for _ in range(4):
        press(explorer, "z")
    assert explorer.session.query.positives == ()
    assert "similarity" not in explorer.view.overlays
    assert explorer.undo_button.disabled
    press(explorer, "y")
    assert explorer.session.query.positives == ((3, 4),)
    assert "similarity" in explorer.view.overlays
    press(explorer, "Escape")
    assert explorer.view.marks.layers == ()
    assert explorer.session.errors == []


def test_a_counterexample_may_come_first(explorer):
    press(explorer, "n")
    click_pixel(explorer, 8, 21)
    assert explorer.session.errors == []
    assert [m.title for m in explorer.view.marks.layers] == ["counter-example"]
    assert not explorer.undo_button.disabled
    press(explorer, "p")
    click_pixel(explorer, 3, 4)
    assert "similarity" in explorer.view.overlays


def test_the_threshold_hides_what_is_below_and_says_how_much_is_left(explorer):
    click_pixel(explorer, 3, 4)
    before = shown(explorer, "similarity")
    explorer.asking.threshold.value = 0.6
    after = shown(explorer, "similarity")
    assert (after[..., 3] > 0).sum() < (before[..., 3] > 0).sum()
    assert (after[after[..., 3] > 0] == before[after[..., 3] > 0]).all()
    assert f"{explorer.session.hectares_above():,.1f} ha" in explorer.asking.area.value
    explorer.asking.threshold.value = 0
    assert explorer.session.threshold is None
    assert (shown(explorer, "similarity") == before).all()


def test_places_are_numbered(explorer):
    click_pixel(explorer, 3, 4)
    explorer.asking.find()
    icons = [m.icon.html for m in explorer.view.marks.layers]
    assert ">1</div>" in icons[1]
    assert len(icons) == 1 + len(explorer.view.places)
    click_pixel(explorer, 10, 10)
    assert len(explorer.view.marks.layers) == 1


def test_layers_times_and_colours(explorer):
    look = explorer.tabs.children[0]
    boxes = {c.description: c for c in walk(look) if type(c).__name__ == "Checkbox"}
    assert list(boxes) == [LAYERS[n] for n in reversed(explorer.session.layer_names())]
    for name in ("clusters", "novelty", "change"):
        boxes[LAYERS[name]].value = True
        assert name in explorer.view.overlays
    boxes[LAYERS["clusters"]].value = False
    assert "clusters" not in explorer.view.overlays
    assert "Novelty" in explorer.view.legend.value
    was = shown(explorer, "embedding")
    year = next(c for c in walk(look) if type(c).__name__ == "SelectionSlider")
    year.value = "2020"
    assert explorer.session.settings.time == "2020"
    assert (shown(explorer, "embedding") != was).any()
    assert any("two different times" in e for e in explorer.session.errors)  # change from 2020 to 2020
    faint = next(c for c in walk(look) if getattr(c, "tooltip", "") == f"Opacity of {LAYERS['embedding']}")
    faint.value = 0.3
    assert explorer.view.overlays["embedding"].opacity == 0.3
    assert {o.pane for o in explorer.view.overlays.values()} == set(explorer.view.overlays)


def walk(widget):
    yield widget
    for child in getattr(widget, "children", ()):
        yield from walk(child)


def test_inspecting(explorer):
    press(explorer, "i")
    click_pixel(explorer, 12, 7)
    assert explorer.tabs.selected_index == 2
    assert "row 12, column 7" in explorer.inspector.facts.value
    assert "cluster" in explorer.inspector.facts.value
    assert bytes(explorer.inspector.chart.value).startswith(b"\x89PNG")
    assert explorer.session.errors == []


def test_labels_by_click_by_drawing_and_back(explorer):
    label_two_classes(explorer)
    assert explorer.session.class_counts() == {"lost": 8, "kept": 8}
    features = explorer.view.label_layer.data["features"]
    assert {f["properties"]["style"]["fillColor"] for f in features} == set(explorer.session.labels.classes.values())
    press(explorer, "1")
    assert explorer.labeller.classes.value == "lost"
    corners = [explorer.session.place_of(p) for p in ((2, 2), (2, 9), (9, 9), (9, 2), (2, 2))]
    geometry = {"type": "Polygon", "coordinates": [[list(c) for c in corners]]}
    click(explorer.view, *corners[0])  # the map may see the corners as clicks
    click(explorer.view, *corners[1])
    drawn = {"event": "draw:created", "geo_json": {"type": "Feature", "properties": {}, "geometry": geometry}}
    explorer.labeller.draw._handle_custom_msg(drawn, [])
    assert explorer.session.class_counts()["lost"] == 9
    explorer.undo_button.click()
    assert explorer.session.class_counts()["lost"] == 8
    explorer.redo_button.click()
    assert explorer.session.class_counts()["lost"] == 9
    explorer.labeller.remove_last()
    assert len(explorer.view.label_layer.data["features"]) == 16
    assert explorer.session.errors == []


def test_learning(explorer):
    label_two_classes(explorer)
    explorer.teaching.fit()
    assert "classes" in explorer.view.overlays
    n_fits = explorer.session.n_fits
    explorer.teaching.judge()
    assert "macro F1" in explorer.teaching.scores.value
    click_pixel(explorer, 1, 1)  # an edit: taught again, and the scores of before are gone
    assert explorer.session.n_fits == n_fits + 1
    assert explorer.teaching.scores.value == ""
    explorer.teaching.refit.value = False
    click_pixel(explorer, 1, 2)
    assert explorer.session.n_fits == n_fits + 1
    assert "changed since" in explorer.teaching.told.value
    explorer.teaching.model.value = "knn"
    explorer.teaching.fit()
    assert explorer.session.head.name == "knn"
    explorer.press("i")
    click_pixel(explorer, 5, 5)
    assert "predicted" in explorer.inspector.facts.value


def test_promoting(explorer):
    click_pixel(explorer, 3, 4)
    explorer.asking.threshold.value = 0.5
    explorer.labeller.name.value = "like it"
    explorer.labeller.add_class()
    explorer.labeller.promote_similar()
    assert explorer.session.class_counts()["like it"] > 1
    explorer.labeller.cluster.value = 2
    explorer.labeller.promote_cluster()
    assert "cluster 2" in explorer.wiring.status.value


def test_files(explorer, emb, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    label_two_classes(explorer)
    explorer.teaching.fit()
    click = explorer.session
    explorer.labeller.save()
    explorer.labeller.load()
    assert click.class_counts() == {"lost": 16, "kept": 16}
    explorer.undo()
    explorer.layer.value = "classes"
    explorer.export_layer()
    explorer.save_head()
    explorer.save_session()
    written = sorted(p.name for p in tmp_path.iterdir() if p.suffix != ".xml")
    assert written == ["head.txr", "labels.geojson", "map.tif", "session.json"]
    assert txr.load_head("head.txr").classes == ("lost", "kept")
    explorer.press("a")
    lon, lat = click.place_of((3, 4))
    explorer.click(lon, lat)
    explorer.open_session()
    assert click.query.positives == ()
    assert click.class_counts() == {"lost": 8, "kept": 8}
    assert "similarity" not in explorer.view.overlays
    again = explore(emb, session="session.json")
    assert again.session.class_counts() == {"lost": 8, "kept": 8}
    again.wiring.close()
    with pytest.raises(SchemaError, match="not both"):
        explore(emb, session="session.json", labels=txr.LabelSet())
    assert explorer.session.errors == []


def test_errors_are_shown_and_kept(explorer):
    click(explorer.view, 0, 0)
    assert "outside the embeddings" in explorer.session.errors[-1]
    assert 'role="alert"' in explorer.wiring.status.value
    press(explorer, "l")
    click_pixel(explorer, 3, 3)
    assert "choose a class first" in explorer.session.errors[-1]
    next(b for b in walk(explorer.teaching.panel) if getattr(b, "description", "") == "Fit").click()
    assert "two classes" in explorer.session.errors[-1]
    explorer.labeller.file.value = "nowhere.geojson"
    next(b for b in walk(explorer.labeller) if getattr(b, "description", "") == "Import").click()
    assert "nowhere.geojson" in explorer.session.errors[-1]
    explorer.wiring.run(lambda: 1 / 0)
    assert explorer.session.errors[-1] == "ZeroDivisionError: division by zero"
    assert len(explorer.session.errors) == 5


def test_comparing(explorer):
    explorer.toggle_compare()
    compare = explorer.compare
    swipe = compare.maps[0]
    panes = {layer.pane for layer in swipe.layers}
    assert panes == {"left", "right"} <= set(swipe.panes)
    assert any(isinstance(c, leaflet.SplitMapControl) for c in swipe.controls)
    assert compare.overlays["left"].url != compare.overlays["right"].url  # 2020 and 2022
    compare.times["left"].value = "2022"
    assert compare.overlays["left"].url == compare.overlays["right"].url
    compare.how.value = "maps"
    left, right = compare.maps
    left.center = (38.7, -120.3)
    right.zoom = 9.5
    assert (right.center, left.zoom) == ([38.7, -120.3], 9.5)
    explorer.toggle_compare()
    assert explorer.below.children == ()
    assert explorer.session.errors == []


def test_parts_work_alone(emb):
    session = Session(emb)
    wiring = Wiring(session, background=False)
    lon, lat = session.place_of((3, 4))
    inspector = Inspector(wiring)
    inspector.inspect(lon, lat)
    assert inspector.found.pixel == (3, 4)
    labeller = Labeller(wiring)
    session.add_class("a")
    click(labeller.view, lon, lat)
    assert [label.value for label in session.labels] == ["a"]
    assert list(MapView(session).overlays) == ["embedding"]
    assert Compare(wiring).overlays["left"].url.startswith("data:image/webp")
    assert session.errors == []


def test_the_latest_click_wins(emb):
    import threading

    wiring = Wiring(Session(emb))
    started, go, seen = threading.Event(), threading.Event(), []

    def slow() -> str:
        started.set()
        go.wait(10)
        return "first"

    wiring.later("x", slow, seen.append)
    started.wait(10)
    wiring.later("x", lambda: seen.append("worked for nothing"), seen.append)
    wiring.later("y", lambda: "other", seen.append)
    wiring.later("x", lambda: "third", seen.append)
    go.set()
    wiring.wait()
    assert seen == ["other", "third"]
    wiring.close()


def test_large_maps_are_shown_coarser_and_sharper_when_near(emb, monkeypatch):
    monkeypatch.setattr("tessera_xr.views.map_view.MOST_PIXELS", 16)
    explorer = Explorer(Session(emb), background=False)
    assert max(shown(explorer, "embedding").shape) <= 17
    assert "zoom in" in explorer.view.note.value
    west, south = explorer.session.place_of((20, 8))
    east, north = explorer.session.place_of((12, 16))
    for name, value in {"south": south, "north": north, "west": west, "east": east}.items():
        explorer.view.map.set_trait(name, value)
    assert explorer.view.overlays["embedding"].bounds[0] == pytest.approx([south, west])
    assert explorer.view.note.value == ""
    assert explorer.session.errors == []


def test_no_request_leaves_without_being_asked(explorer):
    layers = explorer.view.map.layers
    assert not [layer for layer in layers if isinstance(layer, leaflet.TileLayer)]
    explorer.view.set_basemap("OpenStreetMap")
    tiles = [layer for layer in explorer.view.map.layers if isinstance(layer, leaflet.TileLayer)]
    assert [t.url.startswith("https://") for t in tiles] == [True]
    explorer.view.set_basemap("none")
    assert explorer.view.map.layers == layers


def test_controls_say_what_they_are(explorer):
    for widget in walk(explorer):
        if type(widget).__name__ in ("Button", "Checkbox", "Dropdown", "FloatSlider", "SelectionSlider", "Text"):
            named = widget.description or getattr(widget, "tooltip", "") or getattr(widget, "placeholder", "")
            assert named or widget in explorer.paths.values(), widget
    assert len(explorer.modes.tooltips) == len(explorer.modes.options)


def test_labels_of_another_crs_land_where_they_are(explorer, tmp_path, monkeypatch):
    import geopandas as gpd
    import shapely

    monkeypatch.chdir(tmp_path)
    session = explorer.session
    x, y = session.box.transform * (7.5, 12.5)
    utm = gpd.GeoDataFrame({"class": ["a"]}, geometry=[shapely.Point(x, y)], crs=session.box.crs.to_epsg())
    utm.to_file("labels.geojson", driver="GeoJSON")  # with its CRS in the old way, as GDAL writes it
    explorer.labeller.file.value = "labels.geojson"
    explorer.labeller.load()
    label = next(iter(session.labels))
    place = gpd.GeoSeries([label.geometry], crs=session.labels.crs).to_crs(4326)[0]
    assert session.pixel_at(place.x, place.y) == (12, 7)
    assert session.errors == []
