"""Plots: HoloViews objects for notebooks, or Matplotlib figures with ``static=True``.

All of them work without the internet. `.tessera.plot` offers those of a dataset or a map.
"""

from tessera_xr.views.plots.brushing import scatter
from tessera_xr.views.plots.held_out import folds
from tessera_xr.views.plots.loading import load
from tessera_xr.views.plots.maps import change, classes, confidence, picture, plot, rgb, similarity, true_colour, values
from tessera_xr.views.plots.runs import pretraining
from tessera_xr.views.plots.tables import confusion, efficiency
from tessera_xr.views.plots.tracks import series

__all__ = [
    "change",
    "classes",
    "confidence",
    "confusion",
    "efficiency",
    "folds",
    "load",
    "picture",
    "plot",
    "pretraining",
    "rgb",
    "scatter",
    "series",
    "similarity",
    "true_colour",
    "values",
]
