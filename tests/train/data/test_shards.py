import dataclasses
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from rql_deploy.errors import UserError
from rql_deploy.train.data.edits import concatenate
from rql_deploy.train.data.folder import write_store
from rql_deploy.train.data.readers import open_store
from rql_deploy.train.data.sampler import WindowSampler
from rql_deploy.train.data.shards import ShardedStore
from tests.helpers.data import make_store


def sharded(
    folder: Path, count: int = 3, *, updates: int = 4, constant: tuple[int, ...] = ()
) -> ShardedStore:
    """Shards whose first observation identifies them; `constant` ones have uninformative rewards."""
    for i in range(count):
        store = make_store((9, 7, 12 + i), seed=i)
        store.observations[:, 0] = i
        if i in constant:
            store.rewards[:], store.masks[:] = -1, 1
        write_store(dataclasses.replace(store, dataset_id=f"shard-{i}"), folder / f"shard-{i}")
    opened = open_store(str(folder), shard_updates=updates)
    assert isinstance(opened, ShardedStore)
    return opened


def sampler(store: ShardedStore, seed: int = 0) -> WindowSampler:
    return WindowSampler(store, 3, generator=torch.Generator().manual_seed(seed))


def test_shards_follow_each_other_by_the_number_of_the_update(tmp_path: Path) -> None:
    drawing = sampler(sharded(tmp_path))
    used, replaced = [], []
    for step in range(14):
        replaced.append(drawing.advance(step))
        batch = drawing.draw(8)
        assert len(set(batch.observations[..., 0].flatten().tolist())) == 1
        used.append(int(batch.observations[0, 0, 0]))
    assert used == [0] * 4 + [1] * 4 + [2] * 4 + [0] * 2
    assert [step for step, flag in enumerate(replaced) if flag] == [4, 8, 12]


def test_a_resumed_run_draws_what_an_uninterrupted_one_does(tmp_path: Path) -> None:
    store = sharded(tmp_path)
    whole = sampler(store)
    for step in range(6):
        whole.advance(step)
        whole.draw(8)
    resumed = sampler(store)
    resumed.generator.set_state(whole.generator.get_state())
    for step in range(6, 12):
        for drawing in (whole, resumed):
            drawing.advance(step)
        for mine, theirs in zip(whole.draw(8)[:5], resumed.draw(8)[:5], strict=True):
            assert torch.equal(mine, theirs)


def test_the_next_shard_is_read_by_another_thread_while_the_current_one_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = sharded(tmp_path)
    readers: dict[int, str] = {}
    load = ShardedStore.load

    def recorded(self: ShardedStore, index: int) -> object:
        readers.setdefault(index, threading.current_thread().name)
        return load(self, index)

    monkeypatch.setattr(ShardedStore, "load", recorded)
    drawing = sampler(store)
    for step in (0, 4, 8):
        drawing.advance(step)
    assert readers[0] == "MainThread"
    assert readers[1].startswith("shard-reader") and readers[2].startswith("shard-reader")


def test_damage_in_a_later_shard_is_named_when_its_turn_comes(tmp_path: Path) -> None:
    store = sharded(tmp_path)
    rows = np.load(tmp_path / "shard-1" / "actions.npy")
    rows[11, 1] = np.nan
    np.save(tmp_path / "shard-1" / "actions.npy", rows)
    store.validate(3)
    drawing = sampler(store)
    drawing.advance(3)
    with pytest.raises(UserError, match="shard-1 has NaN or infinity in actions, first at episode 1, row 2"):
        drawing.advance(4)


def test_an_action_out_of_bounds_in_a_later_shard_is_named_too(tmp_path: Path) -> None:
    store = sharded(tmp_path)
    rows = np.load(tmp_path / "shard-1" / "actions.npy")
    rows[11, 1] = 4.5
    np.save(tmp_path / "shard-1" / "actions.npy", rows)
    with pytest.raises(UserError, match=r"shard-1: action 'gripper' is 4.5 at episode 1, row 2"):
        sampler(store).advance(4)


def test_the_scale_is_that_of_all_rows_together(tmp_path: Path) -> None:
    store = sharded(tmp_path)
    together = concatenate([store.load(i) for i in range(3)])
    for mine, theirs in zip(store.normalization(True), together.normalization(True), strict=True):
        assert np.allclose(mine, theirs, rtol=1e-6)
    assert (store.normalization(False)[0] == 0).all()


def test_one_shard_whose_rewards_say_nothing_is_no_obstacle_but_all_are(tmp_path: Path) -> None:
    sharded(tmp_path / "some", constant=(0, 1)).validate(3)
    with pytest.raises(
        UserError, match=r"are uninformative in all of its 3 shards .the first one's are all -1."
    ):
        sharded(tmp_path / "all", constant=(0, 1, 2)).validate(3)
    sharded(tmp_path / "cloned", constant=(0, 1, 2)).validate(3, learn_value=False)


def test_only_the_shard_in_use_and_the_next_one_stay_in_memory(tmp_path: Path) -> None:
    store = sharded(tmp_path, 5)
    drawing = sampler(store)
    for step in range(0, 40, 4):
        drawing.advance(step)
        assert drawing._shards is not None
        following = drawing._shards._next
        assert following is not None
        following[1].result()
        assert len(store._loaded) <= 2


def test_a_single_shard_is_never_read_again(tmp_path: Path) -> None:
    drawing = sampler(sharded(tmp_path, 1))
    assert not any(drawing.advance(step) for step in range(20))


def test_a_shard_of_the_same_shape_is_copied_into_the_tensors_of_the_one_before() -> None:
    from rql_deploy.train.data.sampler import Rows

    a, b, c = (
        Rows.of(make_store(episodes, seed=i), complete_rows=False)
        for i, episodes in enumerate([(9, 7), (9, 7), (9, 8)])
    )
    kept = a.observations
    assert a.take_over(b)
    assert a.observations is kept and torch.equal(kept, b.observations) and torch.equal(a.small, b.small)
    assert not a.take_over(c)
    assert torch.equal(kept, b.observations)
