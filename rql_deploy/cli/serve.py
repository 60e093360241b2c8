"""`rql-deploy serve`."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rql_deploy.runtime.server.app import ServerConfig
    from rql_deploy.runtime.server.http import Ask


@click.command("serve")
@click.argument("bundles", nargs=-1, required=True, metavar="[NAME=]BUNDLE...")
@click.option(
    "--bind",
    default="tcp://127.0.0.1:5555",
    show_default=True,
    help="Endpoint to listen on; port * picks a free one.",
)
@click.option(
    "--variant",
    default="fp32",
    show_default=True,
    help="Which of the bundles' precisions to serve (`inspect` lists them).",
)
@click.option(
    "--keys",
    type=click.Path(path_type=Path),
    help="Folder of `rql-deploy keys`: encrypt, and answer only the clients it allows.",
)
@click.option("--insecure", is_flag=True, help="Listen beyond this machine without encryption or keys.")
@click.option(
    "--metrics", help="[HOST:]PORT for Prometheus /metrics, /healthz and /readyz; 0 picks a free port."
)
@click.option(
    "--openpi", help="[HOST:]PORT for robots with the openpi-client package (WebSocket); 0 picks a free port."
)
@click.option(
    "--record", type=click.Path(path_type=Path), help="Folder for append-only recordings of every decision."
)
@click.option(
    "--max-rate", default=10_000.0, show_default=True, help="Requests per second that one client may send."
)
@click.option(
    "--provider",
    default="cpu",
    show_default=True,
    help="onnxruntime provider: cpu, cuda, tensorrt or openvino.",
)
@click.option(
    "--workers",
    default=1,
    show_default=True,
    type=click.IntRange(1, 256),
    help="Server processes behind the one endpoint.",
)
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
    workers: int,
    busy_poll: bool,
) -> None:
    """Serve bundles' actions over ZeroMQ (ROUTER) until Ctrl-C or SIGTERM. Needs onnxruntime; torch is not loaded.

    Several bundles are told apart by name (NAME=PATH; by default the task's): `RemotePolicy.connect(..., bundle=NAME)`.
    SIGHUP reads the bundles again: a changed one with the same observation fields, actions, rate and h takes over between two
    refinement steps, without a request lost. SIGTERM answers what is under way first.

    With --workers N, N processes share the endpoint: a client's connection belongs to one of them, and a process that dies is started
    again while its clients go to the others.
    """
    from rql_deploy.runtime.server.app import ServerConfig
    from rql_deploy.runtime.server.listen import check_bind, check_listener

    check_bind(bind, insecure, keys is not None)
    listeners = {
        name: check_listener(f"--{name}", address, insecure)
        for name, address in (("metrics", metrics), ("openpi", openpi))
        if address
    }
    config = ServerConfig(
        bundles=tuple(map(_named, bundles)),
        bind=bind,
        variant=variant,
        provider=provider,
        keys=keys,
        insecure=insecure,
        openpi=listeners.get("openpi"),
        record=record,
        max_rate=max_rate,
        busy_poll=busy_poll,
    )
    (_serve_alone if workers == 1 else _serve_together)(config, workers, listeners.get("metrics"))


def _serve_alone(config: ServerConfig, _workers: int, metrics: tuple[str, int] | None) -> None:
    from rql_deploy.runtime.server.app import serving

    with contextlib.ExitStack() as stack:
        found = stack.enter_context(serving(config))
        server, contract = found.server, found.models[0].contract
        if metrics is not None:
            from rql_deploy.runtime.server.http import Inquiry

            inquiry = Inquiry(found.channel)
            stack.callback(inquiry.close)
            found.notes.insert(0, _open_metrics([inquiry], metrics, stack))
        _announce(contract.plant.task, contract.contract_id, server.endpoint, found.notes)
        server.run()
        click.echo(f"stopped after {server.requests} requests, {server.errors} refused")


def _serve_together(config: ServerConfig, workers: int, metrics: tuple[str, int] | None) -> None:
    from rql_deploy.runtime.server.logs import start_logging
    from rql_deploy.runtime.server.supervisor import Workers

    with contextlib.ExitStack() as stack:
        stack.callback(start_logging().stop)
        fleet = Workers(config, workers)
        stack.enter_context(fleet.signals())
        stack.enter_context(fleet)
        notes = [f"{workers} workers share this endpoint", *fleet.notes]
        if metrics is not None:
            notes.insert(0, _open_metrics(fleet.askers(), metrics, stack))
        _announce(fleet.task, fleet.contract_id, fleet.endpoint, notes)
        fleet.run()
        click.echo(
            f"stopped after {fleet.requests} requests, {fleet.errors} refused; {fleet.restarts} workers were started again"
        )


def _announce(task: str, contract_id: str, endpoint: str, notes: list[str]) -> None:
    click.echo(f"ready: {task}, contract {contract_id[:12]}, on {endpoint}")
    for note in notes:
        click.echo(f"  {note}")
    click.echo(f"  rql-deploy run {task} --connect {endpoint}")


def _named(entry: str) -> tuple[str | None, Path]:
    name, separator, path = entry.partition("=")
    return (name, Path(path)) if separator and name and "/" not in name else (None, Path(entry))


def _open_metrics(servers: Sequence[Ask], address: tuple[str, int], stack: contextlib.ExitStack) -> str:
    from rql_deploy.runtime.server.http import Operations

    operations = Operations(servers, *address)
    stack.callback(operations.close)
    return f"metrics on {operations.address}/metrics"
