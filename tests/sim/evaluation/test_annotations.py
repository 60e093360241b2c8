"""What an evaluation notes about episodes, on a small plant of our own with real policies: torch, ONNX in
process, a real server.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from rql_deploy.bundle.bundle import Bundle
from rql_deploy.cli.options import parse_prune
from rql_deploy.errors import UserError
from rql_deploy.policy import Policy
from rql_deploy.runtime.client import RemotePolicy
from rql_deploy.runtime.engine.onnx_policy import OnnxPolicy
from rql_deploy.sim.evaluation.annotations import AnnotatedEpisode
from rql_deploy.sim.evaluation.calibration import calibrate
from rql_deploy.sim.evaluation.episodes import Score, append_episode, read_episodes, write_episodes
from rql_deploy.train.checkpoints.checkpoint import load_checkpoint
from rql_deploy.train.policy import make_policy
from rql_deploy.workflows.compare import parity_of
from rql_deploy.workflows.policies import PolicySource, find_policies, run_annotated_episode
from rql_deploy.workflows.training_evaluator import SimulatedEvaluator
from tests.helpers.commands import assert_refused, cli
from tests.helpers.servers import serving

HORIZON = 14
SEEDS = (1, 2, 3)


class Slider:
    """A point that the first action dimension pushes along a line; done when it is far enough, at a pace
    that the seed decides.
    """

    def reset(self, seed: int | None = None) -> None:
        self.position = np.random.default_rng(seed).normal(size=3)
        self.ticks, self.reward = 0, 0.0

    def observe(self) -> dict[str, np.ndarray]:
        return {"observation": np.append(self.position, float(self.ticks))}

    def apply(self, action: np.ndarray) -> None:
        self.position = self.position + 0.1 * float(action[0])
        self.ticks += 1
        self.reward = -float(self.ticks)

    @property
    def success(self) -> bool:
        return self.ticks >= 8 and self.position[0] > 0

    @property
    def finished(self) -> bool:
        return self.success or self.ticks >= HORIZON

    def close(self) -> None: ...


@pytest.fixture(scope="module")
def policies(run: Path, exported: Path) -> Iterator[dict[str, Policy]]:
    with serving(exported) as (endpoint, _), RemotePolicy.connect(endpoint) as remote:
        onnx = OnnxPolicy(Bundle.open(exported))
        yield {
            "onnx": onnx,
            "socket": remote,
            "torch": make_policy(load_checkpoint(run), onnx.contract.value_members),
        }


def play(policy: Policy, candidates: int = 1, **options: object) -> tuple[AnnotatedEpisode, ...]:
    found = tuple(
        run_annotated_episode(Slider(), policy, seed, candidates=candidates, **options) for seed in SEEDS
    )  # type: ignore[arg-type]
    assert all(isinstance(e, AnnotatedEpisode) for e in found)
    return found  # type: ignore[return-value]


@pytest.mark.parametrize(("candidates", "prune"), [(1, ()), (6, ()), (6, ((3, 4), (7, 2)))])
def test_in_process_and_over_the_socket_episodes_are_the_same_to_the_byte(
    policies: dict[str, Policy], candidates: int, prune: tuple[tuple[int, int], ...]
) -> None:
    here = play(policies["onnx"], candidates, prune=prune, others={"socket": policies["socket"]})
    there = play(policies["socket"], candidates, prune=prune)
    assert [e.digest for e in here] == [e.digest for e in there]
    assert [e.values for e in here] == [e.values for e in there]
    pair = parity_of(Score("onnx", here, HORIZON), Score("socket", there, HORIZON))
    assert pair.passed
    assert pair.largest_action_difference == 0.0
    assert len({e.digest for e in here}) == len(SEEDS)


def test_torch_is_within_a_hundred_thousandth_at_the_same_observations_and_the_outcomes_are_counted(
    policies: dict[str, Policy],
) -> None:
    here = play(policies["onnx"], others={"torch": policies["torch"]})
    pair = parity_of(Score("onnx", here, HORIZON), Score("torch", play(policies["torch"]), HORIZON))
    assert pair.passed
    assert 0.0 < pair.largest_action_difference <= 1e-5
    assert pair.outcomes_agree == len(SEEDS)


def test_another_policy_is_found_out(policies: dict[str, Policy]) -> None:
    here = play(policies["onnx"], others={"torch": policies["torch"]})
    off = tuple(replace(e, differences={"torch": 2e-5}) for e in here)
    assert not parity_of(Score("onnx", off, HORIZON), Score("torch", here, HORIZON)).passed
    changed = (*here[:-1], replace(here[-1], digest="0"))
    assert not parity_of(Score("onnx", here, HORIZON), Score("socket", changed, HORIZON)).passed


def test_another_run_s_policy_is_found_out_among_several_candidates_too(
    run: Path, policies: dict[str, Policy]
) -> None:
    checkpoint = load_checkpoint(run)
    generator = torch.Generator().manual_seed(1)
    other = {name: p + torch.randn(p.shape, generator=generator) for name, p in checkpoint.parameters.items()}
    policy = make_policy(
        msgspec.structs.replace(checkpoint, parameters=other), policies["onnx"].contract.value_members
    )
    here = play(policies["onnx"], 6, value=False, others={"torch": policy})
    pair = parity_of(Score("onnx", here, HORIZON), Score("torch", play(policy, 6), HORIZON))
    assert not pair.passed
    assert pair.other_candidate_chosen == 0
    same = play(policies["onnx"], 6, value=False, others={"torch": policies["torch"]})
    assert parity_of(Score("onnx", same, HORIZON), Score("torch", same, HORIZON)).passed


def test_an_episode_that_the_environment_ended_was_not_cut_off(policies: dict[str, Policy]) -> None:
    class Fragile(Slider):
        @property
        def terminated(self) -> bool:
            return self.finished

    for episode in (run_annotated_episode(Fragile(), policies["onnx"], seed, candidates=1) for seed in SEEDS):
        assert isinstance(episode, AnnotatedEpisode)
        assert episode.returns_endless == episode.returns
        assert episode.terminated != episode.success
        found = calibrate([episode])
        assert found is not None
        assert found.cut == 0


@pytest.mark.slow
def test_torch_integrates_in_as_many_steps_as_a_bundle_that_was_exported_with_others(
    run: Path, tmp_path: Path
) -> None:
    bundle = tmp_path / "bundle"
    assert cli("export", run, "--flow-steps", 4, "--output", bundle).exit_code == 0
    found = find_policies(PolicySource(run, bundle), run_annotated_episode)
    plant = Bundle.open(bundle).contract.plant
    onnx, pytorch = (found[key].make_policy(plant) for key in ("onnx", "torch"))
    assert onnx.contract.F == pytorch.contract.F == 4
    here = play(onnx, others={"torch": pytorch})
    assert parity_of(Score("onnx", here, HORIZON), Score("torch", here, HORIZON)).passed


@pytest.mark.parametrize("kind", ["onnx", "socket", "torch"])
def test_the_last_refinement_step_is_the_decision(kind: str, policies: dict[str, Policy]) -> None:
    plant = Slider()
    plant.reset(0)
    decided = policies[kind].act(plant.observe(), candidates=3, value=True, seed=5)
    shown = list(policies[kind].stream(plant.observe(), candidates=3, value=True, seed=5))  # type: ignore[attr-defined]
    assert len(shown) == policies[kind].contract.F
    assert shown[-1].actions.tobytes() == decided.actions.tobytes()
    assert shown[-1].value == decided.value
    assert all(preview.value is not None for preview in shown)
    assert not np.array_equal(shown[0].actions, shown[-1].actions)


def test_returns_are_discounted_sums_of_the_plant_s_rewards_from_each_decision_on(
    policies: dict[str, Policy],
) -> None:
    for episode in play(policies["onnx"], refinement=True):
        rewards = [-float(t + 1) for t in range(episode.steps)]
        for tick, value in zip(episode.decided_at, episode.returns, strict=True):
            assert value == pytest.approx(sum(0.99**i * r for i, r in enumerate(rewards[tick:])))
        left = 0.0 if episode.success else 0.99**episode.steps * rewards[-1] / 0.01
        assert episode.returns_endless[0] == pytest.approx(episode.returns[0] + left)
        assert episode.total_reward == sum(rewards)
        assert episode.decided_at == tuple(range(0, episode.steps, 3))
        assert [row[-1] for row in episode.refinement_values] == pytest.approx(list(episode.values))


class TaughtSparse:
    """A policy whose training saw -1 for every reward other than 0."""

    def __init__(self, policy: Policy):
        self.act, self.reset = policy.act, policy.reset
        provenance = policy.contract.provenance
        config = {**provenance.config, "reward": "sparse"}
        self.contract = msgspec.structs.replace(
            policy.contract, provenance=msgspec.structs.replace(provenance, config=config)
        )


def test_v_is_held_to_the_rewards_that_it_was_taught(policies: dict[str, Policy]) -> None:
    for episode in play(TaughtSparse(policies["onnx"])):
        assert episode.returns[0] == pytest.approx(-sum(0.99**t for t in range(episode.steps)))
        assert episode.total_reward == -sum(range(1, episode.steps + 1))


def test_the_same_seed_is_the_same_episode_whether_v_is_asked_for_or_not(policies: dict[str, Policy]) -> None:
    with_value, without = play(policies["onnx"]), play(policies["onnx"], value=False)
    assert [e.digest for e in with_value] == [e.digest for e in without]
    assert all(not e.values for e in without)
    assert calibrate(without) is None


def made(
    values: list[float], returns: list[float], *, success: bool = True, endless: list[float] | None = None
) -> AnnotatedEpisode:
    return AnnotatedEpisode(
        0, success, 5, values=tuple(values), returns=tuple(returns), returns_endless=tuple(endless or returns)
    )


def test_calibration_finds_bias_order_and_what_the_horizon_hides() -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(-30, 10, (60, 5))
    right = calibrate([made(row.tolist(), row.tolist()) for row in truth])
    assert right is not None
    assert (right.all.bias, right.all.correlation, right.all.rank_correlation) == pytest.approx(
        (0.0, 1.0, 1.0)
    )
    assert sum(b.decisions for b in right.bins) == 300
    assert right.start.decisions == 60

    noise = rng.normal(0, 3, truth.shape)
    high = calibrate(
        [made((row + 5 + n).tolist(), row.tolist()) for row, n in zip(truth, noise, strict=True)]
    )
    assert high is not None
    assert high.all.bias_interval[0] < 5 < high.all.bias_interval[1]
    assert 0.9 < high.all.rank_correlation < 1.0  # type: ignore[operator]
    assert all(b.value > b.achieved for b in high.bins)

    cut = calibrate([made([-20.0], [-20.0], success=False, endless=[-100.0])])
    assert cut is not None
    assert (cut.cut, cut.start.bias, cut.start.bias_endless, cut.start.correlation) == (1, 0.0, 80.0, None)


def test_episodes_survive_a_line_that_a_crash_cut_short(tmp_path: Path, policies: dict[str, Policy]) -> None:
    file = tmp_path / "episodes.jsonl"
    first, second, third = play(policies["onnx"], refinement=True, others={"torch": policies["torch"]})
    append_episode(file, first)
    with file.open("a") as stream:
        stream.write('{"seed": 2, "succ')
    append_episode(file, second)
    assert read_episodes(file) == [first, second]
    write_episodes(file, [third])
    assert read_episodes(file) == [third]
    assert read_episodes(tmp_path / "none") == []


@pytest.mark.parametrize("text", ["5", "5:9", "5:0", "0:4", "5:4,3:2", "5:4,6:4", "a:b", "5:8"])
def test_a_pruning_schedule_that_does_not_prune_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="rising K from 1 and falling KEEP"):
        parse_prune(text, 8)
    assert parse_prune("2:8,5:2", 16) == ((2, 8), (5, 2))
    assert parse_prune("", 8) == ()


@pytest.mark.slow
def test_training_goes_on_when_the_plant_of_an_evaluation_raises(run: Path) -> None:
    evaluator = SimulatedEvaluator(
        "gym:tests.helpers.drifting_cart:tests/HotCart-v0", {}, episodes=2, workers=1, seed=0
    )
    try:
        evaluator.submit(1, load_checkpoint(run).path)
        for future in evaluator._running[1][1]:
            future.exception(timeout=120)
        (played,) = evaluator.finished()
    finally:
        evaluator.close()
    assert (played.step, played.episodes, played.success) == (1, 2, 0.0)


def test_a_plant_that_raises_costs_its_episode_and_a_film_that_fails_no_score(
    bundle: Path, tmp_path: Path
) -> None:
    episodes = tmp_path / "episodes.jsonl"
    hot = (
        "evaluate",
        "gym:tests.helpers.drifting_cart:tests/HotCart-v0",
        "--bundle",
        bundle,
        "--episodes",
        2,
        "--workers",
        1,
    )
    result = cli(*hot, "--output", episodes, "--video", tmp_path / "film.mp4")
    assert_refused(
        result,
        "0 of 2 succeeded",
        "counts as failed: the plant failed at tick 9 (RuntimeError: the motor is hot)",
    )
    assert [(e.success, e.steps, "the motor is hot" in (e.error or "")) for e in read_episodes(episodes)] == [
        (False, 9, True)
    ] * 2
    assert not (tmp_path / "film.mp4").exists()


def test_a_comparison_overwrites_nothing_and_makes_no_page(bundle: Path, run: Path, tmp_path: Path) -> None:
    words = ("evaluate", "robosuite:Lift", "--compare", "--bundle", bundle, "--checkpoint", run)
    (tmp_path / "e_torch.jsonl").touch()
    assert_refused(cli(*words, "--output", tmp_path / "e.jsonl"), "e_torch.jsonl exists already")
    for option, file in (("--report", "r.html"), ("--video", "f.mp4")):
        assert_refused(cli(*words, option, tmp_path / file), "leave them out with --compare")
