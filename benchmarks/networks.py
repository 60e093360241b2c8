"""Policies for the benchmarks: untrained networks of a given size, exported as usual and kept between runs.

Speed does not depend on training.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import msgspec
import numpy as np

from rql_deploy.contract import (
    ActionDimension,
    Calibration,
    Contract,
    ImageField,
    ObservationField,
    PlantDescription,
    Provenance,
)

OBSERVATION, ACTION, CHUNK = 64, 7, 5


ROBOT_FIELDS = {"joints": 7, "velocities": 7, "gripper": 2, "hand": 7, "objects": 28, "goal": 13}
"""The same scalars as a robot sends them, by name."""


def make_plant(images: int = 0, *, named: bool = False) -> PlantDescription:
    """64 scalars, and `images` 224x224x3 images, to 5 x 7 actions at 50 Hz.

    The scalars are one field `state`, or `ROBOT_FIELDS` if `named`.
    """
    sizes = ROBOT_FIELDS if named else {"state": OBSERVATION}
    fields = [ObservationField(name, (size,)) for name, size in sizes.items()]
    fields += [ObservationField(f"camera{i}", (224, 224, 3), dtype="uint8") for i in range(images)]
    return PlantDescription(
        "benchmark", tuple(fields), tuple(ActionDimension(f"a{i}", -1.0, 1.0) for i in range(ACTION)), 50.0
    )


def make_contract(plant: PlantDescription, *, flow_steps: int = 10, members: int = 2) -> Contract:
    """A contract for an untrained policy."""
    numbers = (0.0,) * plant.observation_dim
    return Contract(
        plant=plant,
        h=CHUNK,
        F=flow_steps,
        observation_mean=numbers,
        observation_std=tuple(1.0 for _ in numbers),
        value_members=members,
        calibration=Calibration((0.5,), {}, ((0.0,) * ACTION,), (0.0,), (0.0,)),
        provenance=Provenance("benchmark", "", {}, 0, 0, {}),
    )


def network_bundle(
    hidden: tuple[int, ...] = (512, 512, 512, 512),
    *,
    flow_steps: int = 10,
    members: int = 2,
    cameras: int = 0,
    side: int = 84,
) -> Path:
    """The folder of a float32 and int8 bundle with networks of that size; the first call takes a minute.

    With `cameras`, the policy sees as many square pictures of `side` pixels, by the small IMPALA encoder.
    """
    name = f"{'x'.join(map(str, hidden))}-F{flow_steps}-M{members}-int8"
    name += f"-{cameras}x{side}" if cameras else ""
    folder = Path(tempfile.gettempdir()) / "rql-deploy-benchmarks" / name
    if folder.is_dir():
        return folder
    # Imported here, so that the measured servers and clients do not load torch.
    import torch

    from rql_deploy.export.exporter import ExportModules, export_bundle
    from rql_deploy.train.export_modules import make_modules
    from rql_deploy.train.hyperparameters import RQLConfig
    from rql_deploy.train.rql import RQL
    from rql_deploy.train.vision.pictures import picture_shapes

    plant = make_plant()
    plant = msgspec.structs.replace(
        plant, images=tuple(ImageField(f"camera{i}", side, side) for i in range(cameras))
    )
    contract = make_contract(plant, flow_steps=flow_steps, members=members)
    config = RQLConfig(h=CHUNK, K=max(2, members), F=flow_steps, policy_hidden=hidden, value_hidden=hidden)
    shapes = picture_shapes(plant)
    agent = RQL(config, OBSERVATION, ACTION, torch.Generator().manual_seed(0), pictures=shapes)
    encoder, refiner, policy, valuer = make_modules(agent, contract)
    features = encoder.feature_dim
    rng, count = np.random.default_rng(0), 128 if cameras else 1024
    rows = rng.normal(size=(count, OBSERVATION)).astype(np.float32)
    images = {name: rng.integers(0, 256, (count, *shape), np.uint8) for name, shape in shapes.items()}
    export_bundle(
        ExportModules(encoder, refiner, policy, valuer, features),
        contract,
        rows,
        folder,
        images=images,
        precisions=("int8",),
    )
    return folder
