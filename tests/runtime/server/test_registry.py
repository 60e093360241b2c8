"""What a server loads, and under which contracts a swapped model still takes requests."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from pathlib import Path

import msgspec
import pytest

from rql_deploy.bundle.bundle import Bundle
from rql_deploy.bundle.manifest import MANIFEST
from rql_deploy.contract import ObservationField
from rql_deploy.runtime.engine.model import Model
from rql_deploy.runtime.server import registry
from rql_deploy.runtime.server.registry import ModelRegistry, Reloader
from rql_deploy.runtime.wire.checks import ProtocolError
from tests.helpers.servers import CameraModel


def test_what_cannot_be_loaded_is_said_once_and_the_next_bundle_is_taken(
    bundle: Path, successor: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "bundle"
    shutil.copytree(bundle, place)
    said: list[str] = []
    spoken, swapped = threading.Event(), threading.Event()

    def say(_: str, extra: dict[str, dict[str, str]]) -> None:
        said.append(extra["data"]["reason"])
        spoken.set()

    monkeypatch.setattr(registry._log, "error", say)
    reloader = Reloader([place], [Model(Bundle.open(place))], lambda name, model: swapped.set())
    with contextlib.closing(reloader):

        def reload() -> str:
            said.clear()
            spoken.clear()
            reloader.request()
            assert spoken.wait(20)
            assert reloader._thread.is_alive()
            (sentence,) = said
            return sentence

        graph = place / "refine.onnx"
        graph.unlink()
        graph.symlink_to(graph)  # a file that nobody can open
        assert "refine.onnx" in reload()
        graph.unlink()
        graph.write_bytes((bundle / "refine.onnx").read_bytes()[:100])  # half a copy
        assert "refine.onnx" in reload()
        (place / MANIFEST).rename(place / "kept")
        os.mkfifo(place / MANIFEST)  # a pipe that nobody writes to
        assert "manifest.json: not a file" in reload()
        monkeypatch.setattr(registry.Bundle, "open", lambda *_: 1 / 0)
        assert "division by zero" in reload()
        monkeypatch.undo()
        shutil.rmtree(place)
        shutil.copytree(successor, place)
        reloader.request()
        assert swapped.wait(20)


def test_a_bundle_whose_files_arrive_one_by_one_is_taken_when_all_are_there(
    bundle: Path, successor: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "bundle"
    shutil.copytree(bundle, place)
    refused, swapped = threading.Event(), threading.Event()
    monkeypatch.setattr(registry._log, "error", lambda *_, **__: refused.set())
    models = [Model(Bundle.open(place))]
    with contextlib.closing(Reloader([place], models, lambda *_: swapped.set(), watch=0.05)):
        shutil.copy(successor / MANIFEST, place)
        assert refused.wait(20)
        assert not swapped.is_set()
        for file in successor.iterdir():
            if file.name != MANIFEST:
                shutil.copy(file, place)
        assert swapped.wait(20)


def model_with(bundle: Path, *fields: ObservationField) -> CameraModel:
    """A model whose contract has these fields."""
    model = CameraModel(Bundle.open(bundle))
    dim = sum(field.size for field in fields)
    plant = msgspec.structs.replace(model.contract.plant, fields=fields)
    model.contract = msgspec.structs.replace(
        model.contract, plant=plant, observation_mean=(0.0,) * dim, observation_std=(1.0,) * dim
    )
    return model


def test_a_request_is_read_as_its_own_contract_lays_it_out(bundle: Path) -> None:
    arm, gripper = ObservationField("arm", (3,)), ObservationField("gripper", (1,))
    first, turned = model_with(bundle, arm, gripper), model_with(bundle, gripper, arm)
    registry = ModelRegistry([first])
    slot = registry.find(None)
    slot.swap(turned)
    old, new = first.contract.contract_id, turned.contract.contract_id
    _, layout, update = registry.find_for_contract(None, old)
    assert ([name for name, _, _ in layout.fields], update) == (["arm", "gripper"], new)
    _, layout, update = registry.find_for_contract(None, new)
    assert ([name for name, _, _ in layout.fields], update) == (["gripper", "arm"], None)
    # A model that reads more cannot answer requests of the contracts before it.
    slot.swap(model_with(bundle, arm, gripper, ObservationField("force", (1,))))
    for contract in (old, new, "another"):
        with pytest.raises(ProtocolError, match="say hello again") as error:
            registry.find_for_contract(None, contract)
        assert error.value.code == "contract_changed"
