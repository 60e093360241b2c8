"""Replies say all that is needed to compute the decision again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rql_deploy.bundle.bundle import Bundle
from rql_deploy.runtime.client import RemotePolicy
from rql_deploy.runtime.engine.model import Model
from rql_deploy.runtime.engine.request import Done, Job
from rql_deploy.runtime.server.replies import Echo, ReplyContext, decision
from tests.helpers.servers import observation


@pytest.fixture(scope="module")
def model(bundle: Path) -> Model:
    return Model(Bundle.open(bundle))


def made_in(model: Model, deltas: tuple[float, ...]) -> Done:
    """A decision after these steps."""
    job = Job(ReplyContext(b"client", Echo(1, 1), None, model), {}, seed=1, received=0.0)
    return Done(job, np.zeros((3, 2), np.float32), None, None, 0, 1, deltas, queue=0.0, inference=0.0)


@pytest.mark.parametrize("steps", [1, 7])
def test_a_decision_that_ended_with_a_preview_tells_its_steps(model: Model, steps: int) -> None:
    deltas = (0.1,) * (steps - 1) + (1.0 - 0.1 * (steps - 1),)
    done = made_in(model, deltas)
    reply = decision(done, done.job.reply_context, 0.0)
    assert (reply.steps_used, reply.deltas) == (steps, deltas)


def test_steps_that_the_contract_tells_are_not_sent(model: Model) -> None:
    done = made_in(model, tuple(delta for _, delta in model.schedule))
    assert decision(done, done.job.reply_context, 0.0).deltas is None


def test_a_stream_s_decisions_have_as_many_deltas_as_steps_or_none(endpoint: str) -> None:
    with RemotePolicy.connect(endpoint) as policy:
        *previews, last = policy.stream(observation(policy.contract), seed=1)
    assert [preview.steps_used for preview in previews] == list(range(1, policy.contract.F))
    assert all(preview.deltas == () for preview in previews)
    assert len(last.deltas) == last.steps_used == policy.contract.F
