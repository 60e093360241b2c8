"""What may be drawn while an episode is unfinished, and with what weight: the released code's rule."""

from __future__ import annotations

import numpy as np
import torch

from rql_deploy.train.data.sampler import Rows, WindowSampler
from rql_deploy.train.online.buffer import PlayedEpisode, ReplayBuffer
from tests.helpers.data import make_store

H = 3


def released_sampler(terminals: np.ndarray) -> list[tuple[int, int]]:
    """The released code's rule, step by step, over transitions in the order in which they came: the episodes
    `(first, last)` that a batch may draw from. Rows behind the last terminal belong to no episode.
    """
    ends: list[int] = []
    firsts: list[int] = []
    for row, terminal in enumerate(terminals):
        if terminal:
            firsts = [0, *(end + 1 for end in ends)]
            ends.append(row)
    return [(first, last) for first, last in zip(firsts, ends, strict=True) if last - first > 0]


def played(rows: int, seed: int = 0) -> PlayedEpisode:
    rng = np.random.default_rng(seed)
    return PlayedEpisode(
        rng.normal(size=(rows, 4)).astype(np.float32),
        rng.uniform(-1, 1, (rows, 2)).astype(np.float32),
        -np.ones(rows, np.float32),
        np.ones(rows, np.float32),
        np.zeros(rows, np.bool_),
        False,
    )


def drawable(rows: Rows) -> list[tuple[int, int]]:
    return [(int(first), int(last)) for first, last, *_ in rows.episodes]


def test_only_complete_episodes_can_be_drawn_after_every_step() -> None:
    store = make_store()
    terminals = np.zeros(len(store))
    terminals[store.ends - 1] = 1
    buffer = ReplayBuffer(Rows.of(store, complete_rows=False), 40)
    lengths = (5, 1, 7, 2)
    for seed, length in enumerate(lengths):
        for step in range(length):
            terminals = np.append(terminals, float(step == length - 1))
            if step == length - 1:
                buffer.add(played(length, seed))
            assert drawable(buffer.rows) == released_sampler(terminals)
    # An episode of one row is kept, and never drawn.
    assert len(buffer.rows.observations) == len(store) + sum(lengths)
    assert len(drawable(buffer.rows)) == store.episodes + len(lengths) - 1


def test_a_played_episode_has_the_weight_of_any_other_and_its_last_row_starts_no_window() -> None:
    store = make_store()
    generator = torch.Generator().manual_seed(0)
    sampler = WindowSampler(store, H, generator=generator, inner_observations=False)
    buffer = ReplayBuffer(sampler.rows, 40)
    buffer.add(played(20))
    sampler.use(buffer.rows)
    starts = torch.cat([sampler.draw_starts(4000)[0] for _ in range(5)]).numpy()
    first, last = len(store), len(store) + 19
    new = starts[starts >= first]
    # One of four episodes: a quarter of the batch, although it has 20 of 48 rows.
    assert abs(len(new) / len(starts) - 0.25) < 0.01
    assert new.min() == first and new.max() == last - 1
    # Starts are uniform within the episode.
    counts = np.bincount(new - first, minlength=19)
    assert counts.min() > 0.7 * counts.mean() and counts.max() < 1.3 * counts.mean()


def test_no_episode_twice_in_a_batch_while_there_are_more_than_it_has_windows() -> None:
    store = make_store()
    sampler = WindowSampler(store, H, generator=torch.Generator().manual_seed(0))
    buffer = ReplayBuffer(sampler.rows, 40)
    for seed in range(4):
        buffer.add(played(5, seed))
    sampler.use(buffer.rows)
    for _ in range(50):
        _, last = sampler.draw_starts(6)
        assert len(set(last.tolist())) == 6
    # As soon as the batch is as large as the number of episodes, they are drawn with replacement.
    assert any(len(set(sampler.draw_starts(7)[1].tolist())) < 7 for _ in range(50))


def test_windows_of_played_rows_are_what_was_played() -> None:
    store = make_store()
    sampler = WindowSampler(store, H, generator=torch.Generator().manual_seed(0))
    buffer = ReplayBuffer(sampler.rows, 10)
    episode = played(5)
    episode.actions[0] = 1.0  # A policy clips to [-1, 1] itself: its actions are kept as they are.
    buffer.add(episode)
    sampler.use(buffer.rows)
    start = len(store)
    batch, _ = sampler.windows(torch.tensor([start, start + 3]), torch.tensor([start + 4, start + 4]))
    assert np.array_equal(batch.actions[:, 0].numpy(), episode.actions[:4])
    assert np.array_equal(batch.actions[:, 1].numpy(), episode.actions[[3, 4, 4, 4]])
    assert batch.terminals[:, 1].tolist() == [0, 1, 1, 1]
    assert batch.masks[:, 1].tolist() == [1, 1, 1, 1]


def test_a_share_of_each_batch_is_new_and_spread_over_both_halves() -> None:
    store = make_store()
    for sampling in ("episodes", "transitions"):
        sampler = WindowSampler(
            store,
            H,
            sampling=sampling,  # type: ignore[arg-type]
            generator=torch.Generator().manual_seed(0),
            new_share=0.25,
        )
        buffer = ReplayBuffer(sampler.rows, 40)
        assert (sampler.draw_starts(64)[0] < len(store)).all()
        buffer.add(played(20))
        buffer.add(played(9, 1))
        sampler.use(buffer.rows)
        starts = torch.stack([sampler.draw_starts(64)[0] for _ in range(40)])
        new = starts >= len(store)
        assert (new.sum(1) == 16).all()
        assert (new[:, :32].sum(1) == 8).all()
        assert set(starts[new].tolist()) == {*range(28, 47), *range(48, 56)}
