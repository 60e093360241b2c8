"""`rql-deploy serve`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from .options import FiniteRange

if TYPE_CHECKING:
    from rql_deploy.workflows.serve import ServerReady


@click.command("serve")
@click.argument("bundles", nargs=-1, required=True, metavar="[NAME=]BUNDLE...")
@click.option(
    "--bind",
    default="tcp://127.0.0.1:5555",
    show_default=True,
    help="Endpoint to listen on, IPv6 in brackets; port * picks a free one.",
)
@click.option(
    "--variant",
    default="fp32",
    show_default=True,
    help="Which precision of the bundles to serve; `inspect` lists them.",
)
@click.option(
    "--keys",
    type=click.Path(path_type=Path),
    help="Key folder made by `rql-deploy keys`: encrypt, and answer only the clients it allows.",
)
@click.option(
    "--insecure", is_flag=True, help="Allow listening beyond this machine without encryption or keys."
)
@click.option(
    "--metrics", help="[HOST:]PORT for Prometheus /metrics, /healthz and /readyz; 0 picks a free port."
)
@click.option(
    "--openpi", help="[HOST:]PORT for robots with the openpi-client package (WebSocket); 0 picks a free port."
)
@click.option(
    "--openpi-keepalive",
    default="20",
    show_default=True,
    help="INTERVAL[:TIMEOUT] in seconds: how often openpi clients are pinged, and how long they have to "
    "answer. 0 never pings.",
)
@click.option(
    "--record", type=click.Path(path_type=Path), help="Folder to record every decision in, append-only."
)
@click.option(
    "--max-rate",
    default=50_000.0,
    show_default=True,
    help="Rows (requests x candidates) per second from one key, or without keys from one address.",
)
@click.option(
    "--max-buffered",
    default=512,
    show_default=True,
    type=click.IntRange(64),
    metavar="MIB",
    help="Memory that messages may take; beyond it the connections that sent most are ended.",
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
@click.option(
    "--watch",
    type=FiniteRange(0.1, 3600),
    metavar="SECONDS",
    help="Look every so many seconds whether a bundle has changed, and exchange it as at SIGHUP.",
)
@click.option("--busy-poll", is_flag=True, help="Never sleep: lower latency, and one core always busy.")
@click.option(
    "--ready-fd",
    type=click.IntRange(3),
    metavar="N",
    help="Inherited file descriptor that gets one line of JSON when the server is ready: task, endpoint, "
    "contract_id, metrics, openpi. It is closed then.",
)
@click.option(
    "--accept-assumed",
    is_flag=True,
    help="With --openpi: serve a policy whose data did not say what its actions mean (docs/data.md).",
)
def command(
    bundles: tuple[str, ...],
    bind: str,
    variant: str,
    keys: Path | None,
    insecure: bool,
    metrics: str | None,
    openpi: str | None,
    openpi_keepalive: str,
    record: Path | None,
    max_rate: float,
    max_buffered: int,
    provider: str,
    workers: int,
    watch: float | None,
    busy_poll: bool,
    ready_fd: int | None,
    accept_assumed: bool,
) -> None:
    """Serve bundles' actions over ZeroMQ until Ctrl-C or SIGTERM. Needs onnxruntime; torch is not loaded.

    Several bundles are told apart by name (NAME=PATH; by default the task's): `RemotePolicy.connect(...,
    bundle=NAME)`. SIGHUP reads the bundles again: a changed bundle with the same observation fields, actions,
    rate and h takes over between two refinement steps, and no request is lost. After SIGTERM the requests
    under way are answered first; a second SIGTERM or Ctrl-C ends the server at once.

    With --workers N, N processes share the endpoint. Each connection belongs to one of them; a process that
    dies is started again, and its clients reconnect to the others.

    systemd is told when the server is ready and, with WatchdogSec=, that its engine answers.
    """
    from rql_deploy.runtime.server.app import ServerConfig
    from rql_deploy.runtime.server.listen import check_bind, check_listener
    from rql_deploy.runtime.server.openpi import Keepalive
    from rql_deploy.workflows.serve import serve

    check_bind(bind, insecure, keys is not None)
    listeners = {
        name: check_listener(f"--{name}", address, insecure)
        for name, address in (("metrics", metrics), ("openpi", openpi))
        if address is not None
    }
    config = ServerConfig(
        bundles=tuple(map(_named, bundles)),
        bind=bind,
        variant=variant,
        provider=provider,
        keys=keys,
        insecure=insecure,
        openpi=listeners.get("openpi"),
        openpi_keepalive=Keepalive.parse(openpi_keepalive),
        record=record,
        max_rate=max_rate,
        max_buffered=max_buffered,
        watch=watch,
        busy_poll=busy_poll,
        accept_assumed=accept_assumed,
    )
    done = serve(
        config,
        workers=workers,
        metrics=listeners.get("metrics"),
        on_ready=_announce,
        ready_fd=ready_fd,
    )
    restarts = f"; {done.restarts} workers were started again" if workers > 1 else ""
    click.echo(f"stopped after {done.requests} requests, {done.errors} refused{restarts}")


def _announce(ready: ServerReady) -> None:
    click.echo(f"ready: {ready.task}, contract {ready.contract_id[:12]}, on {ready.endpoint}")
    for note in ready.notes:
        click.echo(f"  {note}")
    click.echo(f"  rql-deploy run {ready.task} --connect {ready.endpoint}")


def _named(entry: str) -> tuple[str | None, Path]:
    name, separator, path = entry.partition("=")
    return (name, Path(path)) if separator and name and "/" not in name else (None, Path(entry))
