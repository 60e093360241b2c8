"""The store folder: a transition store on disk, which training memory-maps (docs/data.md).

    FOLDER/store.json         format, data set id, plant, rows, episodes, content hash, remarks, provenance
    FOLDER/observations.npy   [N, O] float32        FOLDER/rewards.npy   [N] float32
    FOLDER/actions.npy        [N, A] float32        FOLDER/masks.npy     [N] float32
    FOLDER/ends.npy           [E] int64             FOLDER/successes.npy [E] bool, where known
    FOLDER/finals.npy         [E, O] float32, where known: the observation after each episode's last action
    FOLDER/intervened.npy     [N] bool, where known: rows whose action was not the policy's
    FOLDER/images/NAME.npy    [N, H, W, 3] uint8, of each camera, NAME percent-encoded

Plain NumPy files, no pickle. A folder of such folders is a sharded data set.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rql_deploy.contract import PlantDescription
from rql_deploy.errors import UserError
from rql_deploy.folders import sole_writer
from rql_deploy.structs import convert, to_plain

from .frame_files import FrameFiles, npy_header, open_frames
from .frames import Frames, Picture, check_frames
from .store import TransitionStore

FORMAT = 1
HEADER_FILE = "store.json"
ROW_ARRAYS = ("observations", "actions", "rewards", "masks")


class StoreWriter:
    """Writes a store folder episode by episode and holds none of them in memory.

    The rows go to a hidden folder beside the final one, which is renamed when all episodes are written.
    Leaving the `with` block finishes it; an exception removes it; after a killed process, the next writer
    removes what is left. Another writer of the same folder is refused meanwhile.
    """

    def __init__(self, folder: Path, dataset_id: str, plant: PlantDescription):
        self.folder, self.dataset_id, self.plant = folder, dataset_id, plant
        self.partial = folder.with_name(f".{folder.name}.partial")
        self.widths: dict[str, tuple[int, ...]] = {
            "observations": (plant.observation_dim,),
            "actions": (plant.action_dim,),
            "rewards": (),
            "masks": (),
        }
        self.remarks: tuple[str, ...] = ()
        self.provenance: tuple[Mapping[str, Any], ...] = ()
        self.intervened: NDArray[np.bool_] | None = None
        self.rows = 0
        self.ends: list[int] = []
        self.successes: list[bool | None] = []
        self.finals: list[NDArray[np.float32] | None] = []
        self._files: dict[str, BinaryIO] = {}
        self._frames = FrameFiles(plant)
        try:
            self._alone = sole_writer(folder)
        except OSError as error:
            raise self._disk_error(error) from error
        try:
            shutil.rmtree(self.partial, ignore_errors=True)
            self.partial.mkdir(parents=True)
            for name in ROW_ARRAYS:
                self._files[name] = (self.partial / f"{name}.npy").open("wb")
                self._files[name].write(npy_header((0, *self.widths[name])))
            self._frames.open(self.partial)
        except OSError as error:
            self.abort()
            raise self._disk_error(error) from error

    def add_episode(
        self,
        observations: ArrayLike,
        actions: ArrayLike,
        rewards: ArrayLike,
        masks: ArrayLike,
        success: bool | None = None,
        images: Mapping[str, Picture] | None = None,
    ) -> None:
        """Append an episode of n rows: observations `[n, O]`, actions `[n, A]`, rewards `[n]`, masks `[n]`.

        `images` has the frames `[n, H, W, 3]` of each of the plant's cameras. Raises UserError and appends
        nothing if the shapes do not fit.
        """
        arrays = {
            name: np.ascontiguousarray(value, np.float32)
            for name, value in zip(ROW_ARRAYS, (observations, actions, rewards, masks), strict=True)
        }
        rows = len(arrays["actions"])
        if not rows:
            raise UserError(f"episode {len(self.ends)} for {self.folder} has no rows: leave it out")
        for name, array in arrays.items():
            if array.shape != (rows, *self.widths[name]):
                raise UserError(
                    f"episode {len(self.ends)} for {self.folder} has {name} of shape {list(array.shape)}, "
                    f"for {rows} actions it should be {[rows, *self.widths[name]]}"
                )
        frames = {name: Frames.of(np.asarray(pictures)) for name, pictures in (images or {}).items()}
        ends, successes = np.array([rows], np.int64), None if success is None else np.array([success])
        self.extend(arrays, ends, successes, images=frames)

    def extend(
        self,
        arrays: dict[str, NDArray[np.float32]],
        ends: NDArray[np.int64],
        successes: NDArray[np.bool_] | None,
        finals: NDArray[np.float32] | None = None,
        images: Mapping[str, Frames] | None = None,
    ) -> None:
        """Append several whole episodes; `ends` counts from the first of these rows.

        Frames are copied block by block. Raises UserError and appends nothing where they do not fit.
        """
        images = images or {}
        check_frames(
            f"episode {len(self.ends)} for {self.folder}", self.plant, images, len(arrays["rewards"])
        )
        try:
            for name in ROW_ARRAYS:
                np.ascontiguousarray(arrays[name]).tofile(self._files[name])
            self._frames.extend(images)
        except OSError as error:
            self.abort()
            raise self._disk_error(error) from error
        self.ends += (self.rows + ends).tolist()
        self.successes += [None] * len(ends) if successes is None else successes.tolist()
        self.finals += [None] * len(ends) if finals is None else list(finals)
        self.rows += len(arrays["rewards"])

    def close(self) -> TransitionStore:
        """Finish the folder and open it."""
        if not self.rows:
            self.abort()
            raise UserError(
                f"data set {self.dataset_id} is empty, so {self.folder} is not written: collect some "
                "episodes first"
            )
        try:
            for name, file in self._files.items():
                file.seek(0)
                file.write(npy_header((self.rows, *self.widths[name])))
                file.close()
            digests = self._frames.close(self.rows)
            np.save(self.partial / "ends.npy", np.array(self.ends, np.int64))
            known = [success for success in self.successes if success is not None]
            if known and len(known) == len(self.ends):
                np.save(self.partial / "successes.npy", np.array(known, bool))
            finals = [final for final in self.finals if final is not None]
            if finals and len(finals) == len(self.ends):
                np.save(self.partial / "finals.npy", np.stack(finals).astype(np.float32))
            if self.intervened is not None:
                np.save(self.partial / "intervened.npy", self.intervened)
            header: dict[str, Any] = {
                "format": FORMAT,
                "dataset_id": self.dataset_id,
                "plant": to_plain(self.plant),
                "rows": self.rows,
                "episodes": len(self.ends),
                **({"images": digests} if digests else {}),
                **({"remarks": list(self.remarks)} if self.remarks else {}),
                **({"provenance": [dict(made) for made in self.provenance]} if self.provenance else {}),
            }
            (self.partial / HEADER_FILE).write_text(json.dumps(header))
            header["content_hash"] = read_store(self.partial).content_hash
            (self.partial / HEADER_FILE).write_text(json.dumps(header, indent=1, allow_nan=False))
            for file_path in (*self.partial.rglob("*"), self.partial):
                _sync(file_path)
            self.partial.rename(self.folder)
            _sync(self.folder.parent)
            self._alone.close()
        except BaseException as error:
            self.abort()
            if isinstance(error, OSError):
                raise self._disk_error(error) from error
            raise
        return read_store(self.folder)

    def abort(self) -> None:
        """Remove what was written so far."""
        self._frames.abort()
        for file in self._files.values():
            # Closing flushes what is buffered, which fails again on a full disk.
            with contextlib.suppress(OSError):
                file.close()
        shutil.rmtree(self.partial, ignore_errors=True)
        self._alone.close()

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    def _disk_error(self, error: OSError) -> UserError:
        return UserError(
            f"cannot write data set {self.folder} ({error}): nothing is left of it; make room or pass "
            "another folder"
        )


def write_store(store: TransitionStore, folder: Path) -> TransitionStore:
    """Write `store` as a folder and return it as read back, memory-mapped."""
    with StoreWriter(folder, store.dataset_id, store.plant) as writer:
        writer.remarks, writer.provenance = store.remarks, store.provenance
        writer.intervened = store.intervened
        writer.extend(
            {name: getattr(store, name) for name in ROW_ARRAYS},
            store.ends,
            store.successes,
            store.finals,
            store.images,
        )
    return read_store(folder)


def is_store(folder: Path) -> bool:
    """Whether `folder` is a store folder."""
    return (folder / HEADER_FILE).is_file()


def store_folders(path: Path) -> list[Path]:
    """The store folder at `path`, or those in the folder there, which are its shards; else none."""
    if is_store(path):
        return [path]
    return sorted(folder for folder in path.iterdir() if is_store(folder)) if path.is_dir() else []


def read_store(folder: Path, *, verify: bool = False) -> TransitionStore:
    """Open a store folder with its rows memory-mapped; raises UserError if it is damaged.

    With `verify`, every row is read and must match the hash in the header; frames, of which there may be
    many gigabytes, are compared with theirs by `frame_files.verify_frames`.
    """
    try:
        header, plant = _read_header(folder)
        arrays = {name: _open(folder / f"{name}.npy", np.float32) for name in ROW_ARRAYS}
        ends = np.array(_open(folder / "ends.npy", np.int64))
        successes, intervened = (
            np.array(_open(folder / f"{name}.npy", np.bool_)) if (folder / f"{name}.npy").exists() else None
            for name in ("successes", "intervened")
        )
        finals = _open(folder / "finals.npy", np.float32) if (folder / "finals.npy").exists() else None
        images = open_frames(folder, plant, dict(header.get("images", {})))
        store = TransitionStore(
            dataset_id=str(header["dataset_id"]),
            plant=plant,
            ends=ends,
            successes=successes,
            finals=finals,
            intervened=intervened,
            recent=0,
            images=images,
            remarks=tuple(map(str, header.get("remarks", ()))),
            provenance=tuple(map(dict, header.get("provenance", ()))),
            **arrays,
        )
        if len(store) != header["rows"] or store.episodes != header["episodes"]:
            raise ValueError(
                f"{HEADER_FILE} says {header['rows']} rows and {header['episodes']} episodes, the files hold "
                "others"
            )
        store.validate_shapes()
        if verify and store.content_hash != header["content_hash"]:
            raise ValueError(
                f"its rows do not match the hash in {HEADER_FILE}: they were altered after they were written"
            )
        return store
    except UserError:
        raise
    except (OSError, EOFError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"data set {folder} is damaged ({error}): write it again or restore it from a copy"
        ) from error


@dataclass(frozen=True)
class StoreShard:
    """A store folder as one shard of a larger data set."""

    folder: Path
    plant: PlantDescription
    rows: int
    episodes: int
    fingerprint: str

    @classmethod
    def of(cls, folder: Path) -> StoreShard:
        """The shard in `folder`; reads its header only."""
        try:
            header, plant = _read_header(folder)
            return cls(
                folder, plant, int(header["rows"]), int(header["episodes"]), str(header["content_hash"])
            )
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise UserError(
                f"shard {folder} is damaged ({error}): write it again or restore it from a copy"
            ) from error

    @property
    def name(self) -> str:
        return self.folder.name

    def load(self) -> TransitionStore:
        return read_store(self.folder)


def _read_header(folder: Path) -> tuple[dict[str, Any], PlantDescription]:
    header = json.loads((folder / HEADER_FILE).read_text())
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise ValueError(f"{HEADER_FILE} is not of format {FORMAT}")
    return header, convert(header["plant"], PlantDescription, f"the plant in {folder / HEADER_FILE}")


def _open(file: Path, dtype: type[np.generic]) -> NDArray[Any]:
    # Copy-on-write because torch takes writable arrays only. Nobody writes, so no page is copied.
    array: NDArray[Any] = np.load(file, mmap_mode="c", allow_pickle=False)
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{file.name} is an archive, not an array")
    if array.dtype != dtype:
        raise ValueError(f"{file.name} holds {array.dtype}, not {np.dtype(dtype)}")
    return array


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
