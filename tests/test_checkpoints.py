"""Weights: every file recognised for what it is, every fault named with its fix."""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tessera_xr as txr
from tessera_xr.encoder import hub
from tessera_xr.encoder.checkpoints import load_encoder, refuse_other_imagery
from tessera_xr.encoder.device import resolve_device, resolve_precision
from tessera_xr.encoder.payload import recognise
from tessera_xr.encoder.registry import RECORDS
from tessera_xr.errors import (
    CheckpointError,
    DeviceError,
    ModelUnavailableError,
    VersionMismatchError,
)

NAMES = ["mini", "v2-nano", "v2-small", "v2-medium", "v2-large", "v2-teacher", "v1.1-mpc", "v1.1-aws", "v1.0"]
GOLDEN = {  # the model that a file is a small one of, and its lengths
    "v1_0_early": ("v1.0-early", 128, ()),
    "v1_0_qat": ("v1.0", 128, ()),
    "v1_1_mpc": ("v1.1-mpc", 128, ()),
    "v1_1_aws": ("v1.1-aws", 128, ()),
    "v2_student": ("v2-nano", 128, (16, 32, 64)),
    "v2_student_qknorm": ("v2-nano", 128, (16, 32, 64)),
    "v2_teacher": ("v2-teacher", 64, ()),
}


@pytest.fixture
def v1_1(make_encoder, tmp_path) -> Callable[..., Path]:
    """Save a v1.1 encoder under a name, with what its configuration says."""

    def saved(name: str, **config: Any) -> Path:
        torch.save({"model_state": make_encoder("v1.1").network.state_dict(), "config": config}, tmp_path / name)
        return tmp_path / name

    return saved


def test_the_table_of_models():
    table = txr.models()
    assert set(NAMES) <= set(table.index)
    assert table.loc["v2-nano", "parameters"] == 1_066_402
    assert table.loc["v2-nano", "size_mb"] == 4.3
    assert table.loc["v2-nano", "dims"] == "16, 32, 64, 128"
    assert table.loc["v1.1-mpc", "imagery"] == "planetary-computer"
    assert table.loc["v1.1-aws", "imagery"] == "earth-search"
    assert table.loc["mini", "available"]
    assert not table["licence"].isna().any()


# Recognised and loaded ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_files_are_recognised(name, golden):
    encoder = load_encoder(golden / f"{name}.pt", device="cpu")
    record, (like, n_dims, matryoshka) = encoder.record, GOLDEN[name]
    for fact in ("family", "policy", "imagery", "statistics"):
        assert getattr(record, fact) == getattr(RECORDS[like], fact)
    assert (record.n_dims, record.matryoshka) == (n_dims, matryoshka)
    assert (record.arch.latent_dim, record.arch.n_layers, record.arch.n_heads, record.arch.feedforward) == (8, 2, 4, 48)
    assert record.arch.qk_norm == (name in ("v2_student_qknorm", "v2_teacher"))
    assert encoder.sha256 == hashlib.sha256((golden / f"{name}.pt").read_bytes()).hexdigest()


def test_loaded_weights_are_the_saved_ones(weights, make_encoder):
    encoder = load_encoder(weights, device="cpu")
    saved = make_encoder().network.state_dict()
    assert encoder.network.state_dict().keys() == saved.keys()
    assert all(torch.equal(value, saved[key]) for key, value in encoder.network.state_dict().items())
    assert not encoder.network.training
    assert not any(p.requires_grad for p in encoder.network.parameters())
    series = torch.randn(2, 5, 11), torch.randn(2, 5, 3)
    torch.testing.assert_close(encoder.network(*series), make_encoder().network(*series))


def test_leftovers_of_training_are_dropped(tmp_path, weights):
    payload = torch.load(weights, weights_only=True)
    state = {f"_orig_mod.{k}": v.half() for k, v in payload["model"].items()}
    state["_orig_mod.projector.0.weight"] = state["segmented_matryoshka_projector.x"] = torch.zeros(2)
    torch.save(payload | {"model": state, "epoch": 3}, tmp_path / "trained.pt")
    network = load_encoder(tmp_path / "trained.pt", device="cpu").network
    assert next(network.parameters()).dtype == torch.float32


def test_heads_are_read_from_the_settings(tmp_path, weights):
    payload = torch.load(weights, weights_only=True)
    for n_heads in (2, 4, 8):
        arch = recognise(payload | {"args": payload["args"] | {"nhead": n_heads}}, weights, None)[0].arch
        assert arch.n_heads == n_heads
    assert recognise({"model": payload["model"]}, weights, None)[0].arch.n_heads == 4


@pytest.mark.parametrize(
    ("said", "expected"), [("16,32,64,128", (16, 32, 64)), ("8, 64", (8, 64)), ("", ()), (None, ())]
)
def test_matryoshka_lengths_are_those_that_the_file_states(said, expected, weights):
    payload = torch.load(weights, weights_only=True)
    record = recognise(payload | {"args": {"nhead": 4, "matryoshka_dims": said}}, weights, None)[0]
    assert (record.matryoshka, record.n_dims) == (expected, 128)


def test_a_model_is_loaded_once(weights, tmp_path, save_weights, make_encoder):
    encoder = load_encoder(weights, device="cpu")
    with ThreadPoolExecutor(4) as pool:
        assert all(e is encoder for e in pool.map(lambda _: load_encoder(str(weights), device="cpu"), range(8)))
    path = save_weights(make_encoder(), tmp_path / "student.pt")
    before = load_encoder(path, device="cpu")
    save_weights(make_encoder(seed=1), path, note="so that the size differs")
    assert load_encoder(path, device="cpu").sha256 != before.sha256


@pytest.mark.parametrize(
    ("name", "config", "expected"),
    [
        ("encoder.pt", {"data_source": "aws"}, "v1.1-aws"),
        ("encoder.pt", {"data_source": "MPC"}, "v1.1-mpc"),
        ("tessera_v1_1_aws_encoder.pt", {}, "v1.1-aws"),
        ("tessera-v1-1-mpc.pt", {}, "v1.1-mpc"),
        ("mpc.pt", {"data_source": "aws"}, "v1.1-aws"),
    ],
)
def test_v1_1_tells_its_imagery(name, config, expected, v1_1):
    record = load_encoder(v1_1(name, **config), device="cpu").record
    assert record.name == f"{expected}-custom"
    assert record.statistics is RECORDS[expected].statistics
    assert record.imagery == RECORDS[expected].imagery


def test_v1_1_that_does_not_tell_its_imagery(v1_1):
    with pytest.raises(CheckpointError, match=r"doesn't tell which: pass it as weights= of 'v1.1-mpc'"):
        load_encoder(v1_1("encoder.pt"))


def test_v1_1_that_tells_of_other_imagery_than_asked_for(v1_1):
    with pytest.raises(CheckpointError, match=r"holds 'v1.1-aws', not 'v1.1-mpc' as asked for; name the model"):
        load_encoder("v1.1-mpc", v1_1("encoder.pt", data_source="aws"))


# Faults ------------------------------------------------------------------------------------------------------------


def test_names_that_do_not_exist(weights):
    with pytest.raises(CheckpointError, match=r"no model 'v3'; the models are mini, v2-nano.*, or give the path"):
        load_encoder("v3")
    with pytest.raises(CheckpointError, match=r"no model 'V2-Nano' \(did you mean 'v2-nano'\?\)"):
        load_encoder("V2-Nano")
    with pytest.raises(
        ModelUnavailableError, match=r"there is no file /.*/no\.pt; the models are mini.*or give the path"
    ):
        load_encoder("/no/such/folder/no.pt")
    with pytest.raises(ModelUnavailableError, match="there is no file"):
        load_encoder("v2-nano", "lost.pt")
    with pytest.raises(
        CheckpointError,
        match=r"weights= goes with the name of the model that is in the file, not '/.*'; the models are",
    ):
        load_encoder(str(weights), weights)


@pytest.mark.parametrize("name", ["v1.0", "v1.1-mpc", "v1.1-aws"])
def test_models_that_are_shared_as_files(name, monkeypatch):
    monkeypatch.delenv(hub.WEIGHTS_FOLDER, raising=False)
    with pytest.raises(ModelUnavailableError, match=rf"pass its path, embed\('{name}', weights=.*TESSERA_XR_WEIGHTS"):
        load_encoder(name)


class Harmful:
    """Would create a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.path),)


DAMAGES: dict[str, Callable[[Path, Path], object]] = {
    "truncated": lambda good, path: path.write_bytes(good.read_bytes()[:-5000]),
    "half": lambda good, path: path.write_bytes(good.read_bytes()[: good.stat().st_size // 2]),
    "empty": lambda good, path: path.write_bytes(b""),
    "random bytes": lambda good, path: path.write_bytes(np.random.default_rng(0).bytes(3000)),
    "text": lambda good, path: path.write_text("<html>not found</html>"),
    "pickled code": lambda good, path: path.write_bytes(pickle.dumps(Harmful(path.parent / "harm"))),
    "code in torch's format": lambda good, path: torch.save({"model": Harmful(path.parent / "harm")}, path),
    "a list": lambda good, path: torch.save([torch.zeros(2)], path),
    "a tensor": lambda good, path: torch.save(torch.zeros(2), path),
    "other weights": lambda good, path: torch.save({"model": {"conv.weight": torch.zeros(2)}, "epoch": 1}, path),
    "an empty dict": lambda good, path: torch.save({}, path),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_and_foreign_files(damage, weights, tmp_path):
    DAMAGES[damage](weights, tmp_path / "bad.pt")
    with pytest.raises(CheckpointError, match=r"bad\.pt (can't be read|holds a (list|Tensor), not|is no TESSERA)"):
        load_encoder(tmp_path / "bad.pt")
    assert not (tmp_path / "harm").exists(), "nothing in a file may be executed"


def test_harmful_would_do_harm(tmp_path):
    pickle.loads(pickle.dumps(Harmful(tmp_path / "harm")))
    assert (tmp_path / "harm").exists()


@pytest.mark.parametrize("change", ["missing", "unexpected", "shape"])
def test_weights_load_strictly(change, weights, tmp_path):
    payload = torch.load(weights, weights_only=True)
    state, key = payload["model"], "s1_backbone.attn_pool.query.bias"
    if change == "missing":
        del state[key]
    elif change == "unexpected":
        key = "s1_backbone.extra"
        state[key] = torch.zeros(1)
    else:
        state[key] = torch.zeros(3)
    torch.save(payload, tmp_path / "odd.pt")
    with pytest.raises(CheckpointError, match=rf"odd\.pt doesn't fit 'v2-custom': (.|\n)*{key}"):
        load_encoder(tmp_path / "odd.pt")


def test_a_file_of_another_model_than_asked_for(weights, v1_1):
    with pytest.raises(CheckpointError, match=r"holds 'v2-custom', not 'v1.1-mpc' as asked for; name the model"):
        load_encoder("v1.1-mpc", weights)
    with pytest.raises(CheckpointError, match=r"holds 'v2-custom', not 'v2-small' as asked for"):
        load_encoder("v2-small", weights)
    with pytest.raises(CheckpointError, match=r"holds 'v1.1-aws-custom', not 'v2-nano'"):
        load_encoder("v2-nano", v1_1("aws.pt"))


@pytest.mark.parametrize(("name", "other"), [("v1.1-mpc", "earth-search"), ("v1.1-aws", "planetary-computer")])
def test_v1_1_goes_with_its_own_imagery(name, other):
    with pytest.raises(VersionMismatchError, match=r"is from .*; use 'v1.1-.*' or a v2 model, or pass check_imagery"):
        refuse_other_imagery(RECORDS[name], other)
    for source in (RECORDS[name].imagery, None, "unknown", "my archive"):
        refuse_other_imagery(RECORDS[name], source)
    refuse_other_imagery(RECORDS["v2-nano"], other)


# Device and precision ----------------------------------------------------------------------------------------------


def test_devices_that_are_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(
        DeviceError, match=r"'cuda' is not to be had here; this machine has \[.*'cpu'\]. Use device='auto'"
    ):
        resolve_device("cuda")
    with pytest.raises(DeviceError, match=r"'gpu' is no device; choose 'auto' or one of"):
        resolve_device("gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert resolve_device("auto") == torch.device("cuda")
    with pytest.raises(DeviceError, match="'cuda:1' is not to be had"):
        resolve_device("cuda:1")


def test_precisions():
    cpu = torch.device("cpu")
    assert resolve_precision("auto", cpu) == torch.float32
    assert resolve_precision("bfloat16", cpu) == torch.bfloat16
    with pytest.raises(DeviceError, match="'float16' is unknown; choose 'auto', 'float32' or 'bfloat16'"):
        resolve_precision("float16", cpu)  # type: ignore[arg-type]
    with pytest.raises(DeviceError, match="'mps' has no bfloat16; use precision='float32'"):
        resolve_precision("bfloat16", torch.device("mps"))


@pytest.mark.parametrize("variant", ["v2", "v2-teacher", "v1.1", "v1.0-early"])
def test_bfloat16_is_close_to_float32(variant, make_encoder, make_pixels):
    from tessera_xr.embedding.engine import encode

    encoder, pixels = make_encoder(variant), make_pixels(60)
    dims = encoder.record.n_dims
    full = encode(encoder, **pixels, dims=dims).values[1:]
    half = encode(replace(encoder, precision=torch.bfloat16), **pixels, dims=dims).values[1:]
    assert half.dtype == np.float32
    cosine = (full * half).sum(1) / np.linalg.norm(full, axis=1) / np.linalg.norm(half, axis=1)
    assert cosine.min() > 0.99
    assert np.abs(full - half).max() > 1e-4, "bfloat16 was not used"
