"""A checkpoint's averaged policy behind the policy interface, in torch."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from rql_deploy.contract import Contract
from rql_deploy.policy import Decision
from rql_deploy.seeding import flow_noise

from .rql import RQL, integrate


class TorchPolicy:
    """`v_ema` acting, `V` judging: the reference that exported bundles are compared with."""

    def __init__(self, agent: RQL, contract: Contract):
        self.agent, self._contract = agent, contract
        self.mean = torch.tensor(contract.observation_mean)
        self.std = torch.tensor(contract.observation_std)
        low, high = contract.plant.action_low, contract.plant.action_high
        self.centre = torch.tensor((high + low) / 2, dtype=torch.float32)
        self.half_range = torch.tensor((high - low) / 2, dtype=torch.float32)

    @property
    def contract(self) -> Contract:
        return self._contract

    @torch.no_grad()
    def act(
        self,
        observation: Mapping[str, Any],
        *,
        deadline: float | None = None,
        candidates: int = 1,
        value: bool = False,
        seed: int | None = None,
    ) -> Decision:
        """See `rql_deploy.policy.Policy.act`; a local policy computes to the end whatever the deadline."""
        start = time.monotonic()
        contract = self._contract
        if seed is None:
            seed = secrets.randbits(63)
        flat = torch.from_numpy(contract.flatten(observation))
        s = ((flat - self.mean) / self.std).expand(candidates, -1)
        noise = torch.from_numpy(flow_noise(seed, candidates, contract.h * contract.plant.action_dim))
        x = integrate(self.agent.v_ema, s, noise, contract.F)
        best, v, spread = 0, None, None
        if candidates > 1 or value:
            members = self.agent.V(s, x, torch.ones(candidates, 1))[: contract.value_members]
            means = members.mean(0)
            best = int(means.argmax())
            if value:
                v, spread = float(means[best]), float(members[:, best].std(unbiased=False))
        actions = x[best].reshape(contract.h, -1) * self.half_range + self.centre
        return Decision(
            actions=actions.numpy().astype(np.float32),
            value=v,
            spread=spread,
            steps_used=contract.F,
            observation_time=start,
            seed=seed,
            timing={"inference": time.monotonic() - start},
        )

    def reset(self) -> None:
        """Nothing is kept between decisions."""
