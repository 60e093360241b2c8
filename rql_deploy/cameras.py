"""Which cameras are wanted, and at what size: `--camera NAME[:HxW]` of data sets and simulators."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from rql_deploy.errors import UserError, suggestion

LARGEST_SIDE = 1024
"""Pixels of a picture's side; a contract takes no larger one."""
SIZE = re.compile(r"(\d{1,5})x(\d{1,5})")
ORDERS = ("rgb", "bgr")
SHORT_ENDS = ("_image", "_rgb")
"""Ends of a picture's name that its camera's name lacks: robosuite's `agentview` gives `agentview_image`."""


@dataclass(frozen=True)
class CameraChoice:
    """One `--camera`."""

    name: str
    """The picture's name, its last part, or the name of its camera."""
    size: tuple[int, int] | None = None
    """Height and width that the frames are made to have; None leaves them as they are."""
    order: Literal["", "rgb", "bgr"] = ""
    """What the user says of the colours' order in the data; bytes do not show it."""

    @classmethod
    def parse(cls, word: str) -> CameraChoice:
        """From `agentview`, `agentview:64x64` or `agentview:64x64:bgr`; raises UserError for other words."""
        name, *rest = (part.strip() for part in word.split(":"))
        order = rest.pop() if rest and rest[-1] in ORDERS else ""
        sides = SIZE.fullmatch(rest.pop()) if rest else None
        if not name or rest or (sides is None and word.count(":") != bool(order)):
            raise UserError(
                f"--camera takes NAME, NAME:HEIGHTxWIDTH or NAME:HEIGHTxWIDTH:bgr, not '{word}': try "
                "--camera agentview:64x64"
            )
        if sides is None:
            return cls(name, None, order)  # type: ignore[arg-type]
        height, width = (int(side) for side in sides.groups())
        if not (0 < height <= LARGEST_SIDE and 0 < width <= LARGEST_SIDE):
            raise UserError(
                f"--camera {word}: a picture has sides of 1 to {LARGEST_SIDE} pixels, so pass a size such as "
                f"{name}:64x64"
            )
        return cls(name, (height, width), order)  # type: ignore[arg-type]

    def find(self, names: Collection[str], where: str) -> str:
        """The one of the pictures' `names` that is meant; raises UserError unless exactly one is."""
        if self.name in names:
            return self.name
        found = [name for name in names if self.name in short_names(name)]
        if len(found) == 1:
            return found[0]
        if found:
            raise UserError(
                f"--camera {self.name} may mean {' or '.join(found)} of {where}: pass one of these names"
            )
        if not names:
            raise UserError(f"{where} has no pictures: leave --camera {self.name} out")
        raise UserError(f"{where} has no camera '{self.name}'{suggestion(self.name, names)}")

    def __str__(self) -> str:
        size = f":{self.size[0]}x{self.size[1]}" if self.size else ""
        return f"{self.name}{size}{f':{self.order}' if self.order else ''}"


def short_names(name: str) -> set[str]:
    """What a picture is also called: `top` for `observation.images.top`, `front` for `front_image`."""
    last = re.split(r"[./]", name)[-1]
    return {last, *(word.removesuffix(end) for word in (last, name) for end in SHORT_ENDS)} - {""}


def parse_cameras(words: Sequence[str]) -> tuple[CameraChoice, ...]:
    """The choices of several `--camera`; raises UserError for words that say nothing and repeated names."""
    choices = tuple(map(CameraChoice.parse, words))
    names = [choice.name for choice in choices]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise UserError(f"--camera names '{repeated[0]}' twice: a camera is read at one size")
    return choices
