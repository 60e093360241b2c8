"""Which frozen backbones a run's networks see through: known by their files' hashes, the same to the end."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rql_deploy.errors import UserError
from rql_deploy.structs import Record

FOLDER = "backbones"
"""In a run's folder: a copy of each backbone, by its hash."""


class FrozenBackbone(Record, frozen=True):
    """A camera's backbone, as a checkpoint knows it."""

    sha256: str
    """Of its file, of which the run's folder has a copy."""
    features: tuple[int, ...]
    """Of one frame: [D] of a vector, [C, h, w] of a map."""


Backbones = Mapping[str, FrozenBackbone]
"""By camera."""
NO_BACKBONES: Backbones = {}


def backbone_file(run: Path, backbone: FrozenBackbone) -> Path:
    """Where a run keeps its copy."""
    return run / FOLDER / f"{backbone.sha256[:16]}.onnx"


def require_same_backbones(where: str, before: Backbones, now: Backbones) -> None:
    """Raise UserError unless a run that sees through `before` can go on with `now`."""
    for camera in sorted({*before, *now}):
        was, found = before.get(camera), now.get(camera)
        if was == found:
            continue
        if found is None:
            raise UserError(
                f"{where} sees camera '{camera}' through a frozen backbone, this run does not: pass the same "
                "--backbone"
            )
        if was is None:
            raise UserError(
                f"{where} has no backbone for camera '{camera}', this run has one: leave --backbone out"
            )
        raise UserError(
            f"{where} sees camera '{camera}' through backbone {was.sha256[:12]}, this run through "
            f"{found.sha256[:12]}: pass the same --backbone"
        )
