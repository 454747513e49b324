"""What a training run is told, checked before anything is read."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np

from tessera_xr.encoder.architecture import Architecture
from tessera_xr.encoder.device import Precision
from tessera_xr.encoder.registry import NANO, RECORDS
from tessera_xr.errors import SchemaError
from tessera_xr.pretraining.views import ViewOptions

Objective: TypeAlias = Literal["barlow_twins", "distillation"]
Matryoshka: TypeAlias = Literal["none", "loss", "rebuild"]

_CHOICES = {"objective": ("barlow_twins", "distillation"), "matryoshka": ("none", "loss", "rebuild")}
_WHOLE = {"batch_size": 2, "epochs": 1, "seed": 0, "projector_width": 1, "projector_layers": 0}
_WHOLE |= {"checkpoint_every": 1, "log_every": 1, "watch_every": 1, "watched": 2}
_AT_LEAST_0 = ("weight_decay", "redundancy", "mix_weight", "auxiliary", "rebuild_weight")
_ABOVE_0 = ("learning_rate", "clip")
_SHARES = ("warm_up", "auxiliary_alone")


@dataclass(frozen=True)
class PretrainConfig:
    """Settings of a training run; the defaults are the paper's own recipe, which wants a large GPU.

    `MINI` holds settings for a CPU.
    """

    architecture: Architecture = RECORDS["v1.0"].arch
    """Of the encoder; `n_out` is the length of its embedding."""
    objective: Objective = "barlow_twins"
    """"barlow_twins", or "distillation": rebuild the embeddings of `teacher`."""
    teacher: str | None = None
    """For distillation: the name or file of a larger encoder (see `models`)."""
    views: ViewOptions = field(default_factory=ViewOptions)
    """How the views are drawn."""
    batch_size: int = 32_768
    """Pixels in a batch. Count updates, not epochs: with few pixels, small batches learn more."""
    epochs: int = 1
    """Passes through the pool."""
    steps: int | None = None
    """Updates, instead of epochs."""
    learning_rate: float = 2e-3
    """At its height."""
    weight_decay: float = 1e-6
    """Of AdamW; none on biases and norms."""
    warm_up: float = 0.1
    """Share of the run in which the learning rate rises; it then falls to 0 along a cosine."""
    clip: float = 2.0
    """Largest norm of the gradient."""
    projector_width: int = 16_384
    """Of the projector, which is thrown away."""
    projector_layers: int = 5
    """Linear-BatchNorm-ReLU layers before its last linear one."""
    redundancy: float = 5e-3
    """Lambda of Barlow Twins."""
    mix_weight: float = 1.0
    """Of the mix regulariser, times lambda; 0 leaves it out."""
    divide_by_width: bool = False
    """Divide both of these losses by the projector's width: to weigh them against the auxiliary ones."""
    quantise_from: float | None = 0.8
    """Share of the run after which the embedding is rounded to int8 in training; None for never."""
    matryoshka: Matryoshka = "none"
    """"loss": Barlow Twins of the first values too; "rebuild": they rebuild the rest linearly; "none"."""
    matryoshka_dims: tuple[int, ...] = (16, 32, 64)
    """The shorter lengths; the full one always counts."""
    rebuild_weight: float = 1.0
    """Of the linear rebuild."""
    auxiliary: float = 0.0
    """Weight of a reconstruction of the pixel's year by a linear head, which is thrown away; 0 leaves it out."""
    auxiliary_alone: float = 0.0
    """Share of the run, at its start, in which there is nothing but the auxiliary losses: one view, twice as fast."""
    level: float | None = None
    """After training, divide each principal component of the output by its variance to this power; None leaves it."""
    seed: int = 0
    """Of weights, views and order."""
    device: str = "auto"
    """"auto", "cpu", "cuda", "cuda:1"."""
    precision: Precision = "auto"
    """Of matrix products: "auto" is bfloat16 on GPUs that have it, else float32."""
    compile: bool | None = None
    """Use torch.compile; None does on CUDA."""
    checkpoint_every: int = 1000
    """Updates between checkpoints."""
    log_every: int = 20
    """Updates between lines of the log."""
    watch_every: int = 200
    """Updates between measurements of RankMe."""
    watched: int = 512
    """Pixels that RankMe is measured on, the same each time."""

    def __post_init__(self) -> None:
        faults = [*self._wrong_numbers(), *self._wrong_choices()]
        if faults:
            raise SchemaError("this training can't be run: " + "; ".join(faults))

    def _wrong_numbers(self) -> list[str]:
        whole = {**_WHOLE, **({} if self.steps is None else {"steps": 1})}
        faults = [
            f"{name} must be a whole number, {least} or above, not {value!r}"
            for name, least in whole.items()
            if isinstance(value := getattr(self, name), bool)
            or not isinstance(value, (int, np.integer))
            or value < least
        ]
        shares = {name: getattr(self, name) for name in _SHARES}
        shares |= {name: v for name in ("quantise_from", "level") if (v := getattr(self, name)) is not None}
        faults += [f"{k} is a share from 0 to 1, not {v!r}" for k, v in shares.items() if not 0 <= v <= 1]
        faults += [f"{k} must be 0 or above, not {v!r}" for k in _AT_LEAST_0 if not (v := getattr(self, k)) >= 0]
        faults += [f"{k} must be above 0, not {v!r}" for k in _ABOVE_0 if not (v := getattr(self, k)) > 0]
        return faults

    def _wrong_choices(self) -> list[str]:
        arch = self.architecture
        faults = [
            f"{name} must be one of {', '.join(allowed)}, not {getattr(self, name)!r}"
            for name, allowed in _CHOICES.items()
            if getattr(self, name) not in allowed
        ]
        if arch.width % arch.n_heads:
            faults.append(f"the architecture's width {arch.width} is no multiple of its {arch.n_heads} heads")
        if any(not 0 < k < arch.n_out for k in self.matryoshka_dims):
            faults.append(f"matryoshka_dims must lie within 1 and {arch.n_out - 1}, not {self.matryoshka_dims}")
        if (self.objective == "distillation") != (self.teacher is not None):
            faults.append("objective='distillation' and a teacher go together; give both or neither")
        if self.auxiliary_alone and not self.auxiliary:
            faults.append("auxiliary_alone needs an auxiliary weight above 0")
        return faults

    @property
    def lengths(self) -> tuple[int, ...]:
        """The shorter lengths that the encoder is trained for, if any."""
        trained = self.objective == "distillation" or self.matryoshka != "none"
        return tuple(sorted(self.matryoshka_dims)) if trained else ()

    def as_dict(self) -> dict[str, Any]:
        """Return all settings as plain values, for JSON."""
        return asdict(self)


MINI = PretrainConfig(
    architecture=NANO,
    views=ViewOptions(
        n_steps=16,
        season_shift=183,
        s2_gain=0.05,
        s1_offset=0.5,
        date_dropout=0.6,
        monthly=0.3,
        sensor_dropout=0.05,
    ),
    batch_size=128,
    learning_rate=1.5e-3,
    projector_width=512,
    projector_layers=2,
    redundancy=0.05,  # a narrow projector has few pairs of values to each value: they must weigh more
    divide_by_width=True,
    matryoshka="rebuild",
    rebuild_weight=0.1,
    auxiliary=3.0,
    auxiliary_alone=0.6,
    level=0.25,
)
"""Settings for a small encoder on a CPU: the paper's losses, after a start that the auxiliary one carries."""
