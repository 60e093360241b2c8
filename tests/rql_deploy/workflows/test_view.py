"""The page of a recording: what it shows, that it needs no network, and what it refuses."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from mcap.writer import Writer

from rql_deploy.bundle.bundle import Bundle
from rql_deploy.runtime.recording.messages import (
    Decision,
    Doubles,
    Floats,
    Previews,
    Scores,
    Tick,
    pack,
)
from rql_deploy.runtime.recording.reader import read_recording
from rql_deploy.runtime.recording.writer import RecordingWriter
from rql_deploy.workflows import view
from rql_deploy.workflows.view import view_recording
from tests.helpers.commands import ROOT, assert_refused, cli
from tests.helpers.pages import Page, assert_shown_offline
from tests.helpers.recordings import write_episode

LIFT = ROOT / "rql_deploy" / "assets" / "lift_bundle"
BUNDLE = ("--bundle", LIFT)


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recording")
    write_episode(folder, LIFT)
    return folder


def shown(page: Path) -> dict[str, Any]:
    """The data that the page's script shows."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text())
    assert found is not None
    data: dict[str, Any] = json.loads(found.group(1))
    return data


def test_the_page_shows_ticks_decisions_and_what_was_behind_each(recording: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    result = cli("view", recording, "--output", page, "--json")
    assert json.loads(result.stdout) == {"page": str(page), "episodes": 1, "ticks": 12, "decisions": 6}
    data = shown(page)
    (episode,) = data["episodes"]
    assert [tick["d"] for tick in episode["ticks"]] == [0, 0, 1, 1, 2, -1, 3, 3, 4, 4, 5, 5]
    assert [i for i, tick in enumerate(episode["ticks"]) if not tick["fresh"]] == [5]
    assert episode["ticks"][5]["reason"] == "no action is there"
    assert [i for i, tick in enumerate(episode["ticks"]) if tick["human"]] == [3]
    # A seam is where one chunk follows another, not within one and not after a hold.
    seams = [i for i, tick in enumerate(episode["ticks"]) if tick["seam"]]
    assert seams == [2, 4, 8, 10]
    commands = np.array([tick["a"] for tick in episode["ticks"]])
    assert episode["ticks"][2]["seam"] == pytest.approx(np.abs(commands[2] - commands[1]).max() / 2, abs=1e-3)
    decision = episode["decisions"][0]
    assert (len(decision["candidates"]), len(decision["previews"])) == (2, 9)
    assert decision["pruned"] == [[2, 2]]
    sent = next(c for c in decision["candidates"] if c["n"] == decision["sent"])
    assert sent["v"] == decision["v"] == max(c["v"] for c in decision["candidates"])
    assert sent["x"][0] == pytest.approx(episode["ticks"][0]["p"], abs=1e-4)


def test_it_is_one_file_without_a_network(recording: Path, tmp_path: Path) -> None:
    result = view_recording(recording, tmp_path / "page.html")
    text = result.page.read_text()
    assert "default-src 'none'" in text
    assert Page(text).addresses == []
    assert not re.search(r"https?:|@import|\burl\(", text)


def test_a_part_of_the_time_and_pictures(recording: Path, tmp_path: Path) -> None:
    folder = tmp_path / "recording"
    shutil.copytree(recording, folder)
    bundle, *_ = read_recording(folder)
    writer = RecordingWriter(folder, "with_pictures", shard_bytes=1 << 20)
    writer.add(bundle)
    ticks = [message for message in read_recording(recording) if isinstance(message, Tick)]
    camera = pack("front", np.full((4, 6, 3), 200, np.uint8))
    for tick in ticks:
        fields = [*tick.fields, camera]
        writer.add(msgspec.structs.replace(tick, episode=9, time=tick.time + 60, fields=fields))
    writer.close()
    page = view_recording(folder, tmp_path / "page.html", start=59.0).page
    (episode,) = shown(page)["episodes"]
    assert len(episode["ticks"]) == 12
    assert all(tick["film"].startswith("data:image/webp;base64,") for tick in episode["ticks"])
    assert len(shown(view_recording(folder, page, duration=0.22).page)["episodes"][0]["ticks"]) in (4, 5)


def test_times_of_a_long_episode_are_to_the_millisecond(recording: Path, tmp_path: Path) -> None:
    writer = RecordingWriter(tmp_path, "long", shard_bytes=1 << 20)
    messages = list(read_recording(recording))
    ticks = [message for message in messages if isinstance(message, Tick)]
    writer.add(messages[0])
    for tick in ticks:
        writer.add(msgspec.structs.replace(tick, time=tick.time + (1234.0 if tick.tick else 0.0)))
    writer.close()
    (episode,) = shown(view_recording(tmp_path, tmp_path / "page.html").page)["episodes"]
    times = [tick["t"] for tick in episode["ticks"]]
    assert times == pytest.approx([0.0] + [1234 + 0.05 * tick for tick in range(1, 12)], abs=2e-3)


def test_decisions_without_a_loop_are_shown_with_previews_computed_again(tmp_path: Path) -> None:
    write_episode(tmp_path, LIFT)
    folder = tmp_path / "decisions"
    folder.mkdir()
    writer = RecordingWriter(folder, "recording", shard_bytes=1 << 20)
    for message in read_recording(tmp_path):
        if not isinstance(message, Tick):
            if hasattr(message, "previews"):
                message = msgspec.structs.replace(message, previews=[])
            writer.add(message)
    writer.close()
    without = shown(view_recording(folder, tmp_path / "a.html").page)
    again = shown(view_recording(folder, tmp_path / "b.html", bundle=LIFT).page)
    assert [len(d["previews"]) for d in without["episodes"][0]["decisions"]] == 6 * [0]
    assert [len(d["previews"]) for d in again["episodes"][0]["decisions"]] == 6 * [9]
    assert without["episodes"][0]["ticks"] == []


def test_what_cannot_be_shown_is_one_sentence(
    recording: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page.html"
    assert_refused(cli("view", tmp_path / "none", "--output", page), "there is no recording")
    other = tmp_path / "other.mcap"
    with other.open("wb") as stream:
        writer = Writer(stream)
        writer.start("ros2")
        writer.finish()
    assert_refused(cli("view", other, "--output", page), "is not a recording", "serve --record")
    empty = tmp_path / "empty"
    empty.mkdir()
    RecordingWriter(empty, "recording", shard_bytes=1 << 20).begin()
    assert_refused(cli("view", empty, "--output", page), "no decision and no tick")
    (whole,) = recording.glob("*.mcap")
    cut = tmp_path / "cut.mcap"
    cut.write_bytes(whole.read_bytes()[:100])
    assert_refused(cli("view", cut, "--output", page), "no decision and no tick")
    assert_refused(cli("replay", cut, *BUNDLE), "cut.mcap holds no decision", "a whole copy")
    data = bytearray(whole.read_bytes())
    data[len(data) // 3] ^= 0xFF
    cut.write_bytes(data)
    assert_refused(cli("view", cut, "--output", page), "is damaged")
    assert_refused(cli("view", recording, "--output", tmp_path / "no" / "page.html"), "no/page.html")
    monkeypatch.setattr(view, "MAX_TICKS", 11)
    assert_refused(cli("view", recording, "--output", page), "12 ticks", "--start and --duration")
    assert not page.exists()


def test_a_recording_of_two_tasks_shows_the_one_that_is_asked_for(
    recording: Path, bundle: Path, tmp_path: Path
) -> None:
    write_episode(tmp_path, bundle)
    (other,) = tmp_path.glob("*.mcap")
    other.rename(tmp_path / "other.mcap")
    shutil.copy(next(recording.glob("*.mcap")), tmp_path)
    tasks = sorted(Bundle.open(path).contract.plant.task for path in (bundle, LIFT))
    page = tmp_path / "page.html"
    assert_refused(cli("view", tmp_path, "--output", page), f"is of {', '.join(tasks)}", "--task")
    assert_refused(cli("view", tmp_path, "--output", page, "--task", tasks[0][:-1]), f"mean {tasks[0]}?")
    for task in tasks:
        view_recording(tmp_path, page, task=task)
        assert (shown(page)["task"], len(shown(page)["episodes"])) == (task, 1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"chunk_shape": [5]},
        {"chunk_shape": [5, 8]},
        {"chunk_shape": [0, 7]},
        {"deltas": Doubles(b"123")},
        {"scores": [Scores([1], [0, 1], Floats(b""))]},
        {"previews": [Previews([1], [0, 1], Floats(bytes(4)))]},
    ],
    ids=str,
)
def test_messages_that_contradict_themselves_are_damage(
    recording: Path, tmp_path: Path, wrong: dict[str, Any]
) -> None:
    writer = RecordingWriter(tmp_path, "recording", shard_bytes=1 << 20, drawing=1e-9)
    for message in read_recording(recording):
        changed = isinstance(message, Decision)
        writer.add(msgspec.structs.replace(message, **wrong) if changed else message, draw=False)
    writer.close()
    for command in (("view", tmp_path, "--output", tmp_path / "page.html"), ("replay", tmp_path, *BUNDLE)):
        assert_refused(cli(*command), "is damaged", "use a copy")


@pytest.mark.slow
def test_chromium_shows_it_without_a_network_in_light_and_dark_and_on_a_phone(
    recording: Path, tmp_path: Path
) -> None:
    assert_shown_offline(view_recording(recording, tmp_path / "page.html").page)
