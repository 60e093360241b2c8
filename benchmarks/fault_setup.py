"""What the fault benchmarks share: a real server process, observations, and how an outcome is told."""

from __future__ import annotations

import contextlib
import functools
import json
import multiprocessing as mp
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rql_deploy.bundle.bundle import Bundle
from rql_deploy.contract import Contract
from rql_deploy.runtime.wire.arrays import Layout, Packed
from rql_deploy.runtime.wire.headers import Act

ROOT = Path(__file__).resolve().parent.parent
BUNDLE = ROOT / "rql_deploy" / "assets" / "lift_bundle"
"""What is served: six fields of 19 numbers to 5 x 7 actions at 20 Hz, F = 10. Faults do not ask for size."""
TINY_BUNDLE = ROOT / "tests" / "data" / "tiny_bundle"
"""Of the environments of the tests."""
spawn = mp.get_context("spawn")


@dataclass
class Outcome:
    """One fault."""

    client: str
    """What the client saw."""
    server: str
    """What the server kept."""
    held: bool
    """Whether that is what was promised."""
    figures: dict[str, Any] = field(default_factory=dict)


class Server:
    """A server process and where it listens."""

    def __init__(self, endpoint: str, process: subprocess.Popen[str], errors: Path):
        self.endpoint, self.process, self._errors = endpoint, process, errors

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    @property
    def said(self) -> list[str]:
        """Lines of its log so far."""
        return self._errors.read_text().splitlines()

    def note(self, pattern: str) -> str:
        """The group of a pattern in a line that it prints once it is ready."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if match := re.search(pattern, line):
                return match.group(1)
        raise RuntimeError(f"no line matches {pattern}")

    def memory(self) -> float:
        """Resident MiB."""
        return (
            int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
            * os.sysconf("SC_PAGE_SIZE")
            / 2**20
        )


@contextlib.contextmanager
def serving(
    address: str = "tcp://127.0.0.1:*",
    *options: str,
    wrapper: tuple[str, ...] = (),
    environment: dict[str, str] | None = None,
    bundle: Path | None = None,
) -> Iterator[Server]:
    """The real server as its own process, started by `wrapper` where there is one."""
    serve = [
        sys.executable,
        "-m",
        "rql_deploy",
        "serve",
        str(bundle or BUNDLE),
        "--bind",
        address,
        "--max-rate",
        "1e9",
    ]
    reader, writer = os.pipe()
    with tempfile.TemporaryDirectory() as folder, os.fdopen(reader) as ready:
        errors = Path(folder) / "errors"
        with errors.open("w") as stream:
            process = subprocess.Popen(
                [*wrapper, *serve, "--ready-fd", str(writer), *options],
                stdout=subprocess.PIPE,
                stderr=stream,
                text=True,
                pass_fds=(writer,),
                env={**os.environ, **(environment or {})},
            )
        os.close(writer)
        try:
            if not (line := ready.readline()):
                raise RuntimeError(f"the server did not start: {errors.read_text()}")
            yield Server(json.loads(line)["endpoint"], process, errors)
        finally:
            process.kill()
            process.communicate()


def sample(seed: int = 0) -> dict[str, Any]:
    """An observation."""
    rng = np.random.default_rng(seed)
    return {field.name: rng.normal(size=field.shape).astype(np.float32) for field in contract().plant.fields}


@functools.cache
def contract() -> Contract:
    """Of the bundle that `serving` serves."""
    return Bundle.open(BUNDLE).contract


def request(**options: Any) -> tuple[Act, Packed]:
    """An `act` request of an observation, for a `Channel`."""
    asked = Act(contract=contract().contract_id, **options)
    return asked, Layout(contract().plant.fields).pack(sample())
