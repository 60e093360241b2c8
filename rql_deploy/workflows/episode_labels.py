"""Labels that a person gives recorded episodes later: RECORDING/labels.jsonl, the last word counts."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from rql_deploy.errors import UserError
from rql_deploy.structs import Record, convert, to_plain

FILE = "labels.jsonl"


class Label(Record, frozen=True):
    """One line: whether an episode succeeded, in its last row."""

    episode: str
    """Its name, EPOCH-NUMBER."""
    success: bool


def read_labels(recording: Path) -> dict[str, bool]:
    """Whether each labelled episode succeeded, by name; a line that a crash cut short is skipped."""
    file = (recording if recording.is_dir() else recording.parent) / FILE
    found: dict[str, bool] = {}
    for line in file.read_text().splitlines() if file.is_file() else ():
        try:
            label = convert(json.loads(line), Label, FILE)
        except (ValueError, UserError):
            continue
        found[label.episode] = label.success
    return found


def label_episodes(recording: Path, episodes: Sequence[str], success: bool) -> int:
    """Say of episodes by name, or `unknown` for all that nothing is known of, whether they succeeded.

    Returns how many were labelled. Raises UserError for a name that the recording does not hold.
    """
    from .recorded_episodes import read_recorded_episodes

    recorded, _ = read_recorded_episodes(recording, on_damage=lambda _: None)
    complete = [episode for episode in recorded if episode.complete]
    names = {episode.name for episode in complete}
    if missing := [name for name in episodes if name not in names and name != "unknown"]:
        few = ", ".join(sorted(names)[:5]) or "none"
        raise UserError(
            f"recording {recording} has no complete episode '{missing[0]}': it has {len(names)} ({few}, ...)"
        )
    chosen = [
        episode.name
        for episode in complete
        if episode.name in episodes or ("unknown" in episodes and not episode.known)
    ]
    file = (recording if recording.is_dir() else recording.parent) / FILE
    with file.open("a+b") as stream:
        torn = stream.tell() and (stream.seek(-1, os.SEEK_END), stream.read(1))[1] != b"\n"
        lines = [json.dumps(to_plain(Label(name, success))).encode() + b"\n" for name in chosen]
        stream.write((b"\n" if torn else b"") + b"".join(lines))
        stream.flush()
        os.fsync(stream.fileno())
    return len(chosen)
