"""Writers: each turns a `TransitionStore` into one data format and names what the format cannot hold.

Minari's writer is not here: it needs the minari package, which training does without.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from rql_deploy.errors import UserError
from rql_deploy.folders import sole_writer
from rql_deploy.train.data.folder import write_store
from rql_deploy.train.data.store import TransitionStore

from .lerobot import write_lerobot
from .ogbench import write_ogbench
from .robomimic import write_robomimic

Writer = Callable[[TransitionStore, Path], list[str]]
"""Writes a store to a path; returns what the format cannot hold, one sentence each."""


def _write_store_folder(store: TransitionStore, target: Path) -> list[str]:
    write_store(store, target)
    return []


WRITERS: Mapping[str, Writer] = {
    "store": _write_store_folder,
    "ogbench": write_ogbench,
    "robomimic": write_robomimic,
    "lerobot": write_lerobot,
}


def write(store: TransitionStore, target: Path, format_name: str) -> list[str]:
    """Write `store` to `target`, completely or not at all; returns what the format cannot hold, one sentence
    each.

    Raises UserError if the rows are inconsistent, `target` exists, or the disk is full.
    """
    store.validate_rows()
    if format_name == "store":
        return WRITERS[format_name](store, target)
    partial = target.with_name(f".{target.name}.partial{target.suffix}")
    try:
        with sole_writer(target):
            try:
                _remove(partial)
                lost = WRITERS[format_name](store, partial)
                partial.rename(target)
                return lost
            finally:
                _remove(partial)
    except OSError as error:
        raise UserError(
            f"cannot write {target} ({error.strerror or error}): nothing is left of it; make room or pass "
            "another path"
        ) from error


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    elif path.exists():
        os.unlink(path)
