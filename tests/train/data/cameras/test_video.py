"""A row's frame of a video is the one at its time, and a video that does not say which is refused."""

import json
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from rql_deploy.errors import UserError
from rql_deploy.train.data.store import TransitionStore
from tests.helpers.pictures import HEIGHT, TOP, WIDTH, numbered, numbers_in, read, write_lerobot, write_video


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RQL_DEPLOY_CACHE", str(tmp_path / "cache"))


def shown(store: TransitionStore, name: str) -> list[int]:
    return numbers_in(store.images[name].take(np.arange(len(store))))


def test_a_video_is_sought_where_its_frames_are_far_apart(tmp_path: Path) -> None:
    from rql_deploy.train.data.cameras.video import Video

    write_video(tmp_path / "long.mp4", [i % 256 for i in range(700)])
    video = Video(tmp_path / "long.mp4")
    times = np.array([600, 601, 30, 31, 699, 0]) / 20
    found = [next(video.frames(times[i : i + 1], 0, "rows")) for i in range(len(times))]
    assert numbers_in(np.stack(found)) == [600 % 256, 601 % 256, 30, 31, 699 % 256, 0]
    video.close()


def test_a_video_with_fewer_frames_than_rows_is_refused(tmp_path: Path) -> None:
    folder = write_lerobot(tmp_path / "set")
    video = next((folder / "videos").glob("**/*.mp4"))
    write_video(video, range(21))
    with pytest.raises(
        UserError, match=r"episode 2 has 5 rows.*no frame for row 2.*fewer frames than there are rows"
    ):
        read(folder, "top")


def test_frames_of_the_next_episode_do_not_stand_for_those_that_are_missing(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    # The video of episode 0 lacks its last frame, and episode 1 follows at once.
    folder = write_lerobot(tmp_path / "set")
    write_video(next((folder / "videos").glob("**/*.mp4")), [n for n in range(24) if n != 6])
    file = next((folder / "meta" / "episodes").glob("**/*.parquet"))
    table = parquet.read_table(file)
    starts, ends = np.array([0, 6, 18]) / 20, np.array([6, 18, 23]) / 20
    for key, values in (("from", starts), ("to", ends)):
        name = f"videos/{TOP}/{key}_timestamp"
        table = table.set_column(table.column_names.index(name), name, pa.array(values))
    parquet.write_table(table, file)
    words = r"episode 0 has 7 rows, but its part of .* lasts 0.3000 s: the video has fewer"
    with pytest.raises(UserError, match=words):
        read(folder, "top")
    # The episode that begins nowhere is not the video's last frame, over and over.
    name = f"videos/{TOP}/to_timestamp"
    table = table.set_column(table.column_names.index(name), name, pa.array([0.35, 0.95, 1.2]))
    name = f"videos/{TOP}/from_timestamp"
    unknown = pa.array([0.0, float("nan"), 0.95])
    parquet.write_table(table.set_column(table.column_names.index(name), name, unknown), file)
    write_video(next((folder / "videos").glob("**/*.mp4")), range(24))
    with pytest.raises(UserError, match=r"episode 1 has 12 rows, but its part of .* lasts nan s"):
        read(folder, "top")


def test_episodes_that_share_frames_of_a_video_are_refused(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    # Episode 1 is said to lie one frame later than it does: its last row would show episode 2's first.
    folder = write_lerobot(tmp_path / "set")
    file = next((folder / "meta" / "episodes").glob("**/*.parquet"))
    table = parquet.read_table(file)
    for key in ("from", "to"):
        name = f"videos/{TOP}/{key}_timestamp"
        times = np.add(table[name].to_pylist(), [0, 0.05, 0])
        table = table.set_column(table.column_names.index(name), name, pa.array(times))
    parquet.write_table(table, file)
    with pytest.raises(UserError, match=r"episode 2 begins at 0.9500 s, before episode 1 ends at 1.0000 s"):
        read(folder, "top")


def test_a_video_with_two_frames_a_row_is_refused_and_one_more_at_its_end_is_not(tmp_path: Path) -> None:
    folder = write_lerobot(tmp_path / "set", version="v2.1")
    first, second, _ = sorted((folder / "videos").glob("**/*.mp4"))
    write_video(first, range(8))
    assert shown(read(folder, "top"), TOP) == list(range(24))
    write_video(second, np.repeat(np.arange(7, 19), 2).tolist())
    with pytest.raises(UserError, match=r"episode 1 has 12 rows, but 24 frames in .*at another rate"):
        read(folder, "top")


def test_a_frame_that_was_dropped_is_noticed(tmp_path: Path) -> None:
    folder = write_lerobot(tmp_path / "set", fps=20)
    write_video(next((folder / "videos").glob("**/*.mp4")), range(13), fps=10)
    with pytest.raises(
        UserError, match=r"episode 0 has 7 rows.*no frame for row 1 .*timestamps are not those"
    ):
        read(folder, "top")


@pytest.mark.parametrize("what", ["cut", "text", "pointer", "missing", "size"])
def test_a_broken_video_is_one_sentence(tmp_path: Path, what: str) -> None:
    folder = write_lerobot(tmp_path / "set")
    video = next((folder / "videos").glob("**/*.mp4"))
    if what == "cut":
        video.write_bytes(video.read_bytes()[:700])
    elif what == "text":
        video.write_text("no video " * 200)
    elif what == "pointer":
        video.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n")
    elif what == "missing":
        video.unlink()
    else:
        info = json.loads((folder / "meta" / "info.json").read_text())
        info["features"][TOP]["shape"] = [64, 64, 3]
        (folder / "meta" / "info.json").write_text(json.dumps(info))
    words = {"pointer": "git-lfs pointer", "missing": "there is no file", "size": "frames of 32x64"}
    with pytest.raises(UserError, match=words.get(what, "is damaged")) as error:
        read(folder, "top")
    assert str(video) in str(error.value) and "\n" not in str(error.value)


def turn(video: Path) -> None:
    """Say in the file that its frames are to be turned by half a turn, as a telephone does."""
    data = bytearray(video.read_bytes())
    matrix = data.find(b"tkhd") + 44
    assert struct.unpack_from(">i", data, matrix) == (1 << 16,)
    sides = -(1 << 16), 0, 0, 0, -(1 << 16), 0, WIDTH << 16, HEIGHT << 16, 1 << 30
    struct.pack_into(">9i", data, matrix, *sides)
    video.write_bytes(data)


def encode(video: Path, pixels: str, streams: int = 1) -> None:
    """A video of 24 frames in another format, or several in a file."""
    import av

    with av.open(str(video), "w", format="matroska") as container:
        for _ in range(streams):
            stream = container.add_stream("ffv1", rate=20)
            stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, pixels
        for stream in container.streams.video:
            for number in range(24):
                frame = av.VideoFrame.from_ndarray(numbered(number), format="rgb24")
                container.mux(stream.encode(frame.reformat(format=pixels)))
            container.mux(stream.encode())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (turn, "its frames are turned by -?180 degrees when they are shown"),
        (lambda video: encode(video, "gray"), r"one number a pixel \(gray: grey or depth\)"),
        (lambda video: encode(video, "yuv420p", 2), "holds 2 videos"),
    ],
    ids=["turned", "grey", "two"],
)
def test_a_video_that_may_be_read_in_two_ways_is_refused(
    tmp_path: Path, change: Callable[[Path], None], words: str
) -> None:
    folder = write_lerobot(tmp_path / "set")
    change(next((folder / "videos").glob("**/*.mp4")))
    with pytest.raises(UserError, match=words):
        read(folder, "top")
