"""Look at data sets, and convert, merge, split and relabel them.

A data set is named by what `train` takes: a Minari id, folder or file, an OGBench `.npz` file or folder of
shards, a robomimic `.hdf5` file (`FILE.hdf5#KEY` for a filter key), a LeRobotDataset folder, a store folder,
or the folder of a server's recording.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rql_deploy.errors import UserError
from rql_deploy.progress import NoProgress, Progress

from .refusal import training_refusal
from .sources import (
    language_tasks,
    lost_by_merge,
    open_data,
    parse_read_options,
    recording_remarks,
    require_unsharded,
    unread_columns,
)
from .validation import compare_with_validation
from .writing import WrittenData, format_of, write_data, write_shards, write_split

if TYPE_CHECKING:
    from rql_deploy.train.data.readers.options import ReadOptions


@dataclass(frozen=True)
class DataReport:
    """What is in a data set, and whether it can be learned from."""

    task: str
    episodes: int
    rows: int
    warnings: tuple[str, ...]
    """What will hurt learning, one sentence each."""
    refused: str | None
    """Why training with the task's preset would refuse the data; None where it would not."""
    figures: Mapping[str, Any]
    """All figures as JSON data: lengths, rewards, ends, duplicates, fields, actions, validation, ..."""


def inspect_data(
    data: str,
    *,
    relabel: str | None = None,
    gamma: float = 0.99,
    h: int = 5,
    validation: str | None = None,
    plots: Path | None = None,
    page: Path | None = None,
    mapping: Sequence[str] = (),
    tasks: Sequence[int] = (),
    cameras: Sequence[str] = (),
    progress: Progress | None = None,
) -> DataReport:
    """Summarise a data set; the pictures of a store folder are read and compared with their hash.

    Args:
        relabel: the OGBench task whose rewards an OGBench file gets.
        gamma: discount to compare episode lengths with.
        h: actions per chunk; shorter episodes are pointed out.
        validation: validation data to compare with, where not the one that belongs to the format.
        plots: folder for PNG plots.
        page: HTML file to write the figures, with histograms, into; one that is there is replaced.
        mapping: `WHAT=KEY` words that name keys of the file, such as `action=actions`.
        tasks: only episodes of these language tasks of a LeRobotDataset.
        cameras: cameras that are read, `NAME[:HEIGHTxWIDTH]`.
    """
    from rql_deploy.train.data.folder import read_store, store_folders
    from rql_deploy.train.data.frame_files import verify_frames
    from rql_deploy.train.data.report import inspect_store
    from rql_deploy.train.data.store import TransitionStore

    options = parse_read_options(mapping, tasks, cameras, progress)
    opened = open_data(data, relabel, may_lack_rewards=True, options=options)
    store = opened.sample
    if not len(store) or not store.episodes:
        raise UserError(f"data set {store.dataset_id} is empty: collect some episodes first")
    store.validate_shapes()
    for folder in store_folders(Path(data)):
        verify_frames(folder, read_store(folder).images, progress)
    figures = inspect_store(store, gamma=gamma, h=h)
    figures["warnings"] += recording_remarks([data])
    if not isinstance(opened, TransitionStore):
        figures["shards"] = {"shards": len(opened.shards), "episodes": opened.episodes, "rows": len(opened)}
    figures["tasks"] = language_tasks(data)
    figures["validation"] = compare_with_validation(
        store, data, validation, relabel, figures["warnings"], options
    )
    figures["left_out"] = unread_columns([data], options)
    figures["training"] = training_refusal(data, opened, options)
    if plots is not None:
        from rql_deploy.train.data.plots import plot_store

        figures["plots"] = [str(path) for path in plot_store(store, plots)]
    if page is not None:
        from .page import write_data_page

        write_data_page(page, store, figures)
        figures["page"] = str(page)
    return DataReport(
        store.plant.task, store.episodes, len(store), tuple(figures["warnings"]), figures["training"], figures
    )


def convert(
    data: str,
    output: str,
    *,
    form: str | None = None,
    relabel: str | None = None,
    rate: float | None = None,
    action_mode: str = "",
    action_bounds: str = "",
    mapping: Sequence[str] = (),
    tasks: Sequence[int] = (),
    cameras: Sequence[str] = (),
    progress: Progress | None = None,
) -> WrittenData:
    """Write a data set in another format.

    Args:
        form: one of `data_writing.FORMATS`; else the one that `output` looks like.
        relabel: the OGBench task whose rewards an OGBench file gets.
        rate: control rate in Hz, where the data does not say it or says it wrongly.
        action_mode: `delta` or `absolute`, or `NAME=delta` for single dimensions, separated by commas.
        action_bounds: a TOML file of `[actions.NAME]` with low and high, `dataset`, or `[LOW,HIGH]`.
        mapping: `WHAT=KEY` words that name keys of the file, such as `action=actions`.
        tasks: only episodes of these language tasks of a LeRobotDataset.
        cameras: cameras that are read, `NAME[:HEIGHTxWIDTH]`.
    """
    from rql_deploy.train.data.shards import ShardedStore
    from rql_deploy.train.data.statements import Statements, outside_bounds

    form = form or format_of(output)
    options = parse_read_options(mapping, tasks, cameras, progress)
    stated = Statements(rate, action_mode, action_bounds)
    opened = stated.of_all(stated.of_one(open_data(data, relabel, options=options)))
    if isinstance(opened, ShardedStore):
        return write_shards(opened, output, form, progress or NoProgress()).with_lost(
            *_unread([data], options)
        )
    written = write_data(opened, output, form).with_lost(*outside_bounds(opened))
    return _with_lost_of_sources(written, [data], options)


def merge(
    data: Sequence[str], output: str, *, form: str | None = None, relabel: str | None = None
) -> WrittenData:
    """Join data sets of one plant in the given order."""
    from rql_deploy.train.data.edits import concatenate

    if len(data) < 2:
        raise UserError("one data set needs no joining: pass at least two")
    stores = [require_unsharded(open_data(name, relabel)) for name in data]
    written = write_data(concatenate(stores), output, form or format_of(output))
    return _with_lost_of_sources(written.with_lost(*lost_by_merge(stores)), data)


def split(
    data: str,
    output: str,
    validation: str,
    *,
    fraction: float = 0.1,
    seed: int = 0,
    form: str | None = None,
    relabel: str | None = None,
) -> WrittenData:
    """Divide a data set by whole episodes; a `fraction` of them, drawn by `seed`, goes to `validation`."""
    from rql_deploy.train.data import edits

    parts = edits.split(require_unsharded(open_data(data, relabel)), fraction, seed)
    return _with_lost_of_sources(write_split(*parts, output, validation, form or format_of(output)), [data])


def relabel(
    data: str,
    output: str,
    *,
    task: str | None = None,
    success: bool = False,
    all_successful: bool = False,
    sparse: bool = False,
    form: str | None = None,
) -> WrittenData:
    """Give a data set other rewards.

    Args:
        task: an OGBench task, whose rewards are computed from the recorded simulator states.
        success: rewards success - 1, and the end of the task at success.
        all_successful: the same for demonstrations that all succeeded in their last row.
        sparse: every reward other than 0 becomes -1; UserError where one is positive.
    """
    from rql_deploy.train.data import edits
    from rql_deploy.train.data.rewards import with_reward

    by_success = success or all_successful
    if not (task or by_success or sparse):
        raise UserError(
            "nothing says which rewards: pass --task TASK, --success, --all-successful or --sparse"
        )
    if task and by_success:
        raise UserError("--task and --success are two ways to say what success is: pass one of them")
    store = require_unsharded(open_data(data, task, may_lack_rewards=by_success))
    if by_success:
        store = edits.relabel_success(store, all_successful=all_successful)
    if sparse:
        store = with_reward(store, "sparse")
    return _with_lost_of_sources(write_data(store, output, form or format_of(output)), [data])


def _with_lost_of_sources(
    written: WrittenData, data: Sequence[str], options: ReadOptions | None = None
) -> WrittenData:
    return written.with_lost(*recording_remarks(data), *_unread(data, options))


def _unread(data: Sequence[str], options: ReadOptions | None = None) -> list[str]:
    columns = unread_columns(data, options)
    return [f"not read by training and so left behind: {', '.join(columns)}"] if columns else []
