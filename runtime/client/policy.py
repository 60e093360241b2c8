"""The blocking client: a served policy behind the policy interface.

    with RemotePolicy.connect("tcp://127.0.0.1:5555") as policy:
        decision = policy.act({"robot0_eef_pos": ..., ...}, deadline=0.02)

A call returns or raises `DeadlineMissed` at its deadline, whatever the server does. Late replies are counted
and never returned. After a server restart the same object goes on, once the contract has been checked again.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import zmq

from rql_deploy.batches import BatchOptions
from rql_deploy.contract import PlantDescription
from rql_deploy.errors import UserError
from rql_deploy.policy import ActOptions, Decision

from .base import BasePolicy, PolicyCore, open_core, resolve
from .channel import Channel
from .lazy import LazyCore
from .transport import BlockingTransport, Transport, run

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack


class RemotePolicy(BasePolicy):
    """A policy on one server or on several; use as a context manager.

    Threads may share it, each with requests of its own under way. A fork of the process may not use it.
    """

    @classmethod
    def connect(
        cls,
        endpoint: str | Sequence[str],
        *,
        plant: PlantDescription | None = None,
        bundle: str | None = None,
        keys: str | os.PathLike[str] | None = None,
        timeout: float = 5.0,
        busy_poll: bool = False,
        context: zmq.Context[Any] | None = None,
        allow_mixed: bool = False,
        lazy: bool = False,
    ) -> Self:
        """Connect and check the server's contract.

        Args:
            endpoint: one address, or several whose servers share the work and stand in for each other.
            plant: what the caller controls; fields, shapes, action dimensions and rate must be the policy's.
            bundle: which of the server's bundles; its first if None.
            keys: the file that `rql-deploy keys new` wrote for this client, where the server asks for keys.
            timeout: seconds to wait for a server.
            busy_poll: spin instead of sleeping while a call waits.
            context: a ZeroMQ context to share among the policies of a process, in any of its threads: they
                then share its I/O thread. The caller terminates it, after the policies are closed.
            allow_mixed: several servers may have different trainings for the same plant; decisions then come
                from one policy and the other, and say from which.
            lazy: connect when the policy is first used, once in every process that uses it: it may then be
                made before a fork, and pickled. What is said here is raised by that first use, which takes up
                to `timeout` whatever its deadline; to have connected before, ask for `contract`.

        Raises:
            UserError: no server answers within `timeout`, or an argument is not what it should be.
            ContractError: the two sides differ, or the servers among themselves.
        """
        if lazy and context is not None:
            raise UserError(
                "a lazy policy connects in other processes, where this context is not",
                hint="leave context= or lazy= out",
            )
        open_transport = functools.partial(_open_transport, keys=keys, busy_poll=busy_poll, context=context)
        connect = functools.partial(
            _connect,
            open_transport,
            endpoint,
            plant=plant,
            bundle=bundle,
            timeout=timeout,
            keys=keys is not None,
            allow_mixed=allow_mixed,
        )
        return cls(cast(PolicyCore, LazyCore(connect)) if lazy else connect())

    def act(self, observation: Mapping[str, Any], **options: Unpack[ActOptions]) -> Decision:
        """See `rql_deploy.policy.Policy.act`. Without a deadline a call waits `DEFAULT_TIMEOUT` seconds.

        Raises DeadlineMissed at the deadline, ContractError when the server refuses the observation or serves
        another plant's policy since, ServerError otherwise.
        """
        return run(self._core.act(observation, resolve(options)))

    def act_many(self, observations: Mapping[str, Any], **options: Unpack[BatchOptions]) -> list[Decision]:
        """Decide on a chunk for each of several observations, in one request.

        Args:
            observations: fields `[rows, *shape]`, as a vectorised environment gives them; 256 rows at most.
            options: see `rql_deploy.batches.BatchOptions`; with `seeds`, each decision is the one that `act`
                makes for that observation and seed.

        Returns the decisions in the order of the observations. Raises as `act` does; there is a decision for
        each observation, or none.
        """
        return run(self._many(observations, options))

    def stream(self, observation: Mapping[str, Any], **options: Unpack[ActOptions]) -> Iterator[Decision]:
        """Yield a usable decision after every refinement step; the last one is what `act` returns.

        With `value`, each comes with V and spread. Raises as `act` does; what was yielded before is usable.
        """
        decisions = self._core.stream(observation, resolve(options))
        try:
            while True:
                try:
                    decision = run(decisions.__anext__())
                except StopAsyncIteration:
                    return
                yield decision
        finally:
            run(decisions.aclose())

    def reset(self) -> None:
        """Tell the server that a new episode begins."""
        run(self._core.reset())

    def stats(self) -> dict[str, Any]:
        """What the server counts (docs/protocol.md)."""
        return run(self._core.stats())

    def close(self) -> None:
        """Disconnect, from any thread; calls under way raise PolicyClosed. Does nothing the second time."""
        run(self._core.close())

    def __reduce__(self) -> tuple[type[RemotePolicy], tuple[PolicyCore]]:
        if not isinstance(self._core, LazyCore):
            raise UserError(
                "a connected policy cannot be pickled for another process",
                hint="connect there, or here with lazy=True",
                kind="forked",
            )
        return type(self), (self._core,)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _open_transport(
    address: str, *, keys: str | os.PathLike[str] | None, busy_poll: bool, context: zmq.Context[Any] | None
) -> Transport:
    return BlockingTransport(Channel(address, keys=keys, busy_poll=busy_poll, context=context))


def _connect(
    open_transport: Callable[[str], Transport], endpoint: str | Sequence[str], **options: Any
) -> PolicyCore:
    # Found by name, so that a lazy policy can be pickled.
    return run(open_core(open_transport, endpoint, **options))
