"""Policies to evaluate: made from a checkpoint, a bundle or a server's address, and run in lock-step."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rql_deploy.assumptions import motion_remark
from rql_deploy.errors import UserError
from rql_deploy.plant import PLANT_FAILED, POLICY_FAILED, UNSTABLE
from rql_deploy.progress import NoProgress, Progress

if TYPE_CHECKING:
    from rql_deploy.contract import ImageField, PlantDescription
    from rql_deploy.plant import EpisodeResult, EpisodicPlant
    from rql_deploy.policy import Policy
    from rql_deploy.sim.evaluation.episodes import EvaluatedPolicy
    from rql_deploy.sim.evaluation.films import Film

LOCKSTEP_DEADLINE = 30.0
"""Seconds a decision may take while the simulator waits for it."""


@dataclass(frozen=True)
class PolicySource:
    """Where a policy comes from: one of `checkpoint`, `bundle` and `endpoint`; several to compare them."""

    checkpoint: Path | None = None
    """A run's folder or one of its checkpoints, run with torch."""
    bundle: Path | None = None
    """A bundle, run with onnxruntime in the simulator's process."""
    variant: str = "fp32"
    """Which precision of the bundle."""
    endpoint: str | None = None
    """A policy server, such as tcp://127.0.0.1:5555."""
    keys: Path | None = None
    """The key file that the server asks for."""

    @property
    def count(self) -> int:
        """How many policies it names."""
        return sum(source is not None for source in (self.checkpoint, self.bundle, self.endpoint))

    def absolute(self) -> PolicySource:
        """The same with absolute paths: a worker's working directory may be another."""
        paths = {name: getattr(self, name) for name in ("checkpoint", "bundle", "keys")}
        found = {name: Path(path).absolute() for name, path in paths.items() if path is not None}
        return replace(self, **found)  # type: ignore[arg-type]

    def paths(self) -> list[Path]:
        """The files and folders that every worker must see."""
        return [path for path in (self.checkpoint, self.bundle, self.keys) if path is not None]

    def __str__(self) -> str:
        return str(self.checkpoint or self.bundle or self.endpoint or "the scripted demonstrator")


def torch_policy(
    checkpoint: Path, plant: PlantDescription, value_members: int | None = None, flow_steps: int | None = None
) -> Policy:
    """The checkpoint's averaged policy, in this process."""
    import torch

    from rql_deploy.train.checkpoints.checkpoint import load_checkpoint
    from rql_deploy.train.policy import make_policy

    from .backbone import run_backbones

    torch.set_num_threads(1)
    loaded = load_checkpoint(checkpoint)
    backbones = run_backbones(loaded.path, loaded.backbones)
    stacked = {camera: backbone.stacked for camera, backbone in backbones.items()}
    return _for_plant(make_policy(loaded, value_members, flow_steps, stacked), plant)


def onnx_policy(bundle: Path, plant: PlantDescription, variant: str = "fp32") -> Policy:
    """One variant of the bundle, in this process."""
    from rql_deploy.bundle.bundle import Bundle
    from rql_deploy.runtime.engine.onnx_policy import OnnxPolicy

    return _for_plant(OnnxPolicy(Bundle.open(bundle, variant)), plant)


def remote_policy(endpoint: str, plant: PlantDescription, keys: Path | None = None) -> Policy:
    """The policy that a server at this address serves."""
    from rql_deploy.runtime.client import RemotePolicy

    return RemotePolicy.connect(endpoint, plant=plant, keys=keys)


def _for_plant(policy: Policy, plant: PlantDescription) -> Policy:
    policy.contract.require(plant)
    return policy


def run_episode(
    plant: EpisodicPlant,
    policy: Policy,
    seed: int,
    candidates: int,
    *,
    pessimism: float = 0.0,
    replan_every: int | None = None,
) -> EpisodeResult:
    """One lock-step episode."""
    from rql_deploy.runtime.control.lockstep import ControlLoop

    # The plant waits in lock-step: only a server that is gone may cost an episode anything.
    loop = ControlLoop(
        plant,
        policy,
        candidates=candidates,
        deadline=LOCKSTEP_DEADLINE,
        pessimism=pessimism,
        replan_every=replan_every,
    )
    return loop.run_episode(seed)


def run_annotated_episode(
    plant: EpisodicPlant,
    policy: Policy,
    seed: int,
    *,
    candidates: int,
    prune: tuple[tuple[int, int], ...] = (),
    pessimism: float = 0.0,
    replan_every: int | None = None,
    value: bool = True,
    refinement: bool = False,
    others: Mapping[str, Policy] | None = None,
    film: Film | None = None,
) -> EpisodeResult:
    """One lock-step episode annotated with V, returns and a digest; filmed if a film is given."""
    from rql_deploy.sim.evaluation.annotations import AnnotatedPlant, AnnotatedPolicy

    annotated_plant = AnnotatedPlant(plant, film.tick if film else None)
    annotated = AnnotatedPolicy(
        policy,
        annotated_plant,
        prune=prune,
        value=value,
        refinement=refinement or film is not None,
        others=others,
        after_decision=film.decided if film else None,
    )
    result = run_episode(
        annotated_plant, annotated, seed, candidates, pessimism=pessimism, replan_every=replan_every
    )
    return annotated.annotate(result)


def lockstep_policy(key: str, make: Callable[[PlantDescription], Policy], candidates: int) -> EvaluatedPolicy:
    """A policy for `Evaluation.play` whose episodes are not annotated.

    `make` is one of `torch_policy`, `onnx_policy` and `remote_policy` with its source filled in.
    """
    from rql_deploy.sim.evaluation.episodes import EvaluatedPolicy

    return EvaluatedPolicy(key, make, functools.partial(run_episode, candidates=candidates))


def require_no_fault(result: EpisodeResult) -> None:
    """Raise UserError for an episode that a fault ended: a server that is gone says nothing about its
    policy. An unstable simulation is a failed episode, not a fault.
    """
    if not result.error or result.error_kind == UNSTABLE:
        return
    if result.error_kind == PLANT_FAILED:
        raise UserError(f"the episode stopped: {result.error}")
    advice = "correct the policy" if result.error_kind == POLICY_FAILED else "check that the server runs"
    raise UserError(f"the evaluation stopped: {result.error}; {advice}, and evaluate again")


def check_episode(result: EpisodeResult, progress: Progress) -> None:
    """Note an episode in which the plant raised (it counts as failed); raise UserError for any other
    fault.
    """
    if result.error_kind in (PLANT_FAILED, UNSTABLE):
        progress.note(f"seed {result.seed} counts as failed: {result.error}")
    else:
        require_no_fault(result)


def pictures_of(source: PolicySource) -> tuple[ImageField, ...]:
    """The pictures that the policies of a source look at, so that the simulator renders them."""
    found: list[ImageField] = []
    if source.bundle is not None:
        from rql_deploy.bundle.bundle import Bundle

        found += Bundle.open(source.bundle, source.variant).contract.plant.images
    if source.checkpoint is not None:
        from rql_deploy.train.checkpoints.checkpoint import load_checkpoint

        found += load_checkpoint(source.checkpoint).plant.images
    if source.endpoint is not None:
        from rql_deploy.runtime.client import RemotePolicy

        with RemotePolicy.connect(source.endpoint, keys=source.keys) as policy:
            found += policy.contract.plant.images
    return tuple({image.name: image for image in reversed(found)}.values())[::-1]


def with_pictures(settings: Mapping[str, Any] | None, images: Sequence[ImageField]) -> dict[str, Any]:
    """A task's settings with the cameras of these pictures."""
    return {**(settings or {}), **({"cameras": tuple(images)} if images else {})}


def find_policies(
    source: PolicySource, run: Callable[..., EpisodeResult], progress: Progress | None = None
) -> dict[str, EvaluatedPolicy]:
    """The policies of a source by key (`onnx`, `socket`, `torch`); the first is the one to compare others
    with. Notes what their data did not say of their motion.

    A run is its latest checkpoint now, and a link to a bundle the bundle that it names now: workers that open
    them later, while training or `improve` goes on, play the same.

    Raises UserError for missing or damaged sources here, not in a worker.
    """
    from rql_deploy.sim.evaluation.episodes import EvaluatedPolicy

    made: dict[str, Any] = {}
    plants: list[PlantDescription] = []
    members = steps = None
    if source.bundle is not None:
        from rql_deploy.bundle.bundle import Bundle

        named = source.bundle.resolve() if source.bundle.is_symlink() else source.bundle
        contract = Bundle.open(named, source.variant).contract
        members, steps = contract.value_members, contract.F
        plants.append(contract.plant)
        made["onnx"] = functools.partial(onnx_policy, named, variant=source.variant)
    if source.endpoint is not None:
        from rql_deploy.runtime.client import RemotePolicy

        with RemotePolicy.connect(source.endpoint, keys=source.keys) as policy:
            members, steps = policy.contract.value_members, policy.contract.F
            plants.append(policy.contract.plant)
        made["socket"] = functools.partial(remote_policy, source.endpoint, keys=source.keys)
    if source.checkpoint is not None:
        from rql_deploy.train.checkpoints.checkpoint import load_checkpoint

        loaded = load_checkpoint(source.checkpoint)
        plants.append(loaded.plant)
        # Compared with a bundle, torch chooses by the bundle's value members, after as many refinement steps.
        made["torch"] = functools.partial(torch_policy, loaded.path, value_members=members, flow_steps=steps)
    for remark in dict.fromkeys(filter(None, map(motion_remark, plants))):
        (progress or NoProgress()).note(f"note: {remark}")
    return {key: EvaluatedPolicy(key, make, run) for key, make in made.items()}
