"""Frames that carry their number, and small data sets with cameras, as other programs write them."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rql_deploy.cameras import parse_cameras
from rql_deploy.train.data.readers.options import ReadOptions
from rql_deploy.train.data.store import TransitionStore
from tests.helpers.data import opened

HEIGHT, WIDTH, BITS = 32, 64, 8
TOP = "observation.images.top"


def numbered(number: int) -> NDArray[np.uint8]:
    """A frame `[32, 64, 3]` that shows a number below 256 in eight bars, which survive an encoder.

    In Gray code: a fast encoder leaves out some of what changes, where several bars do from frame to frame.
    """
    code = number ^ (number >> 1)
    bits = [(code >> bit) & 1 for bit in range(BITS)]
    row = np.repeat(np.array(bits, np.uint8) * 200 + 20, WIDTH // BITS)
    return np.broadcast_to(row[None, :, None], (HEIGHT, WIDTH, 3)).copy()


def numbers_in(frames: NDArray[np.uint8]) -> list[int]:
    """The numbers that frames `[n, H, W, 3]` show, at any size."""
    bars = frames.astype(np.float64).mean(axis=(1, 3))
    bars = bars.reshape(len(frames), BITS, -1).mean(axis=2)
    codes = ((bars > 120) * (1 << np.arange(BITS))).sum(axis=1)
    for shift in (4, 2, 1):
        codes ^= codes >> shift
    return codes.tolist()


def read(path: Path, *cameras: str, **options: Any) -> TransitionStore:
    """A data set with these cameras, as `--camera` names them."""
    return opened(path, ReadOptions(cameras=parse_cameras(cameras), **options))


def write_video(path: Path, numbers: Sequence[int], fps: int = 20, gop: int = 10) -> None:
    """A video of numbered frames, H.264 with B-frames."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        options = {"g": str(gop), "crf": "20", "preset": "veryfast", "threads": "1"}
        stream: Any = container.add_stream("libx264", rate=fps, options=options)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for number in numbers:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(numbered(number), format="rgb24")))
        container.mux(stream.encode())


def png(frame: NDArray[Any]) -> bytes:
    """A picture as a PNG file."""
    from PIL import Image

    data = io.BytesIO()
    Image.fromarray(frame).save(data, "PNG")
    return data.getvalue()


def write_lerobot(
    folder: Path,
    episodes: Sequence[int] = (7, 12, 5),
    *,
    version: str = "v3.0",
    videos: bool = True,
    fps: int = 20,
    state: bool = True,
) -> Path:
    """A LeRobotDataset whose camera shows each row's number among all rows; v3 has one video for all."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    rows = sum(episodes)
    ends = np.cumsum(episodes)
    starts = ends - episodes
    number = np.arange(rows)
    index = np.repeat(np.arange(len(episodes)), episodes)
    within = number - starts[index]
    rng = np.random.default_rng(0)
    columns: dict[str, Any] = {
        "action": pa.array(
            rng.uniform(-1, 1, (rows, 2)).astype(np.float32).tolist(), pa.list_(pa.float32(), 2)
        ),
        "next.reward": (number == ends[index] - 1).astype(np.float32),
        "next.done": number == ends[index] - 1,
        "timestamp": (within / fps).astype(np.float32),
        "frame_index": within,
        "episode_index": index,
        "index": number,
        "task_index": np.zeros(rows, np.int64),
    }
    features: dict[str, Any] = {
        "action": {"dtype": "float32", "shape": [2], "names": ["x", "y"]},
        "next.reward": {"dtype": "float32", "shape": [1], "names": None},
        "next.done": {"dtype": "bool", "shape": [1], "names": None},
        "timestamp": {"dtype": "float32", "shape": [1], "names": None},
    }
    if state:
        values = rng.normal(size=(rows, 3)).astype(np.float32).tolist()
        columns["observation.state"] = pa.array(values, pa.list_(pa.float32(), 3))
        features["observation.state"] = {"dtype": "float32", "shape": [3], "names": None}
    for name in ("frame_index", "episode_index", "index", "task_index"):
        features[name] = {"dtype": "int64", "shape": [1], "names": None}
    shape = {"shape": [HEIGHT, WIDTH, 3], "names": ["height", "width", "channels"]}
    features[TOP] = {"dtype": "video" if videos else "image", **shape}
    if not videos:
        columns[TOP] = [{"bytes": png(numbered(n)), "path": f"{n}.png"} for n in range(rows)]
    (folder / "meta").mkdir(parents=True)
    parts = [(0, rows)] if version == "v3.0" else list(zip(starts, ends, strict=True))
    for i, (start, end) in enumerate(parts):
        name = "file-000" if version == "v3.0" else f"episode_{i:06d}"
        (folder / "data" / "chunk-000").mkdir(parents=True, exist_ok=True)
        table = pa.table({key: column[start:end] for key, column in columns.items()})
        parquet.write_table(table, folder / "data" / "chunk-000" / f"{name}.parquet")
        if videos:
            where = f"{TOP}/chunk-000" if version == "v3.0" else f"chunk-000/{TOP}"
            write_video(folder / "videos" / where / f"{name}.mp4", number[start:end].tolist(), fps)
    info: dict[str, Any] = {
        "codebase_version": version,
        "fps": fps,
        "robot_type": "arm",
        "total_frames": rows,
        "total_episodes": len(episodes),
        "total_tasks": 1,
        "chunks_size": 1000,
        "features": features,
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
        if version == "v3.0"
        else "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    }
    (folder / "meta" / "info.json").write_text(json.dumps(info))
    if version == "v3.0":
        (folder / "meta" / "episodes" / "chunk-000").mkdir(parents=True)
        table = {
            "episode_index": np.arange(len(episodes)),
            "length": np.array(episodes),
            f"videos/{TOP}/chunk_index": np.zeros(len(episodes), np.int64),
            f"videos/{TOP}/file_index": np.zeros(len(episodes), np.int64),
            f"videos/{TOP}/from_timestamp": starts / fps,
            f"videos/{TOP}/to_timestamp": ends / fps,
        }
        parquet.write_table(pa.table(table), folder / "meta" / "episodes" / "chunk-000" / "file-000.parquet")
    return folder


def write_robomimic(
    file: Path, frames: NDArray[Any], lengths: Sequence[int], name: str = "agentview_image"
) -> Path:
    """A robomimic file whose demonstrations observe the position and these `frames` `[N, ...]`."""
    import h5py

    rng = np.random.default_rng(0)
    start = 0
    with h5py.File(file, "w") as opened:
        for i, rows in enumerate(lengths):
            demo = opened.create_group(f"data/demo_{i}")
            demo["actions"] = rng.uniform(-1, 1, (rows, 2))
            demo["rewards"] = demo["dones"] = (np.arange(rows) == rows - 1).astype(np.float64)
            demo["obs/position"] = rng.normal(size=(rows, 3))
            demo[f"obs/{name}"] = frames[start : start + rows]
            start += rows
    return file


def write_visual_npz(file: Path, frames: NDArray[Any], lengths: Sequence[int], **more: Any) -> Path:
    """OGBench's layout of a visual set: the last row of each of the episodes only holds the last picture."""
    rows = sum(lengths)
    terminals = np.zeros(rows, np.float32)
    terminals[np.cumsum(lengths) - 1] = 1
    masks = 1.0 - terminals
    # The task ends in the last row that is a transition.
    masks[np.cumsum(lengths) - 2] = 0
    arrays = {
        "observations": frames,
        "actions": np.random.default_rng(0).uniform(-1, 1, (rows, 5)).astype(np.float32),
        "terminals": terminals,
        "rewards": masks.astype(np.float32) * -1,
        "masks": masks.astype(np.float32),
    }
    np.savez_compressed(file, **{**arrays, **more})
    return file
