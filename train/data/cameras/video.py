"""Frames of a video file by their timestamps, decoded forward by PyAV.

A LeRobotDataset keeps an episode's pictures as a part of a video; a row belongs to the frame whose timestamp
is the row's, and to no other: a frame that is missing moves all later ones, which no training would notice.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rql_deploy.errors import UserError

TOLERANCE = 1e-4
"""Seconds that a frame's timestamp may be off the row's; lerobot's own `tolerance_s`."""
SEEK_SECONDS = 10.0
"""A frame that is so much later than the last decoded one is sought instead of decoded up to."""


def import_av(why: str) -> Any:
    """PyAV; raises UserError with the reason `why` where it is not installed."""
    try:
        import av
    except ModuleNotFoundError as error:
        raise UserError(f"{why}, which needs PyAV: pip install 'rql-deploy[video]'") from error
    return av


class Video:
    """An open video file; raises UserError naming it where it is missing or damaged."""

    def __init__(self, path: Path):
        self._av = import_av(f"{path} is a video")
        self._cover = self._av.stream.Disposition.attached_pic
        self.path = path
        if not path.is_file():
            raise UserError(f"there is no video {path}: download or copy the videos of its data set too")
        try:
            self._container = self._av.open(str(path))
            # A picture of the cover is a stream of its own.
            streams = [one for one in self._container.streams.video if not one.disposition & self._cover]
            if not streams:
                raise ValueError("it holds no video")
        except (self._av.error.FFmpegError, ValueError, OSError) as error:
            raise self._damaged(error) from error
        if len(streams) > 1:
            raise UserError(
                f"the video {path} holds {len(streams)} videos, and which one is the camera's is not said: "
                "keep one in a file"
            )
        self._stream = streams[0]
        self._stream.thread_type = "AUTO"
        self._before: Any = None
        self._after: Any = None
        self._decoded: Iterator[Any] = self._container.decode(self._stream)

    def close(self) -> None:
        """Free the decoder and the file."""
        self._container.close()

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of its frames."""
        return self._stream.height, self._stream.width

    @property
    def count(self) -> int:
        """Frames, as the file says; 0 where it does not."""
        return int(self._stream.frames)

    def frames(self, times: NDArray[np.float64], first: int, where: str) -> Iterator[NDArray[np.uint8]]:
        """The frames `[H, W, 3]` in RGB at the rising `times` `[n]` in s, from row `first` on.

        Raises UserError, naming the row of `where`, unless there is a frame within `TOLERANCE` of each, and
        for frames that are grey or are to be turned when they are shown.
        """
        for row in range(first, len(times)):
            time = float(times[row])
            found = self._at(time)
            # A time that is NaN is near to nothing.
            if found is None or not abs(found.time - time) <= TOLERANCE:
                raise UserError(self._missing(row, time, len(times), where, found))
            if row == first:
                self._require_upright_colour(found)
            yield found.to_ndarray(format="rgb24")

    def _require_upright_colour(self, frame: Any) -> None:
        # PyAV gives frames as they are stored, a player as they were meant: a robot's camera may do either.
        if frame.rotation:
            raise UserError(
                f"the video {self.path} says that its frames are turned by {frame.rotation} degrees when "
                "they are shown: encode it again with frames that are upright as they are"
            )
        if len(frame.format.components) < 3 and frame.format.name != "pal8":
            raise UserError(
                f"the video {self.path} has one number a pixel ({frame.format.name}: grey or depth), and "
                "cameras are read in colour only: encode it again in colour, or leave this camera out"
            )

    def _at(self, time: float) -> Any:
        """The frame nearest to `time`; None if there is no frame at all."""
        known = [frame for frame in (self._before, self._after) if frame is not None]
        behind = bool(known) and time < known[0].time - TOLERANCE
        if behind or time > (known[-1].time if known else 0.0) + SEEK_SECONDS:
            self._seek(time)
        while self._after is None or self._after.time < time:
            following = self._next()
            if following is None:
                break
            self._before, self._after = self._after, following
        known = [frame for frame in (self._before, self._after) if frame is not None]
        return min(known, key=lambda frame: abs(frame.time - time)) if known else None

    def _next(self) -> Any:
        """The next frame that has a timestamp; None at the video's end."""
        try:
            return next((frame for frame in self._decoded if frame.pts is not None), None)
        except (self._av.error.FFmpegError, ValueError) as error:
            raise self._damaged(error) from error

    def _rewind(self) -> None:
        """Forget what was decoded: decoding goes on from where the file was opened or sought."""
        self._before = self._after = None
        self._decoded = self._container.decode(self._stream)

    def _seek(self, time: float) -> None:
        """Go to the last key frame at or before `time`."""
        try:
            offset = int((time - TOLERANCE) / self._stream.time_base)
            self._container.seek(max(0, offset), stream=self._stream, backward=True)
        except self._av.error.FFmpegError as error:
            raise self._damaged(error) from error
        self._rewind()

    def _missing(self, row: int, time: float, rows: int, where: str, found: Any) -> str:
        what = f"{where} has {rows} rows, but {self.path} has no frame for row {row} (at {time:.4f} s"
        if found is None:
            return f"{what}; it holds no frames): copy the video again, or leave the episode out"
        # Where the last frame decoded is before `time`, no other followed.
        if self._after.time < time:
            return (
                f"{what}; it ends at {found.time:.4f} s): the video has fewer frames than there are rows, so "
                "copy it again, or leave the episode out"
            )
        return (
            f"{what}; the nearest is at {found.time:.4f} s): frames were dropped or timestamps are not those "
            "of the video, so record the episode again, or leave it out"
        )

    def _damaged(self, error: Exception) -> UserError:
        reason = str(getattr(error, "strerror", None) or error).splitlines()[0]
        return UserError(f"the video {self.path} is damaged ({reason}): copy or download it again")
