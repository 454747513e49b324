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
    from tessera_xr.embedding.points import sample
    from tessera_xr.embedding.quantize import dequantize, quantize
    from tessera_xr.encoder.checkpoints import models
    from tessera_xr.encoder.files import save_encoder
    from tessera_xr.export import to_geotiff
    from tessera_xr.pretraining.config import PretrainConfig
    from tessera_xr.pretraining.pool import Pool
    from tessera_xr.pretraining.train import pretrain
    from tessera_xr.pretraining.views import ViewOptions
    from tessera_xr.pretraining.writing import write_pool
    from tessera_xr.sentinel.cube import as_cube
    from tessera_xr.sentinel.tiles import open_tile, save_tile

_WHERE = {
    "ChangeNull": "analysis.significance",
    "Clusters": "analysis.clustering",
    "Components": "analysis.components",
    "Novelty": "analysis.novelty",
    "Pool": "pretraining.pool",
    "PretrainConfig": "pretraining.config",
    "SearchIndex": "analysis.index",
    "ViewOptions": "pretraining.views",
    "as_cube": "sentinel.cube",
    "change": "analysis.change",
    "change_significance": "analysis.significance",
    "dequantize": "embedding.quantize",
    "describe_segments": "analysis.segments",
    "embed": "embedding.embed",
    "embed_pixels": "embedding.engine",
    "find_similar": "analysis.places",
    "fit_change_null": "analysis.significance",
    "fit_clusters": "analysis.clustering",
    "fit_components": "analysis.components",
    "fit_novelty": "analysis.novelty",
    "models": "encoder.checkpoints",
    "open_tile": "sentinel.tiles",
    "outline_segments": "analysis.segments",
    "pretrain": "pretraining.train",
    "quantize": "embedding.quantize",
    "sample": "embedding.points",
    "save_encoder": "encoder.files",
    "save_tile": "sentinel.tiles",
    "segment": "analysis.segments",
    "similarity": "analysis.similarity",
    "to_geotiff": "export",
    "trend": "analysis.change",
    "tutorial": "tutorial",
    "umap": "analysis.components",
    "write_pool": "pretraining.writing",
}

__all__ = [
    "ChangeNull",
    "Clusters",
    "Components",
    "Novelty",
    "Pool",
    "PretrainConfig",
    "SearchIndex",
    "ViewOptions",
    "__version__",
    "accessor",
    "as_cube",
    "change",
    "change_significance",
    "dequantize",
    "describe_segments",
    "embed",
    "embed_pixels",
    "errors",
    "find_similar",
    "fit_change_null",
    "fit_clusters",
    "fit_components",
    "fit_novelty",
    "models",
    "open_tile",
    "outline_segments",
    "pretrain",
    "quantize",
    "sample",
    "save_encoder",
    "save_tile",
    "segment",
    "similarity",
    "to_geotiff",
    "trend",
    "tutorial",
    "umap",
    "write_pool",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _WHERE:
        raise AttributeError(f"module 'tessera_xr' has no attribute {name!r}")
    module = import_module(f"tessera_xr.{_WHERE[name]}")
    found = module if name == "tutorial" else getattr(module, name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted(__all__)
