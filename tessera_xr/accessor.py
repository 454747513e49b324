"""`ds.tessera` and `da.tessera`: a table of contents, one line for each function."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import xarray as xr

if TYPE_CHECKING:
    import pandas as pd
    from geopandas import GeoDataFrame

    from tessera_xr.analysis.change import When
    from tessera_xr.analysis.components import Components
    from tessera_xr.analysis.queries import Query
    from tessera_xr.analysis.significance import ChangeNull
    from tessera_xr.analysis.similarity import Combine, Metric
    from tessera_xr.embedding.engine import Budget, DataType
    from tessera_xr.embedding.points import PointsLike
    from tessera_xr.encoder.checkpoints import PathLike
    from tessera_xr.encoder.device import Precision
    from tessera_xr.learning.active import Strategy
    from tessera_xr.learning.heads import ClassWeight, Head
    from tessera_xr.learning.labels import LabelSet
    from tessera_xr.learning.recipes import Standardise
    from tessera_xr.learning.samples import LabelSample
    from tessera_xr.learning.validation import Validation
    from tessera_xr.sentinel.period import PeriodLike


@xr.register_dataset_accessor("tessera")
class TesseraDataset:
    """What TESSERA can do with a Dataset: a Sentinel cube to embeddings, embeddings to maps.

    Shown on its own, it says what the Dataset holds and what can be done next.
    """

    def __init__(self, obj: xr.Dataset) -> None:
        self._obj = obj

    def __repr__(self) -> str:
        from tessera_xr.inventory import describe

        return describe(self._obj)

    # What to do with a cube ------------------------------------------------------------------------------------------

    def embed(
        self,
        model: PathLike = "mini",
        *,
        period: PeriodLike | Sequence[PeriodLike] | None = None,
        weights: PathLike | None = None,
        dims: int | None = None,
        dtype: DataType = "float32",
        device: str = "auto",
        precision: Precision = "auto",
        token_budget: Budget = "auto",
        seed: int = 0,
        check_imagery: bool = True,
        progress: bool = True,
    ) -> xr.Dataset:
        """Embed every pixel of the cube: see `tessera_xr.embed`."""
        from tessera_xr.embedding.embed import embed

        return embed(
            self._obj, model, period=period, weights=weights, dims=dims, dtype=dtype, device=device,
            precision=precision, token_budget=token_budget, seed=seed, check_imagery=check_imagery, progress=progress,
        )  # fmt: skip

    # What to do with embeddings --------------------------------------------------------------------------------------

    def quantize(self) -> xr.Dataset:
        """Return int8 codes and scales: see `tessera_xr.quantize`."""
        from tessera_xr.embedding.quantize import quantize

        return quantize(self._obj)

    def dequantize(self) -> xr.Dataset:
        """Return float32 embeddings: see `tessera_xr.dequantize`."""
        from tessera_xr.embedding.quantize import dequantize

        return dequantize(self._obj)

    def sample(
        self, points: PointsLike, *, crs: str | None = None, outside: Literal["raise", "nodata"] = "raise"
    ) -> xr.Dataset:
        """Return the embeddings at points: see `tessera_xr.sample`."""
        from tessera_xr.embedding.points import sample

        return sample(self._obj, points, crs=crs, outside=outside)

    def similarity(
        self,
        query: Query,
        *,
        negative: Query | None = None,
        combine: Combine = "mean",
        metric: Metric = "cosine",
        time: Any = None,
        crs: str | None = None,
    ) -> xr.DataArray:
        """Return how like a query every pixel is: see `tessera_xr.similarity`."""
        from tessera_xr.analysis.similarity import similarity

        return similarity(self._obj, query, negative=negative, combine=combine, metric=metric, time=time, crs=crs)

    def find_similar(
        self,
        query: Query,
        k: int = 20,
        *,
        min_distance: float | None = None,
        negative: Query | None = None,
        combine: Combine = "mean",
        metric: Metric = "cosine",
        time: Any = None,
        crs: str | None = None,
    ) -> GeoDataFrame:
        """Return the k places most like a query: see `tessera_xr.find_similar`."""
        from tessera_xr.analysis.places import find_similar

        return find_similar(
            self._obj, query, k, min_distance=min_distance, negative=negative, combine=combine, metric=metric,
            time=time, crs=crs,
        )  # fmt: skip

    def cluster(
        self, n_clusters: int | Literal["auto"] | None = None, *, method: Any = "kmeans", seed: int = 0
    ) -> xr.DataArray:
        """Return the cluster of every pixel: see `tessera_xr.fit_clusters`."""
        from tessera_xr.analysis.clustering import cluster

        return cluster(self._obj, n_clusters, method=method, seed=seed)

    def segment(
        self,
        n_segments: int | None = None,
        *,
        n_components: int = 3,
        compactness: float = 0.1,
        components: Components | None = None,
        seed: int = 0,
    ) -> xr.DataArray:
        """Cut the map into superpixels: see `tessera_xr.segment`."""
        from tessera_xr.analysis.segments import segment

        return segment(
            self._obj, n_segments, n_components=n_components, compactness=compactness, components=components, seed=seed
        )

    def components(self, n_components: int = 3, *, seed: int = 0, whiten: bool = False) -> xr.DataArray:
        """Return principal components: see `tessera_xr.fit_components`."""
        from tessera_xr.analysis.components import components

        return components(self._obj, n_components, seed=seed, whiten=whiten)

    def rgb(self, *, seed: int = 0) -> xr.DataArray:
        """Return the first three components as a picture: see `tessera_xr.fit_components`."""
        from tessera_xr.analysis.components import rgb

        return rgb(self._obj, seed=seed)

    def change(self, before: When | xr.Dataset, after: When | xr.Dataset | None = None) -> xr.DataArray:
        """Return how far every pixel moved between two dates: see `tessera_xr.change`."""
        from tessera_xr.analysis.change import change

        return change(self._obj, before, after)

    def change_significance(
        self, before: When, after: When, *, null: ChangeNull | None = None, seed: int = 0
    ) -> xr.Dataset:
        """Return how surprising the change of every pixel is: see `tessera_xr.change_significance`."""
        from tessera_xr.analysis.significance import change_significance

        return change_significance(self._obj, before, after, null=null, seed=seed)

    def trend(self) -> xr.Dataset:
        """Return the trend and the break of every pixel along the years: see `tessera_xr.trend`."""
        from tessera_xr.analysis.change import trend

        return trend(self._obj)

    def novelty(self, reference: xr.Dataset | xr.DataArray, *, ridge: float = 1e-3, seed: int = 0) -> xr.Dataset:
        """Return how unlike a reference every pixel is: see `tessera_xr.fit_novelty`."""
        from tessera_xr.analysis.novelty import novelty

        return novelty(self._obj, reference, ridge=ridge, seed=seed)

    # From labels to a map ---------------------------------------------------------------------------------------------

    def fit(
        self,
        labels: LabelSet | LabelSample,
        model: Any = "logistic",
        *,
        time: Any = None,
        class_weight: ClassWeight = "auto",
        standardise: Standardise = "auto",
        seed: int = 0,
        **options: Any,
    ) -> Head:
        """Fit a light head to labels: see `tessera_xr.fit_head`."""
        from tessera_xr.learning.heads import fit_head

        return fit_head(
            self._obj, labels, model, time=time, class_weight=class_weight, standardise=standardise, seed=seed,
            **options,
        )  # fmt: skip

    def predict(self, head: Head, *, time: Any = None, probability: bool = True, interval: float = 0.9) -> xr.Dataset:
        """Draw the map of a head: see `tessera_xr.predict`."""
        from tessera_xr.learning.prediction import predict

        return predict(self._obj, head, time=time, probability=probability, interval=interval)

    def validate(
        self,
        labels: LabelSet | LabelSample,
        model: Any = "logistic",
        *,
        time: Any = None,
        folds: Any = "spatial",
        n_folds: int = 5,
        block: float | None = None,
        buffer: float = 0.0,
        seed: int = 0,
        **options: Any,
    ) -> Validation:
        """Score a head by labels held out in space: see `tessera_xr.validate`."""
        from tessera_xr.learning.evaluation import validate

        return validate(
            self._obj, labels, model, time=time, folds=folds, n_folds=n_folds, block=block, buffer=buffer, seed=seed,
            **options,
        )  # fmt: skip

    def evaluate(
        self,
        labels: LabelSet | LabelSample,
        model: Any = "logistic",
        *,
        time: Any = None,
        folds: Any = "spatial",
        n_folds: int = 5,
        block: float | None = None,
        buffer: float = 0.0,
        fractions: Sequence[float] = (1.0,),
        n_draws: int = 5,
        inputs: Mapping[str, xr.Dataset] | None = None,
        seed: int = 0,
        confidence: float = 0.95,
        progress: bool = True,
        **options: Any,
    ) -> pd.DataFrame:
        """Compare heads, inputs and amounts of labels, with intervals: see `tessera_xr.evaluate`."""
        from tessera_xr.learning.evaluation import evaluate

        return evaluate(
            self._obj, labels, model, time=time, folds=folds, n_folds=n_folds, block=block, buffer=buffer,
            fractions=fractions, n_draws=n_draws, inputs=inputs, seed=seed, confidence=confidence, progress=progress,
            **options,
        )  # fmt: skip

    def suggest(
        self,
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
        """Return the next places to label: see `tessera_xr.suggest`."""
        from tessera_xr.learning.active import suggest

        return suggest(
            self._obj, head, n, labels=labels, strategy=strategy, min_distance=min_distance, diversity=diversity,
            time=time, seed=seed,
        )  # fmt: skip

    def to_geotiff(self, path: str | os.PathLike[str]) -> Path:
        """Write a cloud-optimised GeoTIFF: see `tessera_xr.to_geotiff`."""
        from tessera_xr.export import to_geotiff

        return to_geotiff(self._obj, path)


@xr.register_dataarray_accessor("tessera")
class TesseraDataArray:
    """What TESSERA can do with one map."""

    def __init__(self, obj: xr.DataArray) -> None:
        self._obj = obj

    def __repr__(self) -> str:
        name = self._obj.name or "array"
        next_step = "Next: .tessera.to_geotiff('map.tif')" if self._obj.ndim < 4 else "Choose one time to go on."
        return f"{name} {dict(self._obj.sizes)}\n{next_step}"

    def to_geotiff(self, path: str | os.PathLike[str]) -> Path:
        """Write a cloud-optimised GeoTIFF: see `tessera_xr.to_geotiff`."""
        from tessera_xr.export import to_geotiff

        return to_geotiff(self._obj, path)
