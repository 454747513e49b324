"""Views: only valid steps, with replacement, independent; and augmentation that leaves a pixel what it is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tessera_xr.encoder.registry import V2_STUDENT
from tessera_xr.errors import SchemaError
from tessera_xr.pretraining.ragged import PixelBatch, Ragged, offsets_of
from tessera_xr.pretraining.targets import N_TARGETS, fit_targets, scaled_targets, yearly_targets
from tessera_xr.pretraining.views import ViewOptions, augment, draw_steps, draw_view, mix_views, scalings, spread_view

SCALING = scalings(V2_STUDENT)
N = 40


def ragged(n_bands, seed, *, orbits=False):
    """Pixels with 0, 1, 2, ... observations, whose first band is a number of their own."""
    rng = np.random.default_rng(seed)
    offsets = offsets_of(np.arange(N))
    total = offsets[-1]
    values = rng.integers(300, 6000, (total, n_bands))
    values[:, 0] = np.arange(total) + 500
    group = np.concatenate([np.sort(rng.random(k) < 0.5) for k in range(N)]) if orbits else np.zeros(total)
    doy = np.concatenate([np.sort(rng.integers(1, 366, k)) for k in range(N)])
    return Ragged(values, doy.astype(np.uint16), group.astype(np.uint8), offsets)


@pytest.fixture
def batch():
    return PixelBatch(ragged(10, 0), ragged(2, 1, orbits=True), np.zeros(N, int), np.arange(N))


def first_band(view, mean, std):
    return np.rint(view.x[..., 0].numpy() * std + mean).astype(int) - 500


def test_views_show_valid_steps_of_the_own_pixel_only(batch):
    view = draw_view(batch, ViewOptions(12), SCALING, np.random.default_rng(0))
    assert view.s2.x.shape == (N, 12, 10)
    assert view.s1.x.shape == (N, 12, 2)
    assert view.s2.doy.dtype == torch.int64
    rows = first_band(view.s2, V2_STUDENT.s2_mean[0], V2_STUDENT.s2_std[0])[1:]
    assert (batch.s2.owner[rows] == np.arange(1, N)[:, None]).all()
    assert np.array_equal(batch.s2.doy[rows], view.s2.doy.numpy()[1:])
    expected = (batch.s2.values[rows] - np.array(V2_STUDENT.s2_mean)) / np.array(V2_STUDENT.s2_std)
    assert np.allclose(view.s2.x.numpy()[1:], expected, atol=1e-5)


def test_each_orbit_has_its_own_statistics(batch):
    step = draw_steps(batch.s1.offsets, 12, np.random.default_rng(3))[1:]
    group = batch.s1.group[step].astype(bool)
    mean, std = (np.where(group[..., None], V2_STUDENT.s1_descending[i], V2_STUDENT.s1_ascending[i]) for i in (0, 1))
    expected = (batch.s1.values[step] - mean) / std
    assert group.any()
    assert np.allclose(SCALING[1](batch.s1.values[step], batch.s1.group[step]), expected, atol=1e-5)


def test_a_sensor_without_steps_is_zero_tokens(batch):
    view = draw_view(batch, ViewOptions(5), SCALING, np.random.default_rng(0))
    for sensor in (view.s2, view.s1):
        assert not sensor.x[0].any()
        assert not sensor.doy[0].any()
        assert (sensor.doy[1:] > 0).all()


def test_steps_are_drawn_with_replacement_evenly_and_in_order():
    offsets = offsets_of(np.array([8, 3]))
    drawn = np.stack([draw_steps(offsets, 40, np.random.default_rng(seed)) for seed in range(200)])
    assert (np.diff(drawn, axis=2) >= 0).all()
    counts = np.bincount(drawn[:, 0].ravel(), minlength=8)
    assert counts.min() > 0.9 * 1000
    assert counts.max() < 1.1 * 1000
    assert set(np.unique(drawn[:, 1])) == {8, 9, 10}
    few = [len(np.unique(row)) for row in drawn[:, 0, :8]]
    assert min(few) < 8  # repeats happen: with replacement


def test_views_and_sensors_are_independent():
    same = Ragged(np.arange(50)[:, None] + np.zeros(10), np.arange(1, 51), np.zeros(50, np.uint8), np.array([0, 50]))
    steps = [draw_steps(same.offsets, 20, rng)[0] for rng in [np.random.default_rng(1)] for _ in range(2)]
    assert not np.array_equal(*steps)
    batch = PixelBatch(same, replace(same, values=same.values[:, :2]), np.zeros(1, int), np.zeros(1, int))
    view = draw_view(batch, ViewOptions(20), SCALING, np.random.default_rng(1))
    assert not torch.equal(view.s2.doy, view.s1.doy)
    again = draw_view(batch, ViewOptions(20), SCALING, np.random.default_rng(1))
    assert torch.equal(view.s2.doy, again.s2.doy)


def test_a_spread_view_shows_all_steps_evenly_and_never_changes(batch):
    view = spread_view(batch, 16, SCALING)
    rows = first_band(view.s2, V2_STUDENT.s2_mean[0], V2_STUDENT.s2_std[0])
    for k in (1, 8, 16, 30):
        own = np.flatnonzero(batch.s2.owner == k)
        assert set(rows[k]) <= set(own)
        assert len(set(rows[k])) == min(k, 16)
        counts = np.unique(rows[k], return_counts=True)[1]
        assert counts.max() - counts.min() <= 1
    assert not view.s1.x[0].any()
    assert torch.equal(view.s2.x, spread_view(batch, 16, SCALING).s2.x)


def test_date_dropout_leaves_dates_out_but_no_pixel_empty(batch):
    options = ViewOptions(256, date_dropout=0.9)
    views = [draw_view(batch, options, SCALING, np.random.default_rng(seed)) for seed in range(6)]
    shown = [[len(torch.unique(row)) for row in view.s2.doy] for view in views]
    full = [len(np.unique(batch.s2.doy[batch.s2.owner == k])) for k in range(N)]
    assert np.mean(shown) < 0.75 * np.mean(full)
    assert all((view.s2.doy[1:] > 0).all() for view in views)


def test_monthly_views_hold_the_means_of_the_months(batch):
    view = draw_view(batch, ViewOptions(40, monthly=1.0), SCALING, np.random.default_rng(0))
    assert view.s2.x.shape == (N, 12, 10)
    assert view.s1.doy.shape == (N, 12)
    pixel = N - 1
    mine = batch.s2.owner == pixel
    month = (batch.s2.doy[mine].astype(int) - 1) * 12 // 366
    for x, doy in zip(view.s2.x[pixel].numpy(), view.s2.doy[pixel].tolist(), strict=True):
        mean = batch.s2.values[mine][month == (doy - 1) * 12 // 366].mean(axis=0)
        assert np.allclose(x, (mean - np.array(V2_STUDENT.s2_mean)) / np.array(V2_STUDENT.s2_std), atol=1e-3)
    assert not view.s2.x[0].any()


def test_sensor_dropout_hides_radar_alone(batch):
    view = draw_view(batch, ViewOptions(5, sensor_dropout=1.0), SCALING, np.random.default_rng(0))
    assert not view.s1.x.any()
    assert not view.s1.doy.any()
    assert view.s2.x[1:].any()


def test_nothing_is_changed_by_default(batch):
    same = augment(batch, ViewOptions(), np.random.default_rng(0))
    assert same.s2 is batch.s2
    assert same.s1 is batch.s1


def test_season_shift_moves_both_sensors_of_a_pixel_alike(batch):
    moved = augment(batch, ViewOptions(season_shift=183), np.random.default_rng(0))
    shifts = []
    for k in range(2, N):
        steps = []
        for before, after in ((batch.s2, moved.s2), (batch.s1, moved.s1)):
            old, new = before.take(np.array([k])), after.take(np.array([k]))
            to = dict(zip(map(tuple, new.values.tolist()), new.doy.astype(int).tolist(), strict=True))
            steps += [(to[tuple(v)] - int(d)) % 365 for v, d in zip(old.values.tolist(), old.doy, strict=True)]
            assert (np.diff(new.doy[new.group == 0].astype(int)) >= 0).all()
        assert len(set(steps)) == 1
        shifts.append(steps[0])
    assert len(set(shifts)) > 20
    assert moved.s2.doy.min() >= 1
    assert moved.s2.doy.max() <= 365


def test_brightness_changes_by_one_factor_for_each_pixel_and_band(batch):
    changed = augment(batch, ViewOptions(s2_gain=0.2, s1_offset=1.0), np.random.default_rng(0))
    gain = changed.s2.values / batch.s2.values
    added = changed.s1.values - batch.s1.values
    for owner, per_step in ((batch.s2.owner, gain), (batch.s1.owner, added)):
        for k in (5, 20):
            assert np.allclose(per_step[owner == k], per_step[owner == k][0], rtol=1e-4, atol=2e-3)
        assert np.std(per_step) > 0.1


def test_mixing_is_the_weighted_sum_of_values_and_days(batch):
    rng = np.random.default_rng(0)
    first, second = (draw_view(batch, ViewOptions(6), SCALING, rng) for _ in range(2))
    perm = torch.from_numpy(rng.permutation(N))
    mixed = mix_views(first, second, 0.25, perm)
    for name in ("s2", "s1"):
        a, b, m = (getattr(v, name) for v in (first, second, mixed))
        assert torch.allclose(m.x, 0.25 * a.x + 0.75 * b.x[perm])
        assert torch.allclose(m.doy, 0.25 * a.doy + 0.75 * b.doy[perm])
        assert m.doy.is_floating_point()
    monthly = draw_view(batch, ViewOptions(6, monthly=1.0), SCALING, rng)
    assert mix_views(first, monthly, 0.5, perm).s2.x.shape == (N, 6, 10)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"n_steps": 0}, "n_steps must be a whole number from 1 to 256"),
        ({"season_shift": 200}, "season_shift .* 183"),
        ({"season_shift": 1.5}, "whole number"),
        ({"monthly": 1.2}, "monthly must be a number from 0 to 1"),
        ({"date_dropout": 1}, "0.95"),
    ],
)
def test_bad_options(options, words):
    with pytest.raises(SchemaError, match=words):
        ViewOptions(**options)


def test_targets_are_monthly_values_and_annual_statistics(batch):
    targets, known = yearly_targets(batch)
    assert targets.shape == known.shape == (N, N_TARGETS)
    assert np.isfinite(targets).all()
    assert not known[0].any()
    k = N - 1
    mine = batch.s2.owner == k
    month = (batch.s2.doy[mine].astype(int) - 1) * 12 // 366
    logs = np.log(batch.s2.values[mine].astype(float))
    months = np.array([logs[month == m].mean(axis=0) for m in range(12) if (month == m).any()])
    n_optical = 14
    monthly = targets[k, : 12 * n_optical].reshape(12, n_optical)[:, :10]
    assert np.allclose(monthly[np.unique(month)], months, atol=1e-4)
    assert np.array_equal(known[k, : 12 * n_optical].reshape(12, n_optical)[:, 0], np.isin(np.arange(12), month))
    annual = targets[k, 12 * n_optical : 16 * n_optical].reshape(4, n_optical)[:, :10]
    expected = [months.mean(axis=0), months.std(axis=0), months.min(axis=0), months.max(axis=0)]
    assert np.allclose(annual, expected, atol=1e-4)


def test_ndvi_and_radar_are_among_the_targets(batch):
    targets, _ = yearly_targets(batch)
    k = 1  # one observation: its month and its annual mean are itself
    red, nir = batch.s2.values[batch.s2.owner == k][0][[0, 3]].astype(float)
    assert targets[k, 12 * 14 + 10] == pytest.approx((nir - red) / (nir + red), abs=1e-5)
    db = batch.s1.values[batch.s1.owner == k][0] / 200 - 50
    assert np.allclose(targets[k, 16 * 14 + 12 * 3 :][:3], [db[0], db[1], db[0] - db[1]], atol=1e-4)


def test_scaled_targets_have_unit_spread(batch):
    target, known = scaled_targets(batch, fit_targets(batch))
    for column in (0, 170, N_TARGETS - 1):
        values = target[:, column][known[:, column]]
        assert float(values.mean()) == pytest.approx(0, abs=1e-4)
        assert float(values.std(correction=0)) == pytest.approx(1, abs=1e-3)
