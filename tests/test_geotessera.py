"""Side by side with geotessera 0.11: whose accessor is registered, its members, its stores.

What needs geotessera runs in an environment of Python 3.12 that `scripts/geotessera_env.py` makes (`geotessera_side/`
holds what runs there). Without a Python 3.12 these tests are skipped; where the environment can't be made too, or they
fail if TESSERA_XR_REQUIRE_GEOTESSERA=1.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import tessera_xr as txr
from tessera_xr.embedding.published.opening import open_published
from tessera_xr.embedding.published.writing import to_published
from tessera_xr.errors import GridError, SchemaError
from tessera_xr.grid import bounds_lonlat, geobox_of

ROOT = Path(__file__).resolve().parent.parent
SIDE = ROOT / "tests" / "geotessera_side"
NO_PYTHON = 3
WATER, HOLE = (slice(20, 22), slice(30, 35)), (40, 12)  # as build_store.py makes them


def run(python: str, *arguments: object, **environment: str) -> str:
    """Run Python with this repository on its path, away from it; its words come with the failure."""
    path = os.pathsep.join([environment.pop("PYTHONPATH", ""), str(ROOT)]).strip(os.pathsep)
    env = {**os.environ, "PYTHONPATH": path, **environment}
    done = subprocess.run([python, *map(str, arguments)], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    return done.stdout


@pytest.fixture(scope="session")
def python312() -> str:
    """A Python 3.12 with geotessera."""
    script = [sys.executable, str(ROOT / "scripts" / "geotessera_env.py")]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    if done.returncode:
        required = os.environ.get("TESSERA_XR_REQUIRE_GEOTESSERA") == "1" and done.returncode != NO_PYTHON
        (pytest.fail if required else pytest.skip)(f"no environment with geotessera: {done.stderr.strip()[-1000:]}")
    return done.stdout.split()[-1]


@pytest.fixture(scope="session")
def store(python312: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of Caldor that geotessera's own tools wrote."""
    path = tmp_path_factory.mktemp("geotessera") / "caldor.zarr"
    run(python312, SIDE / "build_store.py", path)
    return path


@pytest.fixture
def stand_in(tmp_path: Path) -> str:
    """A folder with a package that registers an accessor as geotessera does, for Pythons without geotessera."""
    (tmp_path / "geotessera").mkdir()
    (tmp_path / "geotessera" / "__init__.py").write_text("")
    (tmp_path / "geotessera" / "store.py").write_text(
        "import xarray as xr\n\n@xr.register_dataset_accessor('tessera')\nclass TesseraAccessor:\n"
        "    def __init__(self, ds):\n        self.crs = ds.attrs.get('proj:code', 'theirs')\n"
    )
    return str(tmp_path)


# Whose accessor -----------------------------------------------------------------------------------------------------

TOUCHED = "ds = xr.Dataset(attrs={'proj:code': 'EPSG:32610', 'spatial:transform': [10]}); ds.tessera"
ORDERS = {
    "ours first": "import tessera_xr, geotessera.store",
    "theirs first": "import geotessera.store, tessera_xr",
    "the package, ours, the store": "import geotessera, tessera_xr, geotessera.store",
    "a dataset that theirs was used on": f"import geotessera.store; {TOUCHED}; import tessera_xr; ds.tessera.embed",
    "a dataset that ours was used on": f"import tessera_xr; {TOUCHED}; import geotessera.store; ds.tessera.embed",
    "theirs again": "import tessera_xr, geotessera.store; importlib.reload(geotessera.store)",
    "ours again": "import tessera_xr.accessor as a, geotessera.store; importlib.reload(a)",
}
CHECK = """
from tessera_xr.accessor import TesseraDataset
from geotessera.store import TesseraAccessor
assert xr.Dataset.tessera is TesseraDataset is type(xr.Dataset().tessera)
assert TesseraAccessor(xr.Dataset(attrs={'proj:code': 'EPSG:32610', 'spatial:transform': [10]})).crs == 'EPSG:32610'
assert xr.Dataset().tessera.embed and xr.Dataset.tessera.read_region
assert len([f for f in sys.meta_path if type(f).__module__ == 'tessera_xr._registration']) == 1
import inspect, geotessera.store
assert 'class TesseraAccessor' in inspect.getsource(geotessera.store)
assert 'torch' not in sys.modules
"""


def check_order(python: str, order: str, **environment: str) -> None:
    code = f"import importlib, sys\nimport xarray as xr\n{ORDERS[order]}\n{CHECK}"
    loud = ["-W", "error:registration of accessor"] if order != "ours again" else []  # that one is a developer's
    run(python, *loud, "-c", code, **environment)


@pytest.mark.parametrize("order", ORDERS)
def test_ours_stays_registered_beside_a_stand_in(stand_in, order):
    check_order(sys.executable, order, PYTHONPATH=stand_in)


@pytest.mark.parametrize("order", ORDERS)
def test_ours_stays_registered_beside_geotessera(python312, order):
    check_order(python312, order)


def test_ours_stays_registered_when_theirs_fails_to_import(stand_in):
    with (Path(stand_in) / "geotessera" / "store.py").open("a") as file:
        file.write("\nraise RuntimeError('half-way')\n")
    code = "import xarray as xr, tessera_xr\ntry:\n    import geotessera.store\nexcept RuntimeError:\n    pass\n"
    run(sys.executable, "-c", code + "assert xr.Dataset().tessera.embed", PYTHONPATH=stand_in)


def test_other_accessors_are_left_alone():
    code = (
        "import warnings, xarray as xr, tessera_xr\n"
        "mine = xr.register_dataset_accessor('mine')(type('Mine', (), {'__init__': lambda s, ds: None}))\n"
        "assert xr.Dataset.mine is mine\n"
        "with warnings.catch_warnings(record=True) as seen:\n"
        "    warnings.simplefilter('always')\n"
        "    xr.register_dataset_accessor('tessera')(mine)\n"
        "assert len(seen) == 1 and xr.Dataset.tessera is mine\n"
    )
    run(sys.executable, "-c", code)


# geotessera's members -----------------------------------------------------------------------------------------------


def test_members_answer_as_geotesseras_do(python312, store):
    """`geotessera_side/members.py`, under pytest in that environment, none of it skipped."""
    options = ["-q", "--noconftest", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", SIDE]
    out = run(python312, "-m", "pytest", *options, SIDE / "members.py", TESSERA_XR_STORE=str(store))
    found = re.search(r"(\d+) passed", out)
    assert found
    assert int(found.group(1)) > 40
    assert not re.search(r"skipped|xfailed|deselected", out)


@pytest.fixture
def caldor() -> xr.Dataset:
    return txr.tutorial.embeddings()


def rectangle(ds: xr.Dataset, rows: slice = slice(None), columns: slice = slice(None)) -> tuple[float, ...]:
    x, y = ds.x.values[columns], ds.y.values[rows]
    return (x[0] - 4, y[-1] - 4, x[-1] + 4, y[0] + 4)


FORMS = {
    "int8": lambda ds: ds,
    "float32": lambda ds: ds.tessera.dequantize(),
    "lazy": lambda ds: ds.chunk(time=1, y=13, x=20),
    "dated": lambda ds: ds.assign_coords(time=np.array([f"{year}-04-01" for year in ds.time.values], "datetime64[ns]")),
    "rows from the south": lambda ds: ds.isel(y=slice(None, None, -1)),
    "one year": lambda ds: ds.sel(time=2021),
    "one period": lambda ds: ds.sel(time=2021).drop_vars("time").assign_attrs(period="2021-01-01/2021-12-31"),
}


@pytest.mark.parametrize("form", FORMS)
def test_members_on_our_own_embeddings(caldor, form):
    ds = FORMS[form](caldor)
    year = caldor.sel(time=2021)
    values = year.tessera.dequantize()["embeddings"].transpose("y", "x", "band").values
    assert (ds.tessera.crs, ds.tessera.pixel_size, ds.tessera.n_bands) == ("EPSG:32610", 10.0, 128)
    assert 2021 in ds.tessera.years
    mosaic, transform = ds.tessera.read_region(rectangle(caldor), 2021)
    np.testing.assert_array_equal(mosaic, values)
    assert transform == geobox_of(caldor).transform
    part, transform = ds.tessera.read_region(rectangle(caldor, slice(9, 30), slice(5, 7)), 2021)
    np.testing.assert_array_equal(part, values[9:30, 5:7])
    assert transform == geobox_of(caldor)[9:30, 5:7].transform
    codes, scales, _ = ds.tessera.read_region_quantized(rectangle(caldor, slice(9, 30)), 2021)
    assert codes.dtype == np.int8
    np.testing.assert_allclose(ds.tessera.dequantise(codes.transpose(2, 0, 1), scales), values[9:30], atol=1e-6)
    strips = [block for block, _ in ds.tessera.iter_region(rectangle(caldor), 2021, strip_rows=10)]
    assert [len(s) for s in strips] == [10] * 6 + [4]
    np.testing.assert_array_equal(np.concatenate(strips), values)
    places = [(float(caldor.x[i]) + 3, float(caldor.y[j]) - 3) for i, j in ((0, 0), (63, 2), (31, 33), (32, 31))]
    sampled = ds.tessera.sample_points([*places, (0.0, 0.0)], 2021, progress=False)
    ours = txr.sample(year, places, crs="EPSG:32610").tessera.dequantize()
    np.testing.assert_array_equal(sampled[:4], ours["embeddings"].transpose("point", "band").values)
    assert np.isnan(sampled[4]).all()
    vector, status = ds.tessera.probe(*places[2], 2021)
    assert status == "valid"
    np.testing.assert_array_equal(vector, sampled[2])
    assert ds.tessera.probe(0.0, 0.0, 2021) == (None, "outside")


def test_no_scale_is_no_data_unless_quality_tells_of_water(caldor):
    ds = caldor.sel(time=[2021])
    ds["scales"][0, 4:9, 4:9] = np.nan
    place = (float(ds.x[6]), float(ds.y[6]))
    assert ds.tessera.probe(*place, 2021) == (None, "nodata")
    vector, status = ds.tessera.probe(*place, 2021, search_px=3)
    assert status == "valid"
    np.testing.assert_array_equal(vector, ds.tessera.sample_at(float(ds.x[6]), float(ds.y[3]), 2021))
    wet = ds.assign(quality=(ds["scales"].isnull() * 2).astype(np.uint8))
    assert wet.tessera.probe(*place, 2021, search_px=3) == (None, "water")
    assert np.isnan(wet.tessera.sample_points([place], 2021)).all()
    assert np.isfinite(ds.tessera.sample_points([(float(ds.x[4]), float(ds.y[6]))], 2021)).all()


def test_points_of_a_lazy_zone_cost_blocks_and_not_chunks(caldor):
    """A chunk of the zone is the whole of it; what a point reads is counted."""
    import dask.array as da

    read: list[int] = []

    class Counted:
        shape, dtype, ndim = caldor["embeddings"].shape, np.dtype(np.int8), 4

        def __getitem__(self, key):
            read.append(caldor["embeddings"].values[key].size)
            return caldor["embeddings"].values[key]

    ds = caldor.copy()
    ds["embeddings"] = (
        caldor["embeddings"].dims,
        da.from_array(Counted(), chunks=(1, 128, 64, 64), meta=np.empty(0, np.int8)),
    )
    points = [(float(ds.x[3]), float(ds.y[3])), (float(ds.x[5]), float(ds.y[40]))]
    np.testing.assert_array_equal(ds.tessera.sample_points(points, 2021), caldor.tessera.sample_points(points, 2021))
    assert sum(read) <= 2 * 128 * 32 * 32
    read.clear()
    ds.tessera.probe(*points[0], 2021)
    assert sum(read) <= 128 * 9


def test_bad_questions(caldor):
    cube = txr.tutorial.cube(16)
    with pytest.raises(SchemaError, match="no array 'embeddings'"):
        cube.tessera.read_region((0, 0, 1, 1), 2024)
    with pytest.raises(SchemaError, match="2017, 2018"):
        caldor.tessera.sample_at(0.0, 0.0, 1999)
    with pytest.raises(SchemaError, match="no year 2021; years: \\[\\]"):
        caldor.isel(time=0, drop=True).tessera.read_region(rectangle(caldor), 2021)
    seasons = caldor.isel(time=[0, 1]).assign_coords(time=np.array(["2021-01-01", "2021-07-01"], "datetime64[ns]"))
    with pytest.raises(SchemaError, match="2 times of year 2021"):
        seasons.tessera.read_region(rectangle(caldor), 2021)
    with pytest.raises(SchemaError, match="strip_rows"):
        caldor.tessera.iter_region(rectangle(caldor), 2021, strip_rows=0)
    with pytest.raises(SchemaError, match="four finite numbers"):
        caldor.tessera.read_region((0, 0, 1), 2021)
    with pytest.raises(IndexError, match="no pixel of the zone"):
        caldor.tessera.read_region((0, 0, 1, 1), 2021)
    with pytest.raises(GridError, match="no CRS"):
        _ = xr.Dataset(coords={"y": [0.0, 1.0], "x": [0.0, 1.0]}).tessera.crs


# Stores, here and there ---------------------------------------------------------------------------------------------


def read_there(python: str, path: Path, area: xr.Dataset, year: int, out: Path) -> dict[str, np.ndarray]:
    """Return what geotessera, and `open_published` beside it, read of a store."""
    bbox = json.dumps(bounds_lonlat(geobox_of(area)))
    run(python, SIDE / "read_store.py", path, bbox, year, out)
    with np.load(out) as found:
        return dict(found)


def test_a_store_of_geotesseras_reads_the_same_here_and_there(python312, store, caldor, tmp_path):
    here = open_published(bounds_lonlat(geobox_of(caldor)), [2020, 2022], store=store, version="v1.1")
    assert here.tessera.years == [2020, 2022]
    for year in (2020, 2022):
        there = read_there(python312, store, caldor, year, tmp_path / f"{year}.npz")
        mine = here.sel(time=year).compute()
        for name in ("embeddings", "scales", "quality"):
            np.testing.assert_array_equal(mine[name].values, there[f"opened_{name}"])
        np.testing.assert_array_equal(mine.x, there["opened_x"])
        values = mine.tessera.dequantize()["embeddings"].transpose("y", "x", "band").values
        np.testing.assert_array_equal(values, there["values"])
        valid = mine["quality"].values == 1
        np.testing.assert_array_equal(
            mine["embeddings"].transpose("y", "x", "band").values[valid], there["codes"][valid]
        )
        np.testing.assert_array_equal(mine["scales"].values[valid], there["scales"][valid])
        assert geobox_of(mine).transform == type(geobox_of(mine).transform)(*there["transform"])
        at_points = open_published([tuple(p) for p in there["lonlat"]], year, store=store, version="v1.1")
        np.testing.assert_array_equal(
            at_points.tessera.dequantize()["embeddings"].transpose("point", "band").values, there["points"]
        )
        # and all of it is Caldor, where there is land that was written
        seen = mine.sel(y=caldor.y, x=caldor.x)
        real, kind = caldor.sel(time=year), np.ones((64, 64))
        kind[WATER], kind[HOLE] = 2, 0
        np.testing.assert_array_equal(seen["quality"], kind)
        np.testing.assert_array_equal(seen["embeddings"].values[:, kind == 1], real["embeddings"].values[:, kind == 1])
        np.testing.assert_array_equal(seen["scales"].values[kind == 1], real["scales"].values[kind == 1])


def test_geotessera_reads_what_we_publish(python312, caldor, tmp_path):
    ours = caldor.sel(time=[2019, 2021]).copy(deep=True)
    ours["scales"][:, 5, 6] = np.nan
    ours["scales"][:, 9, 9:12] = np.nan
    quality = xr.where(ours["scales"].isnull(), 0, 1).astype(np.uint8)
    quality[:, 9, 9:12] = 2
    path = to_published(ours.assign(quality=quality), tmp_path / "ours.zarr", progress=False)
    there = read_there(python312, path, caldor, 2021, tmp_path / "there.npz")
    assert there["years"].tolist() == [2019, 2021]
    assert str(there["crs"]) == "EPSG:32610"
    assert set(there["statuses"]) == {"valid"}
    left, top = there["transform"][2] + 5, there["transform"][5] - 5
    row, column = round((top - float(ours.y[0])) / 10), round((float(ours.x[0]) - left) / 10)
    window = (slice(row, row + 64), slice(column, column + 64))
    year = ours.sel(time=2021)
    valid = year["scales"].notnull().values
    np.testing.assert_array_equal(there["scales"][window][valid], year["scales"].values[valid])
    assert np.isposinf(there["scales"][window][5, 6])
    assert np.isnan(there["scales"][window][9, 9:12]).all()
    codes = year["embeddings"].transpose("y", "x", "band").values
    np.testing.assert_array_equal(there["codes"][window][valid], codes[valid])
    wanted = year.tessera.dequantize()["embeddings"].transpose("y", "x", "band").values
    np.testing.assert_array_equal(there["values"][window], wanted)
