"""A simulation that becomes unstable costs its own episode, wherever episodes are played or recorded."""

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mujoco
import numpy as np
import pytest

from rql_deploy.plant import UNSTABLE, UnstableSimulation
from rql_deploy.seeding import episode_seed
from rql_deploy.sim.collection import collect as collection
from rql_deploy.sim.demonstrators.ogbench_play import RECIPES, PlayGenerator
from rql_deploy.sim.evaluation.episodes import read_episodes
from rql_deploy.sim.plants.tasks import Task
from rql_deploy.sim.stability import stable_step
from rql_deploy.train.data.readers.minari import read_minari
from rql_deploy.workflows import collect as collecting
from tests.helpers.commands import cli

NAN_CART = "gym:tests.helpers.drifting_cart:tests/NanCart-v0"
BALL = "<mujoco><worldbody><body><freejoint/><geom size='.1'/></body></worldbody></mujoco>"


class Ball:
    """A ball that can be given a velocity which MuJoCo does not accept."""

    def __init__(self) -> None:
        self.model = mujoco.MjModel.from_xml_string(BALL)
        self.data = mujoco.MjData(self.model)

    def simulation(self) -> tuple[Any, Any]:
        return self.model, self.data

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.data.qvel[:] = action
        mujoco.mj_step(self.model, self.data)
        return {"qpos": np.array(self.data.qpos)}, 0.0, False, False, {"success": False}

    def reset(self, *, seed: int | None = None) -> Any: ...


def test_mujoco_s_warning_is_noticed_although_all_numbers_are_finite_again() -> None:
    ball = Ball()
    stable_step(ball, np.zeros(6))
    for _ in range(2):
        with pytest.raises(UnstableSimulation, match="MuJoCo warns of BADQVEL"):
            stable_step(ball, np.full(6, 1e30))
        assert np.isfinite(ball.data.qpos).all()
        mujoco.mj_resetData(ball.model, ball.data)
        stable_step(ball, np.zeros(6))


@pytest.mark.parametrize("what", [np.linalg.LinAlgError("SVD"), FloatingPointError("overflow")])
def test_what_numpy_raises_at_nan_is_an_unstable_simulation(what: Exception) -> None:
    def step(_: Any) -> Any:
        raise what

    env = SimpleNamespace(simulation=lambda: (None, None), step=step)
    with pytest.raises(UnstableSimulation, match=str(what)):
        stable_step(env, np.zeros(1))  # type: ignore[arg-type]


def test_evaluate_counts_an_unstable_episode_as_failed_and_goes_on(bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "episodes.jsonl"
    result = cli(
        "evaluate", NAN_CART, "--bundle", bundle, "--episodes", 4, "--workers", 1, "--output", file, "--json"
    )
    assert result.exit_code == 0, result.output
    played = read_episodes(file)
    assert [e.error_kind for e in played] == ["", UNSTABLE, "", UNSTABLE]
    for episode in played[1::2]:
        assert f"seed {episode.seed} counts as failed: the plant failed at tick 6" in result.output


@pytest.mark.parametrize("real_time", [False, True])
def test_run_goes_on_after_an_unstable_episode_and_names_its_seed(
    endpoint: str, tmp_path: Path, real_time: bool
) -> None:
    limits, data = tmp_path / "limits.toml", tmp_path / "played"
    limits.write_text('on_violation = "clamp"\n')
    more = ("--real-time", "--no-fault-latch", "--limits", limits, "--record", data) if real_time else ()
    result = cli("run", NAN_CART, "--connect", endpoint, "--episodes", 3, *more)
    assert result.exit_code == 0, result.output
    seed = episode_seed(0, 1, "evaluate")
    assert (
        "episode 2: the plant failed at tick 6 (UnstableSimulation: observation is not finite)"
        in result.output
    )
    assert f"(seed {seed})" in result.output and "episode 3: success" in result.output
    if real_time:
        store = read_minari(str(data))
        assert np.isfinite(store.observations).all()


class Demonstrator:
    """Does nothing."""

    def act(self, observation: Mapping[str, Any]) -> np.ndarray:
        return np.zeros(2, np.float32)


class Notes:
    """Keeps what a workflow notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return (lambda text: self.notes.append(text)) if name == "note" else (lambda *_, **__: None)


def test_collect_leaves_an_unstable_episode_out_and_notes_its_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def in_this_process(task: Task, episodes: int, *, seed: int, **_: Any) -> Any:
        for index in range(episodes):
            yield collection.demonstrate(task, index, episode_seed(seed, index, "collect"), (0.0, 0.0))

    monkeypatch.setattr(collection, "_env", None)
    monkeypatch.setattr(collection, "draw_demonstrator", lambda *_: (0.0, Demonstrator()))
    monkeypatch.setattr(collection, "collect", in_this_process)
    notes = Notes()
    result = collecting.collect(NAN_CART, tmp_path / "data", episodes=3, progress=notes)
    seed = episode_seed(0, 1, "collect")
    assert (result.episodes, result.unstable) == (2, (seed,))
    assert notes.notes == [
        f"episode 1 (seed {seed}) became unstable at step 6 (observation is not finite): it is left out"
    ]
    store = read_minari(str(tmp_path / "data"))
    assert store.episodes == 2 and np.isfinite(store.observations).all()
    assert str(seed) in (tmp_path / "data" / "data" / "metadata.json").read_text()


def test_an_unstable_attempt_at_play_data_is_rejected_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = PlayGenerator(RECIPES["cube-single"], 6)
    plain = generator.generate(5)
    step, calls = generator.env.step, [0]

    def once_nan(action: Any) -> Any:
        calls[0] += 1
        observation, *rest = step(action)
        return (observation * np.nan if calls[0] == 3 else observation, *rest)

    monkeypatch.setattr(generator.env, "step", once_nan)
    made = generator.generate(5)
    assert (made.rejected, made.unstable) == (1, ("the observation is not finite",))
    assert np.isfinite(made.arrays["observations"]).all()
    assert not np.array_equal(made.arrays["actions"], plain.arrays["actions"])
