"""Which action is due: checked in ticks, without a clock."""

import itertools

import numpy as np

from rql_deploy.runtime.control.playback import DeltaBounds, Mode, Playback

H = 5


def chunk(number: int) -> np.ndarray:
    """Action i of chunk n is [n, i]."""
    return np.array([[number, i] for i in range(H)], np.float32)


def play(
    mode: Mode, delay: int, ticks: int, *, lead: int | None = None, silent: frozenset[int] = frozenset()
) -> list[tuple[int, int] | None]:
    """(chunk, index) played in each tick, None for a hold, with answers `delay` ticks after the question,
    none to `silent` ones."""
    playback, under_way, found = Playback(H, mode, lead=lead), [], []
    for tick in range(ticks):
        for asked, number in [entry for entry in under_way if entry[0] + delay <= tick]:
            under_way.remove((asked, number))
            if number in silent:
                playback.missed(number)
            else:
                playback.receive(number, chunk(number), 10, last=True, delay=delay)
        if playback.wants():
            under_way.append((tick, playback.ask(float(tick))))
        for asked, number in [entry for entry in under_way if entry[0] + delay <= tick]:
            under_way.remove((asked, number))
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
        assert play(mode, 0, 11, lead=0) == [(n, i) for n in (0, 1, 2) for i in range(5)][:11]


def test_open_loop_holds_while_it_waits_and_plays_from_the_first_action() -> None:
    assert play("open-loop", 2, 10) == [None, None, *[(0, i) for i in range(5)], None, None, (1, 0)]


def test_prefetched_chunks_take_over_at_the_action_that_is_due() -> None:
    # Asked one tick before chunk 0 ends, with the observation before its action 4: action 0 of chunk 1 is
    # past when it arrives.
    assert play("prefetch", 1, 10) == [None, *[(0, i) for i in range(5)], *[(1, i) for i in range(1, 5)]]


def test_previews_are_asked_for_as_long_as_some_would_be_played() -> None:
    playback, wanted = Playback(H, "anytime", enough=5), []
    for delay in [0.4] * 3 + [1.7] * 6 + [0.9] * 60:
        wanted.append(playback.previews)
        number = playback.ask(0.0)
        if playback.previews:
            playback.receive(number, chunk(number), 5, last=False, delay=delay / 2)
        playback.receive(number, chunk(number), 10, last=True, delay=delay)
    # Before anything is known; once decisions are slow, although the first half of their steps fits into a
    # tick; until they no longer are.
    assert wanted[:9] == [True, False, False, False, *[True] * 5]
    assert wanted[9:50] == [True] * 41
    assert not wanted[-1]
    prefetching = Playback(H, "prefetch")
    prefetching.receive(prefetching.ask(0.0), chunk(0), 10, last=True, delay=3.0)
    assert not prefetching.previews


def test_the_lead_follows_the_delays_and_leaves_h_minus_delay_actions_of_each_chunk() -> None:
    for delay in (1, 2):
        played = play("prefetch", delay, 60)
        assert None not in played[20:]
        first_indices = {b[1] for a, b in itertools.pairwise(played[20:]) if a and b and a[0] != b[0]}
        assert first_indices == {delay}


def test_a_delay_beyond_half_a_chunk_holds_between_chunks() -> None:
    # With one question at a time, chunks cover the delay up to half their length; beyond it there are holds,
    # but fewer than in open loop.
    for delay in (3, 4, 7):
        prefetch, open_loop = (play(mode, delay, 240)[20:].count(None) for mode in ("prefetch", "open-loop"))
        assert 0 < prefetch <= open_loop < 180
        assert (prefetch < open_loop) == (delay < H)


def test_a_held_tick_does_not_count_as_played() -> None:
    playback = Playback(H, "prefetch", lead=1)
    playback.receive(playback.ask(0.0), chunk(0), 10, last=True, delay=1)
    for _ in range(3):
        due = playback.due()
        assert due is not None
        assert due.index == 0


def test_a_question_without_an_answer_is_asked_again_while_the_rest_of_the_chunk_plays() -> None:
    played = play("prefetch", 1, 12, silent=frozenset({1}))
    assert played == [None, *[(0, i) for i in range(5)], None, *[(2, i) for i in range(5)]][: len(played)]


def test_answers_to_questions_that_are_no_longer_the_latest_are_not_taken() -> None:
    playback = Playback(H, "prefetch")
    old = playback.ask(0.0)
    playback.forget()
    assert not playback.receive(old, chunk(0), 10, last=True, delay=1)
    new = playback.ask(1.0)
    assert not playback.receive(old, chunk(0), 10, last=True, delay=1)
    assert playback.receive(new, chunk(1), 10, last=True, delay=1)
    assert not playback.missed(new)


def test_anytime_plays_the_newest_preview_and_asks_later_than_prefetch() -> None:
    playback = Playback(H, "anytime", enough=5)
    number = playback.ask(0.0)
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
    assert playback.lead == 2


def test_what_will_be_played_while_the_policy_thinks_is_known() -> None:
    playback = Playback(H, "prefetch", lead=2)
    assert playback.committed is None
    playback.receive(playback.ask(0.0), chunk(3), 10, last=True, delay=1)
    for _ in range(3):
        playback.played(np.zeros(2, np.float32))
    assert playback.wants()
    committed = playback.committed
    assert committed is not None
    assert committed.tolist() == [[3, 3], [3, 4]]
    playback.played(np.zeros(2, np.float32))
    playback.played(np.zeros(2, np.float32))
    assert playback.committed is None


def test_a_chunk_of_delta_motion_makes_up_for_what_was_played_in_its_stead() -> None:
    """Chunk 0 moves by 0.1 a tick. Its last action, 0.5, is played while chunk 1 is made, which meant to move
    by 0.1 there."""
    first, second = (np.full((H, 2), 0.1, np.float32) for _ in range(2))
    first[-1] = 0.5
    bounds = DeltaBounds(np.array([True, False]), np.full(2, -0.2), np.full(2, 1.0))
    playback, played = Playback(H, "prefetch", lead=1, delta=bounds), []
    for tick in range(9):
        if tick == 5:
            playback.receive(1, second, 10, last=True, delay=1)
        if playback.wants():
            number = playback.ask(float(tick))
            if number == 0:
                playback.receive(number, first, 10, last=True, delay=0)
        due = playback.due()
        assert due is not None
        played.append(due.action)
        playback.played(due.action)
    moved = np.array(played)
    # 0.4 too far: -0.3 at once where the bounds allow -0.2, the rest with the action after it.
    assert np.allclose(moved[4:8, 0], [0.5, -0.2, 0.0, 0.1])
    assert np.isclose(moved[4:9, 0].sum(), second[:, 0].sum())
    # Absolute dimensions are left alone.
    assert np.allclose(moved[4:9, 1], [0.5, 0.1, 0.1, 0.1, 0.1])


def test_a_hold_that_moved_the_plant_is_made_up_for_and_takes_no_action_of_the_chunk() -> None:
    bounds = DeltaBounds(np.array([True, False]), np.full(2, -1.0), np.full(2, 1.0))
    playback = Playback(H, "open-loop", delta=bounds)
    playback.receive(playback.ask(0.0), np.full((H, 2), 0.1, np.float32), 10, last=True, delay=1)
    playback.played(np.full(2, 0.1, np.float32))
    playback.held(np.full(2, 0.06, np.float32))
    due = playback.due()
    assert due is not None
    assert due.index == 1
    assert np.allclose(due.action, [0.04, 0.1])
