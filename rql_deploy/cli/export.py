"""`rql-deploy export`."""

from __future__ import annotations

from pathlib import Path

import click

from .options import echo_json, show_next


@click.command("export")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--output", required=True, type=click.Path(path_type=Path), help="Bundle folder to write; it must not exist.")
@click.option(
    "--value-members",
    default=2,
    show_default=True,
    type=click.IntRange(1),
    help="Value networks in value.onnx: more judge better, fewer faster.",
)
@click.option("--flow-steps", type=click.IntRange(1, 1000), help="Refinement steps F of the bundle, if other than in training.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(checkpoint: Path, output: Path, value_members: int, flow_steps: int | None, as_json: bool) -> None:
    """Turn CHECKPOINT (a run folder or one of its checkpoints) into a policy bundle.

    The bundle carries its contract and a certificate of how far its graphs are from torch; beyond 1e-5 nothing is written.
    """
    from rql_deploy.errors import UserError

    if output.exists():
        raise UserError(f"{output} exists already: pass another --output or remove it first")
    from rql_deploy.export.exporter import ExportModules, export_bundle
    from rql_deploy.train.checkpoint import load_checkpoint
    from rql_deploy.train.handover import make_contract, make_modules

    loaded = load_checkpoint(checkpoint)
    agent = loaded.restore_networks()
    contract = make_contract(loaded, agent, value_members=value_members, flow_steps=flow_steps)
    encoder, refiner, policy, valuer = make_modules(agent, contract)
    modules = ExportModules(encoder, refiner, policy, valuer, feature_dim=encoder.kernel.shape[1])
    observations = loaded.reference["observations"].numpy()
    certificate = export_bundle(modules, contract, observations, output, statistics=loaded.statistics)
    worst = max(check.max_error for check in certificate.checks)
    if as_json:
        echo_json({"bundle": str(output), "contract_id": contract.contract_id, "max_error": worst, "passed": certificate.passed})
        return
    click.echo(
        f"bundle {output}: contract {contract.contract_id[:12]}, {len(certificate.checks)} checks against torch, "
        f"largest difference {worst:.1e}"
    )
    show_next(f"rql-deploy inspect {output} --verify", f"rql-deploy serve {output} --bind tcp://127.0.0.1:5555")
