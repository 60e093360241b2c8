"""A user without a home that can be written to, as in many containers."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rql_deploy.errors import UserError
from rql_deploy.sim import caches
from rql_deploy.workflows.host_checks import check_home
from tests.helpers.commands import ROOT


@pytest.fixture
def homeless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing can be written but the folder for temporary files."""
    monkeypatch.delenv(caches.VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null/cache")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, how: "robosuite" not in str(path) and real(path, how))
    return tmp_path


def test_without_a_home_the_cache_is_a_private_folder_and_doctor_says_so(homeless: Path) -> None:
    before = dict(os.environ)
    try:
        caches.ensure_numba_cache()
        folder = Path(os.environ[caches.VARIABLE])
    finally:
        os.environ.clear()
        os.environ.update(before)
    assert folder.parent == homeless and folder.stat().st_mode & 0o777 == 0o700
    (found,) = check_home()
    assert found.status == "note" and str(folder) in found.text and caches.VARIABLE in found.cure


def test_a_folder_that_others_may_write_to_is_not_used(homeless: Path) -> None:
    shared = homeless / f"code-{os.getuid()}"
    shared.mkdir()
    shared.chmod(0o777)
    assert caches.private_folder("code") != shared
    shared.rmdir()
    shared.symlink_to("/")
    assert caches.private_folder("code") not in (shared, Path("/"))


def test_without_any_folder_the_variable_to_set_is_named(
    homeless: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/dev/null")
    with pytest.raises(UserError, match=f"set HOME or {caches.VARIABLE}"):
        caches.ensure_numba_cache()
    assert check_home()[0].status == "problem"


def test_robosuite_compiles_for_a_user_without_a_home(tmp_path: Path) -> None:
    code = (
        "import os; from rql_deploy.sim import caches; caches.numba_finds_folder = lambda: False\n"
        "from rql_deploy.sim.plants.robosuite_env import import_robosuite; import_robosuite()\n"
        "from robosuite.utils.transform_utils import mat2quat; import numpy; mat2quat(numpy.eye(3))\n"
        "print(os.environ['NUMBA_CACHE_DIR'])"
    )
    plain = {key: value for key, value in os.environ.items() if key != caches.VARIABLE}
    environment = {**plain, "TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert list(Path(done.stdout.strip()).rglob("*.nbi"))
