"""Runs that are killed, interrupted and resumed."""

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
import torch

from rql_deploy.errors import UserError
from rql_deploy.progress import TerminalProgress
from rql_deploy.train.checkpoints.checkpoint import load_checkpoint
from rql_deploy.train.checkpoints.run_folder import read_pointer
from rql_deploy.train.config import TrainConfig
from rql_deploy.train.hyperparameters import RQLConfig
from rql_deploy.train.logging.loggers import read_metrics
from rql_deploy.train.logging.periodic_evaluation import Evaluation, read_evaluations
from rql_deploy.train.loop.trainer import Trainer
from tests.helpers.commands import TINY, assert_refused, cli
from tests.helpers.data import make_store, write_minari

CONFIG = TrainConfig(
    rql=RQLConfig(h=3, F=4, K=2, policy_hidden=(16, 16), value_hidden=(16, 16)),
    updates=12,
    batch_size=8,
    log_every=4,
    standardise=True,
)


def steps_on_disk(run: Path) -> list[int]:
    return sorted(int(folder.name.removeprefix("step_")) for folder in (run / "checkpoints").glob("step_*"))


@pytest.mark.slow
def test_a_run_killed_at_random_moments_ends_as_one_never_killed(dataset: Path, tmp_path: Path) -> None:
    settings = (
        "--dataset",
        str(dataset),
        *TINY,
        "--updates",
        "300",
        "--engine",
        "eager",
        "--set",
        "checkpoint_every=10",
        "--set",
        "threads=1",
    )
    assert cli("train", *settings, "--output", tmp_path / "whole").exit_code == 0
    run = tmp_path / "killed"
    command = [sys.executable, "-m", "rql_deploy", "train", *settings, "--output", str(run)]
    clock = random.Random(0)
    killed = 0
    for attempt in range(40):
        resume = ["--resume"] if attempt else []
        process = subprocess.Popen(
            [*command, *resume], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        before = read_pointer(run, "latest")
        # Killed at a random moment after a new checkpoint, so that every attempt makes progress and is killed
        # while it trains or saves.
        while killed < 3 and process.poll() is None and read_pointer(run, "latest") == before:
            time.sleep(0.005)
        if killed < 3:
            time.sleep(clock.uniform(0.0, 0.3))
            process.kill()
        text, _ = process.communicate(timeout=120)
        killed += process.returncode == -9
        if process.returncode == 0:
            break
        assert process.returncode == -9, text
    assert killed >= 3
    whole, pieces = load_checkpoint(tmp_path / "whole"), load_checkpoint(run)
    assert whole.step == pieces.step == 300
    assert all(torch.equal(whole.parameters[name], pieces.parameters[name]) for name in whole.parameters)
    # The log is that of an uninterrupted run.
    assert [m["step"] for m in read_metrics(run)] == [m["step"] for m in read_metrics(tmp_path / "whole")]
    assert [m["total"] for m in read_metrics(run)] == [m["total"] for m in read_metrics(tmp_path / "whole")]


def test_a_run_cut_off_before_its_first_checkpoint_starts_over(dataset: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text("{}")
    result = cli("train", "--dataset", dataset, "--output", run, *TINY, "--updates", 3, "--resume")
    assert result.exit_code == 0, result.output
    assert load_checkpoint(run).step == 3


def test_a_checkpoint_starts_a_run_on_new_data_of_the_same_robot(tmp_path: Path) -> None:
    first = tmp_path / "first"
    Trainer(CONFIG, make_store(), first).train()
    source = load_checkpoint(first)
    config = msgspec.structs.replace(
        CONFIG, updates=1, rql=msgspec.structs.replace(CONFIG.rql, alpha=3.0, learning_rate=1e-5)
    )
    trainer = Trainer(config, make_store(seed=7), tmp_path / "second", initial=source)
    for name, tensor in source.parameters.items():
        network, _, key = name.partition(".")
        assert torch.equal(getattr(trainer.agent, network).state_dict()[key], tensor)
    # The networks were trained on observations scaled by the first data's mean and standard deviation.
    assert torch.equal(trainer.reference["mean"], source.reference["mean"])
    assert trainer.agent.optimizer.param_groups[0]["lr"] == 1e-5
    assert trainer.agent.config.alpha == 3.0
    assert float(trainer.agent.optimizer.state_dict()["state"][0]["step"]) == 12
    trainer.train()
    second = load_checkpoint(tmp_path / "second")
    assert second.step == 1 and str(source.path) in str(second.initialised_from)
    resumed = Trainer(
        msgspec.structs.replace(config, updates=2), make_store(seed=7), tmp_path / "second", resume=True
    )
    assert torch.equal(resumed.reference["mean"], source.reference["mean"])
    assert resumed.initialised_from == second.initialised_from


def test_starting_from_a_checkpoint_on_two_data_sets(run: Path, dataset: Path, tmp_path: Path) -> None:
    more = write_minari(tmp_path / "more", seed=3)
    train = ("train", "--output", tmp_path / "next", "--updates", 2, *TINY, "--init-from", run)
    result = cli(*train, "--dataset", dataset, "--dataset", more)
    assert result.exit_code == 0, result.output
    assert load_checkpoint(tmp_path / "next").statistics["episodes"] == 6


def test_networks_of_another_shape_are_refused_with_what_to_set(
    run: Path, dataset: Path, tmp_path: Path
) -> None:
    train = ("train", "--output", tmp_path / "next", "--dataset", dataset, "--init-from", run, *TINY)
    assert_refused(cli(*train, "--set", "rql.K=3"), "rql.K 2, this run 3", "--set 'rql.K=2'")
    assert_refused(cli(*train, "--set", "rql.value_hidden=[8]"), "--set 'rql.value_hidden=[16, 16]'")
    assert_refused(cli(*train, "--resume"), "pass only one of them")
    assert_refused(
        cli("train", "--output", tmp_path / "next", "--dataset", dataset, "--init-from", tmp_path),
        "neither a checkpoint nor a run",
    )
    assert not (tmp_path / "next").exists()


class ScriptedEvaluator:
    """The score is made from the step and returned at the second call of `finished`."""

    def __init__(self, success: dict[int, float], task: str = "lift"):
        self.success, self.task = success, task
        self.submitted: dict[int, Path] = {}
        self.waiting: list[int] = []
        self.asked = 0

    def submit(self, step: int, checkpoint: Path) -> None:
        assert load_checkpoint(checkpoint).step == step
        self.submitted[step] = checkpoint
        self.waiting.append(step)

    def finished(self) -> list[Evaluation]:
        self.asked += 1
        if self.asked % 2 or not self.waiting:
            return []
        step = self.waiting.pop(0)
        return [Evaluation(step, 10, self.success[step], 0.0, 1.0, 50.0, task=self.task)]

    def pending(self) -> frozenset[int]:
        return frozenset(self.waiting)

    def close(self) -> None: ...


def test_the_best_and_the_last_checkpoint_are_kept(tmp_path: Path) -> None:
    config = msgspec.structs.replace(CONFIG, evaluate_every=3, log_every=1)
    evaluator = ScriptedEvaluator({3: 0.2, 6: 0.9, 9: 0.4, 12: 0.1})
    result = Trainer(config, make_store(), tmp_path / "run", evaluator=evaluator).train()
    assert [e.step for e in read_evaluations(tmp_path / "run")] == [3, 6, 9, 12]
    assert result.best is not None and load_checkpoint(result.best).step == 6
    assert load_checkpoint(tmp_path / "run").step == 12
    report = (tmp_path / "run" / "README.md").read_text()
    assert "`best` is update 6" in report
    # Evaluating must not change what is learned.
    Trainer(msgspec.structs.replace(config, evaluate_every=0), make_store(), tmp_path / "alone").train()
    a, b = load_checkpoint(tmp_path / "run").parameters, load_checkpoint(tmp_path / "alone").parameters
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_an_evaluation_that_was_cut_off_is_repeated(tmp_path: Path) -> None:
    config = msgspec.structs.replace(CONFIG, evaluate_every=3, log_every=1)
    run = tmp_path / "run"
    Trainer(
        msgspec.structs.replace(config, updates=6),
        make_store(),
        run,
        evaluator=ScriptedEvaluator({3: 0.5, 6: 0.2}),
    ).train()
    lines = (run / "evaluations.jsonl").read_text().splitlines()
    (run / "evaluations.jsonl").write_text(
        lines[0] + "\n" + lines[1][:20]
    )  # as a crash in the middle of writing leaves it
    second = ScriptedEvaluator({6: 0.2, 9: 0.1, 12: 0.0})
    trainer = Trainer(config, make_store(), run, evaluator=second, resume=True)
    trainer.train()
    assert sorted(second.submitted) == [6, 9, 12]
    assert [e.step for e in read_evaluations(run)] == [3, 6, 9, 12]


def test_the_best_is_chosen_among_evaluations_of_one_task(tmp_path: Path) -> None:
    config = msgspec.structs.replace(CONFIG, evaluate_every=3, log_every=1)
    run = tmp_path / "run"
    easy = ScriptedEvaluator({3: 0.5, 6: 1.0}, "easy")
    Trainer(msgspec.structs.replace(config, updates=6), make_store(), run, evaluator=easy).train()
    hard = ScriptedEvaluator({3: 0.1, 6: 0.2, 9: 0.4, 12: 0.3}, "hard")
    result = Trainer(config, make_store(), run, evaluator=hard, resume=True).train()
    assert result.best is not None and load_checkpoint(result.best).step == 9
    assert 6 in hard.submitted  # the best of the other task, so that it can be compared
    report = (run / "README.md").read_text()
    assert (
        "Played: hard; 2 of other tasks" in report
        and "| 6 | 20% |" in report
        and "| 6 | 100% |" not in report
    )


def test_a_loss_that_is_not_finite_names_the_last_good_checkpoint(tmp_path: Path) -> None:
    config = msgspec.structs.replace(CONFIG, log_every=1, checkpoint_every=2)
    trainer = Trainer(config, make_store(), tmp_path / "run")
    gradients = trainer.agent.gradients

    def poisoned(*arguments: object, **options: object) -> object:
        if trainer.step == 6:
            with torch.no_grad():
                trainer.agent.v.kernels[0].fill_(float("nan"))
        return gradients(*arguments, **options)  # type: ignore[arg-type]

    trainer.agent.gradients = poisoned  # type: ignore[method-assign,assignment]
    with pytest.raises(
        UserError, match=r"became nan at update 7.*step_000000006 is from before that.*--init-from"
    ):
        trainer.train()
    kept = load_checkpoint(tmp_path / "run")
    assert kept.step == 6
    assert all(bool(tensor.isfinite().all()) for tensor in kept.parameters.values())


def test_a_crash_while_an_evaluation_is_noted_keeps_the_best_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = msgspec.structs.replace(CONFIG, evaluate_every=3, log_every=1)
    run = tmp_path / "run"

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("rql_deploy.train.logging.evaluations.append_evaluation", crash)
    with pytest.raises(KeyboardInterrupt):
        Trainer(config, make_store(), run, evaluator=ScriptedEvaluator({3: 0.9, 6: 0.1})).train()
    monkeypatch.undo()
    again = ScriptedEvaluator({3: 0.9, 6: 0.1, 9: 0.1, 12: 0.1})
    result = Trainer(config, make_store(), run, resume=True, evaluator=again).train()
    assert result.best is not None and load_checkpoint(result.best).step == 3


class FailingEvaluator(ScriptedEvaluator):
    """Its simulator fails when the second score is due."""

    def finished(self) -> list[Evaluation]:
        if len(self.submitted) > 1:
            raise UserError("a simulator process died")
        return []


def test_what_a_dead_simulator_left_unevaluated_is_kept_and_made_up_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = msgspec.structs.replace(CONFIG, evaluate_every=3, log_every=1)
    run = tmp_path / "run"
    trainer = Trainer(config, make_store(), run, evaluator=FailingEvaluator({}), progress=TerminalProgress())
    assert trainer.train().finished
    assert "a simulator process died" in capsys.readouterr().err
    assert steps_on_disk(run) == [3, 6, 9, 12]
    again = ScriptedEvaluator({3: 0.1, 6: 0.8, 9: 0.2, 12: 0.3, 15: 0.0})
    Trainer(
        msgspec.structs.replace(config, updates=15), make_store(), run, resume=True, evaluator=again
    ).train()
    assert sorted(again.submitted) == [3, 6, 9, 12, 15]
    assert steps_on_disk(run) == [6, 15]


def test_what_a_kill_left_behind_is_cleared(tmp_path: Path) -> None:
    run = tmp_path / "run"
    leftover = run / "checkpoints" / ".step_000000005.partial"
    Trainer(msgspec.structs.replace(CONFIG, updates=2), make_store(), run).train()
    leftover.mkdir()
    (leftover / "parameters.safetensors").write_bytes(b"half")
    Trainer(CONFIG, make_store(), run, resume=True).train()
    assert not leftover.exists()


def test_saving_the_same_step_again_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    trainer = Trainer(msgspec.structs.replace(CONFIG, updates=2), make_store(), tmp_path / "run")
    trainer.train()
    trainer.save()
    assert load_checkpoint(tmp_path / "run").step == 2
    assert [folder.name for folder in (tmp_path / "run" / "checkpoints").iterdir()] == ["step_000000002"]


def test_a_checkpoint_without_a_part_of_its_header_is_named_as_damaged(tmp_path: Path) -> None:
    Trainer(msgspec.structs.replace(CONFIG, updates=2), make_store(), tmp_path / "run").train()
    header = load_checkpoint(tmp_path / "run").path / "checkpoint.json"
    data = json.loads(header.read_text())
    del data["statistics"]["quantile_levels"]
    header.write_text(json.dumps(data))
    with pytest.raises(UserError, match="is damaged"):
        load_checkpoint(tmp_path / "run")


def test_a_compiled_run_is_not_resumed_without_a_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Trainer(msgspec.structs.replace(CONFIG, updates=2), make_store(), tmp_path / "run").train()
    header = load_checkpoint(tmp_path / "run").path / "checkpoint.json"
    data = json.loads(header.read_text())
    data["engine"]["engine"] = "compiled"
    header.write_text(json.dumps(data))
    monkeypatch.setattr("rql_deploy.train.engines.choice.shutil.which", lambda name: None)
    with pytest.raises(UserError, match=r"install g\+\+"):
        Trainer(CONFIG, make_store(), tmp_path / "run", resume=True)
