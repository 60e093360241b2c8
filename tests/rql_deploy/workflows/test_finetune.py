"""`rql-deploy finetune` on a real simulator: data found by itself, evaluations, page, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rql_deploy.sim.plants.tasks import EnvPlant, Task, describe
from rql_deploy.train.data.folder import StoreWriter
from rql_deploy.train.logging.periodic_evaluation import read_evaluations
from tests.helpers.commands import TINY, assert_refused, cli

TASK = "gym:Pendulum-v1"


@pytest.fixture(scope="module")
def pendulum(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on three random episodes of the pendulum."""
    folder = tmp_path_factory.mktemp("pendulum")
    env = Task(TASK, {"horizon": 12}).make_env()
    plant, rng = EnvPlant(env), np.random.default_rng(0)
    with StoreWriter(folder / "data", "pendulum", describe(TASK, env)) as writer:
        for seed in range(3):
            plant.reset(seed)
            rows = []
            while not plant.finished:
                seen = np.concatenate([np.ravel(value) for value in plant.observe().values()])
                action = rng.uniform(-2, 2, 1).astype(np.float32)
                plant.apply(action)
                rows.append((seen, action, plant.reward, 1.0))
            writer.add_episode(*map(np.array, zip(*rows, strict=True)))
    env.close()
    words = ("--dataset", folder / "data", "--output", folder / "run", "--updates", 4, *TINY)
    assert cli("train", *words).exit_code == 0
    return folder


def words(pendulum: Path, output: Path, *more: object) -> tuple[object, ...]:
    start = ("finetune", TASK, "--from", pendulum / "run", "--output", output, "--horizon", 12, "--seed", 3)
    return *start, "--steps", 32, *more


def test_a_run_goes_on_in_its_simulator(pendulum: Path, tmp_path: Path) -> None:
    quiet = words(pendulum, tmp_path / "run", "--evaluate-every", 0)
    told = cli(*quiet)
    assert told.exit_code == 0, told.output
    assert f"rql-deploy evaluate {TASK} --checkpoint" in told.output
    assert "2 episodes were played while training" in (tmp_path / "run" / "README.md").read_text()
    assert_refused(cli(*quiet), "holds a run already", "--resume")
    assert_refused(cli(*quiet, "--resume"), "has done 32 updates already")
    assert_refused(
        cli("train", "--dataset", pendulum / "data", "--output", tmp_path / "run", "--resume"),
        "is a run of `rql-deploy finetune`",
    )


@pytest.mark.slow
def test_it_is_evaluated_from_before_the_first_update_on(pendulum: Path, tmp_path: Path) -> None:
    often = ("--evaluate-every", 16, "--evaluate-episodes", 2)
    assert cli(*words(pendulum, tmp_path / "run", *often)).exit_code == 0
    found = read_evaluations(tmp_path / "run")
    assert sorted(evaluation.step for evaluation in found) == [0, 16, 32]
    assert all(evaluation.steps_mean == 12 and evaluation.bias is not None for evaluation in found)
    assert "V minus return" in (tmp_path / "run" / "README.md").read_text()


def test_what_does_not_fit_is_refused(pendulum: Path, run: Path, tmp_path: Path) -> None:
    start = ("finetune", TASK, "--output", tmp_path / "run")
    assert_refused(
        cli(*start, "--from", run), "the data does not fit the task", "has shape [3] instead of [4]"
    )
    assert_refused(
        cli(*start, "--from", pendulum / "run", "--set", "online.candidate=2"), "online", "candidates"
    )
    assert_refused(
        cli(*start, "--from", pendulum / "run", "--set", "online.updates_per_step=0"), "lie in [1, 1000]"
    )
    assert_refused(cli(*start, "--from", pendulum / "run", "--set", "updates=3"), "no effect", "--steps")
    (pendulum / "run" / "data.json").rename(pendulum / "kept")
    try:
        assert_refused(cli(*start, "--from", pendulum / "run"), "does not say what it was trained on")
    finally:
        (pendulum / "kept").rename(pendulum / "run" / "data.json")
