"""`rql-deploy data relabel`: other rewards for data of several formats."""

import shutil
from pathlib import Path

import h5py
import numpy as np

from rql_deploy.train.data.readers.robomimic import read_robomimic
from tests.helpers.commands import assert_refused, cli, printed
from tests.helpers.data import ROBOMIMIC, opened, stored


def test_success_becomes_reward_and_end(tmp_path: Path) -> None:
    result = cli("data", "relabel", ROBOMIMIC, "--success", "--output", tmp_path / "out")
    assert result.exit_code == 0, result.output
    before, after = opened(ROBOMIMIC), opened(tmp_path / "out")
    assert np.array_equal(after.rewards, before.rewards - 1) and set(after.rewards.tolist()) == {-1.0, 0.0}
    assert np.array_equal(after.masks, -after.rewards)


def test_rewards_of_minus_one_and_zero_say_success_too(tmp_path: Path) -> None:
    rewards = np.full(28, -1.0, np.float32)
    rewards[[8, 27]] = 0.0
    said = {"masks": np.ones(28, np.float32), "successes": None}
    source = stored(tmp_path / "source", rewards=rewards, **said)
    assert cli("data", "relabel", source, "--success", "--output", tmp_path / "out").exit_code == 0
    assert np.flatnonzero(opened(tmp_path / "out").masks == 0).tolist() == [8, 27]
    penalty = stored(tmp_path / "penalty", rewards=-1.0 - rewards, **said)
    assert_refused(
        cli("data", "relabel", penalty, "--success", "--output", tmp_path / "no"), "nothing in data set"
    )


def test_demonstrations_without_rewards_get_them(tmp_path: Path) -> None:
    file = Path(shutil.copy(ROBOMIMIC, tmp_path / "human.hdf5"))
    with h5py.File(file, "a") as opened_file:
        for demo in opened_file["data"].values():
            del demo["rewards"], demo["dones"]
    assert (read_robomimic(file).rewards == 0).all()
    assert_refused(
        cli("data", "relabel", file, "--success", "--output", tmp_path / "no"), "pass --all-successful"
    )
    assert cli("data", "relabel", file, "--all-successful", "--output", tmp_path / "out").exit_code == 0
    store = opened(tmp_path / "out")
    assert np.flatnonzero(store.rewards == 0).tolist() == (store.ends - 1).tolist()


def test_sparse_is_refused_where_rewards_are_positive(tmp_path: Path) -> None:
    assert_refused(
        cli("data", "relabel", ROBOMIMIC, "--sparse", "--output", tmp_path / "out"),
        "the reward is 1",
        "episode 0, row 30",
    )
    assert_refused(cli("data", "relabel", ROBOMIMIC, "--output", tmp_path / "out"), "which rewards")
    source = stored(tmp_path / "source", rewards=np.float32([-0.5, 0] * 14))
    assert cli("data", "relabel", source, "--sparse", "--output", tmp_path / "out").exit_code == 0
    assert set(opened(tmp_path / "out").rewards.tolist()) == {-1.0, 0.0}


def play_file(file: Path) -> Path:
    """Cube-single play data as OGBench writes it, with rewards in it."""
    rng = np.random.default_rng(0)
    rows = 20
    qpos = np.zeros((rows, 21), np.float32)
    qpos[:, 14:17] = rng.uniform(0.3, 0.5, (rows, 3))
    arrays = {
        "observations": rng.normal(size=(rows, 28)).astype(np.float32),
        "actions": rng.uniform(-1, 1, (rows, 5)).astype(np.float32),
    }
    np.savez(
        file,
        **arrays,
        terminals=np.arange(rows) % 10 == 9,
        qpos=qpos,
        rewards=np.full(rows, -0.5),
        masks=np.ones(rows),
    )
    return file


def test_rewards_that_are_there_give_way_to_a_task_that_is_named(tmp_path: Path) -> None:
    file, task = play_file(tmp_path / "cube-single-play-v0.npz"), "cube-single-play-singletask-task2-v0"
    assert set(opened(file).rewards.tolist()) == {-0.5}
    result = cli("data", "relabel", file, "--task", task, "--output", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert set(opened(tmp_path / "out").rewards.tolist()) <= {-1.0, 0.0}
    for data in (ROBOMIMIC, stored(tmp_path / "source")):
        for verb in ("relabel", "convert"):
            option = "--task" if verb == "relabel" else "--relabel"
            refused = cli("data", verb, data, option, task, "--output", tmp_path / "no")
            assert_refused(refused, "lacks the simulator's states")
    printed(cli("data", "convert", file, "--output", tmp_path / "again.npz", "--json"))
    assert_refused(
        cli("data", "relabel", tmp_path / "again.npz", "--task", task, "--output", tmp_path / "no"),
        "no simulator states",
    )
    assert not (tmp_path / "no").exists()
