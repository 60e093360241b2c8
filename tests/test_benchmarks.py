"""Benchmarks run, and those for a bare GPU node need no more than it has."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.delay_ways import WAYS, Condition, Way
from benchmarks.played_episodes import Results
from benchmarks.puzzle import fewest_presses
from tests.helpers.commands import ROOT

BARE = (
    "click",
    "minari",
    "gymnasium",
    "mujoco",
    "zmq",
    "safetensors",
    "tensorboard",
    "matplotlib",
    "onnx",
    "onnxruntime",
)


def report_of(*words: str, **options: Any) -> Any:
    """The JSON line at the end of what Python prints when it is called so."""
    command = [sys.executable, *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, **options)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_training_speed_needs_a_checkout_torch_numpy_and_h5py_only(tmp_path: Path) -> None:
    block = f"import sys\nfor name in {BARE}: sys.modules[name] = None\n"
    words = [
        "train_speed.py",
        "--size",
        "small",
        "--rounds",
        "1",
        "--seconds",
        "0.1",
        "--rows",
        "2000",
        "--engines",
        "eager",
    ]
    run = f"import runpy\nsys.argv = {words}\n"
    path = ROOT / "benchmarks" / "train_speed.py"
    code = f"{block}{run}runpy.run_path({str(path)!r}, run_name='__main__')"
    # Without `site` and outside the checkout, this project is not installed.
    packages = Path(torch.__file__).parent.parent
    report = report_of("-S", "-c", code, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(packages)})
    assert report["small"]["eager fp32, 2 CPU threads"]["updates_per_second"] > 0
    assert sum(report["small"]["eager_fp32_phases"].values()) > 0.99


@pytest.mark.slow
def test_serving_is_measured_with_the_instant_policy_and_with_a_robot_on_a_clock() -> None:
    script = str(ROOT / "benchmarks" / "serving.py")
    report = report_of(script, "--parts", "a,g", "--seconds", "0.3", "--rounds", "1")
    assert len(report) == 4
    assert all(row["replies"] > 0 for rows in report.values() for row in rows.values())


def test_every_way_of_playing_chunks_has_episodes_of_its_own() -> None:
    assert len({Condition(way, 2.0).played for way in WAYS}) == len(WAYS)
    assert (
        Condition("anytime+compensated", 1.0).played
        == Condition("prefetch+compensated", 1.0).played
        != Condition("anytime", 1.0).played
    )
    assert {Condition(way, 0.0).played for way in WAYS} == {("none", 0.0), ("none+n4", 0.0)}
    assert Way.parse("anytime+guidance+compensated+m3+n8+c0.5") == Way(
        "anytime", True, "guidance", replan_every=3, candidates=8, pessimism=0.5
    )
    for wrong in ("guidance", "prefetch+guided", "prefetch+m", "prefetch+x3"):
        with pytest.raises(ValueError, match=r"does not begin|unknown part|invalid literal"):
            Way.parse(wrong)


def test_a_delay_sweep_goes_on_after_a_line_that_a_kill_cut_short(tmp_path: Path) -> None:
    file = tmp_path / "episodes.jsonl"
    Results(file).add(("first", 1.0), {"held_because": {}})
    with file.open("a") as stream:
        stream.write('{"key": ["second", 1.0], "held_because": {}')
    Results(file).add(("second", 1.0), {"held_because": {}})
    assert set(Results(file).found) == {("first", 1.0), ("second", 1.0)}


def test_every_state_of_the_puzzle_is_so_many_presses_from_solved() -> None:
    fewest = fewest_presses()
    assert len(fewest) == 512
    assert fewest[(0,) * 9] == 0
    assert fewest[(0, 1, 0, 1, 1, 1, 0, 1, 0)] == 1
    # A corner's press and its opposite's share no button.
    assert fewest[(1, 1, 0, 1, 0, 1, 0, 1, 1)] == 2
    assert max(fewest.values()) == 9
