"""The locked set: whole, and the only one that is installed."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
import tomllib
from itertools import chain

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.helpers.commands import ROOT

LEFT_OUT = {"pynput"}
"""What robosuite declares for its keyboard, and nobody needs here (requirements-no-deps.lock)."""


def locked() -> dict[str, str]:
    """Version by name, of both files."""
    text = "\n".join((ROOT / name).read_text() for name in ("requirements.lock", "requirements-no-deps.lock"))
    return {
        canonicalize_name(name): version
        for name, version in re.findall(r"^([\w.-]+)==(\S+)$", text, re.MULTILINE)
    }


def test_nothing_is_missing_but_what_was_left_out_on_purpose() -> None:
    checked = subprocess.run(
        [sys.executable, "-m", "pip", "check"], capture_output=True, text=True, check=False
    )
    complaints = [line for line in checked.stdout.splitlines() if line != "No broken requirements found."]
    expected = [re.compile(rf"robosuite \S+ requires {name}, which is not installed\.") for name in LEFT_OUT]
    assert [line for line in complaints if not any(pattern.fullmatch(line) for pattern in expected)] == []


def test_what_is_installed_is_what_is_locked() -> None:
    differing = {
        name: (version, found)
        for name, version in locked().items()
        if (found := importlib.metadata.version(name).partition("+")[0]) != version
    }
    assert differing == {}


def test_every_locked_package_is_asked_for() -> None:
    """By pyproject.toml, or by something else that is locked."""
    pins = locked()
    assert not (LEFT_OUT | {"evdev"}) & set(pins)
    table = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project, groups = table["project"], table["dependency-groups"]
    texts = [*project["dependencies"], *table["build-system"]["requires"]]
    texts += chain.from_iterable([*project["optional-dependencies"].values(), *groups.values()])
    texts += chain.from_iterable(importlib.metadata.requires(name) or [] for name in pins)
    asked = {canonicalize_name(Requirement(text).name) for text in texts}
    assert sorted(set(pins) - asked) == ["mlflow-skinny"]  # the part of mlflow that is used
