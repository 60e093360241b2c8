"""CURVE authentication: only clients whose public key is in the keys folder may stay connected.

A thread reads the folder anew every half second. What it cannot read changes nothing; what it reads counts:

removed file, or one that holds no key (any more)    that client is revoked
file that cannot be read                             its last known key stays allowed
folder that is missing or cannot be read             all clients stay as they are

So a folder that is moved or whose disk is gone stops no robot, and nobody new is allowed.
"""

from __future__ import annotations

import logging
import threading
from pathlib import Path

import zmq
from zmq.auth.thread import ThreadAuthenticator

from rql_deploy.errors import UserError
from rql_deploy.runtime.wire.keys import CLIENTS, client_files, read_public_key, server_pair

DOMAIN = "rql-deploy"
REFRESH_INTERVAL = 0.5
"""Seconds between two readings of the folder."""
_log = logging.getLogger("rql_deploy.keys")


class ServerKeys:
    """Encrypts a server socket and admits the clients of a keys folder (ZeroMQ's ZAP, RFC 27)."""

    def __init__(self, folder: Path):
        """Raises UserError when the folder has no pair for the server or allows no client."""
        self._folder = folder
        self._pair = server_pair(folder)
        self._clients: dict[str, bytes] = {}
        self._allowed: frozenset[bytes] = frozenset()
        self._problems: dict[str, str] = {}
        self.refresh()
        if not self._allowed:
            raise UserError(
                "; ".join([f"{folder} allows no client", *self._problems.values()]),
                hint=f"make one with `rql-deploy keys new NAME --keys {folder}`",
            )
        self._authenticator: ThreadAuthenticator | None = None
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def protect(self, context: zmq.Context[zmq.Socket[bytes]], socket: zmq.Socket[bytes]) -> None:
        """Make the socket a CURVE server; to be called before `bind`."""
        self._authenticator = ThreadAuthenticator(context)
        self._authenticator.start()
        self._authenticator.configure_curve_callback(domain=DOMAIN, credentials_provider=self)
        socket.setsockopt(zmq.CURVE_SERVER, 1)
        socket.setsockopt(zmq.CURVE_SECRETKEY, self._pair[1])
        socket.setsockopt(zmq.CURVE_PUBLICKEY, self._pair[0])
        socket.setsockopt_string(zmq.ZAP_DOMAIN, DOMAIN)
        self._thread = threading.Thread(target=self._run, name="keys", daemon=True)
        self._thread.start()

    def callback(self, domain: str, key: bytes) -> bool:
        """Whether this public key may connect; called by the authenticator's thread at every handshake."""
        return key in self._allowed

    def allows(self, key: bytes) -> bool:
        """Whether the client with this public key is still allowed."""
        return key in self._allowed

    def refresh(self) -> None:
        """Read the folder; what is wrong with it is logged once, when it is first seen."""
        clients: dict[str, bytes] = {}
        problems: dict[str, str] = {}
        try:
            files = client_files(self._folder)
        except OSError as error:
            clients = self._clients
            folder = self._folder / CLIENTS
            problems[""] = f"{folder} cannot be read ({error.strerror}): its clients stay as they were"
            files = {}
        for name, path in files.items():
            try:
                key = read_public_key(path)
            except FileNotFoundError:
                continue
            except OSError as error:
                key = self._clients.get(name)
                stays = "no key of it is known" if key is None else "its last known key stays allowed"
                problems[name] = f"{path} cannot be read ({error.strerror}): {stays}"
            else:
                if key is None:
                    problems[name] = f"{path} is not a key file: it allows nobody"
            if key is not None:
                clients[name] = key
        self._report(clients, problems)
        self._clients, self._problems = clients, problems
        self._allowed = frozenset(clients.values())

    def close(self) -> None:
        """Stop the authenticator and the reading of the folder."""
        self._stopped.set()
        if self._authenticator is not None:
            self._authenticator.stop()
            self._authenticator = None

    def _run(self) -> None:
        failed = ""
        while not self._stopped.wait(REFRESH_INTERVAL):
            try:
                self.refresh()
                failed = ""
            except Exception as error:  # whatever the folder holds, the thread goes on with the keys it has
                if repr(error) != failed:
                    failed = repr(error)
                    _log.error("keys not read", extra={"data": {"reason": failed}})

    def _report(self, clients: dict[str, bytes], problems: dict[str, str]) -> None:
        for name, problem in problems.items():
            if problem != self._problems.get(name):
                _log.error("keys", extra={"data": {"reason": problem}})
        if self._clients:
            for name in sorted(clients.keys() | self._clients.keys()):
                if clients.get(name) != self._clients.get(name):
                    change = "allowed" if name in clients else "revoked"
                    _log.info(f"client {change}", extra={"data": {"client": name}})
