"""The command `tessera-xr`: each command is a call or two of the library."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import xarray as xr

import tessera_xr as txr
from tessera_xr.errors import CubeError, SchemaError, TesseraError, TesseraWarning


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    chosen = vars(_parser().parse_args(arguments))
    command: Callable[..., None] = chosen.pop("run")
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: print(f"Note: {message}", file=sys.stderr)
            warnings.simplefilter("ignore")
            warnings.simplefilter("always", TesseraWarning)
            command(**chosen)
    except BrokenPipeError:  # the reader of our output went away, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (TesseraError, OSError) as error:
        print(f"Error: {str(error).replace('overwrite=True', '--overwrite')}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted; nothing half-written looks whole.", file=sys.stderr)
        return 130
    return 0


# What can be said ----------------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tessera-xr", description="TESSERA embeddings of Sentinel cubes.")
    parser.add_argument("--version", action="version", version=txr.__version__)
    commands = parser.add_subparsers(metavar="command", required=True)

    def command(run: Callable[..., None], text: str) -> argparse.ArgumentParser:
        found = commands.add_parser(run.__name__, help=text, description=f"{text[0].upper()}{text[1:]}.")
        found.set_defaults(run=run)
        return found

    _add_imagery(command(demo, "a cube to embeddings to a first map"), out=Path("demo"))
    options = command(embed, "embed a cube: files, or an area and a year from a STAC catalogue")
    _add_imagery(options, s1="; with --bbox, its catalogue where that isn't --source")
    _add_area(options)
    options.add_argument("--source", default="earth-search", help="catalogue: earth-search or planetary-computer")
    options.add_argument("--weights", help="the file of the model's weights, where it isn't found by itself")
    options.add_argument("--dims", type=int, help="only the first 16, 32 or 64 values of a v2 model")
    options.add_argument("--device", default="auto", help="cpu, cuda, mps, xpu or auto")
    _add_out(options, "is written region by region; the same command continues what was interrupted")
    options = command(published, "fetch published embeddings of an area")
    _add_area(options, required=True)
    options.add_argument("--years", nargs="+", type=int, required=True, metavar="YEAR")
    options.add_argument("--version", help="which embeddings, such as v1.1 or v2-2B-L~beta2")
    options.add_argument("--store", help="address or folder of another store")
    options.add_argument("--dims", type=int, help="only the first 16, 32 or 64 values of v2 embeddings")
    _add_out(options, "holds all years; GeoTIFFs hold one each")
    command(models, "list the models")
    options = command(doctor, "say what this machine has, what works on it, and what to install for the rest")
    options.add_argument("--online", action="store_true", help="also ask the sites that data and weights come from")
    options.add_argument("--json", action="store_true", dest="as_json", help="print JSON")
    return parser


def _add_imagery(options: argparse.ArgumentParser, out: Path | None = None, s1: str = "") -> None:
    options.add_argument("--s2", help="Sentinel-2: a netCDF file, a Zarr store or a d-pixel tile folder")
    options.add_argument("--s1", help=f"Sentinel-1: a netCDF file or a Zarr store{s1}")
    options.add_argument("--period", help="a year (2024) or dates (2023-10-01/2024-09-30)")
    options.add_argument("--model", default="mini", help="a name (see 'tessera-xr models') or a file of weights")
    if out is not None:
        options.add_argument("--out", type=Path, default=out, help="folder for what is written")


def _add_area(options: argparse.ArgumentParser, *, required: bool = False) -> None:
    names = ("WEST", "SOUTH", "EAST", "NORTH")
    options.add_argument("--bbox", nargs=4, type=float, metavar=names, required=required, help="area, in degrees")


def _add_out(options: argparse.ArgumentParser, of_a_store: str) -> None:
    options.add_argument("--out", type=Path, required=True, help=f"NAME.zarr or NAME.tif; a Zarr store {of_a_store}")
    options.add_argument("--overwrite", action="store_true", help="replace a store that is there already")


# What is done --------------------------------------------------------------------------------------------------------


def models() -> None:
    """List the models."""
    print(txr.models().to_string())


def doctor(*, online: bool, as_json: bool) -> None:
    """Say what this machine has, and what works on it."""
    from tessera_xr.doctor import describe, examine

    report = examine(online=online)
    print(json.dumps(report, indent=2) if as_json else describe(report))


def embed(
    s2: str | None,
    s1: str | None,
    bbox: Sequence[float] | None,
    source: str,
    period: str | None,
    out: Path,
    *,
    overwrite: bool,
    **options: Any,
) -> None:
    """Embed the cube of some files, or of an area and a period, into a Zarr store or a GeoTIFF."""
    is_store = _is_store(out)
    if bbox is None:
        if s2 is None and s1 is None:
            raise CubeError("say what to embed: files, with --s2 and --s1, or an area, with --bbox and --period")
        cube, period = _cut(_read_cube(s2, s1), period)
    else:
        if s2 is not None:
            raise CubeError(
                "--s2 is a file, and --bbox asks a catalogue; leave one away (--source names the catalogue)"
            )
        if period is None:
            raise CubeError("an area needs a --period: a year, such as 2024, or dates, such as 2023-10-01/2024-09-30")
        from tessera_xr.sentinel.stac import load_cube

        cube = load_cube(bbox, period, source, s1=s1 or True)
    print(cube.tessera, end="\n\n", flush=True)
    if is_store:
        from tessera_xr.embedding.large.embed import embed_to_zarr

        emb = embed_to_zarr(cube, out, period=period, overwrite=overwrite, **options)
    else:
        emb = txr.embed(cube, period=period, **options).compute()
        emb.tessera.to_geotiff(out)
    print(emb.tessera, end="\n\n")
    print("Wrote", out)


def published(
    bbox: Sequence[float],
    years: Sequence[int],
    version: str | None,
    store: str | None,
    dims: int | None,
    out: Path,
    *,
    overwrite: bool,
) -> None:
    """Fetch published embeddings of an area and some years into a Zarr store or GeoTIFFs."""
    from tessera_xr.embedding.published.opening import open_published
    from tessera_xr.export import to_geotiff, to_zarr

    is_store = _is_store(out)
    emb = open_published(bbox, years, version=version, store=store, dims=dims)
    print(emb.tessera, end="\n\n", flush=True)
    if is_store:
        written = [to_zarr(emb, out, overwrite=overwrite)]
    else:
        names = [out] if len(years) == 1 else [out.with_stem(f"{out.stem}_{year}") for year in years]
        written = [to_geotiff(emb.sel(time=year), name) for year, name in zip(years, names, strict=True)]
    print("Wrote", ", ".join(map(str, written)))


def demo(s2: str | None, s1: str | None, period: str | None, model: str, out: Path) -> None:
    """Embed a cube (a simulated one without files) and write a first map of it, PNG and GeoTIFF, into `out`."""
    from tessera_xr.embedding.schema import OFFICIAL
    from tessera_xr.encoder.registry import UNOFFICIAL
    from tessera_xr.grid import crs_name
    from tessera_xr.views.render import save_figure, true_colour

    start = time.perf_counter()
    cube, period = _cut(txr.tutorial.cube() if s2 is None and s1 is None else _read_cube(s2, s1), period)
    print(cube.tessera, end="\n\n", flush=True)
    read = time.perf_counter()
    emb = txr.embed(cube, model, period=period).compute()
    embedded = time.perf_counter()
    picture = emb.tessera.rgb()
    note = f"\n({UNOFFICIAL})" if OFFICIAL in emb.attrs else ""
    heading = f"{emb.attrs['model']}, {emb.attrs['period']}, {crs_name(emb.odc.crs)}{note}"
    pictures = {"Sentinel-2, median of the clear dates": true_colour(cube)} if cube.sizes["s2_time"] else {}
    save_figure({**pictures, "Embeddings, first three components": picture}, out / "map.png", heading)
    picture.tessera.to_geotiff(out / "map.tif")
    emb.tessera.to_geotiff(out / "embeddings.tif")
    n_pixels = emb.sizes["y"] * emb.sizes["x"]
    seconds = embedded - read
    print(emb.tessera, end="\n\n")
    print(f"Read the cube in {read - start:.1f} s; embedded {n_pixels:,} pixels in {seconds:.1f} s", end=" ")
    print(f"({n_pixels / seconds:,.0f} a second, loading and compiling included).")
    print("Wrote", ", ".join(str(out / name) for name in ("map.png", "map.tif", "embeddings.tif")))


# How files are read --------------------------------------------------------------------------------------------------


def _is_store(out: Path) -> bool:
    """Say whether a Zarr store is wanted rather than a GeoTIFF, before any long work."""
    kind = out.suffix.lower()
    if kind not in (".zarr", ".tif", ".tiff"):
        raise SchemaError(f"--out {out} must end in .zarr or .tif")
    return kind == ".zarr"


def _cut(cube: xr.Dataset, period: str | None) -> tuple[xr.Dataset, str | None]:
    """Return a cube cut to a period, and that period: its fullest year if none is told."""
    from tessera_xr.sentinel.cube import fullest_year, select_period

    if period is None and (year := fullest_year(cube)) is not None:
        period = str(year)
    return (cube if period is None else select_period(cube, period)), period


def _read_cube(s2: str | None, s1: str | None) -> xr.Dataset:
    if s2 is not None and Path(s2, "bands.npy").is_file():
        if s1 is not None:
            raise CubeError(f"{s2} is a d-pixel tile folder, which holds Sentinel-1 too; leave S1 away")
        return txr.open_tile(s2)
    return txr.as_cube(_open(s2), _open(s1))


def _open(path: str | None) -> xr.Dataset | None:
    if path is None:
        return None
    if not Path(path).exists():
        raise CubeError(f"there is no file {path}; give a netCDF file, a Zarr store or a d-pixel tile folder")
    try:
        return xr.open_zarr(path) if Path(path).is_dir() else xr.open_dataset(path, engine="h5netcdf").load()
    except (OSError, ValueError) as error:
        raise CubeError(f"{path} can't be opened as netCDF-4 or Zarr ({error}); convert it first") from error


if __name__ == "__main__":
    sys.exit(main())
