"""The command line as tests call it, and how a refusal must look."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import pytest
from click.testing import CliRunner, Result

import rql_deploy
from rql_deploy.cli import main

ROOT = Path(__file__).resolve().parents[2]
LIFT_BUNDLE = Path(rql_deploy.__file__).parent / "assets" / "lift_bundle"
"""The bundle that comes with the package: no training before tests that take any policy."""
COLLECT = ("collect", "robosuite:Lift", "--horizon", 50)
TINY = (
    "--preset",
    "robosuite-lift",
    "--set",
    "rql.policy_hidden=[16, 16]",
    "--set",
    "rql.value_hidden=[16, 16]",
    "--set",
    "rql.h=3",
    "--set",
    "batch_size=8",
)


def cli(*arguments: object) -> Result:
    """The command line in this process."""
    return CliRunner().invoke(main, [str(a) for a in arguments])


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Look until the condition holds; the limit is for busy machines."""
    expiry = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < expiry, f"nothing happened within {seconds:g} s"
        time.sleep(0.02)


def run_cli(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own."""
    command = [sys.executable, "-m", "rql_deploy", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, **options)  # type: ignore[call-overload,no-any-return]


ABSENT = (
    *("torch", "onnx", "onnxruntime", "mujoco", "robosuite", "gymnasium", "minari", "h5py", "scipy", "rich"),
    *("prometheus_client", "websockets", "ogbench", "av", "pyarrow", "zarr", "matplotlib", "ray"),
)
"""What the extras bring, and a robot's computer may lack."""


def run_bare(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The command line as on a robot: in a process that cannot import what extras bring."""
    absent = f"import sys; sys.modules.update(dict.fromkeys({ABSENT!r}))"
    command = [sys.executable, "-c", f"{absent}; from rql_deploy.cli import main; main()"]
    return subprocess.run(
        [*command, *map(str, arguments)], capture_output=True, text=True, timeout=300, check=False
    )


def assert_refused(result: Result | subprocess.CompletedProcess[str], *words: str) -> None:
    """Exit status 2, one sentence that contains the words, no traceback."""
    if isinstance(result, Result):
        status, text = result.exit_code, result.output
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    else:
        status, text = result.returncode, result.stderr
    assert status == 2, text
    assert "Traceback" not in text
    errors = [line for line in text.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1, text
    for word in words:
        assert word in text, f"{word!r} not in {text!r}"


def printed(result: Result) -> dict[str, Any]:
    """What a command with --json printed."""
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def stopped_when(
    condition: Callable[[], object], command: Sequence[str], number: int = signal.SIGINT, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Start a command, send it a signal once the condition holds, and wait for its end."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    with subprocess.Popen(command, cwd=ROOT, text=True, **options) as process:
        try:
            wait_for(lambda: bool(condition()) or process.poll() is not None, 120.0)
            process.send_signal(number)
            said, errors = process.communicate(timeout=120)
        finally:
            process.kill()
    return subprocess.CompletedProcess(command, process.returncode, said, errors)


def interrupted_after_some(log: Path, *words: object) -> str:
    """Start a command of 200 episodes, interrupt it when a few are done; returns what it said."""
    command = [sys.executable, "-m", "rql_deploy", *map(str, words), "--episodes", "200"]
    with log.open("w") as stream:
        done = stopped_when(
            lambda: re.search(r"[1-9]\d*/200", log.read_text()),
            command,
            stdout=stream,
            stderr=subprocess.STDOUT,
        )
    # What was asked for is not there, so what follows in a script must not start.
    assert done.returncode == 130, log.read_text()
    return log.read_text()


def require_compiler() -> None:
    """Require a C++ compiler for torch.compile; without one the test is skipped, or fails in CI."""
    if not any(shutil.which(name) for name in ("g++", "clang++")):
        unavailable("torch.compile needs a C++ compiler (apt-get install g++)")


def require_node(folder: Path, package: str) -> None:
    """Require Node.js and the packages of `folder`; without them the test is skipped, or fails in CI."""
    if shutil.which("node") is None:
        unavailable("Node.js is not installed (apt-get install nodejs npm, then make setup)")
    elif not (folder / "node_modules" / package).is_dir():
        unavailable(f"{folder.relative_to(ROOT)}/node_modules is missing (npm and make setup put it there)")


def unavailable(text: str) -> NoReturn:
    """Skip the test for want of `text`; in CI, where nothing may be wanting, fail it."""
    if os.environ.get("RQL_REQUIRE_ALL") or os.environ.get("CI"):
        pytest.fail(text)
    pytest.skip(text)
