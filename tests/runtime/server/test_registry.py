"""The thread that loads bundles again: whatever lies at the path, it goes on."""

from __future__ import annotations

import contextlib
import shutil
import threading
from pathlib import Path

import pytest

from rql_deploy.bundle.bundle import Bundle
from rql_deploy.runtime.engine.model import Model
from rql_deploy.runtime.server import registry
from rql_deploy.runtime.server.registry import Reloader


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
        monkeypatch.setattr(registry.Bundle, "open", lambda *_: 1 / 0)
        assert "division by zero" in reload()
        monkeypatch.undo()
        shutil.rmtree(place)
        shutil.copytree(successor, place)
        reloader.request()
        assert swapped.wait(20)
