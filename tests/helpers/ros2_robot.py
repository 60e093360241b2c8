"""A simulated robot in a process of its own, as nodes of ROS 2 look on DDS.

It shares no code with the project: types and names are written out as ROS 2 has them. It publishes well-made
topics and ill-made ones, and prints every command that it gets as a line of JSON.
"""

# Annotations are looked at as they stand: Cyclone DDS takes the types from them.
import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from cyclonedds.core import DDSException
from cyclonedds.domain import Domain, DomainParticipant
from cyclonedds.idl import IdlStruct
from cyclonedds.idl.types import float64, int32, sequence, uint8, uint32
from cyclonedds.pub import DataWriter
from cyclonedds.qos import Policy, Qos
from cyclonedds.sub import DataReader
from cyclonedds.topic import Topic

JOINTS = ("shoulder", "elbow", "wrist", "finger")
PERIOD = 0.01
CONFIGURATION = (
    "<CycloneDDS><Domain Id='any'><General><Interfaces><NetworkInterface address='127.0.0.1'/></Interfaces>"
    "</General><Discovery><ParticipantIndex>auto</ParticipantIndex><MaxAutoParticipantIndex>64"
    "</MaxAutoParticipantIndex><Peers><Peer address='localhost'/></Peers></Discovery></Domain></CycloneDDS>"
)


@dataclass
class Time(IdlStruct, typename="builtin_interfaces.msg.dds_.Time_"):
    sec: int32
    nanosec: uint32


@dataclass
class Duration(IdlStruct, typename="builtin_interfaces.msg.dds_.Duration_"):
    sec: int32
    nanosec: uint32


@dataclass
class Header(IdlStruct, typename="std_msgs.msg.dds_.Header_"):
    stamp: Time
    frame_id: str


@dataclass
class JointState(IdlStruct, typename="sensor_msgs.msg.dds_.JointState_"):
    header: Header
    name: sequence[str]
    position: sequence[float64]
    velocity: sequence[float64]
    effort: sequence[float64]


@dataclass
class Vector(IdlStruct, typename="geometry_msgs.msg.dds_.Vector3_"):
    x: float64
    y: float64
    z: float64


@dataclass
class Point(IdlStruct, typename="geometry_msgs.msg.dds_.Point_"):
    x: float64
    y: float64
    z: float64


@dataclass
class Quaternion(IdlStruct, typename="geometry_msgs.msg.dds_.Quaternion_"):
    x: float64
    y: float64
    z: float64
    w: float64


@dataclass
class Pose(IdlStruct, typename="geometry_msgs.msg.dds_.Pose_"):
    position: Point
    orientation: Quaternion


@dataclass
class PoseStamped(IdlStruct, typename="geometry_msgs.msg.dds_.PoseStamped_"):
    header: Header
    pose: Pose


@dataclass
class Twist(IdlStruct, typename="geometry_msgs.msg.dds_.Twist_"):
    linear: Vector
    angular: Vector


@dataclass
class TwistStamped(IdlStruct, typename="geometry_msgs.msg.dds_.TwistStamped_"):
    header: Header
    twist: Twist


@dataclass
class Image(IdlStruct, typename="sensor_msgs.msg.dds_.Image_"):
    header: Header
    height: uint32
    width: uint32
    encoding: str
    is_bigendian: uint8
    step: uint32
    data: sequence[uint8]


@dataclass
class CompressedImage(IdlStruct, typename="sensor_msgs.msg.dds_.CompressedImage_"):
    header: Header
    format: str
    data: sequence[uint8]


@dataclass
class Dimension(IdlStruct, typename="std_msgs.msg.dds_.MultiArrayDimension_"):
    label: str
    size: uint32
    stride: uint32


@dataclass
class Layout(IdlStruct, typename="std_msgs.msg.dds_.MultiArrayLayout_"):
    dim: sequence[Dimension]
    data_offset: uint32


@dataclass
class Array(IdlStruct, typename="std_msgs.msg.dds_.Float64MultiArray_"):
    layout: Layout
    data: sequence[float64]


@dataclass
class Bool(IdlStruct, typename="std_msgs.msg.dds_.Bool_"):
    data: bool


@dataclass
class TrajectoryPoint(IdlStruct, typename="trajectory_msgs.msg.dds_.JointTrajectoryPoint_"):
    positions: sequence[float64]
    velocities: sequence[float64]
    accelerations: sequence[float64]
    effort: sequence[float64]
    time_from_start: Duration


@dataclass
class Trajectory(IdlStruct, typename="trajectory_msgs.msg.dds_.JointTrajectory_"):
    header: Header
    joint_names: sequence[str]
    points: sequence[TrajectoryPoint]


COMMANDS = {"array": Array, "joints": JointState, "trajectory": Trajectory, "twist": TwistStamped}
RELIABLE = Policy.Reliability.Reliable(100_000_000)


def header(offset: float = 0.0) -> Header:
    """A header stamped `offset` s from now."""
    moment = time.time_ns() + int(offset * 1e9)
    return Header(Time(moment // 10**9, moment % 10**9), "base")


def joint_state(offset: float = 0.0) -> JointState:
    # In another order than the policy's.
    names = JOINTS[::-1]
    return JointState(header(offset), list(names), [0.1 * JOINTS.index(n) for n in names], [], [])


def picture() -> bytes:
    from PIL import Image as Pictures

    file = io.BytesIO()
    Pictures.new("RGB", (4, 2), (255, 0, 16)).save(file, "PNG")
    return file.getvalue()


def main(domain: int) -> None:
    parent = os.getppid()
    scope = Domain(domain, CONFIGURATION)
    participant = DomainParticipant(domain)

    def writer(topic: str, kind: type[Any], *policies: Any) -> DataWriter[Any]:
        return DataWriter(
            participant, Topic(participant, f"rt/{topic}", kind), Qos(*(policies or (RELIABLE,)))
        )

    rows = [0, 0, 255] * 4 + [99] * 3
    compressed = list(picture())
    pose = Pose(Point(1.0, 2.0, 3.0), Quaternion(0.0, 0.0, 0.0, 1.0))
    publishers = [
        (writer("joint_states", JointState), joint_state),
        (writer("slow_clock", JointState), lambda: joint_state(-7.0)),
        (writer("fast_clock", JointState), lambda: joint_state(7.0)),
        (writer("lossy", JointState, Policy.Reliability.BestEffort), joint_state),
        (writer("hand", PoseStamped), lambda: PoseStamped(header(), pose)),
        (writer("numbers", Array), lambda: Array(Layout([], 0), [4.0, 3.0, 2.0, 1.0])),
        (
            writer("camera", Image, Policy.Reliability.BestEffort),
            lambda: Image(header(), 2, 4, "bgr8", 0, 15, rows * 2),
        ),
        (
            writer("camera/compressed", CompressedImage),
            lambda: CompressedImage(header(), "png", compressed),
        ),
        (writer("success", Bool), lambda: Bool(False)),
    ]
    readers = {
        name: DataReader(participant, Topic(participant, f"rt/{name}_command", kind), Qos(RELIABLE))
        for name, kind in COMMANDS.items()
    }
    idle = writer("idle", JointState)
    goal = writer("goal", PoseStamped, RELIABLE, Policy.Durability.TransientLocal)
    goal.write(PoseStamped(header(-3600.0), pose))
    while os.getppid() == parent:
        for publisher, make in publishers:
            with contextlib.suppress(DDSException):
                publisher.write(make())
        for name, reader in readers.items():
            for message in reader.take(10):
                if isinstance(message, COMMANDS[name]):
                    print(json.dumps({"command": name, **asdict(message)}), flush=True)
        print(flush=True)
        time.sleep(PERIOD)
    del scope, idle


class SimulatedRobot:
    """The process, for a test."""

    def __init__(self, domain: int):
        self.domain = domain
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.helpers.ros2_robot", str(domain)], stdout=subprocess.PIPE, text=True
        )

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Within the block, it is silent."""
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    def commands(self, *names: str, seconds: float = 20.0) -> dict[str, Any]:
        """The next message of each of these kinds of command that it gets."""
        assert self.process.stdout is not None
        found: dict[str, Any] = {}
        expiry = time.monotonic() + seconds
        while time.monotonic() < expiry:
            line = self.process.stdout.readline()
            assert line, "the robot has ended"
            if line.strip():
                message = json.loads(line)
                found.setdefault(message.pop("command"), message)
            if found.keys() >= set(names):
                return found
        raise AssertionError(f"the robot got commands of {list(found)}")


@contextlib.contextmanager
def simulated_robot() -> Iterator[SimulatedRobot]:
    """A robot on a domain of its own."""
    robot = SimulatedRobot(20 + os.getpid() % 200)
    try:
        assert robot.process.stdout is not None
        assert robot.process.stdout.readline(), "the robot has ended"
        yield robot
    finally:
        robot.process.kill()
        robot.process.communicate()


if __name__ == "__main__":
    main(int(sys.argv[1]))
