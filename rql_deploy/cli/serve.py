"""`rql-deploy serve`."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

import click

SWITCH_INTERVAL = 2e-4
"""Seconds after which another Python thread must let the engine's go on; the default of 5 ms is many refinement steps."""


@click.command("serve")
@click.argument("bundles", nargs=-1, required=True, metavar="[NAME=]BUNDLE...")
@click.option("--bind", default="tcp://127.0.0.1:5555", show_default=True, help="Endpoint to listen on; port * picks a free one.")
@click.option("--variant", default="fp32", show_default=True, help="Which of the bundles' precisions to serve (`inspect` lists them).")
@click.option(
    "--keys", type=click.Path(path_type=Path), help="Folder of `rql-deploy keys`: encrypt, and answer only the clients it allows."
)
@click.option("--insecure", is_flag=True, help="Listen beyond this machine without encryption or keys.")
@click.option("--metrics", help="[HOST:]PORT for Prometheus /metrics, /healthz and /readyz; 0 picks a free port.")
@click.option("--openpi", help="[HOST:]PORT for robots with the openpi-client package (WebSocket); 0 picks a free port.")
@click.option("--record", type=click.Path(path_type=Path), help="Folder for append-only recordings of every decision.")
@click.option("--max-rate", default=10_000.0, show_default=True, help="Requests per second that one client may send.")
@click.option("--provider", default="cpu", show_default=True, help="onnxruntime provider: cpu, cuda, tensorrt or openvino.")
@click.option("--busy-poll", is_flag=True, help="Never sleep: lower latency for a whole core.")
def command(
    bundles: tuple[str, ...],
    bind: str,
    variant: str,
    keys: Path | None,
    insecure: bool,
    metrics: str | None,
    openpi: str | None,
    record: Path | None,
    max_rate: float,
    provider: str,
    busy_poll: bool,
) -> None:
    """Serve bundles' actions over ZeroMQ (ROUTER) until Ctrl-C or SIGTERM. Needs onnxruntime; torch is not loaded.

    Several bundles are told apart by name (NAME=PATH; by default the task's): `RemotePolicy.connect(..., bundle=NAME)`.
    SIGHUP reads the bundles again: a changed one with the same observation fields, actions, rate and h takes over between two
    refinement steps, without a request lost. SIGTERM answers what is under way first.
    """
    from rql_deploy.bundle import Bundle
    from rql_deploy.runtime.binding import check_bind, check_listener
    from rql_deploy.runtime.client import Channel
    from rql_deploy.runtime.logs import start_logging
    from rql_deploy.runtime.model import Model
    from rql_deploy.runtime.recorder import Recorder
    from rql_deploy.runtime.reload import Reloader
    from rql_deploy.runtime.security import ServerKeys
    from rql_deploy.runtime.server import INTERNAL, PolicyServer, stop_on_signals

    check_bind(bind, insecure, keys is not None)
    listeners = {
        name: check_listener(f"--{name}", address, insecure) for name, address in (("metrics", metrics), ("openpi", openpi)) if address
    }
    server_keys = ServerKeys(keys) if keys is not None else None
    paths = [_named(entry) for entry in bundles]
    models = [Model(Bundle.open(path, variant), name, provider=provider) for name, path in paths]
    sys.setswitchinterval(SWITCH_INTERVAL)
    with contextlib.ExitStack() as stack:
        log = start_logging()
        stack.callback(log.stop)
        recorder = Recorder(record) if record is not None else None
        if recorder is not None:
            stack.callback(recorder.close)
        server = stack.enter_context(
            PolicyServer(
                models,
                bind,
                insecure=insecure,
                keys=server_keys,
                max_rate=max_rate,
                recorder=recorder,
                busy_poll=busy_poll,
            )
        )

        def channel() -> Channel:
            return Channel(INTERNAL, context=server.context)

        reloader = Reloader([path for _, path in paths], models, server.offer, variant=variant, provider=provider)
        stack.callback(reloader.close)
        server.on_swap = _log_swap
        notes = [_open(name, host, port, channel, stack) for name, (host, port) in listeners.items()]
        stack.enter_context(stop_on_signals(server, reloader.request))
        for model in models:
            model.warm_up()
        first = models[0]
        click.echo(f"ready: {first.contract.plant.task}, contract {first.contract.contract_id[:12]}, on {server.endpoint}")
        for note in notes:
            click.echo(f"  {note}")
        click.echo(f"  rql-deploy run {first.contract.plant.task} --connect {server.endpoint}")
        server.run()
        click.echo(f"stopped after {server.requests} requests, {server.errors} refused")


def _named(entry: str) -> tuple[str | None, Path]:
    name, separator, path = entry.partition("=")
    return (name, Path(path)) if separator and name and "/" not in name else (None, Path(entry))


def _open(name: str, host: str, port: int, channel: Any, stack: contextlib.ExitStack) -> str:
    if name == "metrics":
        from rql_deploy.runtime.operations import Operations

        operations = Operations(channel, host, port)
        stack.callback(operations.close)
        return f"metrics on {operations.address}/metrics"
    from rql_deploy.runtime.openpi import OpenpiEndpoint

    endpoint = OpenpiEndpoint(channel, host, port)
    stack.callback(endpoint.close)
    return f"openpi clients on ws://{host}:{endpoint.port}"


def _log_swap(name: str, contract_id: str) -> None:
    import logging

    logging.getLogger("rql_deploy.server").info("bundle swapped", extra={"data": {"bundle": name, "contract_id": contract_id}})
