"""Training with given actions: the draws, the loss against a plain sum, and what is exported of it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from rql_deploy.bundle.bundle import Bundle
from rql_deploy.bundle.certificate import Certificate, read_certificate
from rql_deploy.contract import Contract
from rql_deploy.errors import UserError
from rql_deploy.export.exporter import export_bundle
from rql_deploy.export.graphs import ExportModules
from rql_deploy.prefix import scaled
from rql_deploy.runtime.engine.onnx_policy import OnnxPolicy
from rql_deploy.seeding import flow_noise
from rql_deploy.train.batch import draw_noise
from rql_deploy.train.checkpoints.checkpoint import require_same_networks
from rql_deploy.train.config import load_config
from rql_deploy.train.export_modules import make_modules
from rql_deploy.train.hyperparameters import RQLConfig
from rql_deploy.train.networks import VectorField
from rql_deploy.train.policy import TorchPolicy
from rql_deploy.train.prefix import draw_times
from rql_deploy.train.rql import RQL
from tests.helpers.commands import ROOT
from tests.helpers.data import make_store
from tests.helpers.updates import agent_and_draw

h, F = 4, 3
CONFIG = RQLConfig(h=h, F=F, K=2, policy_hidden=(16, 16), value_hidden=(16, 16), prefix=True)


def make_agent() -> RQL:
    agent = RQL(CONFIG, 4, 2, torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for network in (agent.v, agent.v_ema):
            for parameter in network.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return agent


def test_as_many_actions_are_given_as_any_other_number_up_to_half() -> None:
    times = draw_times(torch.full((3000, 1), 0.25), 5, torch.Generator().manual_seed(0))
    given = (times == 1.0).sum(-1)
    assert torch.equal(times == 1.0, torch.arange(5) < given[:, None])
    assert set(times.unique().tolist()) == {0.25, 1.0}
    assert [int((given == d).sum()) / 3000 for d in range(3)] == pytest.approx([1 / 3] * 3, abs=0.03)
    # What else is drawn is as without it.
    plain, more = (
        draw_noise(8, 10, 4, torch.Generator().manual_seed(2), prefix_of=prefix) for prefix in (0, 5)
    )
    assert all(torch.equal(a, b) for a, b in zip(plain[:3], more[:3], strict=True))
    assert torch.equal(more.bc_time[:, -1:], plain.bc_time)


def test_the_loss_is_the_mean_over_the_actions_that_are_not_given() -> None:
    config = msgspec.structs.replace(CONFIG, h=3, F=4)
    agent, draw, generator = agent_and_draw(config)
    batch, _ = draw()
    noise = draw_noise(16, 6, 4, generator, prefix_of=3)
    past = torch.cat((torch.zeros_like(batch.terminals[:1]), batch.terminals[:-1]))
    a = batch.actions[:3].movedim(0, -2).flatten(-2)
    total, ahead = 0.0, []
    for i in range(16):
        d = int((noise.bc_time[i] == 1).sum())
        t = noise.bc_time[i, -1]
        x = (1 - t) * noise.bc_noise[i] + t * a[i]
        seen = torch.cat((a[i, : 2 * d], x[2 * d :]))
        u = agent.v(batch.observations[0, i : i + 1], seen[None], noise.bc_time[i : i + 1])[0]
        straight = a[i] - noise.bc_noise[i]
        for j in range(d, 3):
            error = (u - straight)[2 * j : 2 * j + 2].detach().square().mean()
            total += float((1 - past[j, i]) * error) / (3 - d)
        moved = x + torch.cat((straight[: 2 * d], u[2 * d :])) * min(float(1 - t), 0.25)
        f = torch.clamp(t + 0.25, max=1.0)[None, None]
        ahead.append(agent.V(batch.observations[0, i : i + 1], moved[None], f[0][None]).mean().item())
    losses = agent.losses(batch, noise)
    assert losses.bc.item() == pytest.approx(total / 16, rel=1e-4)
    assert losses.ahead_mean.item() == pytest.approx(float(np.mean(ahead)), abs=1e-4)
    before = [p.clone() for p in agent.v.parameters()]
    agent.update(batch, noise)
    assert not all(torch.equal(p, q) for p, q in zip(before, agent.v.parameters(), strict=True))


def test_a_field_of_one_time_per_action_takes_one_for_all() -> None:
    field = VectorField(4, 2 * h, (8,), torch.Generator().manual_seed(0), times=h)
    s, x, f = torch.randn(5, 4), torch.randn(5, 2 * h), torch.rand(5, 1)
    assert torch.equal(field(s, x, f), field(s, x, f.expand(5, h)))
    with pytest.raises(Exception, match=r"chunks of two actions and more: set rql\.h=2"):
        load_config("reference", ["rql.prefix=true", "rql.h=1"])


@pytest.fixture(scope="module")
def conditioned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of an untrained policy whose vector field can be given actions."""
    base = Bundle.open(ROOT / "tests" / "data" / "tiny_bundle").contract
    contract = msgspec.structs.replace(base, h=h, F=F, value_members=2, prefix_conditioned=True)
    encoder, refiner, policy, valuer = make_modules(make_agent(), contract)
    folder = tmp_path_factory.mktemp("conditioned") / "bundle"
    rows = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
    modules = ExportModules(encoder, refiner, policy, valuer, encoder.feature_dim)
    certificate: Certificate = export_bundle(modules, contract, rows, folder)
    assert certificate.passed
    return folder


def test_the_bundle_says_so_and_its_given_steps_are_certified(conditioned: Path) -> None:
    contract = Bundle.open(conditioned).contract
    assert contract.prefix_conditioned
    assert Contract.from_json(contract.to_json()) == contract
    plain = msgspec.structs.replace(contract, prefix_conditioned=False)
    assert "prefix_conditioned" not in plain.to_json()
    assert plain.contract_id != contract.contract_id
    graphs = {check.graph for check in read_certificate(conditioned).checks}
    assert {f"given/{k}/{part}" for k in range(F) for part in ("x", "preview")} <= graphs


def test_the_engine_continues_a_chunk_as_the_field_was_trained(conditioned: Path) -> None:
    onnx, agent = OnnxPolicy(Bundle.open(conditioned)), make_agent()
    contract = onnx.contract
    observation = {"observation": np.linspace(-1, 1, 4)}
    prefix = np.array([[0.5, -0.5], [1.0, 0.25]], np.float32)
    y = torch.from_numpy(scaled(prefix, contract)).flatten()
    s = torch.from_numpy((contract.flatten(observation) - contract.observation_mean).astype(np.float32))
    s = (s / torch.tensor(contract.observation_std))[None]
    for d in (1, 2):
        x = torch.from_numpy(flow_noise(3, 1, 2 * h))
        for k in range(F):
            x[0, : 2 * d] = y[: 2 * d]
            times = torch.where(torch.arange(h) < d, 1.0, k / F)[None]
            with torch.no_grad():
                x = x + agent.v_ema(s, x, times) / F
        ours = onnx.act(observation, seed=3, prefix=prefix, committed=d)
        assert ours.actions[:d].tobytes() == prefix[:d].tobytes()
        theirs = x[0, 2 * d :].clamp(-1, 1).reshape(-1, 2).numpy()
        assert scaled(ours.actions[d:], contract) == pytest.approx(theirs, abs=1e-5)
        many = onnx.act(observation, seed=3, prefix=prefix, committed=d, candidates=20, value=True)
        assert many.actions[:d].tobytes() == prefix[:d].tobytes()
    # Beyond what training gave, it is guided.
    longer = np.concatenate([prefix, prefix[:1]])
    given, guided = (onnx.act(observation, seed=3, prefix=longer, continuation=c) for c in (None, "guidance"))  # type: ignore[arg-type]
    assert given.actions.tobytes() == guided.actions.tobytes()
    # Without a prefix nothing is given.
    torch_policy = TorchPolicy(agent, contract)
    plain = onnx.act(observation, seed=3).actions
    assert plain == pytest.approx(torch_policy.act(observation, seed=3).actions, abs=1e-5)


def test_networks_of_the_other_kind_are_refused_with_what_to_set() -> None:
    store = make_store((20, 30))
    plain = load_config("reference", ["rql.h=3"])
    conditioned = load_config("reference", ["rql.h=3", "rql.prefix=true"])
    for had, now, setting in ((plain, conditioned, "false"), (conditioned, plain, "true")):
        checkpoint: Any = SimpleNamespace(path="run", plant=store.plant, config=had)
        with pytest.raises(UserError, match=f"pass --set 'rql.prefix={setting}'"):
            require_same_networks(checkpoint, store, now)
