"""One attempt at a job, in a process of its own: `python -m rql_deploy.cli.sweep.attempt FOLDER`.

It holds the folder's lock (a file with its process and machine): an attempt that was thought dead and the
next one never write at the same time. It ends at once when its standard input closes: the process that
started it is gone, and the job may be started elsewhere.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rql_deploy.distributed.sweep.job import BUSY, JOB, LOCK, LOG, RESULT, UNFINISHED, write_json
from rql_deploy.distributed.sweep.plan import content_address
from rql_deploy.errors import UserError

LOCK_SECONDS = 30.0
"""How long to wait for an attempt that is ending."""
CHANGED = 2
"""Exit status when a data set is not what the sweep was planned with."""
SECONDS = "seconds.txt"
"""File in a training job's folder: seconds of its attempts so far, without those that were killed."""


def main(folder: Path) -> int:
    """Do the job of this folder unless it is done; the exit status is the command's."""
    os.chdir(folder)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with _locked(Path(LOCK)) as mine:
        if not mine:
            return BUSY
        if Path(RESULT).exists():
            return 0
        job = json.loads(Path(JOB).read_text())
        if not _data_is_planned(job):
            return CHANGED
        arguments = _prepare(job)
        start = time.time() - _spent(job)
        try:
            status, printed = _run(arguments)
        finally:
            if job["kind"] == "train":
                Path(SECONDS).write_text(str(time.time() - start))
        if status:
            return status
        if not _data_is_planned(job):
            # Its checkpoints learned of both.
            shutil.rmtree("run", ignore_errors=True)
            return CHANGED
        result = json.loads(printed)
        if not _complete(job, result):
            _remove(job)
            return UNFINISHED
        made = {"seconds": round(time.time() - start, 1), "finished": time.time(), "host": platform.node()}
        write_json(Path(RESULT), {"kind": job["kind"], "name": job["name"], **made, "result": result})
    return 0


def _data_is_planned(job: dict[str, Any]) -> bool:
    """Whether the data set has the content that the job is known by; if not, the log says so."""
    planned = job["identity"].get("dataset")
    if planned is None or not job["places"]:
        return True
    place = Path(job["places"][0])
    try:
        if content_address(place) == planned:
            return True
        why = "has changed since the sweep was planned"
    except UserError as error:
        why = f"cannot be read any more ({error})"
    with Path(LOG).open("a") as log:
        log.write(f"Error: data set {place} {why}: run the same command again, for what it holds then\n")
    return False


def _spent(job: dict[str, Any]) -> float:
    """Seconds of the earlier attempts that this one continues."""
    if job["kind"] == "train" and _has_checkpoint():
        with contextlib.suppress(OSError, ValueError):
            return float(Path(SECONDS).read_text())
    return 0.0


def _has_checkpoint() -> bool:
    """Whether there is a run to resume, or one of the seeds that are trained together."""
    return Path("run/latest").exists() or any(Path("run").glob("seed_*/latest"))


def _end_with_parent() -> None:
    # Unbuffered: the interpreter must not end while a buffer's lock is held.
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def _locked(file: Path) -> Iterator[bool]:
    with file.open("a+") as stream:
        for _ in range(int(LOCK_SECONDS / 0.1)):
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(0.1)
            else:
                stream.truncate(0)
                stream.write(f"{os.getpid()} {platform.node()}\n")
                stream.flush()
                yield True
                return
        yield False


def _prepare(job: dict[str, Any]) -> list[str]:
    """The command's words. Training resumes from its last checkpoint; the other commands start over."""
    arguments = list(job["arguments"])
    if job["kind"] == "train":
        return [*arguments, "--resume"] if _has_checkpoint() else arguments
    _remove(job)
    return arguments


def _remove(job: dict[str, Any]) -> None:
    if job["kind"] == "train":
        return
    for name in job["outputs"]:
        if Path(name).is_dir():
            shutil.rmtree(name)
        else:
            Path(name).unlink(missing_ok=True)


def _complete(job: dict[str, Any], result: dict[str, Any]) -> bool:
    """Whether the command says that it did all that was asked."""
    words = job["arguments"]
    if job["kind"] == "train":
        return bool(result["finished"])
    if job["kind"] == "export":
        return True
    return bool(result["episodes"] == int(words[words.index("--episodes") + 1]))


def _run(arguments: list[str]) -> tuple[int, str]:
    """Run a command in this process, its messages appended to the log; returns status and what it printed."""
    from rql_deploy.cli import main as command_line

    printed = Path("printed.partial")
    with Path(LOG).open("a") as log, printed.open("w") as out:
        log.write(f"$ rql-deploy {' '.join(arguments)}\n")
        log.flush()
        os.dup2(out.fileno(), 1)
        os.dup2(log.fileno(), 2)
    try:
        command_line(arguments, prog_name="rql-deploy")
        status = 0
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(bool(ended.code))
    sys.stdout.flush()
    text = printed.read_text()
    printed.unlink()
    return status, text


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
