"""`ds.tessera` and `da.tessera`: a table of contents, one line for each function."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import xarray as xr

from tessera_xr._registration import register
from tessera_xr.plot_accessor import DataArrayPlots, DatasetPlots

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pandas as pd
    from affine import Affine
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
    from tessera_xr.views.explorer import Explorer


@register
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

    def embed_to_zarr(
        self,
        path: PathLike,
        model: PathLike = "mini",
        *,
        period: PeriodLike | Sequence[PeriodLike] | None = None,
        weights: PathLike | None = None,
        dims: int | None = None,
        device: str = "auto",
        precision: Precision = "auto",
        region: int | tuple[int, int] | None = None,
        memory: str | int = "2 GB",
        seed: int = 0,
        check_imagery: bool = True,
        overwrite: bool = False,
        progress: bool = True,
        client: Any = None,
    ) -> xr.Dataset:
        """Embed a cube larger than memory into a Zarr store: see `tessera_xr.embed_to_zarr`."""
        from tessera_xr.embedding.large.embed import embed_to_zarr

        done: xr.Dataset = embed_to_zarr(
            self._obj, path, model, period=period, weights=weights, dims=dims, device=device, precision=precision,
            region=region, memory=memory, seed=seed, check_imagery=check_imagery, overwrite=overwrite,
            progress=progress, client=client,
        )  # fmt: skip
        return done

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

    def to_geotiff(self, path: str | os.PathLike[str], *, progress: bool = True) -> Path:
        """Write a cloud-optimised GeoTIFF: see `tessera_xr.to_geotiff`."""
        from tessera_xr.export import to_geotiff

        return to_geotiff(self._obj, path, progress=progress)

    def to_zarr(self, path: str | os.PathLike[str], *, overwrite: bool = False, progress: bool = True) -> Path:
        """Write a Zarr store with its place: see `tessera_xr.to_zarr`."""
        from tessera_xr.export import to_zarr

        return to_zarr(self._obj, path, overwrite=overwrite, progress=progress)

    def check_against(self, published: xr.Dataset, *, check_model: bool = True) -> xr.Dataset:
        """Compare the embeddings with published ones: see `tessera_xr.check_against`."""
        from tessera_xr.embedding.published.agreement import check_against

        return check_against(self._obj, published, check_model=check_model)

    def to_published(self, path: str | os.PathLike[str], *, version: str | None = None, progress: bool = True) -> Path:
        """Write the embeddings in the layout of the published stores: see `tessera_xr.to_published`."""
        from tessera_xr.embedding.published.writing import to_published

        return to_published(self._obj, path, version=version, progress=progress)

    def explore(
        self, cube: xr.Dataset | None = None, *, labels: LabelSet | None = None, session: Any = None
    ) -> Explorer:
        """Open the embeddings on a map that can be questioned: see `tessera_xr.explore`."""
        from tessera_xr.views.explorer import explore

        return explore(self._obj, cube, labels=labels, session=session)

    @property
    def plot(self) -> DatasetPlots:
        """Plots: `.plot()` is the obvious one, `.plot.rgb()` and others are by name; see `tessera_xr.plots`."""
        return DatasetPlots(self._obj)

    # geotessera's members, which it uses itself: places are eastings and northings in the CRS of the zone ------------

    @property
    def crs(self) -> str:
        """The CRS, 'EPSG:32630' say."""
        from tessera_xr.embedding.published.zone import zone_crs

        return zone_crs(self._obj)

    @property
    def pixel_size(self) -> float:
        """The side of a pixel, in units of the CRS."""
        from tessera_xr.embedding.published.zone import pixel_size

        return pixel_size(self._obj)

    @property
    def years(self) -> list[int]:
        """The years, in the order of `time`."""
        from tessera_xr.embedding.published.zone import zone_years

        return zone_years(self._obj)

    @property
    def n_bands(self) -> int:
        """The length of an embedding."""
        from tessera_xr.embedding.published.zone import n_bands

        return n_bands(self._obj)

    @staticmethod
    def dequantise(emb_int8: npt.NDArray[np.int8], scales: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return (y, x, band) float32 of int8 codes (band, y, x) and scales (y, x); for datasets: `dequantize`."""
        from tessera_xr.embedding.published.zone import dequantise

        return dequantise(emb_int8, scales)

    def sample_at(self, e: float, n: float, year: int, *, search_px: int = 1) -> npt.NDArray[np.float32]:
        """Return the embedding at a place, NaN where there is none: see `tessera_xr.embedding.published.zone`."""
        from tessera_xr.embedding.published.zone import sample_at

        return sample_at(self._obj, e, n, year, search_px=search_px)

    def sample_points(
        self, coords: Sequence[tuple[float, float]], year: int, *, progress: bool = True
    ) -> npt.NDArray[np.float32]:
        """Return the embeddings at places, (n, band): see `tessera_xr.embedding.published.zone.sample_points`."""
        from tessera_xr.embedding.published.zone import sample_points

        return sample_points(self._obj, coords, year, progress=progress)

    def probe(self, e: float, n: float, year: int, *, search_px: int = 1) -> tuple[npt.NDArray[np.float32] | None, str]:
        """Return the embedding at a place and "valid", or None and why: see `tessera_xr.embedding.published.zone`."""
        from tessera_xr.embedding.published.zone import probe

        return probe(self._obj, e, n, year, search_px=search_px)

    def read_region(
        self, bbox: Sequence[float], year: int, *, array: str = "embeddings", progress: bool = False
    ) -> tuple[npt.NDArray[np.float32], Affine]:
        """Return (y, x, band) float32 of a rectangle: see `tessera_xr.embedding.published.zone.read_region`."""
        from tessera_xr.embedding.published.zone import read_region

        return read_region(self._obj, bbox, year, array=array, progress=progress)

    def read_region_quantized(
        self, bbox: Sequence[float], year: int, *, array: str = "embeddings", progress: bool = False
    ) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32], Affine]:
        """Return codes and scales of a rectangle: see `tessera_xr.embedding.published.zone.read_region`."""
        from tessera_xr.embedding.published.zone import read_region_quantized

        return read_region_quantized(self._obj, bbox, year, array=array, progress=progress)

    def iter_region(
        self,
        bbox: Sequence[float],
        year: int,
        *,
        array: str = "embeddings",
        strip_rows: int = 512,
        progress: bool = False,
    ) -> Iterator[tuple[npt.NDArray[np.float32], Affine]]:
        """Yield a rectangle in strips of rows: see `tessera_xr.embedding.published.zone.iter_region`."""
        from tessera_xr.embedding.published.zone import iter_region

        return iter_region(self._obj, bbox, year, array=array, strip_rows=strip_rows, progress=progress)


@xr.register_dataarray_accessor("tessera")
class TesseraDataArray:
    """What TESSERA can do with one map."""

    def __init__(self, obj: xr.DataArray) -> None:
        self._obj = obj

    def __repr__(self) -> str:
        name = self._obj.name or "array"
        is_map = self._obj.ndim < 4
        next_step = "Next: .tessera.plot(), .tessera.to_geotiff('map.tif')" if is_map else "Choose one time to go on."
        return f"{name} {dict(self._obj.sizes)}\n{next_step}"

    @property
    def plot(self) -> DataArrayPlots:
        """Plots: `.plot()` is the obvious one; see `tessera_xr.plots`."""
        return DataArrayPlots(self._obj)

    def to_geotiff(self, path: str | os.PathLike[str], *, progress: bool = True) -> Path:
        """Write a cloud-optimised GeoTIFF: see `tessera_xr.to_geotiff`."""
        from tessera_xr.export import to_geotiff

        return to_geotiff(self._obj, path, progress=progress)

    def to_zarr(self, path: str | os.PathLike[str], *, overwrite: bool = False, progress: bool = True) -> Path:
        """Write a Zarr store with its place: see `tessera_xr.to_zarr`."""
        from tessera_xr.export import to_zarr

        return to_zarr(self._obj, path, overwrite=overwrite, progress=progress)
