"""Offline to online: the order of playing and updating, resuming bit for bit, and what stops it."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from rql_deploy.errors import UserError
from rql_deploy.seeding import decision_seed, episode_seed, flow_noise
from rql_deploy.train.checkpoints.checkpoint import load_checkpoint
from rql_deploy.train.checkpoints.run_folder import read_pointer
from rql_deploy.train.logging.run_page import write_run_page
from rql_deploy.train.loop.trainer import Trainer
from rql_deploy.train.online.played import load_played
from rql_deploy.train.rql import integrate
from tests.helpers.commands import stopped_when
from tests.helpers.data import PLANT, make_store
from tests.helpers.online import Walk, go_on, offline_run


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return offline_run(tmp_path_factory.mktemp("offline") / "run")


@pytest.fixture(autouse=True)
def _no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing curves takes longer than these runs."""
    monkeypatch.setattr("rql_deploy.train.loop.training_run.write_run_page", lambda run: None)


def saved(run: Path) -> dict[str, torch.Tensor]:
    latest = read_pointer(run, "latest")
    assert latest is not None
    found: dict[str, torch.Tensor] = {}
    for name in ("parameters", "optimizer", "online"):
        found |= {f"{name}.{key}": t for key, t in load_file(latest / f"{name}.safetensors").items()}
    return found


def logged(run: Path) -> list[dict[str, float]]:
    skipped = ("time", "updates_per_second")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in skipped} for line in lines]


def test_a_step_is_played_before_each_update_by_the_raw_policy(offline: Path, tmp_path: Path) -> None:
    plant = Walk()
    trainer = go_on(offline, tmp_path / "run", 1, plant=plant)
    before = {name: tensor.clone() for name, tensor in trainer.agent.v.state_dict().items()}
    trained = load_checkpoint(offline).restore_networks()
    # Nothing is reset at the switch.
    for mine, theirs in zip(trainer.agent.parameters(), trained.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    trainer.train()
    assert trainer.collector.steps == 1
    seed = episode_seed(0, 0, "online")
    assert plant.resets == [seed]
    plant.reset(seed)
    observed = torch.from_numpy(np.concatenate([*plant.observe().values()]).astype(np.float32))[None]
    noise = torch.from_numpy(flow_noise(decision_seed(seed, 0), 1, 6))
    trained.v.load_state_dict(before)
    with torch.no_grad():
        chunk = integrate(trained.v, observed, noise, 10).reshape(3, 2).numpy()
    state = trainer.collector.state()
    assert np.array_equal(state["commands"].numpy(), chunk[:1])
    # The chunk is carried out to its end before another is made.
    assert np.array_equal(state["queue"].numpy(), chunk[1:])


def test_steps_updates_and_episodes_keep_step(offline: Path, tmp_path: Path) -> None:
    trainer = go_on(
        offline,
        tmp_path / "run",
        20,
        "online.updates_per_step=2",
        "online.warm_up=9",
        "rql.complete_rows=true",
    )
    trainer.train()
    assert trainer.collector.steps == 9 + 20 // 2
    episodes = list(load_played(tmp_path / "run", trainer.collector.episodes))
    played = sum(len(episode.rewards) for episode in episodes)
    assert played <= 19
    rows = trainer.sampler.rows
    assert len(rows.observations) == 28 + played
    assert rows.recent == len(episodes) > 0
    for episode in episodes:
        assert (episode.rewards == np.where(episode.masks == 0, 0, -1)).all()
        assert episode.success == (episode.masks[-1] == 0)
    write_run_page(tmp_path / "run")
    assert f"{len(episodes)} episodes were played" in (tmp_path / "run" / "README.md").read_text()


def test_a_run_that_plays_is_not_resumed_as_one_that_does_not(offline: Path, tmp_path: Path) -> None:
    go_on(offline, tmp_path / "run", 6).train()
    config = load_checkpoint(tmp_path / "run").config
    with pytest.raises(UserError, match="is a run of `rql-deploy finetune`: resume it with that command"):
        Trainer(msgspec.structs.replace(config, updates=9), make_store(), tmp_path / "run", resume=True)


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_bytes(offline: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    go_on(offline, whole, 60).train()
    command = [sys.executable, "-m", "tests.helpers.online", str(offline), str(killed), "60"]

    def far_enough() -> bool:
        """Two checkpoints and an episode, wherever it is then."""
        latest = read_pointer(killed, "latest")
        played = any((killed / "played").glob("*.npz"))
        return latest is not None and latest.name >= "step_000000012" and played

    assert stopped_when(far_enough, command, signal.SIGKILL).returncode == -signal.SIGKILL
    step = load_checkpoint(killed).step
    assert 0 < step < 60
    go_on(offline, killed, 60).train()
    a, b = saved(whole), saved(killed)
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []
    assert logged(whole) == logged(killed)
    names = [sorted(path.name for path in (run / "played").glob("*.npz")) for run in (whole, killed)]
    assert names[0] == names[1] != []


def test_a_stop_saves_at_once_and_an_unfinished_episode_goes_on(offline: Path, tmp_path: Path) -> None:
    """Every checkpoint lies somewhere in an episode: from each of them, the rest is the same."""
    whole = go_on(offline, tmp_path / "whole", 20)
    whole.train()
    for stop in (1, 5, 8):
        part = tmp_path / f"part{stop}"
        go_on(offline, part, stop).train()
        plant = Walk()
        assert go_on(offline, part, 20, plant=plant).train().finished
        assert [n for n, t in saved(tmp_path / "whole").items() if not torch.equal(t, saved(part)[n])] == []


def test_a_simulator_that_does_not_repeat_itself_begins_the_episode_again(
    offline: Path, tmp_path: Path
) -> None:
    class Drifting(Walk):
        def reset(self, seed: int | None = None) -> None:
            super().reset(seed)
            self.state = self.state + 1e-3

    go_on(offline, tmp_path / "run", 3).train()
    trainer = go_on(offline, tmp_path / "run", 12, plant=Drifting())
    assert trainer.collector.steps == 0
    assert trainer.train().finished
    assert trainer.collector.steps == 12


def test_what_cannot_be_learned_from_is_refused(offline: Path, tmp_path: Path) -> None:
    class Broken(Walk):
        def observe(self) -> dict[str, np.ndarray]:
            return {"position": np.full(3, np.nan), "opening": np.zeros(1)}

    with pytest.raises(UserError, match="observed NaN or infinity in episode 0"):
        go_on(offline, tmp_path / "broken", 5, plant=Broken()).train()
    with pytest.raises(UserError, match="is not of a run that plays episodes"):
        (tmp_path / "lost").mkdir()
        go_on(offline, tmp_path / "lost", 5).train()
        latest = read_pointer(tmp_path / "lost", "latest")
        assert latest is not None
        (latest / "online.safetensors").unlink()
        go_on(offline, tmp_path / "lost", 9)
    go_on(offline, tmp_path / "gone", 12).train()
    next((tmp_path / "gone" / "played").glob("*.npz")).unlink()
    with pytest.raises(UserError, match="missing or damaged"):
        go_on(offline, tmp_path / "gone", 20)


def test_a_person_s_action_is_what_is_stored(offline: Path, tmp_path: Path) -> None:
    plant = Walk()
    plant.intervened, plant.carried_out = True, np.array([0.5, 4.0])
    go_on(offline, tmp_path / "run", 8, plant=plant).train()
    (episode,) = load_played(tmp_path / "run", 1)
    assert episode.intervened.all()
    assert np.allclose(episode.actions, [[0.5, 1.0]])
    assert PLANT.actions[1].high == 4.0
