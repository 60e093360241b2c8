from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ogbench.utils import load_dataset

from rql_deploy.errors import UserError
from rql_deploy.train.data.folder import write_store
from rql_deploy.train.data.readers import npz as npz_module
from rql_deploy.train.data.readers import open_store, open_stores
from rql_deploy.train.data.shards import ShardedStore
from rql_deploy.train.data.store import TransitionStore
from tests.helpers.data import make_store


def arrays(
    episodes: tuple[int, ...] = (9, 7, 12),
    *,
    seed: int = 0,
    labelled: bool = True,
    observation: int = 37,
    action: int = 5,
) -> Any:
    """The arrays of an OGBench file: as published, or with rewards and masks too."""
    rng = np.random.default_rng(seed)
    rows = sum(episodes)
    terminals = np.zeros(rows, bool)
    terminals[np.cumsum(episodes) - 1] = True
    found = {
        "observations": rng.normal(size=(rows, observation)).astype(np.float32),
        "actions": rng.uniform(-1, 1, (rows, action)).astype(np.float32),
        "terminals": terminals,
        "qpos": rng.normal(size=(rows, 28)).astype(np.float32),
    }
    if labelled:
        success = (rng.uniform(size=rows) < 0.2).astype(np.float32)
        found |= {"rewards": 2 * success - 2, "masks": 1 - success}
    return found


def write(file: Path, **changes: Any) -> Path:
    found = arrays() | changes
    np.savez_compressed(file, **{key: value for key, value in found.items() if value is not None})
    return file


def opened(path: Path, **options: Any) -> TransitionStore:
    store = open_store(str(path), **options)
    assert isinstance(store, TransitionStore)
    return store


class Halfway:
    """Success where the first coordinate is positive."""

    name = "cube-double-play-singletask-task9-v0"

    def __call__(self, states: Any) -> Any:
        success = (states["qpos"][:, 0] > 0).astype(np.float32)
        return success - 1, 1 - success


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_rows_are_those_of_ogbenchs_own_loader(
    save: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "cube-double-play-v0.npz"
    save(file, **arrays())
    monkeypatch.setattr(npz_module, "BLOCK_BYTES", 600)
    store, loaded = opened(file), load_dataset(str(file))
    assert np.array_equal(store.observations, loaded["observations"])
    assert np.array_equal(store.actions, loaded["actions"])
    terminals = np.zeros(len(store))
    terminals[store.ends - 1] = 1
    assert np.array_equal(terminals, loaded["terminals"])
    assert store.ends.tolist() == [8, 14, 25]
    assert np.array_equal(store.rewards, arrays()["rewards"][~arrays()["terminals"]])
    assert store.validate(5) == []


def test_a_file_cut_between_rows_ends_its_last_episode_there(tmp_path: Path) -> None:
    file = write(tmp_path / "a.npz", **{key: value[:20] for key, value in arrays().items()})
    store, loaded = opened(file), load_dataset(str(file))
    assert store.ends.tolist() == [8, 14, 18]
    assert np.array_equal(store.observations, loaded["observations"])


@pytest.mark.parametrize(
    ("name", "rate", "first"),
    [
        ("cube-double-play-v0", 20.0, "dx"),
        ("antmaze-large-navigate-v0", 10.0, "action_0"),
        ("humanoidmaze-large-navigate-v0", 40.0, "action_0"),
    ],
)
def test_the_plant_is_named_after_the_file(name: str, rate: float, first: str, tmp_path: Path) -> None:
    plant = opened(
        write(tmp_path / f"{name}.npz", actions=arrays(action=5 if first == "dx" else 8)["actions"])
    ).plant
    assert (plant.task, plant.control_rate, plant.actions[0].name) == (f"ogbench:{name}", rate, first)
    assert plant.fields[0].shape == (37,)
    assert set(plant.action_low) == {-1.0} and set(plant.action_high) == {1.0}


def test_rewards_are_computed_where_the_file_has_none(tmp_path: Path) -> None:
    file = write(tmp_path / "cube-double-play-v0.npz", rewards=None, masks=None)
    with pytest.raises(UserError, match=r"no rewards: .* --set relabel=TASK"):
        open_store(str(file))
    store = opened(file, relabel=Halfway())
    kept = arrays()["qpos"][~arrays()["terminals"]]
    assert np.array_equal(store.rewards, (kept[:, 0] > 0) - 1.0)
    assert np.array_equal(store.masks, 1.0 - (kept[:, 0] > 0))
    assert store.plant.task == f"ogbench:{Halfway.name}"


def test_rewards_of_the_file_come_before_computed_ones(tmp_path: Path) -> None:
    file = write(tmp_path / "a.npz")
    assert opened(file, relabel=Halfway()).content_hash == opened(file).content_hash


def test_sparse_rewards_are_minus_one_wherever_they_are_not_zero(tmp_path: Path) -> None:
    store = opened(write(tmp_path / "a.npz", rewards=np.array([0, -1, -3, -0.5] * 7)), reward="sparse")
    assert set(store.rewards.tolist()) == {0.0, -1.0}
    assert store.rewards[:4].tolist() == [0, -1, -1, -1]


def test_sparse_is_refused_where_a_reward_is_positive(tmp_path: Path) -> None:
    rewards = np.full(28, -1.0)
    rewards[11] = 0.5
    with pytest.raises(UserError, match=r"reward is 0.5 at episode 1, row 2 .1 positive"):
        open_store(str(write(tmp_path / "a.npz", rewards=rewards)), reward="sparse")


def test_what_is_not_read_may_be_of_any_kind(tmp_path: Path) -> None:
    notes = {"notes": np.array({"robot": "arm"}, object), "version": np.array(3), "who": np.array("me")}
    assert len(opened(write(tmp_path / "a.npz", **notes))) == len(opened(write(tmp_path / "b.npz")))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"terminals": None}, "lacks 'terminals', so it is no OGBench data set: it holds actions, masks"),
        ({"actions": np.zeros((27, 5), np.float32)}, "'actions' has 27 rows, 'observations' has 28"),
        ({"actions": np.zeros(28, np.int64)}, "'actions' has shape .28., it should have 2"),
        ({"actions": np.zeros((28, 5), np.int64)}, "'actions' holds int64"),
        ({"observations": np.zeros((28, 4), "U3")}, "'observations' holds <U3"),
        ({"observations": np.zeros((28, 8, 8, 3), np.float32)}, "pictures of float32"),
        ({"observations": np.full((28, 2), None)}, "'observations' holds Python objects"),
        ({"observations": np.asfortranarray(np.zeros((28, 4), np.float32))}, "column by column"),
        ({key: value[:0] for key, value in arrays().items()}, "is empty"),
        ({"masks": None}, "has rewards but of rewards and masks both are needed"),
        ({"terminals": np.ones(28, bool)}, "episode 0 has one row only .row 0."),
        ({"terminals": arrays()["terminals"] | (np.arange(28) == 9)}, "episode 1 has one row only .row 9."),
    ],
)
def test_a_file_that_does_not_fit_is_named_in_one_sentence(
    changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=words) as refused:
        open_store(str(write(tmp_path / "a.npz", **changes)))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("reward", ["as-is", "sparse"])
@pytest.mark.parametrize("column", ["observations", "actions", "rewards", "masks"])
def test_nan_is_named_by_field_episode_and_row(column: str, reward: str, tmp_path: Path) -> None:
    values = arrays()[column].copy()
    values[13] = np.nan
    with pytest.raises(UserError, match="episode 1, row 4"):
        opened(write(tmp_path / "a.npz", **{column: values}), reward=reward).validate(3)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_damage(share: float, tmp_path: Path) -> None:
    file = write(tmp_path / "a.npz")
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    with pytest.raises(UserError, match="is damaged"):
        open_store(str(file))


def test_flipped_bytes_are_damage(tmp_path: Path) -> None:
    file = write(tmp_path / "a.npz")
    content = bytearray(file.read_bytes())
    content[2000:2010] = bytes(10)
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"is damaged .'observations'"):
        open_store(str(file))


def test_a_header_that_promises_more_rows_than_there_are_is_damage(tmp_path: Path) -> None:
    import io
    import zipfile

    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": "<f4", "fortran_order": False, "shape": (10**12, 37)}
    )  # type: ignore[no-untyped-call]
    file = write(tmp_path / "a.npz", observations=None)
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("observations.npy", buffer.getvalue())
    with pytest.raises(UserError, match="its header says shape"):
        open_store(str(file))


def shards(folder: Path, count: int = 3, **changes: Any) -> Path:
    folder.mkdir()
    for i in range(count):
        found = arrays((9, 7 + i), seed=i)
        found["observations"][:, 0] = 100 * i
        np.savez_compressed(folder / f"data-{i:03}.npz", **found)
    np.savez_compressed(folder / "data-000-val.npz", **arrays(seed=9))
    return folder


def test_what_a_path_is_picks_the_reader(tmp_path: Path, dataset: Path) -> None:
    many = open_store(str(shards(tmp_path / "many")))
    assert isinstance(many, ShardedStore)
    assert [shard.name for shard in many.shards] == ["data-000.npz", "data-001.npz", "data-002.npz"]
    assert (many.episodes, len(many)) == (6, 45)
    assert isinstance(open_store(str(shards(tmp_path / "one", 1))), TransitionStore)
    assert opened(dataset).episodes == 3
    write_store(make_store(), tmp_path / "stores" / "a")
    write_store(make_store(seed=1), tmp_path / "stores" / "b")
    assert opened(tmp_path / "stores" / "a").content_hash == make_store().content_hash
    assert isinstance(open_store(str(tmp_path / "stores")), ShardedStore)
    with pytest.raises(UserError, match="no Minari data set"):
        open_store(str(tmp_path / "nothing"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty holds no data set"):
        open_store(str(tmp_path / "empty"))
    with pytest.raises(UserError, match="there is no file"):
        open_store(str(tmp_path / "nothing.npz"))


def test_several_data_sets_become_one_and_a_sharded_one_stays_alone(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a.npz"), write(tmp_path / "b.npz", **arrays(seed=1))
    joined = open_stores([str(a), str(b)])
    assert joined.episodes == 6 and joined.dataset_id == "a + b"
    with pytest.raises(UserError, match="many is sharded and streams alone"):
        open_stores([str(a), str(shards(tmp_path / "many"))])


def test_shards_of_other_shapes_are_refused_before_training(tmp_path: Path) -> None:
    folder = shards(tmp_path / "many")
    write(folder / "data-001.npz", **arrays(observation=40))
    with pytest.raises(
        UserError, match=r"shard data-001.npz does not fit data-000.npz .*shape \[40\] instead of \[37\]"
    ):
        open_store(str(folder))


def test_the_hash_of_a_sharded_set_sees_rows_and_rewards(tmp_path: Path) -> None:
    folder = shards(tmp_path / "many")
    before = open_store(str(folder)).content_hash
    assert open_store(str(folder)).content_hash == before
    assert open_store(str(folder), reward="sparse").content_hash != before
    write(folder / "data-002.npz", **arrays((9, 9), seed=7))
    assert open_store(str(folder)).content_hash != before
