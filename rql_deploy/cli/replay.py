"""`rql-deploy replay`."""

from __future__ import annotations

from pathlib import Path

import click

from .options import echo_json


@click.command("replay")
@click.argument("recording", type=click.Path(path_type=Path))
@click.option("--bundle", required=True, type=click.Path(path_type=Path), help="The bundle that was served.")
@click.option("--variant", default="fp32", show_default=True, help="The precision that was served.")
@click.option("--json", "as_json", is_flag=True, help="Print the counts as JSON.")
def command(recording: Path, bundle: Path, variant: str, as_json: bool) -> None:
    """Compute the decisions of RECORDING (made by `serve --record`) again and compare them to the byte.

    Exit status 1 when one differs: another build of onnxruntime or another kind of CPU may round differently.
    """
    from rql_deploy.bundle.bundle import Bundle
    from rql_deploy.runtime.engine.model import Model
    from rql_deploy.runtime.server.recording import read_recording, replay, same_bytes

    model = Model(Bundle.open(bundle, variant))
    same = different = 0
    for record in read_recording(recording):
        if record["kind"] == "decision":
            equal = same_bytes(record, replay(model, record))
            same, different = same + equal, different + (not equal)
    if as_json:
        echo_json({"decisions": same + different, "different": different})
    else:
        click.echo(f"{same + different} decisions, {different} of them different")
    if different:
        raise SystemExit(1)
