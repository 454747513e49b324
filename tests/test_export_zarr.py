"""Zarr stores: they open as they were, appear whole or not at all, and a look at one place is cheap."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pandas as pd
import pytest
import rasterio
import xarray as xr

import tessera_xr as txr
from tessera_xr.errors import SchemaError
from tessera_xr.export import stores, to_geotiff, to_zarr
from tessera_xr.export.stores import geozarr_attrs
from tessera_xr.grid import geobox_of


@pytest.fixture(scope="module")
def caldor() -> xr.Dataset:
    return txr.tutorial.embeddings()


@pytest.fixture(scope="module")
def head(caldor) -> txr.Head:
    lost = txr.tutorial.labels()["lossyear"] > 0
    labels = txr.LabelSet.from_raster(lost, names={True: "lost", False: "still there"}, shapes="points", n_per_class=40)
    return caldor.sel(time=2024).tessera.fit(labels)


def opened(path, **options) -> xr.Dataset:
    """Open a store as users do, with every warning an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return xr.open_zarr(path, **options)


CASES = {
    "years of codes": lambda caldor, head, cube: caldor,
    "one year, lazy in odd chunks": lambda caldor, head, cube: caldor.sel(time=2024).chunk(y=17, x=(40, 24)),
    "floats": lambda caldor, head, cube: caldor.isel(time=0, y=slice(7)).tessera.dequantize(),
    "prediction": lambda caldor, head, cube: caldor.sel(time=2024).tessera.predict(head),
    "lazy prediction of years": lambda caldor, head, cube: caldor.isel(time=[0, 3]).chunk(x=30).tessera.predict(head),
    "labels": lambda caldor, head, cube: txr.tutorial.labels(),
    "cube": lambda caldor, head, cube: cube,
    "lazy cube": lambda caldor, head, cube: cube.chunk(s2_time=3, s1_time=7, y=5),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_written_is_what_is_read(case, caldor, head, make_cube, tmp_path):
    ds = CASES[case](caldor, head, make_cube(8))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=PendingDeprecationWarning)
        path = to_zarr(ds, tmp_path / "deep" / "a.zarr")
    assert path == tmp_path / "deep" / "a.zarr"
    assert [p.name for p in path.parent.iterdir()] == ["a.zarr"], "nothing temporary is left"
    found = opened(path)
    xr.testing.assert_identical(found.load(), ds.assign_attrs(geozarr_attrs(geobox_of(ds))).compute())
    assert {n: v.dtype for n, v in found.data_vars.items()} == {n: v.dtype for n, v in ds.data_vars.items()}
    assert geobox_of(found) == geobox_of(ds)


def test_lazy_input_stays_lazy_until_it_is_written(caldor, tmp_path, monkeypatch):
    lazy = caldor.chunk(time=1, y=20)
    at_once = []
    plain = xr.DataArray.compute
    monkeypatch.setattr(xr.DataArray, "compute", lambda self, **o: at_once.append(self.name) or plain(self, **o))
    to_zarr(lazy, tmp_path / "a.zarr")
    assert lazy.embeddings.chunks is not None
    assert "embeddings" not in at_once
    assert opened(tmp_path / "a.zarr").embeddings.chunks is not None


def test_arrays_and_what_has_no_grid(caldor, tmp_path):
    emb = caldor.sel(time=2024)
    change = caldor.tessera.change(2020, 2022)
    found = opened(to_zarr(change, tmp_path / "c.zarr"))["change"]
    xr.testing.assert_identical(found.load(), change)
    assert list(opened(to_zarr(change.rename(None), tmp_path / "n.zarr")).data_vars) == ["values"]
    points = emb.tessera.sample(emb.tessera.find_similar(np.ones(128), 5))
    xr.testing.assert_identical(opened(to_zarr(points, tmp_path / "p.zarr")).load(), points)
    lazy = emb.chunk(y=3).tessera.sample(emb.tessera.find_similar(np.ones(128), 7)).chunk(point=3)
    xr.testing.assert_identical(opened(to_zarr(lazy, tmp_path / "l.zarr")).load(), lazy.compute())


def test_functions_work_on_what_was_opened(caldor, head, make_cube, weights, tmp_path):
    cube = make_cube(8)
    emb = opened(to_zarr(cube, tmp_path / "cube.zarr")).tessera.embed(weights, period=2020, device="cpu").compute()
    xr.testing.assert_identical(emb, cube.tessera.embed(weights, period=2020, device="cpu"))
    assert "Sentinel-1" in repr(opened(tmp_path / "cube.zarr").tessera)
    from_store = txr.save_tile(txr.as_cube(opened(tmp_path / "cube.zarr"), period=2020), tmp_path / "t1")
    from_memory = txr.save_tile(txr.as_cube(cube, period=2020), tmp_path / "t2")
    for name in ("bands", "sar_ascending", "sar_descending"):
        np.testing.assert_array_equal(np.load(from_store / f"{name}.npy"), np.load(from_memory / f"{name}.npy"))
    found = opened(to_zarr(caldor, tmp_path / "emb.zarr"))
    np.testing.assert_array_equal(found.tessera.change(2020, 2022), caldor.tessera.change(2020, 2022))
    pred = found.sel(time=2024).tessera.predict(head)
    again = opened(to_zarr(pred, tmp_path / "pred.zarr"))
    assert len(txr.stratified_points(again, 20)) == 20
    with rasterio.open(to_geotiff(again, tmp_path / "map.tif")) as file:
        np.testing.assert_array_equal(file.read(1), pred.prediction)
        assert file.colorinterp[0].name == "palette"
        assert not {"Conventions", "proj:code"} & set(file.tags())


def test_gis_finds_the_place(caldor, tmp_path):
    path = to_zarr(caldor, tmp_path / "a.zarr")
    attrs = json.loads((path / "zarr.json").read_text())["attributes"]
    box = geobox_of(caldor)
    assert attrs["proj:code"] == "EPSG:32610"
    assert attrs["spatial:transform"] == list(box.transform)[:6]
    assert attrs["spatial:shape"] == [64, 64]
    assert attrs["spatial:bbox"] == list(box.extent.boundingbox.bbox)
    assert attrs["spatial:dimensions"] == ["y", "x"]
    assert {c["name"] for c in attrs["zarr_conventions"]} == {"proj", "spatial"}
    assert attrs["Conventions"].startswith("CF-")
    array = json.loads((path / "embeddings" / "zarr.json").read_text())
    assert array["dimension_names"] == ["time", "band", "y", "x"]
    assert array["attributes"]["grid_mapping"] == "spatial_ref"
    assert "crs_wkt" in json.loads((path / "spatial_ref" / "zarr.json").read_text())["attributes"]


def test_the_place_of_a_part_is_its_own(caldor, tmp_path):
    whole = opened(to_zarr(caldor, tmp_path / "a.zarr"))
    part = opened(to_zarr(whole.isel(x=slice(10, 40)), tmp_path / "b.zarr"))
    assert part.attrs["spatial:shape"] == [64, 30]
    assert part.attrs["spatial:transform"][2] == whole.attrs["spatial:transform"][2] + 100


def test_a_grid_mapping_in_the_encoding_is_kept(caldor, tmp_path):
    path = to_zarr(caldor, tmp_path / "a.zarr")
    decoded = opened(path, decode_coords="all")
    assert "grid_mapping" not in decoded.embeddings.attrs
    again = opened(to_zarr(decoded, tmp_path / "b.zarr"))
    assert again.embeddings.attrs["grid_mapping"] == "spatial_ref"


def grid(height: int, width: int, **variables: tuple[tuple[str, ...], np.dtype | type]) -> xr.Dataset:
    coords = {"y": -10.0 * np.arange(height), "x": 10.0 * np.arange(width)}
    sizes = {"time": 3, "band": 128, "s2_time": 70, "s2_band": 10, "y": height, "x": width}
    lazy = {
        name: (dims, np.lib.stride_tricks.as_strided(np.zeros(1, kind), [sizes[d] for d in dims], [0] * len(dims)))
        for name, (dims, kind) in variables.items()
    }
    return xr.Dataset(lazy, coords).odc.assign_crs("EPSG:32631")


def test_chunks_are_small_and_files_few():
    ds = grid(
        3000,
        2000,
        codes=(("time", "band", "y", "x"), np.int8),
        floats=(("band", "y", "x"), np.float32),
        map=(("y", "x"), np.uint8),
        s2=(("s2_time", "s2_band", "y", "x"), np.uint16),
    )
    _, encoding = stores._prepared(ds)
    assert encoding["codes"]["chunks"] == (1, 128, 32, 32)
    assert encoding["floats"]["chunks"] == (128, 32, 32)
    assert encoding["map"]["chunks"] == (256, 256)
    assert encoding["s2"]["chunks"] == (70, 10, 32, 32)
    sides = {e["shards"][-2:] for e in encoding.values()}
    assert sides == {(256, 256)}, "the same for all, so that one piece of work fills one file of each"
    for name, e in encoding.items():
        assert all(s % c == 0 for s, c in zip(e["shards"], e["chunks"], strict=True))
        assert np.prod(e["shards"]) * ds[name].dtype.itemsize <= 128 * 1024 * 1024
    small, encoding = stores._prepared(grid(40, 300, codes=(("time", "band", "y", "x"), np.int8)))
    assert encoding["codes"] == {"chunks": (1, 128, 32, 32), "shards": (1, 128, 64, 320)}
    assert small.codes.chunks is None


def test_one_pixel_costs_one_chunk(caldor, tmp_path, monkeypatch):
    """Read off the bytes that the store is asked for."""
    from zarr.storage import LocalStore

    path = to_zarr(caldor, tmp_path / "a.zarr")
    read = []
    get = LocalStore.get

    async def counted(self, key, prototype, byte_range=None):
        found = await get(self, key, prototype, byte_range)
        if found is not None and key.startswith("embeddings/c"):
            read.append(len(found))
        return found

    monkeypatch.setattr(LocalStore, "get", counted)
    pixel = opened(path).embeddings.sel(time=2024).isel(y=40, x=3).load()
    np.testing.assert_array_equal(pixel, caldor.embeddings.sel(time=2024).isel(y=40, x=3))
    assert 0 < sum(read) < 1.2 * 128 * 32 * 32


# Whole or not at all, and what is refused ----------------------------------------------------------------------------


def test_what_is_there_is_kept_unless_told(caldor, tmp_path):
    path = to_zarr(caldor.isel(time=0), tmp_path / "a.zarr")
    with pytest.raises(SchemaError, match="is there already; give another name, or pass overwrite=True"):
        to_zarr(caldor, path)
    assert opened(path).sizes.get("time") is None
    to_zarr(caldor, path, overwrite=True)
    assert opened(path).sizes["time"] == 9
    to_zarr(opened(path).isel(time=[0, 1]), path, overwrite=True)
    np.testing.assert_array_equal(opened(path).embeddings, caldor.embeddings[:2])
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "cat.jpg").write_text("cat")
    for wrong in (folder, folder / "cat.jpg"):
        with pytest.raises(SchemaError, match="is no Zarr store and is left alone"):
            to_zarr(caldor, wrong, overwrite=True)
    assert (folder / "cat.jpg").read_text() == "cat"


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_failure_leaves_nothing_and_loses_nothing(overwrite, caldor, tmp_path):
    path = tmp_path / "a.zarr"
    if overwrite:
        to_zarr(caldor.isel(time=0), path)
    good = caldor.chunk(time=1)

    def broken(block: np.ndarray, block_info: dict) -> np.ndarray:
        if block_info[0]["chunk-location"][0] == 5:
            raise RuntimeError("a scene is gone")
        return block

    bad = good.assign(embeddings=good.embeddings.copy(data=good.embeddings.data.map_blocks(broken, dtype=np.int8)))
    with pytest.raises(RuntimeError, match="a scene is gone"):
        to_zarr(bad, path, overwrite=overwrite)
    assert [p.name for p in tmp_path.iterdir()] == (["a.zarr"] if overwrite else [])
    if overwrite:
        np.testing.assert_array_equal(opened(path).embeddings, caldor.embeddings[0])


def test_a_failure_of_the_last_step_brings_back_the_old(caldor, tmp_path, monkeypatch):
    path = to_zarr(caldor.isel(time=0), tmp_path / "a.zarr")
    rename = type(path).rename

    def failing(self, target):
        if self.name == "new.zarr":
            raise OSError("no")
        return rename(self, target)

    monkeypatch.setattr(type(path), "rename", failing)
    with pytest.raises(OSError, match="no"):
        to_zarr(caldor, path, overwrite=True)
    assert "time" not in opened(path).sizes
    assert [p.name for p in tmp_path.iterdir()] == ["a.zarr"]


def test_attributes_that_no_store_holds(caldor, tmp_path):
    with pytest.raises(SchemaError, match="attribute 'made' of the dataset is a Timestamp, which a store can't hold"):
        to_zarr(caldor.assign_attrs(made=pd.Timestamp(0)), tmp_path / "a.zarr")
    odd = caldor.copy()
    odd.embeddings.attrs["place"] = tmp_path
    with pytest.raises(SchemaError, match="attribute 'place' of 'embeddings' is a PosixPath"):
        to_zarr(odd, tmp_path / "a.zarr")
    with pytest.raises(SchemaError, match="is an address"):
        to_zarr(caldor, "s3://bucket/a.zarr")
    assert list(tmp_path.iterdir()) == []
