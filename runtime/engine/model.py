"""A loaded bundle: its four graphs as onnxruntime sessions."""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from rql_deploy.bundle.bundle import Bundle
from rql_deploy.bundle.rollout import ENCODE_ROWS, encode, refine_inputs
from rql_deploy.contract import Contract
from rql_deploy.errors import ContractError
from rql_deploy.flow import flow_schedule
from rql_deploy.prefix import Prefix, scaled
from rql_deploy.runtime.wire.checks import all_finite

from .continuation import Continuation
from .latency import CostModel
from .providers import open_sessions

Array = NDArray[np.float32]

MAX_STEP_ROWS = 64
"""Most rows of one refinement step. The certificate compares single rows with batches up to this size."""
WARM_SIZES = (1, 2, 4, 8, 16, 32, 64)
PICTURE_ROUNDS = 3


class Model:
    """The four graphs of one bundle. Not thread-safe: only the engine that owns it may call it."""

    def __init__(self, bundle: Bundle, name: str | None = None, *, provider: str = "cpu"):
        self.contract: Contract = bundle.contract
        self.name = name or bundle.contract.plant.task
        self.costs = CostModel()
        self.manifest = bundle.manifest
        self._bundle = bundle  # Keeps the folder that a .zip was unpacked to.
        self._sessions = open_sessions(bundle, provider)
        plant = self.contract.plant
        self.chunk_dim = self.contract.h * plant.action_dim
        self.feature_dim = int(self._sessions["refine"].get_inputs()[0].shape[1])
        self.sees = bool(plant.images)
        """Whether observations have pictures: these are encoded once a decision."""
        self.schedule = flow_schedule(self.contract.F)
        self._centre = ((plant.action_high + plant.action_low) / 2).astype(np.float32)
        self._half_range = ((plant.action_high - plant.action_low) / 2).astype(np.float32)
        self._fields = [(field.name, field.shape, np.dtype(field.dtype)) for field in plant.inputs]

    def encode(self, fields: Mapping[str, Array]) -> Array:
        """Named fields and pictures `[B, *shape]` -> features `[B, D]`."""
        start = time.monotonic()
        features: Array = encode(self._sessions["encode"], fields)
        self.costs.observe("encode", len(features), time.monotonic() - start)
        return features

    def unrolled(self, fields: Mapping[str, Array], noise: Array) -> Array:
        """Named fields `[B, *shape]` and noise `[B, hA]` -> actions `[B, h, A]` after all F steps.

        A model that `sees` takes `features` `[B, D]` in place of the fields.
        """
        start = time.monotonic()
        actions: Array = self._sessions["policy"].run(None, {"noise": noise, **fields})[0]
        self.costs.observe("unrolled", len(noise), time.monotonic() - start)
        return actions

    def value(self, features: Array, x: Array, f: Array) -> tuple[Array, Array]:
        """features `[B, D]`, x `[B, hA]`, f `[B, 1]` -> V `[B]` and spread `[B]`."""
        parts = []
        for i in range(0, len(x), MAX_STEP_ROWS):
            rows = slice(i, i + MAX_STEP_ROWS)
            start = time.monotonic()
            parts.append(
                self._sessions["value"].run(None, {"features": features[rows], "x": x[rows], "f": f[rows]})
            )
            self.costs.observe("value", len(parts[-1][0]), time.monotonic() - start)
        if len(parts) == 1:
            return parts[0][0], parts[0][1]
        return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])

    def value_of_chunks(self, features: Array, actions: Array) -> tuple[Array, Array]:
        """V and spread `[B]` of complete chunks `[B, h, A]` in the plant's units: V(s, x, 1)."""
        return self.value(features, self.scaled(actions), np.ones((len(actions), 1), np.float32))

    def continuation(self, prefix: Prefix | None) -> Continuation | None:
        """What a job needs to continue these actions."""
        if prefix is None:
            return None
        in_flow = scaled(prefix.actions, self.contract)
        return Continuation.of(prefix.method, prefix.actions, prefix.committed, in_flow, self.contract.h)

    def scaled(self, actions: Array) -> Array:
        """Chunks `[B, h, A]` in the plant's units -> x `[B, hA]` in [-1, 1]."""
        return ((actions - self._centre) / self._half_range).reshape(len(actions), -1)

    def finish(self, x: Array) -> Array:
        """x `[B, hA]`, clipped to [-1, 1], as chunks `[B, h, A]` in the plant's units."""
        chunks = np.clip(x, -1.0, 1.0).reshape(len(x), self.contract.h, -1)
        return chunks * self._half_range + self._centre

    def refine(
        self, features: Array, x: Array, f: Array, delta: Array, given: NDArray[np.int64] | None = None
    ) -> tuple[Array, Array]:
        """One refinement step -> next x `[B, hA]` and preview `[B, h, A]`; several calls for many rows.

        `given` `[B]`: how many first actions of x stay as they are, for a bundle that was trained so.
        """
        feed = refine_inputs(self.contract, features, x, f, delta, given)
        if len(x) <= MAX_STEP_ROWS:
            next_x, preview = self._sessions["refine"].run(None, feed)
            return next_x, preview
        parts = []
        for i in range(0, len(x), MAX_STEP_ROWS):
            rows = slice(i, i + MAX_STEP_ROWS)
            parts.append(
                self._sessions["refine"].run(None, {name: value[rows] for name, value in feed.items()})
            )
        return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])

    def rows(self, observation: Mapping[str, NDArray[np.generic]]) -> dict[str, Array]:
        """Check one observation against the contract; returns the contract's fields as `[1, *shape]`.

        Raises ContractError when a field is missing, has another shape, or is not finite.
        """
        found: dict[str, Array] = {}
        for name, shape, dtype in self._fields:
            value = observation.get(name)
            if value is None or value.shape != shape or (value.dtype != dtype and dtype.kind != "f"):
                self.contract.flatten(observation)  # Raises the error that says what is wrong.
                raise ContractError(f"observation field '{name}' does not fit the contract")
            row: Array = np.asarray(value, dtype)[None]
            if not all_finite(row):
                raise ContractError(f"observation field '{name}' holds NaN or infinity")
            found[name] = row
        return found

    def warm_up(self, rounds: int = 12) -> None:
        """Run every graph in every size: later calls allocate nothing, and the durations are measured."""
        zeros = {spec.name: np.zeros((1, *spec.shape), spec.dtype) for spec in self.contract.plant.inputs}
        features = self.encode(zeros)
        for size in WARM_SIZES:
            many, x, column = (
                np.repeat(features, size, axis=0),
                np.zeros((size, self.chunk_dim), np.float32),
                np.ones((size, 1), np.float32),
            )
            fields = {name: np.repeat(value, size, axis=0) for name, value in zeros.items()}
            for i in range(rounds if size <= 16 else 3):
                # Pictures take long, and batches of them as long as the calls of a few that they are made of.
                if not self.sees or (size <= ENCODE_ROWS and i < PICTURE_ROUNDS):
                    self.encode(fields)
                self.unrolled({"features": many} if self.sees else fields, x)
                start = time.monotonic()
                self.refine(many, x, column, column)
                self.costs.observe("step", size, time.monotonic() - start)
                self.value(many, x, column)
