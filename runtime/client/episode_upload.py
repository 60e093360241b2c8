"""Tells a server with `--record` what a control loop did and saw.

The server knows neither which actions were carried out between two requests nor whether the task succeeded.

    with EpisodeReporter.connect("tcp://127.0.0.1:5555") as reporter:
        reporter.add(observation, action, success=False)   # every tick
        reporter.finish(observation)                       # after the episode's last action

`ReportedPlant` (`reported_plant.py`) does this for any plant. A thread sends over a connection of its own, so
no tick waits for it. If the server does not record, nothing is kept and nothing is sent.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import zmq
from numpy.typing import NDArray

from rql_deploy.contract import PlantDescription
from rql_deploy.errors import ContractError, DeadlineMissed, PolicyClosed, UserError, require_process
from rql_deploy.observation import ObservationReader
from rql_deploy.policy import read_seconds
from rql_deploy.runtime.wire.checks import ServerError
from rql_deploy.runtime.wire.headers import Episode, Hello
from rql_deploy.runtime.wire.notes import TickNote, encode_notes

from .base import read_addresses
from .channel import Channel
from .session import Session

PART_BYTES = 256 << 10
"""Size of the observations in one message."""
PART_TICKS = 512
MAX_PENDING = 256
"""Messages that wait to be sent; more are dropped, and the recorded episode ends before them."""
CALL_TIMEOUT = 2.0
"""Seconds until a message without a receipt is sent again; a reader of the recording drops doubles."""
CLOSE_LIMIT = 5.0
"""Seconds that unsent messages get at the end."""
_log = logging.getLogger("rql_deploy.reporting")

Part = tuple[Episode, dict[str, NDArray[Any]], int, dict[str, NDArray[Any]], NDArray[np.float64]]
"""A request, observation fields, their rows, arrays by name, and when each tick began."""


class _Row(NamedTuple):
    """A tick as `EpisodeReporter.add` takes it."""

    fields: dict[str, NDArray[Any]]
    action: NDArray[np.float32]
    reward: float | None
    success: bool | None
    intervened: bool | None
    note: TickNote | None
    began: float


class EpisodeReporter:
    """Sends episodes, tick by tick, to the first of the servers that records."""

    def __init__(self, channel: Channel | None, session: Session | None, bundle: str | None):
        self.dropped = 0
        """Messages that no server recorded."""
        self._channel, self._session, self._bundle = channel, session, bundle
        self._rows: list[_Row] = []
        self._episode, self._tick, self._bytes = 0, 0, 0
        self._queue: queue.Queue[Part | None] = queue.Queue(MAX_PENDING)
        self._send_until = float("inf")
        self._pid, self._closing, self._closed = os.getpid(), threading.RLock(), False
        self._read = ObservationReader(() if session is None else session.contract.plant.inputs)
        self._thread: threading.Thread | None = None
        if self.recording:
            self._thread = threading.Thread(target=self._send_all, name="reporter", daemon=True)
            self._thread.start()

    @classmethod
    def connect(
        cls,
        endpoint: str | Sequence[str],
        *,
        plant: PlantDescription | None = None,
        bundle: str | None = None,
        keys: str | os.PathLike[str] | None = None,
        timeout: float = 5.0,
        context: zmq.Context[Any] | None = None,
    ) -> EpisodeReporter:
        """Find the server that records; arguments as in `RemotePolicy.connect`.

        Where none does, nothing is reported; a warning names those that did not answer in time. Raises
        ContractError when its contract does not fit `plant`.
        """
        timeout = read_seconds("timeout", timeout)
        silent = []
        for address in read_addresses(endpoint):
            channel = Channel(address, keys=keys, context=context)
            try:
                hello = channel.call(Hello(bundle=bundle), {}, timeout)
                if hello[0].records:
                    return cls(channel, Session(address, hello, plant), bundle)
            except DeadlineMissed:
                silent.append(address)
            except BaseException:
                channel.close()
                raise
            channel.close()
        if silent:
            where = ", ".join(silent)
            _log.warning(f"no server answers at {where} within {timeout:g} s: episodes are not reported")
        return cls(None, None, bundle)

    @property
    def recording(self) -> bool:
        """Whether a server records what is reported."""
        return self._channel is not None and not self._closed

    def add(
        self,
        observation: Mapping[str, Any],
        action: NDArray[Any],
        *,
        reward: float | None = None,
        success: bool | None = None,
        intervened: bool | None = None,
        note: TickNote | None = None,
        began: float | None = None,
    ) -> None:
        """Add one tick.

        Args:
            observation: before the action.
            action: `[A]`, as carried out.
            reward: of that action, if known.
            success: whether the task has succeeded after it, if known.
            intervened: whether the action was not the policy's but a person's, if known.
            note: what a real-time loop noted of the tick.
            began: when the tick began, on the monotonic clock; now if None.

        Raises ContractError for what does not fit the contract, at once and not where a part is sent.
        """
        if self._session is None or self._closed:
            return
        require_process(self._pid, "the episode reporter")
        fields = self._copy(observation)
        began = time.monotonic() if began is None else began
        action, reward = _read_action(action, self._session.contract.plant.action_dim), _read_reward(reward)
        self._rows.append(_Row(fields, action, reward, success, intervened, note, began))
        self._bytes += sum(value.nbytes for value in fields.values())
        if self._bytes >= PART_BYTES or len(self._rows) >= PART_TICKS:
            self._enqueue(None, end=False)

    def finish(self, observation: Mapping[str, Any] | None = None) -> None:
        """End the episode, if one has begun; `observation` is what its last action led to."""
        if self._session is None or self._closed or not (self._rows or self._tick):
            return
        require_process(self._pid, "the episode reporter")
        self._enqueue(None if observation is None else self._copy(observation), end=True)
        self._episode, self._tick = self._episode + 1, 0

    def close(self) -> None:
        """End the episode, send what is left, for a few seconds at most, and disconnect.

        Any thread may do it. In a fork of the process nothing is done.
        """
        if self._channel is None or os.getpid() != self._pid:
            return
        with self._closing:
            if self._closed:
                return
            self.finish()
            self._closed = True
        self._send_until = expiry = time.monotonic() + CLOSE_LIMIT
        # If there is no room, the thread ends with the message that it is sending.
        with contextlib.suppress(queue.Full):
            self._queue.put(None, timeout=CLOSE_LIMIT)
        assert self._thread is not None
        self._thread.join(max(0.0, expiry - time.monotonic()))
        # A call still under way ends here.
        self._channel.close()
        self._thread.join(CALL_TIMEOUT)
        with contextlib.suppress(queue.Empty):
            while True:
                self.dropped += self._queue.get_nowait() is not None

    def __enter__(self) -> EpisodeReporter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _copy(self, observation: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
        return {name: value.copy() for name, value in self._read(observation).items()}

    def _enqueue(self, last: dict[str, NDArray[Any]] | None, *, end: bool) -> None:
        assert self._session is not None
        rows, self._rows, self._bytes = self._rows, [], 0
        plant = self._session.contract.plant
        seen = [row.fields for row in rows] + ([last] if last is not None else [])
        observations: dict[str, NDArray[Any]] = {
            spec.name: np.stack([fields[spec.name] for fields in seen])
            if seen
            else np.zeros((0, *spec.shape), spec.dtype)
            for spec in plant.inputs
        }
        arrays: dict[str, NDArray[Any]] = {
            "actions": np.stack([row.action for row in rows])
            if rows
            else np.zeros((0, plant.action_dim), np.float32)
        }
        if rows and all(row.reward is not None for row in rows):
            arrays["rewards"] = np.array([row.reward for row in rows], np.float32)
        if rows and all(row.success is not None for row in rows):
            arrays["success"] = np.array([row.success for row in rows], np.uint8)
        if rows and any(row.intervened is not None for row in rows):
            arrays["intervened"] = np.array([bool(row.intervened) for row in rows], np.uint8)
        if any(row.note is not None for row in rows):
            arrays["notes"] = encode_notes([row.note for row in rows])
        began = np.array([row.began for row in rows])
        request = Episode(
            bundle=self._bundle,
            contract=self._session.contract_id,
            episode=self._episode,
            tick=self._tick,
            end=end,
        )
        self._tick += len(rows)
        try:
            self._queue.put_nowait((request, observations, len(seen), arrays, began))
        except queue.Full:
            self.dropped += 1

    def _send_all(self) -> None:
        while (part := self._queue.get()) is not None:
            try:
                recorded = self._send(*part)
            except PolicyClosed:
                self.dropped += 1
                return
            except Exception as error:
                # Whatever is wrong with one message, the next ones are sent.
                reason = f"{type(error).__name__}: {error}"
                _log.warning("episode refused", extra={"data": {"reason": reason}})
                recorded = False
            self.dropped += not recorded

    def _send(
        self,
        request: Episode,
        observations: dict[str, NDArray[Any]],
        rows: int,
        arrays: dict[str, NDArray[Any]],
        began: NDArray[np.float64],
    ) -> bool:
        """Send one message until it is recorded, it is refused, or closing has taken too long."""
        assert self._channel is not None and self._session is not None
        while (left := self._send_until - time.monotonic()) > 0:
            try:
                # Packed anew for every try, as another contract may have another order of fields.
                request.contract = self._session.contract_id
                # Ages, as the server's clock may be another.
                ages = (time.monotonic() - began).astype(np.float32)
                named = {**arrays, "ages": ages} if len(ages) else arrays
                packed = self._session.pack(observations, rows)._replace(named=named)
                return self._channel.call(request, packed, min(left, CALL_TIMEOUT))[0].recorded
            except PolicyClosed:
                raise
            except DeadlineMissed:
                continue
            except ServerError as error:
                if error.code in ("draining", "busy"):
                    time.sleep(0.1)
                elif error.code == "contract_changed":
                    if not self._renew_session():
                        return False
                else:
                    _log.warning("episode refused", extra={"data": {"reason": str(error)}})
                    return False
            except UserError as error:
                _log.warning("episode refused", extra={"data": {"reason": str(error)}})
                return False
        return False

    def _renew_session(self) -> bool:
        assert self._channel is not None and self._session is not None
        try:
            hello = self._channel.call(Hello(bundle=self._bundle), {}, CALL_TIMEOUT)
            self._session = Session(self._channel.endpoint, hello, None, self._session.contract)
        except (DeadlineMissed, UserError) as error:
            _log.warning("episode refused", extra={"data": {"reason": str(error)}})
            return False
        return True


def _read_action(action: Any, width: int) -> NDArray[np.float32]:
    try:
        found = np.array(action, np.float32)
    except (TypeError, ValueError) as error:
        raise ContractError(f"the action is not an array of numbers ({error})") from error
    if found.shape != (width,):
        raise ContractError(f"the action has shape {list(found.shape)}, the contract says {[width]}")
    return found


def _read_reward(reward: Any) -> float | None:
    try:
        return None if reward is None else float(reward)
    except (TypeError, ValueError) as error:
        raise ContractError(f"the reward is {reward!r}: pass a number, or None") from error
