"""A whole training, at toy scale: better than no training, on places that it has not seen."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tessera_xr.embedding.engine import encode
from tessera_xr.encoder.architecture import Architecture
from tessera_xr.pretraining.config import MINI
from tessera_xr.pretraining.losses import rank_me
from tessera_xr.pretraining.train import pretrain
from tessera_xr.pretraining.views import ViewOptions
from tessera_xr.pretraining.writing import write_pool
from tessera_xr.sentinel.simulate import simulate_pixels

TOY = replace(
    MINI,
    architecture=Architecture(16, 1, 4, 128),
    views=ViewOptions(16, date_dropout=0.3),
    learning_rate=2e-3,
    projector_width=256,
    projector_layers=1,
    mix_weight=0.1,
    auxiliary_alone=0.3,
    steps=150,
    device="cpu",
    watch_every=30,
)
SHOTS = 10


def embeddings(encoder, pixels):
    arrays = (pixels.s2, pixels.s2_doy, pixels.s2_valid, pixels.s1, pixels.s1_doy, pixels.s1_orbit == "descending")
    return encode(encoder, *arrays, dims=128).values


def few_shot(x, labels, places, repeats=10):
    """Balanced accuracy of a ridge classifier from a few pixels of each cover, judged on other places."""
    scores = []
    for repeat in range(repeats):
        rng = np.random.default_rng(repeat)
        training = np.isin(places, rng.permutation(np.unique(places))[: places.max() // 2])
        covers = np.intersect1d(labels[training], labels[~training])
        rows = np.concatenate([rng.permutation(np.flatnonzero(training & (labels == c)))[:SHOTS] for c in covers])
        mean, std = x[rows].mean(axis=0), x[rows].std(axis=0) + 1e-6
        z = np.hstack([(x - mean) / std, np.ones((len(x), 1))])
        known = np.where(labels[rows, None] == covers, 1.0, -1.0)
        gram = z[rows] @ z[rows].T + 0.1 * z.shape[1] * np.eye(len(rows))
        said = covers[(z @ (z[rows].T @ np.linalg.solve(gram, known))).argmax(axis=1)]
        scores.append(np.mean([(said == c)[~training & (labels == c)].mean() for c in covers]))
    return np.mean(scores)


@pytest.mark.slow
def test_a_toy_training_beats_no_training_on_other_places(tmp_path):
    pool = write_pool([simulate_pixels(8192, seed=1)], tmp_path / "pool")
    judged = simulate_pixels(4096, seed=99)
    untrained = pretrain(pool, TOY, folder=tmp_path / "run", stop_after=0, progress=False)
    trained = pretrain(pool, TOY, folder=tmp_path / "run", resume=True, progress=False)
    clear = judged.s2_valid.sum(axis=1) >= 10
    found = {}
    for name, result in (("untrained", untrained), ("trained", trained)):
        x = embeddings(result.encoder, judged)[clear]
        scores = [few_shot(x[:, :k], judged.land_cover[clear], judged.place[clear]) for k in (128, 16)]
        found[name] = (rank_me(torch.from_numpy(x)), *scores)
    before, after = found["untrained"], found["trained"]
    assert after[0] > 1.15 * before[0]
    assert after[1] > before[1] + 0.07
    assert after[2] > before[2] + 0.07  # the first 16 values alone
    ranks = trained.log["rank_me"].dropna()
    assert ranks.iloc[-1] > 1.2 * ranks.min()  # no collapse: it rises again once Barlow Twins is at work
