"""What a dataset holds, in words: a cube, embeddings, or neither."""

from __future__ import annotations

import xarray as xr

from tessera_xr.embedding.schema import describe_embeddings, describe_grid, is_embeddings
from tessera_xr.sentinel.cube import is_cube
from tessera_xr.sentinel.describe import describe_cube, describe_unknown


def describe(ds: xr.Dataset) -> str:
    """Return an inventory of a dataset and what can be done with it next."""
    if is_embeddings(ds):
        return describe_embeddings(ds)
    if "prediction" in ds.data_vars:
        return describe_prediction(ds)
    return describe_cube(ds) if is_cube(ds) else describe_unknown(ds)


def describe_prediction(ds: xr.Dataset) -> str:
    """Return an inventory of the map of a head: what it shows, how much of it, and what can be done next."""
    shown = ds["prediction"]
    lines = [f"{shown.attrs.get('long_name', 'prediction')} ({ds.attrs.get('head', 'unknown head')})"]
    if "flag_meanings" in shown.attrs and shown.chunks is None:
        held = max(int((shown != 0).sum()), 1)
        shares = [float((shown == code).sum()) / held for code in shown.attrs["flag_values"]]
        names = str(shown.attrs["flag_meanings"]).split()
        lines += [f"  {name:<12} {share:.1%}" for name, share in zip(names, shares, strict=True)]
    lines += [f"  model        {ds.attrs.get('model', 'unknown')}", f"  grid         {describe_grid(ds)}"]
    return "\n".join(
        [*lines, 'Next: .tessera.to_geotiff("map.tif"), .tessera.plot(), txr.stratified_points(pred, 200)']
    )
