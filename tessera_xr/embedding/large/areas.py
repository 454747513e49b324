"""What `embed_to_zarr` is given, settled before any work: areas, periods, model, options, and what they look like."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import xarray as xr

from tessera_xr.embedding.embed import embed
from tessera_xr.embedding.large.fingerprint import describe_cube, describe_run
from tessera_xr.embedding.large.journal import GROUP
from tessera_xr.embedding.large.regions import AreaPlan, Region, cut_area, cut_out
from tessera_xr.embedding.large.workers import Job, Task
from tessera_xr.encoder.checkpoints import resolve_model
from tessera_xr.errors import SchemaError
from tessera_xr.sentinel.cube import as_cube, as_cube_for, check_cube, is_cube
from tessera_xr.sentinel.period import Period, PeriodLike, resolve_periods

PROBE_SECONDS, PROBE_SIDE = 1.0, 128
"""A measurement stops after so long, or with so many pixels along a side."""


@dataclass(frozen=True)
class Area:
    """One area, nothing of it read yet."""

    name: str
    """"" if there is only one."""
    cube: xr.Dataset
    """All its dates."""
    parts: list[xr.Dataset]
    """The cube of each period."""
    template: xr.Dataset
    """The embeddings to be: all but the values."""


@dataclass(frozen=True)
class Undertaking:
    """All areas, and how they are to be embedded."""

    areas: list[Area]
    """In the order of work."""
    spans: list[Period | None]
    """The periods; None alone if the cubes are no longer than one."""
    options: dict[str, Any]
    """Of `embed`."""
    kind: str
    """Kind of device and precision of all processes."""

    @property
    def attrs(self) -> Mapping[str, Any]:
        """The attributes that say which model it is."""
        return self.areas[0].template.attrs

    def made_from(self) -> dict[str, Any]:
        """Return all that the result depends on, as text: a few values of each cube are read."""
        names = ("dims", "seed")
        options = {n: self.options[n] for n in names}
        options |= {"dims": self.areas[0].template.sizes["band"], "computed on": self.kind}
        options["period"] = ", ".join("all dates" if s is None else str(s) for s in self.spans)
        options["several periods"] = "time" in self.areas[0].template.dims
        return {
            "": describe_run(self.attrs, options),
            **{f"area {a.name}" if a.name else "cube": describe_cube(a.cube) for a in self.areas},
        }

    def cut(self, memory: int, regions: Mapping[str, tuple[int, int] | None], at_least: int = 1) -> list[AreaPlan]:
        """Return how to cut each area, all into some number of regions; `regions` are those that are settled."""
        dims, share = self.areas[0].template.sizes["band"], at_least / len(self.areas)
        return [cut_area(a.name, a.parts, dims, memory, regions.get(a.name), at_least=share) for a in self.areas]

    def jobs(self, folder: Path, regions: Sequence[Region]) -> Iterator[Job]:
        """Yield what is to be done for each region, its part of the cube not read yet."""
        areas = {area.name: area for area in self.areas}
        for region in regions:
            cube = cut_out(areas[region.area].parts[region.time], region.y, region.x)
            span = self.spans[region.time]
            task = Task(folder / region.area, span, self.options, self.attrs["weights_sha256"], self.kind)
            yield region, cube, task


def prepare(
    cube: xr.Dataset | Mapping[str, xr.Dataset],
    period: PeriodLike | Sequence[PeriodLike] | None,
    options: Mapping[str, Any],
    kind: str,
) -> Undertaking:
    """Check everything that can be without reading pixels.

    Parameters
    ----------
    cube : Dataset or mapping of Dataset
    period : period or a list of them, optional
    options : mapping
        Of `embed`.
    kind : str
        Kind of device and precision of the processes that will compute.
    """
    periods = resolve_periods(period)
    spans: list[Period | None] = list(periods) if isinstance(periods, list) else [periods]
    source = resolve_model(options["model"], options["weights"])
    settled = dict(options)
    settled["model"] = source.name or str(source.path)
    settled["weights"] = str(source.path) if source.name and source.path else None
    areas = []
    for name, imagery in _named(cube).items():
        whole = _read_cube(imagery, [s for s in spans if s is not None])[["s2", "s2_valid", "s1"]]
        # the kind is known already: here only what the result looks like is wanted
        template = embed(_hollow(whole), period=periods, dtype="int8", progress=False, **settled | _PLAIN)
        areas.append(Area(name, whole, [_dates_of(whole, s) for s in spans], template))
    return Undertaking(areas, spans, settled, kind)


_PLAIN = {"device": "cpu", "precision": "float32"}


def _named(cube: xr.Dataset | Mapping[str, xr.Dataset]) -> Mapping[str, xr.Dataset]:
    """Return areas by name, "" for a single cube."""
    # a Dataset is a mapping too; what is neither is refused when it is read
    if isinstance(cube, xr.Dataset) or not isinstance(cube, Mapping):
        return {"": cube}
    if not cube:
        raise SchemaError("there is no area; give a cube, or a mapping of names to cubes")
    strange = [n for n in cube if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", str(n)) or n == GROUP]
    if strange:
        raise SchemaError(
            f"the names of areas become folders: letters, digits, '_', '-' and '.', not {strange}; rename them"
        )
    return cast("Mapping[str, xr.Dataset]", cube)


def _read_cube(imagery: xr.Dataset, spans: list[Period]) -> xr.Dataset:
    if is_cube(imagery):
        check_cube(imagery)
        return imagery
    return as_cube_for(imagery, spans) if spans else as_cube(imagery)


def _hollow(cube: xr.Dataset) -> xr.Dataset:
    """Return a lazy cube of the same looks, its values no matter."""
    import dask.array as da

    hollow = {n: (a.dims, da.zeros(a.shape, dtype=a.dtype, chunks=-1)) for n, a in cube.data_vars.items()}
    return xr.Dataset(hollow, cube.coords, cube.attrs)


def _dates_of(cube: xr.Dataset, span: Period | None) -> xr.Dataset:
    """Return the dates of a period, which are side by side, as slices."""
    if span is None:
        return cube
    slices = {}
    for dim in ("s2_time", "s1_time"):
        inside = np.flatnonzero(span.contains(cube[dim].values))
        slices[dim] = slice(int(inside[0]), int(inside[-1]) + 1) if len(inside) else slice(0, 0)
    return cube.isel(slices)


def measure(undertaking: Undertaking, plans: Sequence[AreaPlan]) -> float:
    """Return the seconds that all is expected to take in this process, from a few pixels amid the first area."""
    area, plan = undertaking.areas[0], plans[0]
    size = {d: area.cube.sizes[d] for d in ("y", "x")}
    first = {d: max(size[d] // 2 - PROBE_SIDE // 2, 0) for d in size}
    block = area.parts[0].isel({d: slice(first[d], min(first[d] + PROBE_SIDE, size[d])) for d in size})
    start = time.perf_counter()
    held = block.compute()
    reading = time.perf_counter() - start
    options = dict(undertaking.options) | {"period": undertaking.spans[0], "dtype": "int8", "progress": False}
    embed(held.isel(y=slice(4), x=slice(4)), **options)  # loads the model
    side, seconds, pixels = 4, 0.0, 1
    while seconds < PROBE_SECONDS and side < PROBE_SIDE:
        side = 2 * side
        start = time.perf_counter()
        embed(held.isel(y=slice(side), x=slice(side)), **options)
        seconds = time.perf_counter() - start
        pixels = min(side, held.sizes["y"]) * min(side, held.sizes["x"])
    read = _touched(area.parts[0], first, block)
    total = sum(p.n_pixels for p in plans)
    return total * (seconds / pixels + plan.reads * reading / read)


def _touched(part: xr.Dataset, first: Mapping[str, int], block: xr.Dataset) -> int:
    """Return the pixels of the chunks that were read for a block."""
    pixels = 1
    for dim, start in first.items():
        chunks = part["s2"].chunksizes.get(dim)
        edges = np.cumsum([0, *chunks]) if chunks else np.array([start, start + block.sizes[dim]])
        stop = start + block.sizes[dim]
        pixels *= int(edges[np.searchsorted(edges, stop)] - edges[np.searchsorted(edges, start, side="right") - 1])
    return pixels
