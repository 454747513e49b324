"""Which labels to learn from and which to judge by: folds that lie apart in space, as scikit-learn splitters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from tessera_xr._warn import warn
from tessera_xr.embedding.schema import check_whole
from tessera_xr.errors import SchemaError

if TYPE_CHECKING:
    from tessera_xr.learning.samples import LabelSample

By = Literal["block", "polygon"]
Rows = npt.NDArray[np.intp]
Floats = npt.NDArray[np.float64]
Splits = list[tuple[Rows, Rows]]

EARTH_RADIUS = 6_371_008.8
"""Mean radius in metres (IUGG)."""
BLOCKS_PER_FOLD = 4
QUARTERS = 4


@dataclass(frozen=True, eq=False)
class Folds:
    """A division of the rows of a label sample into folds, each of which is held out once.

    A scikit-learn splitter: pass it as `cv=` to `cross_val_score`, `GridSearchCV` and their like, with the X and y of
    the sample that it was made for.
    """

    fold: Rows
    """(n,) the fold, 0 to n_folds - 1, in which each row is held out."""
    unit: Rows
    """(n,) what is never torn apart: the number of the row's block or polygon; the row itself for random pixels."""
    pixel: Rows
    """(n,) the number of the map's pixel; rows of a pixel that is being judged are never learnt from."""

    def get_n_splits(self, X: object = None, y: object = None, groups: object = None) -> int:  # noqa: ARG002
        """Return the number of folds."""
        return int(self.fold.max()) + 1

    def split(self, X: Any = None, y: object = None, groups: object = None) -> Iterator[tuple[Rows, Rows]]:  # noqa: ARG002
        """Yield (training rows, test rows) of each fold, (k,) and (m,) numbers of rows of the sample.

        Raises
        ------
        SchemaError
            If X has another number of rows than the sample that the folds are of, or a fold is left without training
            rows.
        """
        if X is not None and len(X) != len(self.fold):
            raise SchemaError(
                f"these folds are of a sample of {len(self.fold)} pixels, X has {len(X)} rows; pass the X of the sample"
            )
        for number in range(self.get_n_splits()):
            test = np.flatnonzero(self.fold == number)
            train = np.flatnonzero(self.fold != number)
            train = self._apart(train[~np.isin(self.pixel[train], self.pixel[test])], test)
            if not len(train):
                raise SchemaError(self._nothing_left(number))
            yield train, test

    def _apart(self, train: Rows, test: Rows) -> Rows:  # noqa: ARG002
        """Return the training rows that are far enough from what is judged."""
        return train

    def _nothing_left(self, number: int) -> str:
        return f"nothing is left to learn from when fold {number} is held out: its pixels are all there are; add labels"

    def __repr__(self) -> str:
        return f"Folds({self.get_n_splits()} folds of pixels at random, {len(self.fold)} pixels)"


@dataclass(frozen=True, eq=False)
class SpatialFolds(Folds):
    """Folds that lie apart: whole blocks or whole polygons, with a buffer between training and test if asked for."""

    x: Floats
    """(n,) pixel centres in metres."""
    y: Floats
    """(n,) likewise."""
    by: By = "block"
    """What is held out together."""
    block: float | None = None
    """Side of a block in metres; None by polygon."""
    buffer: float = 0.0
    """Training pixels nearer than this to a test pixel, in metres, are left out."""

    def _apart(self, train: Rows, test: Rows) -> Rows:
        if not self.buffer:
            return train
        from scipy.spatial import cKDTree

        places = np.column_stack([self.x, self.y])
        distance, _ = cKDTree(places[test]).query(places[train], distance_upper_bound=self.buffer)
        far: npt.NDArray[np.bool_] = ~(distance < self.buffer)  # infinite where none is within it
        return train[far]

    def _nothing_left(self, number: int) -> str:
        if not self.buffer:
            return super()._nothing_left(number)
        return (
            f"buffer={self.buffer:g} m leaves nothing to learn from when fold {number} is held out; use a smaller "
            "buffer, or more folds, which are smaller each"
        )

    def __repr__(self) -> str:
        what = f"block={self.block:g} m" if self.block is not None else "by='polygon'"
        return (
            f"SpatialFolds({self.get_n_splits()} folds, {what}, {len(np.unique(self.unit))} units, "
            f"buffer={self.buffer:g} m, {len(self.fold)} pixels)"
        )


def spatial_folds(
    sample: LabelSample,
    n_folds: int = 5,
    *,
    by: By = "block",
    block: float | None = None,
    buffer: float = 0.0,
    seed: int = 0,
) -> SpatialFolds:
    """Divide labels into folds that lie apart in space, to judge a map where there are no labels.

    Neighbouring pixels are alike. Where some of them are learnt from and some judged by, the score tells how well a
    map is copied, not how well it is made elsewhere.

    Blocks are squares on the coordinates of the map, from a corner that `seed` draws. A label lies in the block of its
    centroid with all its pixels, so that no polygon is torn apart; two polygons that touch may still face each other
    over the border of two blocks, which `buffer` is for. The units (blocks or polygons) are dealt to folds, the large
    ones first and each to the fold that has least of its classes (of numbers: of their quarters), so that folds are
    of like size and mixture.

    A map in degrees is measured on a plane that touches the Earth at the mean latitude of the labels: x in
    cos(latitude) * 111.2 km a degree; good to 1 % over some 100 km.

    Parameters
    ----------
    sample : LabelSample
        What `labels.sample(emb)` returns.
    n_folds : int, default 5
        At least 2.
    by : {"block", "polygon"}
        What to hold out together. "polygon" holds out whole labels: honest where they lie far from each other, as
        fields often do. With points as labels it is hardly better than random pixels.
    block : float, optional
        Side of a block in metres; it should be longer than the distance over which the ground is alike. By default
        sqrt(area / (4 * n_folds)) of the rectangle around the labels, halved until 2 * n_folds blocks hold labels (or
        as many as there are labels, if fewer), but not under a pixel.
    buffer : float, default 0
        Metres. Training pixels nearer than that to a test pixel are left out.
    seed : int, default 0
        Of the corner of the blocks and of the order in which units are dealt.

    Returns
    -------
    SpatialFolds
        A scikit-learn splitter.

    Raises
    ------
    SchemaError
        If an option is out of range, or there are fewer blocks, polygons or labels than folds.

    Warns
    -----
    TesseraWarning
        If a class lies in one unit only: it can't be learnt and judged at once.

    References
    ----------
    Roberts et al. (2017), Ecography 40, 913-929, on blocks and buffers.
    """
    rng = np.random.default_rng(seed)
    folds = deal_spatially(sample, n_folds, by=by, block=block, buffer=buffer, rng=rng)
    warn_of_lonely(sample, folds)
    return folds


def deal_spatially(
    sample: LabelSample, n_folds: int, *, by: By, block: float | None, buffer: float, rng: np.random.Generator
) -> SpatialFolds:
    """Do what `spatial_folds` does, without a word on classes that lie in one place."""
    _check(sample, n_folds, by, block, buffer)
    x, y = in_metres(sample.x_map, sample.y_map, sample.crs)
    if by == "polygon":
        unit = _numbered(sample.groups)
    else:
        shortest, shift = _pixel_size(sample, x, y), rng.random(2)
        block = _default_block(x, y, sample.groups, n_folds, shortest, shift) if block is None else float(block)
        unit = _blocks(x, y, sample.groups, block, shift)
    n_units = int(unit.max()) + 1
    if n_units < n_folds:
        raise SchemaError(_too_few(n_units, len(np.unique(sample.groups)), n_folds, by, block))
    fold = deal(unit, sample.y, n_folds, rng)
    return SpatialFolds(fold, unit, _pixels(sample), x, y, by, None if by == "polygon" else block, float(buffer))


def random_folds(sample: LabelSample, n_folds: int = 5, seed: int = 0) -> Folds:
    """Divide pixels into folds at random, each class (of numbers: each quarter) evenly: the optimistic reference.

    Neighbours of what is judged are learnt from, so that the score says too much of places without labels. It is here
    to show how much too much.

    Parameters
    ----------
    sample : LabelSample
        What `labels.sample(emb)` returns.
    n_folds : int, default 5
        At least 2.
    seed : int, default 0
        Of the draw.

    Returns
    -------
    Folds
        A scikit-learn splitter.

    Raises
    ------
    SchemaError
        If there are fewer pixels than folds.
    """
    return deal_randomly(sample, n_folds, np.random.default_rng(seed))


def deal_randomly(sample: LabelSample, n_folds: int, rng: np.random.Generator) -> Folds:
    """Do what `random_folds` does."""
    _check(sample, n_folds, "block", None, 0.0)
    if len(sample.y) < n_folds:
        raise SchemaError(f"there are {len(sample.y)} labelled pixels, too few for {n_folds} folds; add labels")
    order = rng.permutation(len(sample.y))
    order = order[np.argsort(strata(sample.y)[order], kind="stable")]
    fold = np.empty(len(order), dtype=np.intp)
    fold[order] = np.arange(len(order)) % n_folds
    return Folds(fold, np.arange(len(order)), _pixels(sample))


def deal(unit: Rows, y: npt.NDArray[Any], n_folds: int, rng: np.random.Generator) -> Rows:
    """Return the fold (n,) of each row: units (n,) dealt so that each fold has a like share of each stratum of y.

    Greedy: each unit goes where the sum of squared shares grows least, which is the fold with the smallest product of
    its shares and the unit's.
    """
    stratum = strata(y)
    shares = np.zeros((int(unit.max()) + 1, int(stratum.max()) + 2))
    np.add.at(shares, (unit, stratum), 1.0)
    shares[:, -1] = shares.sum(axis=1)  # all together count like a class
    shares /= shares.sum(axis=0)
    # large ones first, but not in the same order each time: other seeds are to give other folds
    size = np.linalg.norm(shares, axis=1) * np.exp(0.3 * rng.standard_normal(len(shares)))
    held, where = np.zeros((n_folds, shares.shape[1])), np.empty(len(shares), dtype=np.intp)
    for number in np.argsort(-size, kind="stable"):
        where[number] = np.argmin(held @ shares[number])
        held[where[number]] += shares[number]
    return where[unit]


def strata(y: npt.NDArray[Any]) -> Rows:
    """Return the number of the class of each row; of numbers, of the quarter that it lies in."""
    if np.asarray(y).dtype.kind != "f":
        return _numbered(y)
    edges = np.quantile(y, np.arange(1, QUARTERS) / QUARTERS)
    return _numbered(np.searchsorted(edges, y, side="right"))


def warn_of_lonely(sample: LabelSample, folds: Folds) -> None:
    """Warn of classes that lie in one unit only; raise `SchemaError` unless two classes lie in more."""
    if sample.task != "classes" or not isinstance(folds, SpatialFolds):
        return
    names = np.unique(sample.y)
    lonely = [str(name) for name in names if len(np.unique(folds.unit[sample.y == name])) == 1]
    if len(names) - len(lonely) < 2:
        raise SchemaError(
            f"only {len(names) - len(lonely)} of {len(names)} classes lie in two {folds.by}s or more, and without two "
            "there is nothing to judge; label more places"
            + ("" if folds.by == "polygon" else ", or use a smaller block= or folds='polygon'")
        )
    if lonely:
        warn(
            f"{', '.join(lonely)}: in one {folds.by} only, so never learnt from and judged at once; label such places "
            f"elsewhere too{'' if folds.by == 'polygon' else ', or use a smaller block='}"
        )


def in_metres(x: Floats, y: Floats, crs: str) -> tuple[Floats, Floats]:
    """Return coordinates of a map in metres: its own, or those on a plane at the mean latitude if it is in degrees."""
    from pyproj import CRS

    known = CRS.from_user_input(crs)
    factor = float(known.axis_info[0].unit_conversion_factor)  # to radians or to metres
    if not known.is_geographic:
        return x * factor, y * factor
    return x * factor * EARTH_RADIUS * np.cos(np.mean(y) * factor), y * factor * EARTH_RADIUS


def _check(sample: LabelSample, n_folds: int, by: object, block: float | None, buffer: float) -> None:
    check_whole("n_folds", n_folds)
    if n_folds < 2:
        raise SchemaError(f"n_folds must be at least 2, not {n_folds}: one to judge by and one to learn from")
    if by not in ("block", "polygon"):
        raise SchemaError(f"by={by!r} is unknown; choose 'block' or 'polygon'")
    if block is not None and by == "polygon":
        raise SchemaError("block= is for by='block'; by='polygon' holds out whole labels: leave it out")
    if block is not None and not 0 < block < np.inf:
        raise SchemaError(f"block must be a length in metres above 0, not {block!r}; leave it out for a default")
    if not 0 <= buffer < np.inf:
        raise SchemaError(f"buffer must be a distance in metres of 0 or more, not {buffer!r}")
    if not len(sample.y):
        raise SchemaError("there are no labelled pixels; add labels within the map")


def _too_few(n_units: int, n_labels: int, n_folds: int, by: By, block: float | None) -> str:
    if by == "polygon" or n_labels < n_folds:
        return (
            f"there are {n_labels} labels (polygons or points), too few for {n_folds} folds; add labels, or use "
            f"n_folds={max(2, n_labels)}"
        )
    fewer = f"fewer folds (n_folds={n_units}), " if n_units >= 2 else ""
    return (
        f"the {n_labels} labels lie in {n_units} block{'s' if n_units > 1 else ''} of {block:g} m, too few for "
        f"{n_folds} folds; use {fewer}a smaller block=, or by='polygon'"
    )


def _numbered(values: npt.ArrayLike) -> Rows:
    return np.unique(np.asarray(values), return_inverse=True)[1].reshape(-1).astype(np.intp)


def _pixels(sample: LabelSample) -> Rows:
    return (sample.rows * int(sample.shape[1]) + sample.columns).astype(np.intp)


def _pixel_size(sample: LabelSample, x: Floats, y: Floats) -> float:
    """Return the side of a pixel in metres, 0 if all labels are in one."""
    spans = [(np.ptp(x), np.ptp(sample.columns)), (np.ptp(y), np.ptp(sample.rows))]
    return max((float(length / count) for length, count in spans if count), default=0.0)


def _default_block(x: Floats, y: Floats, groups: Rows, n_folds: int, shortest: float, shift: Floats) -> float:
    width, height = (max(float(np.ptp(v)), shortest) for v in (x, y))
    block = float(np.sqrt(width * height / (BLOCKS_PER_FOLD * n_folds)))
    wanted = min(2 * n_folds, len(np.unique(groups)))
    while block > shortest and int(_blocks(x, y, groups, block, shift).max()) + 1 < wanted:
        block /= 2
    return max(block, shortest, 1e-9)


def _blocks(x: Floats, y: Floats, groups: Rows, block: float, shift: Floats) -> Rows:
    """Return the number of the block that holds the centroid of each row's label."""
    label = _numbered(groups)
    count = np.bincount(label)
    centres = [np.bincount(label, v - v.min()) / count for v in (x, y)]
    cells = np.stack([np.floor(c / block + s) for c, s in zip(centres, shift, strict=True)], axis=1)
    return np.unique(cells, axis=0, return_inverse=True)[1].reshape(-1).astype(np.intp)[label]
