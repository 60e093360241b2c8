import contextlib
import json
import math
import os
import shutil
import signal
import sys
from pathlib import Path

import msgspec
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rql_deploy.errors import UserError
from rql_deploy.train.checkpoints.checkpoint import load_checkpoint
from rql_deploy.train.config import TrainConfig, load_config, preset_names
from rql_deploy.train.hyperparameters import RQLConfig
from rql_deploy.train.loop import schedule, trainer
from rql_deploy.train.loop.trainer import Trainer
from tests.helpers.commands import TINY, assert_refused, cli, stopped_when
from tests.helpers.data import make_store, write_minari

CONFIG = TrainConfig(
    rql=RQLConfig(h=3, F=4, K=2, policy_hidden=(16, 16), value_hidden=(16, 16)),
    updates=12,
    batch_size=8,
    log_every=4,
    standardise=True,
)


def test_a_resumed_run_ends_with_the_same_bytes_as_one_never_stopped(tmp_path: Path) -> None:
    Trainer(CONFIG, make_store(), tmp_path / "whole").train()
    Trainer(msgspec.structs.replace(CONFIG, updates=5), make_store(), tmp_path / "parts").train()
    second = Trainer(CONFIG, make_store(), tmp_path / "parts", resume=True)
    assert second.step == 5
    second.train()
    whole, parts = load_checkpoint(tmp_path / "whole"), load_checkpoint(tmp_path / "parts")
    assert whole.step == parts.step == 12
    assert whole.parameters.keys() == parts.parameters.keys()
    assert all(torch.equal(whole.parameters[name], parts.parameters[name]) for name in whole.parameters)


def test_a_ramp_of_the_value_term_goes_on_where_it_was(tmp_path: Path) -> None:
    ramp = msgspec.structs.replace(CONFIG.rql, policy_value_ramp=6)
    config = msgspec.structs.replace(CONFIG, rql=ramp, updates=5)
    Trainer(config, make_store(), tmp_path / "whole").train()
    Trainer(msgspec.structs.replace(config, updates=3), make_store(), tmp_path / "parts").train()
    Trainer(config, make_store(), tmp_path / "parts", resume=True).train()
    whole, parts = load_checkpoint(tmp_path / "whole"), load_checkpoint(tmp_path / "parts")
    assert all(torch.equal(whole.parameters[name], parts.parameters[name]) for name in whole.parameters)
    # A run that starts from these networks has their age: V is as settled as it was.
    assert float(Trainer(config, make_store(), tmp_path / "more", initial=parts).agent.age) == 5


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_a_falling_learning_rate_goes_on_where_it_was(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedule, "RATE_EVERY", 2)
    config = msgspec.structs.replace(CONFIG, learning_rate_schedule=kind)
    whole = Trainer(config, make_store(), tmp_path / "whole")
    rates: list[float] = []
    apply = whole.agent.apply

    def noting(gradients: list[torch.Tensor]) -> None:
        rates.append(whole.agent.optimizer.param_groups[0]["lr"])
        apply(gradients)

    monkeypatch.setattr(whole.agent, "apply", noting)
    whole.train()
    shares = [step // 2 * 2 / 12 for step in range(12)]
    falls = {"linear": lambda s: 1 - s, "cosine": lambda s: (1 + math.cos(math.pi * s)) / 2}
    assert rates == pytest.approx([CONFIG.rql.learning_rate * falls[kind](share) for share in shares])

    class AfterThreeBlocks:
        blocks = 0

        def __bool__(self) -> bool:
            self.blocks += 1
            return self.blocks == 3

    with monkeypatch.context() as stopped:
        stopped.setattr(trainer, "stop_requests", lambda: contextlib.nullcontext(AfterThreeBlocks()))
        assert Trainer(config, make_store(), tmp_path / "parts").train().step == 3
    Trainer(config, make_store(), tmp_path / "parts", resume=True).train()
    ends = [load_checkpoint(tmp_path / run).parameters for run in ("whole", "parts")]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_training_lowers_the_cloning_loss(tmp_path: Path) -> None:
    Trainer(
        msgspec.structs.replace(CONFIG, updates=400, log_every=20), make_store(), tmp_path / "run"
    ).train()
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(20, 401, 20))
    first, last = (sum(line["bc"] for line in part) / 5 for part in (lines[:5], lines[-5:]))
    assert last < 0.8 * first


def test_logs_are_in_tensorboard_and_jsonl(run: Path) -> None:
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    assert {"losses/bc", "losses/value", "speed/updates_per_second"} <= set(events.Tags()["scalars"])
    assert {"step", "total", "bc", "value", "policy_value", "updates_per_second"} <= json.loads(
        (run / "metrics.jsonl").read_text().splitlines()[-1]
    ).keys()


def test_a_checkpoint_holds_no_pickle(run: Path) -> None:
    folder = load_checkpoint(run).path
    assert {file.suffix for file in folder.iterdir()} == {".json", ".safetensors"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_saves_and_says_how_to_resume(
    number: signal.Signals, dataset: Path, tmp_path: Path
) -> None:
    command = [
        sys.executable,
        "-m",
        "rql_deploy",
        "train",
        "--dataset",
        str(dataset),
        "--output",
        str(tmp_path / "run"),
        *TINY,
    ]
    log = tmp_path / "run" / "metrics.jsonl"
    done = stopped_when(
        lambda: log.exists() and log.stat().st_size, [*command, "--set", "log_every=1"], number
    )
    assert done.returncode == 130, done.stderr
    assert "--resume" in done.stdout
    step = load_checkpoint(tmp_path / "run").step
    assert 0 < step < 5000
    resumed = cli(
        "train",
        "--dataset",
        dataset,
        "--output",
        tmp_path / "run",
        *TINY,
        "--set",
        "log_every=1",
        "--updates",
        step + 3,
        "--resume",
    )
    assert resumed.exit_code == 0, resumed.output
    assert load_checkpoint(tmp_path / "run").step == step + 3


def test_resuming_on_other_data_or_settings_is_refused_with_the_difference(
    run: Path, tmp_path: Path, dataset: Path
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    other = write_minari(tmp_path / "other", seed=1)
    assert_refused(
        cli("train", "--dataset", other, "--output", copy, "--resume", *TINY), "was trained on data set"
    )
    assert_refused(
        cli("train", "--dataset", dataset, "--output", copy, "--resume", *TINY, "--set", "rql.alpha=2"),
        "rql.alpha 5.0 -> 2.0",
    )


def test_a_run_is_never_overwritten(run: Path, dataset: Path) -> None:
    before = load_checkpoint(run).path.stat().st_mtime
    assert_refused(
        cli("train", "--dataset", dataset, "--output", run, *TINY), "holds a run already", "--resume"
    )
    assert load_checkpoint(run).path.stat().st_mtime == before


def test_a_full_disk_leaves_the_previous_checkpoint_in_charge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(msgspec.structs.replace(CONFIG, updates=3), make_store(), tmp_path / "run")
    trainer.train()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    trainer.step = 4
    with pytest.raises(UserError, match=r"No space left on device.*previous checkpoint is untouched"):
        trainer.save()
    monkeypatch.undo()
    assert load_checkpoint(tmp_path / "run").step == 3
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["step_000000003"]


def test_a_loss_that_becomes_nan_stops_the_run(tmp_path: Path) -> None:
    store = make_store()
    store.rewards[:] = 3e38
    with pytest.raises(UserError, match=r"became (inf|nan) at update 4"):
        Trainer(CONFIG, store, tmp_path / "run").train()


@pytest.mark.parametrize("damage", ["missing", "truncated", "header", "networks"])
def test_a_damaged_checkpoint_is_one_sentence(damage: str, run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    folder = load_checkpoint(copy).path
    if damage == "missing":
        shutil.rmtree(copy)
    elif damage == "truncated":
        file = folder / "parameters.safetensors"
        file.write_bytes(file.read_bytes()[:-100])
    elif damage == "header":
        (folder / "checkpoint.json").write_text("{")
    else:
        header = json.loads((folder / "checkpoint.json").read_text())
        header["config"]["rql"]["policy_hidden"] = [8, 8]
        (folder / "checkpoint.json").write_text(json.dumps(header))
    assert_refused(cli("export", copy, "--output", tmp_path / "bundle"))
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("damage", ["truncated", "missing", "list", "statistics", "pointer"])
def test_a_damaged_checkpoint_cannot_be_resumed_and_says_so(
    damage: str, run: Path, dataset: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    folder = load_checkpoint(copy).path
    header = folder / "checkpoint.json"
    if damage == "truncated":
        (folder / "optimizer.safetensors").write_bytes(b"x" * 20)
    elif damage == "missing":
        (folder / "optimizer.safetensors").unlink()
    elif damage == "list":
        header.write_text("[]")
    elif damage == "statistics":
        header.write_text(json.dumps({**json.loads(header.read_text()), "statistics": {}}))
    else:
        (copy / "latest").write_bytes(b"\xff\xfe")
    assert_refused(
        cli("train", "--dataset", dataset, "--output", copy, "--updates", 30, "--resume", *TINY), "checkpoint"
    )


def test_a_finished_run_is_not_written_again(run: Path, dataset: Path) -> None:
    assert_refused(
        cli("train", "--dataset", dataset, "--output", run, "--updates", 20, "--resume", *TINY),
        "has done 20 updates already",
    )


def test_a_run_that_failed_before_its_first_checkpoint_can_be_started_again(
    dataset: Path, tmp_path: Path
) -> None:
    train = ("train", "--dataset", dataset, "--output", tmp_path / "run", "--updates", 3, *TINY)
    assert cli(*train).exit_code == 0
    (tmp_path / "run" / "latest").unlink()
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    assert cli(*train).exit_code == 0
    (tmp_path / "run" / "latest").unlink()
    (tmp_path / "run" / "thesis.tex").touch()
    assert_refused(cli(*train), "holds other files")


def test_no_checkpoint_is_written_once_a_loss_is_not_finite(tmp_path: Path) -> None:
    store = make_store()
    store.rewards[:] = 3e38
    config = msgspec.structs.replace(CONFIG, checkpoint_every=1, log_every=100)
    with pytest.raises(UserError, match=r"became (inf|nan) at update 1"):
        Trainer(config, store, tmp_path / "run").train()
    assert not (tmp_path / "run" / "latest").exists()


def test_unknown_settings_are_named_with_the_nearest_known_one(dataset: Path, tmp_path: Path) -> None:
    train = ("train", "--dataset", dataset, "--output", tmp_path / "run")
    assert_refused(cli(*train, "--set", "rql.alhpa=1"), "unknown entry 'alhpa'", "did you mean alpha")
    assert_refused(cli(*train, "--set", "updates=many"), "train.updates should be a whole number")
    assert_refused(cli(*train, "--set", "batch_size=7"), "must be even")
    assert_refused(cli(*train, "--set", "rql.K=1"), "at least 2")
    assert_refused(cli(*train, "--set", "rql.policy_hidden=[]"), "at least one positive width")
    assert_refused(cli(*train, "--set", "rql.value_hidden=[16, 50]"), "multiples of 4")
    assert_refused(cli(*train, "--set", "rql.learning_rate=-1"), "must be positive")
    assert_refused(cli(*train, "--seed", 10**20), "[0, 2^53)")
    assert_refused(cli(*train, "--preset", "robosuite-lft"), "did you mean robosuite-lift")


def test_every_preset_loads() -> None:
    for name in preset_names():
        load_config(name)
