"""`rql-deploy inspect`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from .options import echo_json


@click.command("inspect")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--verify", is_flag=True, help="Run every graph on the stored cases again and compare with torch's stored outputs.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def command(bundle: Path, verify: bool, as_json: bool) -> None:
    """Show what BUNDLE is; with --verify check its certificate on this machine (needs onnxruntime, no torch)."""
    from rql_deploy.bundle import GRAPHS, Bundle
    from rql_deploy.certificate import check, load_cases
    from rql_deploy.errors import BundleError

    opened = Bundle.open(bundle)
    contract, stored = opened.contract, opened.certificate()
    result = None
    if verify:
        for graph in GRAPHS:
            opened.session(graph)
        result = check(opened.path, contract, load_cases(opened.path))
    worst = max(c["max_error"] for c in stored["checks"])
    if as_json:
        echo_json(
            {
                "contract_id": contract.contract_id,
                "contract": asdict(contract),
                "files": {name: (opened.path / name).stat().st_size for name in opened.manifest["files"]},
                "certificate": {"tolerance": stored["tolerance"], "max_error": worst},
                "verified": None if result is None else result.passed,
                "verified_max_error": None if result is None else max(c.max_error for c in result.checks),
            }
        )
    else:
        plant, provenance = contract.plant, contract.provenance
        click.echo(f"{plant.task}: h = {contract.h} actions at {plant.control_rate:g} Hz, F = {contract.F} refinement steps")
        click.echo(f"contract    {contract.contract_id}")
        click.echo(
            f"trained on  {provenance.dataset_id} ({provenance.dataset_hash[:12]}), {provenance.updates:,} updates, seed {provenance.seed}"
        )
        click.echo("observation " + ", ".join(f"{f.name}{list(f.shape)}" for f in plant.fields))
        click.echo("action      " + ", ".join(f"{a.name} [{a.low:g}, {a.high:g}] {a.mode}, hold {a.hold}" for a in plant.actions))
        click.echo(
            "files       " + ", ".join(f"{name} {(opened.path / name).stat().st_size / 1024:.0f} KiB" for name in opened.manifest["files"])
        )
        click.echo(
            f"certificate {len(stored['checks'])} checks against torch, largest difference {worst:.1e} (tolerance {stored['tolerance']:g})"
        )
        if result is not None and result.passed:
            again = max(c.max_error for c in result.checks)
            click.echo(f"verified    {len(result.checks)} checks again on this machine, largest difference {again:.1e}")
    if result is not None and not result.passed:
        raise BundleError(
            f"bundle {bundle} does not hold its certificate here ({'; '.join(result.failures()[:3])}): do not run it; export it again"
        )
