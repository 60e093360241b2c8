"""An evaluation that is stopped: what counts, and that nobody plays on; what its workers open."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from rql_deploy.bundle.bundle import Bundle
from rql_deploy.errors import UserError
from rql_deploy.progress import NoProgress
from rql_deploy.sim.evaluation.annotations import AnnotatedEpisode
from rql_deploy.sim.evaluation.episodes import EvaluatedPolicy, Evaluation, Score
from rql_deploy.train.checkpoints.checkpoint import load_checkpoint
from rql_deploy.workflows import compare as comparing
from rql_deploy.workflows import evaluate as evaluating
from rql_deploy.workflows.compare import compare
from rql_deploy.workflows.episodes import play
from rql_deploy.workflows.evaluate import EvaluationOutputs
from rql_deploy.workflows.export import export
from rql_deploy.workflows.improvement.gate import compare_in_simulator
from rql_deploy.workflows.policies import PolicySource, find_policies
from rql_deploy.workflows.train import train
from tests.helpers.commands import LIFT_BUNDLE, assert_refused, cli


def episode(seed: int) -> AnnotatedEpisode:
    return AnnotatedEpisode(seed, True, 4, digest="0")


class Interrupted(NoProgress):
    """Ctrl-C when so many episodes are done."""

    def __init__(self, after: int):
        self.after = after

    def update(self, done: int, **figures: float) -> None:
        if done == self.after:
            raise KeyboardInterrupt


class Simulators:
    """Of every policy's episodes the first `done` have been played, and the others wait."""

    def __init__(self, done: int) -> None:
        self.task, self.done = SimpleNamespace(name="robosuite:Lift"), done
        self.started: list[Future[Any]] = []

    def __call__(self, *_: object, **__: object) -> Simulators:
        return self

    def __enter__(self) -> Simulators:
        return self

    def __exit__(self, *_: object) -> None: ...

    def start(self, policy: object, seeds: Sequence[int]) -> list[Future[Any]]:
        futures: list[Future[Any]] = [Future() for _ in seeds]
        for future, seed in list(zip(futures, seeds, strict=True))[: self.done]:
            future.set_result(episode(seed))
        self.started += futures
        return futures

    def score(self, key: str, results: Sequence[Any], seeds: Sequence[int]) -> Score:
        by_seed = {result.seed: result for result in results}
        return Score(key, tuple(by_seed[seed] for seed in seeds), 120)


def test_a_stopped_evaluation_leaves_no_episodes_to_be_played(tmp_path: Path) -> None:
    simulators = Simulators(3)
    policy = EvaluatedPolicy("onnx", lambda plant: None, lambda *_: None)  # type: ignore[arg-type, return-value]
    score = play(
        cast(Evaluation, simulators), policy, [5, 6, 7, 8, 9], output=tmp_path / "e", progress=Interrupted(3)
    )
    assert len(score.results) == 3
    assert [future.cancelled() for future in simulators.started] == [False] * 3 + [True] * 2
    assert not (tmp_path / "e").exists()


def test_two_evaluations_do_not_write_one_file(tmp_path: Path) -> None:
    output = tmp_path / "episodes.jsonl"
    with (tmp_path / "episodes.jsonl.partial").open("ab") as held:
        held.write(b"of the other one")
        held.flush()
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another evaluation writes"):
            play(cast(Evaluation, Simulators(2)), None, [1, 2], output=output)
    assert (tmp_path / "episodes.jsonl.partial").read_bytes() == b"of the other one"


def test_a_gate_that_is_stopped_decides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rql_deploy.sim.evaluation.episodes.Evaluation", Simulators(3))
    plant = Bundle.open(LIFT_BUNDLE).contract.plant
    options: Any = {"episodes": 5, "candidates": 1, "seed": 0, "workers": 1, "progress": Interrupted(3)}
    with pytest.raises(KeyboardInterrupt):
        compare_in_simulator({0: LIFT_BUNDLE, 1: LIFT_BUNDLE}, plant, **options)


def test_a_stopped_comparison_goes_on_with_what_there_is_to_compare(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[int] = []

    def play(evaluation: object, policy: Any, seeds: list[int], *, output: object, progress: object) -> Score:
        asked.append(len(seeds))
        assert output is None or len(seeds) == 5
        return Score(policy.key, tuple(map(episode, seeds[:3])), 120)

    monkeypatch.setattr(comparing, "play", play)
    monkeypatch.setattr("rql_deploy.sim.evaluation.episodes.Evaluation", Simulators(0))
    policies = {key: EvaluatedPolicy(key, lambda _: None, lambda *_: None) for key in ("onnx", "torch")}  # type: ignore[arg-type, return-value]
    monkeypatch.setattr(comparing, "policies_of", lambda *_: policies)
    monkeypatch.setattr(comparing, "pictures_of", lambda _: ())
    source = PolicySource(checkpoint=tmp_path, bundle=LIFT_BUNDLE)
    done = compare("robosuite:Lift", source, episodes=5, output=tmp_path / "e.jsonl")
    assert asked == [5, 3]
    assert done.parity["torch"].episodes == 3 and not done.complete


def test_a_stopped_evaluation_is_not_filmed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def film(*_: object) -> None:
        raise AssertionError("the first seeds would be played once more")

    monkeypatch.setattr(evaluating, "film", film)
    score = Score("onnx", (episode(1),), 120)
    outputs = EvaluationOutputs(video=tmp_path / "v.mp4")
    filmed = evaluating._film(
        cast(Any, None), cast(Any, object()), score, [1, 2], outputs, progress=NoProgress()
    )
    assert filmed == (None, None)


def test_workers_open_what_a_run_and_a_link_named_when_the_evaluation_began(
    bundle: Path, run: Path, tmp_path: Path
) -> None:
    link = tmp_path / "live"
    link.symlink_to(bundle)
    shutil.copytree(run, tmp_path / "run")
    plain = find_policies(PolicySource(tmp_path / "run", link), lambda *_: None)  # type: ignore[arg-type, return-value]
    link.unlink()
    name = (tmp_path / "run" / "latest").read_text()
    (tmp_path / "run" / "latest").write_text("step_000000099")
    made = {key: cast(Any, policy.make_policy).args[0] for key, policy in plain.items()}
    assert made == {"onnx": bundle, "torch": tmp_path / "run" / "checkpoints" / name}
    assert load_checkpoint(made["torch"]).step == 20
    assert cli("inspect", made["onnx"]).exit_code == 0


def test_files_of_an_evaluation_that_would_replace_one_another_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "both.html"
    words = ("evaluate", "robosuite:Lift", "--bundle", LIFT_BUNDLE, "--output", file, "--report", file)
    assert_refused(cli(*words), "pass different paths")


def test_what_the_command_line_would_refuse_is_refused_from_python(run: Path, tmp_path: Path) -> None:
    source = PolicySource(checkpoint=run, bundle=LIFT_BUNDLE)
    for name, value in (("episodes", 0), ("workers", 0), ("seed", -1)):
        options: Any = {name: value}
        with pytest.raises(UserError, match=f"{name} is {value}, it must be at least"):
            evaluating.evaluate("robosuite:Lift", **options)
        with pytest.raises(UserError, match=f"{name} is {value}, it must be at least"):
            compare("robosuite:Lift", source, **options)
    with pytest.raises(UserError, match="no precision 'int4'"):
        export(run, tmp_path / "bundle", precisions=["int4"])
    # A text is a sequence, too: of one data set a letter, the first of which is the whole disk.
    for datasets in ("/a/b", []):
        with pytest.raises(UserError, match="data sets are a list of paths"):
            train(datasets, tmp_path / "run")
