"""`rql-deploy run --real-time`: the loop, its live view, its log and its recording."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from rql_deploy.cli.options import show_next
from rql_deploy.errors import UserError

from .live_view import LiveView

if TYPE_CHECKING:
    from rql_deploy.contract import Contract, PlantDescription
    from rql_deploy.limits import Limits
    from rql_deploy.plant import EpisodeResult, EpisodicPlant
    from rql_deploy.policy import Policy
    from rql_deploy.runtime.control.playback import Mode
    from rql_deploy.runtime.control.realtime import RealTimeResult
    from rql_deploy.runtime.control.telemetry import Tick


@dataclass(frozen=True)
class RealTimeOptions:
    """What the command line said about a real-time run."""

    mode: Mode
    make_up: bool
    limits: Path | None
    gate: float | None
    """Part of the training data that a gate on V and spread would refuse."""
    duration: float | None
    log: Path | None
    record: str | None
    count_faults: bool
    priority: int | None
    candidates: int
    timeout: float | None
    quiet: bool

    def limits_for(self, contract: Contract) -> Limits:
        """The limits file, tightened by the gate."""
        from rql_deploy.limits import Limits
        from rql_deploy.runtime.control.safety import gate_from_calibration

        limits = Limits() if self.limits is None else Limits.load(self.limits, contract)
        if self.gate is None:
            return limits
        value, spread = gate_from_calibration(contract, self.gate)
        return msgspec.structs.replace(
            limits,
            min_value=value if limits.min_value is None else max(value, limits.min_value),
            max_spread=spread if limits.max_spread is None else min(spread, limits.max_spread),
        )


def play(
    task: str, description: PlantDescription, plant: EpisodicPlant, policy: Policy, options: RealTimeOptions, seeds: Sequence[int]
) -> tuple[list[EpisodeResult], list[dict[str, Any]]]:
    """Play the seeds' episodes; returns their results and the loop's figures. Ends early at Ctrl-C and at a fault.

    What was played is written in every case. Raises UserError before anything moves when a file cannot be written or limits do not fit.
    """
    from rql_deploy.runtime.control.realtime import RealTimeLoop
    from rql_deploy.runtime.control.telemetry import STANDBY, TickLog
    from rql_deploy.sim.collection.minari_files import writable_target
    from rql_deploy.sim.collection.recording import EpisodeRecorder

    limits = options.limits_for(policy.contract)
    if options.record is not None:
        writable_target(options.record)
    results: list[EpisodeResult] = []
    figures: list[dict[str, Any]] = []
    recorder = EpisodeRecorder(description) if options.record is not None else None
    log = None
    with contextlib.ExitStack() as stack:
        if options.log is not None:
            log = TickLog(options.log)
            stack.callback(log.close)

        def on_tick(tick: Tick, observation: Mapping[str, Any]) -> None:
            if log is not None:
                log.write(len(results), tick)
            if recorder is not None and tick.reason != STANDBY:
                recorder.tick(observation, tick.command, plant.success)

        loop = stack.enter_context(
            RealTimeLoop(
                plant,
                policy,
                mode=options.mode,
                make_up=options.make_up,
                limits=limits,
                candidates=options.candidates,
                deadline=options.timeout,
                latch=not options.count_faults,
                priority=options.priority,
                on_tick=on_tick,
            )
        )
        # Ctrl-C within an episode ends that by itself; this is for the time between, while the plant is reset.
        with contextlib.suppress(KeyboardInterrupt):
            for index, seed in enumerate(seeds):
                with LiveView(f"{task}, episode {index + 1} of {len(seeds)}", loop, quiet=options.quiet):
                    result = loop.run_episode(seed, duration=options.duration)
                if recorder is not None:
                    recorder.end(seed, _last_observation(plant, result))
                results.append(result.episode)
                figures.append({**result.statistics.summary(), "faults": loop.watchdog.faults, "error": result.episode.error})
                if log is not None:
                    log.note({"episode": index, "end": True, "success": result.episode.success, **figures[-1]})
                if not options.quiet:
                    click.echo(describe_episode(index, result))
                if result.interrupted or result.episode.error:
                    break
    if not options.quiet and (hint := delay_hint(options.mode, figures)):
        click.echo(hint)
    if recorder is not None and recorder.episodes:
        folder = recorder.write(str(options.record), {"played_with": policy.contract.contract_id, "seeds": [r.seed for r in results]})
        if not options.quiet:
            click.echo(f"{len(recorder.episodes)} episodes in {folder}")
            show_next(f"rql-deploy data inspect {folder}", f"rql-deploy train --dataset {folder} --init-from CHECKPOINT --output NEW_RUN")
    if log is not None and log.error is not None:
        raise UserError(f"the log is not complete ({log.error}): make room and run again")
    return results, figures


def delay_hint(mode: Mode, figures: Sequence[Mapping[str, Any]]) -> str | None:
    """What to try when decisions took longer than a tick; the figures behind it are in docs/control.md, Success versus delay."""
    lead = figures[-1]["lead"] if figures else 0
    if mode != "prefetch" or lead < 2:
        return None
    return f"decisions took {lead} ticks or more: try --play anytime, which loses much less to long delays (docs/control.md)"


def _last_observation(plant: EpisodicPlant, result: RealTimeResult) -> Mapping[str, Any] | None:
    # A plant that failed may fail again; what it last observed then ends the episode.
    if result.episode.error is not None:
        return None
    with contextlib.suppress(Exception):
        return plant.observe()
    return None


def describe_episode(index: int, result: RealTimeResult) -> str:
    """One line for people."""
    episode, summary = result.episode, result.statistics.summary()
    outcome = "interrupted" if result.interrupted else episode.error or ("success" if episode.success else "no success")
    deviation = summary["period_deviation_ms"]["p99"]
    parts = [
        f"episode {index + 1}: {outcome} after {episode.steps} ticks",
        f"{summary['held']} held ({summary['stale_ratio']:.1%})",
        f"period p99 within {deviation:.2f} ms" if deviation is not None else "",
        f"{summary['skipped_cycles']} cycles skipped" if summary["skipped_cycles"] else "",
        f"observation age p50 {summary['observation_age_ms']['p50']:.0f} ms" if summary["observation_age_ms"]["p50"] is not None else "",
    ]
    return ", ".join(part for part in parts if part)
