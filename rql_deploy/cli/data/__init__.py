"""`rql-deploy data`: look at data sets, and turn one into another."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from rql_deploy.cli.options import (
    FiniteRange,
    echo_json,
    preset_words,
    read_options,
    read_words,
    show_next,
    statement_options,
)
from rql_deploy.progress import TerminalProgress

from .fix import fix
from .label import command as label
from .options import format_option, json_option, output_option, relabel_option, show_written


@click.group("data")
def command() -> None:
    """Look at, convert, join, split, relabel and correct data sets.

    DATA is what `train --dataset` takes: a path or a Minari id. Formats are Minari, OGBench .npz (also a
    folder of shards), robomimic and Isaac Lab .hdf5 (FILE.hdf5#KEY for a filter key), LeRobot, D4RL, d3rlpy,
    diffusion-policy's zarr, MCAP logs of ROS 2, and store folders of rql-deploy (docs/data.md). It may also
    be the folder of `rql-deploy serve --record`; `convert` turns its episodes into one of these formats.
    """


@command.command("inspect")
@click.argument("data")
@relabel_option
@click.option(
    "--gamma",
    default=0.99,
    show_default=True,
    type=FiniteRange(0, 1, max_open=True),
    help="Discount to compare the episodes' lengths with.",
)
@click.option(
    "--window",
    "h",
    default=5,
    show_default=True,
    type=click.IntRange(1),
    help="Actions per chunk; warns of episodes that are shorter.",
)
@click.option(
    "--validation",
    metavar="DATA",
    help="Validation data to compare with.  [default: FILE-val.npz, or robomimic's filter key valid]",
)
@click.option(
    "--plots", type=click.Path(path_type=Path, file_okay=False), help="Folder to write plots (PNG) into."
)
@click.option(
    "--report",
    type=click.Path(path_type=Path, dir_okay=False),
    help="HTML file to write: warnings, histograms, coverage of bounds, where success lies. It needs nothing "
    "else, no network either.",
)
@read_options
@json_option
def inspect(
    data: str,
    relabel: str | None,
    gamma: float,
    h: int,
    validation: str | None,
    plots: Path | None,
    report: Path | None,
    mapping: tuple[str, ...],
    tasks: tuple[int, ...],
    cameras: tuple[str, ...],
    as_json: bool,
) -> None:
    """Summarise DATA on one page: what is in it, and whether it can be learned from."""
    from rql_deploy.workflows.data import inspect_data

    found = inspect_data(
        data,
        relabel=relabel,
        gamma=gamma,
        h=h,
        validation=validation,
        plots=plots,
        page=report,
        mapping=mapping,
        tasks=tasks,
        cameras=cameras,
        progress=TerminalProgress(),
    )
    if as_json:
        echo_json(found.figures)
        return
    from .page import page

    click.echo(page(found.figures))
    words = read_words(mapping, tasks, cameras)
    if found.refused is not None:
        if cures := _cures(data, found.figures, words):
            show_next(*cures)
        return
    seen = bool(found.figures["cameras"])
    chosen = preset_words(found.task, pictures=seen) + (["--set", f"relabel={relabel}"] if relabel else [])
    show_next(["rql-deploy", "train", "--dataset", data, *chosen, *words, "--output", "runs/first"])


def _cures(data: str, figures: Mapping[str, Any], words: list[str]) -> list[list[str]]:
    """Commands that make a data set that training takes, where a command can."""
    from rql_deploy.recording_files import is_recording

    if is_recording(Path(data)):
        return [["rql-deploy", "data", "convert", data, "--output", "data/converted"]]
    rows = (*figures["fields"], *figures["actions"], figures["rewards"])
    fixes = ["--drop-not-finite"] if any(row["rows_not_finite"] for row in rows) else []
    fixes += ["--clip-actions"] if any(action["rows_outside"] for action in figures["actions"]) else []
    if fixes:
        return [["rql-deploy", "data", "fix", data, *fixes, *words, "--output", "data/fixed"]]
    if not figures["rewards"]["inform"] and figures["successes"]:
        relabel = ["--success", "--output", "data/relabelled"]
        if not words:
            return [["rql-deploy", "data", "relabel", data, *relabel]]
        # `relabel` does not take the words that name keys.
        converted = "data/converted"
        return [
            ["rql-deploy", "data", "convert", data, *words, "--output", converted],
            ["rql-deploy", "data", "relabel", converted, *relabel],
        ]
    train, longest = ["rql-deploy", "train", "--dataset", data, *words], int(figures["lengths"]["max"])
    if not figures["rewards"]["inform"]:
        train += ["--set", "rql.policy_value_weight=0"]
    elif longest > 1:
        train += ["--set", f"rql.h={longest - 1}"]
    else:
        return []
    return [[*train, "--output", "runs/first"]]


@command.command("convert")
@click.argument("data")
@output_option
@format_option
@relabel_option
@statement_options
@read_options
@json_option
def convert(
    data: str,
    output: str,
    form: str | None,
    relabel: str | None,
    rate: float | None,
    action_mode: str,
    action_bounds: str,
    mapping: tuple[str, ...],
    tasks: tuple[int, ...],
    cameras: tuple[str, ...],
    as_json: bool,
) -> None:
    """Write DATA in another format, and say what that format cannot hold."""
    from rql_deploy.workflows import data as workflow

    written = workflow.convert(
        data,
        output,
        form=form,
        relabel=relabel,
        rate=rate,
        action_mode=action_mode,
        action_bounds=action_bounds,
        mapping=mapping,
        tasks=tasks,
        cameras=cameras,
        progress=TerminalProgress(),
    )
    show_written(written, as_json)


@command.command("merge")
@click.argument("data", nargs=-1, required=True)
@output_option
@format_option
@relabel_option
@json_option
def merge(data: tuple[str, ...], output: str, form: str | None, relabel: str | None, as_json: bool) -> None:
    """Join several data sets of one plant, in the given order."""
    from rql_deploy.workflows import data as workflow

    show_written(workflow.merge(data, output, form=form, relabel=relabel), as_json)


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
    "--seed",
    default=0,
    show_default=True,
    type=click.IntRange(0),
    help="Seed of the draw of validation episodes.",
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
    from rql_deploy.workflows import data as workflow

    written = workflow.split(
        data, output, validation, fraction=fraction, seed=seed, form=form, relabel=relabel
    )
    show_written(written, as_json)


@command.command("relabel")
@click.argument("data")
@output_option
@click.option("--task", help="OGBench task to compute rewards for, from the recorded simulator states.")
@click.option("--success", is_flag=True, help="Rewards of success - 1; the task ends at success.")
@click.option(
    "--all-successful",
    is_flag=True,
    help="Like --success, for demonstrations that all succeeded in their last row.",
)
@click.option(
    "--sparse", is_flag=True, help="Replace every reward other than 0 by -1; an error where one is positive."
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
    """Replace the rewards of DATA."""
    from rql_deploy.workflows import data as workflow

    written = workflow.relabel(
        data, output, task=task, success=success, all_successful=all_successful, sparse=sparse, form=form
    )
    show_written(written, as_json)


command.add_command(fix)
command.add_command(label)
