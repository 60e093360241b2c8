"""Inference off the loop's thread: the loop submits observations and polls for results, and never blocks."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

from rql_deploy.errors import DeadlineMissed, UserError, require_process
from rql_deploy.plant import POLICY_FAILED, Observation
from rql_deploy.policy import (
    MAX_CANDIDATES,
    ActOptions,
    Continuation,
    Decision,
    Policy,
    read_continuation,
    read_pessimism,
    read_seconds,
    read_whole,
)

from .clock import Clock
from .decisions import PolicyError, checked_decision
from .playback import Playing
from .safety import Reason

if TYPE_CHECKING:
    from typing_extensions import Unpack

RESET: Final = "reset"


@dataclass(frozen=True)
class InferenceResult:
    """A decision, a preview of one, or the reason why there is none."""

    number: int
    """Number of the request."""
    arrived: float
    """Seconds on the loop's clock."""
    decision: Decision | None
    """None: there is no decision, and `error` says why."""
    last: bool = True
    """False for a preview."""
    error: Reason | None = None


@dataclass(frozen=True)
class InferenceRequest:
    """One observation to decide on."""

    number: int
    observation: Observation
    seed: int
    playing: Playing | None = None
    """What is left of the chunk that plays."""
    previews: bool = False
    """Also return a decision after every refinement step; needs a `StreamingPolicy`."""


class InferenceRunner(Protocol):
    """Takes requests and returns results; no method blocks."""

    def submit(self, request: InferenceRequest) -> None:
        """Take a request; its results come later."""
        ...

    def poll(self) -> list[InferenceResult]:
        """Results that arrived since the last call, in order of arrival."""
        ...

    def reset(self) -> None:
        """A new episode begins."""
        ...

    def close(self) -> None: ...


class StreamingPolicy(Policy, Protocol):
    """A policy that yields a complete decision after every refinement step."""

    def stream(self, observation: Observation, **options: Unpack[ActOptions]) -> Iterator[Decision]:
        """One decision per refinement step, the last one final; options as of `Policy.act`."""
        ...


def run_inference(
    policy: Policy,
    request: InferenceRequest,
    clock: Clock,
    *,
    deadline: float | None,
    candidates: int,
    value: bool,
    pessimism: float = 0.0,
    continuation: Continuation | None = None,
) -> Iterator[InferenceResult]:
    """Results of one request as they arrive; an exception of the policy becomes a result, too.

    `continuation` is how chunks continue; None: as the policy does by itself, if it does.
    """
    number = request.number
    latest: Decision | None = None
    try:
        options: dict[str, Any] = {
            "deadline": deadline,
            "candidates": candidates,
            "value": value,
            "seed": request.seed,
        }
        if pessimism:
            options["pessimism"] = pessimism
        playing = request.playing
        if playing is not None and playing.committed and continues(policy, continuation):
            options |= {"prefix": playing.actions, "committed": playing.committed}
            options["continuation"] = continuation
        if not request.previews:
            returned = policy.act(request.observation, **options)
            yield InferenceResult(number, clock.now(), checked_decision(policy, returned))
            return
        for returned in policy.stream(request.observation, **options):  # type: ignore[attr-defined]
            decision = checked_decision(policy, returned)
            if latest is not None:
                yield InferenceResult(number, clock.now(), latest, last=False)
            latest = decision
        # A stream without a decision is nothing to play.
        yield InferenceResult(number, clock.now(), checked_decision(policy, latest))
    except Exception as error:
        if latest is not None:
            # The stream broke off: its newest preview can still be played.
            yield InferenceResult(number, clock.now(), latest, last=False)
        # Without a decision the loop holds; this reason ends up in its statistics and its fault.
        if isinstance(error, (DeadlineMissed, UserError)):
            reason = Reason(error.kind, str(error))
        elif isinstance(error, PolicyError):
            reason = Reason(POLICY_FAILED, str(error))
        else:
            name = type(policy).__name__
            reason = Reason(POLICY_FAILED, f"the policy ({name}) failed ({type(error).__name__}: {error})")
        yield InferenceResult(number, clock.now(), None, error=reason)


def continues(policy: Policy, continuation: Continuation | None) -> bool:
    """Whether the policy is handed what plays meanwhile.

    Raises UserError for a continuation that there is not, or that this policy does not have.
    """
    if continuation is not None:
        read_continuation("continuation", continuation)
    if continuation == "trained" and not policy.contract.prefix_conditioned:
        raise UserError(
            "the policy was not trained with actions given", hint="use continuation='guidance' instead"
        )
    able = bool(getattr(policy, "continues", False))
    if continuation not in (None, "none") and not able:
        name = type(policy).__name__
        raise UserError(
            f"the policy ({name}) does not continue the actions before a chunk",
            hint="use continuation='none'",
        )
    return able and continuation != "none"


class ThreadRunner:
    """Runs the policy in a thread of its own, which is the only one to use the policy."""

    def __init__(
        self,
        policy: Policy,
        clock: Clock,
        *,
        deadline: float,
        candidates: int = 1,
        value: bool = False,
        pessimism: float = 0.0,
        continuation: Continuation | None = None,
    ):
        """`deadline`: seconds a decision may take.

        Raises TypeError and UserError for a deadline or a number of candidates that no policy takes, and for
        a continuation that this one does not have.
        """
        continues(policy, continuation)
        if not (deadline := read_seconds("deadline", deadline)) > 0:
            raise UserError(f"deadline is {deadline:g}: pass a number of seconds above 0")
        candidates = read_whole("candidates", candidates, 1, MAX_CANDIDATES)
        self._results: queue.SimpleQueue[InferenceResult] = queue.SimpleQueue()
        self._requests: queue.SimpleQueue[InferenceRequest | Literal["reset"] | None] = queue.SimpleQueue()
        self._policy, self._clock, self._pid = policy, clock, os.getpid()
        self._options = {
            "deadline": deadline,
            "candidates": candidates,
            "value": value,
            "pessimism": read_pessimism("pessimism", pessimism),
            "continuation": continuation,
        }
        self._thread = threading.Thread(target=self._run, name="inference", daemon=True)
        self._thread.start()

    def submit(self, request: InferenceRequest) -> None:
        # In a fork there is no thread to answer.
        require_process(self._pid, "the loop's inference thread")
        self._requests.put(request)

    def poll(self) -> list[InferenceResult]:
        results = []
        while not self._results.empty():
            results.append(self._results.get())
        return results

    def reset(self) -> None:
        self._requests.put(RESET)

    def close(self) -> None:
        """End the thread once the request that is running is done; in a fork there is none."""
        if os.getpid() != self._pid:
            return
        self._requests.put(None)
        self._thread.join(timeout=10)

    def _run(self) -> None:
        while (item := self._requests.get()) is not None:
            if item == RESET:
                _reset(self._policy)
            elif isinstance(item, InferenceRequest):
                for result in run_inference(self._policy, item, self._clock, **self._options):  # type: ignore[arg-type]
                    self._results.put(result)


class SimulatedLatencyRunner:
    """Runs the policy at once and returns the result `delay` seconds later on the clock.

    Previews are spread evenly over the delay. On a simulated clock a run repeats exactly.
    """

    def __init__(
        self,
        policy: Policy,
        clock: Clock,
        delay: float,
        *,
        candidates: int = 1,
        value: bool = False,
        pessimism: float = 0.0,
        continuation: Continuation | None = None,
    ):
        self._policy, self._clock, self._delay = policy, clock, delay
        self._options = {
            "deadline": None,
            "candidates": candidates,
            "value": value,
            "pessimism": pessimism,
            "continuation": continuation,
        }
        self._delayed: list[InferenceResult] = []

    def submit(self, request: InferenceRequest) -> None:
        start = self._clock.now()
        results = list(run_inference(self._policy, request, self._clock, **self._options))  # type: ignore[arg-type]
        for k, result in enumerate(results, 1):
            self._delayed.append(replace(result, arrived=start + self._delay * k / len(results)))

    def poll(self) -> list[InferenceResult]:
        # The tolerance keeps rounding from delaying a result by a whole tick.
        now = self._clock.now() + 1e-9
        ready = [result for result in self._delayed if result.arrived <= now]
        self._delayed = [result for result in self._delayed if result.arrived > now]
        return ready

    def reset(self) -> None:
        self._delayed = []
        _reset(self._policy)

    def close(self) -> None:
        self._delayed = []


def _reset(policy: Policy) -> None:
    # If the reset fails, so will the next decision, and that is reported.
    with contextlib.suppress(Exception):
        policy.reset()
