"""`rql-deploy export`."""

from __future__ import annotations

from pathlib import Path

import click

from .options import echo_json, show_next, statement_options


@click.command("export")
@click.argument("checkpoint", required=False, type=click.Path(path_type=Path))
@click.option("--output", type=click.Path(path_type=Path), help="Bundle folder to write; it must not exist.")
@click.option(
    "--value-members",
    default=2,
    show_default=True,
    type=click.IntRange(1),
    help="Value networks in value.onnx: more rank candidates better, fewer are faster.",
)
@click.option(
    "--flow-steps",
    type=click.IntRange(1, 1000),
    help="Refinement steps F of the bundle.  [default: as in training]",
)
@click.option(
    "--precision",
    "precisions",
    multiple=True,
    type=click.Choice(["fp32", "int8", "bf16", "fp16"]),
    help="A variant to add to float32, which is always there; repeatable. `serve --variant` chooses one.",
)
@click.option(
    "--episodes",
    default=0,
    type=click.IntRange(0),
    help="Episodes to play with every variant, on the same seeds in the environment of the data, for the "
    "certificate.",
)
@statement_options
@click.option(
    "--push",
    "push_to",
    help="Copy the bundle to this new folder, or upload it to hf://OWNER/NAME (a private repository).",
)
@click.option(
    "--pull",
    "pull_from",
    help="Fetch a bundle from a folder, a .zip or hf://OWNER/NAME[@REVISION] to --output, and verify it.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(
    checkpoint: Path | None,
    output: Path | None,
    value_members: int,
    flow_steps: int | None,
    precisions: tuple[str, ...],
    episodes: int,
    rate: float | None,
    action_mode: str,
    action_bounds: str,
    push_to: str | None,
    pull_from: str | None,
    as_json: bool,
) -> None:
    """Turn CHECKPOINT (a run folder or one of its checkpoints) into a policy bundle.

    The bundle holds its contract and a certificate of how far its graphs are from torch; beyond 1e-5 nothing
    is written.

    \b
    With a finished bundle:  rql-deploy export BUNDLE --push hf://OWNER/NAME
    To fetch one:            rql-deploy export --pull hf://OWNER/NAME --output DIR
    """
    from rql_deploy.bundle.manifest import MANIFEST
    from rql_deploy.errors import UserError
    from rql_deploy.export.transfer import pull, push
    from rql_deploy.progress import TerminalProgress
    from rql_deploy.workflows.export import export

    if pull_from is not None:
        if checkpoint is not None or push_to is not None or output is None:
            raise UserError(
                "--pull needs --output and takes nothing to export: rql-deploy export --pull SOURCE "
                "--output DIR"
            )
        pulled = pull(pull_from, output)
        _show_transfer(pulled.contract.contract_id, str(output), as_json)
        return
    if checkpoint is None:
        raise UserError("pass a CHECKPOINT to export, or --pull SOURCE: see rql-deploy export --help")
    if push_to is not None and (checkpoint.suffix == ".zip" or (checkpoint / MANIFEST).exists()):
        if output is not None:
            raise UserError(f"{checkpoint} is a bundle already: leave --output out to push it")
        _show_transfer(push(checkpoint, push_to).contract.contract_id, push_to, as_json)
        return
    if output is None:
        raise UserError("pass --output DIR, the bundle folder to write")
    result = export(
        checkpoint,
        output,
        value_members=value_members,
        flow_steps=flow_steps,
        precisions=precisions,
        episodes=episodes,
        rate=rate,
        action_mode=action_mode,
        action_bounds=action_bounds,
        progress=TerminalProgress(),
    )
    if push_to is not None:
        push(output, push_to)
    if as_json:
        found = {"bundle": str(output), "contract_id": result.contract_id, "max_error": result.max_error}
        echo_json({**found, "passed": result.certificate.passed})
        return
    click.echo("\n".join(result.describe()))
    if push_to is not None:
        click.echo(f"pushed to {push_to}")
    _show_next(str(output))


def _show_transfer(contract_id: str, where: str, as_json: bool) -> None:
    if as_json:
        echo_json({"bundle": where, "contract_id": contract_id})
        return
    click.echo(f"contract {contract_id[:12]}, every file as its manifest says, is in {where}")
    if where.startswith("hf://"):
        show_next(("rql-deploy", "export", "--pull", where, "--output", "DIR"))
    else:
        _show_next(where)


def _show_next(bundle: str) -> None:
    show_next(
        ("rql-deploy", "inspect", bundle, "--verify"),
        ("rql-deploy", "serve", bundle, "--bind", "tcp://127.0.0.1:5555"),
    )
