"""Drive a simulated or a real robot with a served policy, in lock-step or in real time."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rql_deploy.errors import UserError
from rql_deploy.plant import UNSTABLE
from rql_deploy.policy import DEFAULT_CANDIDATES

from .policies import with_pictures
from .run_realtime import RealTimeOptions, RealTimeRun, View, play_in_real_time

if TYPE_CHECKING:
    from rql_deploy.contract import PlantDescription
    from rql_deploy.plant import EpisodeResult, EpisodicPlant
    from rql_deploy.runtime.control.lockstep import ControlLoop
    from rql_deploy.runtime.control.realtime import RealTimeResult
    from rql_deploy.score import EpisodeScore
    from rql_deploy.sim.plants.tasks import Task

MakePlant = Callable[[], "tuple[EpisodicPlant, PlantDescription]"]
OnEpisode = Callable[[int, "EpisodeResult | RealTimeResult"], None]
"""Called with the index and the result of every episode, as it ends."""


@dataclass(frozen=True)
class RunResult:
    """Episodes that were played with a served policy."""

    score: EpisodeScore
    candidates: int
    stale_replies: int
    """Replies that came after their deadline and were dropped."""
    unrecorded: int
    """Parts of episodes that the server did not record."""
    real_time: list[dict[str, Any]] = field(default_factory=list)
    """In real time: the loop's figures of each episode."""
    recording: Path | None = None
    """In real time: the data set that the episodes were written to, where asked for."""
    recorded: int = 0
    """Episodes in it."""

    @property
    def error(self) -> str | None:
        """Why the last episode was ended by a fault, if it was."""
        return self.score.results[-1].error


def run(
    task: str,
    endpoint: str,
    *,
    keys: Path | None = None,
    episodes: int = 3,
    candidates: int = DEFAULT_CANDIDATES,
    pessimism: float = 0.0,
    replan_every: int | None = None,
    seed: int = 0,
    timeout: float | None = None,
    settings: Mapping[str, Any] | None = None,
    real_time: RealTimeOptions | None = None,
    on_episode: OnEpisode | None = None,
    view: View | None = None,
    accept_assumed: bool = False,
    on_remark: Callable[[str], None] | None = None,
) -> RunResult:
    """Play episodes of a task with the policy served at `endpoint`; Ctrl-C and a fault end the run early.

    Args:
        keys: this robot's key file, where the server asks for keys.
        candidates: chunks per decision, of which the one with the highest V is played.
        pessimism: c; candidates are ranked by V - c * spread.
        replan_every: actions of a chunk that are played before it is renewed; default all.
        timeout: seconds a decision may take; else 1, in real time the time of two chunks.
        settings: `robot`, `controller`, `control_rate` and `horizon`, where not the task's own.
        real_time: play on a clock that does not wait, behind the safety filter; None waits for every
            decision.
        on_episode: called as each episode ends.
        view: in real time, shows the loop while an episode runs.
        accept_assumed: move a robot although the policy's data did not say what its actions mean.
        on_remark: called with a sentence where a simulator moves by what was assumed.

    Raises UserError for a task, server or setting that will not do, ContractError where the plant does not
    fit the policy, and KeyboardInterrupt when not one episode was played.
    """
    from rql_deploy.assumptions import motion_remark
    from rql_deploy.images import fitted, stacked
    from rql_deploy.runtime.client import RemotePolicy
    from rql_deploy.runtime.client.episode_upload import EpisodeReporter
    from rql_deploy.runtime.client.reported_plant import ReportedPlant
    from rql_deploy.runtime.control.lockstep import ControlLoop
    from rql_deploy.score import EpisodeScore
    from rql_deploy.seeding import episode_seed

    # A missing task should be noticed before a server is asked, a missing server before a simulator is built.
    _plant_maker(task, real_time is not None, settings or {})
    with RemotePolicy.connect(endpoint, keys=keys) as policy:
        images = policy.contract.plant.images
    horizon, make_plant = _plant_maker(task, real_time is not None, with_pictures(settings, images))
    plant, description = fitted(*make_plant(), images)
    seeds = [episode_seed(seed, index, "evaluate") for index in range(episodes)]
    tell = on_episode or _ignore
    with (
        _closing(plant, on_remark or _unheard),
        RemotePolicy.connect(endpoint, plant=description, keys=keys) as policy,
        EpisodeReporter.connect(endpoint, keys=keys) as reporter,
    ):
        if on_remark is not None and (remark := motion_remark(policy.contract.plant)):
            on_remark(remark)
        seen = stacked(plant, policy.contract.plant)
        reported = ReportedPlant(seen, reporter, notes=real_time is not None)
        if real_time is not None:
            played = play_in_real_time(
                task,
                description,
                reported,
                policy,
                real_time,
                seeds,
                candidates=candidates,
                pessimism=pessimism,
                replan_every=replan_every,
                timeout=timeout,
                on_episode=tell,
                view=view or _no_view,
                accept_assumed=accept_assumed,
            )
        else:
            loop = ControlLoop(
                reported,
                policy,
                candidates=candidates,
                deadline=timeout or 1.0,
                pessimism=pessimism,
                replan_every=replan_every,
                accept_assumed=accept_assumed,
            )
            played = _play_in_lockstep(loop, seeds, tell)
        reported.note(None)
        stale = policy.stale_replies
        reporter.close()
        unrecorded = reporter.dropped
    if not played.episodes:
        raise KeyboardInterrupt
    score = EpisodeScore("run", tuple(played.episodes), horizon or 0)
    return RunResult(score, candidates, stale, unrecorded, played.figures, played.recording, played.recorded)


def _play_in_lockstep(loop: ControlLoop, seeds: Sequence[int], on_episode: OnEpisode) -> RealTimeRun:
    """Play the seeds' episodes until Ctrl-C or a fault."""
    results: list[EpisodeResult] = []
    with contextlib.suppress(KeyboardInterrupt):
        for index, seed in enumerate(seeds):
            result = loop.run_episode(seed)
            results.append(result)
            on_episode(index, result)
            # An unstable simulation costs its own episode.
            if result.error and result.error_kind != UNSTABLE:
                break
    return RealTimeRun(results, [], None, 0)


@contextlib.contextmanager
def _closing(plant: EpisodicPlant, remark: Callable[[str], None]) -> Iterator[None]:
    """Close the plant after the block. Where a robot that is gone fails to, what was played still counts."""
    try:
        yield
    finally:
        try:
            plant.close()
        except Exception as error:
            remark(f"the plant could not be closed ({type(error).__name__}: {error})")


def _unheard(_remark: str) -> None:
    """Nobody asked for remarks."""


def _ignore(_index: int, _result: EpisodeResult | RealTimeResult) -> None:
    """Nobody follows the episodes."""


@contextlib.contextmanager
def _no_view(_title: str, _loop: Any) -> Iterator[None]:
    yield


def _plant_maker(task: str, real_time: bool, settings: Mapping[str, Any]) -> tuple[int | None, MakePlant]:
    """The task's horizon, and what builds its plant."""
    if task.startswith("arm:"):
        return _arm(task, real_time, settings)
    if task.startswith("ros2:"):
        return _ros2(task, real_time, settings)
    if task.startswith("lerobot:"):
        return _lerobot(task, real_time, settings)
    from rql_deploy.sim.plants.tasks import Task

    work = Task(task, settings)
    return work.horizon, functools.partial(_simulator, work)


def _simulator(task: Task) -> tuple[EpisodicPlant, PlantDescription]:
    """A simulator that waits for its next command."""
    from rql_deploy.sim.plants.tasks import EnvPlant, describe

    env = task.make_env()
    return EnvPlant(env), describe(task.name, env)


def _arm(task: str, real_time: bool, settings: Mapping[str, Any]) -> tuple[int, MakePlant]:
    """The horizon of the arm, which has a clock of its own, and what starts it.

    Raises UserError for other settings.
    """
    from rql_deploy.sim.plants.arm import ArmPlant, describe_arm

    if task != "arm:reach":
        raise UserError(f"'{task}' is not a task of the arm: there is arm:reach")
    if not real_time:
        raise UserError("the arm's clock does not wait for decisions: add --real-time")
    for name in ("robot", "controller"):
        if settings.get(name) is not None:
            raise UserError(f"--{name} does not apply to {task}, where it is fixed: leave it out")
    rate, horizon = float(settings.get("control_rate") or 20), int(settings.get("horizon") or 200)
    return horizon, lambda: (ArmPlant(rate, horizon), describe_arm(rate, task))


def _ros2(task: str, real_time: bool, settings: Mapping[str, Any]) -> tuple[int | None, MakePlant]:
    """The ticks of an episode with a robot that speaks ROS 2, if it ends by itself, and what connects to it.

    Raises UserError for other settings, and for a map that does not say what moves.
    """
    from rql_deploy.ros2.robot import domain_of, read_robot
    from rql_deploy.runtime.robots.dds import DdsTransport
    from rql_deploy.runtime.robots.topic_plant import TopicPlant

    _require_robot_settings(task, real_time, settings)
    topics, description = read_robot(Path(task.partition(":")[2]))
    horizon: int | None = settings.get("horizon")

    def connect() -> tuple[EpisodicPlant, PlantDescription]:
        transport = DdsTransport(domain_of(topics), topics.network)
        return TopicPlant(topics, description, transport, horizon=horizon), description

    return horizon, connect


def _lerobot(task: str, real_time: bool, settings: Mapping[str, Any]) -> tuple[int | None, MakePlant]:
    """The same of a robot of LeRobot."""
    from rql_deploy.runtime.robots.lerobot import open_robot

    _require_robot_settings(task, real_time, settings)
    horizon: int | None = settings.get("horizon")
    # It reaches for the robot when an episode begins, not here.
    plant = open_robot(Path(task.partition(":")[2]), horizon=horizon)
    return horizon, lambda: (plant, plant.description)


def _require_robot_settings(task: str, real_time: bool, settings: Mapping[str, Any]) -> None:
    if not real_time:
        raise UserError("the robot's clock does not wait for decisions: add --real-time")
    for name in ("robot", "controller", "control_rate"):
        if settings.get(name) is not None:
            option = name.replace("_", "-")
            raise UserError(f"--{option} does not apply to {task}, whose file says it: leave it out")
