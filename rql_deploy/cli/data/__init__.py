"""`rql-deploy data`: look at data sets, and turn one into another."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from rql_deploy.cli.options import FiniteRange, echo_json, preset_option, show_next
from rql_deploy.errors import UserError

from .input import left_out_of, open_data, remarks_of, unlike, whole
from .output import FORMATS, chosen_format, convert_shards, finish, write_both, write_data

relabel_option = click.option(
    "--relabel", metavar="TASK", help="OGBench task whose rewards an OGBench file gets."
)
format_option = click.option(
    "--to",
    "form",
    type=click.Choice(FORMATS),
    help="Format; else by OUTPUT: .npz ogbench, .hdf5 robomimic, a Minari id minari, else store.",
)
output_option = click.option("--output", required=True, help="File or folder to write, or a Minari id.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print as JSON.")


@click.group("data")
def command() -> None:
    """Look at, convert, join, split and relabel data sets.

    DATA is what `train --dataset` takes: a Minari id, folder or file, an OGBench .npz file or folder of shards, a robomimic .hdf5 file
    (FILE.hdf5#KEY for a filter key), a LeRobotDataset folder, or our own store; and the folder of `rql-deploy serve --record`, whose
    episodes become one of these by `convert`.
    """


@command.command("inspect")
@click.argument("data")
@relabel_option
@click.option(
    "--gamma",
    default=0.99,
    show_default=True,
    type=FiniteRange(0, 1, max_open=True),
    help="Discount to compare lengths with.",
)
@click.option(
    "--window",
    "h",
    default=5,
    show_default=True,
    type=click.IntRange(1),
    help="Actions per chunk, for short episodes.",
)
@click.option(
    "--validation",
    metavar="DATA",
    help="Validation data to compare with.  [default: FILE-val.npz, or robomimic's filter key valid]",
)
@click.option(
    "--plots", type=click.Path(path_type=Path, file_okay=False), help="Folder to write PNG pictures into."
)
@json_option
def inspect(
    data: str,
    relabel: str | None,
    gamma: float,
    h: int,
    validation: str | None,
    plots: Path | None,
    as_json: bool,
) -> None:
    """Say on one page what is in DATA and whether it can be learned from."""
    from rql_deploy.train.data.report import inspect_store
    from rql_deploy.train.data.store import TransitionStore

    from .validation import compare

    opened = open_data(data, relabel, may_lack_rewards=True)
    store = opened.sample
    if not len(store) or not store.episodes:
        raise UserError(f"data set {store.dataset_id} is empty: collect some episodes first")
    store.validate_shapes()
    report = inspect_store(store, gamma=gamma, h=h)
    report["warnings"] += remarks_of(data)
    if not isinstance(opened, TransitionStore):
        report["shards"] = {"shards": len(opened.shards), "episodes": opened.episodes, "rows": len(opened)}
    report["validation"] = compare(store, data, validation, relabel, report["warnings"])
    report["left_out"] = left_out_of(data)
    if plots is not None:
        from rql_deploy.train.data.plots import plot_store

        report["plots"] = [str(path) for path in plot_store(store, plots)]
    if as_json:
        echo_json(report)
        return
    from .page import page

    click.echo(page(report))
    chosen = preset_option(store.plant.task) + (f" --set relabel={relabel}" if relabel else "")
    show_next(f"rql-deploy train --dataset {shlex.quote(data)}{chosen} --output runs/first")


@command.command("convert")
@click.argument("data")
@output_option
@format_option
@relabel_option
@click.option(
    "--control-rate",
    type=FiniteRange(0, min_open=True),
    help="Control rate in Hz, where DATA does not say it or says it wrongly.",
)
@json_option
def convert(
    data: str, output: str, form: str | None, relabel: str | None, control_rate: float | None, as_json: bool
) -> None:
    """Write DATA in another format; what that format cannot hold is said."""
    from rql_deploy.train.data.edits import with_control_rate
    from rql_deploy.train.data.shards import ShardedStore

    form = form or chosen_format(output)
    opened, left = open_data(data, relabel), left_out_of(data)
    if isinstance(opened, ShardedStore):
        if control_rate is not None:
            raise UserError("--control-rate is for sets that are not in shards: convert the files one by one")
        convert_shards(opened, output, form, as_json, left)
        return
    if control_rate is not None:
        opened = with_control_rate(opened, control_rate)
    folder, lost = write_data(opened, output, form)
    finish(opened, folder, form, as_json, lost + remarks_of(data), left=left)


@command.command("merge")
@click.argument("data", nargs=-1, required=True)
@output_option
@format_option
@relabel_option
@json_option
def merge(data: tuple[str, ...], output: str, form: str | None, relabel: str | None, as_json: bool) -> None:
    """Join several data sets of one plant, in the given order."""
    from rql_deploy.train.data.store import concatenate

    if len(data) < 2:
        raise UserError("one data set needs no joining: pass at least two")
    form = form or chosen_format(output)
    stores = [whole(open_data(name, relabel)) for name in data]
    joined, left = concatenate(stores), left_out_of(*data)
    folder, lost = write_data(joined, output, form)
    finish(joined, folder, form, as_json, lost + unlike(stores) + remarks_of(*data), left=left)


@command.command("split")
@click.argument("data")
@output_option
@click.option("--validation", required=True, help="Where the validation episodes go, in the same format.")
@click.option(
    "--fraction",
    default=0.1,
    show_default=True,
    type=FiniteRange(0, 1),
    help="Share of the episodes for validation.",
)
@click.option(
    "--seed", default=0, show_default=True, type=click.IntRange(0), help="Which episodes are drawn."
)
@format_option
@relabel_option
@json_option
def split(
    data: str,
    output: str,
    validation: str,
    fraction: float,
    seed: int,
    form: str | None,
    relabel: str | None,
    as_json: bool,
) -> None:
    """Divide DATA by whole episodes into training and validation data."""
    from rql_deploy.train.data import edits

    form = form or chosen_format(output)
    train, held = edits.split(whole(open_data(data, relabel)), fraction, seed)
    left = left_out_of(data)
    folder, there, lost = write_both(train, held, output, validation, form)
    extra = {"validation": str(there), "validation_episodes": held.episodes}
    finish(train, folder, form, as_json, lost + remarks_of(data), left=left, extra=extra)


@command.command("relabel")
@click.argument("data")
@output_option
@click.option("--task", help="OGBench task to compute rewards for, from the recorded simulator states.")
@click.option("--success", is_flag=True, help="Rewards success - 1, and the end of the task at success.")
@click.option(
    "--all-successful",
    is_flag=True,
    help="As --success, for demonstrations of which every one succeeded in its last row.",
)
@click.option(
    "--sparse", is_flag=True, help="Every reward other than 0 becomes -1; refused where one is positive."
)
@format_option
@json_option
def relabel_command(
    data: str,
    output: str,
    task: str | None,
    success: bool,
    all_successful: bool,
    sparse: bool,
    form: str | None,
    as_json: bool,
) -> None:
    """Give DATA other rewards."""
    from rql_deploy.train.data import edits
    from rql_deploy.train.data.rewards import with_reward

    if not (task or success or all_successful or sparse):
        raise UserError(
            "nothing says which rewards: pass --task TASK, --success, --all-successful or --sparse"
        )
    if task and (success or all_successful):
        raise UserError("--task and --success are two ways to say what success is: pass one of them")
    form = form or chosen_format(output)
    store = whole(open_data(data, task, may_lack_rewards=success or all_successful))
    if success or all_successful:
        store = edits.reward_success(store, all_successful=all_successful)
    if sparse:
        store = with_reward(store, "sparse")
    left = left_out_of(data)
    folder, lost = write_data(store, output, form)
    finish(store, folder, form, as_json, lost + remarks_of(data), left=left)
