"""A Hugging Face hub for tests: real HTTP on loopback, one namespace of model repositories, all in memory."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

import yaml

SHA = "0" * 40
TOKEN = "hf_test"


class Hub(ThreadingHTTPServer):
    """`repositories` maps OWNER/NAME to its files."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.created: list[dict[str, Any]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._json({"error": "Invalid username or password."}, 401)
        if self.path == "/api/repos/create":
            request = json.loads(body)
            self.server.created.append(request)
            name = f"{request['organization']}/{request['name']}"
            self.server.repositories.setdefault(name, {})
            return self._json({"url": f"{self.server.url}/{name}", "name": name})
        if self.path == "/api/validate-yaml":
            _, front, _ = json.loads(body)["content"].split("---\n", 2)
            return self._json(
                {
                    "errors": [] if isinstance(yaml.safe_load(front), dict) else [{"message": "no table"}],
                    "warnings": [],
                }
            )
        match = re.fullmatch(r"/api/models/([\w.-]+/[\w.-]+)/(preupload|commit)/main", self.path)
        if match is None or match[1] not in self.server.repositories:
            return self._json({"error": "Repository not found"}, 404)
        if match[2] == "preupload":
            files = json.loads(body)["files"]
            return self._json(
                {
                    "files": [
                        {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files
                    ]
                }
            )
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                self.server.repositories[match[1]][line["value"]["path"]] = base64.b64decode(
                    line["value"]["content"]
                )
        return self._json(
            {"success": True, "commitOid": SHA, "commitUrl": f"{self.server.url}/{match[1]}/commit/{SHA}"}
        )

    def do_GET(self) -> None:
        if match := re.match(r"/api/models/([\w.-]+/[\w.-]+)/(revision|tree)/", self.path):
            files = self.server.repositories.get(match[1])
            if files is None:
                return self._json({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
            if match[2] == "tree":
                return self._json(
                    [
                        {"type": "file", "path": n, "size": len(d), "oid": hashlib.sha1(d).hexdigest()}
                        for n, d in files.items()
                    ]
                )
            siblings = [{"rfilename": name} for name in files]
            return self._json(
                {
                    "_id": "0",
                    "id": match[1],
                    "modelId": match[1],
                    "sha": SHA,
                    "private": True,
                    "tags": [],
                    "siblings": siblings,
                }
            )
        if match := re.match(r"/([\w.-]+/[\w.-]+)/resolve/[^/]+/([^?]+)", self.path):
            data = self.server.repositories.get(match[1], {}).get(unquote(match[2]))
            if data is not None:
                return self._send(
                    data, 200, {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": SHA}
                )
        return self._json({"error": "not here"}, 404)

    do_HEAD = do_GET

    def _json(self, data: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._send(json.dumps(data).encode(), status, {"Content-Type": "application/json", **(headers or {})})

    def _send(self, data: bytes, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Quiet."""


@contextlib.contextmanager
def running_hub() -> Iterator[Hub]:
    """A hub in a thread of this process."""
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
