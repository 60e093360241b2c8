"""`rql-deploy replay`."""

from __future__ import annotations

from pathlib import Path

import click

from .options import echo_json


@click.command("replay")
@click.argument("recording", type=click.Path(path_type=Path))
@click.option(
    "--bundle",
    "bundles",
    required=True,
    multiple=True,
    type=click.Path(path_type=Path),
    help="The bundle that was served; give it again for each of several.",
)
@click.option("--variant", default="fp32", show_default=True, help="The precision that was served.")
@click.option("--json", "as_json", is_flag=True, help="Print the counts as JSON.")
def command(recording: Path, bundles: tuple[Path, ...], variant: str, as_json: bool) -> None:
    """Compute the decisions of RECORDING (made by `serve --record`) again and compare them to the byte.

    The exit status is 1 when one differs: another build of onnxruntime or another kind of CPU may round
    differently.
    """
    from rql_deploy.workflows.replay import replay_recording

    result = replay_recording(recording, bundles, variant=variant)
    if as_json:
        echo_json({"decisions": result.decisions, "different": result.different})
    else:
        click.echo(f"{result.decisions} decisions, {result.different} of them different")
    if result.different:
        click.get_current_context().exit(1)
