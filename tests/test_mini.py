"""The bundled encoder: in the package, unharmed, small, and never taken for TESSERA's own."""

from __future__ import annotations

import hashlib
import json
import runpy
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
import xarray as xr
from safetensors import safe_open

import tessera_xr as txr
from tessera_xr.embedding.engine import encode
from tessera_xr.embedding.schema import check_same_model
from tessera_xr.encoder import hub
from tessera_xr.encoder.checkpoints import Encoder, load_encoder
from tessera_xr.encoder.files import KEY, read_encoder_file, save_encoder
from tessera_xr.encoder.forward import is_fast
from tessera_xr.encoder.network import TesseraEncoder
from tessera_xr.encoder.products import rounds
from tessera_xr.encoder.registry import MATRYOSHKA, NANO, RECORDS, V2_STUDENT
from tessera_xr.errors import CheckpointError, ModelUnavailableError, SchemaError, VersionMismatchError

MINI = RECORDS["mini"]
FILE = Path(str(files("tessera_xr") / "data" / "mini" / "mini.safetensors"))
SCRIPT = Path(__file__).parents[1] / "scripts" / "bundle_mini.py"
NOTE = "no: trained with tessera_xr, not by TESSERA's authors"


@pytest.fixture(scope="module")
def mini() -> Encoder:
    return load_encoder("mini", device="cpu")


@pytest.fixture
def nano() -> TesseraEncoder:
    """An untrained network of the shape that mini shares with v2-nano."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return TesseraEncoder(NANO).eval()


@pytest.fixture
def embed(make_cube) -> Callable[..., xr.Dataset]:
    """Embed a small cube."""

    def called(model: Any = "mini", period: Any = 2020, **options: Any) -> xr.Dataset:
        return txr.embed(make_cube(), model, period=period, device="cpu", progress=False, **options)

    return called


# In the package ----------------------------------------------------------------------------------------------------


def test_what_the_registry_says_of_the_file_is_true(mini):
    record, _ = read_encoder_file(FILE)
    of_the_file = {name: getattr(MINI, name) for name in ("filename", "n_bytes", "sha256", "bundled")}
    assert replace(record, **of_the_file) == MINI
    assert FILE.stat().st_size == MINI.n_bytes < 3_000_000
    assert hashlib.sha256(FILE.read_bytes()).hexdigest() == MINI.sha256 == mini.sha256
    assert sum(weight.numel() for weight in mini.network.parameters()) == MINI.n_parameters <= 1_100_000
    assert (MINI.matryoshka, MINI.licence, MINI.arch) == ((16, 32, 64), "MIT", NANO)


def test_it_loads_without_a_warning_and_as_it_is_in_the_file():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        network = load_encoder("mini", device="cpu").network
    _, state = read_encoder_file(FILE)
    assert {weight.dtype for weight in state.values()} == {torch.float16}
    assert {weight.dtype for weight in network.parameters()} == {torch.float32}
    assert all(torch.equal(weight, state[key].float()) for key, weight in network.state_dict().items())


DAMAGES: dict[str, tuple[Callable[[bytes], bytes | None], type[Exception], str]] = {
    "another byte": (lambda good: good[:-1] + bytes([good[-1] ^ 1]), CheckpointError, r"its SHA-256 differs\)"),
    "truncated": (lambda good: good[:-100], CheckpointError, "the file is truncated or another one"),
    "lost": (lambda good: None, ModelUnavailableError, r"the package lacks its own file /.*mini\.safetensors"),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_a_damaged_package_is_to_be_installed_again(case, tmp_path, monkeypatch):
    damage, error, message = DAMAGES[case]
    monkeypatch.setattr(hub, "DATA", tmp_path)
    (tmp_path / "mini").mkdir()
    if (content := damage(FILE.read_bytes())) is not None:
        (tmp_path / "mini" / FILE.name).write_bytes(content)
    with pytest.raises(error, match=rf"{message}; install tessera_xr again"):
        load_encoder("mini", device="cpu")
    assert txr.models().loc["mini", "available"] == (case == "another byte")


def test_no_other_file_stands_in_for_it(nano, tmp_path, monkeypatch):
    path = save_encoder(tmp_path / "mini.safetensors", nano, V2_STUDENT, name="mini")
    shutil.copy(path, tmp_path / "mini.pt")
    monkeypatch.setenv(hub.WEIGHTS_FOLDER, str(tmp_path))
    assert load_encoder("mini", device="cpu").sha256 == MINI.sha256
    with pytest.raises(CheckpointError, match=r"weights= goes with the name .*, not 'mini'.*pass the file itself"):
        load_encoder("mini", path)
    with pytest.raises(CheckpointError, match=r"holds 'mini', not 'v2-nano' as asked for"):
        load_encoder("v2-nano", FILE)


# Half precision ----------------------------------------------------------------------------------------------------


def test_half_precision_is_half_the_size_and_reads_as_float32(make_encoder, make_pixels, tmp_path):
    tiny = make_encoder()
    paths = [
        save_encoder(tmp_path / f"{half}.safetensors", tiny.network, V2_STUDENT, half=half) for half in (True, False)
    ]
    states = [read_encoder_file(path)[1] for path in paths]
    assert [{w.dtype for w in state.values()} for state in states] == [{torch.float16}, {torch.float32}]
    assert sum(w.nbytes for w in states[1].values()) == 2 * sum(w.nbytes for w in states[0].values())
    encoders = [load_encoder(path, device="cpu") for path in paths]
    for key, weight in encoders[0].network.state_dict().items():
        assert weight.dtype == torch.float32
        assert torch.equal(weight, tiny.network.state_dict()[key].half().float())
    half, full = (encode(encoder, **make_pixels(60), dims=128).values[1:] for encoder in encoders)
    np.testing.assert_allclose(half, full, atol=0.01 * np.abs(full).max())
    assert not np.array_equal(half, full)


@pytest.mark.parametrize("value", [70_000.0, float("nan"), float("-inf")])
def test_weights_beyond_half_precision_are_refused(value, make_encoder, tmp_path):
    network = make_encoder(seed=3).network
    network.dim_reducer[4].bias.data[2] = value
    with pytest.raises(CheckpointError, match=r"'dim_reducer\.4\.bias' .* not finite in float16 .*half=False"):
        save_encoder(tmp_path / "encoder.safetensors", network, V2_STUDENT, half=True)
    assert not list(tmp_path.iterdir())
    save_encoder(tmp_path / "encoder.safetensors", network, V2_STUDENT)


# Not the official TESSERA ------------------------------------------------------------------------------------------


def test_who_is_official(mini, nano, weights, tmp_path):
    assert [name for name, record in RECORDS.items() if not record.official] == ["mini"]
    table = txr.models()
    assert table.index[~table["official"]].tolist() == ["mini"]
    assert table.loc["mini", "source"] == "in the package"
    assert table.loc["mini", "available"]
    own = load_encoder(save_encoder(tmp_path / "own.safetensors", nano, V2_STUDENT, name="v2-nano"), device="cpu")
    assert not own.record.official
    assert load_encoder(weights, device="cpu").record.official
    facts = f"1,066,402 parameters, cpu, float32, weights {mini.sha256[:12]}"
    assert repr(mini) == f"Encoder('mini', not an official TESSERA model, {facts})"
    assert repr(own).startswith("Encoder('v2-nano', not an official TESSERA model, ")
    assert repr(replace(mini, record=RECORDS["v2-nano"])).startswith("Encoder('v2-nano', 1,066,402 parameters")


def test_embeddings_say_so(embed, nano, weights, tmp_path):
    own = save_encoder(tmp_path / "own.safetensors", nano, V2_STUDENT)
    for model in ("mini", own):
        emb = embed(model)
        assert emb.attrs["model_official"] == NOTE
        assert f"\n  official     {NOTE}\n" in repr(emb.tessera)
    official = embed(weights)
    assert "model_official" not in official.attrs
    assert "official" not in repr(official.tessera)


@pytest.mark.filterwarnings("ignore::zarr.errors.ZarrUserWarning", "ignore:Consolidated metadata")
def test_files_and_what_is_made_of_embeddings_say_so_too(embed, tmp_path):
    emb = embed()
    emb.to_netcdf(tmp_path / "emb.nc", engine="h5netcdf")
    emb.to_zarr(tmp_path / "emb.zarr")
    with xr.open_dataset(tmp_path / "emb.nc", engine="h5netcdf") as opened:
        assert opened.attrs == emb.attrs
    assert xr.open_zarr(tmp_path / "emb.zarr").attrs == emb.attrs
    for made in (
        emb.tessera.rgb(),
        emb.tessera.components(2),
        emb.tessera.quantize(),
        emb.tessera.sample((3.02, 50.8), outside="nodata"),
    ):
        assert made.attrs["model_official"] == NOTE
    with rasterio.open(emb.tessera.to_geotiff(tmp_path / "emb.tif")) as file:
        assert file.tags()["model_official"] == NOTE
    years = xr.concat([embed(period=2019), emb], "time")
    assert years.attrs["model_official"] == NOTE
    check_same_model(years, emb)


def test_the_shape_alone_is_still_v2_nano_and_does_not_mix_with_mini(embed, nano, mini, save_weights, tmp_path):
    path = save_weights(replace(mini, network=nano), tmp_path / "student.pt")
    record = load_encoder(path, device="cpu").record
    assert (record.name, record.official, record.statistics) == ("v2-nano", True, V2_STUDENT)
    ours, theirs = embed("mini"), embed("v2-nano", weights=path)
    assert theirs.attrs["model"] == "v2-nano"
    with pytest.raises(VersionMismatchError, match=r"differ in model \(mini, v2-nano\)"):
        check_same_model(ours, theirs)
    with pytest.raises(VersionMismatchError, match="differ in model"):
        txr.fit_components(ours).transform(theirs)


# Embeddings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lazy", [False, True], ids=["eager", "dask"])
def test_mini_is_the_default_and_embeds(lazy, make_cube):
    cube = make_cube()
    emb = txr.embed(cube.chunk(y=3) if lazy else cube, period=2020, device="cpu", progress=False)
    emb = emb.compute(scheduler="synchronous")
    assert (emb.attrs["model"], emb.attrs["weights_sha256"]) == ("mini", MINI.sha256)
    assert (emb.attrs["model_family"], emb.attrs["weights_licence"]) == ("v2", "MIT")
    assert emb.embeddings.notnull().sum() == 35 * 128


def test_int8_and_shorter_lengths(embed):
    whole = embed()
    for dims in (16, 32, 64, 128):
        np.testing.assert_array_equal(embed(dims=dims).embeddings, whole.embeddings[:dims])
    with pytest.raises(SchemaError, match=r"its lengths are \(16, 32, 64, 128\)"):
        embed(dims=8)
    codes = embed(dtype="int8")
    assert codes.embeddings.dtype == np.int8
    assert (abs(codes.embeddings.astype(int)).max("band") == 127).sum() == 35
    step = codes.scales.fillna(0) * 0.51
    assert (abs(codes.tessera.dequantize().embeddings - whole.embeddings) <= step).sum() == 35 * 128


# The script --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(SCRIPT))


def test_the_script_bundles_an_encoder(script, nano, tmp_path):
    statistics = replace(V2_STUDENT, s2_mean=tuple(float(i) for i in range(10)))
    recipe = {"settings": {"steps": 3}, "steps": 3}
    cut = save_encoder(
        tmp_path / "cut.safetensors", nano, statistics, matryoshka=MATRYOSHKA, recipe={**recipe, "steps": 2}
    )
    with pytest.raises(SystemExit, match="stopped after 2 of 3 updates"):
        script["bundle"](cut, tmp_path / "no.safetensors", tmp_path / "no.py")
    options = {"name": "custom", "matryoshka": MATRYOSHKA, "recipe": recipe}
    source = save_encoder(tmp_path / "encoder.safetensors", nano, statistics, **options)
    file, facts = tmp_path / "data" / "mini.safetensors", tmp_path / "bundled.py"
    (tmp_path / "curves.png").write_bytes(b"curves")
    assert "1,066,402 parameters" in script["bundle"](source, file, facts)
    assert (tmp_path / "data" / "curves.png").read_bytes() == b"curves"
    record, state = read_encoder_file(file)
    assert (record.name, record.licence, record.statistics) == ("mini", "MIT", statistics)
    assert {weight.dtype for weight in state.values()} == {torch.float16}
    with safe_open(file, framework="pt") as opened:
        assert json.loads(opened.metadata()[KEY])["recipe"] == recipe
    said = runpy.run_path(str(facts))
    assert (said["N_BYTES"], said["SHA256"]) == (file.stat().st_size, hashlib.sha256(file.read_bytes()).hexdigest())
    assert (said["S2_MEAN"], said["S2_STD"]) == (statistics.s2_mean, statistics.s2_std)
    assert (said["S1_ASCENDING"], said["S1_DESCENDING"]) == (statistics.s1_ascending, statistics.s1_descending)


def test_the_script_tells_how_much_half_precision_changes(script):
    one = np.array([[1.0, 0.0], [3.0, 4.0]])
    np.testing.assert_allclose(script["cosines"](one, np.array([[0.0, 2.0], [6.0, 8.0]])), [0, 1])


def test_the_facts_in_the_package_are_what_the_script_writes(script):
    facts = Path(str(files("tessera_xr") / "encoder" / "bundled.py"))
    assert facts.read_text(encoding="utf-8") == script["render"](FILE, MINI.statistics)


def test_the_script_refuses_what_is_no_mini(script, nano, make_encoder, tmp_path):
    nano.dim_reducer[4].bias.data[0] = float("nan")
    cases = {"shorter lengths are \\(\\).*not finite": nano, "of family v2 with": make_encoder().network}
    cases["of family v1.0 with"] = make_encoder("v1.0").network
    for message, network in cases.items():
        source = save_encoder(tmp_path / "encoder.safetensors", network, V2_STUDENT)
        with pytest.raises(SystemExit, match=message):
            script["bundle"](source, tmp_path / "mini.safetensors", tmp_path / "bundled.py")
    assert [path.name for path in tmp_path.iterdir()] == ["encoder.safetensors"]
    record, state = read_encoder_file(FILE)
    assert script["find_faults"](record, state) == []
    large = script["find_faults"](replace(record, n_parameters=1_100_001), state)
    assert large == ["it has 1,100,001 parameters, at most 1,100,000 are allowed"]


@pytest.mark.skipif(not rounds(), reason="this processor has no bfloat16 that oneDNN uses")
def test_bfloat16_on_a_cpu_is_fast_and_close(mini):
    half = replace(mini, precision=torch.bfloat16)
    assert is_fast(half.network.s2_backbone, half.precision)
    cube = txr.tutorial.cube(24)
    full, rounded = (
        cube.tessera.embed("mini", period=2024, precision=precision, progress=False)["embeddings"].values
        for precision in ("float32", "bfloat16")
    )
    cosine = (full * rounded).sum(0) / np.linalg.norm(full, axis=0) / np.linalg.norm(rounded, axis=0)
    assert cosine.min() > 0.9995
    assert np.abs(full - rounded).max() > 1e-3, "bfloat16 was not used"
    small = cube.tessera.embed("mini", period=2024, precision="bfloat16", token_budget=300, progress=False)
    np.testing.assert_allclose(small["embeddings"].values, rounded, atol=0.1)  # roundings of 8 bits, in another order
