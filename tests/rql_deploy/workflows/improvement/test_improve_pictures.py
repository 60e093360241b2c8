"""A policy that sees, and whose run left fields out, improves on recordings like any other."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from rql_deploy.bundle.bundle import Bundle
from rql_deploy.train.data.folder import read_store, write_store
from rql_deploy.workflows.improvement.generations import Generations
from tests.helpers.backbones import write_backbone
from tests.helpers.commands import TINY, cli
from tests.helpers.data import make_picture_store
from tests.helpers.recorded_episodes import record_episodes


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("backbone", [False, True], ids=["encoder", "backbone"])
def test_a_policy_that_sees_is_improved_on_recordings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backbone: bool
) -> None:
    monkeypatch.setenv("RQL_DEPLOY_CACHE", str(tmp_path / "cache"))
    write_store(make_picture_store(height=16, width=12), tmp_path / "data")
    sees = ("--backbone", write_backbone(tmp_path / "b.onnx", size=(16, 12))) if backbone else ()
    read = ("--map", "observation.position=")
    settings = (*TINY, *sees, *read, "--set", "frame_stack=2", "--engine", "eager", "--updates", 4)
    run, live = tmp_path / "run", tmp_path / "live"
    for words in (
        ("train", "--dataset", tmp_path / "data", "--output", run, *settings),
        ("export", run, "--output", live),
    ):
        done = cli(*words)
        assert done.exit_code == 0, done.output
    contract = Bundle.open(live).contract
    record_episodes(tmp_path / "recording", contract, range(8))

    def in_process(words: Callable[[], Sequence[str]], log: Path, what: str, progress: object) -> None:
        told = cli(*words())
        assert told.exit_code == 0, told.output
        log.write_text(told.output)

    monkeypatch.setattr("rql_deploy.workflows.improvement.loop.run_stage", in_process)
    begin = ("improve", "--recordings", tmp_path / "recording", "--from", run, "--serve-as", live)
    done = cli(*begin, "--episodes", 6, "--updates", 4, "--once")
    assert done.exit_code == 0, done.output
    generations = Generations(live)
    gate = generations.gate(1)
    assert gate is not None and gate["kind"] == "held-out", done.output
    kept, learned = (read_store(generations.path(1) / name) for name in ("held_out", "episodes"))
    assert (kept.episodes, learned.episodes) == (2, 6) and list(learned.images) == ["camera"]
    config = json.loads((generations.path(1) / "run" / "config.json").read_text())
    assert bool(config["backbone"]) == backbone
    new = Bundle.open(generations.path(1) / "bundle").contract
    assert new.plant.inputs == contract.plant.inputs
