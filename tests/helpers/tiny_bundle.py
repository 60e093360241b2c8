"""Makes tests/data/tiny_bundle anew: `python -m tests.helpers.tiny_bundle`. Needed only when the bundle
format changes."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from tests.helpers.commands import ROOT, TINY, cli
from tests.helpers.data import write_minari

TARGET = ROOT / "tests" / "data" / "tiny_bundle"


def make_bundle(folder: Path, scratch: Path) -> None:
    """Train 20 updates on a tiny data set and export the run to `folder`."""
    run = scratch / "run"
    for command in (
        ("train", "--dataset", write_minari(scratch / "minari"), "--output", run, "--updates", 20, *TINY),
        ("export", run, "--output", folder),
    ):
        result = cli(*command)
        if result.exit_code != 0:
            raise SystemExit(result.output)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        shutil.rmtree(TARGET, ignore_errors=True)
        make_bundle(TARGET, Path(scratch))
