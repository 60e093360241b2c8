"""One of several servers, as a client that shares its requests among them knows it."""

from __future__ import annotations

import logging

from rql_deploy.contract import Contract
from rql_deploy.errors import ContractError
from rql_deploy.runtime.wire.headers import Hello, Ping

from .server_policy import ServerPolicy
from .transport import Transport

_log = logging.getLogger("rql_deploy.failover")


class ServerState:
    """Connection, policy and whereabouts of one server."""

    def __init__(self, transport: Transport):
        self.transport = transport
        self.policy: ServerPolicy | None = None
        """From its first `hello` on."""
        self.away = True
        self.admitted = False
        """Whether it has had the others' contract: the operator may give it, and then them, another one."""
        self.refused: str | None = None
        """Why it gets no more requests."""
        self.probe: int | None = None
        """Number of the `hello` or `ping` under way."""
        self.asked_contract = True
        """Whether that is a `hello`."""
        self.probed = 0.0
        """When that was sent."""

    @property
    def usable(self) -> bool:
        """Whether it can answer now."""
        return self.policy is not None and not self.away and self.refused is None and self.transport.connected

    def refuse(self, error: ContractError) -> None:
        """Send it no more requests: it serves what the robot cannot use."""
        self.refused = str(error)
        _log.warning(
            "server refused", extra={"data": {"endpoint": self.transport.endpoint, "reason": str(error)}}
        )

    def difference(self, contract: Contract) -> str:
        """Why it gets no requests while the others have `contract`, and what to do."""
        assert self.policy is not None
        return (
            f"{self.transport.endpoint} serves another training than the others (contract "
            f"{self.policy.contract.contract_id[:12]}, not {contract.contract_id[:12]}): "
            "serve the same bundle everywhere, or connect with allow_mixed=True"
        )

    def send_probe(self, bundle: str | None, now: float, *, hello: bool = False) -> None:
        """Ask it for a sign of life or, at first, for its contract."""
        if self.probe is not None:
            self.transport.forget(self.probe)
        self.asked_contract = hello or self.policy is None
        self.probe = self.transport.try_send(Hello(bundle=bundle) if self.asked_contract else Ping())
        if self.probe is not None:
            self.probed = now
