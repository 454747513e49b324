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
    from tessera_xr.analysis.components import Components, fit_components
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
    "Components": "analysis.components",
    "Pool": "pretraining.pool",
    "PretrainConfig": "pretraining.config",
    "ViewOptions": "pretraining.views",
    "as_cube": "sentinel.cube",
    "dequantize": "embedding.quantize",
    "embed": "embedding.embed",
    "embed_pixels": "embedding.engine",
    "fit_components": "analysis.components",
    "models": "encoder.checkpoints",
    "open_tile": "sentinel.tiles",
    "pretrain": "pretraining.train",
    "quantize": "embedding.quantize",
    "sample": "embedding.points",
    "save_encoder": "encoder.files",
    "save_tile": "sentinel.tiles",
    "to_geotiff": "export",
    "tutorial": "tutorial",
    "write_pool": "pretraining.writing",
}

__all__ = [
    "Components",
    "Pool",
    "PretrainConfig",
    "ViewOptions",
    "__version__",
    "accessor",
    "as_cube",
    "dequantize",
    "embed",
    "embed_pixels",
    "errors",
    "fit_components",
    "models",
    "open_tile",
    "pretrain",
    "quantize",
    "sample",
    "save_encoder",
    "save_tile",
    "to_geotiff",
    "tutorial",
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
