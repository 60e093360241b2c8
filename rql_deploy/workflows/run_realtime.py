"""Run episodes in the real-time loop, with its log and its recording."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from rql_deploy.errors import UserError
from rql_deploy.plant import UNSTABLE

if TYPE_CHECKING:
    from rql_deploy.contract import Contract, PlantDescription
    from rql_deploy.limits import Limits
    from rql_deploy.plant import EpisodeResult, EpisodicPlant
    from rql_deploy.policy import Continuation, Policy
    from rql_deploy.runtime.control.playback import Mode
    from rql_deploy.runtime.control.realtime import RealTimeLoop, RealTimeResult
    from rql_deploy.runtime.control.telemetry import Tick
    from rql_deploy.sim.collection.recording import EpisodeRecorder

    from .picture_recorder import PictureRecorder

View = Callable[[str, "RealTimeLoop"], AbstractContextManager[Any]]
"""Shows a loop while an episode runs, under a title."""


@dataclass(frozen=True)
class RealTimeOptions:
    """Settings of a real-time run; docs/control.md explains them."""

    mode: Mode = "anytime"
    compensate_delay: bool | None = None
    """Whether chunks make up for what was played; None: where they do not continue it."""
    continuation: Continuation | None = None
    """How chunks continue what plays while they are made; None: as trained, else guidance."""
    limits: Path | None = None
    """The robot's limits.toml."""
    value_gate: float | None = None
    """Reject decisions whose V or spread lies beyond this part of the training data, e.g. 0.01."""
    duration: float | None = None
    """Seconds after which an episode ends."""
    log: Path | None = None
    """File for every tick, as JSON lines."""
    record: str | None = None
    """Folder or Minari id to write the episodes to."""
    no_fault_latch: bool = False
    """Count faults and continue, for measurements on simulators."""
    priority: int | None = None
    """SCHED_FIFO priority of the loop."""

    def limits_for(self, contract: Contract) -> Limits:
        """The limits file, tightened by the gate on V."""
        from rql_deploy.limits import Limits
        from rql_deploy.runtime.control.safety import gate_from_calibration

        limits = Limits() if self.limits is None else Limits.load(self.limits, contract)
        if self.value_gate is None:
            return limits
        value, spread = gate_from_calibration(contract, self.value_gate)
        return msgspec.structs.replace(
            limits,
            min_value=value if limits.min_value is None else max(value, limits.min_value),
            max_spread=spread if limits.max_spread is None else min(spread, limits.max_spread),
        )


@dataclass(frozen=True)
class RealTimeRun:
    """Episodes that the real-time loop played, in order."""

    episodes: list[EpisodeResult]
    figures: list[dict[str, Any]]
    """The loop's figures of each episode, as JSON data."""
    recording: Path | None
    """The data set that the episodes were written to."""
    recorded: int
    """Episodes in it."""


def play_in_real_time(
    task: str,
    description: PlantDescription,
    plant: EpisodicPlant,
    policy: Policy,
    options: RealTimeOptions,
    seeds: Sequence[int],
    *,
    candidates: int,
    pessimism: float,
    replan_every: int | None,
    timeout: float | None,
    on_episode: Callable[[int, RealTimeResult], None],
    view: View,
    accept_assumed: bool = False,
) -> RealTimeRun:
    """Play the seeds' episodes; Ctrl-C and a fault end the run early.

    What was played is written in every case. Raises UserError before anything moves when a file cannot be
    written or limits do not fit, and afterwards when the log is not complete.
    """
    from rql_deploy.runtime.client.reported_plant import ReportedPlant
    from rql_deploy.runtime.control.realtime import RealTimeLoop
    from rql_deploy.runtime.control.telemetry import STANDBY, TickLog, note_of

    limits = options.limits_for(policy.contract)
    results: list[EpisodeResult] = []
    figures: list[dict[str, Any]] = []
    log = folder = None
    with contextlib.ExitStack() as stack:
        recorder = _recorder(options.record, description, stack) if options.record is not None else None
        if options.log is not None:
            log = TickLog(options.log)
            stack.callback(log.close)

        def on_tick(tick: Tick, observation: Mapping[str, Any]) -> None:
            if log is not None:
                log.write(len(results), tick)
            if isinstance(plant, ReportedPlant):
                plant.note(note_of(tick))
            if recorder is not None and tick.kind != STANDBY:
                recorder.tick(observation, tick.command, plant.success)

        loop = stack.enter_context(
            RealTimeLoop(
                plant,
                policy,
                mode=options.mode,
                delay_compensation=options.compensate_delay,
                limits=limits,
                continuation=options.continuation,
                candidates=candidates,
                pessimism=pessimism,
                replan_every=replan_every,
                deadline=timeout,
                latch=not options.no_fault_latch,
                priority=options.priority,
                accept_assumed=accept_assumed,
                on_tick=on_tick,
            )
        )
        # The loop handles Ctrl-C within an episode; this is for the time between, while the plant is reset.
        with contextlib.suppress(KeyboardInterrupt):
            for index, seed in enumerate(seeds):
                with view(f"{task}, episode {index + 1} of {len(seeds)}", loop):
                    result = loop.run_episode(seed, duration=options.duration)
                    # Before the view ends, which writes to a terminal that may be gone.
                    if recorder is not None:
                        recorder.end(seed, _last_observation(plant, result))
                    results.append(result.episode)
                    summary = result.statistics.summary()
                    figures.append({**summary, "faults": loop.watchdog.faults, "error": result.episode.error})
                    if log is not None:
                        log.note(
                            {"episode": index, "end": True, "success": result.episode.success, **figures[-1]}
                        )
                on_episode(index, result)
                if result.interrupted or result.episode.error_kind not in ("", UNSTABLE):
                    break
        if recorder is not None and recorder.episodes:
            provenance = {"played_with": policy.contract.contract_id, "seeds": [r.seed for r in results]}
            folder = recorder.write(str(options.record), provenance)
    if log is not None and log.error is not None:
        raise UserError(f"the log is not complete ({log.error}): make room and run again")
    return RealTimeRun(results, figures, folder, len(recorder.episodes) if recorder is not None else 0)


def _recorder(
    output: str, description: PlantDescription, stack: contextlib.ExitStack
) -> EpisodeRecorder | PictureRecorder:
    """What keeps the episodes of such a plant; raises UserError where `output` cannot be written."""
    # A robot's computer may lack what only recordings need.
    from rql_deploy.sim.collection.minari_files import writable_target
    from rql_deploy.sim.collection.recording import EpisodeRecorder

    from .data.writing import check_output
    from .picture_recorder import PictureRecorder

    if not description.images:
        writable_target(output)
        return EpisodeRecorder(description)
    check_output(output, "store")
    recorder = PictureRecorder(description, Path(output))
    stack.callback(recorder.close)
    return recorder


def _last_observation(plant: EpisodicPlant, result: RealTimeResult) -> Mapping[str, Any] | None:
    # A plant that failed may fail again; its last observation then ends the recorded episode.
    if result.episode.error is not None:
        return None
    with contextlib.suppress(Exception):
        return plant.observe()
    return None


def delay_hint(mode: Mode, figures: Sequence[Mapping[str, Any]]) -> str | None:
    """What to try when decisions took longer than a tick (docs/control.md, Success versus delay); None
    when nothing.
    """
    ticks = figures[-1]["prefetch_ticks"] if figures else 0
    if mode != "prefetch" or ticks < 2:
        return None
    return (
        f"decisions took {ticks} ticks or more: try --playback anytime, which loses much less to long delays "
        "(docs/control.md)"
    )
