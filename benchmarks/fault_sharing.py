"""One policy in many hands: threads, a fork, signals, somebody who closes it; and greedy clients."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection

import msgspec
import numpy as np
from fault_peers import Driver
from fault_setup import BUNDLE, Outcome, contract, request, sample, serving, spawn

from rql_deploy.bundle.bundle import Bundle
from rql_deploy.errors import DeadlineMissed, PolicyClosed, UserError
from rql_deploy.policy import Decision
from rql_deploy.runtime.client import RemotePolicy, ServerError
from rql_deploy.runtime.client.channel import Channel
from rql_deploy.runtime.engine.model import Model
from rql_deploy.runtime.recording.messages import Decision as Recorded
from rql_deploy.runtime.recording.messages import Doubles, Floats, pack
from rql_deploy.runtime.recording.replay import replay

SEEDS = 16
GREEDY_CONNECTIONS = 17
GREEDY_REQUESTS = 64
TIMER = 0.005
"""Seconds between two signals."""


class Expected:
    """What the server must send for `sample(seed)`, computed in this process from the same graphs."""

    def __init__(self) -> None:
        self._model = Model(Bundle.open(BUNDLE))
        self._records = [
            Recorded(
                time=0.0,
                contract_id=contract().contract_id,
                client="",
                seed=seed,
                fields=[pack(name, np.asarray(value)) for name, value in sample(seed).items()],
                chunk_shape=[],
                actions=Floats(b""),
            )
            for seed in range(SEEDS)
        ]
        self._known: dict[tuple[int, tuple[float, ...]], bytes] = {}
        self._lock = threading.Lock()

    def differs(self, decision: Decision, seed: int) -> bool:
        """Whether a decision is another's, or other bytes than its steps give."""
        key = seed, decision.deltas
        with self._lock:
            if key not in self._known:
                deltas = Doubles(np.array(decision.deltas).tobytes())
                record = msgspec.structs.replace(self._records[seed], deltas=deltas)
                self._known[key] = replay(self._model, record).actions.tobytes()
        return decision.seed != seed or decision.actions.tobytes() != self._known[key]


def shared(calls: int, threads: int = 8) -> Outcome:
    """Threads share a policy, call and stream, leave streams, and compare what they get."""
    expected = Expected()
    found = {"wrong": 0, "missed": 0, "streams": 0}
    lock = threading.Lock()
    with serving() as server, RemotePolicy.connect(server.endpoint) as policy:

        def one(number: int) -> None:
            seed = number % SEEDS
            try:
                if number % 4:
                    decision = policy.act(sample(seed), seed=seed, deadline=5.0)
                else:
                    for count, preview in enumerate(policy.stream(sample(seed), seed=seed, deadline=5.0)):
                        decision = preview
                        if number % 8 == 0 and count == 2:
                            return
                    with lock:
                        found["streams"] += 1
            except DeadlineMissed:
                with lock:
                    found["missed"] += 1
                return
            with lock:
                found["wrong"] += expected.differs(decision, seed)

        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(one, range(calls)))
        left = policy.stats()["in_flight"]
        alive = server.alive
    return Outcome(
        f"{found['wrong']} of {calls:,} calls of {threads} threads got another's action, "
        f"{found['missed']} missed",
        f"{'running' if alive else 'DEAD'}, {left} requests left over",
        alive and not found["wrong"] and not found["missed"],
        {"calls": calls, "threads": threads, **found},
    )


def forked(times: int) -> Outcome:
    """A process with a policy forks, in and between calls; the children use, close and leave it."""
    refused = right = 0
    with serving() as server, RemotePolicy.connect(server.endpoint) as policy:
        expected = policy.act(sample(), seed=1).actions.tobytes()
        slowest = 0.0
        for number in range(times):
            streamed = policy.stream(sample(), deadline=5.0)
            next(streamed)
            start = time.monotonic()
            child = os.fork()
            if child == 0:
                status = 1
                with contextlib.suppress(UserError):
                    try:
                        if number % 2:
                            policy.act(sample(), deadline=0.5)
                        else:
                            next(streamed)
                    except UserError:
                        policy.close()
                        status = 42
                os._exit(status)
            _, code = os.waitpid(child, 0)
            slowest = max(slowest, time.monotonic() - start)
            refused += os.waitstatus_to_exitcode(code) == 42
            for last in streamed:
                decision = last
            right += decision.steps_used > 0
            right += policy.act(sample(), seed=1, deadline=5.0).actions.tobytes() == expected
        alive = server.alive
    return Outcome(
        f"{refused} of {times} children refused by name, the slowest after {slowest:.2f} s; "
        f"the parent had {right} of {2 * times}",
        "running" if alive else "DEAD",
        alive and refused == times and right == 2 * times and slowest < 2,
        {"forks": times, "refused": refused, "parent_right": right, "slowest_s": slowest},
    )


def signals(calls: int) -> Outcome:
    """A signal every 5 ms (a profiler's timer) while the server stands still, and while it answers."""
    fired = 0

    def tick(_number: int, _frame: object) -> None:
        nonlocal fired
        fired += 1

    before = signal.signal(signal.SIGALRM, tick)
    overruns, wrong, missed = [], 0, 0
    try:
        with serving() as server, RemotePolicy.connect(server.endpoint) as policy:
            expected = policy.act(sample(), seed=1).actions.tobytes()
            signal.setitimer(signal.ITIMER_REAL, TIMER, TIMER)
            server.process.send_signal(signal.SIGSTOP)
            for _ in range(calls):
                start = time.monotonic()
                with contextlib.suppress(DeadlineMissed):
                    policy.act(sample(), deadline=0.05)
                    wrong += 1
                overruns.append(time.monotonic() - start - 0.05)
            server.process.send_signal(signal.SIGCONT)
            for _ in range(calls):
                try:
                    decision = policy.act(sample(), seed=1, deadline=2.0)
                except DeadlineMissed:
                    missed += 1
                    continue
                wrong += decision.actions.tobytes() != expected
            signal.setitimer(signal.ITIMER_REAL, 0)
            alive = server.alive
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    p99 = float(np.percentile(overruns, 99)) * 1e3
    return Outcome(
        f"{calls} of {calls} calls raise {p99:.1f} ms past their deadline (p99) under {fired:,} signals; "
        f"then {missed} of {calls} missed, {wrong} wrong",
        "running" if alive else "DEAD",
        alive and not wrong and not missed and max(overruns) < 1.0,
        {"calls": calls, "signals": fired, "overrun_ms_p99": p99, "missed": missed, "wrong": wrong},
    )


def closed(times: int, threads: int = 4) -> Outcome:
    """Another thread closes a policy under `threads` calls, while the server stands still."""
    ended, others, slowest = 0, 0, 0.0
    with serving() as server:
        for _ in range(times):
            policy = RemotePolicy.connect(server.endpoint)
            server.process.send_signal(signal.SIGSTOP)
            raised: list[BaseException] = []

            def call(policy: RemotePolicy = policy, raised: list[BaseException] = raised) -> None:
                try:
                    policy.act(sample(), deadline=20.0)
                except BaseException as failure:
                    raised.append(failure)  # noqa: B023

            callers = [threading.Thread(target=call) for _ in range(threads)]
            for caller in callers:
                caller.start()
            time.sleep(0.05)
            start = time.monotonic()
            policy.close()
            for caller in callers:
                caller.join()
            slowest = max(slowest, time.monotonic() - start)
            by_name = sum(isinstance(failure, PolicyClosed) for failure in raised)
            ended, others = ended + by_name, others + len(raised) - by_name
            server.process.send_signal(signal.SIGCONT)
        alive = server.alive
    return Outcome(
        f"{ended} of {times * threads} calls raise PolicyClosed, {others} something else, "
        f"the last {slowest:.2f} s after close",
        "running" if alive else "DEAD",
        alive and ended == times * threads and not others and slowest < 2,
        {"closes": times, "calls": times * threads, "closed_by_name": ended, "slowest_s": slowest},
    )


def greedy_client(pipe: Connection, address: str) -> None:
    """Keep many connections full of requests for 256 candidates without a deadline, until killed."""
    channels = [Channel(address) for _ in range(GREEDY_CONNECTIONS)]
    pipe.send("ready")
    while True:
        for channel in channels:
            with contextlib.suppress(DeadlineMissed, ServerError):
                for _ in range(GREEDY_REQUESTS):
                    channel.forget(channel.send(*request(candidates=256), time.monotonic() + 0.1, 0.1))
        time.sleep(0.05)


def greedy(seconds: float) -> Outcome:
    """Seventeen connections ask for 256 candidates without end beside a client with a deadline of 50 ms."""
    with serving() as server:
        driver = Driver(server, deadline=0.05)
        ours, theirs = spawn.Pipe()
        process = spawn.Process(target=greedy_client, args=(theirs, server.endpoint), daemon=True)
        process.start()
        ours.recv()
        calls, missed = driver.calls, driver.missed
        time.sleep(seconds)
        calls, missed = driver.calls - calls, driver.missed - missed
        process.kill()
        driver.stop()
        alive = server.alive
    kept = 100 * (1 - missed / max(1, calls))
    return Outcome(
        f"the honest one kept {kept:.1f} % of {calls:,} deadlines of 50 ms, {driver.wrong} wrong",
        "running" if alive else "DEAD",
        alive and not driver.wrong and kept >= 95,
        {"connections": GREEDY_CONNECTIONS, "calls": calls, "missed": missed, "kept_percent": kept},
    )
