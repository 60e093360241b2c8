"""`rql-deploy doctor`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from rql_deploy.cli.options import FiniteRange, echo_json
from rql_deploy.workflows.host_checks import Finding
from rql_deploy.workflows.machine_checks import check_machine

MARKS = {"ok": ("ok", "green"), "note": ("note", "yellow"), "problem": ("PROBLEM", "red")}
EXTRAS = (
    *("serve", "recordings", "train", "sim", "vision", "video", "jpeg"),
    *("hub", "arrow", "zarr", "ros2", "ray", "tracking"),
)


@click.command("doctor")
@click.option(
    "--require",
    "required",
    multiple=True,
    type=click.Choice(EXTRAS),
    help="Extra that must work here; what the others lack is only noted. Repeatable.",
)
@click.option(
    "--control-rate",
    default=20.0,
    show_default=True,
    type=FiniteRange(1, 2000),
    help="Rate that a control loop on this machine must keep, in Hz.",
)
@click.option(
    "--port",
    "ports",
    multiple=True,
    type=click.IntRange(1, 65535),
    help="Port that must be free; repeatable.  [default: 5555]",
)
@click.option(
    "--keys",
    type=click.Path(path_type=Path),
    help="Key folder of a server, or key file of a robot.  [default: keys/, if it exists]",
)
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def command(
    required: tuple[str, ...], control_rate: float, ports: tuple[int, ...], keys: Path | None, as_json: bool
) -> None:
    """Check this machine, and name a cure for each problem.

    Checks versions, rendering, onnxruntime, timers, processors, ports and keys, in a few seconds, and changes
    nothing. The exit status is 1 if there is a problem.
    """
    found: list[Finding] = []
    for finding in check_machine(
        required=required, control_rate=control_rate, ports=ports or (5555,), keys=keys
    ):
        found.append(finding)
        if not as_json:
            show(finding)
    problems = sum(finding.status == "problem" for finding in found)
    if as_json:
        echo_json({"problems": problems, "findings": [asdict(finding) for finding in found]})
    else:
        plural = "" if problems == 1 else "s"
        click.echo(f"\n{problems or 'no'} problem{plural if problems else ''} found")
    if problems:
        click.get_current_context().exit(1)


def show(finding: Finding) -> None:
    """Print a finding, and its cure in a second line."""
    text, colour = MARKS[finding.status]
    click.echo(f"{click.style(f'{text:8}', fg=colour)} {finding.subject:12} {finding.text}")
    if finding.cure:
        click.echo(f"{'':21} cure: {finding.cure}")
