"""The three playback modes as tick timelines, played by `Playback` itself.

python docs/pictures/timelines.py        # writes docs/images/playback.svg
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from svg import Drawing

from rql_deploy.runtime.control.playback import MODES, Mode, Playback

H, STEPS, TICKS, WARM_UP = 5, 10, 15, 20
DELAY = 2.0
"""Ticks that all refinement steps of a decision take; each takes as long as the others."""
WORDS: dict[Mode, tuple[str, str]] = {
    "open-loop": ("open loop", "asks when the chunk has run out, and holds until the next one is complete"),
    "prefetch": ("prefetch", "asks early; the new chunk takes over at the action that is due"),
    "anytime": ("anytime", "asks later; what is due before the last refinement step comes from a preview"),
}
COLOURS = ("blue", "vermillion", "green", "purple")
LEFT, CELL, LANE, TOP = 116, 54, 132, 74


@dataclass(frozen=True)
class Played:
    """What a tick did."""

    chunk: int | None
    """Number of the chunk its action is of; None where the tick held."""
    index: int = 0
    """Place of the action in the chunk."""
    steps: int = 0
    """Refinement steps the action had."""


def play(mode: Mode) -> tuple[list[Played], list[int]]:
    """Every tick from `-WARM_UP` on, and the ticks at which a decision was asked for."""
    playback = Playback(H, mode, min_preview_steps=STEPS // 2)
    asked: list[int] = []
    played: list[Played] = []
    for tick in range(-WARM_UP, 20 * H):
        if playback.pending:
            since = tick - asked[-1]
            steps = min(STEPS, int(STEPS * since / DELAY + 1e-9))
            last = steps == STEPS
            if last or (mode == "anytime" and steps):
                # The policy's own clock tells when that many steps were done.
                delay = steps * DELAY / STEPS
                playback.receive(len(asked) - 1, np.zeros((H, 1), np.float32), steps, last=last, delay=delay)
        if playback.should_request():
            asked.append(tick)
            playback.request(float(tick))
        due = playback.due()
        if due is None:
            playback.held(np.zeros(1, np.float32))
            played.append(Played(None))
        else:
            playback.played(due.action)
            played.append(Played(due.chunk.number, due.index, due.chunk.steps))
    return played, asked


def draw() -> Drawing:
    """The lanes, one below the other, from a tick at which a decision is asked for."""
    width, height = LEFT + TICKS * CELL + 24, TOP + LANE * len(MODES) + 22
    picture = Drawing(width, height, "Playback modes, tick by tick")
    draw_legend(picture)
    for i, mode in enumerate(MODES):
        played, asked = play(mode)
        top = TOP + LANE * i
        # Well after the first decision, so that the delay is known.
        begin = next(tick for tick in asked if tick >= -2 * H)
        name, words = WORDS[mode]
        picture.text(24, top + 14, name, size=16, bold=True)
        picture.text(LEFT, top + 14, words, fill="muted")
        picture.text(LEFT + TICKS * CELL, top + 14, summary(played), fill="ink", anchor="end", bold=True)
        picture.text(24, top + 43, "policy", fill="muted")
        picture.text(24, top + 81, "plant", fill="muted")
        for tick in asked:
            if begin <= tick < begin + TICKS:
                draw_decision(
                    picture, LEFT + (tick - begin) * CELL, top + 28, asked.index(tick) - asked.index(begin)
                )
        for t in range(TICKS):
            draw_tick(picture, LEFT + t * CELL, top + 59, played[t + begin + WARM_UP], asked.index(begin))
    for t in range(TICKS):
        picture.text(LEFT + (t + 0.5) * CELL, height - 18, str(t), size=12, fill="muted", anchor="middle")
    picture.text(24, height - 18, "tick", fill="muted")
    return picture


def summary(played: list[Played]) -> str:
    """How much of a chunk is played, and how many ticks are held, in the long run."""
    late = played[-2 * H * (H + round(DELAY)) :]
    chunks = {action.chunk for action in late if action.chunk is not None}
    whole = [sum(action.chunk == chunk for action in late) for chunk in chunks]
    held = sum(action.chunk is None for action in late) / len(late)
    return f"plays {max(whole)} of {H} actions, holds {held:.0%} of ticks".replace("%", " %")


def draw_legend(picture: Drawing) -> None:
    x, y = LEFT, 28
    picture.text(24, y + 5, f"h = {H}", bold=True)
    for shape, words, width in (
        ("dot", "observation is sent", 166),
        ("step", "one refinement step", 166),
        ("act", "action, with its place in the chunk", 252),
        ("preview", "from a preview", 130),
    ):
        if shape == "dot":
            picture.circle(x + 5, y, 4, "ink")
        elif shape == "step":
            picture.rect(x, y - 10, 10, 20, COLOURS[0], rx=1)
        else:
            picture.rect(x - 8, y - 10, 20, 20, COLOURS[0], opacity=0.45 if shape == "preview" else 1.0)
        picture.text(x + 20, y + 5, words)
        x += width


def draw_decision(picture: Drawing, x: float, y: float, number: int) -> None:
    """One request: its refinement steps, in the colour of its chunk."""
    width = DELAY * CELL / STEPS
    for k in range(STEPS):
        if x + k * width < LEFT + TICKS * CELL - 1:
            picture.rect(x + k * width + 0.5, y, width - 1.5, 20, COLOURS[number % len(COLOURS)], rx=1)
    picture.circle(x, y + 10, 4, "ink")


def draw_tick(picture: Drawing, x: float, y: float, action: Played, first: int) -> None:
    """What the plant does in one tick; `first` is the chunk that has the first colour."""
    if action.chunk is None:
        picture.rect(x + 1, y, CELL - 2, 34, "grey")
        picture.text(x + CELL / 2, y + 22, "hold", anchor="middle")
        return
    preview = action.steps < STEPS
    colour = COLOURS[(action.chunk - first) % len(COLOURS)]
    picture.rect(x + 1, y, CELL - 2, 34, colour, opacity=0.45 if preview else 1.0)
    ink = "ink" if preview else "#ffffff"
    picture.text(x + CELL / 2, y + 22, f"{action.index + 1}", size=15, anchor="middle", bold=True, fill=ink)


if __name__ == "__main__":
    print(draw().save("playback.svg"))
