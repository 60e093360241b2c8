"""Correct a data set into a new one: `rql-deploy data fix`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rql_deploy.errors import UserError

from .sources import open_data, parse_read_options, recording_remarks, require_unsharded
from .writing import WrittenData, format_of, write_data

if TYPE_CHECKING:
    from rql_deploy.train.data.store import TransitionStore


def fix(
    data: str,
    output: str,
    *,
    form: str | None = None,
    drop: Sequence[str] = (),
    drop_short: int = 0,
    drop_not_finite: bool = False,
    drop_duplicates: bool = False,
    rename: Sequence[str] = (),
    rate: float | None = None,
    action_mode: str = "",
    action_bounds: str = "",
    clip_actions: bool = False,
    mapping: Sequence[str] = (),
    tasks: Sequence[int] = (),
    cameras: Sequence[str] = (),
) -> WrittenData:
    """Correct a data set; the new one knows its source and what was changed.

    Args:
        form: one of `data_writing.FORMATS`; else the one that `output` looks like.
        drop: numbers of episodes, such as `3`, `3,7` or `10-12`.
        drop_short: drop episodes of fewer rows; 2 drops those of one row.
        drop_not_finite: drop episodes with NaN or infinity.
        drop_duplicates: keep one of episodes with the same observations and actions.
        rename: `OLD=NEW` for action dimensions and observation fields.
        rate, action_mode, action_bounds: as for `data.convert`; they mean the names after renaming.
        clip_actions: clip actions to their bounds.
        mapping, tasks, cameras: as for `data.convert`.

    Where a store folder `output` holds the result already, it is left as it is. Raises UserError for a
    correction that cannot be made.
    """
    from rql_deploy.train.data.fixes import Fixes
    from rql_deploy.train.data.statements import Statements, outside_bounds

    form = form or format_of(output)
    fixes = Fixes(
        rename=tuple(rename),
        drop=tuple(drop),
        drop_short=drop_short,
        drop_not_finite=drop_not_finite,
        drop_duplicates=drop_duplicates,
        stated=Statements(rate, action_mode, action_bounds),
        clip_actions=clip_actions,
    )
    options = parse_read_options(mapping, tasks, cameras)
    source = require_unsharded(open_data(data, may_lack_rewards=True, options=options))
    store = fixes.of(source)
    changes = store.provenance[-1]["changes"] if store is not source and store.provenance else ()
    if store.provenance == source.provenance:
        changes = ("nothing to correct: its rows are those of the source",)
    if form == "store" and _holds(output, store):
        written = WrittenData(Path(output), form, store.episodes, len(store), ())
        return written.with_changes("made already: nothing was written", *changes)
    written = write_data(store, output, form).with_lost(*recording_remarks([data]), *outside_bounds(store))
    return written.with_changes(*changes)


def _holds(output: str, store: TransitionStore) -> bool:
    """Whether `output` is a store folder with these rows, this plant and this origin."""
    from rql_deploy.train.data.folder import is_store, read_store

    if not is_store(Path(output)):
        return False
    try:
        found = read_store(Path(output), verify=True)
    except UserError:
        return False
    return (found.content_hash, found.plant, found.provenance) == (
        store.content_hash,
        store.plant,
        store.provenance,
    )
