"""Fixtures of all tests: a committed tiny bundle, a server process for it, and a tiny data set with a run on
it."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

# What this process ignores, the processes of tests would: SIGHUP under `nohup`, SIGINT in the background.
if threading.current_thread() is threading.main_thread():
    for number, handler in ((signal.SIGHUP, signal.SIG_DFL), (signal.SIGINT, signal.default_int_handler)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)

# MuJoCo chooses its renderer when it is first imported, which any test of a worker may be the one to do.
if sys.platform == "linux":
    os.environ.setdefault("MUJOCO_GL", "egl")

import pytest

from tests.helpers.commands import COLLECT, ROOT, TINY, cli, run_cli
from tests.helpers.data import write_minari
from tests.helpers.servers import serving


@pytest.fixture(scope="session")
def bundle() -> Path:
    """A committed bundle of untrained quality; `python -m tests.helpers.tiny_bundle` makes a new one."""
    return ROOT / "tests" / "data" / "tiny_bundle"


@pytest.fixture(scope="session")
def picture_bundle() -> Path:
    """A committed bundle that sees a camera; `python -m tests.helpers.picture_bundle` makes a new one."""
    return ROOT / "tests" / "data" / "picture_bundle"


@pytest.fixture(scope="session")
def endpoint(bundle: Path) -> Iterator[str]:
    """Address of a server process that serves the committed bundle."""
    with serving(bundle) as (address, _):
        yield address


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_minari(tmp_path_factory.mktemp("minari"))


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory, dataset: Path) -> Path:
    """A run of 20 updates on the tiny data set."""
    output = tmp_path_factory.mktemp("run") / "tiny"
    result = cli("train", "--dataset", dataset, "--output", output, "--updates", 20, *TINY)
    assert result.exit_code == 0, result.output
    return output


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory, run: Path) -> Path:
    """The bundle that today's code exports from `run`."""
    output = tmp_path_factory.mktemp("bundle") / "tiny"
    result = cli("export", run, "--output", output)
    assert result.exit_code == 0, result.output
    return output


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("recorded") / "lift"
    result = run_cli(
        *COLLECT, "--episodes", 4, "--noise", "0:1.5", "--seed", 3, "--workers", 2, "--output", output
    )
    assert result.returncode == 0, result.stderr
    assert "rql-deploy train --dataset" in result.stdout
    return output
