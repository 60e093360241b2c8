"""`rql-deploy rollback`."""

from __future__ import annotations

from pathlib import Path

import click

from .options import show_next


@click.command("rollback")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--to", type=click.IntRange(0), help="A generation's number.  [default: the one before]")
@click.option("--connect", metavar="ENDPOINT", help="The server, to see that it takes the earlier bundle.")
@click.option("--keys", type=click.Path(path_type=Path), help="Key file for a server that asks for one.")
def command(bundle: Path, to: int | None, connect: str | None, keys: Path | None) -> None:
    """Serve the generation that was served before the present one; works while `improve` goes on.

    BUNDLE is what `improve --serve-as` named. What is rolled back is kept, and never served again by itself.
    A server with --watch takes the earlier bundle within seconds, others at SIGHUP; no request is lost.
    """
    from rql_deploy.workflows.improvement.loop import rollback
    from rql_deploy.workflows.improvement.swap import confirm_swap

    before, now = rollback(bundle, to)
    click.echo(f"{bundle} is generation {now} again, instead of {before}")
    if connect is not None:
        from rql_deploy.bundle.bundle import Bundle

        click.echo(confirm_swap(connect, Bundle.open(bundle).contract.contract_id, keys))
    show_next(
        ("rql-deploy", "inspect", str(bundle)), ("rql-deploy", "rollback", str(bundle), "--to", str(before))
    )
