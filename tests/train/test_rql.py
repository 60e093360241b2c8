import json
import runpy
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from rql_deploy.train.batch import Batch, draw_noise, window_masks
from rql_deploy.train.hyperparameters import RQLConfig
from rql_deploy.train.networks import gelu
from rql_deploy.train.rql import NETWORKS, RQL, integrate, reverse
from tests.helpers.commands import ROOT

FIXTURE = ROOT / "tests" / "data" / "rql_reference_h3.npz"
PARITY = runpy.run_path(str(ROOT / "benchmarks" / "parity.py"))
CONFIG = RQLConfig(h=3, F=10, K=3, policy_hidden=(16, 16), value_hidden=(16, 16))


def random_batch(rows: int = 8, h: int = 3, seed: int = 0) -> Batch:
    g = torch.Generator().manual_seed(seed)
    terminals = torch.zeros(h + 1, rows)
    terminals[1:, 0] = 1.0  # ends at row 1: row 0 of the batch counts in no value term
    return Batch(
        torch.randn(h + 1, rows, 5, generator=g),
        torch.rand(h + 1, rows, 2, generator=g) * 2 - 1,
        -torch.ones(h + 1, rows),
        terminals,
        torch.ones(h + 1, rows),
    )


def parity(path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, object]]:
    status = PARITY["main"]([str(path)])
    return status, json.loads(capsys.readouterr().out.splitlines()[-1])


def test_three_updates_match_the_reference_code(capsys: pytest.CaptureFixture[str]) -> None:
    status, report = parity(FIXTURE, capsys)
    assert status == 0
    errors = report["max_absolute_error"]
    assert isinstance(errors, dict)
    for group in ("loss/", "gradient/", "parameters/", "action/"):
        assert any(name.startswith(group) for name in errors)
    assert {
        f"parameters/{net}/{n}" for net in ("value", "target_value", "actor", "target_actor") for n in (1, 3)
    } <= errors.keys()


@pytest.mark.parametrize(
    "name",
    [
        "info1/bc_loss",
        "grad0/value/value_net/Dense_0/kernel",
        "grad0/actor/mean_net/bias",
        "step0/target_value/value_net/Dense_3/bias",
        "step1/target_actor/actor_net/Dense_1/kernel",
        "step3/value/value_net/LayerNorm_1/scale",
        "sample/actions_ema",
        "noise2/reversal_depth",
        "batch/rewards",
        "config/rho",
    ],
)
def test_parity_fails_when_one_number_of_the_fixture_changes(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arrays = PARITY["load_fixture"](str(FIXTURE))
    changed = arrays[name].copy()
    # The second entry: the first window of the batch is one that counts in no value term.
    changed.reshape(-1)[min(1, changed.size - 1)] += 0.01
    np.savez(tmp_path / "changed.npz", **{**arrays, name: changed})
    status, report = parity(tmp_path / "changed.npz", capsys)
    assert status == 1
    assert report["passed"] is False


def test_parity_needs_every_parameter_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arrays = {
        name: array
        for name, array in PARITY["load_fixture"](str(FIXTURE)).items()
        if not name.startswith(("step1/", "step3/"))
    }
    np.savez(tmp_path / "partial.npz", **arrays)
    assert PARITY["main"]([str(tmp_path / "partial.npz")]) == 2


def test_parity_says_so_when_a_file_is_no_fixture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    assert PARITY["main"]([str(tmp_path / "other.npz")]) == 2
    assert "is not a parity fixture" in capsys.readouterr().err


def test_an_update_is_a_function_of_parameters_batch_and_noise() -> None:
    batch, noise = random_batch(), draw_noise(8, 6, 10, torch.Generator().manual_seed(1))
    after = []
    for _ in range(2):
        agent = RQL(CONFIG, 5, 2, torch.Generator().manual_seed(0))
        torch.manual_seed(len(after))  # the global generator has no say
        agent.update(batch, noise)
        after.append(
            [
                p.detach().clone()
                for p in (*agent.v.parameters(), *agent.V.parameters(), *agent.V_target.parameters())
            ]
        )
    assert all(torch.equal(a, b) for a, b in zip(*after, strict=True))


def test_windows_that_end_early_count_in_no_value_term() -> None:
    _, valid = window_masks(random_batch(), complete_rows=False)
    assert valid.tolist() == [0.0] + [1.0] * 7


def test_complete_rows_keep_windows_that_end_in_success() -> None:
    batch = random_batch()
    batch.masks[:, 0] = 0.0
    _, valid = window_masks(batch, complete_rows=True)
    assert valid.tolist() == [1.0] * 8


def test_nothing_is_bootstrapped_after_the_task_ended() -> None:
    agent = RQL(CONFIG, 5, 2, torch.Generator().manual_seed(0))
    batch = random_batch()
    batch.masks[CONFIG.h - 1] = 0.0
    target = agent.value_target(batch, draw_noise(8, 6, 10, torch.Generator().manual_seed(1)))
    full = -(1 + CONFIG.gamma + CONFIG.gamma**2)
    assert torch.allclose(target[1:], torch.full((7,), full))
    assert torch.allclose(target[0], torch.tensor(-(1 + CONFIG.gamma)))


def test_reversal_of_depth_zero_stays_and_of_depth_one_ends_at_noise_time() -> None:
    agent = RQL(CONFIG, 5, 2, torch.Generator().manual_seed(0))
    s, a = torch.randn(4, 5), torch.rand(4, 6)
    x, f = reverse(agent.v, s, a, torch.tensor([[0.0], [0.5], [1.0], [1.0]]), 10)
    assert torch.equal(x[0], a[0])
    assert not torch.equal(x[2], a[2])
    assert torch.allclose(f.squeeze(), torch.tensor([1.0, 0.5, 0.0, 0.0]), atol=1e-6)


def test_half_of_the_reversal_depths_lie_on_the_flow_grid() -> None:
    depth = draw_noise(1000, 6, 10, torch.Generator().manual_seed(0)).reversal_depth
    on_grid = ((depth * 10).round() / 10 - depth).abs() < 1e-6
    assert on_grid[500:].all()
    assert on_grid[:500].float().mean() < 0.01
    assert set((depth[500:] * 10).round().int().tolist()) == set(range(11))


def test_actions_are_clipped_to_the_unit_box() -> None:
    agent = RQL(CONFIG, 5, 2, torch.Generator().manual_seed(0))
    with torch.no_grad():
        actions = integrate(agent.v, torch.randn(64, 5), 10 * torch.randn(64, 6), 10)
    assert actions.abs().max() == 1.0


def test_cloning_learns_a_value_but_gets_no_policy_gradient_from_it() -> None:
    batch, noise = random_batch(), draw_noise(8, 6, 10, torch.Generator().manual_seed(1))
    gradients = []
    for rewards in (batch.rewards, 5 * batch.rewards):
        agent = RQL(
            msgspec.structs.replace(CONFIG, policy_value_weight=0.0), 5, 2, torch.Generator().manual_seed(0)
        )
        losses = agent.losses(batch._replace(rewards=rewards), noise)
        losses.total.backward()  # type: ignore[no-untyped-call]
        assert losses.policy_value == 0
        gradients.append(([p.grad for p in agent.v.parameters()], [p.grad for p in agent.V.parameters()]))
    (v1, V1), (v2, V2) = gradients
    assert all(torch.equal(a, b) for a, b in zip(v1, v2, strict=True))  # type: ignore[arg-type]
    assert not all(torch.equal(a, b) for a, b in zip(V1, V2, strict=True))  # type: ignore[arg-type]


def test_a_ramp_raises_the_value_term_s_weight_from_nothing_to_all_of_it() -> None:
    def agent_with(**settings: float) -> RQL:
        return RQL(msgspec.structs.replace(CONFIG, **settings), 5, 2, torch.Generator().manual_seed(0))

    batch, noise = random_batch(), draw_noise(8, 6, 10, torch.Generator().manual_seed(1))
    ramp, half = agent_with(policy_value_ramp=4), agent_with(policy_value_weight=0.5)
    weights = []
    for updates in range(6):
        weights.append(float(ramp.policy_value_weight()))
        losses, gradients = ramp.gradients(batch, noise)
        torch.testing.assert_close(
            losses.total, weights[-1] * losses.policy_value + losses.bc + losses.value, rtol=1e-5, atol=1e-6
        )
        if updates == 2:
            for name in NETWORKS:
                getattr(half, name).load_state_dict(getattr(ramp, name).state_dict())
            for mine, theirs in zip(gradients, half.gradients(batch, noise)[1], strict=True):
                torch.testing.assert_close(mine, theirs)
        ramp.apply(gradients)
    assert weights == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]


def test_gelu_without_autograd_is_the_same_function() -> None:
    x = torch.linspace(-8, 8, 4001)
    expected = torch.nn.functional.gelu(x, approximate="tanh")
    with torch.no_grad():
        assert torch.allclose(gelu(x.clone()), expected, atol=1e-6)


def test_without_reversal_partial_actions_learn_from_the_next_complete_ones_from_the_environment() -> None:
    config = msgspec.structs.replace(CONFIG, reversal=False)
    agent = RQL(config, 5, 2, torch.Generator().manual_seed(0))
    batch, noise = random_batch(), draw_noise(8, 6, 10, torch.Generator().manual_seed(1))
    # Depths whose share of the grid is known: complete, one step back, ..., noise.
    noise = noise._replace(reversal_depth=torch.tensor([0.0, 0.05, 0.1, 0.5, 0.95, 1.0, 0.9, 0.0]))
    s, a = batch.observations[0], batch.actions[:3].transpose(0, 1).reshape(8, -1)
    y = agent.value_target(batch, noise)
    x, f, target = agent.stepwise_target(s, s, a, y, noise)
    steps = torch.tensor([0, 0, 1, 5, 10, 10, 9, 0])
    torch.testing.assert_close(f[:, 0], 1 - steps / 10)
    torch.testing.assert_close(x, (1 - f) * noise.bc_noise + f * a)
    with torch.no_grad():
        ahead = agent.V_target(s, x + agent.v(s, x, f) / 10, f + 0.1).mean(0)
    torch.testing.assert_close(target, torch.where(steps == 0, y, ahead), rtol=1e-5, atol=1e-6)


def test_without_reversal_every_grid_time_has_the_same_share() -> None:
    config = msgspec.structs.replace(CONFIG, reversal=False)
    agent = RQL(config, 5, 2)
    noise = draw_noise(22_000, 6, 10, torch.Generator().manual_seed(0))
    zeros = torch.zeros(22_000, 6)
    seen = torch.zeros(22_000, 5)
    _, f, _ = agent.stepwise_target(seen, seen, zeros, zeros[:, 0], noise)
    shares = torch.bincount((f[:, 0] * 10).round().long(), minlength=11) / 22_000
    assert bool(((shares - 1 / 11).abs() < 0.01).all())


def test_the_ablation_changes_the_value_loss_only() -> None:
    whole = RQL(CONFIG, 5, 2, torch.Generator().manual_seed(0))
    ablated = RQL(msgspec.structs.replace(CONFIG, reversal=False), 5, 2, torch.Generator().manual_seed(0))
    batch, noise = random_batch(), draw_noise(8, 6, 10, torch.Generator().manual_seed(1))
    a, b = whole.losses(batch, noise), ablated.losses(batch, noise)
    assert torch.equal(a.bc, b.bc) and torch.equal(a.policy_value, b.policy_value)
    assert not torch.isclose(a.value, b.value)
