"""Timing of the real-time loop: 20, 50, 100 and 500 Hz, with a policy that takes 0.5 and 1.5 periods.

    python benchmarks/control_loop.py [--seconds 10] [--rates 20 50 100 500] [--drift-seconds 60] [--arm]

The policy runs in its own process behind a real socket: the real client, and a server that sleeps for the
given time instead of computing, so that the figures are the loop's. Chunks of 8 actions, prefetched. Prints a
table and ends with one JSON line. The columns:

- off p99: 99 % of the periods are at most this far from their nominal length;
- drift: how much later the last ticks are than the first, measured against absolute deadlines;
- stale: the share of ticks without a fresh action.

Each run is made at normal priority and, if the user may, under SCHED_FIFO. Only the loop's thread gets that
priority, so on a busy machine the policy is late all the same. `--arm` also drives the simulated arm's
process at 50 Hz.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing as mp
import os
import time
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import Any

import msgspec
import numpy as np
import zmq
from networks import make_contract

from rql_deploy.contract import ActionDimension, Contract, ObservationField, PlantDescription
from rql_deploy.runtime.client import RemotePolicy
from rql_deploy.runtime.control.realtime import RealTimeLoop, RealTimeResult
from rql_deploy.runtime.wire import headers, protocol

H, ACTIONS, STATE = 8, 7, 32
PRIORITY = 20
GOALS_MS = {100.0: 1.0, 500.0: 0.5}
"""Rate to the greatest period p99, on an idle machine with two cores."""


def make_plant(rate: float) -> PlantDescription:
    return PlantDescription(
        "benchmark",
        (ObservationField("state", (STATE,)),),
        tuple(ActionDimension(f"a{i}", -1.0, 1.0) for i in range(ACTIONS)),
        rate,
    )


def contract_for(plant: PlantDescription) -> Contract:
    return msgspec.structs.replace(make_contract(plant), h=H)


def timed_server(pipe: Connection, plant: PlantDescription, seconds: float) -> None:
    """Speak the protocol, and answer `act` after `seconds` with zeros (or the plant's rest position)."""
    contract = contract_for(plant)
    text = np.frombuffer(contract.to_json().encode(), np.uint8)
    rest = np.clip(np.zeros(plant.action_dim), plant.action_low, plant.action_high).astype(np.float32)
    if plant.task == "arm:reach":
        rest = ((plant.action_low + plant.action_high) / 2).astype(np.float32)
    actions = np.tile(rest, (contract.h, 1))
    socket = zmq.Context().socket(zmq.ROUTER)
    pipe.send(f"tcp://127.0.0.1:{socket.bind_to_random_port('tcp://127.0.0.1')}")
    while True:
        client, frame = socket.recv_multipart(copy=True)
        head = protocol.decode(frame)
        request = protocol.decode_request(head)
        reply: headers.Reply = headers.ResetReply()
        arrays: protocol.Payload = {}
        if isinstance(request, headers.Hello):
            reply = headers.HelloReply(
                server="benchmark",
                capabilities=["act"],
                bundle="benchmark",
                bundles={},
                contract_id=contract.contract_id,
                records=False,
            )
            arrays = {"contract": text}
        elif isinstance(request, headers.Act):
            time.sleep(seconds)
            timing = {"queue": 0.0, "inference": seconds, "server": seconds}
            reply = headers.ActReply(
                value=None,
                spread=None,
                steps_used=10,
                seed=request.seed or 0,
                deltas=(),
                compared=1,
                timing=timing,
            )
            arrays = protocol.Packed((actions,))
        socket.send_multipart([client, protocol.encode(reply, arrays, id=head.id, epoch=head.epoch)])


class StillPlant:
    """A plant that costs no time, so that only the loop is measured."""

    def __init__(self) -> None:
        self._state = np.zeros(STATE, np.float32)

    def reset(self, seed: int | None = None) -> None: ...

    def observe(self) -> Mapping[str, Any]:
        return {"state": self._state}

    def apply(self, action: Any) -> None: ...


def may_have_priority() -> bool:
    """Whether this user may run threads under SCHED_FIFO."""
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(PRIORITY))
    except OSError:
        return False
    os.sched_setscheduler(0, *before)
    return True


def measure(
    plant: Any, description: PlantDescription, part: float, seconds: float, priority: int | None = None
) -> dict[str, Any]:
    """One run with a policy that takes `part` of a period."""
    ours, theirs = mp.get_context("spawn").Pipe()
    server = mp.get_context("spawn").Process(
        target=timed_server, args=(theirs, description, part / description.control_rate), daemon=True
    )
    server.start()
    try:
        with (
            RemotePolicy.connect(ours.recv(), plant=description) as policy,
            RealTimeLoop(plant, policy, mode="prefetch", latch=False, priority=priority) as loop,
        ):
            loop.run_episode(0, duration=min(1.0, seconds))  # the first calls of everything
            result: RealTimeResult = loop.run_episode(0, duration=seconds)
    finally:
        server.kill()
        server.join()
    return {
        "rate": description.control_rate,
        "policy_periods": part,
        "priority": priority,
        **result.statistics.summary(),
    }


def line(label: str, r: Mapping[str, Any]) -> str:
    """A row of the table."""
    goal = GOALS_MS.get(r["rate"])
    off = r["period_deviation_ms"]
    verdict = "" if goal is None else f"goal {goal:g}: {'met' if off['p99'] <= goal else 'not met'}"
    how = "normal" if r["priority"] is None else "fifo"
    timing = f"{off['p50']:>8.3f} {off['p99']:>8.3f} {off['max']:>8.2f}"
    counts = f"{r['overruns']:>8} {r['skipped_cycles']:>8}"
    rest = f"{r['stale_ratio']:>7.2%} {r['observation_age_ms']['p50']:>8.2f} {r['drift_ms']:>9.4f}"
    return (
        f"{label:12} {how:8} {r['policy_periods']:>8.1f} {r['ticks']:>7} {timing} {counts} {rest}  {verdict}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="of each run")
    parser.add_argument("--rates", type=float, nargs="+", default=[20.0, 50.0, 100.0, 500.0])
    parser.add_argument(
        "--drift-seconds", type=float, default=60.0, help="of one more run at 100 Hz; 0 leaves it out"
    )
    parser.add_argument("--arm", action="store_true", help="the simulated arm's process too, at 50 Hz")
    arguments = parser.parse_args()
    print(
        f"{'rate':12} {'priority':8} {'policy':>8} {'ticks':>7} {'off p50':>8} {'off p99':>8} {'off max':>8} "
        f"{'overruns':>8} {'skipped':>8} {'stale':>7} {'age p50':>8} {'drift':>9}"
    )
    print(
        f"{'':12} {'':8} {'periods':>8} {'':>7} {'ms':>8} {'ms':>8} {'ms':>8} "
        f"{'':>8} {'':>8} {'':>7} {'ms':>8} {'ms':>9}"
    )
    report = []
    for rate in arguments.rates:
        for part in (0.5, 1.5):
            for priority in (None, PRIORITY) if may_have_priority() else (None,):
                report.append(measure(StillPlant(), make_plant(rate), part, arguments.seconds, priority))
                print(line(f"{rate:g} Hz", report[-1]), flush=True)
    drift = None
    if arguments.drift_seconds:
        drift = measure(StillPlant(), make_plant(100.0), 0.5, arguments.drift_seconds)
        print(line(f"100 Hz {arguments.drift_seconds:g} s", drift), flush=True)
    arm = None
    if arguments.arm:
        from rql_deploy.sim.plants.arm import ArmPlant, describe_arm

        plant = ArmPlant(50.0, horizon=10**9)
        try:
            arm = measure(plant, describe_arm(50.0), 0.5, arguments.seconds)
            arm["arm_cycles_skipped"], arm["arm_cycles"] = plant.state["skipped"], plant.state["cycle"]
        finally:
            plant.close()
        print(line("arm, 50 Hz", arm), flush=True)
    print(json.dumps({"runs": report, "drift": drift, "arm": arm}))


if __name__ == "__main__":
    main()
