"""The command `tessera-xr`."""

from __future__ import annotations

import argparse
import os
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import xarray as xr

import tessera_xr as txr
from tessera_xr.errors import CubeError, TesseraError, TesseraWarning


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="tessera-xr", description="TESSERA embeddings of Sentinel cubes.")
    parser.add_argument("--version", action="version", version=txr.__version__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("models", help="list the models")
    options = commands.add_parser("demo", help="a cube to embeddings to a first map")
    options.add_argument("--s2", help="Sentinel-2: a netCDF file, a Zarr store or a d-pixel tile folder")
    options.add_argument("--s1", help="Sentinel-1: a netCDF file or a Zarr store")
    options.add_argument("--period", help="a year (2024) or dates (2023-10-01/2024-09-30)")
    options.add_argument("--model", default="mini", help="a name (see 'tessera-xr models') or a file of weights")
    options.add_argument("--out", type=Path, default=Path("demo"), help="folder for what is written")
    chosen = parser.parse_args(arguments)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: print(f"Note: {message}", file=sys.stderr)
            warnings.simplefilter("ignore")
            warnings.simplefilter("always", TesseraWarning)
            _run(chosen)
    except TesseraError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted; nothing half-written is left.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output went away, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _run(chosen: argparse.Namespace) -> None:
    if chosen.command == "models":
        print(txr.models().to_string())
    else:
        demo(chosen.s2, chosen.s1, chosen.period, chosen.model, chosen.out)


def demo(s2: str | None, s1: str | None, period: str | None, model: str, out: Path) -> None:
    """Embed a cube (a simulated one without files) and write a first map of it, PNG and GeoTIFF, into `out`."""
    from tessera_xr.embedding.schema import OFFICIAL
    from tessera_xr.encoder.registry import UNOFFICIAL
    from tessera_xr.grid import crs_name
    from tessera_xr.sentinel.cube import fullest_year, select_period
    from tessera_xr.views.render import save_figure, true_colour

    start = time.perf_counter()
    cube = _read_cube(s2, s1)
    if period is None and (year := fullest_year(cube)) is not None:
        period = str(year)
    if period is not None:
        cube = select_period(cube, period)
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


def _read_cube(s2: str | None, s1: str | None) -> xr.Dataset:
    if s2 is None and s1 is None:
        return txr.tutorial.cube()
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
