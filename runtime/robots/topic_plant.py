"""A robot that speaks ROS 2 as a plant: topics become the observation, actions become messages.

    plant = TopicPlant(topics, description, transport)
    with RemotePolicy.connect(ENDPOINT, plant=description) as policy, RealTimeLoop(plant, policy) as loop:
        loop.run_episode()

The transport is DDS without ROS, or a node of rclpy.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from rql_deploy.contract import PlantDescription
from rql_deploy.errors import UserError
from rql_deploy.ros2.definitions import BOOL
from rql_deploy.ros2.robot import command_width, joint_order
from rql_deploy.ros2.topic_map import Commanded, Observed, QoS, Source, TopicMap

from .commands import command_message
from .inbox import Inbox
from .transport import Publisher, Transport, why_silent

POLL_SECONDS = 0.01


class TopicPlant:
    """Subscribes and publishes at once; the transport is the plant's, and closed with it.

    An episode ends by its duration, by `horizon` commands, or when the success topic says so. Nothing is
    commanded between episodes: where a robot starts is its operator's or its driver's.
    """

    def __init__(
        self,
        topics: TopicMap,
        description: PlantDescription,
        transport: Transport,
        *,
        horizon: int | None = None,
    ):
        """`description` is the map's (`rql_deploy.ros2.robot.describe_robot`).

        Raises what the transport raises, after closing it.
        """
        self._map, self._transport, self._horizon = topics, transport, horizon
        self._period = 1.0 / topics.rate
        self._inboxes = {
            field.name: Inbox(
                field.name,
                topics.observation[field.name],
                field.shape,
                max_skew=topics.max_skew,
                wall_clock=transport.now,
            )
            for field in description.fields
        }
        self._parts: list[tuple[Commanded, slice, Publisher]] = []
        self._dimensions = len(description.actions)
        self._ticks, self._success, self._age = 0, False, 0.0
        try:
            self._connect()
        except BaseException:
            transport.close()
            raise

    def _connect(self) -> None:
        for inbox in self._inboxes.values():
            source = inbox.source
            self._transport.subscribe(source.topic, source.type, observed_qos(source), inbox.put)
        if self._map.success:
            self._transport.subscribe(self._map.success, BOOL, QoS("best_effort"), self._note_success)
        start = 0
        for command in self._map.action.values():
            end = start + command_width(command)
            publisher = self._transport.advertise(command.topic, command.type, command_qos(command))
            self._parts.append((command, slice(start, end), publisher))
            start = end

    @property
    def success(self) -> bool:
        """Whether the success topic has said so since the episode began."""
        return self._success

    @property
    def finished(self) -> bool:
        """Whether the episode is over: at success, or when it has had its commands."""
        return self._success or (self._horizon is not None and self._ticks >= self._horizon)

    def reset(self, seed: int | None = None) -> None:
        """Wait until every topic has a fresh message and every command a subscriber.

        Raises UserError with what is missing, or where the clock of stamps is not ours.
        """
        expiry = time.monotonic() + self._map.wait
        while (missing := self._missing()) is not None:
            if time.monotonic() > expiry:
                raise UserError(missing)
            time.sleep(POLL_SECONDS)
        self._ticks, self._success = 0, False

    def _missing(self) -> str | None:
        """Why the robot cannot be driven yet; None when it can."""
        for inbox in self._inboxes.values():
            try:
                inbox.read()
            except UserError as error:
                return (
                    str(error) if inbox.heard else self._why_silent(inbox.source, observed_qos(inbox.source))
                )
            if skew := inbox.skew():
                return skew
        for source, _, publisher in self._parts:
            if not publisher.matched():
                return self._why_silent(source, command_qos(source), sends=True)
        return None

    def _why_silent(self, source: Source, qos: QoS, *, sends: bool = False) -> str:
        transport = self._transport
        found = transport.subscribers() if sends else transport.publishers()
        return why_silent(
            source.topic,
            source.type,
            qos,
            found,
            sends=sends,
            where=transport.where(),
            policy=None if sends else transport.incompatible(source.topic),
        )

    def observe(self) -> Mapping[str, NDArray[Any]]:
        """The newest message of every topic, at once.

        Raises UserError when a topic is silent for its `max_gap`, a message does not fit, the stamps' clock
        runs ahead of ours, or nobody takes the commands any more.
        """
        for source, _, publisher in self._parts:
            if not publisher.matched():
                raise UserError(
                    f"nobody subscribes to {source.topic} any more: the robot's controller has ended"
                )
        newest = {name: inbox.read() for name, inbox in self._inboxes.items()}
        self._age = max(self._inboxes[name].age(message) for name, message in newest.items())
        return {name: message.value for name, message in newest.items()}

    def observation_age(self) -> float:
        """Seconds since the oldest message of the last observation was made."""
        return self._age

    def apply(self, action: NDArray[np.float32]) -> None:
        """Publish one command; returns at once."""
        now = self._transport.now()
        for source, part, publisher in self._parts:
            publisher.publish(
                command_message(self._transport.make, source, action[part], period=self._period, now=now)
            )
        self._ticks += 1

    def rest(self) -> NDArray[np.float32]:
        """The command that keeps the robot where it is: what is measured, or what the map says."""
        rest = np.zeros(self._dimensions, np.float32)
        for source, part, _ in self._parts:
            if source.rest:
                inbox = self._inboxes[source.rest]
                measured = inbox.read().value.reshape(-1)
                if (order := joint_order(inbox.source, source)) is not None:
                    measured = measured[order]
                rest[part] = measured / source.scale if source.scale else measured
            elif source.rest_at:
                rest[part] = source.rest_at
        return rest

    def close(self) -> None:
        """Leave the network."""
        self._transport.close()

    def _note_success(self, message: Any) -> None:
        self._success = self._success or bool(message.data)


def observed_qos(source: Observed) -> QoS:
    """What a subscription asks for: unless the map says otherwise, what every publisher offers."""
    return msgspec.structs.replace(source.qos, reliability=source.qos.reliability or "best_effort")


def command_qos(source: Commanded) -> QoS:
    """What a publisher offers: unless the map says otherwise, what every subscriber takes."""
    return msgspec.structs.replace(source.qos, reliability=source.qos.reliability or "reliable")
