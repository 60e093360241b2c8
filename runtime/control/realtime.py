"""The real-time control loop: every tick has its deadline, and the loop waits for nobody.

    loop = RealTimeLoop(plant, policy)
    result = loop.run_episode(seed=0)

In each tick the loop observes, takes results of the policy that have arrived, requests the next decision if
it is time, passes the action that is due through the safety filter, and commands the plant. A tick without a
fresh action is a hold; too many latch a fault, after which the loop only holds until `reset_fault` is called.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from rql_deploy.errors import UserError
from rql_deploy.limits import Limits
from rql_deploy.plant import FAULT, EpisodeResult, Observation, Plant, message_age, rest_command
from rql_deploy.policy import Continuation, Policy, read_seconds
from rql_deploy.seeding import check_seed, decision_seed

from .clock import MIN_SPACING, Clock, Schedule, SystemClock, require_rate
from .inference import InferenceRequest, InferenceResult, InferenceRunner, ThreadRunner, continues
from .lockstep import drivable, is_finished, is_over, plant_failure
from .playback import Mode, Playback, ScheduledAction, delta_bounds
from .safety import NO_ACTION, Reason, SafetyFilter, Verdict
from .scheduling import low_jitter
from .telemetry import STANDBY, LoopStatistics, Tick
from .watchdog import Watchdog

LATCHED_FAULT = Reason("latched fault", "a latched fault")
WAITING = Reason(STANDBY, "waiting for the first decision")

OnTick = Callable[[Tick, Observation], None]


@dataclass(frozen=True)
class RealTimeResult:
    """Result of one episode."""

    episode: EpisodeResult
    statistics: LoopStatistics
    interrupted: bool = False
    """Ended by `stop` or Ctrl-C."""


class RealTimeLoop:
    """Drives a plant with a policy at a fixed rate, without waiting for the policy."""

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
        prefetch_ticks: int | None = None,
        latch: bool = True,
        priority: int | None = None,
        delay_compensation: bool | None = None,
        continuation: Continuation | None = None,
        replan_every: int | None = None,
        pessimism: float = 0.0,
        accept_assumed: bool = False,
        clock: Clock | None = None,
        make_runner: Callable[[Clock, SafetyFilter], InferenceRunner] | None = None,
        on_tick: OnTick | None = None,
    ):
        """
        Args:
            mode: default `anytime`, or `prefetch` for a policy that streams no previews.
            rate: Hz; the contract's, which is the default: its actions are made for that period. For a driver
            of another rate there is `interpolation.InterpolatedPlant`.
            deadline: seconds a decision may take; default the time of two chunks.
            prefetch_ticks: ticks before the end of a chunk at which the next one is requested; default
            measured.
            latch: False counts faults instead of stopping, for measurements.
            priority: 1 to 99; run the loop's thread under SCHED_FIFO, before all threads of normal priority.
            delay_compensation: correct delta motion for what was played; default where no chunk continues it.
            continuation: how chunks continue what plays while they are computed (docs/control.md); default as
            they were trained to, else guidance; none for a policy that takes no `prefix`.
            replan_every: actions after which a chunk is renewed; default all.
            pessimism: c; candidates are ranked by V - c * spread.
            accept_assumed: drive a robot although the policy's data did not say what its actions mean.
            make_runner: replaces the inference thread.

        Raises ContractError when rate or limits do not fit the contract, or a plant that is no simulator
        would move by what was assumed (`rql_deploy.assumptions`), and UserError for `anytime` with a
        policy that streams no previews.
        """
        streams = hasattr(policy, "stream")
        if mode == "anytime" and not streams and make_runner is None:
            raise UserError("this policy streams no previews", hint="use prefetch playback instead")
        mode = mode or ("anytime" if streams else "prefetch")
        self.policy, self.contract = policy, policy.contract
        self.plant = drivable(plant, self.contract, accept_assumed=accept_assumed)
        self.clock: Clock = clock or SystemClock()
        self.period = 1.0 / require_rate(rate, self.contract.plant.control_rate)
        self.filter = SafetyFilter(self.contract, limits)
        self.watchdog = Watchdog(self.filter.limits, 1.0 / self.period, latch=latch)
        self.statistics = LoopStatistics(self.period)
        self._on_tick, self._priority, self._hold_reason = on_tick, priority, NO_ACTION
        makes_up = not continues(policy, continuation) if delay_compensation is None else delay_compensation
        bounds = delta_bounds(self.contract.plant, self.filter.low, self.filter.high)
        self._playback = Playback(
            self.contract.h,
            mode,
            prefetch_ticks=prefetch_ticks,
            min_preview_steps=(self.contract.F + 1) // 2,
            delta=bounds if makes_up else None,
            replan_every=replan_every,
        )
        # When the messages behind a decision's observation were made, by its number. A thousand are more
        # than can be asked for while one chunk plays.
        self._made_at: dict[int, float] = {}
        self._runner: InferenceRunner
        if make_runner is not None:
            self._runner = make_runner(self.clock, self.filter)
        else:
            seconds = 2 * self.contract.h * self.period if deadline is None else deadline
            self._runner = ThreadRunner(
                policy,
                self.clock,
                deadline=seconds,
                candidates=candidates,
                value=self.filter.needs_value,
                pessimism=pessimism,
                continuation=continuation,
            )

    def close(self) -> None:
        """End the inference thread."""
        self._runner.close()

    def __enter__(self) -> RealTimeLoop:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def reset_fault(self) -> None:
        """Clear a latched fault; raises UserError during the cool-down. Motion needs a new observation."""
        self.watchdog.reset()

    def run_episode(
        self,
        seed: int = 0,
        *,
        duration: float | None = None,
        stop: Callable[[], bool] = lambda: False,
        after_fault: Literal["end", "hold"] = "end",
    ) -> RealTimeResult:
        """Run until the plant is finished, `duration` is over, `stop()` returns true, or a fault latches.

        `duration` is in seconds. Before the first decision nothing is commanded. With `after_fault="hold"`
        the loop holds after a fault until it is stopped or the fault is cleared. At the end the plant is held
        until the command no longer changes (delta motion is at zero); Ctrl-C ends this, too. An exception of
        the plant ends the episode as failed, after three holds. Raises UserError for options that are none.
        """
        seed, duration = check_seed(seed), None if duration is None else read_seconds("duration", duration)
        if after_fault not in ("end", "hold"):
            raise UserError(f"after_fault is {after_fault!r}", hint="pass 'end' or 'hold'")
        self.statistics = LoopStatistics(self.period)
        self._playback.clear()
        self._runner.reset()
        self._first_request, self._seed, self._moving = self._playback.requested, seed, False
        self._commanded_at: float | None = None
        error: str | None = None
        error_kind, interrupted = "", False
        try:
            self.plant.reset(seed)
            self._start = rest_command(self.plant)
            self.filter.reset(self._start)
        except Exception as failure:
            error, error_kind = plant_failure("could not be reset", failure)
            episode = EpisodeResult(seed, False, 0, error=error, error_kind=error_kind)
            return RealTimeResult(episode, self.statistics)
        with low_jitter(self._priority):
            schedule = Schedule(self.period, self.clock.now())
            try:
                interrupted = self._run(schedule, duration, stop, after_fault == "end")
            except KeyboardInterrupt:
                interrupted = True
            except Exception as failure:
                error, error_kind = plant_failure(f"failed at tick {self.statistics.ticks}", failure)
            success = error is None and bool(getattr(self.plant, "success", False))
            try:
                # Three after a failure: a bus that has lost one message may lose another.
                self._settle(schedule, 3 if error else None)
            except KeyboardInterrupt:
                interrupted = True
        if self.watchdog.fault is not None and error is None:
            error, error_kind, success = f"fault: {self.watchdog.fault.reason}", FAULT, False
        ticks, held = self.statistics.ticks, self.statistics.held
        episode = EpisodeResult(seed, success, ticks, held, error=error, error_kind=error_kind)
        return RealTimeResult(episode, self.statistics, interrupted)

    def _run(
        self, schedule: Schedule, duration: float | None, stop: Callable[[], bool], end_at_fault: bool
    ) -> bool:
        """Run ticks until the episode ends; returns whether `stop` ended it."""
        skipped = 0
        while not is_finished(self.plant):
            if stop():
                return True
            if duration is not None and schedule.cycle * self.period >= duration:
                return False
            self.clock.sleep_until(schedule.deadline)
            self._tick(schedule, skipped)
            if self.watchdog.fault is not None:
                # After a fault, no action from before it may be played.
                self._playback.clear()
                if end_at_fault:
                    return False
            skipped = schedule.advance(self.clock.now())
        return False

    def _settle(self, schedule: Schedule, ticks: int | None) -> None:
        """Hold for `ticks`, else until the command no longer changes; ignores failures of the plant."""
        previous = None
        while self._moving and ticks != 0 and not is_over(self.plant):
            schedule.advance(self.clock.now())
            self.clock.sleep_until(schedule.deadline)
            self._keep_distance()
            self._commanded_at = self.clock.now()
            command = self.filter.command(None, now=self._commanded_at).command
            if ticks is None and previous is not None and np.array_equal(command, previous):
                return
            with contextlib.suppress(Exception):
                self.plant.apply(command)
            previous, ticks = command, None if ticks is None else ticks - 1

    def _tick(self, schedule: Schedule, skipped: int) -> None:
        begun = self.clock.now()
        # Copied because the plant may reuse its arrays, and the inference thread and the log read them later.
        observation = {name: np.array(value) for name, value in self.plant.observe().items()}
        observed = self.clock.now()
        self._poll_results()
        playback = self._playback
        if self.watchdog.fault is None and playback.should_request():
            self._submit(observation, observed)
            self._poll_results()
        self._keep_distance()
        now = self.clock.now()
        scheduled = playback.due(self.filter.allowed(now))
        reason = self.filter.reject_observation(observation)
        if self.watchdog.fault is not None:
            reason = LATCHED_FAULT
        age = None if scheduled is None else now - self._made_at[scheduled.chunk.number]
        action = None if scheduled is None or reason else scheduled.action
        verdict = self.filter.command(action, age or 0.0, reason or self._hold_reason, now=now)
        if verdict.fresh:
            playback.played(verdict.command)
            self._moving = True
        elif action is not None:
            # The filter would reject this action again in the next tick: drop the rest of its chunk.
            playback.discard()
        if self._moving:
            if not verdict.fresh:
                playback.held(verdict.command)
            self._commanded_at = now
            self.plant.apply(verdict.command)
        else:
            # Nothing was commanded, so the filter must not take it for the last command.
            self.filter.reset(self._start)
        self.watchdog.record(verdict.fresh, verdict.reason.text if verdict.reason else "")
        self._record(
            schedule, skipped, begun, verdict, scheduled if verdict.fresh else None, age, observation
        )

    def _keep_distance(self) -> None:
        """Wait after a stall until the last command is half a period old; the schedule stays as it is."""
        if self._commanded_at is not None:
            self.clock.sleep_until(self._commanded_at + MIN_SPACING * self.period)

    def _submit(self, observation: Observation, observed: float) -> None:
        playing, previews = self._playback.playing, self._playback.previews
        number = self._playback.request(observed)
        self._made_at[number] = observed - message_age(self.plant)
        self._made_at.pop(number - 1000, None)
        self.statistics.decisions += 1
        seed = self._decision_seed(number)
        self._runner.submit(InferenceRequest(number, observation, seed, playing, previews))

    def _decision_seed(self, number: int) -> int:
        return decision_seed(self._seed, number - self._first_request)

    def _poll_results(self) -> None:
        for result in self._runner.poll():
            decision = result.decision
            if decision is None:
                self._missed(result, result.error or NO_ACTION)
                continue
            if reason := self.filter.reject_decision(decision.actions, decision.value, decision.spread):
                # A rejected preview does not count: the complete decision may still pass.
                if result.last:
                    self._missed(result, reason)
                continue
            requested = self._playback.requested_at
            delay = 0.0 if requested is None else (result.arrived - requested) / self.period
            accepted = self._playback.receive(
                result.number, decision.actions, decision.steps_used, last=result.last, delay=delay
            )
            self.statistics.stale_results += not accepted
            self._hold_reason = NO_ACTION

    def _missed(self, result: InferenceResult, reason: Reason) -> None:
        if self._playback.missed(result.number):
            self.statistics.missed += 1
            self._hold_reason = reason
        else:
            self.statistics.stale_results += 1

    def _record(
        self,
        schedule: Schedule,
        skipped: int,
        begun: float,
        verdict: Verdict,
        scheduled: ScheduledAction | None,
        age: float | None,
        observation: Observation,
    ) -> None:
        reason = verdict.reason if self._moving else WAITING
        tick = Tick(
            cycle=schedule.cycle,
            late=begun - schedule.deadline,
            skipped=skipped,
            busy=self.clock.now() - begun,
            fresh=verdict.fresh,
            kind=reason.kind if reason else "",
            reason=reason.text if reason else "",
            age=age if verdict.fresh else None,
            steps=0 if scheduled is None else scheduled.chunk.steps,
            chunk=-1 if scheduled is None else scheduled.chunk.number,
            chunk_index=-1 if scheduled is None else scheduled.index,
            prefetch_ticks=self._playback.prefetch_ticks,
            command=verdict.command,
            seed=None if scheduled is None else self._decision_seed(scheduled.chunk.number),
        )
        self.statistics.count(tick)
        if self._on_tick is not None:
            self._on_tick(tick, observation)
