"""Frames are decoded once, also after a killed process, and never more than a few at a time."""

import json
import os
import signal
import sys
import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from rql_deploy.contract import ImageField
from rql_deploy.errors import UserError
from rql_deploy.progress import NoProgress, TerminalProgress
from rql_deploy.train.data.cameras.cache import cached_frames
from rql_deploy.train.data.frames import Frames
from tests.helpers.commands import ROOT, stopped_when

SIZE = (8, 12)
FIELD = ImageField("top", 4, 6, camera_height=8, camera_width=12)


@dataclass
class Counting:
    """A source of `rows` frames that notes which rows it decoded, and fails before row `broken`."""

    rows: int = 40
    broken: int = 1 << 30
    fingerprint: str = "a"
    name: str = "top"
    where: str = "data"
    size: tuple[int, int] = SIZE
    camera: str = ""
    known_order: bool = True
    decoded: list[int] = field(default_factory=list)

    def read(self, start: int) -> Iterator[NDArray[np.uint8]]:
        for row in range(start, self.rows, 4):
            if row >= self.broken:
                raise ValueError("no such block")
            rows = range(row, min(row + 4, self.rows))
            self.decoded += rows
            yield np.stack([np.full((*self.size, 3), row, np.uint8) for row in rows])


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RQL_DEPLOY_CACHE", str(tmp_path))
    return tmp_path / "frames"


def decode(source: Counting, field: ImageField = FIELD) -> Frames:
    return cached_frames(source, field, False, NoProgress())


def test_frames_are_decoded_once_and_resized() -> None:
    source = Counting()
    first = decode(source)
    again = decode(source)
    assert source.decoded == list(range(40))
    assert first.shape == (40, 4, 6, 3) and isinstance(again.parts[0], np.memmap)
    assert again.take(np.arange(40))[:, 0, 0, 0].tolist() == list(range(40))
    assert first.digest == again.known_digest == Frames(again.parts).digest


def test_other_frames_sizes_and_orders_are_other_entries(cache: Path) -> None:
    decode(Counting())
    for other in (Counting(fingerprint="b"), Counting(rows=39), Counting(name="wrist")):
        decode(other)
        assert len(other.decoded) == other.rows
    cached_frames(Counting(), FIELD, True, NoProgress())
    decode(Counting(), ImageField("top", *SIZE))
    assert len(list(cache.iterdir())) == 6


def test_decoding_goes_on_where_it_stopped() -> None:
    source = Counting(broken=20)
    with pytest.raises(UserError, match="'top' of data is damaged"):
        decode(source)
    source.broken, source.decoded = 1 << 30, []
    frames = decode(source)
    assert source.decoded == list(range(20, 40))
    assert frames.take(np.arange(40))[:, 0, 0, 0].tolist() == list(range(40))


def test_fewer_frames_than_rows_leave_no_entry(cache: Path) -> None:
    source = Counting()
    short = Counting(rows=30)
    source.read = short.read  # type: ignore[method-assign]
    with pytest.raises(UserError, match="data has 30 frames of 'top' for 40 rows"):
        decode(source)
    assert not list(cache.glob("*/frames.json"))


def test_a_cut_or_altered_entry_is_decoded_again(cache: Path) -> None:
    decode(Counting())
    file = next(cache.glob("*/frames.npy"))
    file.write_bytes(file.read_bytes()[:-7])
    source = Counting()
    decode(source)
    assert len(source.decoded) == 40
    next(cache.glob("*/frames.json")).write_text("{")
    source.decoded = []
    decode(source)
    assert len(source.decoded) == 40
    file.write_bytes(b"")
    source.decoded = []
    decode(source)
    assert len(source.decoded) == 40


def test_a_folder_that_cannot_be_written_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RQL_DEPLOY_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"cannot keep the frames of 'top'.*set RQL_DEPLOY_CACHE"):
        decode(Counting())


def test_memory_is_that_of_a_few_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rql_deploy.train.data.frames.BLOCK_BYTES", 1 << 20)
    source = Counting(rows=4000, size=(32, 48))
    tracemalloc.start()
    frames = decode(source, ImageField("top", 32, 48))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert frames.nbytes > 18_000_000 and peak < frames.nbytes / 2


def test_progress_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    cached_frames(Counting(), FIELD, False, TerminalProgress())
    assert "frames of top  40/40" in capsys.readouterr().err


SLOW = """
import sys, time
import numpy as np
sys.path.insert(0, {root!r})
from tests.train.data.cameras.test_cache import Counting, FIELD, NoProgress, cached_frames
class Slow(Counting):
    def read(self, start):
        for chunk in super().read(start):
            time.sleep(0.05)
            yield chunk
cached_frames(Slow(), FIELD, False, NoProgress())
"""


def test_a_killed_process_leaves_what_it_has_decoded(cache: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    row_bytes = 4 * 6 * 3

    def begun() -> bool:
        partial = next(cache.glob("*/.frames.npy.partial"), None) if cache.is_dir() else None
        return partial is not None and partial.stat().st_size >= 128 + 8 * row_bytes

    command = [sys.executable, "-c", SLOW.format(root=str(ROOT))]
    assert stopped_when(begun, command, signal.SIGKILL, env=environment).returncode == -signal.SIGKILL
    source = Counting()
    frames = decode(source)
    assert 0 < len(source.decoded) < 40
    assert frames.take(np.arange(40))[:, 0, 0, 0].tolist() == list(range(40))
    assert json.loads(next(cache.glob("*/frames.json")).read_text())["sha256"] == frames.digest
