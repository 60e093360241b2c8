"""LeRobot's own arm, in its own environment, driven by a policy trained on LeRobot data. Minutes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rql_deploy.contract import ActionDimension, ObservationField, PlantDescription
from rql_deploy.train.data.writers import write
from tests.helpers.commands import ROOT, TINY, cli, unavailable
from tests.helpers.data import make_store
from tests.helpers.foreign_libraries import environment, installed
from tests.helpers.servers import serving

MOTORS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
PLANT = PlantDescription(
    task="so101",
    fields=(ObservationField("observation.state", (6,)),),
    actions=tuple(
        ActionDimension(f"{motor}.pos", -100.0, 100.0, mode="absolute", hold="repeat") for motor in MOTORS
    ),
    control_rate=20.0,
)


@pytest.mark.slow
def test_lerobot_s_arm_is_driven_by_a_policy_from_its_data(tmp_path: Path) -> None:
    try:
        library = installed("lerobot", ROOT / "build" / "foreign")
    except subprocess.CalledProcessError as error:
        unavailable(f"lerobot cannot be installed: {error.stderr.strip()[-300:]}")
    write(make_store(plant=PLANT), tmp_path / "set", "lerobot")
    for command in (
        ("train", "--dataset", tmp_path / "set", "--output", tmp_path / "run", "--updates", 20, *TINY),
        ("export", tmp_path / "run", "--output", tmp_path / "bundle"),
    ):
        result = cli(*command)
        assert result.exit_code == 0, result.output
    (tmp_path / "arm.toml").write_text(
        'robot = "lerobot.robots.so_follower:SO101Follower"\nrate = 20\n[config]\nport = "/dev/null"\n'
        f'id = "arm"\nmax_relative_target = 5.0\ncalibration_dir = "{tmp_path}"\n'
    )
    (tmp_path / "limits.toml").write_text('on_violation = "clamp"\n')
    with serving(tmp_path / "bundle") as (endpoint, _):
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "tests.helpers.lerobot_arm",
                *("run", f"lerobot:{tmp_path / 'arm.toml'}", "--connect", endpoint, "--real-time"),
                *("--limits", str(tmp_path / "limits.toml"), "--no-fault-latch", "--horizon", "20"),
                *("--episodes", "1", "--json"),
            ],
            capture_output=True,
            text=True,
            env=environment(library),
            cwd=ROOT,
            timeout=300,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    *_, last = done.stdout.splitlines()
    goals = json.loads(last)
    assert len(goals) >= 20 and set(goals[0]) == set(MOTORS)
    # LeRobot's own limit came on top of ours: no motor moves by more than 5 at once, from where it was.
    assert max(abs(value) for value in goals[0].values()) <= 5.0 + 1e-6
    assert any(value != 0.0 for value in goals[-1].values())
