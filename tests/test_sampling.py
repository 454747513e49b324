"""Which observations enter: policies and gathered tokens, against plain loops written from the specification."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera_xr.encoder.sampling import N_DRAWN, draw_v1_0, next_bin, pattern, pixel_keys, sequence_v1_1, sequence_v2
from tessera_xr.encoder.tokens import Series, Tokens, gather

LENGTHS = range(601)


def plain_bin(n: int) -> int:
    for size in range(8, 257, 8):
        if n <= size:
            return size
    return 256


def middles(n: int, n_runs: int) -> list[int]:
    return [int(run[len(run) // 2]) for run in np.array_split(np.arange(n), n_runs)]


def plain_v1_1(n: int) -> list[int]:
    if n == 0:
        return [-1] * 8
    if n > 256:
        return middles(n, 256)
    extras = np.rint(np.linspace(0, n - 1, plain_bin(n) - n + 2)[1:-1])
    return [*range(n), *extras.astype(int).tolist()]


def plain_v2(n: int) -> list[int]:
    if n == 0:
        return [-1]
    r = plain_bin(n) - n
    if r <= 0:
        return [int(v) for v in np.linspace(0, n - 1, plain_bin(n))]
    return [*range(n), *(middles(n, r) if r <= n else [i % n for i in range(r)])]


PLAIN = {"v1.1": plain_v1_1, "v2": plain_v2}


def test_the_two_paddings_are_not_the_same():
    assert sequence_v1_1(5).tolist() == [0, 1, 2, 3, 4, 1, 2, 3]
    assert sequence_v2(5).tolist() == [0, 1, 2, 3, 4, 1, 3, 4]
    assert sequence_v2(3).tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    assert (sequence_v1_1(0).tolist(), sequence_v2(0).tolist()) == ([-1] * 8, [-1])
    assert sequence_v1_1(300)[-1] == 299
    assert sequence_v2(300)[-1] == 299
    assert sequence_v1_1(512).tolist() == list(range(1, 512, 2))


@pytest.mark.parametrize(("policy", "sequence"), [("v1.1", sequence_v1_1), ("v2", sequence_v2)])
def test_sequences_of_every_length(policy, sequence):
    for n in LENGTHS:
        found = sequence(n).tolist()
        assert found == PLAIN[policy](n), n
        assert next_bin(n) == plain_bin(n)
        if 0 < n <= 256:
            assert set(found) == set(range(n)), "every valid step is read while there is room"


@pytest.mark.parametrize("policy", ["v1.1", "v2"])
def test_a_pattern_is_its_sequence_without_repeats(policy):
    for n in LENGTHS:
        found = pattern(policy, n)
        np.testing.assert_array_equal(found.steps[found.sequence], PLAIN[policy](n))
        assert found.counts.sum() == len(found.sequence)
        assert (np.diff(found.steps) > 0).all()
        np.testing.assert_array_equal(np.bincount(found.sequence), found.counts)


# Gathering ---------------------------------------------------------------------------------------------------------


def make_series(valid: np.ndarray, seed: int = 0, doy_per_pixel: bool = False) -> Series:
    rng = np.random.default_rng(seed)
    n_pixels, n_steps = valid.shape
    doy = rng.integers(1, 367, (n_pixels, n_steps) if doy_per_pixel else n_steps)
    mean, std = rng.normal(3000, 500, (2, n_steps, 2)).astype(np.float32)
    return Series(rng.integers(1, 30_000, (n_pixels, n_steps, 2)).astype(np.int16), doy, valid, mean, std)


def plain_tokens(series: Series, pixel: int, policy: str) -> list[tuple[float, float, int]]:
    """Return (VV, VH, day) of every step that the network reads of one pixel, repeats included."""
    steps = [t for t in range(series.valid.shape[1]) if series.valid[pixel, t]]
    doy = np.broadcast_to(series.doy, series.valid.shape)
    read = []
    for k in PLAIN[policy](len(steps)):
        if k == -1:
            read.append((0.0, 0.0, 0))
            continue
        t = steps[k]
        bands = [(float(series.values[pixel, t, c]) - series.mean[t, c]) / (series.std[t, c] + 1e-9) for c in (0, 1)]
        read.append((*bands, int(doy[pixel, t])))
    return read


def read_back(tokens: Tokens, place: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the sequence that a pixel's tokens stand for: (values and day (L, 3), how often each token stands)."""
    one = tokens.take(slice(place, place + 1))
    read = np.column_stack([one.x, one.doy])[one.sequence]
    np.testing.assert_allclose(np.exp(one.log_counts), np.bincount(one.sequence), rtol=1e-6)
    return read, one.sequence


@st.composite
def masks(draw, max_steps=40):
    n_pixels, n_steps = draw(st.integers(1, 6)), draw(st.integers(0, max_steps))
    share = draw(st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return rng.random((n_pixels, n_steps)) < share * rng.random((n_pixels, 1)) + (share == 1)


@pytest.mark.parametrize("policy", ["v1.1", "v2"])
@settings(max_examples=60, deadline=None)
@given(valid=masks(), doy_per_pixel=st.booleans())
def test_gathered_tokens_are_those_of_a_plain_loop(policy, valid, doy_per_pixel):
    series = make_series(valid, doy_per_pixel=doy_per_pixel)
    tokens, pixels = gather(series, policy, seed=0)
    assert sorted(pixels) == list(range(len(valid)))
    assert (np.diff(valid.sum(axis=1)[pixels]) >= 0).all(), "equal lengths must be neighbours"
    for place, pixel in enumerate(pixels):
        read, _ = read_back(tokens, place)
        np.testing.assert_allclose(read, plain_tokens(series, pixel, policy), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("policy", ["v1.1", "v2"])
def test_long_series_are_thinned(policy):
    rng = np.random.default_rng(4)
    series = make_series(rng.random((4, 420)) < np.array([[1.0], [0.9], [0.62], [0.3]]))
    tokens, pixels = gather(series, policy, seed=0)
    for place, pixel in enumerate(pixels):
        read, _ = read_back(tokens, place)
        assert len(read) <= 256
        np.testing.assert_allclose(read, plain_tokens(series, pixel, policy), rtol=1e-5, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(valid=masks(), budget=st.integers(1, 300))
def test_batches_hold_every_pixel_once_within_the_budget(valid, budget):
    tokens, _ = gather(make_series(valid), "v2", seed=0)
    batches = list(tokens.batches(budget))
    assert [i for b in batches for i in range(b.start, b.stop)] == list(range(len(tokens)))
    for batch in batches:
        part = tokens.take(batch)
        assert len(part.x) <= budget or len(part) == 1
        assert part.offsets[-1] == len(part.x) == len(part.doy) == len(part.log_counts)
        assert part.sequence_offsets[-1] == len(part.sequence)


def test_small_rests_are_not_left_over():
    tokens, _ = gather(make_series(np.ones((100, 10), dtype=bool)), "v2", seed=0)
    sizes = [batch.stop - batch.start for batch in tokens.batches(990)]
    assert sizes == [50, 50]


# v1.0 --------------------------------------------------------------------------------------------------------------


def drawn(series: Series, seed: int = 0) -> np.ndarray:
    return draw_v1_0(series.valid, pixel_keys(series.values, series.doy, series.valid), seed)


@settings(max_examples=60, deadline=None)
@given(valid=masks(max_steps=90).filter(lambda m: m.shape[1] > 0), seed=st.integers(-(2**40), 2**40))
def test_draws_are_sorted_and_valid(valid, seed):
    steps = drawn(make_series(valid), seed)
    assert steps.shape == (len(valid), N_DRAWN)
    for row, usable in zip(steps, valid, strict=True):
        allowed = np.flatnonzero(usable) if usable.any() else np.arange(len(usable))
        assert set(row) <= set(allowed)
        assert (np.diff(row) >= 0).all()
        if len(allowed) >= N_DRAWN:
            assert len(set(row)) == N_DRAWN, "without replacement"
        if len(allowed) == N_DRAWN:
            np.testing.assert_array_equal(row, allowed)


def test_draws_hang_on_the_pixel_and_the_seed_alone():
    rng = np.random.default_rng(1)
    series = make_series(rng.random((60, 70)) < rng.random((60, 1)), doy_per_pixel=True)
    steps = drawn(series)
    np.testing.assert_array_equal(drawn(series), steps)
    order = rng.permutation(60)
    np.testing.assert_array_equal(drawn(series.take(order)), steps[order])
    np.testing.assert_array_equal(drawn(series.take(slice(17, 18))), steps[17:18])
    assert (drawn(series, seed=1) != steps).any(axis=1).mean() > 0.95
    assert (drawn(series, seed=-1) != drawn(series, seed=1)).any(axis=1).mean() > 0.95


def test_invalid_steps_have_no_say_in_the_draw():
    rng = np.random.default_rng(2)
    series = make_series(rng.random((40, 80)) < 0.7)
    steps = drawn(series)
    poisoned = np.where(series.valid[..., None], series.values, -7)
    np.testing.assert_array_equal(drawn(Series(poisoned, series.doy, series.valid, series.mean, series.std)), steps)
    at = 30  # one more date, cloudy everywhere
    wider = Series(
        np.insert(series.values, at, 99, axis=1),
        np.insert(series.doy, at, 1),
        np.insert(series.valid, at, False, axis=1),
        series.mean,
        series.std,
    )
    np.testing.assert_array_equal(drawn(wider), np.where(steps >= at, steps + 1, steps))


def test_pixels_alike_in_all_but_one_value_draw_differently():
    series = make_series(np.ones((1, 80), dtype=bool))
    twins = np.repeat(series.values, 2, axis=0)
    twins[1, 40, 1] += 1
    first, second = drawn(Series(twins, series.doy, np.ones((2, 80), dtype=bool), series.mean, series.std))
    assert (first != second).any()


@pytest.mark.parametrize(("n_valid", "n_steps"), [(10, 10), (10, 60), (80, 80), (50, 120)])
def test_draws_are_uniform(n_valid, n_steps):
    n_pixels = 4000
    valid = np.zeros((n_pixels, n_steps), dtype=bool)
    valid[:, :: n_steps // n_valid][:, :n_valid] = True
    steps = drawn(make_series(valid, seed=9))
    counts = np.bincount(steps.ravel(), minlength=n_steps)[valid[0]]
    expected = n_pixels * N_DRAWN / n_valid
    spread = np.sqrt(expected * (1 - (N_DRAWN / n_valid if n_valid >= N_DRAWN else 1 / n_valid)))
    assert np.abs(counts - expected).max() < 5 * spread
    halves = np.array([[(row < n_steps // 2).sum() for row in steps]])
    assert halves.std() > 1, "pixels draw apart from each other"


def test_v1_0_tokens_are_the_drawn_steps():
    rng = np.random.default_rng(3)
    series = make_series(rng.random((12, 55)) < 0.8)
    tokens, pixels = gather(series, "v1.0", seed=5)
    steps = drawn(series, seed=5)
    for place, pixel in enumerate(pixels):
        read, sequence = read_back(tokens, place)
        values = (series.values[pixel, steps[pixel]] - series.mean[steps[pixel]]) / series.std[steps[pixel]]
        np.testing.assert_allclose(read[:, :2], values, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(read[:, 2], series.doy[steps[pixel]])
        np.testing.assert_array_equal(sequence, np.arange(N_DRAWN))


def test_v1_0_without_any_step_reads_zeros():
    tokens, _ = gather(make_series(np.zeros((3, 0), dtype=bool)), "v1.0", seed=0)
    assert (tokens.x == 0).all()
    assert (tokens.doy == 0).all()
    assert tokens.lengths.tolist() == [N_DRAWN] * 3
