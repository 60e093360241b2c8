"""Episodes of a benchmark as JSON lines, so that one that was interrupted goes on where it stopped."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any


class Results:
    """Episodes so far, one JSON line each."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.found: dict[tuple[Any, ...], dict[str, Any]] = {}
        if path.exists():
            for line in path.read_text().splitlines():
                # A line cut short by a kill is played again.
                with contextlib.suppress(ValueError):
                    entry = json.loads(line)
                    self.found[tuple(entry["key"])] = entry

    def add(self, key: tuple[Any, ...], entry: dict[str, Any]) -> None:
        self.found[key] = entry
        with self.path.open("a+b") as file:
            # A killed run may have left part of a line: start a new one.
            torn = file.tell() and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n"
            file.write((b"\n" if torn else b"") + json.dumps({"key": key, **entry}).encode() + b"\n")
