"""`ds.tessera.plot` and `da.tessera.plot`: a table of contents of `tessera_xr.plots`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import xarray as xr

if TYPE_CHECKING:
    from tessera_xr.analysis.change import When
    from tessera_xr.analysis.components import Components
    from tessera_xr.analysis.queries import Query
    from tessera_xr.analysis.similarity import Combine
    from tessera_xr.learning.labels import LabelSet
    from tessera_xr.learning.samples import LabelSample


class DatasetPlots:
    """Plots of a cube, of embeddings or of a prediction; called, the obvious one."""

    def __init__(self, obj: xr.Dataset) -> None:
        self._obj = obj

    def __call__(self, *, time: Any = None, static: bool = False) -> Any:
        """Plot the obvious: see `tessera_xr.plots.plot`."""
        from tessera_xr.views.plots import plot

        return plot(self._obj, time=time, static=static)

    def __repr__(self) -> str:
        return _repr(self)

    # Of a cube --------------------------------------------------------------------------------------------------------

    def true_colour(self, date: Any = None, *, static: bool = False) -> Any:
        """Plot a cube as the eye would see it: see `tessera_xr.plots.true_colour`."""
        from tessera_xr.views.plots import true_colour

        return true_colour(self._obj, date, static=static)

    def series(self, lon: float, lat: float, *, static: bool = False) -> Any:
        """Plot what the satellites saw of a pixel: see `tessera_xr.plots.series`."""
        from tessera_xr.views.plots import series

        return series(self._obj, lon, lat, static=static)

    # Of embeddings ----------------------------------------------------------------------------------------------------

    def rgb(self, time: Any = None, components: Components | None = None, *, static: bool = False) -> Any:
        """Plot embeddings in colours: see `tessera_xr.plots.rgb`."""
        from tessera_xr.views.plots import rgb

        return rgb(self._obj, time, components, static=static)

    def similarity(
        self,
        query: Query,
        negative: Query | None = None,
        combine: Combine = "mean",
        time: Any = None,
        k: int = 0,
        *,
        static: bool = False,
    ) -> Any:
        """Plot how like a query every pixel is: see `tessera_xr.plots.similarity`."""
        from tessera_xr.views.plots import similarity

        return similarity(self._obj, query, negative, combine, time, k, static=static)

    def change(self, before: When | xr.Dataset, after: When | xr.Dataset | None = None, *, static: bool = False) -> Any:
        """Plot how far every pixel moved: see `tessera_xr.plots.change`."""
        from tessera_xr.views.plots import change

        return change(self._obj, before, after, static=static)

    def scatter(
        self,
        colour: xr.DataArray | None = None,
        method: Literal["components", "umap"] = "components",
        time: Any = None,
        n: int = 5000,
        *,
        seed: int = 0,
    ) -> Any:
        """Plot embedding space and map, linked: see `tessera_xr.plots.scatter`."""
        from tessera_xr.views.plots import scatter

        return scatter(self._obj, colour, method, time, n, seed=seed)

    def folds(
        self,
        labels: LabelSet | LabelSample,
        n_folds: int = 5,
        block: float | None = None,
        *,
        folds: Any = "spatial",
        buffer: float = 0.0,
        time: Any = None,
        seed: int = 0,
        static: bool = False,
    ) -> Any:
        """Plot which labels are held out together: see `tessera_xr.plots.folds`."""
        from tessera_xr.views.plots import folds as drawn

        return drawn(self._obj, labels, n_folds, block, folds=folds, buffer=buffer, time=time, seed=seed, static=static)

    # Of a prediction --------------------------------------------------------------------------------------------------

    def classes(self, *, time: Any = None, static: bool = False) -> Any:
        """Plot the map of a head: see `tessera_xr.plots.classes`."""
        from tessera_xr.views.plots import classes

        return classes(self._obj, time=time, static=static)

    def confidence(self, *, time: Any = None, static: bool = False) -> Any:
        """Plot how sure a head is: see `tessera_xr.plots.confidence`."""
        from tessera_xr.views.plots import confidence

        return confidence(self._obj, time=time, static=static)


class DataArrayPlots:
    """Plots of one map; called, the obvious one."""

    def __init__(self, obj: xr.DataArray) -> None:
        self._obj = obj

    def __call__(self, *, time: Any = None, static: bool = False) -> Any:
        """Plot classes with a legend, a picture as it is, or numbers with a bar: see `tessera_xr.plots.plot`."""
        from tessera_xr.views.plots import plot

        return plot(self._obj, time=time, static=static)

    def __repr__(self) -> str:
        return _repr(self)

    def classes(self, *, time: Any = None, static: bool = False) -> Any:
        """Plot a map of classes with its legend: see `tessera_xr.plots.classes`."""
        from tessera_xr.views.plots import classes

        return classes(self._obj, time=time, static=static)

    def values(
        self,
        cmap: str | None = None,
        clim: Sequence[float] | None = None,
        *,
        time: Any = None,
        static: bool = False,
    ) -> Any:
        """Plot a map of numbers with its colour bar: see `tessera_xr.plots.values`."""
        from tessera_xr.views.plots import values

        return values(self._obj, cmap, clim, time=time, static=static)

    def picture(self, *, title: str = "", time: Any = None, static: bool = False) -> Any:
        """Plot a map of colours: see `tessera_xr.plots.picture`."""
        from tessera_xr.views.plots import picture

        return picture(self._obj, title=title, time=time, static=static)


def _repr(plots: DatasetPlots | DataArrayPlots) -> str:
    """Return what can be plotted."""
    names = [name for name in vars(type(plots)) if not name.startswith("_")]
    return f"Plots: .plot(), {', '.join(f'.plot.{name}()' for name in names)}"
