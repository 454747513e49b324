"""Batches for training: each a pure function of its number, so that a run can stop and go on anywhere."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tessera_xr.embedding.engine import encode
from tessera_xr.encoder.checkpoints import Encoder
from tessera_xr.pretraining.config import PretrainConfig
from tessera_xr.pretraining.objective import TrainBatch
from tessera_xr.pretraining.pool import Pool
from tessera_xr.pretraining.ragged import PixelBatch, Ragged, dense, offsets_of
from tessera_xr.pretraining.targets import TargetScaling, fit_targets, scaled_targets
from tessera_xr.pretraining.views import Scaling, View, ViewOptions, augment, draw_view, scalings, spread_view

FITTED_ON = 4096  # pixels that the scale of the auxiliary targets is taken from
WATCHED_STEPS = 64  # RankMe is to see pixels as users embed them, not the noise of sparse views
LEVELLED_ON = 8192
_VIEWS, _LEVELLING = 1, 2  # streams of random numbers


@dataclass(frozen=True)
class Feed:
    """Where batches come from; see `open_feed`."""

    pool: Pool
    config: PretrainConfig
    steps: int
    """Updates in the whole run."""
    scaling: tuple[Scaling, Scaling]
    targets: TargetScaling | None
    teacher: Encoder | None

    def alone(self, step: int) -> bool:
        """Say whether only the auxiliary losses count yet."""
        return step < self.config.auxiliary_alone * self.steps

    def batch(self, step: int) -> TrainBatch:
        """Return the batch of one update."""
        config, rng = self.config, np.random.default_rng([self.config.seed, _VIEWS, step])
        rows = self.pool.batch_rows(step, config.batch_size, config.seed)
        pixels = augment(self.pool.read(rows), config.views, rng)
        first = draw_view(pixels, config.views, self.scaling, rng)
        twins = config.objective == "barlow_twins" and not self.alone(step)
        second = draw_view(pixels, config.views, self.scaling, rng) if twins else None
        share, permutation = float(rng.random()), torch.from_numpy(rng.permutation(len(rows)))
        target, known = (None, None) if self.targets is None else scaled_targets(pixels, self.targets)
        vectors = None if self.teacher is None else teacher_vectors(self.teacher, pixels)
        return TrainBatch(first, second, share, permutation, target, known, vectors)

    def batches(self, first: int, last: int) -> Iterator[TrainBatch]:
        """Yield the batches of some updates; the next one is made while this one is used."""
        with ThreadPoolExecutor(1, "tessera-xr-feed") as worker:
            coming = worker.submit(self.batch, first)
            for step in range(first, last):
                batch = coming.result()
                if step + 1 < last:
                    coming = worker.submit(self.batch, step + 1)
                yield batch

    def for_levelling(self) -> tuple[View, View, View]:
        """Return pixels spread over the pool, seen fully and by two random samplings (see `level_output`)."""
        n, rng = min(LEVELLED_ON, len(self.pool)), np.random.default_rng([self.config.seed, _LEVELLING])
        pixels = self.pool.read(np.linspace(0, len(self.pool) - 1, n).astype(np.intp))
        drawn = [draw_view(pixels, ViewOptions(), self.scaling, rng) for _ in range(2)]
        return spread_view(pixels, WATCHED_STEPS, self.scaling), drawn[0], drawn[1]

    def watched(self) -> View:
        """Return a view of the pixels that RankMe is measured on: the same for the whole run, without changes."""
        n = min(self.config.watched, len(self.pool))
        spread = np.linspace(0, len(self.pool) - 1, n).astype(np.intp)
        return spread_view(self.pool.read(spread), WATCHED_STEPS, self.scaling)


def open_feed(pool: Pool, config: PretrainConfig, teacher: Encoder | None = None) -> Feed:
    """Return the batches of a run over a pool."""
    per_epoch = pool.batches_per_epoch(config.batch_size)
    steps = config.steps or config.epochs * per_epoch
    targets = None
    if config.auxiliary:
        n = min(FITTED_ON, len(pool))
        targets = fit_targets(pool.read(np.linspace(0, len(pool) - 1, n).astype(np.intp)))
    return Feed(pool, config, steps, scalings(pool.statistics), targets, teacher)


def teacher_vectors(teacher: Encoder, batch: PixelBatch) -> Tensor:
    """Embed whole pixels (every valid step, the teacher's own statistics and policy): (B, E)."""
    s2, s2_doy, s2_valid = dense(_whole(batch.s2))
    orbits = [dense(_whole(_of_group(batch.s1, k))) for k in (0, 1)]
    s1, s1_doy = (np.concatenate([o[i] for o in orbits], axis=1) for i in (0, 1))
    descending = np.repeat([False, True], [o[0].shape[1] for o in orbits])
    dims = teacher.record.n_dims
    return torch.from_numpy(encode(teacher, s2, s2_doy, s2_valid, s1, s1_doy, descending, dims=dims).values)


def _of_group(ragged: Ragged, group: int) -> Ragged:
    chosen = ragged.group == group
    counts = np.bincount(ragged.owner[chosen], minlength=len(ragged))
    return Ragged(ragged.values[chosen], ragged.doy[chosen], ragged.group[chosen], offsets_of(counts))


def _whole(ragged: Ragged) -> Ragged:
    """Return whole numbers again, where a change of brightness has made fractions of them."""
    values: npt.NDArray[np.int32] = np.rint(np.maximum(ragged.values, 0)).astype(np.int32)
    return replace(ragged, values=values)
