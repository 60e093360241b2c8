"""checkpoint.json: old checkpoints are still read and resumed; errors name the entry that does not fit."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from rql_deploy.contract import ActionDimension, Contract
from rql_deploy.errors import UserError
from rql_deploy.train.checkpoints.checkpoint import load_checkpoint
from rql_deploy.train.config import config_to_plain
from rql_deploy.train.engines.choice import EngineChoice
from rql_deploy.train.export_modules import make_contract
from tests.helpers.commands import ROOT, TINY, assert_refused, cli

OLD = ROOT / "tests" / "data" / "checkpoint"
"""A run of 20 updates on the tests' tiny data set, written when a hold at zero was called "null"."""


def header_file(run: Path) -> Path:
    return load_checkpoint(run).path / "checkpoint.json"


@pytest.fixture
def old_run(tmp_path: Path) -> Path:
    shutil.copytree(OLD, tmp_path / "run")
    return tmp_path / "run"


def test_an_old_checkpoint_is_read_and_its_contract_says_zero() -> None:
    plain = json.loads(header_file(OLD).read_text())
    assert [action["hold"] for action in plain["plant"]["actions"]] == ["null", "null"]
    checkpoint = load_checkpoint(OLD)
    assert checkpoint.step == 20
    assert checkpoint.plant.actions[0] == ActionDimension("action_0", -1.0, 1.0, hold="zero")
    # Entries that came later have their defaults.
    config, stored = config_to_plain(checkpoint.config), dict(plain["config"])
    assert config["rql"] | stored.pop("rql") == config["rql"] and config | stored == config
    contract = make_contract(checkpoint, checkpoint.restore_networks())
    assert contract.schema_version == 2
    assert contract.to_json().count('"hold":"zero"') == 2
    assert Contract.from_json(contract.to_json()).contract_id == contract.contract_id


def test_an_old_run_is_resumed(old_run: Path, dataset: Path) -> None:
    result = cli("train", "--dataset", dataset, "--output", old_run, "--updates", 22, "--resume", *TINY)
    assert result.exit_code == 0, result.output
    assert load_checkpoint(old_run).step == 22
    assert '"null"' not in header_file(old_run).read_text()


def test_a_checkpoint_that_does_not_name_its_engine_was_made_by_the_eager_one(old_run: Path) -> None:
    file = header_file(old_run)
    plain = json.loads(file.read_text())
    del plain["engine"], plain["initialised_from"]
    file.write_text(json.dumps(plain))
    checkpoint = load_checkpoint(old_run)
    assert checkpoint.engine == EngineChoice("eager", "fp32", "cpu")
    assert checkpoint.initialised_from is None


@pytest.mark.parametrize(
    ("engine", "said"),
    [
        ({"engine": "eager", "precision": "fp32"}, "engine lacks the entry 'device'"),
        ({"engine": "eager", "precision": "fp32", "device": "cpu", "blocks": 2}, "unknown entry 'blocks'"),
        ({"engine": "fast", "precision": "fp32", "device": "cpu"}, "'eager' or 'compiled', not 'fast'"),
    ],
)
def test_an_engine_that_is_not_known_here_is_named(
    engine: dict[str, Any], said: str, old_run: Path, dataset: Path
) -> None:
    file = header_file(old_run)
    file.write_text(json.dumps(json.loads(file.read_text()) | {"engine": engine}))
    words = ("train", "--dataset", dataset, "--output", old_run, "--updates", 22, "--resume", *TINY)
    assert_refused(cli(*words), said)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"stepp": 3}, "checkpoint.json has an unknown entry 'stepp': did you mean step?"),
        ({"step": 3.0}, "checkpoint.json.step should be a whole number, not 3.0"),
        ({"statistics": {}}, "checkpoint.json.statistics lacks the entry 'action_rate_quantiles'"),
        (
            {"config": {"rql": {"alfa": 1.0}}},
            "checkpoint.json.config.rql has an unknown entry 'alfa': did you mean alpha",
        ),
        ({"plant": None}, "checkpoint.json.plant should be a table, not NoneType"),
        ({"format": 2}, "has format 2, this rql-deploy reads 1"),
    ],
)
def test_a_header_that_does_not_fit_is_one_sentence(
    change: dict[str, Any], words: str, old_run: Path
) -> None:
    file = header_file(old_run)
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(UserError) as refused:
        load_checkpoint(old_run)
    assert words in str(refused.value)
    assert_refused(cli("export", old_run, "--output", old_run / "bundle"), words)
