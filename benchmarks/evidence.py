"""How good maps from few labels are on real places, held out honestly: `python -m benchmarks.evidence [--data FOLDER]`.

Caldor comes with the package. Flanders (crops by parcel, and across years) is read from FOLDER, ../shared/data if not
told. Prints tables in Markdown.
"""

import argparse
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

import tessera_xr as txr
from tessera_xr.errors import TesseraWarning
from tessera_xr.learning.samples import LabelSample

YEARS = (2018, 2019)
FEWEST = 3
"""Parcels that a crop must have in the chip to be judged by held-out parcels."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the Flanders chip")
    parser.add_argument("--draws", type=int, default=10, help="draws of folds and labels")
    options = parser.parse_args()
    warnings.simplefilter("ignore", TesseraWarning)
    caldor(options.draws)
    conformal(6 * options.draws)
    if (options.data / "flanders").is_dir():
        flanders(options.data / "flanders", options.draws)
    else:
        print(f"\nNo {options.data / 'flanders'}: Flanders is left out; name its folder with --data.")


# Caldor ---------------------------------------------------------------------------------------------------------------


def burnt() -> tuple[xr.Dataset, LabelSample]:
    """Return the embeddings of 2022, and every pixel as lost in 2021 or not."""
    emb = txr.tutorial.embeddings().sel(time=2022)
    lost = txr.tutorial.labels().lossyear == 21
    names = {True: "lost in 2021", False: "not lost in 2021"}
    return emb, txr.LabelSet.from_raster(lost, names=names, shapes="points", n_per_class=4096).sample(emb)


def caldor(n_draws: int) -> None:
    print("\n## Caldor: forest lost in 2021, from 5, 20 and 100 pixels a class, blocks held out\n")
    emb, sample = burnt()
    table = txr.evaluate(
        emb, sample, ["logistic", "knn", "forest", "mlp"], fractions=(5, 20, 100), n_draws=n_draws, progress=False
    )
    show(table, ["auc", "macro_f1", "accuracy"])


def conformal(n_draws: int) -> None:
    """Cover held-out blocks: a fifth of them, the rest fit and calibrate."""
    print("\n## Caldor: how often conformal sets hold the truth, on blocks held out from fit and calibration\n")
    _, sample = burnt()
    rows = []
    for confidence in (0.8, 0.9):
        found = []
        for seed in range(n_draws):
            folds = txr.spatial_folds(sample, 5, block=80, seed=seed)
            train, test = next(iter(folds.split()))
            fitted = txr.fit_conformal(None, sample.take(train), confidence=confidence, seed=seed)
            found.append(fitted.coverage(None, sample.take(test)).loc["all", ["coverage", "set_size"]])
        table = pd.DataFrame(found)
        error = table["coverage"].std(ddof=1) / np.sqrt(len(table))
        rows.append(
            [f"{confidence:.0%}", f"{table['coverage'].mean():.1%}", f"{error:.1%}", f"{table['set_size'].mean():.2f}"]
        )
    markdown(["nominal", f"found, mean of {n_draws} draws", "standard error", "mean size of a set"], rows)


# Flanders -------------------------------------------------------------------------------------------------------------


def flanders(folder: Path, n_draws: int) -> None:
    years = {year: parcels_of(folder, year) for year in YEARS}
    for year, (inputs, labels) in years.items():
        print(f"\n## Flanders {year}: crops by held-out parcels\n")
        start = time.perf_counter()
        table = txr.evaluate(
            None, labels, ["logistic", "forest"], folds="polygon", n_folds=FEWEST, n_draws=n_draws, inputs=inputs,
            progress=False,
        )  # fmt: skip
        show(table, ["macro_f1", "weighted_f1", "balanced_accuracy"])
        print(f"\n{table.attrs['n_pixels']:,} pixels, {table.attrs['folds']}; {time.perf_counter() - start:.0f} s")
    print("\n## Flanders: trained on one year, judged on the other\n")
    across(years)


def parcels_of(folder: Path, year: int) -> tuple[dict[str, xr.Dataset], txr.LabelSet]:
    """Return what is compared, and the parcels of crops that have enough of them."""
    s2, s1 = (xr.open_dataset(folder / f"s{n}_{year}.nc", engine="h5netcdf").load() for n in (2, 1))
    cube = txr.as_cube(s2, s1, period=year)
    emb = txr.embed(cube, "mini", period=year, progress=False)
    inputs = {"mini": emb, "mini, int8": txr.quantize(emb)}
    inputs |= {f"mini, {n} dims": txr.first_dims(emb, n) for n in (64, 32, 16)}
    inputs["raw medians"] = txr.seasonal_medians(cube, period=year)
    with xr.open_dataset(folder / f"labels_{year}.nc", engine="h5netcdf") as ds:
        crops = ds["crop_type"].load().astype(np.int32)
    crops = crops.assign_coords(y=emb["y"], x=emb["x"]).odc.assign_crs(emb.odc.crs)
    names = pd.read_csv(folder / "crop_type_names.csv").set_index("croptype")["name"].to_dict()
    names = {int(code): names.get(int(code), str(code)) for code in np.unique(crops) if code}
    labels = txr.LabelSet.from_raster(crops, names=names)
    counts = pd.Series([label.value for label in labels]).value_counts()
    for name in counts.index[counts < FEWEST]:
        labels.remove_class(name, with_labels=True)
    return inputs, labels


def across(years: dict[int, tuple[dict[str, xr.Dataset], txr.LabelSet]]) -> None:
    """Fit on all parcels of one year, judge by all of the other; crops that both have."""
    shared = set.intersection(*(set(labels.classes) for _, labels in years.values()))
    rows = []
    for first, second in (YEARS, YEARS[::-1]):
        for name in years[first][0]:
            samples = [years[year][1].sample(years[year][0][name]) for year in (first, second)]
            learnt, judged = (s.take(np.isin(s.y, list(shared))) for s in samples)
            for model in ("logistic", "forest"):
                found = txr.fit_head(None, learnt, model).score(None, judged)
                low, high = found.intervals["macro_f1"]
                cells = [
                    f"{found.scores['macro_f1']:.3f} ({low:.2f} to {high:.2f})",
                    f"{found.scores['weighted_f1']:.3f}",
                ]
                rows.append([f"{first} to {second}", name, model, *cells, f"{found.scores['balanced_accuracy']:.3f}"])
    print(f"Crops: {', '.join(sorted(shared))}. Intervals: 95 %, by parcels of the year that is judged.\n")
    markdown(["years", "input", "head", "macro F1", "weighted F1", "balanced accuracy"], rows)


# Tables ---------------------------------------------------------------------------------------------------------------


def show(table: pd.DataFrame, scores: list[str]) -> None:
    """Print a table of `evaluate`: scores with their intervals, and the gap to random pixels."""
    rows = []
    for (inputs, head, fraction), row in table.iterrows():
        cells: list[Any] = [inputs, head, f"{fraction:g}"]
        for score in scores:
            interval = f" ({row[f'{score}_low']:.2f} to {row[f'{score}_high']:.2f})" if f"{score}_low" in row else ""
            cells.append(f"{row[score]:.3f}{interval}")
        rows.append([*cells, f"{row['macro_f1_random']:.3f}", f"{row['gap']:+.3f}"])
    markdown(
        ["input", "head", "labels", *(s.replace("_", " ") for s in scores), "macro F1, random pixels", "gap"], rows
    )


def markdown(heads: list[str], rows: list[list[Any]]) -> None:
    print("| " + " | ".join(heads) + " |\n|" + "---|" * len(heads))
    for row in rows:
        print("| " + " | ".join(map(str, row)) + " |")


if __name__ == "__main__":
    main()
