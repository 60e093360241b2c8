"""The averaged policy of a checkpoint in torch, behind the policy interface."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rql_deploy.contract import Contract, ImageField
from rql_deploy.observation import ObservationReader
from rql_deploy.policy import ActOptions, Decision, ResolvedOptions
from rql_deploy.seeding import draw_seed, flow_noise

from .checkpoints.checkpoint import Checkpoint
from .export_modules import make_contract
from .rql import RQL, Seen, integrate

if TYPE_CHECKING:
    from typing_extensions import Unpack

WITHOUT = ("prune", "prefix", "committed", "continuation")
"""Options of `act` that this policy does not have."""


Backbones = Mapping[str, Callable[[NDArray[np.uint8], ImageField], NDArray[np.float32]]]
"""By camera: pictures `[N, H, W, 3n]` -> features."""
NO_BACKBONES: Backbones = {}


class TorchPolicy:
    """Acts by `v_ema`, chooses among candidates by `V`; exported bundles are compared with it."""

    def __init__(self, agent: RQL, contract: Contract, backbones: Backbones = NO_BACKBONES):
        """`backbones` has, by camera, a frozen backbone's features of stacked pictures."""
        self.agent, self._contract, self._backbones = agent, contract, backbones
        plant = contract.plant
        self._read = ObservationReader(plant.inputs[len(plant.fields) :])
        self.mean = torch.tensor(contract.observation_mean)
        self.std = torch.tensor(contract.observation_std)
        low, high = contract.plant.action_low, contract.plant.action_high
        self.centre = torch.tensor((high + low) / 2, dtype=torch.float32)
        self.half_range = torch.tensor((high - low) / 2, dtype=torch.float32)

    @property
    def contract(self) -> Contract:
        return self._contract

    def act(self, observation: Mapping[str, Any], **options: Unpack[ActOptions]) -> Decision:
        """See `rql_deploy.policy.Policy.act`; a local policy computes to the end whatever the deadline."""
        start = time.monotonic()
        asked = ResolvedOptions.of(options, without=WITHOUT)
        candidates, value = asked.candidates, asked.value
        s, x, seed = self._prepare(observation, candidates, asked.seed)
        with torch.no_grad():
            x = integrate(self.agent.v_ema, s.by_v, x, self._contract.F)
            return self._decision(
                s,
                x,
                seed,
                self._contract.F,
                start,
                needs_value=candidates > 1 or value,
                value=value,
                pessimism=asked.pessimism,
            )

    def stream(self, observation: Mapping[str, Any], **options: Unpack[ActOptions]) -> Iterator[Decision]:
        """Yield a usable decision after every refinement step, the last one being what `act` returns.

        With `value`, each has V and spread. Without, only the last is the best of the candidates.
        """
        start = time.monotonic()
        asked = ResolvedOptions.of(options, without=WITHOUT)
        candidates, value = asked.candidates, asked.value
        s, x, seed = self._prepare(observation, candidates, asked.seed)
        F = self._contract.F
        for k in range(F):
            f = torch.full((candidates, 1), k / F)
            with torch.no_grad():
                v = self.agent.v_ema(s.by_v, x, f)
                last = k == F - 1
                finished = torch.clamp(x + v * (1 - f), -1, 1)
                x = x + v / F
                if last:
                    finished = torch.clamp(x, -1, 1)
                decision = self._decision(
                    s,
                    finished,
                    seed,
                    k + 1,
                    start,
                    needs_value=value or (last and candidates > 1),
                    value=value,
                    pessimism=asked.pessimism,
                )
            yield decision

    def _prepare(
        self, observation: Mapping[str, Any], candidates: int, seed: int | None
    ) -> tuple[Seen, Tensor, int]:
        contract = self._contract
        seed = draw_seed() if seed is None else seed
        flat = torch.from_numpy(contract.flatten(observation))
        s = ((flat - self.mean) / self.std)[None]
        pictures = {
            name: torch.from_numpy(np.ascontiguousarray(picture)[None])
            for name, picture in self._read(observation).items()
        }
        for image in contract.plant.images:
            if image.name in self._backbones:
                seen_by_it = self._backbones[image.name](pictures[image.name].numpy(), image)
                pictures[image.name] = torch.from_numpy(seen_by_it)
        with torch.no_grad():
            v, V = (network.see(s, pictures) for network in (self.agent.v_ema, self.agent.V))
        seen = Seen(v.expand(candidates, -1), V.expand(candidates, -1))
        return (
            seen,
            torch.from_numpy(flow_noise(seed, candidates, contract.h * contract.plant.action_dim)),
            seed,
        )

    def _decision(
        self,
        s: Seen,
        x: Tensor,
        seed: int,
        steps: int,
        start: float,
        *,
        needs_value: bool,
        value: bool,
        pessimism: float,
    ) -> Decision:
        best, v, spread = 0, None, None
        if needs_value:
            members = self.agent.V(s.by_V, x, torch.ones(len(x), 1))[: self._contract.value_members]
            means, spreads = members.mean(0), members.std(0, unbiased=False)
            best = int((means - pessimism * spreads).argmax())
            if value:
                v, spread = float(means[best]), float(spreads[best])
        actions = x[best].reshape(self._contract.h, -1) * self.half_range + self.centre
        return Decision(
            actions=actions.numpy().astype(np.float32),
            value=v,
            spread=spread,
            steps_used=steps,
            observation_time=start,
            seed=seed,
            timing={"inference": time.monotonic() - start},
        )

    def reset(self) -> None:
        """Does nothing: this policy has no state between decisions."""


def make_policy(
    checkpoint: Checkpoint,
    value_members: int | None = None,
    flow_steps: int | None = None,
    backbones: Backbones = NO_BACKBONES,
) -> TorchPolicy:
    """The averaged policy of a checkpoint, with the backbones that it was trained with.

    `value_members` is how many value members give V (default: all), `flow_steps` how many refinement steps F
    (default: the training's).
    """
    agent = checkpoint.restore_networks()
    members = value_members or checkpoint.config.rql.K
    contract = make_contract(checkpoint, agent, value_members=members, flow_steps=flow_steps)
    return TorchPolicy(agent, contract, backbones)
