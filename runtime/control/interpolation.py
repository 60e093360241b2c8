"""A plant for drivers of 100 to 1000 Hz: set-points between the policy's commands, from a thread of its own.

    arm = InterpolatedPlant(MyArm(driver), policy.contract.plant, driver_rate=1000.0, method="minimum-jerk")
    with arm, RealTimeLoop(arm, policy) as loop:
        loop.run_episode()

The loop commands at the contract's rate and waits for nothing; the thread applies one set-point of
`rql_deploy.setpoints.Setpoints` to the driver in each of the driver's cycles. When no command comes, the
driver gets holds: the last target, zero motion, zero velocity.
"""

from __future__ import annotations

import contextlib
import threading
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rql_deploy.contract import PlantDescription
from rql_deploy.plant import Observation, rest_command
from rql_deploy.setpoints import GRACE, Method, Setpoints

from .clock import Clock, Schedule, SystemClock

SPIN = 50e-6
"""Seconds of every wait spent spinning: in each of a thousand cycles a second, more would starve the loop."""


class Driver(Protocol):
    """What is interpolated for: a plant whose `apply` takes set-points `driver_rate` times a second.

    It may have `rest() -> [A]`, the command at which it rests; absolute dimensions without it start at their
    first command. `observe` and `apply` are called from two threads, never at once.
    """

    def reset(self, seed: int | None = None) -> None: ...

    def observe(self) -> Observation: ...

    def apply(self, action: Any) -> None:
        """Take the set-point `[A]`, float64, of one cycle, and return at once."""
        ...


class InterpolatedPlant:
    """The plant that a loop drives; use as a context manager, or call `close`."""

    def __init__(
        self,
        driver: Driver,
        plant: PlantDescription,
        *,
        driver_rate: float,
        method: Method = "linear",
        grace: float = GRACE,
        clock: Clock | None = None,
    ):
        """
        Args:
            plant: the contract's description of the actions.
            driver_rate: Hz.
            method: how absolute targets are approached; minimum jerk is smoother, and faster in the middle.
            grace: share of a control period after which a velocity falls to zero when no command comes.

        Raises ContractError where the actions cannot be interpolated (see `Setpoints`).
        """
        self._driver, self._plant, self._rate = driver, plant, driver_rate
        self._method: Method = method
        self._grace, self._clock = grace, clock or SystemClock(SPIN)
        self._lock = threading.Lock()
        self._setpoints: Setpoints | None = None
        self._failure: Exception | None = None
        self._end = threading.Event()
        self._thread: threading.Thread | None = None
        # What cannot be interpolated is refused here and not in the middle of a run.
        self._start(plant.action_low)

    def _start(self, rest: Any) -> Setpoints:
        return Setpoints(self._plant, self._rate, rest, method=self._method, grace=self._grace)

    def __getattr__(self, name: str) -> Any:
        # Whatever else a driver has: `finished`, `success`, `rest`.
        return getattr(self._driver, name)

    def reset(self, seed: int | None = None) -> None:
        """Stop the set-points and reset the driver; they start again with the first command."""
        self._stop()
        self._driver.reset(seed)

    def observe(self) -> Observation:
        """The driver's observation; raises what its `apply` has raised."""
        self._require_no_failure()
        with self._lock:
            return self._driver.observe()

    def apply(self, action: NDArray[np.float32]) -> None:
        """Hand over a command; returns at once. Raises what the driver's `apply` has raised."""
        self._require_no_failure()
        with self._lock:
            if self._setpoints is None:
                rest = rest_command(self._driver)
                self._setpoints = self._start(action if rest is None else rest)
            self._setpoints.command(action)
        if self._thread is None:
            self._end.clear()
            self._thread = threading.Thread(target=self._run, name="set-points", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Stop the set-points, the last of which ends all motion. The driver is left to its owner."""
        self._stop()

    def __enter__(self) -> InterpolatedPlant:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _stop(self) -> None:
        if self._thread is not None:
            self._end.set()
            self._thread.join(timeout=5)
        self._thread, self._setpoints, self._failure = None, None, None

    def _require_no_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        assert self._setpoints is not None
        try:
            self._drive(self._setpoints)
        except Exception as failure:
            self._failure = failure
        # The last set-point may be a velocity, which lasts. A driver that failed once may take this one.
        with contextlib.suppress(Exception), self._lock:
            self._driver.apply(self._setpoints.rest())

    def _drive(self, setpoints: Setpoints) -> None:
        """Apply set-points until the end; raises what the driver raises."""
        schedule = Schedule(1.0 / self._rate, self._clock.now())
        while not self._end.is_set():
            self._clock.sleep_until(schedule.deadline)
            with self._lock:
                self._driver.apply(setpoints.next())
                for _ in range(schedule.advance(self._clock.now())):
                    setpoints.skip()
