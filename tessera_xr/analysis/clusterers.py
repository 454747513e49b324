"""What scikit-learn's clusterers make of a sample of embeddings, in one form for all of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from tessera_xr.errors import SchemaError

if TYPE_CHECKING:
    import pandas as pd

PROTOTYPES = 16
"""Places that stand for a cluster which is not the neighbourhood of one centre."""
REACH = 95.0
"""Percentile of its own members' distances that a density cluster reaches to; what lies further is noise."""
MAX_CLUSTERS = 250
Criterion = Literal["elbow", "silhouette"]
Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Found:
    """What a clusterer made of the sample."""

    labels: Integers  # (pixel,), -1 noise
    centres: Floats  # (cluster, band)
    prototypes: Floats  # (prototype, band)
    owners: Integers  # (prototype,) row of centres
    reach: Floats  # (prototype,)


def numbers_to_try(n_clusters: Any, candidates: Iterable[int], criterion: str) -> list[int | None]:
    """Return the numbers of clusters to fit."""
    if criterion not in ("elbow", "silhouette"):
        raise SchemaError(f"criterion={criterion!r} is unknown; choose 'elbow' or 'silhouette'")
    if n_clusters == "auto":
        numbers: list[int | None] = [*sorted(set(candidates))]
        if len(numbers) < 3:
            raise SchemaError(f"candidates={numbers} are too few to choose from; give three or more")
    elif n_clusters is None or isinstance(n_clusters, (int, np.integer)):
        numbers = [None if n_clusters is None else int(n_clusters)]
    else:
        raise SchemaError(f"n_clusters={n_clusters!r} is unknown; give a whole number or 'auto'")
    for number in numbers:
        if number is not None and not 1 + (n_clusters == "auto") <= number <= MAX_CLUSTERS:
            raise SchemaError(f"n_clusters must be from 1 to {MAX_CLUSTERS} (2 at least to choose from), not {number}")
    return numbers


def make_clusterer(method: Any, n_clusters: int | None, seed: int) -> Any:
    """Return an unfitted clusterer with its number of clusters and its seed."""
    from sklearn.base import clone
    from sklearn.cluster import HDBSCAN, KMeans

    if isinstance(method, str) and method == "kmeans":
        return KMeans(n_clusters or 8, random_state=seed, copy_x=False)
    if isinstance(method, str) and method == "hdbscan":
        if n_clusters is not None:
            raise SchemaError(f"HDBSCAN finds the number of clusters itself; leave out n_clusters={n_clusters}")
        return HDBSCAN(min_samples=10, copy=True)
    if isinstance(method, (str, type)) or not (hasattr(method, "fit_predict") and hasattr(method, "get_params")):
        raise SchemaError(
            f"method={method!r} is unknown; choose 'kmeans', 'hdbscan', or give a scikit-learn clusterer such as "
            "AgglomerativeClustering()"
        )
    estimator = clone(method)
    settings = estimator.get_params()
    name = next((key for key in ("n_clusters", "n_components") if key in settings), None)
    if n_clusters is not None and name is None:
        raise SchemaError(f"{type(method).__name__} finds the number of clusters itself; leave out n_clusters")
    if n_clusters is not None:
        estimator.set_params(**{str(name): n_clusters})
    if "random_state" in settings and settings["random_state"] is None:
        estimator.set_params(random_state=seed)
    return estimator


def fit(estimator: Any, space: Floats, values: Floats, seed: int) -> Found:
    """Fit to the sample in `space`, and describe the clusters by its embeddings `values`, both (pixel, ...)."""
    from sklearn.cluster import HDBSCAN

    if isinstance(estimator, HDBSCAN) and space is not values:
        estimator.set_params(min_cluster_size=max(len(space) // 100, 10), min_samples=min(10, len(space)))
    raw = np.asarray(estimator.fit_predict(space))
    names, labels = np.unique(raw, return_inverse=True)
    noisy = names[0] < 0
    labels = labels - int(noisy)
    n = len(names) - int(noisy)
    if not 1 <= n <= MAX_CLUSTERS:
        raise SchemaError(
            f"{type(estimator).__name__} found {n} clusters in {len(values)} pixels; from 1 to {MAX_CLUSTERS} can be "
            "used: change its settings, or take another method or a larger sample"
        )
    centres = getattr(estimator, "cluster_centers_", None)
    if centres is not None and np.shape(centres) == (n, values.shape[1]) and not noisy:
        centres = np.asarray(centres, dtype=np.float32)
        return Found(labels, centres, centres, np.arange(n), np.full(n, np.inf, np.float32))
    members = [values[labels == i] for i in range(n)]
    means = np.stack([m.mean(axis=0, dtype=np.float64) for m in members]).astype(np.float32)
    parts = [_stand_ins(m, seed, noisy) for m in members]
    owners = np.repeat(np.arange(n), [len(p) for p, _ in parts])
    return Found(labels, means, np.concatenate([p for p, _ in parts]), owners, np.concatenate([r for _, r in parts]))


def _stand_ins(members: Floats, seed: int, noisy: bool) -> tuple[Floats, Floats]:
    """Return a few prototypes of the members (pixel, band) of a cluster, and how far they reach."""
    from sklearn.cluster import KMeans

    if len(members) <= PROTOTYPES:
        places = members
    else:
        places = KMeans(PROTOTYPES, n_init=1, random_state=seed).fit(members).cluster_centers_
    reach = np.inf
    if noisy:
        away = np.sqrt(((members[:, None] - places[None]) ** 2).sum(axis=2).min(axis=1))
        reach = float(np.percentile(away, REACH)) + 1e-6
    return places.astype(np.float32), np.full(len(places), reach, dtype=np.float32)


def score(tried: list[int | None], found: list[Found], values: Floats, seed: int) -> pd.DataFrame:
    """Return the inertia and the silhouette of each number of clusters."""
    import pandas as pd
    from sklearn.metrics import silhouette_score

    rows = []
    for item in found:
        kept = item.labels >= 0
        away = values[kept] - item.centres[item.labels[kept]]
        silhouette = (
            silhouette_score(values, item.labels, sample_size=min(2000, len(values)), random_state=seed)
            if 1 < len(item.centres) < len(values)
            else np.nan
        )
        rows.append((float((away.astype(np.float64) ** 2).sum()), float(silhouette)))
    return pd.DataFrame(rows, index=pd.Index(tried, name="n_clusters"), columns=["inertia", "silhouette"])


def choose(scores: pd.DataFrame, criterion: str) -> int:
    """Return the row of the best number of clusters."""
    if criterion == "silhouette":
        return int(np.nanargmax(scores["silhouette"]))
    numbers, inertia = scores.index.to_numpy(float), scores["inertia"].to_numpy()
    along = (numbers - numbers[0]) / (numbers[-1] - numbers[0])
    down = (inertia - inertia[-1]) / max(inertia[0] - inertia[-1], np.finfo(float).tiny)
    return int(np.argmin(along + down))
