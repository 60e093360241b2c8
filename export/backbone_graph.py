"""A frozen backbone as part of other graphs: uint8 pictures in, features out, any number of rows.

Whatever a backbone file takes (floats or bytes, channels first or last, one row or many), `picture_graph`
makes of it a graph of uint8 pictures `[B, H, W, 3]`. It is what fills the feature cache and, by `prepend`,
the first part of `encode.onnx` and `policy.onnx`: training and robot see the same numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, compose, helper, numpy_helper

from rql_deploy.plant_description import ImageField

PICTURES, FEATURES = "pictures", "features"
"""Input and output of a `picture_graph`."""
BATCH = "batch"


class PictureFeatures(Protocol):
    """A frozen backbone, as the exporter needs it."""

    @property
    def graph(self) -> onnx.ModelProto:
        """The `picture_graph`."""
        ...

    @property
    def interface(self) -> Interface:
        """What its file takes and gives."""
        ...

    def stacked(self, pictures: NDArray[np.uint8], image: ImageField) -> NDArray[np.float32]:
        """A camera's stacked frames `[N, H, W, 3n]` -> features `[N, n * C, h, w]` or `[N, n * D]`."""
        ...


@dataclass(frozen=True)
class Interface:
    """What a backbone file takes and gives."""

    height: int
    width: int
    channels_last: bool
    """Whether it takes `[N, H, W, 3]`; else `[N, 3, H, W]`."""
    takes_bytes: bool
    """Whether it takes uint8; else float32, still in 0 to 255."""
    features: tuple[int, ...]
    """Of a row: `[D]`, or `[C, h, w]` of a map."""

    def pictures(self, batch: int | str) -> onnx.ValueInfoProto:
        """A graph's input: uint8 pictures `[batch, H, W, 3]`."""
        return helper.make_tensor_value_info(PICTURES, TensorProto.UINT8, [batch, self.height, self.width, 3])

    def output(self, name: str, *leading: int | str) -> onnx.ValueInfoProto:
        """A graph's output: float32 features."""
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, [*leading, *self.features])


def picture_graph(model: onnx.ModelProto, interface: Interface, *, row_by_row: bool) -> onnx.ModelProto:
    """`model` with uint8 pictures `[B, H, W, 3]` as its input and float32 features `[B, ...]` as its output.

    With `row_by_row` the graph computes one picture at a time, so that no row can depend on the others.
    """
    graph = compose.add_prefix_graph(model.graph, "backbone/")
    source, result = graph.input[0].name, graph.output[0].name
    # Inside a Scan no name may be used again.
    first = "row/pictures" if row_by_row else PICTURES
    nodes = [*_as_the_backbone_takes_it(interface, first, source), *graph.node]
    constants = [*graph.initializer]
    if row_by_row:
        axis = numpy_helper.from_array(np.zeros(1, np.int64), "backbone/row_axis")
        constants.append(axis)
        body = helper.make_graph(
            [
                helper.make_node("Unsqueeze", ["picture", axis.name], [first]),
                *nodes,
                helper.make_node("Squeeze", [result, axis.name], ["feature"]),
            ],
            "one picture",
            [
                helper.make_tensor_value_info(
                    "picture", TensorProto.UINT8, [interface.height, interface.width, 3]
                )
            ],
            [interface.output("feature")],
        )
        nodes = [helper.make_node("Scan", [PICTURES], [FEATURES], body=body, num_scan_inputs=1)]
    else:
        nodes.append(helper.make_node("Identity", [result], [FEATURES]))
    whole = helper.make_graph(
        nodes, "backbone", [interface.pictures(BATCH)], [interface.output(FEATURES, BATCH)], constants
    )
    return helper.make_model(whole, opset_imports=model.opset_import, ir_version=model.ir_version)


def _as_the_backbone_takes_it(interface: Interface, first: str, name: str) -> list[onnx.NodeProto]:
    """Nodes from uint8 pictures `[B, H, W, 3]`, the tensor `first`, to the tensor `name`."""
    nodes, last = [], first
    if not interface.channels_last:
        nodes.append(helper.make_node("Transpose", [last], ["picture/planes"], perm=[0, 3, 1, 2]))
        last = "picture/planes"
    if interface.takes_bytes:
        nodes.append(helper.make_node("Identity", [last], [name]))
    else:
        nodes.append(helper.make_node("Cast", [last], [name], to=TensorProto.FLOAT))
    return nodes


def prepend(
    model: onnx.ModelProto,
    backbones: Mapping[str, PictureFeatures],
    images: Sequence[ImageField],
    frame_stack: int,
) -> onnx.ModelProto:
    """A copy of `model` whose inputs of features, named as cameras, are uint8 pictures instead.

    Args:
        model: takes, under the name of each camera, `frame_stack` frames' features `[B, n * D]` or
            `[B, n * C, h, w]`, oldest first.
        backbones: by camera; constants of equal ones are stored once.
        images: the cameras; each input becomes `[B, H, W, 3 * frame_stack]`.
    """
    whole = onnx.ModelProto()
    whole.CopyFrom(model)
    del whole.graph.value_info[:]
    before: list[onnx.NodeProto] = []
    for image in images:
        if image.name not in backbones:
            continue
        backbone = backbones[image.name]
        place = next(i for i, entry in enumerate(whole.graph.input) if entry.name == image.name)
        batch = whole.graph.input[place].type.tensor_type.shape.dim[0].dim_param or BATCH
        taken = helper.make_tensor_value_info(
            image.name, TensorProto.UINT8, [batch, image.height, image.width, 3 * frame_stack]
        )
        whole.graph.input[place].CopyFrom(taken)
        inside = f"{image.name}/stacked_features"
        for node in whole.graph.node:
            for position, name in enumerate(node.input):
                if name == image.name:
                    node.input[position] = inside
        nodes, constants = _for_camera(image, backbone.graph, backbone.interface, frame_stack, inside)
        before += nodes
        known = {tensor.name for tensor in whole.graph.initializer}
        whole.graph.initializer.extend(tensor for tensor in constants if tensor.name not in known)
    after = list(whole.graph.node)
    del whole.graph.node[:]
    whole.graph.node.extend([*before, *after])
    onnx.checker.check_model(whole, full_check=True)
    return whole


def _for_camera(
    image: ImageField, model: onnx.ModelProto, interface: Interface, stack: int, output: str
) -> tuple[list[onnx.NodeProto], list[TensorProto]]:
    """Nodes and constants from the camera's input to the tensor `output`."""
    graph = onnx.GraphProto()
    graph.CopyFrom(model.graph)
    # Constants keep names that two cameras share; everything else is the camera's own.
    graph = compose.add_prefix_graph(graph, f"{image.name}/", rename_initializers=False)
    constants = list(graph.initializer)
    pictures, features = graph.input[0].name, graph.output[0].name
    nodes: list[onnx.NodeProto] = []
    last = image.name

    def constant(name: str, numbers: Sequence[int]) -> str:
        constants.append(numpy_helper.from_array(np.asarray(numbers, np.int64), f"{image.name}/{name}"))
        return f"{image.name}/{name}"

    def node(kind: str, inputs: Sequence[str], result: str, **attributes: object) -> str:
        nodes.append(helper.make_node(kind, list(inputs), [result], **attributes))
        return result

    side = (image.height, image.width)
    if stack > 1:
        apart = constant("frames", [-1, *side, stack, 3])
        last = node("Reshape", [last, apart], f"{image.name}/frames_of_rows")
        last = node("Transpose", [last], f"{image.name}/frames_first", perm=[0, 3, 1, 2, 4])
        last = node("Reshape", [last, constant("single", [-1, *side, 3])], f"{image.name}/single_frames")
    if image.colour_order == "bgr":
        last = node("Gather", [last, constant("to_rgb", [2, 1, 0])], f"{image.name}/rgb", axis=3)
    node("Identity", [last], pictures)
    nodes += graph.node
    joined = constant("joined", [-1, stack * interface.features[0], *interface.features[1:]])
    node("Reshape", [features, joined], output)
    return nodes, constants
