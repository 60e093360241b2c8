"""Compute recorded decisions again, and compare them to the byte."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rql_deploy.errors import UserError


@dataclass(frozen=True)
class ReplayResult:
    """How many recorded decisions there are, and how many differ from what this machine computes."""

    decisions: int
    different: int

    @property
    def same(self) -> bool:
        """Whether every decision was the same to the byte."""
        return self.different == 0


def replay_recording(
    recording: Path, bundles: Path | Sequence[Path], *, variant: str = "fp32"
) -> ReplayResult:
    """Compute the decisions of a recording again with the bundle, or bundles, that were served.

    Another build of onnxruntime or another kind of CPU may round differently. Raises UserError for a
    recording or bundle that cannot be read.
    """
    from rql_deploy.bundle.bundle import Bundle
    from rql_deploy.runtime.engine.model import Model
    from rql_deploy.runtime.recording.messages import Decision
    from rql_deploy.runtime.recording.reader import read_recording
    from rql_deploy.runtime.recording.replay import replay, same_bytes

    paths = [bundles] if isinstance(bundles, Path) else bundles
    models = [Model(Bundle.open(path, variant)) for path in paths]
    by_contract = {model.contract.contract_id: model for model in models}
    decisions = different = 0
    for message in read_recording(recording):
        if isinstance(message, Decision):
            decisions += 1
            model = by_contract.get(message.contract_id, models[0])
            different += not same_bytes(message, replay(model, message))
    if not decisions:
        raise UserError(
            f"{recording} holds no decision", hint="record while a robot asks, or use a whole copy"
        )
    return ReplayResult(decisions, different)
