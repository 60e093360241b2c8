"""A recording as others see it: read with the `mcap` package and its own schemas, and nothing of ours."""

from __future__ import annotations

import io
import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mcap.reader import make_reader
from mcap_protobuf.decoder import DecoderFactory
from PIL import Image

from rql_deploy.bundle.bundle import Bundle
from rql_deploy.chunk_paths import colour, value_range
from rql_deploy.runtime.recording.messages import Tick, floats, pack
from rql_deploy.runtime.recording.writer import RecordingWriter
from tests.helpers.commands import ROOT
from tests.helpers.recordings import bundle_message, write_episode

LIFT = ROOT / "rql_deploy" / "assets" / "lift_bundle"
SCHEMAS = {
    "/rql/bundle": "rql.Bundle",
    "/rql/decision": "rql.Decision",
    "/rql/tick": "rql.Tick",
    "/rql/episode_end": "rql.EpisodeEnd",
    "/tf": "foxglove.FrameTransforms",
    "/chunks": "foxglove.SceneUpdate",
    "/chunks/points": "foxglove.PointCloud",
    "/commands": "foxglove.JointStates",
    "/observation": "foxglove.JointStates",
}


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An episode of 12 ticks of the lift arm, with a picture in its last tick."""
    folder = tmp_path_factory.mktemp("recording")
    contract = write_episode(folder, LIFT)
    writer = RecordingWriter(folder, "pictures", shard_bytes=1 << 20)
    writer.add(bundle_message(contract))
    fields = [pack(f.name, np.zeros(f.shape, np.float32)) for f in contract.plant.fields]
    camera = pack("front", np.arange(60, dtype=np.uint8).reshape(4, 5, 3))
    writer.add(Tick(2e9, contract.contract_id, 1, 0, 0, [*fields, camera], floats(np.zeros(7))))
    writer.close()
    return folder


def messages(file: Path) -> tuple[Any, dict[str, list[Any]]]:
    """The summary, and by topic (log time, schema, message)."""
    found = defaultdict(list)
    with file.open("rb") as stream:
        reader = make_reader(stream, validate_crcs=True, decoder_factories=[DecoderFactory()])
        summary = reader.get_summary()
        for schema, channel, message, decoded in reader.iter_decoded_messages():
            found[channel.topic].append((message.log_time, schema.name, decoded))
    return summary, found


def test_a_file_is_indexed_compressed_and_says_what_it_holds(recording: Path) -> None:
    summary, found = messages(recording / "recording-00000.mcap")
    assert {chunk.compression for chunk in summary.chunk_indexes} == {"zstd"}
    assert summary.statistics.message_count == sum(map(len, found.values()))
    assert {topic: entries[0][1] for topic, entries in found.items()} == SCHEMAS
    assert {topic: len(entries) for topic, entries in found.items()} == {
        "/rql/bundle": 1,
        "/rql/decision": 6,
        "/rql/tick": 12,
        "/rql/episode_end": 1,
        "/tf": 18,
        "/chunks": 6,
        "/chunks/points": 6,
        "/commands": 12,
        "/observation": 12,
    }


def test_decisions_hold_every_preview_and_every_v(recording: Path) -> None:
    _, found = messages(recording / "recording-00000.mcap")
    for _, _, decision in found["/rql/decision"]:
        three, two = decision.previews
        assert ([*three.steps], [*two.steps]) == ([1, 2], list(range(3, 11)))
        assert (len(three.candidates), len(two.candidates)) == (3, 2)
        assert (len(three.actions), len(two.actions)) == (2 * 3 * 5 * 7, 8 * 2 * 5 * 7)
        (pruning,) = decision.pruned
        assert (pruning.step, len(pruning.kept)) == (2, 2)
        assert max(decision.scores[-1].values[-2:]) == pytest.approx(decision.value)
        assert [[*scored.steps] for scored in decision.scores if scored.partial] == [[2]]
        assert sum(decision.deltas) == pytest.approx(1.0)
        assert [field.name for field in decision.fields][:1] == ["cube_pos"]


def test_ticks_tell_command_verdict_and_intervention(recording: Path) -> None:
    _, found = messages(recording / "recording-00000.mcap")
    ticks = [tick for _, _, tick in found["/rql/tick"]]
    assert [tick.intervened for tick in ticks] == [i == 3 for i in range(12)]
    assert [tick.note.kind for tick in ticks] == ["no action" if i == 5 else "" for i in range(12)]
    assert ticks[4].note.seed == found["/rql/decision"][2][2].seed
    assert (ticks[-1].success, ticks[-1].reward) == (True, -1.0)
    times = np.array([time for time, _, _ in found["/rql/tick"]]) * 1e-9
    assert np.allclose(np.diff(times), 0.05, atol=1e-3)
    joints = found["/commands"][4][2].joints
    assert [joint.name for joint in joints][:3] == ["dx", "dy", "dz"]
    assert [joint.position for joint in joints] == pytest.approx(list(ticks[4].action))


def test_paths_begin_at_the_end_effector_and_are_coloured_by_v(recording: Path) -> None:
    _, found = messages(recording / "recording-00000.mcap")
    (transform,) = found["/tf"][0][2].transforms
    assert (transform.parent_frame_id, transform.child_frame_id) == ("world", "end_effector")
    (entity,) = found["/chunks"][0][2].entities
    decision = found["/rql/decision"][0][2]
    # Nine earlier previews of the chunk that was sent, two candidates, and the chunk itself.
    assert len(entity.lines) == 12
    sent = entity.lines[-1]
    assert sent.thickness > max(line.thickness for line in entity.lines[:-1])
    start = transform.translation
    assert (sent.points[0].x, sent.points[0].y, sent.points[0].z) == (start.x, start.y, start.z)
    assert sent.points[1].x - start.x == pytest.approx(0.05 * decision.actions[0], abs=1e-6)
    calibration = Bundle.open(LIFT).contract.calibration
    span = value_range(calibration.levels, calibration.value)
    for line, value in zip(
        [*entity.lines[9:11], sent], [*decision.scores[-1].values[-2:], decision.value], strict=True
    ):
        assert np.allclose([line.color.r, line.color.g, line.color.b], colour(value, *span), atol=0.01)
    cloud = found["/chunks/points"][0][2]
    rows = np.frombuffer(cloud.data, [("p", "<f4", 3), ("c", "u1", 4)])
    assert len(rows) == 12 * (4 * 5 + 1)
    assert np.allclose(rows["p"][-21], [start.x, start.y, start.z])
    assert np.allclose(rows["p"][-17], [sent.points[1].x, sent.points[1].y, sent.points[1].z])


def test_pictures_are_png_beside_the_tick(recording: Path) -> None:
    _, found = messages(recording / "pictures-00000.mcap")
    ((time, schema, image),) = found["/camera/front"]
    assert (time, schema, image.format) == (2 * 10**18, "foxglove.CompressedImage", "png")
    shown = np.asarray(Image.open(io.BytesIO(image.data)))
    assert shown.tolist() == np.arange(60).reshape(4, 5, 3).tolist()
    ((_, _, tick),) = found["/rql/tick"]
    assert [(f.name, f.picture) for f in tick.fields if f.picture] == [("front", "/camera/front")]


def test_the_foxglove_layout_asks_for_what_a_recording_has(recording: Path) -> None:
    layout = json.loads((ROOT / "docs" / "foxglove" / "rql-deploy.json").read_text())
    _, found = messages(recording / "recording-00000.mcap")
    panels = layout["configById"]
    assert set(re.findall(r"\w+!\w+", json.dumps(layout["layout"]))) == set(panels)
    assert set(panels["3D!chunks"]["topics"]) <= set(found)
    assert panels["3D!chunks"]["followTf"] == found["/tf"][0][2].transforms[0].child_frame_id
    paths = [path["value"] for panel in panels.values() for path in panel.get("paths", [])]
    paths.append(panels["RawMessages!decision"]["topicPath"])
    assert len(paths) > 10
    for path in paths:
        topic, *fields = path.split(".")
        kind = found[topic][0][2].DESCRIPTOR
        for field in fields:
            name = field.partition("[")[0]
            assert name in kind.fields_by_name, path
            kind = kind.fields_by_name[name].message_type
