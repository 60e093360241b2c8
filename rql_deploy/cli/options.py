"""Options and small helpers that several verbs share."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shlex
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType, MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from rql_deploy.errors import UserError
from rql_deploy.policy import DEFAULT_CANDIDATES, MAX_CANDIDATES

if TYPE_CHECKING:
    from rql_deploy.distributed.ray_cluster import RayPool

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_WORKERS = os.cpu_count() or 1
PRESETS: Mapping[str, str] = MappingProxyType(
    {
        "robosuite:Lift": "robosuite-lift",
        "robosuite:Stack": "robosuite-stack",
        "robosuite:Door": "robosuite-door",
        "robosuite:PickPlaceCan": "robosuite-can",
        "robosuite:NutAssemblySquare": "robosuite-square",
        # Not in the paper: its nearest relative.
        "ogbench:cube-single-play": "ogbench-cube-double-play",
        "ogbench:cube-double-play": "ogbench-cube-double-play",
        "ogbench:cube-triple-play": "ogbench-cube-triple-play",
        "ogbench:cube-quadruple-play": "ogbench-cube-quadruple-play-100m",
        "ogbench:scene-play": "ogbench-scene-play",
        "ogbench:puzzle-3x3-play": "ogbench-puzzle-3x3-play",
        "ogbench:puzzle-4x4-play": "ogbench-puzzle-4x4-play-100m",
        "ogbench:antmaze-large-navigate": "ogbench-antmaze-large-navigate",
        "ogbench:antmaze-giant-navigate": "ogbench-antmaze-giant-navigate",
        "ogbench:humanoidmaze-medium-navigate": "ogbench-humanoidmaze-medium-navigate",
        "ogbench:humanoidmaze-large-navigate": "ogbench-humanoidmaze-large-navigate",
    }
)
"""The preset that a task's data is best trained with, for the commands that say what to type next."""


def environment_options(function: F) -> F:
    """--robot, --controller, --control-rate and --horizon: the simulator's settings."""
    for option in reversed(
        (
            click.option("--robot", help="Arm that robosuite puts on the table.  [default: Panda]"),
            click.option(
                "--controller",
                help="robosuite arm controller that takes actions: OSC_POSE, OSC_POSITION, JOINT_VELOCITY, JOINT_POSITION (absolute).  "
                "[default: OSC_POSE]",
            ),
            click.option(
                "--control-rate",
                type=click.IntRange(1, 500),
                help="Actions per second.  [default: the task's; 20 for robosuite]",
            ),
            click.option(
                "--horizon",
                type=click.IntRange(1),
                help="Steps after which an episode has failed.  [default: the task's; 120 for robosuite:Lift]",
            ),
        )
    ):
        function = option(function)
    return function


def ray_option(function: F) -> F:
    """--ray-address of the cluster that takes the place of local processes."""
    return click.option(
        "--ray-address",
        help="Use a Ray cluster instead of --workers: 'auto', HOST:PORT or ray://HOST:PORT (pip install 'rql-deploy[ray]').",
    )(function)


def ray_pool(address: str | None, *shared: Path) -> RayPool | None:
    """A pool on the cluster at `address`, None for None; raises UserError where a node does not see one of the `shared` paths."""
    if address is None:
        return None
    from rql_deploy.distributed.ray_cluster import RayPool, require_seen

    pool = RayPool(address)
    for path in shared:
        require_seen(pool.ray, path)
    return pool


def candidates_option(function: F) -> F:
    """--candidates: chunks that each decision chooses among."""
    return click.option(
        "--candidates",
        default=DEFAULT_CANDIDATES,
        show_default=True,
        type=click.IntRange(1, MAX_CANDIDATES),
        help="Chunks per decision; the one with the highest V is played. 1 acts without looking at V.",
    )(function)


def noise_option(function: F) -> F:
    """--noise LOW:HIGH of the demonstrator."""
    return click.option(
        "--noise",
        default="0:2.2",
        show_default=True,
        help="Demonstrator noise LOW:HIGH; each episode draws its own level, so the data is of mixed quality. 0 is clean.",
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
    """'2:8,5:2' as (k, keep) pairs; raises UserError unless k rises and keep falls from the number of candidates."""
    schedule = []
    last_k, last_keep = 0, candidates
    for part in text.split(",") if text else ():
        k, _, keep = part.partition(":")
        pair = (int(k), int(keep)) if k.strip().isdecimal() and keep.strip().isdecimal() else (0, 0)
        if not (pair[0] > last_k and 1 <= pair[1] < last_keep):
            raise UserError(
                f"--prune takes K:KEEP,... with rising K from 1 and falling KEEP below --candidates {candidates}, not '{text}': "
                "try --candidates 16 --prune 2:8,5:2"
            )
        schedule.append(pair)
        last_k, last_keep = pair
    return tuple(schedule)


def describe_choice(candidates: int, prune: tuple[tuple[int, int], ...] = ()) -> str:
    """How a decision's chunk is chosen: 'the best of 16 chunks by V, 4 left after refinement step 5'."""
    if candidates == 1:
        return "one chunk per decision"
    return f"the best of {candidates} chunks by V" + "".join(
        f", {keep} left after refinement step {k}" for k, keep in prune
    )


class FiniteRange(click.FloatRange):
    """A number in a range; click's own lets NaN through, which lies in every range, and infinity."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if number is not None and not math.isfinite(number):
            self.fail(f"{value} is no finite number.", param, ctx)
        return number


def typed_again(*leave_out: str, command: Sequence[str] = ()) -> str:
    """The present command with the options that were typed, those named in `leave_out` left out; `command` instead of its name."""
    context = click.get_current_context()
    # However it was started: rql-deploy or python -m rql_deploy.
    verbs: list[str] = []
    above = context
    while above.parent is not None:
        verbs.insert(0, str(above.info_name))
        above = above.parent
    words = list(command) or ["rql-deploy", *verbs]
    for parameter in context.command.params:
        name = parameter.name or ""
        if context.get_parameter_source(name) is not ParameterSource.COMMANDLINE or name in leave_out:
            continue
        given = context.params[name]
        for value in given if isinstance(given, tuple) else (given,):
            if isinstance(parameter, click.Argument):
                words.append(str(value))
            elif isinstance(value, bool):
                words.append(parameter.opts[0] if value else parameter.secondary_opts[0])
            else:
                words += [parameter.opts[0], str(value)]
    return shlex.join(words)


def show_next(*commands: str) -> None:
    """End a long command by saying what to type next."""
    click.echo("\nNext:")
    for command in commands:
        click.echo(f"  {command}")


def echo_json(data: Any) -> None:
    """One JSON document on standard output."""
    click.echo(json.dumps(data, indent=1))


def preset_option(task: str) -> str:
    """` --preset NAME` for a task such as `ogbench:scene-play-singletask-task3-v0`; nothing where there is none for it."""
    name = PRESETS.get(task.removesuffix("-v0").partition("-singletask")[0])
    return f" --preset {name}" if name else ""


@contextlib.contextmanager
def finish_first(what: str) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM within the block only says that `what` is finished first; a second one raises KeyboardInterrupt."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked = False

    def wait(_number: int, _frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        click.echo(f"\n{what} is finished first; once more to give it up", err=True)

    previous = {number: signal.signal(number, wait) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
