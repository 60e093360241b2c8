"""`rql-deploy serve`."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("serve")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--bind", default="tcp://127.0.0.1:5555", show_default=True, help="Endpoint to listen on; port * picks a free one.")
@click.option("--variant", default="fp32", show_default=True, help="Which of the bundle's precisions to serve (`inspect` lists them).")
@click.option("--insecure", is_flag=True, help="Listen beyond this machine without encryption or keys.")
def command(bundle: Path, bind: str, variant: str, insecure: bool) -> None:
    """Serve BUNDLE's actions over ZeroMQ (ROUTER) until Ctrl-C or SIGTERM. Needs onnxruntime; torch is not loaded."""
    from rql_deploy.bundle import Bundle
    from rql_deploy.runtime.onnx_policy import OnnxPolicy
    from rql_deploy.runtime.server import PolicyServer, check_bind, stop_on_signals

    check_bind(bind, insecure)
    policy = OnnxPolicy(Bundle.open(bundle, variant))
    with PolicyServer(policy, bind, insecure=insecure) as server, stop_on_signals(server):
        policy.warm_up()
        click.echo(f"ready: {policy.contract.plant.task}, contract {policy.contract.contract_id[:12]}, on {server.endpoint}")
        click.echo(f"  rql-deploy run {policy.contract.plant.task} --connect {server.endpoint}")
        server.run()
        click.echo(f"stopped after {server.requests} requests, {server.errors} refused")
