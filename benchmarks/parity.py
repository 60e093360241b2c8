"""Compare our RQL update, or our image encoder, with recorded numbers of the reference code.

    python benchmarks/parity.py FIXTURE.npz

The fixture (docs/algorithm.md, Parity) holds parameters, one batch, the random draws of three updates and the
reference code's results. Prints one JSON line with the maximum absolute error of every loss, the gradient,
the four parameter sets after updates 1 and 3, and both sampled actions. Exit status 1 if a loss, gradient or
parameter is off by more than 1e-5 or an action by more than 1e-4 (float32), 2 if the file is not such a
fixture. A file with `images` is an encoder's: its output, and the gradients of sum(output * output_weight),
must agree to 1e-4.
"""

from __future__ import annotations

import json
import sys
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rql_deploy.train.batch import Batch, Noise
from rql_deploy.train.hyperparameters import RQLConfig
from rql_deploy.train.networks import ValueEnsemble, VectorField
from rql_deploy.train.rql import RQL, integrate
from rql_deploy.train.vision.encoder import ImpalaEncoder, ImpalaSize, Stack

TOLERANCE, ACTION_TOLERANCE, ENCODER_TOLERANCE = 1e-5, 1e-4, 1e-4
UPDATES = 3
Fixture = Mapping[str, np.ndarray]


def load_fixture(path: str) -> dict[str, np.ndarray]:
    """All arrays of the file by name."""
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def config_of(fixture: Fixture) -> RQLConfig:
    """The hyperparameters under `config/`."""

    def get(name: str) -> np.ndarray:
        return fixture[f"config/{name}"]

    return RQLConfig(
        h=int(get("h")),
        F=int(get("flow_steps")),
        K=int(get("ensemble_ct")),
        policy_hidden=tuple(map(int, get("actor_hidden_dims"))),
        value_hidden=tuple(map(int, get("value_hidden_dims"))),
        gamma=float(get("discount")),
        kappa=float(get("expectile")),
        rho=float(get("rho")),
        alpha=float(get("alpha")),
        tau=float(get("tau")),
        ema=float(get("ema")),
        learning_rate=float(get("lr")),
    )


def named_parameters(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Pairs (name in the reference's tree, our parameter).

    Shapes agree except for a broadcast dimension of V's biases.
    """
    if isinstance(network, ValueEnsemble):
        for i, (kernel, bias) in enumerate(zip(network.kernels, network.biases, strict=True)):
            yield f"value_net/Dense_{i}/kernel", kernel
            yield f"value_net/Dense_{i}/bias", bias
        for i, (scale, bias) in enumerate(zip(network.norm_scales, network.norm_biases, strict=True)):
            yield f"value_net/LayerNorm_{i}/scale", scale
            yield f"value_net/LayerNorm_{i}/bias", bias
    elif isinstance(network, VectorField):
        last = len(network.kernels) - 1
        for i, (kernel, bias) in enumerate(zip(network.kernels, network.biases, strict=True)):
            layer = "mean_net" if i == last else f"actor_net/Dense_{i}"
            yield f"{layer}/kernel", kernel
            yield f"{layer}/bias", bias
    elif isinstance(network, ImpalaEncoder):
        for i, stack in enumerate(network.stacks):
            assert isinstance(stack, Stack)
            for j, (kernel, bias) in enumerate(zip(stack.kernels, stack.biases, strict=True)):
                yield f"stack_blocks_{i}/Conv_{j}/kernel", kernel
                yield f"stack_blocks_{i}/Conv_{j}/bias", bias
        for i, (kernel, bias) in enumerate(zip(network.mlp_kernels, network.mlp_biases, strict=True)):
            yield f"MLP_0/Dense_{i}/kernel", kernel
            yield f"MLP_0/Dense_{i}/bias", bias
    else:
        raise TypeError(f"no parameter names for {type(network).__name__}")


def load_parameters(network: nn.Module, fixture: Fixture, prefix: str) -> None:
    """Copy the parameters under `prefix` into the network."""
    with torch.no_grad():
        for name, parameter in named_parameters(network):
            parameter.copy_(torch.from_numpy(fixture[f"{prefix}/{name}"]).reshape(parameter.shape))


def parameter_error(network: nn.Module, fixture: Fixture, prefix: str) -> float:
    """Maximum absolute difference between the network's parameters and those under `prefix`."""
    return max(
        max_error(parameter, fixture[f"{prefix}/{name}"]) for name, parameter in named_parameters(network)
    )


def gradient_error(network: nn.Module, fixture: Fixture, prefix: str) -> float:
    """Maximum absolute difference between the network's gradients and those under `prefix`."""
    errors = []
    for name, parameter in named_parameters(network):
        assert parameter.grad is not None, name
        errors.append(max_error(parameter.grad, fixture[f"{prefix}/{name}"]))
    return max(errors)


def max_error(ours: Tensor, reference: np.ndarray) -> float:
    difference = np.abs(
        ours.detach().double().cpu().numpy().reshape(reference.shape) - reference.astype(np.float64)
    )
    # A NaN on either side must fail, and NaN > tolerance is false.
    return float(np.nan_to_num(difference, nan=np.inf, posinf=np.inf).max())


def run(fixture: Fixture, device: str = "cpu") -> dict[str, float]:
    """Errors of updates on `device` by name: `loss/...`, `gradient/...`, `parameters/...`, `action/...`."""
    config = config_of(fixture)

    def tensor(name: str) -> Tensor:
        return torch.from_numpy(fixture[name]).to(device)

    recorded = [name for name in Batch._fields if name not in Batch._field_defaults]
    batch = Batch(*(tensor(f"batch/{name}") for name in recorded))
    agent = RQL(config, batch.observations.shape[-1], batch.actions.shape[-1], device=device)
    networks = {
        "value": agent.V,
        "target_value": agent.V_target,
        "actor": agent.v,
        "target_actor": agent.v_ema,
    }
    for name, network in networks.items():
        load_parameters(network, fixture, f"step0/{name}")

    errors: dict[str, float] = {}
    for update in range(UPDATES):
        noise = Noise(*(tensor(f"noise{update}/{name}") for name in Noise._fields))
        losses = agent.update(batch, noise)
        expected = {
            "total_loss": losses.total,
            "actor_loss": losses.policy_value,
            "bc_loss": losses.bc,
            "critic_loss": losses.value,
        }
        for name, ours in expected.items():
            errors[f"loss/{name}/{update}"] = max_error(ours, fixture[f"info{update}/{name}"])
        errors[f"value_mean/{update}"] = max_error(losses.v_mean, fixture[f"info{update}/q_mean"])
        if update == 0:
            errors["gradient/value"] = gradient_error(agent.V, fixture, "grad0/value")
            errors["gradient/actor"] = gradient_error(agent.v, fixture, "grad0/actor")
        if update + 1 in (1, UPDATES):
            for name, network in networks.items():
                errors[f"parameters/{name}/{update + 1}"] = parameter_error(
                    network, fixture, f"step{update + 1}/{name}"
                )

    s, x = (tensor(f"sample/{name}") for name in ("observation", "noise"))
    with torch.no_grad():
        errors["action/ema"] = max_error(
            integrate(agent.v_ema, s, x, config.F), fixture["sample/actions_ema"]
        )
        errors["action/online"] = max_error(
            integrate(agent.v, s, x, config.F), fixture["sample/actions_online"]
        )
    return errors


def run_encoder(fixture: Fixture) -> dict[str, float]:
    """Errors by name: `encoder/output` and `encoder/gradient/...`."""
    images = torch.from_numpy(fixture["images"])
    if images.dtype is not torch.uint8:
        raise ValueError(f"images are {images.dtype}, not uint8")
    # The reference's convolution kernels are [height, width, in, out].
    ours = {
        name: array.transpose(3, 2, 0, 1) if name.endswith("kernel") and array.ndim == 4 else array
        for name, array in fixture.items()
    }
    stacks, blocks, mlp = (fixture[name] for name in ("stack_sizes", "num_blocks", "mlp"))
    size = ImpalaSize(tuple(map(int, stacks)), int(blocks), tuple(map(int, mlp)))
    height, width, channels = map(int, images.shape[1:])
    encoder = ImpalaEncoder((height, width, channels), size)
    load_parameters(encoder, ours, "params")
    output = encoder(images)
    (output * torch.from_numpy(fixture["output_weight"])).sum().backward()
    errors = {"encoder/output": max_error(output, fixture["output"])}
    for name, parameter in named_parameters(encoder):
        assert parameter.grad is not None, name
        errors[f"encoder/gradient/{name}"] = max_error(parameter.grad, ours[f"grad/{name}"])
    return errors


def passes(errors: Mapping[str, float]) -> bool:
    """Whether every error is within its tolerance."""
    tolerances = {"action": ACTION_TOLERANCE, "encoder": ENCODER_TOLERANCE}
    return all(error <= tolerances.get(name.split("/")[0], TOLERANCE) for name, error in errors.items())


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print("usage: python benchmarks/parity.py FIXTURE.npz", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    try:
        fixture = load_fixture(arguments[0])
        errors = run_encoder(fixture) if "images" in fixture else run(fixture)
    except (OSError, EOFError, ValueError, KeyError, RuntimeError, zipfile.BadZipFile) as error:
        print(f"{arguments[0]} is not a parity fixture (docs/algorithm.md, Parity): {error}", file=sys.stderr)
        return 2
    passed = passes(errors)
    print(json.dumps({"passed": passed, "max_absolute_error": errors}))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
