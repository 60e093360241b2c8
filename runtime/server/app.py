"""Assembles a server process: models, server, recorder, openpi endpoint, reloading of bundles, signals."""

from __future__ import annotations

import contextlib
import logging
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from rql_deploy.assumptions import motion_remark, require_stated_motion
from rql_deploy.bundle.bundle import Bundle
from rql_deploy.contract import Contract
from rql_deploy.errors import ContractError
from rql_deploy.runtime.client.channel import Channel
from rql_deploy.runtime.engine.model import Model

from .auth import ServerKeys
from .logs import start_logging
from .openpi import OpenpiEndpoint
from .quota import MAX_RATE
from .recording import Recorder
from .registry import Reloader, incompatibilities
from .server import INTERNAL, PolicyServer

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
    record: Path | None = None
    max_rate: float = MAX_RATE
    busy_poll: bool = False
    accept_assumed: bool = False
    """Serve openpi clients a policy whose data did not say what its actions mean."""


class RunningServer:
    """A warmed-up server; `server.run()` answers requests. `notes` are lines for the user."""

    def __init__(self, server: PolicyServer, models: list[Model], notes: list[str]):
        self.server, self.models, self.notes = server, models, notes

    def channel(self) -> Channel:
        """A new connection to the server, for one thread of this process."""
        return Channel(INTERNAL, context=self.server.context)


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

    Args:
        listener: descriptor of a listening socket that worker `worker` shares with others; used once warm.
        known_contracts: by bundle, the contract that connected clients know; the bundle must be compatible
        with it.
        on_swap: called with name and contract after a bundle was swapped in.
        handle_signals: False leaves SIGINT, SIGTERM and SIGHUP to the program that the server runs in.

    Raises UserError for an invalid bundle, key folder or address, and ContractError for an incompatible
    bundle.
    """
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
    with contextlib.ExitStack() as stack:
        stack.callback(start_logging(worker=worker).stop)
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
        )
        stack.callback(reloader.close)
        if config.openpi is not None:
            endpoint = OpenpiEndpoint(running.channel, *config.openpi, shared=listener is not None)
            stack.callback(endpoint.close)
            running.notes.append(f"openpi clients on ws://{config.openpi[0]}:{endpoint.port}")
        if handle_signals:
            stack.enter_context(stop_on_signals(server, reloader.request))
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


@contextlib.contextmanager
def stop_on_signals(server: PolicyServer, on_hangup: Callable[[], None] | None = None) -> Iterator[None]:
    """Within the block, SIGINT and SIGTERM stop the server gracefully and SIGHUP calls `on_hangup`."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        server.stop()

    def hang_up(_number: int, _frame: FrameType | None) -> None:
        if on_hangup is not None:
            on_hangup()

    handlers = {signal.SIGINT: stop, signal.SIGTERM: stop} | (
        {signal.SIGHUP: hang_up} if on_hangup is not None else {}
    )
    previous = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, old in previous.items():
            signal.signal(number, old)
