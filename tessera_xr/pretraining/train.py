"""Train an encoder on d-pixels: the loop, its checkpoints and its result."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from tessera_xr._optional import have
from tessera_xr.encoder.checkpoints import Encoder, PathLike, load_encoder
from tessera_xr.encoder.device import resolve_device, resolve_precision
from tessera_xr.encoder.files import save_encoder
from tessera_xr.errors import SchemaError, TesseraError
from tessera_xr.pretraining.config import PretrainConfig
from tessera_xr.pretraining.feed import Feed, open_feed
from tessera_xr.pretraining.journal import PARTS, Journal, interruptible, load_checkpoint, save_checkpoint
from tessera_xr.pretraining.levelling import level_output
from tessera_xr.pretraining.losses import rank_me
from tessera_xr.pretraining.objective import Encode, TrainBatch, Trainee, batch_losses
from tessera_xr.pretraining.pool import Pool
from tessera_xr.pretraining.writing import as_pool

if TYPE_CHECKING:
    import pandas as pd

    from tessera_xr.pretraining.sources import Source

logger = logging.getLogger(__name__)

CHECKPOINT, LOG, CURVES, ENCODER = "checkpoint.pt", "log.csv", "curves.png", "encoder.safetensors"
# settings that don't change what is learned, so that a run may go on with others
_FREE = {"device", "precision", "compile", "checkpoint_every", "log_every", "watch_every", "watched"}


@dataclass(frozen=True)
class Result:
    """What a training run leaves behind."""

    encoder: Encoder
    """Ready to embed."""
    log: pd.DataFrame
    """Step, pixels, seconds, learning rate, the loss and its parts, RankMe."""
    path: Path
    """The encoder's file."""
    finished: bool
    """False if the run was stopped before its last update; `pretrain` with resume=True goes on."""


def pretrain(
    d_pixels: Pool | PathLike | Source | Sequence[Source],
    config: PretrainConfig | None = None,
    *,
    folder: PathLike,
    resume: bool = False,
    stop_after: int | None = None,
    name: str = "custom",
    licence: str = "unknown",
    progress: bool = True,
) -> Result:
    """Train an encoder on d-pixels, TESSERA's way.

    Two views of each pixel, by sparse random sampling of its year, are to get the same embedding (Barlow Twins, with
    the mix regulariser); pixels of all places are shuffled. The default settings are the paper's; `MINI` suits a CPU.

    Writes into `folder`: ``pool`` (unless given), ``checkpoint.pt``, ``log.csv``, ``curves.png`` and
    ``encoder.safetensors``. An interrupt (Ctrl-C) saves a checkpoint first; a run that goes on with ``resume=True``
    reaches the numbers of one that was never interrupted (on a CPU exactly).

    Parameters
    ----------
    d_pixels : Pool, path, or sources
        A pool (see `write_pool`), its folder, or what `write_pool` takes: cubes, simulated d-pixels, arrays.
    config : PretrainConfig, optional
        Settings; the paper's if not given.
    folder : str or path
        Where the run lives.
    resume : bool, default False
        Go on from the checkpoint in `folder` if there is one.
    stop_after : int, optional
        Stop, with a checkpoint, when this many updates have been made in all.
    name : str
        Of the encoder; embeddings will carry it.
    licence : str
        Of its weights.
    progress : bool
        Show a bar.

    Returns
    -------
    Result

    Raises
    ------
    SchemaError
        If the d-pixels are too few or not usable, or the folder holds another run.
    TesseraError
        If training diverges.
    DeviceError
        If the device or precision isn't to be had.
    """
    config = config or PretrainConfig()
    folder = Path(folder)
    device = resolve_device(config.device)
    precision = resolve_precision(config.precision, device)
    stored = _stored(folder, resume)
    folder.mkdir(parents=True, exist_ok=True)
    teacher = None if config.teacher is None else load_encoder(config.teacher, device=str(device))
    feed = open_feed(as_pool(d_pixels, folder / "pool"), config, teacher)
    run = _Run(feed, folder, device, precision)
    if stored is not None:
        run.restore(stored)
    last = feed.steps if stop_after is None else min(stop_after, feed.steps)
    journal = run.train(last, progress=progress)
    return _finish(run, journal, name, licence)


class _Run:
    """A run in progress: weights, optimiser, log."""

    def __init__(self, feed: Feed, folder: Path, device: torch.device, precision: torch.dtype) -> None:
        self.feed, self.config, self.folder = feed, feed.config, folder
        self.device, self.precision = device, precision
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            self.trainee = Trainee(self.config, feed.teacher.record.n_dims if feed.teacher else 0)
        self.trainee.to(device)
        self.optimizer = make_optimizer(self.trainee, self.config, device)
        self.encode = _compiled(self.trainee, self.config, device)
        self.step = 0
        self.saved = -1

    def restore(self, stored: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        _check_same(stored, self.identity(), self.folder)
        self.trainee.load_state_dict(stored["trainee"])
        self.optimizer.load_state_dict(stored["optimizer"])
        self.step = self.saved = stored["step"]

    def identity(self) -> dict[str, str]:
        """Return what a run must have in common with its checkpoint."""
        kept = {k: v for k, v in self.config.as_dict().items() if k not in _FREE}
        return {"settings": json.dumps(kept, sort_keys=True), "pool": self.feed.pool.id}

    def save(self) -> None:
        """Write a checkpoint of the present state, if there is none yet."""
        if self.saved != self.step:
            state = {"trainee": self.trainee.state_dict(), "optimizer": self.optimizer.state_dict()}
            save_checkpoint(self.folder / CHECKPOINT, {"step": self.step, **self.identity(), **state})
            self.saved = self.step

    def train(self, last: int, *, progress: bool) -> Journal:
        """Make updates until `last` have been made in all; return the log."""
        journal = Journal(self.folder / LOG, self.step)
        watched = self.feed.watched().to(self.device)
        before, begun = journal.seconds, time.perf_counter()
        if not journal.rows:
            journal.add({"step": 0, "pixels": 0, "seconds": 0.0, "rank_me": self.rank(watched)})
        bar = tqdm(total=self.feed.steps, initial=self.step, unit="update", delay=1, disable=not progress)
        with interruptible() as interrupted, bar:
            for batch in self.feed.batches(self.step, last) if self.step < last else ():
                parts, rate = self.update(batch.to(self.device))
                self.step += 1
                bar.update()
                self.note(journal, parts, rate, before + time.perf_counter() - begun, watched)
                if self.step % self.config.checkpoint_every == 0 or interrupted.is_set():
                    self.save()
                if interrupted.is_set():
                    raise KeyboardInterrupt(f"stopped after {self.step} updates; resume=True goes on")
        self.save()
        return journal

    def update(self, batch: TrainBatch) -> tuple[dict[str, Tensor], float]:
        """Make one update; return the parts of the loss and the learning rate. Depends on the step alone."""
        config = self.config
        rate = learning_rate(self.step, self.feed.steps, config)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        quantise = config.quantise_from is not None and self.step >= config.quantise_from * self.feed.steps
        mixed = torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32)
        self.trainee.train()
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(config.seed * 1_000_003 + self.step)  # of dropout
            with mixed:
                parts = batch_losses(self.trainee, self.encode, batch, config, quantise=quantise)
            torch.stack(list(parts.values())).sum().backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.trainee.parameters(), config.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return parts, rate

    def note(self, journal: Journal, parts: dict[str, Tensor], rate: float, seconds: float, watched: Any) -> None:
        """Add a line to the log when one is due."""
        watch = self.step % self.config.watch_every == 0 or self.step == self.feed.steps
        if not watch and self.step % self.config.log_every:
            return
        found = {name: float(parts[name].detach()) for name in PARTS if name in parts}
        loss = sum(found.values())
        if not math.isfinite(loss):
            raise TesseraError(
                f"training diverged at update {self.step} (loss {loss}); lower learning_rate or clip, or use "
                f"precision='float32'. The last checkpoint is of update {max(self.saved, 0)}"
            )
        row = {"step": self.step, "pixels": self.step * self.config.batch_size, "seconds": round(seconds, 3)}
        rank = self.rank(watched) if watch else None
        journal.add({**row, "learning_rate": rate, "loss": loss, **found, "rank_me": rank})

    def rank(self, view: Any) -> float:
        """Return RankMe of the embeddings of the watched pixels."""
        self.trainee.eval()
        with torch.no_grad():
            return rank_me(self.trainee.encode(view.s2.x, view.s2.doy, view.s1.x, view.s1.doy).cpu())


def learning_rate(step: int, steps: int, config: PretrainConfig) -> float:
    """Return the learning rate of an update: a linear rise, then a cosine to 0.

    Where Barlow Twins comes in later, it rises once more: the projector is new then, and full steps would collapse
    the embedding.

    Parameters
    ----------
    step : int
        0 for the first update.
    steps : int
        Updates in the whole run.
    config : PretrainConfig
    """
    rising = max(round(config.warm_up * steps), 1)
    turned = max(step - rising, 0) / max(steps - rising, 1)
    begun = math.ceil(config.auxiliary_alone * steps)  # the first update of the second part
    since = step - begun if config.auxiliary_alone and step >= begun else step
    return config.learning_rate * min((since + 1) / rising, 1) * 0.5 * (1 + math.cos(math.pi * turned))


def make_optimizer(trainee: nn.Module, config: PretrainConfig, device: torch.device) -> torch.optim.AdamW:
    """Return AdamW, without weight decay on biases and norms."""
    parameters = list(trainee.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, fused=device.type in ("cpu", "cuda"))


def _compiled(trainee: Trainee, config: PretrainConfig, device: torch.device) -> Encode:
    wanted = config.compile if config.compile is not None else device.type == "cuda" and have("triton")
    return torch.compile(trainee.encode) if wanted else trainee.encode


def _stored(folder: Path, resume: bool) -> dict[str, Any] | None:
    path = folder / CHECKPOINT
    if not path.is_file():
        return None
    if not resume:
        raise SchemaError(f"{folder} holds a run already; pass resume=True to go on, or choose another folder")
    return load_checkpoint(path)


def _check_same(stored: dict[str, Any], identity: dict[str, str], folder: Path) -> None:
    """Raise `SchemaError`, naming what differs, unless a checkpoint is of this very run."""
    if stored["pool"] != identity["pool"]:
        raise SchemaError(f"the run in {folder} was on another pool of d-pixels; give that one, or another folder")
    old, new = json.loads(stored["settings"]), json.loads(identity["settings"])
    differ = [f"{k} was {old.get(k)!r}, not {new.get(k)!r}" for k in sorted({*old, *new}) if old.get(k) != new.get(k)]
    if differ:
        raise SchemaError(f"the run in {folder} has other settings: {'; '.join(differ)}. Give those, or another folder")


def _finish(run: _Run, journal: Journal, name: str, licence: str) -> Result:
    """Write the encoder and the curves."""
    journal.plot(run.folder / CURVES)
    network = run.trainee.encoder.eval()
    if run.config.level is not None:
        views = (view.to(run.device) for view in run.feed.for_levelling())
        network = level_output(network, *views, power=run.config.level)
    recipe = {
        "settings": run.config.as_dict(),
        "steps": run.step,
        "pool": {"pixels": len(run.feed.pool), "kept": run.feed.pool.kept},
    }
    path = save_encoder(
        run.folder / ENCODER,
        network,
        run.feed.pool.statistics,
        name=name,
        matryoshka=run.config.lengths,
        licence=licence,
        recipe=recipe,
    )
    encoder = load_encoder(
        path, device=run.device, precision="float32" if run.precision == torch.float32 else "bfloat16"
    )
    logger.info("%d of %d updates; encoder in %s", run.step, run.feed.steps, path)
    return Result(encoder, journal.table(), path, run.step >= run.feed.steps)
