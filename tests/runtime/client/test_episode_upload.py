"""From a served decision to training data: the loop reports, the server records, `data convert` writes."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from rql_deploy.bundle.bundle import Bundle
from rql_deploy.errors import ContractError
from rql_deploy.runtime.client import RemotePolicy
from rql_deploy.runtime.client.channel import Channel
from rql_deploy.runtime.client.episode_upload import EpisodeReporter
from rql_deploy.runtime.client.reported_plant import ReportedPlant
from rql_deploy.runtime.control.lockstep import ControlLoop
from rql_deploy.runtime.control.realtime import RealTimeLoop
from rql_deploy.runtime.control.telemetry import Tick, note_of
from rql_deploy.runtime.engine.request import EpisodePart
from rql_deploy.runtime.recording import messages as messages_module
from rql_deploy.runtime.recording.reader import read_recording
from rql_deploy.runtime.recording.recorder import Recorder
from rql_deploy.runtime.wire.checks import ServerError
from rql_deploy.runtime.wire.headers import Episode
from rql_deploy.train.data.readers import open_store
from rql_deploy.train.data.store import TransitionStore
from tests.helpers.commands import TINY, assert_refused, cli
from tests.helpers.recordings import wait_until_written
from tests.helpers.servers import observation, serving
from tests.helpers.wire import raw_call, raw_message, read_header


class Cart:
    """A plant that shows what was done to it: its state holds the tick, the seed and the last action."""

    def __init__(self, ticks: int = 11):
        self.ticks = ticks
        self.state = np.zeros(4)
        self.played: list[tuple[np.ndarray, np.ndarray]] = []

    @property
    def finished(self) -> bool:
        return self.success or self.state[0] >= self.ticks

    @property
    def success(self) -> bool:
        return bool(self.state[1] % 2 == 0 and self.state[0] >= 7)

    def reset(self, seed: int | None = None) -> None:
        self.state[:] = [0, seed or 0, 0, 0]

    def observe(self) -> Mapping[str, Any]:
        return {"observation": self.state}

    def apply(self, action: np.ndarray) -> None:
        self.played.append((self.state.astype(np.float32), action))
        self.state[0] += 1
        self.state[2:] = action

    def close(self) -> None: ...


def read(folder: Path) -> TransitionStore:
    store = open_store(str(folder))
    assert isinstance(store, TransitionStore)
    return store


def stop(process: Any, recording: Path) -> None:
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(timeout=20) == 0
    wait_until_written(recording)


def test_served_episodes_become_a_data_set_that_training_reads(bundle: Path, tmp_path: Path) -> None:
    recording, data = tmp_path / "recording", tmp_path / "data"
    cart = Cart()
    with serving(bundle, "--record", str(recording)) as (address, process):
        with RemotePolicy.connect(address) as policy, EpisodeReporter.connect(address) as reporter:
            loop = ControlLoop(ReportedPlant(cart, reporter), policy)
            results = [loop.run_episode(seed) for seed in (2, 3, 4)]
        stop(process, recording)
    assert [result.success for result in results] == [True, False, True]
    assert_refused(
        cli("train", "--dataset", recording, "--output", tmp_path / "run"),
        "server's recording",
        "data convert",
    )
    assert "0 of them different" in cli("replay", recording, "--bundle", bundle).output
    result = cli("data", "convert", recording, "--output", data, "--to", "minari", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["episodes"] == 3
    store = read(data)
    assert store.ends.tolist() == [7, 18, 25]
    assert np.array_equal(store.observations, np.stack([state for state, _ in cart.played]))
    assert np.array_equal(store.actions, np.stack([action for _, action in cart.played]))
    assert np.flatnonzero(store.masks == 0).tolist() == [6, 24]
    assert np.array_equal(store.rewards, -store.masks)
    assert store.successes is not None and store.successes.tolist() == [True, False, True]
    assert store.finals is not None and store.finals[:, 0].tolist() == [7, 11, 7]
    # The bundle notes in its environment that the rate was assumed; a data set has an entry for that.
    plant = Bundle.open(bundle).contract.plant
    assert plant.rate_assumed
    assert store.plant == msgspec.structs.replace(plant, assumed=("control_rate",))
    trained = cli("train", "--dataset", data, "--output", tmp_path / "run", "--updates", 3, *TINY)
    assert trained.exit_code == 0, trained.output


def test_a_loop_of_ones_own_may_leave_out_what_it_does_not_know(bundle: Path, tmp_path: Path) -> None:
    contract = Bundle.open(bundle).contract
    silent, lost, rewarded = (tmp_path / name for name in ("silent", "lost", "rewarded"))
    action = np.zeros(2, np.float32)
    with serving(bundle, "--record", str(silent)) as (address, process):
        with RemotePolicy.connect(address) as policy:
            policy.act(observation(contract), seed=1)
        stop(process, silent)
    assert_refused(
        cli("data", "convert", silent, "--output", tmp_path / "x"),
        "1 decisions and no episode",
        "rql-deploy run",
    )

    def part(tick: int, end: bool = False, **known: Any) -> EpisodePart:
        fields = {"observation": np.full((4, 4), tick, np.float32)}
        return EpisodePart(
            1, 7, tick, end, fields, np.zeros((4, 2), np.float32), known.get("rewards"), known.get("success")
        )

    recorder = Recorder(lost)
    # The part from tick 4 on is twice there, the one from tick 8 on never arrived.
    for one in (part(4), part(4), part(0), part(12, end=True)):
        assert recorder.record_episode(one, contract)
    recorder.close(timeout=60.0)
    told = cli("data", "convert", lost, "--output", tmp_path / "cut")
    assert "1 of 1 episodes came without rewards and success" in told.output
    assert "1 of 1 episodes are cut short" in told.output
    assert read(tmp_path / "cut").observations[:, 0].tolist() == [0] * 4 + [4] * 4
    assert_refused(cli("train", "--dataset", tmp_path / "cut", "--output", tmp_path / "run", *TINY), "reward")

    with serving(bundle, "--record", str(rewarded)) as (address, process):
        with EpisodeReporter.connect(address) as reporter:
            assert reporter.recording
            for tick in range(1200):
                reporter.add(observation(contract, tick), action, reward=tick / 1200)
        assert reporter.dropped == 0
        state, known = np.zeros((1, 4), np.float32), {"actions": np.zeros((1, 2), np.float32)}
        reply = read_header(raw_call(address, raw_message("episode", {}, state, named=known)))
        assert reply["code"] == "bad_request"
        assert "the header lacks entry 'contract'" in reply["error"]
        stop(process, rewarded)
    assert cli("data", "convert", rewarded, "--output", tmp_path / "long").exit_code == 0
    store = read(tmp_path / "long")
    assert (store.ends.tolist(), store.successes, store.finals) == ([1200], None, None)
    assert np.allclose(store.rewards, np.arange(1200) / 1200)


def test_a_real_time_loop_tells_verdicts_interventions_and_times(bundle: Path, tmp_path: Path) -> None:
    class Helped(Cart):
        """A plant whose driver may take over."""

        @property
        def intervened(self) -> bool:
            return bool(self.state[0] == 4)

    with serving(bundle, "--record", str(tmp_path)) as (address, process):
        with RemotePolicy.connect(address) as policy, EpisodeReporter.connect(address) as reporter:
            plant = ReportedPlant(Helped(), reporter, notes=True)

            def on_tick(tick: Tick, _: Any) -> None:
                plant.note(note_of(tick))

            with RealTimeLoop(
                plant, policy, latch=False, accept_assumed=True, candidates=2, on_tick=on_tick
            ) as loop:
                result = loop.run_episode(3)
            begun = time.time()
        stop(process, tmp_path)
    messages = list(read_recording(tmp_path))
    ticks = [message for message in messages if isinstance(message, messages_module.Tick)]
    assert [tick.tick for tick in ticks] == list(range(result.statistics.ticks))
    assert [tick.intervened for tick in ticks] == [i == 3 for i in range(len(ticks))]
    assert all(tick.note is not None for tick in ticks)
    fresh = [tick.note for tick in ticks if tick.note is not None and tick.note.fresh]
    made = {m.seed: m for m in messages if isinstance(m, messages_module.Decision)}
    assert fresh and all(note.seed in made for note in fresh)
    first = made[fresh[0].seed or 0]
    assert [step for step, _, _ in messages_module.previews(first)] == list(range(1, policy.contract.F + 1))
    # Stamped by the server's clock, a period apart as far as this machine keeps time.
    times = np.array([tick.time for tick in ticks])
    assert (np.diff(times) > 0).all()
    assert begun - 60 < times[0] < times[-1] < begun + 1
    (end,) = [message for message in messages if isinstance(message, messages_module.EpisodeEnd)]
    assert (end.ticks, len(end.fields)) == (len(ticks), 1)


def test_notes_that_do_not_fit_are_refused(bundle: Path, tmp_path: Path) -> None:
    contract = Bundle.open(bundle).contract
    state, actions = np.zeros((1, 4), np.float32), np.zeros((1, 2), np.float32)
    with serving(bundle, "--record", str(tmp_path)) as (address, _):
        for text, words in (
            ("[]", "has 0 notes for 1 ticks"),
            ("[{'", "is not a list of notes"),
            ('[{"seed":-1}]', "is not a list of notes"),
            ('[{"reason":"' + 401 * "x" + '"}]', "is not a list of notes"),
        ):
            named = {"actions": actions, "notes": np.frombuffer(text.encode(), np.uint8)}
            header = {"contract": contract.contract_id, "episode": 0, "tick": 0}
            reply = read_header(raw_call(address, raw_message("episode", header, state, named=named)))
            assert reply["code"] == "bad_request"
            assert words in reply["error"]


def test_nothing_is_reported_to_a_server_that_does_not_record(endpoint: str) -> None:
    with EpisodeReporter.connect(endpoint) as reporter:
        assert not reporter.recording
        reporter.add({}, np.zeros(2))
        reporter.finish()
    channel = Channel(endpoint)
    with pytest.raises(ServerError, match="--record DIR"):
        channel.call(Episode(contract="", episode=0, tick=0), {}, 5.0)
    channel.close()


def test_a_server_that_does_not_answer_is_named_before_nothing_is_reported(
    endpoint: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for addresses, warnings in (([endpoint], 0), ([f"ipc://{tmp_path}/absent", endpoint], 1)):
        with EpisodeReporter.connect(addresses, timeout=1.0) as reporter:
            assert not reporter.recording
        assert len(caplog.messages) == warnings
    assert re.search(
        r"no server answers at ipc://\S+/absent within 1 s: episodes are not reported", caplog.text
    )


def test_parts_that_a_restarted_server_did_not_see_are_sent_again(bundle: Path, tmp_path: Path) -> None:
    address = f"ipc://{tmp_path}/policy"
    contract = Bundle.open(bundle).contract
    folder = tmp_path / "recording"
    with serving(bundle, "--record", str(folder), "--bind", address) as (_, first):
        reporter = EpisodeReporter.connect(address)
        first.kill()
        first.wait()
        for tick in range(5):
            reporter.add(observation(contract, tick), np.zeros(2), success=tick == 4)
        reporter.finish(observation(contract, 5))
        time.sleep(0.1)
        with serving(bundle, "--record", str(folder), "--bind", address) as (_, second):
            time.sleep(0.1)
            reporter.close()
            stop(second, folder)
    assert reporter.dropped == 0
    assert cli("data", "convert", folder, "--output", tmp_path / "data").exit_code == 0
    assert read(tmp_path / "data").rewards.tolist() == [-1, -1, -1, -1, 0]


def test_a_recorder_takes_no_more_than_it_has_room_for(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contract = Bundle.open(bundle).contract
    monkeypatch.setattr("rql_deploy.runtime.recording.recorder.MAX_QUEUED_BYTES", 100)
    recorder = Recorder(tmp_path)
    large = EpisodePart(
        1,
        0,
        0,
        False,
        {"observation": np.zeros((9, 4), np.float32)},
        np.zeros((9, 2), np.float32),
        None,
        None,
    )
    assert not recorder.record_episode(large, contract)
    recorder.close(timeout=60.0)
    assert recorder.dropped == 1


def test_an_episode_whose_last_part_has_no_rows_is_converted(bundle: Path, tmp_path: Path) -> None:
    contract, folder = Bundle.open(bundle).contract, tmp_path / "recording"
    recorder = Recorder(folder)
    seen = {
        name: np.repeat(np.asarray(x, np.float32)[None], 4, 0) for name, x in observation(contract, 0).items()
    }
    nothing = {name: x[:0] for name, x in seen.items()}
    assert recorder.record_episode(
        EpisodePart(1, 0, 0, False, seen, np.zeros((4, 2), np.float32), None, None), contract
    )
    assert recorder.record_episode(
        EpisodePart(1, 0, 4, True, nothing, np.zeros((0, 2), np.float32), None, None), contract
    )
    recorder.close(timeout=60.0)
    result = cli("data", "convert", folder, "--output", tmp_path / "data")
    assert result.exit_code == 0, result.output
    assert read(tmp_path / "data").ends.tolist() == [4]
    assert_refused(
        cli(
            "data", "relabel", folder, "--task", "cube-single-play-singletask-v0", "--output", tmp_path / "x"
        ),
        "leave the task out",
    )


def test_a_reporter_checks_the_plant_and_every_tick(bundle: Path, tmp_path: Path) -> None:
    contract = Bundle.open(bundle).contract
    plant, sample, action = contract.plant, observation(contract), np.zeros(2)
    with serving(bundle, "--record", str(tmp_path)) as (address, _):
        with pytest.raises(ContractError, match="control rate"):
            EpisodeReporter.connect(address, plant=msgspec.structs.replace(plant, control_rate=10.0))
        with pytest.raises(TypeError, match="endpoint is None: pass an address"):
            EpisodeReporter.connect(None)  # type: ignore[arg-type]
        with EpisodeReporter.connect(address) as reporter:
            for wrong, words in (
                (action[:1], r"the action has shape \[1\], the contract says \[2\]"),
                (action[None], r"the action has shape \[1, 2\]"),
                ("go", "the action is not an array of numbers"),
            ):
                with pytest.raises(ContractError, match=words):
                    reporter.add(sample, wrong)  # type: ignore[arg-type]
            with pytest.raises(ContractError, match="the reward is 'much': pass a number"):
                reporter.add(sample, action, reward="much")  # type: ignore[arg-type]
            reporter.add(sample, action, reward=1)
            reporter.finish()
        assert reporter.dropped == 0
