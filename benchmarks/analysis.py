"""Questions asked of an int8 map, beside peers and floors: `python -m benchmarks analysis`.

Similarity, search and places; clusters, components and segments; change, trend and novelty. Peers start from float32
values, made beforehand at no charge, but for plain NumPy, which starts from the codes as we do.
"""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks import analysis_clusters, analysis_novelty, analysis_similarity, published
from benchmarks.maps import BANDS, float_values, simulated
from benchmarks.measure import Settings
from benchmarks.rows import Row

GROUP, SIZED = "analysis", True


def rows(size: int, settings: Settings) -> Iterator[Row]:
    """Yield a row for each task and each thing beside it."""
    codes, years = size * size * (BANDS + 10), 2
    why = settings.lacks_memory(1.2 * codes * years)
    if why:
        years, why = 1, settings.lacks_memory(1.2 * codes)
    if why:
        yield Row(GROUP, "all tasks", size, skipped=why)
        return
    emb = simulated(size, years)
    one = emb.isel(time=0) if years > 1 else emb
    why = settings.lacks_memory(4.2 * size * size * BANDS)
    values = None if why else float_values(one)
    for part in (analysis_similarity, analysis_clusters, analysis_novelty):
        yield from part.rows(one, emb, values, why, settings)
    if size == 512 or settings.quick:
        yield from published.rows(size, settings)
