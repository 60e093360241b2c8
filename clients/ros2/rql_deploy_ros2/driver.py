"""What the node does, without rclpy: connect, drive in a thread, start, stop, clear a fault, tell a state."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rql_deploy.errors import UserError
from rql_deploy.images import fitted
from rql_deploy.limits import Limits
from rql_deploy.plant import EpisodeResult
from rql_deploy.ros2.robot import read_robot
from rql_deploy.runtime.client import RemotePolicy
from rql_deploy.runtime.control.realtime import RealTimeLoop
from rql_deploy.runtime.robots.topic_plant import TopicPlant
from rql_deploy.runtime.robots.transport import Transport

STOP_SECONDS = 10.0
Answer = tuple[bool, str]
"""Whether it was done, and a sentence: what a service of std_srvs/Trigger answers."""


@dataclass(frozen=True)
class Settings:
    """The node's parameters, by name."""

    endpoint: str = "tcp://127.0.0.1:5555"
    map: str = ""
    keys: str = ""
    bundle: str = ""
    limits: str = ""
    playback: str = "anytime"
    candidates: int = 4
    accept_assumed: bool = False
    autostart: bool = False


class Driver:
    """One robot and one policy. Methods return at once, but for `stop` and `close`, which hold the robot."""

    def __init__(self, settings: Settings, transport: Transport, log: Callable[[str], None]):
        """`log` gets a sentence where an episode ends.

        Raises UserError where the map or the limits do not fit, or no server answers.
        """
        if not settings.map:
            raise UserError("the parameter 'map' is empty: pass the robot's topic map (a TOML file)")
        self._log, self._transport = log, transport
        topics, description = read_robot(Path(settings.map))
        self._policy = RemotePolicy.connect(
            settings.endpoint, keys=settings.keys or None, bundle=settings.bundle or None
        )
        try:
            contract = self._policy.contract
            limits = Limits.load(Path(settings.limits), contract) if settings.limits else None
            plant = TopicPlant(topics, description, transport)
            self._plant, description = fitted(plant, description, contract.plant.images)
            contract.require(description)
            self._loop = RealTimeLoop(
                self._plant,
                self._policy,
                mode=settings.playback,  # type: ignore[arg-type]
                candidates=settings.candidates,
                limits=limits,
                accept_assumed=settings.accept_assumed,
            )
        except BaseException:
            self._policy.close()
            raise
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._last: EpisodeResult | None = None

    @property
    def driving(self) -> bool:
        """Whether an episode runs."""
        return self._thread is not None and self._thread.is_alive()

    def start(self) -> Answer:
        """Begin an episode."""
        if self.driving:
            return False, "the policy drives already: stop it first"
        self._stop.clear()
        self._thread = threading.Thread(target=self._drive, name="policy", daemon=True)
        self._thread.start()
        return True, "driving"

    def stop(self) -> Answer:
        """End the episode and hold the robot."""
        if not self.driving:
            return False, "the policy does not drive"
        self._stop.set()
        assert self._thread is not None
        self._thread.join(STOP_SECONDS)
        if self._thread.is_alive():
            return False, f"the loop has not ended within {STOP_SECONDS:g} s: stop the robot by other means"
        return True, "stopped; the robot holds"

    def reset_fault(self) -> Answer:
        """Clear a latched fault; motion then needs a new observation."""
        try:
            self._loop.reset_fault()
        except UserError as error:
            return False, str(error)
        return True, "no fault"

    def state(self) -> tuple[int, str, dict[str, Any]]:
        """Level (0 fine, 1 not driving, 2 fault or failed), a sentence, and figures: a diagnostic status."""
        statistics, fault = self._loop.statistics, self._loop.watchdog.fault
        figures = {
            "ticks": statistics.ticks,
            "held": statistics.held,
            "decisions": statistics.decisions,
            "missed decisions": statistics.missed,
            "skipped cycles": statistics.skipped,
        }
        if fault is not None:
            return 2, f"fault: {fault.reason}", figures
        if self.driving:
            return 0, "driving", figures
        if self._last is not None and self._last.error:
            return 2, self._last.error, figures
        return 1, "not driving", figures

    def close(self) -> None:
        """Hold the robot and leave server and topics."""
        if self.driving:
            self.stop()
        self._loop.close()
        self._policy.close()
        self._plant.close()

    def _drive(self) -> None:
        self._last = None
        result = self._loop.run_episode(stop=self._stop.is_set, after_fault="hold")
        self._last = result.episode
        outcome = result.episode.error or ("success" if result.episode.success else "stopped")
        self._log(f"{outcome} after {result.episode.steps} ticks, {result.episode.holds} held")
