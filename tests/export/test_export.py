import json
import shutil
import zipfile
from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from rql_deploy.bundle import certificate
from rql_deploy.bundle.bundle import Bundle
from rql_deploy.bundle.manifest import GRAPHS
from rql_deploy.bundle.sessions import CONTRACT_ID_KEY, CONTRACT_KEY
from rql_deploy.contract import Contract
from rql_deploy.errors import BundleError, UserError
from rql_deploy.export.exporter import export_bundle
from rql_deploy.export.graphs import ExportModules
from rql_deploy.flow import flow_schedule
from rql_deploy.runtime.engine.onnx_policy import OnnxPolicy
from rql_deploy.seeding import flow_noise
from rql_deploy.train.checkpoints.checkpoint import load_checkpoint
from rql_deploy.train.export_modules import make_contract, make_modules
from rql_deploy.train.policy import make_policy
from tests.helpers.commands import ROOT, assert_refused, cli
from tests.helpers.tiny_bundle import TARGET as TINY_BUNDLE


def random_observations(contract: Contract, rows: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, contract.plant.observation_dim)).astype(np.float32)


def test_a_bundle_holds_what_the_design_lists(bundle: Path) -> None:
    assert {file.name for file in bundle.iterdir()} == {
        *(f"{graph}.onnx" for graph in GRAPHS),
        *("contract.json", "manifest.json", "certificate.json", "certificate_cases.npz", "README.md"),
    }
    opened = Bundle.open(bundle)
    assert set(opened.manifest.files) == {file.name for file in bundle.iterdir()} - {"manifest.json"}
    assert opened.contract.provenance.dataset_id == "tiny/flat-v0"


def test_the_committed_bundle_has_the_files_and_graphs_that_are_exported_today(bundle: Path) -> None:
    assert {file.name for file in TINY_BUNDLE.iterdir()} == {file.name for file in bundle.iterdir()}
    for graph in GRAPHS:
        committed, exported = (onnx.load(folder / f"{graph}.onnx").graph for folder in (TINY_BUNDLE, bundle))
        assert committed.input == exported.input
        assert committed.output == exported.output
        assert [node.op_type for node in committed.node] == [node.op_type for node in exported.node]


def test_every_graph_carries_the_contract_and_standard_operators_only(bundle: Path) -> None:
    contract = Bundle.open(bundle).contract
    for graph in GRAPHS:
        model = onnx.load(bundle / f"{graph}.onnx")
        onnx.checker.check_model(model, full_check=True)
        assert {entry.domain for entry in model.opset_import} == {""}
        properties = {p.key: p.value for p in model.metadata_props}
        assert properties[CONTRACT_ID_KEY] == contract.contract_id
        assert Contract.from_json(properties[CONTRACT_KEY]) == contract
        assert str(ROOT).encode() not in model.SerializeToString()


@pytest.mark.parametrize(
    "level", ["ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL"]
)
@pytest.mark.parametrize("rows", [1, 3, 64])
def test_refinement_steps_and_the_unrolled_policy_give_the_same_bytes(
    bundle: Path, level: str, rows: int
) -> None:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.intra_op_num_threads = 1
    encode, refine, policy = (
        onnxruntime.InferenceSession(
            str(bundle / f"{name}.onnx"), options, providers=["CPUExecutionProvider"]
        )
        for name in ("encode", "refine", "policy")
    )
    contract = Bundle.open(bundle).contract
    fields = contract.split(random_observations(contract, rows))
    noise = flow_noise(5, rows, contract.h * contract.plant.action_dim)
    features, x, column = encode.run(None, fields)[0], noise, np.ones((rows, 1), np.float32)
    for f, delta in flow_schedule(contract.F):
        x, preview = refine.run(
            None,
            {"features": features, "x": x, "f": column * np.float32(f), "delta": column * np.float32(delta)},
        )
    assert preview.tobytes() == policy.run(None, {"noise": noise, **fields})[0].tobytes()


def test_the_bundle_acts_and_judges_as_torch_does(bundle: Path, run: Path) -> None:
    ours, reference = OnnxPolicy(Bundle.open(bundle)), make_policy(load_checkpoint(run))
    contract = ours.contract
    chosen = []
    for seed, row in enumerate(random_observations(contract, 20)):
        observation = {name: value[0] for name, value in contract.split(row[None]).items()}
        a, b = (policy.act(observation, seed=seed, candidates=4, value=True) for policy in (ours, reference))
        assert np.abs(a.actions - b.actions).max() < 1e-5
        assert a.value == pytest.approx(b.value, abs=1e-4)
        assert a.spread == pytest.approx(b.spread, abs=1e-4)
        chosen.append(not np.allclose(a.actions, ours.act(observation, seed=seed).actions))
    assert any(chosen), "the best of four was always the first"


def test_the_best_candidate_has_the_highest_value(bundle: Path) -> None:
    policy = OnnxPolicy(Bundle.open(bundle))
    contract = policy.contract
    observation = {name: value[0] for name, value in contract.split(random_observations(contract, 1)).items()}
    noise = flow_noise(3, 6, contract.h * contract.plant.action_dim)
    opened, fields = Bundle.open(bundle), contract.split(contract.flatten(observation)[None])
    graphs = {graph: opened.session(graph) for graph in ("encode", "policy", "value")}
    chunks = [graphs["policy"].run(None, {"noise": n[None], **fields})[0] for n in noise]
    low, high = contract.plant.action_low, contract.plant.action_high
    centre, half_range = ((high + low) / 2).astype(np.float32), ((high - low) / 2).astype(np.float32)
    scaled = [((chunk - centre) / half_range).reshape(1, -1) for chunk in chunks]
    features, one = graphs["encode"].run(None, fields)[0], np.ones((1, 1), np.float32)
    values = [graphs["value"].run(None, {"features": features, "x": x, "f": one})[0][0] for x in scaled]
    decision = policy.act(observation, candidates=6, value=True, seed=3)
    assert decision.value == max(values)
    assert np.array_equal(decision.actions, chunks[int(np.argmax(values))][0])


def test_the_certificate_checks_every_step_of_every_graph(bundle: Path) -> None:
    stored = Bundle.open(bundle).certificate()
    names = {(c.graph, c.cases, c.reference) for c in stored.checks}
    steps = 10
    graphs = {"encode", "policy"} | {f"refine/{k}/{o}" for k in range(steps) for o in ("x", "preview")}
    graphs |= {f"value/{k}/{o}" for k in range(steps + 1) for o in ("value", "spread")}
    assert names == {
        (g, c, r) for g in graphs for c in ("dataset", "extreme") for r in ("float32", "float64")
    }
    assert stored.same_bytes is True
    assert stored.rows_independent is True
    assert cli("inspect", bundle, "--verify").exit_code == 0


def test_verification_needs_no_torch(bundle: Path) -> None:
    import subprocess
    import sys

    code = (
        "import sys; sys.modules['torch'] = None; from rql_deploy.cli import main\n"
        f"main(['inspect', {str(bundle)!r}, '--verify', '--json'])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["verified"] is True


def modules_and_contract(run: Path) -> tuple[ExportModules, Contract, np.ndarray]:
    checkpoint = load_checkpoint(run)
    agent = checkpoint.restore_networks()
    contract = make_contract(checkpoint, agent)
    encoder, refiner, policy, valuer = make_modules(agent, contract)
    return (
        ExportModules(encoder, refiner, policy, valuer, encoder.feature_dim),
        contract,
        checkpoint.reference["observations"].numpy(),
    )


def test_an_export_beyond_tolerance_fails_and_leaves_nothing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modules, contract, observations = modules_and_contract(run)
    from rql_deploy.export import exporter

    honest = exporter.make_cases

    def shifted(*arguments: object) -> dict[str, np.ndarray]:
        cases = honest(*arguments)  # type: ignore[arg-type]
        cases["dataset/float64/refine/4/x"] = cases["dataset/float64/refine/4/x"] + 2e-5
        return cases

    monkeypatch.setattr(exporter, "make_cases", shifted)
    with pytest.raises(UserError, match="refine/4/x is off by 2e-05 on dataset observations"):
        export_bundle(modules, contract, observations, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_the_certificate_notices_steps_that_differ_from_the_unrolled_policy(
    run: Path, tmp_path: Path
) -> None:
    modules, contract, observations = modules_and_contract(run)
    other = msgspec.structs.replace(contract, F=9)
    # A policy unrolled for another F than the contract says.
    with pytest.raises(UserError, match="refinement steps and the unrolled policy differ"):
        export_bundle(modules, other, observations, tmp_path / "bundle")


@pytest.mark.slow
def test_fewer_flow_steps_can_be_exported(run: Path, tmp_path: Path) -> None:
    assert cli("export", run, "--output", tmp_path / "bundle", "--flow-steps", 4).exit_code == 0
    assert Bundle.open(tmp_path / "bundle").contract.F == 4


@pytest.mark.parametrize("name", ["contract.json", "policy.onnx", "certificate_cases.npz", "encode.onnx"])
def test_an_edited_file_is_refused(name: str, bundle: Path, tmp_path: Path) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(bundle, copy)
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(data)
    assert_refused(cli("inspect", copy), name, "truncated or edited")
    assert_refused(cli("serve", copy, "--bind", "tcp://127.0.0.1:*"), name)


def test_the_model_card_may_be_edited(bundle: Path, tmp_path: Path) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(bundle, copy)
    with (copy / "README.md").open("a") as card:
        card.write("\n## Use on our robot\nOnly with the blue gripper.\n")
    assert cli("inspect", copy, "--verify").exit_code == 0
    assert cli("export", "--pull", copy, "--output", tmp_path / "pulled").exit_code == 0
    assert "blue gripper" in (tmp_path / "pulled" / "README.md").read_text()


def test_a_graph_of_another_contract_is_refused(bundle: Path, tmp_path: Path) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(bundle, copy)
    model = onnx.load(copy / "refine.onnx")
    onnx.helper.set_model_props(model, {CONTRACT_ID_KEY: "0" * 64})
    onnx.save(model, copy / "refine.onnx")
    manifest = json.loads((copy / "manifest.json").read_text())
    from rql_deploy.folders import file_hash

    manifest["files"]["refine.onnx"] = file_hash(copy / "refine.onnx")
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=r"refine.onnx .* was exported for another contract"):
        Bundle.open(copy).session("refine")


@pytest.mark.parametrize("damage", ["absent", "empty", "manifest", "file"])
def test_something_that_is_no_bundle_is_one_sentence(damage: str, bundle: Path, tmp_path: Path) -> None:
    copy = tmp_path / "bundle"
    if damage != "absent":
        shutil.copytree(bundle, copy)
    if damage == "empty":
        shutil.rmtree(copy)
        copy.mkdir()
    if damage == "manifest":
        (copy / "manifest.json").write_text("[]")
    if damage == "file":
        (copy / "value.onnx").unlink()
    assert_refused(cli("inspect", copy))


def test_a_zip_of_a_bundle_is_a_bundle(bundle: Path, tmp_path: Path) -> None:
    archive = shutil.make_archive(str(tmp_path / "flat"), "zip", bundle)
    nested = shutil.make_archive(str(tmp_path / "nested"), "zip", bundle.parent, bundle.name)
    for file in (archive, nested):
        assert Bundle.open(file).contract == Bundle.open(bundle).contract
    broken = tmp_path / "broken.zip"
    broken.write_bytes(Path(archive).read_bytes()[:-200])
    assert_refused(cli("inspect", broken))
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as evil:
        evil.writestr("../../outside.txt", "x")
    assert_refused(cli("inspect", tmp_path / "evil.zip"))
    assert not (tmp_path.parent / "outside.txt").exists()


def test_an_existing_folder_is_not_overwritten(run: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    assert_refused(cli("export", run, "--output", tmp_path), "exists already")
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_more_value_members_than_there_are_is_refused(run: Path, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(run)
    with pytest.raises(UserError, match="the checkpoint has 2 value networks"):
        make_contract(checkpoint, checkpoint.restore_networks(), value_members=3)
    assert_refused(
        cli("export", run, "--output", tmp_path / "bundle", "--value-members", 3),
        "the checkpoint has 2 value networks",
    )


def test_certificate_errors_are_not_hidden_by_nan(bundle: Path) -> None:
    opened = Bundle.open(bundle)
    cases = certificate.load_cases(opened.path)
    cases["dataset/float32/policy"] = np.full_like(cases["dataset/float32/policy"], np.nan)
    result = certificate.check(opened.path, opened.contract, cases)
    assert not result.passed


def test_exported_actions_come_in_the_plants_units(run: Path) -> None:
    modules, contract, _ = modules_and_contract(run)
    with torch.no_grad():
        fields = [torch.zeros(1, *f.shape) for f in contract.plant.fields]
        actions = modules.policy(1e3 * torch.ones(1, contract.h * contract.plant.action_dim), *fields)
    assert actions.abs().max() == 1.0


def test_a_target_that_cannot_be_written_is_one_sentence(run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert_refused(cli("export", run, "--output", tmp_path / "file" / "bundle"), "pass another")
    assert_refused(cli("export", run), "pass --output")
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_checkpoint_of_another_format_is_refused(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    (header,) = copy.glob("checkpoints/*/checkpoint.json")
    header.write_text(json.dumps({**json.loads(header.read_text()), "format": 99}))
    assert_refused(cli("export", copy, "--output", tmp_path / "bundle"), "99")
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    "change",
    [{"format": 3}, {"variants": {}}, {"variants": {"fp32": {"encode": "encode.onnx"}}}, {"variants": [1]}],
)
def test_a_manifest_of_another_shape_is_refused(
    change: dict[str, object], bundle: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(bundle, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps({**manifest, **change}))
    assert_refused(cli("inspect", copy))


def test_the_spread_does_not_depend_on_a_rows_place_in_the_batch(bundle: Path) -> None:
    """Seen with x ** 2, which onnxruntime computes differently at the end of a vector."""
    session = Bundle.open(bundle).session("value")
    rng = np.random.default_rng(0)
    widths = {i.name: i.shape[1] for i in session.get_inputs()}
    for rows in (2, 3, 6, 7) * 10:
        inputs = {
            name: (10 * rng.normal(size=(rows, width))).astype(np.float32) for name, width in widths.items()
        }
        together = session.run(None, inputs)
        for i in range(rows):
            alone = session.run(None, {name: value[i : i + 1] for name, value in inputs.items()})
            assert all(a.tobytes() == t[i : i + 1].tobytes() for a, t in zip(alone, together, strict=True))


def test_a_manifest_with_graphs_in_each_others_places_is_refused(bundle: Path, tmp_path: Path) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(bundle, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    graphs = manifest["variants"]["fp32"]
    graphs["policy"], graphs["refine"] = graphs["refine"], graphs["policy"]
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert_refused(cli("inspect", copy, "--verify"), "float32 graphs")
