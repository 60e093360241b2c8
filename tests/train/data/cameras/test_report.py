"""What `data inspect` finds out about cameras."""

import dataclasses

import numpy as np
import pytest

from rql_deploy.train.data.cameras.report import camera_figures, camera_warnings, thumbnail_rows
from rql_deploy.train.data.frames import Frames
from rql_deploy.train.data.store import TransitionStore
from tests.helpers.data import make_picture_store


def moving_store(lag: int = 0, episodes: tuple[int, ...] = (60, 80)) -> TransitionStore:
    """A bright square that follows the first number of the state, `lag` rows later."""
    store = make_picture_store(episodes=episodes, height=16, width=64)
    rng = np.random.default_rng(0)
    speed = np.repeat(rng.exponential(size=len(store)), 1)
    place = np.concatenate([np.cumsum(speed[s:e]) for s, e in zip(store.starts, store.ends, strict=True)])
    observations = np.zeros_like(store.observations)
    observations[:, 0] = place
    frames = np.full((len(store), 16, 64, 3), 40, np.uint8)
    for start, end in zip(store.starts, store.ends, strict=True):
        for row in range(start, end):
            seen = place[min(max(start, row - lag), end - 1)]
            across = np.clip(1 - np.abs(np.arange(64) - seen % 64) / 8, 0, 1)
            frames[row] += (across * 180).astype(np.uint8)[None, :, None]
    return dataclasses.replace(store, observations=observations, images={"camera": Frames.of(frames)})


def changed(store: TransitionStore, rows: slice, value: object) -> TransitionStore:
    frames = store.images["camera"].take(np.arange(len(store)))
    frames[rows] = value
    return dataclasses.replace(store, images={"camera": Frames.of(frames)})


@pytest.mark.parametrize("lag", [0, 3, -2])
def test_the_time_between_state_and_frame_is_found(lag: int) -> None:
    figures = camera_figures(moving_store(lag))
    assert figures[0]["lag_rows"] == lag
    assert figures[0]["lag_seconds"] == pytest.approx(lag / 20)
    found = " ".join(camera_warnings(figures, 20.0))
    if lag:
        how = "after" if lag > 0 else "before"
        assert f"changes {abs(lag)} rows ({abs(lag) / 20:.2f} s) {how} the state" in found
    else:
        assert found == ""


def test_noise_says_nothing_about_time() -> None:
    figures = camera_figures(make_picture_store(episodes=(60, 60)))
    assert figures[0]["lag_rows"] is None


def test_a_shift_that_chance_explains_is_none() -> None:
    """Two short episodes of smooth motion: some shift always fits better than none."""
    store = make_picture_store(episodes=(40, 33), height=16, width=64)
    rng = np.random.default_rng(3)
    smooth = np.convolve(rng.normal(size=(2, 200)).reshape(-1), np.ones(8), "same")
    observations = np.zeros_like(store.observations)
    observations[:, 0] = np.cumsum(np.abs(smooth[: len(store)]))
    shown = np.cumsum(np.abs(smooth[200 : 200 + len(store)])).astype(int)
    frames = np.zeros((len(store), 16, 64, 3), np.uint8)
    for row, place in enumerate(shown):
        frames[row, :, place % 64] = 200
    store = dataclasses.replace(store, observations=observations, images={"camera": Frames.of(frames)})
    assert camera_figures(store)[0]["lag_rows"] in (0, None)


def test_black_frames_are_counted_and_located() -> None:
    store = changed(moving_store(), slice(65, 70), 3)
    figures = camera_figures(store)
    assert (figures[0]["black_rows"], figures[0]["first_black"]) == (5, "episode 1, row 5")
    assert any(
        "black in 5 of 140 frames, first at episode 1, row 5" in w for w in camera_warnings(figures, 20.0)
    )


def test_frames_that_stand_still_while_the_robot_moves_are_named() -> None:
    store = moving_store()
    still = store.images["camera"].take(np.array([10]))
    figures = camera_figures(changed(store, slice(10, 41), still))
    assert figures[0]["longest_frozen_while_moving"] == 30
    assert any(
        "same frame for up to 1.5 s while the state moves" in w for w in camera_warnings(figures, 20.0)
    )
    # A robot at rest sees the same frame, and nothing is wrong.
    resting = np.array(store.observations)
    resting[10:41] = resting[10]
    figures = camera_figures(dataclasses.replace(changed(store, slice(10, 41), still), observations=resting))
    assert (figures[0]["longest_frozen"], figures[0]["longest_frozen_while_moving"]) == (30, 0)


def test_some_episodes_of_a_large_set_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rql_deploy.train.data.cameras.report.MOST_ROWS", 20)
    figures = camera_figures(moving_store(episodes=(30, 30, 30, 30)))
    assert 20 <= figures[0]["rows_looked_at"] <= 40
    rows = thumbnail_rows(moving_store(), 12)
    assert rows.tolist() == [0, 29, 59, 60, 99, 139]
