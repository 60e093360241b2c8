"""The pictures of the documentation show what the code does and what was measured."""

import importlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.commands import ROOT

RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
IMAGES = ROOT / "docs" / "images"
MOST_BYTES, MOST_FILM_BYTES = 300_000, 3_000_000


def numbers(found: Any) -> Iterator[float]:
    """Every number of a recorded measurement."""
    if isinstance(found, dict):
        for value in found.values():
            yield from numbers(value)
    elif isinstance(found, list):
        for value in found:
            yield from numbers(value)
    elif isinstance(found, int | float) and not isinstance(found, bool):
        yield float(found)


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_a_recorded_measurement_names_its_origin_and_has_no_number_that_the_page_lacks(path: Path) -> None:
    recorded = json.loads(path.read_text())
    for origin in ("title", "command", "machine", "versions"):
        assert recorded[origin]
    page = (ROOT / "benchmarks" / "RESULTS.md").read_text().replace(",", "")
    written = {abs(float(number)) for number in re.findall(r"\d+(?:\.\d+)?", page)}
    assert not {number for number in numbers(recorded) if abs(number) not in written}


def test_plots_are_drawn_from_the_recorded_measurements(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    plots, style = importlib.import_module("plots"), importlib.import_module("plot_style")
    monkeypatch.setattr(style, "IMAGES", tmp_path)
    drawn = {plot().name for plot in plots.PLOTS}
    assert drawn == {path.name for path in IMAGES.glob("results_*.svg")}
    page = (ROOT / "benchmarks" / "RESULTS.md").read_text()
    assert all(f"../docs/images/{name}" in page for name in drawn)


def test_pictures_are_small_enough_for_a_page() -> None:
    for path in IMAGES.iterdir():
        assert path.stat().st_size <= (MOST_FILM_BYTES if path.suffix == ".webp" else MOST_BYTES), path.name


def test_the_timelines_of_playback_are_what_playback_does_today(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "pictures"))
    timelines, svg = importlib.import_module("timelines"), importlib.import_module("svg")
    monkeypatch.setattr(svg, "IMAGES", tmp_path)
    new = timelines.draw().save("playback.svg").read_text()
    assert new == (IMAGES / "playback.svg").read_text(), "run `make pictures`"


def test_the_hex_dump_is_what_a_client_sends_today() -> None:
    command = [sys.executable, str(ROOT / "docs" / "pictures" / "hexdump.py"), "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
