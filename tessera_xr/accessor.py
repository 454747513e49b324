"""`ds.tessera` and `da.tessera`: a table of contents, one line for each function."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import xarray as xr

if TYPE_CHECKING:
    from tessera_xr.embedding.engine import Budget, DataType
    from tessera_xr.embedding.points import PointsLike
    from tessera_xr.encoder.checkpoints import PathLike
    from tessera_xr.encoder.device import Precision
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

    def components(self, n_components: int = 3, *, seed: int = 0) -> xr.DataArray:
        """Return principal components: see `tessera_xr.fit_components`."""
        from tessera_xr.analysis.components import components

        return components(self._obj, n_components, seed=seed)

    def rgb(self, *, seed: int = 0) -> xr.DataArray:
        """Return the first three components as a picture: see `tessera_xr.fit_components`."""
        from tessera_xr.analysis.components import rgb

        return rgb(self._obj, seed=seed)

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
