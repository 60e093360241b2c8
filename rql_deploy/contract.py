"""The contract: everything a robot must know about a policy, typed, versioned and hashed.

A contract travels inside every bundle. It names each observation field and action dimension, so that a swapped order or a missing
normalisation is an error with a name instead of a crash on a robot. It is immutable: its id is the sha256 of its canonical form.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rql_deploy.errors import ContractError
from rql_deploy.plain import from_plain

SCHEMA_VERSION = 1
PLANT_KEY = "rql_deploy_plant"
"""Metadata entry in which a data set of ours carries its `PlantDescription` as JSON."""


@dataclass(frozen=True)
class ObservationField:
    """One named part of the observation `s`."""

    name: str
    shape: tuple[int, ...]
    unit: str = ""
    dtype: str = "float32"

    @property
    def size(self) -> int:
        """Number of scalars."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class ActionDimension:
    """One dimension of an action, in the plant's own units."""

    name: str
    low: float
    high: float
    unit: str = ""
    controller: str = ""
    frame: str = ""
    mode: Literal["delta", "absolute"] = "delta"
    hold: Literal["null", "repeat"] = "null"
    """What a tick without a fresh action does with this dimension: `null` sends zero (delta motion), `repeat` the last value."""


@dataclass(frozen=True)
class PlantDescription:
    """What is controlled: the part of a contract that a plant or a data set knows by itself."""

    task: str
    fields: tuple[ObservationField, ...]
    actions: tuple[ActionDimension, ...]
    control_rate: float
    """Ticks per second."""
    environment: Mapping[str, Any] = field(default_factory=dict)
    """How to rebuild the simulator: gymnasium spec (id, entry_point, kwargs) and controller settings; empty for a real robot."""

    @property
    def observation_dim(self) -> int:
        return sum(f.size for f in self.fields)

    @property
    def action_dim(self) -> int:
        return len(self.actions)

    @property
    def action_low(self) -> NDArray[np.float64]:
        return np.array([a.low for a in self.actions])

    @property
    def action_high(self) -> NDArray[np.float64]:
        return np.array([a.high for a in self.actions])

    def differences(self, other: PlantDescription) -> list[str]:
        """Sentences on what differs from `other` in a way that matters for control; empty if none. The simulator is not compared."""
        found = []
        mine, theirs = {f.name: f for f in self.fields}, {f.name: f for f in other.fields}
        if missing := [name for name in mine if name not in theirs]:
            found.append(f"observation fields {', '.join(missing)} are missing")
        found += [
            f"observation field '{name}' has shape {list(theirs[name].shape)} instead of {list(f.shape)}"
            for name, f in mine.items()
            if name in theirs and theirs[name].shape != f.shape
        ]
        if len(self.actions) != len(other.actions):
            found.append(f"actions have {len(other.actions)} dimensions instead of {len(self.actions)}")
        for a, b in zip(self.actions, other.actions, strict=False):
            found += [
                f"action '{a.name}' has {key} {getattr(b, key)!r} instead of {getattr(a, key)!r}"
                for key in ("name", "low", "high", "unit", "controller", "frame", "mode", "hold")
                if getattr(a, key) != getattr(b, key)
            ]
        if self.control_rate != other.control_rate:
            found.append(f"the control rate is {other.control_rate:g} Hz instead of {self.control_rate:g} Hz")
        return found


@dataclass(frozen=True)
class Calibration:
    """Quantiles of what the training data showed, for gates and for finding drift."""

    levels: tuple[float, ...]
    """Quantile levels in [0, 1]; every list below has one entry per level."""
    observation: Mapping[str, tuple[tuple[float, ...], ...]]
    """Per field: per level, the flattened field's quantiles."""
    action_rate: tuple[tuple[float, ...], ...]
    """Per level: quantile of |a_{t+1} - a_t| for each action dimension, in action units per tick."""
    value: tuple[float, ...]
    """V(s, a, 1) of the exported members on data set chunks."""
    spread: tuple[float, ...]
    """Standard deviation over the exported members there."""


@dataclass(frozen=True)
class Provenance:
    """Where the policy came from."""

    dataset_id: str
    dataset_hash: str
    """sha256 over the transitions (not the file), so that a converted copy has the same one."""
    config: Mapping[str, Any]
    seed: int
    updates: int
    versions: Mapping[str, str]


@dataclass(frozen=True)
class Contract:
    """What a robot must know. Build it with `rql-deploy export`; read it with `Contract.from_json`."""

    plant: PlantDescription
    h: int
    """Actions per chunk."""
    F: int
    """Refinement steps from noise to action."""
    observation_mean: tuple[float, ...]
    observation_std: tuple[float, ...]
    """Scaling inside the exported graph, over the fields in order: (s - mean) / std."""
    value_members: int
    """Members in value.onnx."""
    calibration: Calibration
    provenance: Provenance
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        dim = self.plant.observation_dim
        if len(self.observation_mean) != dim or len(self.observation_std) != dim:
            raise ContractError(
                f"the contract scales {len(self.observation_mean)} numbers but its fields have {dim}: export the bundle again"
            )

    @cached_property
    def contract_id(self) -> str:
        """sha256 of the canonical JSON form."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def to_json(self) -> str:
        """The canonical form: sorted keys, no spaces, finite numbers only."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True, separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Contract:
        """Parse and validate; raises ContractError with what is wrong."""
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise ContractError(f"the contract is not JSON ({error}): copy or export the bundle again") from error
        version = data.get("schema_version") if isinstance(data, dict) else None
        if version != SCHEMA_VERSION:
            raise ContractError(
                f"the contract has schema version {version!r}, this rql-deploy reads {SCHEMA_VERSION}: export the bundle again"
            )
        return from_plain(cls, data, "contract", ContractError)

    def require(self, plant: PlantDescription) -> None:
        """Raise ContractError, naming every difference, unless this policy was made for such a plant."""
        differences = self.plant.differences(plant)
        if differences:
            raise ContractError(f"the policy was made for another plant ({'; '.join(differences)}): use one trained for {plant.task}")

    def flatten(self, observation: Mapping[str, Any], *, where: str = "observation") -> NDArray[np.float32]:
        """Assemble named fields into one `[O]` float32 vector in the contract's order.

        Raises ContractError when a field is missing, has another shape, or is not finite. Fields the policy does not use are ignored.
        """
        parts = []
        for spec in self.plant.fields:
            if spec.name not in observation:
                near = difflib.get_close_matches(spec.name, list(observation), n=1)
                hint = f" (there is '{near[0]}')" if near else ""
                raise ContractError(f"the {where} lacks field '{spec.name}' of shape {list(spec.shape)}{hint}")
            value = np.asarray(observation[spec.name], np.float32)
            if value.shape != spec.shape:
                raise ContractError(f"{where} field '{spec.name}' has shape {list(value.shape)}, the contract says {list(spec.shape)}")
            if not np.isfinite(value).all():
                raise ContractError(f"{where} field '{spec.name}' holds NaN or infinity")
            parts.append(value.reshape(-1))
        return np.concatenate(parts)

    def split(self, rows: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """The inverse of `flatten` for rows `[B, O]`: named fields `[B, *shape]`."""
        fields, start = {}, 0
        for spec in self.plant.fields:
            fields[spec.name] = rows[:, start : start + spec.size].reshape(len(rows), *spec.shape)
            start += spec.size
        return fields
