"""Frozen backbones: which files will do, and that a row has the same features wherever it is computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from rql_deploy.contract import ImageField
from rql_deploy.errors import UserError
from rql_deploy.export.backbone import Backbone, probe_pictures
from rql_deploy.export.backbone_graph import prepend
from tests.helpers.backbones import CHANNELS, write_backbone

PICTURES = np.random.default_rng(3).integers(0, 256, (19, 16, 12, 3), np.uint8)
FORMS = {
    "bytes, channels last, any batch": {},
    "floats": {"takes_bytes": False},
    "channels first": {"channels_last": False},
    "floats, channels first, one row": {"takes_bytes": False, "channels_last": False, "batch": 1},
    "an older opset": {"opset": 17},
    "one row": {"batch": 1},
}


def run(model: onnx.ModelProto, **inputs: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run(None, inputs)[0]
    return found


@pytest.mark.parametrize("pooled", [False, True], ids=["map", "pooled"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_features(tmp_path: Path, form: str, pooled: bool) -> None:
    reference = Backbone.open(write_backbone(tmp_path / "a.onnx", pooled=pooled))
    backbone = Backbone.open(write_backbone(tmp_path / "b.onnx", pooled=pooled, **FORMS[form]))
    assert backbone.row_by_row == ("one row" in form)
    assert backbone.shape == ((CHANNELS,) if pooled else (CHANNELS, 8, 6))
    np.testing.assert_allclose(backbone(PICTURES), reference(PICTURES), atol=1e-5)
    alone = np.concatenate([backbone(PICTURES[i : i + 1]) for i in range(len(PICTURES))])
    assert alone.tobytes() == backbone(PICTURES).tobytes()
    assert len(backbone(PICTURES[:0])) == 0


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "rows that know each other": ({"extra": "batch mean"}, "depend on the other pictures of the batch"),
    "a batch of two and no other": ({"batch": 2}, "takes 2 pictures at a time"),
    "a picture that is forgotten": ({"extra": "constant"}, "the same features for every picture"),
    "features beyond float16": ({"extra": "huge"}, "let the graph normalise its input"),
    "operators of another domain": ({"extra": "unknown"}, "uses operators of com.example"),
    "a newer opset": ({"opset": 21}, "export it with opset_version=20"),
    "no size": ({"shape": ["n", "h", "w", 3]}, "says no height and width"),
    "grey pictures": ({"shape": ["n", 16, 12, 1]}, "takes [n, 16, 12, 1]: a backbone takes [N, H, W, 3]"),
    "pictures that are lists": ({"shape": ["n", 576]}, "takes [n, 576]"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_will_not_do_is_refused_in_a_sentence(tmp_path: Path, case: str) -> None:
    options, words = REFUSED[case]
    path = write_backbone(tmp_path / "b.onnx", **options)
    with pytest.raises(UserError) as refused:
        Backbone.open(path)
    assert words in str(refused.value)
    assert str(path) in str(refused.value) and "\n" not in str(refused.value)


def test_files_that_are_no_graphs_are_refused(tmp_path: Path) -> None:
    (tmp_path / "noise.onnx").write_bytes(b"\x08\x07noise")
    with pytest.raises(UserError, match="is not an ONNX graph"):
        Backbone.open(tmp_path / "noise.onnx")
    write_backbone(tmp_path / "backbone.onnx")
    with pytest.raises(UserError, match=r"there is no backbone .*did you mean .*backbone\.onnx"):
        Backbone.open(tmp_path / "backbon.onnx")


def test_weights_in_another_file_are_refused(tmp_path: Path) -> None:
    model = onnx.load(write_backbone(tmp_path / "whole.onnx"))
    onnx.save(model, tmp_path / "parts.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    with pytest.raises(UserError, match="export it with external_data=False"):
        Backbone.open(tmp_path / "parts.onnx")


def test_probe_pictures_include_extremes() -> None:
    pictures = probe_pictures(16, 12)
    assert (pictures[0] == 0).all() and (pictures[1] == 255).all()
    assert pictures[3].astype(bool).sum() == 3
    assert len(np.unique(pictures.reshape(len(pictures), -1), axis=0)) == len(pictures)


def graph_of_features(stack: int, cameras: list[str], shape: tuple[int, ...]) -> onnx.ModelProto:
    """Takes each camera's features and gives them all as one row."""
    leading = [stack * shape[0], *shape[1:]]
    graph = helper.make_graph(
        [
            *(helper.make_node("Flatten", [name], [f"{name}/flat"]) for name in cameras),
            helper.make_node("Concat", [f"{name}/flat" for name in cameras], ["all"], axis=1),
        ],
        "features",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *leading]) for name in cameras],
        [helper.make_tensor_value_info("all", TensorProto.FLOAT, ["batch", None])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.mark.parametrize("batch", [None, 1], ids=["any batch", "row by row"])
@pytest.mark.parametrize("pooled", [False, True], ids=["map", "pooled"])
def test_a_graph_of_features_becomes_one_of_pictures(tmp_path: Path, pooled: bool, batch: int | None) -> None:
    stack = 2
    backbone = Backbone.open(write_backbone(tmp_path / "b.onnx", pooled=pooled, batch=batch))
    images = [ImageField("left", 16, 12), ImageField("right", 16, 12, colour_order="bgr")]
    graph = prepend(
        graph_of_features(stack, ["left", "right"], backbone.shape),
        {image.name: backbone for image in images},
        images,
        stack,
    )
    assert len([t for t in graph.graph.initializer if t.dims == [CHANNELS, 3, 3, 3]]) == 1
    left, right = PICTURES[:6].reshape(3, 2, 16, 12, 3), PICTURES[6:12].reshape(3, 2, 16, 12, 3)

    def stacked(frames: np.ndarray) -> np.ndarray:
        return np.concatenate([frames[:, 0], frames[:, 1]], axis=-1)

    found = run(graph, left=stacked(left), right=stacked(right))
    seen = [backbone(frames.reshape(6, 16, 12, 3)).reshape(3, -1) for frames in (left, right[..., ::-1])]
    np.testing.assert_array_equal(found, np.concatenate(seen, axis=1))
    assert run(graph, left=stacked(left)[:1], right=stacked(right)[:1]).tobytes() == found[:1].tobytes()
