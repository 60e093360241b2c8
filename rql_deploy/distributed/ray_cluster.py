"""Connect to a Ray cluster and run calls there, with the interface of `concurrent.futures`.

Ray's own ports know no passwords and its messages are pickles: whoever reaches the cluster runs code on it.
Connect only to clusters in a network you trust; nothing of it is exposed by this package's servers.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, TypeVar

import rql_deploy
from rql_deploy.errors import UserError

T = TypeVar("T")
CRASH_RETRIES = 3
"""Further attempts of Ray's own when a worker process or a node dies."""
SAVING_SECONDS = 60
"""How long interrupted calls may take to save what they have."""
PASSED_ON = ("MUJOCO_GL", "PYOPENGL_PLATFORM")
"""Variables that workers get from here unless they have their own."""


def connect(address: str) -> Any:
    """The `ray` module, connected to the cluster at `auto`, HOST:PORT or ray://HOST:PORT.

    Raises UserError when there is none, or when a node lacks this package in this version.
    """
    # Whoever runs the cluster decides on usage statistics, not this driver.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    if not ray.is_initialized():
        handler = signal.getsignal(signal.SIGTERM)
        try:
            _require_listener(address)
            ray.init(address=address, logging_level="warning", log_to_driver=False)
            if handler is not None and threading.current_thread() is threading.main_thread():
                # Ray's own handler ends the process with a stack trace and nothing saved.
                signal.signal(signal.SIGTERM, handler)
        except (OSError, ValueError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0].rstrip(".")
            raise UserError(
                f"no Ray cluster answers at '{address}' ({reason}): "
                "start one with `ray start --head`, or leave it out"
            ) from error
    return ray


def _require_listener(address: str) -> None:
    """Raise OSError or ValueError where nothing listens: Ray itself would try for minutes."""
    if address == "auto":
        return
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    if not separator or not port.isdecimal():
        raise ValueError("an address is HOST:PORT")
    socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def on_every_node(ray: Any, function: Callable[..., T], *arguments: Any) -> dict[str, T]:
    """What `function` returns on each living node, by the node's name. It needs no free CPU there."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(num_cpus=0, max_retries=0)(function)
    asked = {}
    for node in ray.nodes():
        if node["Alive"]:
            place = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            asked[f"{node['NodeManagerHostname']}/{node['NodeID'][:6]}"] = task.options(
                scheduling_strategy=place
            ).remote(*arguments)
    return {name: ray.get(reference) for name, reference in asked.items()}


def require_package(ray: Any) -> None:
    """Raise UserError unless every node imports this package in this version, naming one that does not."""

    def version() -> str:
        try:
            import rql_deploy
        except ModuleNotFoundError:
            return ""
        return rql_deploy.__version__

    # Pickled by value: a function sent by name could not run where the package is missing.
    version.__module__ = "__main__"
    for node, found in on_every_node(ray, version).items():
        if found != rql_deploy.__version__:
            what = f"rql-deploy {found}" if found else "no rql-deploy"
            raise UserError(
                f"node {node} of the Ray cluster has {what}: install {rql_deploy.__version__} on every node"
            )


def _call(variables: Mapping[str, str], function: Callable[..., T], arguments: tuple[Any, ...]) -> T:
    for name, value in variables.items():
        os.environ.setdefault(name, value)
    return function(*arguments)


def require_seen(ray: Any, path: Path) -> None:
    """Raise UserError unless every node sees this file or folder, naming one that does not."""
    for node, seen in on_every_node(ray, os.path.exists, str(path)).items():
        if not seen:
            raise UserError(
                f"node {node} of the Ray cluster does not see {path}: "
                "put it into a folder that all nodes share"
            )


class RayPool(Executor):
    """Calls run as Ray tasks; a call whose worker or node dies is made again elsewhere.

    Ends with `shutdown`.
    """

    def __init__(self, address: str, *, cpus: int = 1):
        """Connect; every call takes `cpus` CPUs.

        Raises UserError when there is no such cluster, or no node with so many.
        """
        self.ray = connect(address)
        require_package(self.ray)
        largest = max(node["Resources"].get("CPU", 0.0) for node in self.ray.nodes() if node["Alive"])
        if cpus > largest:
            # Ray itself would wait for such a node forever.
            raise UserError(
                f"the largest node of the Ray cluster has {largest:g} CPUs, a job needs {cpus}: "
                "use fewer threads, or add a larger node"
            )
        self.cpus = cpus
        self._variables = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        self._task = self.ray.remote(num_cpus=cpus, max_retries=CRASH_RETRIES)(_call)
        self._references: dict[Future[Any], Any] = {}

    @property
    def workers(self) -> int:
        """Calls that run at once, now: nodes join and leave."""
        return max(1, int(self.ray.cluster_resources().get("CPU", 1)) // self.cpus)

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """As the standard library's pools, errors too; arguments and results are pickled."""
        if kwargs:
            raise TypeError("positional arguments only")
        future: Future[T] = Future()
        reference = self._task.remote(self._variables, fn, args)
        self._references[future] = reference
        reference.future().add_done_callback(lambda done: self._pass_on(done, future))
        return future

    def _pass_on(self, done: Future[T], future: Future[T]) -> None:
        self._references.pop(future, None)
        if not future.set_running_or_notify_cancel():
            return
        error = done.exception()
        if error is None:
            future.set_result(done.result())
        elif isinstance(error, self.ray.exceptions.RayTaskError):
            future.set_exception(error.cause)
        else:
            future.set_exception(BrokenProcessPool(f"Ray gave up ({type(error).__name__})"))

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Leave the cluster; calls under way are interrupted as by Ctrl-C, and waited for."""
        left = list(self._references.values())
        for reference in left:
            with contextlib.suppress(ValueError):
                self.ray.cancel(reference)
        if left and wait:
            self.ray.wait(left, num_returns=len(left), timeout=SAVING_SECONDS)
        self.ray.shutdown()
