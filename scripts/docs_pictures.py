"""Draw the pictures of the documentation from bundled data: `python -m scripts.docs_pictures [FOLDER]`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("agg")

import matplotlib.pyplot as plt
import numpy as np

import tessera_xr as txr

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "pictures"
STYLE = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "savefig.dpi": 110,
    "savefig.bbox": "tight",
    "figure.constrained_layout.use": True,
}
GREEN, BROWN, GREY = "#1f6f54", "#b2561b", "#9aa5ad"


def dpixel() -> Any:
    """NDVI of one field through a year, and two random samplings of its clear dates."""
    cube = txr.tutorial.cube(32)
    names = cube.land_cover.attrs["flag_meanings"].split()
    maize = cube.land_cover.attrs["flag_values"][names.index("maize")]
    row, column = np.argwhere(cube.land_cover.values == maize)[10]
    series, _ = txr.pixel_series(cube, *_lonlat(cube.isel(y=[row], x=[column])))
    clear = series[series.clear]
    rng = np.random.default_rng(3)
    figure, panels = plt.subplots(1, 2, figsize=(9, 2.6), sharey=True)
    for panel, name, colour in zip(panels, ("one sampling", "another"), (GREEN, BROWN), strict=True):
        cloudy = series[~series.clear]
        panel.plot(cloudy.index, cloudy.ndvi, "x", color=GREY, ms=4, label="cloudy: masked")
        panel.plot(clear.index, clear.ndvi, "o", mfc="none", color=GREY, ms=4, label="clear")
        drawn = clear.iloc[np.sort(rng.choice(len(clear), 14, replace=False))]
        panel.plot(drawn.index, drawn.ndvi, "o-", color=colour, ms=5, lw=1, label=name)
        panel.set_ylim(-0.15, 1)
        panel.xaxis.set_major_locator(mpl.dates.MonthLocator(bymonth=(1, 4, 7, 10)))
        panel.xaxis.set_major_formatter(mpl.dates.DateFormatter("%b"))
        panel.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
    panels[0].set_ylabel("NDVI")
    return figure


def _lonlat(point: Any) -> tuple[float, float]:
    box = point.odc.geobox.extent.to_crs("EPSG:4326").centroid.points[0]
    return float(box[0]), float(box[1])


def folds() -> Any:
    """Labels in blocks by the fold that holds them out, and what blocks and random pixels say of one head."""
    emb = txr.tutorial.embeddings().sel(time=2022)
    lost = txr.tutorial.labels().lossyear == 21
    labels = txr.LabelSet.from_raster(lost, names={True: "lost", False: "kept"}, shapes="points", n_per_class=100)
    sample = labels.sample(emb)
    figure, (where, score) = plt.subplots(1, 2, figsize=(9, 3.4), width_ratios=(1, 1.5))
    where.imshow(emb.tessera.rgb().values, extent=_extent(emb), alpha=0.45)
    colours = mpl.colormaps["Dark2"].colors
    for number, (_, held) in enumerate(txr.spatial_folds(sample, 5).split(sample.X, sample.y, sample.groups)):
        where.plot(sample.x_map[held], sample.y_map[held], "o", ms=4, mec="white", mew=0.4, color=colours[number])
    where.set(xticks=[], yticks=[], title="held out together, by colour")
    where.spines[:].set_visible(False)
    table = emb.tessera.evaluate(labels, "knn", fractions=(5, 20, 60), n_draws=5, progress=False).reset_index()
    place = np.arange(len(table))
    error = np.abs(table[["macro_f1_low", "macro_f1_high"]].to_numpy().T - table.macro_f1.to_numpy())
    score.errorbar(place, table.macro_f1, error, fmt="o", color=GREEN, capsize=3, label="blocks held out (95 %)")
    score.plot(place, table.macro_f1_random, "D", mfc="none", color=BROWN, label="random pixels held out")
    score.set_xticks(place, [f"{n:g}" for n in table.fraction])
    score.set(xlabel="labels a class", ylabel="macro F1 of nearest neighbours", xlim=(-0.4, len(table) - 0.6))
    score.legend(frameon=False, loc="lower right")
    return figure


def _extent(emb: Any) -> tuple[float, float, float, float]:
    left, bottom, right, top = emb.odc.geobox.boundingbox
    return left, right, bottom, top


def caldor() -> Any:
    """Two years of the Caldor sample, how far each pixel moved between them, and one similarity map."""
    emb = txr.tutorial.embeddings()
    colours = txr.fit_components(emb, 3).rgb(emb)
    figure, panels = plt.subplots(1, 4, figsize=(11, 3))
    for panel, year in zip(panels, (2020, 2022), strict=False):
        panel.imshow(colours.sel(time=year).values)
        panel.set_title(f"embeddings of {year}")
    moved = panels[2].imshow(emb.tessera.change(2020, 2022).values, cmap="magma")
    panels[2].set_title("change, 2020 to 2022")
    like = panels[3].imshow(
        emb.tessera.similarity((-120.3375, 38.6890), time=2022).sel(time=2022).values, cmap="viridis"
    )
    panels[3].set_title("similarity to one place")
    for panel in panels:
        panel.set(xticks=[], yticks=[])
    for panel, drawn in ((panels[2], moved), (panels[3], like)):
        figure.colorbar(drawn, ax=panel, shrink=0.7)
    return figure


def main(folder: Path) -> None:
    """Draw all of them."""
    folder.mkdir(parents=True, exist_ok=True)
    for draw in (dpixel, folds, caldor):
        with mpl.rc_context(STYLE):
            figure = draw()
            figure.savefig(folder / f"{draw.__name__}.png", metadata={"Software": None}, pil_kwargs={"optimize": True})
            plt.close(figure)
        print(folder / f"{draw.__name__}.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
