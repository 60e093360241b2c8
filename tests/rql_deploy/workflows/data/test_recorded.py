"""A recording as a data set: episodes of several tasks, and those that do not fit their contract."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from rql_deploy.bundle.bundle import Bundle
from rql_deploy.contract import Contract
from rql_deploy.errors import UserError
from rql_deploy.runtime.recording.messages import Tick, floats, pack
from rql_deploy.runtime.recording.writer import RecordingWriter
from rql_deploy.workflows.data.recorded import read_recorded
from tests.helpers.recordings import bundle_message


def record(
    folder: Path, contract: Contract, epoch: int, *, field: str = "observation", known: bool = True
) -> None:
    """Two ticks of an episode, with the contract or without."""
    writer = RecordingWriter(folder, f"recording-{epoch}", shard_bytes=1 << 20)
    if known:
        writer.add(bundle_message(contract))
    for number in range(2):
        seen = [pack(field, np.zeros(4, np.float32))]
        action = floats(np.zeros(contract.plant.action_dim))
        writer.add(Tick(1.0, contract.contract_id, epoch, 0, number, seen, action, reward=0.0), draw=False)
    writer.close()
    assert writer.status.written == 2


def test_episodes_of_several_tasks_are_said_to_be(bundle: Path, tmp_path: Path) -> None:
    contract = Bundle.open(bundle).contract
    other = msgspec.structs.replace(contract, plant=msgspec.structs.replace(contract.plant, task="other"))
    record(tmp_path, contract, 1)
    assert not any("tasks" in remark for remark in read_recorded(str(tmp_path)).remarks)
    record(tmp_path, other, 2)
    store, remarks = read_recorded(str(tmp_path))
    assert len(store.ends) == 2
    assert f"its episodes are of 2 tasks ({contract.plant.task}, other)" in remarks[0]


@pytest.mark.parametrize("wrong", [{"field": "another"}, {"known": False}])
def test_an_episode_without_its_contract_or_its_fields_is_not_left_out_in_silence(
    bundle: Path, tmp_path: Path, wrong: dict[str, object]
) -> None:
    contract = Bundle.open(bundle).contract
    record(tmp_path, contract, 7, **wrong)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="lacks the contract of episode 7-0, or what the contract says"):
        read_recorded(str(tmp_path))
