"""What the writers write, the formats' own libraries load: the rows, to the bit, of random plants."""

import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from rql_deploy.cameras import parse_cameras
from rql_deploy.contract import ObservationField
from rql_deploy.errors import UserError
from rql_deploy.train.data.readers.lerobot_layout import feature_name
from rql_deploy.train.data.readers.options import ReadOptions
from rql_deploy.train.data.readers.robomimic_keys import observation_name
from rql_deploy.train.data.store import TransitionStore
from rql_deploy.train.data.writers import write
from rql_deploy.workflows.data.minari_ids import write_minari
from tests.helpers.commands import ROOT, unavailable
from tests.helpers.data import PLANT, make_store, opened
from tests.helpers.foreign_libraries import installed, rows_loaded, write_cameras
from tests.helpers.pictures import numbers_in
from tests.helpers.stores import field_columns, stores

FEW = settings(
    max_examples=8, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)


def same_rows(path: Path, store: TransitionStore) -> None:
    """Our own reader finds the same rows and the same plant again."""
    back = opened(path)
    assert back.content_hash == store.content_hash
    assert back.plant == store.plant


MANY = settings(FEW, max_examples=200)


def ogbench_loads(store: TransitionStore) -> None:
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


@FEW
@given(store=stores())
def test_ogbench_loads_what_we_write(store: TransitionStore) -> None:
    ogbench_loads(store)


@pytest.mark.slow
@MANY
@given(store=stores())
def test_ogbench_loads_many_sets(store: TransitionStore) -> None:
    ogbench_loads(store)


def minari_loads(layout: str, store: TransitionStore) -> None:
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


@pytest.mark.parametrize("layout", ["hdf5", "arrow"])
@FEW
@given(store=stores())
def test_minari_loads_what_we_write(layout: str, store: TransitionStore) -> None:
    minari_loads(layout, store)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["hdf5", "arrow", "parquet"])
@MANY
@given(store=stores())
def test_minari_loads_many_sets(layout: str, store: TransitionStore) -> None:
    minari_loads(layout, store)


def library(name: str) -> Path:
    try:
        return installed(name, ROOT / "build" / "foreign")
    except subprocess.CalledProcessError as error:
        unavailable(f"{name} cannot be installed: {error.stderr.strip()[-300:]}")


ONE_PROCESS = settings(FEW, max_examples=2, phases=[Phase.generate])
"""A process that loads ten sets takes seconds: no more than two of them, and no shrinking."""


def loaded_by(
    name: str, several: list[TransitionStore], suffix: str = ""
) -> Iterator[tuple[TransitionStore, dict[str, np.ndarray]]]:
    """Each store, and the rows that the library finds in what we write of it."""
    with tempfile.TemporaryDirectory() as folder:
        sets = [Path(folder) / f"set{i}{suffix}" for i in range(len(several))]
        for store, target in zip(several, sets, strict=True):
            write(store, target, name)
            same_rows(target, store)
        found = rows_loaded(library(name), sets)
    yield from zip(several, found, strict=True)


@pytest.mark.slow
@ONE_PROCESS
@given(several=st.lists(stores(), min_size=10, max_size=10))
def test_lerobot_loads_what_we_write(several: list[TransitionStore]) -> None:
    for store, found in loaded_by("lerobot", several):
        for name, values in field_columns(store).items():
            assert np.array_equal(found[feature_name(name)].reshape(values.shape), values), name
        assert np.array_equal(found["action"].reshape(store.actions.shape), store.actions)
        assert np.array_equal(found["next.reward"], store.rewards)
        assert np.flatnonzero(found["next.done"]).tolist() == (store.ends - 1).tolist()


@pytest.mark.slow
def test_the_frames_of_a_set_that_lerobot_recorded_are_those_of_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RQL_DEPLOY_CACHE", str(tmp_path / "cache"))
    episodes = (9, 14, 6)
    write_cameras(library("lerobot"), tmp_path / "set", episodes)
    store = opened(tmp_path / "set", ReadOptions(cameras=parse_cameras(["top", "wrist:32x64"])))
    assert store.observations[:, 0].tolist() == list(range(29))
    for name in ("observation.images.top", "observation.images.wrist"):
        assert numbers_in(store.images[name].take(np.arange(29))) == list(range(29)), name
    assert np.diff(store.ends, prepend=0).tolist() == list(episodes)


@pytest.mark.slow
@ONE_PROCESS
@given(several=st.lists(stores(), min_size=10, max_size=10))
def test_robomimic_loads_what_we_write(several: list[TransitionStore]) -> None:
    for store, found in loaded_by("robomimic", several, ".hdf5"):
        for name, values in field_columns(store).items():
            assert np.array_equal(found[f"obs/{observation_name(name)}"].reshape(values.shape), values), name
        assert np.array_equal(found["actions"], store.actions)
        assert np.array_equal(found["rewards"], store.rewards)
        assert np.array_equal(found["dones"] != 0, store.masks == 0)


@FEW
@given(store=stores())
def test_columns_of_lerobot_are_of_the_types_its_loader_makes_of_features(store: TransitionStore) -> None:
    """lerobot's `get_hf_features_from_features`: shape [1] is a number, [n] a list of n."""
    import json

    import pyarrow.parquet as parquet

    with tempfile.TemporaryDirectory() as folder:
        write(store, Path(folder) / "set", "lerobot")
        features = json.loads((Path(folder) / "set" / "meta" / "info.json").read_text())["features"]
        schema = parquet.read_schema(next((Path(folder) / "set" / "data").glob("**/*.parquet")))
    for name, feature in features.items():
        kind = schema.field(name).type
        assert "/" not in name
        length = getattr(kind, "list_size", 1)
        assert ([length], hasattr(kind, "list_size")) == (feature["shape"], feature["shape"] != [1]), name


@FEW
@given(store=stores())
def test_observations_of_robomimic_are_arrays_of_one_level(store: TransitionStore) -> None:
    import h5py

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "set.hdf5"
        write(store, file, "robomimic")
        same_rows(file, store)
        with h5py.File(file) as h5:
            assert all(isinstance(node, h5py.Dataset) for node in h5["data/demo_0/obs"].values())


def test_fields_that_would_be_in_one_place_are_refused_by_name(tmp_path: Path) -> None:
    for names, form in ((("a/b", "a.b"), "robomimic"), (("a/b", "a.b"), "lerobot"), (("a", "a/b"), "minari")):
        fields = tuple(ObservationField(name, (1,)) for name in names)
        store = make_store(plant=msgspec.structs.replace(PLANT, fields=fields))
        with pytest.raises(UserError, match="rename"):
            if form == "minari":
                write_minari(store, str(tmp_path / "new"), "hdf5")
            else:
                write(store, tmp_path / "new.hdf5", form)
        assert list(tmp_path.iterdir()) == []
