"""What is installed where, and what it imports."""

import math
import os
import resource
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from tests.helpers.commands import ROOT

ROOM_IMPORT = (
    "import rql_deploy.train, rql_deploy.export, rql_deploy.runtime, rql_deploy.sim, rql_deploy.cli; "
    "print(rql_deploy.__file__)"
)


def python(
    executable: Path | str, *arguments: str, cwd: Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")} | environment
    return subprocess.run(
        [str(executable), *arguments],
        cwd=cwd,
        env=clean,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tracked sources, so that building leaves no traces in the checkout."""
    copy = tmp_path_factory.mktemp("source") / "rql-deploy"
    keep = ("rql_deploy", "train", "export", "runtime", "sim", "pyproject.toml", "README.md", "LICENSE")
    copy.mkdir()
    for name in keep:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, copy / name)
    return copy


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("wheel")
    built = python(
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(output),
        ".",
        cwd=source,
    )
    assert built.returncode == 0, built.stderr
    return next(output.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an empty environment with the wheel and its base dependencies only."""
    folder = tmp_path_factory.mktemp("empty")
    venv.create(folder, with_pip=True)
    interpreter = folder / "bin" / "python"
    result = python(
        interpreter, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", str(wheel), cwd=folder
    )
    assert result.returncode == 0, result.stderr
    return interpreter


def test_the_wheel_installs_into_an_empty_environment_and_its_command_runs(
    installed: Path, tmp_path: Path
) -> None:
    command = subprocess.run(
        [installed.parent / "rql-deploy", "--help"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert command.returncode == 0, command.stderr
    for verb in ("collect", "train", "export", "serve", "run", "demo"):
        assert verb in command.stdout


def test_the_base_install_brings_no_torch_and_the_client_imports(installed: Path, tmp_path: Path) -> None:
    listed = python(installed, "-m", "pip", "list", "--format=freeze", cwd=tmp_path).stdout.lower()
    names = {line.partition("==")[0] for line in listed.splitlines()}
    assert names <= {"rql-deploy", "numpy", "pyzmq", "msgspec", "click", "pip", "setuptools"}
    imported = python(
        installed,
        "-c",
        "from rql_deploy.runtime.client import RemotePolicy; print(RemotePolicy)",
        cwd=tmp_path,
    )
    assert imported.returncode == 0, imported.stderr


def test_a_command_whose_extra_is_missing_says_which(installed: Path, tmp_path: Path) -> None:
    result = python(installed, "-m", "rql_deploy", "train", "--dataset", "x", "--output", "y", cwd=tmp_path)
    assert result.returncode == 2
    assert "pip install 'rql-deploy[train]'" in result.stderr
    assert "Traceback" not in result.stderr


def test_the_wheel_has_types_presets_and_the_quick_demos_bundle(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {
        "rql_deploy/py.typed",
        "rql_deploy/train/presets/robosuite-lift.toml",
        "rql_deploy/train/rql.py",
        "rql_deploy/sim/demonstrators/lift.py",
        "rql_deploy/assets/lift_bundle/policy.onnx",
    } <= names
    sources = {
        f"rql_deploy/{path}"
        for room in ("train", "export", "runtime", "sim")
        for path in map(str, _modules(room))
    }
    assert sources <= names
    assert not any(name.startswith(("tests/", "train/", "benchmarks/")) for name in names)


def _modules(room: str) -> list[Path]:
    return [path.relative_to(ROOT) for path in (ROOT / room).rglob("*.py")]


@pytest.mark.parametrize("case", ["editable", "wheel", "no install"])
def test_the_rooms_are_found_from_the_clones_root(case: str, source: Path, installed: Path) -> None:
    """./rql_deploy shadows whatever is installed when Python starts from the clone's root."""
    if case == "wheel":
        result = python(installed, "-c", ROOM_IMPORT, cwd=source)
    elif case == "no install":
        # The site packages of this environment, without the editable install's finder.
        code = (
            "import sys; sys.meta_path = [f for f in sys.meta_path if 'editable' not in repr(f).lower()]; "
            + ROOM_IMPORT
        )
        result = python(sys.executable, "-c", code, cwd=source)
    else:
        result = python(sys.executable, "-c", ROOM_IMPORT, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    expected = ROOT if case == "editable" else source
    assert result.stdout.strip() == str(expected / "rql_deploy" / "__init__.py")
    version = python(
        installed if case == "wheel" else sys.executable, "-m", "rql_deploy", "--version", cwd=expected
    )
    assert version.returncode == 0, version.stderr


def test_importing_the_client_takes_little_more_than_numpy_and_pyzmq(tmp_path: Path) -> None:
    """At most half as much processor time again (compiled; the best of many runs)."""

    def seconds(code: str) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
        environment["PYTHONPYCACHEPREFIX"] = str(tmp_path)
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    least = {"import numpy, zmq": math.inf, "import numpy, zmq, rql_deploy.runtime.client": math.inf}
    for attempt in range(40):
        for code in least:
            least[code] = min(least[code], seconds(code))
        base, client = least.values()
        if attempt >= 7 and client <= 1.5 * base:
            return
    raise AssertionError(f"numpy and pyzmq take {base:.3f} s, with the client {client:.3f} s")


@pytest.mark.parametrize(
    ("modules", "forbidden"),
    [
        (
            "rql_deploy, rql_deploy.contract, rql_deploy.bundle, rql_deploy.policy, rql_deploy.cli",
            "torch onnxruntime mujoco minari h5py zmq",
        ),
        ("rql_deploy.runtime.client", "torch onnxruntime onnx click mujoco robosuite minari h5py gymnasium"),
        (
            "rql_deploy.runtime.server.server, rql_deploy.runtime.engine.onnx_policy, "
            "rql_deploy.runtime.control.lockstep",
            "torch mujoco minari h5py",
        ),
        (
            "rql_deploy.train.loop.trainer, rql_deploy.train.export_modules, "
            "rql_deploy.train.data.readers.minari",
            "mujoco robosuite zmq minari gymnasium onnxruntime",
        ),
        ("rql_deploy.export.exporter", "mujoco robosuite minari"),
        (
            "rql_deploy.runtime.robots.lerobot, rql_deploy.runtime.robots.dds, rql_deploy.ros2.robot",
            "torch onnxruntime mujoco minari h5py gymnasium scipy rich cyclonedds lerobot",
        ),
    ],
)
def test_what_a_room_must_not_import_is_not_imported(modules: str, forbidden: str, tmp_path: Path) -> None:
    code = f"import sys; import {modules}; print(*[m for m in {forbidden.split()!r} if m in sys.modules])"
    result = python(sys.executable, "-c", code, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == ""


def test_training_runs_where_simulators_and_sockets_are_absent(tmp_path: Path, dataset: Path) -> None:
    absent = ("mujoco", "robosuite", "minari", "gymnasium", "zmq", "onnxruntime", "onnx", "ogbench")
    code = (
        f"import sys\nsys.modules.update(dict.fromkeys({absent!r}))\nfrom rql_deploy.cli import main\n"
        f"main(['train', '--dataset', {str(dataset)!r}, '--output', 'run', '--updates', '2', "
        "'--set', 'rql.h=3', '--set', 'batch_size=8'])"
    )
    result = python(sys.executable, "-c", code, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "run" / "latest").exists()
