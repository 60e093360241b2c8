"""A job: one command, addressed by what goes into it, with a folder that says how far it is.

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
"""Exit status where another attempt holds the folder (EX_TEMPFAIL)."""
UNFINISHED = 130
"""Exit status of a command that was stopped."""


@dataclass(frozen=True)
class Job:
    """One `rql-deploy` command with everything that its result depends on."""

    kind: Kind
    name: str
    """For people: `cube rql seed 0`. Not part of its address."""
    arguments: tuple[str, ...]
    """The command's words; it runs in the job's folder, and reaches other jobs' files by `../KIND-KEY/...`."""
    outputs: tuple[str, ...]
    """Files and folders the command makes there; without a result they are an unfinished attempt's."""
    inputs: tuple[Job, ...] = ()
    """Jobs that must be finished first."""
    identity: Mapping[str, Any] = field(default_factory=dict)
    """What else the result depends on and the words do not say: all training settings, a data set's content."""
    places: tuple[str, ...] = ()
    """Words that only say where something lies, whose content is in `identity`: not part of the address."""

    @cached_property
    def key(self) -> str:
        """16 hexadecimal digits of the content address."""
        words = [word for word in self.arguments if word not in self.places]
        content = [rql_deploy.__version__, self.kind, words, self.identity, [job.key for job in self.inputs]]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def folder_name(self) -> str:
        return f"{self.kind}-{self.key}"

    def folder(self, output: Path) -> Path:
        return output / "jobs" / self.folder_name

    def result(self, output: Path) -> dict[str, Any] | None:
        """What the finished job came to, None if it is not finished."""
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
        """Make the folder and put down what the job is; returns the folder."""
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
