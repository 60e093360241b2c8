"""The published JSON Schemas: current, valid, and they accept and refuse what the readers do."""

import json
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet

from rql_deploy.bundle.bundle import Bundle
from rql_deploy.contract import Contract, ContractError
from rql_deploy.runtime.recording import protobuf
from rql_deploy.runtime.recording.messages import MESSAGES
from rql_deploy.train.config import config_to_plain, load_config, preset_names
from tests.helpers.commands import ROOT
from tests.helpers.schemas import json_schema, load_schemas

SCHEMAS = load_schemas()
OLD_BUNDLE = ROOT / "tests" / "data" / "lift_bundle"


def published(name: str) -> dict[str, Any]:
    schema: dict[str, Any] = json.loads((ROOT / "docs" / f"{name}.schema.json").read_text())
    return schema


@pytest.mark.parametrize("name", SCHEMAS.PUBLISHED)
def test_the_published_schema_is_what_the_structs_say(name: str) -> None:
    assert (ROOT / "docs" / f"{name}.schema.json").read_text() == SCHEMAS.text_of(name), (
        "run: python docs/schemas.py"
    )
    schema = published(name)
    jsonschema.Draft202012Validator.check_schema(schema)
    tables = [schema, *schema["$defs"].values()]
    assert all(entry.get("description") for table in tables for entry in table["properties"].values())
    assert all(table["additionalProperties"] is False for table in tables)


def test_the_published_messages_are_those_of_a_recording() -> None:
    text = (ROOT / "docs" / "recording.proto").read_text()
    assert text == SCHEMAS.proto_text(), "run: python docs/schemas.py"
    for cls in MESSAGES.values():
        descriptors = FileDescriptorSet.FromString(protobuf.schema(cls)[1])
        message = descriptors.file[0].message_type[-1]
        body = re.search(rf"^message {cls.__name__} \{{$(.*?)^\}}$", text, re.MULTILINE | re.DOTALL)
        assert body is not None
        assert re.findall(r"(\w+) = (\d+);", body.group(1)) == [
            (field.name, str(field.number)) for field in message.field
        ]


def test_no_schema_is_left_over() -> None:
    names = {path.name.removesuffix(".schema.json") for path in (ROOT / "docs").glob("*.schema.json")}
    assert names == set(SCHEMAS.PUBLISHED)


@pytest.mark.parametrize("folder", [OLD_BUNDLE, "bundle"], ids=["old", "new"])
@pytest.mark.parametrize("name", ["contract", "manifest", "certificate"])
def test_files_of_bundles_old_and_new_fit(
    name: str, folder: Path | str, request: pytest.FixtureRequest
) -> None:
    path: Path = request.getfixturevalue(folder) if isinstance(folder, str) else folder
    jsonschema.validate(json.loads((path / f"{name}.json").read_text()), published(name))


@pytest.mark.parametrize("preset", preset_names())
def test_presets_and_whole_configurations_fit(preset: str) -> None:
    jsonschema.validate(config_to_plain(load_config(preset)), published("train"))
    jsonschema.validate(
        tomllib.loads((ROOT / "train" / "presets" / f"{preset}.toml").read_text()), published("train")
    )


def test_the_sweep_behind_the_table_of_results_fits() -> None:
    jsonschema.validate(tomllib.loads((ROOT / "benchmarks" / "table.toml").read_text()), published("sweep"))


@pytest.mark.parametrize(
    "change",
    [
        lambda plain: plain.update(h="five"),
        lambda plain: plain.update(valeu_members=2),
        lambda plain: plain.update(observation_mean=[None]),
        lambda plain: plain["plant"]["actions"][0].update(hold="drop"),
        lambda plain: plain.pop("F"),
    ],
)
def test_the_schema_refuses_what_the_reader_refuses(change: Callable[[dict[str, Any]], None]) -> None:
    plain = json.loads(Bundle.open(OLD_BUNDLE).contract.to_json())
    change(plain)
    with pytest.raises(ContractError):
        Contract.from_json(json.dumps(plain))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(plain, json_schema(Contract))
