"""The generations of a served bundle, each kept whole, and the link that says which of them is served.

    BUNDLE                          a link to the bundle of the generation that is served
    BUNDLE.generations/0002/
        generation.json, episodes/  what it learns from, held_out/ what it is compared on without a
                                    simulator; they are there from its first moment on
        run/, train.log             its training
        bundle/                     what may be served
        gate.json                   how it compared with the one that was served, and whether it may take over
        served.json                 that it did

Each of these is complete or absent, so what is there says where a generation stands: whatever is interrupted
goes on from the next thing that is missing.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rql_deploy.errors import UserError
from rql_deploy.structs import Record, convert, to_plain
from rql_deploy.train.checkpoints.run_folder import sync

SUFFIX = ".generations"


class Generation(Record, frozen=True):
    """generation.json."""

    number: int
    parent: int
    """The generation that was served when this one was begun; its networks are where training starts."""
    run: str
    """Folder of its training run when it was begun; that of generation 0 is the run that was deployed."""
    episodes: tuple[str, ...] = ()
    """Names of all recorded episodes that it learns from, those of earlier generations included."""
    new: int = 0
    """How many of them no earlier generation had."""
    succeeded: int | None = None
    """Of the new ones; None where nothing says."""
    held_out: tuple[str, ...] = ()
    """Names of recorded episodes that are kept to compare with, and learned from by none."""
    time: float = 0.0
    """When it was begun, in seconds since 1970."""


class Generations:
    """All generations of one served bundle."""

    def __init__(self, link: Path):
        # Not resolved: the link itself is what is exchanged.
        self.link = link.absolute()
        self.folder = self.link.with_name(self.link.name + SUFFIX)

    def path(self, number: int) -> Path:
        """Folder of a generation."""
        return self.folder / f"{number:04d}"

    def bundle(self, number: int) -> Path:
        """Its bundle."""
        return self.path(number) / "bundle"

    def run(self, number: int) -> Path:
        """Its training run; the folder of generations may have been moved since it was begun."""
        return self.path(number) / "run" if number else Path(self.read(0).run)

    def numbers(self) -> list[int]:
        """All that were begun, in order."""
        return sorted(int(path.name) for path in self.folder.glob("[0-9][0-9][0-9][0-9]") if path.is_dir())

    def read(self, number: int) -> Generation:
        """What a generation is made of; raises UserError where that is damaged."""
        file = self.path(number) / "generation.json"
        try:
            return convert(json.loads(file.read_text()), Generation, file.name)
        except (OSError, ValueError) as error:
            raise UserError(f"{file} is damaged ({error}): restore it from a copy") from error

    def served(self) -> int:
        """The generation that the link names; raises UserError where it names none."""
        try:
            target = Path(os.readlink(self.link))
            number = int(target.parent.name)
        except (OSError, ValueError) as error:
            raise UserError(
                f"{self.link} is not a link into {self.folder}: `rql-deploy improve --serve-as {self.link}` "
                "makes it"
            ) from error
        return number

    def begin_first(self, run: Path, export: Callable[[Path], None]) -> None:
        """Make generation 0 of what is served already, or of what `export` writes, and the link.

        A bundle folder at the link's place is taken over as it is. Does nothing where all is there. Raises
        UserError where a file is there, or where a folder took the link's place later.
        """
        if self.link.is_file():
            raise UserError(f"{self.link} is a file: pass the folder of a bundle, or where to make one")
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self.path(0).is_dir():
            self.begin(Generation(0, 0, str(run.absolute()), time=time.time()), lambda _: None)
        if self.link.is_dir() and not self.link.is_symlink():
            if self.was_served(0):
                raise UserError(
                    f"{self.link} is a folder, and no more the link to one of {self.folder}: move the folder "
                    "away to go on with the generations, or these to begin anew with it"
                )
            # Copied before it is moved away, so that generation 0 is whole whatever happens in between.
            if not self.bundle(0).is_dir():
                partial = self.bundle(0).with_name(".bundle.partial")
                shutil.rmtree(partial, ignore_errors=True)
                shutil.copytree(self.link, partial)
                partial.rename(self.bundle(0))
            self.link.rename(self.path(0) / "before_improvement")
        elif not self.bundle(0).is_dir():
            export(self.bundle(0))
        if self.link.is_symlink():
            self.note_served(self.served())
        else:
            self.serve(max((n for n in self.numbers() if self.was_served(n)), default=0))

    def begin(self, generation: Generation, write: Callable[[Path], None]) -> None:
        """A new generation: `write` fills its folder, which appears with its description or not at all."""
        final = self.path(generation.number)
        partial = final.with_name(f".{final.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        write(partial)
        write_json(partial / "generation.json", to_plain(generation))
        partial.rename(final)
        sync(self.folder)

    def serve(self, number: int) -> None:
        """Let the link name a generation's bundle, in one step."""
        if not self.bundle(number).is_dir():
            raise UserError(f"generation {number} has no bundle in {self.bundle(number)}: serve another one")
        partial = self.link.with_name(f".{self.link.name}.partial")
        partial.unlink(missing_ok=True)
        partial.symlink_to(os.path.relpath(self.bundle(number), self.link.parent))
        partial.replace(self.link)
        sync(self.link.parent)
        self.note_served(number)

    def note_served(self, number: int) -> None:
        """Remember that a generation has been served, so that it is not served again by itself."""
        if not self.was_served(number):
            write_json(self.path(number) / "served.json", {"time": time.time()})

    def was_served(self, number: int) -> bool:
        """Whether it was, at any time."""
        return (self.path(number) / "served.json").is_file()

    def gate(self, number: int) -> dict[str, Any] | None:
        """What its comparison said; None before that."""
        file = self.path(number) / "gate.json"
        try:
            found: dict[str, Any] = json.loads(file.read_text())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise UserError(f"{file} is damaged ({error}): remove it, to compare again") from error
        return found

    def rollback(self, to: int | None = None) -> tuple[int, int]:
        """Serve generation `to`, else the one that was served before; returns both numbers.

        Raises UserError where there is no such generation, or none before.
        """
        now = self.served()
        if to is None and now == 0:
            raise UserError("generation 0 is served, and it is the first: there is none to go back to")
        target = self.read(now).parent if to is None else to
        if target not in self.numbers():
            known = ", ".join(map(str, self.numbers()))
            raise UserError(f"there is no generation {target} in {self.folder}, which has {known}")
        # Noted first: what is rolled back must never be taken for what waits to be served.
        self.note_served(now)
        self.serve(target)
        return now, target


def write_json(file: Path, data: Any) -> None:
    """Write a file completely or not at all."""
    partial = file.with_name(f".{file.name}.partial")
    partial.write_text(json.dumps(data, indent=1))
    sync(partial)
    partial.replace(file)
    sync(file.parent)
