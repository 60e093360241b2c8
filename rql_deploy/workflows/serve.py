"""Serve bundles: in this process until it is told to stop, in several processes, or in a thread beside
your program.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rql_deploy.runtime.server.app import ServerConfig
    from rql_deploy.runtime.server.status import StatusQuery


@dataclass(frozen=True)
class ServerReady:
    """A server that answers."""

    task: str
    """Of the bundle that requests without a bundle's name get."""
    contract_id: str
    endpoint: str
    notes: tuple[str, ...]
    """What else listens, one line each."""
    metrics: str | None = None
    """URL that /metrics, /healthz and /readyz are under, where asked for."""
    openpi: str | None = None
    """URL for openpi's clients, where asked for."""


@dataclass(frozen=True)
class ServeResult:
    """What a server did until it stopped."""

    requests: int
    errors: int
    """Requests that were rejected."""
    restarts: int = 0
    """Worker processes that died and were started again."""


def serve(
    config: ServerConfig,
    *,
    workers: int = 1,
    metrics: tuple[str, int] | None = None,
    on_ready: Callable[[ServerReady], None] | None = None,
    ready_fd: int | None = None,
) -> ServeResult:
    """Serve until SIGINT or SIGTERM, which let the requests under way be answered; SIGHUP reads the bundles
    again.

    Args:
        workers: processes that share the endpoint.
        metrics: host and port of Prometheus' /metrics, /healthz and /readyz; port 0 picks a free one.
        on_ready: called once, when the server answers.
        ready_fd: descriptor that gets a `ServerReady` as a line of JSON then, and is closed.

    systemd is told, too, where it started this process (`Type=notify`, `WatchdogSec=`).

    Raises UserError for a bundle, key, address or descriptor that will not do.
    """
    from rql_deploy.runtime.server.readiness import announce, check_descriptor

    check_descriptor(ready_fd)

    def tell(ready: ServerReady) -> None:
        if on_ready is not None:
            on_ready(ready)
        announce(ready_fd, asdict(ready))

    if workers == 1:
        return _serve_alone(config, metrics, tell)
    return _serve_together(config, workers, metrics, tell)


@contextlib.contextmanager
def served(bundle: Path, *, bind: str = "tcp://127.0.0.1:*", variant: str = "fp32") -> Iterator[str]:
    """Serve a bundle in a thread of this process while the block runs; yields the endpoint.

    For notebooks and tests; a robot's server belongs in a process of its own.
    """
    from rql_deploy.runtime.server.app import ServerConfig, serving

    config = ServerConfig(bundles=((None, Path(bundle)),), bind=bind, variant=variant)
    with serving(config, handle_signals=False) as running:
        thread = threading.Thread(target=running.server.run, name="policy server", daemon=True)
        thread.start()
        try:
            yield running.server.endpoint
        finally:
            running.server.stop()
            thread.join()


def _serve_alone(
    config: ServerConfig,
    metrics: tuple[str, int] | None,
    on_ready: Callable[[ServerReady], None],
) -> ServeResult:
    from rql_deploy.runtime.server.app import serving
    from rql_deploy.runtime.server.status import LocalStatus

    with contextlib.ExitStack() as stack:
        running = stack.enter_context(serving(config))
        server, contract = running.server, running.models[0].contract
        url = None
        if metrics is not None:
            status = stack.enter_context(contextlib.closing(LocalStatus(running.channel)))
            url = _open_metrics([status], metrics, stack)
            running.notes.insert(0, _note(url))
        own = stack.enter_context(contextlib.closing(LocalStatus(running.channel)))
        stack.enter_context(_watched(contract.plant.task, server.endpoint, [own]))
        on_ready(
            ServerReady(
                contract.plant.task,
                contract.contract_id,
                server.endpoint,
                tuple(running.notes),
                url,
                running.openpi,
            )
        )
        server.run()
        return ServeResult(server.requests, server.errors)


def _serve_together(
    config: ServerConfig,
    workers: int,
    metrics: tuple[str, int] | None,
    on_ready: Callable[[ServerReady], None],
) -> ServeResult:
    from rql_deploy.runtime.server.logs import start_logging
    from rql_deploy.runtime.server.supervisor import Supervisor

    with contextlib.ExitStack() as stack:
        stack.callback(start_logging().stop)
        supervisor = Supervisor(config, workers)
        stack.enter_context(supervisor.signals())
        stack.enter_context(supervisor)
        notes = [f"{workers} workers share this endpoint", *supervisor.notes]
        url = None
        if metrics is not None:
            url = _open_metrics(supervisor.status_queries(), metrics, stack)
            notes.insert(0, _note(url))
        stack.enter_context(_watched(supervisor.task, supervisor.endpoint, supervisor.status_queries()))
        on_ready(
            ServerReady(
                supervisor.task,
                supervisor.contract_id,
                supervisor.endpoint,
                tuple(notes),
                url,
                supervisor.openpi,
            )
        )
        supervisor.run()
        return ServeResult(supervisor.requests, supervisor.errors, supervisor.restarts)


def _open_metrics(
    queries: Sequence[StatusQuery], address: tuple[str, int], stack: contextlib.ExitStack
) -> str:
    from rql_deploy.runtime.server.http import MetricsServer

    server = MetricsServer(queries, *address)
    stack.callback(server.close)
    return server.address


def _note(url: str) -> str:
    return f"metrics on {url}/metrics"


def _watched(
    task: str, endpoint: str, queries: Sequence[StatusQuery]
) -> contextlib.AbstractContextManager[None]:
    """Within the block systemd knows that the server is ready, and that each of its engines answers."""
    from rql_deploy.runtime.server.readiness import ServiceManager

    return ServiceManager().watching(
        f"serving {task} on {endpoint}", lambda: all([query("ping") is not None for query in queries])
    )
