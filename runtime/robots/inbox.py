"""The newest message of each topic, how old it is, and whether the stamps' clock is ours."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

from rql_deploy.errors import UserError
from rql_deploy.ros2.topic_map import Observed
from rql_deploy.ros2.values import field_of

NANOSECONDS = 1_000_000_000
COMPARED = 10
"""Latest messages whose least delay is taken for the difference of the clocks."""


class Newest(NamedTuple):
    """The newest message of a topic."""

    value: Any
    """The field, as an array."""
    arrived: float
    """Seconds on the monotonic clock."""
    lag: float | None
    """Seconds from its stamp to its arrival; None where it has no stamp, or its stamp does not count."""


class Inbox:
    """One field of the observation. Messages come from the transport's thread, readers from the loop's."""

    def __init__(
        self,
        name: str,
        source: Observed,
        shape: tuple[int, ...],
        *,
        max_skew: float,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], int] = time.time_ns,
    ):
        self.name, self.source = name, source
        self._shape, self._max_skew = shape, max_skew
        self._clock, self._wall_clock = clock, wall_clock
        self._newest: Newest | None = None
        self._newest_stamp: int | None = None
        self._overtaken = 0
        """Messages in a row that were older than the newest."""
        self._lags: deque[float] = deque(maxlen=COMPARED)
        self._error: UserError | None = None

    @property
    def heard(self) -> bool:
        """Whether any message has come, even one that does not fit."""
        return self._newest is not None or self._error is not None

    def put(self, message: Any) -> None:
        """Take a message; one that does not fit is reported by the next `read`."""
        arrived = self._clock()
        try:
            stamp = self._stamp(message)
            lag = None if stamp is None else (self._wall_clock() - stamp) / NANOSECONDS
            value = field_of(
                f"topic {self.source.topic}", self.source.type, message, self.source, self._shape
            )
        except UserError as error:
            self._error = error
            return
        except Exception as error:
            # It comes from another program, and the thread that hands it in must live on.
            self._error = UserError(
                f"topic {self.source.topic}: a message cannot be read ({type(error).__name__}: {error})"
            )
            return
        if lag is not None:
            self._lags.append(lag)
        if not self._is_overtaken(stamp, arrived):
            self._newest, self._newest_stamp, self._error = Newest(value, arrived, lag), stamp, None
            self._overtaken = 0

    def _is_overtaken(self, stamp: int | None, arrived: float) -> bool:
        """Whether a message is older than the one that is there, which still counts.

        Networks change the order, and a second publisher may repeat what was. `COMPARED` in a row, or nothing
        newer for the map's `max_gap`, mean that the clock behind the stamps was put back.
        """
        newest, before = self._newest, self._newest_stamp
        if newest is None or stamp is None or before is None or stamp >= before:
            return False
        self._overtaken += 1
        return self._overtaken < COMPARED and arrived - newest.arrived <= self.source.max_gap

    def _stamp(self, message: Any) -> int | None:
        """The header's stamp in ns; None for none, and for zero, which means none."""
        header = getattr(message, "header", None)
        if self.source.age != "stamp" or header is None:
            return None
        return int(header.stamp.sec) * NANOSECONDS + int(header.stamp.nanosec) or None

    def read(self) -> Newest:
        """The newest message.

        Raises UserError where there is none, where one did not fit, is too old or is stamped in the future.
        """
        if self._error is not None:
            raise self._error
        newest = self._newest
        if newest is None:
            raise UserError(f"no message has come on {self.source.topic}: start its publisher")
        if self.source.age == "none":
            return newest
        silent = self._clock() - newest.arrived
        if silent > self.source.max_gap:
            raise UserError(
                f"no message has come on {self.source.topic} for {silent:.2g} s: its publisher has stopped, "
                "or the network is down"
            )
        if skew := self.skew(ahead_only=True):
            raise UserError(skew)
        if self.age(newest) > self.source.max_gap:
            raise UserError(
                self.skew() or f"messages of {self.source.topic} are {self.age(newest):.2g} s old"
            )
        return newest

    def age(self, newest: Newest) -> float:
        """Seconds since the message was made, or since it arrived; 0 where its age does not count."""
        if self.source.age == "none":
            return 0.0
        return self._clock() - newest.arrived + max(0.0, newest.lag or 0.0)

    def skew(self, *, ahead_only: bool = False) -> str | None:
        """What is wrong with the clock behind the stamps, in one sentence; None where nothing is.

        The least delay of the latest messages is what the clocks differ by: a network that is slow at times
        is none.
        """
        lags = tuple(self._lags)
        least = min(lags, default=0.0)
        if -least > self._max_skew:
            where = "ahead of"
        elif least > self._max_skew and not ahead_only:
            where = "behind"
        else:
            return None
        return (
            f"the stamps of {self.source.topic} are {abs(least):.3g} s {where} this machine's clock: "
            "synchronise the clocks (chrony, ptp4l), or set age = 'arrival' for this topic in the map"
        )
