"""ROS 2 without ROS: messages over Cyclone DDS, named and encoded as ROS 2 does.

Needs the package `cyclonedds` (the extra `ros2`). On loopback, which is the default, it finds the nodes of
this machine that are on loopback too (`ROS_AUTOMATIC_DISCOVERY_RANGE=LOCALHOST`, before Iron
`ROS_LOCALHOST_ONLY=1`).
"""

from __future__ import annotations

import contextlib
import ipaddress
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from xml.sax.saxutils import quoteattr

from rql_deploy.errors import UserError
from rql_deploy.ros2.definitions import (
    DEFINITIONS,
    blank,
    dds_topic,
    dds_type,
    ros_topic,
    ros_type,
)
from rql_deploy.ros2.topic_map import LOOPBACK, QoS

from .transport import Endpoint

POLL_SECONDS = 0.002
"""Least time between two looks at the subscriptions: a thousand messages a second must not fill a core."""
WAKE_SECONDS = 0.1
MAX_TAKEN = 64
MAX_ENDPOINTS = 4096
MAX_BLOCKING_NS = 1_000_000
"""How long a reliable writer may wait for room: a tick waits for nobody."""
LOCAL_PARTICIPANTS = 64
POLICIES = {
    2: "durability",
    4: "deadline",
    5: "latency budget",
    6: "ownership",
    8: "liveliness",
    11: "reliability",
    23: "encoding",
}
"""Names of DDS's policies by their numbers in its specification."""


class DdsTransport:
    """A participant of a DDS domain. A thread takes the messages and hands them out."""

    def __init__(self, domain: int = 0, network: str = LOOPBACK):
        """`network` is the name or address of an interface.

        Raises UserError where the library is missing or the network cannot be used.
        """
        try:
            from cyclonedds import core
            from cyclonedds.builtin import (
                BuiltinDataReader,
                BuiltinTopicDcpsPublication,
                BuiltinTopicDcpsSubscription,
            )
            from cyclonedds.domain import Domain, DomainParticipant
        except ModuleNotFoundError as error:
            raise UserError(
                "ROS 2 needs cyclonedds: pip install 'rql-deploy[ros2]' (on Linux on ARM, see docs/ros2.md)"
            ) from error
        self._core, self._domain, self._network = core, domain, network
        self._types = message_types()
        self._readers: list[tuple[Any, Callable[[Any], None]]] = []
        self._topics: dict[tuple[str, str], Any] = {}
        self._by_topic: dict[str, Any] = {}
        self._end = threading.Event()
        self._lock = threading.Lock()
        try:
            self._entities: list[Any] = [Domain(domain, configuration(network))]
            self._participant = DomainParticipant(domain)
            self._guid = self._participant.guid
            self._waitset = core.WaitSet(self._participant)
            self._publications = BuiltinDataReader(self._participant, BuiltinTopicDcpsPublication)
            self._subscriptions = BuiltinDataReader(self._participant, BuiltinTopicDcpsSubscription)
            self._entities += [self._participant, self._waitset, self._publications, self._subscriptions]
        except core.DDSException as error:
            if error.code == core.DDSException.DDS_RETCODE_PRECONDITION_NOT_MET:
                raise UserError(
                    f"this process is on DDS domain {domain} already: close that plant first"
                ) from error
            raise UserError(
                f"cannot use {self.where()} ({error}): check network in the map against the machine's "
                "interfaces"
            ) from error
        self._thread = threading.Thread(target=self._run, name="dds", daemon=True)
        self._thread.start()

    def now(self) -> int:
        """This machine's clock, in ns."""
        return time.time_ns()

    def where(self) -> str:
        """The domain and interface."""
        return f"domain {self._domain} ({self._network})"

    def make(self, kind: str) -> Any:
        """An empty message of a type."""
        return blank(kind, lambda name, values: self._types[name](**values))

    def subscribe(self, topic: str, kind: str, qos: QoS, on_message: Callable[[Any], None]) -> None:
        """Call `on_message` with each message, from this transport's thread."""
        from cyclonedds.sub import DataReader

        core = self._core
        reader = DataReader(self._participant, self._topic(topic, kind), _policies(qos))
        mask = core.ViewState.Any | core.InstanceState.Any | core.SampleState.NotRead
        condition = core.ReadCondition(reader, mask)
        with self._lock:
            self._waitset.attach(condition)
            self._readers.append((reader, on_message))
            self._by_topic[topic] = reader
            self._entities += [reader, condition]

    def advertise(self, topic: str, kind: str, qos: QoS) -> DdsPublisher:
        """A publisher of the topic."""
        from cyclonedds.pub import DataWriter

        writer = DataWriter(self._participant, self._topic(topic, kind), _policies(qos))
        self._entities.append(writer)
        return DdsPublisher(writer)

    def publishers(self) -> Mapping[str, Sequence[Endpoint]]:
        """Publishers of others, by topic."""
        return self._endpoints(self._publications)

    def subscribers(self) -> Mapping[str, Sequence[Endpoint]]:
        """Subscribers of others, by topic."""
        return self._endpoints(self._subscriptions)

    def incompatible(self, topic: str) -> str | None:
        """The quality of service in which a publisher and our subscription of a topic last differed."""
        status = self._by_topic[topic].get_requested_incompatible_qos_status()
        return POLICIES.get(status.last_policy_id, "quality of service") if status.total_count else None

    def close(self) -> None:
        """Leave the domain; messages are not handed out afterwards."""
        self._end.set()
        if self._thread is not threading.current_thread():
            self._thread.join(timeout=5)
        # In this order, and not when the objects happen to be collected: a process may join a domain again.
        while self._entities:
            self._entities.pop().__del__()

    def __enter__(self) -> DdsTransport:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _topic(self, topic: str, kind: str) -> Any:
        from cyclonedds.qos import Policy, Qos
        from cyclonedds.topic import Topic

        if (topic, kind) not in self._topics:
            # ROS 2 encodes in CDR version 1.
            encoding = Policy.DataRepresentation(
                use_cdrv0_representation=True, use_xcdrv2_representation=False
            )
            found = Topic(self._participant, dds_topic(topic), self._types[kind], Qos(encoding))
            self._topics[topic, kind] = found
            self._entities.append(found)
        return self._topics[topic, kind]

    def _endpoints(self, reader: Any) -> Mapping[str, Sequence[Endpoint]]:
        from cyclonedds.qos import Policy

        found: dict[str, list[Endpoint]] = {}
        for sample in reader.read(MAX_ENDPOINTS):
            # One that has left may have no name any more.
            alive = sample.sample_info.instance_state == self._core.InstanceState.Alive
            topic = ros_topic(sample.topic_name) if alive and sample.topic_name else None
            if topic is None or sample.participant_key == self._guid:
                continue
            policies = list(sample.qos)
            best_effort = Policy.Reliability.BestEffort in policies
            volatile = Policy.Durability.Volatile in policies
            found.setdefault(topic, []).append(
                Endpoint(
                    ros_type(sample.type_name),
                    "best_effort" if best_effort else "reliable",
                    "volatile" if volatile else "transient_local",
                )
            )
        return found

    def _run(self) -> None:
        while not self._end.is_set():
            with contextlib.suppress(self._core.DDSException):
                self._waitset.wait(int(WAKE_SECONDS * 1e9))
            with self._lock:
                readers = list(self._readers)
            for reader, on_message in readers:
                # What cannot be decoded (text that is no UTF-8, say) is as good as not sent: this thread
                # must live on, whatever other programs send.
                with contextlib.suppress(Exception):
                    for sample in reader.take(MAX_TAKEN):
                        # A publisher that leaves is told by a sample without data.
                        if sample.sample_info.valid_data and not self._end.is_set():
                            on_message(sample)
            self._end.wait(POLL_SECONDS)


class DdsPublisher:
    """Sends messages of one topic."""

    def __init__(self, writer: Any):
        self._writer = writer

    def publish(self, message: Any) -> None:
        """Send one message."""
        self._writer.write(message)

    def matched(self) -> int:
        """How many subscribers there are now."""
        return int(self._writer.get_publication_matched_status().current_count)


def message_types() -> dict[str, type[Any]]:
    """A class for each message, by its type, as Cyclone DDS wants them."""
    from cyclonedds.idl import make_idl_struct
    from cyclonedds.idl.types import float64, int32, sequence, uint8, uint32

    scalars = {
        "string": str,
        "bool": bool,
        "float64": float64,
        "int32": int32,
        "uint32": uint32,
        "uint8": uint8,
    }
    made: dict[str, Any] = {}

    def part_type(part: str) -> Any:
        inner = part.removesuffix("[]")
        found = made.get(inner) or scalars[inner]
        return found if inner == part else sequence[found]

    for kind, fields in DEFINITIONS.items():
        parts = {name: part_type(part) for name, part in fields.items()}
        made[kind] = make_idl_struct(kind.rpartition("/")[2], dds_type(kind), parts)
        if "uint8[]" in fields.values():
            # Pictures: bytes have the same encoding, and are read without a Python number for each.
            as_bytes = {n: bytes if fields[n] == "uint8[]" else part for n, part in parts.items()}
            quick = make_idl_struct(kind.rpartition("/")[2], dds_type(kind), as_bytes)
            made[kind].deserialize = quick.deserialize
    return made


def configuration(network: str) -> str:
    """Cyclone DDS's configuration for one network interface."""
    local = network == LOOPBACK
    address = "127.0.0.1" if local else network
    try:
        ipaddress.ip_address(address)
        interface = f"<NetworkInterface address={quoteattr(address)}/>"
    except ValueError:
        interface = f"<NetworkInterface name={quoteattr(network)}/>"
    # Loopback has no multicast: peers are asked one by one.
    peers = (
        f"<MaxAutoParticipantIndex>{LOCAL_PARTICIPANTS}</MaxAutoParticipantIndex>"
        "<Peers><Peer address='127.0.0.1'/></Peers>"
    )
    return (
        "<CycloneDDS><Domain Id='any'>"
        f"<General><Interfaces>{interface}</Interfaces>"
        f"<AllowMulticast>{'false' if local else 'default'}</AllowMulticast></General>"
        f"<Discovery><ParticipantIndex>auto</ParticipantIndex>{peers if local else ''}</Discovery>"
        "</Domain></CycloneDDS>"
    )


def _policies(qos: QoS) -> Any:
    """The same in Cyclone DDS's words."""
    from cyclonedds.qos import Policy, Qos

    reliability = (
        Policy.Reliability.BestEffort
        if qos.reliability == "best_effort"
        else Policy.Reliability.Reliable(max_blocking_time=MAX_BLOCKING_NS)
    )
    durability = (
        Policy.Durability.TransientLocal
        if qos.durability == "transient_local"
        else Policy.Durability.Volatile
    )
    history = Policy.History.KeepAll if qos.history == "keep_all" else Policy.History.KeepLast(qos.depth)
    return Qos(reliability, durability, history)
