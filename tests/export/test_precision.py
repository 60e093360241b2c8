"""Precision variants: what integer layers compute, what the certificate says of them, what is refused."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from rql_deploy.bundle.bundle import Bundle
from rql_deploy.bundle.manifest import GRAPHS
from rql_deploy.bundle.sessions import session_options
from rql_deploy.contract import Contract
from rql_deploy.errors import BundleError
from rql_deploy.export import exporter, precision
from rql_deploy.runtime.engine.onnx_policy import OnnxPolicy
from rql_deploy.seeding import flow_noise
from tests.helpers.commands import assert_refused, cli

WIDE = 64


@pytest.fixture(scope="module")
def small(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny run exported with an int8 variant and fewer steps than it was trained with."""
    output = tmp_path_factory.mktemp("int8") / "bundle"
    result = cli("export", run, "--output", output, "--precision", "int8", "--flow-steps", 5)
    assert result.exit_code == 0, result.output
    assert "F = 5 instead of 10" in result.output
    return output


def one_layer(
    weights: np.ndarray, bias: np.ndarray, rows: np.ndarray
) -> tuple[onnx.ModelProto, onnx.ModelProto, precision.Activations]:
    """A float32 graph x @ W + b, its int8 conversion, and what the conversion was calibrated on."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "W"], ["p"]), helper.make_node("Add", ["p", "b"], ["y"])],
        "layer",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", weights.shape[0]])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["batch", weights.shape[1]])],
        [numpy_helper.from_array(weights, "W"), numpy_helper.from_array(bias, "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    seen = precision.Activations()
    seen.add(rows)
    layer = precision._hash(model.graph.initializer[0])
    return model, precision.convert(model, "int8", {layer: seen}), seen


def outputs(model: onnx.ModelProto, rows: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), session_options(), providers=["CPUExecutionProvider"]
    )
    result: np.ndarray = session.run(None, {"x": rows})[0]
    return result


@pytest.mark.parametrize("rows", [1, 8])
def test_integer_products_never_overflow_however_large_neighbouring_weights_are(rows: int) -> None:
    """x86 without VNNI adds two products in 16 bits; with full 8-bit weights this input would overflow."""
    weights = np.full((WIDE, WIDE), 0.5, np.float32)
    x = np.full((rows, WIDE), 4.0, np.float32)
    _, converted, _ = one_layer(weights, np.zeros(WIDE, np.float32), x)
    assert np.abs(outputs(converted, x) / (4.0 * 0.5 * WIDE) - 1.0).max() < 0.01


def test_an_integer_layer_is_close_and_its_rows_do_not_influence_each_other() -> None:
    rng = np.random.default_rng(0)
    weights, bias = rng.normal(size=(WIDE, WIDE)).astype(np.float32), rng.normal(size=WIDE).astype(np.float32)
    x = np.abs(rng.normal(size=(32, WIDE))).astype(np.float32)
    model, converted, _ = one_layer(weights, bias, x)
    exact, ours = outputs(model, x), outputs(converted, x)
    assert np.abs(ours - exact).mean() < 0.01 * np.abs(exact).mean() * np.sqrt(WIDE)
    assert np.abs((ours - exact).mean(0)).max() < 0.02 * np.abs(exact).max(), (
        "the mean error of a column was not taken off its bias"
    )
    with_stranger = np.concatenate((1e4 * x[:1], x))
    assert outputs(converted, with_stranger)[1:].tobytes() == ours.tobytes()
    assert all(outputs(converted, x[i : i + 1]).tobytes() == ours[i : i + 1].tobytes() for i in range(len(x)))


def test_the_variant_shares_contract_and_encoder_and_uses_standard_operators(small: Path) -> None:
    bundle = Bundle.open(small)
    assert set(bundle.variants) == {"fp32", "int8"}
    assert bundle.variants["int8"]["encode"] == bundle.variants["fp32"]["encode"]
    for graph in ("refine", "policy", "value"):
        model = onnx.load(small / bundle.variants["int8"][graph])
        assert {entry.domain for entry in model.opset_import} == {""}
        integer = [
            t for t in model.graph.initializer if t.data_type == onnx.TensorProto.INT8 and len(t.dims) == 2
        ]
        assert len(integer) == (2 if graph == "value" else 1), "one hidden product per network"
        bundle.session(graph, "int8")


def test_the_integer_graphs_run_integer_kernels(small: Path, tmp_path: Path) -> None:
    options = session_options()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(str(small / "policy.int8.onnx"), options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert kinds.count("QGemm") == 5
    assert "DequantizeLinear" not in kinds


def test_the_certificate_measures_the_variant_and_the_other_number_of_steps(small: Path) -> None:
    stored = Bundle.open(small).certificate()
    (variant,) = stored.variants
    assert variant.variant == "int8"
    error = variant.action_error
    assert 0.0 < error["p50"] <= error["p99"] <= error["max"]
    assert error["p99"] <= variant.tolerance == 0.02
    assert variant.same_bytes is variant.rows_independent is variant.passed is True
    assert variant.value_change["p99"] > 0.0
    assert stored.flow_change is not None
    assert stored.flow_change.trained_steps == 10
    assert stored.flow_change.exported_steps == 5
    assert 0.0 < stored.flow_change.action_difference["max"] < 1.0
    assert [r.variant for r in stored.rankings] == ["fp32", "int8"]
    assert len(stored.rankings[0].by_step) == 6
    # The tiny run has two members and exports both: then nothing is lost.
    assert stored.rankings[0].correlation["mean"] == pytest.approx(1.0)
    assert stored.rankings[0].lost == 0.0
    assert [c.variant for c in stored.cost] == ["fp32", "int8"]


@pytest.mark.slow
def test_one_member_of_two_ranks_worse_than_both(run: Path, tmp_path: Path) -> None:
    assert (
        cli("export", run, "--output", tmp_path / "bundle", "--value-members", 1, "--flow-steps", 1).exit_code
        == 0
    )
    (ranking,) = Bundle.open(tmp_path / "bundle").certificate().rankings
    assert 0.0 < ranking.correlation["mean"] < 0.9999
    assert ranking.lost >= 0.0


def test_verification_repeats_the_variants_checks_here(small: Path) -> None:
    shown = json.loads(cli("inspect", small, "--verify", "--json").output)
    assert shown["verified"] is True
    (again,) = shown["verified_variants"]
    assert again["action_error"] == pytest.approx(
        Bundle.open(small).certificate().variants[0].action_error, abs=1e-3
    )
    text = cli("inspect", small, "--verify").output
    assert "against fp32" in text
    assert "99 % of actions within" in text


def test_a_variant_acts_behind_the_policy_interface_and_an_absent_one_is_refused(
    small: Path, bundle: Path
) -> None:
    policies = {variant: OnnxPolicy(Bundle.open(small, variant)) for variant in ("fp32", "int8")}
    contract = Bundle.open(small).contract
    observation = {name: value[0] for name, value in contract.split(np.zeros((1, 4), np.float32)).items()}
    a, b = (policies[v].act(observation, seed=1, candidates=4, value=True) for v in ("fp32", "int8"))
    assert 0.0 < np.abs(a.actions - b.actions).max() < 0.05
    with pytest.raises(
        BundleError,
        match=r"has no variant 'int8' \(there is fp32\): pass another, or export with --precision int8",
    ):
        Bundle.open(bundle, "int8")
    assert_refused(cli("serve", bundle, "--variant", "int8"), "has no variant 'int8'")


def test_half_precision_is_refused_where_onnxruntime_has_no_kernel(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "_runs_natively", lambda dtype: False)
    for name in ("fp16", "bf16"):
        result = cli("export", run, "--output", tmp_path / "bundle", "--precision", name)
        assert_refused(result, f"has no {name} matrix product on this machine")
    assert list(tmp_path.iterdir()) == []


def test_half_precision_graphs_compute_what_float32_does(small: Path) -> None:
    """onnxruntime runs float16 everywhere, through float32 where it has no kernel: enough for the graph."""
    bundle = Bundle.open(small)
    contract = bundle.contract
    models = {graph: onnx.load(small / f"{graph}.onnx") for graph in GRAPHS}
    rows, noise = example(contract)
    layers = precision.calibrate(
        models["refine"], models["value"], models["encode"], contract, contract.split(rows), noise
    )
    half = precision.convert(models["policy"], "fp16", layers)
    session = onnxruntime.InferenceSession(
        half.SerializeToString(), session_options(), providers=["CPUExecutionProvider"]
    )
    inputs = {"noise": noise, **contract.split(rows)}
    error = np.abs(session.run(None, inputs)[0] - bundle.session("policy").run(None, inputs)[0]).max()
    assert 0.0 < error < 1e-2


def example(contract: Contract) -> tuple[np.ndarray, np.ndarray]:
    rows = np.random.default_rng(0).normal(size=(16, contract.plant.observation_dim)).astype(np.float32)
    return rows, flow_noise(0, len(rows), contract.h * contract.plant.action_dim)


@pytest.mark.slow
def test_a_variant_beyond_tolerance_leaves_no_bundle(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = exporter.convert

    def coarse(
        model: onnx.ModelProto, name: precision.Precision, layers: precision.Layers
    ) -> onnx.ModelProto:
        monkeypatch.setattr(precision, "WEIGHT_LEVELS", 2)
        return honest(model, name, layers)

    monkeypatch.setattr(exporter, "convert", coarse)
    assert_refused(
        cli("export", run, "--output", tmp_path / "bundle", "--precision", "int8", "--flow-steps", 1),
        "int8 actions are off by",
    )
    assert list(tmp_path.iterdir()) == []


def test_episodes_need_an_environment_that_the_data_set_names(run: Path, tmp_path: Path) -> None:
    assert_refused(
        cli("export", run, "--output", tmp_path / "bundle", "--episodes", 1), "leave --episodes out"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_hidden_layers_as_wide_as_a_chunk_are_told_by_their_place(dataset: Path, tmp_path: Path) -> None:
    """h * A = 16 here, which is the hidden width too."""
    train = (
        "train",
        "--dataset",
        dataset,
        "--output",
        tmp_path / "run",
        "--updates",
        2,
        "--set",
        "batch_size=8",
        "--set",
        "rql.h=8",
    )
    widths = ("--set", "rql.policy_hidden=[16, 16, 16]", "--set", "rql.value_hidden=[16, 16, 16]")
    assert cli(*train, *widths).exit_code == 0
    assert cli("export", tmp_path / "run", "--output", tmp_path / "bundle").exit_code == 0
    refine, value = (onnx.load(tmp_path / "bundle" / f"{graph}.onnx") for graph in ("refine", "value"))
    assert len(precision.hidden_layers(refine, last=True)) == 2
    assert len(precision.hidden_layers(value, last=False)) == 2 * 2
