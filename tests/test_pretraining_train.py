"""Training: resumed runs end the same, options do what they say, the encoder's file holds all that belongs to it."""

from __future__ import annotations

import signal
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from tessera_xr.embedding.engine import encode
from tessera_xr.encoder.architecture import Architecture
from tessera_xr.encoder.checkpoints import load_encoder
from tessera_xr.encoder.files import read_encoder_file, save_encoder
from tessera_xr.encoder.network import TesseraEncoder
from tessera_xr.encoder.registry import V2_STUDENT
from tessera_xr.errors import CheckpointError, ModelUnavailableError, SchemaError, TesseraError
from tessera_xr.pretraining import objective
from tessera_xr.pretraining.config import PretrainConfig
from tessera_xr.pretraining.feed import open_feed, teacher_vectors
from tessera_xr.pretraining.objective import Trainee, projector
from tessera_xr.pretraining.train import learning_rate, make_optimizer, pretrain
from tessera_xr.pretraining.views import ViewOptions
from tessera_xr.pretraining.writing import write_pool
from tessera_xr.sentinel.simulate import simulate_pixels

TINY = PretrainConfig(
    architecture=Architecture(4, 1, 2, 16, n_out=16),
    views=ViewOptions(8, season_shift=30, date_dropout=0.3, monthly=0.3),
    batch_size=32,
    steps=12,
    projector_width=24,
    projector_layers=2,
    quantise_from=0.5,
    matryoshka="rebuild",
    matryoshka_dims=(4, 8),
    auxiliary=1.0,
    auxiliary_alone=0.25,
    device="cpu",
    log_every=1,
    watch_every=6,
    watched=40,
)


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    return write_pool([simulate_pixels(400, seed=1)], tmp_path_factory.mktemp("pool"), shard_size=128)


def run(pool, folder, config=TINY, **options):
    return pretrain(pool, config, folder=folder, progress=False, **options)


def weights(result):
    return result.encoder.network.state_dict()


def assert_same(one, other):
    assert all(torch.equal(v, weights(other)[k]) for k, v in weights(one).items())
    pd.testing.assert_frame_equal(one.log.drop(columns="seconds"), other.log.drop(columns="seconds"), check_exact=True)


@pytest.fixture(scope="module")
def whole(pool, tmp_path_factory):
    return run(pool, tmp_path_factory.mktemp("whole") / "run")


def test_levelling_changes_the_last_layer_of_what_is_saved_and_nothing_of_the_run(pool, whole, tmp_path):
    config = replace(TINY, level=0.25)
    run(pool, tmp_path, config, stop_after=7)
    levelled = run(pool, tmp_path, config, resume=True)
    pd.testing.assert_frame_equal(levelled.log.drop(columns="seconds"), whole.log.drop(columns="seconds"))
    changed = {k for k, v in weights(levelled).items() if not torch.equal(v, weights(whole)[k])}
    assert changed == {"dim_reducer.4.weight", "dim_reducer.4.bias"}
    assert_same(levelled, run(pool, tmp_path, config, resume=True))


def test_a_run_that_stops_and_goes_on_ends_the_same(pool, whole, tmp_path):
    first = run(pool, tmp_path, stop_after=2)
    assert not first.finished
    second = run(pool, tmp_path, resume=True, stop_after=7)
    assert second.log["step"].max() == 7
    last = run(pool, tmp_path, resume=True)
    assert last.finished
    assert_same(whole, last)
    assert not torch.equal(weights(first)["dim_reducer.4.weight"], weights(last)["dim_reducer.4.weight"])


def test_an_interrupt_saves_and_the_run_goes_on_to_the_same_end(pool, whole, tmp_path, monkeypatch):
    update = "tessera_xr.pretraining.train.batch_losses"
    calls = []

    def interrupted(*arguments, **options):
        calls.append(1)
        if len(calls) == 5:
            signal.raise_signal(signal.SIGINT)
        return objective.batch_losses(*arguments, **options)

    monkeypatch.setattr(update, interrupted)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match="5 updates; resume=True"):
        run(pool, tmp_path)
    assert signal.getsignal(signal.SIGINT) is handler
    monkeypatch.undo()
    assert_same(whole, run(pool, tmp_path, resume=True))


def test_lines_after_the_last_checkpoint_are_written_once(pool, whole, tmp_path, monkeypatch):
    update, calls = objective.batch_losses, []

    def killed(*arguments, **options):
        calls.append(1)
        if len(calls) == 8:
            raise MemoryError
        return update(*arguments, **options)

    monkeypatch.setattr("tessera_xr.pretraining.train.batch_losses", killed)
    with pytest.raises(MemoryError):
        run(pool, tmp_path, replace(TINY, checkpoint_every=4))
    monkeypatch.undo()
    assert pd.read_csv(tmp_path / "log.csv")["step"].max() == 7
    assert_same(whole, run(pool, tmp_path, resume=True))


def test_the_seed_decides(pool, whole, tmp_path):
    assert_same(whole, run(pool, tmp_path / "a"))
    other = run(pool, tmp_path / "b", replace(TINY, seed=1))
    assert not torch.equal(weights(whole)["dim_reducer.4.weight"], weights(other)["dim_reducer.4.weight"])


def test_another_run_is_not_overwritten_nor_gone_on_with(pool, whole, tmp_path):
    folder = whole.path.parent
    with pytest.raises(SchemaError, match="resume=True"):
        run(pool, folder)
    with pytest.raises(SchemaError, match=r"batch_size was 32, not 16"):
        run(pool, folder, replace(TINY, batch_size=16), resume=True)
    other = write_pool([simulate_pixels(200, seed=9)], tmp_path / "pool")
    with pytest.raises(SchemaError, match="another pool"):
        run(other, folder, resume=True)
    (folder.parent / "broken").mkdir()
    (folder.parent / "broken" / "checkpoint.pt").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="can't be read"):
        run(pool, folder.parent / "broken", resume=True)


def test_what_a_run_leaves_behind(pool, whole):
    folder = whole.path.parent
    assert {p.name for p in folder.iterdir()} == {"checkpoint.pt", "log.csv", "curves.png", "encoder.safetensors"}
    assert (folder / "curves.png").read_bytes()[:4] == b"\x89PNG"
    log = whole.log
    assert log["step"].tolist() == list(range(13))
    assert log["pixels"].tolist() == [32 * k for k in range(13)]
    assert log.loc[log["rank_me"].notna(), "step"].tolist() == [0, 6, 12]
    alone = log["step"].between(1, 3)
    assert log.loc[alone, "barlow_twins"].isna().all()
    assert log.loc[log["step"] > 3, ["barlow_twins", "mix", "rebuild", "reconstruction"]].notna().all(axis=None)
    parts = log.loc[1:, ["barlow_twins", "mix", "rebuild", "reconstruction"]].sum(axis=1)
    assert np.allclose(parts, log.loc[1:, "loss"])
    pd.testing.assert_frame_equal(pd.read_csv(folder / "log.csv")[["loss"]], log[["loss"]])


def test_the_encoders_file_holds_all_that_belongs_to_it(pool, whole):
    again = load_encoder(whole.path, device="cpu")
    record = again.record
    assert record.statistics == pool.statistics
    assert (record.name, record.n_dims, record.matryoshka, record.policy) == ("custom", 16, (4, 8), "v2")
    assert record.n_parameters == sum(p.numel() for p in TesseraEncoder(TINY.architecture).parameters())
    assert len(again.sha256) == 64
    pixels = simulate_pixels(20, seed=5)
    arrays = [pixels.s2, pixels.s2_doy, pixels.s2_valid, pixels.s1, pixels.s1_doy, pixels.s1_orbit == "descending"]
    first, second = (encode(e, *arrays, dims=16).values for e in (whole.encoder, again))
    assert np.array_equal(first, second)
    assert np.isfinite(first).all()


def test_rounding_is_switched_on_late(pool, tmp_path, monkeypatch):
    seen = []

    def noted(*arguments, quantise):
        seen.append(quantise)
        return objective.batch_losses(*arguments, quantise=quantise)

    monkeypatch.setattr("tessera_xr.pretraining.train.batch_losses", noted)
    run(pool, tmp_path / "a")
    run(pool, tmp_path / "b", replace(TINY, quantise_from=None))
    assert seen == [False] * 6 + [True] * 6 + [False] * 12


def test_every_part_of_the_paper_recipe_runs_without_the_auxiliary(pool, tmp_path):
    architecture = replace(TINY.architecture, pooling="gru", deep_reducer=False, final_norm=False)
    plain = PretrainConfig(architecture, batch_size=32, projector_width=16, steps=2, device="cpu", matryoshka_dims=(4,))
    result = run(pool, tmp_path / "a", plain)
    assert result.log[["rebuild", "reconstruction", "distillation"]].isna().all(axis=None)
    assert result.encoder.record.matryoshka == ()
    assert result.encoder.record.policy == "v1.0"
    nested = run(pool, tmp_path / "b", replace(TINY, matryoshka="loss", mix_weight=0.0, steps=8))
    assert nested.log["mix"].isna().all()
    assert nested.encoder.record.matryoshka == (4, 8)


def test_the_defaults_are_the_papers():
    config = PretrainConfig()
    assert (config.batch_size, config.projector_width, config.projector_layers, config.epochs) == (32768, 16384, 5, 1)
    assert (config.learning_rate, config.weight_decay, config.warm_up, config.clip) == (2e-3, 1e-6, 0.1, 2.0)
    assert (config.redundancy, config.mix_weight, config.auxiliary, config.matryoshka) == (5e-3, 1.0, 0.0, "none")
    assert config.views == ViewOptions(40)
    assert config.lengths == ()
    layers = [type(layer).__name__ for layer in projector(8, 6, 5)]
    assert layers == ["Linear", "BatchNorm1d", "ReLU"] * 5 + ["Linear"]


def test_a_batch_is_a_function_of_its_number(pool):
    feed = open_feed(pool, TINY)
    stream = list(feed.batches(3, 6))
    for batch, step in zip(stream, range(3, 6), strict=True):
        alone = feed.batch(step)
        assert torch.equal(batch.first.s2.x, alone.first.s2.x)
        assert batch.share == alone.share
        assert torch.equal(batch.permutation, alone.permutation)
    assert not torch.equal(stream[0].permutation, stream[1].permutation)
    assert [feed.alone(step) for step in (0, 2, 3)] == [True, True, False]
    assert feed.batch(0).second is None


def test_learning_rate_rises_then_falls_to_nothing():
    rates = [learning_rate(step, 100, PretrainConfig()) for step in range(100)]
    assert rates[0] == pytest.approx(2e-4)
    assert max(rates) == rates[9] == pytest.approx(2e-3)
    assert (np.diff(rates[10:]) < 0).all()
    assert rates[-1] < 2e-6


def test_biases_and_norms_have_no_weight_decay():
    trainee = Trainee(TINY)
    decayed, free = make_optimizer(trainee, replace(TINY, weight_decay=0.1), torch.device("cpu")).param_groups
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.1, 0.0)
    names = {id(p): name for name, p in trainee.named_parameters()}
    assert all("norm" not in names[id(p)] and "bias" not in names[id(p)] for p in decayed["params"])
    assert len(decayed["params"]) + len(free["params"]) == len(names)


@pytest.fixture
def teacher(tmp_path):
    """A file like the authors', with a small network of unknown skill."""
    arch = Architecture(8, 1, 4, 32, n_out=128)
    torch.manual_seed(5)
    args = {"repr_dim": 128, "latent_dim": 8, "num_layers": 1, "nhead": 4, "dim_feedforward": 32}
    torch.save({"model": TesseraEncoder(arch).state_dict(), "args": args}, tmp_path / "teacher.pt")
    return tmp_path / "teacher.pt"


def test_distillation_learns_the_teachers_embeddings(pool, teacher, tmp_path):
    config = replace(
        TINY, objective="distillation", teacher=str(teacher), auxiliary=0.0, auxiliary_alone=0.0, steps=60,
        learning_rate=1e-2, views=ViewOptions(24), quantise_from=None,
    )  # fmt: skip
    result = run(pool, tmp_path / "run", config)
    errors = result.log["distillation"].dropna()
    assert errors.tail(10).mean() < 0.6 * errors.head(3).mean()
    assert result.log["barlow_twins"].isna().all()
    assert result.encoder.record.matryoshka == (4, 8)


def test_the_teacher_sees_whole_pixels_by_its_own_rules(pool, teacher):
    from tessera_xr.encoder.checkpoints import load_encoder

    encoder = load_encoder(str(teacher), device="cpu")
    assert encoder.record.statistics == V2_STUDENT
    pixels, batch = simulate_pixels(400, seed=1), pool.read(np.arange(9))
    chosen = batch.pixel
    expected = encode(
        encoder, pixels.s2[chosen], pixels.s2_doy, pixels.s2_valid[chosen], pixels.s1[chosen], pixels.s1_doy,
        pixels.s1_orbit == "descending", dims=128,
    ).values  # fmt: skip
    assert np.allclose(teacher_vectors(encoder, batch).numpy(), expected, atol=1e-5)


def test_bfloat16_trains_too(pool, tmp_path):
    result = run(pool, tmp_path, replace(TINY, precision="bfloat16"))
    assert np.isfinite(result.log["loss"].dropna()).all()
    assert result.encoder.precision == torch.bfloat16
    assert all(v.dtype == torch.float32 for v in weights(result).values())


def test_d_pixels_are_pooled_in_the_folder_of_the_run(tmp_path):
    run([simulate_pixels(100, seed=1), simulate_pixels(100, seed=2)], tmp_path, replace(TINY, steps=1))
    again = run(str(tmp_path / "pool"), tmp_path, replace(TINY, steps=1), resume=True)
    assert again.finished
    assert again.log["step"].tolist() == [0, 1]


def test_divergence_is_told(pool, tmp_path):
    with pytest.raises(TesseraError, match="lower learning_rate"):
        run(pool, tmp_path, replace(TINY, learning_rate=1e30, warm_up=0.0))


def test_too_few_pixels_are_told(pool, tmp_path):
    with pytest.raises(SchemaError, match=f"needs as many d-pixels; the pool has {len(pool)}"):
        run(pool, tmp_path, replace(TINY, batch_size=5000))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"batch_size": 1}, "batch_size must be a whole number, 2 or above"),
        ({"learning_rate": 0}, "learning_rate must be above 0"),
        ({"warm_up": 1.5}, "warm_up is a share from 0 to 1"),
        ({"objective": "simclr"}, "barlow_twins, distillation"),
        ({"teacher": "v2-small"}, "go together"),
        ({"matryoshka_dims": (8, 16)}, "within 1 and 15"),
        ({"auxiliary": 0.0}, "auxiliary_alone needs"),
        ({"architecture": Architecture(4, 1, 3, 16)}, "no multiple of its 3 heads"),
        ({"steps": 0}, "steps must be a whole number, 1 or above"),
        ({"batch_size": 1, "seed": -1}, "batch_size .*; seed"),
    ],
)
def test_bad_settings(change, words):
    with pytest.raises(SchemaError, match=words):
        replace(TINY, **change)


def test_files_that_are_no_encoder(tmp_path):
    from safetensors.torch import save_file

    network = TesseraEncoder(TINY.architecture)
    with pytest.raises(CheckpointError, match=r"\.safetensors"):
        save_encoder(tmp_path / "encoder.pt", network, V2_STUDENT)
    with pytest.raises(ModelUnavailableError, match="no file"):
        read_encoder_file(tmp_path / "none.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"{}")
    with pytest.raises(CheckpointError, match="copy it again"):
        load_encoder(tmp_path / "broken.safetensors")
    save_file({"a": torch.zeros(2)}, tmp_path / "bare.safetensors")
    with pytest.raises(CheckpointError, match="statistics"):
        load_encoder(tmp_path / "bare.safetensors")
    path = save_encoder(tmp_path / "other.safetensors", network, V2_STUDENT)
    network.arch = replace(TINY.architecture, feedforward=32)
    save_encoder(path, network, V2_STUDENT)
    with pytest.raises(CheckpointError, match="doesn't fit"):
        load_encoder(path)
