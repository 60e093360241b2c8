"""Training from pictures: encoders inside v and V, one pass of each per update, crops, checkpoints."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from rql_deploy.errors import UserError
from rql_deploy.train.batch import draw_noise
from rql_deploy.train.checkpoints.checkpoint import load_checkpoint
from rql_deploy.train.config import TrainConfig
from rql_deploy.train.data.random_crop import RandomCrop
from rql_deploy.train.data.sampler import WindowSampler
from rql_deploy.train.engines.batch_slices import SlicedGradients
from rql_deploy.train.engines.engine import StepEngine, compiled
from rql_deploy.train.engines.pipeline import WholeUpdates
from rql_deploy.train.engines.precision import set_precision
from rql_deploy.train.hyperparameters import RQLConfig
from rql_deploy.train.loop.trainer import Trainer
from rql_deploy.train.rql import NETWORKS, RQL
from rql_deploy.train.vision.encoder import ImpalaEncoder
from rql_deploy.train.vision.pictures import picture_shapes
from tests.helpers.data import make_picture_store

SMALL = RQLConfig(h=3, F=2, K=2, policy_hidden=(16, 16), value_hidden=(16, 16))
CONFIG = TrainConfig(
    rql=SMALL, updates=6, batch_size=4, frame_stack=2, engine="eager", threads=1, log_every=3
)
CAMERAS = ("wrist.left", "front")


@pytest.fixture(autouse=True)
def no_run_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its plots take most of the time of so short a run."""
    monkeypatch.setattr("rql_deploy.train.loop.training_run.write_run_page", lambda run: None)


def sampler(seed: int = 0, crop: RandomCrop | None = None) -> WindowSampler:
    store = make_picture_store(CAMERAS)
    return WindowSampler(store, SMALL.h, generator=torch.Generator().manual_seed(seed), crop=crop)


def agent_of(config: RQLConfig = SMALL) -> RQL:
    shapes = {name: (6, 7, 3) for name in CAMERAS}
    return RQL(config, 4, 2, torch.Generator().manual_seed(0), pictures=shapes)


@pytest.mark.parametrize("reversal", [True, False])
def test_each_encoder_runs_once_an_update_and_gets_gradients_from_its_own_network_only(
    reversal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawing = sampler()
    agent = agent_of(msgspec.structs.replace(SMALL, reversal=reversal))
    batch, noise = drawing.draw(4), draw_noise(4, 6, 2, torch.Generator().manual_seed(1))
    names = {id(e): n for n in ("v", "V", "V_target", "v_ema") for e in getattr(agent, n).encoder.encoders}
    calls: Counter[tuple[str, bool]] = Counter()
    forward = ImpalaEncoder.forward

    def counted(self: ImpalaEncoder, pictures: torch.Tensor) -> torch.Tensor:
        calls[names[id(self)], torch.is_grad_enabled()] += 1
        return forward(self, pictures)

    monkeypatch.setattr(ImpalaEncoder, "forward", counted)
    losses = agent.losses(batch, noise)
    # Two cameras; the ablation's target looks at the first observation, too.
    assert calls == {("v", True): 2, ("V", True): 2, ("V_target", False): 2 if reversal else 4}
    seen = agent.see(batch)
    value, _ = agent.value_loss(batch, noise, seen)
    policy, _ = agent.policy_loss(batch, noise, seen)
    for loss, mine, other in ((value, agent.V, agent.v), (policy, agent.v, agent.V)):
        inner = [*mine.encoder.parameters()]
        assert all(g.abs().sum() > 0 for g in torch.autograd.grad(loss, inner, retain_graph=True)[-2:])
        none = torch.autograd.grad(loss, [*other.encoder.parameters()], retain_graph=True, allow_unused=True)
        assert all(gradient is None for gradient in none)
    assert torch.equal(losses.total, value + policy)


def test_features_come_before_the_numbers_and_cameras_in_the_plants_order() -> None:
    drawing = sampler()
    agent, batch = agent_of(), drawing.draw(4)
    wrist, front = agent.v.encoder.encoders
    expected = torch.cat(
        (wrist(batch.images["wrist.left"][0]), front(batch.images["front"][0]), batch.observations[0]), -1
    )
    assert torch.equal(agent.see(batch).by_v, expected)
    assert agent.v.observation_dim == 2 * 512 + 4


def test_one_coin_shifts_all_of_a_batch_and_both_rows_alike() -> None:
    plain = sampler(seed=3)
    crop = RandomCrop(1.0, 3)
    batch, _ = plain.windows(torch.tensor([0, 4, 9, 16]), torch.tensor([8, 8, 15, 27]))
    offsets = torch.tensor([[3, 3], [0, 6], [6, 0], [2, 5]])
    shifted = crop.apply(batch.images, offsets)
    for name in CAMERAS:
        for row in range(2):
            for i, (down, right) in enumerate(offsets.tolist()):
                padded = np.pad(batch.images[name][row, i].numpy(), ((3, 3), (3, 3), (0, 0)), mode="edge")
                np.testing.assert_array_equal(
                    shifted[name][row, i].numpy(), padded[down : down + 6, right : right + 7]
                )
    drawn = [
        RandomCrop(0.5, 3).draw(8, torch.Generator().manual_seed(s), torch.device("cpu")) for s in range(40)
    ]
    still = [bool((offsets == 3).all()) for offsets in drawn]
    assert 10 <= sum(still) <= 30
    assert {int(value) for offsets in drawn for value in offsets.flatten()} == set(range(7))
    never, always = (sampler(5, RandomCrop(p, 3)).draw(4).images["front"] for p in (0.0, 1.0))
    assert torch.equal(never, sampler(5).draw(4).images["front"]) and not torch.equal(never, always)


def test_parts_of_a_batch_are_shifted_as_the_whole() -> None:
    crop = RandomCrop(1.0, 3)
    whole = sampler(2, crop).draw(3).images["front"]
    parts = [sampler(2, crop).draw(3, part).images["front"] for part in ((0, 1), (1, 3))]
    assert torch.equal(torch.cat(parts, dim=1), whole)


def test_a_resumed_run_repeats_an_uninterrupted_one_bit_for_bit(tmp_path: Path) -> None:
    store = make_picture_store(CAMERAS)
    Trainer(CONFIG, store, tmp_path / "whole").train()
    Trainer(msgspec.structs.replace(CONFIG, updates=3), store, tmp_path / "parts").train()
    Trainer(CONFIG, store, tmp_path / "parts", resume=True).train()
    whole, parts = load_checkpoint(tmp_path / "whole"), load_checkpoint(tmp_path / "parts")
    assert whole.plant.frame_stack == 2 and parts.step == 6
    assert {k for k in whole.parameters if "encoder" in k}
    for name, tensor in whole.parameters.items():
        assert torch.equal(tensor, parts.parameters[name]), name
    assert whole.reference["images/front"].shape == (22, 6, 7, 6)
    agent = parts.restore_networks()
    for camera, encoder in zip(CAMERAS, agent.v.encoder.encoders, strict=True):
        stacked = encoder(whole.reference[f"images/{camera}"])
        assert stacked.shape == (22, 512)
    with pytest.raises(UserError, match="sees 2 frames at once, this run 1: pass --set frame_stack=2"):
        plain = msgspec.structs.replace(CONFIG, frame_stack=0)
        Trainer(plain, store, tmp_path / "other", initial=whole)


def test_stacks_of_reference_rows_begin_with_the_episodes_first_frame(tmp_path: Path) -> None:
    trainer = Trainer(CONFIG, make_picture_store(CAMERAS), tmp_path / "run")
    shades = trainer.reference["images/front"][:, 0, 0, ::3]
    np.testing.assert_array_equal(shades[:3], [[0, 0], [0, 1], [1, 2]])
    assert [9, 9] in shades.tolist() and [8, 9] not in shades.tolist()


def test_slices_of_a_batch_give_the_whole_batchs_gradients() -> None:
    batch = sampler(1).windows(torch.tensor([0, 4, 9, 16]), torch.tensor([8, 8, 15, 27]))[0]
    agent, noise = agent_of(), draw_noise(4, 6, 2, torch.Generator().manual_seed(1))
    expected = agent.gradients(batch, noise)[1]
    sliced = SlicedGradients(agent, agent.losses, 2)(batch, noise)[1]
    for mine, theirs in zip(sliced, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_data_of_pictures_alone_trains(tmp_path: Path) -> None:
    store = make_picture_store(fields=False)
    assert picture_shapes(store.plant) == {"camera": (6, 7, 3)}
    result = Trainer(replace_updates(2), store, tmp_path / "run").train()
    assert result.finished and np.isfinite(list(result.losses.values())).all()
    assert load_checkpoint(tmp_path / "run").reference["observations"].shape == (22, 0)


def replace_updates(updates: int) -> TrainConfig:
    return msgspec.structs.replace(CONFIG, updates=updates)


def test_a_camera_that_the_data_lacks_is_named() -> None:
    store = replace(make_picture_store(CAMERAS), images={})
    with pytest.raises(UserError, match=r"lacks the frames of camera 'wrist\.left'"):
        store.validate_rows()


def test_whole_updates_as_graphs_record_them_are_those_of_the_eager_engine() -> None:
    agents = [agent_of(), agent_of()]
    for agent, engine in zip(agents, ("eager", "graph"), strict=True):
        drawing, generator = sampler(4, RandomCrop(1.0, 3)), torch.Generator().manual_seed(1)

        def draw(drawing: WindowSampler = drawing, generator: torch.Generator = generator) -> Any:
            return drawing.draw(4), draw_noise(4, 6, 2, generator)

        if engine == "eager":
            StepEngine(agent, draw, agent.gradients).run(3)
        else:
            WholeUpdates(agent, draw, agent.losses).run(3)
    for name in NETWORKS:
        mine, theirs = (getattr(agent, name).state_dict() for agent in agents)
        assert all(torch.equal(tensor, theirs[key]) for key, tensor in mine.items())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_bfloat16_convolves_in_it_and_keeps_the_rest(precision: str) -> None:
    agent, batch = agent_of(), sampler().draw(3)
    exact = agent.see(batch).by_v
    set_precision(agent, precision)
    features = agent.see(batch).by_v
    assert features.dtype == torch.float32
    assert torch.equal(features, exact) == (precision == "fp32")
    torch.testing.assert_close(features, exact, rtol=0.05, atol=0.05)


@pytest.mark.slow
def test_compiled_losses_of_pictures_are_the_eager_ones() -> None:
    agent, batch = agent_of(), sampler().draw(3)
    noise = draw_noise(3, 6, 2, torch.Generator().manual_seed(1))
    fast = compiled(agent.losses, "cpu")
    (expected, gradients), (losses, others) = (
        agent.gradients(batch, noise, losses=function) for function in (None, fast)
    )
    torch.testing.assert_close(losses.total, expected.total, rtol=1e-5, atol=1e-5)
    for mine, theirs in zip(others, gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)


def test_several_runs_at_once_see_no_pictures() -> None:
    with pytest.raises(ValueError, match="runs that see pictures are trained one by one"):
        RQL.stack([agent_of(), agent_of()])
