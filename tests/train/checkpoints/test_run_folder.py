"""Which checkpoints of a run's folder are the run's, and which of them stay."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import pytest

from rql_deploy.train.checkpoints.run_folder import checkpoint_folder, saved_checkpoints
from rql_deploy.train.config import TrainConfig
from rql_deploy.train.hyperparameters import RQLConfig
from rql_deploy.train.logging import run_page
from rql_deploy.train.loop.trainer import Trainer
from tests.helpers.data import make_store

CONFIG = TrainConfig(
    rql=RQLConfig(h=3, F=4, K=2, policy_hidden=(16, 16), value_hidden=(16, 16)), updates=4, batch_size=8
)


@pytest.fixture(autouse=True)
def without_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_page, "_draw", lambda run: None)


def train(run: Path, *, resume: bool = False, **changes: int) -> None:
    Trainer(msgspec.structs.replace(CONFIG, **changes), make_store(), run, resume=resume).train()


def test_a_copy_that_somebody_made_of_a_checkpoint_is_left_alone(tmp_path: Path) -> None:
    train(tmp_path)
    copies = [checkpoint_folder(tmp_path, 4).with_name(f"step_000000004{end}") for end in (" (copy)", ".bak")]
    for copy in copies:
        shutil.copytree(checkpoint_folder(tmp_path, 4), copy)
    train(tmp_path, resume=True, updates=6)
    assert saved_checkpoints(tmp_path) == {6: checkpoint_folder(tmp_path, 6)}
    assert all(copy.is_dir() for copy in copies)


def test_what_was_kept_stays_when_a_run_is_resumed_without_keeping_more(tmp_path: Path) -> None:
    train(tmp_path, keep_every=2, updates=5)
    assert list(saved_checkpoints(tmp_path)) == [2, 4, 5]
    train(tmp_path, resume=True, updates=7)
    assert list(saved_checkpoints(tmp_path)) == [2, 4, 7]
    train(tmp_path, resume=True, updates=9, keep_every=3)
    assert list(saved_checkpoints(tmp_path)) == [2, 4, 9]
