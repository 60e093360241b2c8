"""Servers and clients that benchmarks/serving.py compares: ours, bare pyzmq and openpi's, each a process."""

from __future__ import annotations

import contextlib
import importlib.util
import multiprocessing as mp
import os
import socket as sockets
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import zmq

sys.path.insert(0, str(Path(__file__).parent))
from networks import ACTION, CHUNK, OBSERVATION, make_contract, make_plant

SERVER_CORE, CLIENT_CORE = 0, 1
WARM_UP = 200
spawn = mp.get_context("spawn")


def pin(core: int) -> None:
    """Keep this process on one core, where there is more than one."""
    with contextlib.suppress(OSError):
        os.sched_setaffinity(0, {core % (os.cpu_count() or 1)})


# Servers: each sends its endpoint when it is ready.


def serve_ours(pipe: Connection, bundle: str | None, images: int, variant: str = "fp32") -> None:
    """The real server; without a bundle, around a policy that answers at once."""
    pin(SERVER_CORE)
    from rql_deploy.bundle.bundle import Bundle
    from rql_deploy.runtime.engine.model import Model
    from rql_deploy.runtime.server.server import PolicyServer
    from rql_deploy.runtime.server.signals import stop_on_signals

    sys.setswitchinterval(2e-4)
    model: Any = Model(Bundle.open(bundle, variant)) if bundle else InstantModel(images)
    with PolicyServer([model], "tcp://127.0.0.1:*", max_rate=1e6) as server, stop_on_signals(server.stop):
        model.warm_up()
        pipe.send(server.endpoint)
        server.run()


class InstantModel:
    """A model without a network for the engine: zeros at once. The server checks observations as usual."""

    def __init__(self, images: int) -> None:
        from rql_deploy.runtime.engine.latency import CostModel

        self.contract = make_contract(make_plant(images))
        self.name, self.costs = "instant", CostModel()
        self.chunk_dim, self.feature_dim = CHUNK * ACTION, 1
        self.schedule = [(0.0, 1.0)]
        self._actions = np.zeros((1, CHUNK, ACTION), np.float32)

    def unrolled(self, fields: Any, noise: Any) -> Any:
        """Zeros."""
        return self._actions

    def warm_up(self) -> None:
        """Nothing to warm."""


class Unrolled:
    """The other servers' policy: the bundle's unrolled graph with fixed noise and no checks, or zeros."""

    def __init__(self, bundle: str | None, variant: str = "fp32"):
        from rql_deploy.bundle.bundle import Bundle

        self._session = Bundle.open(bundle, variant).session("policy") if bundle else None
        self._noise = np.zeros((1, CHUNK * ACTION), np.float32)
        self._zeros = np.zeros((CHUNK, ACTION), np.float32)

    def __call__(self, state: Any) -> Any:
        """State `[O]` -> actions `[h, A]`."""
        if self._session is None:
            return self._zeros
        return self._session.run(None, {"noise": self._noise, "state": state[None]})[0][0]


def serve_bare(pipe: Connection, bundle: str | None, images: int, variant: str = "fp32") -> None:
    """pyzmq and nothing else: one request after the other, first come first served."""
    pin(SERVER_CORE)
    policy = Unrolled(bundle, variant)
    with zmq.Context() as context, context.socket(zmq.ROUTER) as socket:
        port = socket.bind_to_random_port("tcp://127.0.0.1")
        pipe.send(f"tcp://127.0.0.1:{port}")
        while True:
            frames = socket.recv_multipart(copy=images == 0)
            socket.send_multipart(
                [frames[0], policy(np.frombuffer(frames[1], np.float32, OBSERVATION)).tobytes()]
            )


def serve_openpi(pipe: Connection, bundle: str | None, source: str, variant: str = "fp32") -> None:
    """openpi's own server class, from `source` (its websocket_policy_server.py)."""
    pin(SERVER_CORE)
    spec = importlib.util.spec_from_file_location("websocket_policy_server", source)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    unrolled = Unrolled(bundle, variant)

    class Policy:
        def infer(self, observation: Any) -> dict[str, Any]:
            """As openpi calls it."""
            return {"actions": unrolled(observation["state"])}

    with sockets.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = module.WebsocketPolicyServer(Policy(), host="127.0.0.1", port=port)
    threading.Timer(1.0, pipe.send, [f"ws://127.0.0.1:{port}"]).start()
    server.serve_forever()


@contextlib.contextmanager
def running(serve: Callable[..., None], *arguments: Any) -> Iterator[tuple[str, int]]:
    """A server process; yields its endpoint and process id."""
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=serve, args=(theirs, *arguments), daemon=True)
    process.start()
    try:
        yield ours.recv(), process.pid or 0
    finally:
        process.kill()
        process.join()


# Clients: each returns latencies in seconds.


def observe(images: int, seed: int = 0) -> dict[str, Any]:
    """An observation of the benchmark's plant."""
    rng = np.random.default_rng(seed)
    cameras = {f"camera{i}": rng.integers(0, 255, (224, 224, 3), np.uint8) for i in range(images)}
    return {"state": rng.normal(size=OBSERVATION).astype(np.float32), **cameras}


def measure(call: Callable[[], object], seconds: float) -> list[float]:
    """Latencies of calls back to back, warm-up left out."""
    for _ in range(WARM_UP):
        call()
    found, end = [], time.perf_counter() + seconds
    while (start := time.perf_counter()) < end:
        call()
        found.append(time.perf_counter() - start)
    return found


def ours_client(
    endpoint: str, images: int, seconds: float, busy: bool = False, **options: Any
) -> list[float]:
    """The real client."""
    from rql_deploy.runtime.client import RemotePolicy

    sample = observe(images)
    with RemotePolicy.connect(endpoint, busy_poll=busy) as policy:
        return measure(lambda: policy.act(sample, **options), seconds)


def bare_client(endpoint: str, images: int, seconds: float) -> list[float]:
    """pyzmq and nothing else."""
    sample = [value.tobytes() for value in observe(images).values()]
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.linger = 0
        socket.connect(endpoint)

        def call() -> object:
            socket.send_multipart(sample, copy=images == 0)
            return np.frombuffer(socket.recv_multipart()[0], np.float32)

        return measure(call, seconds)


def openpi_client(endpoint: str, images: int, seconds: float) -> list[float]:
    """openpi's own client package."""
    sample = observe(images)
    policy = connect_openpi(endpoint)
    return measure(lambda: policy.infer(sample)["actions"], seconds)


def connect_openpi(endpoint: str) -> Any:
    """A client of openpi's package."""
    from openpi_client.websocket_client_policy import WebsocketClientPolicy

    host, _, port = endpoint.removeprefix("ws://").rpartition(":")
    return WebsocketClientPolicy(host, int(port))


def in_process(client: Callable[..., list[float]], *arguments: Any, **options: Any) -> list[float]:
    """Run a client in a process of its own, on its core."""
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=_client_main, args=(theirs, client, arguments, options), daemon=True)
    process.start()
    found: list[float] = ours.recv()
    process.join()
    return found


def _client_main(pipe: Connection, client: Callable[..., list[float]], arguments: Any, options: Any) -> None:
    pin(CLIENT_CORE)
    pipe.send(client(*arguments, **options))


def crowd_member(
    pipe: Connection, endpoint: str, kind: str, seconds: float, rate: float | None, barrier: Any, number: int
) -> None:
    """A client of part c, back to back or at `rate` Hz; sends its latencies, and how many replies were late.

    A reply is late after half a period.
    """
    pin(CLIENT_CORE)
    from rql_deploy.runtime.client import RemotePolicy

    sample = observe(0, number)
    if kind == "ours":
        policy = RemotePolicy.connect(endpoint, timeout=30.0)
        call: Callable[[], object] = lambda: policy.act(sample)  # noqa: E731
    elif kind == "openpi":
        theirs = connect_openpi(endpoint)
        call = lambda: theirs.infer(sample)  # noqa: E731
    else:
        socket = zmq.Context().socket(zmq.DEALER)
        socket.connect(endpoint)
        data = sample["state"].tobytes()

        def call() -> object:
            socket.send(data)
            return socket.recv()

    for _ in range(5):
        call()
    barrier.wait()
    found = []
    start = time.perf_counter() + (number * 0.37 % 1.0) / (rate or 1e9)
    end = start + seconds
    tick = 0
    while time.perf_counter() < end:
        if rate:
            due = start + tick / rate
            time.sleep(max(0.0, due - time.perf_counter()))
            tick += 1
        begun = time.perf_counter()
        call()
        found.append(time.perf_counter() - begun)
    pipe.send(found)
