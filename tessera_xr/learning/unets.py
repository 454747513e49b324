"""What our UNets have in common, be it classes or numbers that they learn: tiles, patches, training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator

from tessera_xr.errors import SchemaError
from tessera_xr.learning.patches import Patches, check_images, cut, pixels_with_data, place_patches, statistics
from tessera_xr.learning.training import (
    Arrays,
    Best,
    deviation,
    draw_seed,
    from_arrays,
    hold_out,
    in_one_thread,
    make_generator,
    settings_of,
    to_arrays,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Floats: TypeAlias = npt.NDArray[np.float32]
Images: TypeAlias = Sequence[npt.NDArray[Any]]
Result = TypeVar("Result")
CHANNELS_FOR_ALL_CORES = 64
"""Narrower networks are quicker on one core."""


class UNets(BaseEstimator):  # type: ignore[misc]
    """What classification and regression share; the subclasses say what targets, losses and scores are."""

    takes_images = True
    has_own_threads = True

    def __init__(
        self,
        features: Sequence[int] = (256, 512),
        *,
        bottleneck: int = 1024,
        learning_rate: float = 1e-4,
        patch_size: int = 64,
        batch_size: int = 8,
        max_epochs: int = 80,
        patience: int = 15,
        validation_fraction: float = 0.1,
        standardise: bool = True,
        device: str = "auto",
        random_state: Any = 0,
        progress: bool = True,
    ) -> None:
        self.features = features
        self.bottleneck = bottleneck
        self.learning_rate = learning_rate
        self.patch_size = patch_size
        self.batch_size = batch_size
        self.max_epochs = max_epochs
        self.patience = patience
        self.validation_fraction = validation_fraction
        self.standardise = standardise
        self.device = device
        self.random_state = random_state
        self.progress = progress

    @property
    def step(self) -> int:
        """Pixels of the coarsest grid: 4 for two features. Blocks and tiles begin at multiples of it."""
        return int(2 ** len(self.features))

    @property
    def margin(self) -> int:
        """Pixels on each side that a prediction looks at, rounded up to a multiple of `step`: 24 for two features.

        A block of an image, with so many pixels more on each side (or up to the image's edge), gives the same as the
        whole image once they are cut off, if it begins at multiples of `step` in the image, or else if `origin` tells
        `predict` where it begins.
        """
        reach = 7 * self.step - 5  # two 3 x 3 convolutions at each size, down and up, and where pooling falls
        return -(-reach // self.step) * self.step

    def fit(self, images: Images, targets: Images, weights: Images | None = None, groups: Images | None = None) -> Any:
        """Learn from images of which some pixels are labelled.

        Parameters
        ----------
        images : list of ndarray (band, y, x)
            NaN for no data.
        targets : list of ndarray (y, x)
            Codes of classes, integers, -1 where unlabelled; for regression numbers, NaN where unlabelled.
        weights : list of ndarray (y, x), optional
            How much each labelled pixel counts.
        groups : list of ndarray (y, x) of int, optional
            What belongs together, such as the pixels of a polygon: whole groups are held out to find the best pass.
            Without groups, or with too few, all labels are trained on for `max_epochs` passes.

        Returns
        -------
        self

        Raises
        ------
        SchemaError
            If shapes don't fit, nothing is labelled, there is one class only, or a parameter is out of range.
        """
        self._check_parameters()
        check_images(images, targets, weights, groups)
        self.n_features_in_ = len(images[0])
        labelled, counts = self._find_labels(images, targets, weights)
        codes, values = self._learn_targets(_rows(targets, labelled))
        counts = self._balance(codes, counts)
        self._seed = draw_seed(self.random_state)
        rng = np.random.default_rng(self._seed)
        held = None
        if groups is not None:
            held = hold_out(codes, _rows(groups, labelled), self.validation_fraction, rng)
        self._mean, self._variance = statistics(images)
        self._network = self._make_network()
        prepared = [self._prepared(image) for image in images]
        pixels = Patches(prepared, labelled, values, counts / counts.mean(), held)
        self._compute(lambda: self._train(pixels, rng))
        self.n_iter_ = len(self.loss_curve_)
        return self

    def _find_labels(
        self, images: Images, targets: Images, weights: Images | None
    ) -> tuple[list[npt.NDArray[np.bool_]], npt.NDArray[np.float64]]:
        """Return where to learn, (y, x) of each image, and how much each of those pixels counts, (n,)."""
        labelled = [self._labelled(t) & pixels_with_data(image) for image, t in zip(images, targets, strict=True)]
        if weights is not None:
            labelled = [there & (w > 0) for there, w in zip(labelled, weights, strict=True)]
        n = sum(int(there.sum()) for there in labelled)
        if not n:
            raise SchemaError("no pixel is labelled, has data and a weight above zero; add labels")
        return labelled, np.ones(n) if weights is None else _rows(weights, labelled).astype(np.float64)

    def _balance(self, _: npt.NDArray[np.intp], counts: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Make classes count alike; numbers have none."""
        return counts

    def _compute(self, work: Callable[[], Result]) -> Result:
        """Do it on all cores, or on one if the network is too small to share out."""
        return in_one_thread(work) if self.features[0] < CHANNELS_FOR_ALL_CORES else work()

    # Prediction ------------------------------------------------------------------------------------------------------

    def predict_logits(self, image: npt.NDArray[Any], *, origin: tuple[int, int] = (0, 0), tile: int = 256) -> Floats:
        """Return what the last layer gives, (C, y, x) float32: NaN where there are no data.

        Parameters
        ----------
        image : ndarray (band, y, x)
            NaN for no data; or a block of an image, see `margin`.
        origin : (int, int)
            Row and column of the image's first pixel in the whole that it is a block of.
        tile : int
            Pixels a side to compute at once; the result doesn't depend on it but for rounding.
        """
        from sklearn.utils.validation import check_is_fitted

        check_is_fitted(self, "_network")
        if image.ndim != 3 or len(image) != self.n_features_in_:
            raise SchemaError(f"image must be ({self.n_features_in_}, y, x), not {image.shape}")
        if tile < 1:
            raise SchemaError(f"tile={tile!r} must be at least 1 pixel")
        before = [start % self.step for start in origin]
        ny, nx = image.shape[1:]
        after = [-(b + n) % self.step for b, n in zip(before, (ny, nx), strict=True)]
        padded = np.pad(self._prepared(image), ((0, 0), (before[0], after[0]), (before[1], after[1])))
        logits = self._compute(lambda: self._run_tiles(padded, -(-tile // self.step) * self.step))
        logits = logits[:, before[0] : before[0] + ny, before[1] : before[1] + nx]
        return np.where(pixels_with_data(image), logits, np.float32(np.nan))

    def _run_tiles(self, padded: Floats, tile: int) -> Floats:
        """Predict tiles with what they look at around them; the image's own edges stay edges."""
        import torch

        from tessera_xr.encoder.device import resolve_device
        from tessera_xr.learning.networks import on_device

        device = resolve_device(self.device)
        network, (ny, nx) = on_device(self._network, device), padded.shape[1:]
        out: Floats = np.empty((self._n_out(), ny, nx), dtype=np.float32)
        with torch.inference_mode():
            for row in range(0, ny, tile):
                for column in range(0, nx, tile):
                    top, left = max(row - self.margin, 0), max(column - self.margin, 0)
                    bottom, right = min(row + tile, ny), min(column + tile, nx)
                    part = padded[:, top : bottom + self.margin, left : right + self.margin]
                    found = network(torch.from_numpy(part.copy()).to(device)[None])[0].cpu().numpy()
                    core = found[:, row - top : bottom - top, column - left : right - left]
                    out[:, row:bottom, column:right] = core
        return out

    def _prepared(self, image: npt.NDArray[Any]) -> Floats:
        """Standardise an image (band, y, x), if that is wanted; 0 where there are no data."""
        scaled = image
        if self.standardise:
            scale = deviation(self._mean, self._variance)
            scaled = (image - self._mean[:, None, None].astype(np.float32)) / scale[:, None, None].astype(np.float32)
        return np.where(pixels_with_data(image), scaled, np.float32(0)).astype(np.float32)

    # Learning --------------------------------------------------------------------------------------------------------

    def _check_parameters(self) -> None:
        whole = {"bottleneck": self.bottleneck, "batch_size": self.batch_size, "max_epochs": self.max_epochs,
                 "patience": self.patience, "patch_size": self.patch_size}  # fmt: skip
        whole |= {f"features[{i}]": width for i, width in enumerate(self.features)}
        for name, value in whole.items():
            if int(value) != value or value < 1:
                raise SchemaError(f"{name}={value!r} must be a whole number of at least 1")
        if not len(self.features):
            raise SchemaError("features must hold one number or more, as (256, 512)")
        if self.patch_size % self.step:
            raise SchemaError(f"patch_size={self.patch_size} must be a multiple of {self.step}, as 64")
        if not self.learning_rate > 0 or not 0 <= self.validation_fraction <= 0.5:
            raise SchemaError("learning_rate must be above 0, and validation_fraction from 0 to 0.5")

    def _make_network(self) -> Any:
        from tessera_xr.learning.networks import UNet

        sizes = (self.n_features_in_, self._n_out(), list(map(int, self.features)), int(self.bottleneck))
        return UNet(*sizes, make_generator(self._seed))

    def _train(self, pixels: Patches, rng: np.random.Generator) -> None:
        import torch
        from tqdm.auto import tqdm

        from tessera_xr.encoder.device import resolve_device

        device = resolve_device(self.device)
        network = self._network.to(device)
        optimiser = torch.optim.Adam(network.parameters(), lr=self.learning_rate, fused=True)
        best, self.loss_curve_ = Best(self.patience), []
        self.validation_scores_: list[float] | None = None if pixels.held is None else []
        for _ in tqdm(range(self.max_epochs), unit="epoch", desc="learning", delay=1, disable=not self.progress):
            self.loss_curve_.append(self._pass(pixels, optimiser, device, rng))
            if self.validation_scores_ is not None:
                score, loss = self._watch(pixels, device)
                self.validation_scores_.append(abs(score))
                if not best.take(network, score, loss):
                    break
        if best.weights:
            network.load_state_dict(best.weights)
        self._network = network.cpu().eval()

    def _pass(
        self, pixels: Patches, optimiser: torch.optim.Optimizer, device: torch.device, rng: np.random.Generator
    ) -> float:
        """Train once on patches that hold every label; return the mean loss."""
        import torch

        network, total, weight = self._network.train(), 0.0, 0.0
        places = place_patches(pixels.labelled_for(training=True), self.patch_size, rng)
        order = rng.permutation(len(places))
        for chosen in np.array_split(order, -(-len(order) // self.batch_size)):
            batch = [cut(pixels, places[i], self.patch_size, rng, training=True) for i in chosen]
            loss, counted, _ = self._measure(network, batch, device)
            optimiser.zero_grad()
            torch.autograd.backward(loss / counted)
            optimiser.step()
            total, weight = total + loss.item(), weight + counted
        return total / weight

    def _watch(self, pixels: Patches, device: torch.device) -> tuple[float, float]:
        """Return score and loss of the labels held out; the greater score is better."""
        import torch

        network, total, weight, rows = self._network.eval(), 0.0, 0.0, []
        with torch.no_grad():
            for place in place_patches(pixels.labelled_for(training=False), self.patch_size, None):
                batch = [cut(pixels, place, self.patch_size, None, training=False)]
                loss, counted, found = self._measure(network, batch, device)
                total, weight = total + loss.item(), weight + counted
                rows.append(found)
        outputs, targets, weights = (np.concatenate(column) for column in zip(*rows, strict=True))
        return self._score(outputs, targets, weights), total / weight

    def _measure(
        self, network: Callable[[Tensor], Tensor], batch: list[Any], device: torch.device
    ) -> tuple[Tensor, float, tuple[npt.NDArray[Any], ...]]:
        """Return the summed loss of a batch's labels, the sum of their weights, and outputs, targets, weights."""
        import torch

        images, targets, weights = (
            torch.from_numpy(np.stack(column)).to(device) for column in zip(*batch, strict=True)
        )
        at = weights > 0
        outputs = network(images).movedim(1, -1)[at]  # (n, C)
        losses = self._losses(outputs, targets[at])
        found = tuple(t.detach().cpu().numpy() for t in (outputs, targets[at], weights[at]))
        return (losses * weights[at]).sum(), float(weights[at].sum()), found

    # Saving ----------------------------------------------------------------------------------------------------------

    def state(self) -> tuple[dict[str, Any], Arrays]:
        """Return what makes the estimator anew without pickle: a dict for JSON, and arrays."""
        from sklearn.utils.validation import check_is_fitted

        check_is_fitted(self, "_network")
        facts = {
            "params": settings_of(self.get_params(deep=False)), "seed": self._seed, "loss_curve": self.loss_curve_,
            "validation_scores": self.validation_scores_, **self._more_facts(),
        }  # fmt: skip
        return facts, {"mean": self._mean, "variance": self._variance, **to_arrays(self._network)}

    @classmethod
    def from_state(cls, facts: dict[str, Any], arrays: Arrays) -> Any:
        """Return the estimator that `state` was called on; it predicts the same, bit for bit."""
        made = cls(**facts["params"] | {"features": tuple(facts["params"]["features"])})
        made._mean, made._variance = np.array(arrays["mean"]), np.array(arrays["variance"])
        made.n_features_in_, made._seed = len(made._mean), facts["seed"]
        made.loss_curve_, made.validation_scores_ = list(facts["loss_curve"]), facts["validation_scores"]
        made.n_iter_ = len(made.loss_curve_)
        made._take_facts(facts)
        made._network = made._make_network().eval()
        from_arrays(made._network, arrays)
        return made


def _rows(images: Images, chosen: list[npt.NDArray[np.bool_]]) -> npt.NDArray[Any]:
    """Return the values of the chosen pixels of all images in a row."""
    return np.concatenate([image[there] for image, there in zip(images, chosen, strict=True)])
