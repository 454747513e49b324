"""Regions that are still to be written: written, checked, and the store put in its place."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from tessera_xr.embedding.large.areas import Undertaking
from tessera_xr.embedding.large.journal import Workplace, read_history
from tessera_xr.embedding.large.regions import AreaPlan, Region, pixel_disk
from tessera_xr.embedding.large.shards import (
    PROGRESS,
    Sum,
    consolidate,
    create_store,
    drop_leftovers,
    find_fault,
    finish_group,
)
from tessera_xr.embedding.large.workers import work_here, work_on
from tessera_xr.errors import StoreError

logger = logging.getLogger(__name__)


class Completion:
    """Regions to be written, and the journal of those that are."""

    def __init__(
        self, place: Workplace, undertaking: Undertaking, plans: list[AreaPlan], run: dict[str, Any], *, progress: bool
    ) -> None:
        self.place, self.undertaking, self.plans, self.run, self.progress = place, undertaking, plans, run, progress
        self.regions: list[Region] = []
        for plan in plans:
            self.regions += plan.regions(len(self.regions))
        self.timed = "time" in undertaking.areas[0].template.dims
        self.done: dict[int, list[Sum]] = {}

    def resume(self, *, finished: bool, new: bool) -> bool:
        """Find out what is done; False if that is all."""
        if finished:
            _, sums = read_history(self.place.path)
            faults = self._faults(self.place.path, sums, thorough=True)
            if not faults:
                return False
            logger.warning("%d of %d regions of %s are damaged", len(faults), len(sums), self.place.path)
            self._check_disk(len(faults) / len(self.regions))
            self.place.reopen(self.run, {i: s for i, s in sums.items() if i not in faults})
        elif new:
            self._check_disk(1.0)
            self._create()
        self.done = self.place.done()
        for index in self._faults(self.place.store, self.done, thorough=False):
            self._forget(index)
        if not new and not finished:
            self._check_disk(1 - len(self.done) / len(self.regions))
        return True

    def complete(self, client: Any) -> None:
        """Write the regions that are missing, check all of them, and put the store in its place."""
        for _ in range(2):
            self._write(client)
            faults = self._faults(self.place.store, self.done, thorough=True)
            if not faults:
                break
            logger.warning("regions to be written again: %s", faults)
            for index in faults:
                self._forget(index)
        missing = len(self.regions) - len(self.done)
        if missing:
            raise StoreError(
                f"{missing} of {len(self.regions)} regions don't keep what was written; is the disk sound?"
            )
        drop_leftovers(self.place.store)
        for plan in self.plans:
            finish_group(self.place.store / plan.name)
        if self.plans[0].name:
            finish_group(self.place.store)
        self.place.publish(self.run, self.done)

    def _create(self) -> None:
        """Make the store, all of it no data, and note what it is made from: in this order."""
        import zarr

        self.place.clear()
        if self.plans[0].name:
            attrs = {"tessera_xr_kind": "areas", PROGRESS: False}
            zarr.create_group(self.place.store, attributes=attrs)
        for area, plan in zip(self.undertaking.areas, self.plans, strict=True):
            create_store(self.place.store / plan.name, area.template, plan)
            consolidate(self.place.store / plan.name)
        self.place.begin(self.run)

    def _write(self, client: Any) -> None:
        todo = [r for r in self.regions if r.index not in self.done]
        total, left = (sum(r.pixels for r in regions) for regions in (self.regions, todo))
        start = time.perf_counter()
        options = {"unit": "px", "unit_scale": True, "desc": "embedding", "delay": 1, "disable": not self.progress}
        with tqdm(total=total, initial=total - left, **options) as bar:

            def done(region: Region, sums: list[Sum]) -> None:
                self.place.add(region.index, sums)
                self.done[region.index] = sums
                bar.set_postfix_str(f"{len(self.done):,} of {len(self.regions):,} regions", refresh=False)
                bar.update(region.pixels)

            jobs = self.undertaking.jobs(self.place.store, todo)
            work_here(jobs, done) if client is None else work_on(client, jobs, done)
        seconds = time.perf_counter() - start
        logger.info("%d pixels in %.0f s, %.0f px/s", left, seconds, left / max(seconds, 1e-9))

    def _forget(self, index: int) -> None:
        self.place.add(index, None)
        del self.done[index]

    def _faults(self, folder: Path, sums: Mapping[int, list[Sum]], *, thorough: bool) -> dict[int, str]:
        regions = [r for r in self.regions if r.index in sums]
        return find_faults(folder, regions, sums, timed=self.timed, thorough=thorough, progress=self.progress)

    def _check_disk(self, share: float) -> None:
        """Raise `StoreError` if a share of the store wouldn't fit on the disk."""
        needed = share * sum(p.n_pixels * pixel_disk(p.dims) for p in self.plans)
        free = free_bytes(self.place.folder)
        if needed > free:
            raise StoreError(
                f"{self.place.path} needs up to {needed / 1e9:,.2f} GB more, but {free / 1e9:,.2f} GB are free there; "
                "make room, choose another disk, or a smaller dims= of a Matryoshka model"
            )


def find_faults(
    folder: Path,
    regions: Sequence[Region],
    sums: Mapping[int, list[Sum]],
    *,
    timed: bool,
    thorough: bool,
    progress: bool,
) -> dict[int, str]:
    """Return what is wrong with regions that should be whole, by their index."""
    faults = {}
    for r in tqdm(regions, unit="region", desc="checking", delay=1, disable=not progress):
        fault = find_fault(folder / r.area, r, sums[r.index], timed=timed, thorough=thorough)
        if fault is not None:
            faults[r.index] = fault
    return faults


def free_bytes(folder: Path) -> int:
    """Return the bytes that are free where a folder is to be."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
