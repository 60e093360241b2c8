"""Logs of ROS 2 on one clock: which message a row takes, and what is said of logs that do not fit."""

from pathlib import Path

import numpy as np
import pytest

from rql_deploy.errors import UserError
from rql_deploy.ros2.robot import read_robot
from rql_deploy.train.data.assumed import UNSAID
from rql_deploy.train.data.readers import open_store
from rql_deploy.train.data.readers.options import KeyMap, ReadOptions
from rql_deploy.train.data.readers.unread_columns import unread_columns
from tests.helpers.data import opened
from tests.helpers.ros2_logs import Entry, array, header, joints, pose, trajectory, write_log
from tests.helpers.topic_maps import write_map

JOINT, POSE, ARRAY = (
    "sensor_msgs/msg/JointState",
    "geometry_msgs/msg/PoseStamped",
    "std_msgs/msg/Float64MultiArray",
)
MAP = """
rate = 10.0
task = "pick"
success = "/success"
[observation]
joints = { topic = "/joint_states", names = ["elbow", "wrist"] }
speed = { topic = "/joint_states", field = "velocity", names = ["wrist"] }
hand = { topic = "/hand" }
[action]
target = { topic = "/command", names = ["a", "b"], mode = "absolute", low = [-3, -2], high = [3, 2] }
"""


def messages(rows: int = 8) -> list[Entry]:
    """Joints at 50 Hz, whose order changes half-way; a pose at 10 Hz; a command 4 ms after each row."""
    found: list[Entry] = []
    for tick in range(5 * rows - 4):
        time = tick / 50
        names = ("wrist", "elbow") if tick % 2 else ("elbow", "wrist")
        place = {"elbow": time, "wrist": -time}
        found.append(
            (
                time,
                "/joint_states",
                JOINT,
                joints(names, [place[n] for n in names], [10 * place[n] for n in names]),
            )
        )
    for row in range(rows):
        stamped = {"header": header(), "pose": pose((row, 0, 1), (0, 0, 0, 1))}
        found.append((row / 10, "/hand", POSE, stamped))
        found.append((row / 10 + 0.004, "/command", ARRAY, array((row / 10, -row / 10))))
    found.append((0.0, "/notes", "std_msgs/msg/String", {"data": "not numbers"}))
    found.append((rows / 10, "/success", "std_msgs/msg/Bool", {"data": True}))
    return found


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    write_log(tmp_path / "logs" / "one.mcap", messages())
    (tmp_path / "logs" / "map.toml").write_text(MAP)
    return tmp_path / "logs"


def test_topics_of_different_rates_become_rows_of_one_clock(logs: Path) -> None:
    store = opened(logs)
    ticks = np.arange(8) / 10
    assert store.ends.tolist() == [8] and store.plant.control_rate == 10.0
    assert [(field.name, field.shape) for field in store.plant.fields] == [
        ("joints", (2,)),
        ("speed", (1,)),
        ("hand", (7,)),
    ]
    assert np.allclose(store.observations[:, :3], np.stack([ticks, -ticks, -10 * ticks], axis=1))
    assert np.allclose(store.observations[:, 3:], [[row, 0, 1, 0, 0, 0, 1] for row in range(8)])
    # The command that was given for a row comes a little after it.
    assert np.allclose(store.actions, np.stack([ticks, -ticks], axis=1))
    assert not store.plant.rate_assumed and {a.assumed for a in store.plant.actions} == {("unit",)}
    assert [(a.name, a.low, a.high, a.mode, a.hold) for a in store.plant.actions] == [
        ("a", -3.0, 3.0, "absolute", "repeat"),
        ("b", -2.0, 2.0, "absolute", "repeat"),
    ]
    assert store.successes is not None and store.successes.tolist() == [True]
    assert store.masks.tolist() == [1] * 7 + [0] and unread_columns(str(logs)) == []


def test_an_episode_is_a_file_or_a_bag_in_parts(logs: Path) -> None:
    entries = sorted(messages(), key=lambda entry: entry[0])
    for part, chosen in enumerate((entries[:20], entries[20:])):
        write_log(logs / "bag" / f"bag_{part}.mcap", chosen)
    (logs / "bag" / "metadata.yaml").touch()
    (logs / "bag" / "map.toml").write_text(MAP)
    store = opened(logs)
    assert store.ends.tolist() == [8, 16]
    assert np.array_equal(store.observations[:8], store.observations[8:])
    assert opened(logs / "one.mcap").ends.tolist() == opened(logs / "bag").ends.tolist() == [8]


def test_poses_and_bare_commands_need_no_field(tmp_path: Path) -> None:
    entries: list[Entry] = []
    for row in range(4):
        entries.append((row / 10, "/pose", "geometry_msgs/msg/Pose", pose((row, 2, 3), (0, 0, 1, 0))))
        entries.append((row / 10, "/command", ARRAY, array([row])))
    write_log(tmp_path / "log.mcap", entries)
    (tmp_path / "log.toml").write_text(
        'rate = 10\n[observation]\npose = { topic = "/pose" }\n'
        'turn = { topic = "/pose", field = "orientation" }\n[action]\npush = { topic = "/command" }\n'
    )
    store = opened(tmp_path / "log.mcap")
    assert store.observations[2].tolist() == [2, 2, 3, 0, 0, 1, 0, 0, 0, 1, 0]
    assert store.actions[:, 0].tolist() == [0, 1, 2, 3]
    assert [action.name for action in store.plant.actions] == ["push"] and store.successes is None
    assert store.plant.actions[0].assumed == UNSAID
    with pytest.raises(UserError, match=r"map\.toml says what is read"):
        open_store(str(tmp_path / "log.mcap"), options=ReadOptions(KeyMap.parse(["action=push"])))


def test_a_single_log_takes_the_map_of_its_own_name(logs: Path) -> None:
    (logs / "one.toml").write_text(MAP.replace("rate = 10.0", "rate = 5.0"))
    assert (len(opened(logs / "one.mcap")), len(opened(logs))) == (4, 8)


def test_without_a_map_the_topics_are_listed(logs: Path) -> None:
    (logs / "map.toml").unlink()
    with pytest.raises(
        UserError, match=r"needs a map .*map.toml.*/command \(std_msgs/msg/Float64MultiArray\)"
    ):
        open_store(str(logs))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"/hand"', '"/hnad"', r"no message of topic /hnad: it has /command"),
        ('"/hand"', '"/notes"', r"topic /notes: std_msgs/msg/String is not all numbers"),
        ('"elbow"', '"elbw"', r"lacks the joint 'elbw': it has"),
        ('field = "velocity"', 'field = "effort"', "2 names and 0 numbers of 'effort'"),
        ('field = "velocity"', 'field = "vel"', "has no 'vel': it has header, name, position"),
        ("low = [-3, -2]", "low = [-3]", "1 low and 2 high bounds"),
        ('names = ["a", "b"]', 'names = ["a"]', "2 numbers, its map 1 names"),
        ("rate = 10.0", "rate = 0", "map.toml.rate should be"),
        ("task =", "tsak =", "unknown entry 'tsak': did you mean task"),
        ("[action]", "[action", "map.toml cannot be read"),
    ],
)
def test_a_map_that_does_not_fit_is_named_in_one_sentence(old: str, new: str, words: str, logs: Path) -> None:
    (logs / "map.toml").write_text(MAP.replace(old, new))
    with pytest.raises(UserError, match=words) as refused:
        open_store(str(logs))
    assert "\n" not in str(refused.value)


def test_a_gap_in_what_is_observed_is_refused_and_one_in_commands_holds(logs: Path) -> None:
    sparse = [e for e in messages(40) if not (e[1] == "/command" and 1.0 < e[0] < 3.5)]
    write_log(logs / "one.mcap", sparse)
    assert np.allclose(opened(logs).actions[12:34, 0], 0.9)
    write_log(logs / "one.mcap", [e for e in messages(40) if not (e[1] == "/hand" and 1.0 < e[0] < 3.5)])
    with pytest.raises(UserError, match=r"no message of /hand for 2\.4 s, from 1 s on"):
        open_store(str(logs))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_log_that_was_cut_off_is_named_with_the_cure(share: float, logs: Path) -> None:
    file = logs / "one.mcap"
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    with pytest.raises(UserError, match=r"one.mcap is damaged \(.+\): .*mcap recover"):
        open_store(str(logs))


def test_the_map_that_drives_a_robot_reads_its_logs(tmp_path: Path) -> None:
    """The policy's contract then is the robot's, to the name."""
    path = write_map(
        tmp_path,
        {
            "place": {
                "topic": "/joint_states",
                "type": JOINT,
                "names": ["elbow", "wrist"],
                "shape": [2, 1],
                "unit": "rad",
                "age": "arrival",
                "qos": {"reliability": "reliable"},
            }
        },
        {
            "arm": {
                "topic": "/arm",
                "type": "trajectory_msgs/msg/JointTrajectory",
                "names": ["x", "y"],
                "joints": ["elbow", "wrist"],
                "scale": [2, 4],
                "mode": "absolute",
                "rest_at": [0, 0],
                "unit": "1 rad",
                "controller": "JOINT_POSITION",
                "frame": "joint",
                "low": [-9, -9],
                "high": [9, 9],
            }
        },
        domain=3,
        network="eth0",
        task="arm",
    )
    entries: list[Entry] = []
    for row in range(4):
        entries.append((row / 20, "/joint_states", JOINT, joints(("wrist", "elbow"), (row, -row))))
        command = trajectory(("wrist", "elbow"), (4.0 * row, 2.0))
        entries.append((row / 20 + 0.004, "/arm", "trajectory_msgs/msg/JointTrajectory", command))
    path.rename(write_log(tmp_path / "log.mcap", entries).with_suffix(".toml"))
    store = opened(tmp_path / "log.mcap")
    assert store.observations.tolist() == [[-row, row] for row in range(4)]
    assert store.actions.tolist() == [[1, row] for row in range(4)]
    _, robot = read_robot(tmp_path / "log.toml")
    assert store.plant == robot
