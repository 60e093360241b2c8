"""How the control loop asks a policy without waiting for it: in a thread, or on a simulated clock."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from rql_deploy.errors import DeadlineMissed, UserError
from rql_deploy.plant import Observation
from rql_deploy.policy import Decision, Policy

from .clock import Clock

RESET: Final = "reset"


@dataclass(frozen=True)
class Answer:
    """What came back for one question, or a preview of it."""

    number: int
    """Of the question."""
    arrived: float
    """On the loop's clock."""
    decision: Decision | None
    """None: there is no decision, and `error` says why."""
    last: bool = True
    """False for a preview."""
    error: str = ""


@dataclass(frozen=True)
class Question:
    """What is asked."""

    number: int
    observation: Observation
    seed: int
    committed: NDArray[np.float32] | None = None
    """`[n, A]`: the actions that will be played before the answer can be: its own first n, if the policy can
    take that into account."""
    previews: bool = False
    """Whether decisions after every refinement step are wanted too; the policy then has to be a
    `StreamingPolicy`."""


class Asker(Protocol):
    """Takes questions and hands out answers; neither ever blocks."""

    def ask(self, question: Question) -> None: ...

    def answers(self) -> list[Answer]:
        """What arrived since the last call, in order."""
        ...

    def reset(self) -> None:
        """A new episode begins."""
        ...

    def close(self) -> None: ...


class StreamingPolicy(Policy, Protocol):
    """A policy that yields a usable decision after every refinement step."""

    def stream(
        self,
        observation: Observation,
        *,
        deadline: float | None = None,
        candidates: int = 1,
        value: bool = False,
        seed: int | None = None,
    ) -> Iterator[Decision]: ...


def ask_policy(
    policy: Policy,
    question: Question,
    clock: Clock,
    *,
    deadline: float | None,
    candidates: int,
    value: bool,
    prefix: bool = False,
) -> Iterator[Answer]:
    """Answers to one question as they come; an error of the policy is an answer too, for the loop has to go
    on."""
    number = question.number
    latest: Decision | None = None
    try:
        asked: dict[str, Any] = {
            "deadline": deadline,
            "candidates": candidates,
            "value": value,
            "seed": question.seed,
        }
        if prefix:
            asked["prefix"] = question.committed
        if not question.previews:
            yield Answer(number, clock.now(), policy.act(question.observation, **asked))
            return
        for decision in policy.stream(question.observation, **asked):  # type: ignore[attr-defined]
            if latest is not None:
                yield Answer(number, clock.now(), latest, last=False)
            latest = decision
        yield Answer(number, clock.now(), latest)
    except Exception as error:
        if latest is not None:
            # What had come before the stream broke off is still the newest there is.
            yield Answer(number, clock.now(), latest, last=False)
        # A policy that fails in an unforeseen way is one that gives no answer; the loop holds, and the fault
        # says why.
        foreseen = isinstance(error, (DeadlineMissed, UserError))
        yield Answer(
            number,
            clock.now(),
            None,
            error=str(error) if foreseen else f"the policy failed ({type(error).__name__}: {error})",
        )


class ThreadAsker:
    """Asks from a thread of its own, which is the only one to use the policy. The loop's thread never waits
    for it."""

    def __init__(
        self, policy: Policy, clock: Clock, *, deadline: float, candidates: int = 1, value: bool = False
    ):
        """`deadline`: seconds a decision may take."""
        self._answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()
        self._questions: queue.SimpleQueue[Question | Literal["reset"] | None] = queue.SimpleQueue()
        self._policy, self._clock = policy, clock
        self._how = {"deadline": deadline, "candidates": candidates, "value": value}
        self._thread = threading.Thread(target=self._run, name="asker", daemon=True)
        self._thread.start()

    def ask(self, question: Question) -> None:
        self._questions.put(question)

    def answers(self) -> list[Answer]:
        found = []
        while not self._answers.empty():
            found.append(self._answers.get())
        return found

    def reset(self) -> None:
        self._questions.put(RESET)

    def close(self) -> None:
        """End the thread after the question under way."""
        self._questions.put(None)
        self._thread.join(timeout=10)

    def _run(self) -> None:
        while (item := self._questions.get()) is not None:
            if item == RESET:
                _reset(self._policy)
            elif isinstance(item, Question):
                for answer in ask_policy(self._policy, item, self._clock, **self._how):  # type: ignore[arg-type]
                    self._answers.put(answer)


class DelayedAsker:
    """Decides at once and hands the decision out `delay` seconds later on the clock, previews evenly spread
    before it.

    What a policy that takes so long would look like to the loop: with a simulated clock, to the tick and the
    same every time.
    """

    def __init__(
        self,
        policy: Policy,
        clock: Clock,
        delay: float,
        *,
        candidates: int = 1,
        value: bool = False,
        prefix: bool = False,
    ):
        """`prefix` tells the policy which actions it is committed to (`OnnxPolicy.act`)."""
        self._policy, self._clock, self._delay = policy, clock, delay
        self._how = {"deadline": None, "candidates": candidates, "value": value, "prefix": prefix}
        self._held: list[Answer] = []

    def ask(self, question: Question) -> None:
        start = self._clock.now()
        answers = list(ask_policy(self._policy, question, self._clock, **self._how))  # type: ignore[arg-type]
        for k, answer in enumerate(answers, 1):
            arrives = start + self._delay * k / len(answers)
            self._held.append(Answer(answer.number, arrives, answer.decision, answer.last, answer.error))

    def answers(self) -> list[Answer]:
        # A hair of rounding must not cost a tick.
        now = self._clock.now() + 1e-9
        ready = [answer for answer in self._held if answer.arrived <= now]
        self._held = [answer for answer in self._held if answer.arrived > now]
        return ready

    def reset(self) -> None:
        self._held = []
        _reset(self._policy)

    def close(self) -> None:
        self._held = []


def _reset(policy: Policy) -> None:
    # A policy that cannot be reset will not answer either, and that is seen at the first question.
    with contextlib.suppress(Exception):
        policy.reset()
