"""Which action of which chunk is due in a tick."""

import itertools
from typing import Any

import numpy as np
import pytest

from rql_deploy.errors import UserError
from rql_deploy.runtime.control.playback import DeltaBounds, Mode, Playback

H = 5


def chunk(number: int) -> np.ndarray:
    """Action i of chunk n is [n, i]."""
    return np.array([[number, i] for i in range(H)], np.float32)


def play(
    mode: Mode,
    delay: int,
    ticks: int,
    *,
    prefetch_ticks: int | None = None,
    silent: frozenset[int] = frozenset(),
    replan_every: int | None = None,
) -> list[tuple[int, int] | None]:
    """(chunk, index) played in each tick, None for a hold.

    Results come `delay` ticks after the request; those of `silent` requests never come.
    """
    playback, running, found = (
        Playback(H, mode, prefetch_ticks=prefetch_ticks, replan_every=replan_every),
        [],
        [],
    )
    for tick in range(ticks):
        for requested, number in [entry for entry in running if entry[0] + delay <= tick]:
            running.remove((requested, number))
            if number in silent:
                playback.missed(number)
            else:
                playback.receive(number, chunk(number), 10, last=True, delay=delay)
        if playback.should_request():
            running.append((tick, playback.request(float(tick))))
        for requested, number in [entry for entry in running if entry[0] + delay <= tick]:
            running.remove((requested, number))
            playback.receive(number, chunk(number), 10, last=True, delay=delay)
        due = playback.due()
        if due is None:
            found.append(None)
        else:
            found.append((int(due.action[0]), int(due.action[1])))
            playback.played(np.zeros(2, np.float32))
    return found


def test_without_delay_every_mode_plays_whole_chunks() -> None:
    for mode in ("open-loop", "prefetch", "anytime"):
        assert play(mode, 0, 11, prefetch_ticks=0) == [(n, i) for n in (0, 1, 2) for i in range(5)][:11]


def test_open_loop_holds_while_it_waits_and_plays_from_the_first_action() -> None:
    assert play("open-loop", 2, 10) == [None, None, *[(0, i) for i in range(5)], None, None, (1, 0)]


def test_prefetched_chunks_take_over_at_the_action_that_is_due() -> None:
    # Requested one tick before chunk 0 ends, from the observation before its action 4: action 0 of chunk 1 is
    # past when it arrives.
    assert play("prefetch", 1, 10) == [None, *[(0, i) for i in range(5)], *[(1, i) for i in range(1, 5)]]


def test_previews_are_requested_while_they_would_be_played() -> None:
    playback, wanted = Playback(H, "anytime", min_preview_steps=5), []
    for delay in [0.4] * 3 + [1.7] * 6 + [0.9] * 60:
        wanted.append(playback.previews)
        number = playback.request(0.0)
        if playback.previews:
            playback.receive(number, chunk(number), 5, last=False, delay=delay / 2)
        playback.receive(number, chunk(number), 10, last=True, delay=delay)
    # Before any delay is known; while decisions take more than a tick, even if half of their steps take less.
    assert wanted[:9] == [True, False, False, False, *[True] * 5]
    assert wanted[9:50] == [True] * 41
    assert not wanted[-1]
    prefetching = Playback(H, "prefetch")
    prefetching.receive(prefetching.request(0.0), chunk(0), 10, last=True, delay=3.0)
    assert not prefetching.previews


def test_prefetch_follows_the_delays_and_plays_h_minus_delay_actions_of_each_chunk() -> None:
    for delay in (1, 2):
        played = play("prefetch", delay, 60)
        assert None not in played[20:]
        first_indices = {b[1] for a, b in itertools.pairwise(played[20:]) if a and b and a[0] != b[0]}
        assert first_indices == {delay}


def test_a_delay_beyond_half_a_chunk_holds_between_chunks() -> None:
    # With one request at a time, a chunk covers a delay of up to half its length. Beyond it there are holds,
    # but fewer than in open loop.
    for delay in (3, 4, 7):
        prefetch, open_loop = (play(mode, delay, 240)[20:].count(None) for mode in ("prefetch", "open-loop"))
        assert 0 < prefetch <= open_loop < 180
        assert (prefetch < open_loop) == (delay < H)


def test_a_held_tick_does_not_count_as_played() -> None:
    playback = Playback(H, "prefetch", prefetch_ticks=1)
    playback.receive(playback.request(0.0), chunk(0), 10, last=True, delay=1)
    for _ in range(3):
        due = playback.due()
        assert due is not None
        assert due.index == 0


def test_a_failed_request_is_repeated_while_the_rest_of_the_chunk_plays() -> None:
    played = play("prefetch", 1, 12, silent=frozenset({1}))
    assert played == [None, *[(0, i) for i in range(5)], None, *[(2, i) for i in range(5)]][: len(played)]


def test_results_of_requests_that_are_no_longer_the_latest_are_dropped() -> None:
    playback = Playback(H, "prefetch")
    old = playback.request(0.0)
    playback.clear()
    assert not playback.receive(old, chunk(0), 10, last=True, delay=1)
    new = playback.request(1.0)
    assert not playback.receive(old, chunk(0), 10, last=True, delay=1)
    assert playback.receive(new, chunk(1), 10, last=True, delay=1)
    assert not playback.missed(new)


def test_anytime_plays_the_newest_preview_and_requests_later_than_prefetch() -> None:
    playback = Playback(H, "anytime", min_preview_steps=5)
    number = playback.request(0.0)
    playback.receive(number, chunk(0), 3, last=False, delay=1)
    due = playback.due()
    assert due is not None
    assert due.chunk.steps == 3
    playback.played(np.zeros(2, np.float32))
    playback.receive(number, chunk(0) + 10, 6, last=False, delay=2)
    playback.receive(number, chunk(0) + 20, 10, last=True, delay=4)
    due = playback.due()
    assert due is not None
    assert (due.index, due.chunk.steps, due.action[1]) == (1, 10, 21)
    # The delay that counts is that of the first preview with half of the refinement, 2 ticks, not 4.
    assert playback.prefetch_ticks == 2


def test_committed_actions_are_those_that_play_while_the_policy_computes() -> None:
    playback = Playback(H, "prefetch", prefetch_ticks=2)
    assert playback.playing is None
    playback.receive(playback.request(0.0), chunk(3), 10, last=True, delay=1)
    for _ in range(3):
        playback.played(np.zeros(2, np.float32))
    assert playback.should_request()
    assert playback.playing is not None
    assert playback.playing.actions.tolist() == [[3, 3], [3, 4]]
    assert playback.playing.committed == 2
    playback.played(np.zeros(2, np.float32))
    playback.played(np.zeros(2, np.float32))
    assert playback.playing is None


def test_a_chunk_is_renewed_after_the_first_actions_that_are_wanted_of_it() -> None:
    # Without delay, and in open loop, no more than those are played.
    assert play("prefetch", 0, 7, prefetch_ticks=0, replan_every=3)[:7] == [
        *((0, 0), (0, 1), (0, 2)),
        *((1, 0), (1, 1), (1, 2), (2, 0)),
    ]
    assert play("open-loop", 1, 6, replan_every=2) == [None, (0, 0), (0, 1), None, (1, 0), (1, 1)]
    # The next chunk is requested so that it takes over after them.
    assert play("prefetch", 1, 8, prefetch_ticks=1, replan_every=2) == [
        *(None, (0, 0), (0, 1), (1, 1), (2, 1), (3, 1), (4, 1), (5, 1)),
    ]
    # One that is late costs no hold, while there are actions.
    late = play("prefetch", 2, 8, prefetch_ticks=2, replan_every=1, silent=frozenset({1}))
    assert late == [None, None, (0, 0), (0, 1), (0, 2), (0, 3), (2, 2), (2, 3)]


def test_what_plays_beyond_the_committed_actions_is_known_where_chunks_are_renewed_early() -> None:
    playback = Playback(H, "prefetch", prefetch_ticks=1, replan_every=3)
    playback.receive(playback.request(0.0), chunk(3), 10, last=True, delay=1)
    for _ in range(2):
        assert not playback.should_request()
        playback.played(np.zeros(2, np.float32))
    assert playback.should_request()
    assert playback.playing is not None
    assert playback.playing.actions.tolist() == [[3, 2], [3, 3], [3, 4]]
    assert playback.playing.committed == 1


@pytest.mark.parametrize(("replan_every", "error"), [(0, UserError), (H + 1, UserError), (2.0, TypeError)])
def test_a_chunk_can_be_renewed_after_one_of_its_own_actions_only(
    replan_every: Any, error: type[Exception]
) -> None:
    with pytest.raises(error, match="replan_every is"):
        Playback(H, replan_every=replan_every)


def test_delay_compensation_corrects_for_what_was_played_meanwhile() -> None:
    """Chunk 0 moves by 0.1 a tick, and by 0.5 while chunk 1 is computed, which expected 0.1 there."""
    first, second = (np.full((H, 2), 0.1, np.float32) for _ in range(2))
    first[-1] = 0.5
    bounds = DeltaBounds(np.array([True, False]), np.full(2, -0.2), np.full(2, 1.0))
    playback, played = Playback(H, "prefetch", prefetch_ticks=1, delta=bounds), []
    for tick in range(9):
        if tick == 5:
            playback.receive(1, second, 10, last=True, delay=1)
        if playback.should_request():
            number = playback.request(float(tick))
            if number == 0:
                playback.receive(number, first, 10, last=True, delay=0)
        due = playback.due()
        assert due is not None
        played.append(due.action)
        playback.played(due.action)
    moved = np.array(played)
    # 0.4 too far: the correction to -0.3 is limited to -0.2; the next action takes the rest.
    assert np.allclose(moved[4:8, 0], [0.5, -0.2, 0.0, 0.1])
    assert np.isclose(moved[4:9, 0].sum(), second[:, 0].sum())
    # Absolute dimensions are not corrected.
    assert np.allclose(moved[4:9, 1], [0.5, 0.1, 0.1, 0.1, 0.1])


def test_a_hold_that_moved_the_plant_is_compensated_and_uses_no_action_of_the_chunk() -> None:
    bounds = DeltaBounds(np.array([True, False]), np.full(2, -1.0), np.full(2, 1.0))
    playback = Playback(H, "open-loop", delta=bounds)
    playback.receive(playback.request(0.0), np.full((H, 2), 0.1, np.float32), 10, last=True, delay=1)
    playback.played(np.full(2, 0.1, np.float32))
    playback.held(np.full(2, 0.06, np.float32))
    due = playback.due()
    assert due is not None
    assert due.index == 1
    assert np.allclose(due.action, [0.04, 0.1])
