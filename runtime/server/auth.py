"""The server's side of CURVE: only clients whose public key is in the keys folder get a connection, and keep
it."""

from __future__ import annotations

from pathlib import Path

import zmq
from zmq.auth.thread import ThreadAuthenticator

from rql_deploy.errors import UserError
from rql_deploy.runtime.wire.keys import CLIENTS, list_clients, server_pair

DOMAIN = "rql-deploy"


class ServerKeys:
    """Encrypts a server socket and admits the clients of a keys folder (ZeroMQ's authentication protocol, RFC
    27)."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._pair = server_pair(folder)
        self._allowed = frozenset(list_clients(folder).values())
        if not self._allowed:
            raise UserError(
                f"{folder} allows no client: make one with `rql-deploy keys new NAME --keys {folder}`"
            )
        self._stamp = self._folder_stamp()
        self._authenticator: ThreadAuthenticator | None = None

    def protect(self, context: zmq.Context[zmq.Socket[bytes]], socket: zmq.Socket[bytes]) -> None:
        """Before `bind`: make the socket a CURVE server."""
        self._authenticator = ThreadAuthenticator(context)
        self._authenticator.start()
        self._authenticator.configure_curve_callback(domain=DOMAIN, credentials_provider=self)
        socket.setsockopt(zmq.CURVE_SERVER, 1)
        socket.setsockopt(zmq.CURVE_SECRETKEY, self._pair[1])
        socket.setsockopt(zmq.CURVE_PUBLICKEY, self._pair[0])
        socket.setsockopt_string(zmq.ZAP_DOMAIN, DOMAIN)

    def callback(self, domain: str, key: bytes) -> bool:
        """Whether a client with this public key may connect; asked by the authenticator's thread at every
        handshake."""
        return key in self._allowed

    def allows(self, frame: zmq.Frame) -> bool:
        """Whether the sender of this frame is (still) allowed. Threads of this process, connected inproc,
        have no key."""
        try:
            user = frame.get("User-Id")
        except zmq.ZMQError:
            return True
        return str(user).encode() in self._allowed

    def refresh(self) -> None:
        """Take in keys made or revoked since; called now and then by the server's thread."""
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
