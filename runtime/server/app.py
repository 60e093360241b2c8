"""Assembles a server process: models, server, recorder, openpi endpoint, reloading of bundles, signals."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from rql_deploy.assumptions import motion_remark, require_stated_motion
from rql_deploy.bundle.bundle import Bundle
from rql_deploy.contract import Contract
from rql_deploy.errors import ContractError
from rql_deploy.runtime.client.channel import Channel
from rql_deploy.runtime.engine.model import Model
from rql_deploy.runtime.recording.recorder import Recorder
from rql_deploy.runtime.wire.addresses import bracketed

from .auth import ServerKeys
from .connections import MAX_BUFFERED, raise_file_limit
from .logs import start_logging
from .openpi import Keepalive, OpenpiEndpoint
from .quota import MAX_RATE, on_behalf_of
from .registry import Reloader, incompatibilities
from .server import INTERNAL, PolicyServer
from .signals import stop_on_signals

SWITCH_INTERVAL = 2e-4
"""Seconds after which a Python thread yields to the engine's; the default of 5 ms is many refinement
steps."""
_log = logging.getLogger("rql_deploy.server")


@dataclass(frozen=True)
class ServerConfig:
    """Options of `rql-deploy serve`."""

    bundles: tuple[tuple[str | None, Path], ...]
    """Name (None: the task's) and path of each bundle."""
    bind: str
    variant: str = "fp32"
    provider: str = "cpu"
    keys: Path | None = None
    insecure: bool = False
    openpi: tuple[str, int] | None = None
    """Host and port of the openpi endpoint."""
    openpi_keepalive: Keepalive = Keepalive()  # noqa: RUF009
    record: Path | None = None
    max_rate: float = MAX_RATE
    """Rows (requests x candidates) per second and key or address."""
    max_buffered: int = MAX_BUFFERED
    """MiB of memory that messages may take."""
    busy_poll: bool = False
    watch: float | None = None
    """Seconds between two looks whether a bundle has changed; None reads them at SIGHUP only."""
    accept_assumed: bool = False
    """Serve openpi clients a policy whose data did not say what its actions mean."""


class RunningServer:
    """A warmed-up server; `server.run()` answers requests. `notes` are lines for the user."""

    def __init__(self, server: PolicyServer, models: list[Model], notes: list[str]):
        self.server, self.models, self.notes = server, models, notes
        self.openpi: str | None = None
        """URL of the openpi endpoint, where there is one."""

    def channel(self, address: str | None = None) -> Channel:
        """A new connection to the server, within this process; quotas count it for a client's `address`."""
        identity = None if address is None else on_behalf_of(address)
        return Channel(INTERNAL, context=self.server.context, identity=identity)


@contextlib.contextmanager
def serving(
    config: ServerConfig,
    *,
    listener: int | None = None,
    worker: int | None = None,
    known_contracts: Mapping[str, Contract] | None = None,
    on_swap: Callable[[str, Contract], None] | None = None,
    handle_signals: bool = True,
) -> Iterator[RunningServer]:
    """Open, bind and warm up a server. SIGINT and SIGTERM end its `run`, SIGHUP loads the bundles again.

    A second SIGINT or SIGTERM ends the process at once, and 20 s after the first it ends in any case.

    Args:
        listener: descriptor of a listening socket that worker `worker` shares with others; used once warm.
        known_contracts: by bundle, the contract that connected clients know; the bundle must be compatible
        with it.
        on_swap: called with name and contract after a bundle was swapped in.
        handle_signals: False leaves SIGINT, SIGTERM and SIGHUP to the program that the server runs in.

    Raises UserError for an invalid bundle, key folder or address, and ContractError for an incompatible
    bundle.
    """
    with contextlib.ExitStack() as stack:
        running: RunningServer | None = None
        reloader: Reloader | None = None

        def stop() -> None:
            if running is None:
                raise KeyboardInterrupt
            running.server.stop()

        def reload() -> None:
            if reloader is not None:
                reloader.request()

        if handle_signals:
            # Around everything that is closed at the end, so that nothing can hold the end up. A worker's
            # supervisor insists by itself.
            stack.enter_context(stop_on_signals(stop, reload, insist=worker is None))
            raise_file_limit()
        stack.callback(start_logging(worker=worker).stop)
        keys = ServerKeys(config.keys) if config.keys is not None else None
        models = [
            Model(Bundle.open(path, config.variant), name, provider=config.provider)
            for name, path in config.bundles
        ]
        _require_compatible(models, known_contracts or {})
        if config.openpi is not None and not config.accept_assumed:
            # Its clients know no contract: nobody else would tell their robots.
            for model in models:
                require_stated_motion(model.contract, None)
        if listener is not None:
            _warm_up(models)
        sys.setswitchinterval(SWITCH_INTERVAL)
        recorder = Recorder(config.record) if config.record is not None else None
        if recorder is not None:
            stack.callback(recorder.close)
        server = stack.enter_context(
            PolicyServer(
                models,
                config.bind,
                insecure=config.insecure,
                keys=keys,
                max_rate=config.max_rate,
                max_buffered=config.max_buffered,
                recorder=recorder,
                busy_poll=config.busy_poll,
                listener=listener,
            )
        )
        server.worker = worker

        def log_swap(name: str, contract: Contract) -> None:
            _log.info("bundle swapped", extra={"data": {"bundle": name, "contract_id": contract.contract_id}})
            if on_swap is not None:
                on_swap(name, contract)

        server.on_swap = log_swap
        remarks = {model.name: motion_remark(model.contract.plant) for model in models}
        running = RunningServer(
            server, models, [f"{name}: {remark}" for name, remark in remarks.items() if remark]
        )
        reloader = Reloader(
            [path for _, path in config.bundles],
            models,
            server.schedule_swap,
            variant=config.variant,
            provider=config.provider,
            watch=config.watch,
        )
        stack.callback(reloader.close)
        if config.openpi is not None:
            endpoint = OpenpiEndpoint(
                running.channel,
                *config.openpi,
                shared=listener is not None,
                keepalive=config.openpi_keepalive,
            )
            stack.callback(endpoint.close)
            running.openpi = f"ws://{bracketed(config.openpi[0])}:{endpoint.port}"
            running.notes.append(f"openpi clients on {running.openpi}")
        if listener is None:
            _warm_up(models)
        yield running


def _require_compatible(models: list[Model], known_contracts: Mapping[str, Contract]) -> None:
    for model in models:
        known = known_contracts.get(model.name)
        if known is not None and (found := incompatibilities(known, model.contract)):
            raise ContractError(
                f"bundle '{model.name}' has changed on the disk and no longer fits its clients "
                f"({'; '.join(found)})"
            )


def _warm_up(models: list[Model]) -> None:
    for model in models:
        model.warm_up()
