"""The real-time control loop: every tick has its moment, and nobody is waited for.

    loop = RealTimeLoop(plant, policy, rate=20.0)
    result = loop.run_episode(seed=0)

In each tick: observe, take what the policy answered meanwhile, ask again if it is time, let the safety filter judge the action that is
due, command the plant. A tick without a fresh action is a hold; too many latch a fault, after which the loop only holds until somebody
calls `reset_fault`.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rql_deploy.errors import UserError
from rql_deploy.limits import Limits
from rql_deploy.plant import EpisodeResult, Observation, Plant
from rql_deploy.policy import Policy
from rql_deploy.seeding import decision_seed

from .clock import Clock, Schedule, SystemClock
from .inference import Answer, Asker, Question, ThreadAsker
from .lockstep import plant_failure
from .playback import DeltaBounds, Mode, Playback
from .safety import SafetyFilter, Verdict
from .telemetry import STANDBY, LoopStatistics, Tick
from .watchdog import Watchdog

SWITCH_INTERVAL = 1e-4
"""Seconds after which a thread gives up the interpreter to one that waits. Python's default, 5 ms, is several ticks."""
NO_ANSWER = "no fresh action"

OnTick = Callable[[Tick, Observation], None]


@dataclass(frozen=True)
class RealTimeResult:
    """What one run came to."""

    episode: EpisodeResult
    statistics: LoopStatistics
    interrupted: bool = False
    """Ended by `stop` or Ctrl-C."""


class RealTimeLoop:
    """Drives a plant with a policy at a fixed rate, on a clock that does not wait."""

    def __init__(
        self,
        plant: Plant,
        policy: Policy,
        *,
        mode: Mode | None = None,
        rate: float | None = None,
        limits: Limits | None = None,
        candidates: int = 1,
        deadline: float | None = None,
        lead: int | None = None,
        latch: bool = True,
        priority: int | None = None,
        make_up: bool = True,
        clock: Clock | None = None,
        asker: Callable[[Clock, SafetyFilter], Asker] | None = None,
        on_tick: OnTick | None = None,
    ):
        """`mode` is `anytime` if left out, and `prefetch` for a policy that streams no previews. `rate` is the contract's if left out.
        `latch=False` counts faults instead of stopping, for measurements. `deadline` is how long a decision may take: two chunks if left
        out. `priority` runs the loop's thread under the kernel's SCHED_FIFO, 1 to 99, before everything that is not. `make_up` has a
        chunk of delta motion make up for what was played while it was made. `asker` replaces the thread that asks the policy.

        Raises ContractError when the limits do not fit the contract, UserError for `anytime` with a policy that streams no previews.
        """
        streams = hasattr(policy, "stream")
        if mode == "anytime" and not streams and asker is None:
            raise UserError("this policy streams no previews: play prefetched chunks instead of --play anytime")
        mode = mode or ("anytime" if streams else "prefetch")
        self.plant, self.policy, self.contract = plant, policy, policy.contract
        self.clock: Clock = clock or SystemClock()
        self.period = 1.0 / (rate or self.contract.plant.control_rate)
        self.filter = SafetyFilter(self.contract, limits)
        self.watchdog = Watchdog(self.filter.limits, 1.0 / self.period, latch=latch)
        self.statistics = LoopStatistics(self.period)
        self._on_tick, self._priority = on_tick, priority
        self._playback = Playback(
            self.contract.h, mode, lead=lead, enough=(self.contract.F + 1) // 2, delta=self._delta() if make_up else None
        )
        self._why = NO_ANSWER
        seconds = deadline or 2 * self.contract.h * self.period
        self._asker: Asker = (
            asker(self.clock, self.filter)
            if asker
            else ThreadAsker(
                policy,
                self.clock,
                deadline=seconds,
                candidates=candidates,
                value=self.filter.needs_value,
            )
        )

    def _delta(self) -> DeltaBounds | None:
        # Only where the contract names the controller that carries the motion out. Elsewhere nobody knows that commands add up: those of
        # OGBench's arm lead it by far more than it moves in a tick, and making up for them cost a cube task nearly all its successes.
        motion = np.array([a.mode == "delta" and a.hold == "zero" and a.controller != "" for a in self.contract.plant.actions])
        return DeltaBounds(motion, self.filter.low, self.filter.high) if motion.any() else None

    def close(self) -> None:
        """End the asking thread."""
        self._asker.close()

    def __enter__(self) -> RealTimeLoop:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def reset_fault(self) -> None:
        """Clear a latched fault by hand; raises UserError during its cool-down. Motion goes on from a fresh observation."""
        self.watchdog.reset()

    def run_episode(
        self,
        seed: int = 0,
        *,
        duration: float | None = None,
        stop: Callable[[], bool] = lambda: False,
        after_fault: Literal["end", "hold"] = "end",
    ) -> RealTimeResult:
        """Run until the plant is finished, `duration` seconds have passed, `stop()` is true between two ticks, or a fault latches.

        With `after_fault="hold"` the loop goes on holding after a fault, until it is stopped or the fault is cleared. However it ends, the
        plant is held until the command no longer changes (delta motion has come to zero), unless Ctrl-C says so again. An exception of the
        plant ends the run too, after one hold; its episode has failed. Before the first decision nothing is commanded.
        """
        self.statistics = LoopStatistics(self.period)
        self._playback.forget()
        self._asker.reset()
        self._asked_before, self._seed, self._moving = self._playback.asked, seed, False
        error, interrupted = None, False
        try:
            self.plant.reset(seed)
            self._start = _rest(self.plant)
            self.filter.reset(self._start)
        except Exception as failure:
            return RealTimeResult(EpisodeResult(seed, False, 0, error=plant_failure("could not be reset", failure)), self.statistics)
        with _undisturbed(self._priority):
            schedule = Schedule(self.period, self.clock.now())
            try:
                interrupted = self._run(schedule, duration, stop, after_fault == "end")
            except KeyboardInterrupt:
                interrupted = True
            except Exception as failure:
                error = plant_failure(f"failed at tick {self.statistics.ticks}", failure)
            try:
                self._settle(schedule, 1 if error else None)
            except KeyboardInterrupt:
                interrupted = True
        if self.watchdog.fault is not None:
            error = error or f"fault: {self.watchdog.fault.reason}"
        success = error is None and bool(getattr(self.plant, "success", False))
        episode = EpisodeResult(seed, success, self.statistics.ticks, self.statistics.held, error=error)
        return RealTimeResult(episode, self.statistics, interrupted)

    def _run(self, schedule: Schedule, duration: float | None, stop: Callable[[], bool], end_at_fault: bool) -> bool:
        """Tick until there is a reason to end; returns whether that was `stop`."""
        skipped = 0
        while not _finished(self.plant):
            if stop():
                return True
            if duration is not None and schedule.cycle * self.period >= duration:
                return False
            self.clock.sleep_until(schedule.deadline)
            self._tick(schedule, skipped)
            if self.watchdog.fault is not None:
                # No action from before a fault may be played after it.
                self._playback.forget()
                if end_at_fault:
                    return False
            skipped = schedule.advance(self.clock.now())
        return False

    def _settle(self, schedule: Schedule, ticks: int | None) -> None:
        """Hold until the command no longer changes, for at most `ticks` if given; a plant that fails once more is past help."""
        previous = None
        with contextlib.suppress(Exception):
            while self._moving and ticks != 0 and not _finished(self.plant):
                command = self.filter.command(None).command
                if previous is not None and np.array_equal(command, previous):
                    return
                schedule.advance(self.clock.now())
                self.clock.sleep_until(schedule.deadline)
                self.plant.apply(command)
                previous, ticks = command, None if ticks is None else ticks - 1

    def _tick(self, schedule: Schedule, skipped: int) -> None:
        begun = self.clock.now()
        # Copied: the plant may show its own arrays, and the asking thread and the records look at them later.
        observation = {name: np.array(value) for name, value in self.plant.observe().items()}
        observed = self.clock.now()
        self._take_answers()
        playback = self._playback
        if self.watchdog.fault is None and playback.wants():
            committed, previews = playback.committed, playback.previews
            number = playback.ask(observed)
            self.statistics.decisions += 1
            self._asker.ask(Question(number, observation, decision_seed(self._seed, number - self._asked_before), committed, previews))
            self._take_answers()
        due = playback.due(self.filter.allowed())
        refusal = self.filter.refuse_observation(observation)
        if self.watchdog.fault is not None:
            refusal = "a latched fault"
        age = None if due is None else self.clock.now() - due.chunk.observed
        action = None if due is None or refusal else due.action
        verdict = self.filter.command(action, age or 0.0, refusal or self._why)
        if verdict.fresh:
            playback.played(verdict.command)
            self._moving = True
        elif action is not None:
            # What was refused once would be refused again: the rest of its chunk goes with it.
            playback.discard()
        if self._moving:
            if not verdict.fresh:
                playback.held(verdict.command)
            self.plant.apply(verdict.command)
        else:
            # Nothing was commanded, so nothing may be remembered as the last command.
            self.filter.reset(self._start)
        self.watchdog.record(verdict.fresh, verdict.reason)
        self._record(schedule, skipped, begun, verdict, due if verdict.fresh else None, age, observation)

    def _take_answers(self) -> None:
        for answer in self._asker.answers():
            if answer.decision is None:
                self._refused(answer, answer.error)
                continue
            decision = answer.decision
            if refusal := self.filter.refuse_decision(decision.actions, decision.value, decision.spread):
                # Of a preview that is refused, the finished decision may still be good.
                if answer.last:
                    self._refused(answer, refusal)
                continue
            asked = self._playback.asked_at
            delay = 0.0 if asked is None else (answer.arrived - asked) / self.period
            taken = self._playback.receive(answer.number, decision.actions, decision.steps_used, last=answer.last, delay=delay)
            self.statistics.stale_answers += not taken
            self._why = NO_ANSWER

    def _refused(self, answer: Answer, reason: str) -> None:
        if self._playback.missed(answer.number):
            self.statistics.missed += 1
            self._why = reason
        else:
            self.statistics.stale_answers += 1

    def _record(
        self, schedule: Schedule, skipped: int, begun: float, verdict: Verdict, due: Any, age: float | None, observation: Observation
    ) -> None:
        tick = Tick(
            cycle=schedule.cycle,
            late=begun - schedule.deadline,
            skipped=skipped,
            busy=self.clock.now() - begun,
            fresh=verdict.fresh,
            reason=verdict.reason if self._moving else STANDBY,
            age=age if verdict.fresh else None,
            steps=0 if due is None else due.chunk.steps,
            chunk=-1 if due is None else due.chunk.number,
            place=-1 if due is None else due.index,
            lead=self._playback.lead,
            command=verdict.command,
        )
        self.statistics.count(tick)
        if self._on_tick is not None:
            self._on_tick(tick, observation)


def _finished(plant: Plant) -> bool:
    """A simulator knows when an episode is over; a robot runs until it is stopped."""
    return bool(getattr(plant, "finished", False))


def _rest(plant: Plant) -> NDArray[np.float32] | None:
    """The command that keeps the plant where it is, if it can say so: a robot by its method `rest`, a simulator by `rest_action`."""
    rest = getattr(plant, "rest", None)
    return getattr(plant, "rest_action", None) if rest is None else rest()


@contextlib.contextmanager
def _undisturbed(priority: int | None) -> Iterator[None]:
    """Quicker hand-over between threads, no garbage collection of what was there before, and the priority, while the loop runs."""
    interval = sys.getswitchinterval()
    if priority is not None:
        before = os.sched_getscheduler(0), os.sched_getparam(0)
        try:
            # 0 is this thread; what it starts meanwhile does not inherit.
            os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(priority))
        except (OSError, ValueError) as error:
            raise UserError(
                f"priority {priority} is not to be had ({error}): pass 1 to 99 and allow it (`ulimit -r`, or CAP_SYS_NICE), or leave it out"
            ) from error
    sys.setswitchinterval(SWITCH_INTERVAL)
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
        sys.setswitchinterval(interval)
        if priority is not None:
            os.sched_setscheduler(0, *before)
