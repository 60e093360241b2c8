"""A job: one command, addressed by its inputs, with a folder that shows how far it is.

OUTPUT/jobs/train-1f0c.../job.json      what it is; written before it starts
                          log.txt       what the command said, of every attempt
                          ...           what the command made
                          result.json   written last: the job is finished and never runs again
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import rql_deploy
from rql_deploy.errors import UserError

Kind = Literal["collect", "train", "export", "evaluate"]
JOB, RESULT, LOG, LOCK = "job.json", "result.json", "log.txt", ".lock"
BUSY = 75
"""Exit status when another attempt has locked the folder (EX_TEMPFAIL)."""
UNFINISHED = 130
"""Exit status of a command that was stopped."""


@dataclass(frozen=True)
class Job:
    """One `rql-deploy` command with everything that its result depends on."""

    kind: Kind
    name: str
    """For people: `cube rql seed 0`. Not part of its address."""
    arguments: tuple[str, ...]
    """The command's words. It runs in the job's folder; other jobs' files are at `../KIND-KEY/...`."""
    outputs: tuple[str, ...]
    """Files and folders the command makes there. Without a result they are from an unfinished attempt."""
    inputs: tuple[Job, ...] = ()
    """Jobs that must be finished first."""
    identity: Mapping[str, Any] = field(default_factory=dict)
    """What the result depends on besides the words: all training settings, a data set's content."""
    places: tuple[str, ...] = ()
    """Words that are paths of things whose content is in `identity`; not part of the address."""

    @cached_property
    def key(self) -> str:
        """16 hexadecimal digits of the content address."""
        words = [word for word in self.arguments if word not in self.places]
        content = [rql_deploy.__version__, self.kind, words, self.identity, [job.key for job in self.inputs]]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def folder_name(self) -> str:
        """Name of the job's folder in the output."""
        return f"{self.kind}-{self.key}"

    def folder(self, output: Path) -> Path:
        """Where the job writes."""
        return output / "jobs" / self.folder_name

    def result(self, output: Path) -> dict[str, Any] | None:
        """The result of a finished job, None if it is not finished."""
        file = self.folder(output) / RESULT
        try:
            found = json.loads(file.read_text())
            if not (
                isinstance(found, dict)
                and isinstance(found.get("result"), dict)
                and isinstance(found.get("seconds"), int | float)
            ):
                raise ValueError("it lacks the result")
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise UserError(
                f"{file} is damaged ({error}): remove {file.parent} to have the job done again"
            ) from error
        return found

    def write(self, output: Path) -> Path:
        """Make the folder and write job.json; returns the folder."""
        folder = self.folder(output)
        folder.mkdir(parents=True, exist_ok=True)
        plain = asdict(self) | {
            "inputs": [job.folder_name for job in self.inputs],
            "key": self.key,
            "rql_deploy": rql_deploy.__version__,
        }
        write_json(folder / JOB, plain)
        return folder


def write_json(file: Path, data: Any) -> None:
    """The file appears complete or not at all."""
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    try:
        with partial.open("w") as stream:
            stream.write(json.dumps(data, indent=1))
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)
