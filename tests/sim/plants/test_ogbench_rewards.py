from pathlib import Path

import numpy as np
import ogbench
import pytest
from numpy.typing import NDArray

from rql_deploy.errors import UserError
from rql_deploy.sim.plants.ogbench_rewards import OGBenchRewards
from rql_deploy.train.data.readers import open_store
from rql_deploy.train.data.store import TransitionStore


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two short episodes of a real puzzle-3x3, recorded in OGBench's own form."""
    env = ogbench.make_env_and_datasets("puzzle-3x3-play-singletask-v0", env_only=True)
    rows: dict[str, list[NDArray[np.generic]]] = {
        key: [] for key in ("observations", "actions", "terminals", "qpos", "button_states")
    }
    rng = np.random.default_rng(0)
    for _ in range(2):
        observation, info = env.reset()
        for step in range(9):
            action = rng.uniform(-1, 1, 5).astype(np.float32)
            following, _, _, _, after = env.step(action)
            # Recorded states are those that the action was taken in; a button pressed on the way shows from
            # the next row on.
            buttons = np.asarray(info["button_states"]).copy()
            buttons[:step] = env.unwrapped._target_button_states[:step]
            row = (observation, action, np.bool_(step == 8), info["qpos"], buttons)
            for key, value in zip(rows, row, strict=True):
                rows[key].append(np.asarray(value))
            observation, info = following, after
    env.close()
    file = tmp_path_factory.mktemp("ogbench") / "puzzle-3x3-play-v0.npz"
    arrays = {key: np.stack(value) for key, value in rows.items()}
    np.savez_compressed(file, **arrays)
    np.savez_compressed(file.with_name("puzzle-3x3-play-v0-val.npz"), **arrays)
    return file


def test_rewards_are_those_ogbench_gives_the_same_file(recorded: Path) -> None:
    name = "puzzle-3x3-play-singletask-task4-v0"
    store = open_store(str(recorded), relabel=OGBenchRewards(name))
    assert isinstance(store, TransitionStore)
    _, theirs, _ = ogbench.make_env_and_datasets(name, dataset_path=str(recorded))
    assert np.array_equal(store.observations, theirs["observations"])
    assert np.array_equal(store.actions, theirs["actions"])
    assert np.array_equal(store.rewards, theirs["rewards"])
    assert np.array_equal(store.masks, theirs["masks"])
    assert len(set(store.rewards.tolist())) > 2
    assert store.plant.task == f"ogbench:{name}"
    store.validate(5)


def test_sparse_rewards_follow_from_the_computed_ones(recorded: Path) -> None:
    store = open_store(
        str(recorded), relabel=OGBenchRewards("puzzle-3x3-play-singletask-v0"), reward="sparse"
    )
    assert isinstance(store, TransitionStore)
    assert set(store.rewards.tolist()) <= {-1.0, 0.0}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("puzzle-3x3-play-v0", "not a task with rewards: write it like"),
        ("puzzle-9x9-play-singletask-v0", "OGBench has no task"),
        ("cube-quadruple-play-singletask-v0", "do not fit the data set"),
        ("scene-play-singletask-v0", "do not fit the data set"),
    ],
)
def test_a_task_that_does_not_fit_is_refused_in_one_sentence(name: str, words: str, recorded: Path) -> None:
    with pytest.raises(UserError, match=words):
        open_store(str(recorded), relabel=OGBenchRewards(name))
