"""A backbone file as it comes: read, refused where it will not do, brought to a bundle's opset."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, version_converter

from rql_deploy.bundle.sessions import session_options
from rql_deploy.errors import UserError
from rql_deploy.folders import near_paths
from rql_deploy.plant_description import MAX_SIDE

from .graphs import OPSET

if TYPE_CHECKING:
    import onnxruntime


def read_backbone(path: Path) -> tuple[bytes, onnx.ModelProto]:
    """The file's bytes and its graph; raises UserError when it is missing, damaged or not in one file."""
    try:
        data = path.read_bytes()
        model = onnx.load_model_from_string(data)
        if any(tensor.data_location == TensorProto.EXTERNAL for tensor in model.graph.initializer):
            raise UserError(
                f"backbone {path} keeps its weights in another file: export it with external_data=False"
            )
        onnx.checker.check_model(model)
    except FileNotFoundError as error:
        near = near_paths(path) or ": pass an ONNX file, or efficientnet-lite0"
        raise UserError(f"there is no backbone {path}{near}") from error
    except (DecodeError, onnx.checker.ValidationError) as error:
        raise UserError(
            f"backbone {path} is not an ONNX graph ({first_line(error)}): export it again"
        ) from error
    return data, model


def opset_of(path: Path, model: onnx.ModelProto) -> int:
    """The graph's opset; raises UserError for operators beyond a bundle's."""
    domains = {entry.domain: entry.version for entry in model.opset_import}
    if others := sorted(set(domains) - {"", "ai.onnx"}):
        raise UserError(
            f"backbone {path} uses operators of {others[0]}, which not every runtime has: export it with "
            "standard ONNX operators"
        )
    opset = int(domains.get("", domains.get("ai.onnx", 0)))
    if opset > OPSET:
        raise UserError(
            f"backbone {path} has opset {opset}, a bundle's graphs have {OPSET}: "
            f"export it with opset_version={OPSET}"
        )
    return opset


def pictures_taken(path: Path, model: onnx.ModelProto) -> tuple[int, int, bool, bool]:
    """Height, width, whether channels come last and whether it takes bytes; other inputs are refused."""
    inputs = graph_inputs(model)
    if len(inputs) != 1 or len(model.graph.output) != 1:
        raise UserError(
            f"backbone {path} has {len(inputs)} inputs and {len(model.graph.output)} outputs: a backbone "
            "takes pictures and gives their features, nothing else"
        )
    kind = inputs[0].type.tensor_type
    if kind.elem_type not in (TensorProto.UINT8, TensorProto.FLOAT):
        found = TensorProto.DataType.Name(kind.elem_type).lower()
        raise UserError(f"backbone {path} takes {found}: a backbone takes uint8 or float32 pictures")
    dims = [dim.dim_value for dim in kind.shape.dim]
    last, first = len(dims) == 4 and dims[3] == 3, len(dims) == 4 and dims[1] == 3
    if last == first:
        shown = ", ".join(str(dim.dim_value or dim.dim_param or "?") for dim in kind.shape.dim)
        raise UserError(
            f"backbone {path} takes [{shown}]: a backbone takes [N, H, W, 3] or [N, 3, H, W], RGB"
        )
    height, width = dims[1:3] if last else dims[2:4]
    if not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE):
        raise UserError(
            f"backbone {path} says no height and width between 1 and {MAX_SIDE}: export it for pictures of "
            "one size"
        )
    return height, width, last, kind.elem_type == TensorProto.UINT8


def graph_inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """The graph's inputs; old files list constants among them."""
    constants = {tensor.name for tensor in model.graph.initializer}
    return [entry for entry in model.graph.input if entry.name not in constants]


def fixed_batch(model: onnx.ModelProto) -> int:
    """How many rows the graph takes; 0 for any number."""
    return int(graph_inputs(model)[0].type.tensor_type.shape.dim[0].dim_value)


def converted(path: Path, model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """The model in a bundle's opset."""
    if opset == OPSET:
        return model
    try:
        return version_converter.convert_version(model, OPSET)
    except Exception as error:  # the converter's own classes, RuntimeError, ...
        raise UserError(
            f"backbone {path} has opset {opset} and cannot be converted to {OPSET} ({first_line(error)}): "
            f"export it with opset_version={OPSET}"
        ) from error


def with_batch(model: onnx.ModelProto, batch: int | str) -> onnx.ModelProto:
    """A copy with another first dimension, and without what was known of the shapes between."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    graph = changed.graph
    entries = graph_inputs(changed)
    del graph.input[:]
    graph.input.extend(entries)
    del graph.value_info[:]
    for entry in (*graph.input, *graph.output):
        dim = entry.type.tensor_type.shape.dim[0]
        dim.Clear()
        if isinstance(batch, int):
            dim.dim_value = batch
        else:
            dim.dim_param = batch
    return changed


def backbone_session(path: Path, model: onnx.ModelProto, threads: int = 1) -> onnxruntime.InferenceSession:
    """A CPU session of the graph; raises UserError when onnxruntime cannot load it."""
    import onnxruntime

    options = session_options(threads)
    options.log_severity_level = 4  # what it cannot run is said by the error
    try:
        return onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # onnxruntime raises bare RuntimeErrors and classes of its own
        raise UserError(
            f"onnxruntime cannot load backbone {path} ({first_line(error)}): export it again"
        ) from error


def first_line(error: BaseException) -> str:
    """What a library says went wrong, short enough for a sentence."""
    return str(error).strip().partition("\n")[0][:200]
