"""Whether the modules that are exported compute what the trained networks do.

`export_modules` writes the networks' layers out a second time, in operations whose rows do not influence each
other. A certificate holds the graphs against these modules; here the modules are held against the networks,
so that a change of one without the other is not shipped.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rql_deploy.contract import Contract
from rql_deploy.errors import UserError
from rql_deploy.seeding import flow_noise

from .export_modules import Encoder, FlowPolicy, ValueEstimator
from .logging.summary import seen_images
from .rql import RQL, integrate

ROWS = 16
"""Observations of the data set that are looked at."""
TOLERANCE = 1e-4
"""Largest difference, of half an action range or of the largest |V|; float32 sums differ by some 1e-6."""


@torch.no_grad()
def check_modules(
    agent: RQL,
    contract: Contract,
    reference: Mapping[str, Tensor],
    encoder: Encoder,
    policy: FlowPolicy,
    valuer: ValueEstimator,
) -> None:
    """Raise UserError unless chunks, V and spread of the modules are those of `v_ema` and `V`.

    `reference` has observations of the data set, as a checkpoint keeps them.
    """
    numbers = reference["observations"][:ROWS]
    images = {name: rows[:ROWS] for name, rows in seen_images(reference).items()}
    s = (numbers - torch.tensor(contract.observation_mean)) / torch.tensor(contract.observation_std)
    noise = torch.from_numpy(flow_noise(0, len(s), contract.h * contract.plant.action_dim))
    chunk = integrate(agent.v_ema, agent.v_ema.see(s, images), noise, contract.F)

    features = encoder(numbers, *(images[image.name] for image in contract.plant.images))
    refiner = policy.refiner
    moved = (policy.unrolled(noise, features) - refiner.finish(chunk)) / refiner.half_range
    errors = []
    for x, time in ((noise, 0.0), (chunk, 1.0)):
        f = torch.full((len(s), 1), time)
        members = agent.V(agent.V.see(s, images), x, f)[: contract.value_members]
        trained = torch.stack((members.mean(0), members.std(0, unbiased=False)))
        errors.append(
            (torch.stack(valuer(features, x, f)) - trained).abs() / trained.abs().max().clamp(min=1.0)
        )
    # A difference that is NaN is the largest.
    differences = {"chunks": float(moved.abs().max()), "V": float(torch.stack(errors).max())}
    if wrong := {name: error for name, error in differences.items() if not error <= TOLERANCE}:
        found = ", ".join(f"{name} by {error:.1e}" for name, error in wrong.items())
        raise UserError(
            f"what is exported does not compute what was trained ({found} of their range): a change of "
            "train/networks.py or train/rql.py needs the same one in train/export_modules.py"
        )
