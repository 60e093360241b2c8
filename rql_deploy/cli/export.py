"""`rql-deploy export`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import DEFAULT_WORKERS, echo_json, show_next

if TYPE_CHECKING:
    from rql_deploy.bundle.certificate import Certificate
    from rql_deploy.contract import PlantDescription


@click.command("export")
@click.argument("checkpoint", required=False, type=click.Path(path_type=Path))
@click.option("--output", type=click.Path(path_type=Path), help="Bundle folder to write; it must not exist.")
@click.option(
    "--value-members",
    default=2,
    show_default=True,
    type=click.IntRange(1),
    help="Value networks in value.onnx: more judge better, fewer faster.",
)
@click.option("--flow-steps", type=click.IntRange(1, 1000), help="Refinement steps F of the bundle, if other than in training.")
@click.option(
    "--precision",
    "precisions",
    multiple=True,
    type=click.Choice(["fp32", "int8", "bf16", "fp16"]),
    help="A variant beside float32, which is always there; repeat for several. Choose one with `serve --variant`.",
)
@click.option(
    "--episodes",
    default=0,
    type=click.IntRange(0),
    help="Play this many episodes with every variant in the environment the data came from, on the same seeds, for the certificate.",
)
@click.option("--push", "push_to", help="Copy the bundle to this new folder, or upload it to hf://OWNER/NAME (a private repository).")
@click.option("--pull", "pull_from", help="Bring a bundle from a folder, a .zip or hf://OWNER/NAME[@REVISION] to --output, and verify it.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(
    checkpoint: Path | None,
    output: Path | None,
    value_members: int,
    flow_steps: int | None,
    precisions: tuple[str, ...],
    episodes: int,
    push_to: str | None,
    pull_from: str | None,
    as_json: bool,
) -> None:
    """Turn CHECKPOINT (a run folder or one of its checkpoints) into a policy bundle.

    The bundle carries its contract and a certificate of how far its graphs are from torch; beyond 1e-5 nothing is written.

    \b
    With a finished bundle:  rql-deploy export BUNDLE --push hf://OWNER/NAME
    To fetch one:            rql-deploy export --pull hf://OWNER/NAME --output DIR
    """
    from rql_deploy.bundle.manifest import MANIFEST
    from rql_deploy.errors import UserError
    from rql_deploy.export.transfer import pull, push

    if pull_from is not None:
        if checkpoint is not None or push_to is not None or output is None:
            raise UserError("--pull goes with --output and nothing to export: rql-deploy export --pull SOURCE --output DIR")
        pulled = pull(pull_from, output)
        _moved(pulled.contract.contract_id, str(output), as_json)
        return
    if checkpoint is None:
        raise UserError("pass a CHECKPOINT to export, or --pull SOURCE: see rql-deploy export --help")
    if push_to is not None and (checkpoint.suffix == ".zip" or (checkpoint / MANIFEST).exists()):
        if output is not None:
            raise UserError(f"{checkpoint} is a bundle already: leave --output out to push it")
        _moved(push(checkpoint, push_to).contract.contract_id, push_to, as_json)
        return
    if output is None:
        raise UserError("pass --output DIR, the bundle folder to write")
    if output.exists():
        raise UserError(f"{output} exists already: pass another --output or remove it first")
    from rql_deploy.export.exporter import export_bundle
    from rql_deploy.export.graphs import ExportModules
    from rql_deploy.train.checkpoint import load_checkpoint
    from rql_deploy.train.export_modules import all_members, make_contract, make_modules

    loaded = load_checkpoint(checkpoint)
    agent = loaded.restore_networks()
    contract = make_contract(loaded, agent, value_members=value_members, flow_steps=flow_steps)
    encoder, refiner, policy, valuer = make_modules(agent, contract)
    trained_steps = loaded.config.rql.F
    modules = ExportModules(
        encoder,
        refiner,
        policy,
        valuer,
        feature_dim=encoder.kernel.shape[1],
        all_members=all_members(agent, contract),
        trained_policy=None if trained_steps == contract.F else type(policy)(encoder, refiner, trained_steps),
        trained_steps=trained_steps,
    )
    certificate = export_bundle(
        modules,
        contract,
        loaded.reference["observations"].numpy(),
        output,
        statistics=loaded.statistics,
        precisions=tuple(p for p in dict.fromkeys(precisions) if p != "fp32"),  # type: ignore[misc]
        score=scorer(contract.plant, episodes) if episodes else None,
    )
    if push_to is not None:
        push(output, push_to)
    worst = max(check.max_error for check in certificate.checks)
    if as_json:
        echo_json({"bundle": str(output), "contract_id": contract.contract_id, "max_error": worst, "passed": certificate.passed})
        return
    click.echo(
        f"bundle {output}: contract {contract.contract_id[:12]}, {len(certificate.checks)} checks against torch, "
        f"largest difference {worst:.1e}"
    )
    for line in more_lines(certificate):
        click.echo(line)
    if push_to is not None:
        click.echo(f"pushed to {push_to}")
    show_next(f"rql-deploy inspect {output} --verify", f"rql-deploy serve {output} --bind tcp://127.0.0.1:5555")


def _moved(contract_id: str, where: str, as_json: bool) -> None:
    if as_json:
        echo_json({"bundle": where, "contract_id": contract_id})
        return
    click.echo(f"contract {contract_id[:12]}, every file as its manifest says, is in {where}")
    if where.startswith("hf://"):
        show_next(f"rql-deploy export --pull {where} --output DIR")
    else:
        show_next(f"rql-deploy inspect {where} --verify", f"rql-deploy serve {where} --bind tcp://127.0.0.1:5555")


def more_lines(certificate: Certificate) -> list[str]:
    """What a certificate says beyond parity, a line each."""
    lines = []
    if change := certificate.flow_change:
        difference = change.action_difference
        lines.append(
            f"F = {change.exported_steps} instead of {change.trained_steps}: actions differ by {difference['p50']:.1e} (median), "
            f"{difference['p99']:.1e} (99 %), {difference['max']:.1e} (most), in units of half an action range"
        )
    lines += [
        f"{v.variant}: 99 % of actions within {v.action_error['p99']:.1e} of float32, 99 % of V within {v.value_change['p99']:.1e} "
        "of its standard deviation"
        for v in certificate.variants
    ]
    lines += [
        f"{r.variant}: V ranks chunks as all members do with correlation {r.correlation['mean']:.2f}, "
        f"and picks the same best of {r.candidates} in {r.best_agrees:.0%}"
        for r in certificate.rankings
    ]
    return lines


def scorer(plant: PlantDescription, episodes: int) -> Callable[[Path, str], Mapping[str, Any]]:
    """Plays the same seeded episodes with each variant of a bundle; the environment's settings are those of the contract."""
    from rql_deploy.progress import ProgressLine
    from rql_deploy.seeding import episode_seed
    from rql_deploy.sim.evaluation.episodes import Evaluation
    from rql_deploy.sim.plants.tasks import Task
    from rql_deploy.workflows.policies import check_episode, contestant, onnx_policy

    work = Task.of_plant(plant)
    work.check()
    seeds = [episode_seed(0, index, "evaluate") for index in range(episodes)]

    def score(folder: Path, variant: str) -> Mapping[str, Any]:
        player = contestant(variant, functools.partial(onnx_policy, folder, variant=variant), 1)
        progress, results = ProgressLine(f"play {variant}", episodes, "episodes"), []
        with Evaluation(work, min(DEFAULT_WORKERS, episodes)) as evaluation:
            for result in evaluation.play(player, seeds):
                check_episode(result)
                results.append(result)
                progress.update(len(results))
            summary: Mapping[str, Any] = evaluation.score(variant, results, seeds).summary()
        progress.finish(len(results), success=summary["success"])
        return summary

    return score
