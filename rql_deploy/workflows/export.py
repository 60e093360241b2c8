"""Export a checkpoint to a policy bundle with its certificate."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import msgspec

from rql_deploy.assumptions import motion_remark
from rql_deploy.errors import UserError, suggestion
from rql_deploy.progress import NoProgress, Progress, Stage

from .processes import DEFAULT_WORKERS

if TYPE_CHECKING:
    from rql_deploy.bundle.certificate import Certificate
    from rql_deploy.contract import PlantDescription
    from rql_deploy.export.graphs import ExportModules


@dataclass(frozen=True)
class ExportResult:
    """A bundle that was written."""

    bundle: Path
    contract_id: str
    certificate: Certificate
    remark: str | None = None
    """What the data did not say of the policy's motion, so that robots refuse it."""

    @property
    def max_error(self) -> float:
        """Largest difference between a graph and torch."""
        return max(check.max_error for check in self.certificate.checks)

    def describe(self) -> list[str]:
        """What the certificate says, a line each."""
        first = (
            f"bundle {self.bundle}: contract {self.contract_id[:12]}, {len(self.certificate.checks)} checks "
            f"against torch, largest difference {self.max_error:.1e}"
        )
        remark = [f"note: {self.remark}"] if self.remark else []
        return [first, *_beyond_parity(self.certificate), *remark]


def export(
    checkpoint: Path,
    output: Path,
    *,
    value_members: int = 2,
    flow_steps: int | None = None,
    precisions: Sequence[str] = (),
    episodes: int = 0,
    rate: float | None = None,
    action_mode: str = "",
    action_bounds: str = "",
    progress: Progress | None = None,
) -> ExportResult:
    """Export a checkpoint (or a run's latest one) to a bundle folder, which must not exist.

    Args:
        value_members: value networks in value.onnx; more rank candidates better and take longer.
        flow_steps: refinement steps F of the bundle, where not those of training.
        precisions: variants beside `fp32`: `int8`, `bf16`, `fp16`.
        rate: control rate in Hz, where the training data did not say it or said it wrongly.
        action_mode: `delta` or `absolute`, or `NAME=delta` for single dimensions, separated by commas.
        action_bounds: `dataset` takes bounds that were guessed from the data for said; others are refused.
        episodes: episodes to play with every variant in the environment of the data, for the certificate.

    Raises UserError, and writes nothing, where a graph differs from torch, or what is exported from what was
    trained, by more than the tolerance.
    """
    from rql_deploy.export.exporter import export_bundle
    from rql_deploy.export.graphs import ExportModules
    from rql_deploy.export.precision import Precision
    from rql_deploy.train.checkpoints.checkpoint import load_checkpoint
    from rql_deploy.train.data.statements import Statements
    from rql_deploy.train.export_check import check_modules
    from rql_deploy.train.export_modules import all_members, make_contract, make_modules
    from rql_deploy.train.logging.summary import reference_images

    from .backbone import run_backbones

    checkpoint, output = Path(checkpoint), Path(output)
    if os.path.lexists(output):  # a link to nothing, too: a folder cannot take its place
        raise UserError(f"{output} exists already: pass another --output or remove it first")
    known = ("fp32", *get_args(Precision))
    if unknown := [precision for precision in precisions if precision not in known]:
        raise UserError(f"there is no precision '{unknown[0]}'{suggestion(unknown[0], known)}")
    loaded = load_checkpoint(checkpoint)
    stated = Statements(rate, action_mode, action_bounds)
    loaded = msgspec.structs.replace(loaded, plant=stated.of_trained(loaded.plant))
    agent = loaded.restore_networks()
    contract = make_contract(loaded, agent, value_members=value_members, flow_steps=flow_steps)
    encoder, refiner, policy, valuer = make_modules(agent, contract)
    check_modules(agent, contract, loaded.reference, encoder, policy, valuer)
    trained_steps = loaded.config.rql.F
    trained_policy = None if trained_steps == contract.F else type(policy)(encoder, refiner, trained_steps)
    modules: ExportModules = ExportModules(
        encoder,
        refiner,
        policy,
        valuer,
        feature_dim=encoder.feature_dim,
        all_members=all_members(agent, contract),
        trained_policy=trained_policy,
        trained_steps=trained_steps,
        backbones=run_backbones(loaded.path, loaded.backbones),
    )
    certificate = export_bundle(
        modules,
        contract,
        loaded.reference["observations"].numpy(),
        output,
        images={name: rows.numpy() for name, rows in reference_images(loaded.reference).items()},
        statistics=loaded.statistics,
        precisions=tuple(p for p in dict.fromkeys(precisions) if p != "fp32"),  # type: ignore[misc]
        score=_scorer(contract.plant, episodes, progress or NoProgress()) if episodes else None,
    )
    return ExportResult(output, contract.contract_id, certificate, motion_remark(contract.plant))


def _beyond_parity(certificate: Certificate) -> list[str]:
    lines = []
    if change := certificate.flow_change:
        difference = change.action_difference
        lines.append(
            f"F = {change.exported_steps} instead of {change.trained_steps}: actions differ by "
            f"{difference['p50']:.1e} (median), {difference['p99']:.1e} (99 %), {difference['max']:.1e} "
            "(largest), "
            "in units of half an action range"
        )
    lines += [
        f"{v.variant}: 99 % of actions within {v.action_error['p99']:.1e} of float32, "
        f"99 % of V within {v.value_change['p99']:.1e} of its standard deviation"
        for v in certificate.variants
    ]
    lines += [
        f"{r.variant}: V ranks chunks as all members do with correlation {r.correlation['mean']:.2f}, "
        f"and picks the same best of {r.candidates} in {r.best_agrees:.0%}"
        for r in certificate.rankings
    ]
    return lines


def _scorer(
    plant: PlantDescription, episodes: int, progress: Progress
) -> Callable[[Path, str], Mapping[str, Any]]:
    """Plays the same seeded episodes with each variant of a bundle, in the environment that the contract
    names.
    """
    from rql_deploy.seeding import episode_seed
    from rql_deploy.sim.evaluation.episodes import Evaluation
    from rql_deploy.sim.plants.tasks import Task

    from .policies import check_episode, lockstep_policy, onnx_policy

    work = Task.of_plant(plant)
    work.check()
    seeds = [episode_seed(0, index, "evaluate") for index in range(episodes)]

    def score(folder: Path, variant: str) -> Mapping[str, Any]:
        policy = lockstep_policy(variant, functools.partial(onnx_policy, folder, variant=variant), 1)
        stage, results = Stage(progress, f"play {variant}", episodes, "episodes"), []
        with Evaluation(work, min(DEFAULT_WORKERS, episodes)) as evaluation:
            for result in evaluation.play(policy, seeds):
                check_episode(result, progress)
                results.append(result)
                stage.update(len(results))
            summary: Mapping[str, Any] = evaluation.score(variant, results, seeds).summary()
        stage.finish(len(results), success=summary["success"])
        return summary

    return score
