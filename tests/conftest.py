"""Shared pieces: tiny data sets, a tiny trained run, its bundle, and that bundle served by a real process."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

# MuJoCo chooses its renderer when it is first imported, which any test of a worker may be the one to do.
if sys.platform == "linux":
    os.environ.setdefault("MUJOCO_GL", "egl")

import numpy as np
import pytest
from click.testing import CliRunner, Result

from rql_deploy.cli import main
from rql_deploy.contract import ActionDimension, ObservationField, PlantDescription
from rql_deploy.train.store import TransitionStore

ROOT = Path(__file__).resolve().parent.parent
TINY = ("--set", "rql.policy_hidden=[16, 16]", "--set", "rql.value_hidden=[16, 16]", "--set", "rql.h=3", "--set", "batch_size=8")

PLANT = PlantDescription(
    task="tiny",
    fields=(ObservationField("position", (3,), "m"), ObservationField("opening", (1,), "m")),
    actions=(
        ActionDimension("dx", -1.0, 1.0, "0.05 m", "OSC_POSE", "base", "delta", "null"),
        ActionDimension("gripper", -2.0, 4.0, "", "GRIP", "", "absolute", "repeat"),
    ),
    control_rate=20.0,
)


def cli(*arguments: object) -> Result:
    """The command line in this process."""
    return CliRunner().invoke(main, [str(a) for a in arguments])


def run_cli(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own."""
    command = [sys.executable, "-m", "rql_deploy", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, **options)  # type: ignore[call-overload,no-any-return]


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


def make_store(episodes: tuple[int, ...] = (9, 7, 12), seed: int = 0, plant: PlantDescription = PLANT) -> TransitionStore:
    """A random store whose even episodes end in success."""
    rng = np.random.default_rng(seed)
    rows = sum(episodes)
    ends = np.cumsum(episodes)
    masks = np.ones(rows, np.float32)
    masks[ends[::2] - 1] = 0.0
    return TransitionStore(
        dataset_id="tiny/data-v0",
        plant=plant,
        observations=rng.normal(size=(rows, plant.observation_dim)).astype(np.float32),
        actions=rng.uniform(plant.action_low, plant.action_high, (rows, plant.action_dim)).astype(np.float32),
        rewards=(-masks).astype(np.float32),
        masks=masks,
        ends=ends.astype(np.int64),
        successes=np.array([i % 2 == 0 for i in range(len(episodes))]),
    )


def write_minari(folder: Path, *, episodes: tuple[int, ...] = (9, 7, 12), seed: int = 0, dim: int = 4) -> Path:
    """A Minari data set with flat observations, written by the minari library itself."""
    import warnings

    import gymnasium
    import minari
    from minari.data_collector import EpisodeBuffer

    rng = np.random.default_rng(seed)
    buffers = [
        EpisodeBuffer(
            id=i,
            observations=rng.normal(size=(n + 1, dim)),
            actions=rng.uniform(-1, 1, (n, 2)).astype(np.float32),
            rewards=list(rng.normal(size=n)),
            terminations=[False] * (n - 1) + [i % 2 == 0],
            truncations=[False] * (n - 1) + [i % 2 == 1],
            infos={},
        )
        for i, n in enumerate(episodes)
    ]
    before = os.environ.get("MINARI_DATASETS_PATH")
    os.environ["MINARI_DATASETS_PATH"] = str(folder)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            minari.create_dataset_from_buffers(
                "tiny/flat-v0",
                buffers,
                observation_space=gymnasium.spaces.Box(-np.inf, np.inf, (dim,)),
                action_space=gymnasium.spaces.Box(-1.0, 1.0, (2,)),
                data_format="hdf5",
            )
    finally:
        if before is None:
            del os.environ["MINARI_DATASETS_PATH"]
        else:
            os.environ["MINARI_DATASETS_PATH"] = before
    return folder / "tiny" / "flat-v0"


def require_compiler() -> None:
    """A C++ compiler, for torch.compile: without one a user's test is skipped and says why, and CI's fails."""
    if any(shutil.which(name) for name in ("g++", "clang++")):
        return
    missing = "torch.compile needs a C++ compiler (apt-get install g++)"
    if os.environ.get("RQL_REQUIRE_ALL") or os.environ.get("CI"):
        pytest.fail(missing)
    pytest.skip(missing)


def require_node(folder: Path, package: str) -> None:
    """Node.js and the packages of `folder`: without them a user's test is skipped and says why, and CI's fails."""
    missing = None
    if shutil.which("node") is None:
        missing = "Node.js is not installed (apt-get install nodejs npm, then make setup)"
    elif not (folder / "node_modules" / package).is_dir():
        missing = f"{folder.relative_to(ROOT)}/node_modules is missing (npm and make setup put it there)"
    if missing and (os.environ.get("RQL_REQUIRE_ALL") or os.environ.get("CI")):
        pytest.fail(missing)
    if missing:
        pytest.skip(missing)


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
def bundle(tmp_path_factory: pytest.TempPathFactory, run: Path) -> Path:
    """That run's bundle."""
    output = tmp_path_factory.mktemp("bundle") / "tiny"
    result = cli("export", run, "--output", output)
    assert result.exit_code == 0, result.output
    return output


@contextlib.contextmanager
def serving(bundle: Path, *options: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A real server process; yields its endpoint and the process."""
    command = [sys.executable, "-m", "rql_deploy", "serve", str(bundle), "--bind", "tcp://127.0.0.1:*", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert process.stdout is not None
        ready = process.stdout.readline()
        match = re.search(r"on ((?:tcp|ipc)://\S+)$", ready.strip())
        assert match, ready + process.stdout.read()
        yield match.group(1), process
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="session")
def endpoint(bundle: Path) -> Iterator[str]:
    with serving(bundle) as (address, _):
        yield address
