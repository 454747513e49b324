"""TESSERA satellite embeddings in xarray.

Importing this registers the accessor ``ds.tessera``. Heavy packages are imported by the functions that need them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tessera_xr import accessor, errors
from tessera_xr._version import __version__

if TYPE_CHECKING:
    from tessera_xr import tutorial
    from tessera_xr.analysis.change import change, trend
    from tessera_xr.analysis.clustering import Clusters, fit_clusters
    from tessera_xr.analysis.components import Components, fit_components, umap
    from tessera_xr.analysis.index import SearchIndex
    from tessera_xr.analysis.novelty import Novelty, fit_novelty
    from tessera_xr.analysis.places import find_similar
    from tessera_xr.analysis.segments import describe_segments, outline_segments, segment
    from tessera_xr.analysis.significance import ChangeNull, change_significance, fit_change_null
    from tessera_xr.analysis.similarity import similarity
    from tessera_xr.embedding.embed import embed
    from tessera_xr.embedding.engine import embed_pixels
    from tessera_xr.embedding.large.embed import embed_to_zarr, open_large, plan_regions, verify_store
    from tessera_xr.embedding.points import sample
    from tessera_xr.embedding.published.agreement import check_against
    from tessera_xr.embedding.published.opening import open_published
    from tessera_xr.embedding.published.writing import to_published
    from tessera_xr.embedding.quantize import dequantize, quantize
    from tessera_xr.encoder.checkpoints import models
    from tessera_xr.encoder.files import save_encoder
    from tessera_xr.export import to_geojson, to_geoparquet, to_geotiff, to_zarr
    from tessera_xr.learning.active import suggest
    from tessera_xr.learning.areas import AreaEstimate, area_estimate, area_estimate_from_counts
    from tessera_xr.learning.conformal import Conformal, fit_conformal
    from tessera_xr.learning.evaluation import evaluate, score, validate
    from tessera_xr.learning.features import first_dims, seasonal_medians
    from tessera_xr.learning.heads import Head, fit_head
    from tessera_xr.learning.labels import LabelSet
    from tessera_xr.learning.prediction import predict
    from tessera_xr.learning.reference import stratified_points
    from tessera_xr.learning.samples import LabelSample
    from tessera_xr.learning.saving import load_head
    from tessera_xr.learning.splits import random_folds, spatial_folds
    from tessera_xr.learning.uncertainty import applicability, entropy, margin
    from tessera_xr.learning.validation import Validation
    from tessera_xr.pretraining.config import PretrainConfig
    from tessera_xr.pretraining.pool import Pool
    from tessera_xr.pretraining.train import pretrain
    from tessera_xr.pretraining.views import ViewOptions
    from tessera_xr.pretraining.writing import write_pool
    from tessera_xr.sentinel.catalogues import Catalogue
    from tessera_xr.sentinel.cube import as_cube
    from tessera_xr.sentinel.series import pixel_series
    from tessera_xr.sentinel.stac import Scenes, load_cube, search_scenes
    from tessera_xr.sentinel.tiles import open_tile, save_tile
    from tessera_xr.views import plots
    from tessera_xr.views.compare import Compare
    from tessera_xr.views.explorer import explore
    from tessera_xr.views.inspector import Inspector
    from tessera_xr.views.labeller import Labeller
    from tessera_xr.views.map_view import MapView
    from tessera_xr.views.session import Session
    from tessera_xr.views.session_files import open_session

_WHERE = {
    "AreaEstimate": "learning.areas",
    "Catalogue": "sentinel.catalogues",
    "ChangeNull": "analysis.significance",
    "Clusters": "analysis.clustering",
    "Compare": "views.compare",
    "Components": "analysis.components",
    "Conformal": "learning.conformal",
    "Head": "learning.heads",
    "Inspector": "views.inspector",
    "LabelSample": "learning.samples",
    "LabelSet": "learning.labels",
    "Labeller": "views.labeller",
    "MapView": "views.map_view",
    "Novelty": "analysis.novelty",
    "Pool": "pretraining.pool",
    "PretrainConfig": "pretraining.config",
    "Scenes": "sentinel.stac",
    "SearchIndex": "analysis.index",
    "Session": "views.session",
    "Validation": "learning.validation",
    "ViewOptions": "pretraining.views",
    "applicability": "learning.uncertainty",
    "area_estimate": "learning.areas",
    "area_estimate_from_counts": "learning.areas",
    "as_cube": "sentinel.cube",
    "change": "analysis.change",
    "change_significance": "analysis.significance",
    "check_against": "embedding.published.agreement",
    "dequantize": "embedding.quantize",
    "describe_segments": "analysis.segments",
    "embed": "embedding.embed",
    "embed_pixels": "embedding.engine",
    "embed_to_zarr": "embedding.large.embed",
    "entropy": "learning.uncertainty",
    "evaluate": "learning.evaluation",
    "explore": "views.explorer",
    "find_similar": "analysis.places",
    "first_dims": "learning.features",
    "fit_change_null": "analysis.significance",
    "fit_clusters": "analysis.clustering",
    "fit_components": "analysis.components",
    "fit_conformal": "learning.conformal",
    "fit_head": "learning.heads",
    "fit_novelty": "analysis.novelty",
    "load_cube": "sentinel.stac",
    "load_head": "learning.saving",
    "margin": "learning.uncertainty",
    "models": "encoder.checkpoints",
    "open_large": "embedding.large.embed",
    "open_published": "embedding.published.opening",
    "open_session": "views.session_files",
    "open_tile": "sentinel.tiles",
    "outline_segments": "analysis.segments",
    "pixel_series": "sentinel.series",
    "plan_regions": "embedding.large.embed",
    "plots": "views.plots",
    "predict": "learning.prediction",
    "pretrain": "pretraining.train",
    "quantize": "embedding.quantize",
    "random_folds": "learning.splits",
    "sample": "embedding.points",
    "save_encoder": "encoder.files",
    "save_tile": "sentinel.tiles",
    "score": "learning.evaluation",
    "search_scenes": "sentinel.stac",
    "seasonal_medians": "learning.features",
    "segment": "analysis.segments",
    "similarity": "analysis.similarity",
    "spatial_folds": "learning.splits",
    "stratified_points": "learning.reference",
    "suggest": "learning.active",
    "to_geojson": "export",
    "to_geoparquet": "export",
    "to_geotiff": "export",
    "to_published": "embedding.published.writing",
    "to_zarr": "export",
    "trend": "analysis.change",
    "tutorial": "tutorial",
    "umap": "analysis.components",
    "validate": "learning.evaluation",
    "verify_store": "embedding.large.embed",
    "write_pool": "pretraining.writing",
}

__all__ = [
    "AreaEstimate",
    "Catalogue",
    "ChangeNull",
    "Clusters",
    "Compare",
    "Components",
    "Conformal",
    "Head",
    "Inspector",
    "LabelSample",
    "LabelSet",
    "Labeller",
    "MapView",
    "Novelty",
    "Pool",
    "PretrainConfig",
    "Scenes",
    "SearchIndex",
    "Session",
    "Validation",
    "ViewOptions",
    "__version__",
    "accessor",
    "applicability",
    "area_estimate",
    "area_estimate_from_counts",
    "as_cube",
    "change",
    "change_significance",
    "check_against",
    "dequantize",
    "describe_segments",
    "embed",
    "embed_pixels",
    "embed_to_zarr",
    "entropy",
    "errors",
    "evaluate",
    "explore",
    "find_similar",
    "first_dims",
    "fit_change_null",
    "fit_clusters",
    "fit_components",
    "fit_conformal",
    "fit_head",
    "fit_novelty",
    "load_cube",
    "load_head",
    "margin",
    "models",
    "open_large",
    "open_published",
    "open_session",
    "open_tile",
    "outline_segments",
    "pixel_series",
    "plan_regions",
    "plots",
    "predict",
    "pretrain",
    "quantize",
    "random_folds",
    "sample",
    "save_encoder",
    "save_tile",
    "score",
    "search_scenes",
    "seasonal_medians",
    "segment",
    "similarity",
    "spatial_folds",
    "stratified_points",
    "suggest",
    "to_geojson",
    "to_geoparquet",
    "to_geotiff",
    "to_published",
    "to_zarr",
    "trend",
    "tutorial",
    "umap",
    "validate",
    "verify_store",
    "write_pool",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _WHERE:
        raise AttributeError(f"module 'tessera_xr' has no attribute {name!r}")
    module = import_module(f"tessera_xr.{_WHERE[name]}")
    found = module if name in ("plots", "tutorial") else getattr(module, name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted(__all__)
