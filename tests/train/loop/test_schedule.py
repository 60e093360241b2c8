"""When checkpoints are written, which of them stay, and that they fit the disk."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rql_deploy.errors import UserError
from rql_deploy.train.checkpoints.checkpoint import checkpoint_bytes
from rql_deploy.train.checkpoints.run_folder import step_of
from rql_deploy.train.config import TrainConfig
from rql_deploy.train.hyperparameters import RQLConfig
from rql_deploy.train.loop.trainer import Trainer
from tests.helpers.data import make_store


def trainer(run: Path, *, resume: bool = False, updates: int = 12, **settings: Any) -> Trainer:
    config = TrainConfig(
        rql=RQLConfig(h=3, F=4, K=2, policy_hidden=(16, 16), value_hidden=(16, 16)),
        updates=updates,
        batch_size=8,
        log_every=4,
        **settings,
    )
    return Trainer(config, make_store(), run, resume=resume)


def kept_steps(run: Path) -> list[int]:
    return sorted(step_of(folder) for folder in (run / "checkpoints").iterdir())


def limit_disk(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))


def test_old_checkpoints_go_and_those_asked_for_stay(tmp_path: Path) -> None:
    trainer(tmp_path / "run", checkpoint_every=2, keep_every=4).train()
    assert kept_steps(tmp_path / "run") == [4, 8, 12]
    trainer(tmp_path / "other", checkpoint_every=2).train()
    assert kept_steps(tmp_path / "other") == [12]


def test_keep_every_alone_writes_the_checkpoints_that_it_keeps(tmp_path: Path) -> None:
    trainer(tmp_path / "run", keep_every=5).train()
    assert kept_steps(tmp_path / "run") == [5, 10, 12]


@pytest.mark.parametrize(("minutes", "steps"), [(1e-9, list(range(1, 13))), (0.0, [12])])
def test_checkpoints_are_also_written_by_the_clock(tmp_path: Path, minutes: float, steps: list[int]) -> None:
    run = trainer(tmp_path / "run", checkpoint_minutes=minutes)
    saved, save = [], run.save

    def noted() -> Path:
        saved.append(run.step)
        return save()

    run.save = noted  # type: ignore[method-assign]
    run.train()
    assert saved == steps


def test_a_run_whose_checkpoints_do_not_fit_the_disk_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trainer(tmp_path / "run", keep_every=1)
    size = checkpoint_bytes(run.agent, run.reference)
    # Twelve kept ones, `latest`, and one while it is written.
    limit_disk(monkeypatch, 14 * size - 1)
    with pytest.raises(
        UserError, match=r"12 kept for good.*make room, raise keep_every, or pass another --output"
    ):
        run.train()
    assert not (tmp_path / "run").exists()
    limit_disk(monkeypatch, 14 * size)
    assert run.train().finished


def test_the_estimate_of_a_checkpoints_size_is_that_of_its_files(tmp_path: Path) -> None:
    run = trainer(tmp_path / "run")
    estimate = checkpoint_bytes(run.agent, run.reference)
    files = run.train().checkpoint.glob("*.safetensors")
    written = sum(file.stat().st_size for file in files)
    # Headers name some seventy tensors.
    assert estimate < written < estimate + 20_000


def test_a_resumed_run_needs_room_for_the_checkpoints_to_come_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer(tmp_path / "run", updates=10, keep_every=1).train()
    run = trainer(tmp_path / "run", resume=True, keep_every=1)
    limit_disk(monkeypatch, 4 * checkpoint_bytes(run.agent, run.reference))
    assert run.train().finished
