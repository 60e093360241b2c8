"""Computes recorded decisions again.

On one build and one CPU, the same seed, observation and deltas give the same bytes.
"""

from __future__ import annotations

import time
from typing import cast

import numpy as np

from rql_deploy.errors import UserError
from rql_deploy.policy import Continuation
from rql_deploy.prefix import Prefix
from rql_deploy.runtime.engine.engine import Engine
from rql_deploy.runtime.engine.history import History
from rql_deploy.runtime.engine.model import Model
from rql_deploy.runtime.engine.request import Done, Job

from .messages import Decision, observation


def replay(model: Model, decision: Decision, *, history: History | None = None) -> Done:
    """Compute a decision again from its seed, observation, deltas and candidate.

    `history` is filled with the preview after every step. Raises UserError when the decision was made with
    another contract.
    """
    if decision.contract_id != model.contract.contract_id:
        raise UserError(
            f"the recording was made with contract {decision.contract_id[:12]}, "
            f"the bundle has {model.contract.contract_id[:12]}",
            hint="pass the bundle that was served, or all of them",
        )
    engine = Engine(model)
    engine.submit(
        Job(
            reply_context=None,
            fields=model.rows(observation(decision)),
            seed=decision.seed,
            received=time.monotonic(),
            value=decision.value is not None,
            candidate_offset=decision.candidate,
            deltas=tuple(np.frombuffer(decision.deltas, "<f8").tolist()),
            continuation=model.continuation(_prefix(decision)),
            history=history,
        )
    )
    while engine.busy:
        for event in engine.step():
            if isinstance(event, Done):
                return event
    raise AssertionError("the engine ended without a decision")


def _prefix(decision: Decision) -> Prefix | None:
    if (before := decision.continued) is None:
        return None
    actions = np.frombuffer(before.actions, "<f4").reshape(-1, decision.chunk_shape[1])
    return Prefix(actions, before.committed, cast(Continuation, before.method))


def same_bytes(decision: Decision, done: Done) -> bool:
    """Whether actions, V and spread are the recorded ones to the bit."""
    return bool(
        decision.actions == np.ascontiguousarray(done.actions, "<f4").tobytes()
        and (decision.value, decision.spread) == (done.value, done.spread)
    )
