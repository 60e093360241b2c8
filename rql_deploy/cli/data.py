"""`rql-deploy data`: look at data sets, and turn one into another."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rql_deploy.errors import UserError

from .options import echo_json, show_next
from .presets import preset_option

if TYPE_CHECKING:
    from rql_deploy.train.shards import ShardedStore
    from rql_deploy.train.store import TransitionStore

FORMATS = ("store", "ogbench", "minari", "minari-arrow", "robomimic", "lerobot")

relabel_option = click.option("--relabel", metavar="TASK", help="OGBench task whose rewards a file without any gets.")
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
    "--gamma", default=0.99, show_default=True, type=click.FloatRange(0, 1, max_open=True), help="Discount to compare lengths with."
)
@click.option("--window", "h", default=5, show_default=True, type=click.IntRange(1), help="Actions per chunk, for short episodes.")
@click.option(
    "--validation", metavar="DATA", help="Validation data to compare with.  [default: FILE-val.npz, or robomimic's filter key valid]"
)
@click.option("--plots", type=click.Path(path_type=Path, file_okay=False), help="Folder to write PNG pictures into.")
@json_option
def inspect(data: str, relabel: str | None, gamma: float, h: int, validation: str | None, plots: Path | None, as_json: bool) -> None:
    """Say on one page what is in DATA and whether it can be learned from."""
    from rql_deploy.train.data_report import inspect_store

    from .data_validation import compare

    opened = open_data(data, relabel, may_lack_rewards=True)
    store = opened.sample
    if not len(store) or not store.episodes:
        raise UserError(f"data set {store.dataset_id} is empty: collect some episodes first")
    store.validate_shapes()
    report = inspect_store(store, gamma=gamma, h=h)
    if opened is not store:
        report["warnings"].insert(
            0, f"this is the first of several shards; all of them hold {opened.episodes:,} episodes, {len(opened):,} rows"
        )
    report["validation"] = compare(store, data, validation, relabel, report["warnings"])
    report["left_out"] = _left_out(data)
    if plots is not None:
        from rql_deploy.train.data_plots import plot_store

        report["plots"] = [str(path) for path in plot_store(store, plots)]
    if as_json:
        echo_json(report)
        return
    from .data_page import page

    click.echo(page(report))
    chosen = preset_option(store.plant.task) + (f" --set relabel={relabel}" if relabel else "")
    show_next(f"rql-deploy train --dataset {data}{chosen} --output runs/first")


@command.command("convert")
@click.argument("data")
@output_option
@format_option
@relabel_option
@json_option
def convert(data: str, output: str, form: str | None, relabel: str | None, as_json: bool) -> None:
    """Write DATA in another format; what that format cannot hold is said."""
    from rql_deploy.train.shards import ShardedStore

    opened = open_data(data, relabel)
    if isinstance(opened, ShardedStore):
        _convert_shards(opened, output, form or chosen_format(output), as_json)
        return
    _finish(opened, output, form, as_json, left=_left_out(data), remarks=_remarks(data))


@command.command("merge")
@click.argument("data", nargs=-1, required=True)
@output_option
@format_option
@relabel_option
@json_option
def merge(data: tuple[str, ...], output: str, form: str | None, relabel: str | None, as_json: bool) -> None:
    """Join several data sets of one plant, in the given order."""
    from rql_deploy.train.store import concatenate

    if len(data) < 2:
        raise UserError("one data set needs no joining: pass at least two")
    _finish(concatenate([whole(open_data(name, relabel)) for name in data]), output, form, as_json, left=_left_out(*data))


@command.command("split")
@click.argument("data")
@output_option
@click.option("--validation", required=True, help="Where the validation episodes go, in the same format.")
@click.option("--fraction", default=0.1, show_default=True, type=click.FloatRange(0, 1), help="Share of the episodes for validation.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Which episodes are drawn.")
@format_option
@relabel_option
@json_option
def split(
    data: str, output: str, validation: str, fraction: float, seed: int, form: str | None, relabel: str | None, as_json: bool
) -> None:
    """Divide DATA by whole episodes into training and validation data."""
    from rql_deploy.train import editing

    train, held = editing.split(whole(open_data(data, relabel)), fraction, seed)
    for target in (output, validation):
        _refuse_existing(target)
    form = form or chosen_format(output)
    write_data(held, validation, form)
    _finish(train, output, form, as_json, extra={"validation": validation, "validation_episodes": held.episodes}, left=_left_out(data))


@command.command("relabel")
@click.argument("data")
@output_option
@click.option("--task", help="OGBench task to compute rewards for, from the recorded simulator states.")
@click.option("--success", is_flag=True, help="Rewards success - 1, and the end of the task at success.")
@click.option("--all-successful", is_flag=True, help="As --success, for demonstrations of which every one succeeded in its last row.")
@click.option("--sparse", is_flag=True, help="Every reward other than 0 becomes -1; refused where one is positive.")
@format_option
@json_option
def relabel_command(
    data: str, output: str, task: str | None, success: bool, all_successful: bool, sparse: bool, form: str | None, as_json: bool
) -> None:
    """Give DATA other rewards."""
    from rql_deploy.train import editing
    from rql_deploy.train.rewards import with_reward

    if not (task or success or all_successful or sparse):
        raise UserError("nothing says which rewards: pass --task TASK, --success, --all-successful or --sparse")
    if task and (success or all_successful):
        raise UserError("--task and --success are two ways to say what success is: pass one of them")
    store = whole(open_data(data, task, may_lack_rewards=not task))
    if success or all_successful:
        store = editing.reward_success(store, all_successful=all_successful)
    if sparse:
        store = with_reward(store, "sparse")
    _finish(store, output, form, as_json, left=_left_out(data))


def open_data(name: str, relabel: str | None = None, *, may_lack_rewards: bool = False) -> TransitionStore | ShardedStore:
    """A data set; rewards it lacks are those of the OGBench task `relabel`, or 0 where it `may_lack_rewards`."""
    from rql_deploy.train.readers import open_store

    from .data_recording import is_recording, read_recorded

    if is_recording(name):
        if relabel:
            raise UserError(
                f"recording {name} lacks the simulator's states that the rewards of {relabel} are computed from: "
                "leave the task out, and convert it with the rewards that its loops reported"
            )
        return read_recorded(name).store
    rewards: Any = _NoRewards(Path(name).name.removesuffix(".npz")) if may_lack_rewards else None
    if relabel:
        from rql_deploy.sim.ogbench_rewards import OGBenchRewards

        rewards = OGBenchRewards(relabel)
    try:
        return open_store(name, relabel=rewards)
    except UserError as error:
        raise UserError(str(error).replace("--set relabel=", "--relabel ")) from error


class _NoRewards:
    """Stands in where a file has no rewards: all 0."""

    def __init__(self, name: str):
        self.name = name

    def __call__(self, arrays: Any) -> Any:
        import numpy as np

        rows = len(next(iter(arrays.values())))
        return np.zeros(rows, np.float32), np.ones(rows, np.float32)


def whole(opened: TransitionStore | ShardedStore) -> TransitionStore:
    """A data set that is not sharded; raises UserError for one that is."""
    from rql_deploy.train.store import TransitionStore

    if not isinstance(opened, TransitionStore):
        raise UserError(f"data set {opened.dataset_id} is in shards: pass its files one by one, or convert it to stores first")
    return opened


def chosen_format(output: str) -> str:
    """The format that `output` looks like."""
    for suffix, form in ((".npz", "ogbench"), (".hdf5", "robomimic"), (".h5", "robomimic")):
        if output.endswith(suffix):
            return form
    return "minari" if _is_id(output) else "store"


def write_data(store: TransitionStore, output: str, form: str) -> tuple[Path, list[str]]:
    """Write the data set; returns where it is and what was lost."""
    if form.startswith("minari"):
        from .data_minari import write_minari

        store.validate_rows()
        return write_minari(store, output, "arrow" if form == "minari-arrow" else "hdf5")
    from rql_deploy.train.writers import write

    wanted = {"ogbench": (".npz",), "robomimic": (".hdf5", ".h5")}.get(form)
    if wanted and not output.endswith(wanted):
        raise UserError(f"a file of format {form} ends in {wanted[0]}: pass --output {output}{wanted[0]}")
    return Path(output), write(store, Path(output), form)


def _left_out(*names: str) -> list[str]:
    from rql_deploy.train.readers.left_out import left_out

    from .data_recording import is_recording

    return sorted({key for name in names if not is_recording(name) for key in left_out(name)})


def _remarks(*names: str) -> list[str]:
    from .data_recording import is_recording, read_recorded

    return [sentence for name in names if is_recording(name) for sentence in read_recorded(name).remarks]


def _finish(
    store: TransitionStore,
    output: str,
    form: str | None,
    as_json: bool,
    extra: dict[str, Any] | None = None,
    left: list[str] | None = None,
    remarks: list[str] | None = None,
) -> None:
    form = form or chosen_format(output)
    folder, lost = write_data(store, output, form)
    lost += remarks or []
    if left:
        lost = [*lost, f"not read by training and so left behind: {', '.join(left)}"]
    result = {"dataset": str(folder), "format": form, "episodes": store.episodes, "rows": len(store), "lost": lost, **(extra or {})}
    if as_json:
        echo_json(result)
        return
    click.echo(f"{store.episodes:,} episodes, {len(store):,} rows in {folder} ({form})")
    for sentence in lost or ["nothing is lost: all that training reads is there"]:
        click.echo(f"  {sentence}")
    show_next(f"rql-deploy data inspect {output}")


def _convert_shards(opened: ShardedStore, output: str, form: str, as_json: bool) -> None:
    from rql_deploy.progress import ProgressLine

    if form != "store":
        raise UserError(
            f"data set {opened.dataset_id} is in shards, which only become stores: pass --to store, or convert its files one by one"
        )
    _refuse_existing(output)
    progress = ProgressLine("convert", len(opened.shards), "shards")
    for done, shard in enumerate(opened.shards):
        write_data(shard.load(), str(Path(output) / shard.name.removesuffix(".npz")), "store")
        progress.update(done + 1)
    progress.finish(len(opened.shards))
    if as_json:
        echo_json({"dataset": output, "format": form, "episodes": opened.episodes, "rows": len(opened), "lost": []})
        return
    click.echo(f"{len(opened.shards)} shards in {output}")
    show_next(f"rql-deploy data inspect {output}")


def _refuse_existing(target: str) -> None:
    if not _is_id(target) and Path(target).exists():
        raise UserError(f"{target} exists already: pass another path or remove it first")


def _is_id(text: str) -> bool:
    import re

    return bool(re.match(r"^(?:[\w-]{2,}/)*[\w-]{2,}-v\d+$", text))
