"""A frozen backbone from the command line to the bundle: cached, learnt on, inside encode.onnx."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from rql_deploy.bundle.bundle import Bundle
from rql_deploy.errors import UserError
from rql_deploy.runtime.engine.onnx_policy import OnnxPolicy
from rql_deploy.train.checkpoints.checkpoint import load_checkpoint
from rql_deploy.train.data.folder import write_store
from rql_deploy.workflows.backbone import open_backbones
from rql_deploy.workflows.policies import torch_policy
from tests.helpers.backbones import write_backbone
from tests.helpers.commands import TINY, assert_refused, cli
from tests.helpers.data import make_picture_store

HEIGHT, WIDTH = 16, 12
STACK = 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data of two cameras, and a run that sees one through a map and the other through pooled features."""
    folder = tmp_path_factory.mktemp("backbone")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RQL_DEPLOY_CACHE", str(folder / "cache"))
        patch.setattr("rql_deploy.train.loop.training_run.write_run_page", lambda run: None)
        write_store(make_picture_store(("eye", "hand"), height=HEIGHT, width=WIDTH), folder / "data")
        write_backbone(folder / "map.onnx", size=(HEIGHT, WIDTH))
        write_backbone(folder / "pooled.onnx", size=(HEIGHT, WIDTH), pooled=True, batch=1)
        result = train(folder, "run", "--backbone", f"eye={folder / 'map.onnx'}", *pooled(folder))
        assert result.exit_code == 0, result.output
        assert "features of hand" in result.output or "camera hand" in result.output
    return folder


def pooled(folder: Path) -> tuple[str, ...]:
    return ("--backbone", f"hand={folder / 'pooled.onnx'}")


def train(folder: Path, name: str, *words: object, updates: int = 4):  # type: ignore[no-untyped-def]
    fixed = ("--set", f"frame_stack={STACK}", "--engine", "eager", "--updates", updates)
    return cli("train", "--dataset", folder / "data", "--output", folder / name, *TINY, *fixed, *words)


@pytest.fixture(scope="module")
def bundle(folder: Path) -> Path:
    result = cli("export", folder / "run", "--output", folder / "bundle")
    assert result.exit_code == 0, result.output
    return folder / "bundle"


def test_a_bundle_takes_bytes_and_acts_as_the_networks_do(folder: Path, bundle: Path) -> None:
    opened = Bundle.open(bundle)
    encode = onnx.load(bundle / "encode.onnx")
    taken = {entry.name: entry.type.tensor_type for entry in encode.graph.input}
    for camera in ("eye", "hand"):
        assert taken[camera].elem_type == onnx.TensorProto.UINT8
        assert [dim.dim_value for dim in taken[camera].shape.dim][1:] == [HEIGHT, WIDTH, 3 * STACK]
    plant = opened.contract.plant
    ours, theirs = OnnxPolicy(opened), torch_policy(folder / "run", plant)
    rng = np.random.default_rng(0)
    decisions = []
    for _ in range(3):
        seen = {
            field.name: rng.integers(0, 256, field.shape, np.uint8)
            if field.dtype == "uint8"
            else rng.normal(size=field.shape).astype(np.float32)
            for field in plant.inputs
        }
        ours_now, theirs_now = (p.act(seen, candidates=3, value=True, seed=5) for p in (ours, theirs))
        np.testing.assert_allclose(ours_now.actions, theirs_now.actions, atol=1e-5)
        decisions.append(ours_now.actions)
    assert not np.array_equal(decisions[0], decisions[1])


def test_a_checkpoint_knows_its_backbones_and_the_run_keeps_copies(folder: Path) -> None:
    checkpoint = load_checkpoint(folder / "run")
    assert {name: b.features for name, b in checkpoint.backbones.items()} == {"eye": (5, 8, 6), "hand": (5,)}
    kept = {file.read_bytes() for file in (folder / "run" / "backbones").iterdir()}
    assert kept == {(folder / name).read_bytes() for name in ("map.onnx", "pooled.onnx")}
    assert len(list((folder / "cache" / "features").glob("*.npy"))) == 2


def test_a_run_goes_on_with_the_same_backbones_only(folder: Path) -> None:
    other = write_backbone(folder / "other.onnx", size=(HEIGHT, WIDTH), channels_last=False)
    words = ("--resume", *pooled(folder))
    assert_refused(
        train(folder, "run", *words, "--backbone", f"eye={other}", updates=5), "pass the same --backbone"
    )
    assert_refused(train(folder, "run", *words, updates=5), "sees camera 'eye' through a frozen backbone")


def test_a_lost_backbone_is_named(folder: Path, bundle: Path) -> None:
    for file in (folder / "run" / "backbones").iterdir():
        file.rename(file.with_suffix(".gone"))
    try:
        result = cli("export", folder / "run", "--output", folder / "bundle2")
    finally:
        for file in (folder / "run" / "backbones").iterdir():
            file.rename(file.with_suffix(".onnx"))
    assert_refused(result, "there is no backbone")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--backbone", "eye=small.onnx"), "takes 8x8 pictures, camera 'eye' has 16x12"),
        (("--backbone", "feet=map.onnx"), "feet"),
        (("--backbone", "missing.onnx"), "there is no backbone"),
        (
            ("--backbone", "map.onnx", "--map", "observation.eye=", "--map", "observation.hand="),
            "the data has none",
        ),
    ],
)
def test_backbones_that_do_not_fit_the_data_are_refused(
    folder: Path, words: tuple[str, ...], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    write_backbone(folder / "small.onnx", size=(8, 8))
    assert_refused(train(folder, "refused", *words), sentence)


def test_a_file_is_checked_from_the_command_line(folder: Path) -> None:
    result = cli("backbone", folder / "map.onnx")
    assert result.exit_code == 0
    assert "16 x 12 RGB pictures" in result.output and "5 x 8 x 6" in result.output
    assert_refused(cli("backbone", folder / "map.onnx", "--size", "96x96"), "leave --size and --output out")
    assert_refused(
        cli("backbone", "resnet", "--size", "96x96", "--output", folder / "n"), "no backbone 'resnet'"
    )
    assert_refused(cli("backbone", "efficientnet-lite0"), "pass --size and --output")
    assert_refused(
        cli("backbone", "efficientnet-lite0", "--size", "big", "--output", folder / "n"), "not a size"
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("a.onnx", "b.onnx"), "--backbone names a.onnx and b.onnx for all cameras"),
        (("top=a.onnx", "b.onnx", "top=c.onnx"), "--backbone names a.onnx and c.onnx for camera 'top'"),
    ],
)
def test_two_backbones_for_one_camera_are_refused(tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    with pytest.raises(UserError, match=said):
        open_backbones(words, make_picture_store(("top", "wrist")).plant, tmp_path)
