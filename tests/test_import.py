"""`import tessera_xr` is light."""

from __future__ import annotations

import inspect
import subprocess
import sys
import time

import pytest

import tessera_xr as txr
from tessera_xr.accessor import TesseraDataArray, TesseraDataset
from tessera_xr.analysis import clustering, components, novelty

HEAVY = ("torch", "numba", "sklearn", "rasterio", "ipyleaflet", "hvplot", "holoviews", "matplotlib", "huggingface_hub")


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def seconds(module: str) -> float:
    started = time.perf_counter()
    run(f"import {module}")
    return time.perf_counter() - started


def test_no_heavy_package_is_imported():
    loaded = run("import sys, tessera_xr; print(' '.join(sys.modules))").split()
    assert "tessera_xr" in loaded
    assert [name for name in HEAVY if name in loaded] == []


def test_it_takes_little_longer_than_xarray():
    ours, theirs = (min(seconds(module) for _ in range(3)) for module in ("tessera_xr", "xarray"))
    assert ours < theirs + 1


def test_it_registers_the_accessors_and_they_say_what_they_see_without_torch():
    code = "import sys, tessera_xr, xarray as xr; print(xr.Dataset().tessera, xr.DataArray(1, name='n').tessera)"
    assert " n {}\nNext" in run(code + "; assert 'torch' not in sys.modules")


def test_embedding_does_not_load_torchs_compiler():
    # building a network on the meta device would, for a second and 90 MB
    code = "import sys, tessera_xr as t; t.tutorial.cube(16).tessera.embed('mini', progress=False, period=2024)"
    assert not {"sympy", "torch._dynamo"} & set(run(code + "; print(*sys.modules)").split())


def test_every_public_name_is_there():
    assert set(dir(txr)) == set(txr.__all__)
    for name in txr.__all__:
        assert getattr(txr, name) is not None
    assert not hasattr(txr, "no_such_name")
    assert run("from tessera_xr import *; print(embed.__name__)").strip() == "embed"


def test_every_name_says_where_it_lives():
    lazy = set(txr.__all__) - {"__version__", "accessor", "errors"}
    assert set(txr._WHERE) == lazy


DELEGATES = {
    "similarity": txr.similarity,
    "find_similar": txr.find_similar,
    "cluster": clustering.cluster,
    "segment": txr.segment,
    "change": txr.change,
    "change_significance": txr.change_significance,
    "trend": txr.trend,
    "novelty": novelty.novelty,
    "fit": txr.fit_head,
    "predict": txr.predict,
    "validate": txr.validate,
    "evaluate": txr.evaluate,
    "suggest": txr.suggest,
    "embed": txr.embed,
    "quantize": txr.quantize,
    "dequantize": txr.dequantize,
    "sample": txr.sample,
    "components": components.components,
    "rgb": components.rgb,
    "to_geotiff": txr.to_geotiff,
    "to_zarr": txr.to_zarr,
    "embed_to_zarr": txr.embed_to_zarr,
    "check_against": txr.check_against,
    "to_published": txr.to_published,
    "explore": txr.explore,
}


def arguments(function: object) -> list[tuple[str, object, object]]:
    """Return name, kind and default of every argument but the first."""
    parameters = list(inspect.signature(function).parameters.values())[1:]
    return [(p.name, p.kind, p.default) for p in parameters]


@pytest.mark.parametrize("name", DELEGATES)
def test_the_accessor_takes_what_the_function_takes(name):
    assert arguments(getattr(TesseraDataset, name)) == arguments(DELEGATES[name])


def test_the_accessor_takes_what_the_function_takes_for_one_map():
    assert arguments(TesseraDataArray.to_geotiff) == arguments(txr.to_geotiff)
    assert arguments(TesseraDataArray.to_zarr) == arguments(txr.to_zarr)
