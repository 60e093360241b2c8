"""Recorded decisions, computed again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rql_deploy.bundle.bundle import Bundle
from rql_deploy.prefix import Prefix
from rql_deploy.runtime.engine.history import History
from rql_deploy.runtime.engine.model import Model
from rql_deploy.runtime.recording.messages import Decision, chunk, previews
from rql_deploy.runtime.recording.packing import messages_of
from rql_deploy.runtime.recording.reader import read_recording
from rql_deploy.runtime.recording.replay import replay, same_bytes
from rql_deploy.runtime.recording.writer import RecordingWriter
from tests.helpers.commands import assert_refused, cli, printed
from tests.helpers.recordings import bundle_message, decide
from tests.helpers.servers import observation


def recorded(folder: Path, model: Model, **options: Any) -> Decision:
    """One decision, written and read."""
    writer = RecordingWriter(folder, "recording", shard_bytes=1 << 20)
    writer.add(bundle_message(model.contract))
    for message in messages_of(
        decide(model, observation(model.contract), **options), model.contract, 0.0, 1.0
    ):
        writer.add(message)
    writer.close()
    assert writer.status.error == ""
    _, decision = read_recording(folder)
    assert isinstance(decision, Decision)
    return decision


@pytest.mark.parametrize("method", ["replacement", "guidance", "inversion"])
@pytest.mark.parametrize("candidates", [1, 3])
def test_a_chunk_that_continued_others_is_computed_again_to_the_byte(
    bundle: Path, tmp_path: Path, method: Any, candidates: int
) -> None:
    model = Model(Bundle.open(bundle))
    continuation = model.continuation(Prefix(np.array([[0.5, -0.5], [1, 1]], np.float32), 1, method))
    decision = recorded(
        tmp_path, model, seed=3, candidates=candidates, value=True, pessimism=0.5, continuation=continuation
    )
    assert decision.continued is not None
    assert (decision.continued.method, decision.continued.committed) == (method, 1)
    assert decision.pessimism == 0.5
    assert same_bytes(decision, replay(model, decision))
    # Every preview is what would have been sent then: it begins with the committed action, and the last one
    # is the decision.
    made = previews(decision)
    assert all(np.allclose(chunks[:, 0], [0.5, -0.5]) for _, _, chunks in made)
    _, numbers, chunks = made[-1]
    assert chunks[numbers.index(decision.candidate)].tobytes() == chunk(decision).tobytes()


def test_replay_gives_the_previews_that_were_streamed(bundle: Path, tmp_path: Path) -> None:
    model = Model(Bundle.open(bundle))
    decision = recorded(tmp_path, model, seed=5, stream=True, value=True)
    history = History()
    assert same_bytes(decision, replay(model, decision, history=history))
    made = previews(decision)
    assert [step for step, _, _ in made] == list(range(1, model.contract.F + 1))
    (again,) = history.previews
    assert [chunks.tobytes() for _, _, chunks in made] == again.actions


def test_a_recording_of_several_bundles_takes_all_of_them(
    bundle: Path, successor: Path, tmp_path: Path
) -> None:
    for number, path in enumerate((bundle, successor)):
        recorded(tmp_path / f"{number}", Model(Bundle.open(path)), seed=3)
        (file,) = (tmp_path / f"{number}").glob("*.mcap")
        file.rename(tmp_path / f"{number}.mcap")
    both = ("--bundle", bundle, "--bundle", successor)
    assert printed(cli("replay", tmp_path, *both, "--json")) == {"decisions": 2, "different": 0}
    assert_refused(cli("replay", tmp_path, "--bundle", bundle), "pass the bundle that was served, or all")
