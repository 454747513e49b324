"""Whether the +1000 offset is in the values of a scene that says so: a look at its pixels."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from tessera_xr.sentinel.catalogues import S2_LAYERS
from tessera_xr.sentinel.reading import Sign, UnreadableError, read_patiently
from tessera_xr.sentinel.scenes import Scene, doubtful

TOO_DARK = 700
"""A red value below this, with the offset still in it, would be a reflectance below -0.03: no land is so dark."""
SHARE = 0.02
"""Of the pixels with data; of a scene without its offset far more are so dark, unless all is cloud, snow or sand."""


def offset_is_gone(red: npt.NDArray[Any]) -> bool:
    """Say whether red values (any shape, 0 = no data) show that the offset was removed; if not, they tell nothing.

    Examples
    --------
    >>> offset_is_gone(np.array([380, 420, 0, 2500])), offset_is_gone(np.array([1380, 1420, 0, 3500]))
    (True, False)
    """
    seen = red[red > 0]
    return bool(seen.size and np.mean(seen < TOO_DARK) > SHARE)


def settled(scenes: Sequence[Scene], sign: Sign, *, progress: bool) -> tuple[list[Scene], int]:
    """Return the scenes, those whose pixels show that the offset was removed marked so, and how many these are.

    Only `doubtful` scenes are looked at, in an overview of their red band. One that can't be read is left as it is.
    """
    from tqdm import tqdm

    def look(scene: Scene) -> bool:
        url = scene.hrefs[S2_LAYERS.index("B04")]
        try:
            return offset_is_gone(read_patiently(url, None, np.dtype("uint16"), 0, sign))
        except UnreadableError:
            return False

    open_ones = doubtful(scenes)
    with ThreadPoolExecutor(8) as pool:
        bar = tqdm(pool.map(look, open_ones), "offset", len(open_ones), disable=not progress, delay=1, leave=False)
        gone = {scene.id for scene, found in zip(open_ones, bar, strict=True) if found}
    return [replace(s, offset_applied=True) if s.id in gone else s for s in scenes], len(gone)
