"""Compute recorded decisions again, and compare them to the byte."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ReplayResult:
    """How many recorded decisions there are, and how many differ from what this machine computes."""

    decisions: int
    different: int

    @property
    def same(self) -> bool:
        """Whether every decision was the same to the byte."""
        return self.different == 0


def replay_recording(recording: Path, bundle: Path, *, variant: str = "fp32") -> ReplayResult:
    """Compute the decisions of a recording again with the bundle (and variant) that was served.

    Another build of onnxruntime or another kind of CPU may round differently. Raises UserError for a
    recording or bundle that cannot be read.
    """
    from rql_deploy.bundle.bundle import Bundle
    from rql_deploy.runtime.engine.model import Model
    from rql_deploy.runtime.server.recording import read_recording, replay, same_bytes

    model = Model(Bundle.open(bundle, variant))
    decisions = different = 0
    for record in read_recording(recording):
        if record["kind"] == "decision":
            decisions += 1
            different += not same_bytes(record, replay(model, record))
    return ReplayResult(decisions, different)
