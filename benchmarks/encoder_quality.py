"""How good the encoder in the package is, on places that it has not seen: `python -m benchmarks.encoder_quality`.

Few labels (1, 5, 10, 50 a class, 20 draws), logistic regression and random forest, judged by balanced accuracy on
parcels or regions of their own, never on random pixels: embeddings beside raw monthly medians, annual features,
harmonics and an untrained network of the same shape. Then what happens when clear dates, radar or an orbit are
missing, when embeddings are int8 or cut short, and (with --ablations STEPS) when parts of the recipe are left out.
Real d-pixels are read from --data, TESSERA_XR_DATA or ../shared/data; without them only simulated ones are judged.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.quality import pixels as sets
from benchmarks.quality import robustness as worse
from benchmarks.quality.ablations import ablations
from benchmarks.quality.describe import described, embeddings, markdown, pair, scored
from benchmarks.quality.features import annual_features, harmonics, raw_medians
from benchmarks.quality.fewshot import DRAWS, SHOTS, Task, accuracies
from tessera_xr.encoder.checkpoints import load_encoder
from tessera_xr.encoder.files import save_encoder
from tessera_xr.encoder.network import TesseraEncoder

BASELINES = {"raw medians": raw_medians, "annual features": annual_features, "harmonics": harmonics}
HEADS = {"LR": "logistic", "RF": "forest"}
DIMS = (16, 32, 64, 128)
ROBUST_SHOTS = 10
MARKS = ("<!-- evaluation -->", "<!-- end of evaluation -->")
N_SIMULATED, SEED = 4096, 2_000_003  # simulated places that no training has seen
Scores = dict[tuple[str, str, int], np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="mini", help="a name or a file of weights")
    parser.add_argument("--data", type=Path, help="folder of real d-pixels; TESSERA_XR_DATA or ../shared/data if there")
    parser.add_argument("--draws", type=int, default=DRAWS)
    parser.add_argument("--ablations", type=int, metavar="STEPS", help="also train seven small encoders, so long each")
    parser.add_argument("--card", type=Path, help="write the tables between the marks of this model card")
    options = parser.parse_args()
    if options.draws < 2:
        parser.error("--draws must be 2 or more: the spread over draws is reported")
    if options.card and options.model != "mini":
        parser.error("--card is the model card of mini; leave it out for another model")
    begun = time.perf_counter()
    data = data_folder(options.data)
    tasks = real_tasks(data) if data else []
    tasks.append(Task("Simulated", sets.simulated(N_SIMULATED, SEED), kind="simulated"))
    parts = []
    for part in report(tasks, data, options):
        print(f"{part}\n\n({time.perf_counter() - begun:.0f} s so far)\n", flush=True)
        parts.append(part)
    if options.card:
        write_card(options.card, "\n\n".join(parts))


def data_folder(given: Path | None) -> Path | None:
    """Return the folder of real d-pixels: the one named must be there, the usual one may be missing."""
    named = given or os.environ.get("TESSERA_XR_DATA")
    if named:
        return sets.check_data(Path(named))
    usual = Path("../shared/data")
    if usual.is_dir():
        return sets.check_data(usual)
    print("no real d-pixels: simulated ones alone (see --data)")
    return None


def report(tasks: list[Task], data: Path | None, options: argparse.Namespace) -> Iterator[str]:
    """Yield the parts of the report as they are done."""
    with tempfile.TemporaryDirectory() as folder:
        untrained = untrained_encoder(options.model, Path(folder))
        yield few_shot_report(tasks, options.model, untrained, options.draws)
    yield robustness_report(tasks, options.model, options.draws)
    if options.ablations:
        yield ablations(tasks, data, options.ablations, options.draws)


def real_tasks(data: Path) -> list[Task]:
    """Return the tasks on real d-pixels: parcels of Flanders, also from one year and place to the other; regions."""
    chips = [sets.flanders(data, year) for year in sets.YEARS]
    known, held = ([c.take((c.labels != "") & (c.held == which)) for c in chips] for which in (False, True))
    tasks = [Task(c.name, known[i], held[i]) for i, c in enumerate(chips)]
    tasks += [Task(f"{chips[i].name} to {sets.YEARS[1 - i]}", known[i], held[1 - i]) for i in (0, 1)]
    tables = [
        sets.uganda(data),
        sets.france(data, "Corsica 2022", "corsica_2022_month", 2022, 30),
        sets.france(data, "SW France 2023", "southwest_france_2023_dekad", 2023, 10),
    ]
    return tasks + [Task(t.name, t) for t in tables]


def untrained_encoder(model: str, folder: Path) -> str:
    """Return the file of a network of the same shape and statistics that was never trained."""
    record = load_encoder(model).record
    torch.manual_seed(0)
    network = TesseraEncoder(record.arch)
    return str(save_encoder(folder / "untrained.safetensors", network, record.statistics, name="untrained"))


def few_shot_report(tasks: list[Task], model: str, untrained: str, n: int) -> str:
    describe = {"mini": partial(embeddings, model), "untrained": partial(embeddings, untrained)} | BASELINES
    found = {name: described(tasks, way) for name, way in describe.items()}
    jobs = [(t, name, head, k) for t in tasks for name in found for head in HEADS for k in SHOTS]
    values = scored((t, pair(t, found[name], scale=name in BASELINES), HEADS[head], k, n) for t, name, head, k in jobs)
    scores = {(t.name, f"{name}, {head}", k): v for (t, name, head, k), v in zip(jobs, values, strict=True)}
    real = [t.name for t in tasks if t.kind == "real"]
    parts = [f"### {t.name}: {len(t.classes)} classes\n\n{few_shot_table(scores, [t.name])}" for t in tasks]
    if real:
        parts.insert(0, f"### Mean of the real tasks\n\n{few_shot_table(scores, real)}")
    parts.append(f"### mini, LR less others\n\n{differences(scores, [t.name for t in tasks])}")
    return f"## Few labels\n\nBalanced accuracy in percent, mean of {n} draws.\n\n" + "\n\n".join(parts)


def few_shot_table(scores: Scores, tasks: list[str]) -> str:
    """Return a row for each description and head, a column for each number of labels; of several tasks the mean."""
    ways = dict.fromkeys(way for _, way, _ in scores)
    rows = {
        way: {f"{k} a class": 100 * float(np.mean([scores[t, way, k].mean() for t in tasks])) for k in SHOTS}
        for way in ways
    }
    return markdown(rows, "description, head")


def differences(scores: Scores, tasks: list[str]) -> str:
    """Return paired differences in points, with twice their standard error over the draws: of the same few groups."""
    rows: dict[str, dict[str, str]] = {task: {} for task in tasks}
    for task in tasks:
        for other in ("raw medians, RF", "untrained, LR"):
            for k in SHOTS[:3]:
                d = 100 * (scores[task, "mini, LR", k] - scores[task, other, k])
                half = 1.96 * d.std(ddof=1) / len(d) ** 0.5
                rows[task][f"{other}, {k}"] = f"{d.mean():+.1f} ± {half:.1f}"
    return markdown(rows, "task")


def robustness_report(tasks: list[Task], model: str, n: int) -> str:
    native = [t for t in tasks if t.name in ("Flanders 2018", "Flanders 2019", "Simulated")]
    parts = [degraded_table(native, model, n), compact_table(tasks, model, n), agreement_table(native, model)]
    return "## Fewer dates, no radar, fewer bits\n\n" + "\n\n".join(parts)


def degraded_table(tasks: list[Task], model: str, n: int) -> str:
    """Judge pixels seen worse by heads that learned from pixels seen well."""
    ways: dict[str, Callable[[sets.Pixels], sets.Pixels]] = {
        "all dates": lambda p: p,
        "half of the clear dates": worse.half_clear,
    }
    ways |= {f"at most {k} clear dates": partial(worse.keep_clear, n=k) for k in worse.CLEAR}
    ways["no Sentinel-1"] = worse.without_radar
    rows: dict[str, dict[str, float]] = {name: {} for name in ways}
    for task in tasks:
        x, full = embeddings(model, task.train), embeddings(model, task.judged)
        for name, way in ways.items():
            rows[name] |= judged_as(task, x, full, embeddings(model, way(task.judged)), n)
        if task.kind == "simulated":  # Flanders has ascending passes alone
            one, other = (embeddings(model, worse.one_orbit(task.judged, o)) for o in ("ascending", "descending"))
            rows["ascending alone, heads too"] = judged_as(task, one, full, one, n)
            rows["descending alone, heads of ascending"] = judged_as(task, one, one, other, n)
    text = f"Accuracy from {ROBUST_SHOTS} labels a class on whole years, in percent; mean cosine to the whole year"
    text += " (descending to ascending in the last row)."
    return f"{text}\n\n{markdown(rows, 'seen', digits=2)}"


def judged_as(task: Task, x: np.ndarray, full: np.ndarray, seen: np.ndarray, n: int) -> dict[str, float]:
    accuracy = 100 * accuracies(task, (x, seen), "logistic", ROBUST_SHOTS, n).mean()
    return {task.name: float(accuracy), f"{task.name}, cosine": float(worse.cosine(full, seen).mean())}


def compact_table(tasks: list[Task], model: str, n: int) -> str:
    """Compare int8 and the first values alone with all 128 in float32."""
    ways = {f"{k} values": partial(embeddings, model, dims=k) for k in DIMS}
    ways["128 values, int8"] = partial(embeddings, model, dtype="int8")
    found = {name: described(tasks, way) for name, way in ways.items()}
    jobs = [(t, name, k) for t in tasks for name in ways for k in SHOTS]
    values = scored((t, pair(t, found[name]), "logistic", k, n) for t, name, k in jobs)
    rows: dict[str, dict[str, float]] = {name: {} for name in ways}
    for kind in dict.fromkeys(t.kind for t in tasks):
        chance = np.mean([1 / len(t.classes) for t in tasks if t.kind == kind])
        means = {
            name: np.mean([v.mean() for (t, w, _), v in zip(jobs, values, strict=True) if (t.kind, w) == (kind, name)])
            for name in ways
        }
        for name, mean in means.items():
            kept = (mean - chance) / (means[f"{DIMS[-1]} values"] - chance)
            rows[name] |= {kind: 100 * float(mean), f"{kind}, gain kept": 100 * float(kept)}
    text = "Mean accuracy over tasks and numbers of labels, and the share kept of the gain over chance, in percent."
    return f"{text}\n\n{markdown(rows, 'embedding', digits=2)}"


def agreement_table(tasks: list[Task], model: str) -> str:
    """Return the cosine of two samplings of the same pixel, and of pixels of different covers."""
    rows = {}
    for task in tasks:
        two = [embeddings(model, worse.sampled(task.judged, 40, seed)) for seed in (1, 2)]
        halves = [embeddings(model, half) for half in worse.disjoint_halves(task.judged)]
        same, differ = worse.cosine(*two), worse.apart(embeddings(model, task.judged), task.judged.labels)
        rows[task.name] = {
            "two samplings of 40 dates": float(same.mean()),
            "5 % of pixels below": float(np.quantile(same, 0.05)),
            "two halves without a common date": float(worse.cosine(*halves).mean()),
            "different covers": float(differ.mean()),
            "margin": float(same.mean() - differ.mean()),
        }
    return f"Mean cosine.\n\n{markdown(rows, 'task', digits=3)}"


def write_card(path: Path, text: str) -> None:
    """Replace what stands between the marks of a model card."""
    before, opening, rest = path.read_text(encoding="utf-8").partition(MARKS[0])
    _, closing, after = rest.partition(MARKS[1])
    if not opening or not closing:
        raise SystemExit(f"{path} needs lines {MARKS[0]} and {MARKS[1]} to write between")
    path.write_text(f"{before}{MARKS[0]}\n\n{text}\n\n{MARKS[1]}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
