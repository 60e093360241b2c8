"""The pipeline as a user types it, each step its own process: real robosuite, real files, a real socket."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rql_deploy.bundle.bundle import Bundle
from rql_deploy.policy import Policy
from rql_deploy.runtime.client import RemotePolicy
from rql_deploy.runtime.control.lockstep import ControlLoop
from rql_deploy.runtime.engine.onnx_policy import OnnxPolicy
from rql_deploy.seeding import episode_seed
from rql_deploy.sim.plants.tasks import EnvPlant, Task
from rql_deploy.train.checkpoints.checkpoint import load_checkpoint
from rql_deploy.train.logging.periodic_evaluation import read_evaluations
from tests.helpers.commands import TINY, assert_refused, cli, interrupted_after_some, run_cli
from tests.helpers.servers import serving


@pytest.fixture(scope="module")
def lift_bundle(recorded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipeline")
    trained = run_cli("train", "--dataset", recorded, "--output", folder / "run", "--updates", 30, *TINY)
    assert trained.returncode == 0, trained.stderr
    assert "updates/s" in trained.stderr
    exported = run_cli("export", folder / "run", "--output", folder / "bundle")
    assert exported.returncode == 0, exported.stderr
    return folder / "bundle"


def test_an_interrupted_evaluation_says_what_counts_and_is_not_taken_for_a_whole_one(
    lift_bundle: Path, tmp_path: Path
) -> None:
    episodes = tmp_path / "episodes.jsonl"
    words = (
        "evaluate",
        "robosuite:Lift",
        "--bundle",
        lift_bundle,
        "--horizon",
        10,
        "--workers",
        2,
        "--output",
        episodes,
    )
    said = interrupted_after_some(tmp_path / "log", *words)
    assert re.search(r"interrupted: the first \d+ of 200 episodes count", said)
    assert f"Next:\n  rql-deploy evaluate robosuite:Lift --bundle {lift_bundle}" in said
    assert sorted(os.listdir(tmp_path)) == ["episodes.jsonl.partial", "log"]


def test_a_served_policy_drives_the_simulator_over_the_socket(lift_bundle: Path) -> None:
    with serving(lift_bundle) as (address, _):
        result = run_cli(
            "run", "robosuite:Lift", "--connect", address, "--episodes", 2, "--horizon", 20, "--json"
        )
        assert result.returncode == 0, result.stderr
        summary = json.loads(result.stdout)
        assert (summary["episodes"], summary["candidates"]) == (2, 4)
        assert summary["steps"] <= 20
        assert summary["round_trip_ms"]["p50"] > 0
        other = run_cli("run", "robosuite:Lift", "--connect", address, "--control-rate", 10)
        assert_refused(other, "made for another plant", "10 Hz instead of 20 Hz")


def test_in_process_and_over_the_socket_every_tick_is_the_same(lift_bundle: Path) -> None:
    env = Task("robosuite:Lift", {"horizon": 20}).make_env()

    def episode(policy: Policy) -> list[bytes]:
        plant, ticks = EnvPlant(env), []
        apply = plant.apply

        def watched(action: np.ndarray) -> None:
            apply(action)
            ticks.append(action.tobytes() + b"".join(value.tobytes() for value in plant.observe().values()))

        plant.apply = watched  # type: ignore[method-assign]
        ControlLoop(plant, policy, candidates=2).run_episode(5)
        return ticks

    with serving(lift_bundle) as (address, _), RemotePolicy.connect(address) as remote:
        local, over_socket = episode(OnnxPolicy(Bundle.open(lift_bundle))), episode(remote)
    env.close()
    assert len(local) == 20
    assert local == over_socket


@pytest.mark.parametrize("kind", ["checkpoint", "bundle", "demonstrator"])
def test_evaluate_scores_each_kind_of_policy(kind: str, lift_bundle: Path, tmp_path: Path) -> None:
    source = {"checkpoint": (lift_bundle.parent / "run",), "bundle": (lift_bundle,), "demonstrator": ()}[kind]
    episodes = tmp_path / "new" / "episodes.jsonl"
    settings = (
        "--episodes",
        2,
        "--horizon",
        40,
        "--noise",
        0,
        "--workers",
        1,
        "--json",
        "--output",
        episodes,
    )
    result = run_cli("evaluate", "robosuite:Lift", f"--{kind}", *source, *settings)
    assert result.returncode == 0, result.stderr
    summary = json.loads(result.stdout)
    lines = [json.loads(line) for line in episodes.read_text().splitlines()]
    assert [line["seed"] for line in lines] == [episode_seed(0, index, "evaluate") for index in range(2)]
    assert summary["success"] == sum(line["success"] for line in lines) / 2
    assert summary.get("candidates") == (None if kind == "demonstrator" else 4)
    # Without noise the demonstrator lifts within 40 steps; an untrained policy does not.
    assert summary["success"] == (1.0 if kind == "demonstrator" else 0.0)


@pytest.mark.slow
def test_evaluate_plays_the_best_of_four_unless_told_otherwise(lift_bundle: Path, tmp_path: Path) -> None:
    digests = []
    for name, options in (("default", ()), ("four", ("--candidates", 4)), ("one", ("--candidates", 1))):
        episodes = tmp_path / f"{name}.jsonl"
        # Eight decisions: by chance alone the first of four would hardly be the best in all of them.
        settings = ("--episodes", 1, "--horizon", 40, "--workers", 1, "--output", episodes)
        result = run_cli("evaluate", "robosuite:Lift", "--bundle", lift_bundle, *settings, *options)
        assert result.returncode == 0, result.stderr
        assert ("one chunk per decision" if name == "one" else "the best of 4 chunks by V") in result.stdout
        digests.append(json.loads(episodes.read_text())["digest"])
    default, four, one = digests
    assert default == four != one


def test_torch_onnx_and_the_served_policy_act_alike(lift_bundle: Path, tmp_path: Path) -> None:
    with serving(lift_bundle) as (address, _):
        sources = ("--checkpoint", lift_bundle.parent / "run", "--bundle", lift_bundle, "--connect", address)
        settings = (
            "--episodes",
            2,
            "--horizon",
            12,
            "--workers",
            1,
            "--candidates",
            3,
            "--output",
            tmp_path / "episodes.jsonl",
        )
        result = run_cli("evaluate", "robosuite:Lift", "--compare", *sources, *settings, "--json")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["against"] == "onnx"
    socket, torch = found["parity"]["socket"], found["parity"]["torch"]
    assert (socket["identical_episodes"], socket["largest_action_difference"], socket["passed"]) == (
        2,
        0.0,
        True,
    )
    assert torch["passed"]
    assert torch["largest_action_difference"] <= 1e-5
    assert torch["outcomes_agree"] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"episodes_{key}.jsonl" for key in ("onnx", "socket", "torch")
    ]


def test_an_evaluation_is_filmed_and_reported_on_one_page(lift_bundle: Path, tmp_path: Path) -> None:
    import av

    film, page = tmp_path / "new" / "film.mp4", tmp_path / "report.html"
    settings = (
        "--episodes",
        2,
        "--horizon",
        8,
        "--workers",
        1,
        "--run",
        lift_bundle.parent / "run",
        "--video",
        film,
        "--video-episodes",
        1,
    )
    result = run_cli("evaluate", "robosuite:Lift", "--bundle", lift_bundle, *settings, "--report", page)
    assert result.returncode == 0, result.stderr
    assert "filmed episodes differ" not in result.stderr
    with av.open(str(film)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    # One at the start, one a tick, and half a second of the last.
    assert len(frames) == 1 + 8 + 10
    assert frames[0].shape == (480, 640, 3)
    assert np.abs(frames[0].astype(int) - frames[8].astype(int)).mean() > 0.5
    text = page.read_text()
    assert "the best of 4 chunks by V" in text
    for heading in ("Success", "Video", "V over refinement steps", "Calibration of V", "Learning curves"):
        assert f"<h2>{heading}</h2>" in text
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["film.mp4", "report.html"]


def test_a_server_that_dies_during_an_evaluation_is_no_score(lift_bundle: Path) -> None:
    with serving(lift_bundle) as (address, process):
        command = [
            "run",
            "robosuite:Lift",
            "--connect",
            address,
            "--episodes",
            "50",
            "--timeout",
            "0.02",
            "--horizon",
            "100",
        ]
        running = subprocess.Popen(
            [sys.executable, "-m", "rql_deploy", *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert running.stdout is not None
        running.stdout.readline()
        process.kill()
        _, errors = running.communicate(timeout=120)
    assert running.returncode == 2
    assert "the evaluation stopped: " in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("collect", "robosuite:Lft", "--output", "x"), ("no task 'Lft'", "Lift")),
        (("collect", "Lift", "--output", "x"), ("robosuite:Lift",)),
        (
            ("collect", "robosuite:NutAssemblyRound", "--output", "x"),
            ("no scripted demonstrator", "robosuite:Lift"),
        ),
        (("collect", "robosuite:Lift", "--output", "x", "--noise", "3:1"), ("--noise takes LOW:HIGH",)),
        (
            ("run", "robosuite:Lift", "--connect", "tcp://127.0.0.1:9"),
            ("no policy server answers", "rql-deploy serve"),
        ),
        (("run", "robosuite:Lft", "--connect", "tcp://127.0.0.1:9"), ("no task 'Lft'",)),
        (("evaluate", "robosuite:Lift"), ("exactly one of",)),
        (("evaluate", "robosuite:Lift", "--compare", "--bundle", "x"), ("--compare needs two or three",)),
        (
            ("evaluate", "robosuite:Lift", "--bundle", "x", "--video", "film.avi"),
            ("writes .mp4", "--video film.mp4"),
        ),
        (
            ("evaluate", "robosuite:Lift", "--checkpoint", "x", "--candidates", "4", "--prune", "2:2"),
            ("torch does not prune",),
        ),
        (
            ("evaluate", "robosuite:Lift", "--bundle", "x", "--prune", "2:4"),
            ("--prune takes K:KEEP", "--candidates 4"),
        ),
        (("collect", "robosuite:Lift", "--output", "/proc/none/x"), ("cannot write to /proc/none",)),
        (
            ("collect", "robosuite:Lift", "--output", "x", "--controller", "JOINT_POSITION"),
            ("acts on OSC_POSE",),
        ),
        (("serve", "nowhere", "--bind", "tcp://127.0.0.1:99999"), ("no port from 1 to 65535",)),
        (("evaluate", "robosuite:Lift", "--bundle", "nowhere"), ("there is no bundle at", "/nowhere:")),
        (("train", "--dataset", "nowhere", "--output", "x"), ("no Minari data set 'nowhere'",)),
        (("export", "nowhere", "--output", "x"), ("neither a checkpoint nor a run",)),
        (("serve", "nowhere"), ("no bundle at nowhere",)),
        (("inspect", "nowhere"), ("no bundle at nowhere",)),
        (("simulate",), ("no command 'simulate'",)),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(
    arguments: tuple[str, ...], words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_refused(cli(*arguments), *words)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_training_is_evaluated_while_it_goes_on(recorded: Path, tmp_path: Path) -> None:
    train = (
        "train",
        "--dataset",
        recorded,
        "--output",
        tmp_path / "run",
        *TINY,
        "--updates",
        40,
        "--evaluate",
        "robosuite:Lift",
    )
    result = run_cli(*train, "--evaluate-every", 20, "--evaluate-episodes", 2, "--horizon", 5)
    assert result.returncode == 0, result.stderr
    assert "best while training" in result.stdout
    scored = read_evaluations(tmp_path / "run")
    assert [(e.step, e.episodes, e.success, e.steps_mean) for e in scored] == [
        (20, 2, 0.0, 5.0),
        (40, 2, 0.0, 5.0),
    ]
    assert scored[0].success_high > 0.5
    assert load_checkpoint(tmp_path / "run" / "checkpoints" / "step_000000040").step == 40


def test_evaluating_on_another_plant_than_the_data_s_is_refused(
    dataset: Path, recorded: Path, tmp_path: Path
) -> None:
    train = ("train", "--output", tmp_path / "run", *TINY)
    every = ("--evaluate-every", 5)
    refused = run_cli(
        *train, "--dataset", recorded, "--evaluate", "robosuite:Lift", *every, "--control-rate", 10
    )
    assert_refused(refused, "does not fit the task that --evaluate names", "10 Hz instead of 20 Hz")
    assert_refused(cli(*train, "--dataset", dataset, "--evaluate", "robosuite:Lift"), "--evaluate-every")
    assert_refused(cli(*train, "--dataset", dataset, *every), "--evaluate TASK")
    assert not (tmp_path / "run").exists()
