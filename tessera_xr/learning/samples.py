"""Labels on a map: the pixels that they claim, with their embeddings, and a report on what was left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import xarray as xr

from tessera_xr._warn import warn
from tessera_xr.analysis.components import pixel_arrays
from tessera_xr.analysis.queries import at_time, pixels_within, time_labels
from tessera_xr.embedding.quantize import dequantize
from tessera_xr.embedding.schema import EMBEDDINGS, check_embeddings, check_same_model, check_whole, provenance
from tessera_xr.errors import GridError, SchemaError
from tessera_xr.grid import bounds_lonlat, geobox_of, points_to_pixels
from tessera_xr.learning.geometries import are_finite, canonical_crs, pixel_centres, reproject

if TYPE_CHECKING:
    from odc.geo.geobox import GeoBox

    from tessera_xr.learning.edits import Label
    from tessera_xr.learning.geometries import Geometries
    from tessera_xr.learning.labels import LabelSet

Integers = npt.NDArray[np.intp]
SHOWN = 5
"""Ids that a message names; of the others it gives the number."""


@dataclass(frozen=True)
class LabelReport:
    """What became of the labels when they were laid on a map."""

    n_labels: int = 0
    """In the set."""
    n_pixels: int = 0
    """In the sample."""
    labels: Mapping[str, int] = field(default_factory=dict)
    """Class to the number of its labels that gave a pixel; empty for numbers."""
    pixels: Mapping[str, int] = field(default_factory=dict)
    """Class to the number of its pixels in the sample; empty for numbers."""
    outside: tuple[str, ...] = ()
    """Ids of labels that hold no pixel of the map."""
    no_data: tuple[str, ...] = ()
    """Ids of labels with no data in any of their pixels."""
    n_no_data: int = 0
    """Pixels left out because they have no data."""
    n_conflicting: int = 0
    """Pixels left out because labels of different values claim them."""
    n_repeated: int = 0
    """Pixels that several labels of the same value claim: in the sample once, for the first of these labels."""
    few: Mapping[str, int] = field(default_factory=dict)
    """Classes with fewer pixels than `min_pixels`, and how many they have."""

    @property
    def problems(self) -> list[str]:
        """What was left out or is scarce, a phrase each."""
        few = ", ".join(f"{name!r} ({count})" for name, count in self.few.items())
        return [*self.left_out, *([f"classes with few pixels: {few}"] if few else [])]

    @property
    def left_out(self) -> list[str]:
        """Which labels and pixels were left out, a phrase each."""
        told = {
            f"{_count(len(self.outside), 'label')} outside the map ({_some(self.outside)})": self.outside,
            f"{_count(len(self.no_data), 'label')} all on no-data ({_some(self.no_data)})": self.no_data,
            f"{_count(self.n_no_data, 'pixel')} without data left out": self.n_no_data,
            f"{_count(self.n_conflicting, 'pixel')} with conflicting labels left out": self.n_conflicting,
        }
        return [phrase for phrase, there in told.items() if there]

    def __str__(self) -> str:
        lines = [f"{_count(self.n_pixels, 'pixel')} of {_count(self.n_labels, 'label')}"]
        if self.pixels:
            width = max(map(len, [*self.pixels, "class"]))
            lines.append(f"  {'class':<{width}}  {'labels':>7}  {'pixels':>7}")
            lines += [f"  {k:<{width}}  {self.labels.get(k, 0):>7,}  {n:>7,}" for k, n in self.pixels.items()]
        repeated = [f"{_count(self.n_repeated, 'pixel')} claimed twice, counted once"] if self.n_repeated else []
        return "\n".join([*lines, *(f"  - {phrase}" for phrase in [*self.problems, *repeated])])


@dataclass(frozen=True, eq=False)
class LabelSample:
    """Labelled pixels as arrays: what heads are fitted to, folds split and scores are taken of. n pixels."""

    X: npt.NDArray[np.float32]
    """(n, band) embeddings."""
    y: npt.NDArray[Any]
    """(n,) class names (text), or numbers (float64)."""
    groups: Integers
    """(n,) the number of the label (polygon or point) that each pixel is from; see `ids`."""
    weights: npt.NDArray[np.float64]
    """(n,) the quality of that label, in (0, 1]."""
    x_map: npt.NDArray[np.float64]
    """(n,) x of the pixel's centre in the map's CRS."""
    y_map: npt.NDArray[np.float64]
    """(n,) y of the pixel's centre in the map's CRS."""
    rows: Integers
    """(n,) the pixel's row in the map."""
    columns: Integers
    """(n,) the pixel's column in the map."""
    classes: dict[str, str]
    """Names to colours in the order of the label set, those without a pixel too; {} for numbers."""
    target: str | None
    """What the numbers are; None for classes."""
    attrs: dict[str, Any]
    """Provenance of the embeddings: model, weights, period, source."""
    crs: str
    """Of the map."""
    shape: tuple[int, int]
    """(rows, columns) of the map."""
    report: LabelReport = field(default_factory=LabelReport)
    """What became of the labels."""
    ids: tuple[str, ...] = ()
    """The ids of all labels of the set: that of number g in `groups` is ids[g]."""
    time: str | None = None
    """The time of the map that the embeddings are of, if it has one."""

    def __post_init__(self) -> None:
        sizes = {name: len(getattr(self, name)) for name in _PER_PIXEL}
        if len(set(sizes.values())) > 1 or self.X.ndim != 2:
            raise SchemaError(f"the arrays of a sample must have one row per pixel; they have {sizes}")

    @property
    def task(self) -> Literal["classes", "numbers"]:
        """What is to be learnt."""
        return "classes" if self.target is None else "numbers"

    def take(self, index: npt.ArrayLike) -> LabelSample:
        """Return the pixels at positions, or where a mask (n,) is true; what is not per pixel stays as it is."""
        chosen = np.asarray(index)
        chosen = chosen if chosen.dtype == np.bool_ else chosen.astype(np.intp)
        return replace(self, **{name: getattr(self, name)[chosen] for name in _PER_PIXEL})

    def class_codes(self) -> Integers:
        """Return (n,) the position of each pixel's class in `classes`.

        Raises
        ------
        SchemaError
            If the sample holds numbers, or a class that is not among its classes.
        """
        if self.task == "numbers":
            raise SchemaError(f"this sample holds numbers ({self.target}) and has no classes")
        names, inverse = np.unique(self.y, return_inverse=True)
        place = {name: i for i, name in enumerate(self.classes)}
        unknown = [str(name) for name in names if name not in place]
        if unknown:
            raise SchemaError(f"unknown classes {unknown} in the sample; its classes are {list(self.classes)}")
        return np.array([place[name] for name in names], dtype=np.intp)[inverse]

    def __len__(self) -> int:
        return len(self.X)

    def __repr__(self) -> str:
        of = self.target or f"{len(self.classes)} classes"
        return f"<LabelSample: {len(self):,} pixels x {self.X.shape[1]} bands, {of}>\n{self.report}"


_PER_PIXEL = ("X", "y", "groups", "weights", "x_map", "y_map", "rows", "columns")


def as_sample(emb: xr.Dataset | None, labels: LabelSet | LabelSample, time: Any = None) -> LabelSample:
    """Return labels as a sample: a label set is laid on the map, a sample is checked and returned as it is.

    Parameters
    ----------
    emb : Dataset or None
        Embeddings; None will do for a sample.
    labels : LabelSet or LabelSample
        What was labelled.
    time : int, str or datetime64, optional
        Which time of `emb` a label set is laid on, where there are several. A sample has had its time chosen.

    Returns
    -------
    LabelSample

    Raises
    ------
    SchemaError
        If `labels` is neither, or a label set has no map.
    VersionMismatchError
        If a sample is of another model than `emb`.
    """
    from tessera_xr.learning.labels import LabelSet

    if isinstance(labels, LabelSample):
        if emb is not None:
            check_embeddings(emb)
            _check_same_place(emb, labels, time)
            check_same_model(emb, xr.Dataset(coords={"band": np.arange(labels.X.shape[1])}, attrs=labels.attrs))
        return labels
    if not isinstance(labels, LabelSet):
        raise SchemaError(
            f"labels must be a LabelSet or a LabelSample, not {type(labels).__name__}; make one with "
            "LabelSet.from_geodataframe(gdf, column) or LabelSet.from_raster(da)"
        )
    if emb is None:
        raise SchemaError("a LabelSet needs embeddings to be sampled; pass them, or labels.sample(emb)")
    return labels.sample(emb, time=time)


def sample_labels(labels: LabelSet, emb: xr.Dataset, *, time: Any = None, min_pixels: int = 2) -> LabelSample:
    """Return the pixels of a map that labels claim.

    A point claims the pixel that holds it; a polygon all pixels whose centre lies in it, or, if it is too small to
    hold one, those that it touches. A pixel claimed by labels of different values (classes or numbers) is left out;
    one claimed by several labels of one value counts once, for the first of them. Only these pixels are read.

    Parameters
    ----------
    labels : LabelSet
        What was labelled.
    emb : Dataset
        Embeddings, float32 or int8, eager or lazy.
    time : int, str or datetime64, optional
        Which time of `emb` is meant; needed where there are several.
    min_pixels : int, default 2
        Classes with fewer pixels are named in the report.

    Returns
    -------
    LabelSample
        Ordered by label, then row and column.

    Raises
    ------
    SchemaError
        If there are no labels, none has data, or the time is not clear.
    GridError
        If all labels lie outside the map.

    Warns
    -----
    TesseraWarning
        Once, if labels or pixels were left out or a class has few pixels: how many of each; see `report`.
    """
    check_embeddings(emb)
    check_whole("min_pixels", min_pixels)
    at = at_time(emb, time)
    box = geobox_of(at)
    listed = list(labels)
    if not listed:
        raise SchemaError("there are no labels; add some with labels.add((lon, lat), value)")
    pixels, owners = _claims(listed, labels.crs, box)
    outside = _ids_without(listed, owners)
    if len(outside) == len(listed):
        raise GridError(_all_outside(labels, box))
    places, inverse = np.unique(pixels, return_inverse=True)
    values = _fetched(at, *np.unravel_index(places, box.shape))
    held = np.asarray(np.isfinite(values).all(axis=1))
    codes = np.unique(np.array([label.value for label in listed]), return_inverse=True)[1]
    first, conflicting, repeated = _settled(inverse, owners, codes, len(places))
    kept = np.flatnonzero(held & ~conflicting)
    kept = kept[np.argsort(first[kept], kind="stable")]
    report = LabelReport(
        n_labels=len(listed),
        n_pixels=len(kept),
        **_per_class(labels, listed, first[kept], min_pixels),
        outside=outside,
        no_data=tuple(i for i in _ids_without(listed, owners[held[inverse]]) if i not in set(outside)),
        n_no_data=int((~held).sum()),
        n_conflicting=int((held & conflicting).sum()),
        n_repeated=int((held & repeated & ~conflicting).sum()),
    )
    if not len(kept):
        raise SchemaError(f"no labelled pixel is left: {'; '.join(report.left_out)}")
    if report.problems:
        warn(f"of {_count(len(listed), 'label')}: {'; '.join(report.problems)}. See .report of the sample")
    return _assembled(labels, listed, at, box, values[kept], places[kept], first[kept], report)


def _assembled(
    labels: LabelSet,
    listed: Sequence[Label],
    emb: xr.Dataset,
    box: GeoBox,
    X: npt.NDArray[np.float32],
    places: Integers,
    owners: Integers,
    report: LabelReport,
) -> LabelSample:
    rows, columns = np.unravel_index(places, box.shape)
    x, y = pixel_centres(box, rows, columns)
    values = np.array([label.value for label in listed], dtype=np.float64 if labels.task == "numbers" else np.str_)
    return LabelSample(
        X=X,
        y=values[owners],
        groups=owners,
        weights=np.array([label.quality for label in listed], dtype=np.float64)[owners],
        x_map=x,
        y_map=y,
        rows=rows,
        columns=columns,
        classes=labels.classes,
        target=labels.target,
        attrs=provenance(emb),
        crs=canonical_crs(box.crs),
        shape=(int(box.shape[0]), int(box.shape[1])),
        report=report,
        ids=tuple(label.id for label in listed),
        time=_time_of(emb),
    )


def _time_of(emb: xr.Dataset) -> str | None:
    """Return the time of embeddings of one time, if they say it."""
    return time_labels(emb["time"].values)[0] if "time" in emb.coords and not emb["time"].ndim else None


def _check_same_place(emb: xr.Dataset, sample: LabelSample, time: Any) -> None:
    """Raise unless a sample is of this map, as far as both say."""
    if not {"y", "x"} <= set(emb.dims):
        return
    if (emb.sizes["y"], emb.sizes["x"]) != sample.shape:
        raise GridError(
            f"the labels were sampled on a map of {sample.shape} pixels, this has "
            f"{(emb.sizes['y'], emb.sizes['x'])}; pass the map that they were sampled on, or the LabelSet"
        )
    if "time" in emb[EMBEDDINGS].dims and time is None:
        return
    found = _time_of(at_time(emb, time))
    if None not in (found, sample.time) and found != sample.time:
        raise SchemaError(
            f"the labels were sampled from embeddings of {sample.time}, these are of {found}; pass the LabelSet, which "
            "can be laid on any year"
        )


def _claims(listed: Sequence[Label], crs: str, box: GeoBox) -> tuple[Integers, Integers]:
    """Return pixels (flat, of the map) and the number of the label that claims each."""
    is_point = np.array([label.geometry.geom_type == "Point" for label in listed])
    shapes = np.empty(len(listed), dtype=object)
    shapes[:] = [label.geometry for label in listed]
    found = [_claims_of_points(shapes, np.flatnonzero(is_point), crs, box)]
    found += _claims_of_areas(shapes, np.flatnonzero(~is_point), crs, box)
    pixels, owners = (np.concatenate(part) for part in zip(*found, strict=True))
    return pixels, owners


def _claims_of_points(shapes: Geometries, numbers: Integers, crs: str, box: GeoBox) -> tuple[Integers, Integers]:
    import shapely

    points = shapes[numbers]
    pixels = points_to_pixels(box, shapely.get_x(points), shapely.get_y(points), crs)
    there = pixels[:, 0] >= 0
    return pixels[there, 0] * box.shape[1] + pixels[there, 1], numbers[there]


def _claims_of_areas(shapes: Geometries, numbers: Integers, crs: str, box: GeoBox) -> list[tuple[Integers, Integers]]:
    from rasterio import Env

    areas = reproject(shapes[numbers], crs, canonical_crs(box.crs), dense=True)
    there = are_finite(areas)
    found = []
    with Env():  # else each polygon sets up one of its own
        for number, area in zip(numbers[there], areas[there], strict=True):
            rows, columns, mask = pixels_within(box, area, touched=True)
            r, c = np.nonzero(mask)
            pixels = (r + rows.start) * box.shape[1] + c + columns.start
            found.append((pixels, np.full(len(pixels), number)))
    return found


def _settled(
    places: Integers, owners: Integers, codes: Integers, n: int
) -> tuple[Integers, npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Return, of each of n places, the first label that claims it, whether others claim it for another value, or too.

    Every place is claimed by one label or more.
    """
    order = np.lexsort((owners, places))
    places, owners = places[order], owners[order]
    starts = np.searchsorted(places, np.arange(n))
    first = owners[starts]
    differs = codes[owners] != codes[first[places]]
    conflicting = np.bincount(places[differs], minlength=n) > 0
    repeated = np.bincount(places, minlength=n) > 1
    return first, conflicting, repeated


def _fetched(emb: xr.Dataset, rows: Integers, columns: Integers) -> npt.NDArray[np.float32]:
    """Return the embeddings of pixels (n, band), in one read."""
    index = {d: xr.DataArray(i, dims="pixel") for d, i in (("y", rows), ("x", columns))}
    # in the order of memory, a pixel is one read
    stored = emb[[str(a.name) for a in pixel_arrays(emb)]].transpose("y", "x", "band")
    drawn = dequantize(stored.isel(index).compute())[EMBEDDINGS].transpose("pixel", "band")
    return np.ascontiguousarray(drawn.values, dtype=np.float32)


def _per_class(labels: LabelSet, listed: Sequence[Label], owners: Integers, min_pixels: int) -> dict[str, Any]:
    """Return labels and pixels of each class, and the classes with few."""
    if labels.task == "numbers":
        return {}
    counts = np.bincount(owners, minlength=len(listed))
    pixels, used = dict.fromkeys(labels.classes, 0), dict.fromkeys(labels.classes, 0)
    for label, count in zip(listed, counts, strict=True):
        pixels[str(label.value)] += int(count)
        used[str(label.value)] += int(count > 0)
    return {"labels": used, "pixels": pixels, "few": {k: n for k, n in pixels.items() if n < min_pixels}}


def _ids_without(listed: Sequence[Label], owners: Integers) -> tuple[str, ...]:
    """Return the ids of labels that are not among the owners."""
    counts = np.bincount(owners, minlength=len(listed))
    return tuple(listed[int(i)].id for i in np.flatnonzero(counts == 0))


def _all_outside(labels: LabelSet, box: GeoBox) -> str:
    west, south, east, north = bounds_lonlat(box)
    return (
        f"all {_count(len(labels), 'label')} lie outside the map, which reaches from {west:.5f} to {east:.5f} E and "
        f"{south:.5f} to {north:.5f} N; are their coordinates in {labels.crs}, x before y?"
    )


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def _some(ids: Sequence[str]) -> str:
    rest = len(ids) - SHOWN
    return ", ".join(ids[:SHOWN]) + (f" and {rest:,} more" if rest > 0 else "")
