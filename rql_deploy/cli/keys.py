"""`rql-deploy keys`."""

from __future__ import annotations

from pathlib import Path

import click

from .options import echo_json, show_next

_folder = click.option(
    "--keys",
    "folder",
    default="keys",
    show_default=True,
    type=click.Path(path_type=Path),
    help="Folder of the server's keys.",
)


@click.group("keys")
def command() -> None:
    """Make and revoke CURVE keys for `serve --keys`, one per robot, by name."""


@command.command("new")
@click.argument("name")
@_folder
def new(name: str, folder: Path) -> None:
    """Make a key for the client NAME, and allow it. The first call also makes the server's own keys."""
    from rql_deploy.runtime.wire.keys import new_client

    secret = new_client(folder, name)
    click.echo(
        f"{secret} is the key of {name}: move it to that robot, over a channel you trust, and keep no copy"
    )
    show_next(
        ("rql-deploy", "serve", "BUNDLE", "--bind", "tcp://0.0.0.0:5555", "--keys", str(folder)),
        ("rql-deploy", "run", "TASK", "--connect", "tcp://SERVER:5555", "--keys", secret.name),
    )


@command.command("list")
@_folder
@click.option("--json", "as_json", is_flag=True, help="Print names and public keys as JSON.")
def show(folder: Path, as_json: bool) -> None:
    """List the allowed clients."""
    from rql_deploy.runtime.wire.keys import list_clients

    clients = {name: key.decode() for name, key in list_clients(folder).items()}
    if as_json:
        echo_json(clients)
        return
    for name, key in clients.items():
        click.echo(f"{name:24} {key}")
    if not clients:
        click.echo(f"{folder} allows no client")


@command.command("revoke")
@click.argument("name")
@_folder
def remove(name: str, folder: Path) -> None:
    """Revoke the key of client NAME; a running server stops answering it within a second."""
    from rql_deploy.runtime.wire.keys import revoke

    revoke(folder, name)
    click.echo(f"{name} is not allowed any more")
