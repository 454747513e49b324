"""Label sets: every edit has an exact way back, ids are for good, and files give back what was put in."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from shapely.geometry import MultiPoint, MultiPolygon, Point, Polygon, box

from tessera_xr import tutorial
from tessera_xr.errors import GridError, SchemaError, TesseraWarning
from tessera_xr.grid import with_grid
from tessera_xr.learning.labels import LabelSet

BOWTIE = Polygon([(0, 0), (1, 1), (1, 0), (0, 1)])
HOLED = MultiPolygon([box(0, 0, 9, 9).difference(box(2, 2, 5, 5)), box(20, 20, 21, 22)])


def state(labels: LabelSet) -> tuple[Any, ...]:
    """Return all that can be seen of a set, orders too, but for its log."""
    facts = labels.classes, labels.target, labels.crs
    return list(facts[0].items()), *facts[1:], [(i.id, i.geometry.wkb, i.value, i.quality, i.source) for i in labels]


def raster(values: Any, **attrs: Any) -> xr.DataArray:
    array = xr.DataArray(np.asarray(values), dims=("y", "x"), attrs=attrs)
    ny, nx = array.shape
    return with_grid(array, GeoBox.from_bbox((5e5, 56e5, 5e5 + 10 * nx, 56e5 + 10 * ny), "EPSG:32631", resolution=10))


# Edits


EDITS = ("add", "move", "relabel", "remove", "add_class", "rename_class", "recolour", "remove_class", "undo", "redo")
STEPS = st.lists(st.tuples(st.sampled_from(EDITS), st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=25)


def attempt(labels: LabelSet, edit: str, i: int, j: int) -> None:
    """Make one edit of some label or class; many aren't possible."""
    ids, names = [label.id for label in labels], list(labels.classes)
    name = names[i % len(names)] if names else "?"
    label = ids[i % len(ids)] if ids else "?"
    arguments: dict[str, tuple[Any, ...]] = {
        "add": ((i, j), f"c{j}"),
        "move": (label, (j, i)),
        "relabel": (label, f"c{j}"),
        "remove": (label,),
        "add_class": (f"d{i}",),
        "rename_class": (name, f"e{j}"),
        "recolour": (name, ("red", "blue", "no colour", "#123456", "lime", "k")[j]),
        "remove_class": (name,),
        "undo": (),
        "redo": (),
    }
    getattr(labels, edit)(*arguments[edit], **({"with_labels": j > 2} if edit == "remove_class" else {}))


@given(steps=STEPS, closed=st.booleans())
@settings(max_examples=150, deadline=None)
def test_every_edit_has_an_exact_way_back(steps, closed):
    labels = LabelSet([f"c{i}" for i in range(4)] if closed else None)
    states, given_ids = [state(labels)], set()
    for edit, i, j in steps:
        before, history, ids = state(labels), labels.history, {label.id for label in labels}
        could_redo = labels.can_redo
        try:
            attempt(labels, edit, i, j)
        except SchemaError:
            assert state(labels) == before, "a failed edit changes nothing"
            assert labels.history == history
            assert labels.can_redo == could_redo
            continue
        if edit == "undo":
            assert labels.history == history[:-1]
            assert state(labels) == states[len(history) - 1]
        else:
            assert labels.history[:-1] == history
            if edit == "redo":
                assert state(labels) == states[len(labels.history)]
            else:
                assert not labels.can_redo, "a new edit drops what was undone"
                states[len(history) + 1 :] = [state(labels)]
        if edit == "add":
            new = {label.id for label in labels} - ids
            assert len(new) == 1
            assert not new & given_ids, "an id is never given twice"
            given_ids |= new
    end, history = state(labels), labels.history
    while labels.can_undo:
        assert state(labels) == states[len(labels.history)]
        labels.undo()
    assert state(labels) == states[0]
    while len(labels.history) < len(history):
        labels.redo()
    assert state(labels) == end
    assert labels.history == history


def test_history_tells_what_was_done():
    labels = LabelSet()
    first = labels.add((3, 45), "forest")
    labels.relabel(first, "water")
    labels.move(first, Polygon([(0, 0), (1, 0), (1, 1)]))
    labels.recolour("water", "blue")
    labels.rename_class("water", "lake")
    labels.remove(first)
    labels.remove_class("lake")
    assert labels.history == [
        "add L1: forest (Point)", "relabel L1: forest -> water", "move L1", "recolour class water: #0000ff",
        "rename class water to lake", "remove L1: lake", "remove class lake",
    ]  # fmt: skip
    assert labels.undo() == "remove class lake"
    assert labels.redo() == "remove class lake"
    with pytest.raises(SchemaError, match="nothing to do again"):
        labels.redo()
    with pytest.raises(SchemaError, match="nothing to undo"):
        LabelSet().undo()


def test_a_failed_edit_keeps_what_was_undone():
    labels = LabelSet(["a"])
    labels.add((0, 0), "a")
    labels.undo()
    for bad in (((0, 0), "b"), ((0, 0, 0), "a")):
        with pytest.raises(SchemaError):
            labels.add(*bad)
        assert labels.can_redo
    labels.redo()
    assert labels.add((1, 1), "a") == "L2", "and uses no id up"


def test_a_removed_label_comes_back_in_its_place():
    labels = LabelSet()
    ids = [labels.add((i, i), "a") for i in range(4)]
    labels.remove(ids[1])
    assert labels.add((9, 9), "a") not in ids
    labels.undo()
    labels.undo()
    assert [label.id for label in labels] == ids
    assert labels.add((9, 9), "a") == "L6", "not even after undo"


def test_a_renamed_class_takes_its_labels_along():
    labels = LabelSet({"a": "red", "b": "blue"})
    labels.add((0, 0), "a")
    labels.rename_class("a", "z")
    assert list(labels.classes.items()) == [("z", "#ff0000"), ("b", "#0000ff")]
    assert [label.value for label in labels] == ["z"]
    with pytest.raises(SchemaError, match="to join the two, relabel"):
        labels.rename_class("z", "b")
    with pytest.raises(SchemaError, match="1 labels are 'z'"):
        labels.remove_class("z")
    labels.remove_class("z", with_labels=True)
    assert (len(labels), list(labels.classes)) == (0, ["b"])
    assert "L1" not in labels


def test_new_classes_have_colours_of_their_own():
    labels = LabelSet({"a": "#1f77b4"})  # the first colour of the palette
    for i in range(30):
        labels.add_class(f"c{i}")
    assert len(set(labels.classes.values())) == 31
    assert labels.classes["a"] == "#1f77b4"
    labels.classes["a"] = "changed"
    assert labels.classes["a"] == "#1f77b4", "what is returned is a copy"


# Values and geometries


def test_values_are_checked():
    closed = LabelSet(["a", "b"])
    with pytest.raises(SchemaError, match=r"unknown class 'c'; choose one of \['a', 'b'\]"):
        closed.add((0, 0), "c")
    for value in (3, None, "", "  ", True):
        with pytest.raises(SchemaError, match="a class is named by text"):
            LabelSet().add((0, 0), value)
    numbers = LabelSet(target="biomass")
    assert [numbers[numbers.add((0, 0), v)].value for v in (3, np.float32(2.5), -1.0)] == [3.0, 2.5, -1.0]
    for value in (np.nan, np.inf, "3", True, None):
        with pytest.raises(SchemaError, match="must be a finite number"):
            numbers.add((0, 0), value)
    assert (numbers.task, closed.task, numbers.classes) == ("numbers", "classes", {})
    with pytest.raises(SchemaError, match=r"are numbers \(biomass\) and have no classes"):
        numbers.add_class("a")
    for quality in (0, -1, 1.1, np.nan, "1", True):
        with pytest.raises(SchemaError, match="quality must be a number above 0 and at most 1"):
            closed.add((0, 0), "a", quality=quality)
    with pytest.raises(SchemaError, match="source must be text"):
        closed.add((0, 0), "a", source=3)
    assert len(closed) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"classes": ["a"], "target": "b"}, "not both"),
        ({"classes": "forest"}, r"give \['forest'\]"),
        ({"classes": ["a", "a"]}, "named once each"),
        ({"classes": {"a": "no colour"}}, "'no colour' is no colour"),
        ({"target": "quality"}, "is no name for numbers"),
        ({"crs": "mars"}, "no coordinate system"),
        ({"crs": None}, "no coordinate system"),
    ],
)
def test_a_set_that_cannot_be(arguments, message):
    with pytest.raises(SchemaError, match=message):
        LabelSet(**arguments)


@pytest.mark.parametrize(
    ("geometry", "message"),
    [
        (BOWTIE, r"this geometry is invalid \(Self-intersection.*make_valid"),
        (Polygon(), "empty"),
        (Point(), "empty"),
        (Point(np.nan, 1), "not finite"),
        (Polygon([(0, 0), (1, 0), (1, np.inf)]), "not finite"),
        (MultiPoint([(0, 0), (1, 1)]), r"\(MultiPoint\).*explode"),
        (shapely.LineString([(0, 0), (1, 1)]), r"\(LineString\).*buffer"),
        (Point(500_000, 5_000_000), "beyond 90 degrees of latitude.*EPSG:4326 is in degrees"),
        ((500_000, 5_000_000), r"not \(lon, lat\) in degrees"),
        ((1, 2, 3), "tuple can't be read"),
        ("here", "str can't be read"),
        (None, "NoneType can't be read"),
        ((np.nan, 1), "not finite"),
        ({"type": "Polygon", "coordinates": [[[0, 0], [1, 1]]]}, "can't be read as a GeoJSON geometry"),
        ({"type": "Point"}, "can't be read as a GeoJSON geometry"),
        ({"type": "MultiPoint", "coordinates": [[0, 0]]}, "explode"),
        ({}, "can't be read as a GeoJSON geometry"),
    ],
)
def test_geometries_that_cannot_be_labels(geometry, message):
    labels = LabelSet()
    with pytest.raises(SchemaError, match=message):
        labels.add(geometry, "a")
    assert (len(labels), labels.classes, labels.can_undo) == (0, {}, False)
    name = labels.add((0, 0), "a")
    with pytest.raises(SchemaError, match=message):
        labels.move(name, geometry)


def test_degrees_are_taken_to_the_crs_of_the_set():
    labels = LabelSet(crs=32631)
    assert labels.crs == "EPSG:32631"
    lonlat = Point(3.01, 45.02)
    there = gpd.GeoSeries([lonlat], crs=4326).to_crs(32631)[0]
    feature = {"type": "Feature", "geometry": {"type": "Point", "coordinates": [3.01, 45.02, 120.0]}}
    for geometry in (lonlat.coords[0], np.array([3.01, 45.02]), feature, feature["geometry"], there):
        assert labels[labels.add(geometry, "a")].geometry.equals_exact(there, 1e-6)
        assert not labels[f"L{len(labels)}"].geometry.has_z
    with pytest.raises(SchemaError, match="there is no label 'L9'; there are L1, L2, L3, L4, L5"):
        labels.remove("L9")


def test_the_inventory():
    labels = LabelSet({"forest": "green", "lake": "blue"})
    labels.add((0, 0), "lake")
    labels.add(box(0, 0, 1, 1), "lake")
    assert repr(labels).splitlines() == [
        "LabelSet of 2 classes: 1 points, 1 polygons, EPSG:4326, 2 edits to undo",
        "  forest  #008000  0",
        "  lake    #0000ff  2",
    ]
    numbers = LabelSet(target="biomass")
    assert repr(numbers) == "LabelSet of numbers (biomass): no labels, EPSG:4326, 0 edits to undo"


# Tables


def table(values: Any, crs: Any = 4326, **columns: Any) -> gpd.GeoDataFrame:
    points = [Point(i, i) for i in range(len(values))]
    return gpd.GeoDataFrame({"kind": values, **columns}, geometry=points, crs=crs)


@pytest.mark.parametrize(
    ("values", "classes", "found"),
    [
        (["b", "a", "b"], ["a", "b"], ["b", "a", "b"]),
        (pd.Categorical(["b", "a"], categories=["z", "b", "a"]), ["a", "b"], ["b", "a"]),
        ([10, 9, 10], ["9", "10"], ["10", "9", "10"]),
        (pd.array([1, 2], dtype="Int64"), ["1", "2"], ["1", "2"]),
        ([True, False], ["false", "true"], ["true", "false"]),
        (np.array(["a", "b"], dtype=object), ["a", "b"], ["a", "b"]),
    ],
)
def test_classes_of_a_column(values, classes, found):
    labels = LabelSet.from_geodataframe(table(values), "kind")
    assert list(labels.classes) == classes
    assert [label.value for label in labels] == found
    assert (labels.task, labels.can_undo) == ("classes", False)


def test_numbers_of_a_column():
    for values, target in (([1.5, 2.0], False), ([1, 2], True), (np.array([1.0, 2.5], dtype=object), False)):
        labels = LabelSet.from_geodataframe(table(values), "kind", target=target)
        assert (labels.target, labels.classes) == ("kind", {})
        assert [label.value for label in labels] == list(values)
    with pytest.raises(SchemaError, match="not numbers; leave target=True out"):
        LabelSet.from_geodataframe(table(["a", "b"]), "kind", target=True)
    with pytest.raises(SchemaError, match="must be a finite number here, not inf"):
        LabelSet.from_geodataframe(table([1, np.inf]), "kind")


def test_options_of_a_table():
    gdf = table(["b", "a"], crs=32631, q=[0.5, 1], who=["me", None])
    colours = {"z": "red", "b": "#ABCDEF"}
    labels = LabelSet.from_geodataframe(gdf, "kind", colours=colours, quality="q", source="who")
    assert list(labels.classes.items())[:2] == [("z", "#ff0000"), ("b", "#abcdef")]
    assert list(labels.classes) == ["z", "b", "a"]
    assert [(label.quality, label.source) for label in labels] == [(0.5, "me"), (1, "")]
    assert labels.crs == "EPSG:32631"
    same = LabelSet.from_geodataframe(gdf, "kind", quality=0.3, source="survey")
    assert {(label.quality, label.source) for label in same} == {(0.3, "survey")}
    with pytest.raises(SchemaError, match="no column 'weight' for quality"):
        LabelSet.from_geodataframe(gdf, "kind", quality="weight")


@pytest.mark.parametrize(
    ("gdf", "message"),
    [
        (table(["a", None, None]), r"2 of 3 rows have no 'kind'; drop them with gdf.dropna\(subset=\['kind', 'geom"),
        (table([1.0, np.nan]), "1 of 2 rows have no 'kind'"),
        (table(["a", "b"]).set_geometry([Point(0, 0), None], crs=4326), "1 of 2 rows have no 'geometry'"),
        (table(["a", "b"], crs=None), "no CRS"),
        (table([]), "no rows"),
        (table(["a", 1]), "mixed"),
        (table(pd.to_datetime(["2020-01-01"])), "datetime64"),
        (table(["a", ""]), "a class is named by text"),
        (table(["a"]).rename(columns={"kind": "sort"}), r"no column 'kind' of labels; choose one of \['sort'\]"),
        (
            table(["a", "b"]).set_geometry([Point(0, 0), BOWTIE], crs=4326),
            "1 of 2 geometries are invalid .* position 1",
        ),
        (pd.DataFrame({"kind": ["a"]}), "come from a GeoDataFrame, not DataFrame"),
        (table(["a"]).geometry, "not GeoSeries"),
    ],
)
def test_tables_that_cannot_be_labels(gdf, message):
    with pytest.raises(SchemaError, match=message):
        LabelSet.from_geodataframe(gdf, "kind")


# There and back


def made(numbers: bool, crs: int) -> LabelSet:
    labels = LabelSet(target="height") if numbers else LabelSet({"ä b": "red", "unused": "k", "c": "#123456"})
    labels = LabelSet(target="height", crs=crs) if numbers else LabelSet(labels.classes, crs=crs)
    shift = (0, 0) if crs == 4326 else (500_000, 5_000_000)
    for i, shape in enumerate([Point(1.5, 2), box(0, 0, 3, 3), HOLED, Point(7, 8)]):
        moved = shapely.affinity.translate(shape, *shift)
        labels.add(moved, i / 7 if numbers else ("ä b", "c")[i % 2], quality=1 / (i + 1), source=f"s{i}" if i else "")
    labels.remove("L4")
    labels.remove("L2")
    return labels


@pytest.mark.parametrize("numbers", [False, True], ids=["classes", "numbers"])
@pytest.mark.parametrize("crs", [4326, 32631])
def test_geojson_gives_back_what_was_put_in(numbers, crs, tmp_path):
    labels = made(numbers, crs)
    document = labels.to_geojson(tmp_path / "new" / "labels.geojson")
    back = LabelSet.from_geojson(tmp_path / "new" / "labels.geojson")
    assert state(LabelSet.from_geojson(document)) == state(back)
    before, after = state(labels), state(back)
    assert after[:3] == before[:3]
    assert [row[:1] + row[2:] for row in after[3]] == [row[:1] + row[2:] for row in before[3]]
    for old, new in zip(labels, back, strict=True):
        assert new.geometry.geom_type == old.geometry.geom_type
        assert shapely.hausdorff_distance(new.geometry, old.geometry) < (1e-9 if crs == 4326 else 2e-4)
    assert back.add((3, 45), 1.0 if numbers else "c") == "L5", "ids of removed labels aren't given again"
    if not numbers:
        with pytest.raises(SchemaError, match="unknown class"):
            back.add((3, 45), "d")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["labels.geojson"]


def test_geojson_is_what_the_standard_says(tmp_path):
    labels = made(numbers=False, crs=32631)
    labels.to_geojson(tmp_path / "a.geojson")
    read = gpd.read_file(tmp_path / "a.geojson")
    assert read.crs == "EPSG:4326"
    assert read["class"].tolist() == [label.value for label in labels]
    expected = labels.to_geodataframe().to_crs(4326).geometry
    assert [a.hausdorff_distance(b) < 2e-9 for a, b in zip(read.geometry, expected, strict=True)] == [True] * 2
    rings = [polygon.exterior for shape in read.geometry[1:] for polygon in shape.geoms]
    assert all(ring.is_ccw for ring in rings)
    turned = LabelSet()
    turned.add(box(0, 0, 1, 1).reverse(), "a")
    assert shapely.geometry.shape(turned.to_geojson()["features"][0]["geometry"]).exterior.is_ccw
    assert "crs" not in json.loads((tmp_path / "a.geojson").read_text("utf-8"))


def test_an_old_file_survives_a_failed_write(tmp_path, monkeypatch):
    labels = made(numbers=False, crs=4326)
    labels.to_geojson(tmp_path / "a.geojson")
    before = (tmp_path / "a.geojson").read_bytes()

    def broken(path: Path, text: str, **options: Any) -> None:
        with path.open("w") as file:
            file.write(text[:50])
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_text", broken)
    with pytest.raises(OSError, match="disk full"):
        labels.to_geojson(tmp_path / "a.geojson")
    assert (tmp_path / "a.geojson").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_geojson_of_others(tmp_path):
    gdf = table(["b", "a", "b"], crs=4326).set_index(pd.Index(["x", "y", "x"]))
    (tmp_path / "b.geojson").write_text(gdf.to_json())
    labels = LabelSet.from_geojson(tmp_path / "b.geojson", column="kind")
    assert [(label.id, label.value) for label in labels] == [("x", "b"), ("y", "a"), ("L1", "b")]
    assert (list(labels.classes), labels.crs) == (["a", "b"], "EPSG:4326")
    with pytest.raises(SchemaError, match=r"no property 'class'; choose column= from \['kind'\]"):
        LabelSet.from_geojson(tmp_path / "b.geojson")
    mixed = json.loads(table([1, 2]).to_json())
    mixed["features"][0]["properties"]["kind"] = 1.5
    assert LabelSet.from_geojson(mixed, "kind").target == "kind"
    assert list(LabelSet.from_geojson(json.loads(table([1, 2]).to_json()), "kind").classes) == ["1", "2"]
    assert LabelSet.from_geojson(json.loads(table([1, 2]).to_json()), "kind", target=True).target == "kind"


def test_geojson_of_before_the_standard():
    metres = json.loads(table(["a"]).set_geometry([Point(5e5, 5e6)], crs=32631).to_json())
    assert metres["crs"] == {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32631"}}
    labels = LabelSet.from_geojson(metres, "kind")
    assert (labels.crs, labels["0"].geometry) == ("EPSG:32631", Point(5e5, 5e6))
    with pytest.raises(SchemaError, match="names no coordinate system"):
        LabelSet.from_geojson(metres | {"crs": 5}, "kind")
    with pytest.raises(SchemaError, match="EPSG:4326 is in degrees"):
        LabelSet.from_geojson(damage(metres, "crs"), "kind")


def damage(document: dict[str, Any], *keys: Any, value: Any = None) -> dict[str, Any]:
    """Return a copy with one member replaced, or left out if there is no value."""
    copy = deepcopy(document)
    inner: Any = copy
    for key in keys[:-1]:
        inner = inner[key]
    if value is None:
        del inner[keys[-1]]
    else:
        inner[keys[-1]] = value
    return copy


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (("type",), "Feature", "no GeoJSON FeatureCollection"),
        (("features",), None, "no list of features"),
        (("features",), ["x"], "no list of features"),
        (("tessera_xr", "version"), 2, "version is 2, this package reads 1"),
        (("tessera_xr", "crs"), None, "damaged: it lacks 'crs'"),
        (("tessera_xr", "crs"), "mars", "no coordinate system"),
        (("tessera_xr",), 5, "damaged"),
        (("tessera_xr", "next_id"), "x", "damaged"),
        (("tessera_xr", "classes"), ["a"], "damaged"),
        (("tessera_xr", "classes", 0, "colour"), "oops", "no colour"),
        (("features", 0, "id"), None, "damaged: it lacks 'id'"),
        (("features", 0, "id"), "L3", "ids are not texts that differ"),
        (("features", 0, "properties", "class"), "other", "classes that it doesn't list: other"),
        (("features", 0, "properties", "quality"), 7, "quality must be"),
        (("features", 0, "properties"), 7, "damaged"),
        (("features", 0, "geometry"), None, "position 0 has no geometry"),
        (("features", 0, "geometry", "coordinates"), "x", "can't be read as a GeoJSON geometry"),
        (("features", 0, "geometry"), BOWTIE.__geo_interface__, "invalid"),
    ],
)
def test_damaged_geojson(keys, value, message):
    document = made(numbers=False, crs=32631).to_geojson()
    LabelSet.from_geojson(document)
    with pytest.raises(SchemaError, match=message):
        LabelSet.from_geojson(damage(document, *keys, value=value))


def test_files_that_are_no_geojson(tmp_path):
    text = json.dumps(made(numbers=False, crs=4326).to_geojson())
    for content in (text[:100].encode(), b"", b"\xff\xfe\x00", b"[1, 2]"):
        (tmp_path / "a.geojson").write_bytes(content)
        with pytest.raises(SchemaError, match=r"a\.geojson is no"):
            LabelSet.from_geojson(tmp_path / "a.geojson")
    with pytest.raises(SchemaError, match="says all itself; leave column= out"):
        LabelSet.from_geojson(json.loads(text), column="class")


@pytest.mark.parametrize("numbers", [False, True], ids=["classes", "numbers"])
def test_a_table_gives_back_what_was_put_in(numbers):
    labels = made(numbers, 32631)
    gdf = labels.to_geodataframe()
    column = "height" if numbers else "class"
    assert list(gdf.columns) == [column, "quality", "source", "geometry"]
    assert (gdf.crs, gdf.index.name) == ("EPSG:32631", "id")
    back = LabelSet.from_geodataframe(gdf, column, colours=labels.classes, quality="quality", source="source")
    assert state(back) == state(labels)
    assert len(LabelSet().to_geodataframe()) == 0


def test_a_corner_on_a_side_survives_degrees():
    """A side that is straight in one CRS bends in another, and its corner lies beyond it: not the user's fault."""
    triangle = Polygon([(500_000, 5_000_000), (500_700, 5_000_100), (501_000, 5_000_900)])
    on_side = shapely.line_interpolate_point(triangle.exterior, 333.3)
    touching = MultiPolygon([triangle, Polygon([on_side, (500_400, 4_999_000), (500_500, 4_999_000)])])
    assert touching.is_valid
    labels = LabelSet(crs=32631)
    labels.add(touching, "a")
    (back,) = LabelSet.from_geojson(labels.to_geojson())
    assert back.geometry.is_valid
    assert back.geometry.area == pytest.approx(touching.area, rel=1e-4)


# Rasters


def test_regions_of_a_raster():
    da = raster([[1, 1, 0, 2], [3, 1, 2, 2], [3, 3, 2, 1]])
    labels = LabelSet.from_raster(da)
    assert list(labels.classes) == ["1", "2", "3"]
    assert labels.crs == "EPSG:32631"
    found = sorted((label.value, round(label.geometry.area / 100)) for label in labels)
    assert found == [("1", 1), ("1", 3), ("2", 4), ("3", 3)], "joined by sides, not by corners"
    counted = LabelSet.from_raster(da, nodata=None)
    assert sum(label.geometry.area for label in counted) == 1200
    assert list(LabelSet.from_raster(da, nodata=2).classes) == ["0", "1", "3"]
    named = LabelSet.from_raster(da, names={1: "wood", 2: "meadow", 3: "wood"})
    assert list(named.classes) == ["wood", "meadow"]
    assert sorted(label.value for label in named) == ["meadow", "wood", "wood", "wood"]


def test_names_and_colours_of_a_raster():
    flags = {"flag_values": [1, 2, 3], "flag_meanings": "wood meadow lake", "flag_colors": "#00ff00 #ffff00 #0000ff"}
    labels = LabelSet.from_raster(raster([[1, 3], [7, 0]], **flags))
    assert list(labels.classes) == ["wood", "lake", "7"]
    assert list(labels.classes.values())[:2] == ["#00ff00", "#0000ff"]
    with pytest.raises(SchemaError, match="flag_colors has 1 words for 3"):
        LabelSet.from_raster(raster([[1]], **flags | {"flag_colors": "red"}))
    with pytest.raises(SchemaError, match="no name for 3, 7; name every code"):
        LabelSet.from_raster(raster([[1, 3], [7, 0]], **flags), names={1: "wood"})
    assert list(LabelSet.from_raster(raster([[0, 255]], _FillValue=255)).classes) == ["0"], "0 is a class then"


def test_bool_rasters_have_two_classes():
    mask = raster([[True, False], [False, False]])
    assert list(LabelSet.from_raster(mask).classes) == ["false", "true"]
    assert list(LabelSet.from_raster(mask, names={True: "burnt", False: "kept"}).classes) == ["kept", "burnt"]
    assert list(LabelSet.from_raster(mask, nodata=False).classes) == ["true"]


def test_points_of_a_raster():
    values = np.random.default_rng(0).integers(0, 4, (20, 30)).astype(np.uint8)
    da = raster(values)
    labels = LabelSet.from_raster(da, n_per_class=7)
    for label in labels:
        assert da.sel(x=label.geometry.x, y=label.geometry.y).item() == int(label.value)
    assert [label.value for label in labels] == [*"1111111", *"2222222", *"3333333"]
    assert len({label.geometry.wkb for label in labels}) == 21
    assert state(LabelSet.from_raster(da, n_per_class=7)) == state(labels)
    assert state(LabelSet.from_raster(da, n_per_class=7, seed=1)) != state(labels)
    with pytest.warns(TesseraWarning, match=r"fewer than 3 pixels to draw, all were taken: '5' \(2\)"):
        assert len(LabelSet.from_raster(raster([[4, 4, 4], [5, 4, 5]]), n_per_class=3)) == 5


def test_numbers_of_a_raster():
    values = np.arange(12.0).reshape(3, 4)
    values[1, 1] = np.nan
    da = raster(values)
    labels = LabelSet.from_raster(da, target="height", n_per_class=11)
    assert sorted(label.value for label in labels) == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11], "0 is a height"
    for label in labels:
        assert da.sel(x=label.geometry.x, y=label.geometry.y).item() == label.value
    cover = LabelSet.from_raster(raster([[0, 5], [9, 7]]), target="cover", n_per_class=4)
    assert sorted(label.value for label in cover) == [0, 5, 7, 9]


@pytest.mark.parametrize(
    ("da", "options", "message"),
    [
        (raster([[1.0, 2.0]]), {}, "this raster holds float64; fill gaps"),
        (raster([[0, 0]]), {}, "every pixel of this raster is no data"),
        (raster([[1]]), {"shapes": "lines"}, "choose 'polygons' or 'points'"),
        (raster([[1]]), {"shapes": "points"}, "how many points to draw.*not None"),
        (raster([[1]]), {"n_per_class": 0}, "must be 1 or more"),
        (raster([[1]]), {"n_per_class": 1, "shapes": "polygons"}, "n_per_class is for shapes='points'"),
        (raster([[1.0]]), {"target": "h", "shapes": "polygons"}, "drawn as points"),
        (raster([[1.0]]), {"target": "h"}, "how many points to draw"),
        (raster([[True]]), {"target": "h", "n_per_class": 1}, "of a raster of numbers"),
        (raster([[1]]), {"nodata": "none"}, "nodata='none' is no value"),
        (raster([[1]]).expand_dims(time=2), {}, "choose one of time first"),
        (raster([[1]]).to_dataset(name="a"), {}, "not Dataset"),
    ],
)
def test_rasters_that_cannot_be_labels(da, options, message):
    with pytest.raises(SchemaError, match=message):
        LabelSet.from_raster(da, **options)


def test_layouts_of_rasters():
    da = raster([[1, 1, 2], [0, 3, 2]])
    expected = state(LabelSet.from_raster(da))
    for same in (da.transpose("x", "y"), da.expand_dims(band=1), da.chunk(x=2), da.astype(np.int64)):
        assert state(LabelSet.from_raster(same)) == expected
    with pytest.raises(GridError, match="no CRS"):
        LabelSet.from_raster(xr.DataArray([[1, 2]], dims=("y", "x"), coords={"y": [5], "x": [5, 15]}))


def test_caldor():
    loss = tutorial.labels().lossyear
    labels = LabelSet.from_raster(loss, nodata=None)
    assert shapely.is_valid([label.geometry for label in labels]).all()
    assert sum(label.geometry.area for label in labels) == loss.size * 100


def test_classes_that_a_map_could_not_tell_apart_are_refused():
    labels = LabelSet(["no loss"])
    assert labels.classes == LabelSet([" no loss "]).classes
    with pytest.raises(SchemaError, match="classes 'no loss' and 'no_loss' can't be told apart in a map's flags"):
        labels.add_class("no_loss")
    assert list(labels.classes) == ["no loss"]


def test_a_whole_set_is_added_as_one_edit():
    here = LabelSet(crs="EPSG:32631")
    here.add(shapely.Point(500_000, 5_650_000), "water")
    there = LabelSet({"forest": "#123456", "water": "#654321"})
    there.add((3.01, 51.0), "forest", quality=0.5, source="walk")
    there.add((3.02, 51.0), "water")
    before = here.to_geojson()
    ids = here.extend(there)
    assert ids == ["L2", "L3"]
    assert [label.id for label in here] == ["L1", "L2", "L3"]
    assert [here[i].value for i in ids] == ["forest", "water"]
    assert here.classes["forest"] == "#123456"
    assert (here["L2"].quality, here["L2"].source) == (0.5, "walk")
    shown = here.to_geodataframe().to_crs(4326).geometry
    assert np.allclose([shown["L2"].x, shown["L2"].y], [3.01, 51.0])
    assert here.history[-1] == "add 2 labels"
    after = here.to_geojson()
    here.undo()
    assert {k: v for k, v in here.to_geojson().items() if k != "tessera_xr"} == {
        k: v for k, v in before.items() if k != "tessera_xr"
    }
    assert here.classes == {"water": here.classes["water"]}
    here.redo()
    assert here.to_geojson() == after
    assert here.extend(LabelSet(["a"])) == []


def test_sets_that_cannot_be_joined():
    closed, other = LabelSet(["forest"]), LabelSet()
    other.add((3, 51), "water")
    with pytest.raises(SchemaError, match="unknown class 'water'"):
        closed.extend(other)
    assert not closed.can_undo
    for wrong in (LabelSet(target="biomass"), [1]):
        with pytest.raises(SchemaError, match="their like only"):
            closed.extend(wrong)
