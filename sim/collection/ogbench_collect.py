"""Make OGBench `play` data in parallel processes: one file per finished episode, joined at the end.

    .NAME.episodes/recipe.json        what is being made; another recipe in the same place is refused
    .NAME.episodes/train-000012.npz   a finished episode; validation ones are val-000003.npz

The folder lies beside the output. After Ctrl-C, a crash or a full disk a later run continues with its
episodes.
"""

from __future__ import annotations

import shutil
import zipfile
import zlib
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rql_deploy.errors import UserError
from rql_deploy.ogbench_names import PIXELS, is_visual
from rql_deploy.seeding import episode_seed
from rql_deploy.sim.demonstrators.ogbench_play import (
    EPISODE_STEPS,
    NOISE,
    NOISE_SMOOTHING,
    PlayGenerator,
    find_recipe,
)
from rql_deploy.sim.processes import SimulatorPool, result_of

from .episode_folder import exclusive_folder, finished, folder_beside, require_recipe, save_episode

VALIDATION_OFFSET = 1 << 24
"""Validation episode i has the seed of episode `VALIDATION_OFFSET` + i, however many training episodes
there are.
"""
COUNTS = ("targets", "reached", "rejected")
JOINING = "joining"
"""File in the folder of episodes that says that finished files are being renamed."""


@dataclass(frozen=True)
class PlayData:
    """What is to be made, and where."""

    task: str
    """`cube-single-play`; a version or a single task may follow."""
    output: Path
    """The `.npz` file, or the folder of the Minari data set; the folder of episodes lies beside it."""
    episodes: int
    seed: int
    steps: int = EPISODE_STEPS
    cameras: tuple[str, ...] = ()
    """`NAME[:HEIGHTxWIDTH]` of the cameras whose pictures are kept."""

    @property
    def visual(self) -> bool:
        """Whether pictures take the place of the observations, as in the visual sets."""
        return is_visual(self.task)

    @property
    def validation(self) -> int:
        """Validation episodes: a tenth of the training episodes, at least one; none for a Minari data set."""
        return max(1, self.episodes // 10) if self.output.suffix == ".npz" else 0

    @property
    def validation_file(self) -> Path:
        """Where the validation episodes go, as OGBench's loader expects it."""
        return self.output.with_name(f"{self.output.stem}-val.npz")

    @property
    def folder(self) -> Path:
        """Where finished parts lie until all are there."""
        return folder_beside(self.output)

    def files(self, part: str) -> list[Path]:
        """The files of part `train` or `val`, in order."""
        count = self.episodes if part == "train" else self.validation
        return [self.folder / f"{part}-{i:06}.npz" for i in range(count)]

    def recipe(self) -> dict[str, Any]:
        """What must be the same for a run to continue with an earlier run's episodes."""
        return {
            **asdict(find_recipe(self.task)),
            "noise": NOISE,
            "noise_smoothing": NOISE_SMOOTHING,
            "steps": self.steps,
            "seed": self.seed,
            **({"cameras": list(self.cameras)} if self.cameras else {}),
            **({"visual": True} if self.visual else {}),
        }


@contextmanager
def exclusive_collection(data: PlayData) -> Iterator[None]:
    """Hold the folder of episodes against other processes; it is made where missing, and removed where empty
    at the end.

    Raises UserError where another process holds it.
    """
    with exclusive_folder(data.folder, data.output):
        yield


def prepare(data: PlayData) -> int:
    """Make the folder of episodes; returns how many an earlier run left. Raises UserError when they are
    another recipe's.

    Damaged episodes (a power cut's) are removed, to be made again.
    """
    joining = (data.folder / JOINING).exists()
    for target in (data.output, *([data.validation_file] if data.validation and not joining else [])):
        if target.exists():
            raise UserError(f"{target} exists already: pass another --output or remove it first")
    require_recipe(data.folder, data.recipe())
    return len(finished(file for part in ("train", "val") for file in data.files(part)))


def make_episodes(data: PlayData, workers: int, pool: Executor | None = None) -> Generator[dict[str, int]]:
    """Make the missing episodes; yields the counts of each as it ends (`targets`, `reached`, `rejected`), its
    `seed`, and how often its simulation was `unstable` and made anew.

    Processes of this machine make them, or `pool` (shut down at the end), whose workers write into the same
    folder.

    Finished episodes stay in any case. Ctrl-C abandons the episodes under way. Raises UserError when the disk
    is full.
    """
    todo = iter(
        [
            (part, i, file)
            for part in ("train", "val")
            for i, file in enumerate(data.files(part))
            if not file.exists()
        ]
    )
    pool = pool or SimulatorPool(workers)
    waiting: set[Future[dict[str, int]]] = set()

    def submit() -> None:
        for part, i, file in todo:
            index = i if part == "train" else VALIDATION_OFFSET + i
            waiting.add(
                pool.submit(
                    _make,
                    data.task,
                    data.steps,
                    data.cameras,
                    episode_seed(data.seed, index, "collect"),
                    file,
                )
            )
            return

    try:
        for _ in range(2 * workers):
            submit()
        while waiting:
            done, _ = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                waiting.discard(future)
                counts = result_of(future)
                submit()
                yield counts
    except BaseException as error:
        # An episode takes seconds, so those under way are not waited for.
        if isinstance(pool, SimulatorPool):
            pool.kill()
        if isinstance(error, OSError):
            raise _disk_error(data, error) from error
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_generator: PlayGenerator | None = None


def _make(task: str, steps: int, cameras: tuple[str, ...], seed: int, file: Path) -> dict[str, int]:
    """In a worker: generate an episode and write its file, completely or not at all."""
    global _generator
    if _generator is None:
        _generator = PlayGenerator(find_recipe(task), steps, cameras)
    episode = _generator.generate(seed)
    counts = {name: getattr(episode, name) for name in COUNTS}
    arrays = dict(episode.arrays)
    if is_visual(task):
        arrays["observations"] = arrays.pop(PIXELS)
    save_episode(file, {**arrays, "counts": np.array([counts[name] for name in COUNTS])})
    return {**counts, "seed": seed, "unstable": len(episode.unstable)}


def totals(data: PlayData) -> dict[str, int]:
    """Counts over all training episodes."""
    total = np.zeros(len(COUNTS), np.int64)
    for file in data.files("train"):
        with _episode(file) as arrays:
            total += arrays["counts"]
    return dict(zip(COUNTS, total.tolist(), strict=True))


def load_part(data: PlayData, part: str) -> Iterator[Mapping[str, NDArray[Any]]]:
    """The episodes of a part in order, as arrays by name."""
    for file in data.files(part):
        with _episode(file) as arrays:
            yield {name: arrays[name] for name in arrays.files if name != "counts"}


def join(data: PlayData) -> list[Path]:
    """Write OUTPUT.npz and OUTPUT-val.npz in OGBench's layout, both or neither, and remove the folder of
    episodes.
    """
    targets = [data.output, data.validation_file]
    partial = [target.with_name(f".{target.name}.partial") for target in targets]
    try:
        for part, file in zip(("train", "val"), partial, strict=True):
            _join_part(data.files(part), file)
        # From here on a later run may replace an existing validation file.
        (data.folder / JOINING).touch()
        # The validation file first: once the other one is there, the set counts as complete.
        for file, target in reversed(list(zip(partial, targets, strict=True))):
            file.replace(target)
    except BaseException as error:
        for file in partial:
            file.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise _disk_error(data, error) from error
        raise
    shutil.rmtree(data.folder, ignore_errors=True)
    return targets


def _join_part(files: Sequence[Path], target: Path) -> None:
    with _episode(files[0]) as first:
        kinds = {name: (first[name].dtype, first[name].shape[1:]) for name in first.files if name != "counts"}
    rows = 0
    for file in files:
        with _episode(file) as arrays:
            rows += len(arrays["terminals"])
    # One array after the other, an episode at a time: this needs the memory of one episode.
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, allowZip64=True) as archive:
        for name, (dtype, shape) in kinds.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
                header = {"descr": dtype.str, "fortran_order": False, "shape": (rows, *shape)}
                np.lib.format.write_array_header_1_0(stream, header)  # type: ignore[no-untyped-call]
                for file in files:
                    with _episode(file) as arrays:
                        stream.write(np.ascontiguousarray(arrays[name]).tobytes())


@contextmanager
def _episode(file: Path) -> Iterator[Any]:
    """An episode's arrays; raises UserError when the file is damaged."""
    try:
        with np.load(file) as arrays:
            yield arrays
    except (EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(
            f"{file} is damaged ({error}): remove it and run the same command again, to make that episode "
            "again"
        ) from error


def _disk_error(data: PlayData, error: Exception) -> UserError:
    reason = getattr(error, "strerror", None) or error
    return UserError(
        f"cannot write {getattr(error, 'filename', None) or data.output} ({reason}): "
        f"finished episodes are kept in {data.folder}; make room and run the same command again to go on"
    )
