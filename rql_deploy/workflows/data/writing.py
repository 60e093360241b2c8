"""Write a data set in one of the formats, completely or not at all."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rql_deploy.errors import UserError, nearest
from rql_deploy.progress import Progress

if TYPE_CHECKING:
    from rql_deploy.train.data.shards import ShardedStore
    from rql_deploy.train.data.store import TransitionStore

FORMATS = ("store", "ogbench", "minari", "minari-arrow", "robomimic", "lerobot")
OTHER_NAMES = {
    "hdf5": "robomimic",
    "h5": "robomimic",
    "npz": "ogbench",
    "folder": "store",
    "arrow": "minari-arrow",
    "minari-hdf5": "minari",
    "lerobotdataset": "lerobot",
}
"""Words that people use for a format, most of them a file's suffix."""
SUFFIXES = {".npz": "ogbench", ".hdf5": "robomimic", ".h5": "robomimic"}
"""The formats whose files must have these suffixes, by which readers know them."""


@dataclass(frozen=True)
class WrittenData:
    """A data set that was written."""

    dataset: Path
    format: str
    episodes: int
    rows: int
    lost: tuple[str, ...]
    """What the format cannot hold or training does not read, one sentence each."""
    shards: int | None = None
    """Of a sharded set."""
    validation: Path | None = None
    validation_episodes: int | None = None
    changes: tuple[str, ...] = ()
    """What was corrected, one sentence each."""

    def with_lost(self, *sentences: str) -> WrittenData:
        """The same with more that was lost."""
        return replace(self, lost=(*self.lost, *sentences))

    def with_changes(self, *sentences: str) -> WrittenData:
        """The same with more that was corrected."""
        return replace(self, changes=(*self.changes, *sentences))


def format_named(word: str) -> str:
    """The format that a word names, also a suffix such as `npz`; raises UserError with the choices."""
    known = word.lower().removeprefix(".")
    found = OTHER_NAMES.get(known, known)
    if found not in FORMATS:
        raise UserError(
            f"--to takes {', '.join(FORMATS)} (hdf5 means robomimic, npz ogbench), not '{word}'"
            f"{f': did you mean {near[0]}?' if (near := nearest(known, FORMATS, cutoff=0.5)) else ''}"
        )
    return found


def format_of(output: str) -> str:
    """The format that a path or Minari id looks like."""
    return SUFFIXES.get(Path(output).suffix) or ("minari" if _is_minari_id(output) else "store")


def check_output(output: str, form: str) -> None:
    """Raise UserError when `output` does not fit the format, or exists."""
    suffix = Path(output).suffix
    wanted = [end for end, name in SUFFIXES.items() if name == form]
    if wanted and suffix not in wanted:
        raise UserError(f"a file of format {form} ends in {wanted[0]}: pass --output {output}{wanted[0]}")
    if not wanted and suffix in SUFFIXES:
        raise UserError(
            f"{output} looks like a file of format {SUFFIXES[suffix]}, but {form} is a folder: remove "
            f"{suffix}"
        )
    target = Path(output)
    if form.startswith("minari") and _is_minari_id(output):
        from rql_deploy.sim.collection.minari_files import target_folder

        target_folder(output)
    elif target.exists() or target.is_symlink():
        raise UserError(f"{output} exists already: pass another path or remove it first")


def write_data(store: TransitionStore, output: str, form: str) -> WrittenData:
    """Write a data set; raises UserError where the format or the output will not do."""
    check_output(output, form)
    store, frames_lost = (store, []) if form == "store" else _without_frames(store, form)
    if form.startswith(("minari", "robomimic")):
        for name in (spec.name for spec in store.plant.fields):
            if "/" in name or name in (".", ".."):
                raise UserError(
                    f"format {form} has no place for an observation field named '{name}': "
                    f"rename it with `rql-deploy data fix --rename observation.{name}=NEW`, or pass another "
                    "--to"
                )
    if form.startswith("minari"):
        from rql_deploy.workflows.data.minari_ids import write_minari

        store.validate_rows()
        folder, lost = write_minari(store, output, "arrow" if form == "minari-arrow" else "hdf5")
    else:
        from rql_deploy.train.data.writers import write

        folder, lost = Path(output), write(store, Path(output), form)
    lost = [*lost, *frames_lost]
    if store.provenance and form != "store":
        lost = [*lost, "what the data was made from: only a store folder keeps it"]
    # No format keeps what the reader had to decide, so this is the last time that it is seen.
    told = tuple(dict.fromkeys((*lost, *store.remarks)))
    return WrittenData(folder, form, store.episodes, len(store), told)


def _without_frames(store: TransitionStore, form: str) -> tuple[TransitionStore, list[str]]:
    """The data set without its pictures, and a sentence that names them; UserError where nothing is left."""
    import msgspec

    from rql_deploy.train.data.shards import with_plant

    if not store.images:
        return store, []
    names = ", ".join(store.images)
    if not store.plant.fields:
        raise UserError(
            f"data set {store.dataset_id} observes nothing but the pictures {names}, for which format {form} "
            "has no place here: pass --to store"
        )
    bare = with_plant(store, msgspec.structs.replace(store.plant, images=()))
    return bare, [f"the frames of {names}: only a store folder keeps them"]


def write_split(
    train: TransitionStore, validation: TransitionStore, output: str, validation_output: str, form: str
) -> WrittenData:
    """Write training and validation data, both or neither."""
    for target in (output, validation_output):
        check_output(target, form)
    if Path(output).absolute() == Path(validation_output).absolute():
        raise UserError(f"{output} cannot be training and validation data at once: pass two paths")
    beside = write_data(validation, validation_output, form).dataset
    try:
        written = write_data(train, output, form)
    except BaseException:
        if beside.is_dir():
            shutil.rmtree(beside, ignore_errors=True)
        else:
            beside.unlink(missing_ok=True)
        raise
    return replace(written, validation=beside, validation_episodes=validation.episodes)


def write_shards(opened: ShardedStore, output: str, form: str, progress: Progress) -> WrittenData:
    """Write a sharded data set as a folder of stores, which appears when the last shard is in it."""
    from rql_deploy.folders import new_folder

    if form != "store":
        raise UserError(
            f"data set {opened.dataset_id} is in shards, which can only be converted to stores: "
            "pass --to store, or convert its files one by one"
        )
    check_output(output, form)
    progress.start("convert", len(opened.shards), "shards")
    with new_folder(Path(output)) as staging:
        for done, shard in enumerate(opened.shards):
            write_data(opened.load(done), str(staging / shard.name.removesuffix(".npz")), "store")
            progress.update(done + 1)
    progress.finish(len(opened.shards))
    return WrittenData(Path(output), form, opened.episodes, len(opened), (), shards=len(opened.shards))


def _is_minari_id(text: str) -> bool:
    return bool(re.match(r"^(?:[\w-][\w/-]*[\w-]/)?[\w-]+-v\d+$", text))
