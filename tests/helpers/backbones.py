"""Small backbones: one convolution, as a map or pooled, in every form in which a file may come."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CHANNELS = 5


def write_backbone(
    path: Path,
    *,
    size: tuple[int, int] = (16, 12),
    pooled: bool = False,
    takes_bytes: bool = True,
    channels_last: bool = True,
    batch: int | None = None,
    opset: int = 20,
    extra: str = "",
    shape: list[int | str] | None = None,
) -> Path:
    """Write pictures -> `[N, 5, H/2, W/2]` or `[N, 5]`; with `batch` it takes so many and no others.

    `extra` is a fault: `batch mean` takes half of the batch's mean off, `constant` forgets the picture,
    `huge` leaves float16, `unknown` uses an operator of another domain.
    """
    rng = np.random.default_rng(1)
    nodes, constants, last = [], [], "image"

    def constant(name: str, array: np.ndarray) -> str:
        constants.append(numpy_helper.from_array(array, name))
        return name

    def node(kind: str, *inputs: str, **attributes: object) -> str:
        nonlocal last
        domain = "com.example" if kind == "Unknown" else ""
        name = f"{kind}{len(nodes)}"
        nodes.append(helper.make_node(kind, [last, *inputs], [name], domain=domain, **attributes))
        last = name
        return name

    if takes_bytes:
        node("Cast", to=TensorProto.FLOAT)
    if channels_last:
        node("Transpose", perm=[0, 3, 1, 2])
    node("Div", constant("range", np.float32(255.0)))
    kernel = rng.normal(size=(CHANNELS, 3, 3, 3)).astype(np.float32)
    node("Conv", constant("kernel", kernel), strides=[2, 2], pads=[1, 1, 0, 0])
    node("Relu")
    if pooled:
        node("GlobalAveragePool")
        if batch:
            node("Reshape", constant("flat", np.array([batch, CHANNELS], np.int64)))
        else:
            node("Flatten")
    elif batch:
        inside = (size[0] // 2) * (size[1] // 2)
        node("Reshape", constant("lines", np.array([batch, CHANNELS, inside], np.int64)))
        node("Reshape", constant("map", np.array([batch, CHANNELS, size[0] // 2, size[1] // 2], np.int64)))
    if extra == "batch mean":
        here = last
        node("ReduceMean", constant("first", np.zeros(1, np.int64)))
        node("Mul", constant("half", np.float32(0.5)))
        nodes.append(helper.make_node("Sub", [here, last], ["centred"]))
        last = "centred"
    elif extra == "constant":
        node("Mul", constant("nothing", np.float32(0.0)))
    elif extra == "huge":
        node("Mul", constant("factor", np.float32(1e6)))
    elif extra == "unknown":
        node("Unknown")
    first: int | str = batch or "n"
    full = [first, *size, 3] if channels_last else [first, 3, *size]
    features = [first, CHANNELS] if pooled else [first, CHANNELS, size[0] // 2, size[1] // 2]
    graph = helper.make_graph(
        nodes,
        "backbone",
        [
            helper.make_tensor_value_info(
                "image", TensorProto.UINT8 if takes_bytes else TensorProto.FLOAT, shape or full
            )
        ],
        [helper.make_tensor_value_info(last, TensorProto.FLOAT, features)],
        constants,
    )
    opsets = [helper.make_opsetid("", opset)]
    if extra == "unknown":
        opsets.append(helper.make_opsetid("com.example", 1))
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    onnx.save(model, path)
    return path
