"""`rql-deploy serve`."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("serve")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--bind", default="tcp://127.0.0.1:5555", show_default=True, help="Endpoint to listen on; port * picks a free one.")
@click.option("--insecure", is_flag=True, help="Listen beyond this machine without encryption or keys.")
def command(bundle: Path, bind: str, insecure: bool) -> None:
    """Serve BUNDLE's actions over ZeroMQ (ROUTER) until Ctrl-C or SIGTERM. Needs onnxruntime; torch is not loaded."""
    from rql_deploy.bundle import Bundle
    from rql_deploy.runtime.binding import check_bind
    from rql_deploy.runtime.model import Model
    from rql_deploy.runtime.server import PolicyServer, stop_on_signals

    check_bind(bind, insecure)
    model = Model(Bundle.open(bundle))
    with PolicyServer([model], bind, insecure=insecure) as server, stop_on_signals(server):
        model.warm_up()
        click.echo(f"ready: {model.contract.plant.task}, contract {model.contract.contract_id[:12]}, on {server.endpoint}")
        click.echo(f"  rql-deploy run {model.contract.plant.task} --connect {server.endpoint}")
        server.run()
        click.echo(f"stopped after {server.requests} requests, {server.errors} refused")
