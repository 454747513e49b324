"""Which places to label next: those that a head is unsure of, unlike each other, and not all in one corner."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import xarray as xr
from odc.geo.geobox import GeoBox

from tessera_xr._warn import warn
from tessera_xr.analysis.places import PIXELS_APART, as_places
from tessera_xr.analysis.queries import at_time, essentials
from tessera_xr.embedding.quantize import dequantize
from tessera_xr.embedding.schema import EMBEDDINGS, check_whole, has_data, provenance
from tessera_xr.errors import SchemaError
from tessera_xr.grid import geobox_of
from tessera_xr.learning.samples import as_sample

if TYPE_CHECKING:
    from geopandas import GeoDataFrame

    from tessera_xr.learning.heads import Head
    from tessera_xr.learning.labels import LabelSet
    from tessera_xr.learning.samples import LabelSample

Strategy: TypeAlias = Literal["margin", "entropy", "novelty", "random"]
Floats: TypeAlias = npt.NDArray[np.float32]
Pixels: TypeAlias = npt.NDArray[np.int64]

STRATEGIES = ("margin", "entropy", "novelty", "random")


def suggest(
    emb: xr.Dataset,
    head: Head,
    n: int = 10,
    *,
    labels: LabelSet | LabelSample | None = None,
    strategy: Strategy | None = None,
    min_distance: float | None = None,
    diversity: int = 10,
    time: Any = None,
    seed: int = 0,
) -> GeoDataFrame:
    """Return the places whose labels would teach a head most.

    Of the most uncertain places, no two close together, those are chosen that differ from each other: they are divided
    into n clusters of like embeddings, where the uncertain weigh more, and each cluster gives the place nearest to its
    centre. So ten pixels of the same doubtful field are asked about once, and a freak pixel hardly ever.

    Parameters
    ----------
    emb : Dataset
        Embeddings of the head's model, float32 or int8, eager or lazy.
    head : Head
        Fitted to the labels so far.
    n : int, default 10
        How many places.
    labels : LabelSet or LabelSample, optional
        The labels so far: places closer to them than `min_distance` are left out. "novelty" needs them.
    strategy : {"margin", "entropy", "novelty", "random"}, optional
        What uncertain means. "margin" (if not told, for classes): the second class comes close to the first; "entropy":
        no class stands out; "novelty" (if not told, for numbers): Mahalanobis distance to the labelled embeddings, in
        standard deviations, whatever the head says; "random": nothing, places are drawn at random, to compare with.
        Heads for numbers give every pixel an interval of the same width, which can't rank them.
    min_distance : float, optional
        The least distance between two places, in the unit of the map's CRS (metres, or degrees); ten pixels if not
        told.
    diversity : int, default 10
        The n places are chosen from the `diversity` * n most uncertain. 1: simply the most uncertain.
    time : int, str or datetime64, optional
        Which time of `emb` to label; needed where there are several.
    seed : int, default 0
        Of the clusters, and of "random".

    Returns
    -------
    GeoDataFrame
        In the map's CRS, the most uncertain first: `rank` from 1, `uncertainty` (of the strategy; of "random" the
        margin, if the head has probabilities), `prediction` (name of the class, or number), `x` and `y` of the pixel's
        centre, `lon`, `lat` and points as geometry. Fewer than n, with a warning, where no more fit.

    Raises
    ------
    SchemaError
        If the head can't say how sure it is, "novelty" has no labels, or an argument is out of range.
    VersionMismatchError
        If the embeddings are of another model than the head's.

    Notes
    -----
    Holds some 20 bytes a pixel, of lazy embeddings too. The clusters follow Zhdanov (2019), Diverse mini-batch active
    learning, arXiv:1901.05954.
    """
    strategy = _resolve_strategy(strategy, head, labels)
    _check_numbers(n, diversity)
    head.check_fits(emb)
    emb = at_time(emb, time)
    box = geobox_of(emb)
    pixel = (abs(box.resolution.y), abs(box.resolution.x))
    distance = PIXELS_APART * max(pixel) if min_distance is None else min_distance
    if not distance >= 0:
        raise SchemaError(f"min_distance={min_distance!r} must be 0 or more, in the unit of the map's CRS")
    sample = None if labels is None else as_sample(emb, labels)
    scores, predicted = _scores(emb, head, sample, strategy)
    order = np.random.default_rng(seed).random(scores.shape, dtype=np.float32) if strategy == "random" else scores
    order = np.where(_free(emb, sample, distance, pixel), order, np.float32(np.nan))
    pool = n if strategy == "random" else n * diversity
    candidates = _pick(order, pool, float(distance), pixel)
    if len(candidates) < n:
        _explain_few(n, len(candidates), distance)
    if n < len(candidates):
        vectors = _vectors(emb, candidates)
        candidates = candidates[_representatives(vectors, scores[tuple(candidates.T)], n, seed)]
    return _as_places(candidates, scores, predicted, head, box, provenance(emb))


def _resolve_strategy(strategy: Strategy | None, head: Head, labels: object) -> Strategy:
    """Return the strategy, and say what is wrong with it."""
    if strategy is None:
        strategy = "margin" if head.task == "classes" else "novelty"
    if strategy not in STRATEGIES:
        raise SchemaError(f"strategy={strategy!r} is unknown; choose one of {', '.join(map(repr, STRATEGIES))}")
    if strategy in ("margin", "entropy") and not head.has_probability:
        what = "predicts numbers" if head.task == "numbers" else "gives no probabilities"
        raise SchemaError(
            f"{head.name} {what}, so strategy={strategy!r} can't rank places; use strategy='novelty' with labels=, or "
            "a head with probabilities, as 'logistic' or 'forest'"
        )
    if strategy == "novelty" and labels is None:
        raise SchemaError(
            "strategy='novelty' looks for places unlike those that are labelled; pass them as labels=, or use "
            "strategy='random'"
        )
    return strategy


def _check_numbers(n: int, diversity: int) -> None:
    for name, value in (("n", n), ("diversity", diversity)):
        check_whole(name, value)
        if value < 1:
            raise SchemaError(f"{name} must be 1 or more, not {value}")


def _scores(
    emb: xr.Dataset, head: Head, sample: LabelSample | None, strategy: Strategy
) -> tuple[Floats, npt.NDArray[Any]]:
    """Return how uncertain each pixel is and what is predicted there, both (y, x); read in one pass."""
    from tessera_xr.analysis.novelty import fit_novelty
    from tessera_xr.learning.uncertainty import entropy, margin

    predicted = head.predict(emb, probability=head.has_probability and strategy != "novelty")
    maps = {"prediction": predicted["prediction"]}
    if strategy == "novelty":
        assert sample is not None  # _resolve_strategy has seen to it
        reference = xr.Dataset({EMBEDDINGS: (("pixel", "band"), sample.X)}, attrs=sample.attrs)
        maps["score"] = fit_novelty(reference).transform(emb)["distance"]
    elif head.has_probability:
        maps["score"] = (entropy if strategy == "entropy" else margin)(predicted)
    found = xr.Dataset(maps).transpose("y", "x").compute()
    codes = found["prediction"].values
    scores = found["score"].values if "score" in found else np.full(codes.shape, np.nan)
    return scores.astype(np.float32, copy=False), codes


def _free(
    emb: xr.Dataset, sample: LabelSample | None, distance: float, pixel: tuple[float, float]
) -> npt.NDArray[np.bool_]:
    """Return where a place may be: (y, x), with data and not too close to a labelled pixel."""
    from scipy.ndimage import distance_transform_edt

    free = has_data(emb).transpose("y", "x").values.copy()
    if sample is not None:
        unlabelled = np.ones(free.shape, dtype=bool)
        unlabelled[sample.rows, sample.columns] = False
        away = distance_transform_edt(unlabelled, sampling=pixel)
        free &= unlabelled & ~(away < distance * (1 - 1e-9))
    return free


def _pick(order: Floats, k: int, distance: float, pixel: tuple[float, float]) -> Pixels:
    """Return the k best pixels (row, column), best first, no two closer than a distance."""
    from tessera_xr.analysis.kernels import pick

    k = min(k, int(np.isfinite(order).sum()))
    found: Pixels = pick(np.array(order, dtype=np.float32, order="C"), k, distance, *pixel)
    return found


def _explain_few(n: int, found: int, distance: float) -> None:
    if not found:
        raise SchemaError(
            f"no place with data is {distance:g} or more from all labels; use a smaller min_distance, or another map"
        )
    warn(f"only {found} of {n} places fit {distance:g} apart on this map; ask for fewer, or a smaller min_distance")


def _vectors(emb: xr.Dataset, pixels: Pixels) -> Floats:
    """Return the embeddings of pixels, (n, band)."""
    index = {d: xr.DataArray(pixels[:, i], dims="pixel") for i, d in enumerate(("y", "x"))}
    found = dequantize(essentials(emb).isel(index).compute())[EMBEDDINGS].transpose("pixel", "band")
    return np.asarray(found.values, dtype=np.float32)


def _representatives(vectors: Floats, weights: Floats, n: int, seed: int) -> npt.NDArray[np.intp]:
    """Return the n of m vectors (m, band) that stand for all, in their order; where fewer differ, also the first."""
    from sklearn.cluster import KMeans

    n_clusters = min(n, len(np.unique(vectors, axis=0)))
    weights = np.maximum(weights.astype(np.float64), 1e-6)
    model = KMeans(n_clusters, n_init=3, random_state=seed).fit(vectors, sample_weight=weights)
    away = np.linalg.norm(vectors - model.cluster_centers_[model.labels_], axis=1)
    nearest = [np.flatnonzero(model.labels_ == i) for i in np.unique(model.labels_)]
    chosen = {int(members[away[members].argmin()]) for members in nearest}
    rest = [i for i in range(len(vectors)) if i not in chosen]
    return np.sort(np.array([*chosen, *rest[: n - len(chosen)]], dtype=np.intp))


def _as_places(
    pixels: Pixels, scores: Floats, predicted: npt.NDArray[Any], head: Head, box: GeoBox, attrs: dict[str, Any]
) -> GeoDataFrame:
    row, column = pixels.T + 0.5
    t = box.transform
    x, y = t.a * column + t.b * row + t.c, t.d * column + t.e * row + t.f
    said = predicted[tuple(pixels.T)]
    if head.task == "classes":
        said = np.array(head.classes, dtype=object)[said.astype(np.intp) - 1]
    columns = {"uncertainty": scores[tuple(pixels.T)], "prediction": said}
    return as_places(x, y, str(box.crs), columns, attrs)
