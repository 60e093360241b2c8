"""docs/consumer/act.mjs, which shares no code with this project, gives the actions that torch gave."""

import base64
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from rql_deploy.bundle.bundle import Bundle
from rql_deploy.bundle.certificate import load_cases
from tests.helpers.commands import ROOT, cli, require_node

CONSUMER = ROOT / "docs" / "consumer"
LIFT = ROOT / "rql_deploy" / "assets" / "lift_bundle"


@pytest.fixture(autouse=True)
def tools() -> None:
    require_node(CONSUMER, "onnxruntime-web")


def act(bundle: Path, requests: list[dict[str, object]], *options: str) -> subprocess.CompletedProcess[str]:
    lines = "".join(json.dumps(request) + "\n" for request in requests)
    command = ["node", str(CONSUMER / "act.mjs"), str(bundle), *options]
    return subprocess.run(command, input=lines, capture_output=True, text=True, timeout=120, check=False)


def stored_requests(bundle: Path, count: int) -> tuple[list[dict[str, object]], np.ndarray]:
    """The bundle's own certificate cases and torch's float64 actions for them."""
    opened = Bundle.open(bundle)
    cases = load_cases(opened.path)
    fields = opened.contract.split(cases["dataset/observations"][:count])
    pictures = {image.name: cases[f"dataset/images/{image.name}"] for image in opened.contract.plant.images}
    requests: list[dict[str, object]] = [
        {
            "observation": {name: rows[i].reshape(-1).tolist() for name, rows in fields.items()}
            | {name: base64.b64encode(rows[i].tobytes()).decode() for name, rows in pictures.items()},
            "noise": cases["dataset/noise"][i].tolist(),
        }
        for i in range(count)
    ]
    return requests, cases["dataset/float64/policy"][:count]


def test_javascript_gives_torchs_actions(bundle: Path, picture_bundle: Path) -> None:
    for path, count in ((LIFT, 16), (bundle, 4), (picture_bundle, 4)):
        requests, expected = stored_requests(path, count)
        result = act(path, requests)
        assert result.returncode == 0, result.stderr
        actions = np.array([json.loads(line) for line in result.stdout.splitlines()])
        assert actions.shape == expected.shape
        assert np.abs(actions - expected).max() < 1e-5


def test_javascript_refuses_a_picture_of_another_size(picture_bundle: Path) -> None:
    (request,), _ = stored_requests(picture_bundle, 1)
    observation = request["observation"]
    assert isinstance(observation, dict)
    observation["camera"] = observation["camera"][:-4]
    result = act(picture_bundle, [request])
    assert result.returncode == 2
    assert result.stderr.startswith("camera needs base64 of 1152 bytes, got 1149")


@pytest.mark.slow
def test_javascript_runs_the_integer_variant(run: Path, tmp_path: Path) -> None:
    exported = cli("export", run, "--output", tmp_path / "bundle", "--precision", "int8", "--flow-steps", 2)
    assert exported.exit_code == 0, exported.output
    requests, expected = stored_requests(tmp_path / "bundle", 4)
    result = act(tmp_path / "bundle", requests, "int8")
    assert result.returncode == 0, result.stderr
    error = np.abs(np.array([json.loads(line) for line in result.stdout.splitlines()]) - expected)
    assert 1e-5 < error.max() < 0.05


def test_javascript_refuses_a_swapped_field_and_an_edited_file(tmp_path: Path) -> None:
    (request,), _ = stored_requests(LIFT, 1)
    observation = request["observation"]
    assert isinstance(observation, dict)
    observation["cube_pos"], observation["cube_quat"] = observation["cube_quat"], observation["cube_pos"]
    result = act(LIFT, [request])
    assert result.returncode == 2
    assert "cube_pos needs 3 numbers, got 4" in result.stderr
    shutil.copytree(LIFT, tmp_path / "copy")
    with (tmp_path / "copy" / "policy.onnx").open("ab") as file:
        file.write(b"x")
    assert "policy.onnx is not the file its manifest describes" in act(tmp_path / "copy", [request]).stderr
