import dataclasses

import numpy as np
import pytest
import torch

from rql_deploy.errors import UserError
from rql_deploy.train.sampler import WindowSampler
from tests.conftest import make_store


def sampler(lengths: tuple[int, ...], **options: object) -> WindowSampler:
    store = make_store(lengths)
    # Each row is recognised by its first observation.
    store.observations[:, 0] = np.arange(len(store))
    return WindowSampler(store, 3, generator=torch.Generator().manual_seed(0), **options)  # type: ignore[arg-type]


def test_windows_are_consecutive_rows_that_repeat_the_episodes_last_one() -> None:
    draw = sampler((6, 4)).draw(512)
    rows = draw.observations[..., 0].int()
    last = torch.where(rows[0] < 6, 5, 9)
    for i in range(4):
        assert torch.equal(rows[i], torch.minimum(rows[0] + i, last))
    assert torch.equal(draw.terminals, torch.isin(rows, torch.tensor([5, 9])).float())


def test_the_reference_sampler_never_starts_at_an_episodes_last_row() -> None:
    rows = sampler((6, 4)).draw(4096).observations[0, :, 0].int()
    assert set(rows.tolist()) == {0, 1, 2, 3, 4, 6, 7, 8}


def test_complete_rows_let_every_row_start_a_window() -> None:
    rows = sampler((6, 4, 1), complete_rows=True).draw(4096).observations[0, :, 0].int()
    assert set(rows.tolist()) == set(range(11))


def test_episodes_of_one_row_are_never_drawn() -> None:
    rows = sampler((6, 1, 4)).draw(4096).observations[0, :, 0].int()
    assert 6 not in rows


def test_episodes_are_drawn_without_replacement_while_the_batch_is_smaller_than_their_number() -> None:
    rows = sampler((4,) * 50).draw(40).observations[0, :, 0].int() // 4
    assert len(set(rows.tolist())) == 40


@pytest.mark.parametrize(("sampling", "share"), [("episodes", 0.5), ("transitions", 99 / 102)])
def test_episodes_or_transitions_are_uniform(sampling: str, share: float) -> None:
    rows = sampler((100, 4), sampling=sampling).draw(20_000).observations[0, :, 0]
    assert (rows < 100).float().mean().item() == pytest.approx(share, abs=0.02)


def test_actions_are_scaled_from_their_bounds_and_kept_inside() -> None:
    store = make_store()
    store.actions[0] = store.plant.action_high
    store.actions[1] = store.plant.action_low
    scaled = store.scaled_actions()
    assert np.allclose(scaled[0], 1 - 1e-5)
    assert np.allclose(scaled[1], -(1 - 1e-5))
    assert np.abs(scaled).max() < 1


def test_an_action_outside_its_bounds_is_named_and_clipped_only_on_request() -> None:
    store = make_store((9, 7))
    store.actions[11, 1] = 4.5
    with pytest.raises(UserError, match=r"action 'gripper' is 4.5 at episode 1, row 2, outside its bounds \[-2, 4\]"):
        store.scaled_actions()
    assert store.scaled_actions(clip=True)[11, 1] == pytest.approx(1 - 1e-5)


def test_a_field_that_never_moves_is_not_blown_up() -> None:
    store = make_store()
    store.observations[:, 2] = 7.0
    _, std = store.observation_scale(True)
    assert std[2] == pytest.approx(1e-3)


def test_the_content_hash_sees_every_array() -> None:
    store = make_store()
    hashes = {store.content_hash}
    for name in ("observations", "actions", "rewards", "masks"):
        array = getattr(store, name).copy()
        array.reshape(-1)[3] += 0.5
        hashes.add(dataclasses.replace(store, **{name: array}).content_hash)
    assert len(hashes) == 5
