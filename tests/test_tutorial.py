"""The sample data in the package: real embeddings and labels, on one grid, as their sources have them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from pyproj import Transformer

import tessera_xr
from tessera_xr import tutorial
from tessera_xr.embedding.schema import COUNTS, check_embeddings, has_data, provenance
from tessera_xr.grid import geobox_of

FOLDER = Path(tessera_xr.__file__).parent / "data" / "caldor"


@pytest.fixture(scope="module")
def emb() -> xr.Dataset:
    return tutorial.embeddings()


@pytest.fixture(scope="module")
def labels() -> xr.Dataset:
    return tutorial.labels()


def test_embeddings_are_in_the_schema(emb):
    check_embeddings(emb)
    assert emb.embeddings.dims == ("time", "band", "y", "x")
    assert emb.embeddings.shape == (9, 128, 64, 64)
    assert emb.embeddings.dtype == np.int8
    assert emb.embeddings.transpose("time", "y", "x", "band").values.flags.c_contiguous, "band last in memory"
    assert emb.time.values.tolist() == list(range(2017, 2026))
    assert has_data(emb).all()
    assert {name: emb[name].dtype for name in COUNTS} == dict.fromkeys(COUNTS, np.dtype("uint16"))
    assert provenance(emb)["model"] == "v1.1-dclimate"
    assert {"licence", "attribution", "source"} <= set(emb.attrs)
    assert "v1.1-dclimate" in repr(emb.tessera)


def test_embeddings_are_what_was_published(emb):
    with np.load(FOLDER / "caldor_64.npz") as stored:
        np.testing.assert_array_equal(emb.embeddings.transpose("time", "y", "x", "band"), stored["embeddings"])
        for name in ("scales", *COUNTS):
            np.testing.assert_array_equal(emb[name], stored[name])
    value = emb.tessera.dequantize().embeddings.sel(time=2020)[5, 3, 7]
    assert float(value) == pytest.approx(
        float(emb.embeddings.sel(time=2020)[5, 3, 7] * emb.scales.sel(time=2020)[3, 7])
    )


def test_the_files_are_those_of_the_shared_data(shared_data):
    for path in (shared_data / "caldor").glob("*.npz"):
        assert (FOLDER / path.name).read_bytes() == path.read_bytes()


def test_embeddings_lie_where_they_should(emb):
    box = geobox_of(emb)
    assert box.crs.to_epsg() == 32610
    assert tuple(box.transform)[:6] == (10, 0, 731280, 0, -10, 4286160)
    assert (float(emb.x[0]), float(emb.y[0])) == (731285, 4286155)
    assert (emb.y.diff("y") < 0).all()
    assert all(emb[name].attrs["grid_mapping"] == "spatial_ref" for name in ("embeddings", "scales", *COUNTS))


def test_labels_share_the_grid(emb, labels):
    assert geobox_of(labels) == geobox_of(emb)
    xr.testing.assert_equal(labels.x.drop_vars("spatial_ref"), emb.x.drop_vars("spatial_ref"))
    assert set(labels.data_vars) == {"lossyear", "treecover2000", "datamask"}
    assert {str(labels[name].dtype) for name in labels.data_vars} == {"uint8"}
    assert all(labels[name].attrs["grid_mapping"] == "spatial_ref" for name in labels.data_vars)
    assert labels.attrs["attribution"] == "Hansen/UMD/Google/USGS/NASA"
    assert labels.attrs["licence"] == "CC-BY-4.0"


def test_a_label_is_that_of_the_hansen_pixel_around_it(labels):
    to_lonlat = Transformer.from_crs("EPSG:32610", "EPSG:4326", always_xy=True)
    with np.load(FOLDER / "caldor_64_hansen.npz") as stored:
        west, north, res = (float(stored[name]) for name in ("west", "north", "res"))
        for row, column in np.random.default_rng(0).integers(0, 64, (200, 2)):
            lon, lat = to_lonlat.transform(float(labels.x[column]), float(labels.y[row]))
            i, j = int((north - lat) // res), int((lon - west) // res)
            for name in labels.data_vars:
                assert labels[name].values[row, column] == stored[name][i, j]


def test_a_third_was_lost_in_2021(labels):
    assert float((labels.lossyear == 21).mean()) == pytest.approx(0.348, abs=0.002)
    assert not ((labels.lossyear > 8) & (labels.lossyear < 20)).any(), "2009 to 2019 were calm"
    assert labels.lossyear.max() <= 25


def test_it_writes_to_netcdf(emb, labels, tmp_path):
    for ds in (emb, labels):
        ds.to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
        with xr.open_dataset(tmp_path / "a.nc", engine="h5netcdf", mask_and_scale=False, decode_coords="all") as back:
            assert geobox_of(back) == geobox_of(ds)
            xr.testing.assert_equal(back[list(ds.data_vars)].load(), ds)


def test_it_is_light():
    code = (
        "import sys; from tessera_xr import tutorial; tutorial.embeddings(); tutorial.labels();"
        "print([m for m in ('torch', 'sklearn', 'matplotlib', 'numba', 'geopandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_card_gives_credit():
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    for words in ("CC0", "CC BY 4.0", "Hansen/UMD/Google/USGS/NASA", "dClimate", "Apache-2.0", "EPSG:32610"):
        assert words in card
