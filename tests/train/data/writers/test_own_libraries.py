"""What the writers write, the formats' own libraries load: the rows, to the bit, of random plants."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from rql_deploy.train.data.store import TransitionStore
from rql_deploy.train.data.writers import write
from rql_deploy.workflows.minari_data import write_minari
from tests.helpers.data import opened
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
