"""`run --real-time` as a user types it, against a real server."""

import io
import json
from pathlib import Path

import numpy as np
import pytest

from rql_deploy.runtime.control.telemetry import STANDBY
from rql_deploy.train.data.readers import open_store
from rql_deploy.workflows.run_realtime import delay_hint
from tests.helpers.commands import assert_refused, cli

CART = "gym:tests.helpers.drifting_cart:tests/Cart-v0"
# The tiny policy is untrained: its actions jump further than its data did.
CLAMP = 'on_violation = "clamp"\n'


@pytest.fixture
def limits(tmp_path: Path) -> Path:
    path = tmp_path / "limits.toml"
    path.write_text(CLAMP)
    return path


def test_a_real_time_run_is_logged_and_recorded_as_data_that_trains(
    endpoint: str, limits: Path, tmp_path: Path
) -> None:
    log, data = tmp_path / "ticks.jsonl", tmp_path / "played"
    result = cli(
        "run", CART, "--connect", endpoint, "--real-time", "--no-fault-latch", "--limits", limits,
        "--episodes", 2, "--log", log,
        "--record", data, "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    figures = json.loads(result.output)
    assert figures["success"] == 1.0
    assert [f["ticks"] for f in figures["real_time"]] == [25, 25]
    # Where decisions take a whole chunk, as on a busy machine, nothing is prefetched.
    assert all(f["decisions"] >= 1 and 0 <= f["prefetch_ticks"] <= 3 for f in figures["real_time"])
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    played = [line for line in lines if line.get("chunk_index", -1) >= 0]
    assert max(line["chunk_index"] for line in played) < 3
    assert [line["success"] for line in lines if line.get("end")] == [True, True]
    store = open_store(str(data))
    assert store.ends.tolist() == [25, 50]
    assert np.abs(store.actions).max() <= 1.0
    commanded = [
        line["command"]
        for line in lines
        if line["episode"] == 0 and "command" in line and line["kind"] != STANDBY
    ]
    assert np.allclose(store.actions[:25], commanded)


def test_a_plant_that_raises_ends_the_run_with_its_reason_and_what_was_played_is_kept(
    endpoint: str, limits: Path, tmp_path: Path
) -> None:
    log = tmp_path / "ticks.jsonl"
    hot = CART.replace("Cart-v0", "HotCart-v0")
    result = cli(
        "run", hot, "--connect", endpoint, "--real-time", "--no-fault-latch", "--limits", limits, "--log", log
    )
    assert_refused(result, "the plant failed at tick 9 (RuntimeError: the motor is hot)")
    end = json.loads(log.read_text().splitlines()[-1])
    assert (end["success"], end["ticks"]) == (False, 9)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--no-compensate-delay",), "--no-compensate-delay is for the real-time loop: add --real-time"),
        (("--log", "x"), "--log is for the real-time loop: add --real-time"),
        (("--continuation", "none"), "--continuation is for the real-time loop: add --real-time"),
        (("--real-time", "--limits", "absent.toml"), "cannot read absent.toml"),
    ],
)
def test_options_that_do_not_fit_are_refused(endpoint: str, options: tuple[str, ...], words: str) -> None:
    assert_refused(cli("run", CART, "--connect", endpoint, *options), words)


def test_slow_decisions_are_met_with_advice() -> None:
    assert "took 3 ticks or more: try --playback anytime" in str(
        delay_hint("prefetch", [{"prefetch_ticks": 1}, {"prefetch_ticks": 3}])
    )
    assert delay_hint("prefetch", [{"prefetch_ticks": 1}]) is None
    assert delay_hint("anytime", [{"prefetch_ticks": 3}]) is None
    assert delay_hint("prefetch", []) is None


def test_a_full_disk_under_the_log_does_not_cost_the_recording(
    endpoint: str, limits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    log, data, opened = tmp_path / "ticks.jsonl", tmp_path / "played", Path.open
    monkeypatch.setattr(
        Path,
        "open",
        lambda path, *how, **named: (
            opened(Path("/dev/full"), "w") if path == log else opened(path, *how, **named)
        ),
    )
    result = cli(
        "run", CART, "--connect", endpoint, "--real-time", "--no-fault-latch", "--limits", limits,
        "--episodes", 2, "--log", log,
        "--record", data,
    )  # fmt: skip
    assert_refused(result, "the log is not complete", "No space left on device")
    assert open_store(str(data)).ends.tolist() == [25, 50]


def test_ctrl_c_while_the_plant_is_reset_keeps_the_episodes_before(
    endpoint: str, limits: Path, tmp_path: Path
) -> None:
    data, stopped = tmp_path / "played", CART.replace("Cart-v0", "StoppedCart-v0")
    result = cli(
        "run", stopped, "--connect", endpoint, "--real-time", "--no-fault-latch", "--limits", limits,
        "--episodes", 3, "--record", data,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert open_store(str(data)).ends.tolist() == [25]


def test_an_existing_log_or_recording_is_not_overwritten(endpoint: str, tmp_path: Path) -> None:
    for option in ("--log", "--record"):
        assert_refused(
            cli("run", CART, "--connect", endpoint, "--real-time", option, tmp_path), "exists already"
        )


def test_the_live_view_shows_the_loop(bundle: Path) -> None:
    from rich.console import Console

    from rql_deploy.bundle.bundle import Bundle
    from rql_deploy.cli.run.live_view import LiveView
    from rql_deploy.runtime.control.realtime import RealTimeLoop
    from rql_deploy.runtime.control.watchdog import Fault
    from rql_deploy.runtime.engine.onnx_policy import OnnxPolicy
    from rql_deploy.sim.plants.tasks import EnvPlant, Task

    plant = EnvPlant(Task(CART, {}).make_env())
    with RealTimeLoop(plant, OnnxPolicy(Bundle.open(bundle)), latch=False) as loop:
        view = LiveView("cart", loop)
        # Before the first tick there is nothing to show but the rows.
        Console(file=io.StringIO()).print(view.table())
        loop.run_episode(0)
        loop.statistics.hold_kinds["a [/server] says no"] += 1
        loop.watchdog.fault = Fault(3, "[/bold] gone")
        shown = io.StringIO()
        Console(file=shown, width=120).print(view.table())
    text = shown.getvalue()
    assert "25" in text
    assert "without a fresh action" in text
    assert "drift" in text
    # What a server says is no markup.
    assert "held: a [/server] says no" in text
    assert "[/bold] gone" in text
