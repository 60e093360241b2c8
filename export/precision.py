"""Precision variants: the hidden layers' matrix products in fewer bits, the rest as in float32.

int8 is static: activations in unsigned 8 bits with one calibrated range per layer, weights in signed 8 bits
with one scale per output column. A layer's range is fixed at export, so a row of a batch cannot change what
another row is rounded to, as ranges found per batch do. x86 without VNNI adds two neighbouring products in 16
bits, and that sum must not overflow (`column_scales`). The graphs keep to standard ONNX operators
(QuantizeLinear, DequantizeLinear, Gemm), which onnxruntime fuses into one integer kernel per layer.

The first layer (x is unbounded noise) and the last one (its output is the velocity) stay in float32; both are
small.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from rql_deploy.bundle.rollout import Inputs, refine_inputs
from rql_deploy.bundle.rollout import encode as encode_rows
from rql_deploy.bundle.sessions import session_options
from rql_deploy.contract import Contract
from rql_deploy.errors import UserError
from rql_deploy.flow import flow_schedule

Precision = Literal["fp32", "int8", "bf16", "fp16"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "int8", "bf16", "fp16")


@dataclass
class Activations:
    """What entered one layer during rollouts over data set observations."""

    low: float = 0.0
    high: float = 0.0
    total: NDArray[np.float64] | float = 0.0
    """Sum over rows, per input of the layer."""
    rows: int = 0

    def add(self, activation: NDArray[np.float32]) -> None:
        """Include an activation `[B, in]`."""
        self.low, self.high = min(self.low, float(activation.min())), max(self.high, float(activation.max()))
        self.total = self.total + activation.sum(axis=0, dtype=np.float64)
        self.rows += len(activation)

    @property
    def mean(self) -> NDArray[np.float64]:
        """Per input of the layer."""
        return np.asarray(self.total / max(1, self.rows))


Layers = Mapping[str, Activations]
"""By the hash of the layer's float32 kernel."""

ACTIVATION_LEVELS = 255
WEIGHT_LEVELS = 127
PAIR_LEVELS = 127
"""Two neighbouring weights of one sign sum to at most 128 after rounding: 255 * 128 < 2**15."""
HALVES = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}


def require_native(precision: Precision) -> None:
    """Raise UserError unless onnxruntime multiplies matrices in this precision on this processor."""
    if precision in HALVES and not _runs_natively(HALVES[precision]):
        raise UserError(
            f"onnxruntime's CPU provider has no {precision} matrix product on this machine "
            "(it would convert to float32 and back): pass --precision int8, or export where it has one"
        )


def hidden_layers(model: onnx.ModelProto, *, last: bool) -> dict[str, str]:
    """Hash of kernel -> name of the tensor that enters it, for every hidden matrix product.

    Products of the graph's inputs are left out. With `last`, so is the last product, which is the velocity.
    """
    kernels = {t.name: t for t in model.graph.initializer}
    inputs = {entry.name for entry in model.graph.input}
    products = [node for node in model.graph.node if node.op_type == "MatMul" and node.input[1] in kernels]
    hidden = [node for node in (products[:-1] if last else products) if node.input[0] not in inputs]
    return {_hash(kernels[node.input[1]]): node.input[0] for node in hidden}


def calibrate(
    refine: onnx.ModelProto,
    value: onnx.ModelProto,
    encode: onnx.ModelProto,
    contract: Contract,
    observations: Inputs,
    noise: NDArray[np.float32],
) -> dict[str, Activations]:
    """What enters every hidden layer during rollouts from noise `[N, hA]` for N observations."""
    tensors = {"refine": hidden_layers(refine, last=True), "value": hidden_layers(value, last=False)}
    if not all(tensors.values()):
        raise UserError("networks with one hidden layer have no layer to convert: leave --precision out")
    sessions = {
        "refine": _with_outputs(refine, tensors["refine"]),
        "value": _with_outputs(value, tensors["value"]),
        "encode": _session(encode),
    }
    layers: dict[str, Activations] = {layer: Activations() for graph in tensors.values() for layer in graph}

    def run(graph: str, inputs: Mapping[str, NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        outputs: list[NDArray[np.float32]] = sessions[graph].run(None, dict(inputs))
        results, activations = outputs[:2], outputs[2:]
        for layer, activation in zip(tensors[graph], activations, strict=True):
            layers[layer].add(activation)
        return results

    features = encode_rows(sessions["encode"], observations)
    x, column = noise, np.ones((len(noise), 1), np.float32)
    for f, delta in flow_schedule(contract.F):
        now: dict[str, Any] = {"features": features, "x": x, "f": column * np.float32(f)}
        run("value", now)
        x = run("refine", refine_inputs(contract, **now, delta=column * np.float32(delta)))[0]
    run("value", {"features": features, "x": np.clip(x, -1.0, 1.0), "f": column})
    return layers


def convert(model: onnx.ModelProto, precision: Precision, layers: Layers) -> onnx.ModelProto:
    """A copy of a float32 graph that computes the products of `layers` in `precision`; checked by onnx."""
    converted = onnx.ModelProto()
    converted.CopyFrom(model)
    graph = converted.graph
    constants = {t.name: t for t in graph.initializer}
    adders = {name: node for node in graph.node if node.op_type == "Add" for name in node.input}
    nodes: list[onnx.NodeProto] = []
    made: set[str] = set()
    fused: set[str] = set()
    for node in graph.node:
        layer = (
            _hash(constants[node.input[1]]) if node.op_type == "MatMul" and node.input[1] in constants else ""
        )
        if layer in layers:
            add = adders[node.output[0]]
            bias = next(name for name in add.input if name != node.output[0])
            if node.input[1] not in made:
                made.add(node.input[1])
                added, tensors = _layer(precision, constants[node.input[1]], constants[bias], layers[layer])
                nodes += added
                graph.initializer.extend(tensors)
            fused.add(add.output[0])
            nodes += _product(precision, node.input[0], node.input[1], add.output[0])
        elif not fused.intersection(node.output):
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    for name, tensor in constants.items():
        if name not in used:
            graph.initializer.remove(tensor)
    del graph.value_info[:]
    onnx.checker.check_model(converted, full_check=True)
    return converted


def _layer(
    precision: Precision, kernel: TensorProto, bias: TensorProto, seen: Activations
) -> tuple[list[onnx.NodeProto], list[TensorProto]]:
    """Nodes that the graph needs once for a layer, and its constants, named after its kernel."""
    name, weights, offsets = kernel.name, numpy_helper.to_array(kernel), numpy_helper.to_array(bias)
    if precision in HALVES:
        dtype = helper.tensor_dtype_to_np_dtype(HALVES[precision])
        return [], [
            numpy_helper.from_array(weights.astype(dtype), f"{name}/low"),
            numpy_helper.from_array(offsets, f"{name}/bias"),
        ]
    tiny = float(np.finfo(np.float32).tiny)
    scale = column_scales(weights)
    step = np.float32(max((seen.high - seen.low) / ACTIVATION_LEVELS, tiny))
    bias_scale = (step * scale).astype(np.float32)
    rounded = np.clip(np.rint(weights / scale), -WEIGHT_LEVELS, WEIGHT_LEVELS).astype(np.int8)
    # Rounded weights shift the mean output; the bias takes that off (Nagel et al., arXiv 1906.04721).
    offsets = offsets - seen.mean @ (rounded * scale.astype(np.float64) - weights)
    constants = {
        "low": rounded,
        "scale": scale,
        "zero": np.zeros(scale.shape, np.int8),
        "bias": np.clip(np.rint(offsets / np.maximum(bias_scale, tiny)), -(2**31) + 1, 2**31 - 129).astype(
            np.int32
        ),
        "bias_scale": bias_scale,
        "bias_zero": np.zeros(scale.shape, np.int32),
        "input_scale": np.asarray(step),
        "input_zero": np.asarray(np.clip(np.rint(-seen.low / step), 0, ACTIVATION_LEVELS), np.uint8),
    }
    nodes = [
        helper.make_node(
            "DequantizeLinear", [f"{name}/low", f"{name}/scale", f"{name}/zero"], [f"{name}/kernel"], axis=1
        ),
        helper.make_node(
            "DequantizeLinear",
            [f"{name}/bias", f"{name}/bias_scale", f"{name}/bias_zero"],
            [f"{name}/offset"],
            axis=0,
        ),
    ]
    return nodes, [numpy_helper.from_array(value, f"{name}/{part}") for part, value in constants.items()]


def column_scales(weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scales `[out]` for weights `[in, out]` in signed 8 bits that no kernel overflows with.

    Without VNNI, x86 multiplies unsigned by signed bytes and adds neighbours (inputs 2i and 2i + 1) in
    saturating 16 bits. Rather than giving up a bit of every weight, each column is scaled so that its worst
    pair fits.
    """
    even = weights[: len(weights) // 2 * 2]
    pairs = np.abs(even[0::2] + even[1::2]).max(axis=0, initial=0.0)
    scale = np.maximum(np.abs(weights).max(axis=0) / WEIGHT_LEVELS, pairs / PAIR_LEVELS)
    return np.asarray(np.maximum(scale, np.finfo(np.float32).tiny), np.float32)


def _product(precision: Precision, source: str, name: str, output: str) -> list[onnx.NodeProto]:
    """source [B, in] times the layer's kernel, plus its bias."""
    if precision in HALVES:
        return [
            helper.make_node("Cast", [source], [f"{output}/input"], to=HALVES[precision]),
            helper.make_node("MatMul", [f"{output}/input", f"{name}/low"], [f"{output}/low"]),
            helper.make_node("Cast", [f"{output}/low"], [f"{output}/product"], to=TensorProto.FLOAT),
            helper.make_node("Add", [f"{output}/product", f"{name}/bias"], [output]),
        ]
    rounding = [f"{name}/input_scale", f"{name}/input_zero"]
    return [
        helper.make_node("QuantizeLinear", [source, *rounding], [f"{output}/low"]),
        helper.make_node("DequantizeLinear", [f"{output}/low", *rounding], [f"{output}/input"]),
        helper.make_node("Gemm", [f"{output}/input", f"{name}/kernel", f"{name}/offset"], [output]),
    ]


def _hash(kernel: TensorProto) -> str:
    """Identifies a kernel by its numbers: its name differs between refine.onnx and policy.onnx."""
    array = numpy_helper.to_array(kernel)
    return hashlib.sha256(repr(array.shape).encode() + array.tobytes()).hexdigest()


def _session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(
        model.SerializeToString(), session_options(), providers=["CPUExecutionProvider"]
    )


def _with_outputs(model: onnx.ModelProto, tensors: Mapping[str, str]) -> onnxruntime.InferenceSession:
    """A session that also returns the tensors in `tensors`, in order, after the model's own outputs."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in tensors.values()
    )
    return _session(copy)


def _runs_natively(dtype: int) -> bool:
    """Whether onnxruntime computes a product in `dtype`; without a kernel it uses float32 or refuses."""
    kernel = numpy_helper.from_array(np.ones((64, 64), helper.tensor_dtype_to_np_dtype(dtype)), "kernel")
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["x"], ["input"], to=dtype),
            helper.make_node("MatMul", ["input", "kernel"], ["product"]),
            helper.make_node("Cast", ["product"], ["y"], to=TensorProto.FLOAT),
        ],
        "probe",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 64])],
        [kernel],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    with tempfile.TemporaryDirectory() as folder:
        options = session_options()
        options.log_severity_level = 4
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        try:
            onnxruntime.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception:  # onnxruntime raises classes of its own: there is no kernel
            return False
        return any(
            tensor.data_type == dtype
            for tensor in onnx.load(options.optimized_model_filepath).graph.initializer
        )
