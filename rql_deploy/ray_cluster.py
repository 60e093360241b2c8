"""A Ray cluster as a place to run things: connecting to one, and a pool with the interface of `concurrent.futures`.

Ray's own ports know no passwords and its messages are pickles: whoever reaches the cluster runs code on it. Connect only to clusters in a
network you trust; nothing of it is exposed by this package's servers.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future
from typing import Any, TypeVar

import rql_deploy
from rql_deploy.errors import UserError

T = TypeVar("T")
CRASH_RETRIES = 3
"""Further attempts of Ray's own when a worker process or a node dies."""
PASSED_ON = ("MUJOCO_GL", "PYOPENGL_PLATFORM")
"""Variables that workers get from here unless they have their own."""


def connect(address: str) -> Any:
    """The `ray` module, connected to the cluster at `auto`, HOST:PORT or ray://HOST:PORT.

    Raises UserError when there is none, or when a node lacks this package in this version.
    """
    # The choice belongs to whoever runs the cluster; a driver adds nothing to it.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    if not ray.is_initialized():
        try:
            _require_listener(address)
            ray.init(address=address, logging_level="warning", log_to_driver=False)
        except (OSError, ValueError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0].rstrip(".")
            raise UserError(f"no Ray cluster answers at '{address}' ({reason}): start one with `ray start --head`, or leave it out") from error
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
            asked[f"{node['NodeManagerHostname']}/{node['NodeID'][:6]}"] = task.options(scheduling_strategy=place).remote(*arguments)
    return {name: ray.get(reference) for name, reference in asked.items()}


def require_package(ray: Any) -> None:
    """Raise UserError unless every node imports this package in this version, naming one that does not."""

    def version() -> str:
        try:
            import rql_deploy
        except ModuleNotFoundError:
            return ""
        return rql_deploy.__version__

    # By value: a function sent by its name would need the package to say that it is missing.
    version.__module__ = "__main__"
    for node, found in on_every_node(ray, version).items():
        if found != rql_deploy.__version__:
            what = f"rql-deploy {found}" if found else "no rql-deploy"
            raise UserError(f"node {node} of the Ray cluster has {what}: install {rql_deploy.__version__} on every node")


def _call(variables: Mapping[str, str], function: Callable[..., T], arguments: tuple[Any, ...]) -> T:
    for name, value in variables.items():
        os.environ.setdefault(name, value)
    return function(*arguments)


class RayPool(Executor):
    """Calls run as Ray tasks of one CPU; a call whose worker or node dies is made again elsewhere. Ends with `shutdown`."""

    def __init__(self, address: str):
        """Raises UserError when there is no such cluster."""
        self._ray = connect(address)
        require_package(self._ray)
        self._variables = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        self._task = self._ray.remote(num_cpus=1, max_retries=CRASH_RETRIES)(_call)
        self._references: dict[Future[Any], Any] = {}

    @property
    def workers(self) -> int:
        """CPUs of the cluster."""
        return max(1, int(self._ray.cluster_resources().get("CPU", 1)))

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """As the standard library's pools; arguments and results are pickled."""
        if kwargs:
            raise TypeError("positional arguments only")
        reference = self._task.remote(self._variables, fn, args)
        future: Future[T] = reference.future()
        self._references[future] = reference
        future.add_done_callback(lambda done: self._references.pop(done, None))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Leave the cluster; calls that are not finished are given up."""
        for reference in list(self._references.values()):
            self._ray.cancel(reference)
        self._ray.shutdown()
