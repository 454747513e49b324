"""The network: against torch's own layers, plain loops, and itself in its other forms."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from tessera_xr.encoder.cpu import FastBackbone, can_run
from tessera_xr.encoder.forward import run_backbone, run_fast, run_padded
from tessera_xr.encoder.network import (
    Architecture,
    Backbone,
    GRUCell,
    PostNormLayer,
    QKNormLayer,
    TesseraEncoder,
    doy_encoding,
)
from tessera_xr.encoder.products import rounds
from tessera_xr.encoder.registry import RECORDS
from tessera_xr.encoder.teacher import TesseraTeacher
from tessera_xr.encoder.tokens import Series, Tokens, gather

VARIANTS = ("v2", "v2-qk-norm", "v2-teacher", "v1.1", "v1.0", "v1.0-early")
FAST = ("v2", "v1.1", "v1.0")


def nothing(n: int) -> None:
    """Do nothing with the progress made."""


def ragged(policy: str, n_pixels: int = 23, n_steps: int = 45, seed: int = 0) -> Tokens:
    """Make tokens of pixels with 0, 1 and up to all steps, some lengths more than once."""
    rng = np.random.default_rng(seed)
    n_valid = np.concatenate([[0, 1, 2, n_steps, n_steps], rng.integers(3, n_steps, n_pixels - 5)])
    valid = np.argsort(rng.random((n_pixels, n_steps)), axis=1) < n_valid[:, None]
    values = rng.integers(200, 6000, (n_pixels, n_steps, 10))
    mean, std = np.full((n_steps, 10), 2000, np.float32), np.full((n_steps, 10), 1500, np.float32)
    return gather(Series(values, rng.integers(1, 367, n_steps), valid, mean, std), policy, seed=0)[0]


@torch.inference_mode()
def repeated(backbone: Backbone, tokens: Tokens) -> torch.Tensor:
    """Run each pixel alone on its sequence in full, every repeat a token of its own: what TESSERA's code does."""
    pooled = []
    for i in range(len(tokens)):
        one = tokens.take(slice(i, i + 1))
        x, doy = (torch.from_numpy(a[one.sequence])[None] for a in (one.x, one.doy))
        pooled.append(backbone(x, doy))
    return torch.cat(pooled)


def close(left: torch.Tensor, right: torch.Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(left, right, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("variant", VARIANTS)
def test_distinct_observations_with_weights_equal_the_repeated_sequence(variant, make_encoder):
    encoder = make_encoder(variant)
    backbone = encoder.network.s2_backbone
    tokens = ragged(encoder.record.policy)
    assert encoder.record.policy == "v1.0" or (tokens.lengths < np.diff(tokens.sequence_offsets)).any()
    expected = repeated(backbone, tokens)
    assert expected.std() > 0.01
    close(run_backbone(backbone, tokens, 200, nothing, torch.float32), expected)
    close(run_padded(backbone, tokens, 200, nothing, torch.float32), expected)


@pytest.mark.parametrize("variant", FAST)
@pytest.mark.parametrize("budget", [1, 100, 10_000])
def test_the_fast_path_equals_the_padded_one(variant, budget, make_encoder):
    encoder = make_encoder(variant, seed=3)
    backbone = encoder.network.s2_backbone
    tokens = ragged(encoder.record.policy, seed=1)
    fast = run_fast(FastBackbone(backbone), tokens, budget, nothing)
    close(fast, run_padded(backbone, tokens, 300, nothing, torch.float32))


@pytest.mark.skipif(not rounds(), reason="this processor has no bfloat16 that oneDNN uses")
@pytest.mark.parametrize("variant", FAST)
def test_the_fast_path_in_bfloat16_is_close_and_taken(variant, make_encoder):
    encoder = make_encoder(variant, seed=3)
    backbone, tokens = encoder.network.s2_backbone, ragged(encoder.record.policy, seed=1)
    full = run_fast(FastBackbone(backbone), tokens, 300, nothing)
    half = run_fast(FastBackbone(backbone, torch.bfloat16), tokens, 300, nothing)
    cosine = torch.nn.functional.cosine_similarity(full, half)
    assert cosine.min() > 0.99  # of random weights
    assert (full - half).abs().max() > 1e-4, "bfloat16 was not used"
    close(run_backbone(backbone, tokens, 300, nothing, torch.bfloat16), half)


def test_the_fast_path_is_taken_where_it_is_known(make_encoder):
    assert [can_run(make_encoder(v).network.s2_backbone) for v in VARIANTS] == [v in FAST for v in VARIANTS]


@pytest.mark.parametrize("variant", VARIANTS)
def test_progress_counts_every_token_once(variant, make_encoder):
    encoder, done = make_encoder(variant), []
    tokens = ragged(encoder.record.policy)
    run_backbone(encoder.network.s2_backbone, tokens, 90, done.append, torch.float32)
    assert sum(done) == len(tokens.x)
    assert len(done) > 1


@pytest.mark.parametrize("variant", VARIANTS)
@torch.inference_mode()
def test_padding_changes_nothing(variant, make_encoder):
    backbone = make_encoder(variant).network.s2_backbone
    generator = torch.Generator().manual_seed(1)
    x, doy = torch.randn(2, 5, 10, generator=generator), torch.randint(1, 367, (2, 5), generator=generator)
    counts, sequence = torch.tensor([1.0, 2, 1, 3, 1]).log().repeat(2, 1), torch.tensor([[0, 1, 2, 3, 4, 1, 3, 3]] * 2)
    plain = backbone(x, doy, counts, sequence, torch.zeros(2, 8))
    wide = [torch.cat([x, torch.full((2, 3, 10), 50.0)], 1), torch.cat([doy, torch.full((2, 3), 9)], 1)]
    wide.append(torch.cat([counts, torch.full((2, 3), -torch.inf)], 1))
    wide.append(torch.cat([sequence, torch.full((2, 4), 6)], 1))
    wide.append(torch.cat([torch.zeros(2, 8), torch.full((2, 4), -torch.inf)], 1))
    close(backbone(*wide), plain)
    repeated_x, repeated_doy = (t.take_along_dim(s, 1) for t, s in ((x, sequence[..., None]), (doy, sequence)))
    close(backbone(repeated_x, repeated_doy), plain)


@torch.inference_mode()
def test_a_layer_is_torchs_own():
    ours = PostNormLayer(32, 4, 48)
    theirs = nn.TransformerEncoderLayer(32, 4, 48, batch_first=True, activation="relu").eval()
    for weight in ours.parameters():
        weight.normal_(std=0.3)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    x = torch.randn(3, 7, 32)
    close(ours(x, None), theirs(x))
    bias = torch.tensor([0.0, 0, 0, 0, 0, -torch.inf, -torch.inf])
    padded = theirs(x, src_key_padding_mask=(bias < 0).repeat(3, 1))
    close(ours(x, bias.repeat(3, 1)[:, None, None])[:, :5], padded[:, :5])


@pytest.mark.parametrize("pre_norm", [False, True])
@torch.inference_mode()
def test_a_qk_norm_layer_is_what_the_formulas_say(pre_norm):
    layer = QKNormLayer(12, 3, 20, pre_norm=pre_norm)
    for weight in layer.parameters():
        weight.normal_(std=0.4)
    x = torch.randn(5, 12)

    def rms(head: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return head / (head.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * weight

    def attention(y: torch.Tensor) -> torch.Tensor:
        q, k, v = layer.q_proj(y), layer.k_proj(y), layer.v_proj(y)
        heads = []
        for h in range(3):
            c = slice(4 * h, 4 * h + 4)
            logits = rms(q[:, c], layer.q_norm.weight) @ rms(k[:, c], layer.k_norm.weight).T / math.sqrt(4)
            heads.append(logits.softmax(-1) @ v[:, c])
        return layer.out_proj(torch.cat(heads, -1))

    def feed(y: torch.Tensor) -> torch.Tensor:
        return layer.linear2(layer.linear1(y).relu())

    if pre_norm:
        middle = x + attention(layer.norm1(x))
        expected = middle + feed(layer.norm2(middle))
    else:
        middle = layer.norm1(x + attention(x))
        expected = layer.norm2(middle + feed(middle))
    close(layer(x[None], None)[0], expected)


@torch.inference_mode()
def test_the_recurrent_unit_resets_before_the_hidden_product():
    cell = GRUCell(6)
    for weight in cell.parameters():
        weight.normal_(std=0.8)
    w = {name: value.double().numpy() for name, value in cell.state_dict().items()}
    x, h = np.random.default_rng(0).normal(size=(2, 4, 6))

    def gate(a: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-a))

    r = gate(x @ w["W_ir.weight"].T + h @ w["W_hr.weight"].T + w["b_r"])
    z = gate(x @ w["W_iz.weight"].T + h @ w["W_hz.weight"].T + w["b_z"])
    n = np.tanh(x @ w["W_ih.weight"].T + (r * h) @ w["W_hh.weight"].T + w["b_h"])
    inputs, state = (torch.from_numpy(a).float() for a in (x, h))
    close(cell(cell.project(inputs), state), torch.from_numpy((1 - z) * h + z * n).float())


def test_days_are_encoded_by_sines_and_cosines():
    width, days = 32, [0, 1, 60, 366]
    expected = [
        [(math.sin, math.cos)[c % 2](day / 10000 ** ((c - c % 2) / width)) for c in range(width)] for day in days
    ]
    close(doy_encoding(torch.tensor(days), width), torch.tensor(expected), 1e-4)


@torch.inference_mode()
def test_days_may_be_fractions_and_whole_ones_agree(make_encoder):
    backbone = make_encoder().network.s1_backbone
    x, doy = torch.randn(2, 4, 2), torch.tensor([[1, 60, 200, 366], [5, 5, 6, 7]])
    close(backbone(x, doy.float()), backbone(x, doy))
    assert (backbone(x, doy + 0.5) - backbone(x, doy)).abs().max() > 1e-3


@pytest.mark.parametrize("variant", VARIANTS)
@torch.inference_mode()
def test_a_single_observation_is_its_own_mean(variant, make_encoder):
    pool = make_encoder(variant).network.s2_backbone.attn_pool
    token = torch.randn(3, 1, 32)
    close(pool(token, None, None, None), token[:, 0])


PARAMETERS = {  # as published
    "v1.0-early": 87_841_922,
    "v1.0": 45_828_226,
    "v1.1-mpc": 57_708_738,
    "v1.1-aws": 57_708_738,
    "v2-nano": 1_066_402,
    "v2-small": 7_112_322,
    "v2-medium": 21_031_506,
    "v2-large": 43_831_170,
    "v2-teacher": 2_064_266_242,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_sizes_are_those_of_the_published_networks(name):
    record = RECORDS[name]
    with torch.device("meta"):
        network = (TesseraTeacher if name == "v2-teacher" else TesseraEncoder)(record.arch)
    assert sum(p.numel() for p in network.parameters()) == PARAMETERS[name] == record.n_parameters


def test_students_end_normalised_and_others_do_not(make_encoder):
    s2, s1 = torch.randn(9, 32), torch.randn(9, 32)
    for variant in VARIANTS:
        network = make_encoder(variant).network
        with torch.inference_mode():
            out = network.fuse(s2, s1)
        assert torch.allclose(out.pow(2).mean(-1), torch.ones(9), atol=1e-3) == variant.startswith("v2")


def test_the_teacher_always_normalises_queries_and_keys():
    arch = Architecture(8, 1, 4, 48, n_out=64)
    names = TesseraTeacher(replace(arch, qk_norm=False)).state_dict()
    assert "s2_backbone.transformer_encoder.layers.0.q_norm.weight" in names
    assert "fusion_transformer.layers.1.k_norm.weight" in names
