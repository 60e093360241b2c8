"""A policy that sees goes on by playing: what it saw joins the buffer, and a resumed run repeats it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from rql_deploy.errors import UserError
from rql_deploy.export.backbone import Backbone
from rql_deploy.train.checkpoints.checkpoint import load_checkpoint
from rql_deploy.train.data.feature_cache import FeatureCache
from rql_deploy.train.data.frame_rows import FrameRows
from rql_deploy.train.data.frames import Frames
from rql_deploy.train.loop.trainer import Trainer
from rql_deploy.train.online.played import load_played
from rql_deploy.train.online.played_frames import PlayedFrames
from rql_deploy.train.online.trainer import OnlineTrainer
from tests.helpers.backbones import write_backbone
from tests.helpers.data import make_picture_store
from tests.helpers.online import Walk, tiny_config

SIZE = (16, 12)
SETTINGS = ("frame_stack=2", "engine=eager", "rql.complete_rows=true")


class SeeingWalk(Walk):
    """Its camera shows the tick."""

    def observe(self) -> Mapping[str, Any]:
        return {**super().observe(), "camera": np.full((*SIZE, 3), 100 + self.tick, np.uint8)}


@pytest.fixture(autouse=True)
def _no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rql_deploy.train.loop.training_run.write_run_page", lambda run: None)


@pytest.fixture(params=[False, True], ids=["encoder", "backbone"])
def features(request: pytest.FixtureRequest, tmp_path: Path) -> FeatureCache | None:
    if not request.param:
        return None
    backbone = Backbone.open(write_backbone(tmp_path / "b.onnx", size=SIZE))
    return FeatureCache(tmp_path / "features", {"camera": backbone})


def go_on(folder: Path, name: str, updates: int, features: FeatureCache | None) -> OnlineTrainer:
    """The trainer of an online run; the offline one that it starts from is made first."""
    store = make_picture_store(height=SIZE[0], width=SIZE[1])
    if not (folder / "offline").exists():
        Trainer(tiny_config("updates=2", *SETTINGS), store, folder / "offline", features=features).train()
    config = tiny_config(f"updates={updates}", "checkpoint_every=4", *SETTINGS)
    resume = (folder / name / "latest").exists()
    initial = load_checkpoint(folder / "offline")
    return OnlineTrainer(
        config,
        store,
        folder / name,
        SeeingWalk(),
        store.plant,
        resume=resume,
        initial=initial,
        features=features,
    )


def test_frames_that_were_played_are_drawn_and_a_resumed_run_repeats_a_whole_one(
    tmp_path: Path, features: FeatureCache | None
) -> None:
    whole = go_on(tmp_path, "whole", 12, features)
    whole.train()
    assert whole.collector.steps == 12 and whole.collector.episodes >= 1
    first = next(load_played(tmp_path / "whole", 1))
    rows = len(first.rewards)
    # Of stacked frames the newest is kept.
    assert first.images["camera"][:, 0, 0, 0].tolist() == [100 + tick for tick in range(rows)]
    drawn = whole.buffer.rows.images["camera"].take(torch.tensor([0, 28, 29])).numpy()
    offline = make_picture_store(height=SIZE[0], width=SIZE[1]).images["camera"].take(np.array([0]))
    expected = np.concatenate((offline, first.images["camera"][:2]))
    if features is not None:
        expected = features.computed(whole.store.plant.images[0], expected)
    assert np.array_equal(drawn, expected)
    stack = whole.sampler.windows(torch.tensor([28]), torch.tensor([28 + rows - 1]))[0].images["camera"]
    if features is None:
        assert stack[0, 0, 0, 0].tolist() == [100, 100, 100, 100, 100, 100]
    go_on(tmp_path, "parts", 7, features).train()
    parts = go_on(tmp_path, "parts", 12, features)
    assert parts.collector.steps == 7
    parts.train()
    for mine, theirs in zip(parts.agent.parameters(), whole.agent.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_a_disk_that_is_full_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frames: NDArray[np.uint8] = np.zeros((3, 4, 5, 3), np.uint8)
    played = PlayedFrames(FrameRows(Frames.of(frames)), 6, "cpu", tmp_path)
    played.add(frames + 7)
    assert played.rows.take(torch.tensor([2, 3, 5])).numpy()[:, 0, 0, 0].tolist() == [0, 7, 7]
    assert not list(tmp_path.iterdir())

    class Full:
        def seek(self, _: int) -> None:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(played, "_file", Full())
    with pytest.raises(UserError, match=r"frames of what was played \(No space left on device\): make room"):
        played.add(frames)
