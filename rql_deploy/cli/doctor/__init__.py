"""`rql-deploy doctor`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import click

from rql_deploy.cli.options import FiniteRange, echo_json

from . import checks
from .checks import Finding

MARKS = {"ok": ("ok", "green"), "note": ("note", "yellow"), "problem": ("PROBLEM", "red")}
EXTRAS = ("serve", "train", "sim", "hub", "arrow")


@click.command("doctor")
@click.option(
    "--need",
    multiple=True,
    type=click.Choice(EXTRAS),
    help="Parts that must work here; what others lack is only noted.",
)
@click.option(
    "--control-rate",
    default=20.0,
    show_default=True,
    type=FiniteRange(1, 2000),
    help="Rate that a loop here must keep, in Hz.",
)
@click.option(
    "--port",
    "ports",
    multiple=True,
    type=click.IntRange(1, 65535),
    help="Ports that must be free (default 5555).",
)
@click.option(
    "--keys",
    type=click.Path(path_type=Path),
    help="Key folder of a server, or key file of a robot (default keys/, if there is one).",
)
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def command(
    need: tuple[str, ...], control_rate: float, ports: tuple[int, ...], keys: Path | None, as_json: bool
) -> None:
    """Check this machine: versions, rendering, onnxruntime, timers, processors, ports, keys; each problem comes with its cure.

    The exit status is 1 if there is a problem. Takes a few seconds; changes nothing.
    """
    order: list[tuple[str, Callable[[], list[Finding]]]] = [
        ("versions", lambda: checks.check_versions(frozenset(need))),
        ("rendering", lambda: checks.check_rendering("sim" in need)),
        ("onnxruntime", lambda: checks.check_inference("serve" in need)),
        ("timers", lambda: checks.check_timers(control_rate)),
        ("processors", checks.check_processors),
        ("ports", lambda: checks.check_ports(ports or (5555,))),
        ("keys", lambda: checks.check_keys(keys)),
    ]
    found: list[Finding] = []
    for _, check in order:
        part = check()
        found += part
        if not as_json:
            for finding in part:
                show(finding)
    problems = sum(finding.status == "problem" for finding in found)
    if as_json:
        echo_json({"problems": problems, "findings": [asdict(finding) for finding in found]})
    else:
        click.echo(
            "\nno problem found"
            if not problems
            else f"\n{problems} problem{'s' if problems > 1 else ''} found"
        )
    if problems:
        click.get_current_context().exit(1)


def show(finding: Finding) -> None:
    """One or two lines."""
    text, colour = MARKS[finding.status]
    click.echo(f"{click.style(f'{text:8}', fg=colour)} {finding.subject:12} {finding.text}")
    if finding.cure:
        click.echo(f"{'':21} cure: {finding.cure}")
