"""The command: what it writes, and that every fault is a line and an exit status, not a traceback."""

from __future__ import annotations

import json

import numpy as np
import pytest
import rasterio
import xarray as xr

import tessera_xr as txr
from tessera_xr.cli import main
from tessera_xr.embedding.published.writing import to_published
from tessera_xr.export import to_zarr
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


# embed ---------------------------------------------------------------------------------------------------------------


def test_embed_a_file_into_a_geotiff(make_cube, weights, tmp_path, capsys):
    cube = make_cube(8)
    txr.save_tile(txr.as_cube(cube, period=2020), tmp_path / "tile")
    out = tmp_path / "a" / "emb.tif"
    arguments = ["embed", "--s2", str(tmp_path / "tile"), "--model", str(weights), "--dims", "64", "--out", str(out)]
    assert main(arguments) == 0
    expected = txr.embed(txr.open_tile(tmp_path / "tile"), weights, dims=64)
    with rasterio.open(out) as file:
        np.testing.assert_array_equal(file.read(), expected.embeddings)
    said = capsys.readouterr().out
    assert "TESSERA embeddings, 64 dimensions" in said
    assert said.endswith(f"Wrote {out}\n")


def test_embed_into_a_store_and_again(make_cube, weights, tmp_path, capsys):
    cube = make_cube(8)
    to_zarr(cube, tmp_path / "cube.zarr")
    out = tmp_path / "emb.zarr"
    arguments = ["embed", "--s2", str(tmp_path / "cube.zarr"), "--model", str(weights), "--period", "2020"]
    assert main([*arguments, "--device", "cpu", "--out", str(out)]) == 0
    found = xr.open_zarr(out)
    expected = txr.embed(cube, weights, period=2020, device="cpu", dtype="int8")
    np.testing.assert_array_equal(found.scales.notnull(), expected.scales.notnull())
    np.testing.assert_allclose(
        found.tessera.dequantize().embeddings, expected.tessera.dequantize().embeddings, atol=0.05
    )
    assert main([*arguments, "--device", "cpu", "--out", str(out)]) == 0, "what is finished is found finished"
    other = [a if a != "2020" else "2019" for a in arguments]
    assert main([*other, "--device", "cpu", "--out", str(out)]) == 1
    capsys.readouterr()
    assert main([*other, "--device", "cpu", "--out", str(out), "--overwrite"]) == 0


def test_embed_an_area(make_cube, weights, tmp_path, monkeypatch):
    asked = []

    def load_cube(area, period, source, *, s1):
        asked.append((list(area), period, source, s1))
        return txr.as_cube(make_cube(8), period=2020)

    monkeypatch.setattr("tessera_xr.sentinel.stac.load_cube", load_cube)
    out = tmp_path / "emb.tif"
    common = ["embed", "--bbox", "-3.1", "51", "-3", "51.1", "--model", str(weights), "--out", str(out)]
    assert main([*common, "--period", "2020"]) == 0
    assert main([*common, "--period", "2020", "--source", "aws", "--s1", "planetary-computer"]) == 0
    area = [-3.1, 51, -3, 51.1]
    assert asked == [(area, "2020", "earth-search", True), (area, "2020", "aws", "planetary-computer")]
    assert out.is_file()


# published -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store of the published layout, and a bbox inside it."""
    emb = txr.tutorial.embeddings().isel(time=slice(6, 9))
    path = tmp_path_factory.mktemp("published") / "v1.1-dclimate"
    to_published(emb, path)
    return emb, path, ["-120.3395", "38.689", "-120.337", "38.6915"]


def test_published_embeddings_into_files(store, tmp_path, capsys):
    emb, path, bbox = store
    common = ["published", "--bbox", *bbox, "--store", str(path), "--years"]
    assert main([*common, "2023", "2024", "--out", str(tmp_path / "p.zarr")]) == 0
    found = xr.open_zarr(tmp_path / "p.zarr")
    same = emb.sel(time=[2023, 2024], y=found.y, x=found.x)
    assert found.sizes["y"] > 10
    np.testing.assert_array_equal(found.embeddings, same.embeddings)
    assert main([*common, "2024", "--out", str(tmp_path / "one.tif")]) == 0
    assert main([*common, "2023", "2024", "--out", str(tmp_path / "two.tif")]) == 0
    assert sorted(p.name for p in tmp_path.glob("*.tif")) == ["one.tif", "two_2023.tif", "two_2024.tif"]
    values = same.tessera.dequantize().embeddings
    for name, year in (("one.tif", 2024), ("two_2023.tif", 2023), ("two_2024.tif", 2024)):
        with rasterio.open(tmp_path / name) as file:
            np.testing.assert_array_equal(file.read(), values.sel(time=year))
            assert file.tags()["time"] == str(year)
    assert "Wrote " in capsys.readouterr().out
    assert main([*common, "2024", "--out", str(tmp_path / "p.zarr")]) == 1
    assert "is there already" in capsys.readouterr().err
    assert main([*common, "2024", "--out", str(tmp_path / "p.zarr"), "--overwrite"]) == 0


# Faults, and the doctor ----------------------------------------------------------------------------------------------


def test_faults_of_embed_are_told_before_any_work(tile, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("tessera_xr.sentinel.stac.load_cube", lambda *_, **__: pytest.fail("nothing is to be loaded"))
    area, out = ["--bbox", "3", "51", "3.1", "51.1"], ["--out", str(tmp_path / "x.zarr")]
    cases = {
        (*area, "--period", "2020", "--out", str(tmp_path / "x.png")): "must end in .zarr or .tif",
        (*out,): "say what to embed: files, with --s2 and --s1, or an area",
        (*area, *out): "an area needs a --period",
        (*area, "--period", "2020", "--s2", str(tile), *out): "--s2 is a file, and --bbox asks a catalogue",
        ("--s2", str(tmp_path / "lost.nc"), *out): "there is no file",
    }
    for arguments, message in cases.items():
        assert main(["embed", *arguments]) == 1
        said = capsys.readouterr().err
        assert message in said
        assert said.count("\n") == 1
    assert not list(tmp_path.glob("x*"))


def test_a_fault_of_the_disk_is_a_line(tile, weights, tmp_path, capsys):
    (tmp_path / "file").write_text("no folder")
    out = tmp_path / "file" / "emb.tif"
    assert main(["embed", "--s2", str(tile), "--model", str(weights), "--out", str(out)]) == 1
    assert capsys.readouterr().err.startswith("Error: ")


@pytest.mark.parametrize("arguments", [[], ["embed"], ["published", "--out", "a.zarr"], ["embed", "--bbox", "1", "2"]])
def test_what_argparse_refuses(arguments, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert "usage: tessera-xr" in capsys.readouterr().err


def test_help_and_version(capsys):
    for arguments, expected in ((["--help"], "doctor"), (["published", "--help"], "--years"), (["--version"], "0.")):
        with pytest.raises(SystemExit, match="0"):
            main(arguments)
        assert expected in capsys.readouterr().out


def test_interrupted(monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("tessera_xr.doctor.examine", interrupted)
    assert main(["doctor"]) == 130
    assert "Interrupted" in capsys.readouterr().err


def test_the_doctor_speaks_and_writes_json(monkeypatch, capsys):
    monkeypatch.setattr(
        "tessera_xr.doctor.examine", lambda *, online: {"works": {"online": online, "maps": ["a", "b"]}}
    )
    assert main(["doctor"]) == 0
    assert capsys.readouterr().out == "Works\n  online  False\n  maps    a, b\n"
    assert main(["doctor", "--online", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"works": {"online": True, "maps": ["a", "b"]}}
