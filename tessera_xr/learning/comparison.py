"""What is compared in one table: heads by their names, and the same labelled pixels of several inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from odc.geo.geobox import GeoBox

from tessera_xr._warn import warn
from tessera_xr.analysis.queries import at_time, essentials
from tessera_xr.embedding.quantize import dequantize
from tessera_xr.embedding.schema import EMBEDDINGS, check_embeddings, provenance
from tessera_xr.errors import GridError, SchemaError
from tessera_xr.grid import crs_name, geobox_of
from tessera_xr.learning.samples import LabelSample, as_sample

if TYPE_CHECKING:
    from tessera_xr.learning.labels import LabelSet

SAME = 0.01
"""Share of a pixel by which grids may differ from rounding."""


@dataclass(frozen=True, eq=False)
class Subject:
    """What heads learn from: the labelled pixels of an input, and its map."""

    sample: LabelSample
    emb: xr.Dataset | None = None
    """Of one time; None if nobody needs it."""


def named_models(model: Any) -> dict[str, Any]:
    """Return heads by name: those of a mapping, else their own.

    Raises
    ------
    SchemaError
        If there is none, or two have one name.
    """
    if isinstance(model, Mapping):
        found = {str(name): one for name, one in model.items()}
    else:
        several = list(model) if isinstance(model, list | tuple) else [model]
        names = [one if isinstance(one, str) else type(one).__name__ for one in several]
        if len(set(names)) < len(names):
            raise SchemaError(f"two of the heads {names} have one name; name them, as in {{'a': ..., 'b': ...}}")
        found = dict(zip(names, several, strict=True))
    if not found:
        raise SchemaError("there is no head to evaluate; give one, for example 'logistic'")
    return found


def one_subject(
    emb: xr.Dataset | None, labels: LabelSet | LabelSample, time: Any, *, with_map: bool = False
) -> Subject:
    """Return the labelled pixels of a map, with the map if it is needed."""
    sample = as_sample(emb, labels, time)
    return Subject(sample, None if emb is None or not with_map else _at_time(emb, time))


def compared_subjects(
    labels: LabelSet | LabelSample, time: Any, inputs: Mapping[str, xr.Dataset]
) -> dict[str, Subject]:
    """Return the same labelled pixels, row by row, of each input.

    Raises
    ------
    SchemaError
        If there is no input, one isn't in the shape of embeddings, or no pixel has data in all.
    GridError
        If they, or a sample of labels, are on different grids.
    """
    if not inputs:
        raise SchemaError("inputs= is empty; give at least one, as in {'embeddings': emb, 'raw': medians}")
    maps = {str(name): _at_time(one, time) for name, one in inputs.items()}
    first = next(iter(maps))
    box = geobox_of(maps[first])
    for name, one in maps.items():
        _check_grid(first, box, name, geobox_of(one))
    if isinstance(labels, LabelSample):
        if labels.shape != tuple(box.shape) or labels.crs not in (str(box.crs), crs_name(box.crs)):
            raise GridError(
                f"the sample is of a map of {labels.shape} pixels in {labels.crs}, the inputs have {tuple(box.shape)} "
                f"in {crs_name(box.crs)}; sample the labels on one of the inputs, or pass the LabelSet"
            )
        sample = labels
    else:
        sample = as_sample(maps[first], labels)
    values = {name: _values(one, sample) for name, one in maps.items()}
    held = np.all([np.isfinite(X).all(axis=1) for X in values.values()], axis=0)
    if not held.any():
        raise SchemaError("no labelled pixel has data in all inputs; compare inputs of the same place")
    if not held.all():
        warn(f"{int((~held).sum())} of {len(held)} labelled pixels have no data in some input and are left out of all")
    return {
        name: Subject(replace(sample, X=X, attrs=provenance(maps[name])).take(held), maps[name])
        for name, X in values.items()
    }


def _at_time(emb: xr.Dataset, time: Any) -> xr.Dataset:
    check_embeddings(emb)
    return at_time(emb, time) if "time" in emb[EMBEDDINGS].dims else emb


def _check_grid(first: str, box: GeoBox, name: str, other: GeoBox) -> None:
    away = np.subtract(box.transform[:6], other.transform[:6]) / abs(box.resolution.x)
    if box.shape != other.shape or box.crs != other.crs or np.abs(away).max() > SAME:
        raise GridError(
            f"inputs {first!r} and {name!r} are on different grids ({_told(box)}; {_told(other)}); resample one to "
            "the pixels of the other first"
        )


def _told(box: GeoBox) -> str:
    return f"{box.shape[0]} x {box.shape[1]} px from {box.transform.c:g}, {box.transform.f:g} in {crs_name(box.crs)}"


def _values(emb: xr.Dataset, sample: LabelSample) -> npt.NDArray[np.float32]:
    """Return the values (n, band) of an input at the pixels of a sample."""
    index = {"y": xr.DataArray(sample.rows, dims="pixel"), "x": xr.DataArray(sample.columns, dims="pixel")}
    bare = essentials(emb).drop_vars(list(emb.coords), errors="ignore")
    found = dequantize(bare.isel(index).compute())[EMBEDDINGS].transpose("pixel", "band")
    return np.asarray(found.values, dtype=np.float32)
