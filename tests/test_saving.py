"""Heads as files: they come back the same, and nothing in a file that was changed or is foreign is ever run."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import skops.io
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from tessera_xr import tutorial
from tessera_xr.errors import CheckpointError, SchemaError
from tessera_xr.learning import saving
from tessera_xr.learning.heads import Head, fit_head, fit_sample
from tessera_xr.learning.labels import LabelSet
from tessera_xr.learning.saving import load_head

OPTIONS = {
    "forest": {"n_estimators": 10},
    "gradient_boosting": {"max_iter": 5},
    "mlp": {"max_epochs": 3},
    "unet": {"features": (4, 8), "bottleneck": 8, "max_epochs": 2},
}


@pytest.fixture(scope="module")
def emb():
    return tutorial.embeddings().sel(time=2022).isel(y=slice(32), x=slice(32))


@pytest.fixture(scope="module")
def sample(emb):
    loss = (tutorial.labels().lossyear == 21).sel(y=emb.y, x=emb.x)
    return LabelSet.from_raster(loss, names={True: "lost", False: "there"}, shapes="points", n_per_class=20).sample(emb)


@pytest.fixture
def saved(sample, tmp_path) -> Path:
    return fit_sample(sample, "logistic").with_scores({"macro_f1": 0.8}).save(tmp_path / "head.txr")


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write(path: Path, parts: dict[str, bytes], *, sign: bool = False) -> Path:
    """Write an archive; `sign`: with hashes that fit, as one who tampers would."""
    if sign:
        manifest = json.loads(parts[saving.MANIFEST])
        import hashlib

        rest = {k: v for k, v in parts.items() if k != saving.MANIFEST}
        manifest["sha256"] = {k: hashlib.sha256(v).hexdigest() for k, v in rest.items()}
        parts = {saving.MANIFEST: json.dumps(manifest).encode(), **rest}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
    return path


@pytest.mark.parametrize(
    "model",
    [
        "logistic",
        "knn",
        "forest",
        "gradient_boosting",
        "mlp",
        "unet",
        make_pipeline(StandardScaler(), LogisticRegression()),
    ],
    ids=str,
)
def test_a_head_comes_back_the_same(emb, sample, tmp_path, model):
    options = OPTIONS.get(model, {}) if isinstance(model, str) else {}
    head = fit_head(emb, sample, model, **options).with_scores({"macro_f1": 0.75})
    again = load_head(head.save(tmp_path / "head.txr"))
    assert again.predict(emb).identical(head.predict(emb))
    for name in ("name", "task", "classes", "colours", "target", "attrs", "n_labelled", "scores"):
        assert getattr(again, name) == getattr(head, name)
    assert {"tessera_xr", "numpy", "scikit-learn", "skops"} <= set(again.versions)
    assert again.save(tmp_path / "again.txr").stat().st_size > 0
    assert load_head(tmp_path / "again.txr").predict(emb).identical(head.predict(emb))


def test_numbers_keep_their_intervals(emb, sample, tmp_path):
    from dataclasses import replace

    numbers = replace(sample, y=sample.X[:, 0].astype(float), classes={}, target="first")
    head = fit_head(emb, numbers, "ridge")
    again = load_head(head.save(tmp_path / "head.txr"))
    assert again.predict(emb).identical(head.predict(emb))
    assert "lower" in again.predict(emb)


def test_the_same_head_is_the_same_file(sample, tmp_path):
    files = [fit_sample(sample, "knn").save(tmp_path / f"{i}.txr").read_bytes() for i in range(2)]
    assert files[0] == files[1]


def test_no_pickle_is_in_the_file(saved):
    parts = members(saved)
    assert set(parts) == {"manifest.json", "head.json", "estimator.skops"}
    inside = members(io.BytesIO(parts["estimator.skops"]))  # type: ignore[arg-type]
    assert all(name.endswith((".json", ".npy")) for name in inside)


# Files that aren't what they were -------------------------------------------------------------------------------------


@pytest.mark.parametrize("member", ["head.json", "estimator.skops"])
def test_a_changed_member_is_seen(saved, member):
    parts = members(saved)
    write(saved, parts | {member: parts[member].replace(b"e", b"f", 1)})
    with pytest.raises(CheckpointError, match="was changed or damaged after it was written"):
        load_head(saved)


@pytest.mark.parametrize("change", ["added", "removed"])
def test_members_added_or_removed_are_seen(saved, change):
    parts = members(saved)
    if change == "added":
        parts["evil.py"] = b"print(1)"
    else:
        del parts["estimator.skops"]
    with pytest.raises(CheckpointError, match="was changed or damaged"):
        load_head(write(saved, parts))


@pytest.mark.parametrize("keep", [0, 1, 100, -1])
def test_a_file_cut_short_is_seen(saved, keep):
    saved.write_bytes(saved.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="is no head, or damaged"):
        load_head(saved)


def test_foreign_files_are_refused(tmp_path, saved):
    foreign = tmp_path / "foreign.txr"
    foreign.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(CheckpointError, match="is no head, or damaged"):
        load_head(foreign)
    with pytest.raises(CheckpointError, match=r"is no head of tessera_xr; it holds \['a.txt'\]"):
        load_head(write(foreign, {"a.txt": b"hello"}))
    parts = members(saved)
    newer = json.loads(parts["manifest.json"]) | {"version": 99, "tessera_xr": "9.9"}
    with pytest.raises(CheckpointError, match=r"of format 99, this version reads 1: it was written by tessera_xr 9\.9"):
        load_head(write(saved, parts | {"manifest.json": json.dumps(newer).encode()}))
    with pytest.raises(FileNotFoundError, match="there is no head"):
        load_head(tmp_path / "nothing.txr")


class Bomb:
    """Something that would run code when unpickled, or made."""

    touched: Path

    def __init__(self) -> None:
        self.touched.touch()

    def __reduce__(self):
        return (Path.touch, (self.touched,))


def test_a_signed_file_with_foreign_types_runs_nothing(saved, tmp_path):
    Bomb.touched = tmp_path / "exploded"
    bomb = object.__new__(Bomb)
    bomb.__dict__["inside"] = 1
    parts = members(saved)
    write(saved, parts | {"estimator.skops": skops.io.dumps(bomb)}, sign=True)
    with pytest.raises(CheckpointError, match=r"types that are not known to be harmless: .*Bomb.*trusted=\["):
        load_head(saved)
    write(saved, parts | {"estimator.skops": pickle.dumps(bomb)}, sign=True)
    with pytest.raises(CheckpointError):
        load_head(saved)
    assert not Bomb.touched.exists()


def test_a_signed_file_that_names_another_class_makes_none(saved, sample, tmp_path):
    own = fit_sample(sample, "knn").save(tmp_path / "own.txr")
    parts = members(own)
    for name in ("Popen", "..saving.save_head", "Head"):
        facts = json.loads(parts["head.json"]) | {"estimator": name}
        write(own, parts | {"head.json": json.dumps(facts).encode()}, sign=True)
        with pytest.raises(CheckpointError, match="is of an unknown estimator"):
            load_head(own)


def test_a_tree_that_leads_out_of_its_memory_is_refused(sample, tmp_path):
    head = fit_sample(sample, "forest", n_estimators=3)
    tree = head.estimator.estimators_[1].tree_
    tree.children_left[0] = 10**6
    with pytest.raises(CheckpointError, match="holds a decision tree that leads nowhere"):
        load_head(head.save(tmp_path / "head.txr"))
    head = fit_sample(sample, "forest", n_estimators=3)
    head.estimator.estimators_[2].tree_.feature[0] = 128
    with pytest.raises(CheckpointError, match="holds a decision tree that leads nowhere"):
        load_head(head.save(tmp_path / "head.txr"))
    head = fit_sample(sample, "gradient_boosting", max_iter=3)
    head.estimator._predictors[1][0].nodes["right"][0] = 0  # round and round
    with pytest.raises(CheckpointError, match="holds a decision tree that leads nowhere"):
        load_head(head.save(tmp_path / "head.txr"))


@pytest.mark.parametrize(
    "change",
    [{"scaling": {}}, {"classes": 3}, {"settings": {"rows": 1}}, {"n_labelled": None, "settings": 4}],
    ids=str,
)
def test_signed_nonsense_is_an_error_of_ours(sample, tmp_path, change):
    path = fit_sample(sample, "knn").save(tmp_path / "head.txr")
    parts = members(path)
    facts = json.loads(parts["head.json"]) | change
    with pytest.raises(CheckpointError, match="is no head that this version can read"):
        load_head(write(path, parts | {"head.json": json.dumps(facts).encode()}, sign=True))


# Writing --------------------------------------------------------------------------------------------------------------


def times_two(X):
    return 2 * X


def test_an_estimator_of_ones_own_must_be_trusted(sample, tmp_path):
    head = fit_sample(sample, make_pipeline(FunctionTransformer(times_two), LogisticRegression()))
    path = head.save(tmp_path / "head.txr")
    with pytest.raises(CheckpointError, match="times_two") as told:
        load_head(path)
    names = [str(told.value).split("trusted=['")[1].split("'")[0]]
    assert load_head(path, trusted=names).estimator.get_params()["functiontransformer__func"] is times_two


def test_what_cannot_be_written_says_so_and_leaves_nothing(sample, tmp_path):
    head = fit_sample(sample, make_pipeline(FunctionTransformer(lambda X: X), LogisticRegression()))
    with pytest.raises(SchemaError, match="can't be written without pickle"):
        head.save(tmp_path / "head.txr")
    with pytest.raises(SchemaError, match="is a folder; give the name of a file"):
        fit_sample(sample).save(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_write_leaves_the_old_file(saved, sample, monkeypatch):
    before = saved.read_bytes()

    def stop(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(zipfile.ZipFile, "writestr", stop)
    with pytest.raises(KeyboardInterrupt):
        fit_sample(sample, "knn").save(saved)
    assert saved.read_bytes() == before
    assert [p.name for p in saved.parent.iterdir()] == [saved.name]


def test_forests_of_scikit_learn_can_be_kept(emb, sample, tmp_path):
    head: Head = fit_sample(sample, RandomForestClassifier(5))
    again = load_head(head.save(tmp_path / "deep" / "head.txr"))
    np.testing.assert_array_equal(again.predict(emb).prediction, head.predict(emb).prediction)
