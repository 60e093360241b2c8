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
from networks import ACTION, CHUNK, OBSERVATION, ROBOT_FIELDS, make_contract, make_plant

SERVER_CORE, CLIENT_CORE = 0, 1
WARM_UP = 200
"""Calls of a client before it is measured."""
spawn = mp.get_context("spawn")
Call = Callable[[], object]


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

        self.contract = make_contract(make_plant(images, named=True))
        self.name, self.costs = "instant", CostModel()
        self.chunk_dim, self.feature_dim, self.sees = CHUNK * ACTION, 1, False
        self.schedule = [(0.0, 1.0)]
        self._actions = np.zeros((1, CHUNK, ACTION), np.float32)

    def unrolled(self, fields: Any, noise: Any) -> Any:
        """Zeros."""
        return self._actions

    def continuation(self, prefix: Any) -> None:
        """None: zeros continue nothing."""

    def warm_up(self) -> None:
        """Tell the engine what it costs."""
        for rows in (1, 16):
            self.costs.observe("unrolled", rows, 1e-6)


class Unrolled:
    """The other servers' policy: the bundle's unrolled graph with fixed noise and no checks, or zeros."""

    def __init__(self, bundle: str | None, variant: str = "fp32"):
        from rql_deploy.bundle.bundle import Bundle

        opened = Bundle.open(bundle, variant) if bundle else None
        self._session = opened.session("policy") if opened else None
        self._encoder = opened.session("encode") if opened and opened.contract.plant.images else None
        self._noise = np.zeros((1, CHUNK * ACTION), np.float32)
        self._zeros = np.zeros((CHUNK, ACTION), np.float32)

    def __call__(self, state: Any, **pictures: Any) -> Any:
        """State `[O]` and pictures `[H, W, 3]` -> actions `[h, A]`."""
        if self._session is None:
            return self._zeros
        inputs = {"state": state[None]}
        if self._encoder is not None:
            inputs |= {name: picture[None] for name, picture in pictures.items()}
            inputs = {"features": self._encoder.run(None, inputs)[0]}
        return self._session.run(None, {"noise": self._noise, **inputs})[0][0]


def serve_bare(
    pipe: Connection, bundle: str | None, images: int, variant: str = "fp32", side: int = 0
) -> None:
    """pyzmq and nothing else: a frame in, a frame out, first come first served."""
    pin(SERVER_CORE)
    policy = Unrolled(bundle, variant)
    with zmq.Context() as context, context.socket(zmq.ROUTER) as socket:
        port = socket.bind_to_random_port("tcp://127.0.0.1")
        pipe.send(f"tcp://127.0.0.1:{port}")
        while True:
            client, frame = socket.recv(), socket.recv(copy=images == 0)
            state, pictures = np.frombuffer(frame, np.float32, OBSERVATION), {}
            if side:
                pixels = np.frombuffer(frame, np.uint8, offset=state.nbytes).reshape(-1, side, side, 3)
                pictures = {f"camera{i}": picture for i, picture in enumerate(pixels)}
            actions = policy(state, **pictures)
            socket.send(client, zmq.SNDMORE)
            socket.send(actions.tobytes())


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
            pictures = {name: value for name, value in observation.items() if name.startswith("camera")}
            return {"actions": unrolled(observation.get("state"), **pictures)}

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


# Clients: each returns a call that waits for one reply.


def observe(images: int, *, named: bool = False, seed: int = 0, side: int = 224) -> dict[str, Any]:
    """An observation of the benchmark's plant."""
    rng = np.random.default_rng(seed)
    cameras = {f"camera{i}": rng.integers(0, 255, (side, side, 3), np.uint8) for i in range(images)}
    sizes = ROBOT_FIELDS if named else {"state": OBSERVATION}
    return {name: rng.normal(size=size).astype(np.float32) for name, size in sizes.items()} | cameras


def ours_client(endpoint: str, sample: dict[str, Any], busy: bool = False, **options: Any) -> Call:
    """The real client."""
    from rql_deploy.runtime.client import RemotePolicy

    policy = RemotePolicy.connect(endpoint, timeout=30.0, busy_poll=busy)
    return lambda: policy.act(sample, **options)


def bare_client(endpoint: str, sample: dict[str, Any]) -> Call:
    """pyzmq and nothing else: the observation's arrays in one frame."""
    socket = zmq.Context().socket(zmq.DEALER)
    socket.linger = 0
    socket.connect(endpoint)
    arrays = list(sample.values())
    copy = sum(array.nbytes for array in arrays) < 65536

    def call() -> object:
        socket.send(b"".join(arrays), copy=copy)
        return np.frombuffer(socket.recv(), np.float32)

    return call


def openpi_client(endpoint: str, sample: dict[str, Any]) -> Call:
    """openpi's own client package."""
    from openpi_client.websocket_client_policy import WebsocketClientPolicy

    host, _, port = endpoint.removeprefix("ws://").rpartition(":")
    policy = WebsocketClientPolicy(host, int(port))
    return lambda: policy.infer(sample)["actions"]


CLIENTS: dict[str, Callable[..., Call]] = {"ours": ours_client, "bare": bare_client, "openpi": openpi_client}


class ClientProcess:
    """One client in a process of its own, on its core, that stays connected between its rounds."""

    def __init__(
        self, kind: str, endpoint: str, sample: dict[str, Any], *, rate: float | None = None, **options: Any
    ):
        """Calls follow each other at once, or come `rate` times a second."""
        self._pipe, theirs = spawn.Pipe()
        arguments = (theirs, kind, endpoint, sample, rate, options)
        self._process = spawn.Process(target=_client_main, args=arguments, daemon=True)
        self._process.start()
        self._pipe.recv()

    def measure(self, seconds: float) -> tuple[list[float], float]:
        """Latencies of calls in seconds, and the client's processor time for one."""
        self._pipe.send(seconds)
        latencies, cpu = self._pipe.recv()
        return latencies, cpu

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.join()


def _client_main(
    pipe: Connection,
    kind: str,
    endpoint: str,
    sample: dict[str, Any],
    rate: float | None,
    options: dict[str, Any],
) -> None:
    pin(CLIENT_CORE)
    call = CLIENTS[kind](endpoint, sample, **options)
    for _ in range(WARM_UP):
        call()
    pipe.send(None)
    clock = time.perf_counter
    while True:
        seconds, found, cpu = pipe.recv(), [], time.process_time()
        due = clock()
        end = due + seconds
        while (start := clock()) < end:
            if rate is not None:
                due += 1 / rate
                time.sleep(max(0.0, due - start))
                start = clock()
            call()
            found.append(clock() - start)
        pipe.send((found, (time.process_time() - cpu) / len(found)))


def in_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Run a function in a process of its own, on the clients' core."""
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=_function_main, args=(theirs, function, arguments), daemon=True)
    process.start()
    found = ours.recv()
    process.join()
    return found


def _function_main(pipe: Connection, function: Callable[..., Any], arguments: Any) -> None:
    pin(CLIENT_CORE)
    pipe.send(function(*arguments))


def crowd_member(
    pipe: Connection,
    endpoint: str,
    kind: str,
    seconds: float,
    rate: float | None,
    barrier: Any,
    number: int,
    images: int = 0,
    side: int = 224,
) -> None:
    """A client of part c, back to back or at `rate` Hz; sends its latencies."""
    pin(CLIENT_CORE)
    call = CLIENTS[kind](endpoint, observe(images, seed=number, side=side))
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
