"""The bundle of the first formats (manifest 1, contract 1) keeps its id, its words and its certificate."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from rql_deploy.bundle.bundle import Bundle
from rql_deploy.bundle.manifest import FLOAT32_FILES, GRAPHS
from rql_deploy.bundle.sessions import CONTRACT_ID_KEY, CONTRACT_KEY
from rql_deploy.contract import Contract, ContractError
from rql_deploy.errors import BundleError
from rql_deploy.limits import ActionLimit, Limits
from tests.helpers.commands import ROOT, assert_refused, cli

FOLDER = ROOT / "tests" / "data" / "lift_bundle"
CONTRACT_ID = "5a5c34a185eb52aeb5fd4512033e61a5265d2112aead10d55fa2970143b0c798"


def plain_contract() -> dict[str, Any]:
    plain: dict[str, Any] = json.loads((FOLDER / "contract.json").read_text())
    return plain


def test_the_contract_keeps_its_id_and_its_canonical_form() -> None:
    text = (FOLDER / "contract.json").read_text()
    contract = Contract.from_json(text)
    assert contract.schema_version == 1
    assert contract.to_json() == text
    assert contract.contract_id == hashlib.sha256(text.encode()).hexdigest() == CONTRACT_ID
    assert Contract.from_json(contract.to_json()) == contract


def test_every_graph_opens_with_the_contract_that_its_metadata_holds() -> None:
    bundle = Bundle.open(FOLDER)
    assert bundle.manifest.format == 1
    assert bundle.variants == FLOAT32_FILES
    for graph in GRAPHS:
        metadata = bundle.session(graph).get_modelmeta().custom_metadata_map
        assert metadata[CONTRACT_ID_KEY] == CONTRACT_ID
        assert Contract.from_json(metadata[CONTRACT_KEY]) == bundle.contract


def test_its_holds_at_null_are_todays_holds_at_zero() -> None:
    assert [a["hold"] for a in plain_contract()["plant"]["actions"]] == ["null"] * 6 + ["repeat"]
    old = Bundle.open(FOLDER).contract
    assert [a.hold for a in old.plant.actions] == ["zero"] * 6 + ["repeat"]
    Limits(actions={"dx": ActionLimit(low=-0.5)}).check(old)
    with pytest.raises(ContractError, match="leaves 0 out of the range of action 'dx'"):
        Limits(actions={"dx": ActionLimit(low=0.5)}).check(old)


def test_a_new_contract_says_zero_and_has_an_id_of_its_own() -> None:
    old = Bundle.open(FOLDER).contract
    new = msgspec.structs.replace(old, schema_version=2)
    assert '"hold":"null"' not in new.to_json()
    assert new.contract_id != old.contract_id
    again = Contract.from_json(new.to_json())
    assert (again, again.contract_id) == (new, new.contract_id)
    assert old.plant.differences(new.plant) == []
    assert msgspec.structs.replace(old, F=9).to_json().count('"hold":"null"') == 6


def test_a_contract_made_with_numpy_numbers_has_the_id_its_readers_compute() -> None:
    old = Bundle.open(FOLDER).contract
    made = msgspec.structs.replace(
        old,
        h=np.int64(old.h),
        observation_mean=tuple(np.asarray(old.observation_mean)),
        plant=msgspec.structs.replace(old.plant, control_rate=20),
    )
    assert made.contract_id == CONTRACT_ID
    with pytest.raises(
        ContractError, match=r"contract\.observation_mean\[0\] should be a finite number, not nan"
    ):
        msgspec.structs.replace(old, observation_mean=(np.nan, *old.observation_mean[1:])).to_json()


@pytest.mark.parametrize("version", [0, 3, "1", None])
def test_a_contract_of_another_version_is_refused(version: object) -> None:
    with pytest.raises(ContractError, match="this rql-deploy reads 1 to 2"):
        Contract.from_json(json.dumps({**plain_contract(), "schema_version": version}))


def test_its_certificate_is_read_and_holds_here() -> None:
    certificate = Bundle.open(FOLDER).certificate()
    assert (len(certificate.checks), certificate.tolerance) == (176, 1e-5)
    assert certificate.passed
    assert (certificate.variants, certificate.rankings, certificate.cost, certificate.scores) == (
        (),
        (),
        (),
        {},
    )
    shown = json.loads(cli("inspect", FOLDER, "--verify", "--json").output)
    assert shown["verified"] is True
    assert shown["contract"] == plain_contract()


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("manifest.json", {"variant": {}}, "unknown entry 'variant': did you mean variants"),
        ("manifest.json", {"files": [1]}, "manifest.json.files should be a list or table"),
        ("manifest.json", {"format": 3}, "has format 3, this rql-deploy reads 1 to 2"),
        ("manifest.json", {"format": 2}, "each variant needs a file for encode"),
        ("manifest.json", {"contract_id": 5}, "manifest.json.contract_id should be text, not 5"),
    ],
)
def test_a_manifest_that_does_not_fit_is_one_sentence(
    file: str, change: dict[str, object], words: str, tmp_path: Path
) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(FOLDER, copy)
    (copy / file).write_text(json.dumps({**json.loads((copy / file).read_text()), **change}))
    with pytest.raises(BundleError, match=words):
        Bundle.open(copy)
    assert_refused(cli("inspect", copy))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "cannot be read"),
        ('{"tolerance": 1e-5, "cheks": []}', "unknown entry 'cheks': did you mean checks"),
        ('{"tolerance": 1e-5, "checks": [], "same_bytes": true, "rows_independent": true}', "has no checks"),
    ],
)
def test_a_certificate_that_does_not_fit_is_one_sentence(text: str, words: str, tmp_path: Path) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(FOLDER, copy)
    (copy / "certificate.json").write_text(text)
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["files"]["certificate.json"] = hashlib.sha256(text.encode()).hexdigest()
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=words):
        Bundle.open(copy).certificate()
