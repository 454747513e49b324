"""A cube to embeddings, lazily: the same in any chunks and on any worker, with nothing computed too early."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import xarray as xr

import tessera_xr as txr
from tessera_xr.embedding import embed as module
from tessera_xr.encoder.checkpoints import Encoder, resolve_model
from tessera_xr.encoder.network import TesseraEncoder
from tessera_xr.encoder.registry import NANO, RECORDS
from tessera_xr.errors import VersionMismatchError

TOLERANCE = 2e-5


@pytest.fixture
def cube(make_cube) -> xr.Dataset:
    return make_cube(size=7)


@pytest.fixture
def embed(weights):
    """Embed with a tiny model."""

    def called(ds: xr.Dataset, **options: Any) -> xr.Dataset:
        return txr.embed(ds, weights, **({"device": "cpu", "period": 2020} | options))

    return called


@pytest.fixture(autouse=True)
def one_thread():
    """Compute in the calling thread, but where a test says otherwise."""
    with dask.config.set(scheduler="synchronous"):
        yield


def lazy(emb: xr.Dataset) -> bool:
    return all(array.chunks is not None for array in emb.data_vars.values())


def same(left: xr.Dataset, right: xr.Dataset) -> None:
    xr.testing.assert_allclose(left, right, rtol=TOLERANCE, atol=TOLERANCE)


CHUNKS = {
    "odd": {"y": 3, "x": 5},
    "pixel by pixel": {"y": 1, "x": 1},
    "one": {},
    "over time and bands": {"s2_time": 3, "s2_band": 4, "s1_time": 1, "s1_band": 1, "y": 4},
    "uneven": {"y": (1, 5, 1), "x": (6, 1)},
}


@pytest.mark.parametrize("dtype", ["float32", "int8"])
@pytest.mark.parametrize("chunks", CHUNKS)
def test_any_chunks_give_the_same(chunks, dtype, cube, embed):
    emb = embed(cube.chunk(CHUNKS[chunks]), dtype=dtype)
    assert lazy(emb)
    assert emb.embeddings.chunksizes["band"] == (128,)
    eager, computed = embed(cube, dtype=dtype), emb.compute()
    if dtype == "int8":
        assert np.abs(computed.embeddings.astype(int) - eager.embeddings).max() <= 1
        same(computed.drop_vars("embeddings"), eager.drop_vars("embeddings"))
    else:
        same(computed, eager)


def test_v1_0_draws_the_same_in_any_chunks(cube, make_encoder, monkeypatch):
    encoder = make_encoder("v1.0")
    monkeypatch.setattr(module, "load_encoder", lambda *_, **__: encoder)
    eager, other = (txr.embed(cube, "v1.0", period=2020, seed=s, device="cpu") for s in (4, 5))
    same(txr.embed(cube.chunk(y=2, x=3), "v1.0", period=2020, seed=4, device="cpu").compute(), eager)
    assert np.abs(eager.embeddings - other.embeddings).max() > 1e-3


@pytest.mark.parametrize("dtype", ["float32", "int8"])
@pytest.mark.parametrize("period", [2020, [2019, 2020], [("2019-03-01", "2020-02-28"), 2020]])
def test_what_is_known_before_computing_is_right(period, dtype, cube, embed, monkeypatch):
    options = {"period": period, "dtype": dtype, "dims": 32}
    eager = embed(cube, **options)

    def called(*_: Any, **__: Any) -> None:
        raise AssertionError("computed while the graph was built")

    monkeypatch.setattr(module, "encode", called)
    emb = embed(cube.chunk(y=3), **options)
    assert lazy(emb)
    assert emb.attrs == eager.attrs
    assert emb.sizes == eager.sizes
    assert set(emb.variables) == set(eager.variables)
    for name, array in eager.variables.items():
        assert (emb[name].dims, emb[name].dtype, emb[name].attrs) == (array.dims, array.dtype, array.attrs), name
    for name in eager.coords:
        xr.testing.assert_identical(emb[name].drop_vars(emb.data_vars, errors="ignore"), eager[name])
    assert repr(emb.tessera).startswith("TESSERA embeddings, 32 dimensions")
    with pytest.raises(AssertionError, match="while the graph"):
        emb.compute()


@pytest.mark.parametrize("names", [["s2"], ["s2_valid"], ["s1"], ["s2", "s1"]])
def test_one_lazy_variable_is_enough(names, cube, embed):
    mixed = cube.assign({name: cube[name].chunk(y=2, x=4) for name in names})
    emb = embed(mixed)
    assert lazy(emb)
    same(emb.compute(), embed(cube))


def test_variables_in_chunks_that_differ(cube, embed):
    mixed = cube.assign(s2=cube.s2.chunk(y=2), s1=cube.s1.chunk(y=3, x=2), s2_valid=cube.s2_valid.chunk(x=5))
    same(embed(mixed).compute(), embed(cube))


def test_imagery_that_is_lazy_stays_so(make_s2, embed):
    s2 = make_s2()
    emb = embed(s2.chunk(time=1, y=4), period=2020)
    assert lazy(emb)
    same(emb.compute(), embed(s2, period=2020))


def test_a_graph_of_a_part_computes_that_part(cube, embed, monkeypatch):
    pixels, encode = [], module.encode

    def counted(encoder: Encoder, s2: np.ndarray, *rest: Any, **options: Any) -> Any:
        pixels.append(len(s2))
        return encode(encoder, s2, *rest, **options)

    monkeypatch.setattr(module, "encode", counted)
    corner = embed(cube.chunk(y=3, x=3)).isel(y=slice(2), x=slice(3)).compute()
    assert set(pixels) == {9}
    monkeypatch.undo()
    same(corner, embed(cube).isel(y=slice(2), x=slice(3)))


@pytest.fixture(scope="module")
def nano(make_encoder, save_weights, tmp_path_factory) -> Path:
    """Weights of the size of v2-nano: 4 MB."""
    tiny = make_encoder()
    network = TesseraEncoder(NANO).eval()
    encoder = Encoder(RECORDS["v2-nano"], network, "", tiny.device, tiny.precision)
    return save_weights(encoder, tmp_path_factory.mktemp("nano") / "nano.pt")


def test_the_graph_holds_no_weights(nano, cube):
    emb = txr.embed(cube.chunk(y=3), nano, period=2020, device="cpu")
    assert emb.attrs["model"] == "v2-nano"
    assert nano.stat().st_size > 4_000_000
    assert len(pickle.dumps(dict(emb.__dask_graph__()))) < 200_000


def test_a_worker_with_other_weights_refuses(weights):
    source = resolve_model(weights)
    with pytest.raises(
        VersionMismatchError, match=r"on this worker \(\w{12}\) are not those .*put the same file on both"
    ):
        module._load_on_worker(source, "0" * 64, "cpu", "float32")


def test_weights_that_change_before_computing_are_noticed(cube, tmp_path, make_encoder, save_weights):
    path = save_weights(make_encoder(), tmp_path / "student.pt")
    emb = txr.embed(cube.chunk(y=3), path, period=2020, device="cpu")
    save_weights(make_encoder(seed=1), path, note="retrained")
    with pytest.raises(VersionMismatchError, match="put the same file on both"):
        emb.compute()


def test_threads_of_one_process(cube, embed):
    emb = embed(cube.chunk(y=1, x=3))
    with dask.config.set(scheduler="threads", num_workers=4):
        same(emb.compute(), embed(cube))


@pytest.mark.slow
def test_two_worker_processes(cube, embed, tmp_path):
    from distributed import Client, LocalCluster

    eager = embed(cube)
    with (
        LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=True,
            dashboard_address=None,
            local_directory=tmp_path,
        ) as cluster,
        Client(cluster) as client,
    ):
        emb = embed(cube.chunk(y=3, x=4))
        with dask.config.set(scheduler=client.get):
            same(emb.compute(), eager)
