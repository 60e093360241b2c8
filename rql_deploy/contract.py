"""The contract: everything a robot must know about a policy, typed, versioned and hashed.

A contract travels inside every bundle. It names each observation field and action dimension, so that a
swapped order or a missing normalisation is an error with a name instead of a crash on a robot. It is
immutable: its id is the sha256 of its canonical form.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rql_deploy.errors import ContractError, nearest
from rql_deploy.plant_description import (
    MAX_FRAMES,
    MAX_IMAGES,
    PLANT_KEY,
    ActionDimension,
    ImageField,
    ObservationField,
    PlantDescription,
    exceeded_bounds,
)
from rql_deploy.structs import Finite, Record, convert, to_plain

__all__ = [
    "PLANT_KEY",
    "ActionDimension",
    "Calibration",
    "Contract",
    "ContractError",
    "ImageField",
    "ObservationField",
    "PlantDescription",
    "Provenance",
    "shortened",
]

SCHEMA_VERSION = 2
"""Of new contracts. Version 1, which is read too, writes a hold at zero as "null"."""
READ_VERSIONS = (1, 2)
MAX_CONTRACT_CHARACTERS = 16 << 20
DTYPES = ("float32", "uint8")
"""Types of observation fields."""


def shortened(differences: list[str], most: int = 5) -> str:
    """The first differences as one phrase, and how many more there are."""
    more = len(differences) - most
    return "; ".join(differences[:most]) + (f"; and {more} more" if more > 0 else "")


class Calibration(Record, frozen=True):
    """Quantiles of what the training data showed, for gates and for finding drift."""

    levels: tuple[Finite, ...]
    """Quantile levels in [0, 1]; every list below has one entry per level."""
    observation: Mapping[str, tuple[tuple[Finite, ...], ...]]
    """Per field: per level, the flattened field's quantiles."""
    action_rate: tuple[tuple[Finite, ...], ...]
    """Per level: quantile of |a_{t+1} - a_t| for each action dimension, in action units per tick."""
    value: tuple[Finite, ...]
    """V(s, a, 1) of the exported members on data set chunks."""
    spread: tuple[Finite, ...]
    """Standard deviation over the exported members there."""


class Provenance(Record, frozen=True):
    """Where the policy came from."""

    dataset_id: str
    """Name of the data set."""
    dataset_hash: str
    """sha256 over the transitions (not the file), so that a converted copy has the same one."""
    config: Mapping[str, Any]
    """Training configuration."""
    seed: int
    """Base seed of the training."""
    updates: int
    """Gradient steps made."""
    versions: Mapping[str, str]
    """Versions of the packages that shaped the parameters."""


def _drop_defaults(plain: dict[str, Any]) -> None:
    """Drop entries of a plant that say nothing.

    Contracts from before there were `assumed` and pictures have none of them, and keep their ids.
    """
    for part in (plain, *plain["actions"]):
        if not part["assumed"]:
            del part["assumed"]
    if not plain["images"]:
        del plain["images"], plain["frame_stack"]


class Contract(Record, frozen=True, dict=True):
    """What a robot must know. Build it with `rql-deploy export`; read it with `Contract.from_json`."""

    plant: PlantDescription
    """What the policy observes and drives."""
    h: int
    """Actions per chunk."""
    F: int
    """Refinement steps from noise to action."""
    observation_mean: tuple[Finite, ...]
    """Of each scalar of the fields, in order. The exported graph scales an observation: (s - mean) / std."""
    observation_std: tuple[Finite, ...]
    """See observation_mean. Actions are scaled by their bounds: the graph maps [-1, 1] to [low, high]."""
    value_members: int
    """Members of the value ensemble in value.onnx."""
    calibration: Calibration
    """What the training data showed."""
    provenance: Provenance
    """Where the policy came from."""
    prefix_conditioned: bool = False
    """Whether the vector field was trained with the first actions of some chunks given (`rql.prefix`). Its
    refinement graph then takes their number, too."""
    schema_version: int = SCHEMA_VERSION
    """Of this file format. A reader refuses a version it does not know."""

    def __post_init__(self) -> None:
        scaled, dim = len(self.observation_mean), self.plant.observation_dim
        if scaled != dim or len(self.observation_std) != dim:
            raise ContractError(
                f"the contract scales {scaled} numbers but its fields have {dim}: export the bundle again"
            )
        for fault in self._faults():
            raise ContractError(f"the contract {fault}: export the bundle again")

    def _faults(self) -> Iterator[str]:
        """What types cannot say: counts, ranges, names that occur twice."""
        plant, calibration = self.plant, self.calibration
        for kind, names in (
            ("fields", [f.name for f in plant.inputs]),
            ("actions", [a.name for a in plant.actions]),
        ):
            if not names:
                yield f"has no {kind}"
            if repeated := [name for name in names if names.count(name) > 1]:
                yield f"has two {kind} of the name '{repeated[0]}'"
        for f in plant.fields:
            if any(size < 1 for size in f.shape):
                yield f"has a field '{f.name}' of shape {list(f.shape)}"
            if f.dtype not in DTYPES:
                yield f"has a field '{f.name}' of dtype {f.dtype!r}, not one of {', '.join(DTYPES)}"
        for image in plant.images:
            yield from (f"has a camera '{image.name}' that {fault}" for fault in image.faults())
        if len(plant.images) > MAX_IMAGES:
            yield f"has {len(plant.images)} cameras, at most {MAX_IMAGES} are served"
        if not 1 <= plant.frame_stack <= MAX_FRAMES:
            yield f"stacks {plant.frame_stack} frames, between 1 and {MAX_FRAMES} can be"
        for a in plant.actions:
            if not a.low < a.high:
                yield f"has an action '{a.name}' with bounds [{a.low:g}, {a.high:g}]"
        for name, count in (("h", self.h), ("F", self.F), ("value_members", self.value_members)):
            if count < 1:
                yield f"has {name} = {count}"
        if not plant.control_rate > 0:
            yield f"has a control rate of {plant.control_rate:g} Hz"
        if not all(std > 0 for std in self.observation_std):
            yield "divides an observation by a scale that is not above 0"
        levels = calibration.levels
        if list(levels) != sorted(levels) or not all(0 <= level <= 1 for level in levels):
            yield "has calibration levels that do not rise from 0 to 1"
        lists = {
            "action_rate": calibration.action_rate,
            "value": calibration.value,
            "spread": calibration.spread,
            **calibration.observation,
        }
        for name, entries in lists.items():
            if len(entries) != len(levels):
                yield f"has {len(entries)} calibration quantiles of {name} for {len(levels)} levels"

    @cached_property
    def contract_id(self) -> str:
        """sha256 of the canonical JSON form."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def to_json(self) -> str:
        """The canonical form: sorted keys, no spaces, finite numbers, the words of its schema version."""
        # Through the types once, so that integers or numpy numbers in it do not change the id.
        plain = to_plain(convert(to_plain(self), Contract, "contract", ContractError))
        _drop_defaults(plain["plant"])
        if not self.prefix_conditioned:
            del plain["prefix_conditioned"]
        if self.schema_version == 1:
            for action in plain["plant"]["actions"]:
                action["hold"] = "null" if action["hold"] == "zero" else action["hold"]
        return json.dumps(plain, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Contract:
        """Parse and validate; raises ContractError with what is wrong."""
        if len(text) > MAX_CONTRACT_CHARACTERS:
            most = MAX_CONTRACT_CHARACTERS >> 20
            raise ContractError(f"the contract is longer than {most} Mi characters: that is not a contract")
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ContractError(
                f"the contract is not JSON ({error}): copy or export the bundle again"
            ) from error
        version = data.get("schema_version") if isinstance(data, dict) else None
        if version not in READ_VERSIONS:
            raise ContractError(
                f"the contract has schema version {version!r}, this rql-deploy reads {READ_VERSIONS[0]} to "
                f"{READ_VERSIONS[-1]}: export the bundle again, or update rql-deploy if the bundle is newer"
            )
        return convert(data, cls, "contract", ContractError)

    def require(self, plant: PlantDescription) -> None:
        """Raise ContractError, naming every difference, unless this policy was made for such a plant.

        Bounds that the policy's data did not say must lie within those that the plant says.
        """
        differences = [*self.plant.differences(plant), *exceeded_bounds(self.plant, plant)]
        if differences:
            raise ContractError(
                f"the policy was made for another plant, {self.plant.task} ({shortened(differences)}): "
                f"use one trained for {plant.task}"
            )

    def flatten(self, observation: Mapping[str, Any], *, where: str = "observation") -> NDArray[np.float32]:
        """Assemble named fields into one `[O]` float32 vector in the contract's order, without pictures.

        Raises ContractError when a field is missing, has another shape, or is not finite. Fields that the
        policy does not use are ignored.
        """
        parts = []
        for spec in self.plant.fields:
            if spec.name not in observation:
                near = nearest(spec.name, observation, cutoff=0.6)
                hint = f" (there is '{near[0]}')" if near else ""
                raise ContractError(
                    f"the {where} lacks field '{spec.name}' of shape {list(spec.shape)}{hint}"
                )
            value = np.asarray(observation[spec.name], np.float32)
            if value.shape != spec.shape:
                raise ContractError(
                    f"{where} field '{spec.name}' has shape {list(value.shape)}, "
                    f"the contract says {list(spec.shape)}"
                )
            if not np.isfinite(value).all():
                raise ContractError(f"{where} field '{spec.name}' holds NaN or infinity")
            parts.append(value.reshape(-1))
        return np.concatenate(parts) if parts else np.zeros(0, np.float32)

    def split(self, rows: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """The inverse of `flatten` for rows `[B, O]`: named fields `[B, *shape]`."""
        fields, start = {}, 0
        for spec in self.plant.fields:
            fields[spec.name] = rows[:, start : start + spec.size].reshape(len(rows), *spec.shape)
            start += spec.size
        return fields
