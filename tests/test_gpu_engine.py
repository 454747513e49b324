"""The path that GPUs take, run on the CPU (and on a GPU where there is one): what `encode` gives must stay the same."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from tessera_xr.embedding import engine
from tessera_xr.embedding.engine import Output, encode, encode_streaming
from tessera_xr.encoder import gpu, streaming
from tessera_xr.encoder.checkpoints import Encoder, load_encoder
from tessera_xr.encoder.forward import run_padded
from tessera_xr.encoder.network import TesseraEncoder
from tessera_xr.encoder.ragged import Reading, as_tensor, draw, make_tables, rank_steps
from tessera_xr.encoder.registry import RECORDS
from tessera_xr.encoder.sampling import pattern
from tessera_xr.encoder.tokens import Series, Tokens, gather
from tessera_xr.errors import DeviceError, TesseraWarning

VARIANTS = ("v2", "v2-qk-norm", "v2-teacher", "v1.1")  # v1.0 draws on the host
TOLERANCE = 2e-5
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=GPU)]


def arrays(pixels: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(pixels[name] for name in ("s2", "s2_doy", "s2_valid", "s1", "s1_doy", "s1_descending"))


def streamed(encoder: Encoder, pixels: dict[str, Any], **options: Any) -> Output:
    return encode_streaming(encoder, *arrays(pixels), **({"dims": encoder.record.n_dims} | options))


def by_host(encoder: Encoder, pixels: dict[str, Any], **options: Any) -> Output:
    return encode(on(encoder, "cpu"), *arrays(pixels), **({"dims": encoder.record.n_dims} | options))


def on(encoder: Encoder, device: str, precision: torch.dtype = torch.float32) -> Encoder:
    place = torch.device(device)
    return replace(encoder, network=deepcopy(encoder.network).to(place), device=place, precision=precision)


def close(left: np.ndarray, right: np.ndarray, tolerance: float = TOLERANCE) -> None:
    np.testing.assert_allclose(left, right, rtol=tolerance, atol=tolerance)


def cosines(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    left, right = (a[~np.isnan(a).any(axis=1)].astype(float) for a in (left, right))
    return (left * right).sum(1) / np.linalg.norm(left, axis=1) / np.linalg.norm(right, axis=1)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("budget", [1, 37, 100_000])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_same_as_by_the_host(variant, budget, device, make_encoder, make_pixels):
    encoder, pixels = make_encoder(variant), make_pixels(60)
    expected = by_host(encoder, pixels).values
    found = streamed(on(encoder, device), pixels, budget=budget).values
    assert found.dtype == np.float32
    assert np.isnan(found[0]).all()
    close(found, expected)


@pytest.mark.parametrize("variant", ["v2", "v1.1"])
def test_series_of_every_length(variant, make_encoder, make_pixels):
    """Pixels with 0 to 300 valid steps: past every bin, and past 256."""
    encoder, pixels = make_encoder(variant), make_pixels(64, 300, 290)
    rng = np.random.default_rng(1)
    for valid, n in ((pixels["s2_valid"], np.linspace(0, 300, 64).astype(int)), (None, rng.permutation(291)[:64])):
        for i, kept in enumerate(n):
            gone = rng.permutation(pixels["s2"].shape[1] if valid is not None else 290)[kept:]
            if valid is not None:
                valid[i] = True
                valid[i, gone] = False
            else:
                pixels["s1"][i] = np.maximum(pixels["s1"][i], 1)
                pixels["s1"][i, gone] = 0
    close(streamed(encoder, pixels).values, by_host(encoder, pixels).values)


def test_draws_the_very_tokens(make_encoder, make_pixels):
    """Ragged tokens equal `gather`'s, value for value."""
    pixels = make_pixels(40)
    mean, std = np.full((21, 10), 1500, np.float32), np.full((21, 10), 700, np.float32)
    for policy in ("v2", "v1.1"):
        tokens, order = gather(Series(pixels["s2"], pixels["s2_doy"], pixels["s2_valid"], mean, std), policy, 0)
        steps, n_valid = rank_steps(torch.from_numpy(pixels["s2_valid"]))
        series = streaming.RawSeries(
            as_tensor(pixels["s2"]), True, torch.from_numpy(pixels["s2_doy"].astype(int)),
            torch.from_numpy(mean), torch.from_numpy(std), steps, n_valid,
        )  # fmt: skip
        reading = Reading(torch.from_numpy(order), n_valid.numpy()[order], make_tables(policy, 21, torch.device("cpu")))
        ragged = draw(series, reading, slice(0, 40))
        for found, expected in (
            (ragged.x, tokens.x), (ragged.doy, tokens.doy), (ragged.log_counts, tokens.log_counts),
            (ragged.offsets, tokens.offsets), (ragged.read, np.diff(tokens.sequence_offsets)),
        ):  # fmt: skip
            np.testing.assert_array_equal(found, expected)
        for i in range(40):
            own = tokens.sequence[tokens.sequence_offsets[i] : tokens.sequence_offsets[i + 1]] + tokens.offsets[i]
            np.testing.assert_array_equal(ragged.sequence[i, : len(own)], own)
            assert len(own) == ragged.sequence_sizes[i]


def test_high_values_of_unsigned_integers_stay_high(make_encoder, make_pixels):
    encoder, pixels = make_encoder(), make_pixels()
    pixels["s2"] = pixels["s2"] + np.uint16(60_000)
    for dtype in (np.uint16, np.int32, np.uint32, np.int64, ">u2"):
        given = pixels | {"s2": pixels["s2"].astype(dtype)}
        close(streamed(encoder, given).values, by_host(encoder, pixels).values)


def test_any_layout_of_the_arrays(make_encoder, make_pixels):
    encoder, pixels = make_encoder(), make_pixels()
    expected = streamed(encoder, pixels).values
    for axes in ((1, 2, 0), (2, 1, 0), (0, 2, 1)):
        back = np.argsort(axes)
        turned = {n: np.ascontiguousarray(pixels[n].transpose(axes)).transpose(back) for n in ("s2", "s1")}
        turned["s2_valid"] = np.asfortranarray(pixels["s2_valid"])
        np.testing.assert_array_equal(streamed(encoder, pixels | turned).values, expected)
    reversed_ = {name: pixels[name][::-1] for name in ("s2", "s2_valid", "s1")}
    close(streamed(encoder, pixels | reversed_).values, expected[::-1])


def test_days_may_be_given_for_each_pixel(make_encoder, make_pixels):
    encoder, pixels = make_encoder(), make_pixels()
    wide = {name: np.tile(pixels[name], (24, 1)) for name in ("s2_doy", "s1_doy")}
    wide["s2_doy"][6] = wide["s2_doy"][6][::-1]
    close(streamed(encoder, pixels | wide).values, by_host(encoder, pixels | wide).values)


@pytest.mark.parametrize("variant", ["v2", "v1.1"])
def test_one_sensor_alone(variant, make_encoder, make_pixels):
    encoder, pixels = make_encoder(variant), make_pixels()
    without_s1 = {"s1": np.zeros((24, 0, 2), np.int16), "s1_doy": np.zeros(0, int), "s1_descending": np.zeros(0, bool)}
    valid = np.zeros((24, 0), bool)
    without_s2 = {"s2": np.zeros((24, 0, 10), np.uint16), "s2_doy": np.zeros(0, int), "s2_valid": valid}
    for missing in (without_s1, without_s2):
        close(streamed(encoder, pixels | missing).values, by_host(encoder, pixels | missing).values)
    assert np.isnan(streamed(encoder, pixels | without_s1 | without_s2).values).all()
    none = {name: pixels[name][:0] for name in ("s2", "s2_valid", "s1")}
    assert streamed(encoder, pixels | none).values.shape == (0, encoder.record.n_dims)


@pytest.mark.parametrize("device", DEVICES)
def test_slabs_follow_each_other(device, make_encoder, make_pixels, monkeypatch):
    encoder, pixels = on(make_encoder(), device), make_pixels(100)
    pixels["s2_valid"][30:60], pixels["s1"][30:60] = False, 0  # whole slabs without data
    expected = by_host(encoder, pixels, dtype="int8")
    monkeypatch.setattr(streaming, "LEAST_STEPS", 36 * 9)
    monkeypatch.setattr(streaming, "MOST_STEPS", 36 * 9)
    made: list[slice] = []
    call = streaming.Preparation.__call__
    monkeypatch.setattr(streaming.Preparation, "__call__", lambda self, p: [made.append(p), call(self, p)][1])
    found = streamed(encoder, pixels, dtype="int8")
    assert len(made) == 12
    assert found.values.dtype == np.int8
    assert np.abs(found.values.astype(int) - expected.values).max() <= 1
    assert (found.values != expected.values).mean() < 1e-3
    close(found.scales, expected.scales)


def test_pixels_without_data_cost_nothing(make_encoder, make_pixels, monkeypatch):
    encoder, pixels = make_encoder(), make_pixels(50)
    pixels["s2_valid"][10:40], pixels["s1"][10:40] = False, 0
    seen: list[int] = []
    monkeypatch.setattr(streaming, "draw", lambda s, r, p: [seen.append(p.stop - p.start), draw(s, r, p)][1])
    streamed(encoder, pixels)
    assert sum(seen) == 2 * (~np.isnan(by_host(encoder, pixels).values[:, 0])).sum()


@pytest.mark.parametrize("dims", [16, 64])
def test_short_lengths_are_the_first_values(dims, make_encoder, make_pixels):
    encoder, pixels = make_encoder(), make_pixels()
    close(streamed(encoder, pixels, dims=dims).values, by_host(encoder, pixels).values[:, :dims])
    found, expected = (run(encoder, pixels, dims=dims, dtype="int8").scales for run in (streamed, by_host))
    close(found, expected)


def test_progress_counts_every_pixel(make_encoder, make_pixels, monkeypatch):
    updates: list[int] = []

    class Bar:
        def __init__(self, total: int, **_: Any) -> None:
            assert total == 90

        def __enter__(self) -> Bar:
            return self

        def __exit__(self, *_: object) -> None:
            assert sum(updates) == 90

        def update(self, n: int) -> None:
            updates.append(n)

    monkeypatch.setattr(engine, "tqdm", Bar)
    monkeypatch.setattr(streaming, "LEAST_STEPS", 36 * 20)
    streamed(make_encoder(), make_pixels(90), progress=True, budget=1)
    assert len(updates) == 5


# bfloat16 ----------------------------------------------------------------------------------------------------------


def flanders(n: int) -> dict[str, Any]:
    """Pixels as long as real series, smooth over the year."""
    rng = np.random.default_rng(3)
    doy2, doy1 = (np.sort(rng.choice(np.arange(1, 366), t, replace=False)) for t in (50, 60))
    wave = 1 + 0.5 * np.sin(doy2[:, None] / 58 + rng.uniform(0, 6, (n, 1, 10)))
    s2 = (wave * rng.uniform(300, 4000, (n, 1, 10)) + rng.normal(0, 80, (n, 50, 10))).clip(1).astype(np.uint16)
    s1 = (rng.normal(6000, 600, (n, 1, 2)) + rng.normal(0, 300, (n, 60, 2))).astype(np.int16)
    return {
        "s2": s2, "s2_doy": doy2, "s2_valid": rng.random((n, 50)) < 0.6, "s1": s1, "s1_doy": doy1,
        "s1_descending": rng.random(60) < 0.4,
    }  # fmt: skip


@pytest.mark.parametrize("device", DEVICES)
def test_bfloat16_is_close_to_float32(device):
    """With trained weights: those of mini."""
    encoder, pixels = load_encoder("mini", device="cpu"), flanders(200)
    expected = by_host(encoder, pixels).values
    found = streamed(on(encoder, device, torch.bfloat16), pixels).values
    assert cosines(found, expected).min() >= 0.9999
    assert np.abs(found - expected).max() > 1e-4, "bfloat16 was used"


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["v2-medium", "v1.1-mpc"])
def test_bfloat16_at_true_sizes(name, device):
    """Heads of 110 and 192 channels, rows that are no power of two."""
    torch.manual_seed(0)
    record = RECORDS[name]
    arch = replace(record.arch, n_layers=1)
    network = TesseraEncoder(arch).eval().requires_grad_(requires_grad=False)
    encoder = Encoder(replace(record, arch=arch), network, "random", torch.device("cpu"), torch.float32)
    pixels = flanders(12)
    found = streamed(on(encoder, device, torch.bfloat16), pixels).values
    assert cosines(found, by_host(encoder, pixels).values).min() >= 0.9999
    close(streamed(on(encoder, device), pixels).values, by_host(encoder, pixels).values, 1e-4)


# When things go wrong ----------------------------------------------------------------------------------------------


def limit(monkeypatch: pytest.MonkeyPatch, n_tokens: int) -> None:
    """Let backbones run out of memory above a size of batch."""
    call = gpu.RaggedBackbone.__call__

    def limited(self: gpu.RaggedBackbone, tokens: Any) -> torch.Tensor:
        if len(tokens.x) > n_tokens:
            raise torch.OutOfMemoryError("out of memory")
        return call(self, tokens)

    monkeypatch.setattr(gpu.RaggedBackbone, "__call__", limited)


def test_running_out_of_memory_halves_the_batches(make_encoder, make_pixels, monkeypatch):
    encoder, pixels = make_encoder("v1.1"), make_pixels(200)
    expected = streamed(encoder, pixels).values
    limit(monkeypatch, 300)
    with pytest.warns(TesseraWarning, match=r"ran out of memory; going on .* \(pass token_budget=\d+"):
        found = streamed(encoder, pixels, budget=10_000).values
    close(found, expected)


def test_too_little_memory_for_one_pixel(make_encoder, make_pixels, monkeypatch):
    limit(monkeypatch, 5)
    with pytest.warns(TesseraWarning), pytest.raises(DeviceError, match="not enough memory for one pixel"):
        streamed(make_encoder(), make_pixels(), budget=10_000)


def test_an_interrupt_gets_through_and_leaves_no_trace(make_encoder, make_pixels, monkeypatch):
    encoder, pixels = make_encoder(), make_pixels(100)
    expected, calls, call = streamed(encoder, pixels).values, [], gpu.RaggedBackbone.__call__

    def interrupted(self: gpu.RaggedBackbone, tokens: Any) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return call(self, tokens)

    with monkeypatch.context() as patch:
        patch.setattr(gpu.RaggedBackbone, "__call__", interrupted)
        with pytest.raises(KeyboardInterrupt):
            streamed(encoder, pixels, budget=50)
    assert len(calls) == 3
    assert not torch.is_inference_mode_enabled()
    np.testing.assert_array_equal(streamed(encoder, pixels).values, expected)


# What takes this path ----------------------------------------------------------------------------------------------


def test_cuda_takes_this_path_but_for_draws_at_random(make_encoder):
    there = torch.device("cuda")
    for variant, taken in (("v2", True), ("v2-teacher", True), ("v1.1", True), ("v1.0", False), ("v1.0-early", False)):
        encoder = make_encoder(variant)
        assert streaming.can_stream(replace(encoder, device=there)) == taken
        for other in ("cpu", "mps", "xpu"):
            assert not streaming.can_stream(replace(encoder, device=torch.device(other)))


def test_encode_goes_by_can_stream(make_encoder, make_pixels, monkeypatch):
    encoder, pixels = make_encoder(), make_pixels()
    expected = by_host(encoder, pixels).values
    monkeypatch.setattr(streaming, "can_stream", lambda _: True)
    monkeypatch.setattr(engine, "_encode_slab", None)
    close(encode(encoder, *arrays(pixels), dims=128).values, expected)


def test_variants_that_the_ragged_backbone_does_not_know_run_padded(make_encoder):
    known = {v: gpu.can_run(make_encoder(v).network.s2_backbone) for v in (*VARIANTS, "v1.0", "v1.0-early")}
    assert known == {
        "v2": True, "v2-qk-norm": False, "v2-teacher": False, "v1.1": True, "v1.0": True, "v1.0-early": False
    }  # fmt: skip


@pytest.mark.parametrize("variant", ["v2", "v1.1"])
def test_the_padded_way_gives_the_same(variant, make_encoder, make_pixels, monkeypatch):
    encoder, pixels = make_encoder(variant), make_pixels(40)
    monkeypatch.setattr(streaming, "can_run", lambda _: False)
    monkeypatch.setattr(gpu.RaggedBackbone, "__call__", None)
    close(streamed(encoder, pixels).values, by_host(encoder, pixels).values)


def test_float32_never_uses_kernels_whose_products_are_not():
    from tessera_xr.encoder import plain

    assert gpu.operations(torch.device("cuda"), torch.float32) is plain
    assert gpu.operations(torch.device("cpu"), torch.bfloat16) is plain


@pytest.mark.parametrize("policy", ["v2", "v1.1"])
def test_tables_are_the_patterns(policy):
    tables = make_tables(policy, 270, torch.device("cpu"))
    for n in (0, 1, 7, 8, 9, 100, 256, 257, 270):
        p = pattern(policy, n)
        assert tables.lengths[n] == tables.sizes[n] == len(p.steps)
        assert tables.sequence_lengths[n] == tables.sequence_sizes[n] == len(p.sequence)
        np.testing.assert_array_equal(tables.steps[n, : len(p.steps)], p.steps)
        np.testing.assert_array_equal(tables.sequence[n, : len(p.sequence)], p.sequence)


# Triton's kernels against plain torch ------------------------------------------------------------------------------


@GPU
@pytest.mark.parametrize("name", ["v2-nano", "v2-small", "v2-medium", "v2-large", "v1.1-mpc"])
def test_kernels_equal_plain_torch(name):
    """Whole backbones of true width, both ways, on series of 1 to 256 steps."""
    pytest.importorskip("triton")
    from tessera_xr.encoder import kernels, plain

    torch.manual_seed(0)
    arch = replace(RECORDS[name].arch, n_layers=2)
    backbone = TesseraEncoder(arch).s2_backbone.eval().requires_grad_(requires_grad=False).cuda()
    fast = gpu.RaggedBackbone(backbone, torch.bfloat16)
    assert fast.ops is kernels
    slow = gpu.RaggedBackbone(backbone, torch.bfloat16)
    for part in (slow, *slow.layers, *([slow.gru] if slow.gru else [])):
        part.ops = plain
    tokens = ragged_tokens(RECORDS[name].policy)
    left, right = fast(tokens), slow(tokens)
    assert cosines(left.cpu().numpy(), right.cpu().numpy()).min() > 0.9999


def ragged_tokens(policy: Any) -> Any:
    kinds = np.array([1, 2, 7, 8, 15, 16, 17, 31, 31, 31, 32, 33, 54, 63, 64, 65, 100, 129, 255, 256, 270])
    device, rng = torch.device("cuda"), np.random.default_rng(0)
    valid = torch.from_numpy(np.arange(300) < kinds[:, None]).to(device)
    order, n_valid = rank_steps(valid)
    series = streaming.RawSeries(
        torch.from_numpy(rng.integers(0, 5000, (len(kinds), 300, 10)).astype(np.int16)).to(device), False,
        torch.from_numpy(rng.integers(1, 367, 300)).to(device), torch.full((300, 10), 2000.0, device=device),
        torch.full((300, 10), 900.0, device=device), order, n_valid,
    )  # fmt: skip
    reading = Reading(torch.arange(len(kinds), device=device), kinds, make_tables(policy, 300, device))
    return draw(series, reading, slice(0, len(kinds)))


# The golden vectors ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["v2_student", "v2_student_qknorm", "v2_teacher", "v1_1_mpc", "v1_1_aws"])
def test_golden_vectors(name, device, golden):
    encoder = load_encoder(golden / f"{name}.pt", device=device, precision="float32")
    with np.load(golden / "tile.npz") as file:
        tile = dict(file)
    found = streamed(encoder, golden_pixels(tile)).values
    with np.load(golden / f"{name}_expected.npz") as file:
        np.testing.assert_allclose(found, file["embedding"].reshape(30, -1)[:, : found.shape[1]], rtol=0, atol=1e-4)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["v1_0_qat", "v1_0_early"])
def test_golden_sequences_of_v1_0(name, device, golden):
    """These take the path of padded batches on every device."""
    network = load_encoder(golden / f"{name}.pt", device=device, precision="float32").network
    with np.load(golden / f"{name}_expected.npz") as file:
        wanted = dict(file)
    pooled = []
    for sensor, backbone in (("s2", network.s2_backbone), ("s1", network.s1_backbone)):
        series = wanted[f"{sensor}_x"]
        n, length = series.shape[:2]
        x, doy = series[..., :-1].reshape(n * length, -1).copy(), series[..., -1].ravel().astype(np.intp)
        offsets = np.arange(n + 1) * length
        tokens = Tokens(x, doy, np.zeros(n * length, np.float32), offsets, np.tile(np.arange(length), n), offsets)
        pooled.append(run_padded(backbone, tokens, 100, lambda _: None, torch.float32))
    with torch.inference_mode():
        out = network.fuse(*pooled).cpu().numpy()
    np.testing.assert_allclose(out, wanted["embedding"], rtol=0, atol=1e-4)


def golden_pixels(tile: dict[str, np.ndarray]) -> dict[str, Any]:
    flat = {name: np.moveaxis(tile[name], 0, 2) for name in ("bands", "masks", "sar_ascending", "sar_descending")}
    flat = {name: a.reshape(30, *a.shape[2:]) for name, a in flat.items()}
    orbits = [np.full(len(tile[f"sar_{o}_doy"]), o == "descending") for o in ("ascending", "descending")]
    return {
        "s2": flat["bands"].astype(np.uint16), "s2_doy": tile["doys"], "s2_valid": flat["masks"] > 0,
        "s1": np.concatenate([flat["sar_ascending"], flat["sar_descending"]], axis=1).astype(np.int16),
        "s1_doy": np.concatenate([tile["sar_ascending_doy"], tile["sar_descending_doy"]]),
        "s1_descending": np.concatenate(orbits),
    }  # fmt: skip
