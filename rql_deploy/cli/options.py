"""Options and small helpers that several verbs share."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from rql_deploy.errors import UserError
from rql_deploy.policy import DEFAULT_CANDIDATES, MAX_CANDIDATES, MAX_PESSIMISM
from rql_deploy.workflows.presets import preset_of
from rql_deploy.workflows.processes import DEFAULT_WORKERS

F = TypeVar("F", bound=Callable[..., Any])


def environment_options(function: F) -> F:
    """--robot, --controller, --control-rate and --horizon: the simulator's settings."""
    for option in reversed(
        (
            click.option(
                "--robot",
                help="Arm that robosuite puts on the table: Panda, Sawyer, UR5e, IIWA, Kinova3 or Jaco.  "
                "[default: Panda]",
            ),
            click.option(
                "--controller",
                help="robosuite arm controller: OSC_POSE, OSC_POSITION, JOINT_VELOCITY, or absolute ones: "
                "JOINT_POSITION, OSC_POSE_ABSOLUTE, OSC_POSE_ABSOLUTE_6D.  [default: OSC_POSE]",
            ),
            click.option(
                "--control-rate",
                type=click.IntRange(1, 500),
                help="Actions per second.  [default: the task's; 20 for robosuite]",
            ),
            click.option(
                "--horizon",
                type=click.IntRange(1),
                help="Steps after which an episode has failed.  [default: the task's; 120 for "
                "robosuite:Lift]",
            ),
        )
    ):
        function = option(function)
    return function


def statement_options(function: F) -> F:
    """--rate, --action-mode and --action-bounds: the user's word on what data sets do not say."""
    for option in reversed(
        (
            click.option(
                "--rate",
                type=FiniteRange(0, min_open=True),
                help="Control rate in Hz, where the data does not say it or says it wrongly.",
            ),
            click.option(
                "--action-mode",
                default="",
                metavar="MODE",
                help="What the data's actions are: delta (changes, zero in a hold) or absolute (targets, "
                "repeated in a hold); delta,gripper=absolute excepts a dimension.",
            ),
            click.option(
                "--action-bounds",
                default="",
                metavar="BOUNDS",
                help="Bounds of the data's actions: a TOML file of [actions.NAME] with low and high, "
                "'dataset' for the data's own range, or [LOW,HIGH].",
            ),
        )
    ):
        function = option(function)
    return function


camera_option = click.option(
    "--camera",
    "cameras",
    multiple=True,
    metavar="NAME[:HxW]",
    help="Read this camera, its pictures made HEIGHTxWIDTH; NAME:HxW:bgr says that bytes are in the order "
    "BGR. Repeatable.",
)
"""A camera of a data set."""


simulated_camera_option = click.option(
    "--camera",
    "cameras",
    multiple=True,
    metavar="NAME[:HxW]",
    help="Record this camera of the simulator at HEIGHTxWIDTH pixels (64x64 where nothing is said). "
    "Repeatable.",
)
"""A camera of a simulated task."""


def read_options(function: F) -> F:
    """--map, --task-index and --camera: how a data set's files are read."""
    for option in reversed(
        (
            click.option(
                "--map",
                "mapping",
                multiple=True,
                metavar="WHAT=KEY[,KEY...]",
                help="Read these keys of DATA as WHAT: action, reward, done, terminated, truncated, success, "
                "mask, valid, observation.NAME. Several keys stand side by side; none leaves it out. "
                "Repeatable.",
            ),
            click.option(
                "--task-index",
                "tasks",
                multiple=True,
                type=click.IntRange(0),
                help="Only episodes of this language task of a LeRobotDataset. Repeatable.",
            ),
            camera_option,
        )
    ):
        function = option(function)
    return function


def read_words(mapping: Sequence[str], tasks: Sequence[int], cameras: Sequence[str]) -> list[str]:
    """The words of `read_options`, for the command to type next."""
    words = [word for entry in mapping for word in ("--map", entry)]
    words += [word for task in tasks for word in ("--task-index", str(task))]
    words += [word for camera in cameras for word in ("--camera", camera)]
    return words


def run_options(function: F) -> F:
    """--set, --seed and --resume of a run."""
    for option in reversed(
        (
            click.option(
                "--set",
                "overrides",
                multiple=True,
                metavar="KEY=VALUE",
                help="Override a setting, e.g. --set rql.alpha=3. Repeatable.",
            ),
            click.option("--seed", type=click.IntRange(0), help="Seed of the run (same as --set seed=N)."),
            click.option(
                "--resume", is_flag=True, help="Continue the run in --output from its latest checkpoint."
            ),
        )
    ):
        function = option(function)
    return function


def evaluation_options(episodes: int) -> Callable[[F], F]:
    """--evaluate-episodes, `episodes` by default, and --evaluate-workers, beside training."""

    def add(function: F) -> F:
        for name, default, text in (
            ("--evaluate-workers", 1, "Simulator processes that run beside training."),
            ("--evaluate-episodes", episodes, "Episodes of one evaluation."),
        ):
            kind = click.IntRange(1)
            function = click.option(name, default=default, show_default=True, type=kind, help=text)(function)
        return function

    return add


def workers_option(function: F) -> F:
    """--workers: simulator processes of this machine."""
    return click.option(
        "--workers",
        default=DEFAULT_WORKERS,
        show_default="one per core",
        type=click.IntRange(1),
        help="Simulator processes.",
    )(function)


def ray_option(function: F) -> F:
    """--ray-address of the cluster that takes the place of local processes."""
    return click.option(
        "--ray-address",
        help="Use a Ray cluster instead of --workers: 'auto', HOST:PORT or ray://HOST:PORT "
        "(pip install 'rql-deploy[ray]').",
    )(function)


def candidates_option(function: F) -> F:
    """--candidates: chunks that each decision chooses among."""
    return click.option(
        "--candidates",
        default=DEFAULT_CANDIDATES,
        show_default=True,
        type=click.IntRange(1, MAX_CANDIDATES),
        help="Chunks per decision, of which the one with the highest V is played; 1 plays the only chunk.",
    )(function)


def playing_options(function: F) -> F:
    """--pessimism and --replan-every: which chunk is played, and how much of it."""
    for option in reversed(
        (
            click.option(
                "--pessimism",
                default=0.0,
                show_default=True,
                type=FiniteRange(0.0, MAX_PESSIMISM),
                metavar="C",
                help="Choose among candidates by V minus C times its spread over the value members.",
            ),
            click.option(
                "--replan-every",
                type=click.IntRange(1),
                metavar="M",
                help="Play the first M actions of each chunk only.  [default: all]",
            ),
        )
    ):
        function = option(function)
    return function


def noise_option(function: F) -> F:
    """--noise LOW:HIGH of the demonstrator."""
    return click.option(
        "--noise",
        default="0:2.2",
        show_default=True,
        help="Noise of the demonstrator, LOW:HIGH: each episode draws its own level, so the data is of mixed "
        "quality. 0 is clean.",
    )(function)


def parse_noise(text: str) -> tuple[float, float]:
    """'0:2.2' or '1' as a range."""
    low, _, high = text.partition(":")
    try:
        bounds = float(low), float(high or low)
    except ValueError:
        bounds = (1.0, 0.0)
    if not 0.0 <= bounds[0] <= bounds[1] < float("inf"):
        raise UserError(f"--noise takes LOW:HIGH with 0 <= LOW <= HIGH, not '{text}': try --noise 0:2.2")
    return bounds


def parse_prune(text: str, candidates: int) -> tuple[tuple[int, int], ...]:
    """'2:8,5:2' as (k, keep) pairs; raises UserError unless k rises and keep falls."""
    schedule = []
    last_k, last_keep = 0, candidates
    for part in text.split(",") if text else ():
        k, _, keep = part.partition(":")
        pair = (int(k), int(keep)) if k.strip().isdecimal() and keep.strip().isdecimal() else (0, 0)
        if not (pair[0] > last_k and 1 <= pair[1] < last_keep):
            raise UserError(
                "--prune takes K:KEEP,... with rising K from 1 and falling KEEP below --candidates "
                f"{candidates}, "
                f"not '{text}': try --candidates 16 --prune 2:8,5:2"
            )
        schedule.append(pair)
        last_k, last_keep = pair
    return tuple(schedule)


class FiniteRange(click.FloatRange):
    """A finite number in a range; click's own type accepts NaN and infinity."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if number is not None and not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


def rebuild_command(*without: str, command: Sequence[str] = ()) -> list[str]:
    """The words of the command line that is running, to be typed again.

    Args:
        without: parameters to leave out, by their names.
        command: words to begin with, instead of `rql-deploy VERB`.
    """
    context = click.get_current_context()
    verbs: list[str] = []
    level = context
    while level.parent is not None:
        verbs.insert(0, str(level.info_name))
        level = level.parent
    words = list(command) or ["rql-deploy", *verbs]
    for parameter in context.command.params:
        name = parameter.name or ""
        if context.get_parameter_source(name) is not ParameterSource.COMMANDLINE or name in without:
            continue
        given = context.params[name]
        for value in given if isinstance(given, tuple) else (given,):
            if isinstance(parameter, click.Argument):
                words.append(str(value))
            elif isinstance(value, bool):
                words.append(parameter.opts[0] if value else parameter.secondary_opts[0])
            else:
                words += [parameter.opts[0], str(value)]
    return words


def show_next(*commands: Sequence[str]) -> None:
    """End a long command by saying what to type next: the words of each command, quoted where a shell asks
    for it."""
    click.echo("\nNext:")
    for words in commands:
        click.echo(f"  {shlex.join(words)}")


def echo_json(data: Any) -> None:
    """One JSON document on standard output."""
    click.echo(json.dumps(data, indent=1))


def preset_words(task: str, *, pictures: bool = False) -> list[str]:
    """`--preset NAME` for a task, seen through cameras or not; nothing where there is no preset for it."""
    name = preset_of(task, pictures=pictures)
    return ["--preset", name] if name else []
