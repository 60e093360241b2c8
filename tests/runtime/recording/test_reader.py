"""Files of a recording that are damaged anywhere: whole messages, or one sentence."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from mcap.reader import make_reader
from mcap.writer import Writer

from rql_deploy.bundle.bundle import Bundle
from rql_deploy.errors import UserError
from rql_deploy.recording_files import MAGIC, PROFILE
from rql_deploy.runtime.recording.messages import (
    Decision,
    Previews,
    Scores,
    floats,
    previews,
    values_by_candidate,
)
from rql_deploy.runtime.recording.reader import read_file, read_recording
from rql_deploy.runtime.recording.writer import RecordingWriter
from tests.helpers.commands import ROOT
from tests.helpers.recordings import bundle_message, write_episode


@pytest.fixture(scope="module")
def whole(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("recording")
    write_episode(folder, bundle, ticks=4)
    (file,) = folder.glob("*.mcap")
    return file.read_bytes()


def test_entries_of_one_step_each_are_read_as_they_were_written_first() -> None:
    file = ROOT / "tests" / "data" / "recording" / "single_steps.mcap"
    decisions = [message for message in read_file(file) if isinstance(message, Decision)]
    assert decisions
    for decision in decisions:
        assert [made.steps for made in decision.previews] == [[step] for step in range(1, 11)]
        assert [len(numbers) for _, numbers, _ in previews(decision)] == [3, 3] + 8 * [2]
        assert previews(decision)[-1][2].shape == (2, 3, 2)
        assert max(values_by_candidate(decision).values()) >= (decision.value or 0.0)


def chunk_at(data: bytes) -> int:
    """Where the first chunk's record begins: opcode and length come before its fields."""
    place = len(MAGIC)
    while data[place] != 6:
        place += 9 + int.from_bytes(data[place + 1 : place + 9], "little")
    return place


@pytest.mark.parametrize(
    ("offset", "bytes_there"),
    [(28, b"\xff\xff\xff\xff"), (32, b"\xb5\xce"), (36, b"\xff" * 8)],
    ids=["length", "text", "records"],
)
def test_what_no_checksum_covers_may_be_wrong(
    whole: bytes, tmp_path: Path, offset: int, bytes_there: bytes
) -> None:
    """Of a chunk: how long the name of its compression is, that name, how long its records are."""
    data, place = bytearray(whole), chunk_at(whole) + 9 + offset
    data[place : place + len(bytes_there)] = bytes_there
    path = tmp_path / "damaged.mcap"
    path.write_bytes(data)
    with pytest.raises(UserError, match="is damaged before byte"):
        list(read_file(path))


def test_bytes_that_are_changed_lost_or_added_never_end_in_a_traceback(whole: bytes, tmp_path: Path) -> None:
    chance, path = random.Random(1), tmp_path / "damaged.mcap"
    found = 0
    for _ in range(300):
        data, place = bytearray(whole), chance.randrange(len(whole))
        match chance.randrange(3):
            case 0:
                data[place : place + 8] = chance.randbytes(chance.randrange(16))
            case 1:
                del data[place:]
            case _:
                data[place] ^= 1 << chance.randrange(8)
        path.write_bytes(data)
        try:
            found += len(list(read_file(path)))
        except UserError as error:
            assert str(error).count("\n") == 0
    assert found


def test_messages_outside_chunks_are_not_passed_over(bundle: Path, tmp_path: Path) -> None:
    write_episode(tmp_path, bundle, ticks=2)
    (source,) = tmp_path.glob("*.mcap")
    target = tmp_path / "copied.mcap"
    with source.open("rb") as stream, target.open("wb") as output:
        writer = Writer(output, use_chunking=False)
        writer.start(PROFILE)
        for schema, channel, message in make_reader(stream).iter_messages():
            assert schema is not None
            kind = writer.register_schema(schema.name, schema.encoding, schema.data)
            number = writer.register_channel(channel.topic, channel.message_encoding, kind)
            writer.add_message(number, message.log_time, message.data, message.publish_time)
        writer.finish()
    with pytest.raises(UserError, match="has messages outside chunks"):
        list(read_file(target))


def test_a_length_beyond_the_end_of_a_whole_file_is_no_file_that_was_cut_short(
    whole: bytes, tmp_path: Path
) -> None:
    data, path = bytearray(whole), tmp_path / "damaged.mcap"
    data[chunk_at(whole) + 4] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="a length in it is beyond its end"):
        list(read_file(path))
    path.write_bytes(whole[:-30])
    assert len(list(read_file(path))) > 5


@pytest.mark.parametrize(
    "change",
    [
        {"candidate": 1_000_000_000},
        {"candidate": 3},
        {"deltas": np.full(2, np.nan).tobytes()},
        {"scores": [Scores([1], [])]},
        {"previews": [Previews([], [0])]},
        {"chunk_shape": [-3, -2]},
    ],
)
def test_numbers_that_no_decision_has_are_damage(
    bundle: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    contract = Bundle.open(bundle).contract
    chunk = np.zeros((contract.h, contract.plant.action_dim))
    sound = Decision(1.0, contract.contract_id, "", 1, [], list(chunk.shape), floats(chunk), candidates=3)
    decision = msgspec.structs.replace(sound, **change)
    writer = RecordingWriter(tmp_path, "recording", shard_bytes=1 << 20)
    writer.add(bundle_message(contract))
    writer.add(decision, draw=False)
    writer.close()
    assert writer.status.written == 1
    with pytest.raises(UserError, match=r"the numbers of a (decision|chunk) do not fit"):
        list(read_recording(tmp_path))
