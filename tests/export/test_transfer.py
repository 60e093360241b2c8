"""Copying bundles: folders, and a Hugging Face repository (a stand-in that speaks its HTTP)."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from rql_deploy.bundle.bundle import Bundle
from tests.helpers.commands import assert_refused, cli, run_cli
from tests.helpers.hub_stand_in import TOKEN, Hub, running_hub


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running_hub() as server:
        yield server


def hub_environment(hub: Hub, home: Path, token: str = TOKEN) -> dict[str, str]:
    clean = {key: value for key, value in os.environ.items() if not key.upper().endswith("_PROXY")}
    return clean | {
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": token,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1",
    }


def files_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_a_bundle_survives_the_way_to_a_folder_and_back(bundle: Path, tmp_path: Path) -> None:
    pushed = cli("export", bundle, "--push", tmp_path / "shared" / "tiny")
    assert pushed.exit_code == 0, pushed.output
    assert "rql-deploy inspect" in pushed.output
    (tmp_path / "shared" / "tiny" / "notes.txt").write_text("not part of the bundle")
    pulled = cli("export", "--pull", tmp_path / "shared" / "tiny", "--output", tmp_path / "robot", "--json")
    assert json.loads(pulled.output)["contract_id"] == Bundle.open(bundle).contract.contract_id
    assert files_of(tmp_path / "robot") == files_of(bundle)
    assert_refused(cli("export", bundle, "--push", tmp_path / "shared" / "tiny"), "exists already")
    assert_refused(
        cli("export", "--pull", tmp_path / "shared" / "tiny", "--output", tmp_path / "robot"),
        "exists already",
    )


def test_a_zip_is_pulled_and_a_damaged_bundle_is_neither_pushed_nor_pulled(
    bundle: Path, tmp_path: Path
) -> None:
    archive = shutil.make_archive(str(tmp_path / "tiny"), "zip", bundle)
    assert cli("export", "--pull", archive, "--output", tmp_path / "unpacked").exit_code == 0
    assert files_of(tmp_path / "unpacked") == files_of(bundle)
    shutil.copytree(bundle, tmp_path / "damaged")
    (tmp_path / "damaged" / "refine.onnx").write_bytes(b"x")
    assert_refused(cli("export", tmp_path / "damaged", "--push", tmp_path / "a"), "truncated or edited")
    assert_refused(
        cli("export", "--pull", tmp_path / "damaged", "--output", tmp_path / "b"), "truncated or edited"
    )
    assert {entry.name for entry in tmp_path.iterdir()} == {"tiny.zip", "unpacked", "damaged"}


def test_a_bundle_survives_the_way_to_a_hub_and_back(hub: Hub, bundle: Path, tmp_path: Path) -> None:
    environment = hub_environment(hub, tmp_path / "home")
    pushed = run_cli("export", bundle, "--push", "hf://team/tiny", env=environment)
    assert pushed.returncode == 0, pushed.stderr
    assert hub.repositories["team/tiny"] == files_of(bundle)
    assert hub.created[0].get("private") is True or hub.created[0].get("visibility") == "private"
    pulled = run_cli(
        "export", "--pull", "hf://team/tiny@main", "--output", tmp_path / "robot", env=environment
    )
    assert pulled.returncode == 0, pulled.stderr
    assert files_of(tmp_path / "robot") == files_of(bundle)

    hub.repositories["team/tiny"]["value.onnx"] = b"x"
    damaged = run_cli("export", "--pull", "hf://team/tiny", "--output", tmp_path / "other", env=environment)
    assert_refused(damaged, "value.onnx", "truncated or edited")
    assert not (tmp_path / "other").exists()


def test_what_a_hub_refuses_is_one_sentence(hub: Hub, bundle: Path, tmp_path: Path) -> None:
    environment = hub_environment(hub, tmp_path / "home", token="hf_wrong")
    assert_refused(
        run_cli("export", bundle, "--push", "hf://team/tiny", env=environment),
        "hf://team/tiny cannot be reached or refuses",
        "401",
    )
    absent = run_cli("export", "--pull", "hf://team/absent", "--output", tmp_path / "robot", env=environment)
    assert_refused(absent, "hf://team/absent cannot be reached or refuses")
    assert not (tmp_path / "robot").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--push", "hf://team"), "write hf://OWNER/NAME"),
        (("--push", "hf://team/tiny", "--output", "elsewhere"), "is a bundle already"),
        (("--pull", "hf://team/tiny"), "--pull needs --output"),
    ],
)
def test_options_that_do_not_fit_are_refused(arguments: tuple[str, ...], words: str, bundle: Path) -> None:
    assert_refused(cli("export", bundle, *arguments), words)
    assert_refused(cli("export"), "pass a CHECKPOINT to export")


def test_the_model_card_has_front_matter_that_a_hub_can_index(bundle: Path) -> None:
    _, front, text = (bundle / "README.md").read_text().split("---\n", 2)
    card = yaml.safe_load(front)
    assert card["library_name"] == "rql-deploy"
    assert card["pipeline_tag"] == "robotics"
    assert card["datasets"] == ["tiny/flat-v0"]
    assert Bundle.open(bundle).contract.contract_id in text
    assert "rank correlation" in text
