"""The arm with a clock of its own: its control law, its sockets, and a server that dies while it moves."""

import os
import signal
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from rql_deploy.contract import Calibration, Contract, Provenance
from rql_deploy.errors import UserError
from rql_deploy.export.exporter import ExportModules, export_bundle
from rql_deploy.limits import ActionLimit, Limits
from rql_deploy.plant import Observation
from rql_deploy.runtime.client import RemotePolicy
from rql_deploy.runtime.control.interpolation import InterpolatedPlant
from rql_deploy.runtime.control.realtime import RealTimeLoop
from rql_deploy.runtime.control.telemetry import Tick
from rql_deploy.setpoints import Setpoints
from rql_deploy.sim.plants.arm import STALE_SECONDS, ArmPlant, describe_arm
from rql_deploy.sim.plants.arm_process import JOINTS, REST, Arm, handle_message
from rql_deploy.train.export_modules import make_modules
from rql_deploy.train.hyperparameters import RQLConfig
from rql_deploy.train.rql import RQL
from tests.helpers.commands import assert_refused, cli
from tests.helpers.servers import serving

RATE = 20.0


@pytest.fixture(scope="module")
def arm_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained policy for the arm: it moves it about."""
    plant = describe_arm(RATE)
    size = plant.observation_dim
    per_action = (0.0,) * len(plant.actions)
    contract = Contract(
        plant=plant,
        h=5,
        F=4,
        observation_mean=(0.0,) * size,
        observation_std=(1.0,) * size,
        value_members=2,
        calibration=Calibration((0.5,), {}, (per_action,), (0.0,), (0.0,)),
        provenance=Provenance("none", "", {}, 0, 0, {}),
    )
    config = RQLConfig(h=5, K=2, F=4, policy_hidden=(16, 16), value_hidden=(16, 16))
    agent = RQL(config, size, len(plant.actions), torch.Generator().manual_seed(0))
    encoder, refiner, policy, valuer = make_modules(agent, contract)
    folder = tmp_path_factory.mktemp("arm") / "bundle"
    rows = np.random.default_rng(0).normal(size=(64, size)).astype(np.float32)
    export_bundle(
        ExportModules(encoder, refiner, policy, valuer, encoder.feature_dim), contract, rows, folder
    )
    return folder


@pytest.fixture(scope="module")
def plant() -> Iterator[ArmPlant]:
    arm = ArmPlant(RATE, horizon=1000)
    yield arm
    arm.close()


def test_the_arm_stays_where_it_is_and_reaches_its_targets() -> None:
    arm = Arm(500.0)
    for _ in range(250):
        arm.cycle()
    assert np.abs(arm.data.qpos[:7] - REST).max() < 1e-3
    target = REST + np.array([0.3, 0.2, -0.2, 0.3, 0.2, -0.3, 0.4])
    arm.aim(target, 0.5)
    for _ in range(1000):
        arm.cycle()
    assert np.abs(arm.data.qpos[:7] - target).max() < 3e-3


def test_the_reference_moves_evenly_between_two_targets() -> None:
    arm = Arm(500.0)
    arm.aim(REST + 0.1, 0.05)
    moved = []
    for _ in range(30):
        arm.cycle()
        moved.append(arm.reference[0] - REST[0])
    assert np.allclose(np.diff(moved[:25]), 0.1 / 25)
    assert np.allclose(moved[24:], 0.1)


def test_the_reference_of_a_1_khz_arm_is_what_its_interpolated_plant_would_send() -> None:
    arm, shift = Arm(1000.0, "minimum-jerk"), np.linspace(-0.3, 0.3, 7)
    same = Setpoints(describe_arm(RATE), 1000.0, REST, method="minimum-jerk")
    u = np.minimum(np.arange(1, 61) / 50, 1.0)[:, None]
    for start, target in ((REST, REST + shift), (REST + shift, REST)):
        arm.aim(target, 1 / RATE)
        same.command(target)
        for part in 10 * u**3 - 15 * u**4 + 6 * u**5:
            arm.cycle()
            assert np.array_equal(arm.reference, same.next())
            assert np.allclose(arm.reference, start + (target - start) * part, atol=1e-12)


def test_an_interpolated_plant_drives_a_1_khz_arm_at_minimum_jerk() -> None:
    arm, references = Arm(1000.0), []

    class Driver:
        def reset(self, seed: int | None = None) -> None:
            arm.reset(REST)

        def observe(self) -> Observation:
            return arm.state()

        def rest(self) -> np.ndarray:
            return REST

        def apply(self, action: np.ndarray) -> None:
            arm.aim(action, arm.period)
            arm.cycle()
            references.append(arm.reference)

    with InterpolatedPlant(Driver(), describe_arm(RATE), driver_rate=1000.0, method="minimum-jerk") as plant:
        plant.reset()
        plant.apply(REST + 0.1)
        expiry = time.monotonic() + 10.0
        while len(references) < 100 and time.monotonic() < expiry:
            time.sleep(0.01)
    way, u = np.array(references)[:, 0] - REST[0], np.arange(1, 51) / 50
    curve = 0.1 * (10 * u**3 - 15 * u**4 + 6 * u**5)
    # A busy machine skips cycles, and with them set-points; those that come are the curve's.
    assert np.abs(way[:, None] - curve).min(axis=1).max() < 1e-6
    assert way[-1] == pytest.approx(0.1)
    assert (np.diff(way) >= 0).all() and np.abs(arm.data.qvel[:7]).max() > 0


def test_targets_beyond_the_joint_limits_end_at_them_and_nonsense_is_ignored() -> None:
    arm = Arm(500.0)
    for message in (
        b"\xc1",
        b"",
        msgspec.msgpack.encode([1]),
        msgspec.msgpack.encode({"q": [1.0]}),
        msgspec.msgpack.encode({"q": [float("nan")] * 7, "seconds": 0.1}),
    ):
        assert handle_message(arm, message) is None
    assert np.array_equal(arm.reference, REST)
    handle_message(arm, msgspec.msgpack.encode({"q": [9.0] * 7, "seconds": 0.002}))
    arm.cycle()
    assert np.allclose(arm.reference, arm.limits[:, 1])


def test_killing_the_server_while_the_arm_moves_holds_it_and_latches_the_fault(
    plant: ArmPlant, arm_bundle: Path
) -> None:
    ticks: list[Tick] = []
    moving: list[float] = []
    limits = Limits(
        actions={name: ActionLimit(rate=0.03) for name in JOINTS},
        max_consecutive_holds=8,
        on_violation="clamp",
    )
    with (
        serving(arm_bundle) as (address, process),
        RemotePolicy.connect(address, plant=describe_arm(RATE)) as policy,
    ):

        def on_tick(tick: Tick, observation: Mapping[str, Any]) -> None:
            ticks.append(tick)
            if sum(t.fresh for t in ticks) == 20:
                moving.append(float(np.abs(observation["joint_velocity"]).max()))
                process.send_signal(signal.SIGKILL)

        with RealTimeLoop(plant, policy, limits=limits, on_tick=on_tick) as loop:
            result = loop.run_episode(1)
    fresh = [t.fresh for t in ticks]
    last = len(fresh) - 1 - fresh[::-1].index(True)
    assert moving[0] > 0.01, "the arm should have been moving"
    assert "8 ticks in a row" in str(result.episode.error)
    # The rest of the chunk at hand, and of one already under way, may play; then every tick is a hold of the
    # last target.
    assert sum(fresh) <= 20 + 2 * policy.contract.h
    assert fresh[last + 1 :] == [False] * 8
    assert all(np.array_equal(t.command, ticks[last].command) for t in ticks[last + 1 :])
    time.sleep(1.0)
    state = plant.state
    assert np.allclose(state["reference"], ticks[last].command, atol=1e-6)
    assert np.abs(state["dq"]).max() < 0.02


def test_the_arm_is_driven_from_the_command_line(arm_bundle: Path, tmp_path: Path) -> None:
    assert_refused(
        cli("run", "arm:grasp", "--connect", "tcp://127.0.0.1:1", "--real-time"), "there is arm:reach"
    )
    assert_refused(cli("run", "arm:reach", "--connect", "tcp://127.0.0.1:1"), "add --real-time")
    limits = tmp_path / "limits.toml"
    limits.write_text(
        'on_violation = "clamp"\n' + "".join(f"[actions.{name}]\nrate = 0.03\n" for name in JOINTS)
    )
    with serving(arm_bundle) as (address, _):
        result = cli(
            "run", "arm:reach", "--connect", address, "--real-time", "--limits", limits,
            "--episodes", 1, "--duration", 2, "--no-fault-latch",
        )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "episode 1: no success after" in result.output


def test_an_arm_whose_process_freezes_or_ends_is_a_failed_episode() -> None:
    arm = ArmPlant(RATE)
    try:
        # The terminal's Ctrl-C, which goes to a whole process group, must not reach it.
        assert os.getpgid(arm._process.pid) != os.getpgid(0)
        arm.reset(0)
        arm.observe()
        arm._process.send_signal(signal.SIGSTOP)
        time.sleep(STALE_SECONDS + 0.1)
        with pytest.raises(UserError, match="has been silent"):
            arm.observe()
        arm._process.kill()
        arm._process.wait()
        with pytest.raises(UserError, match="process has ended"):
            arm.observe()
    finally:
        arm.close()
