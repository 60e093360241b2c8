"""Which onnxruntime a bundle may be run with."""

import re
from pathlib import Path

import onnxruntime
import pytest

from rql_deploy.bundle.sessions import MIN_ONNXRUNTIME
from tests.helpers.commands import ROOT, assert_refused, cli


@pytest.mark.parametrize("command", ["inspect", "serve"])
def test_an_onnxruntime_that_is_too_old_is_named(
    command: str, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "__version__", "1.20.1")
    options = ("--verify",) if command == "inspect" else ("--bind", "tcp://127.0.0.1:*")
    assert_refused(cli(command, bundle, *options), "onnxruntime 1.20.1 is older than 1.21", "pip install -U")


def test_the_minimum_is_what_the_package_declares() -> None:
    declared = re.findall(r'"onnxruntime>=([\d.]+)"', (ROOT / "pyproject.toml").read_text())
    assert set(declared) == {".".join(map(str, MIN_ONNXRUNTIME))}
