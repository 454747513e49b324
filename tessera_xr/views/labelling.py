"""Labels as an explorer makes and counts them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import xarray as xr

from tessera_xr.errors import SchemaError
from tessera_xr.learning.labels import LabelSet

FEW = 5
"""Labels of a class below which its scores say little."""
LOPSIDED = 10
"""How many times the labels of one class may be those of another."""


def drawn_labels(mask: xr.DataArray, value: str, n: int, source: str) -> LabelSet:
    """Return labels of one class at pixels drawn at random from a region.

    Parameters
    ----------
    mask : DataArray
        (y, x) bool, with a grid.
    value : str
        The class.
    n : int
        How many; all pixels where there are fewer.
    source : str
        What the labels say they are from.

    Raises
    ------
    SchemaError
        If the region is empty.
    """
    if not bool(mask.any()):
        raise SchemaError("this region is empty; choose another cluster, or a lower threshold")
    drawn = LabelSet.from_raster(mask, names={True: value}, nodata=0, n_per_class=min(n, int(mask.sum())))
    labels = LabelSet(drawn.classes, crs=drawn.crs)
    for label in drawn:
        labels.add(label.geometry, value, source=source)
    return labels


def class_counts(labels: LabelSet) -> dict[str, int]:
    """Return the number of labels of each class."""
    counts = Counter(str(label.value) for label in labels)
    return {name: counts[name] for name in labels.classes}


def balance_warning(counts: Mapping[str, int]) -> str | None:
    """Return what is wrong with the balance of classes, if anything."""
    few = [name for name, n in counts.items() if n < FEW]
    if len(counts) > 1 and few:
        return f"Fewer than {FEW} labels of {', '.join(few)}: scores of so few say little."
    if len(counts) > 1 and max(counts.values()) > LOPSIDED * min(counts.values()):
        most = max(counts, key=lambda name: counts[name])
        return f"{most} has over {LOPSIDED} times the labels of others; label more of those."
    return None
