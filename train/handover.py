"""What a checkpoint hands to the exporter and to the evaluation: its contract, its exportable modules, its acting policy."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rql_deploy.contract import Calibration, Contract, Provenance
from rql_deploy.errors import UserError

from .checkpoint import Checkpoint
from .config import config_to_plain
from .export_modules import Encoder, FlowPolicy, Refiner, Valuer
from .policy import TorchPolicy
from .rql import RQL


def make_contract(checkpoint: Checkpoint, agent: RQL, *, value_members: int = 2, flow_steps: int | None = None) -> Contract:
    """The contract of this checkpoint exported with M = `value_members` and F = `flow_steps` (the training's by default)."""
    config, statistics = checkpoint.config, checkpoint.statistics
    if not 1 <= value_members <= config.rql.K:
        raise UserError(
            f"--value-members is {value_members}, but the checkpoint has {config.rql.K} value networks: pass 1 to {config.rql.K}"
        )
    levels = statistics["quantile_levels"]
    mean, std = checkpoint.reference["mean"], checkpoint.reference["std"]
    with torch.no_grad():
        s = (checkpoint.reference["observations"] - mean) / std
        members = agent.V(s, checkpoint.reference["chunks"], torch.ones(len(s), 1))[:value_members].double()
        quantile = torch.tensor(levels, dtype=torch.float64)
        value, spread = (torch.quantile(part, quantile).tolist() for part in (members.mean(0), members.std(0, unbiased=False)))
    return Contract(
        plant=checkpoint.plant,
        h=config.rql.h,
        F=flow_steps or config.rql.F,
        observation_mean=tuple(mean.tolist()),
        observation_std=tuple(std.tolist()),
        value_members=value_members,
        calibration=Calibration(
            levels=tuple(levels),
            observation={name: tuple(map(_flat, rows)) for name, rows in statistics["observation_quantiles"].items()},
            action_rate=tuple(map(tuple, statistics["action_rate_quantiles"])),
            value=tuple(value),
            spread=tuple(spread),
        ),
        provenance=Provenance(
            dataset_id=checkpoint.dataset_id,
            dataset_hash=checkpoint.dataset_hash,
            config=config_to_plain(config),
            seed=config.seed,
            updates=checkpoint.step,
            versions=checkpoint.versions,
        ),
    )


def make_modules(agent: RQL, contract: Contract) -> tuple[Encoder, Refiner, FlowPolicy, Valuer]:
    """The averaged policy and the first M value members as exportable modules."""
    low, high = contract.plant.action_low, contract.plant.action_high
    members = contract.value_members
    encoder = Encoder(agent.v_ema, agent.V, members, torch.tensor(contract.observation_mean), torch.tensor(contract.observation_std))
    refiner = Refiner(
        agent.v_ema,
        torch.tensor((high + low) / 2, dtype=torch.float32),
        torch.tensor((high - low) / 2, dtype=torch.float32),
    )
    return encoder, refiner, FlowPolicy(encoder, refiner, contract.F), Valuer(agent.v_ema, agent.V, members)


def all_members(agent: RQL, contract: Contract) -> Callable[[Tensor, Tensor], Tensor]:
    """V of all K members as a function of unscaled observations `[B, O]` and complete chunks x `[B, hA]` in [-1, 1]: `[B]`."""
    mean, std = torch.tensor(contract.observation_mean), torch.tensor(contract.observation_std)

    def value(observations: Tensor, x: Tensor) -> Tensor:
        members: Tensor = agent.V((observations - mean) / std, x, torch.ones(len(x), 1))
        return members.mean(0)

    return value


def make_policy(checkpoint: Checkpoint, value_members: int | None = None, flow_steps: int | None = None) -> TorchPolicy:
    """The checkpoint's averaged policy, judged by its first `value_members` value members (all of them by default), in F = `flow_steps`."""
    agent = checkpoint.restore_networks()
    members = value_members or checkpoint.config.rql.K
    return TorchPolicy(agent, make_contract(checkpoint, agent, value_members=members, flow_steps=flow_steps))


def _flat(row: list[float]) -> tuple[float, ...]:
    return tuple(float(x) for x in row)
