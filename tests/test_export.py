"""GeoTIFF: what is written is what another program reads."""

from __future__ import annotations

import logging
import struct
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import rasterio
import xarray as xr
from odc.geo.geobox import GeoBox

import tessera_xr as txr
from tessera_xr.errors import GridError, SchemaError
from tessera_xr.export import geotiff, to_geotiff
from tessera_xr.export.legend import read_legend
from tessera_xr.grid import geobox_of, with_grid


@pytest.fixture
def emb(make_cube, weights) -> xr.Dataset:
    return txr.embed(make_cube(8), weights, period=2020, device="cpu")


@pytest.fixture(scope="module")
def caldor() -> xr.Dataset:
    return txr.tutorial.embeddings()


@pytest.fixture(scope="module")
def pred(caldor) -> xr.Dataset:
    emb = caldor.sel(time=2024)
    lost = txr.tutorial.labels()["lossyear"] > 0
    names = {True: "forest lost", False: "forest & <other>"}
    labels = txr.LabelSet.from_raster(lost, names=names, shapes="points", n_per_class=40)
    return emb.tessera.predict(emb.tessera.fit(labels))


@pytest.fixture(autouse=True)
def gdal_is_silent(caplog):
    """What GDAL warns of comes out as records of rasterio's loggers."""
    with caplog.at_level(logging.WARNING, logger="rasterio"):
        yield
    assert [r.getMessage() for r in caplog.records if r.name.startswith("rasterio")] == []


def made(values: np.ndarray, name: str = "map", resolution: float = 10, **attrs: object) -> xr.DataArray:
    height, width = values.shape[-2:]
    box = GeoBox.from_bbox((5e5, 56e5, 5e5 + width * resolution, 56e5 + height * resolution), "EPSG:32631",
                           resolution=resolution)  # fmt: skip
    dims = ("y", "x") if values.ndim == 2 else ("band", "y", "x")
    return with_grid(xr.DataArray(values, dims=dims, name=name).to_dataset(), box)[name].assign_attrs(attrs)


def through_gdal(path: Path) -> ElementTree.Element:
    """Return all that GDAL knows of a file, names beside it included, as a VRT."""
    from rasterio.shutil import copy

    out = path.parent.parent / f"{path.name}.vrt"
    copy(path, out, driver="VRT")
    return ElementTree.parse(out).getroot()


def categories(seen: ElementTree.Element) -> list[str]:
    return [c.text or "" for c in seen.iter("Category")]


def offsets(path: Path) -> tuple[list[int], list[list[int]]]:
    """Return where the directories of a small TIFF are, and where the tiles of each are."""
    data = path.read_bytes()
    assert data[:4] == b"II*\0", "classic TIFF, little endian"
    sizes = {3: "H", 4: "I"}
    found, tiles, at = [], [], struct.unpack_from("<I", data, 4)[0]
    while at:
        found.append(at)
        n = struct.unpack_from("<H", data, at)[0]
        for i in range(n):
            tag, kind, count, value = struct.unpack_from("<HHII", data, at + 2 + 12 * i)
            if tag == 324:  # TileOffsets
                size = struct.calcsize(sizes[kind])
                place = at + 10 + 12 * i if count * size <= 4 else value
                tiles.append(list(struct.unpack_from(f"<{count}{sizes[kind]}", data, place)))
        at = struct.unpack_from("<I", data, at + 2 + 12 * n)[0]
    return found, tiles


# Embeddings ----------------------------------------------------------------------------------------------------------


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
        assert tags["TIFFTAG_SOFTWARE"] == f"tessera_xr {txr.__version__}"
        assert "grid_mapping" not in tags
        assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert not file.read_masks(1)[0, 0]
    assert list(path.parent.iterdir()) == [path], "nothing temporary is left"


def test_codes_are_written_as_the_values_that_they_mean(emb, tmp_path):
    codes = emb.tessera.quantize()
    with rasterio.open(to_geotiff(codes, tmp_path / "codes.tif")) as file:
        np.testing.assert_array_equal(file.read(), codes.tessera.dequantize().embeddings)


@pytest.mark.parametrize("chunks", [{"y": 3}, {"y": (1, 6, 1), "x": 5}, {"band": 50}])
def test_lazy_embeddings_are_written_strip_by_strip(chunks, emb, tmp_path, monkeypatch):
    monkeypatch.setattr(geotiff, "STRIP", 2)
    with rasterio.open(to_geotiff(emb.chunk(chunks), tmp_path / "lazy.tif")) as file:
        np.testing.assert_array_equal(file.read(), emb.embeddings)


def test_strips_are_whole_chunks(emb):
    def strips(rows):
        lazy = emb.embeddings.isel(x=[0] * 4).chunk(y=rows)
        return [(s.start, s.stop) for s in geotiff._strips(lazy)]

    assert strips((3, 3, 2)) == [(0, 8)], "small chunks go together"
    tall = xr.DataArray(np.zeros((1000, 2), np.float32), dims=("y", "x"))
    assert [(s.start, s.stop) for s in geotiff._strips(tall.chunk(y=300))] == [(0, 300), (300, 600), (600, 900),
                                                                              (900, 1000)]  # fmt: skip
    assert [s.stop for s in geotiff._strips(tall)] == [256, 512, 768, 1000]
    assert [s.stop for s in geotiff._strips(tall.chunk(y=200))] == [400, 800, 1000]


def test_a_look_at_one_of_many_bands_is_cheap(emb, tmp_path):
    with rasterio.open(to_geotiff(emb, tmp_path / "emb.tif")) as file:
        assert file.block_shapes[0] == (128, 128)
    with rasterio.open(to_geotiff(emb.s2_obs_count, tmp_path / "map.tif")) as file:
        assert file.block_shapes[0] == (512, 512)


# Maps ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choose", "dtype"),
    [
        (lambda emb: emb.s2_obs_count, "uint16"),
        (lambda emb: emb.s2_obs_count > 3, "uint8"),
        (lambda emb: emb.embeddings.mean("band"), "float32"),
        (lambda emb: emb.embeddings.mean("band").astype(np.float16), "float32"),
        (lambda emb: emb.tessera.components(4), "float32"),
        (lambda emb: emb.embeddings.isel(band=[3, 5]).transpose("x", "band", "y"), "float32"),
    ],
    ids=["counts", "mask", "map", "half precision", "components", "bands"],
)
def test_maps(choose, dtype, emb, tmp_path):
    array = choose(emb)
    with rasterio.open(array.tessera.to_geotiff(tmp_path / "map.tif")) as file:
        assert set(file.dtypes) == {dtype}
        expected = array.transpose(..., "y", "x").values
        np.testing.assert_array_equal(file.read(), expected[None] if expected.ndim == 2 else expected)


def test_bands_are_named_by_their_labels(emb, pred, tmp_path):
    with rasterio.open(emb.tessera.components(2).tessera.to_geotiff(tmp_path / "c.tif")) as file:
        assert file.descriptions == ("component 1", "component 2")
    with rasterio.open(to_geotiff(pred.probability, tmp_path / "p.tif")) as file:
        assert file.descriptions == tuple(pred["class"].values)
        assert file.units == ("1", "1")
        np.testing.assert_array_equal(file.read(), pred.probability)


def test_results_of_the_analyses(caldor, tmp_path):
    emb = caldor.sel(time=2024)
    similarity = emb.tessera.similarity(np.ones(128))
    with rasterio.open(to_geotiff(similarity, tmp_path / "s.tif")) as file:
        assert file.descriptions == (similarity.attrs["long_name"],)
        assert np.isnan(file.nodata)
        assert file.tags(1)["valid_max"] == "1.0"
        assert file.tags()["time"] == "2024"
        assert file.tags()["model"] == caldor.attrs["model"]
    with rasterio.open(to_geotiff(caldor.tessera.change(2020, 2022), tmp_path / "c.tif")) as file:
        assert (file.tags()["before"], file.tags()["after"]) == ("2020", "2022")
    segments = emb.tessera.segment(30)
    with rasterio.open(to_geotiff(segments, tmp_path / "g.tif")) as file:
        assert (file.nodata, file.dtypes[0]) == (0, segments.dtype.name)
    trend = caldor.tessera.trend()
    with rasterio.open(to_geotiff(trend, tmp_path / "t.tif")) as file:
        assert file.descriptions == tuple(trend.data_vars)
        assert [u or "" for u in file.units] == [trend[n].attrs.get("units", "") for n in trend.data_vars]
        assert file.tags(3)["long_name"] == trend.break_year.attrs["long_name"]
        np.testing.assert_array_equal(file.read(3), trend.break_year)


def test_pictures_become_bytes(emb, tmp_path):
    picture = emb.tessera.rgb()
    with rasterio.open(picture.tessera.to_geotiff(tmp_path / "rgb.tif")) as file:
        found = np.moveaxis(file.read(), 0, -1)
        assert found.dtype == np.uint8
        assert file.nodata == 0
        assert [c.name for c in file.colorinterp] == ["red", "green", "blue"]
    seen = picture.notnull().values
    assert (found[~seen] == 0).all()
    assert found[seen].min() >= 1
    np.testing.assert_allclose((found[seen] - 1) / 254, picture.values[seen], atol=0.5 / 254 + 1e-6)


def test_no_data_of_whole_numbers(tmp_path):
    values = np.array([[0, 1], [2, 255]], np.uint8)
    for attrs, expected in (({}, None), ({"nodata": 255}, 255), ({"_FillValue": 2}, 2), ({"nodata": -9999}, None)):
        with rasterio.open(to_geotiff(made(values, **attrs), tmp_path / "n.tif")) as file:
            assert file.nodata == expected


def test_a_map_in_degrees_from_south_to_north_is_turned(tmp_path):
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    place = {"latitude": [50.05, 50.15, 50.25], "longitude": [3.05, 3.15, 3.25, 3.35]}
    array = xr.DataArray(values, place, ("latitude", "longitude"), name="t")
    with rasterio.open(to_geotiff(array, tmp_path / "d.tif")) as file:
        assert file.crs.to_epsg() == 4326
        assert file.transform.e < 0
        np.testing.assert_allclose(file.bounds, (3, 50, 3.4, 50.3))
        np.testing.assert_array_equal(file.read(1), values[::-1])
        assert next(file.sample([(3.36, 50.06)]))[0] == values[0, 3]


# Cloud-optimised -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [np.float32, np.uint8])
def test_the_layout_is_cloud_optimised(kind, tmp_path):
    rng = np.random.default_rng(0)
    path = to_geotiff(made(rng.integers(0, 9, (1100, 1030)).astype(kind)), tmp_path / "big.tif")
    with rasterio.open(path) as file:
        assert file.overviews(1) == [2, 4]
        assert file.profile["tiled"]
        assert file.profile["compress"] == "deflate"
    directories, tiles = offsets(path)
    assert len(directories) == 3
    assert directories == sorted(directories), "the map first, then ever smaller overviews"
    assert max(directories) < min(map(min, tiles)), "all directories before all pixels"
    assert all(min(coarse) < min(fine) for fine, coarse in pairwise(tiles)), "the coarsest pixels first"


def test_overviews_of_numbers_are_means_and_of_classes_classes(tmp_path):
    classes = np.tile(np.array([0, 0, 0, 9], dtype=np.uint8), (1200, 300))
    with rasterio.open(to_geotiff(made(classes), tmp_path / "c.tif")) as file:
        assert set(np.unique(file.read(1, out_shape=(600, 600)))) <= {0, 9}
    with rasterio.open(to_geotiff(made(classes.astype(np.float32)), tmp_path / "f.tif")) as file:
        np.testing.assert_allclose(file.read(1, out_shape=(600, 600)), np.tile([0, 4.5], (600, 300)))


# Classes -------------------------------------------------------------------------------------------------------------


def test_a_prediction_carries_its_legend(pred, tmp_path):
    folder = tmp_path / "out"
    path = pred.tessera.to_geotiff(folder / "map.tif")
    shown = pred["prediction"]
    with rasterio.open(path) as file:
        np.testing.assert_array_equal(file.read(1), shown)
        assert file.nodata == 0
        assert file.descriptions == ("predicted class",)
        table = file.colormap(1)
        assert table[0] == (0, 0, 0, 0), "no data is clear"
        for code, colour in zip((1, 2), shown.attrs["flag_colors"].split(), strict=True):
            assert "#{:02x}{:02x}{:02x}".format(*table[code][:3]) == colour
            assert table[code][3] == 255
        assert file.tags(1)["flag_values"] == "1 2"
        assert file.tags(1)["flag_meanings"] == shown.attrs["flag_meanings"]
        assert file.tags(1)["flag_colors"] == shown.attrs["flag_colors"]
        assert file.tags()["head"] == "logistic"
    assert sorted(p.name for p in folder.iterdir()) == ["map.tif", "map.tif.aux.xml"]
    seen = through_gdal(path)
    assert categories(seen) == ["", *pred["class"].values]
    table = [row.findall("F") for row in seen.iter("Row")]
    assert [[cell.text for cell in row[:2]] for row in table] == [
        [str(i + 1), n] for i, n in enumerate(pred["class"].values)
    ]
    assert [cell.text for cell in table[1][2:]] == [str(part) for part in (255, 127, 14)]


def test_clusters_with_noise_and_masked_classes(caldor, pred, tmp_path):
    clusters = caldor.sel(time=2024).tessera.cluster(3)
    noise = {"flag_values": np.array([1, 2, 3, 255], np.uint8), "flag_colors": "#ff0000 #00ff00 #0000ff #c8c8c8"}
    noisy = clusters.copy(data=np.where(clusters == 3, 255, clusters).astype(np.uint8))
    noisy.attrs |= noise | {"flag_meanings": "cluster_1 cluster_2 cluster_3 noise"}
    with rasterio.open(to_geotiff(noisy, tmp_path / "a" / "n.tif")) as file:
        assert file.colormap(1)[255] == (200, 200, 200, 255)
    names = categories(through_gdal(tmp_path / "a" / "n.tif"))
    assert (len(names), names[3], names[4], names[255]) == (256, "cluster 3", "", "noise")
    masked = pred.prediction.where(pred.confidence > 0.9)
    assert masked.dtype.kind == "f"
    with rasterio.open(to_geotiff(masked, tmp_path / "m.tif")) as file:
        assert (file.dtypes[0], file.nodata) == ("uint8", 0)
        np.testing.assert_array_equal(file.read(1), masked.fillna(0))
        assert file.colorinterp[0].name == "palette"
    with pytest.raises(SchemaError, match="other numbers than codes; drop the attribute"):
        to_geotiff(
            masked + 0.5 if (masked + 0.5).attrs else (masked + 0.5).assign_attrs(masked.attrs), tmp_path / "x.tif"
        )
    assert not (tmp_path / "x.tif").exists()


def test_years_of_classes_are_bands(caldor, tmp_path):
    clusters = caldor.sel(time=[2020, 2024]).tessera.cluster(3)
    path = to_geotiff(clusters, tmp_path / "a" / "c.tif")
    with rasterio.open(path) as file:
        assert file.descriptions == ("time 2020", "time 2024")
        assert file.tags(2)["flag_meanings"] == "cluster_1 cluster_2 cluster_3"
    assert categories(through_gdal(path)) == ["", "cluster 1", "cluster 2", "cluster 3"] * 2


def test_what_an_earlier_file_left_beside_goes_with_it(pred, tmp_path):
    path = to_geotiff(pred, tmp_path / "map.tif")
    assert (tmp_path / "map.tif.aux.xml").exists()
    to_geotiff(pred.confidence, path)
    assert [p.name for p in tmp_path.iterdir()] == ["map.tif"]


def test_legends_that_do_not_fit():
    with pytest.raises(SchemaError, match="flag_meanings has 1 words for 2 flag_values"):
        read_legend({"flag_values": [1, 2], "flag_meanings": "one"})
    with pytest.raises(SchemaError, match="flag_colors has 1 words for 2 flag_values"):
        read_legend({"flag_values": [1, 2], "flag_meanings": "one two", "flag_colors": "#ffffff"})
    with pytest.raises(SchemaError, match=r"flag_colors holds .*give colours as #rrggbb"):
        read_legend({"flag_values": [1], "flag_meanings": "one", "flag_colors": "reddish"})
    assert read_legend({"flag_meanings": "one"}) is None
    plain = read_legend({"flag_values": np.array([3]), "flag_meanings": "a_b"})
    assert plain is not None
    assert (plain.names, plain.palette) == (("a b",), {})


def test_more_than_255_classes(tmp_path):
    codes = np.arange(400, dtype=np.uint16).reshape(20, 20)
    names = " ".join(f"class_{i}" for i in range(1, 400))
    colours = " ".join(f"#{i:06x}" for i in range(1, 400))
    flags = {"flag_values": np.arange(1, 400), "flag_meanings": names, "flag_colors": colours, "nodata": 0}
    path = to_geotiff(made(codes, **flags), tmp_path / "a" / "many.tif")
    with rasterio.open(path) as file:
        np.testing.assert_array_equal(file.read(1), codes)
        assert file.colormap(1)[399] == (0, 1, 143, 255)
    seen = through_gdal(path)
    assert "class 399" in [cell.text for cell in seen.iter("F")]
    assert categories(seen) == []


# Whole or not at all, and what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["_write_strip", "_optimise"])
def test_an_existing_file_is_replaced_whole_or_not_at_all(step, pred, tmp_path, monkeypatch):
    path = to_geotiff(pred, tmp_path / "map.tif")
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def failing(*_: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(geotiff, step, failing)
        with pytest.raises(OSError, match="disk full"):
            to_geotiff(pred.confidence, path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    to_geotiff(pred.confidence, path)
    with rasterio.open(path) as file:
        np.testing.assert_array_equal(file.read(1), pred.confidence)


def test_what_a_geotiff_cannot_hold(emb, make_cube, weights, tmp_path):
    years = txr.embed(make_cube(8), weights, period=[2019, 2020], device="cpu")
    no = tmp_path / "no.tif"
    with pytest.raises(
        SchemaError,
        match=r"dimensions \('time', 'band', 'y', 'x'\); choose one step, .*sel\(time=2020\), or write a file for each",
    ):
        to_geotiff(years, no)
    with pytest.raises(SchemaError, match=r"sel\(time='2020-01-01'\)"):
        to_geotiff(years.assign_coords(time=np.array(["2019-01-01", "2020-01-01"], "datetime64[ns]")), no)
    to_geotiff(years.sel(time=2020), tmp_path / "yes.tif")
    with pytest.raises(SchemaError, match=r"choose one step, for example .isel\(s2_time=0\)"):
        to_geotiff(make_cube(8).s2, no)
    with pytest.raises(GridError, match="no spatial dimensions"):
        to_geotiff(emb.embeddings.isel(x=0), no)
    with pytest.raises(GridError, match="no CRS"):
        to_geotiff(xr.DataArray(np.zeros((2, 2)), {"y": [2, 1], "x": [1, 2]}, ("y", "x")), no)
    with pytest.raises(SchemaError, match=r"maps \(y, x\) of one type to be written; choose one of \['s2', "):
        to_geotiff(make_cube(8), no)
    with pytest.raises(SchemaError, match=r"when holds datetime64.*turn it into numbers"):
        to_geotiff(made(np.zeros((2, 2), "datetime64[ns]"), "when"), no)
    with pytest.raises(SchemaError, match="is an address; write to a local path"):
        to_geotiff(emb, "s3://bucket/emb.tif")
    assert [p.name for p in tmp_path.iterdir()] == ["yes.tif"]


def test_a_folder_is_no_file(tmp_path, emb):
    with pytest.raises(SchemaError, match="is a folder; give the name of a file"):
        to_geotiff(emb, tmp_path)
