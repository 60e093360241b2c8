"""What `serve` says to type next."""

import pytest

from rql_deploy.cli.serve import drive_command

LOCAL = "tcp://127.0.0.1:5555"


@pytest.mark.parametrize(
    ("task", "endpoint", "keyed", "command"),
    [
        ("robosuite:Lift", LOCAL, False, f"rql-deploy run robosuite:Lift --connect {LOCAL}"),
        ("arm:reach", LOCAL, False, f"rql-deploy run arm:reach --connect {LOCAL} --real-time"),
        (
            *("robosuite:Lift", "tcp://0.0.0.0:5555", True),
            "rql-deploy run robosuite:Lift --connect tcp://SERVER:5555 --keys ROBOT.key_secret",
        ),
        (
            *("so101/pick", "tcp://[::]:5555", False),
            "rql-deploy run ros2:MAP.toml --connect tcp://SERVER:5555 --real-time   "
            "# or lerobot:FILE.toml, gym:ID",
        ),
    ],
)
def test_the_command_after_ready_can_be_typed_where_the_plant_is(
    task: str, endpoint: str, keyed: bool, command: str
) -> None:
    assert drive_command(task, endpoint, keyed=keyed) == command
