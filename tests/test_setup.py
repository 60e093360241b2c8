"""What `make setup` asks of a machine, and what it tells uv."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.commands import ROOT

STAND_IN = """#!/bin/sh
# An interpreter of version {version} on a machine without these libraries or modules.
case "$2" in
*version_info*) echo {version} ;;
{missing}) exit 1 ;;
esac
"""


def check_system(
    folder: Path, version: str, missing: str = "nothing", uv: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run the check with an interpreter that stands in for another machine's."""
    python = folder / "python"
    python.write_text(STAND_IN.format(version=version, missing=missing))
    python.chmod(0o755)
    environment = {**os.environ, "UV": uv}
    environment.pop("SKIP_SYSTEM_CHECK", None)
    return subprocess.run(
        ["tools/check-system", str(python)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_machine_with_all_of_it_is_told_nothing(tmp_path: Path) -> None:
    found = check_system(tmp_path, "3.11")
    assert (found.returncode, found.stdout) == (0, "")


@pytest.mark.parametrize(
    ("missing", "packages"),
    [
        ("*libEGL*|*libGL.so*|*libgthread*|*ensurepip*", "python3.12-venv libegl1 libgl1 libglib2.0-0"),
        ("*libGL.so*", "libgl1"),
        ("*libEGL*", "libegl1"),
        ("*libgthread*", "libglib2.0-0"),
    ],
)
def test_one_line_brings_what_is_missing(missing: str, packages: str, tmp_path: Path) -> None:
    found = check_system(tmp_path, "3.12", missing)
    assert found.returncode == 2
    lines = [line for line in found.stdout.splitlines() if "apt-get install" in line]
    assert len(lines) == 1
    assert lines[0].endswith(f"apt-get install -y {packages}")


def test_uv_needs_no_venv_module(tmp_path: Path) -> None:
    assert check_system(tmp_path, "3.12", "*ensurepip*", uv="/usr/bin/uv").returncode == 0


def test_another_python_is_refused_before_anything_is_installed(tmp_path: Path) -> None:
    found = check_system(tmp_path, "3.13")
    assert found.returncode == 2
    assert "need Python 3.11 or 3.12" in found.stdout
    assert "apt-get" not in found.stdout


def test_uv_is_told_what_pip_is_set_to() -> None:
    listing = (
        "global.index-url='https://mirror.example/simple'\n"
        "global.extra-index-url='https://a.example/simple\\nhttps://b.example/simple'\n"
        "global.timeout='60'\n"
        "install.index-url='https://other.example/simple'\n"
        ":env:.find-links='/wheels /more-wheels'\n"
    )
    code = (
        "import json; from pip_settings import *; "
        f"print(json.dumps(uv_environment(pip_settings({listing!r}))))"
    )
    clean = {name: value for name, value in os.environ.items() if not name.startswith("UV_")}
    shown = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT / "tools",
        env=clean,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert json.loads(shown) == {
        "UV_DEFAULT_INDEX": "https://other.example/simple",
        "UV_INDEX": "https://a.example/simple https://b.example/simple",
        "UV_FIND_LINKS": "/wheels,/more-wheels",
    }
