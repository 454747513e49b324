"""UNets: they see context, leave no seams, and look exactly as far as they say."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load, save
from sklearn.base import clone

from tessera_xr.errors import SchemaError
from tessera_xr.learning.patches import Patches, cut, place_patches, statistics
from tessera_xr.learning.unet import UNetClassifier, UNetRegressor

TINY: dict[str, Any] = {"features": (8, 16), "bottleneck": 32, "progress": False}


def textures(ny: int, nx: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return an image of 3 bands and the kind of each pixel: a board of small squares or large, all alike alone."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:ny, :nx]
    kinds = ((y // 16 + x // 16) % 2).astype(np.int16)
    board = np.where(kinds == 0, (y + x) % 2, (y // 4 + x // 4) % 2)
    image = rng.normal(0, 0.3, (3, ny, nx)) + np.where(board, 1.0, -1.0)
    return (image * [[[3]], [[0.1]], [[40]]] + [[[100]], [[0]], [[-7]]]).astype(np.float32), kinds


def sparse(kinds: np.ndarray, share: float, seed: int) -> np.ndarray:
    return np.where(np.random.default_rng(seed).random(kinds.shape) < share, kinds, -1)


@pytest.fixture(scope="module")
def fitted() -> UNetClassifier:
    """One that has learnt a little, from an image with a hole in it."""
    image, kinds = textures(70, 53, 0)
    image[:, 20:25, 30:33] = np.nan
    model = UNetClassifier(**TINY, max_epochs=4, learning_rate=3e-3)
    return model.fit([image], [sparse(kinds, 0.05, 0)])


def test_context_decides():
    from sklearn.linear_model import LogisticRegression

    image, kinds = textures(96, 96, 1)
    targets = sparse(kinds, 0.04, 2)
    model = UNetClassifier(**TINY, max_epochs=12, learning_rate=3e-3, patch_size=32, batch_size=3).fit(
        [image], [targets]
    )
    fresh, truth = textures(64, 61, 3)
    found = model.predict(fresh)
    at = targets >= 0
    single = LogisticRegression().fit(image[:, at].T, targets[at]).predict(fresh.reshape(3, -1).T).reshape(truth.shape)
    assert (single == truth).mean() < 0.6
    assert (found == truth).mean() > 0.85
    assert model.n_iter_ == len(model.loss_curve_) == 12
    assert model.loss_curve_[-1] < 0.5 * model.loss_curve_[0]


@pytest.mark.parametrize("shape", [(64, 80), (61, 87), (7, 150), (3, 2)])
def test_there_are_no_seams(fitted, shape):
    image = textures(*shape, 4)[0]
    if min(shape) > 60:
        image[:, 30:50, 28:33] = np.nan
    whole = fitted.predict_logits(image, tile=10_000)
    for tile in (4, 18, 32, 48):
        np.testing.assert_allclose(fitted.predict_logits(image, tile=tile), whole, atol=2e-5)
    assert whole.shape == (2, *shape)
    np.testing.assert_array_equal(np.isnan(whole[0]), np.isnan(image[0]))


def test_blocks_with_a_margin_give_the_whole(fitted):
    image = textures(90, 101, 5)[0]
    whole, m = fitted.predict_logits(image), fitted.margin
    assert m == 24
    for row, column, size in ((0, 0, 30), (28, 32, 20), (29, 33, 17), (31, 70, 31), (60, 50, 40)):
        top, left = max(row - m, 0), max(column - m, 0)
        bottom, right = min(row + size, 90), min(column + size, 101)
        block = image[:, top : bottom + m, left : right + m]
        found = fitted.predict_logits(block, origin=(top, left))[:, row - top :, column - left :]
        expected = whole[:, row:bottom, column:right]
        np.testing.assert_allclose(found[:, : bottom - row, : right - column], expected, atol=2e-5)


@pytest.mark.parametrize(("features", "reach", "margin"), [((8,), 9, 10), ((8, 8), 23, 24), ((4, 4, 4), 51, 56)])
def test_it_looks_as_far_as_it_says_and_no_farther(features, reach, margin):
    image = np.random.default_rng(0).normal(size=(2, 136, 136)).astype(np.float32)
    targets = np.where(image[0] > 0, 1, 0)
    model = UNetClassifier(features, bottleneck=8, max_epochs=1, progress=False).fit([image], [targets])
    assert model.margin == margin
    at = np.arange(64, 64 + 2 ** len(features))  # every place in the lattice of the pooling
    before = model.predict_logits(image)[:, at, at]
    apart = []
    for i in at:
        changed = image.copy()
        changed[:, i - reach : i + reach + 1, i - reach : i + reach + 1] *= -9
        inside, changed = changed, np.where(changed == image, image * -9, image)
        moved = model.predict_logits(changed)[:, i, i]  # all but what it can see has changed
        np.testing.assert_allclose(moved, before[:, i - 64], atol=1e-5)
        inside[:, i - reach + 1 : i + reach, i - reach + 1 : i + reach] = image[
            :, i - reach + 1 : i + reach, i - reach + 1 : i + reach
        ]
        apart.append(np.abs(model.predict_logits(inside)[:, i, i] - before[:, i - 64]).max())
    assert max(apart) > 1e-4  # the outermost ring of it counts, for some pixel


def test_no_data_is_neither_learnt_nor_predicted(fitted):
    image, kinds = textures(40, 44, 6)
    image[1, 10, 12] = np.nan
    assert fitted.predict(image)[10, 12] == -1
    assert set(np.unique(np.delete(fitted.predict(image).ravel(), 10 * 44 + 12))) <= {0, 1}
    shares = fitted.predict_proba(image)
    assert np.isnan(shares[:, 10, 12]).all()
    np.testing.assert_allclose(np.nansum(shares, axis=0)[image[1] == image[1]], 1, atol=1e-5)
    changed = image.copy()
    changed[[0, 2], 10, 12] = 1e6
    np.testing.assert_array_equal(fitted.predict_proba(changed), shares)
    targets = sparse(kinds, 0.1, 0)
    targets[10, 12] = 0
    without = np.where(np.isnan(image[1]), -1, targets)
    models = [UNetClassifier(**TINY, max_epochs=2).fit([image], [t]) for t in (targets, without)]
    np.testing.assert_array_equal(*(model.predict_proba(image) for model in models))


def test_a_seed_gives_the_same_and_global_states_stay():
    import torch

    image, kinds = textures(40, 36, 7)
    targets = sparse(kinds, 0.1, 1)
    before = torch.random.get_rng_state()
    found = [
        UNetClassifier(**TINY, max_epochs=2, random_state=s).fit([image], [targets]).predict_proba(image)
        for s in (0, 0, 1)
    ]
    np.testing.assert_array_equal(found[0], found[1])
    assert not np.array_equal(found[0], found[2])
    assert torch.equal(torch.random.get_rng_state(), before)


def test_whole_groups_are_held_out_and_the_best_pass_is_kept():
    image, kinds = textures(96, 80, 8)
    targets = sparse(kinds, 0.3, 3)
    y, x = np.mgrid[:96, :80]
    groups = y // 8 * 10 + x // 8
    noisy = np.where(
        np.random.default_rng(0).random(targets.shape) < 0.3, np.where(targets < 0, -1, 1 - targets), targets
    )
    model = UNetClassifier(**TINY, max_epochs=12, learning_rate=0.02, patience=3).fit([image], [noisy], groups=[groups])
    scores = model.validation_scores_
    assert len(scores) == model.n_iter_
    again = UNetClassifier(**TINY, max_epochs=int(np.argmax(scores)) + 1, learning_rate=0.02, patience=99)
    again.fit([image], [noisy], groups=[groups])
    if np.sum(np.isclose(scores, max(scores))) == 1:
        np.testing.assert_array_equal(again.predict_proba(image), model.predict_proba(image))
    lonely = UNetClassifier(**TINY, max_epochs=1).fit([image], [targets], groups=[np.zeros_like(groups)])
    assert lonely.validation_scores_ is None


def test_held_out_labels_are_not_learnt_from():
    there = np.zeros((50, 60), bool)
    there[[3, 20, 47], [5, 30, 59]] = True
    held = np.array([False, True, False])
    image = np.arange(6000, dtype=np.float32).reshape(2, 50, 60)
    pixels = Patches([image], [there], np.array([7, 8, 9]), np.array([1.0, 2, 3]), held)
    for training, expected in ((True, {7: 1.0, 9: 3.0}), (False, {8: 2.0})):
        seen = {}
        for place in place_patches(pixels.labelled_for(training=training), 16, np.random.default_rng(0)):
            part, targets, weights = cut(pixels, place, 16, np.random.default_rng(1), training=training)
            seen |= dict(zip(targets[weights > 0].tolist(), weights[weights > 0].tolist(), strict=True))
            rows, columns = (part[0] // 60).astype(int), (part[0] % 60).astype(int)
            at = weights > 0  # the labels turn and flip with the image
            assert all(there[r, c] for r, c in zip(rows[at], columns[at], strict=True))
        assert seen == expected


@pytest.mark.parametrize("seed", range(5))
def test_patches_hold_every_label(seed):
    rng = np.random.default_rng(seed)
    there = rng.random((int(rng.integers(3, 150)), int(rng.integers(3, 150)))) < rng.choice([0.002, 0.2])
    there[0, -1] = True
    size = int(rng.choice([8, 32, 64]))
    held = np.zeros(there.shape, bool)
    places = place_patches([np.zeros((4, 4), bool), there], size, rng)
    for number, row, column in places:
        assert number == 1
        assert row >= 0
        assert row == 0 or row + size <= there.shape[0]
        held[row : row + size, column : column + size] = True
    assert held[there].all()
    assert len(places) <= np.prod([n // size + 2 for n in there.shape])
    if max(there.shape) <= size:
        assert len(places) == 1


def test_bands_are_standardised_over_all_pixels_with_data():
    images = [textures(20, 30, 0)[0], textures(9, 5, 1)[0]]
    images[0][1, 3, 4] = np.nan
    rows = np.concatenate([i.reshape(3, -1)[:, np.isfinite(i).all(axis=0).ravel()] for i in images], axis=1).astype(
        float
    )
    mean, variance = statistics(images)
    np.testing.assert_allclose(mean, rows.mean(axis=1), rtol=1e-6)
    np.testing.assert_allclose(variance, rows.var(axis=1), rtol=1e-5)


def test_weights_and_classes_count():
    image, kinds = textures(32, 32, 9)
    both = np.concatenate([image, image], axis=2)  # the same twice, told to be 0 and told to be 1
    torn = np.concatenate([np.zeros_like(kinds), np.ones_like(kinds)], axis=1)
    means = {}
    for weight, how in ((1, None), (9, None), (9, "balanced")):
        model = UNetClassifier(**TINY, class_weight=how, max_epochs=40, learning_rate=3e-3, patch_size=32)
        weights = np.where(torn == 1, weight, 1).astype(np.float32)
        model.fit([image, image], [torn[:, :32], torn[:, 32:]], [weights[:, :32], weights[:, 32:]])
        means[weight, how] = float(model.predict_proba(both)[1].mean())
    assert means[1, None] == pytest.approx(0.5, abs=0.1)
    assert means[9, None] > 0.7  # 0.9 in the end
    assert means[9, "balanced"] == pytest.approx(0.5, abs=0.1)


def test_numbers_are_learnt_and_saved():
    image, kinds = textures(64, 64, 1)
    target = np.where(sparse(kinds, 0.2, 0) >= 0, kinds * 300.0 + 5000, np.nan)
    model = UNetRegressor(**TINY, max_epochs=12, learning_rate=5e-3, patch_size=32, batch_size=2).fit([image], [target])
    fresh, truth = textures(40, 44, 2)
    error = model.predict(fresh) - (truth * 300.0 + 5000)
    assert np.sqrt((error**2).mean()) < 100  # that of the mean is 150
    facts, arrays = model.state()
    loaded = UNetRegressor.from_state(json.loads(json.dumps(facts)), load(save(arrays)))
    np.testing.assert_array_equal(loaded.predict(fresh), model.predict(fresh))
    fresh[0, 0, 0] = np.nan
    assert np.isnan(model.predict(fresh)[0, 0])


def test_what_is_saved_predicts_the_same(fitted):
    image = textures(40, 30, 5)[0]
    facts, arrays = fitted.state()
    loaded = UNetClassifier.from_state(json.loads(json.dumps(facts)), load(save(arrays)))
    np.testing.assert_array_equal(loaded.predict_proba(image), fitted.predict_proba(image))
    assert loaded.get_params() == fitted.get_params() == clone(fitted).get_params()
    assert loaded.classes_.dtype == fitted.classes_.dtype


def test_the_network_is_the_papers():
    from tessera_xr.learning.networks import UNet
    from tessera_xr.learning.training import make_generator

    model = UNetClassifier()
    assert (model.features, model.bottleneck, model.learning_rate, model.max_epochs) == ((256, 512), 1024, 1e-4, 80)
    network = UNet(128, 3, (256, 512), 1024, make_generator(0))
    n = sum(p.numel() for p in network.parameters())
    convolutions = [(128, 256), (256, 256), (256, 512), (512, 512), (512, 1024), (1024, 1024)]
    convolutions += [(1024, 512), (512, 512), (512, 256), (256, 256)]
    up = [(1024, 512), (512, 256)]
    assert n == sum(9 * a * b + 2 * b for a, b in convolutions) + sum(4 * a * b + b for a, b in up) + 256 * 3 + 3


def test_errors_teach(fitted):
    image, kinds = textures(16, 20, 0)
    model = UNetClassifier(**TINY)
    cases = [
        (lambda: model.fit([], []), "no images"),
        (lambda: model.fit([image[0]], [kinds]), "band, y, x"),
        (lambda: model.fit([image], [kinds[:5]]), "targets must be one"),
        (lambda: model.fit([image], [kinds * 0]), "one class"),
        (lambda: model.fit([image], [kinds * 0 - 1]), "no pixel"),
        (lambda: model.fit([image * np.nan], [kinds]), "no pixel"),
        (lambda: model.fit([image], [kinds * 1.0]), "integers"),
        (lambda: model.fit([image], [kinds], weights=[kinds - 5.0]), "weights"),
        (lambda: UNetClassifier((8, 16), patch_size=30).fit([image], [kinds]), "multiple of 4"),
        (lambda: UNetClassifier((8, 0)).fit([image], [kinds]), "whole number"),
        (lambda: UNetClassifier((8,), class_weight="even").fit([image], [kinds]), "balanced"),
        (lambda: UNetRegressor(**TINY).fit([image], [kinds]), "floats"),
        (lambda: UNetRegressor(**TINY).fit([image], [kinds / 0.0]), "infinite"),
        (lambda: fitted.predict(image[:2]), r"\(3, y, x\)"),
        (lambda: fitted.predict(image, tile=0), "tile"),
    ]
    for call, message in cases:
        with pytest.raises(SchemaError, match=message), np.errstate(all="ignore"):
            call()
