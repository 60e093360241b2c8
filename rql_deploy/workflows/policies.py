"""Policies to evaluate: made from a checkpoint, a bundle or an address, and played in lock-step."""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rql_deploy.errors import UserError

if TYPE_CHECKING:
    from rql_deploy.contract import PlantDescription
    from rql_deploy.plant import EpisodeResult, EpisodicPlant
    from rql_deploy.policy import Policy
    from rql_deploy.sim.evaluation.episodes import Contestant
    from rql_deploy.sim.evaluation.films import Film

LOCK_STEP_DEADLINE = 30.0
"""Seconds a decision may take while the simulator waits for it."""
PLANT_FAILURE = "the plant "
"""How `ControlLoop` begins the error of an episode in which the plant raised, which may well be what the policy did to it."""


def torch_policy(
    checkpoint: Path, plant: PlantDescription, value_members: int | None = None, flow_steps: int | None = None
) -> Policy:
    """The checkpoint's averaged policy, in this process."""
    import torch

    from rql_deploy.train.checkpoint import load_checkpoint
    from rql_deploy.train.policy import make_policy

    torch.set_num_threads(1)
    return _agreed(make_policy(load_checkpoint(checkpoint), value_members, flow_steps), plant)


def onnx_policy(bundle: Path, plant: PlantDescription, variant: str = "fp32") -> Policy:
    """One variant of the bundle, in this process."""
    from rql_deploy.bundle.bundle import Bundle
    from rql_deploy.runtime.engine.onnx_policy import OnnxPolicy

    return _agreed(OnnxPolicy(Bundle.open(bundle, variant)), plant)


def remote_policy(endpoint: str, plant: PlantDescription, keys: Path | None = None) -> Policy:
    """The policy behind a socket."""
    from rql_deploy.runtime.client import RemotePolicy

    return RemotePolicy.connect(endpoint, plant=plant, keys=keys)


def run_episode(plant: EpisodicPlant, policy: Policy, seed: int, candidates: int) -> EpisodeResult:
    """One lock-step episode."""
    from rql_deploy.runtime.control.lockstep import ControlLoop

    # In lock-step the plant waits; only a server that is gone should cost an episode anything.
    return ControlLoop(plant, policy, candidates=candidates, deadline=LOCK_STEP_DEADLINE).run_episode(seed)


def run_watched(
    plant: EpisodicPlant,
    policy: Policy,
    seed: int,
    *,
    candidates: int,
    prune: tuple[tuple[int, int], ...] = (),
    value: bool = True,
    refinement: bool = False,
    others: Mapping[str, Policy] | None = None,
    film: Film | None = None,
) -> EpisodeResult:
    """One lock-step episode with V, returns and a digest noted; filmed if asked."""
    from rql_deploy.sim.evaluation.annotations import WatchedPlant, WatchedPolicy

    watched_plant = WatchedPlant(plant, film.tick if film else None)
    watched = WatchedPolicy(
        policy,
        watched_plant,
        prune=prune,
        value=value,
        refinement=refinement or film is not None,
        others=others,
        after_decision=film.decided if film else None,
    )
    return watched.note(run_episode(watched_plant, watched, seed, candidates))


def contestant(key: str, make: Any, candidates: int) -> Contestant:
    """A way of acting for the evaluation; `make` is one of the policies above with its source filled in."""
    from rql_deploy.sim.evaluation.episodes import Contestant

    return Contestant(key, make, functools.partial(run_episode, candidates=candidates))


def refuse_fault(result: EpisodeResult) -> None:
    """Raise UserError for an episode that a fault ended: a server that is gone says nothing about its policy."""
    if result.error:
        raise UserError(
            f"the evaluation stopped: {result.error}; see that the server runs, and evaluate again"
        )


def check_episode(result: EpisodeResult) -> None:
    """An episode in which the plant raised counts as failed, which is said; one that another fault ended raises UserError."""
    if result.error and result.error.startswith(PLANT_FAILURE):
        print(f"\nseed {result.seed} counts as failed: {result.error}", file=sys.stderr)
    else:
        refuse_fault(result)


def _agreed(policy: Policy, plant: PlantDescription) -> Policy:
    policy.contract.require(plant)
    return policy


def find_players(
    checkpoint: Path | None,
    bundle: Path | None,
    variant: str,
    endpoint: str | None,
    keys: Path | None,
    run: Any,
) -> dict[str, Contestant]:
    """The contestants given, by key, the one to compare the others with first.

    Missing or damaged sources are found here, in one sentence, not in a worker.
    """
    from rql_deploy.sim.evaluation.episodes import Contestant

    made: dict[str, Any] = {}
    members = steps = None
    if bundle is not None:
        from rql_deploy.bundle.bundle import Bundle

        contract = Bundle.open(bundle, variant).contract
        members, steps = contract.value_members, contract.F
        made["onnx"] = functools.partial(onnx_policy, bundle, variant=variant)
    if endpoint is not None:
        from rql_deploy.runtime.client import RemotePolicy

        with RemotePolicy.connect(endpoint, keys=keys) as policy:
            members, steps = policy.contract.value_members, policy.contract.F
        made["socket"] = functools.partial(remote_policy, endpoint, keys=keys)
    if checkpoint is not None:
        from rql_deploy.train.checkpoint import load_checkpoint

        load_checkpoint(checkpoint)
        # Compared with a bundle, it chooses by the members that the bundle has, after as many steps.
        made["torch"] = functools.partial(torch_policy, checkpoint, value_members=members, flow_steps=steps)
    return {key: Contestant(key, make, run) for key, make in made.items()}
