"""Training and export of a generation: the commands that a user would type, each in a process of its own.

The process ends with its parent, so that whoever goes on after a crash finds nobody at work. What it leaves
is a checkpoint to resume from, a complete bundle, or nothing.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rql_deploy.errors import UserError
from rql_deploy.progress import Progress

from ..data.names import DataNames
from ..demo.commands import program, stop
from ..training_evaluator import NICENESS

if TYPE_CHECKING:
    from rql_deploy.contract import PlantDescription
    from rql_deploy.train.checkpoints.header import CheckpointHeader

ATTEMPTS = 3
"""How often a command is begun that was killed from outside (out of memory, say)."""
PR_SET_PDEATHSIG = 1


def run_stage(
    words: Callable[[], Sequence[str]], log: Path, what: str, progress: Progress, *, attempts: int = ATTEMPTS
) -> None:
    """Run one verb to its end with its output in `log`; one that is killed is begun again.

    `words` is called for each attempt, since what an earlier one left may be resumed from. Raises UserError
    with the last line of the log where the verb refuses, or is killed again and again.
    """
    for attempt in range(1, attempts + 1):
        status = _run(list(words()), log)
        if status == 0:
            return
        if status > 0:
            break
        note = f"{what} was killed by {signal.Signals(-status).name}"
        progress.note(f"{note}: begun again where it stopped" if attempt < attempts else note)
    told = [line for line in log.read_text(errors="replace").splitlines() if line.startswith("Error: ")]
    reason = told[-1].removeprefix("Error: ") if told else f"status {status}, see {log}"
    raise UserError(
        f"{what} failed ({reason}); the served bundle is untouched: run the same command to go on"
    )


def _run(words: list[str], log: Path) -> int:
    with log.open("ab") as file:
        process = subprocess.Popen(
            program(*words), stdout=file, stderr=subprocess.STDOUT, preexec_fn=_end_with_parent
        )
    try:
        return process.wait()
    except KeyboardInterrupt:
        # It saves what it has, as after its own Ctrl-C.
        stop(process)
        raise


def _end_with_parent() -> None:
    """Leave the processor to a server beside, and have the kernel end this process when its parent dies.

    Elsewhere than on Linux it outlives its parent.
    """
    os.nice(NICENESS)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def train_words(
    data: DataNames, episodes: Path, run: Path, parent: str, updates: int, settings: Sequence[str]
) -> list[str]:
    """`train` on old data and recorded episodes, the last named; goes on where it was interrupted."""
    start = ["--resume"] if (run / "latest").is_file() else ["--init-from", parent]
    sets = [word for name in (*data.datasets, str(episodes)) for word in ("--dataset", name)]
    stated = [
        *(("--rate", str(data.rate)) if data.rate else ()),
        *(("--action-mode", data.action_mode) if data.action_mode else ()),
        *(("--action-bounds", data.action_bounds) if data.action_bounds else ()),
        *(word for keys in data.mapping for word in ("--map", keys)),
        *(word for task in data.tasks for word in ("--task-index", str(task))),
        *(word for camera in data.cameras for word in ("--camera", camera)),
    ]
    changed = [word for setting in settings for word in ("--set", setting)]
    return ["train", *sets, *stated, "--output", str(run), *start, "--updates", str(updates), *changed]


def export_words(run: Path, bundle: Path, like: Path) -> list[str]:
    """`export` as the bundle `like` was: its members, steps and precisions."""
    from rql_deploy.bundle.bundle import Bundle

    served = Bundle.open(like)
    members, steps = str(served.contract.value_members), str(served.contract.F)
    words = ["export", str(run), "--output", str(bundle), "--value-members", members, "--flow-steps", steps]
    words += _stated_words(header_of(run).plant, served.contract.plant)
    return words + [word for name in served.variants if name != "fp32" for word in ("--precision", name)]


def header_of(run: Path) -> CheckpointHeader:
    """What a run's latest checkpoint, or a checkpoint, says of itself."""
    from rql_deploy.train.checkpoints.checkpoint import resolve_checkpoint
    from rql_deploy.train.checkpoints.header import read_header

    return read_header(resolve_checkpoint(run))


def _stated_words(trained: PlantDescription, served: PlantDescription) -> list[str]:
    """What `export` was told of the served policy's motion, and the data of its training does not say."""
    words = []
    if served.control_rate != trained.control_rate or (trained.rate_assumed and not served.rate_assumed):
        words += ["--rate", str(served.control_rate)]
    pairs = list(zip(trained.actions, served.actions, strict=False))
    said = [{item for item in a.assumed if item not in b.assumed} for a, b in pairs]
    modes = [
        f"{b.name}={b.mode}"
        for (a, b), items in zip(pairs, said, strict=True)
        if items & {"mode", "hold"} or (a.mode, a.hold) != (b.mode, b.hold)
    ]
    words += ["--action-mode", ",".join(modes)] if modes else []
    return words + (["--action-bounds", "dataset"] if any("bounds" in items for items in said) else [])
