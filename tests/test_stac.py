"""Cubes from STAC catalogues: real clients against a real server on the loopback."""

from __future__ import annotations

import pickle
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import xarray as xr
from odc.geo.geobox import GeoBox

pytest.importorskip("odc.stac")
pytest.importorskip("pystac_client")
pytest.importorskip("planetary_computer")

from stac_server import StacServer, serve_stac

import tessera_xr  # noqa: F401 - registers the accessor
from tessera_xr.area import utm_geobox
from tessera_xr.errors import CubeError, GridError, MissingExtraError, SchemaError, StoreError, TesseraWarning
from tessera_xr.grid import geobox_of
from tessera_xr.sentinel import reading, searching, stac
from tessera_xr.sentinel.addresses import public_url, redacted, url_fault
from tessera_xr.sentinel.bands import S2_BANDS
from tessera_xr.sentinel.catalogues import Catalogue, resolve_catalogue
from tessera_xr.sentinel.cube import as_cube
from tessera_xr.sentinel.scenes import newest
from tessera_xr.sentinel.stac import load_cube, search_scenes

SIZE = 32
GRID = GeoBox.from_bbox((500_000, 5_650_000, 500_320, 5_650_320), crs="EPSG:32631", resolution=10)
AREA = (3.001, 51.002, 3.003, 51.004)
"""Within the grid."""
DAYS = ("2021-02-03", "2021-04-14", "2021-05-24", "2021-06-13", "2021-09-11", "2021-12-20")
RAW_DAYS = ("2022-01-24", "2022-02-03", "2022-04-14", "2022-06-13", "2022-09-11", "2022-12-20")

TWENTY_METRES = ("B05", "B06", "B07", "B8A", "B11", "B12", "SCL")


@pytest.fixture(autouse=True)
def _hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Patience is tried without the waiting."""
    monkeypatch.setattr(reading, "WAIT", 0.01)
    monkeypatch.setattr(searching, "BACKOFF", 0.01)
    options = {**reading.GDAL_OPTIONS, "GDAL_HTTP_MAX_RETRY": "0", "GDAL_HTTP_TIMEOUT": "3"}
    monkeypatch.setattr(reading, "GDAL_OPTIONS", options)


@pytest.fixture
def earth_search(tmp_path: Path) -> Iterator[StacServer]:
    with serve_stac(tmp_path, "earth-search") as stac:
        yield stac


@pytest.fixture
def planetary(tmp_path: Path) -> Iterator[StacServer]:
    with serve_stac(tmp_path, "planetary-computer") as stac:
        yield stac


@pytest.fixture
def optical() -> Callable[..., dict[str, np.ndarray]]:
    """Make the bands of one scene, reflectance x 10,000 without any offset, clear but for a few clouds."""

    def made(seed: int = 0, size: int = SIZE, cloud: int | None = 9) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(seed)
        bands = {band: rng.integers(150, 4000, (size, size)).astype(np.uint16) for band in S2_BANDS}
        bands["B04"][: size // 2] = rng.integers(200, 600, (size // 2, size))  # vegetation is dark in red
        codes = np.full((size, size), 4, np.uint8)
        if cloud is not None:
            codes[rng.random((size, size)) < 0.2] = cloud
        bands["SCL"] = codes
        return {name: _coarse(band) if name in TWENTY_METRES else band for name, band in bands.items()}

    return made


@pytest.fixture
def radar() -> Callable[..., dict[str, np.ndarray]]:
    """Make VV and VH of one scene, linear power, one corner missing."""

    def made(seed: int = 0, size: int = SIZE) -> dict[str, np.ndarray]:
        vv = (10 ** (np.random.default_rng(seed + 100).normal(-1.0, 0.15, (size, size)))).astype(np.float32)
        vv[:3, :3] = np.nan
        return {"VV": vv, "VH": (vv / 5).astype(np.float32)}

    return made


def _coarse(band: np.ndarray) -> np.ndarray:
    """Return a band as 20 m pixels repeated."""
    return band[::2, ::2].repeat(2, axis=0).repeat(2, axis=1)


def _raw(bands: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return bands with the offset put in, as ESA delivers them from baseline 04.00 on."""
    return {name: band if name == "SCL" else band + np.uint16(1000) for name, band in bands.items()}


def _dataset(scenes: list[dict[str, np.ndarray]], days: tuple[str, ...], **coords: Any) -> xr.Dataset:
    """Return scenes in memory as one Dataset on `GRID`."""
    dims = ("time", "y", "x")
    arrays = {name: (dims, np.stack([scene[name] for scene in scenes])) for name in scenes[0]}
    times = np.array([f"{day}T10:50:00" for day in days], "datetime64[ns]")
    y, x = (GRID.coordinates[dim].values for dim in ("y", "x"))
    return xr.Dataset(arrays, {"time": times, "y": y, "x": x} | coords).odc.assign_crs("EPSG:32631")


def _fill(stac: StacServer, scenes: list[dict[str, np.ndarray]], days: tuple[str, ...], **kwargs: Any) -> None:
    for number, (scene, day) in enumerate(zip(scenes, days, strict=True)):
        stac.add_s2(f"S2_{number}", f"{day}T10:50:00Z", scene, GRID, **kwargs)


def _load(stac: StacServer, year: int = 2021, **kwargs: Any) -> xr.Dataset:
    """Load on `GRID`, Sentinel-2 only unless told otherwise."""
    options: dict[str, Any] = {"s1": False, "like": GRID, "progress": False} | kwargs
    return load_cube(None, year, options.pop("source", stac.catalogue), **options)


# ------------------------------------------------------------------------------------------------- the whole way


def test_a_cube_from_the_server_equals_the_same_arrays_in_memory_and_so_do_its_embeddings(planetary, optical, radar):
    scenes, backscatter = [optical(i) for i in range(6)], [radar(i) for i in range(6)]
    _fill(planetary, scenes, DAYS, baseline="03.01")
    orbits = ["ascending", "descending"] * 3
    for number, (scene, day, orbit) in enumerate(zip(backscatter, DAYS, orbits, strict=True)):
        planetary.add_s1(f"S1_{number}", f"{day}T10:50:00Z", scene, GRID, orbit)
    planetary.server.clear()
    cube = _load(planetary, s1=True)
    assert not [path for _, path, _ in planetary.server.requests if path.endswith(".tif")], "a pixel was read early"
    truth = as_cube(
        _dataset(scenes, DAYS, **{"s2:processing_baseline": ("time", ["03.01"] * 6)}),
        _dataset(backscatter, DAYS, orbit_state=("time", orbits)),
        source="planetary-computer",
        s1_units="power",
    )
    assert cube.s2.chunks is not None
    assert cube.attrs["source"] == "planetary-computer"
    for name in ("s2", "s2_valid", "s1"):
        xr.testing.assert_equal(cube[name].compute(), truth[name])
    ours, theirs = (c.tessera.embed("mini", period=2021, progress=False).compute() for c in (cube, truth))
    np.testing.assert_allclose(ours.embeddings, theirs.embeddings, atol=1e-5)
    assert np.isfinite(ours.embeddings.values).all()
    np.testing.assert_array_equal(ours.s2_obs_count, theirs.s2_obs_count)


def test_real_imagery_comes_back_as_it_went(planetary, flanders):
    s2, s1 = flanders(2018)
    s2, s1 = s2.isel(y=slice(0, SIZE), x=slice(0, SIZE)), s1.isel(y=slice(0, SIZE), x=slice(0, SIZE))
    s2, s1 = s2.isel(time=slice(20, 116, 8)), s1.isel(time=slice(20, 140, 10))
    scenes = [
        {n: (_coarse(s2[n].values[i]) if n in TWENTY_METRES else s2[n].values[i]) for n in (*S2_BANDS, "SCL")}
        for i in range(s2.sizes["time"])
    ]
    power = [{n: 10 ** (s1[n].values[i] / 10) for n in ("VV", "VH")} for i in range(s1.sizes["time"])]
    days, radar_days = (tuple(ds["time"].values.astype("datetime64[D]").astype(str)) for ds in (s2, s1))
    _fill(planetary, scenes, days, baseline="02.07")
    for number, (scene, day) in enumerate(zip(power, radar_days, strict=True)):
        planetary.add_s1(f"S1_{number}", f"{day}T10:50:00Z", scene, GRID)
    cube = load_cube(None, (days[0], days[-1]), planetary.catalogue, like=GRID, progress=False)
    truth = as_cube(
        _dataset(scenes, days),
        _dataset(power, radar_days),
        orbit="ascending",
        s1_units="power",
        period=(days[0], days[-1]),
    )
    for name in ("s2", "s2_valid", "s1"):
        xr.testing.assert_equal(cube[name].compute(), truth[name])
    ours, theirs = (c.tessera.embed("mini", progress=False).compute().embeddings for c in (cube, truth))
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_the_public_words_work(planetary, optical):
    _fill(planetary, [optical()], DAYS[:1], baseline="03.01")
    cube = load_cube(AREA, 2021, source=planetary.catalogue, s1=False, progress=False)
    assert "planetary-computer" in str(cube.tessera)


# ------------------------------------------------------------------------------------------------------ offsets


@pytest.mark.parametrize("style", ["earth-search", "planetary-computer"])
def test_the_offset_is_right_before_and_after_it_came(tmp_path, optical, style):
    """The same land on both sides of 2022-01-25: the cube must not show which baseline it was."""
    scenes = [optical(i) for i in range(6)]
    with serve_stac(tmp_path, style) as stac:
        for number, (scene, day) in enumerate(zip(scenes, RAW_DAYS, strict=True)):
            old = day < "2022-01-25"
            raw = style == "planetary-computer" and not old
            flag = None if style == "planetary-computer" else not old
            stac.add_s2(
                f"S2_{number}",
                f"{day}T10:50:00Z",
                _raw(scene) if raw else scene,
                GRID,
                "03.01" if old else "04.00",
                flag=flag,
            )
        cube = _load(stac, 2022).compute()
    xr.testing.assert_equal(cube.s2.drop_attrs(), _truth(scenes, RAW_DAYS))
    assert ("1000 subtracted on 5 of 6 dates" in cube.attrs["s2_offset"]) is (style == "planetary-computer")


def _truth(scenes: list[dict[str, np.ndarray]], days: tuple[str, ...]) -> xr.DataArray:
    return as_cube(_dataset(scenes, days), offset=0).s2.drop_attrs()


def test_old_imagery_of_a_new_baseline_has_the_offset_too(planetary, optical):
    """ESA processed its archive anew: the date of the image says nothing, the baseline does."""
    scene = optical()
    planetary.add_s2("S2", "2018-06-01T10:50:00Z", _raw(scene), GRID, "05.00")
    xr.testing.assert_equal(_load(planetary, 2018).compute().s2.drop_attrs(), _truth([scene], ("2018-06-01",)))


@pytest.mark.parametrize("really_raw", [True, False])
def test_pixels_settle_what_earth_search_gets_wrong(earth_search, optical, really_raw):
    """Its items deny the removal of the offset, some of them wrongly: the same flag, two truths."""
    scene = optical()
    earth_search.add_s2("S2", "2022-06-13T10:50:00Z", _raw(scene) if really_raw else scene, GRID, "04.00", flag=False)
    cube = _load(earth_search, 2022)
    xr.testing.assert_equal(cube.s2.compute().drop_attrs(), _truth([scene], ("2022-06-13",)))
    assert ("deny" in cube.attrs["assumptions"]) is not really_raw


def test_a_rule_of_ones_own(planetary, optical):
    scenes = [optical(1), optical(2)]
    _fill(planetary, scenes, ("2023-02-01", "2023-03-01"), baseline=None)
    with pytest.raises(CubeError, match="offset=1000"):
        _load(planetary, 2023, source=replace(planetary.catalogue, name="elsewhere"))
    removed = replace(planetary.catalogue, name="elsewhere", offset="removed")
    for cube in (_load(planetary, 2023, source=removed), _load(planetary, 2023, offset=0)):
        xr.testing.assert_equal(cube.s2.compute().drop_attrs(), _truth(scenes, ("2023-02-01", "2023-03-01")))


# --------------------------------------------------------------------------------------------------------- grids


def test_without_a_grid_it_is_that_of_published_embeddings(planetary, optical):
    scene = optical()
    planetary.add_s2("S2", "2021-06-01T10:50:00Z", scene, GRID, "03.01")
    cube = load_cube(AREA, 2021, planetary.catalogue, s1=False, progress=False).compute()
    box = geobox_of(cube)
    assert box == utm_geobox(AREA)
    assert box.crs == "EPSG:32631"
    assert (np.array(box.boundingbox.bbox) % 10 == 0).all()
    whole = _load(planetary).compute()
    xr.testing.assert_equal(cube.s2, whole.s2.sel(y=cube.y, x=cube.x))


def test_like_gives_the_grid_whatever_it_is(planetary, optical):
    scene = optical(cloud=None)
    planetary.add_s2("S2", "2021-06-01T10:50:00Z", scene, GRID, "03.01")
    whole = _load(planetary).compute()
    raster = xr.DataArray(np.zeros((8, 8)), dims=("y", "x"), coords={"y": whole.y[4:12], "x": whole.x[10:18]})
    part = _load(planetary, like=raster.odc.assign_crs("EPSG:32631")).compute()
    xr.testing.assert_equal(part.s2, whole.s2[:, :, 4:12, 10:18])
    coarse = _load(planetary, like=GRID.zoom_out(2)).compute()
    assert coarse.sizes["x"] == SIZE // 2
    np.testing.assert_array_equal(coarse.s2.sel(s2_band="B12"), whole.s2.sel(s2_band="B12")[:, ::2, ::2])
    degrees = GeoBox.from_bbox((3.0005, 51.002, 3.003, 51.004), crs="EPSG:4326", resolution=0.0001)
    lonlat = _load(planetary, like=degrees).compute()
    assert (lonlat.s2.values == whole.s2.odc.reproject(degrees).values).mean() > 0.99


def test_chunks_change_nothing_even_across_zones(planetary, optical):
    scene = optical(cloud=None)
    planetary.add_s2("S2", "2021-06-01T10:50:00Z", scene, GRID, "03.01")
    other = GeoBox.from_bbox(GRID.extent.to_crs("EPSG:32630").boundingbox.bbox, crs="EPSG:32630", resolution=10)
    cubes = [_load(planetary, like=other, chunks=n).compute() for n in (-1, 16)]
    xr.testing.assert_identical(*cubes)
    assert (cubes[0].s2 != 0).any()


def test_the_south_lies_on_the_northern_zone(planetary, optical):
    """Published embeddings use EPSG:326NN with negative northings; Sentinel-2 tiles of the south are EPSG:327NN."""
    scene = optical()
    south = GeoBox.from_bbox((500_000, 6_200_000, 500_320, 6_200_320), crs="EPSG:32755", resolution=10)
    planetary.add_s2("S2", "2021-06-01T00:20:00Z", scene, south, "03.01")
    area = south.extent.to_crs("EPSG:4326").buffer(-0.0003).geom
    cube = load_cube(area, 2021, planetary.catalogue, s1=False, progress=False).compute()
    box = geobox_of(cube)
    assert box.crs == "EPSG:32655"
    top, left = round((6_200_320 - 10_000_000 - box.boundingbox.top) / 10), round((box.boundingbox.left - 500_000) / 10)
    rows, columns = slice(top, top + box.shape[0]), slice(left, left + box.shape[1])
    for number, band in enumerate(S2_BANDS):
        np.testing.assert_array_equal(cube.s2.values[0, number], scene[band][rows, columns])


def test_two_tiles_in_two_zones_make_one_map(planetary, optical):
    """The eastern half is in the tile of the next UTM zone only."""
    west = GeoBox.from_bbox((732_000, 5_650_000, 732_320, 5_650_320), crs="EPSG:32631", resolution=10)
    wide = GeoBox.from_bbox((732_000, 5_650_000, 732_640, 5_650_320), crs="EPSG:32631", resolution=10)
    corner = wide.extent.to_crs("EPSG:32632").boundingbox
    bounds = [np.floor(v / 20) * 20 for v in corner.bbox[:2]] + [np.ceil(v / 20) * 20 for v in corner.bbox[2:]]
    east = GeoBox.from_bbox(tuple(bounds), crs="EPSG:32632", resolution=10)
    first = optical(1, cloud=None)
    second = {name: np.full(east.shape, 4 if name == "SCL" else 777) for name in first}
    planetary.add_s2("A", "2021-06-01T10:50:00Z", first, west, "03.01", tile="31UGS")
    planetary.add_s2("B", "2021-06-01T10:50:04Z", second, east, "03.01", tile="32ULB")
    cube = _load(planetary, like=wide).compute()
    assert cube.sizes["s2_time"] == 1
    np.testing.assert_array_equal(cube.s2.sel(s2_band="B04").values[0, :, :SIZE], first["B04"])
    assert (cube.s2.values[0, :, 2:-2, SIZE:] == 777).all()
    assert cube.s2_valid.values[0, 2:-2].all()


# ------------------------------------------------------------------------------------------------- mosaics, filters


def test_a_day_is_one_step_of_the_first_clear_scene(planetary, optical):
    clear, cloudy = optical(1, cloud=None), optical(2, cloud=None)
    cloudy["SCL"] = cloudy["SCL"].copy()
    cloudy["SCL"][:, : SIZE // 2] = 9
    planetary.add_s2("A", "2021-06-01T10:50:00Z", cloudy, GRID, "03.01", tile="31UES")
    planetary.add_s2("B", "2021-06-01T10:50:09Z", clear, GRID, "03.01", tile="31UDS")
    cube = _load(planetary).compute()
    assert cube.sizes["s2_time"] == 1
    red = cube.s2.sel(s2_band="B04").values[0]
    np.testing.assert_array_equal(red[:, : SIZE // 2], clear["B04"][:, : SIZE // 2])
    np.testing.assert_array_equal(red[:, SIZE // 2 :], cloudy["B04"][:, SIZE // 2 :])


def test_days_are_joined_by_the_rule_of_as_cube(planetary, optical, radar):
    """Scenes with holes and clouds wherever: the join while reading is that of `as_cube` in memory."""
    rng = np.random.default_rng(3)
    scenes, backscatter = [optical(i) for i in range(4)], [radar(i) for i in range(4)]
    for scene, powers in zip(scenes, backscatter, strict=True):
        hole = _coarse(rng.random((SIZE, SIZE)) < 0.4)
        codes = _coarse(rng.choice([0, 3, 4, 5, 9, 11], (SIZE, SIZE)))
        for name in S2_BANDS:
            scene[name] = np.where(hole, 0, scene[name])
        scene["SCL"] = codes
        for name in powers:
            holes = rng.random((SIZE, SIZE)) < 0.3
            powers[name] = np.where(holes, np.float32(rng.choice([np.nan, -1e-4])), powers[name])
    days = (DAYS[0], DAYS[0], DAYS[0], DAYS[1])
    _fill(planetary, scenes, days, baseline="03.01")
    for number, (powers, day) in enumerate(zip(backscatter, days, strict=True)):
        planetary.add_s1(f"S1_{number}", f"{day}T10:50:00Z", powers, GRID)
    cube = _load(planetary, s1=True, chunks=16).compute()
    truth = as_cube(_dataset(scenes, days), _dataset(backscatter, days), offset=0, orbit="ascending", s1_units="power")
    assert cube.sizes["s2_time"] == cube.sizes["s1_time"] == 2
    for name in ("s2", "s2_valid", "s1"):
        xr.testing.assert_equal(cube[name].drop_attrs(), truth[name].drop_attrs())


def test_a_day_of_two_baselines_is_joined_after_the_offset_is_gone(planetary, optical):
    first, second = optical(1, cloud=None), optical(2, cloud=None)
    first["SCL"] = first["SCL"].copy()
    first["SCL"][:, : SIZE // 2] = 9
    planetary.add_s2("A", f"{DAYS[0]}T10:50:00Z", first, GRID, "03.01", tile="31UES")
    planetary.add_s2("B", f"{DAYS[0]}T10:50:00Z", _raw(second), GRID, "04.00", tile="31UDS")
    cube = _load(planetary).compute()
    xr.testing.assert_equal(cube.s2.drop_attrs(), _truth([first, second], (DAYS[0], DAYS[0])))


def test_radar_in_decibels_from_a_catalogue_of_ones_own(planetary, radar):
    power = radar()
    power["VV"][5, 5] = 1.0  # 0 dB, which is data
    decibels = {name: 10 * np.log10(values) for name, values in power.items()}
    planetary.add_s1("S1", f"{DAYS[0]}T05:50:00Z", decibels, GRID)
    with pytest.warns(TesseraWarning, match="Sentinel-1 only"):
        cube = _load(planetary, source=replace(planetary.catalogue, s1_units="db"), s1=True).compute()
    truth = as_cube(None, _dataset([decibels], (DAYS[0],)), orbit="ascending", s1_units="db")
    np.testing.assert_array_equal(cube.s1.values, truth.s1.values)


def test_radar_of_a_day_is_joined_by_orbit(planetary, radar):
    north, south, other = radar(1), radar(2), radar(3)
    north["VV"][SIZE // 2 :] = north["VH"][SIZE // 2 :] = np.nan
    for name, scene, second, orbit in (("N", north, "00", "descending"), ("S", south, "25", "descending")):
        planetary.add_s1(name, f"2021-06-01T05:50:{second}Z", scene, GRID, orbit)
    planetary.add_s1("E", "2021-06-01T17:20:00Z", other, GRID, "ascending")
    with pytest.warns(TesseraWarning, match="Sentinel-1 only"):
        cube = _load(planetary, s1=True).compute()
    assert cube.s1_orbit.values.tolist() == ["descending", "ascending"]
    truth = as_cube(None, _dataset([south], ("2021-06-01",)), orbit="descending", s1_units="power").s1
    np.testing.assert_array_equal(cube.s1.values[0, :, SIZE // 2 :], truth.values[0, :, SIZE // 2 :])
    assert (cube.s1.values[0, :, 4 : SIZE // 2] != truth.values[0, :, 4 : SIZE // 2]).mean() > 0.9


def test_a_later_baseline_replaces_the_earlier_and_halves_of_a_pass_are_kept(planetary, optical):
    for name, moment, baseline in (
        ("old", "10:50:00", "02.14"),
        ("new", "10:50:01", "05.00"),
        ("cut", "10:50:02", "05.00"),
    ):
        planetary.add_s2(name, f"2021-06-01T{moment}Z", optical(), GRID, baseline)
    for name, moment, baseline in (("young", "10:50:00", "05.00"), ("aged", "10:50:03", "02.14")):
        planetary.add_s2(name, f"2021-06-01T{moment}Z", optical(), GRID, baseline, tile="31UDS")
    planetary.add_s2("next-pass", "2021-06-01T12:30:00Z", optical(), GRID, "02.14")
    planetary.add_s2("other-satellite", "2021-06-01T10:50:00Z", optical(), GRID, "02.14", platform="sentinel-2b")
    found = search_scenes(None, 2021, planetary.catalogue, s1=False, like=GRID, progress=False)
    assert sorted(scene.id for scene in found.s2) == ["cut", "new", "next-pass", "other-satellite", "young"]
    assert newest(reversed(found.s2)) == list(found.s2)


def test_clouds_are_left_out_and_said_so(planetary, optical):
    for number, cover in enumerate((5.0, 60.0, 61.0)):
        planetary.add_s2(
            f"S2_{number}", f"2021-06-0{number + 1}T10:50:00Z", optical(), GRID, "03.01", cloud_cover=cover
        )
    found = search_scenes(None, 2021, planetary.catalogue, s1=False, like=GRID, max_cloud_cover=60, progress=False)
    assert [scene.cloud_cover for scene in found.s2] == [5, 60]
    assert "1 Sentinel-2 scenes with more than 60 % clouds" in str(found)


@pytest.mark.parametrize("style", ["earth-search", "planetary-computer"])
def test_all_pages_are_read(tmp_path, optical, style):
    with serve_stac(tmp_path, style) as stac:
        stac.page = 2
        _fill(stac, [optical()] * 6, DAYS, baseline="03.01")
        stac.add_s2("next-year", "2022-01-01T00:00:00Z", optical(), GRID, "03.01")
        found = search_scenes(None, 2021, stac.catalogue, s1=False, like=GRID, progress=False)
    assert len(found.s2) == 6
    assert len(stac.searches) == 3


def test_the_summary_counts_what_will_be_read(planetary, optical, radar):
    _fill(planetary, [optical()] * 6, DAYS, baseline="03.01")
    planetary.add_s2("twin", f"{DAYS[0]}T10:50:09Z", optical(), GRID, "04.00", tile="31UDS")
    for number, orbit in enumerate(("ascending", "ascending", "descending")):
        planetary.add_s1(f"S1_{number}", f"2021-06-0{number + 1}T05:50:00Z", radar(), GRID, orbit)
    planetary.server.clear()
    found = search_scenes(None, 2021, planetary.catalogue, like=GRID, progress=False)
    text = str(found)
    for words in (
        "10 scenes from planetary-computer, 2021-01-01/2021-12-31",
        "7 scenes on 6 dates, 2021-02-03 to 2021-12-20",
        "3 scenes on 3 dates, 2021-06-01 to 2021-06-03 (2 ascending, 1 descending)",
        "1000 subtracted on 1 of 7 scenes",
        "83 files",
        "if 20 MB arrive a second",
    ):
        assert words in text
    assert repr(found) == text
    assert not [path for _, path, _ in planetary.server.requests if path.endswith(".tif")]


# -------------------------------------------------------------------------------------------------------- faults


@pytest.mark.parametrize("kind", ["500", "503", "429", "reset", "truncate", "wrong", "slow"])
def test_a_read_that_fails_is_tried_again(planetary, optical, kind):
    scenes = [optical(i) for i in range(3)]
    _fill(planetary, scenes, DAYS[:3], baseline="03.01")
    planetary.server.slow_seconds = 4  # longer than is waited for
    planetary.server.fault(r"S2_1_B0\d\.tif", kind, 3)
    found = search_scenes(None, 2021, planetary.catalogue, s1=False, like=GRID, progress=False)
    xr.testing.assert_equal(found.load(progress=False).s2.compute().drop_attrs(), _truth(scenes, DAYS[:3]))
    assert found.failures == {}
    assert [path for _, path, _ in planetary.server.requests].count("/files/S2_1_B02.tif") > 1


@pytest.mark.parametrize("kind", ["500", "reset", "truncate", "wrong", "404"])
def test_a_scene_that_cant_be_read_is_no_data_and_named(planetary, optical, kind):
    """One band of one scene is lost: the scene counts as unseen in all its bands, the others are whole."""
    scenes = [optical(i) for i in range(3)]
    _fill(planetary, scenes, DAYS[:3], baseline="03.01")
    planetary.server.fault(r"S2_1_B11\.tif", kind, float("inf"))
    found = search_scenes(None, 2021, planetary.catalogue, s1=False, like=GRID, progress=False)
    cube = found.load(progress=False)
    with pytest.warns(TesseraWarning, match="scene S2_1 could not be read"):
        read = cube.compute()
    assert set(found.failures) == {"S2_1"}
    assert not read.s2_valid.values[1].any()
    assert (read.s2.values[1] == 0).all()
    truth = _truth(scenes, DAYS[:3]).values
    np.testing.assert_array_equal(read.s2.values[[0, 2]], truth[[0, 2]])
    tries = [path for _, path, _ in planetary.server.requests].count("/files/S2_1_B11.tif")
    assert tries == 1 if kind == "404" else tries >= reading.ATTEMPTS
    planetary.server.clear()  # and once the server is well again, so is the scene
    np.testing.assert_array_equal(cube.s2.compute().values, truth)
    assert found.failures == {}


def test_an_outage_stops_the_computation(planetary, optical, monkeypatch):
    scenes = [optical(i) for i in range(6)]
    _fill(planetary, scenes, DAYS, baseline="03.01")
    cube = _load(planetary)
    planetary.server.fault(r"\.tif", "500", float("inf"))
    with pytest.warns(TesseraWarning), pytest.raises(StoreError, match=r"of 6 Sentinel-2 scenes could not be read"):
        cube.compute()
    planetary.server.clear()
    np.testing.assert_array_equal(cube.s2.compute().values, _truth(scenes, DAYS).values)


def test_most_scenes_gone_stops_it_too(planetary, optical):
    _fill(planetary, [optical(i) for i in range(4)], DAYS[:4], baseline="03.01")
    planetary.server.fault(r"S2_[012]_B11", "404", float("inf"))
    with pytest.warns(TesseraWarning), pytest.raises(StoreError, match="3 of 4"):
        _load(planetary).compute(scheduler="synchronous")


def test_a_block_that_fails_leaves_the_other_blocks_alone(planetary, optical, monkeypatch):
    _fill(planetary, [optical(i) for i in range(3)], DAYS[:3], baseline="03.01")
    read = reading._read

    def half(path: str, grid: GeoBox | None, *args: Any) -> Any:
        if "S2_1_B11" in path and grid is not None and grid.boundingbox.left > 500_100:
            raise OSError("no")
        return read(path, grid, *args)

    monkeypatch.setattr(reading, "_read", half)
    with pytest.warns(TesseraWarning, match="S2_1"):
        cube = _load(planetary, chunks={"x": 16, "y": -1}).compute()
    assert (cube.s2.values[1, :, :, :16] != 0).all()
    assert (cube.s2.values[1, :, :, 16:] == 0).all()


def test_search_survives_faults_and_gives_up_clearly(planetary, optical):
    _fill(planetary, [optical()], DAYS[:1], baseline="03.01")
    for kind in ("503", "reset", "500"):
        planetary.server.fault("/stac", kind, 1)
    assert _load(planetary).sizes["s2_time"] == 1
    for kind, words in (("500", "could not be searched"), ("404", "404|fault"), ("wrong", "could not be searched")):
        planetary.server.clear()
        planetary.server.fault("/stac", kind, float("inf"))
        with pytest.raises(StoreError, match=words):
            _load(planetary)


def test_a_network_that_is_down_is_told_quickly(planetary):
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        nobody = sock.getsockname()[1]
    start = time.perf_counter()
    with pytest.raises(StoreError, match="could not be searched"):
        _load(planetary, source=replace(planetary.catalogue, url=f"http://127.0.0.1:{nobody}/stac"))
    assert time.perf_counter() - start < 20


# ---------------------------------------------------------------------------------------------------- signatures


def test_files_are_signed_when_they_are_read_and_signatures_stay_secret(planetary, optical, monkeypatch, caplog):
    """Planetary Computer's own client, against a token service on the loopback; the server refuses old tokens."""
    scenes = [optical(i) for i in range(3)]
    _fill(planetary, scenes, DAYS[:3], baseline="03.01")
    planetary.require_tokens(monkeypatch)
    caplog.set_level("DEBUG")
    source = replace(planetary.catalogue, sign="planetary-computer")
    found = search_scenes(None, 2021, source, s1=False, like=GRID, progress=False)
    cube = found.load(progress=False)
    assert planetary.tokens == 0
    np.testing.assert_array_equal(cube.s2.compute().values, _truth(scenes, DAYS[:3]).values)
    assert planetary.tokens == 1
    planetary.revoked = planetary.tokens  # a cube that was made long ago must find a new one
    monkeypatch.setattr(reading, "_RENAMED", dict.fromkeys(_all_files(planetary), 99))  # GDAL would know the pixels
    with dask.config.set(scheduler="synchronous"):
        np.testing.assert_array_equal(cube.s2.compute().values, _truth(scenes, DAYS[:3]).values)
    monkeypatch.setattr(reading, "_RENAMED", dict.fromkeys(_all_files(planetary), 100))
    planetary.server.fault("S2_1_B11", "500", float("inf"))
    with pytest.warns(TesseraWarning) as caught:
        cube.s2.compute()
    texts = (
        [str(w.message) for w in caught] + list(found.failures.values()) + [str(cube.attrs), str(found), caplog.text]
    )
    assert not [text for text in texts if "secret" in text]


def _all_files(stac: StacServer) -> list[str]:
    return [asset["href"] for item in stac.items for asset in item["assets"].values()]


def test_a_token_near_its_end_is_not_used(planetary, optical, monkeypatch):
    _fill(planetary, [optical(i) for i in range(3)], DAYS[:3], baseline="03.01")
    planetary.require_tokens(monkeypatch, seconds=1)
    cube = _load(planetary, source=replace(planetary.catalogue, sign="planetary-computer"))
    with dask.config.set(scheduler="synchronous"):
        assert cube.s2_valid.compute().any()
    assert planetary.tokens > 3


def test_a_refused_token_is_explained(planetary, optical, monkeypatch):
    _fill(planetary, [optical()], DAYS[:1], baseline="03.01")
    planetary.require_tokens(monkeypatch)
    planetary.server.fault("/sas", "404", float("inf"))
    cube = _load(planetary, source=replace(planetary.catalogue, sign="planetary-computer"))
    with pytest.raises(StoreError, match="PC_SDK_SUBSCRIPTION_KEY"):
        cube.compute()


def test_a_signature_of_ones_own(planetary, optical):
    scene = optical()
    _fill(planetary, [scene], DAYS[:1], baseline="03.01")
    planetary.server.guard = lambda path: 403 if "/files/" in path and "key=mine" not in path else None
    with pytest.raises(StoreError, match="403"):
        _load(planetary).compute()
    source = replace(planetary.catalogue, sign=_with_key)
    np.testing.assert_array_equal(_load(planetary, source=source).s2.compute().values, _truth([scene], DAYS[:1]).values)


def _with_key(url: str) -> str:
    return f"{url}?key=mine"


# ------------------------------------------------------------------------------------- what strangers' items may say


@pytest.mark.parametrize(
    "href",
    [
        "file:///etc/passwd",
        "/etc/passwd",
        "/vsizip/etc/a.zip",
        "s3://bucket/a.tif",
        "http://example.com/a.tif",
        "https://user:word@example.com/a.tif",
        "https://example.com/a b.tif",
        "zip+https://example.com/a.zip",
        "https:///a.tif",
    ],
)
def test_unsafe_addresses_are_refused_before_anything_is_read(planetary, optical, href):
    item = planetary.add_s2("S2", "2021-06-01T10:50:00Z", optical(), GRID, "03.01")
    item["assets"]["B04"]["href"] = href
    with pytest.raises(CubeError, match="nothing was read") as caught:
        _load(planetary)
    assert "user" not in str(caught.value)


def test_a_remote_catalogue_cant_send_the_reader_to_this_machine():
    assert "on this machine" in str(url_fault("http://127.0.0.1:8000/a.tif", loopback=False))
    assert url_fault("http://127.0.0.1:8000/a.tif", loopback=True) is None
    assert not Catalogue("https://example.com/stac", "s2").is_local


def test_pages_elsewhere_are_refused(planetary, optical, monkeypatch):
    _fill(planetary, [optical()], DAYS[:1], baseline="03.01")

    def search(method: str, path: str, body: bytes) -> tuple[int, str, bytes]:
        status, kind, content = planetary.search(method, path, body)
        return (
            status,
            kind,
            content.replace(b'"links": []', b'"links": [{"rel": "next", "href": "file:///etc/passwd"}]'),
        )

    planetary.server.routes["/stac/search"] = search
    with pytest.raises(StoreError, match=r"file:///etc/passwd, which is not https"):
        _load(planetary)


def test_pages_without_end_are_refused(planetary, optical, monkeypatch):
    monkeypatch.setattr(searching, "MAX_ITEMS", 5)
    _fill(planetary, [optical()], DAYS[:1], baseline="03.01")
    url = planetary.server.url

    def search(method: str, path: str, body: bytes) -> tuple[int, str, bytes]:
        status, kind, content = (
            planetary.search("POST", path, _ASKED) if method == "GET" else planetary.search(method, path, body)
        )
        link = f'"links": [{{"rel": "next", "href": "{url}/stac/search?again=1"}}]'
        return status, kind, content.replace(b'"links": []', link.encode())

    planetary.server.routes["/stac/search"] = search
    with pytest.raises(StoreError, match="more than 5 scenes"):
        _load(planetary)


_ASKED = b'{"collections": ["sentinel-2-l2a"], "bbox": [-180, -90, 180, 90], "datetime": "2021-01-01/2021-12-31"}'


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda item: item["assets"].pop("B04"), "no asset 'B04'"),
        (lambda item: item["properties"].update(datetime=None), "no date"),
        (lambda item: item["properties"].update(datetime="soon"), "no date that can be read"),
        (lambda item: item.update(geometry=None), "no footprint"),
        (lambda item: item.update(geometry={"type": "Point", "coordinates": [3, 51]}), "no place"),
        (lambda item: item.update(properties=None), "no properties"),
        (lambda item: item.update(assets=[1]), "no asset"),
        (lambda item: item["assets"].update(B04={"href": 5}), "no asset 'B04'"),
    ],
)
def test_an_item_that_lacks_something_is_left_out_with_a_warning(planetary, optical, change, words):
    _fill(planetary, [optical(), optical()], DAYS[:2], baseline="03.01")
    change(planetary.items[0])
    planetary.server.routes["/stac/search"] = lambda *asked: _without_filter(planetary)
    with pytest.warns(TesseraWarning, match=words):
        cube = _load(planetary)
    assert cube.sizes["s2_time"] == 1


def _without_filter(stac: StacServer) -> tuple[int, str, bytes]:
    import json

    return (
        200,
        "application/json",
        json.dumps({"type": "FeatureCollection", "features": stac.items, "links": []}).encode(),
    )


def test_absurd_files_are_skipped_before_memory_is_taken(planetary, optical):
    """A GeoTIFF of a few hundred bytes may claim any size, and blocks of any size."""
    import rasterio

    scenes = [optical(i) for i in range(5)]
    _fill(planetary, scenes, DAYS[:5], baseline="03.01")
    files = planetary.server.folder / "files"
    place = {"driver": "GTiff", "count": 1, "crs": "EPSG:32631", "transform": GRID.transform, "sparse_ok": True}
    with rasterio.open(files / "S2_0_B04.tif", "w", height=300_000, width=300_000, dtype="uint16", tiled=True, **place):
        pass
    side = 16_000
    with rasterio.open(
        files / "S2_1_B04.tif",
        "w",
        height=side,
        width=side,
        dtype="uint16",
        tiled=True,
        blockxsize=side,
        blockysize=side,
        **place,
    ):
        pass
    found = search_scenes(None, 2021, planetary.catalogue, s1=False, like=GRID, progress=False)
    with pytest.warns(TesseraWarning, match="could not be read"):
        cube = found.load(progress=False).compute()
    assert "more than any scene" in found.failures["S2_0"]
    assert "blocks of 488 MiB" in found.failures["S2_1"]
    assert cube.s2_valid.values[2:].any()


def test_files_that_point_to_other_files_are_not_followed(planetary, optical):
    """A VRT named .tif could make GDAL read what is on this machine."""
    _fill(planetary, [optical(i) for i in range(3)], DAYS[:3], baseline="03.01")
    secret = planetary.server.folder / "files" / "S2_1_B04.tif"
    vrt = (
        f'<VRTDataset rasterXSize="32" rasterYSize="32"><SRS>EPSG:32631</SRS>'
        f'<GeoTransform>500000,10,0,5650320,0,-10</GeoTransform><VRTRasterBand dataType="UInt16" band="1">'
        f"<SimpleSource><SourceFilename>{secret}</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>"
    )
    (planetary.server.folder / "files" / "S2_0_B04.tif").write_text(vrt)
    found = search_scenes(None, 2021, planetary.catalogue, s1=False, like=GRID, progress=False)
    with pytest.warns(TesseraWarning, match="S2_0"):
        found.load(progress=False).compute()
    assert "not recognized" in found.failures["S2_0"]


def test_floats_where_integers_belong_are_refused(planetary, optical, radar):
    _fill(planetary, [optical(i) for i in range(3)], DAYS[:3], baseline="03.01")
    planetary.add_s1("S1", "2021-06-01T05:50:00Z", radar(), GRID)
    planetary.items[0]["assets"]["B04"] = planetary.items[-1]["assets"]["vv"]
    with pytest.warns(TesseraWarning, match="holds float32, where uint16 is needed"):
        _load(planetary).compute()


# ---------------------------------------------------------------------------------------------------- bad questions


def test_faults_of_the_question_are_told_before_anything_is_asked(planetary, monkeypatch):
    monkeypatch.setattr(searching, "found_items", _never)
    with pytest.raises(SchemaError, match=r"did you mean 'earth-search'"):
        load_cube((3, 51, 3.1, 51.1), 2021, "erth-search")
    with pytest.raises(SchemaError, match=r"sources are 'earth-search', 'planetary-computer'"):
        load_cube((3, 51, 3.1, 51.1), 2021, "nowhere")
    with pytest.raises(SchemaError, match=r"is an address.*Catalogue\(url"):
        load_cube((3, 51, 3.1, 51.1), 2021, "https://me:secret@example.com/stac?key=secret")
    with pytest.raises(SchemaError, match="can't be read as a period"):
        load_cube((3, 51, 3.1, 51.1), "last year")
    with pytest.raises(SchemaError, match="at most 366"):
        load_cube((3, 51, 3.1, 51.1), ("2020-01-01", "2021-12-31"))
    with pytest.raises(GridError, match="north"):
        load_cube((3, 51.1, 3.1, 51), 2021)
    with pytest.raises(GridError, match="neither area nor like"):
        load_cube(None, 2021)
    with pytest.raises(GridError, match="outside the grid of like"):
        load_cube((10, 51, 10.1, 51.1), 2021, like=GRID)
    with pytest.raises(SchemaError, match="percentage"):
        load_cube((3, 51, 3.1, 51.1), 2021, max_cloud_cover=101)


def _never(*args: Any, **kwargs: Any) -> Any:
    raise AssertionError("the catalogue was asked")


@pytest.mark.parametrize("chunks", [0, -2, {"z": 4}, {"x": 0}])
def test_chunks_that_cant_be_are_refused_before_anything_is_asked(monkeypatch, chunks):
    monkeypatch.setattr(stac, "find_scenes", _never)
    with pytest.raises(SchemaError, match="chunks="):
        load_cube((3, 51, 3.1, 51.1), 2021, chunks=chunks)


def test_a_graph_that_would_fill_the_memory_is_refused(planetary, optical):
    _fill(planetary, [optical()] * 2, DAYS[:2], baseline="03.01")
    huge = GeoBox.from_bbox((400_000, 5_600_000, 700_000, 5_800_000), crs="EPSG:32631", resolution=10)
    with pytest.raises(CubeError, match="more than one lazy cube can hold"):
        _load(planetary, like=huge, chunks=10)


def test_a_missing_extra_is_named(planetary, monkeypatch):
    from tessera_xr import _optional

    monkeypatch.setattr(_optional, "have", lambda package: package != "pystac_client")
    with pytest.raises(MissingExtraError, match=r"pip install 'tessera-xr\[stac\]'"):
        _load(planetary)


def test_nothing_found_is_an_error_that_says_where_it_was_looked(planetary, optical):
    _fill(planetary, [optical()], DAYS[:1], baseline="03.01")
    with pytest.raises(CubeError, match=r"no scene of 2019-01-01/2019-12-31 within \(3\.0"):
        _load(planetary, 2019)
    with pytest.raises(CubeError, match="1 Sentinel-2 scenes with more than 5 % clouds"):
        _load(planetary, max_cloud_cover=5)


def test_radar_that_isnt_there_is_a_warning_unless_not_wanted(earth_search, planetary, optical):
    _fill(earth_search, [optical()], DAYS[:1], baseline="03.01")
    _fill(planetary, [optical()], DAYS[:1], baseline="03.01")
    with pytest.warns(TesseraWarning, match="no Sentinel-1 in this cube: earth-search has no Sentinel-1 RTC"):
        cube = _load(earth_search, s1=True)
    assert cube.sizes["s1_time"] == 0
    with pytest.warns(TesseraWarning, match="has none of 2021"):
        _load(planetary, s1=True)
    assert _load(earth_search, s1=False).sizes["s1_time"] == 0


def test_radar_from_elsewhere_is_no_longer_of_one_source(tmp_path, optical, radar):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with serve_stac(tmp_path / "a", "earth-search") as ours, serve_stac(tmp_path / "b", "planetary-computer") as theirs:
        _fill(ours, [optical()], DAYS[:1], baseline="03.01")
        theirs.add_s1("S1", f"{DAYS[0]}T05:50:00Z", radar(), GRID)
        cube = _load(ours, s1=theirs.catalogue).compute()
    assert cube.sizes["s1_time"] == cube.sizes["s2_time"] == 1
    assert cube.attrs["source"] == "earth-search, Sentinel-1 from planetary-computer"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"url": "http://example.com"}, "not https"),
        ({"url": "https://me:secret@example.com"}, "carries a password"),
        ({"s2_assets": {"B04": "red"}}, "no asset for B02"),
        ({"s1_assets": {"VV": "vv"}}, "no asset for VH"),
        ({"offset": "none"}, "'baseline', 'removed' or 'flag'"),
        ({"s1_units": "linear"}, "'power', 'db', 'amplitude'"),
        ({"sign": "azure"}, "sign='azure'"),
    ],
)
def test_a_catalogue_that_cant_be_used_is_refused_at_once(change, words):
    with pytest.raises(SchemaError, match=words) as caught:
        Catalogue(**({"url": "https://example.com/stac", "s2_collection": "s2"} | change))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("spelling", ["mpc", "MPC", "Planetary Computer", "planetary_computer"])
def test_sources_may_be_spelt_in_any_way(spelling):
    assert resolve_catalogue(spelling).name == "planetary-computer"
    assert resolve_catalogue("AWS").name == "earth-search"


def test_addresses_are_shortened_wherever_they_stand():
    url = "https://me:word@a.blob.core.windows.net/s2/B04.tif?se=2024&sig=abc%2Fdef#3"
    assert public_url(url) == "https://a.blob.core.windows.net/s2/B04.tif"
    text = redacted(f"'/vsicurl/{url}' failed (url: /s2/B04.tif?sig=abc) and ({url})")
    assert "abc" not in text
    assert "word" not in text


def test_a_cube_can_go_to_another_process(planetary, optical):
    _fill(planetary, [optical(i) for i in range(2)], DAYS[:2], baseline="03.01")
    cube = _load(planetary, source=replace(planetary.catalogue, sign=_with_key))
    copy = pickle.loads(pickle.dumps(cube))
    xr.testing.assert_identical(copy.compute(), cube.compute())


@pytest.mark.network
@pytest.mark.parametrize("source", ["earth-search", "planetary-computer"])
def test_the_live_services(source):
    found = search_scenes(
        (3.70, 51.04, 3.71, 51.045), ("2022-01-10", "2022-02-10"), source, s1=source != "earth-search"
    )
    cube = found.load().compute()
    assert cube.s2_valid.any()
    assert found.failures == {}
    red = cube.s2.sel(s2_band="B04").where(cube.s2_valid).median(("y", "x"))
    assert float(red.max() - red.min()) < 1500
    assert cube.sizes["s1_time"] > 0 or source == "earth-search"


def test_offline_no_catalogue_is_asked_but_one_of_this_machine(planetary, optical, monkeypatch):
    _fill(planetary, [optical()], DAYS[:1], baseline="03.01")
    monkeypatch.setenv("TESSERA_XR_OFFLINE", "1")
    assert _load(planetary).sizes["s2_time"] == 1
    with pytest.raises(StoreError, match=r"TESSERA_XR_OFFLINE is set.*as_cube"):
        load_cube((3, 51, 3.1, 51.1), 2021)
