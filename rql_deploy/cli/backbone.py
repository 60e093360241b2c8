"""`rql-deploy backbone`."""

from __future__ import annotations

from pathlib import Path

import click

from .options import echo_json, show_next


@click.command("backbone")
@click.argument("name")
@click.option(
    "--size", metavar="HxW", help="Height and width of the pictures, as the camera's field has them."
)
@click.option("--output", type=click.Path(path_type=Path), help="ONNX file to write; it must not exist.")
@click.option(
    "--map/--pooled",
    "as_map",
    default=True,
    help="A map keeps where things are (the default); pooled features are one vector of the whole picture.",
)
@click.option(
    "--stride",
    default="8",
    show_default=True,
    type=click.Choice(["4", "8", "16"]),
    help="Pixels between two positions of the map.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(
    name: str, size: str | None, output: Path | None, as_map: bool, stride: str, as_json: bool
) -> None:
    """Make a frozen backbone, a graph from pictures to features, for `train --backbone`; or check one.

    NAME is efficientnet-lite0 (ImageNet weights, from the `vision` extra), or an ONNX file to check.

    \b
    rql-deploy backbone efficientnet-lite0 --size 96x96 --output backbone.onnx
    rql-deploy backbone resnet18.onnx
    """
    from rql_deploy.errors import UserError
    from rql_deploy.workflows.backbone import check_backbone, make_backbone, parse_size

    if name.endswith(".onnx") or Path(name).is_file():
        if size is not None or output is not None:
            raise UserError(f"{name} is a file, to be checked as it is: leave --size and --output out")
        output = Path(name)
        made = check_backbone(output)
    else:
        if size is None or output is None:
            raise UserError(
                f"pass --size and --output: rql-deploy backbone {name} --size 96x96 --output FILE"
            )
        made = make_backbone(name, output, size=parse_size(size), pooled=not as_map, stride=int(stride))
    if as_json:
        found = {"backbone": str(output), "sha256": made.sha256, "features": list(made.shape)}
        echo_json({**found, "row_by_row": made.row_by_row})
        return
    click.echo("\n".join(made.describe()))
    show_next(
        ("rql-deploy", "train", "--dataset", "DATA", "--backbone", str(output), "--output", "runs/camera")
    )
