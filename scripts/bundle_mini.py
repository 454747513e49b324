"""Put a trained encoder into the package as the model "mini": `python scripts/bundle_mini.py ENCODER_FILE`.

The file is checked and written in half precision to tessera_xr/data/mini/, with the curves of its training that lie
beside it; what the registry must know of it is written to tessera_xr/encoder/bundled.py. How much half precision
changes embeddings is told at the end.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from tessera_xr.embedding.engine import encode
from tessera_xr.encoder.checkpoints import load_encoder
from tessera_xr.encoder.files import KEY, read_encoder_file, save_encoder
from tessera_xr.encoder.network import TesseraEncoder
from tessera_xr.encoder.registry import MATRYOSHKA, NANO, ModelRecord, Statistics
from tessera_xr.sentinel.simulate import simulate_pixels

PACKAGE = Path(__file__).resolve().parents[1] / "tessera_xr"
FILE, FACTS = PACKAGE / "data" / "mini" / "mini.safetensors", PACKAGE / "encoder" / "bundled.py"
MOST_PARAMETERS = 1_100_000
N_PIXELS, SEED = 512, 7


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("encoder", type=Path, help="a file that save_encoder or pretrain wrote")
    print(bundle(parser.parse_args().encoder))


def bundle(source: Path, file: Path = FILE, facts: Path = FACTS) -> str:
    """Write the encoder and its facts; return what was done in words."""
    record, state = read_encoder_file(source)
    recipe = read_recipe(source)
    if faults := [*find_faults(record, state), *find_gaps(recipe)]:
        raise SystemExit(f"{source} can't be bundled: {'; '.join(faults)}")
    network = TesseraEncoder(record.arch)
    network.load_state_dict({key: weight.float() for key, weight in state.items()})
    before = embeddings(source)
    file.parent.mkdir(parents=True, exist_ok=True)
    save_encoder(
        file, network, record.statistics, name="mini", matryoshka=record.matryoshka, licence="MIT",
        recipe=recipe, half=True,
    )  # fmt: skip
    if (curves := source.with_name("curves.png")).is_file():
        shutil.copy(curves, file.with_name("curves.png"))
    facts.write_text(render(file, record.statistics), encoding="utf-8")
    change = 1 - cosines(before, embeddings(file))
    return (
        f"{file}: {file.stat().st_size:,} bytes, {record.n_parameters:,} parameters; {facts} says so.\n"
        f"Half precision changes embeddings of {N_PIXELS} simulated d-pixels by at most {change.max():.1e} "
        f"(1 - cosine), in the median by {np.median(change):.1e}."
    )


def find_faults(record: ModelRecord, state: dict[str, Any]) -> list[str]:
    """Return what speaks against an encoder as the bundled one."""
    found = []
    if record.family != "v2" or record.arch != NANO:
        found.append(f"it is of family {record.family} with {record.arch}, the registry's mini is v2 with {NANO}")
    if record.n_parameters > MOST_PARAMETERS:
        found.append(f"it has {record.n_parameters:,} parameters, at most {MOST_PARAMETERS:,} are allowed")
    if record.matryoshka != MATRYOSHKA:
        found.append(f"its shorter lengths are {record.matryoshka}, not {MATRYOSHKA}")
    if broken := [key for key, weight in state.items() if not weight.isfinite().all()]:
        found.append(f"weights are not finite in {broken[:5]}")
    return found


def find_gaps(recipe: dict[str, Any]) -> list[str]:
    """Return whether the training that made it was cut short."""
    done, wanted = recipe.get("steps"), recipe.get("settings", {}).get("steps")
    return [f"its training stopped after {done} of {wanted} updates"] if wanted and done != wanted else []


def read_recipe(path: Path) -> dict[str, Any]:
    """Return how an encoder was trained, as its file tells."""
    with safe_open(path, framework="pt") as file:
        recipe: dict[str, Any] = json.loads(file.metadata()[KEY])["recipe"]
    return recipe


def embeddings(path: Path) -> np.ndarray:
    """Return the embeddings of simulated d-pixels, of those that were ever seen."""
    pixels = simulate_pixels(N_PIXELS, seed=SEED)
    encoder = load_encoder(path, device="cpu", precision="float32")
    days = pixels.s1_doy, pixels.s1_orbit == "descending"
    out = encode(encoder, pixels.s2, pixels.s2_doy, pixels.s2_valid, pixels.s1, *days, dims=encoder.record.n_dims)
    return out.values[np.isfinite(out.values).all(axis=1)]


def cosines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the cosine of each pair of rows."""
    a, b = (rows.astype(np.float64) / np.linalg.norm(rows.astype(np.float64), axis=1)[:, None] for rows in (one, other))
    return (a * b).sum(axis=1)


def render(file: Path, statistics: Statistics) -> str:
    """Return the module that holds what the registry knows of the file, as `ruff format` leaves it."""
    lines = [
        f'"""What `data/mini/{file.name}` is; written by `scripts/bundle_mini.py`, not by hand."""',
        "",
        f"N_BYTES = {file.stat().st_size:_}",
        f'SHA256 = "{hashlib.sha256(file.read_bytes()).hexdigest()}"',
    ]
    for name in ("s2_mean", "s2_std", "s1_ascending", "s1_descending"):
        values = getattr(statistics, name)
        lines += [f"{name.upper()} = (", *(f"    {value!r}," for value in values), ")"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
