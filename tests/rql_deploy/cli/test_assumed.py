"""A bundle whose data did not say its motion: inspected, served, played in simulators, refused by robots."""

import dataclasses
import json
from pathlib import Path

import msgspec
import pytest

from rql_deploy.bundle.bundle import Bundle
from rql_deploy.contract import Contract
from rql_deploy.errors import ContractError
from rql_deploy.runtime.server.app import ServerConfig, serving
from rql_deploy.workflows import run as run_workflow
from rql_deploy.workflows.run import run
from rql_deploy.workflows.serve import served
from tests.helpers.commands import ROOT, assert_refused, cli
from tests.helpers.rail import Rail
from tests.helpers.servers import variant

TINY = ROOT / "tests" / "data" / "tiny_bundle"


@pytest.fixture(scope="module")
def guessed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    contract = Bundle.open(TINY).contract
    actions = tuple(
        msgspec.structs.replace(a, assumed=("bounds", "mode", "unit")) for a in contract.plant.actions
    )
    plant = msgspec.structs.replace(contract.plant, actions=actions)
    changed: Contract = msgspec.structs.replace(contract, plant=plant)
    return variant(TINY, tmp_path_factory.mktemp("assumed") / "bundle", changed, scale=1.0)


class Drive(Rail):
    """A robot, until it says otherwise."""

    def close(self) -> None:
        """Nothing to free."""


def test_inspect_shows_what_was_assumed(guessed: Path) -> None:
    page = cli("inspect", guessed).output
    assert "assumed     control rate (20 Hz), bounds of all actions, mode of all actions (delta)" in page
    assert "bounds, mode, unit" in page
    assert "a robot refuses it, since the data of" in page
    assert "say it with --action-bounds and --action-mode of" in page
    assert json.loads(cli("inspect", guessed, "--json").output)["assumed"][1] == "bounds of all actions"
    known = cli("inspect", ROOT / "tests" / "data" / "lift_bundle").output
    assert "assumed     nothing that its data does not say" in known


def test_run_refuses_a_robot_and_warns_of_a_simulator(guessed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    description = Bundle.open(guessed).contract.plant
    plant = Drive(horizon=3)
    monkeypatch.setattr(run_workflow, "_plant_maker", lambda *_: (3, lambda: (plant, description)))
    with served(guessed) as endpoint:
        refused = cli("run", "drive", "--connect", endpoint, "--episodes", 1)
        assert_refused(refused)
        for words in ("may move a robot wrongly", "--action-bounds and --action-mode", "--accept-assumed"):
            assert words in refused.output
        assert not plant.applied
        accepted = cli("run", "drive", "--connect", endpoint, "--episodes", 1, "--accept-assumed")
        assert accepted.exit_code == 0, accepted.output
        plant.simulated = True  # type: ignore[attr-defined]
        remarks: list[str] = []
        assert run("drive", endpoint, episodes=1, on_remark=remarks.append).score.results[0].steps == 3
        assert "did not say bounds of all actions" in remarks[0]


def test_the_server_says_so_and_openpi_s_clients_are_not_served_unasked(guessed: Path) -> None:
    config = ServerConfig(bundles=((None, guessed),), bind="tcp://127.0.0.1:*", openpi=("127.0.0.1", 0))
    with pytest.raises(ContractError, match=r"may move a robot wrongly"), serving(config):
        pass
    accepted = dataclasses.replace(config, accept_assumed=True)
    with serving(accepted, handle_signals=False) as running:
        assert "did not say bounds of all actions" in running.notes[0]
