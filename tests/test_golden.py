"""The golden vectors: what TESSERA's own code makes of one tile, through every way that this package has."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

import tessera_xr as txr
from tessera_xr.embedding.engine import encode
from tessera_xr.encoder import forward
from tessera_xr.encoder.checkpoints import load_encoder
from tessera_xr.encoder.network import Backbone
from tessera_xr.encoder.tokens import Tokens
from tessera_xr.sentinel.bands import day_of_year

QUANTIZED = ("v2_student", "v2_student_qknorm", "v1_1_mpc", "v1_1_aws")
TILE_LEVEL = (*QUANTIZED, "v2_teacher")
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
WAYS = {
    "eager": {},
    "one pixel at a time": {"token_budget": 1},
    "all pixels at once": {"token_budget": 10_000},
}


@pytest.fixture(scope="module")
def tile(golden, write_tile, tmp_path_factory) -> xr.Dataset:
    with np.load(golden / "tile.npz") as arrays:
        folder = write_tile(tmp_path_factory.mktemp("golden") / "tile", dict(arrays))
    return txr.open_tile(folder)


@pytest.fixture
def expected(golden):
    def opened(name: str) -> dict[str, np.ndarray]:
        with np.load(golden / f"{name}_expected.npz") as arrays:
            return dict(arrays)

    return opened


def check(emb: xr.Dataset, expected: dict[str, np.ndarray], tolerance: float = 1e-4) -> None:
    found = emb.embeddings.transpose("y", "x", "band").values
    wanted = expected["embedding"][..., : found.shape[-1]]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance)


def weights_of(golden: Path, name: str) -> Path:
    return golden / f"{name}.pt"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", TILE_LEVEL)
def test_tile_to_embedding(name, way, tile, golden, expected):
    emb = tile.tessera.embed(weights_of(golden, name), device="cpu", **WAYS[way])
    assert emb.sizes["band"] == (64 if name == "v2_teacher" else 128)
    check(emb, expected(name))


@pytest.mark.parametrize("name", TILE_LEVEL)
def test_tile_to_embedding_lazily_in_odd_chunks(name, tile, golden, expected):
    lazy = tile.chunk(y=2, x=4, s2_time=11, s1_time=7)
    emb = lazy.tessera.embed(weights_of(golden, name), device="cpu", token_budget=50)
    assert emb.embeddings.chunks is not None
    check(emb.compute(scheduler="synchronous"), expected(name))


@pytest.mark.parametrize("name", TILE_LEVEL)
def test_the_general_padded_path(name, tile, golden, expected, monkeypatch):
    monkeypatch.setattr(forward, "can_run", lambda backbone: False)
    check(tile.tessera.embed(weights_of(golden, name), device="cpu", token_budget=300), expected(name))


@GPU
@pytest.mark.parametrize("name", TILE_LEVEL)
def test_tile_to_embedding_on_a_gpu(name, tile, golden, expected):
    check(tile.tessera.embed(weights_of(golden, name), device="cuda", precision="float32"), expected(name))


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("name", QUANTIZED)
def test_int8(name, lazy, tile, golden, expected):
    cube = tile.chunk(y=3, x=5) if lazy else tile
    emb = cube.tessera.embed(weights_of(golden, name), device="cpu", dtype="int8")
    wanted = expected(name)
    steps = np.abs(emb.embeddings.transpose("y", "x", "band").values.astype(int) - wanted["int8"])
    assert steps.max() <= 1
    assert (steps > 0).mean() <= 1e-3
    np.testing.assert_allclose(emb.scales, wanted["scales"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["v1_1_mpc", "v1_1_aws"])
def test_v1_1_in_full_before_the_cut(name, tile, golden, expected):
    """The network gives 160 values, of which the embedding is the first 128."""
    encoder = load_encoder(weights_of(golden, name), device="cpu")
    flat = [tile[v].transpose("y", "x", ...).values.reshape(30, *s) for v, s in (("s2", (37, 10)), ("s1", (30, 2)))]
    valid = tile.s2_valid.transpose("y", "x", ...).values.reshape(30, 37)
    days = [day_of_year(tile[f"{sensor}_time"].values) for sensor in ("s2", "s1")]
    descending = tile.s1_orbit.values == "descending"
    out = encode(encoder, flat[0], days[0], valid, flat[1], days[1], descending, dims=160)
    np.testing.assert_allclose(out.values.reshape(5, 6, 160), expected(name)["embedding"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["v1_0_qat", "v1_0_early"])
def test_v1_0_sequences_to_embedding(name, golden, expected):
    network, wanted = load_encoder(weights_of(golden, name), device="cpu").network, expected(name)
    with torch.inference_mode():
        out = network(torch.from_numpy(wanted["s2_x"]), torch.from_numpy(wanted["s1_x"]))
    np.testing.assert_allclose(out.numpy(), wanted["embedding"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["v1_0_qat", "v1_0_early"])
@pytest.mark.parametrize("budget", [1, 10_000])
def test_v1_0_by_the_paths_that_the_engine_takes(name, budget, golden, expected):
    network, wanted = load_encoder(weights_of(golden, name), device="cpu").network, expected(name)
    with torch.inference_mode():
        pooled = [
            run(backbone, wanted[f"{sensor}_x"], budget)
            for sensor, backbone in (("s2", network.s2_backbone), ("s1", network.s1_backbone))
        ]
        out = network.fuse(*pooled)
    np.testing.assert_allclose(out.numpy(), wanted["embedding"], rtol=0, atol=1e-4)


def run(backbone: Backbone, series: np.ndarray, budget: int) -> torch.Tensor:
    """Run sequences (P, 40, C + 1), the day of year last, as tokens without repeats."""
    n, length = series.shape[:2]
    x, doy = series[..., :-1].reshape(n * length, -1).copy(), series[..., -1].ravel().astype(np.intp)
    offsets = np.arange(n + 1) * length
    tokens = Tokens(x, doy, np.zeros(n * length, np.float32), offsets, np.tile(np.arange(length), n), offsets)
    return forward.run_backbone(backbone, tokens, budget, lambda _: None, torch.float32)


def test_the_references_differ_from_each_other(expected):
    """The two v1.1 differ by statistics alone: were that within the tolerance, a mix-up would go unseen."""
    mpc, aws = (expected(name)["embedding"] for name in ("v1_1_mpc", "v1_1_aws"))
    assert np.abs(mpc - aws).max() > 1e-3
