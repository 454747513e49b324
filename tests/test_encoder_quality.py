"""The benchmark of encoders judges what it says: other groups, the labels asked for, the dates that are left."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.encoder_quality import MARKS, real_tasks, write_card
from benchmarks.quality import features, robustness
from benchmarks.quality.describe import markdown
from benchmarks.quality.fewshot import Task, accuracies, draws, standardised
from benchmarks.quality.pixels import Pixels, check_data, monthly_cube, parcels, simulated
from scripts.pretrain_mini import mixtures


@pytest.fixture(scope="module")
def pixels():
    return simulated(1024, 5)


def test_no_group_is_learned_from_and_judged(pixels):
    for draw in draws(Task("t", pixels), 5, 6):
        assert not np.intersect1d(pixels.group[draw.train], pixels.group[draw.test]).size
        names, counts = np.unique(pixels.labels[draw.train], return_counts=True)
        assert counts.max() == 5
        assert set(pixels.labels[draw.test]) == set(names)


def test_draws_differ_and_repeat(pixels):
    first, again = (list(draws(Task("t", pixels), 1, 3)) for _ in range(2))
    assert all(
        np.array_equal(a.train, b.train) and np.array_equal(a.test, b.test) for a, b in zip(first, again, strict=True)
    )
    assert not np.array_equal(first[0].train, first[1].train)


def test_a_given_split_is_kept_and_what_has_no_label_left_out(pixels):
    known, judged = pixels.take(pixels.group % 2 == 0), pixels.take(pixels.group % 2 == 1)
    known.labels[:100] = ""
    for draw in draws(Task("t", known, judged), 10, 3):
        assert (known.labels[draw.train] != "").all()
        assert len(draw.test) == np.isin(judged.labels, known.labels[draw.train]).sum()


def test_accuracy_is_that_of_the_truth_or_of_chance(pixels):
    task = Task("t", pixels)
    truth = np.eye(len(task.classes))[np.searchsorted(task.classes, pixels.labels)] * 10
    assert accuracies(task, (truth, truth), "logistic", 5, 3).tolist() == [1, 1, 1]
    noise = np.random.default_rng(0).normal(size=(len(pixels), 4))
    assert accuracies(task, (noise, noise), "forest", 5, 3).mean() < 3 / len(task.classes)


def test_standardising_takes_nothing_from_what_is_judged():
    a, b = np.random.default_rng(0).normal(3, 2, (2, 50, 3))
    x, y = standardised(a, b)
    np.testing.assert_allclose([x.mean(axis=0), x.std(axis=0)], [[0] * 3, [1] * 3], atol=1e-6)
    np.testing.assert_allclose(y[0] - x[0], (b[0] - a[0]) / a.std(axis=0), atol=1e-6)


def test_dates_are_taken_away_as_many_as_said(pixels):
    valid = pixels.arrays["s2_valid"]
    counts = valid.sum(axis=1)
    few = robustness.keep_clear(pixels, n=5).arrays["s2_valid"]
    np.testing.assert_array_equal(few.sum(axis=1), np.minimum(counts, 5))
    half = robustness.half_clear(pixels).arrays["s2_valid"]
    np.testing.assert_array_equal(half.sum(axis=1), np.where(counts == 0, 0, np.maximum(counts // 2, 1)))
    assert not (half & ~valid).any()
    assert not (few & ~valid).any()


def test_halves_share_no_date_and_lose_none(pixels):
    one, other = robustness.disjoint_halves(pixels)
    for name in ("s2_valid", "s1"):
        a, b, whole = ((p.arrays[name] != 0).reshape(len(pixels), -1) for p in (one, other, pixels))
        assert not (a & b).any()
        np.testing.assert_array_equal(a | b, whole)


def test_a_sampling_is_of_the_pixels_own_dates(pixels):
    drawn = robustness.sampled(pixels, 40, 1).arrays["s2_valid"]
    valid = pixels.arrays["s2_valid"]
    assert not (drawn & ~valid).any()
    assert (drawn.sum(axis=1) <= 40).all()
    many = valid.sum(axis=1) >= 20
    kept = drawn[many].sum() / valid[many].sum()
    n = valid[many].sum(axis=1)
    assert kept == pytest.approx((n * (1 - (1 - 1 / n) ** 40)).sum() / n.sum(), abs=0.02)


def test_one_orbit_keeps_that_orbit(pixels):
    s1 = robustness.one_orbit(pixels, "descending").arrays["s1"]
    descending = pixels.arrays["s1_orbit"] == "descending"
    assert not s1[:, ~descending].any()
    np.testing.assert_array_equal(s1[:, descending], pixels.arrays["s1"][:, descending])


def test_monthly_medians_and_gaps():
    days = np.array([5, 10, 12, 100, 340])
    values = np.array([1.0, 5.0, 3.0, 8.0, 4.0])[None, :, None]
    valid = np.array([[True, True, True, True, False]])
    series = features.monthly(values, valid, days)[0, :, 0]
    assert series[[0, 3]].tolist() == [3, 8]
    assert series[1] == pytest.approx(3 + 5 / 3)
    assert series[9] == pytest.approx(8 - 5 * 6 / 9)  # on the way back to January


def test_harmonics_find_the_curve_that_was_put_in(pixels):
    days = np.arange(5, 365, 5)
    phase = 2 * np.pi * days / 365.25
    curve = (2 + 0.5 * np.cos(phase) - 0.3 * np.sin(2 * phase))[None, :, None]
    found = features.fit(curve, np.ones((1, len(days)), dtype=bool), days)[0]
    np.testing.assert_allclose(found, [2, 0.5, 0, 0, -0.3], atol=0.01)


@pytest.mark.parametrize("describe", [features.raw_medians, features.annual_features, features.harmonics])
def test_features_are_numbers_and_don_t_see_cloudy_dates(describe, pixels):
    found = describe(pixels)
    assert np.isfinite(found).all()
    arrays = pixels.arrays
    cloudy = np.where(arrays["s2_valid"][..., None], arrays["s2"], 9999).astype(np.uint16)
    np.testing.assert_array_equal(describe(pixels.with_arrays(s2=cloudy)), found)


def test_parcels_of_a_crop_are_held_out_by_turns():
    crops = np.array([[1, 0, 1, 0, 2], [1, 0, 1, 0, 2], [0, 0, 0, 0, 0], [1, 1, 0, 2, 2]])
    number, held = parcels(crops)
    assert (number[crops == 0] == 0).all()
    for crop, n in ((1, 3), (2, 2)):
        own = np.unique(number[crops == crop])
        assert len(own) == n
        assert len(np.unique(number[held & (crops == crop)])) == n // 2
    assert all(len(np.unique(held[number == k])) == 1 for k in np.unique(number[number > 0]))


def test_mixtures_lie_between_two_pixels_on_dates_that_both_have():
    rng = np.random.default_rng(0)
    arrays = {
        "s2": rng.integers(100, 5000, (2, 6, 10)).astype(np.uint16),
        "s2_valid": np.array([[1, 1, 1, 0, 1, 1], [1, 1, 0, 1, 1, 1]], dtype=bool),
        "s1": rng.integers(5000, 9000, (2, 5, 2)).astype(np.int16),
    }
    arrays["s1"][1, 0] = 0
    mixed = mixtures(arrays, 200, 0)
    low, high = arrays["s2"].min(axis=0), arrays["s2"].max(axis=0)
    assert ((mixed["s2"] >= low) & (mixed["s2"] <= high)).all()
    pure = [(mixed["s2"] == arrays["s2"][k]).all(axis=(1, 2)) for k in (0, 1)]
    assert 0.3 < np.mean(pure[0] | pure[1]) < 0.95
    for k in (0, 1):
        np.testing.assert_array_equal(mixed["s2_valid"][pure[k]], np.tile(arrays["s2_valid"][k], (pure[k].sum(), 1)))
        np.testing.assert_array_equal(mixed["s1"][pure[k]], np.tile(arrays["s1"][k], (pure[k].sum(), 1, 1)))
    between = ~(pure[0] | pure[1])
    np.testing.assert_array_equal(mixed["s2_valid"][between].any(axis=0), arrays["s2_valid"].all(axis=0))
    assert not mixed["s1"][between][:, 0].any()
    assert (mixed["s1"][between][:, 1:] > 0).all()


def test_the_card_is_written_between_its_marks_alone(tmp_path):
    card = tmp_path / "README.md"
    card.write_text(f"before\n{MARKS[0]}\nold\n{MARKS[1]}\nafter\n")
    write_card(card, "new")
    assert card.read_text() == f"before\n{MARKS[0]}\n\nnew\n\n{MARKS[1]}\nafter\n"
    card.write_text("nothing")
    with pytest.raises(SystemExit, match="needs lines"):
        write_card(card, "new")
    assert card.read_text() == "nothing"


def test_a_folder_without_the_data_is_named(tmp_path):
    with pytest.raises(SystemExit, match=r"lacks the folders cubes, flanders, tables, treesat"):
        check_data(tmp_path)


def test_tables_are_markdown():
    text = markdown({"a": {"x": 1.25, "y": "±"}, "b": {"y": 2.0}}, "t", digits=2)
    assert text.splitlines() == ["| t | x | y |", "|---|---:|---:|", "| a | 1.25 | ± |", "| b |  | 2.00 |"]


def test_real_tasks_judge_what_pretraining_was_kept_from(shared_data):
    tasks = {t.name: t for t in real_tasks(shared_data)}
    assert len(tasks) == 7
    for name, task in tasks.items():
        assert isinstance(task.judged, Pixels)
        assert task.judged.held.all(), name
        assert len(task.classes) >= 2
        arrays = task.judged.arrays
        assert 500 < arrays["s2"][arrays["s2_valid"]].mean() < 4000
        assert 5000 < arrays["s1"][(arrays["s1"] != 0).all(axis=-1)].mean() < 8000
    assert tasks["SW France 2023"].train.arrays["s2"].shape == (500, 36, 10)
    months = [monthly_cube(shared_data)["s2_doy"], tasks["Uganda 2017"].train.arrays["s2_doy"]]
    months.append(tasks["Corsica 2022"].train.arrays["s2_doy"])
    middle = np.arange(12) * 366 / 12 + 16
    for days in months:
        np.testing.assert_allclose(np.sort(days), middle, atol=3)  # composites are dated in the middle of their month
