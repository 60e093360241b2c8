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
@click.option("--keys", type=click.Path(path_type=Path), help="Key file of a client the server allows.")
@click.option(
    "--interval", default=1.0, show_default=True, type=FiniteRange(0.1, 60.0), help="Seconds between views."
)
@click.option("--once", is_flag=True, help="One view, then end.")
@click.option("--json", "as_json", is_flag=True, help="Print the server's counters once, as JSON.")
def command(endpoint: str, keys: Path | None, interval: float, once: bool, as_json: bool) -> None:
    """Watch a running server: decisions per second, latencies, batches, deadlines. Ctrl-C ends."""
    from rql_deploy.errors import DeadlineMissed, UserError
    from rql_deploy.runtime.client.channel import Channel

    channel = Channel(endpoint, keys=keys)
    previous: dict[str, Any] | None = None
    try:
        while True:
            try:
                stats, _ = channel.call({"op": "stats"}, {}, 2.0)
            except DeadlineMissed as error:
                if previous is None:
                    raise UserError(
                        f"no policy server answers at {endpoint}: start one with `rql-deploy serve BUNDLE --bind {endpoint}`"
                    ) from error
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
    finally:
        channel.close()


def view(endpoint: str, stats: dict[str, Any], previous: dict[str, Any] | None) -> list[str]:
    """The lines of one view: since the previous one, or since the start."""
    from rql_deploy.runtime.server.metrics import quantile

    before = previous or {"uptime": 0.0, "requests": {}}
    seconds = max(1e-9, stats["uptime"] - before["uptime"])
    rates = {
        name: (count - before["requests"].get(name, 0)) / seconds for name, count in stats["requests"].items()
    }
    lines = [
        f"{endpoint}  up {stats['uptime']:.0f} s  {'ready' if stats['ready'] else 'stopping'}  {stats['connected']} connected  "
        f"{stats['in_flight']} in flight",
        "requests/s  " + ("  ".join(f"{name} {rate:.1f}" for name, rate in sorted(rates.items())) or "none"),
        f"deadline misses {stats['deadline_misses']}  shortened {stats['shortened']}  errors "
        + (", ".join(f"{code} {count}" for code, count in sorted(stats["errors"].items())) or "none"),
        "",
        f"{'ms':10} {'p50':>9} {'p99':>9}",
    ]
    for name, histogram in stats["stages"].items():
        recent = _since(histogram, previous and previous["stages"][name])
        marks = [quantile(recent, q) for q in (0.5, 0.99)]
        lines.append(
            f"{name:10} "
            + " ".join(f"{'-' if mark is None else format(mark * 1e3, '.2f'):>9}" for mark in marks)
        )
    batch, steps = (
        _since(stats[key], previous and previous[key]) for key in ("batch_rows", "steps_per_reply")
    )
    lines.append(
        f"rows per step p50 {_show(quantile(batch, 0.5))} p99 {_show(quantile(batch, 0.99))}, steps per reply {_show(_mean(steps))}"
    )
    lines += [
        "",
        *(
            f"{name}: contract {bundle['contract_id'][:12]}, F {bundle['F']}"
            for name, bundle in stats["bundles"].items()
        ),
    ]
    return lines


def _since(now: dict[str, Any], before: dict[str, Any] | None) -> dict[str, Any]:
    if before is None:
        return now
    counts = [a - b for a, b in zip(now["counts"], before["counts"], strict=True)]
    return {"bounds": now["bounds"], "counts": counts, "sum": now["sum"] - before["sum"]}


def _mean(histogram: dict[str, Any]) -> float | None:
    count = sum(histogram["counts"])
    return histogram["sum"] / count if count else None


def _show(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
