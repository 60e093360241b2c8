"""What the writers write, the formats' own libraries load: the rows, to the bit, of random plants."""

import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from rql_deploy.train.data.readers.lerobot import feature_name
from rql_deploy.train.data.readers.robomimic import observation_name
from rql_deploy.train.data.store import TransitionStore
from rql_deploy.train.data.writers import write
from rql_deploy.workflows.minari_data import write_minari
from tests.helpers.commands import ROOT, unavailable
from tests.helpers.data import opened
from tests.helpers.foreign_libraries import installed, rows_loaded
from tests.helpers.stores import field_columns, stores

FEW = settings(
    max_examples=25, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)


def same_rows(path: Path, store: TransitionStore) -> None:
    """Our own reader finds the same rows and the same plant again."""
    back = opened(path)
    assert back.content_hash == store.content_hash
    assert back.plant == store.plant


@FEW
@given(store=stores())
def test_ogbench_loads_what_we_write(store: TransitionStore) -> None:
    from ogbench.utils import load_dataset

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "random.npz"
        write(store, file, "ogbench")
        loaded = load_dataset(file)
        same_rows(file, store)
    last = np.zeros(len(store))
    last[store.ends - 1] = 1
    assert np.array_equal(loaded["observations"], store.observations)
    assert np.array_equal(loaded["actions"], store.actions)
    assert np.array_equal(loaded["terminals"], last)
    finals = store.observations[store.ends - 1] if store.finals is None else store.finals
    assert np.array_equal(loaded["next_observations"][store.ends - 1], finals)


@pytest.mark.parametrize("layout", ["hdf5", "arrow"])
@settings(FEW, max_examples=8)
@given(store=stores())
def test_minari_loads_what_we_write(layout: str, store: TransitionStore) -> None:
    from minari import MinariDataset

    columns = field_columns(store)
    alone = len(columns) == 1 and len(store.plant.fields[0].shape) == 1
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "set"
        write_minari(store, str(target), layout)
        episodes = list(MinariDataset(target / "data").iterate_episodes())
        back = opened(target)
    assert [len(episode.actions) for episode in episodes] == np.diff(store.ends, prepend=0).tolist()
    for i, (start, episode) in enumerate(zip(store.starts, episodes, strict=True)):
        rows = slice(start, store.ends[i])
        for name, values in columns.items():
            seen = episode.observations
            for part in () if alone else name.split("/"):
                seen = seen[part]
            assert np.array_equal(seen[:-1], values[rows]), name
        assert np.array_equal(episode.actions, store.actions[rows])
        assert np.array_equal(np.asarray(episode.rewards, np.float32), store.rewards[rows])
        assert np.array_equal(episode.terminations, store.masks[rows] == 0)
        if store.successes is not None:
            assert episode.infos["success"].tolist()[-1] == store.successes[i]
    assert back.content_hash == store.content_hash and back.plant == store.plant


def library(name: str) -> Path:
    try:
        return installed(name, ROOT / "build" / "foreign")
    except subprocess.CalledProcessError as error:
        unavailable(f"{name} cannot be installed: {error.stderr.strip()[-300:]}")


ONE_PROCESS = settings(FEW, max_examples=2, phases=[Phase.generate])
"""A process that loads ten sets takes seconds: no more than two of them, and no shrinking."""


@pytest.mark.slow
@ONE_PROCESS
@given(several=st.lists(stores(), min_size=10, max_size=10))
def test_lerobot_loads_what_we_write(several: list[TransitionStore]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        sets = [Path(folder) / f"set{i}" for i in range(len(several))]
        for store, target in zip(several, sets, strict=True):
            write(store, target, "lerobot")
            same_rows(target, store)
        loaded = rows_loaded(library("lerobot"), sets)
    for store, found in zip(several, loaded, strict=True):
        for name, values in field_columns(store).items():
            assert np.array_equal(found[feature_name(name)].reshape(values.shape), values), name
        assert np.array_equal(found["action"].reshape(store.actions.shape), store.actions)
        assert np.array_equal(found["next.reward"], store.rewards)
        assert np.flatnonzero(found["next.done"]).tolist() == (store.ends - 1).tolist()


@pytest.mark.slow
@ONE_PROCESS
@given(several=st.lists(stores(), min_size=10, max_size=10))
def test_robomimic_loads_what_we_write(several: list[TransitionStore]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        sets = [Path(folder) / f"set{i}.hdf5" for i in range(len(several))]
        for store, target in zip(several, sets, strict=True):
            write(store, target, "robomimic")
            same_rows(target, store)
        loaded = rows_loaded(library("robomimic"), sets)
    for store, found in zip(several, loaded, strict=True):
        for name, values in field_columns(store).items():
            assert np.array_equal(found[f"obs/{observation_name(name)}"].reshape(values.shape), values), name
        assert np.array_equal(found["actions"], store.actions)
        assert np.array_equal(found["rewards"], store.rewards)
        assert np.array_equal(found["dones"] != 0, store.masks == 0)
