"""What our perceptrons have in common, be it classes or numbers that they learn: checks, standardising, training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator

from tessera_xr.errors import SchemaError
from tessera_xr.learning.training import (
    Arrays,
    Best,
    as_schema_error,
    deviation,
    draw_seed,
    from_arrays,
    hold_out,
    in_one_thread,
    make_generator,
    moments,
    settings_of,
    to_arrays,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Floats: TypeAlias = npt.NDArray[np.float32]
Doubles: TypeAlias = npt.NDArray[np.float64]
STEPS_A_PASS, SMALLEST_BATCH = 16, 32
"""Few labels are cut into at least so many batches, of at least so many rows."""
STEPS_UNWATCHED = 600
"""About how long to train where no labels can be held out."""
PASSES_A_CALL, STEPS_A_CALL = 5, 20
"""How long `partial_fit` trains, at least."""
Data: TypeAlias = tuple[npt.NDArray[Any], ...]
ROWS_FOR_ALL_CORES = 4096
"""Smaller batches are quicker on one core."""


class Perceptrons(BaseEstimator):  # type: ignore[misc]
    """What classification and regression share; the subclasses say what the targets, the loss and the score are."""

    has_own_threads = True
    """`predict` keeps all cores busy by itself."""

    def fit(
        self,
        X: npt.ArrayLike,
        y: npt.ArrayLike,
        sample_weight: npt.ArrayLike | None = None,
        groups: npt.ArrayLike | None = None,
    ) -> Any:
        """Learn from scratch.

        Parameters
        ----------
        X : array (n, d)
            Rows to learn from; computed with in float32.
        y : array (n,)
            Classes of any type, or numbers.
        sample_weight : array (n,), optional
            How much each row counts. Rows of weight 0 have no effect at all.
        groups : array (n,), optional
            What belongs together, such as the pixels of a polygon: validation holds out whole groups.

        Returns
        -------
        self

        Raises
        ------
        SchemaError
            If values are NaN or infinite, shapes don't fit, there is one class only, or a parameter is out of range.
        """
        self._check_parameters()
        rows, column = self._rows(X, y, reset=True)
        strata, targets = self._learn_targets(column)
        kept, weights = self._weights(sample_weight, rows)
        together = None if groups is None else self._groups(groups, rows)[kept]
        self._begin(rows[kept], targets[kept])
        rng = np.random.default_rng(self._seed)
        held = hold_out(strata[kept], together, self.validation_fraction, rng)
        data = (self._scaled(rows[kept]), self._standardised(targets[kept]), weights)
        self.validation_scores_: list[float] | None
        if held is None:
            n_batches = self._count_batches(len(weights))
            passes = min(self.max_epochs, -(-STEPS_UNWATCHED // n_batches))
            self._train(data, passes, rng)
            self.validation_scores_ = None
        else:
            self.validation_scores_ = []
            training, watched = (tuple(a[chosen] for a in data) for chosen in (~held, held))
            self._train(training, self.max_epochs, rng, watched)
        self.n_iter_ = len(self.loss_curve_)
        return self

    def predict_logits(self, X: npt.NDArray[Any]) -> Floats:
        """Return what the last layer gives for rows (n, d) of floats: (n, C) float32. Nothing is checked.

        Rows with NaN give NaN, or nonsense; other rows don't suffer.
        """
        return self._run(X, softmax=False)

    def _run(self, X: npt.NDArray[Any], *, softmax: bool) -> Floats:
        from tessera_xr.encoder.device import resolve_device
        from tessera_xr.learning.networks import run_folded

        return run_folded(self._folded, X, resolve_device(self.device), softmax=softmax)

    def _checked(self, X: npt.ArrayLike) -> npt.NDArray[Any]:
        from sklearn.utils.validation import check_is_fitted

        check_is_fitted(self, "_folded")
        return self._rows(X, None, reset=False)[0]

    # Input -----------------------------------------------------------------------------------------------------------

    def _rows(self, X: npt.ArrayLike, y: npt.ArrayLike | None, *, reset: bool) -> tuple[npt.NDArray[Any], Any]:
        from sklearn.utils.validation import validate_data

        kinds = [np.float64, np.float32]  # others become float64; in one order, for sums hang on it
        with as_schema_error():
            if y is None and not reset:
                return validate_data(self, X, dtype=kinds, reset=False, order="C"), None
            rows, y = validate_data(self, X, y, dtype=kinds, reset=reset, multi_output=True, order="C")
            return rows, self._column(y)

    def _column(self, y: npt.ArrayLike) -> npt.NDArray[Any]:
        from sklearn.utils import column_or_1d

        return np.asarray(column_or_1d(y, warn=True))

    def _weights(
        self, sample_weight: npt.ArrayLike | None, rows: npt.NDArray[Any]
    ) -> tuple[npt.NDArray[np.intp], Floats]:
        """Return which rows count, and how much: 1 on average."""
        from sklearn.utils.validation import _check_sample_weight

        with as_schema_error():
            weights = np.asarray(_check_sample_weight(sample_weight, rows, dtype=np.float64))
        if (weights < 0).any():
            raise SchemaError(f"sample_weight must be 0 or more, not {weights.min():g}")
        kept = np.flatnonzero(weights)
        if not len(kept):
            raise SchemaError("sample_weight must not be zero everywhere: a weight above zero is needed")
        return kept, (weights[kept] / weights[kept].mean()).astype(np.float32)

    def _groups(self, groups: npt.ArrayLike, rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
        found = np.asarray(groups)
        if found.shape != (len(rows),):
            raise SchemaError(f"groups must be ({len(rows)},), one for each row, not {found.shape}")
        return found

    def _check_parameters(self) -> None:
        widths = self.hidden if isinstance(self.hidden, Sequence) else [self.hidden]
        if not len(widths) or any(int(width) != width or width < 1 for width in widths):
            raise SchemaError(f"hidden={self.hidden!r} must hold whole numbers of at least 1, as (512, 256)")
        limits: dict[str, tuple[float, float]] = {
            "dropout": (0, 0.95), "learning_rate": (1e-9, 10), "weight_decay": (0, 10), "batch_size": (1, 1 << 30),
            "max_epochs": (1, 1 << 30), "patience": (1, 1 << 30), "validation_fraction": (0, 0.5),
        }  # fmt: skip
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            whole = name not in ("batch_size", "max_epochs", "patience") or int(value) == value
            if not (low <= value <= high and whole):
                raise SchemaError(f"{name}={value!r} must be {'' if whole else 'a whole number '}from {low} to {high}")

    # Standardising ---------------------------------------------------------------------------------------------------

    def _begin(self, rows: npt.NDArray[Any], targets: npt.NDArray[Any]) -> None:
        """Set up everything that learning changes."""
        self._seed = draw_seed(self.random_state)
        self._count, self._n_steps = 0, 0
        self._mean, self._variance = np.zeros(rows.shape[1]), np.zeros(rows.shape[1])
        self._target = (0.0, 0.0)  # mean and variance
        self._optimiser: dict[str, Any] | None = None
        self._network = self._make_network(rows.shape[1])
        self.loss_curve_: list[float] = []
        self._see(rows, targets)

    def _see(self, rows: npt.NDArray[Any], targets: npt.NDArray[Any]) -> None:
        """Take more rows into means and variances."""
        both = (rows, targets[:, None]) if self._is_regression else (rows,)
        known: list[Any] = [(self._mean, self._variance), tuple(np.array([v]) for v in self._target)]
        n, total = len(rows), self._count + len(rows)
        merged = []
        for values, (mean, variance) in zip(both, known, strict=False):
            new_mean, new_variance = moments(values)
            shift = new_mean - mean
            spread = (self._count * variance + n * new_variance) / total
            merged.append((mean + shift * n / total, spread + shift**2 * (self._count * n / total**2)))
        self._mean, self._variance = merged[0]
        if self._is_regression:
            self._rescale_output(float(merged[1][0][0]), float(merged[1][1][0]))
        self._count = total

    def _scale(self) -> tuple[Doubles, Doubles]:
        if not self.standardise:
            return np.zeros_like(self._mean), np.ones_like(self._mean)
        return self._mean, deviation(self._mean, self._variance)

    def _scaled(self, rows: npt.NDArray[Any]) -> Floats:
        mean, scale = self._scale()
        return ((rows - mean) / scale).astype(np.float32)

    def _rescale_output(self, mean: float, variance: float) -> None:
        """Take on the scale of the target; classes have none."""

    # Learning --------------------------------------------------------------------------------------------------------

    def _make_network(self, n_features: int) -> Any:
        from tessera_xr.learning.networks import Perceptron

        return Perceptron([n_features, *self._widths()], float(self.dropout), make_generator(self._seed))

    def _count_batches(self, n: int) -> int:
        size = min(self.batch_size, max(SMALLEST_BATCH, -(-n // STEPS_A_PASS)))
        return int(-(-n // size))

    def _train(self, data: Data, passes: int, rng: np.random.Generator, watched: Data | None = None) -> None:
        """Train on (rows, targets, weights), and go back to the pass that was best for the watched ones."""
        from tessera_xr.encoder.device import resolve_device

        device, n = resolve_device(self.device), len(data[0])

        def work() -> None:
            self._train_on(device, data, passes, rng, watched)

        small = n < ROWS_FOR_ALL_CORES * self._count_batches(n)
        in_one_thread(work) if small and device.type == "cpu" else work()
        self._fold()

    def _train_on(
        self, device: torch.device, data: Data, passes: int, rng: np.random.Generator, watched: Data | None
    ) -> None:
        import torch

        network, generator = self._network.to(device), make_generator(self._seed + self._n_steps, device)
        settings = {"lr": self.learning_rate, "weight_decay": self.weight_decay, "fused": True}
        optimiser = torch.optim.AdamW(network.parameters(), **settings)
        if self._optimiser is not None:
            optimiser.load_state_dict(self._optimiser)
        tensors = [torch.from_numpy(a).to(device) for a in data]
        best = Best(self.patience)
        for _ in range(passes):
            self.loss_curve_.append(self._pass(tensors, optimiser, generator, rng))
            if watched is not None:
                score, loss = self._watch(watched, device)
                if not best.take(network, score, loss):
                    break
        if best.weights:
            network.load_state_dict(best.weights)
        self._optimiser = _on_cpu(optimiser.state_dict())
        self._network = network.cpu().eval()

    def _pass(
        self,
        tensors: list[Tensor],
        optimiser: torch.optim.Optimizer,
        generator: torch.Generator,
        rng: np.random.Generator,
    ) -> float:
        """Train on every row once; return the mean loss."""
        import torch

        network, n, total = self._network.train(), len(tensors[0]), 0.0
        for rows in np.array_split(rng.permutation(n), self._count_batches(n)):
            x, targets, weights = (tensor[torch.from_numpy(rows).to(tensor.device)] for tensor in tensors)
            loss = (self._losses(network(x, generator), targets) * weights).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            self._n_steps += 1
            total += loss.item() * len(rows)
        return total / n

    def _watch(self, watched: Data, device: torch.device) -> tuple[float, float]:
        """Return score and loss of rows that aren't trained on; the greater score is better."""
        import torch

        rows, targets, weights = (torch.from_numpy(a) for a in watched)
        with torch.no_grad():
            network = self._network.eval()
            outputs = torch.cat([network(part.to(device)).cpu() for part in torch.split(rows, 1 << 16)])
            loss = float((self._losses(outputs, targets) * weights).sum() / weights.sum())
        score = self._score(outputs.numpy(), watched[1], watched[2])
        assert self.validation_scores_ is not None
        self.validation_scores_.append(abs(score))
        return score, loss

    def _fold(self) -> None:
        from tessera_xr.learning.networks import fold

        self._folded = fold(self._network, *self._scale())

    def _continue(
        self, rows: npt.NDArray[Any], targets: npt.NDArray[Any], sample_weight: npt.ArrayLike | None, *, first: bool
    ) -> None:
        """Train a little more, with the same optimiser."""
        kept, weights = self._weights(sample_weight, rows)
        rows, targets = rows[kept], targets[kept]
        (self._begin if first else self._see)(rows, targets)
        rng = np.random.default_rng([self._seed, self._n_steps])
        passes = max(PASSES_A_CALL, -(-STEPS_A_CALL // self._count_batches(len(rows))))
        self._train((self._scaled(rows), self._standardised(targets), weights), passes, rng)
        self.n_iter_, self.validation_scores_ = len(self.loss_curve_), None

    # Saving ----------------------------------------------------------------------------------------------------------

    def state(self) -> tuple[dict[str, Any], Arrays]:
        """Return what makes the estimator anew without pickle: a dict for JSON, and arrays.

        The optimiser isn't among it: `partial_fit` goes on with a fresh one.
        """
        from sklearn.utils.validation import check_is_fitted

        check_is_fitted(self, "_folded")
        facts = {
            "params": settings_of(self.get_params(deep=False)), "count": self._count, "n_steps": self._n_steps,
            "seed": self._seed, "target": list(self._target), "loss_curve": self.loss_curve_,
            "validation_scores": self.validation_scores_, **self._more_facts(),
        }  # fmt: skip
        if hasattr(self, "feature_names_in_"):
            facts["feature_names"] = self.feature_names_in_.tolist()
        return facts, {"mean": self._mean, "variance": self._variance, **to_arrays(self._network)}

    @classmethod
    def from_state(cls, facts: dict[str, Any], arrays: Arrays) -> Any:
        """Return the estimator that `state` was called on; it predicts the same, bit for bit."""
        hidden = facts["params"]["hidden"]
        made = cls(**facts["params"] | {"hidden": tuple(hidden) if isinstance(hidden, list) else hidden})
        made._mean, made._variance = np.array(arrays["mean"]), np.array(arrays["variance"])
        made._count, made._n_steps, made._seed = facts["count"], facts["n_steps"], facts["seed"]
        made._target, made._optimiser = tuple(facts["target"]), None
        made.n_features_in_ = len(made._mean)
        if "feature_names" in facts:
            made.feature_names_in_ = np.array(facts["feature_names"], dtype=object)
        made.loss_curve_, made.validation_scores_ = list(facts["loss_curve"]), facts["validation_scores"]
        made.n_iter_ = len(made.loss_curve_)
        made._take_facts(facts)
        made._network = made._make_network(made.n_features_in_).eval()
        from_arrays(made._network, arrays)
        made._fold()
        return made


def _on_cpu(state: Any) -> Any:
    """Return an optimiser's state with its tensors in main memory."""
    if isinstance(state, dict):
        return {key: _on_cpu(value) for key, value in state.items()}
    return state.cpu() if hasattr(state, "cpu") else state
