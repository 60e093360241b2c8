from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rql_deploy.cli.options import preset_words
from rql_deploy.errors import UserError
from rql_deploy.train.batch import draw_noise
from rql_deploy.train.config import load_config, preset_names
from rql_deploy.train.data.readers import open_store
from rql_deploy.train.data.sampler import WindowSampler
from rql_deploy.train.data.shards import ShardedStore
from rql_deploy.train.data.store import TransitionStore
from rql_deploy.train.loop.trainer import Trainer
from rql_deploy.train.rql import RQL
from rql_deploy.workflows.demo.result import PICTURES
from rql_deploy.workflows.presets import PRESETS

# The paper's settings; then the dimensions of observation and action that OGBench's environments have.
#                                       alpha kappa rho h  gamma  reward     O   A
PAPER = {
    "ogbench-scene-play":                   (3.0, 0.7, 0.5, 5, 0.99, "sparse", 40, 5),
    "ogbench-puzzle-3x3-play":              (1.0, 0.7, 0.5, 5, 0.99, "sparse", 55, 5),
    "ogbench-puzzle-4x4-play-100m":         (1.0, 0.9, 0.5, 5, 0.99, "sparse", 83, 5),
    "ogbench-cube-double-play":             (10.0, 0.9, 0.5, 5, 0.99, "as-is", 37, 5),
    "ogbench-cube-triple-play":             (1.0, 0.9, 0.5, 5, 0.99, "as-is", 46, 5),
    "ogbench-cube-quadruple-play-100m":     (1.0, 0.7, 0.5, 5, 0.99, "as-is", 55, 5),
    "ogbench-antmaze-large-navigate":       (0.1, 0.5, 0.5, 1, 0.99, "as-is", 29, 8),
    "ogbench-antmaze-giant-navigate":       (0.1, 0.5, 0.5, 1, 0.995, "as-is", 29, 8),
    "ogbench-humanoidmaze-medium-navigate": (0.3, 0.5, 0.0, 1, 0.995, "as-is", 69, 21),
    "ogbench-humanoidmaze-large-navigate":  (0.3, 0.5, 0.0, 1, 0.995, "as-is", 69, 21),
}  # fmt: skip
SHRUNKEN = (
    "rql.policy_hidden=[16, 16]",
    "rql.value_hidden=[16, 16]",
    "rql.K=2",
    "batch_size=16",
    "updates=2",
    "shard_updates=1",
)


def write_shard(file: Path, observation: int, action: int, seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    rows = 60
    success = rng.uniform(size=rows) < 0.1
    np.savez_compressed(
        file,
        observations=rng.normal(size=(rows, observation)).astype(np.float32),
        actions=rng.uniform(-1, 1, (rows, action)).astype(np.float32),
        terminals=np.arange(rows) % 20 == 19,
        rewards=-2.0 * ~success,
        masks=1.0 - success,
    )


@pytest.mark.parametrize("name", PAPER)
def test_the_numbers_are_the_papers(name: str) -> None:
    config = load_config(name)
    c = config.rql
    assert (c.alpha, c.kappa, c.rho, c.h, c.gamma, config.reward) == PAPER[name][:6]
    assert (c.F, c.K, c.policy_hidden, c.value_hidden, c.tau, c.ema, c.learning_rate) == (
        10,
        10,
        (512,) * 4,
        (512,) * 4,
        0.005,
        0.999,
        3e-4,
    )
    assert (config.batch_size, config.updates, config.standardise, config.sampling) == (
        256,
        1_000_000,
        False,
        "episodes",
    )
    assert config.relabel == f"{name.removeprefix('ogbench-').removesuffix('-100m')}-singletask-v0"


@pytest.mark.parametrize("name", PAPER)
def test_each_trains_on_a_file_of_its_shape(name: str, tmp_path: Path) -> None:
    config, (observation, action) = load_config(name, SHRUNKEN), PAPER[name][6:]
    path: Path = tmp_path / f"{name.removeprefix('ogbench-')}.npz"
    if name.endswith("100m"):
        path = tmp_path / "shards"
        path.mkdir()
        for i in range(2):
            write_shard(path / f"{i}.npz", observation, action, seed=i)
    else:
        write_shard(path, observation, action)
    store = open_store(str(path), reward=config.reward, shard_updates=config.shard_updates)
    assert (store.plant.observation_dim, store.plant.action_dim) == (observation, action)
    assert set(store.sample.rewards.tolist()) == ({0.0, -1.0} if config.reward == "sparse" else {0.0, -2.0})
    if isinstance(store, TransitionStore):
        result = Trainer(config, store, tmp_path / "run").train()
        assert result.step == 2 and np.isfinite(result.losses["total"])
    else:
        train_on_shards(config, store)


def train_on_shards(config: Any, store: ShardedStore) -> None:
    """Two updates, one on each shard."""
    generator = torch.Generator().manual_seed(0)
    store.validate(config.rql.h)
    sampler = WindowSampler(store, config.rql.h, generator=generator)
    agent = RQL(config.rql, store.plant.observation_dim, store.plant.action_dim, generator)
    for step in range(config.updates):
        assert sampler.advance(step) == (step > 0)
        noise = draw_noise(config.batch_size, config.rql.h * store.plant.action_dim, config.rql.F, generator)
        assert torch.isfinite(agent.update(sampler.draw(config.batch_size), noise).total)


@pytest.mark.parametrize("name", ["robosuite-stack", "robosuite-door", "robosuite-can", "robosuite-square"])
def test_other_robosuite_tasks_start_from_lifts_settings_and_say_so(name: str) -> None:
    assert load_config(name) == load_config("robosuite-lift")
    text = (Path(__file__).parents[2] / "train" / "presets" / f"{name}.toml").read_text()
    assert "starting point" in text and "untuned" in text


def test_the_preset_that_commands_name_next_is_there_and_the_tasks_own() -> None:
    assert set(PRESETS.values()) == set(preset_names()) - {"reference", PICTURES.preset}
    assert preset_words("ogbench:puzzle-3x3-play-singletask-task4-v0") == [
        "--preset",
        "ogbench-puzzle-3x3-play",
    ]
    assert preset_words("robosuite:PickPlaceCan") == ["--preset", "robosuite-can"]
    assert preset_words("gym:Pendulum-v1") == []


def test_every_preset_loads_and_begins_by_saying_what_it_is() -> None:
    for name in preset_names():
        load_config(name)
        assert (Path(__file__).parents[2] / "train" / "presets" / f"{name}.toml").read_text().startswith("# ")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("reward=spars", "train.reward should be 'as-is' or 'sparse'"),
        ("shard_updates=0", "train.shard_updates is 0, it must be at least 1"),
        ("relable=x", "unknown entry 'relable': did you mean relabel"),
    ],
)
def test_a_wrong_data_setting_is_named(override: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        load_config("reference", [override])


@pytest.mark.slow
@pytest.mark.parametrize("name", PAPER)
def test_the_dimensions_are_those_of_ogbenchs_environments(name: str) -> None:
    import ogbench

    env = ogbench.make_env_and_datasets(load_config(name).relabel, env_only=True)
    assert env.observation_space.shape + env.action_space.shape == PAPER[name][6:]
    env.close()
