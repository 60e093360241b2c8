"""Episodes on disk, one JSON line each, added as they finish."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from rql_deploy.policy import EpisodeResult

from .annotations import WatchedEpisode


def read_episodes(path: Path) -> list[WatchedEpisode]:
    """The file's episodes; a line that a crash cut short is left out. No file is no episodes."""
    found = []
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            found.append(WatchedEpisode.from_plain(json.loads(line)))
        except (ValueError, TypeError):
            continue
    return found


def append_episode(path: Path, episode: EpisodeResult) -> None:
    """Add one line, after whatever a crash has left of the last one."""
    with path.open("a+b") as file:
        torn = file.tell() and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n"
        file.write((b"\n" if torn else b"") + json.dumps(asdict(episode)).encode() + b"\n")


def write_episodes(path: Path, episodes: Iterable[EpisodeResult]) -> None:
    """The whole file at once, in the order given; complete or not at all."""
    partial = path.with_name(path.name + ".writing")
    partial.write_text("".join(json.dumps(asdict(episode)) + "\n" for episode in episodes))
    partial.replace(path)
