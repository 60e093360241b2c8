"""`rql-deploy inspect`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rql_deploy.assumptions import describe_assumed, motion_remark
from rql_deploy.structs import to_plain

from .frames import camera_rows, certificate_frames, half_blocks
from .options import echo_json

if TYPE_CHECKING:
    from rql_deploy.bundle.bundle import Bundle
    from rql_deploy.workflows.inspect_bundle import BundleReport


@click.command("inspect")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--verify",
    is_flag=True,
    help="Run every graph on the stored cases again and compare with torch's stored outputs.",
)
@click.option("--latency", is_flag=True, help="Time every graph on this machine (one thread).")
@click.option(
    "--limits",
    "limits_file",
    type=click.Path(path_type=Path),
    help="Check that this limits.toml only tightens the contract.",
)
@click.option("--frames", is_flag=True, help="Show a frame of each camera, in a terminal with colours.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def command(
    bundle: Path, verify: bool, latency: bool, limits_file: Path | None, frames: bool, as_json: bool
) -> None:
    """Show what BUNDLE is; --verify checks its certificate on this machine (needs onnxruntime, not torch)."""
    from rql_deploy.workflows.inspect_bundle import inspect_bundle

    report = inspect_bundle(bundle, verify=verify, latency=latency, limits=limits_file)
    if as_json:
        echo_json(report.summary())
    else:
        _show(report.bundle, report.certificate, report.max_error)
        if limits_file is not None:
            click.echo(f"\n{limits_file} only tightens the contract: it can be used with this bundle")
        if report.latency:
            click.echo("\nLatency on this machine, one thread, median")
            _show_costs(to_plain(list(report.latency)))
        _show_verification(report)
        if frames:
            _show_frames(report.bundle)
    report.require_verified()


def _show_frames(bundle: Bundle) -> None:
    for name, picture in certificate_frames(bundle):
        click.echo(f"\n{name}, a frame of the data set")
        for line in half_blocks(picture):
            click.echo(line, color=True)
    if not bundle.contract.plant.images:
        click.echo("\nthis policy sees no camera")


def _show_verification(report: BundleReport) -> None:
    found = report.verification
    if found is None or not found.passed:
        return
    largest = max(check.max_error for check in found.checks)
    click.echo(
        f"\nverified    {len(found.checks)} checks again on this machine, largest difference {largest:.1e}"
    )
    for v in found.variants:
        click.echo(f"            {v.variant}: 99 % of actions within {v.action_error['p99']:.1e} of float32")


def _show(bundle: Bundle, stored: Mapping[str, Any], worst: float) -> None:
    contract = bundle.contract
    plant, provenance = contract.plant, contract.provenance
    click.echo(
        f"{plant.task}: h = {contract.h} actions at {plant.control_rate:g} Hz, F = {contract.F} refinement "
        "steps"
    )
    click.echo(f"contract    {contract.contract_id} (schema {contract.schema_version})")
    click.echo(
        f"trained on  {provenance.dataset_id} ({provenance.dataset_hash[:12]}), {provenance.updates:,} "
        f"updates, seed {provenance.seed}"
    )
    click.echo("\nObservation")
    echo_table(("field", "shape", "unit"), [(f.name, list(f.shape), f.unit) for f in plant.fields])
    if plant.images:
        click.echo("\nCameras (--frames shows a frame of each)")
        head = ("camera", "pixels", "frames stacked", "colours", "camera's frame", "cropped to", "its name")
        echo_table(head, camera_rows(bundle))
    click.echo("\nAction")
    echo_table(
        ("dimension", "low", "high", "unit of 1.0", "controller", "frame", "mode", "hold", "assumed"),
        [
            (
                *(a.name, f"{a.low:g}", f"{a.high:g}", a.unit, a.controller, a.frame, a.mode, a.hold),
                ", ".join(a.assumed),
            )
            for a in plant.actions
        ],
    )
    click.echo(f"assumed     {', '.join(describe_assumed(plant)) or 'nothing that its data does not say'}")
    if remark := motion_remark(plant):
        click.echo(f"            a robot refuses it, since {remark}")
    click.echo("\nGraphs")
    echo_table(
        ("variant", *next(iter(bundle.variants.values()))),
        [
            (
                variant,
                *(f"{name} {(bundle.path / name).stat().st_size / 1024:.0f} KiB" for name in files.values()),
            )
            for variant, files in bundle.variants.items()
        ],
    )
    click.echo(
        f"\nCertificate {len(stored['checks'])} checks against torch, largest difference {worst:.1e} "
        f"(tolerance {stored['tolerance']:g})"
    )
    _show_certificate(stored)
    if stored.get("cost"):
        machine = stored["machine"]
        click.echo(
            f"\nLatency where it was exported ({machine['processor']}; {machine['features']}); --latency "
            "measures it here"
        )
        _show_costs(stored["cost"])
    if stored.get("scores"):
        click.echo("\nScore")
        echo_table(
            ("variant", "success", "95 % interval", "episodes", "steps"),
            [
                (
                    variant,
                    f"{s['success']:.0%}",
                    f"{s['ci'][0]:.0%} to {s['ci'][1]:.0%}",
                    s["episodes"],
                    f"{s['steps']:.0f}",
                )
                for variant, s in stored["scores"].items()
            ],
        )


def _show_certificate(stored: Mapping[str, Any]) -> None:
    if change := stored.get("flow_change"):
        difference = change["action_difference"]
        click.echo(
            f"            F = {change['exported_steps']} instead of {change['trained_steps']} moves 99 % of "
            "actions by less than "
            f"{difference['p99']:.2g}, all by less than {difference['max']:.2g} (half an action range is 1)"
        )
    if stored.get("variants"):
        echo_table(
            ("against fp32", "action p50", "p99", "max", "beyond the data", "V p99", "rows independent"),
            [
                (
                    v["variant"],
                    *(f"{v['action_error'][q]:.1e}" for q in ("p50", "p99", "max")),
                    f"{v['extreme_action_error']:.1e}",
                    f"{v['value_change']['p99']:.1e}",
                    "yes" if v["rows_independent"] else "no",
                )
                for v in stored["variants"]
            ],
        )
    if stored.get("rankings"):
        steps = len(stored["rankings"][0]["by_step"]) - 1
        shown = sorted({0, steps // 4, steps // 2, 3 * steps // 4, steps})
        echo_table(
            ("V ranks as all K", "same best", "lost", *(f"after step {k}" for k in shown)),
            [
                (
                    r["variant"],
                    f"{r['best_agrees']:.0%}",
                    f"{r['lost']:.2f} std",
                    *(f"{r['by_step'][k]:.2f}" for k in shown),
                )
                for r in stored["rankings"]
            ],
        )


def _show_costs(costs: Sequence[Mapping[str, Any]]) -> None:
    """Milliseconds by graph and rows, and what a value-guided choice costs per candidate."""
    rows = sorted(costs[0]["policy"], key=int)
    most = rows[-1]
    graphs = {"policy": "action", "step": "step", "value": "V"}
    if costs[0].get("encode"):
        graphs = {"encode": "pictures", **graphs}
    columns = [f"{graph}, {n} row{'s' * (n != '1')}" for graph in graphs.values() for n in rows]
    echo_table(
        ("ms", *columns, "per candidate", "per pruning step"),
        [
            (
                c["variant"],
                *(f"{c[graph][n]:.3f}" for graph in graphs for n in rows),
                f"{(c['policy'][most] + c['value'][most]) / int(most):.3f}",
                f"{c['value'][most]:.3f}",
            )
            for c in costs
        ],
    )


def echo_table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print columns, each as wide as its widest cell."""
    table = [list(map(str, row)) for row in (head, *rows)]
    widths = [max(len(row[i]) for row in table) for i in range(len(head))]
    for row in table:
        click.echo(
            "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )
