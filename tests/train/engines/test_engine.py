"""All engines and precisions, compared with eager float32."""

import copy
import functools
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import torch

from rql_deploy.errors import UserError
from rql_deploy.train.batch import draw_noise
from rql_deploy.train.config import TrainConfig
from rql_deploy.train.data.sampler import WindowSampler
from rql_deploy.train.engines import choice as engines
from rql_deploy.train.engines.batch_slices import SlicedGradients
from rql_deploy.train.engines.choice import EngineChoice, choose_engine, flop_per_update
from rql_deploy.train.engines.engine import GraphEngine, compiled, make_engine
from rql_deploy.train.engines.pipeline import OneStream, Pipeline
from rql_deploy.train.hyperparameters import RQLConfig
from rql_deploy.train.logging.diagnostics import Diagnostics
from rql_deploy.train.loop.trainer import Trainer
from rql_deploy.train.rql import RQL
from tests.helpers.commands import require_compiler
from tests.helpers.data import make_store
from tests.helpers.updates import CONFIG, agent_and_draw

EAGER = EngineChoice("eager", "fp32", "cpu")


def distance(a: RQL, b: RQL) -> float:
    """Largest difference between parameters of the four networks."""
    return max(
        float((p - q).detach().abs().max())
        for name in ("v", "V", "v_ema", "V_target")
        for p, q in zip(getattr(a, name).parameters(), getattr(b, name).parameters(), strict=True)
    )


def trained(choice: EngineChoice, updates: int, config: RQLConfig = CONFIG) -> tuple[RQL, dict[str, float]]:
    agent, draw, generator = agent_and_draw(config)
    engine = make_engine(choice, agent, draw, generators=[generator])
    engine.run(updates)
    return agent, {name: float(value) for name, value in engine.figures().items()}


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(CONFIG, id="reversal"),
        pytest.param(msgspec.structs.replace(CONFIG, reversal=False), id="stepwise", marks=pytest.mark.slow),
    ],
)
def test_compiled_updates_follow_the_eager_twin(config: RQLConfig) -> None:
    require_compiler()
    twin, expected = trained(EAGER, 10, config)
    fast, figures = trained(msgspec.structs.replace(EAGER, engine="compiled"), 10, config)
    start, _, _ = agent_and_draw(config)
    assert distance(twin, start) > 1e-3
    # Adam divides by the root of the second moment, so a rounding difference in a gradient near 0 shows at
    # the scale of the learning rate.
    assert distance(twin, fast) < 2e-4
    assert figures == pytest.approx(expected, abs=2e-4, rel=2e-4)


@pytest.mark.parametrize("threads", [2, 4])
def test_threads_with_slices_of_the_batch_follow_the_eager_twin(threads: int) -> None:
    twin, expected = trained(EAGER, 10)
    fast, figures = trained(msgspec.structs.replace(EAGER, threads=threads), 10)
    again, _ = trained(msgspec.structs.replace(EAGER, threads=threads), 10)
    assert distance(fast, again) == 0.0
    assert 0.0 < distance(twin, fast) < 2e-4
    assert figures == pytest.approx(expected, abs=2e-4, rel=2e-4)


def test_the_gradient_of_slices_is_that_of_the_batch() -> None:
    agent, draw, _ = agent_and_draw()
    batch, noise = draw()
    losses, gradients = agent.gradients(batch, noise)
    parts, summed = SlicedGradients(agent, agent.losses, 4)(batch, noise)
    for a, b in zip(summed, gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    for name in losses._fields:
        torch.testing.assert_close(getattr(parts, name), getattr(losses, name), rtol=1e-5, atol=1e-6)


def test_rows_that_threads_cannot_share_evenly_are_refused() -> None:
    agent, draw, _ = agent_and_draw()
    with pytest.raises(UserError, match="cannot be shared by 3 threads"):
        SlicedGradients(agent, agent.losses, 3)(*draw())


def test_workers_share_rows_and_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(engines.os, "sched_getaffinity", lambda pid: set(range(8)))
    assert choose_engine(TrainConfig(batch_size=256, updates=10), 28, 5, workers=2).threads == 4
    # 33 rows for each of two workers, which two threads cannot share.
    assert choose_engine(TrainConfig(batch_size=66, updates=10), 28, 5, workers=2).threads == 1


def test_slices_have_rows_enough_and_are_equal() -> None:
    choice = choose_engine(TrainConfig(batch_size=256, threads=3, updates=10), 28, 5)
    assert choice.threads == 2
    assert choose_engine(TrainConfig(batch_size=256, threads=16, updates=10), 28, 5).threads == 8
    assert choose_engine(TrainConfig(batch_size=16, threads=16, updates=10), 28, 5).threads == 1


def test_bfloat16_products_stay_near_the_eager_twin() -> None:
    start, _, _ = agent_and_draw()
    _, expected = trained(EAGER, 1)
    _, figures = trained(msgspec.structs.replace(EAGER, precision="bf16"), 1)
    assert figures != expected
    # bfloat16 has 8 bits: 0.4 % per product, averaged over a batch.
    assert figures == pytest.approx(expected, rel=0.02, abs=0.01)
    twin, _ = trained(EAGER, 20)
    coarse, _ = trained(msgspec.structs.replace(EAGER, precision="bf16"), 20)
    assert distance(twin, coarse) < 0.5 * distance(twin, start)


def test_bfloat16_leaves_the_output_layers_in_float32() -> None:
    agent, draw, generator = agent_and_draw()
    make_engine(msgspec.structs.replace(EAGER, precision="bf16"), agent, draw, generators=[generator])
    torch.manual_seed(0)
    with torch.no_grad():
        agent.V.biases[-1].fill_(100.0)
        agent.V.kernels[-1].uniform_(-0.01, 0.01)
        batch, noise = draw()
        values = agent.V(batch.observations[0], noise.bc_noise, noise.bc_time)
    # Around 100, bfloat16 has steps of 0.5.
    assert values.unique().numel() > values.numel() // 2


class Recorder:
    """Stands in for CUDA graphs: a launch calls what was recorded."""

    def __init__(self) -> None:
        self.launches = 0
        self.captures = 0

    def begin(self) -> None: ...

    def warm_up(self, work: Callable[[], None]) -> None:
        work()

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        self.captures += 1

        def launch() -> None:
            self.launches += 1
            work()

        return launch


@pytest.mark.parametrize(("reversal", "ramp"), [(True, 0), (False, 0), (True, 30)])
def test_graphs_of_several_updates_do_exactly_the_updates_asked_for(reversal: bool, ramp: int) -> None:
    config = msgspec.structs.replace(CONFIG, reversal=reversal, policy_value_ramp=ramp)
    twin, expected = trained(EAGER, 58, config)
    agent, draw, _ = agent_and_draw(config)
    recorder = Recorder()
    engine = GraphEngine(agent, Pipeline(agent, draw, OneStream()), recorder)
    engine.block = 10
    engine.run(2)
    engine.run(36)
    engine.run(20)
    # 3 warm-ups, then 35 = 3 launches of 10 and 5 single ones, then 2 launches of 10.
    assert (recorder.captures, recorder.launches) == (2, 3 + 5 + 2)
    assert distance(twin, agent) == 0.0
    assert {name: float(value) for name, value in engine.figures().items()} == expected
    engine.rebuild()
    engine.run(1)
    assert recorder.captures == 4


def test_diagnostics_are_one_launch_from_the_second_time_on() -> None:
    agent, draw, _ = agent_and_draw()
    recorder = Recorder()
    engine = GraphEngine(agent, Pipeline(agent, draw, OneStream()), recorder)
    looked = Diagnostics(torch.randn(20, 4), torch.rand(20, CONFIG.h * 2))
    measure = engine.recorded(functools.partial(looked.figures, agent))
    for launches in (0, 1, 2):
        engine.run(1)
        assert measure() == looked.figures(agent)
        assert (recorder.captures, recorder.launches) == (1, launches)


def test_diagnostics_of_stacked_runs_are_those_of_each() -> None:
    agents = [RQL(CONFIG, 4, 2, torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    looked = Diagnostics(torch.randn(20, 4), torch.rand(20, CONFIG.h * 2))
    expected = [looked.figures(agent) for agent in agents]
    for name, values in looked.figures(RQL.stack(agents)).items():
        torch.testing.assert_close(values, torch.stack([figures[name] for figures in expected]))


def test_an_update_never_waits_for_its_device() -> None:
    """Like capture of a CUDA graph, the meta device raises if anything reads a number or mixes devices."""
    device = torch.device("meta")
    agent = RQL(CONFIG, 4, 2, device=device)
    store = make_store((20, 30, 25, 12))
    assert store.plant.observation_dim == 4
    sampler = WindowSampler(store, CONFIG.h, generator=None, device=device)  # type: ignore[arg-type]
    losses = agent.update(sampler.draw(16), draw_noise(16, CONFIG.h * 2, CONFIG.F, None, device))
    assert all(part.device == device and part.shape == () for part in losses)
    assert all(norm.device == device for norm in agent.gradient_norms().values())
    looked = Diagnostics(torch.randn(20, 4, device=device), torch.rand(20, CONFIG.h * 2, device=device))
    assert all(value.device == device and value.shape == () for value in looked.figures(agent).values())
    with pytest.raises(RuntimeError):
        losses.total.item()


def test_auto_compiles_long_runs_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines.shutil, "which", lambda name: f"/usr/bin/{name}")
    paper = TrainConfig(rql=RQLConfig(h=5), updates=1_000_000, threads=1)
    assert choose_engine(paper, 28, 5) == EngineChoice("compiled", "fp32", "cpu", 1)
    assert choose_engine(msgspec.structs.replace(paper, updates=100), 28, 5).engine == "eager"
    small = RQLConfig(h=5, K=2, policy_hidden=(256,) * 3, value_hidden=(256,) * 3)
    assert choose_engine(TrainConfig(rql=small, updates=5000), 19, 7).engine == "eager"
    short = msgspec.structs.replace(paper, updates=100)
    assert engines.engine_warnings(paper, choose_engine(paper, 28, 5), 28, 5) == []
    monkeypatch.setattr(engines.shutil, "which", lambda name: None)
    assert choose_engine(paper, 28, 5).engine == "eager"
    (remark,) = engines.engine_warnings(paper, choose_engine(paper, 28, 5), 28, 5)
    assert "run eagerly" in remark and "install g++" in remark
    assert engines.engine_warnings(short, choose_engine(short, 28, 5), 28, 5) == []
    asked = msgspec.structs.replace(paper, engine="eager")
    assert engines.engine_warnings(asked, choose_engine(asked, 28, 5), 28, 5) == []
    with pytest.raises(UserError, match=r"install g\+\+"):
        choose_engine(msgspec.structs.replace(paper, engine="compiled"), 28, 5)


def test_auto_never_takes_bfloat16_and_tf32_is_refused_on_a_cpu() -> None:
    assert choose_engine(TrainConfig(), 28, 5).precision == "fp32"
    with pytest.raises(UserError, match="only NVIDIA GPUs"):
        choose_engine(TrainConfig(precision="tf32"), 28, 5)


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_a_missing_gpu_is_named() -> None:
    with pytest.raises(UserError, match="finds no CUDA device"):
        choose_engine(TrainConfig(device="cuda"), 28, 5)


def test_the_operation_count_of_the_paper_size_is_known() -> None:
    assert flop_per_update(RQLConfig(h=5), 256, 28, 5) == pytest.approx(31e9, rel=0.02)


def test_what_torch_cannot_compile_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._dynamo.exc import Unsupported

    def failing(*_: object, **__: object) -> object:
        def call(*_: object) -> None:
            raise Unsupported("C++ compile error\n\nOutput:\nmain.cpp:9:1: error: no room\n more")

        return call

    monkeypatch.setattr(torch, "compile", failing)
    with pytest.raises(
        UserError, match=r"cannot compile the updates here \(main.cpp:9:1: error: no room\)"
    ) as e:
        compiled(lambda: None, "cpu")()
    assert "\n" not in str(e.value) and "--engine eager" in str(e.value)


@pytest.mark.slow
def test_a_compiled_run_resumes_with_its_engine(tmp_path: Path) -> None:
    require_compiler()
    config = TrainConfig(rql=CONFIG, updates=3, batch_size=16, engine="compiled")
    Trainer(config, make_store(), tmp_path / "run").train()
    again = Trainer(msgspec.structs.replace(config, updates=4), make_store(), tmp_path / "run", resume=True)
    assert again.choice.engine == "compiled" and again.step == 3
    before = copy.deepcopy(again.agent.v.state_dict())
    again.train()
    assert any(not torch.equal(before[name], tensor) for name, tensor in again.agent.v.state_dict().items())
