"""What a data set's cameras show: black and frozen frames, and how far they lag behind the state."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rql_deploy.contract import ImageField
from rql_deploy.train.data.frames import Frames
from rql_deploy.train.data.store import TransitionStore

MOST_ROWS = 20_000
"""Rows that are looked at, in whole episodes spread over the data set; of a long episode, its first ones."""
MOST_BYTES = 512 << 20
"""Of a camera's frames that are looked at, so that large ones take no longer."""
BLACK = 16
"""A frame is black where no colour of no pixel reaches this."""
LONGEST_LAG = 10
"""Rows by which frames and states are shifted against each other, in both directions."""
CLEAR, BETTER, CHANCE = 0.3, 0.05, 4.0
"""A shift counts where the correlation is at least the first, and better than without one by the second and
by the third over the root of the number of rows: in a short recording the best of many shifts is chance."""
TRAVEL = 0.5
"""In standard deviations of a number of the state: it has moved."""


def camera_figures(store: TransitionStore) -> list[dict[str, Any]]:
    """Figures of each camera as JSON data, of some episodes of the data set."""
    episodes = list(_looked_at(store))
    scale = store.observations.std(axis=0, dtype=np.float64) if store.plant.fields else np.zeros(0)
    return [_figures(store, image, store.images[image.name], episodes, scale) for image in store.plant.images]


def _looked_at(store: TransitionStore) -> Iterator[tuple[int, int]]:
    """First row and end of the episodes that are looked at."""
    largest = max([image.height * image.width * 3 for image in store.plant.images], default=1)
    rows = max(1, min(MOST_ROWS, MOST_BYTES // largest))
    most = max(1, int(store.episodes * min(1.0, rows / len(store))))
    for i in np.unique(np.linspace(0, store.episodes - 1, most).astype(np.int64)):
        first = int(store.starts[i])
        yield first, min(int(store.ends[i]), first + rows)


def _figures(
    store: TransitionStore,
    image: ImageField,
    frames: Frames,
    episodes: list[tuple[int, int]],
    scale: NDArray[np.float64],
) -> dict[str, Any]:
    black = frozen = longest = longest_moving = 0
    brightness = 0.0
    first_black: str | None = None
    changes: list[tuple[NDArray[np.float64], NDArray[np.float64]]] = []
    for first, end in episodes:
        bright, dark, change = _look(frames, first, end)
        brightness += float(bright.sum())
        black += int(dark.sum())
        if dark.any() and first_black is None:
            first_black = store.locate(first + int(np.argmax(dark)))
        still = change == 0
        frozen += int(still.sum())
        state = store.observations[first:end].astype(np.float64) / np.where(scale > 0, scale, 1.0)
        for start, stop in _runs(still):
            longest = max(longest, stop - start)
            if not state.shape[1] or np.ptp(state[start : stop + 1], axis=0).max() > TRAVEL:
                longest_moving = max(longest_moving, stop - start)
        changes.append((change, np.abs(np.diff(state, axis=0)).sum(axis=1)))
    lag, correlation = _lag(changes)
    rows = sum(end - first for first, end in episodes)
    return {
        "name": image.name,
        "shape": [image.height, image.width, 3],
        "camera_size": list(image.camera_size),
        "colour_order": image.colour_order,
        "assumed": list(image.assumed),
        "mib": frames.nbytes / 2**20,
        "rows_looked_at": rows,
        "brightness": brightness / rows / 255.0,
        "black_rows": black,
        "first_black": first_black,
        "frozen_rows": frozen,
        "longest_frozen": longest,
        "longest_frozen_while_moving": longest_moving,
        "lag_rows": lag,
        "lag_seconds": None if lag is None else lag / store.plant.control_rate,
        "lag_correlation": correlation,
    }


def _look(
    frames: Frames, first: int, end: int
) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.float64]]:
    """Brightness and blackness of each frame `[n]`, and change from frame to frame `[n-1]`."""
    bright, dark, change = [], [], []
    before: NDArray[np.int16] | None = None
    step = max(1, (1 << 22) // int(np.prod(frames.shape[1:])))
    for start in range(first, end, step):
        block = frames.take(np.arange(start, min(end, start + step)))
        axes = (1, 2, 3)
        bright.append(block.mean(axis=axes))
        dark.append(block.max(axis=axes) < BLACK)
        signed = block.astype(np.int16)
        together = signed if before is None else np.concatenate((before, signed))
        change.append(np.abs(np.diff(together, axis=0)).mean(axis=axes))
        before = signed[-1:]
    return np.concatenate(bright), np.concatenate(dark), np.concatenate(change)


def _runs(flags: NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """Where flags `[n]` are set without a gap: first and one past the last."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], flags, [False])).astype(np.int8)))
    yield from zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)


def _lag(
    changes: list[tuple[NDArray[np.float64], NDArray[np.float64]]],
) -> tuple[int | None, float | None]:
    """Rows by which frames change after the state, and the correlation then; None where it is unclear."""
    found = {lag: _correlation(changes, lag) for lag in range(-LONGEST_LAG, LONGEST_LAG + 1)}
    best = max(found, key=lambda lag: (found[lag], -abs(lag)))
    if found[best] < CLEAR:
        return None, None
    rows = sum(len(frame) for frame, _ in changes)
    lag = best if found[best] >= found[0] + max(BETTER, CHANCE / math.sqrt(rows)) else 0
    return lag, found[lag]


def _correlation(changes: list[tuple[NDArray[np.float64], NDArray[np.float64]]], lag: int) -> float:
    pairs = [
        (frame[max(0, lag) : len(frame) + min(0, lag)], state[max(0, -lag) : len(state) - max(0, lag)])
        for frame, state in changes
        if len(frame) > 2 * LONGEST_LAG
    ]
    if not pairs:
        return 0.0
    frame, state = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
    if frame.std() == 0 or state.std() == 0:
        return 0.0
    return float(np.corrcoef(frame, state)[0, 1])


def camera_warnings(figures: list[dict[str, Any]], rate: float) -> Iterator[str]:
    """What will hurt learning, one sentence each; `rate` is the control rate in Hz."""
    for camera in figures:
        name, rows = camera["name"], camera["rows_looked_at"]
        if camera["black_rows"]:
            yield (
                f"camera '{name}' is black in {camera['black_rows']:,} of {rows:,} frames, first at "
                f"{camera['first_black']}: a cover, a lamp that was off, or frames that were lost"
            )
        stuck = camera["longest_frozen_while_moving"]
        if stuck >= max(5, rate / 2):
            yield (
                f"camera '{name}' shows the same frame for up to {stuck / rate:.1f} s while the state moves: "
                "the driver hung, or frames were recorded more slowly than rows"
            )
        if camera["lag_rows"]:
            lag, seconds = camera["lag_rows"], abs(camera["lag_seconds"])
            how = "after" if lag > 0 else "before"
            yield (
                f"what camera '{name}' shows changes {abs(lag)} rows ({seconds:.2f} s) {how} the state "
                f"(correlation {camera['lag_correlation']:.2f}): the clocks of camera and state differ, so "
                "record both with one"
            )


def thumbnail_rows(store: TransitionStore, count: int) -> NDArray[np.int64]:
    """Rows `[n]` to show a camera by: begin, middle and end of episodes that are spread over the data set."""
    chosen = np.unique(np.linspace(0, store.episodes - 1, max(1, count // 3)).astype(np.int64))
    ends = np.stack((store.starts[chosen], store.ends[chosen] - 1), axis=1)
    rows: NDArray[np.int64] = np.stack((ends[:, 0], ends.mean(axis=1).astype(np.int64), ends[:, 1]), axis=1)
    return rows.reshape(-1)
