"""GeoTIFF: what is written is what another program reads."""

from __future__ import annotations

import numpy as np
import pytest
import rasterio
import xarray as xr
from odc.geo.geobox import GeoBox

import tessera_xr as txr
from tessera_xr import export
from tessera_xr.errors import SchemaError
from tessera_xr.grid import geobox_of, with_grid


@pytest.fixture
def emb(make_cube, weights) -> xr.Dataset:
    return txr.embed(make_cube(8), weights, period=2020, device="cpu")


def test_embeddings(emb, tmp_path):
    path = emb.tessera.to_geotiff(tmp_path / "deep" / "emb.tif")
    assert path == tmp_path / "deep" / "emb.tif"
    box = geobox_of(emb)
    with rasterio.open(path) as file:
        assert file.crs == rasterio.CRS.from_user_input(str(box.crs))
        assert file.transform == box.transform
        assert file.dtypes == ("float32",) * 128
        assert np.isnan(file.nodata)
        np.testing.assert_array_equal(file.read(), emb.embeddings)
        assert file.descriptions[:2] == ("band 0", "band 1")
        tags = file.tags()
        assert tags["model"] == "v2-custom"
        assert tags["weights_sha256"] == emb.attrs["weights_sha256"]
        assert tags["period"] == "2020-01-01/2020-12-31"
        assert tags["tessera_xr_version"] == txr.__version__
        assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert not file.read_masks(1)[0, 0]
    assert list(path.parent.iterdir()) == [path], "nothing temporary is left"


def test_codes_are_written_as_the_values_that_they_mean(emb, tmp_path):
    codes = emb.tessera.quantize()
    with rasterio.open(txr.to_geotiff(codes, tmp_path / "codes.tif")) as file:
        np.testing.assert_array_equal(file.read(), codes.tessera.dequantize().embeddings)


def test_lazy_embeddings(emb, tmp_path):
    with rasterio.open(txr.to_geotiff(emb.chunk(y=3), tmp_path / "lazy.tif")) as file:
        np.testing.assert_array_equal(file.read(), emb.embeddings)


@pytest.mark.parametrize(
    ("choose", "dtype"),
    [
        (lambda emb: emb.s2_obs_count, "uint16"),
        (lambda emb: emb.s2_obs_count > 3, "uint8"),
        (lambda emb: emb.embeddings.mean("band"), "float32"),
        (lambda emb: emb.tessera.components(4), "float32"),
        (lambda emb: emb.embeddings.isel(band=[3, 5]).transpose("x", "band", "y"), "float32"),
    ],
    ids=["counts", "mask", "map", "components", "bands"],
)
def test_maps(choose, dtype, emb, tmp_path):
    array = choose(emb)
    with rasterio.open(array.tessera.to_geotiff(tmp_path / "map.tif")) as file:
        assert set(file.dtypes) == {dtype}
        expected = array.transpose(..., "y", "x").values
        np.testing.assert_array_equal(file.read(), expected[None] if expected.ndim == 2 else expected)


def test_bands_are_named_by_their_labels(emb, tmp_path):
    with rasterio.open(emb.tessera.components(2).tessera.to_geotiff(tmp_path / "c.tif")) as file:
        assert file.descriptions == ("component 1", "component 2")


def test_pictures_become_bytes(emb, tmp_path):
    picture = emb.tessera.rgb()
    with rasterio.open(picture.tessera.to_geotiff(tmp_path / "rgb.tif")) as file:
        found = np.moveaxis(file.read(), 0, -1)
        assert found.dtype == np.uint8
        assert file.nodata == 0
    seen = picture.notnull().values
    assert (found[~seen] == 0).all()
    assert found[seen].min() >= 1
    np.testing.assert_allclose((found[seen] - 1) / 254, picture.values[seen], atol=0.5 / 254 + 1e-6)


def test_overviews(tmp_path):
    coords = {"y": 5_630_000 - 10 * (np.arange(1100) + 0.5), "x": 500_000 + 10 * (np.arange(1030) + 0.5)}
    array = xr.DataArray(np.ones((1100, 1030), np.float32), coords, name="ones").odc.assign_crs("EPSG:32631")
    with rasterio.open(txr.to_geotiff(array, tmp_path / "big.tif")) as file:
        assert file.overviews(1)
        assert file.profile["tiled"]


def test_an_existing_file_is_replaced_whole_or_not_at_all(emb, tmp_path, monkeypatch):
    path = tmp_path / "map.tif"
    txr.to_geotiff(emb.s2_obs_count, path)
    before = path.read_bytes()

    def failing(*_: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(export, "_write", failing)
        with pytest.raises(OSError, match="disk full"):
            txr.to_geotiff(emb.s1_asc_obs_count, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    txr.to_geotiff(emb.s1_asc_obs_count, path)
    with rasterio.open(path) as file:
        np.testing.assert_array_equal(file.read(1), emb.s1_asc_obs_count)


def test_what_a_geotiff_cannot_hold(emb, make_cube, weights, tmp_path):
    years = txr.embed(make_cube(8), weights, period=[2019, 2020], device="cpu")
    with pytest.raises(
        SchemaError, match=r"dimensions \('time', 'band', 'y', 'x'\); choose one step, .*sel\(time=2020\)"
    ):
        txr.to_geotiff(years, tmp_path / "no.tif")
    txr.to_geotiff(years.sel(time=2020), tmp_path / "yes.tif")
    with pytest.raises(SchemaError, match="dimensions"):
        txr.to_geotiff(emb.embeddings.isel(x=0), tmp_path / "no.tif")
    with pytest.raises(SchemaError, match=r"must hold embeddings to be written; choose one of \['s2_obs_count'"):
        txr.to_geotiff(emb.drop_vars("embeddings"), tmp_path / "no.tif")
    assert not (tmp_path / "no.tif").exists()


def test_overviews_of_classes_hold_only_classes(tmp_path):
    box = GeoBox.from_bbox((0, 0, 12_000, 12_000), "EPSG:32631", resolution=10)
    classes = np.tile(np.array([0, 9], dtype=np.uint8), (1200, 600))
    classes = with_grid(xr.DataArray(classes, dims=("y", "x"), name="classes").to_dataset(), box)["classes"]
    with rasterio.open(txr.to_geotiff(classes, tmp_path / "c.tif")) as file:
        assert file.overviews(1)
        overview = file.read(1, out_shape=(300, 300))
    assert set(np.unique(overview)) <= {0, 9}


def test_a_folder_is_no_file(tmp_path, emb):
    with pytest.raises(SchemaError, match="is a folder; give the name of a file"):
        txr.to_geotiff(emb, tmp_path)
