"""The authors' inference code, run from where it is: v2 students by `encode_tile`, v1.1 by its dataset and model."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import peers
from benchmarks.measure import Beside, Settings
from benchmarks.rows import Want

AHEAD = {"v2-nano": 2.0, "v2-small": 1.6, "v1.1-mpc": 1.4}
"""Times the authors' speed at their default batch, wanted; never slower than their best."""
DEFAULT, SMALL = 1024, 64
SLOWER = 6
"""They take two to five times as long: what a guess of their time begins with."""

Arrays = tuple[np.ndarray, ...]


def authors(name: str, encoder: Any, arrays: Arrays, pixel_seconds: float, settings: Settings) -> Iterator[Beside]:
    """Yield their code at its default batch, and at one that a CPU's caches hold; on fewer pixels if that is slow."""
    labels = [f"the authors' code, {size:,} pixels a batch" for size in (DEFAULT, SMALL)]
    wants = [Want("faster", AHEAD[name]) if name in AHEAD else None, Want("faster", 1.0)]
    find = peers.authors if name.startswith(("v2", "mini")) else peers.authors_v1_1
    modules, why = find(settings.peer)
    if modules is None:
        yield from (Beside(label, None, skipped=why) for label in labels)
        return
    n, guess = len(arrays[0]), SLOWER * pixel_seconds * len(arrays[0])
    part = n if guess <= settings.patience else max(int(n * settings.patience / guess), SMALL)
    prepare = prepare_v1_1 if find is peers.authors_v1_1 else prepare_v2
    with prepare(modules, encoder, tuple(a[:part] if len(a) == n else a for a in arrays)) as run:
        for label, want, batch in zip(labels, wants, (DEFAULT, SMALL), strict=True):
            note = "" if part == n else f"theirs on {part} pixels"
            yield Beside(label, lambda b=batch: run(b), want, factor=n / part, note=note)


@contextlib.contextmanager
def prepare_v2(modules: Any, encoder: Any, arrays: Arrays) -> Iterator[Any]:
    """Give a function that embeds by `encode_tile` in batches of some size."""
    import torch

    arch = encoder.record.arch
    network = modules[0].PixelStudent(128, arch.latent_dim, arch.n_layers, arch.n_heads, arch.feedforward).eval()
    s2, s2_doy, valid, s1, s1_doy, descending = arrays
    s2, s1 = (np.ascontiguousarray(a.transpose(1, 0, 2)[:, None]).astype(np.float32) for a in (s2, s1))
    tile = [s2, s2_doy, valid.T[:, None].astype(np.uint8)]
    tile += [s1[~descending], s1_doy[~descending], s1[descending], s1_doy[descending]]
    yield lambda batch: modules[1].encode_tile(network, *tile, batch_pixels=batch, device=torch.device("cpu"))


@contextlib.contextmanager
def prepare_v1_1(module: Any, _: Any, arrays: Arrays) -> Iterator[Any]:
    """Give a function that embeds as their `infer_v1_1.py` does, without worker processes, from a tile in a folder."""
    import torch

    config = module.load_config(Path(module.__file__).parents[1] / "configs" / "v1_1_infer_config.py")
    network = module.build_v1_1_inference_model(config, torch.device("cpu")).eval()
    s2, s2_doy, valid, s1, s1_doy, descending = arrays
    logging.disable(logging.INFO)

    def run(batch: int) -> None:
        data = module.SingleTileInferenceDatasetV1_1(tile_path=folder, config=config)
        sampler = module.BucketBatchSampler(data, batch_size=batch)
        loader = torch.utils.data.DataLoader(data, batch_sampler=sampler, collate_fn=module._collate)
        with torch.no_grad():
            for found in loader:
                embedded = network(found["s2"], found["s1"])[:, :128].float()
                module.quantize_tensor_symmetric_per_row(embedded, bits=8)

    with tempfile.TemporaryDirectory() as folder:
        files = {"bands": s2, "masks": valid.astype(np.uint8)}
        files |= {"sar_ascending": s1[:, ~descending], "sar_descending": s1[:, descending]}
        for name, array in files.items():
            np.save(f"{folder}/{name}.npy", np.ascontiguousarray(np.moveaxis(array, 1, 0)[:, None]))
        days = {"doys": s2_doy, "sar_ascending_doy": s1_doy[~descending], "sar_descending_doy": s1_doy[descending]}
        for name, array in days.items():
            np.save(f"{folder}/{name}.npy", array)
        yield run
    logging.disable(logging.NOTSET)
