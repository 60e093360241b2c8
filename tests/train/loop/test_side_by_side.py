"""Seeds that are trained in one process: each run is what it would be alone, and can be gone on with."""

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from rql_deploy.errors import UserError
from rql_deploy.train.checkpoints.checkpoint import load_checkpoint
from rql_deploy.train.checkpoints.run_folder import checkpoint_folder, read_pointer
from rql_deploy.train.data.folder import write_store
from rql_deploy.train.logging import run_page
from rql_deploy.train.loop import trainer
from rql_deploy.train.loop.side_by_side import require_begun, rewind_to_common
from rql_deploy.train.loop.training_run import TrainingRun
from rql_deploy.workflows.train import train
from rql_deploy.workflows.train_seeds import train_seeds
from tests.helpers.commands import TINY, assert_refused, cli, printed
from tests.helpers.data import make_picture_store, stored

SETTINGS = [word for word in TINY[2:] if word != "--set"]
SETTINGS += ["rql.K=2", "rql.F=4", "log_every=2", "checkpoint_every=2", "standardise=true"]
SEEDS = (3, 1)


@pytest.fixture(autouse=True, scope="module")
def without_curves() -> Iterator[None]:
    """Pictures of a few updates show nothing, and take most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_page, "_draw", lambda run: None)
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stored(tmp_path_factory.mktemp("seeds") / "data")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """Two seeds, eight updates each."""
    output = tmp_path_factory.mktemp("runs") / "both"
    train_some(data, output, 8)
    return output


def train_some(data: Path, output: Path, updates: int, *, resume: bool = False) -> None:
    results = train_seeds(
        [data], output, SEEDS, preset="reference", overrides=[*SETTINGS, f"updates={updates}"], resume=resume
    )
    assert [result.step for result in results.values()] == [updates] * len(SEEDS)


def metrics(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_run_beside_others_is_what_it_would_be_alone(
    seed: int, runs: Path, data: Path, tmp_path: Path
) -> None:
    overrides = [*SETTINGS, "updates=8", f"seed={seed}"]
    train([data], tmp_path / "alone", preset="reference", overrides=overrides)
    alone, beside = load_checkpoint(tmp_path / "alone"), load_checkpoint(runs / f"seed_{seed}")
    assert beside.config == alone.config and beside.engine == alone.engine
    assert beside.statistics == alone.statistics and beside.dataset_hash == alone.dataset_hash
    for name, tensor in alone.parameters.items():
        torch.testing.assert_close(beside.parameters[name], tensor, rtol=0, atol=2e-4)
    files = [
        {file.name for file in folder.iterdir()} for folder in (tmp_path / "alone", runs / f"seed_{seed}")
    ]
    assert files[0] == files[1]
    for mine, theirs in zip(metrics(runs / f"seed_{seed}"), metrics(tmp_path / "alone"), strict=True):
        assert mine.keys() == theirs.keys()
        for name in mine.keys() - {"time", "updates_per_second"}:
            assert mine[name] == pytest.approx(theirs[name], rel=1e-3, abs=1e-4), name


def test_runs_that_go_on_together_end_with_the_same_bytes(runs: Path, data: Path, tmp_path: Path) -> None:
    parts, kept = tmp_path / "parts", tmp_path / "kept"
    train_some(data, parts, 4)
    shutil.copytree(parts, kept)
    train_some(data, parts, 6, resume=True)
    # As a crash leaves them between two saves: one run is ahead, and still has what the other has, too.
    shutil.rmtree(parts / "seed_1")
    shutil.copytree(kept / "seed_1", parts / "seed_1")
    shutil.copytree(*(checkpoint_folder(folder / "seed_3", 4) for folder in (kept, parts)))
    train_some(data, parts, 8, resume=True)
    for seed in SEEDS:
        whole, again = (load_checkpoint(folder / f"seed_{seed}") for folder in (runs, parts))
        assert all(torch.equal(whole.parameters[name], again.parameters[name]) for name in whole.parameters)
        assert [line["step"] for line in metrics(parts / f"seed_{seed}")] == [2, 4, 6, 8]


def test_while_runs_are_saved_all_still_have_the_update_before(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = TrainingRun.save

    def fail_half_way(run: TrainingRun) -> Path:
        if run.step == 4 and run.config.seed == SEEDS[1]:
            raise UserError("the disk is full")
        return save(run)

    monkeypatch.setattr(TrainingRun, "save", fail_half_way)
    with pytest.raises(UserError, match="the disk is full"):
        train_some(data, tmp_path / "runs", 6)
    folders = {seed: tmp_path / "runs" / f"seed_{seed}" for seed in SEEDS}
    assert read_pointer(folders[SEEDS[0]], "latest") == checkpoint_folder(folders[SEEDS[0]], 4)
    assert rewind_to_common(folders)
    assert all(read_pointer(folder, "latest") == checkpoint_folder(folder, 2) for folder in folders.values())


def test_a_run_can_be_gone_on_with_alone(runs: Path, data: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "seed_1", tmp_path / "run")
    overrides = [*SETTINGS, "updates=10", "seed=1"]
    result = train([data], tmp_path / "run", preset="reference", overrides=overrides, resume=True)
    assert result.finished and result.step == 10


def test_runs_are_rewound_to_the_last_update_that_all_have(tmp_path: Path) -> None:
    folders = {seed: tmp_path / f"seed_{seed}" for seed in (0, 1)}
    for folder, steps in ((folders[0], (4, 6)), (folders[1], (2, 4))):
        for step in steps:
            checkpoint_folder(folder, step).mkdir(parents=True)
        (folder / "latest").write_text(checkpoint_folder(folder, steps[-1]).name)
        (folder / "config.json").write_text("{}")
    assert rewind_to_common(folders)
    assert all(read_pointer(folder, "latest") == checkpoint_folder(folder, 4) for folder in folders.values())
    assert not checkpoint_folder(folders[0], 6).exists()
    # Before the first save had ended, there is no such update.
    shutil.rmtree(folders[1] / "checkpoints")
    (folders[1] / "latest").unlink()
    assert not rewind_to_common(folders)
    assert checkpoint_folder(folders[0], 4).exists()
    with pytest.raises(UserError, match="holds no run of seed 2"):
        require_begun({**folders, 2: tmp_path / "seed_2"})


def test_a_run_that_was_gone_on_with_alone_is_not_begun_again_with_the_others(
    runs: Path, data: Path, tmp_path: Path
) -> None:
    shutil.copytree(runs, tmp_path / "runs")
    ahead = tmp_path / "runs" / "seed_1"
    overrides = [*SETTINGS, "updates=10", "seed=1"]
    train([data], ahead, preset="reference", overrides=overrides, resume=True)
    words = ("no last update in common", "seed 3 at 8, seed 1 at 10", "continue those that are behind")
    with pytest.raises(UserError) as refused:
        train_some(data, tmp_path / "runs", 12, resume=True)
    assert all(word in str(refused.value) for word in words)
    assert load_checkpoint(ahead).step == 10
    # The same where earlier checkpoints were kept: more than one lies beyond the last of the others.
    overrides = [*SETTINGS, "updates=14", "seed=1", "keep_every=2"]
    train([data], ahead, preset="reference", overrides=overrides, resume=True)
    shutil.copytree(checkpoint_folder(tmp_path / "runs" / "seed_3", 8), checkpoint_folder(ahead, 8))
    with pytest.raises(UserError, match="no last update in common"):
        train_some(data, tmp_path / "runs", 16, resume=True)
    assert load_checkpoint(ahead).step == 14


def test_the_command_trains_seeds_and_goes_on_with_them(data: Path, tmp_path: Path) -> None:
    words = ("train", "--dataset", data, "--output", tmp_path / "runs", *TINY, "--seeds", "0,1")
    first = cli(*words, "--updates", 2)
    assert first.exit_code == 0 and "2 updates of 2 seeds" in first.output, first.output
    again = printed(cli(*words, "--updates", 4, "--resume", "--json"))
    assert again["finished"] and again["step"] == 4
    assert {seed: one["step"] for seed, one in again["seeds"].items()} == {"0": 4, "1": 4}
    assert_refused(cli(*words, "--updates", 4), "holds a run already", "--resume")


def test_stopped_seeds_end_with_130_and_go_on(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    updates = trainer.updates_until_due

    def stop_first(*words: object) -> int:
        os.kill(os.getpid(), signal.SIGINT)
        return min(1, updates(*words))  # type: ignore[arg-type]

    words = (
        "train",
        "--dataset",
        data,
        "--output",
        tmp_path / "runs",
        *TINY,
        "--seeds",
        "0,1",
        "--updates",
        3,
    )
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "updates_until_due", stop_first)
        stopped = cli(*words)
    assert stopped.exit_code == 130 and "stopped at update 1; nothing is lost" in stopped.output
    assert "--seeds 0,1" in stopped.output.partition("Next:")[2], stopped.output
    assert printed(cli(*words, "--resume", "--json"))["finished"]


def test_what_seeds_cannot_share_is_refused(data: Path, tmp_path: Path) -> None:
    words = ("train", "--output", tmp_path / "runs", *TINY, "--updates", 2)
    for seeds, why in (("0,0", "different whole numbers"), ("0,x", "such as 0,1,2"), ("0,-1", "from 0 on")):
        assert_refused(cli(*words, "--dataset", data, "--seeds", seeds), why)
    assert_refused(cli(*words, "--dataset", data, "--seeds", "0,1", "--seed", 2), "--seed is of one run")
    assert_refused(cli(*words, "--dataset", data, "--seeds", "0,1", "--resume"), "holds no run of seed 0")
    write_store(make_picture_store(), tmp_path / "pictures")
    assert_refused(cli(*words, "--dataset", tmp_path / "pictures", "--seeds", "0,1"), "has pictures")
    assert cli(*words, "--dataset", data).exit_code == 0
    assert_refused(cli(*words, "--dataset", data, "--seeds", "0,1"), "is the run of one seed")


def test_seeds_start_from_the_networks_of_another_run(runs: Path, data: Path, tmp_path: Path) -> None:
    source = load_checkpoint(runs / "seed_1")
    words = ("train", "--dataset", data, "--init-from", runs / "seed_1", "--updates", 2)
    assert cli(*words, "--output", tmp_path / "both", "--seeds", "4,5").exit_code == 0
    assert cli(*words, "--output", tmp_path / "alone", "--seed", 4).exit_code == 0
    assert load_checkpoint(tmp_path / "both" / "seed_4").initialised_from is not None
    alone, both = (load_checkpoint(tmp_path / name) for name in ("alone", "both/seed_4"))
    for name, tensor in alone.parameters.items():
        torch.testing.assert_close(both.parameters[name], tensor, rtol=0, atol=2e-4)
    name = "v.kernels.0"
    assert not torch.equal(both.parameters[name], source.parameters[name])
