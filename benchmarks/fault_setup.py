"""What the fault benchmarks share: a real server process, observations, and how an outcome is told."""

from __future__ import annotations

import contextlib
import functools
import multiprocessing as mp
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from networks import OBSERVATION, network_bundle

from rql_deploy.bundle.bundle import Bundle
from rql_deploy.contract import Contract
from rql_deploy.runtime.wire.arrays import Layout, Packed
from rql_deploy.runtime.wire.headers import Act

HIDDEN = (64, 64)
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
        str(bundle or network_bundle(HIDDEN)),
        "--bind",
        address,
        "--max-rate",
        "1e9",
    ]
    with tempfile.TemporaryDirectory() as folder:
        errors = Path(folder) / "errors"
        with errors.open("w") as stream:
            process = subprocess.Popen(
                [*wrapper, *serve, *options],
                stdout=subprocess.PIPE,
                stderr=stream,
                text=True,
                env={**os.environ, **(environment or {})},
            )
        try:
            assert process.stdout is not None
            ready = process.stdout.readline()
            if " on " not in ready:
                raise RuntimeError(f"the server did not start: {errors.read_text()}")
            yield Server(ready.split(" on ")[1].strip(), process, errors)
        finally:
            process.kill()
            process.communicate()


def sample(seed: int = 0) -> dict[str, Any]:
    """An observation."""
    return {"state": np.random.default_rng(seed).normal(size=OBSERVATION).astype(np.float32)}


@functools.cache
def contract() -> Contract:
    """Of the bundle that `serving` serves."""
    return Bundle.open(network_bundle(HIDDEN)).contract


def request(**options: Any) -> tuple[Act, Packed]:
    """An `act` request of an observation, for a `Channel`."""
    asked = Act(contract=contract().contract_id, **options)
    return asked, Layout(contract().plant.fields).pack(sample())
