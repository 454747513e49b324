"""What our own networks share when they learn: labels held out, the best weights kept, classes that survive JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from tessera_xr.errors import SchemaError

if TYPE_CHECKING:
    import torch

Arrays: TypeAlias = dict[str, npt.NDArray[Any]]
Result = TypeVar("Result")
LEAST_HELD_OUT = 10
"""Rows; the score of fewer says nothing."""
KEPT_SHARE = 0.5
"""Of the rows of a class, that training keeps at least, where whole groups are held out."""


@contextmanager
def as_schema_error() -> Iterator[None]:
    """Turn scikit-learn's complaints about values into `SchemaError`, which is a ValueError too."""
    from sklearn.exceptions import NotFittedError

    try:
        yield
    except NotFittedError:
        raise
    except ValueError as error:
        raise error if isinstance(error, SchemaError) else SchemaError(str(error)) from error


def hold_out(
    codes: npt.NDArray[np.intp], groups: npt.NDArray[Any] | None, fraction: float, rng: np.random.Generator
) -> npt.NDArray[np.bool_] | None:
    """Choose the rows of a validation set: whole groups, about as many of each class, every class kept in training.

    Parameters
    ----------
    codes : ndarray (n,) of int
        Class of each row; zeros where there are none.
    groups : ndarray (n,), optional
        Rows of one group stay together; without, each row is a group.
    fraction : float
        Share of the rows to hold out.
    rng : Generator

    Returns
    -------
    ndarray (n,) of bool, or None
        None if the labels are too few: fewer than ten rows, or fewer than half of the classes, could be held out.
    """
    totals = np.bincount(codes)
    if groups is None:
        held = _hold_rows(codes, totals, fraction, rng)
    else:
        _, at = np.unique(groups, return_inverse=True)
        at = at.reshape(-1)
        table = np.bincount(at * len(totals) + codes, minlength=(at.max() + 1) * len(totals)).reshape(-1, len(totals))
        held = _hold_groups(table, totals, fraction, rng)[at]
    n_classes = len(np.unique(codes[held]))
    enough = held.sum() >= LEAST_HELD_OUT and 2 * n_classes >= (totals > 0).sum()
    return held if enough else None


def _hold_rows(
    codes: npt.NDArray[np.intp], totals: npt.NDArray[Any], fraction: float, rng: np.random.Generator
) -> npt.NDArray[np.bool_]:
    held = np.zeros(len(codes), dtype=bool)
    for code in np.flatnonzero(totals):
        rows = np.flatnonzero(codes == code)
        n = min(round(fraction * len(rows)), len(rows) - 1)
        held[rng.choice(rows, n, replace=False)] = True
    return held


def _hold_groups(
    table: npt.NDArray[Any], totals: npt.NDArray[Any], fraction: float, rng: np.random.Generator
) -> npt.NDArray[np.bool_]:
    """Choose groups by their numbers of rows of each class (G, C): few at a time, then one of the classes left out."""
    chosen = np.zeros(len(table), dtype=bool)
    held, wanted = np.zeros(len(totals)), fraction * totals
    shuffled = rng.permutation(len(table))
    by_size = shuffled[np.argsort(table[shuffled].sum(axis=1), kind="stable")]
    for order, goal, limit in ((shuffled, wanted, 1.5 * wanted), (by_size, 0.5, (1 - KEPT_SHARE) * totals)):
        for group in order[~chosen[order]]:
            there = table[group] > 0
            wants = (held < goal)[there].any()
            if wants and (held + table[group] <= limit)[there].all():
                chosen[group] = True
                held += table[group]
    return chosen


class Best:
    """The weights of the best epoch so far, and how many epochs have passed without progress.

    Parameters
    ----------
    patience : int
        Epochs without progress after which to stop.
    """

    def __init__(self, patience: int) -> None:
        self.patience, self.stale = patience, 0
        self.weights: dict[str, torch.Tensor] = {}
        self._rank = (-np.inf, -np.inf)
        self._milestone = (-np.inf, np.inf)

    def take(self, network: torch.nn.Module, score: float, loss: float) -> bool:
        """Note an epoch; of equal scores the smaller loss is better. Return whether to go on.

        A loss that falls is progress too: the score of rare classes stays at nothing for a while.
        """
        if not self.weights or (score, -loss) > self._rank:
            self._rank = (score, -loss)
            self.weights = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
        highest, lowest = self._milestone
        progress = score > highest + 1e-4 * abs(score) or loss < 0.99 * lowest
        self.stale = 0 if progress else self.stale + 1
        if progress:
            self._milestone = (max(score, highest), min(loss, lowest))
        return self.stale < self.patience


def in_one_thread(work: Callable[[], Result]) -> Result:
    """Run `work` on one core: where arrays are small, several would spend their time waiting for each other."""
    from tessera_xr.encoder.forward import in_threads

    return next(iter(list(in_threads(lambda _: work(), [None]))))


def draw_seed(random_state: Any) -> int:
    """Return a seed from what scikit-learn takes as `random_state`."""
    from sklearn.utils import check_random_state

    with as_schema_error():
        return int(check_random_state(random_state).randint(2**31 - 1))


def make_generator(seed: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a random generator of its own, so that torch's global one stays as it is."""
    import torch

    return torch.Generator(device).manual_seed(seed)


def moments(values: npt.NDArray[Any]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return mean and variance of the columns of (n, d), in float64."""
    return values.mean(axis=0, dtype=np.float64), values.var(axis=0, dtype=np.float64)


def deviation(mean: npt.NDArray[np.float64], variance: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the standard deviation to divide by: 1 where values are equal but for rounding."""
    found = np.sqrt(variance)
    return np.where(found > 1e-6 * np.abs(mean), found, 1.0)


def settings_of(params: dict[str, Any]) -> dict[str, Any]:
    """Return an estimator's parameters as JSON holds them."""
    return {name: _plain(value) for name, value in params.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [int(one) for one in value]
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, int | float | str | bool | None):
        return value
    return None if isinstance(value, np.random.RandomState) else str(value)  # such as a torch.device


def pack_classes(classes: npt.NDArray[Any]) -> dict[str, Any]:
    """Return classes as JSON holds them.

    Raises
    ------
    SchemaError
        If they are neither text nor numbers.
    """
    values = classes.tolist()
    if not all(isinstance(value, str | int | float | bool) for value in values):
        raise SchemaError(f"classes must be text or numbers to be saved, not {type(values[0]).__name__}")
    return {"dtype": classes.dtype.str, "values": values}


def unpack_classes(packed: dict[str, Any]) -> npt.NDArray[Any]:
    """Return what `pack_classes` was given."""
    return np.array(packed["values"], dtype=np.dtype(packed["dtype"]))


def to_arrays(network: torch.nn.Module) -> Arrays:
    """Return the weights of a network."""
    return {f"network.{name}": tensor.detach().cpu().numpy().copy() for name, tensor in network.state_dict().items()}


def from_arrays(network: torch.nn.Module, arrays: Arrays) -> None:
    """Give a network its weights back."""
    import torch

    own = {name.removeprefix("network."): a for name, a in arrays.items() if name.startswith("network.")}
    network.load_state_dict({name: torch.from_numpy(np.array(a)) for name, a in own.items()}, strict=True)
