"""Libraries that cannot stand in the lock beside robosuite: lerobot, robomimic, and old or large ones.

Each is installed alone into a folder of its own, under build/, and used by a process of its own that has the
test environment behind it. As a program, loads data sets with such a library (rows go to an `.npz` file), or
writes one with cameras.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
from numpy.typing import NDArray

PACKAGES = {
    "lerobot": [
        "lerobot==0.4.4",
        "datasets==4.5.0",
        "pandas==2.3.3",
        "dill==0.4.0",
        "multiprocess==0.70.18",
        "xxhash==3.6.0",
        "fsspec==2025.10.0",
        "draccus==0.10.0",
        "jsonlines==4.0.0",
        "einops==0.8.2",
        "pytz==2025.2",
        "python-dateutil==2.9.0.post0",
        "six==1.17.0",
        "tzdata==2025.2",
        "mergedeep==1.3.4",
        "pyyaml-include==1.4.1",
        "typing-inspect==0.9.0",
        "mypy-extensions==1.1.0",
        "toml==0.10.2",
        "pyserial==3.5",
        "deepdiff==8.6.1",
        "orderly-set==5.5.0",
        "termcolor==3.2.0",
        "tqdm==4.67.1",
    ],
    "robomimic": ["robomimic==0.3.0", "tqdm==4.67.1"],
}
FOR_PICTURES = ("torchvision", "torchvision.transforms", "torchvision.transforms.v2", "torchvision.models")
NOT_NEEDED = (
    *FOR_PICTURES,
    "torchvision.transforms.v2.functional",
    "torchvision.transforms.functional",
    "accelerate",
)
"""What these libraries import and only pictures or training use: large, and built against another torch."""


def installed(library: str, folder: Path) -> Path:
    """The folder with `library`, installed if need be; raises CalledProcessError without a registry."""
    target, wanted = folder / library, "\n".join(PACKAGES[library])
    listed = target / "packages.txt"
    if not listed.is_file() or listed.read_text() != wanted:
        partial = target.with_suffix(".partial")
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(partial)]
        subprocess.run([*command, *PACKAGES[library]], check=True, capture_output=True, text=True)
        (partial / listed.name).write_text(wanted)
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
    return target


def environment(library: Path) -> dict[str, str]:
    """Variables for a process that has the library in this folder, and the test environment behind it."""
    paths = [str(Path(__file__).parents[2]), str(library)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1"}


def rows_loaded(library: Path, sets: Sequence[Path]) -> list[dict[str, NDArray[np.generic]]]:
    """Arrays by name that the library in folder `library` loads from each of `sets`, one process for all."""
    _run(library, *map(str, sets))
    return [dict(np.load(path.with_name(f"{path.name}.loaded.npz"))) for path in sets]


def write_cameras(library: Path, folder: Path, episodes: Sequence[int]) -> None:
    """Let lerobot record episodes of so many rows into `folder`, with its own encoder.

    The cameras `top` (a video) and `wrist` (pictures) show the number of the row among all.
    """
    _run(library, "--write", str(folder), *map(str, episodes))


def _run(library: Path, *words: str) -> None:
    command = [sys.executable, "-m", "tests.helpers.foreign_libraries", library.name, *words]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment(library))
    assert done.returncode == 0, done.stderr


def _record(path: Path, episodes: Sequence[int]) -> None:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    from tests.helpers.pictures import numbered

    # The encoder takes no side below 64 pixels.
    size = numbered(0).repeat(2, axis=0).repeat(2, axis=1).shape
    axes = ["height", "width", "channels"]
    features = {
        "observation.images.top": {"dtype": "video", "shape": size, "names": axes},
        "observation.images.wrist": {"dtype": "image", "shape": size, "names": axes},
        "observation.state": {"dtype": "float32", "shape": (3,), "names": ["x", "y", "z"]},
        "action": {"dtype": "float32", "shape": (2,), "names": ["x.pos", "y.pos"]},
    }
    recorded = LeRobotDataset.create(
        "some/name", fps=20, features=features, root=path, robot_type="arm", use_videos=True
    )
    number = 0
    for rows in episodes:
        for _ in range(rows):
            frame = numbered(number).repeat(2, axis=0).repeat(2, axis=1)
            recorded.add_frame(
                {
                    "observation.images.top": frame,
                    "observation.images.wrist": frame,
                    "observation.state": np.full(3, number, np.float32),
                    "action": np.full(2, number, np.float32),
                    "task": "reach",
                }
            )
            number += 1
        recorded.save_episode()
    recorded.finalize()


def _lerobot(path: Path) -> Mapping[str, NDArray[np.generic]]:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    loaded = LeRobotDataset("some/name", root=path)
    rows = [loaded[i] for i in range(len(loaded))]
    assert set(loaded.meta.stats) == set(loaded.meta.features)
    return {name: np.stack([row[name].numpy() for row in rows]) for name in loaded.meta.features}


def _robomimic(path: Path) -> Mapping[str, NDArray[np.generic]]:
    import h5py
    from robomimic.utils.dataset import SequenceDataset

    columns = ("actions", "rewards", "dones")
    with h5py.File(path) as file:
        fields: list[str] = []
        file["data/demo_0/obs"].visititems(
            lambda name, node: fields.append(name) if isinstance(node, h5py.Dataset) else None
        )
    loaded = SequenceDataset(str(path), tuple(fields), columns, hdf5_use_swmr=False)
    # Demonstrations come in the order of their numbers, as ours do.
    rows = [loaded[i] for i in range(len(loaded))]
    found = {key: np.concatenate([row[key] for row in rows]) for key in columns}
    found |= {f"obs/{name}": np.concatenate([row["obs"][name] for row in rows]) for name in fields}
    return found


def leave_out() -> None:
    """Let the libraries import what they do not need here."""
    for name in NOT_NEEDED:
        sys.modules[name] = MagicMock(
            __name__=name, __spec__=ModuleSpec(name, None, is_package=True), __path__=[], __version__="0"
        )


def main() -> None:
    leave_out()
    library, *sets = sys.argv[1:]
    if sets[0] == "--write":
        _record(Path(sets[1]), [int(rows) for rows in sets[2:]])
        return
    load = {"lerobot": _lerobot, "robomimic": _robomimic}[library]
    for path in map(Path, sets):
        np.savez(path.with_name(f"{path.name}.loaded.npz"), **load(path))


if __name__ == "__main__":
    main()
