import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest

from rql_deploy.contract import ObservationField, PlantDescription
from rql_deploy.errors import UserError
from rql_deploy.train.data import store as store_module
from rql_deploy.train.data.edits import concatenate
from rql_deploy.train.data.folder import StoreWriter, read_store, write_store
from rql_deploy.train.data.store import TransitionStore
from tests.helpers.data import PLANT, make_store

ARRAYS = ("observations", "actions", "rewards", "masks", "ends", "successes")


def changed(store: TransitionStore, name: str, row: int, value: float) -> TransitionStore:
    array = getattr(store, name).copy()
    array[row] = value
    return dataclasses.replace(store, **{name: array})


def test_a_store_comes_back_from_its_folder_memory_mapped_with_the_same_rows(tmp_path: Path) -> None:
    store = make_store()
    written = write_store(store, tmp_path / "data")
    assert isinstance(written.observations, np.memmap)
    for name in ARRAYS:
        assert np.array_equal(getattr(written, name), getattr(store, name))
    assert (written.dataset_id, written.plant, written.content_hash) == (
        store.dataset_id,
        store.plant,
        store.content_hash,
    )
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["data"]


def test_episodes_written_one_by_one_are_the_store_written_at_once(tmp_path: Path) -> None:
    store = make_store()
    assert store.successes is not None
    with StoreWriter(tmp_path / "data", store.dataset_id, store.plant) as writer:
        for start, end, success in zip(store.starts, store.ends, store.successes, strict=True):
            rows = slice(start, end)
            writer.add_episode(
                store.observations[rows],
                store.actions[rows],
                store.rewards[rows],
                store.masks[rows],
                bool(success),
            )
    read = read_store(tmp_path / "data")
    assert read.content_hash == store.content_hash
    assert json.loads((tmp_path / "data" / "store.json").read_text())["content_hash"] == store.content_hash
    assert read.successes is not None and read.successes.tolist() == store.successes.tolist()


def test_a_writer_that_fails_leaves_nothing_and_one_that_was_killed_is_replaced(tmp_path: Path) -> None:
    store = make_store()

    def episode(writer: StoreWriter) -> None:
        writer.add_episode(store.observations[:9], store.actions[:9], store.rewards[:9], store.masks[:9])

    with pytest.raises(KeyboardInterrupt), StoreWriter(tmp_path / "data", "d", store.plant) as writer:
        episode(writer)
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())
    with StoreWriter(tmp_path / "data", "d", store.plant) as writer:
        episode(writer)
        assert not (tmp_path / "data").exists()
        # What a killed process leaves: the folder, and a lock that nobody holds.
        for left in (".data.partial", ".data.lock"):
            copy = shutil.copytree if left.endswith("partial") else shutil.copyfile
            copy(tmp_path / left, tmp_path / left.replace("data", "other"))
        with pytest.raises(UserError, match="data is being written by another process: wait for it"):
            StoreWriter(tmp_path / "data", "d", store.plant)
        episode(writer)
    assert len(read_store(tmp_path / "data")) == 18
    with StoreWriter(tmp_path / "other", "d", store.plant) as writer:
        episode(writer)
    assert len(read_store(tmp_path / "other")) == 9
    with pytest.raises(UserError, match="data exists already"):
        StoreWriter(tmp_path / "data", "d", store.plant)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "other"]


def test_a_full_disk_is_one_sentence_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("rql_deploy.train.data.folder._sync", full)
    with pytest.raises(UserError, match="No space left"):
        write_store(make_store(), tmp_path / "data")
    assert not list(tmp_path.iterdir())


def test_a_wrong_episode_is_refused_before_a_row_of_it_is_written(tmp_path: Path) -> None:
    with StoreWriter(tmp_path / "data", "d", PLANT) as writer:
        writer.add_episode(np.zeros((3, 4)), np.zeros((3, 2)), np.zeros(3), np.ones(3))
        with pytest.raises(UserError, match=r"episode 1 .* actions of shape \[3, 5\]"):
            writer.add_episode(np.zeros((3, 4)), np.zeros((3, 5)), np.zeros(3), np.ones(3))
        with pytest.raises(UserError, match=r"episode 1 .* no rows"):
            writer.add_episode(np.zeros((0, 4)), np.zeros((0, 2)), np.zeros(0), np.ones(0))
    assert len(read_store(tmp_path / "data")) == 3


def test_a_store_without_rows_is_not_written_and_none_is_overwritten(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is empty"), StoreWriter(tmp_path / "data", "d", PLANT):
        pass
    write_store(make_store(), tmp_path / "data")
    with pytest.raises(UserError, match="exists already"):
        write_store(make_store(), tmp_path / "data")


@pytest.mark.parametrize("name", ["observations.npy", "ends.npy", "store.json"])
@pytest.mark.parametrize("size", [0, 20, 150])
def test_a_truncated_file_is_damage(name: str, size: int, tmp_path: Path) -> None:
    write_store(make_store(), tmp_path / "data")
    file = tmp_path / "data" / name
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(UserError, match="is damaged"):
        read_store(tmp_path / "data")


def test_another_number_type_or_row_count_is_damage(tmp_path: Path) -> None:
    store = write_store(make_store(), tmp_path / "data")
    np.save(tmp_path / "data" / "rewards.npy", store.rewards.astype(np.float64))
    with pytest.raises(UserError, match=r"rewards.npy holds float64, not float32"):
        read_store(tmp_path / "data")
    np.save(tmp_path / "data" / "rewards.npy", np.zeros(5, np.float32))
    with pytest.raises(UserError, match="says 28 rows"):
        read_store(tmp_path / "data")


def test_blocks_do_not_show_in_hash_moments_and_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    store = make_store((40, 31, 17))
    digest = hashlib.sha256()
    for name in ("observations", "actions", "rewards", "masks", "ends"):
        array = getattr(store, name)
        digest.update(f"{array.dtype}{array.shape}".encode() + array.tobytes())
    wide = store.observations.astype(np.float64)
    monkeypatch.setattr(store_module, "BLOCK_ROWS", 16)
    assert store.content_hash == digest.hexdigest()
    mean, std = store.normalization(True)
    assert np.allclose(mean, wide.mean(0), rtol=1e-6, atol=0)
    assert np.allclose(std, wide.std(0), rtol=1e-6, atol=0)
    bad = changed(changed(store, "observations", 50, np.inf), "observations", 80, np.nan)
    with pytest.raises(UserError, match=r"'position', first at episode 1, row 10 \(2 rows in all\)"):
        bad.validate(3)
    outside = changed(store, "actions", 77, 9.0)
    with pytest.raises(UserError, match=r"'dx' is 9 at episode 2, row 6"):
        outside.check_actions()


def test_the_scale_of_a_set_of_one_block_is_numpys_to_the_bit() -> None:
    store = make_store((400, 310))
    wide = store.observations.astype(np.float64)
    mean, std = store.normalization(True)
    assert np.array_equal(mean, wide.mean(0).astype(np.float32))
    assert np.array_equal(std, wide.std(0).astype(np.float32))


@pytest.mark.parametrize("name", ["observations", "actions", "rewards", "masks"])
def test_a_number_that_is_none_is_named_by_field_and_row(name: str) -> None:
    with pytest.raises(UserError, match=rf"{name[:6]}.*first at episode 1, row 2"):
        changed(make_store(), name, 11, np.nan).validate(3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"actions": np.zeros((28, 3), np.float32)},
            r"actions of shape \[28, 3\] for 28 rewards, the plant's are \[28, 2\]",
        ),
        ({"observations": np.zeros((27, 4), np.float32)}, r"observations of shape \[27, 4\]"),
        ({"masks": np.zeros((28, 1), np.float32)}, r"masks of shape \[28, 1\]"),
        ({"ends": np.array([9, 9, 28])}, "episode 1 has no rows"),
        ({"ends": np.array([9, 16, 27])}, "28 rows but its last episode ends at 27"),
        ({"ends": np.array([], np.int64)}, "last episode ends at 0"),
    ],
)
def test_arrays_that_do_not_fit_together_are_named(change: dict[str, np.ndarray], words: str) -> None:
    with pytest.raises(UserError, match=words):
        dataclasses.replace(make_store(), **change).validate(3)  # type: ignore[arg-type]


def test_no_rows_at_all_are_refused() -> None:
    empty = {name: getattr(make_store(), name)[:0] for name in ARRAYS}
    with pytest.raises(UserError, match="is empty"):
        dataclasses.replace(make_store(), **empty).validate(3)


def with_rewards(reward: float, *, ended: bool) -> TransitionStore:
    store = make_store()
    return dataclasses.replace(
        store,
        rewards=np.full(len(store), reward, np.float32),
        masks=store.masks if ended else np.ones(len(store), np.float32),
    )


@pytest.mark.parametrize(("reward", "ended"), [(-1.0, False), (0.0, False), (0.0, True)])
def test_rewards_that_say_nothing_are_refused_unless_cloning(reward: float, ended: bool) -> None:
    store = with_rewards(reward, ended=ended)
    with pytest.raises(UserError, match=rf"every reward .* is {reward:g}.*policy_value_weight=0"):
        store.validate(3)
    store.validate(3, learn_value=False)


def test_equal_rewards_say_how_soon_the_task_ended() -> None:
    with_rewards(-1.0, ended=True).validate(3)


def test_short_episodes_are_counted_and_what_becomes_of_them_is_said() -> None:
    remarks = make_store((9, 3, 1, 12)).validate(3)
    assert len(remarks) == 2
    assert "2 of 4 episodes" in remarks[0] and "repeat the last row" in remarks[0]
    assert "1 of 4 episodes" in remarks[1] and "complete_rows" in remarks[1]
    assert make_store().validate(3) == []


def test_data_sets_of_one_plant_are_joined_in_order() -> None:
    a, b = make_store((9, 7), seed=1), make_store((5,), seed=2)
    joined = concatenate([a, dataclasses.replace(b, dataset_id="tiny/more-v0")])
    assert joined.dataset_id == "tiny/data-v0 + tiny/more-v0"
    assert joined.ends.tolist() == [9, 16, 21]
    assert np.array_equal(joined.observations, np.concatenate((a.observations, b.observations)))
    assert joined.successes is not None and joined.successes.tolist() == [True, False, True]
    assert joined.content_hash not in (a.content_hash, b.content_hash)
    assert joined.content_hash != concatenate([b, a]).content_hash
    joined.validate(3)


def test_sets_whose_rewards_count_otherwise_are_warned_of() -> None:
    punished = make_store()
    rewarded = dataclasses.replace(punished, rewards=punished.rewards + 1, dataset_id="other")
    assert concatenate([punished, punished]).remarks == ()
    (remark,) = concatenate([punished, rewarded]).remarks
    assert "tiny/data-v0 and other have rewards in [-1, 0] and in [0, 1]" in remark


def test_fields_in_another_order_are_put_into_the_first_ones() -> None:
    turned = msgspec.structs.replace(PLANT, fields=PLANT.fields[::-1])
    a, b = make_store((9,)), make_store((9,), plant=turned)
    joined = concatenate([a, b])
    assert np.array_equal(joined.observations[9:, :3], b.observations[:, 1:])
    assert np.array_equal(joined.observations[9:, 3], b.observations[:, 0])


@pytest.mark.parametrize(
    ("plant", "words"),
    [
        (msgspec.structs.replace(PLANT, control_rate=10.0), "control rate is 10 Hz instead of 20 Hz"),
        (msgspec.structs.replace(PLANT, fields=PLANT.fields[:1]), "observation fields opening are missing"),
        (
            msgspec.structs.replace(PLANT, fields=(*PLANT.fields, ObservationField("force", (3,)))),
            "only the second has observation fields force",
        ),
    ],
)
def test_data_sets_of_different_plants_are_not_joined(plant: PlantDescription, words: str) -> None:
    with pytest.raises(UserError, match=words):
        concatenate([make_store(), make_store(plant=plant)])
