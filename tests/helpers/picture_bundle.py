"""Makes tests/data/picture_bundle anew: `python -m tests.helpers.picture_bundle`. Needed only when the bundle
format changes: a policy of a camera's two last frames and four numbers."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from rql_deploy.train.data.folder import write_store
from tests.helpers.commands import ROOT, TINY, cli
from tests.helpers.data import make_picture_store

TARGET = ROOT / "tests" / "data" / "picture_bundle"
SIZE = (12, 16)


def make_picture_bundle(folder: Path, scratch: Path) -> None:
    """Train 20 updates on random pictures and export the run to `folder`, with an int8 variant."""
    height, width = SIZE
    data, run = scratch / "data", scratch / "run"
    write_store(make_picture_store(height=height, width=width), data)
    sets = ("--set", "frame_stack=2", "--engine", "eager")
    for command in (
        ("train", "--dataset", data, "--output", run, "--updates", 20, *TINY, *sets),
        ("export", run, "--output", folder, "--precision", "int8"),
    ):
        result = cli(*command)
        if result.exit_code != 0:
            raise SystemExit(result.output)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        shutil.rmtree(TARGET, ignore_errors=True)
        make_picture_bundle(TARGET, Path(scratch))
