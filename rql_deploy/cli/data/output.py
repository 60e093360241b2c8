"""What `rql-deploy data` writes: a data set in one of the formats, whole or not at all."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rql_deploy.cli.options import echo_json, show_next
from rql_deploy.errors import UserError

if TYPE_CHECKING:
    from rql_deploy.train.data.shards import ShardedStore
    from rql_deploy.train.data.store import TransitionStore

FORMATS = ("store", "ogbench", "minari", "minari-arrow", "robomimic", "lerobot")
SUFFIXES = {".npz": "ogbench", ".hdf5": "robomimic", ".h5": "robomimic"}
"""Names that end so are files of these formats, to readers as well."""


def chosen_format(output: str) -> str:
    """The format that `output` looks like."""
    return SUFFIXES.get(Path(output).suffix) or ("minari" if _is_id(output) else "store")


def check_output(output: str, form: str) -> None:
    """Raise UserError when `output` cannot be what is written in this format, or is there already."""
    suffix = Path(output).suffix
    wanted = [end for end, name in SUFFIXES.items() if name == form]
    if wanted and suffix not in wanted:
        raise UserError(f"a file of format {form} ends in {wanted[0]}: pass --output {output}{wanted[0]}")
    if not wanted and suffix in SUFFIXES:
        raise UserError(
            f"{output} looks like a file of format {SUFFIXES[suffix]}, but {form} is a folder: leave {suffix} away"
        )
    target = Path(output)
    if form.startswith("minari") and _is_id(output):
        from rql_deploy.sim.collection.minari_files import target_folder

        target_folder(output)
    elif target.exists() or target.is_symlink():
        raise UserError(f"{output} exists already: pass another path or remove it first")


def write_data(store: TransitionStore, output: str, form: str) -> tuple[Path, list[str]]:
    """Write the data set; returns where it is and what was lost."""
    check_output(output, form)
    if form.startswith(("minari", "robomimic")):
        for name in (spec.name for spec in store.plant.fields):
            if "/" in name or name in (".", ".."):
                raise UserError(
                    f"format {form} has no place for an observation field named '{name}': rename it, or pass another --to"
                )
    if form.startswith("minari"):
        from rql_deploy.workflows.minari_data import write_minari

        store.validate_rows()
        return write_minari(store, output, "arrow" if form == "minari-arrow" else "hdf5")
    from rql_deploy.train.data.writers import write

    return Path(output), write(store, Path(output), form)


def write_both(
    train: TransitionStore, held: TransitionStore, output: str, validation: str, form: str
) -> tuple[Path, Path, list[str]]:
    """Write training and validation data, both or neither; returns where they are and what was lost."""
    for target in (output, validation):
        check_output(target, form)
    if Path(output).absolute() == Path(validation).absolute():
        raise UserError(f"{output} cannot be training and validation data at once: pass two paths")
    there, _ = write_data(held, validation, form)
    try:
        folder, lost = write_data(train, output, form)
    except BaseException:
        if there.is_dir():
            shutil.rmtree(there, ignore_errors=True)
        else:
            there.unlink(missing_ok=True)
        raise
    return folder, there, lost


def finish(
    store: TransitionStore,
    folder: Path,
    form: str,
    as_json: bool,
    lost: list[str],
    *,
    left: list[str],
    extra: dict[str, Any] | None = None,
) -> None:
    """End a command: what was written, what was lost, and what to type next. `left` are arrays that training does not read."""
    if left:
        lost = [*lost, f"not read by training and so left behind: {', '.join(left)}"]
    extra = extra or {}
    result = {
        "dataset": str(folder),
        "format": form,
        "episodes": store.episodes,
        "rows": len(store),
        "lost": lost,
        **extra,
    }
    if as_json:
        echo_json(result)
        return
    click.echo(f"{store.episodes:,} episodes, {len(store):,} rows in {folder} ({form})")
    for sentence in lost or ["nothing is lost: all that training reads is there"]:
        click.echo(f"  {sentence}")
    against = ["--validation", str(extra["validation"])] if "validation" in extra else []
    show_next(shlex.join(["rql-deploy", "data", "inspect", str(folder), *against]))


def convert_shards(opened: ShardedStore, output: str, form: str, as_json: bool, left: list[str]) -> None:
    """A sharded data set as a folder of stores, which appears when the last shard is in it."""
    from rql_deploy.folders import new_folder
    from rql_deploy.progress import ProgressLine

    if form != "store":
        raise UserError(
            f"data set {opened.dataset_id} is in shards, which only become stores: pass --to store, or convert its files one by one"
        )
    check_output(output, form)
    progress = ProgressLine("convert", len(opened.shards), "shards")
    with new_folder(Path(output)) as staging:
        for done, shard in enumerate(opened.shards):
            write_data(opened.load(done), str(staging / shard.name.removesuffix(".npz")), "store")
            progress.update(done + 1)
    progress.finish(len(opened.shards))
    lost = [f"not read by training and so left behind: {', '.join(left)}"] if left else []
    if as_json:
        echo_json(
            {
                "dataset": output,
                "format": form,
                "episodes": opened.episodes,
                "rows": len(opened),
                "lost": lost,
            }
        )
        return
    click.echo(f"{len(opened.shards)} shards in {output}")
    for sentence in lost:
        click.echo(f"  {sentence}")
    show_next(shlex.join(["rql-deploy", "data", "inspect", output]))


def _is_id(text: str) -> bool:
    return bool(re.match(r"^(?:[\w-]{2,}/)*[\w-]{2,}-v\d+$", text))
