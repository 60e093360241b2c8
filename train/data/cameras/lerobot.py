"""Frames of a LeRobotDataset: videos (one episode or many in a file), or pictures in the table of rows."""

from __future__ import annotations

import hashlib
import itertools
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rql_deploy.errors import UserError
from rql_deploy.folders import visible

from .pictures import decode_picture, require_colour
from .source import files_fingerprint, in_chunks, skipped
from .video import Video

PICTURE_ROWS = 64
"""Rows of a table with pictures in them that are in memory at a time."""
FILES = ("video", "image")
"""Types of features whose pictures are files."""
CHANNELS = (1, 3, 4)
SURPLUS = 0.05
"""Share of frames beyond the rows that a recorder may have added at an episode's end."""
SMALLEST_ARRAY = 64
"""Numbers of a table, such as a pose of 4 x 4, that is no picture."""


@dataclass(frozen=True)
class TakenEpisode:
    """The rows of an episode that are in the store: its first ones."""

    number: int
    times: NDArray[np.float64]
    """Seconds since the episode's first frame, one for each row."""
    total: int
    """Rows of the whole episode."""


def picture_features(features: Mapping[str, Any]) -> list[str]:
    """Names of the features that are pictures, in files or as arrays of their own."""
    return [name for name, feature in features.items() if feature["dtype"] in FILES or _is_array(feature)]


def _is_array(feature: Mapping[str, Any]) -> bool:
    """Whether a feature holds a picture's numbers in the table of rows; small tables are no pictures."""
    try:
        kind = np.dtype(feature["dtype"]).kind
    except TypeError:
        return False
    shape = feature["shape"]
    return kind in "biuf" and len(shape) in (2, 3) and int(np.prod(shape)) > SMALLEST_ARRAY


def lerobot_frames(
    folder: Path, info: Mapping[str, Any], name: str, episodes: Sequence[TakenEpisode], arrow: Any
) -> VideoFrames | TableFrames:
    """The frames of feature `name`; raises UserError for grey, depth and float ones, and missing videos."""
    feature = info["features"][name]
    if _is_array(feature):
        size = require_colour(str(folder), name, feature["shape"], feature["dtype"])
        return TableFrames(folder, name, size, tuple(episodes), arrow, known_order=False)
    size = require_colour(str(folder), name, _shape(feature), np.uint8)
    about = {**(feature.get("info") or {}), **(feature.get("video_info") or {})}
    if about.get("video.is_depth_map"):
        raise UserError(
            f"'{name}' of {folder} is a depth map, and cameras are read in colour only: leave this camera out"
        )
    if feature["dtype"] == "video":
        return VideoFrames(folder, name, size, tuple(episodes), arrow, info=info)
    return TableFrames(folder, name, size, tuple(episodes), arrow)


def _shape(feature: Mapping[str, Any]) -> list[int]:
    """Height, width and channels of a picture's file, which some programs note in another order."""
    shape: list[int] = [int(side) for side in feature["shape"]]
    if len(shape) == 3 and shape[0] in CHANNELS and shape[2] not in CHANNELS:
        return [shape[1], shape[2], shape[0]]
    return shape


@dataclass(frozen=True)
class _Frames(ABC):
    """Frames of one feature, episode by episode."""

    folder: Path
    name: str
    size: tuple[int, int]
    episodes: tuple[TakenEpisode, ...]
    arrow: Any
    known_order: bool = True
    camera: str = ""

    @property
    def where(self) -> str:
        return str(self.folder)

    @property
    def rows(self) -> int:
        return sum(len(episode.times) for episode in self.episodes)

    def read(self, start: int) -> Iterator[NDArray[np.uint8]]:
        return in_chunks(self._frames(start), self.size)

    @abstractmethod
    def _frames(self, start: int) -> Iterator[NDArray[np.uint8]]:
        """Single frames from row `start` on."""


@dataclass(frozen=True)
class VideoFrames(_Frames):
    """Frames of one feature in its video files."""

    info: Mapping[str, Any] = field(kw_only=True)

    @property
    def files(self) -> list[Path]:
        """The videos."""
        return list(dict.fromkeys(path for path, *_ in self._places))

    @cached_property
    def fingerprint(self) -> str:
        times = hashlib.sha256(b"".join(episode.times.tobytes() for episode in self.episodes)).hexdigest()
        starts = [f"{path.name} {begins!r}" for path, begins, _ in self._places]
        return files_fingerprint(self.files, self.name, times, *starts)

    def _frames(self, start: int) -> Iterator[NDArray[np.uint8]]:
        video: Video | None = None
        try:
            for i, first in skipped([len(episode.times) for episode in self.episodes], start):
                path, offset, stop = self._places[i]
                if video is None or video.path != path:
                    if video is not None:
                        video.close()
                    video = Video(path)
                    self._require_size(video)
                episode = self.episodes[i]
                where = f"{self.folder}: episode {episode.number}"
                self._require_length(where, path, len(episode.times), stop - offset)
                rate = float(self.info["fps"])
                frames = video.count if math.isinf(stop) else round((stop - offset) * rate)
                if frames > episode.total * (1 + SURPLUS) + 1:
                    raise UserError(
                        f"{where} has {episode.total} rows, but {frames} frames in {path}: the camera was "
                        "recorded at another rate, or rows were left out, so record the episode again, or "
                        "leave it out"
                    )
                yield from video.frames(offset + episode.times, first, where)
        finally:
            if video is not None:
                video.close()

    def _require_length(self, where: str, path: Path, rows: int, seconds: float) -> None:
        """Raise UserError if an episode has more rows than its part of a video: there begins the next one."""
        rate = float(self.info["fps"])
        # A length that is NaN is too short for any.
        if not rows <= seconds * rate + 0.5:
            raise UserError(
                f"{where} has {rows} rows, but its part of {path} lasts {seconds:.4f} s: the video has fewer "
                "frames than there are rows, so copy it again, or leave the episode out"
            )

    def _require_size(self, video: Video) -> None:
        if video.size != self.size:
            raise UserError(
                f"the video {video.path} has frames of {video.size[0]}x{video.size[1]} pixels, "
                f"meta/info.json says {self.size[0]}x{self.size[1]}: copy it again, or correct it there"
            )

    @cached_property
    def _places(self) -> list[tuple[Path, float, float]]:
        """Video file of each episode, and the seconds in it at which the episode begins and ends."""
        template = self.info.get("video_path")
        if not template:
            raise UserError(f"{self.folder}: meta/info.json says no video_path: copy the data set again")
        if str(self.info["codebase_version"]).startswith("v2"):
            per_chunk = int(self.info.get("chunks_size", 1000))
            return [
                (
                    self.folder
                    / template.format(
                        episode_chunk=episode.number // per_chunk,
                        video_key=self.name,
                        episode_index=episode.number,
                    ),
                    0.0,
                    math.inf,
                )
                for episode in self.episodes
            ]
        table = self._table()
        if missing := [episode.number for episode in self.episodes if episode.number not in table]:
            raise UserError(
                f"{self.folder}: meta/episodes does not say where the video '{self.name}' of episode "
                f"{missing[0]} is: copy the data set again"
            )
        return [
            (self.folder / template.format(video_key=self.name, chunk_index=chunk, file_index=file), *part)
            for chunk, file, *part in (table[episode.number] for episode in self.episodes)
        ]

    def _table(self) -> dict[int, tuple[int, int, float, float]]:
        """Chunk, file, begin and end in s of each episode's video, by the episode's number."""
        names = ("chunk_index", "file_index", "from_timestamp", "to_timestamp")
        keys = [f"videos/{self.name}/{key}" for key in names]
        found = {}
        for file in visible((self.folder / "meta" / "episodes").glob("**/*.parquet")):
            if lacking := set(keys) - set(self.arrow.parquet.read_schema(file).names):
                raise UserError(f"{file} lacks '{min(lacking)}': copy the data set again")
            for row in self.arrow.parquet.read_table(file, columns=["episode_index", *keys]).to_pylist():
                chunk, number, begins, ends = (row[key] for key in keys)
                found[int(row["episode_index"])] = int(chunk), int(number), float(begins), float(ends)
        self._require_apart(found)
        return found

    def _require_apart(self, table: Mapping[int, tuple[int, int, float, float]]) -> None:
        """Raise UserError where two episodes share frames of a video: one of them shows the other's."""
        parts = sorted((*part, episode) for episode, part in table.items())
        for (*file, _, ends, before), (*same, begins, _, after) in itertools.pairwise(parts):
            if file == same and begins < ends - 0.5 / float(self.info["fps"]):
                raise UserError(
                    f"{self.folder}: in the video '{self.name}' episode {after} begins at {begins:.4f} s, "
                    f"before episode {before} ends at {ends:.4f} s: meta/episodes does not fit the video, so "
                    "copy or convert the data set again"
                )


@dataclass(frozen=True)
class TableFrames(_Frames):
    """Frames of one feature that are PNG or JPEG pictures, or arrays, in the table of rows."""

    @cached_property
    def fingerprint(self) -> str:
        taken = [f"{episode.number}:{len(episode.times)}" for episode in self.episodes]
        return files_fingerprint(self.files, self.name, *taken, *self._beside())

    @cached_property
    def files(self) -> list[Path]:
        """The tables of rows."""
        return visible((self.folder / "data").glob("**/*.parquet"))

    def _beside(self) -> Iterator[str]:
        """Size and time of change of each picture that is a file of its own, by its path in the folder."""
        known: dict[Path, set[str]] = {}
        for path in self._paths():
            place = self.folder / path
            # Pictures in the table have paths, too: a folder is listed once instead of asked for each.
            if place.parent not in known:
                known[place.parent] = set(os.listdir(place.parent)) if place.parent.is_dir() else set()
            if place.name in known[place.parent]:
                found = place.stat()
                yield f"{path} {found.st_size} {found.st_mtime_ns}"

    def _paths(self) -> Iterator[str]:
        """What the table says of where pictures lie; the pictures in it are not read."""
        for file in self.files:
            with self.arrow.parquet.ParquetFile(file) as opened:
                if not self._has(opened):
                    continue
                kind = opened.schema_arrow.field(self.name).type
                if self.arrow.types.is_struct(kind) and "path" in kind.names:
                    for block in opened.iter_batches(columns=[f"{self.name}.path"]):
                        yield from filter(None, block.column(0).field("path").to_pylist())
                elif self.arrow.types.is_string(kind):
                    for block in opened.iter_batches(columns=[self.name]):
                        yield from filter(None, block.column(0).to_pylist())

    def _has(self, opened: Any) -> bool:
        return self.name in opened.schema_arrow.names

    def _frames(self, start: int) -> Iterator[NDArray[np.uint8]]:
        wanted = {episode.number: len(episode.times) for episode in self.episodes}
        row: dict[int, int] = {}
        passed = 0
        for number, cell in self._cells():
            row[number] = row.get(number, -1) + 1
            if row[number] >= wanted.get(number, 0):
                continue
            passed += 1
            if passed > start:
                where = f"{self.folder}: '{self.name}' in row {row[number]} of episode {number}"
                value = cell.as_py()
                if isinstance(value, list):
                    yield np.asarray(value, np.uint8).reshape(*self.size, 3)
                else:
                    yield decode_picture(self._bytes(value, where), where, self.size)

    def _cells(self) -> Iterator[tuple[int, Any]]:
        """Episode and picture of each row."""
        for file in self.files:
            with self.arrow.parquet.ParquetFile(file) as opened:
                if not self._has(opened):
                    raise UserError(f"{file} lacks the pictures '{self.name}': copy the data set again")
                for block in opened.iter_batches(PICTURE_ROWS, columns=["episode_index", self.name]):
                    numbers = block.column("episode_index").to_pylist()
                    yield from zip(numbers, block.column(self.name), strict=True)

    def _bytes(self, value: Any, where: str) -> bytes:
        """The picture's file, in the table or beside it."""
        if isinstance(value, str):
            value = {"path": value}
        data, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
        if data is None and path and (self.folder / path).is_file():
            data = (self.folder / path).read_bytes()
        if not data:
            raise UserError(
                f"{where} has no picture: it is missing, or lies in another place than the data set"
            )
        return bytes(data)
