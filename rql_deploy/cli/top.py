"""`rql-deploy top`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from .options import FiniteRange, echo_json


@click.command("top")
@click.option(
    "--connect", "endpoint", default="tcp://127.0.0.1:5555", show_default=True, help="The policy server."
)
@click.option("--keys", type=click.Path(path_type=Path), help="Key file of a client that the server allows.")
@click.option(
    "--interval",
    default=1.0,
    show_default=True,
    type=FiniteRange(0.1, 60.0),
    help="Seconds between two views.",
)
@click.option("--once", is_flag=True, help="Show one view, then end.")
@click.option("--json", "as_json", is_flag=True, help="Print the server's counters once, as JSON.")
def command(endpoint: str, keys: Path | None, interval: float, once: bool, as_json: bool) -> None:
    """Watch a running server: decisions per second, latencies, batches, deadlines. Ctrl-C ends."""
    from rql_deploy.errors import UserError
    from rql_deploy.workflows.monitor import ServerMonitor

    previous: dict[str, Any] | None = None
    with ServerMonitor(endpoint, keys=keys) as monitor:
        try:
            while True:
                try:
                    stats = monitor.read()
                except UserError:
                    if previous is None:
                        raise
                    click.echo(f"{endpoint} does not answer")
                    time.sleep(interval)
                    continue
                if as_json:
                    return echo_json(stats)
                if not once:
                    click.clear()
                click.echo("\n".join(view(endpoint, stats, previous)))
                if once:
                    return
                previous = stats
                time.sleep(interval)
        except KeyboardInterrupt:
            return


def view(endpoint: str, stats: dict[str, Any], previous: dict[str, Any] | None) -> list[str]:
    """The lines of one view: since the previous one, or since the start."""
    from rql_deploy.workflows.monitor import activity

    recent = activity(stats, previous)
    rates = "  ".join(f"{name} {rate:.1f}" for name, rate in sorted(recent.requests_per_second.items()))
    errors = ", ".join(f"{code} {count}" for code, count in sorted(stats["errors"].items()))
    state = "ready" if stats["ready"] else "stopping"
    lines = [
        f"{endpoint}  up {stats['uptime']:.0f} s  {state}  {stats['connected']} connected  "
        f"{stats['in_flight']} in flight",
        f"requests/s  {rates or 'none'}",
        f"deadline misses {stats['deadline_misses']}  shortened {stats['shortened']}  errors "
        f"{errors or 'none'}",
        "",
        f"{'ms':10} {'p50':>9} {'p99':>9}",
    ]
    for name, marks in recent.stages.items():
        shown = " ".join(f"{'-' if mark is None else format(mark * 1e3, '.2f'):>9}" for mark in marks)
        lines.append(f"{name:10} {shown}")
    p50, p99 = map(_show, recent.batch_rows)
    lines.append(f"rows per step p50 {p50} p99 {p99}, steps per reply {_show(recent.steps_per_reply)}")
    lines.append("")
    lines += [
        f"{name}: contract {bundle['contract_id'][:12]}, F {bundle['F']}"
        for name, bundle in stats["bundles"].items()
    ]
    return lines


def _show(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
