"""Read MCAP logs of ROS 2 (https://mcap.dev), topics put on one clock by a topic map.

    LOGS/map.toml             the map
    LOGS/one.mcap             an episode
    LOGS/two/two_0.mcap ...   an episode: a bag in parts, with metadata.yaml

Needs mcap-ros2-support, and no ROS.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rql_deploy.contract import ActionDimension, ObservationField, PlantDescription
from rql_deploy.errors import UserError
from rql_deploy.folders import visible
from rql_deploy.ros2.topic_map import Commanded, Source, TopicMap, action_dimensions, read_map
from rql_deploy.ros2.values import joints_of, values_of
from rql_deploy.train.data.store import TransitionStore

from .assumed_plant import assumed_plant
from .store_builder import StoreBuilder

MAP_FILE = "map.toml"
Track = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Times in s `[n]` and values `[n, D]` of a topic's messages."""


def is_mcap(path: Path) -> bool:
    """Whether `path` is an MCAP file, or a folder of them or of bags in that format."""
    if path.is_dir():
        return next(path.glob("*.mcap"), None) is not None or next(path.glob("*/*.mcap"), None) is not None
    return path.suffix == ".mcap" and path.is_file()


def read_mcap(path: Path) -> TransitionStore:
    """Load the log or folder of logs at `path` by the map beside it, `map.toml` (or `NAME.toml`).

    Rows are 1/rate apart, from the moment every field has been seen to the last message of the shortest
    topic. A field is its newest message at that moment, the action the newest one before the next row. The
    task ends in the last row of an episode whose `success` topic says so; rewards are 0. Raises UserError
    naming topic and time where a message is missing or does not fit.
    """
    episodes = _episodes(path)
    beside = (path if path.is_dir() else path.parent) / MAP_FILE
    own = path.with_suffix(".toml")
    map_file = own if path.is_file() and own.is_file() else beside
    if not map_file.is_file():
        raise UserError(
            f"{path} needs a map that says which topics are observations and actions: write {map_file} as in "
            f"docs/data.md; the log has {_topics(episodes[0])}"
        )
    topics = read_map(map_file)
    logs = [_Log(files, topics) for files in episodes]
    parts = [log.rows() for log in logs]
    actions = np.concatenate([taken for _, taken in parts]).astype(np.float32)
    fields = [
        ObservationField(name, source.shape or (logs[0].tracks[name][1].shape[1],), source.unit)
        for name, source in topics.observation.items()
    ]
    plant = _plant(path, topics, logs[0], fields, actions)
    result = StoreBuilder(path.stem, plant, len(actions))
    for log, (seen, taken) in zip(logs, parts, strict=True):
        if seen.shape[1] != plant.observation_dim or taken.shape[1] != plant.action_dim:
            raise UserError(f"{log.where} has topics of other sizes than {logs[0].where}: leave it out")
        result.next_observations(len(taken))[:] = seen
        masks = np.ones(len(taken), np.float32)
        masks[-1] = not log.success
        result.add(taken, np.zeros(len(taken), np.float32), masks, success=log.success)
    return result.store()


class _Log:
    """One episode: each source's messages, by its name."""

    def __init__(self, files: list[Path], topics: TopicMap):
        self.where, self.map = str(files[0] if len(files) == 1 else files[0].parent), topics
        self.success: bool | None = None
        self.joints: dict[str, tuple[str, ...]] = {}
        sources: dict[str, Source] = {**topics.observation, **{f"\0{k}": v for k, v in topics.action.items()}}
        times: dict[str, list[float]] = {name: [] for name in sources}
        values: dict[str, list[NDArray[np.float64]]] = {name: [] for name in sources}
        for topic, kind, time, message in sorted(_messages(files, topics.topics), key=lambda entry: entry[2]):
            if topic == topics.success:
                self.success = bool(self.success) or bool(message.data)
            for name, source in sources.items():
                if source.topic == topic:
                    if name not in self.joints:
                        named = source.joint_names if isinstance(source, Commanded) else source.names
                        self.joints[name] = named or joints_of(message)
                    numbers = values_of(
                        f"{self.where}, topic {topic}", kind, message, source, self.joints[name]
                    )
                    if values[name] and len(numbers) != len(values[name][0]):
                        raise UserError(
                            f"{self.where}, topic {topic}: a message has {len(numbers)} numbers, the first "
                            f"one {len(values[name][0])}: leave the log out"
                        )
                    times[name].append(time)
                    values[name].append(numbers)
        if missing := [source.topic for name, source in sources.items() if not times[name]]:
            raise UserError(
                f"{self.where} has no message of topic {missing[0]}: it has {_topics(files)}; correct the map"
            )
        if topics.success and self.success is None:
            self.success = False
        self.tracks: dict[str, Track] = {n: (np.array(times[n]), np.stack(values[n])) for n in sources}

    def rows(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Observations `[n, O]` and actions `[n, A]` on the map's clock."""
        period = 1.0 / self.map.rate
        fields = {name: self.tracks[name] for name in self.map.observation}
        commands = {name: self.tracks[f"\0{name}"] for name in self.map.action}
        # A row's action may come until the next row.
        start = max(
            *(times[0] for times, _ in fields.values()),
            *(times[0] - period for times, _ in commands.values()),
        )
        # The commands hold; what is observed must go on.
        stop = min(times[-1] for times, _ in fields.values())
        # A clock's rounding must not move a message that comes with every tick to the next row.
        slack = 1e-3 * period
        count = int(np.floor((stop - start) / period + 1e-6)) + 1 if stop >= start else 0
        if not count:
            raise UserError(f"{self.where} has no moment at which all topics are there: leave it out")
        clock = start + period * np.arange(count)
        seen = []
        for name, (times, values) in fields.items():
            at = np.searchsorted(times, clock + slack, side="right") - 1
            age, longest = clock - times[at], self.map.observation[name].max_gap
            if (age > longest).any():
                row = int(np.argmax(age > longest))
                raise UserError(
                    f"{self.where} has no message of {self.map.observation[name].topic} for {age.max():.3g} "
                    f"s, from {times[at[row]] - start:.3g} s on: cut the log there, or set max_gap in the map"
                )
            seen.append(values[at])
        taken = [
            values[np.searchsorted(times, clock + period - slack, side="left") - 1]
            for times, values in commands.values()
        ]
        return np.concatenate(seen, axis=1), np.concatenate(taken, axis=1)


def _plant(
    path: Path, topics: TopicMap, log: _Log, fields: list[ObservationField], actions: NDArray[np.float32]
) -> PlantDescription:
    """The plant that the map describes; what it leaves out is assumed."""
    dimensions: list[ActionDimension] = []
    for part, source in topics.action.items():
        width = log.tracks[f"\0{part}"][1].shape[1]
        dimensions += action_dimensions(part, source, width, log.joints[f"\0{part}"])
    return assumed_plant(topics.task or path.stem, fields, actions, dimensions=dimensions, rate=topics.rate)


def _episodes(path: Path) -> list[list[Path]]:
    """Files of each episode."""
    if path.is_file():
        return [[path]]
    if (path / "metadata.yaml").is_file():  # one bag, in parts
        return [visible(path.glob("*.mcap"))]
    bags = [visible(folder.glob("*.mcap")) for folder in sorted(path.iterdir()) if folder.is_dir()]
    return [[file] for file in visible(path.glob("*.mcap"))] + [files for files in bags if files]


def _messages(files: list[Path], topics: list[str]) -> Any:
    """(topic, type, log time in s, message) of every message of these topics."""
    for file in files:
        with file.open("rb") as stream:
            reader, errors = _reader(file, stream)
            try:
                for schema, channel, message, decoded in reader.iter_decoded_messages(topics=topics):
                    yield channel.topic, schema.name, message.log_time * 1e-9, decoded
            except errors as error:
                raise _damage(file, error) from error


def _topics(files: list[Path]) -> str:
    found: dict[str, str] = {}
    for file in files:
        with file.open("rb") as stream:
            reader, errors = _reader(file, stream)
            try:
                for schema, channel, _ in reader.iter_messages():
                    found[channel.topic] = schema.name if schema else channel.message_encoding
            except errors as error:
                raise _damage(file, error) from error
    return ", ".join(f"{topic} ({kind})" for topic, kind in sorted(found.items())) or "no messages"


def _damage(file: Path, error: Exception) -> UserError:
    if type(error).__name__ == "DecoderNotFoundError":
        return UserError(
            f"{file}: {error}: only messages of ROS 2 (CDR, with their ros2msg definitions) are read"
        )
    reason = str(error) or type(error).__name__
    return UserError(
        f"{file} is damaged ({reason}): it was cut off or its recorder still runs; "
        "`mcap recover FILE -o NEW` saves what is in it"
    )


def _reader(file: Path, stream: Any) -> tuple[Any, tuple[type[Exception], ...]]:
    try:
        from mcap.exceptions import McapError
        from mcap.reader import make_reader
        from mcap_ros2.decoder import DecoderFactory
    except ModuleNotFoundError as error:
        raise UserError(
            f"{file} is an MCAP log, which needs mcap-ros2-support: pip install 'rql-deploy[ros2]'"
        ) from error
    raised = (McapError, OSError, ValueError, KeyError, EOFError, AttributeError, IndexError, RuntimeError)
    import struct

    try:
        return make_reader(stream, decoder_factories=[DecoderFactory()]), (*raised, struct.error)
    except (*raised, struct.error) as error:
        raise _damage(file, error) from error
