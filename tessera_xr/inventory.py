"""What a dataset holds, in words: a cube, embeddings, or neither."""

from __future__ import annotations

import xarray as xr

from tessera_xr.embedding.schema import describe_embeddings, is_embeddings
from tessera_xr.sentinel.cube import is_cube
from tessera_xr.sentinel.describe import describe_cube, describe_unknown


def describe(ds: xr.Dataset) -> str:
    """Return an inventory of a dataset and what can be done with it next."""
    if is_embeddings(ds):
        return describe_embeddings(ds)
    return describe_cube(ds) if is_cube(ds) else describe_unknown(ds)
