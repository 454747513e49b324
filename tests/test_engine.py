"""Arrays to vectors: what must change the result, and what must not."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from tessera_xr.embedding import engine
from tessera_xr.embedding.engine import Output, encode, resolve_dims
from tessera_xr.encoder import forward
from tessera_xr.encoder.cpu import FastBackbone
from tessera_xr.encoder.network import Backbone
from tessera_xr.errors import DeviceError, SchemaError, TesseraWarning

VARIANTS = ("v2", "v2-qk-norm", "v2-teacher", "v1.1", "v1.0", "v1.0-early")
TOLERANCE = 2e-5


def run(encoder: Any, pixels: dict[str, Any], **options: Any) -> Output:
    return encode(encoder, **pixels, **({"dims": encoder.record.n_dims} | options))


def close(left: np.ndarray, right: np.ndarray, tolerance: float = TOLERANCE) -> None:
    np.testing.assert_allclose(left, right, rtol=tolerance, atol=tolerance)


def some(pixels: dict[str, Any], which: Any) -> dict[str, Any]:
    """Return some of the pixels."""
    return pixels | {name: pixels[name][which] for name in ("s2", "s2_valid", "s1")}


@pytest.fixture
def fresh_workers():
    """Start the CPU's worker threads anew, before and after."""
    n = torch.get_num_threads()
    forward._workers.cache_clear()
    yield
    forward._workers.cache_clear()
    torch.set_num_threads(n)


@pytest.mark.parametrize("variant", VARIANTS)
def test_pixels_have_nothing_to_do_with_each_other(variant, make_encoder, make_pixels):
    encoder, pixels = make_encoder(variant), make_pixels()
    whole = run(encoder, pixels).values
    assert np.nanstd(whole, axis=0).min() > 1e-3, "the embedding must depend on the pixel"
    order = np.random.default_rng(0).permutation(len(whole))
    close(run(encoder, some(pixels, order)).values, whole[order])
    pieces = [run(encoder, some(pixels, slice(i, i + 5))).values for i in range(0, len(whole), 5)]
    close(np.concatenate(pieces), whole)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("budget", [1, 37, 100_000])
def test_any_budget_gives_the_same(variant, budget, make_encoder, make_pixels):
    encoder, pixels = make_encoder(variant), make_pixels()
    close(run(encoder, pixels, budget=budget).values, run(encoder, pixels).values)


def test_any_slab_gives_the_same(make_encoder, make_pixels, monkeypatch):
    encoder, pixels = make_encoder(), make_pixels()
    expected = run(encoder, pixels, dtype="int8")
    monkeypatch.setattr(engine, "SLAB_STEPS", 100)  # two or three pixels
    found = run(encoder, pixels, dtype="int8")
    assert np.abs(found.values.astype(int) - expected.values).max() <= 1
    close(found.scales, expected.scales)


@pytest.mark.parametrize("variant", VARIANTS)
def test_pixels_without_any_observation_have_no_embedding(variant, make_encoder, make_pixels):
    encoder, pixels = make_encoder(variant), make_pixels()
    empty = np.arange(24) == 0
    out = run(encoder, pixels)
    assert out.values.dtype == np.float32
    assert out.scales is None
    np.testing.assert_array_equal(np.isnan(out.values), np.repeat(empty[:, None], encoder.record.n_dims, 1))
    codes = run(encoder, pixels, dtype="int8")
    assert codes.values.dtype == np.int8
    assert (codes.values[0] == 0).all()
    np.testing.assert_array_equal(np.isnan(codes.scales), empty)


def test_nothing_at_all(make_encoder, make_pixels):
    pixels = some(make_pixels(), slice(0, 1))
    assert np.isnan(run(make_encoder(), pixels).values).all()
    assert run(make_encoder(), some(pixels, slice(0, 0))).values.shape == (0, 128)


@pytest.mark.parametrize("variant", ["v2", "v1.1"])
def test_one_sensor_alone_is_the_other_with_nothing_seen(variant, make_encoder, make_pixels):
    encoder, pixels = make_encoder(variant), make_pixels()
    whole = run(encoder, pixels).values
    s2_only = pixels | {
        "s1": np.zeros((24, 0, 2), np.int16),
        "s1_doy": np.zeros(0, int),
        "s1_descending": np.zeros(0, bool),
    }
    s1_only = pixels | {
        "s2": np.zeros((24, 0, 10), np.uint16),
        "s2_doy": np.zeros(0, int),
        "s2_valid": np.zeros((24, 0), bool),
    }
    close(run(encoder, s2_only).values[2], whole[2])
    close(run(encoder, s1_only).values[1], whole[1])
    assert np.isnan(run(encoder, s2_only).values[1]).all()
    assert np.abs(run(encoder, s2_only).values[5] - whole[5]).max() > 1e-3


@pytest.mark.parametrize("variant", VARIANTS)
def test_values_of_invalid_observations_do_not_matter(variant, make_encoder, make_pixels):
    """But for v1.0, which draws from all steps where none is valid."""
    encoder, pixels = make_encoder(variant), make_pixels()
    if encoder.record.policy == "v1.0":
        pixels = some(pixels, pixels["s2_valid"].any(axis=1))
    poisoned = pixels | {"s2": np.where(pixels["s2_valid"][..., None], pixels["s2"], 65535).astype(np.uint16)}
    assert (poisoned["s2"] != pixels["s2"]).any()
    close(run(encoder, poisoned).values, run(encoder, pixels).values)


@pytest.mark.parametrize("variant", ["v2", "v1.1", "v1.0"])
def test_cloudy_dates_may_be_left_out(variant, make_encoder, make_pixels):
    encoder, pixels = make_encoder(variant), make_pixels()
    pixels["s2_valid"][:, [0, 7, 20]] = False
    pixels["s1"][:, [3, 14]] = 0
    keep2, keep1 = np.delete(np.arange(21), [0, 7, 20]), np.delete(np.arange(15), [3, 14])
    fewer = {
        "s2": pixels["s2"][:, keep2], "s2_doy": pixels["s2_doy"][keep2], "s2_valid": pixels["s2_valid"][:, keep2],
        "s1": pixels["s1"][:, keep1], "s1_doy": pixels["s1_doy"][keep1],
        "s1_descending": pixels["s1_descending"][keep1],
    }  # fmt: skip
    rows = np.arange(24)
    if variant == "v1.0":  # draws from all steps where none is valid
        rows = np.flatnonzero(pixels["s2_valid"].any(axis=1) & (pixels["s1"] != 0).any(axis=(1, 2)))
    close(run(encoder, fewer).values[rows], run(encoder, pixels).values[rows])


@pytest.mark.parametrize("variant", ["v2", "v1.0"])
def test_days_may_be_given_for_each_pixel(variant, make_encoder, make_pixels):
    encoder, pixels = make_encoder(variant), make_pixels()
    wide = {name: np.tile(pixels[name], (24, 1)) for name in ("s2_doy", "s1_doy")}
    close(run(encoder, pixels | wide).values, run(encoder, pixels).values)
    wide["s2_doy"][6] = wide["s2_doy"][6][::-1]
    changed = np.abs(run(encoder, pixels | wide).values - run(encoder, pixels).values).max(axis=1) > 1e-4
    assert np.flatnonzero(changed).tolist() == [6]


@pytest.mark.parametrize("variant", VARIANTS)
def test_ascending_orbits_come_first_however_they_are_given(variant, make_encoder, make_pixels):
    encoder, pixels = make_encoder(variant), make_pixels()
    by_orbit = np.argsort(~pixels["s1_descending"], kind="stable")  # descending first
    turned = pixels | {
        "s1": pixels["s1"][:, by_orbit],
        "s1_doy": pixels["s1_doy"][by_orbit],
        "s1_descending": pixels["s1_descending"][by_orbit],
    }
    close(run(encoder, turned).values, run(encoder, pixels).values)


@pytest.mark.parametrize(("variant", "matters"), [("v2", True), ("v1.1", True), ("v2-teacher", False)])
def test_each_orbit_has_its_statistics_where_the_version_has_them(variant, matters, make_encoder, make_pixels):
    encoder, pixels = make_encoder(variant), make_pixels()
    first, second = (run(encoder, pixels | {"s1_descending": np.full(15, d)}).values for d in (False, True))
    assert (np.nanmax(np.abs(first - second)) > 1e-3) == matters


def test_statistics_are_those_of_the_record(make_encoder, make_pixels):
    """Shifting the imagery and the mean alike changes nothing; shifting one of them does."""
    encoder, pixels = make_encoder(), make_pixels()
    shifted = pixels | {"s2": pixels["s2"] + np.uint16(500)}
    known = encoder.record.statistics
    statistics = replace(known, s2_mean=tuple(m + 500 for m in known.s2_mean))
    moved = replace(encoder, record=replace(encoder.record, statistics=statistics))
    close(run(moved, shifted).values, run(encoder, pixels).values)
    assert np.nanmax(np.abs(run(encoder, shifted).values - run(encoder, pixels).values)) > 1e-2


def test_int8_is_the_quantised_float32(make_encoder, make_pixels):
    encoder, pixels = make_encoder(), make_pixels()
    values = run(encoder, pixels).values[1:]
    codes = run(encoder, pixels, dtype="int8")
    scales = np.abs(values).max(axis=1) / 127
    close(codes.scales[1:], scales, 1e-6)
    steps = np.abs(codes.values[1:] - np.rint(values / scales[:, None]))
    assert steps.max() <= 1
    assert (steps > 0).mean() < 1e-3, "rounding alone"


@pytest.mark.parametrize("dims", [16, 32, 64])
def test_short_lengths_are_the_first_values(dims, make_encoder, make_pixels):
    encoder, pixels = make_encoder(), make_pixels()
    close(run(encoder, pixels, dims=dims).values, run(encoder, pixels).values[:, :dims])
    short, values = run(encoder, pixels, dims=dims, dtype="int8"), run(encoder, pixels).values[1:, :dims]
    close(short.scales[1:], np.abs(values).max(axis=1) / 127, 1e-6)


def test_lengths_that_a_model_does_not_have(make_encoder):
    with pytest.raises(SchemaError, match=r"no embedding of 100 values: its lengths are \(16, 32, 64, 128\)"):
        resolve_dims(make_encoder("v2").record, 100)
    for variant in ("v1.1", "v1.0", "v2-teacher"):
        with pytest.raises(SchemaError, match="not a Matryoshka model and must not be cut"):
            resolve_dims(make_encoder(variant).record, 32)


def test_the_seed_matters_to_v1_0_alone(make_encoder, make_pixels):
    pixels = make_pixels(n_s2=60, n_s1=50)
    for variant in VARIANTS:
        encoder = make_encoder(variant)
        first, again, other = (run(encoder, pixels, seed=s).values for s in (0, 0, 1))
        close(first, again)
        assert (np.nanmax(np.abs(first - other)) > 1e-3) == variant.startswith("v1.0")


def test_progress_counts_every_pixel_with_data(make_encoder, make_pixels, monkeypatch):
    updates: list[int] = []

    class Bar:
        def __init__(self, total: int, **_: Any) -> None:
            self.total = total

        def __enter__(self) -> Bar:
            return self

        def __exit__(self, *_: object) -> None:
            assert sum(updates) == self.total == 23

        def update(self, n: int) -> None:
            updates.append(n)

    monkeypatch.setattr(engine, "tqdm", Bar)
    run(make_encoder(), make_pixels(), progress=True, budget=50)
    assert len(updates) > 3


# When things go wrong ----------------------------------------------------------------------------------------------


def limit(monkeypatch: pytest.MonkeyPatch, n_tokens: int) -> None:
    """Let the general path run out of memory above a size of batch, as a GPU would."""
    forward_of = Backbone.forward

    def limited(self: Backbone, x: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        if x.shape[0] * x.shape[1] > n_tokens:
            raise torch.OutOfMemoryError("out of memory")
        return forward_of(self, x, *rest)

    monkeypatch.setattr(Backbone, "forward", limited)


def test_running_out_of_memory_halves_the_batches(make_encoder, make_pixels, monkeypatch):
    encoder, pixels = make_encoder("v2-qk-norm"), make_pixels(200)
    expected = run(encoder, pixels).values
    limit(monkeypatch, 300)
    with pytest.warns(TesseraWarning, match=r"ran out of memory; going on .* \(pass token_budget=\d+"):
        found = run(encoder, pixels, budget=10_000).values
    close(found, expected)


def test_too_little_memory_for_one_pixel(make_encoder, make_pixels, monkeypatch):
    limit(monkeypatch, 5)
    with pytest.warns(TesseraWarning), pytest.raises(DeviceError, match="not enough memory for one pixel"):
        run(make_encoder("v2-qk-norm"), make_pixels(), budget=10_000)


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_an_interrupt_gets_through_and_leaves_no_trace(error, make_encoder, make_pixels, monkeypatch):
    encoder, pixels = make_encoder(), make_pixels(300)
    expected, calls, call = run(encoder, pixels).values, [], FastBackbone.__call__

    def interrupted(self: FastBackbone, *args: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise error
        return call(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(FastBackbone, "__call__", interrupted)
        with pytest.raises(error):
            run(encoder, pixels, budget=20)
    assert len(calls) < 60, "batches that had not begun are dropped"
    close(run(encoder, pixels).values, expected)


# Threads -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["v2", "v2-qk-norm", "v1.1"])
def test_the_number_of_threads_changes_nothing(variant, make_encoder, make_pixels, fresh_workers):
    encoder, pixels, found = make_encoder(variant), make_pixels(60), []
    for n in (1, 2):
        torch.set_num_threads(n)
        forward._workers.cache_clear()
        found.append(run(encoder, pixels, budget=50).values)
        assert torch.get_num_threads() == n, "the setting is the user's"
    close(found[0], found[1])


def test_threads_started_later_keep_the_setting(make_encoder, make_pixels, fresh_workers):
    torch.set_num_threads(2)
    forward._workers.cache_clear()
    run(make_encoder(), make_pixels())
    seen: list[int] = []
    thread = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert seen == [2]


@pytest.mark.parametrize("variant", ["v2", "v2-qk-norm", "v1.1"])
def test_calls_side_by_side_do_not_disturb_each_other(variant, make_encoder, make_pixels):
    encoders = [make_encoder(variant, seed=s) for s in (0, 1)]
    jobs = [(encoders[i % 2], make_pixels(40, 20 + i, seed=i)) for i in range(8)]
    expected = [run(encoder, pixels, budget=60).values for encoder, pixels in jobs]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            found = list(pool.map(lambda job: run(*job, budget=60).values, jobs))
            for left, right in zip(found, expected, strict=True):
                close(left, right)
