"""Notebook 08 where its services answer: a catalogue and a store on this machine, asked as those on the internet."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from notebook_runs import FOLDER, code, read, write_solved
from published_store import write_store, zone_box
from stac_server import StacServer, serve_stac

import tessera_xr as txr
from tessera_xr.grid import bounds_lonlat

PATH = FOLDER / "08_your_own_area.ipynb"
SIZE = 40
GRID = zone_box(31, 500_000, 5_650_320, (SIZE, SIZE))
YEAR = 2024
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:Consolidated metadata is currently not part")]


@pytest.fixture(scope="module")
def landscape() -> xr.Dataset:
    """A year of a simulated place, of which a few dates are served."""
    cube = txr.tutorial.cube(SIZE, year=YEAR)
    return cube.isel(s2_time=slice(None, None, 8), s1_time=slice(None, None, 15))


@pytest.fixture
def planetary(landscape: xr.Dataset, tmp_path: Path) -> Iterator[StacServer]:
    """Serve the place as the Planetary Computer does, and published embeddings from the same machine."""
    folder = tmp_path / "planetary"
    folder.mkdir()
    with serve_stac(folder, "planetary-computer") as stac:
        before = {dim: landscape[dim][:2] - np.timedelta64(365, "D") for dim in ("s2_time", "s1_time")}
        for cube in (landscape, landscape.isel(s2_time=slice(2), s1_time=slice(2)).assign_coords(before)):
            add_optical(stac, cube)
            add_radar(stac, cube)
        published = zone_box(31, 499_840, 5_650_560, (96, 96))
        write_store(stac.server.folder / "v1.1-dclimate", {published: real_embeddings()}, (YEAR - 1, YEAR))
        yield stac


@pytest.fixture
def earth_search(landscape: xr.Dataset, tmp_path: Path) -> Iterator[StacServer]:
    """Serve the place in another catalogue."""
    folder = tmp_path / "earth"
    folder.mkdir()
    with serve_stac(folder, "earth-search") as stac:
        add_optical(stac, landscape.isel(s2_time=slice(2)))
        yield stac


def add_optical(stac: StacServer, cube: xr.Dataset) -> None:
    for i in range(cube.sizes["s2_time"]):
        step = cube.isel(s2_time=i)
        bands = {str(band): step["s2"].sel(s2_band=band).values for band in step["s2_band"].values}
        bands["SCL"] = np.where(step["s2_valid"], 4, 9)
        when = stamp(step["s2_time"])
        stac.add_s2(f"S2_{when[:10]}", when, bands, GRID, baseline="03.01")


def add_radar(stac: StacServer, cube: xr.Dataset) -> None:
    for i in range(cube.sizes["s1_time"]):
        step = cube.isel(s1_time=i)
        power = 10 ** ((step["s1"].astype(float) / 200 - 50) / 10)
        bands = {str(band): power.sel(s1_band=band).values for band in power["s1_band"].values}
        when = stamp(step["s1_time"])
        stac.add_s1(f"S1_{when[:10]}_{i}", when, bands, GRID, str(step["s1_orbit"].item()))


def stamp(time: xr.DataArray) -> str:
    return f"{np.datetime_as_string(time.values, unit='s')}Z"


def real_embeddings() -> dict[str, np.ndarray]:
    """Return the sample of the package, two of its years, as arrays (time, band, y, x) of 96 x 96 px."""
    sample = txr.tutorial.embeddings().sel(time=[2020, 2022])
    return {
        name: np.pad(sample[name].values, [(0, 0)] * (sample[name].ndim - 2) + [(0, 32)] * 2, mode="reflect")
        for name in ("embeddings", "scales")
    }


def pointed(path: Path, planetary: StacServer, other: StacServer) -> Any:
    """Return the notebook with the choices of its second cell made for the servers on this machine."""
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    west, south, east, north = bounds_lonlat(GRID[3:-3, 3:-3])
    chosen = {
        "AREA": (west, south, east, north),
        "YEAR": YEAR,
        "SOURCE": f"txr.{planetary.catalogue!r}",
        "STORE": repr(f"{planetary.server.url}/v1.1-dclimate"),
    }
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for name, value in chosen.items():
        assert f"\n{name} = " in cells[0].source
        assert not any(f"\n{name} = " in cell.source for cell in cells[1:]), f"{name} is chosen twice"
        cells[0].source += f"\n{name} = {value}"
    there = "https://earth-search.aws.element84.com/v1"
    assert sum(there in cell.source for cell in cells) == 1
    for cell in cells:
        moved = cell.source.replace(there, other.catalogue.url).replace("sentinel-2-c1-l2a", "sentinel-2-l2a")
        assert cell is cells[0] or "http" not in moved.replace("http://127.0.0.1", ""), "it asks somebody else"
        cell.source = moved
    return notebook


def run(notebook: Any, folder: Path) -> list[dict[str, Any]]:
    """Run a notebook in a folder, and return its code cells."""
    from nbclient import NotebookClient

    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def said(cell: dict[str, Any]) -> str:
    return "".join(output.get("text", "") for output in cell["outputs"])


def test_online_it_shows_the_area_itself_and_reads_it_once(planetary, earth_search, tmp_path):
    pytest.importorskip("nbclient")
    copy = write_solved(PATH, tmp_path / PATH.name)
    cells = run(pointed(copy, planetary, earth_search), tmp_path)
    text = "".join(said(cell) for cell in cells)
    assert "Online: what follows is your area." in text
    assert "Offline" not in text
    assert "No answer" not in text
    assert "planetary-computer" in text
    assert "2 scenes from Collection 1" in text
    assert "say nothing about those of 'v1.1-dclimate'" in text  # own and published are of two models
    for wanted in ("plot.true_colour(", "emb.tessera.plot.rgb(", "components.rgb(published", "plot.similarity("):
        (cell,) = (cell for cell in cells if wanted in cell["source"])
        assert any("image/png" in output.get("data", {}) for output in cell["outputs"]), f"no picture from {wanted}"
    assert len(list((tmp_path / "my_area").glob("*.tif"))) == 1
    assert any(path.endswith(".tif") for _, path, _ in planetary.server.requests)
    assert any("v1.1-dclimate/utm31/embeddings" in path for _, path, _ in planetary.server.requests)

    planetary.server.clear()
    again = pointed(PATH, planetary, earth_search)
    last = next(i for i, cell in enumerate(again.cells) if "txr.open_tile" in cell.source)
    again.cells = again.cells[: last + 1]
    run(again, tmp_path)
    assert not [path for _, path, _ in planetary.server.requests if path.endswith(".tif")], "it was downloaded twice"


def test_offline_it_says_what_it_would_have_done():
    """Every cell that asks a catalogue for imagery says so; that it then goes on is tested with all notebooks."""
    cells = code(read(PATH))
    asking = [cell for cell in cells if "search_scenes(" in cell or "load_cube(" in cell]
    assert len(asking) == 4
    assert all("Offline" in cell for cell in asking)
