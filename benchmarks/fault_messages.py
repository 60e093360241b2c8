"""Faults in messages: late, doubled and reordered replies, wrong inputs, noise, and frames too large."""

from __future__ import annotations

import heapq
import random
import threading
import time
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import zmq
from fault_codec import altered, good_message
from fault_setup import Outcome, contract, request, sample, serving, spawn

from rql_deploy.errors import ContractError, DeadlineMissed
from rql_deploy.runtime.client import RemotePolicy
from rql_deploy.runtime.wire import headers, protocol

DELAY_CLIENTS = 4
DEADLINE = 0.004
"""Seconds; the proxy holds replies for up to twice this long."""


def delaying_proxy(pipe: Connection, server: str, longest: float, number: int) -> None:
    """Pass requests on at once; hold every reply for a random time that it then names, and double some."""
    source, held, order = random.Random(number), [], 0
    context = zmq.Context()
    front, back = context.socket(zmq.ROUTER), context.socket(zmq.DEALER)
    pipe.send(f"tcp://127.0.0.1:{front.bind_to_random_port('tcp://127.0.0.1')}")
    back.connect(server)
    poller = zmq.Poller()
    poller.register(front, zmq.POLLIN)
    poller.register(back, zmq.POLLIN)
    client = b""
    while True:
        wait = max(0.0, held[0][0] - time.monotonic()) if held else 1.0
        for socket, _ in poller.poll(0 if wait < 1e-3 else wait * 1e3):
            frames = socket.recv_multipart()
            if socket is front:
                client = frames[0]
                back.send_multipart(frames[1:])
                continue
            for _ in range(1 + (source.random() < 0.125)):
                order += 1
                delay = source.random() * longest
                heapq.heappush(held, (time.monotonic() + delay, order, telling(frames[0], delay)))
        while held and held[0][0] <= time.monotonic():
            front.send_multipart([client, heapq.heappop(held)[2]])


def telling(frame: bytes, delay: float) -> bytes:
    """A decision that names its delay; other messages as they are."""
    head = protocol.decode(frame)
    if head.kind != headers.ActReply.kind:
        return frame
    reply, arrays = protocol.decode_reply(head, headers.ActReply)
    assert isinstance(reply, headers.ActReply)
    reply.timing = {**(reply.timing or {}), "held": delay}
    return protocol.encode(reply, protocol.Packed((arrays["actions"],)), id=head.id, epoch=head.epoch)


def delayed_client(pipe: Connection, address: str, count: int, first: int) -> None:
    """Call with a deadline; send how many calls missed it and how many replies were late or wrong."""
    found = {"missed": 0, "late_applied": 0, "wrong_applied": 0, "overrun": 0.0}
    with RemotePolicy.connect(address) as policy:
        for number in range(first, first + count):
            start = time.monotonic()
            try:
                decision = policy.act(sample(), seed=number, deadline=DEADLINE)
            except DeadlineMissed:
                found["missed"] += 1
                found["overrun"] = max(found["overrun"], time.monotonic() - start - DEADLINE)
                continue
            found["late_applied"] += decision.timing["held"] > DEADLINE
            found["wrong_applied"] += decision.seed != number
        pipe.send(found | {"late_dropped": policy.stale_replies})


def delays(count: int) -> Outcome:
    """Calls whose replies are held back for up to twice their deadline."""
    with serving() as server:
        pipes, proxies = [], []
        for number in range(DELAY_CLIENTS):
            ours, theirs = spawn.Pipe()
            proxies.append(
                spawn.Process(
                    target=delaying_proxy, args=(theirs, server.endpoint, 2 * DEADLINE, number), daemon=True
                )
            )
            proxies[-1].start()
            result, sent = spawn.Pipe()
            share = count // DELAY_CLIENTS
            spawn.Process(
                target=delayed_client, args=(sent, ours.recv(), share, number * share), daemon=True
            ).start()
            pipes.append(result)
        parts = [pipe.recv() for pipe in pipes]
        for proxy in proxies:
            proxy.kill()
        alive = server.alive
    total = {key: sum(part[key] for part in parts) for key in parts[0] if key != "overrun"}
    wrong = total["late_applied"] + total["wrong_applied"]
    return Outcome(
        f"{total['missed']:,} of {count:,} calls missed, "
        f"{total['late_dropped']:,} late or doubled replies dropped, {wrong} applied",
        "nothing: it does not know",
        wrong == 0 and alive,
        {"calls": count, **total, "overrun_ms_max": max(part["overrun"] for part in parts) * 1e3},
    )


def inputs(rounds: int) -> Outcome:
    """Observations that break the contract, from one client, while another client drives."""
    field = contract().plant.fields[1]
    mixed = np.zeros(field.shape, np.float32)
    mixed[1:3] = np.inf, -np.inf
    wrong: dict[str, dict[str, Any]] = {
        "NaN": {**sample(), field.name: np.full(field.shape, np.nan, np.float32)},
        "infinity": {**sample(), field.name: mixed},
        "beyond float32": {**sample(), field.name: np.full(field.shape, 1e300)},
        "shape": {**sample(), field.name: np.zeros(field.shape[0] + 1, np.float32)},
        "no field": {name: value for name, value in sample().items() if name != field.name},
    }
    numbers = contract().plant.observation_dim
    raw = [bytes(2 * numbers), bytes(8 * numbers), b"short"]
    refused = others = lost = 0
    with (
        serving() as server,
        RemotePolicy.connect(server.endpoint) as bad,
        RemotePolicy.connect(server.endpoint) as good,
        zmq.Context() as context,
        context.socket(zmq.DEALER) as socket,
    ):
        socket.linger = 0
        socket.connect(server.endpoint)
        expected = good.act(sample(), seed=1).actions.tobytes()
        for _ in range(rounds):
            for observation in wrong.values():
                with np.errstate(over="ignore"):
                    try:
                        bad.act(observation, deadline=5.0)
                        others += 1
                    except ContractError:
                        refused += 1
            # What our client would not send: numbers of other sizes, and too few bytes.
            for data in raw:
                block = protocol.Packed((np.frombuffer(data, np.uint8),))
                socket.send(protocol.encode(request()[0], block, id=1, epoch=1))
                code = refused_with(socket.recv()) if socket.poll(5000) else None
                refused, others = refused + (code == "bad_array"), others + (code != "bad_array")
            lost += good.act(sample(), seed=1, deadline=5.0).actions.tobytes() != expected
        said, alive = server.said, server.alive
    return Outcome(
        f"{refused:,} of {rounds * (len(wrong) + len(raw)):,} refused by name, {others} not; "
        f"another client lost {lost} of {rounds:,}",
        f"running, {len(said)} lines in its log",
        refused == rounds * (len(wrong) + len(raw)) and not others and not lost and alive and not said,
        {"refused": refused, "others": others, "lost": lost, "log_lines": len(said)},
    )


def refused_with(frame: bytes) -> str | None:
    """The code of a refusal."""
    reply, _ = protocol.decode_reply(protocol.decode(frame), headers.ActReply)
    return reply.code if isinstance(reply, headers.Refusal) else None


def huge(size: int) -> Outcome:
    """One frame of `size` bytes, while another client drives."""
    lost = calls = 0
    with serving() as server, RemotePolicy.connect(server.endpoint) as good, zmq.Context() as context:
        good.act(sample())
        before, peak = server.memory(), 0.0
        sender = context.socket(zmq.DEALER)
        sender.linger = 0
        sender.connect(server.endpoint)
        block = protocol.Packed((np.zeros(size, np.uint8),))
        frame = protocol.encode(request()[0], block, id=1, epoch=1)
        thread = threading.Thread(target=lambda: sender.send(frame, copy=False))
        thread.start()
        expiry = time.monotonic() + 3.0
        while time.monotonic() < expiry:
            calls += 1
            try:
                good.act(sample(), deadline=0.5)
            except DeadlineMissed:
                lost += 1
            peak = max(peak, server.memory())
        thread.join()
        answered = sender.poll(0)
        sender.close()
        alive = server.alive
    grown = peak - before
    return Outcome(
        f"its connection ends without an answer; another client lost {lost} of {calls:,}",
        f"running, memory grew by at most {grown:.0f} MiB",
        alive and not lost and not answered and grown < 64,
        {"frame_bytes": size, "calls": calls, "lost": lost, "grown_mib": grown},
    )


def messages(count: int) -> Outcome:
    """Malformed messages at a live server; after every twenty, another client compares a reply's bytes."""
    source, lost, asked, answered = random.Random(2), 0, 0, 0
    with serving() as server, RemotePolicy.connect(server.endpoint) as policy, zmq.Context() as context:
        good = good_message()
        expected = policy.act(sample(), seed=3).actions.tobytes()
        socket = context.socket(zmq.DEALER)
        socket.linger = 0
        socket.connect(server.endpoint)
        for number in range(count):
            socket.send_multipart(altered(source, good))
            if number % 20 == 0:
                asked += 1
                try:
                    lost += policy.act(sample(), seed=3, deadline=1.0).actions.tobytes() != expected
                except DeadlineMissed:
                    lost += 1
            while socket.poll(0):
                socket.recv_multipart()
                answered += 1
        while answered < count and socket.poll(2000):
            socket.recv_multipart()
            answered += 1
        alive, said = server.alive, server.said
        socket.close()
    return Outcome(
        f"{answered:,} of {count:,} malformed ones answered; well-behaved client lost {lost} of {asked:,}",
        f"{'running' if alive else 'DEAD'}, {len(said)} lines in its log",
        alive and not lost and answered == count,
        {
            "malformed": count,
            "answered": answered,
            "well_behaved_calls": asked,
            "lost": lost,
            "log_lines": len(said),
        },
    )
