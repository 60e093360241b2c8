import dataclasses
from collections.abc import Sequence

import msgspec
import numpy as np
import pytest
import torch

from rql_deploy.contract import ActionDimension
from rql_deploy.errors import UserError
from rql_deploy.train.data import store as store_module
from rql_deploy.train.data.sampler import WindowSampler
from tests.helpers.data import PLANT, make_store

UNIT_BOUNDS = [msgspec.structs.replace(bound, low=-1.0, high=1.0) for bound in PLANT.actions]


def sampler(lengths: tuple[int, ...], **options: object) -> WindowSampler:
    store = make_store(lengths)
    # The first observation identifies the row.
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
    store.actions[2, 1] = 2.5
    scaled = store.scaled_actions()
    assert np.allclose(scaled[0], 1 - 1e-5)
    # A gripper from -2 to 4: three quarters of the way.
    assert scaled[2, 1] == 0.5
    assert np.allclose(scaled[1], -(1 - 1e-5))
    assert np.abs(scaled).max() < 1


def test_actions_are_scaled_block_by_block_to_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    store = make_store((9, 7))
    whole = store.scaled_actions()
    monkeypatch.setattr(store_module, "BLOCK_ROWS", 5)
    beside = np.zeros((len(store), whole.shape[1] + 1), np.float32)
    store.scaled_actions(out=beside[:, :-1])
    assert beside[:, :-1].tobytes() == whole.tobytes()
    assert not beside[:, -1].any()


def test_an_action_outside_its_bounds_is_named_and_clipped_only_on_request() -> None:
    store = make_store((9, 7))
    store.actions[11, 1] = 4.5
    with pytest.raises(
        UserError, match=r"action 'gripper' is 4.5 at episode 1, row 2, outside its bounds \[-2, 4\]"
    ):
        store.scaled_actions()
    assert store.scaled_actions(clip=True)[11, 1] == pytest.approx(1 - 1e-5)


def test_a_field_that_never_moves_is_not_blown_up() -> None:
    store = make_store()
    store.observations[:, 2] = 7.0
    _, std = store.normalization(True)
    assert std[2] == pytest.approx(1e-3)


def test_the_content_hash_sees_every_array() -> None:
    store = make_store()
    hashes = {store.content_hash}
    for name in ("observations", "actions", "rewards", "masks"):
        array = getattr(store, name).copy()
        array.reshape(-1)[3] += 0.5
        hashes.add(dataclasses.replace(store, **{name: array}).content_hash)
    assert len(hashes) == 5


@pytest.mark.parametrize("sampling", ["episodes", "transitions"])
@pytest.mark.parametrize("episodes", [(40, 25, 31), (6,) * 60])
@pytest.mark.parametrize(
    "bounds",
    [PLANT.actions, UNIT_BOUNDS, [msgspec.structs.replace(a, low=-0.3, high=0.7) for a in PLANT.actions]],
)
def test_scaling_each_batch_gives_the_bytes_of_scaling_the_whole_data(
    bounds: Sequence[ActionDimension], sampling: str, episodes: tuple[int, ...]
) -> None:
    store = make_store(episodes, plant=msgspec.structs.replace(PLANT, actions=tuple(bounds)))
    mean, std = (torch.from_numpy(part) for part in store.normalization(True))
    drawn = WindowSampler(
        store,
        3,
        sampling=sampling,  # type: ignore[arg-type]
        observation_scale=(mean, std),
        generator=torch.Generator().manual_seed(5),
    )
    starts = WindowSampler(store, 3, sampling=sampling, generator=torch.Generator().manual_seed(5))  # type: ignore[arg-type]
    observations = (torch.from_numpy(store.observations) - mean) / std
    actions = torch.from_numpy(store.scaled_actions())
    for _ in range(5):
        batch = drawn.draw(32)
        start, last = starts.draw_starts(32)
        rows = torch.minimum(start + torch.arange(4)[:, None], last)
        assert torch.equal(batch.observations, observations[rows])
        assert torch.equal(batch.actions, actions[rows])
        assert torch.equal(batch.rewards, torch.from_numpy(store.rewards)[rows])
        assert torch.equal(batch.masks, torch.from_numpy(store.masks)[rows])


def test_the_seeds_of_earlier_versions_give_the_batches_of_earlier_versions() -> None:
    # Start rows drawn by version 0.1.0. If they change, its checkpoints no longer resume bit for bit.
    few = sampler((9, 7, 12)).draw_starts(8)[0].tolist()
    many = sampler((5,) * 20).draw_starts(8)[0].tolist()
    by_row = sampler((9, 7, 12), sampling="transitions").draw_starts(8)[0].tolist()
    assert few == [23, 6, 17, 2, 12, 2, 11, 10]
    assert many == [21, 26, 68, 96, 36, 73, 16, 30]
    assert by_row == [21, 16, 9, 11, 14, 4, 2, 3]


def test_the_parts_of_a_batch_are_the_batch() -> None:
    whole = sampler((9, 7, 12)).draw(10)
    parts = [sampler((9, 7, 12)).draw(10, part) for part in ((0, 4), (4, 10))]
    for name in (name for name in whole._fields if name != "images"):
        if getattr(whole, name) is None:  # No row is a person's.
            assert all(getattr(part, name) is None for part in parts)
            continue
        joined = torch.cat([getattr(part, name) for part in parts], dim=1)
        assert torch.equal(joined, getattr(whole, name))


def test_a_draw_leaves_the_stored_rows_alone() -> None:
    store = make_store()
    before = store.content_hash
    scale = tuple(torch.from_numpy(part) for part in store.normalization(True))
    drawing = WindowSampler(store, 3, observation_scale=scale, generator=torch.Generator().manual_seed(0))  # type: ignore[arg-type]
    for _ in range(3):
        drawing.draw(16)
    assert make_store().content_hash == before == dataclasses.replace(store).content_hash


def test_observations_inside_the_window_can_be_left_out() -> None:
    whole, ends = sampler((9, 7, 12)).draw(10), sampler((9, 7, 12), inner_observations=False).draw(10)
    assert torch.equal(ends.observations, whole.observations[[0, 3]])
    assert torch.equal(ends.actions, whole.actions)


@pytest.mark.parametrize("sampling", ["episodes", "transitions"])
def test_a_draw_on_a_device_asks_it_for_no_value(sampling: str) -> None:
    # The meta device has shapes but no numbers: reading one raises.
    store = make_store((6,) * 50)
    drawing = WindowSampler(store, 3, sampling=sampling, generator=torch.Generator())  # type: ignore[arg-type]
    drawing.device, drawing.generator = torch.device("meta"), None  # type: ignore[assignment]
    drawing.offsets = drawing.offsets.to("meta")
    drawing.use(drawing.rows.to(drawing.device))
    batch = drawing.draw(16)
    assert batch.observations.shape == (4, 16, store.plant.observation_dim)
    assert batch.actions.shape == (4, 16, store.plant.action_dim)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_windows_follow_the_same_rule() -> None:
    store = make_store((6,) * 50)
    store.observations[:, 0] = np.arange(len(store))
    draw = WindowSampler(store, 3, generator=torch.Generator("cuda").manual_seed(0), device="cuda").draw(40)
    rows = draw.observations[..., 0].int().cpu()
    assert len(set((rows[0] // 6).tolist())) == 40
    assert not (rows[0] % 6 == 5).any()
    for i in range(4):
        assert torch.equal(rows[i], torch.minimum(rows[0] + i, rows[0] // 6 * 6 + 5))
    reference = torch.from_numpy(store.scaled_actions())[rows.long()]
    assert torch.equal(draw.actions.cpu(), reference)
