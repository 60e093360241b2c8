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

from rql_deploy.errors import UserError
from rql_deploy.progress import Progress

from ..data_names import DataNames
from ..demo_commands import program, stop
from ..training_evaluator import NICENESS

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
    return words + [word for name in served.variants if name != "fp32" for word in ("--precision", name)]
