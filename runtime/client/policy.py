"""The client: a served policy behind the policy interface. Needs numpy, pyzmq and msgpack only.

    with RemotePolicy.connect("tcp://127.0.0.1:5555") as policy:
        decision = policy.act({"robot0_eef_pos": ..., ...}, deadline=0.02)

A call returns or raises `DeadlineMissed` at its deadline, whatever the server does. Replies to earlier requests are counted and never
returned. After a server restart the same object goes on, once the contract has been checked again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from rql_deploy.contract import PlantDescription
from rql_deploy.errors import DeadlineMissed, UserError

from .channel import Channel
from .connection import PolicyConnection, agree
from .failover import FailoverPolicy


class RemotePolicy(PolicyConnection):
    """A policy on a server. One instance per thread; use as a context manager."""

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
    ) -> PolicyConnection:
        """Connect and agree on the contract.

        Args:
            endpoint: one address, or several whose servers share the work and stand in for each other (`runtime.client.failover`).
            plant: what the caller controls; it must be what the policy was made for: fields, shapes, action dimensions and rate.
            bundle: which of the server's bundles; its first if None.
            keys: the file that `rql-deploy keys new` wrote for this client, where the server asks for keys.
            timeout: seconds to wait for a server.
            busy_poll: spin instead of sleeping while a call waits.

        Raises:
            UserError: no server answers within `timeout`, or an argument is not what it should be.
            ContractError: the two sides differ.
        """
        if not isinstance(endpoint, str):
            if len(endpoint) > 1:
                return FailoverPolicy(
                    endpoint, plant=plant, bundle=bundle, keys=keys, timeout=timeout, busy_poll=busy_poll
                )
            (endpoint,) = endpoint
        channel = Channel(endpoint, keys=keys, busy_poll=busy_poll)
        try:
            agreement = agree(channel, bundle, plant, None, time.monotonic() + timeout)
        except DeadlineMissed as error:
            where = channel.endpoint
            channel.close()
            hint = (
                " (a server with keys answers only clients whose key it allows)"
                if keys or not where.startswith("tcp://127.")
                else ""
            )
            raise UserError(
                f"no policy server answers at {where} (waited {timeout:g} s){hint}: start one with `rql-deploy serve BUNDLE --bind {where}`"
            ) from error
        except BaseException:
            channel.close()
            raise
        return cls(channel, agreement, plant=plant, bundle=bundle)
