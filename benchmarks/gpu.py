"""A CUDA card's embedding beside what its matrix product could do: `python -m benchmarks gpu`, or with more options
`python -m benchmarks.gpu [MODEL ...]`.

Input: the pixels of `benchmarks.embed` (or of a .npz of the arrays that `encode` takes), repeated, in memory as cubes
hold them. Weights are random: speed doesn't depend on them. Timed is `encode` from arrays on the host to int8 codes on
the host. Operations are those of the distinct observations; the share is of the bfloat16 product of 8192 x 8192 random
matrices, timed in turn with the embedding. `host`: the share of the time that the host takes to stage raw values;
`idle`: that in which no kernel runs; `cosine`: the lowest between bfloat16 and float32. With --peer, the folder of the
authors' code for v2 students (tessera_infer_v2/student), its `encode_tile` is timed on fewer pixels: as it comes
(float32, 1,024 pixels a batch), and under autocast with 4,096.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import torch

from benchmarks import embedding, peers
from benchmarks.embed import operations
from benchmarks.rows import Row, Want
from tessera_xr.embedding import engine
from tessera_xr.encoder import streaming
from tessera_xr.encoder.checkpoints import Encoder
from tessera_xr.encoder.network import TesseraEncoder
from tessera_xr.encoder.registry import RECORDS

PIXELS = {"v2-nano": 1 << 20, "v2-small": 1 << 19, "v2-medium": 1 << 18, "v2-large": 1 << 17, "v1.1-mpc": 1 << 17}
GROUP, SIZED = "gpu", False
SHARES = {"v2-small": 0.35, "v2-medium": 0.5, "v2-large": 0.5, "v1.1-mpc": 0.5}
"""Of the rate of a bfloat16 product, wanted."""
TILE, AUSTRIA = 10_980**2, 83_879 * 10_000
"""Pixels of 10 m: a Sentinel-2 tile of 110 km, and a country of 83,879 square kilometres."""
SIZE = 8192
COLUMNS = (
    "px/s", "TFLOP/s", "bf16", "share", "spread", "host", "idle", "cosine", "tile_s", "Austria_h", "$/Mpx", "before",
    "peer", "peer_bf16",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=list(PIXELS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--share", type=float, default=1, help="of the usual numbers of pixels")
    parser.add_argument("--budget", type=int, help="tokens a batch, instead of the package's choice")
    parser.add_argument("--pixels-from", type=Path, help=".npz of the arrays that `encode` takes, by name")
    parser.add_argument("--before", action="store_true", help="time the path that gathers on the host, too")
    parser.add_argument("--peer", type=Path, default=os.environ.get(peers.VARIABLE), help="the authors' code")
    parser.add_argument("--price", type=float, default=3.0, help="dollars for an hour of this GPU")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("this machine has no CUDA device, and so no row of this table")
    chip = load_pixels(options.pixels_from)
    machine = {
        "card": torch.cuda.get_device_name(), "torch": torch.__version__, "cores": os.cpu_count(),
        "python": platform.python_version(), "copy_TB/s": copy_rate(), "to_device_GB/s": upload_rate(),
    }  # fmt: skip
    print(json.dumps(machine), flush=True)
    print(" ".join(f"{title:>9}" for title in ("model", *COLUMNS)), flush=True)
    rows = [row(model, chip, options) for model in options.models]
    if options.json:
        options.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1))


def rows(_, settings):
    """Yield rows of the suite for each model, or say why there are none."""
    if not torch.cuda.is_available():
        yield Row(GROUP, "embedding on a CUDA card", skipped="this machine has no CUDA device")
        return
    chip = load_pixels(None)
    options = argparse.Namespace(
        rounds=settings.repeats, share=1 / 64 if settings.quick else 1, budget=None, before=False, price=settings.price,
        peer=settings.peer or None,
    )  # fmt: skip
    for model in settings.models or PIXELS:
        try:
            yield from as_rows(row(model, chip, options), settings)
        except torch.OutOfMemoryError as error:
            yield Row(GROUP, model, skipped=f"not enough memory on {torch.cuda.get_device_name()}: {str(error)[:120]}")


def as_rows(found, settings):
    """Yield the suite's rows of what `row` found: a row alone, and one beside the authors' code each way."""
    n, model = found["pixels"], found["model"]
    seconds = n / found["px/s"]
    work = found["TFLOP/s"] * 1e12 * seconds
    note = (
        f"{found['px/s']:,.0f} px/s, {found['TFLOP/s']:.0f} of {found['bf16']:.0f} TFLOP/s; no kernel runs "
        f"{found['idle']:.0%} of the time, the host stages {found['host']:.0%}; lowest cosine to float32 "
        f"{found['cosine']:.5f}; a 110 km tile in {found['tile_s']:.0f} s, Austria in {found['Austria_h']:.1f} h, "
        f"{found['$/Mpx']:.4f} $ a million pixels"
    )
    made = Row(
        GROUP, f"{model}, {n:,} pixels to int8", ours=[seconds], operations=work, floors=[found["share"] * seconds],
        want=Want("share", SHARES[model]) if model in SHARES else None, peak_mb=found["peak_GB"] * 1e3, note=note,
    )  # fmt: skip
    yield made
    ways = {"peer": "the authors' code as it comes", "peer_bf16": "the authors' code under autocast, 4,096 a batch"}
    why = "" if settings.peer else peers.authors("")[1]
    why = why if model.startswith("v2") else "their code for this version reads tiles from folders"
    for name, title in ways.items():
        theirs = [n / found[name]] if name in found else []
        want = Want("faster", 10) if name == "peer" else None
        yield replace(made, beside=title, theirs=theirs, beside_skipped="" if theirs else why, want=want, note="")


def row(model, chip, options):
    """Measure one model and print its line."""
    encoder = make_encoder(model)
    n = int(PIXELS.get(model, 1 << 17) * options.share)
    arrays = repeat(chip, n)
    budget = options.budget or "auto"
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    timed = [timed_run(encoder, arrays, budget) for _ in range(options.rounds + 1)][1:]
    work = operations(encoder.record.arch, arrays[2].sum(axis=1), (arrays[3] != 0).any(axis=2).sum(axis=1))
    shares = [work / t["s"] / t["rate"] for t in timed]
    seconds, rate = (statistics.median(t[key] for t in timed) for key in ("s", "rate"))
    found = {
        "model": model, "pixels": n, "px/s": n / seconds, "TFLOP/s": work / seconds / 1e12, "bf16": rate / 1e12,
        "share": statistics.median(shares), "spread": max(shares) - min(shares),
        "host": statistics.median(t["host"] for t in timed), "idle": idle_share(encoder, arrays, budget),
        "tile_s": TILE * seconds / n,
        "Austria_h": AUSTRIA * seconds / n / 3600, "$/Mpx": options.price * seconds / n * 1e6 / 3600,
        "cosine": lowest_cosine(encoder, chip), "peak_GB": torch.cuda.max_memory_allocated() / 1e9,
    }  # fmt: skip
    if options.before:
        found["before"] = before(encoder, repeat(chip, min(n, 1 << 15)))
    if options.peer and model.startswith("v2"):
        found |= peer(Path(options.peer), encoder, chip)
    cells = (f"{found[key]:9.5g}" if key in found else f"{'-':>9}" for key in COLUMNS)
    print(f"{model:>9} " + " ".join(cells), flush=True)
    return found


def load_pixels(path):
    """Return the arrays that `encode` takes, of a few thousand pixels."""
    if path is not None:
        with np.load(path) as file:
            return tuple(file[k] for k in ("s2", "s2_doy", "s2_valid", "s1", "s1_doy", "s1_descending"))
    return embedding.load_pixels()


def repeat(chip, n):
    """Return `n` pixels, the chip again and again; in memory the pixels are innermost, as in a cube."""
    s2, s2_doy, valid, s1, s1_doy, descending = chip
    rows = np.arange(n) % len(s2)
    s2, s1, valid = (np.ascontiguousarray(np.moveaxis(a, 0, -1)[..., rows]) for a in (s2, s1, valid))
    return np.moveaxis(s2, -1, 0), s2_doy, np.moveaxis(valid, -1, 0), np.moveaxis(s1, -1, 0), s1_doy, descending


def make_encoder(model):
    """Return an encoder of the true size with random weights."""
    torch.manual_seed(0)
    record = RECORDS[model]
    network = TesseraEncoder(record.arch).eval().requires_grad_(requires_grad=False).cuda()
    return Encoder(record, network, "random", torch.device("cuda"), torch.bfloat16)


def timed_run(encoder, arrays, budget):
    """Time the matrix product, then `encode`; `host` is the share of that time in which the host stages raw values."""
    rate, staging = matrix_rate(), []
    upload = streaming.upload

    def timed(*args):
        start = time.perf_counter()
        sent = upload(*args)
        staging.append(time.perf_counter() - start)
        return sent

    with mock.patch.object(streaming, "upload", timed):
        seconds = clock(lambda: embed(encoder, arrays, budget))
    return {"s": seconds, "rate": rate, "host": sum(staging) / seconds}


def idle_share(encoder, arrays, budget):
    """Return the share of an embedding's time in which the device ran no kernel, from a run of its own."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as profiled:
        embed(encoder, arrays, budget)
    spans = sorted((e.time_range.start, e.time_range.end) for e in profiled.events() if not e.name.startswith("Mem"))
    busy, end = 0.0, spans[0][0]
    for start, stop in spans:
        busy += max(stop - max(start, end), 0)
        end = max(end, stop)
    return 1 - busy / (end - spans[0][0])


def lowest_cosine(encoder, chip):
    """Return the lowest cosine between embeddings in bfloat16 and in float32."""
    each = [replace(encoder, precision=p) for p in (torch.bfloat16, torch.float32)]
    a, b = (engine.encode(e, *chip, dims=encoder.record.n_dims).values.astype(float) for e in each)
    return float(((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min())


def embed(encoder, arrays, budget="auto"):
    return engine.encode(encoder, *arrays, dims=encoder.record.n_dims, dtype="int8", budget=budget)


def before(encoder, arrays):
    """Return the pixels a second of the path that other GPUs take, whose host gathers and pads."""
    with mock.patch.object(streaming, "can_stream", return_value=False):
        embed(encoder, tuple(a[:2048] if len(a) == len(arrays[0]) else a for a in arrays))
        return len(arrays[0]) / clock(lambda: embed(encoder, arrays))


def peer(folder, encoder, chip):
    """Return the pixels a second of the authors' `encode_tile`: as it comes, and under autocast in larger batches."""
    (modules, why), arch = peers.authors(str(folder)), encoder.record.arch
    if modules is None:
        raise FileNotFoundError(why)
    model_of, infer = modules
    model = model_of.PixelStudent(128, arch.latent_dim, arch.n_layers, arch.n_heads, arch.feedforward).cuda().eval()
    s2, s2_doy, valid, s1, s1_doy, descending = repeat(chip, 1 << 14)
    s2, valid, s1 = (np.moveaxis(a, 0, 1).reshape(a.shape[1], 64, -1, *a.shape[2:]).astype(t) for a, t in
                     ((s2, np.float32), (valid, np.uint8), (s1, np.float32)))  # fmt: skip
    radar = (s1[~descending], s1_doy[~descending], s1[descending], s1_doy[descending])

    def run(batch, mixed):
        with torch.autocast("cuda", torch.bfloat16) if mixed else nullcontext():
            infer.encode_tile(model, s2, s2_doy, valid, *radar, batch_pixels=batch, device=torch.device("cuda"))

    found = {}
    for name, batch, mixed in (("peer", 1024, False), ("peer_bf16", 4096, True)):
        run(batch, mixed)
        found[name] = (1 << 14) / clock(lambda: run(batch, mixed))  # noqa: B023
    return found


def matrix_rate():
    """Return the floating-point operations a second of a bfloat16 product of random matrices."""
    a, b = (torch.randn(SIZE, SIZE, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return 2 * SIZE**3 / on_device(lambda: a @ b, 10)


def copy_rate():
    """Return the TB/s of a copy inside the device, bytes read and written."""
    a = torch.randint(0, 255, (1 << 31,), dtype=torch.uint8, device="cuda")
    b = torch.empty_like(a)
    return round(2 * a.numel() / on_device(lambda: b.copy_(a), 10) / 1e12, 2)


def upload_rate():
    """Return the GB/s of a copy from pinned memory."""
    a = torch.empty(1 << 28, dtype=torch.uint8, pin_memory=True)
    b = torch.empty_like(a, device="cuda")
    return round(a.numel() / on_device(lambda: b.copy_(a, non_blocking=True), 5) / 1e9, 1)


def on_device(function, repeats):
    """Return the mean seconds of a call on the device."""
    for _ in range(3):
        function()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
    events[0].record()
    for _ in range(repeats):
        function()
    events[1].record()
    torch.cuda.synchronize()
    return events[0].elapsed_time(events[1]) / 1e3 / repeats


def clock(function):
    """Return the seconds of a call, the device's work included."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    torch.cuda.synchronize()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
