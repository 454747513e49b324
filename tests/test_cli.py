"""The command: what it writes, and that every fault is a line and an exit status, not a traceback."""

from __future__ import annotations

import numpy as np
import pytest

import tessera_xr as txr
from tessera_xr.cli import main
from tessera_xr.views.render import true_colour


@pytest.fixture
def tile(make_cube, tmp_path):
    cube = make_cube(8)
    return txr.save_tile(txr.as_cube(cube, period=2020), tmp_path / "tile")


def test_a_map_of_a_lazy_zarr_cube(make_cube, weights, tmp_path, capsys):
    make_cube(8).chunk({"s2_time": 3, "x": 5}).to_zarr(tmp_path / "cube.zarr", zarr_format=2)
    out = tmp_path / "out"
    assert main(["demo", "--s2", str(tmp_path / "cube.zarr"), "--model", str(weights), "--out", str(out)]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["embeddings.tif", "map.png", "map.tif"]
    said = capsys.readouterr().out
    assert "64 pixels" in said
    assert "Sentinel-2" in said


def test_a_map_of_a_tile_folder(tile, weights, tmp_path):
    assert main(["demo", "--s2", str(tile), "--model", str(weights), "--out", str(tmp_path / "out")]) == 0


@pytest.mark.parametrize("official", [True, False])
def test_a_map_says_where_the_model_is_not_the_official_one(official, tile, weights, tmp_path, capsys, monkeypatch):
    headings = []
    monkeypatch.setattr("tessera_xr.views.render.save_figure", lambda pictures, path, title: headings.append(title))
    model = ["--model", str(weights)] if official else []
    assert main(["demo", "--s2", str(tile), "--out", str(tmp_path / "out"), *model]) == 0
    said = capsys.readouterr()
    assert headings[0].startswith("v2-custom, 20" if official else "mini, 20")
    assert headings[0].endswith("(not an official TESSERA model)") != official
    assert ("official     no: trained with tessera_xr" in said.out) != official
    assert "Note:" not in said.err


def test_faults_are_told_in_a_line(tile, weights, tmp_path, capsys):
    text = tmp_path / "text.nc"
    text.write_text("no cube")
    cases = {
        ("--s2", str(tmp_path / "lost.nc")): "there is no file",
        ("--s2", str(text)): "can't be opened",
        ("--s2", str(tile), "--s1", str(text)): "holds Sentinel-1 too",
        ("--s2", str(tile), "--model", "v3"): "there is no model 'v3'",
        ("--s2", str(tile), "--model", str(weights), "--period", "2011"): "no date falls into the period",
    }
    for arguments, message in cases.items():
        assert main(["demo", "--out", str(tmp_path / "out"), *arguments]) == 1
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_models_are_listed(capsys):
    assert main(["models"]) == 0
    assert "v2-small" in capsys.readouterr().out


def test_true_colour_is_the_same_in_uneven_chunks(make_cube):
    cube = make_cube(8)
    lazy = cube.assign(s2=cube.s2.chunk({"y": 3}), s1=cube.s1.chunk({"y": 5}))
    np.testing.assert_array_equal(true_colour(lazy), true_colour(cube))
