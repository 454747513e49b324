"""Grids that nest: 10 m and 20 m pixels, and extents that differ, brought onto one."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import xarray as xr
from odc.geo.geobox import GeoBox

from tessera_xr.errors import CubeError
from tessera_xr.grid import crs_name

TOLERANCE = 0.02
"""Fraction of a pixel by which edges may miss each other: rounding in coordinates, no more."""


def common_grid(boxes: Mapping[str, GeoBox]) -> GeoBox:
    """Return the part that all `boxes` share, in the finest of their pixels.

    Raises
    ------
    CubeError
        If the CRSs differ, the pixels do not nest, or the boxes do not overlap.
    """
    finest = min(boxes, key=lambda name: abs(boxes[name].transform.a))
    reference = boxes[finest]
    faults = [fault for name, box in boxes.items() if (fault := _misfit(name, box, finest, reference))]
    if faults:
        raise CubeError(faults)
    corners = [_corners(box, reference) for box in boxes.values()]
    top, left = (max(c[i] for c in corners) for i in (0, 1))
    bottom, right = (min(c[i] for c in corners) for i in (2, 3))
    if bottom <= top or right <= left:
        raise CubeError(
            "no overlap in space: " + "; ".join(f"{name} covers {_extent(box)}" for name, box in boxes.items())
        )
    return reference[top:bottom, left:right]


def onto(ds: xr.Dataset, box: GeoBox, target: GeoBox) -> xr.Dataset:
    """Return `ds` on the grid `target`, its pixels repeated and cropped as needed; y and x lose their coordinates."""
    ds = ds.drop_vars(["y", "x"], errors="ignore")
    if box == target:
        return ds
    place = ~box.transform * target.transform
    scales, starts = {"y": place.e, "x": place.a}, {"y": place.f, "x": place.c}
    index: dict[str, slice | np.ndarray] = {}
    for dim, size in zip(("y", "x"), target.shape, strict=True):
        if round(scales[dim], 6) == 1:
            start = round(starts[dim])
            index[dim] = slice(start, start + size)
        else:
            index[dim] = np.floor(starts[dim] + (np.arange(size) + 0.5) * scales[dim]).astype(np.intp)
    return ds.isel(index)


def _misfit(name: str, box: GeoBox, finest: str, reference: GeoBox) -> str | None:
    fix = f"reproject the one onto the other first: {name}.odc.reproject({finest}.odc.geobox)"
    if box.crs != reference.crs:
        return f"{name} is in {crs_name(box.crs)}, {finest} in {crs_name(reference.crs)}; {fix}"
    place = ~reference.transform * box.transform
    factor_y, factor_x = place.e, place.a
    drift = max(abs(factor_y - round(factor_y)) * box.shape[0], abs(factor_x - round(factor_x)) * box.shape[1])
    shift = max(abs(place.f - round(place.f)), abs(place.c - round(place.c)))
    if drift > TOLERANCE or shift > TOLERANCE:
        return (
            f"the pixels of {name} ({abs(box.transform.a):g} wide) do not nest in those of {finest} "
            f"({abs(reference.transform.a):g} wide, {factor_x:.4g} to 1, shifted by {shift:.2f} px); {fix}"
        )
    return None


def _corners(box: GeoBox, reference: GeoBox) -> tuple[int, int, int, int]:
    place = ~reference.transform * box.transform
    top, left = round(place.f), round(place.c)
    return top, left, top + round(place.e) * box.shape[0], left + round(place.a) * box.shape[1]


def _extent(box: GeoBox) -> str:
    left, bottom, right, top = box.boundingbox.bbox
    return f"x {left:.10g} to {right:.10g}, y {bottom:.10g} to {top:.10g}"
