"""Keys that change what a row is: each is honoured, or the file is refused by name."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from ogbench.utils import load_dataset

from rql_deploy.errors import UserError
from rql_deploy.train.data.edits import relabel_success
from rql_deploy.train.data.readers import open_store
from rql_deploy.train.data.readers.options import KeyMap, ReadOptions
from rql_deploy.train.data.store import TransitionStore
from tests.helpers.data import opened, write_minari

LENGTHS = (10, 12, 8)
ROWS = sum(LENGTHS)
RNG = np.random.default_rng(0)
OBSERVATIONS = RNG.normal(size=(ROWS, 3)).astype(np.float32)
ACTIONS = RNG.uniform(-1, 1, (ROWS, 2)).astype(np.float32)
REWARDS = RNG.normal(size=ROWS)
LAST = np.isin(np.arange(ROWS), np.cumsum(LENGTHS) - 1).astype(np.float32)
FIRST_ONLY = LAST * (np.arange(ROWS) < 10)
NEXT = np.where(LAST[:, None] != 0, 9.0, np.roll(OBSERVATIONS, -1, axis=0)).astype(np.float32)


def npz(folder: Path, **arrays: Any) -> Path:
    file = folder / "buffer.npz"
    held = {"observations": OBSERVATIONS, "actions": ACTIONS, "rewards": REWARDS} | arrays
    np.savez(file, **{key: value for key, value in held.items() if value is not None})
    return file


def read(path: Path, *mapping: str) -> TransitionStore:
    store = open_store(str(path), options=ReadOptions(KeyMap.parse(mapping)))
    assert isinstance(store, TransitionStore)
    return store


def zeros_at(store: TransitionStore) -> list[int]:
    return np.flatnonzero(store.masks == 0).tolist()


@pytest.mark.parametrize(
    ("arrays", "zeros"),
    [
        ({"terminals": LAST, "masks": 1 - FIRST_ONLY, "next_observations": NEXT}, [9]),
        # What D4RL's loader returns: no time-outs, but the next observation shows where an episode was cut.
        ({"terminals": FIRST_ONLY, "next_observations": NEXT}, [9]),
        ({"terminals": FIRST_ONLY, "timeouts": LAST - FIRST_ONLY}, [9]),
        ({"terminations": FIRST_ONLY, "truncations": LAST - FIRST_ONLY}, [9]),
        ({"dones": LAST, "truncations": LAST - FIRST_ONLY}, [9]),
        ({"absorbing": FIRST_ONLY, "last": LAST}, [9]),
        ({"absorbing": FIRST_ONLY, "terminals": LAST}, [9]),
        ({"terminals": FIRST_ONLY, "dones": LAST}, [9]),
        ({"terminals": LAST, "dones": LAST}, []),
        ({"dones": LAST}, []),
        ({"dones": LAST, "rewards": FIRST_ONLY}, [9]),
        ({"dones": LAST, "rewards": FIRST_ONLY[:, None]}, [9]),
    ],
)
def test_every_row_of_a_replay_buffer_is_a_transition(
    arrays: dict[str, Any], zeros: list[int], tmp_path: Path
) -> None:
    store = read(npz(tmp_path, **arrays))
    assert store.ends.tolist() == np.cumsum(LENGTHS).tolist()
    assert np.array_equal(store.observations, OBSERVATIONS) and zeros_at(store) == zeros
    if "next_observations" in arrays:
        assert store.finals is not None and (store.finals == 9).all()


def test_the_arrays_of_ogbenchs_loader_are_the_rows_of_its_file(tmp_path: Path) -> None:
    file = npz(tmp_path, terminals=LAST, masks=np.ones(ROWS))
    for compact in (False, True):
        loaded = load_dataset(str(file), compact_dataset=compact)
        valid = loaded.get("valids", np.ones(len(loaded["actions"]))) != 0
        again = tmp_path / "again.npz"
        np.savez(again, **loaded, rewards=np.arange(len(valid)), masks=np.ones(len(valid)))
        store = read(again)
        assert store.ends.tolist() == [9, 20, 27]
        assert np.array_equal(store.observations, loaded["observations"][valid])
        assert np.array_equal(store.rewards, np.flatnonzero(valid))


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"terminals": LAST, "masks": 1 - LAST}, "'masks' are 1 except in the last rows .* would be dropped"),
        (
            {"terminals": LAST * 0, "masks": LAST, "next_observations": np.roll(OBSERVATIONS, -3, 0)},
            "lie 3 rows ahead",
        ),
        (
            {"terminals": LAST * 0, "masks": LAST, "next_observations": OBSERVATIONS[RNG.permutation(ROWS)]},
            "the rows are shuffled",
        ),
        ({"terminations": LAST}, "not where recordings were cut off"),
        ({"terminals": LAST, "masks": 1 - LAST, "is_first": LAST}, "has 'is_first'"),
        ({"terminals": LAST, "timeouts": LAST[1:]}, "'timeouts' has 29 rows"),
    ],
)
def test_rows_that_would_be_misread_are_refused(arrays: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words) as refused:
        read(npz(tmp_path, **arrays))
    assert "\n" not in str(refused.value)


def demos(folder: Path, **keys: Any) -> Path:
    """Demonstrations with `keys`, each a function of number and length; `at_NAME` is an attribute."""
    file = folder / "demos.hdf5"
    with h5py.File(file, "w") as opened_file:
        for i, rows in enumerate(LENGTHS):
            demo = opened_file.create_group(f"data/demo_{i}")
            demo["actions"], demo["obs/x"] = RNG.uniform(-1, 1, (rows, 2)), RNG.normal(size=(rows, 3))
            for key, of in keys.items():
                if key.startswith("at_"):
                    demo.attrs[key.removeprefix("at_")] = of(i, rows)
                elif (value := of(i, rows)) is not None:
                    demo[key] = value
    return file


def at_end(_: int, rows: int) -> Any:
    return np.arange(rows) == rows - 1


def at_success(i: int, rows: int) -> Any:
    """The last three rows of all episodes but the second."""
    return (np.arange(rows) >= rows - 3) & (i != 1)


def shaped(_: int, rows: int) -> Any:
    return np.linspace(0, 0.9, rows)


def nothing(_: int, rows: int) -> Any:
    return np.zeros(rows)


SUCCESS_ROWS = [7, 8, 9, 27, 28, 29]


@pytest.mark.parametrize(
    ("keys", "zeros", "successes"),
    [
        ({"rewards": shaped, "dones": at_success}, SUCCESS_ROWS, None),
        ({"rewards": shaped, "dones": at_end}, [], None),
        ({"rewards": nothing, "dones": at_end}, [], None),
        ({"rewards": shaped, "dones": lambda i, n: at_success(i, n) | at_end(i, n)}, SUCCESS_ROWS, None),
        ({"rewards": at_success, "dones": at_end}, SUCCESS_ROWS, [True, False, True]),
        (
            {"rewards": lambda i, n: at_success(i, n) - 1.0, "dones": at_end},
            SUCCESS_ROWS,
            [True, False, True],
        ),
        # Penalties, where most rows have none.
        ({"rewards": lambda i, n: -1.0 * at_end(i, n)}, [], None),
        ({"success": at_success}, SUCCESS_ROWS, [True, False, True]),
        ({"infos/is_success": at_success}, SUCCESS_ROWS, [True, False, True]),
        ({"info/task_success": at_success}, SUCCESS_ROWS, [True, False, True]),
        ({"at_task_success": lambda i, n: i != 1}, [9, 29], [True, False, True]),
        ({"at_success": lambda i, n: np.bool_(i != 1)}, [9, 29], [True, False, True]),
        ({"at_success": lambda i, n: i != 1, "dones": at_end}, [9, 29], [True, False, True]),
        ({"dones": at_end, "truncations": lambda i, n: at_end(i, n) & (i == 1)}, [9, 29], None),
        ({"absorbing": lambda i, n: at_end(i, n) & (i == 1)}, [21], None),
        # Said to have failed: there, `done` marks the recording's end, in however many episodes it is set.
        ({"at_success": lambda i, n: i == 0, "dones": lambda i, n: at_end(i, n) & (i < 2)}, [9], [1, 0, 0]),
        # A reward for going on, without and with a last row of 0, is no success.
        ({"rewards": lambda i, n: np.ones(n)}, [], None),
        ({"rewards": lambda i, n: 1 - at_end(i, n) * (i == 0.0)}, [], None),
        ({"rewards": lambda i, n: np.ones(n), "dones": lambda i, n: at_end(i, n) & (i == 0)}, [9], None),
    ],
)
def test_one_decision_about_the_ends_of_all_demonstrations(
    keys: dict[str, Any], zeros: list[int], successes: list[bool] | None, tmp_path: Path
) -> None:
    store = read(demos(tmp_path, **keys))
    assert zeros_at(store) == zeros
    assert (None if store.successes is None else store.successes.tolist()) == successes
    if keys.get("dones") is at_end and successes is None and "truncations" not in keys:
        assert any("only marks the end of a recording" in remark for remark in store.warnings(3))
        assert zeros_at(read(demos(tmp_path, **keys), "terminated=dones")) == [9, 21, 29]


def test_what_was_decided_without_a_second_witness_is_warned_of(tmp_path: Path) -> None:
    alive = read(demos(tmp_path, rewards=lambda i, n: np.ones(n))).remarks
    some = read(demos(tmp_path, rewards=shaped, dones=lambda i, n: at_end(i, n) & (i > 0))).remarks
    assert "begin with a reward of 1" in alive[0] and "last rows of 2 of 3 episodes" in some[0]


def test_what_is_neither_set_nor_unset_is_refused(tmp_path: Path) -> None:
    for key in ("dones", "success", "terminations"):
        with pytest.raises(UserError, match=f"NaN in '{key}' .row 9.*should be 0 or 1"):
            read(demos(tmp_path, **{key: lambda i, n: np.where(at_end(i, n), np.nan, 0.0)}))
    discounts = read(npz(tmp_path, terminals=LAST, timeouts=LAST, masks=np.full(ROWS, 0.99)))
    with pytest.raises(UserError, match="masks other than 0 and 1"):
        discounts.validate_rows()


def test_choices_as_actions_are_warned_of(tmp_path: Path) -> None:
    file = demos(tmp_path)
    with h5py.File(file, "a") as opened_file:
        for demo in opened_file["data"].values():
            rows = len(demo["actions"])
            del demo["actions"]
            demo["actions"] = np.arange(rows)[:, None] % 4
    assert "whole numbers (int64)" in read(file).remarks[-1]


def test_success_said_of_whole_demonstrations_can_become_reward(tmp_path: Path) -> None:
    store = relabel_success(read(demos(tmp_path, at_success=lambda i, n: i != 1)))
    assert np.flatnonzero(store.rewards == 0).tolist() == [9, 29] == zeros_at(store)


def test_padding_is_no_row(tmp_path: Path) -> None:
    for keys in (
        {"at_num_samples": lambda i, n: n - 2},
        {"valid": lambda i, n: np.arange(n) < n - 2},
        {"is_pad": lambda i, n: np.arange(n) >= n - 2},
    ):
        assert read(demos(tmp_path, **keys)).ends.tolist() == [8, 18, 24]


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"dones": lambda i, n: at_end(i, n) if i else None}, "demo_0 has no dones, which other episodes"),
        ({"next_obs/x": lambda i, n: np.ones((n, 3))}, "next_obs of row 0 is not the observation of row 1"),
        ({"valid": lambda i, n: np.arange(n) > 3}, "invalid before valid ones .row 0"),
        ({"mask": lambda i, n: np.arange(n) < 5}, "array 'mask' that may say which rows are padding"),
        ({"masks": lambda i, n: np.arange(n) < 5}, "array 'masks' that is not the opposite"),
        ({"truncated": lambda i, n: np.arange(n) == 4}, "is cut off .truncated. in row 4 but goes on"),
        ({"at_num_samples": lambda i, n: n + 1}, "num_samples says 11"),
    ],
)
def test_demonstrations_that_would_be_misread_are_refused(
    keys: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=words) as refused:
        read(demos(tmp_path, **keys))
    assert "\n" not in str(refused.value)


def rewrite_minari(folder: Path, success: Any, **flags: Any) -> Path:
    with h5py.File(folder / "data" / "main_data.hdf5", "a") as file:
        for i, episode in enumerate(file.values()):
            rows = len(episode["actions"])
            for name, of in flags.items():
                del episode[name]
                episode[name] = of(i, rows)
            episode["infos/is_success"] = success(i, rows)
    return folder


def test_success_that_is_lost_again_does_not_end_the_task(tmp_path: Path) -> None:
    folder = rewrite_minari(
        write_minari(tmp_path),
        lambda i, rows: np.isin(np.arange(rows + 1), (3, 4)),
        terminations=lambda i, rows: np.zeros(rows, bool),
        truncations=at_end,
        rewards=lambda i, rows: np.isin(np.arange(rows), (2, 3)).astype(float),
    )
    store = opened(folder)
    assert zeros_at(store) == [] and store.successes is not None and store.successes.all()
    assert any("goes on after success" in warning for warning in store.warnings(3))
    relabelled = relabel_success(store)
    assert zeros_at(relabelled) == [2, 3, 11, 12, 18, 19] and not relabelled.remarks


def test_failure_that_ends_the_task_ends_it_beside_success(tmp_path: Path) -> None:
    folder = rewrite_minari(write_minari(tmp_path), lambda i, rows: (np.arange(rows + 1) > 6) & (i == 1))
    # Episodes 0 and 2 terminate in their last rows, episode 1 succeeds.
    assert zeros_at(opened(folder)) == [8, 15, 27]


def test_a_truncation_within_an_episode_is_refused(tmp_path: Path) -> None:
    folder = rewrite_minari(
        write_minari(tmp_path),
        lambda i, rows: np.zeros(rows + 1),
        truncations=lambda i, rows: np.arange(rows) == 3,
    )
    with pytest.raises(UserError, match=r"episode_0 is cut off .* in row 3 but goes on to row 8"):
        opened(folder)
