"""Few labels, simple heads, other parcels or regions: the accuracy of a description of d-pixels."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from sklearn.base import ClassifierMixin
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score

from benchmarks.quality.pixels import Pixels

SHOTS = (1, 5, 10, 50)
DRAWS = 20
JUDGED = 2000  # pixels at most, drawn anew each time
TREES = 100


@dataclass(frozen=True)
class Task:
    """Where labels may come from, and what is judged."""

    name: str
    train: Pixels
    test: Pixels | None = None
    """None: the groups of `train` are halved at random in each draw."""
    kind: str = "real"

    @property
    def judged(self) -> Pixels:
        """Where judged pixels are drawn from."""
        return self.train if self.test is None else self.test

    @property
    def classes(self) -> np.ndarray:
        """Names of the classes that both have."""
        return np.intersect1d(self.train.labels[self.train.labels != ""], self.judged.labels)


@dataclass(frozen=True)
class Draw:
    """Rows of one draw."""

    train: np.ndarray
    test: np.ndarray


def draws(task: Task, shots: int, n: int = DRAWS) -> Iterator[Draw]:
    """Yield `n` draws of so many labels a class; all descriptions get the same."""
    test = task.judged
    for seed in range(n):
        rng = np.random.default_rng([seed, shots])
        may, judged = task.train.labels != "", test.labels != ""
        if task.test is None:
            first = half_of_groups(task.train.group, task.train.labels, may, rng)
            may, judged = may & first, judged & ~first
        both = np.intersect1d(task.train.labels[may], test.labels[judged])
        rows = [rng.permutation(np.flatnonzero(may & (task.train.labels == c)))[:shots] for c in both]
        others = rng.permutation(np.flatnonzero(judged & np.isin(test.labels, both)))[:JUDGED]
        yield Draw(np.concatenate(rows), others)


def half_of_groups(group: np.ndarray, labels: np.ndarray, labelled: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return which pixels are of a random half of the groups: of each class's groups, as near as can be, half."""
    names, first = np.unique(group[labelled], return_index=True)
    main = labels[labelled][first]  # of a region, that of any of its pixels
    chosen = []
    for label in np.unique(main):
        own = rng.permutation(names[main == label])
        chosen.append(own[: (len(own) + rng.integers(2)) // 2])
    return np.isin(group, np.concatenate(chosen))


def accuracies(task: Task, x: tuple[np.ndarray, np.ndarray], head: str, shots: int, n: int = DRAWS) -> np.ndarray:
    """Return the balanced accuracy of each draw.

    `x` holds the description of `task.train` and of what is judged.
    """
    found = []
    for seed, draw in enumerate(draws(task, shots, n)):
        model = make_head(head, seed).fit(x[0][draw.train], task.train.labels[draw.train])
        said = model.predict(x[1][draw.test])
        found.append(balanced_accuracy_score(task.judged.labels[draw.test], said))
    return np.array(found)


def make_head(name: str, seed: int) -> ClassifierMixin:
    if name == "forest":
        return RandomForestClassifier(TREES, random_state=seed)
    return LogisticRegression(max_iter=1000)


def standardised(known: np.ndarray, judged: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return descriptions with the mean and spread of the first brought to 0 and 1: unlabelled pixels are free."""
    mean, std = known.mean(axis=0), known.std(axis=0) + 1e-9
    return (known - mean) / std, (judged - mean) / std
