"""Real server processes, what is asked of them, and bundles to exchange under them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx

from rql_deploy.bundle.bundle import Bundle
from rql_deploy.bundle.manifest import CONTRACT, write_manifest
from rql_deploy.bundle.sessions import CONTRACT_ID_KEY, CONTRACT_KEY
from rql_deploy.contract import Contract, ObservationField
from rql_deploy.runtime.engine.model import Model
from rql_deploy.runtime.server.server import PolicyServer


@contextlib.contextmanager
def serving(bundle: Path, *options: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A real server process; yields its endpoint and the process."""
    with announced(bundle, *options) as (ready, process):
        yield ready["endpoint"], process


@contextlib.contextmanager
def announced(
    bundle: Path, *options: str, **environment: str
) -> Iterator[tuple[dict[str, Any], subprocess.Popen[str]]]:
    """A real server process; yields what it says by `--ready-fd`, and the process."""
    reader, writer = os.pipe()
    command = [sys.executable, "-m", "rql_deploy", "serve", str(bundle), "--bind", "tcp://127.0.0.1:*"]
    process = subprocess.Popen(
        [*command, "--ready-fd", str(writer), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        pass_fds=(writer,),
        env={**os.environ, **environment},
    )
    os.close(writer)
    try:
        # To its end: nobody holds the pipe open once the server is ready.
        with os.fdopen(reader) as pipe:
            line = pipe.read()
        assert process.stdout is not None
        assert line, process.stdout.read()
        yield json.loads(line), process
    finally:
        process.kill()
        process.communicate()


def observation(contract: Contract, seed: int = 0) -> dict[str, np.ndarray]:
    """A random observation of the contract's fields."""
    rng = np.random.default_rng(seed)
    numbers = {f.name: rng.normal(size=f.shape) for f in contract.plant.fields}
    pictures = {
        f.name: rng.integers(0, 256, f.shape, np.uint8) for f in contract.plant.inputs if f.dtype == "uint8"
    }
    return numbers | pictures


def note(process: subprocess.Popen[str], pattern: str) -> str:
    """What a line of the server's output says."""
    assert process.stdout is not None
    for line in process.stdout:
        if match := re.search(pattern, line):
            return match.group(1)
    raise AssertionError(f"no line matches {pattern}")


def get(url: str) -> tuple[int, str]:
    """Status and text of an HTTP answer."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def variant(bundle: Path, folder: Path, contract: Contract, *, scale: float) -> Path:
    """A whole bundle with another contract and scaled weights (by 2, folded constants scale to the bit)."""
    shutil.copytree(bundle, folder)
    for path in folder.glob("*.onnx"):
        graph = onnx.load(path)
        for tensor in graph.graph.initializer:
            if len(tensor.dims) == 2 and max(tensor.dims) > 1:
                tensor.CopyFrom(
                    onnx.numpy_helper.from_array(
                        onnx.numpy_helper.to_array(tensor) * np.float32(scale), tensor.name
                    )
                )
        onnx.helper.set_model_props(
            graph, {CONTRACT_ID_KEY: contract.contract_id, CONTRACT_KEY: contract.to_json()}
        )
        onnx.save(graph, path)
    (folder / CONTRACT).write_text(contract.to_json())
    write_manifest(folder, contract)
    return folder


class CameraModel(Model):
    """The test bundle, whose one field of four numbers comes as a uint8 `camera` [2, 1] and two numbers."""

    def __init__(self, bundle: Bundle):
        super().__init__(bundle)
        fields = (ObservationField("camera", (2, 1), dtype="uint8"), ObservationField("position", (2,)))
        plant = msgspec.structs.replace(self.contract.plant, fields=fields)
        self.contract = msgspec.structs.replace(self.contract, plant=plant)

    def encode(self, fields: Any) -> Any:
        return super().encode(joined(fields))

    def unrolled(self, fields: Any, noise: Any) -> Any:
        return super().unrolled(joined(fields), noise)


def joined(fields: Any) -> dict[str, Any]:
    """The field of the test bundle from those of a `CameraModel`."""
    assert fields["camera"].dtype == np.uint8
    numbers = fields["camera"].reshape(-1, 2).astype(np.float32)
    return {"observation": np.concatenate([numbers, fields["position"]], axis=1)}


@contextlib.contextmanager
def serving_images(bundle: Path) -> Iterator[str]:
    """A server of a `CameraModel` in a thread; yields its endpoint."""
    with serving_model(CameraModel(Bundle.open(bundle))) as endpoint:
        yield endpoint


@contextlib.contextmanager
def serving_model(model: Model) -> Iterator[str]:
    """A server of the model in a thread; yields its endpoint."""
    model.warm_up(rounds=1)
    with PolicyServer([model], "tcp://127.0.0.1:*") as server:
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            yield server.endpoint
        finally:
            server.stop()
            thread.join()
