"""Patches of images around labelled pixels, for networks that look at surroundings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from tessera_xr.errors import SchemaError

Floats: TypeAlias = npt.NDArray[np.float32]
Flags: TypeAlias = npt.NDArray[np.bool_]
Place: TypeAlias = tuple[int, int, int]
"""Number of the image, row and column of the patch's first pixel."""


def pixels_with_data(image: npt.NDArray[Any]) -> Flags:
    """Return where all bands of an image (band, y, x) are finite."""
    return np.asarray(np.isfinite(image).all(axis=0))


def check_images(
    images: Sequence[npt.NDArray[Any]],
    targets: Sequence[npt.NDArray[Any]],
    weights: Sequence[npt.NDArray[Any]] | None,
    groups: Sequence[npt.NDArray[Any]] | None,
) -> None:
    """Raise `SchemaError` unless there are images (band, y, x), and of everything else one (y, x) for each."""
    if not len(images):
        raise SchemaError("there are no images to learn from")
    for image in images:
        if np.ndim(image) != 3 or len(image) != len(images[0]):
            raise SchemaError(
                f"images must be (band, y, x) with the same bands, here {len(images[0])}: not {image.shape}"
            )
    for name, others in (("targets", targets), ("weights", weights), ("groups", groups)):
        if others is None:
            continue
        shapes = [np.shape(other) for other in others]
        if shapes != [image.shape[1:] for image in images]:
            raise SchemaError(
                f"{name} must be one (y, x) for each image, here {[i.shape[1:] for i in images]}: not {shapes}"
            )
    for weight in weights or ():
        if not np.isfinite(weight).all() or (weight < 0).any():
            raise SchemaError("weights must be finite, and 0 or more")


def statistics(images: Sequence[npt.NDArray[Any]]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return mean and variance of each band over all pixels with data."""
    n, total, squares = 0, np.zeros(len(images[0])), np.zeros(len(images[0]))
    centre = None
    for image in images:
        values = image[:, pixels_with_data(image)]
        if not values.size:
            continue
        centre = values.mean(axis=1, dtype=np.float64) if centre is None else centre
        away = values - centre[:, None]  # near zero, so that squares lose no digits
        n += values.shape[1]
        total, squares = total + away.sum(axis=1), squares + (away**2).sum(axis=1)
    assert centre is not None
    return centre + total / n, squares / n - (total / n) ** 2


class Patches:
    """Images with labelled pixels, of which some are held out.

    Parameters
    ----------
    images : list of ndarray (band, y, x) float32
        Standardised, 0 for no data.
    labelled : list of ndarray (y, x) of bool
    values, weights : ndarray (n,)
        Of the labelled pixels, in order.
    held : ndarray (n,) of bool, optional
        Which of them are held out.
    """

    def __init__(
        self,
        images: list[Floats],
        labelled: list[Flags],
        values: npt.NDArray[Any],
        weights: npt.NDArray[np.float64],
        held: Flags | None,
    ) -> None:
        self.images, self.held = images, held
        ends = np.cumsum([int(there.sum()) for there in labelled])[:-1]
        self.targets, self._weights = [], []
        hidden = np.zeros(len(values), dtype=bool) if held is None else held
        for there, *rows in zip(labelled, *(np.split(a, ends) for a in (values, weights, hidden)), strict=True):
            target, training, watching = np.zeros(there.shape, values.dtype), *np.zeros((2, *there.shape), np.float32)
            target[there] = rows[0]
            training[there], watching[there] = np.where(rows[2], 0, rows[1]), np.where(rows[2], rows[1], 0)
            self.targets.append(target)
            self._weights.append((training, watching))

    def weights_for(self, *, training: bool) -> list[Floats]:
        """Return the weights (y, x) of each image's labels; 0 elsewhere, and for labels of the other kind."""
        return [pair[0 if training else 1] for pair in self._weights]

    def labelled_for(self, *, training: bool) -> list[Flags]:
        """Return where labels are to train on, or to watch."""
        return [weights > 0 for weights in self.weights_for(training=training)]


def place_patches(labelled: Sequence[Flags], size: int, rng: np.random.Generator | None) -> list[Place]:
    """Return places of patches that together hold every labelled pixel, few of them.

    A lattice of patches is laid over each image, shifted at random; each patch with labels that no other holds yet is
    then moved so that they are in its middle, as far as the image goes. Without `rng` nothing is random.
    """
    places = []
    for number, there in enumerate(labelled):
        at = np.stack(np.nonzero(there))  # (2, n)
        shift = np.zeros((2, 1), np.intp) if rng is None else rng.integers(0, size, (2, 1))
        _, first, cell = np.unique((at + shift) // size, axis=1, return_index=True, return_inverse=True)
        cell, missing = cell.reshape(-1), np.ones(at.shape[1], dtype=bool)
        for one in range(len(first)) if rng is None else rng.permutation(len(first)):
            alone = at[:, (cell == one) & missing]
            if alone.size:
                row, column = (_centred(a, size, n) for a, n in zip(alone, there.shape, strict=True))
                places.append((number, row, column))
                missing &= ((at < [[row], [column]]) | (at >= [[row + size], [column + size]])).any(axis=0)
    return places


def _centred(at: npt.NDArray[np.intp], size: int, n: int) -> int:
    """Return where a patch begins whose middle is that of positions `at`, within an image of n pixels."""
    start = (int(at.min()) + int(at.max()) + 1 - size) // 2
    return max(min(start, n - size), 0)


def cut(
    pixels: Patches, place: Place, size: int, rng: np.random.Generator | None, *, training: bool
) -> tuple[Floats, npt.NDArray[Any], Floats]:
    """Return a patch's image (band, size, size), targets and weights (size, size), padded where the image ends.

    With `rng` it is turned and flipped at random.
    """
    number, row, column = place
    weights = pixels.weights_for(training=training)[number]
    window = np.s_[..., row : row + size, column : column + size]
    parts = [array[window] for array in (pixels.images[number], pixels.targets[number], weights)]
    short = [size - n for n in parts[1].shape]
    parts = [np.pad(part, [(0, 0)] * (part.ndim - 2) + [(0, short[0]), (0, short[1])]) for part in parts]
    if rng is not None:
        turns, flipped = int(rng.integers(4)), bool(rng.integers(2))
        parts = [np.rot90(part[..., ::-1] if flipped else part, turns, axes=(-2, -1)) for part in parts]
    image, targets, kept = (np.ascontiguousarray(part) for part in parts)
    return image, targets, kept
