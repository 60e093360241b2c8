"""What of a recording a generation may learn from, and what is said of the rest."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from rql_deploy.bundle.bundle import Bundle
from rql_deploy.contract import Contract
from rql_deploy.train.data.folder import is_store, read_store
from rql_deploy.workflows.data.recorded import read_recorded
from rql_deploy.workflows.improvement.new_episodes import marks_of, split_held_out, watch, write_episodes
from tests.helpers.commands import assert_refused, cli, printed
from tests.helpers.recorded_episodes import part, record, record_episodes


@pytest.fixture(scope="module")
def contract(bundle: Path) -> Contract:
    return Bundle.open(bundle).contract


def said(recording: Path, contract: Contract, *words: str) -> set[str]:
    found = watch(recording, contract.plant)
    for word in words:
        assert any(word in remark for remark in found.remarks), (word, found.remarks)
    return found.names()


def test_a_file_that_goes_while_one_looks_is_not_missed(tmp_path: Path) -> None:
    assert marks_of(tmp_path / "nothing") == []
    (tmp_path / "a.mcap").write_text("12")
    (tmp_path / "gone.mcap").symlink_to(tmp_path / "nowhere")
    ((name, size, _),) = marks_of(tmp_path)
    assert (name, size) == ("a.mcap", 2)


def test_only_complete_episodes_that_say_how_they_went_are_used(contract: Contract, tmp_path: Path) -> None:
    folder = record(
        tmp_path / "recording",
        contract,
        part(contract, 0, success=True),
        part(contract, 1, rewards=True),
        part(contract, 2, success=True, end=False),
        part(contract, 3),
        part(contract, 4, success=False, value=float("nan")),
    )
    names = said(folder, contract, "1 recorded episodes have no end", "(7-3)", "7-4 has NaN")
    assert names == {"7-0", "7-1"}
    # The end arrives with another file.
    record(folder, contract, part(contract, 2, tick=9, rows=1, success=True))
    assert said(folder, contract) == {"7-0", "7-1", "7-2"}
    assert said(tmp_path / "none", contract, "nothing is recorded in") == set()


def test_episodes_of_another_contract_are_named_and_left_out(contract: Contract, tmp_path: Path) -> None:
    faster = msgspec.structs.replace(
        contract, plant=msgspec.structs.replace(contract.plant, control_rate=99.0)
    )
    folder = record_episodes(tmp_path / "recording", contract, range(2))
    record(folder, faster, part(faster, 8, success=True))
    names = said(folder, contract, "1 recorded episodes are of another plant", "control rate")
    assert names == {"7-0", "7-1"}


def test_a_half_written_and_a_damaged_file_cost_their_own_rest_only(
    contract: Contract, tmp_path: Path
) -> None:
    folder = record_episodes(tmp_path / "recording", contract, range(2))
    other = record_episodes(tmp_path / "other", contract, range(4, 7))
    (file,) = other.iterdir()
    whole = bytearray(file.read_bytes())
    (folder / "a-cut.mcap").write_bytes(whole[: len(whole) // 2])
    assert said(folder, contract) == {"7-0", "7-1"}
    whole[len(whole) // 2] ^= 1
    (folder / "b-damaged.mcap").write_bytes(whole)
    (folder / "c-not.mcap").write_text("hello")
    record(folder, contract, part(contract, 9, success=True))
    assert said(folder, contract, "b-damaged.mcap is damaged") == {"7-0", "7-1", "7-9"}


def test_a_label_is_the_last_word_on_success(contract: Contract, tmp_path: Path) -> None:
    folder = record(
        tmp_path / "recording",
        contract,
        part(contract, 0),
        part(contract, 1, success=True),
        part(contract, 2),
    )
    told = cli("data", "inspect", folder)
    assert "7-0, 7-2" in told.output and "data label" in told.output
    assert "1 episodes" in cli("data", "label", folder, "7-0", "--success").output
    assert "1 episodes" in cli("data", "label", folder, "7-1", "--failure").output
    with (folder / "labels.jsonl").open("a") as file:
        file.write('{"episode": "7-')  # A line that a crash cut short.
    assert "1 episodes" in cli("data", "label", folder, "unknown", "--failure").output
    store = read_recorded(str(folder)).store
    assert store.successes is not None and store.successes.tolist() == [True, False, False]
    assert np.flatnonzero(store.rewards == 0).tolist() == np.flatnonzero(store.masks == 0).tolist() == [8]
    assert said(folder, contract) == {"7-0", "7-1", "7-2"}
    assert_refused(cli("data", "label", folder, "7-99", "--success"), "no complete episode '7-99'")


def test_a_person_s_actions_are_shown_kept_and_told_apart(contract: Contract, tmp_path: Path) -> None:
    folder = record(
        tmp_path / "recording",
        contract,
        part(contract, 0, success=True, intervened=(2, 3)),
        part(contract, 1, success=False),
    )
    assert "intervened   in 2 rows of 1 episodes" in cli("data", "inspect", folder).output
    data = tmp_path / "data"
    assert cli("data", "convert", folder, "--output", data, "--to", "store").exit_code == 0
    store = read_store(data, verify=True)
    assert store.intervened is not None and np.flatnonzero(store.intervened).tolist() == [2, 3]
    found = printed(cli("data", "inspect", data, "--json"))
    assert found["intervened"] == {"rows": 2, "episodes": 1}


def test_a_generation_keeps_what_earlier_ones_learned_from(contract: Contract, tmp_path: Path) -> None:
    """Recordings may be removed: what was taken from them is in the generations."""
    folder = record_episodes(tmp_path / "recording", contract, range(3))
    episodes = list(watch(folder, contract.plant).usable)
    episodes[0].actions[0] = 1e6
    one, two, none = (tmp_path / name for name in ("one", "two", "none"))
    write_episodes(one, none, episodes[:2], contract.plant)
    write_episodes(two, one, episodes[2:], contract.plant)
    store = read_store(two)
    assert (store.episodes, store.plant) == (3, contract.plant)
    assert (store.actions <= contract.plant.action_high).all()
    write_episodes(tmp_path / "empty", none, [], contract.plant)
    assert not is_store(tmp_path / "empty")


def test_a_label_that_comes_later_counts_in_the_next_generation(contract: Contract, tmp_path: Path) -> None:
    folder = record_episodes(tmp_path / "recording", contract, range(3))
    episodes = list(watch(folder, contract.plant).usable)
    one, two, names = tmp_path / "one", tmp_path / "two", [episode.name for episode in episodes]
    write_episodes(one, tmp_path / "none", episodes[:2], contract.plant)
    before = read_store(one)
    assert before.successes is not None
    said = {names[1]: not before.successes[1]}
    write_episodes(two, one, episodes[2:], contract.plant, names[:2], said)
    after = read_store(two)
    first, end = after.starts[1], after.ends[1]
    assert after.successes is not None and after.successes[1] == said[names[1]]
    assert after.rewards[end - 1] == said[names[1]] - 1.0 and after.masks[end - 1] == 1 - said[names[1]]
    assert (after.rewards[first : end - 1] == -1).all() and (after.masks[first : end - 1] == 1).all()
    assert np.array_equal(after.rewards[:first], before.rewards[:first])


def test_held_out_episodes_are_at_least_two_and_learned_from_by_none(
    contract: Contract, tmp_path: Path
) -> None:
    folder = record_episodes(tmp_path / "recording", contract, range(40))
    episodes = list(watch(folder, contract.plant).usable)
    learned, kept = split_held_out(episodes, 0)
    assert len(kept) >= 2 and len(learned) + len(kept) == 40
    assert not {e.name for e in learned} & {e.name for e in kept}
    assert len(split_held_out(learned[:3], 0)[1]) == 2
    assert split_held_out(learned[:3], 2)[1] == []
    assert len(split_held_out(learned[:1], 0)[0]) == 1
