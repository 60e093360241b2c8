"""CURVE keys on disk, in ZeroMQ's own certificate format: a pair for the server and one for each client.

DIR/server.key, server.key_secret      the server's pair
DIR/clients/NAME.key                   allowed clients (public keys); removing one revokes it
DIR/NAME.key_secret                    for the robot NAME: its pair and the server's public key
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from rql_deploy.errors import UserError

SERVER = "server"
CLIENTS = "clients"
SERVER_KEY = "server-key"
MAX_KEY_FILE_BYTES = 64 * 1024
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_SERVER_KEY_LINE = re.compile(rb"^\s*server-key\s*=\s*(\S{40})\s*$", re.MULTILINE)
_PUBLIC_KEY_LINE = re.compile(rb"^\s*public-key\s*=\s*[\"']?([!-~]{40})[\"']?\s*$", re.MULTILINE)


@dataclass(frozen=True)
class ClientKeys:
    """What a client needs: its own pair and the server's public key, in Z85."""

    public: bytes
    secret: bytes
    server: bytes

    @classmethod
    def load(cls, path: Path | str) -> ClientKeys:
        """Read the file that `rql-deploy keys new` wrote. Raises UserError for any other file."""
        path = Path(path)
        public, secret = _load(path)
        match = _SERVER_KEY_LINE.search(path.read_bytes())
        if secret is None or match is None:
            raise UserError(
                f"{path} is not a client's secret key file: "
                "pass the NAME.key_secret that `rql-deploy keys new NAME` wrote"
            )
        return cls(public, secret, match.group(1))


def new_client(folder: Path, name: str) -> Path:
    """Make a key pair for a client, allow it, and return the file for the robot.

    The first time, this also makes the server's pair.
    """
    from zmq.auth import create_certificates

    if not _NAME.fullmatch(name) or name == SERVER:
        raise UserError(f"'{name}' cannot name a client: use letters, digits, - and _, and not '{SERVER}'")
    allowed = folder / CLIENTS / f"{name}.key"
    secret = folder / f"{name}.key_secret"
    if allowed.exists() or secret.exists():
        raise UserError(
            f"{folder} has a key for '{name}' already: "
            f"revoke it first with `rql-deploy keys revoke {name}`, or use another name"
        )
    before = os.umask(0o077)
    try:
        (folder / CLIENTS).mkdir(parents=True, exist_ok=True)
        if not (folder / f"{SERVER}.key_secret").exists():
            create_certificates(folder, SERVER)
        public, _ = create_certificates(folder, name, metadata={SERVER_KEY: server_pair(folder)[0].decode()})
        os.replace(public, allowed)
    finally:
        os.umask(before)
    return secret


def list_clients(folder: Path) -> dict[str, bytes]:
    """Public keys of the allowed clients, by name."""
    if not (folder / CLIENTS).is_dir():
        raise UserError(f"{folder} holds no keys: make some with `rql-deploy keys new NAME --keys {folder}`")
    return {path.stem: _load(path)[0] for path in sorted((folder / CLIENTS).glob("*.key"))}


def client_files(folder: Path) -> dict[str, Path]:
    """Files of the allowed clients by name. Raises OSError when the folder cannot be read."""
    with os.scandir(folder / CLIENTS) as entries:
        return {
            entry.name.removesuffix(".key"): Path(entry.path)
            for entry in sorted(entries, key=lambda entry: entry.name)
            if entry.name.endswith(".key")
        }


def read_public_key(path: Path) -> bytes | None:
    """The public key in a file; None when it holds none. Raises OSError when it cannot be read."""
    # Without O_NONBLOCK a named pipe of that name would hold its reader for ever.
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        data = os.read(file, MAX_KEY_FILE_BYTES) if stat.S_ISREG(os.fstat(file).st_mode) else b""
    finally:
        os.close(file)
    match = _PUBLIC_KEY_LINE.search(data)
    return None if match is None else match.group(1)


def revoke(folder: Path, name: str) -> None:
    """Stop allowing a client; a running server drops it within a second."""
    try:
        (folder / CLIENTS / f"{name}.key").unlink()
    except OSError as error:
        raise UserError(
            f"{folder} has no client '{name}': `rql-deploy keys list --keys {folder}` shows them"
        ) from error
    (folder / f"{name}.key_secret").unlink(missing_ok=True)


def server_pair(folder: Path) -> tuple[bytes, bytes]:
    """The server's public and secret key."""
    path = folder / f"{SERVER}.key_secret"
    public, secret = _load(path)
    if secret is None:
        raise UserError(
            f"{path} lacks the secret key: make keys with `rql-deploy keys new NAME --keys {folder}`"
        )
    if exposed(path):
        raise UserError(f"{path} can be read by others: chmod 600 {path}")
    return public, secret


def exposed(path: Path) -> bool:
    """Whether others can read a secret.

    Of a file that is root's the group may, where this process is not root's: so Kubernetes mounts a secret.
    """
    found = path.stat()
    return bool(found.st_mode & (0o037 if found.st_uid == 0 != os.geteuid() else 0o077))


def _load(path: Path) -> tuple[bytes, bytes | None]:
    from zmq.auth import load_certificate

    if not path.exists():
        raise UserError(f"there is no key file {path}: make keys with `rql-deploy keys new NAME`")
    try:
        public, secret = load_certificate(path)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} is not a key file ({error}): make keys with `rql-deploy keys new NAME`"
        ) from error
    if len(public) != 40 or (secret is not None and len(secret) != 40):
        raise UserError(
            f"{path} is damaged: its keys do not have 40 characters; "
            "make new ones with `rql-deploy keys new NAME`"
        )
    return public, secret
