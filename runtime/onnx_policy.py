"""A bundle behind the policy interface, in this process: what the server runs, and what evaluation compares the server with."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rql_deploy.bundle import Bundle
from rql_deploy.contract import Contract
from rql_deploy.errors import ContractError
from rql_deploy.policy import MAX_CANDIDATES, Decision
from rql_deploy.seeding import flow_noise


class OnnxPolicy:
    """The unrolled policy graph makes the chunks; the value graph, loaded with it, judges them when asked."""

    def __init__(self, bundle: Bundle):
        self._contract = bundle.contract
        self._encode, self._policy, self._value = (bundle.session(name) for name in ("encode", "policy", "value"))
        plant = bundle.contract.plant
        self._centre = ((plant.action_high + plant.action_low) / 2).astype(np.float32)
        self._half_range = ((plant.action_high - plant.action_low) / 2).astype(np.float32)

    @property
    def contract(self) -> Contract:
        return self._contract

    def warm_up(self, rounds: int = 3) -> None:
        """Run every graph, so that the first request does not pay for first-time allocations."""
        zeros = {f.name: np.zeros(f.shape, np.float32) for f in self._contract.plant.fields}
        for candidates in (1, 8) * rounds:
            self.act(zeros, candidates=candidates, value=True, seed=0)

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
        if not 1 <= candidates <= MAX_CANDIDATES:
            raise ContractError(f"candidates is {candidates}: pass 1 to {MAX_CANDIDATES}")
        if seed is None:
            seed = secrets.randbits(63)
        row = contract.flatten(observation)[None]
        rows = contract.split(np.repeat(row, candidates, axis=0))
        noise = flow_noise(seed, candidates, contract.h * contract.plant.action_dim)
        chunks = self._policy.run(None, {"noise": noise, **rows})[0]
        best, v, spread = 0, None, None
        if candidates > 1 or value:
            values, spreads = self._judge(rows, chunks)
            best = int(values.argmax())
            if value:
                v, spread = float(values[best]), float(spreads[best])
        return Decision(
            actions=chunks[best],
            value=v,
            spread=spread,
            steps_used=contract.F,
            observation_time=start,
            seed=seed,
            timing={"inference": time.monotonic() - start},
        )

    def reset(self) -> None:
        """Nothing is kept between decisions."""

    def _judge(
        self, rows: Mapping[str, NDArray[np.float32]], chunks: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        features = self._encode.run(None, dict(rows))[0]
        x = ((chunks - self._centre) / self._half_range).reshape(len(chunks), -1)
        values, spreads = self._value.run(None, {"features": features, "x": x, "f": np.ones((len(chunks), 1), np.float32)})
        return values, spreads
