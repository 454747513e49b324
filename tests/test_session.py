"""The explorer's state without a browser: every action, its way back, and its file."""

from __future__ import annotations

import contextlib
import json
import random

import numpy as np
import pytest
import xarray as xr

import tessera_xr as txr
from tessera_xr.errors import CubeError, GridError, SchemaError, TesseraError, VersionMismatchError
from tessera_xr.views.pictures import Coded, Coloured
from tessera_xr.views.session import Session
from tessera_xr.views.session_files import open_session, session_state

PART = {"y": slice(16, 48), "x": slice(16, 40)}


@pytest.fixture(scope="module")
def emb() -> xr.Dataset:
    return txr.tutorial.embeddings().sel(time=[2020, 2022]).isel(PART)


@pytest.fixture
def session(emb) -> Session:
    return Session(emb)


def taught(session: Session) -> Session:
    """Two classes, eight points each: lost to the fire or not."""
    lost = txr.tutorial.labels().lossyear.isel(PART).values == 21
    rng = np.random.default_rng(0)
    for value, mask in (("lost", lost), ("kept", ~lost)):
        session.add_class(value)
        for row, column in rng.permutation(np.argwhere(mask))[:8]:
            session.label(session.place_of((int(row), int(column))), value)
    return session


def edits(session: Session) -> dict:
    """What undo and redo are about."""
    state = session_state(session)
    state["labels"].get("tessera_xr", {}).pop("next_id", None)  # ids are never given twice, undone or not
    return {"query": state["query"], "labels": state["labels"]}


def act(session: Session, rng: random.Random) -> None:
    """Do something at random; errors of a user are errors of a user."""
    lon, lat = session.place_of((rng.randrange(-2, 34), rng.randrange(-2, 26)))
    names = [label.id for label in session.labels] or ["L1"]
    classes = list(session.labels.classes) or ["a"]
    actions = [
        lambda: session.ask(lon, lat),
        lambda: session.add_example(lon, lat),
        lambda: session.add_example(lon, lat, like=False),
        lambda: session.remove_example(rng.choice([*session.query.positives, (0, 0)])),
        session.clear_examples,
        lambda: session.set_combine(rng.choice(["mean", "max", "min", "median"])),
        lambda: session.add_class(rng.choice("abc")),
        lambda: session.label((lon, lat), rng.choice([None, *classes])),
        lambda: session.label((lon, lat), rng.choice(classes)),
        lambda: session.change_labels(lambda labels: labels.remove(rng.choice(names))),
        lambda: session.change_labels(lambda labels: labels.relabel(rng.choice(names), rng.choice(classes))),
        lambda: session.change_labels(lambda labels: labels.recolour(rng.choice(classes), "red")),
        lambda: session.labels.add((lon, lat), rng.choice(classes)),  # in a cell of the notebook
        lambda: session.promote(mask(session, rng), "promoted", 3),
        lambda: session.set(threshold=rng.choice([None, 0.3, 2.0]), mode=rng.choice(["ask", "label", "fly"])),
        lambda: session.show("similarity", visible=rng.random() < 0.5, opacity=rng.random()),
    ]
    with contextlib.suppress(TesseraError):
        rng.choice(actions)()


def mask(session: Session, rng: random.Random) -> xr.DataArray:
    values = np.random.default_rng(rng.randrange(99)).random(session.box.shape) < 0.01
    return txr.grid.with_grid(xr.DataArray(values, dims=("y", "x")), session.box)


@pytest.mark.parametrize("seed", range(100))
def test_undo_and_redo_always_restore(emb, seed):
    rng = random.Random(seed)
    session = Session(emb)
    trail = [edits(session)]
    for _ in range(30):
        roll = rng.random()
        if roll < 0.2 and session.can_undo:
            session.undo()
            trail.pop()
            assert edits(session) == trail[-1]
            continue
        if roll < 0.3 and session.can_redo:
            session.redo()
            trail.append(edits(session))
            continue
        steps = len(session.history._done)
        act(session, rng)
        assert session.can_undo or not session.history._done
        grown = len(session.history._done) - steps
        assert 0 <= grown <= 1
        if grown:
            trail.append(edits(session))
        assert edits(session) == trail[-1]
    assert len(session.history._done) == len(trail) - 1
    for earlier in trail[-2::-1]:
        session.undo()
        assert edits(session) == earlier
    assert not session.can_undo
    for later in trail[1:]:
        session.redo()
        assert edits(session) == later


@pytest.mark.parametrize("seed", range(30))
def test_a_saved_session_opens_equal(emb, seed, tmp_path):
    rng = random.Random(1000 + seed)
    session = Session(emb)
    for _ in range(25):
        act(session, rng)
    session.set(time="2020", centre=(38.7, -120.3), zoom=13.5, channels=(2, 0, 1), n_clusters=5)
    path = session.save(tmp_path / "folder" / "session.json")
    opened = open_session(path, emb)
    assert session_state(opened) == session_state(session)
    assert not opened.can_undo
    assert [p.name for p in path.parent.iterdir()] == ["session.json"]


def test_an_edit_made_in_a_cell_is_undone_in_its_turn(session):
    lon, lat = session.place_of((3, 3))
    session.labels.add((lon, lat), "a")
    session.ask(lon, lat)
    session.labels.add((lon, lat), "b")
    session.undo()
    assert [label.value for label in session.labels] == ["a"]
    session.undo()
    assert not session.query.positives
    assert len(session.labels) == 1
    session.undo()
    assert len(session.labels) == 0
    session.redo()
    session.labels.undo()  # taken back there, not here
    assert not session.can_redo
    session.ask(lon, lat)
    session.undo()
    assert not session.can_undo


# Pictures and questions ----------------------------------------------------------------------------


def test_a_click_is_the_pixel_that_holds_it_to_its_borders(session):
    rng = np.random.default_rng(2)
    for row, column in rng.integers(1, (32, 24), (50, 2)):
        assert session.pixel_at(*session.place_of((row, column))) == (row, column)
        for inside in (0.0, 0.001, 0.999):  # a pixel holds its left and upper border
            x, y = session.box.transform * (column + inside, row + inside)
            lon, lat = session.box.crs.transformer_to_crs("EPSG:4326", always_xy=True)(x, y)
            found = session.pixel_at(lon, lat)
            assert found == (row, column) or (inside == 0.0 and max(abs(found[0] - row), abs(found[1] - column)) <= 1)
    for row, column in ((-1, 3), (32, 3), (3, -1), (3, 24)):
        with pytest.raises(GridError, match="outside the embeddings"):
            session.pixel_at(*session.place_of((row, column)))


def test_similarity_is_the_functions(session, emb):
    places = [session.place_of(p) for p in ((3, 4), (20, 11), (8, 21))]
    session.ask(*places[0])
    now = emb.sel(time=2022)
    np.testing.assert_array_equal(session.array("similarity"), now.tessera.similarity(places[0]))
    session.add_example(*places[1])
    session.add_example(*places[2], like=False)
    expected = now.tessera.similarity(places[:2], negative=places[2:])
    np.testing.assert_allclose(session.array("similarity"), expected, atol=1e-6)
    session.set_combine("min")
    expected = now.tessera.similarity(places[:2], negative=places[2:], combine="min")
    np.testing.assert_allclose(session.array("similarity"), expected, atol=1e-6)
    found = session.find_places(3)
    np.testing.assert_allclose(
        found["similarity"], now.tessera.find_similar(places[:2], 3, negative=places[2:], combine="min")["similarity"],
        atol=1e-6,
    )  # fmt: skip


def test_the_threshold_counts_what_it_shows_and_asks_nothing_anew(session, monkeypatch):
    session.ask(*session.place_of((3, 4)))
    picture = session.picture("similarity")
    scores = session.array("similarity").values
    monkeypatch.setattr("tessera_xr.views.answers.similarity", None)  # any new question would fail
    assert session.hectares_above() is None
    for threshold in (-1, 0.0, 0.31, 0.5, 0.777, 1.0):
        session.set(threshold=threshold)
        exact = session.threshold
        assert abs(exact - max(threshold, 0)) <= picture.key.step / 2 + 1e-9
        shown = picture.above(exact)[picture.codes][..., 3] > 0
        near = np.abs(scores - exact) < 1e-5
        assert ((shown == (scores >= exact)) | near).all()
        assert session.hectares_above() == pytest.approx(shown.sum() * 0.01)
        assert session.picture("similarity") is picture


def test_nothing_is_worked_out_twice(session):
    session.ask(*session.place_of((3, 4)))
    taught(session).fit()
    for layer in session.layer_names():
        first = session.picture(layer)
        session.show(layer, opacity=0.3)
        session.set(mode="inspect")
        assert session.picture(layer) is first, layer
    head, similar = session.fit(), session.picture("similarity")
    assert session.fit() is head
    session.label(session.place_of((1, 1)), "lost")
    assert session.is_stale
    assert session.picture("similarity") is similar
    assert session.fit() is not head
    assert not session.is_stale


def test_every_layer_shows_its_numbers(session):
    taught(session).fit()
    session.ask(*session.place_of((3, 4)))
    assert session.layer_names() == ["embedding", "similarity", "clusters", "classes", "novelty", "change"]
    for layer in session.layer_names():
        picture, array = session.picture(layer), session.array(layer)
        assert isinstance(picture, Coloured if layer == "embedding" else Coded)
        shape = (picture.rgba if layer == "embedding" else picture.codes).shape[:2]
        assert shape == session.box.shape == (array.sizes["y"], array.sizes["x"])
    session.set(time="2020")
    assert session.picture("embedding") is not session.picture("embedding", "2022")


def test_faint_where_unsure(session):
    taught(session).fit()
    pred, picture = session.prediction(), session.picture("classes")
    shown = picture.palette[picture.codes]
    alpha, confidence = shown[..., 3].ravel(), pred["confidence"].values.ravel()
    order = np.argsort(confidence)
    assert (np.diff(alpha[order].astype(int)) >= 0).all()
    assert alpha[order[-1]] > alpha[order[0]] + 20
    for i, colour in enumerate(picture.key.colours.values(), start=1):
        here = pred["prediction"].values == i
        assert {f"#{r:02x}{g:02x}{b:02x}" for r, g, b in shown[here][:, :3]} == {colour}
    session.set(fade=False)
    assert set(np.unique(session.picture("classes").palette[session.picture("classes").codes][..., 3])) == {255}


def test_the_components_chosen_are_the_ones_shown(session, emb):
    scores = txr.fit_components(emb, 6).transform(emb.sel(time=2022))
    session.set(channels=(3, 3, 5))
    shown = session.array("embedding")
    for channel, component in enumerate((3, 3, 5)):
        ranks = [np.argsort(a.values.ravel()) for a in (scores.isel(component=component),)]
        values = shown.isel(rgb=channel).values.ravel()[ranks[0]]
        assert (np.diff(values) >= -1e-6).all()
    session.set(channels=(0, 1, 99))
    with pytest.raises(SchemaError, match="components 1 to 6"):
        session.array("embedding")


def test_a_cube_brings_its_pictures_and_series():
    cube = txr.tutorial.cube(16)
    emb = cube.tessera.embed("mini", period=txr.sentinel.cube.fullest_year(cube), progress=False)
    session = Session(emb, cube)
    assert session.layer_names()[:3] == ["embedding", "true_colour", "false_colour"]
    date = str(cube["s2_time"].values[3])[:10]
    median = session.picture("true_colour")
    session.set(date=date)
    assert session.picture("true_colour") is not median
    found = session.inspect(*session.place_of((5, 6)))
    np.testing.assert_allclose(found.embedding, emb["embeddings"].isel(y=5, x=6), atol=1e-6)
    assert len(found.s2) > 5
    assert set(found.s1["orbit"]) <= {"ascending", "descending"}
    assert found.prediction is None
    session.set(date="1999-01-01")
    with pytest.raises(SchemaError, match="no Sentinel-2 date"):
        session.picture("true_colour")
    with pytest.raises(CubeError):
        Session(emb, emb)


def test_inspecting_agrees_with_the_maps(session):
    taught(session).fit()
    session.ask(*session.place_of((3, 4)))
    for pixel in ((0, 0), (31, 23), (12, 7)):
        found = session.inspect(*session.place_of(pixel))
        pred = session.prediction().isel(y=pixel[0], x=pixel[1])
        assert found.cluster == session.array("clusters").values[pixel]
        assert found.novelty == pytest.approx(float(session.array("novelty").values[pixel]))
        assert found.similarity == pytest.approx(float(session.array("similarity").values[pixel]))
        assert found.prediction == session.head.classes[int(pred["prediction"]) - 1]
        assert found.probability == pytest.approx(
            dict(zip(session.head.classes, pred["probability"].values, strict=True)), abs=1e-5
        )
        assert str(pixel[0]) in found.title


# Labels and heads ----------------------------------------------------------------------------------


def test_clusters_and_similar_places_become_labels_in_one_edit(session):
    session.ask(*session.place_of((3, 4)))
    session.set(threshold=0.6)
    n = session.promote_similar("like this")
    inside = session.array("similarity").values >= session.threshold
    assert n == len(session.labels) == min(50, inside.sum())
    for label in session.labels:
        assert inside[session.pixel_at(*lonlat(session, label))]
    session.promote_cluster(2, "second")
    clusters = session.array("clusters").values
    assert all(clusters[session.pixel_at(*lonlat(session, v))] == 2 for v in session.labels if v.value == "second")
    session.undo()
    session.undo()
    assert len(session.labels) == 0
    assert session.query.positives


def lonlat(session: Session, label) -> tuple[float, float]:
    from pyproj import Transformer

    to_degrees = Transformer.from_crs(session.labels.crs, "EPSG:4326", always_xy=True)
    return to_degrees.transform(label.geometry.x, label.geometry.y)


def test_the_head_is_the_functions(session, emb):
    taught(session).fit()
    now = emb.sel(time=2022)
    head = now.tessera.fit(session.labels, "logistic")
    xr.testing.assert_equal(session.prediction(), now.tessera.predict(head))
    scores = session.validate(n_folds=3).scores
    assert scores == now.tessera.validate(session.labels, n_folds=3).scores
    assert len(session.suggest(4, min_distance=20)) == 4
    session.set(model="knn")
    assert session.is_stale
    assert session.fit().name == "knn"
    assert session.validation is None


def test_balance_is_told(session):
    assert session.balance_warning() is None
    taught(session)
    assert session.balance_warning() is None
    assert session.class_counts() == {"lost": 8, "kept": 8}
    session.change_labels(lambda labels: labels.extend(copies(session, "lost", 90)))
    assert "over 10 times" in session.balance_warning()
    session.add_class("rare")
    assert "Fewer than 5 labels of rare" in session.balance_warning()


def copies(session: Session, value: str, n: int) -> txr.LabelSet:
    more = txr.LabelSet([value])
    for i in range(n):
        more.add(session.place_of((i % 32, i % 24)), value)
    return more


def test_exports(session, tmp_path):
    import rasterio

    taught(session).fit()
    session.ask(*session.place_of((3, 4)))
    for layer in session.layer_names():
        path = session.export_geotiff(layer, tmp_path / f"{layer}.tif")
        with rasterio.open(path) as file:
            assert (file.height, file.width) == session.box.shape
            assert file.count == (3 if layer == "embedding" else 1)


# What can go wrong ---------------------------------------------------------------------------------


def test_users_errors_are_told_and_change_nothing(session):
    before = session_state(session)
    lon, lat = session.place_of((3, 3))
    for call, message in [
        (lambda: session.ask(0, 0), "outside the embeddings"),
        (lambda: session.label((lon, lat)), "choose a class first"),
        (lambda: session.array("similarity"), "nothing to compare with"),
        (lambda: session.array("classes"), "no head yet"),
        (lambda: session.array("weather"), "no layer 'weather'"),
        (lambda: session.show("true_colour"), "no layer 'true_colour'"),
        (lambda: session.set(time="1999"), "time='1999' is not to be had"),
        (lambda: session.set(tempo=3), "no setting 'tempo'"),
        (lambda: session.set(n_clusters=1), "n_clusters must be a whole number from 2 to 254"),
        (lambda: session.set(threshold=float("nan")), "threshold must be a number"),
        (lambda: session.promote_similar("a"), "set a threshold first"),
        (lambda: session.promote_cluster(99, "a"), "region is empty"),
        (session.undo, "nothing to undo"),
        (session.redo, "nothing to do again"),
        (lambda: session.set_combine("median"), "combine='median'"),
    ]:
        with pytest.raises(TesseraError, match=message):
            call()
    assert session_state(session) == before
    session.label((lon, lat), "only")
    session.label(session.place_of((4, 4)), "only")
    with pytest.raises(SchemaError, match="class"):
        session.fit()
    assert session.head is None


def test_a_map_of_one_pixel(emb):
    session = Session(emb.isel(y=[3], x=[4]))
    session.ask(*session.place_of((0, 0)))
    assert session.array("similarity").item() == pytest.approx(1, abs=1e-6)
    assert session.picture("similarity").codes.shape == (1, 1)
    session.set(threshold=0.5)
    assert session.hectares_above() == pytest.approx(0.01)
    with pytest.raises(TesseraError):
        session.array("clusters")


def test_a_year_without_data(emb):
    empty = emb.copy(deep=True)
    empty["scales"].loc[{"time": 2022}] = np.nan
    empty["embeddings"].loc[{"time": 2022}] = 0
    session = Session(empty)
    place = session.place_of((3, 3))
    with pytest.raises(SchemaError, match="no embedding at this place"):
        session.ask(*place)
    assert session.inspect(*place).embedding is None
    assert (session.picture("embedding").rgba[..., 3] == 0).all()
    session.set(time="2020")
    session.ask(*place)
    assert session.query.positives
    session.set(time="2022")
    with pytest.raises(SchemaError, match="no embedding at this place"):
        session.picture("similarity")


def test_lazy_embeddings_are_loaded_unless_too_large(emb, monkeypatch):
    assert Session(emb.chunk(y=8)).emb["embeddings"].chunks is None
    monkeypatch.setattr("tessera_xr.views.answers.MOST_BYTES", 1000)
    with pytest.raises(SchemaError, match="choose a part"):
        Session(emb.chunk(y=8))
    with pytest.raises(SchemaError):
        Session(xr.Dataset())
    with pytest.raises(SchemaError, match="none of these embeddings has data"):
        Session(emb.assign(scales=emb["scales"] * np.float32(np.nan)))
    with pytest.raises(SchemaError, match="labels are a LabelSet, not list"):
        Session(emb, labels=[1])


def test_files_that_are_no_session(session, emb, tmp_path):
    taught(session).ask(*session.place_of((3, 4)))
    whole = session_state(session)
    path = tmp_path / "s.json"
    texts = ["", "{", "[1]", '{"tessera_xr_session": 2}', '{"tessera_xr_session": 1}', "\x00\xff"]
    for text in texts:
        path.write_text(text)
        with pytest.raises(SchemaError):
            open_session(path, emb)
    with pytest.raises(SchemaError, match="no file"):
        open_session(tmp_path / "none.json", emb)
    with pytest.raises(SchemaError, match="path of a file first"):
        open_session(emb, path)
    other = emb.assign_attrs(model="v2-small")
    path.write_text(json.dumps(whole))
    with pytest.raises(VersionMismatchError, match="whose model is"):
        open_session(path, other)
    with pytest.raises(GridError, match="another grid"):
        open_session(path, emb.isel(x=slice(0, 10)))
    with pytest.raises(SchemaError, match="of the times"):
        open_session(path, emb.isel(time=[0]))
    with pytest.raises(SchemaError, match="is a folder"):
        session.save(tmp_path)


@pytest.mark.parametrize("seed", range(60))
def test_damaged_files_are_refused_or_harmless(session, emb, seed, tmp_path):
    rng = random.Random(seed)
    taught(session).ask(*session.place_of((3, 4)))
    state = session_state(session)
    part = state
    while True:
        keys = list(part) if isinstance(part, dict) else list(range(len(part)))
        key = rng.choice(keys)
        if not isinstance(part[key], (dict, list)) or not part[key] or rng.random() < 0.3:
            part[key] = rng.choice([None, -1, 1e9, "x", [], {}, [[1]], True])
            break
        part = part[key]
    path = tmp_path / "s.json"
    path.write_text(json.dumps(state))
    try:
        opened = open_session(path, emb)
    except TesseraError:
        return
    session_state(opened)
    opened.picture("embedding")
