"""The run folder: logs, trackers, page and curves, and the figures in them."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from rql_deploy.errors import UserError
from rql_deploy.train.config import TrainConfig
from rql_deploy.train.hyperparameters import RQLConfig
from rql_deploy.train.logging import loggers
from rql_deploy.train.logging.diagnostics import Diagnostics
from rql_deploy.train.logging.loggers import RunLog, read_metrics
from rql_deploy.train.logging.periodic_evaluation import Evaluation, append_evaluation, read_evaluations
from rql_deploy.train.logging.run_page import write_run_page
from rql_deploy.train.loop.trainer import Trainer
from rql_deploy.train.rql import RQL
from tests.helpers.data import make_store

CONFIG = TrainConfig(
    rql=RQLConfig(h=3, F=4, K=2, policy_hidden=(16, 16), value_hidden=(16, 16)),
    updates=6,
    batch_size=8,
    log_every=2,
    standardise=True,
)


def test_every_figure_of_the_reference_and_the_diagnostics_are_logged(tmp_path: Path) -> None:
    Trainer(CONFIG, make_store(), tmp_path / "run").train()
    entry = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    reference = {
        "total",
        "policy_value",
        "bc",
        "value",
        "v_mean",
        "v_min",
        "v_max",
        "ahead_mean",
        "ahead_min",
        "ahead_max",
    }
    ours = {
        "gradient_v",
        "gradient_V",
        "drift_half",
        "drift_full",
        "noise_gap",
        "round_trip",
        "target_mean",
        "updates_per_second",
    }
    assert reference | ours <= entry.keys()
    assert entry["v_min"] <= entry["v_mean"] <= entry["v_max"]


def test_the_run_folder_explains_itself(tmp_path: Path) -> None:
    Trainer(CONFIG, make_store(), tmp_path / "run").train()
    text = (tmp_path / "run" / "README.md").read_text()
    for word in (
        "6 of 6 updates",
        "tiny/data-v0",
        "| rql.alpha | 1.0 |",
        "torch",
        "rql-deploy export",
        "3 episodes, 28 rows",
        "eager fp32",
    ):
        assert word in text, word
    assert (tmp_path / "run" / "curves.png").read_bytes().startswith(b"\x89PNG")
    for evaluation in (
        Evaluation(4, 10, 0.4, 0.1, 0.7, 45.0),
        Evaluation(6, 10, 0.5, 0.2, 0.8, 40.0, 2.0, 0.3, 5.5),
        Evaluation(8, 10, 1.0, 0.7, 1.0, 30.0, 1.0, 0.4, 1.0),
    ):
        append_evaluation(tmp_path / "run", evaluation)
    write_run_page(tmp_path / "run")
    text = (tmp_path / "run" / "README.md").read_text()
    assert "| 4 | 40% | 10% to 70% | 45 | - | - |" in text
    assert "| 6 | 50% | 20% to 80% | 40 | +2.0 to +5.5 | 0.30 |" in text
    assert "| 8 | 100% | 70% to 100% | 30 | +1.0 | 0.40 |" in text


def test_without_matplotlib_the_report_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    Trainer(CONFIG, make_store(), tmp_path / "run").train()
    assert "matplotlib is not installed" in (tmp_path / "run" / "README.md").read_text()
    assert not (tmp_path / "run" / "curves.png").exists()


def test_wandb_logs_offline_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    Trainer(msgspec.structs.replace(CONFIG, trackers=("wandb",)), make_store(), tmp_path / "run").train()
    (folder,) = (tmp_path / "run" / "wandb").glob("offline-run-*")
    assert next(folder.glob("*.wandb")).stat().st_size > 0


def test_a_tracker_that_fails_does_not_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[int] = []

    def write(step: int, figures: Mapping[str, float]) -> None:
        written.append(step)
        if len(written) == 2:
            raise ConnectionError("the server is gone")

    def close() -> None:
        raise ConnectionError("the server is gone")

    monkeypatch.setitem(loggers._TRACKERS, "mlflow", lambda run, config: (write, close))
    notes: list[str] = []
    log = RunLog(tmp_path, {}, ("mlflow",), note=notes.append)
    for step in (1, 2, 3):
        log.write(step, {"bc": 1.0})
    log.close()
    assert written == [1, 2]
    assert notes == ["note: mlflow has failed (the server is gone): the run goes on without it"]
    assert [entry["step"] for entry in read_metrics(tmp_path)] == [1, 2, 3]


def test_runs_of_one_name_are_two_for_wandb_and_its_refusal_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    given: list[dict[str, Any]] = []

    def init(**options: Any) -> Any:
        given.append(options)
        raise wandb.errors.UsageError("api_key not configured\nmore")

    monkeypatch.setattr(wandb, "init", init)
    for folder in ("a", "b", "a"):
        with pytest.raises(UserError, match=r"W&B does not take this run \(api_key not configured\): log in"):
            RunLog(tmp_path / folder / "run", {}, ("wandb",))
    ids = [options["id"] for options in given]
    assert ids[0] == ids[2] != ids[1]


def test_what_a_power_cut_leaves_in_the_log_is_skipped(tmp_path: Path) -> None:
    lines = [b'{"step": 1}', b"\0\0\0", b"\xff\xfe", b"null", b"[2]", b'{"step": 3}', b'{"st']
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join(lines))
    assert [entry["step"] for entry in read_metrics(tmp_path)] == [1, 3]
    RunLog(tmp_path, {}, from_step=2).close()
    assert [entry["step"] for entry in read_metrics(tmp_path)] == [1]
    (tmp_path / "evaluations.jsonl").write_bytes(b"\0\xff\xfe\nnull\n")
    append_evaluation(tmp_path, Evaluation(4, 2, 0.5, 0.0, 1.0, 30.0))
    assert [evaluation.step for evaluation in read_evaluations(tmp_path)] == [4]


def test_mlflow_takes_the_figures_where_its_address_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlflow").as_uri())
    Trainer(msgspec.structs.replace(CONFIG, trackers=("mlflow",)), make_store(), tmp_path / "run").train()
    (metric,) = (tmp_path / "mlflow").glob("*/*/metrics/losses/bc")
    assert [line.split()[2] for line in metric.read_text().splitlines()] == ["2", "4", "6"]


def test_a_tracker_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="pip install wandb"):
        Trainer(msgspec.structs.replace(CONFIG, trackers=("wandb",)), make_store(), tmp_path / "run").train()


def agent_with_zero_field() -> RQL:
    """v = 0, so reversing and refining change no chunk; V = 10 f."""
    agent = RQL(CONFIG.rql, 4, 2, torch.Generator().manual_seed(0))
    with torch.no_grad():
        for p in [*agent.v.parameters(), *agent.V.parameters()]:
            p.zero_()
    return agent


def test_diagnostics_are_zero_where_nothing_moves() -> None:
    figures = Diagnostics(torch.randn(200, 4), torch.rand(200, 6)).figures(agent_with_zero_field())
    assert {name: float(value) for name, value in figures.items()} == {
        "drift_half": 0.0,
        "drift_full": 0.0,
        "noise_gap": 0.0,
        "round_trip": 0.0,
    }


def test_diagnostics_see_what_they_are_named_for() -> None:
    agent = agent_with_zero_field()
    with torch.no_grad():
        agent.v.biases[-1].fill_(0.5)
    rows = torch.randn(50, 4), torch.rand(50, 6)
    # With a constant v, reversing and refining cancel exactly.
    assert float(Diagnostics(*rows).figures(agent)["round_trip"]) == pytest.approx(0.0, abs=1e-6)
    generator = torch.Generator().manual_seed(1)
    agent = RQL(CONFIG.rql, 4, 2, generator)
    figures = Diagnostics(*rows).figures(agent)
    assert float(figures["round_trip"]) > 1e-3
    s, a = rows
    one = torch.ones(50, 1)
    with torch.no_grad():
        x = a
        for k in range(4):
            x = x - agent.v(s, x, one * (1 - k / 4)) / 4
        expected = agent.V(s, x, one * 0).mean() - agent.V(s, a, one).mean()
    assert float(figures["drift_full"]) == pytest.approx(float(expected), abs=1e-5)


def test_looking_at_diagnostics_changes_nothing(tmp_path: Path) -> None:
    often = Trainer(msgspec.structs.replace(CONFIG, log_every=1), make_store(), tmp_path / "often")
    seldom = Trainer(msgspec.structs.replace(CONFIG, log_every=6), make_store(), tmp_path / "seldom")
    often.train()
    seldom.train()
    assert all(
        torch.equal(a, b) for a, b in zip(often.agent.parameters(), seldom.agent.parameters(), strict=True)
    )
