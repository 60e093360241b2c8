"""CURVE authentication: only clients whose public key is in the keys folder may stay connected."""

from __future__ import annotations

from pathlib import Path

import zmq
from zmq.auth.thread import ThreadAuthenticator

from rql_deploy.errors import UserError
from rql_deploy.runtime.wire.keys import CLIENTS, list_clients, server_pair

DOMAIN = "rql-deploy"


class ServerKeys:
    """Encrypts a server socket and admits the clients of a keys folder (ZeroMQ's ZAP, RFC 27)."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._pair = server_pair(folder)
        self._allowed = frozenset(list_clients(folder).values())
        if not self._allowed:
            raise UserError(
                f"{folder} allows no client", hint=f"make one with `rql-deploy keys new NAME --keys {folder}`"
            )
        self._stamp = self._folder_stamp()
        self._authenticator: ThreadAuthenticator | None = None

    def protect(self, context: zmq.Context[zmq.Socket[bytes]], socket: zmq.Socket[bytes]) -> None:
        """Make the socket a CURVE server; to be called before `bind`."""
        self._authenticator = ThreadAuthenticator(context)
        self._authenticator.start()
        self._authenticator.configure_curve_callback(domain=DOMAIN, credentials_provider=self)
        socket.setsockopt(zmq.CURVE_SERVER, 1)
        socket.setsockopt(zmq.CURVE_SECRETKEY, self._pair[1])
        socket.setsockopt(zmq.CURVE_PUBLICKEY, self._pair[0])
        socket.setsockopt_string(zmq.ZAP_DOMAIN, DOMAIN)

    def callback(self, domain: str, key: bytes) -> bool:
        """Whether this public key may connect; called by the authenticator's thread at every handshake."""
        return key in self._allowed

    def allows(self, frame: zmq.Frame) -> bool:
        """Whether the sender of this frame is still allowed; threads of this process (inproc) need no key."""
        try:
            user = frame.get("User-Id")
        except zmq.ZMQError:
            return True
        return str(user).encode() in self._allowed

    def refresh(self) -> None:
        """Reload the keys if the folder has changed; called regularly by the server's thread."""
        stamp = self._folder_stamp()
        if stamp != self._stamp:
            self._allowed, self._stamp = frozenset(list_clients(self._folder).values()), stamp

    def _folder_stamp(self) -> int:
        return (self._folder / CLIENTS).stat().st_mtime_ns

    def close(self) -> None:
        """Stop the authenticator."""
        if self._authenticator is not None:
            self._authenticator.stop()
            self._authenticator = None
