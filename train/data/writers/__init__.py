"""Writers of offline data, each the inverse of a reader: what a format cannot hold is said, not dropped in
silence.

Minari's writer is Minari itself and lives with the commands, since training does without it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from rql_deploy.errors import UserError
from rql_deploy.train.data.folder import write_store
from rql_deploy.train.data.store import TransitionStore

from .lerobot import write_lerobot
from .ogbench import write_ogbench
from .robomimic import write_robomimic

Writer = Callable[[TransitionStore, Path], list[str]]


def _store(store: TransitionStore, target: Path) -> list[str]:
    write_store(store, target)
    return []


WRITERS: Mapping[str, Writer] = {
    "store": _store,
    "ogbench": write_ogbench,
    "robomimic": write_robomimic,
    "lerobot": write_lerobot,
}


def write(store: TransitionStore, target: Path, form: str) -> list[str]:
    """Write `store` to `target` in format `form`, whole or not at all; returns what is lost, one sentence
    each.

    Raises UserError when the rows do not fit together, something is there already, or the disk does not take
    it.
    """
    if target.exists():
        raise UserError(f"{target} exists already: pass another --output or remove it first")
    store.validate_rows()
    if form == "store":
        return WRITERS[form](store, target)
    partial = target.with_name(f".{target.name}.partial{target.suffix}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove(partial)
        lost = WRITERS[form](store, partial)
        partial.rename(target)
        return lost
    except OSError as error:
        raise UserError(
            f"cannot write {target} ({error.strerror or error}): nothing is left of it; make room or pass "
            f"another path"
        ) from error
    finally:
        _remove(partial)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    elif path.exists():
        os.unlink(path)
