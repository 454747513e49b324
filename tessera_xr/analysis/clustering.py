"""Clusters of embeddings: fitted to a sample, then drawn on any map of the same model, always numbered alike."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import xarray as xr

from tessera_xr.analysis.clusterers import (
    Criterion,
    Floats,
    Found,
    Integers,
    choose,
    fit,
    make_clusterer,
    numbers_to_try,
    score,
)
from tessera_xr.analysis.components import fit_to_pixels, pixel_arrays
from tessera_xr.analysis.drawing import FIT_PIXELS, draw_pixels
from tessera_xr.analysis.queries import stripes
from tessera_xr.embedding.schema import EMBEDDINGS, check_embeddings, check_same_model, identity, provenance
from tessera_xr.errors import SchemaError
from tessera_xr.grid import geobox_of

if TYPE_CHECKING:
    import pandas as pd

DENSITY_SAMPLE = 5_000
DENSITY_COMPONENTS = 10
DESCRIBED = 1_000_000
"""Pixels at a time that a description looks at."""
NO_DATA, NOISE = 0, 255
CANDIDATES = range(2, 17)
Medoid: TypeAlias = tuple[float, dict[str, Any]]
"""The least distance to a prototype, and where it is: x, y and time."""
NOWHERE: Medoid = (np.inf, {})


@dataclass(frozen=True)
class Clusters:
    """Clusters, fitted once and drawn on any embeddings of the same model; number 1 is the largest in the sample."""

    centres: xr.DataArray
    """(cluster, band) float32, where `cluster` counts from 1."""
    share: xr.DataArray
    """(cluster,) share of the sample; what is missing to 1 is noise."""
    prototypes: xr.DataArray
    """(prototype, band) float32: a pixel belongs to the `cluster` (a coordinate) of the prototype nearest to it."""
    reach: xr.DataArray
    """(prototype,) distance beyond which a pixel is noise; infinite unless the clustering knows noise."""
    colours: tuple[str, ...]
    """A colour (#rrggbb) for each cluster."""
    attrs: dict[str, Any]
    """The model of the embeddings that they were fitted to: see `identity`."""
    scores: pd.DataFrame | None = None
    """If the number of clusters was chosen: `inertia` and `silhouette` of each number tried."""

    def __len__(self) -> int:
        return len(self.centres)

    def __repr__(self) -> str:
        first = ", ".join(f"{share:.0%}" for share in self.share.values[:8])
        more = ", ..." if len(self) > 8 else ""
        noise = f", noise {1 - float(self.share.sum()):.0%}" if self.has_noise else ""
        return (
            f"Clusters: {len(self)}, holding {first}{more} of the sample{noise}; "
            f"model {self.attrs.get('model', 'unknown')}"
        )

    @property
    def has_noise(self) -> bool:
        """Whether a pixel may belong to no cluster."""
        return bool(np.isfinite(self.reach).any())

    def predict(self, emb: xr.Dataset) -> xr.DataArray:
        """Return the cluster of every pixel.

        Parameters
        ----------
        emb : Dataset
            Embeddings of the same model, float32 or int8, eager or lazy: another year or place, say.

        Returns
        -------
        DataArray
            ([time,] y, x) uint8: 0 no data, then the number of the cluster, 255 noise; with the CF attributes
            flag_values, flag_meanings and flag_colors.

        Raises
        ------
        VersionMismatchError
            If they are of another model.
        """
        labels = self._assign(emb)[0].rename("cluster")
        numbers = [*range(1, len(self) + 1), *([NOISE] if self.has_noise else [])]
        names = [*(f"cluster_{i + 1}" for i in range(len(self))), *(["noise"] if self.has_noise else [])]
        attrs = {
            "long_name": "cluster",
            "flag_values": np.array(numbers, dtype=np.uint8),
            "flag_meanings": " ".join(names),
            "flag_colors": " ".join([*self.colours, *(["#c8c8c8"] if self.has_noise else [])]),
            "nodata": NO_DATA,
            **provenance(emb),
        }
        mapping = emb[EMBEDDINGS].attrs.get("grid_mapping")
        return labels.assign_attrs(attrs | ({"grid_mapping": mapping} if mapping else {}))

    def describe(self, emb: xr.Dataset) -> pd.DataFrame:
        """Return the size of each cluster on a map, its spread, and the place that shows it best.

        Goes through the map in stripes, of lazy embeddings a chunk high.

        Parameters
        ----------
        emb : Dataset
            Embeddings of the same model.

        Returns
        -------
        DataFrame
            A row for each `cluster` (255: noise) with `pixels`, `share` of the pixels with data, `spread` (root mean
            square distance to the nearest prototype, which for k-means is the centre), `colour`, and the medoid
            place, the pixel nearest to that: `x`, `y` in the map's CRS, `lon`, `lat` in degrees, and `time` if the
            map has times. A cluster that the map doesn't have has 0 pixels and no place.
        """
        import pandas as pd

        check_embeddings(emb)
        counts, sums = np.zeros(256, dtype=np.intp), np.zeros(256)
        best: dict[int, Medoid] = {}
        for rows in stripes(emb, DESCRIBED):
            both = dict(zip(("labels", "distance"), self._assign(emb.isel(y=rows)), strict=True))
            stripe = xr.Dataset(both).compute()
            labels, distance = stripe["labels"].values.ravel(), stripe["distance"].values.ravel()
            counts += np.bincount(labels, minlength=256)
            sums += np.bincount(labels, np.nan_to_num(distance), minlength=256)
            for number in range(1, len(self) + 1):
                best[number] = min(best.get(number, NOWHERE), _nearest(stripe, number), key=lambda found: found[0])
        numbers = np.array([*range(1, len(self) + 1), *([NOISE] if self.has_noise else [])])
        sizes = counts[numbers]
        table = pd.DataFrame({"pixels": sizes}, index=pd.Index(numbers, name="cluster"))
        table["share"] = sizes / max(counts[1:].sum(), 1)
        with np.errstate(invalid="ignore", divide="ignore"):
            table["spread"] = np.where(numbers == NOISE, np.nan, np.sqrt(sums[numbers] / sizes))
        table["colour"] = [*self.colours, *(["#c8c8c8"] if self.has_noise else [])]
        return table.join(_places(best, emb))

    def _assign(self, emb: xr.Dataset) -> tuple[xr.DataArray, xr.DataArray]:
        """Return numbers uint8 and squared distances to the nearest prototype float32, ([time,] y, x)."""
        check_embeddings(emb)
        check_same_model(emb, xr.Dataset(coords={"band": self.centres["band"]}, attrs=self.attrs))
        inputs = pixel_arrays(emb)
        kwargs = {
            "vectors": self.prototypes.values,
            "reach": self.reach.values,
            "numbers": self.prototypes["cluster"].values,
            "lazy": inputs[0].chunks is not None,
        }
        labels, distance = xr.apply_ufunc(
            _numbered,
            *inputs,
            input_core_dims=[["band"], []][: len(inputs)],
            output_core_dims=[[], []],
            kwargs=kwargs,
            dask="parallelized",
            output_dtypes=[np.uint8, np.float32],
        )
        return labels, distance


def fit_clusters(
    emb: xr.Dataset,
    n_clusters: int | Literal["auto"] | None = None,
    *,
    method: Any = "kmeans",
    sample: int | None = None,
    seed: int = 0,
    candidates: Iterable[int] = CANDIDATES,
    criterion: Criterion = "elbow",
) -> Clusters:
    """Find clusters of embeddings in a sample of their pixels.

    Clusters are numbered by their size in the sample, the largest first; equal sizes by the first component.

    Parameters
    ----------
    emb : Dataset
        Embeddings, float32 or int8, eager or lazy.
    n_clusters : int, "auto" or None
        How many; 8 by default, or what `method` was made with. "auto" tries `candidates` and chooses by `criterion`.
    method : "kmeans", "hdbscan" or a scikit-learn clusterer
        Anything with `fit_predict`. "hdbscan" finds the number itself, and noise: dense groups among the first 10
        components of the sample (McInnes, Healy, Astels 2017), none smaller than 1 % of it. Where a clusterer has no
        centres, up to 16 prototypes stand for each cluster and pixels outside the sample go to the nearest; where it
        knows noise, only within reach of it (the 95th percentile of the members' distances).
    sample : int, optional
        How many pixels to draw at random; 20,000 by default, 5,000 for a `method` other than k-means.
    seed : int, default 0
        Of the draw, and of the clusterer unless it has one.
    candidates : iterable of int, default 2 to 16
        Numbers of clusters to try.
    criterion : {"elbow", "silhouette"}
        "elbow": where the inertia falls furthest below the line from its first to its last value (as Kneedle;
        Satopää et al. 2011). "silhouette": where that of 2,000 pixels is highest (Rousseeuw 1987), on embeddings
        often 2.

    Returns
    -------
    Clusters

    Raises
    ------
    SchemaError
        If there are fewer pixels than clusters, or `method` can't be used.

    Examples
    --------
    >>> clusters = fit_clusters(emb.sel(time=2020), 8)  # doctest: +SKIP
    >>> clusters.predict(emb.sel(time=2022))  # doctest: +SKIP
    """
    check_embeddings(emb)
    tried = numbers_to_try(n_clusters, candidates, criterion)
    if sample is not None and sample < 1:
        raise SchemaError(f"sample must be a positive number of pixels, not {sample}")
    density = isinstance(method, str) and method == "hdbscan"
    plain = isinstance(method, str) and method == "kmeans"
    estimators = [make_clusterer(method, n, seed) for n in tried]
    drawn = draw_pixels(emb, sample or (FIT_PIXELS if plain else DENSITY_SAMPLE), seed)
    most = max((n for n in tried if n is not None), default=2)
    if drawn.sizes["pixel"] < most:
        raise SchemaError(f"{drawn.sizes['pixel']} pixels have data: too few for {most} clusters; ask for fewer")
    values = drawn.values
    first = fit_to_pixels(drawn, min(DENSITY_COMPONENTS, *drawn.shape)) if len(values) > 1 else None
    space = (values - first.mean.values) @ first.vectors.values.T if density and first is not None else values
    found = [fit(estimator, space, values, seed) for estimator in estimators]
    scores = score(tried, found, values, seed) if n_clusters == "auto" else None
    chosen = found[0] if scores is None else found[choose(scores, criterion)]
    axis = np.ones(values.shape[1]) if first is None else first.vectors.values[0]
    return _clusters(chosen, axis, drawn["band"], identity(emb), scores)


def cluster(
    emb: xr.Dataset, n_clusters: int | Literal["auto"] | None = None, *, method: Any = "kmeans", seed: int = 0
) -> xr.DataArray:
    """Return the cluster of every pixel, ([time,] y, x) uint8; see `fit_clusters` to reuse them."""
    return fit_clusters(emb, n_clusters, method=method, seed=seed).predict(emb)


def _clusters(
    found: Found, axis: npt.NDArray[Any], band: xr.DataArray, attrs: dict[str, Any], scores: pd.DataFrame | None
) -> Clusters:
    """Put the clusters in order: by size, then along the first component."""
    sizes = np.bincount(found.labels[found.labels >= 0], minlength=len(found.centres))
    order = np.lexsort((found.centres @ axis, -sizes))
    number = np.empty(len(order), dtype=np.intp)
    number[order] = np.arange(1, len(order) + 1)
    owners = number[found.owners]
    by_number = np.argsort(owners, kind="stable")
    label = {"cluster": np.arange(1, len(order) + 1)}
    of_each = {"cluster": ("prototype", owners[by_number])}
    return Clusters(
        xr.DataArray(found.centres[order], dims=("cluster", "band"), coords={**label, "band": band}),
        xr.DataArray(sizes[order] / len(found.labels), dims="cluster", coords=label),
        xr.DataArray(found.prototypes[by_number], dims=("prototype", "band"), coords={**of_each, "band": band.values}),
        xr.DataArray(found.reach[by_number], dims="prototype", coords=of_each),
        palette(len(order)),
        attrs,
        scores,
    )


def palette(n: int) -> tuple[str, ...]:
    """Return `n` colours, #rrggbb; the first are always the same.

    Examples
    --------
    >>> palette(3) == palette(30)[:3]
    True
    """
    from matplotlib import colormaps
    from matplotlib.colors import hsv_to_rgb, to_hex

    strong_then_pale = [*range(0, 20, 2), *range(1, 20, 2)]
    named = [colormaps["tab20"](i) for i in strong_then_pale if i not in (14, 15)]  # its greys look like no data
    further = [hsv_to_rgb((i * 0.618034 % 1, 0.45 + 0.4 * (i % 2), 0.85 - 0.3 * (i % 3) / 2)) for i in range(n)]
    return tuple(to_hex(colour) for colour in [*named, *further][:n])


def _numbered(*arrays: npt.NDArray[Any], numbers: Integers, **options: Any) -> tuple[npt.NDArray[np.uint8], Floats]:
    """(..., band) [and scales (...)] to the number of the cluster and the squared distance, (...)."""
    from tessera_xr.analysis.blocks import nearest

    rows, distance = nearest(*arrays, **options)
    codes = np.array([*numbers, NOISE, NO_DATA], dtype=np.uint8)  # rows -2 and -1 are noise and no data
    return codes[rows], distance


def _nearest(stripe: xr.Dataset, number: int) -> Medoid:
    """Return the pixel of a cluster that is nearest to a prototype."""
    labels, distance = stripe["labels"], stripe["distance"]
    away = np.where(labels.values == number, distance.values, np.inf)
    place = np.unravel_index(int(away.argmin()), away.shape)
    if not np.isfinite(away[place]):
        return NOWHERE
    at = {str(d): labels[d].values[i] if d in labels.coords else i for d, i in zip(labels.dims, place, strict=True)}
    return float(away[place]), at


def _places(medoids: dict[int, Medoid], emb: xr.Dataset) -> pd.DataFrame:
    """Return places as a table, with longitude and latitude."""
    import pandas as pd
    from pyproj import Transformer

    names = ["x", "y", *(str(d) for d in emb[EMBEDDINGS].dims if d not in ("band", "y", "x"))]
    rows = {number: at for number, (_, at) in medoids.items() if at}
    table = pd.DataFrame.from_dict(rows, orient="index", columns=names)
    to_degrees = Transformer.from_crs(str(geobox_of(emb).crs), "EPSG:4326", always_xy=True)
    lon, lat = to_degrees.transform(table["x"].to_numpy(float), table["y"].to_numpy(float))
    table.insert(2, "lon", lon)
    table.insert(3, "lat", lat)
    return table
