"""Keeping `ds.tessera` ours where geotessera is at hand, which registers an accessor of the same name.

The last of the two to be imported would win, and `ds.tessera.embed` would come and go with the order of two imports.
Ours carries geotessera's members (`embedding.zone`), so that either library works with it; it has to stay registered.

Weighed and left: importing geotessera first takes seconds and 100 MB from everyone who has it installed; replacing
`xarray.register_dataset_accessor` would change xarray for every other package. What is left is Python's own way to be
told of an import, a finder, which here concerns the modules of one package and hands each of them on unchanged.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any, TypeVar

import xarray as xr

T = TypeVar("T")
NAME, OTHER = "tessera", "geotessera"
_OVERRIDING = rf"registration of accessor <class '{OTHER}\."


class _Accessor:
    """What `ds.tessera` looks up: a new accessor each time.

    xarray's own descriptor keeps the accessor in each dataset, so that a dataset on which geotessera's was ever used
    would go on answering with that one.
    """

    def __init__(self, accessor: type) -> None:
        self._accessor = accessor

    def __get__(self, obj: xr.Dataset | None, owner: type | None = None) -> Any:
        return self._accessor if obj is None else self._accessor(obj)


class _Loader(Loader):
    """Runs a module of geotessera as its own loader does, then registers ours again."""

    def __init__(self, loader: Loader, ours: _Accessor) -> None:
        self._loader, self._ours = loader, ours

    def __getattr__(self, name: str) -> Any:  # what else a loader can do: tell the source, open files
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # xarray would warn, in a user's first lines, of a replacement that the next line undoes
        warnings.filterwarnings("ignore", message=_OVERRIDING)
        try:
            self._loader.exec_module(module)
        finally:
            _put(self._ours)


class _Finder(MetaPathFinder):
    """Finds the modules of geotessera, as `sys.path` has them, and nothing else."""

    def __init__(self, ours: _Accessor) -> None:
        self._ours = ours

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.partition(".")[0] != OTHER:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self._ours)
        return spec


def register(accessor: type[T]) -> type[T]:
    """Make a class the accessor `ds.tessera` of Datasets, whether geotessera was or will be imported; a decorator."""
    ours = _Accessor(accessor)
    _put(ours)
    sys.meta_path[:] = [finder for finder in sys.meta_path if type(finder).__module__ != __name__]
    sys.meta_path.insert(0, _Finder(ours))
    return accessor


def _put(ours: _Accessor) -> None:
    # not by xarray.register_dataset_accessor, which has a warning for the one who comes second
    setattr(xr.Dataset, NAME, ours)
