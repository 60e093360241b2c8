"""A running server seen by its operator: metrics, health, exchange of bundles, draining, recording."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import threading
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from rql_deploy.bundle.bundle import Bundle
from rql_deploy.errors import ContractError
from rql_deploy.runtime.client import RemotePolicy, ServerError
from rql_deploy.runtime.client.channel import Channel
from rql_deploy.runtime.engine.model import Model
from rql_deploy.runtime.recording.messages import Decision, chunk, floats
from rql_deploy.runtime.recording.reader import read_file, read_recording
from rql_deploy.runtime.recording.replay import replay, same_bytes
from rql_deploy.runtime.wire import headers
from rql_deploy.runtime.wire.arrays import Layout
from tests.helpers.commands import assert_refused, cli, wait_for
from tests.helpers.recordings import wait_until_written
from tests.helpers.servers import get, note, observation, serving, variant


def test_metrics_health_and_top_show_what_was_served(bundle: Path) -> None:
    with serving(bundle, "--metrics", "0") as (address, process), RemotePolicy.connect(address) as policy:
        url = note(process, r"metrics on (\S+)/metrics")
        for seed in range(5):
            policy.act(observation(policy.contract), seed=seed)
        with pytest.raises(ContractError, match="holds NaN"):
            policy.act({"observation": np.full(4, np.nan)})
        families = {
            family.name: family for family in text_string_to_metric_families(get(url + "/metrics")[1])
        }
        samples = {
            (s.name, *s.labels.values()): s.value for family in families.values() for s in family.samples
        }
        assert samples["rql_deploy_up",] == 1
        assert samples["rql_deploy_requests_total", "act"] == 6
        assert samples["rql_deploy_errors_total", "bad_observation"] == 1
        assert samples["rql_deploy_steps_per_reply_count",] == 5
        assert samples["rql_deploy_steps_per_reply_sum",] == 5 * policy.contract.F
        assert samples["rql_deploy_stage_seconds_count", "server"] == 5
        assert get(url + "/healthz")[0] == get(url + "/readyz")[0] == 200
        assert get(url + "/secret")[0] == 404
        shown = cli("top", "--connect", address, "--once").output
        assert re.search(r"^requests/s .*\bact \d+\.\d", shown, re.MULTILINE), shown
        assert "ready" in shown
        assert policy.contract.contract_id[:12] in shown
        others = [Channel(address) for _ in range(3)]
        for channel in others:
            channel.ask("ping", 5.0)
        wait_for(lambda: policy.stats()["connected"] == 4)
        for channel in others:
            channel.close()
        wait_for(lambda: policy.stats()["connected"] == 1)


def test_metrics_and_openpi_listen_on_loopback_only(bundle: Path) -> None:
    for option in ("--metrics", "--openpi"):
        assert_refused(cli("serve", bundle, option, "0.0.0.0:9100"), option, "--insecure")
        assert_refused(cli("serve", bundle, option, "somewhere"), option, "PORT")


def test_a_provider_that_is_not_installed_is_one_sentence(bundle: Path) -> None:
    assert_refused(cli("serve", bundle, "--provider", "openvino"), "OpenVINOExecutionProvider", "it has")
    assert_refused(cli("serve", bundle, "--provider", "gpu"), "no provider 'gpu'", "tensorrt")


def test_a_bundle_is_swapped_under_load_without_losing_a_request(
    bundle: Path, successor: Path, tmp_path: Path
) -> None:
    place = tmp_path / "bundle"
    shutil.copytree(bundle, place)
    new_id = Bundle.open(successor).contract.contract_id
    with serving(place, "--metrics", "0") as (address, process):
        errors: list[BaseException] = []
        seen: set[bytes] = set()
        stop = threading.Event()

        def drive() -> None:
            try:
                with RemotePolicy.connect(address) as policy:
                    sample = observation(policy.contract, 1)
                    while not stop.is_set():
                        seen.add(policy.act(sample, seed=1, deadline=2.0).actions.tobytes())
                    contracts.add(policy.contract.contract_id)
            except BaseException as error:
                errors.append(error)

        contracts: set[str] = set()
        threads = [threading.Thread(target=drive) for _ in range(3)]
        for thread in threads:
            thread.start()
        time.sleep(0.3)
        shutil.rmtree(place)
        shutil.copytree(successor, place)
        process.send_signal(signal.SIGHUP)
        channel = Channel(address)
        try:
            wait_for(lambda: channel.ask("stats", 2.0)["swaps"] > 0)
            time.sleep(0.3)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        stats = channel.ask("stats", 2.0)
        channel.close()
        assert errors == []
        assert (stats["swaps"], stats["errors"]) == (1, {})
        assert contracts == {new_id}
        assert len(seen) == 2


def test_an_incompatible_or_damaged_bundle_is_not_swapped_in(bundle: Path, tmp_path: Path) -> None:
    place = tmp_path / "bundle"
    shutil.copytree(bundle, place)
    contract = Bundle.open(bundle).contract
    slower = msgspec.structs.replace(
        contract, plant=msgspec.structs.replace(contract.plant, control_rate=10.0)
    )
    other = variant(bundle, tmp_path / "other", slower, scale=1.0)
    with serving(place) as (address, process), RemotePolicy.connect(address) as policy:
        before = policy.act(observation(policy.contract), seed=1).actions
        shutil.rmtree(place)
        shutil.copytree(other, place)
        process.send_signal(signal.SIGHUP)
        reason = json.loads(note(process, r"(\{.*bundle refused.*\})"))["reason"]
        assert "control rate is 10 Hz instead of 20 Hz" in reason
        (place / "refine.onnx").write_bytes(b"damaged")
        process.send_signal(signal.SIGHUP)
        assert "refine.onnx" in json.loads(note(process, r"(\{.*bundle refused.*\})"))["reason"]
        assert np.array_equal(policy.act(observation(policy.contract), seed=1).actions, before)


def test_sigterm_finishes_running_requests_and_rejects_the_rest(bundle: Path) -> None:
    with serving(bundle) as (address, process), RemotePolicy.connect(address) as policy:
        policy.act(observation(policy.contract))
        channel = Channel(address)
        channel.ask("ping", 5.0)
        process.send_signal(signal.SIGSTOP)
        fields = Layout(policy.contract.plant.fields).pack(observation(policy.contract))
        request = headers.Act(contract=policy.contract.contract_id, candidates=256)
        numbers = [channel.send(request, fields, time.monotonic() + 1, 1.0) for _ in range(20)]
        time.sleep(0.2)
        process.send_signal(signal.SIGCONT)
        channel.receive(numbers.pop(0), headers.ActReply, time.monotonic() + 10, 10.0)
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(timeout=15) == 0
        # Every request that had arrived was either computed or refused; none vanished.
        codes = []
        for number in numbers:
            try:
                channel.receive(number, headers.ActReply, time.monotonic() + 5, 5.0)
                codes.append("computed")
            except ServerError as error:
                codes.append(error.code)
        channel.close()
        assert set(codes) <= {"computed", "draining"}


def test_several_bundles_are_served_by_name(bundle: Path, successor: Path) -> None:
    contract = Bundle.open(successor).contract
    with serving(bundle, f"second={successor}") as (address, _):
        with RemotePolicy.connect(address) as first, RemotePolicy.connect(address, bundle="second") as second:
            assert second.contract == contract != first.contract
            sample = observation(contract)
            assert not np.array_equal(first.act(sample, seed=1).actions, second.act(sample, seed=1).actions)
        with pytest.raises(ServerError, match=r"this server has .*, second"):
            RemotePolicy.connect(address, bundle="third")
    assert_refused(cli("serve", bundle, bundle), "two bundles are called")


def test_a_recording_replays_to_the_same_bytes_and_survives_being_cut_short(
    bundle: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "recording"
    with serving(bundle, "--record", str(folder)) as (address, process):
        with RemotePolicy.connect(address) as policy:
            for seed in range(6):
                policy.act(
                    observation(policy.contract, seed),
                    candidates=1 + seed % 3,
                    value=seed % 2 == 0,
                    deadline=5.0,
                )
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(timeout=10) == 0
        wait_until_written(folder)
    records = [message for message in read_recording(folder) if isinstance(message, Decision)]
    model = Model(Bundle.open(bundle))
    assert len(records) == 6
    assert all(same_bytes(record, replay(model, record)) for record in records)
    assert "6 decisions, 0 of them different" in cli("replay", folder, "--bundle", bundle).output
    assert_refused(cli("replay", tmp_path / "none", "--bundle", bundle), "there is no recording")
    changed = floats(chunk(records[0]) + np.float32(1e-7))
    assert not same_bytes(msgspec.structs.replace(records[0], actions=changed), replay(model, records[0]))
    (file,) = folder.glob("*.mcap")
    whole = file.read_bytes()
    file.write_bytes(whole[:-10])  # of the index at the end, which is not needed
    assert len(list(read_file(file))) == 7
    file.write_bytes(whole[: len(whole) // 2])
    assert len(list(read_file(file))) < 7
    for place in (59, len(whole) // 3):  # of a chunk: its length, its bytes
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        assert_refused(cli("replay", folder, "--bundle", bundle), "is damaged")
