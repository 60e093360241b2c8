"""Use an installed wheel as a robot's computer does; `tools/try-wheel` runs this in bare environments.

python tools/use_wheel.py base     every module imports or says which extra it lacks; the command line answers
python tools/use_wheel.py serve    a server process answers the synchronous and the asyncio client
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.metadata
import importlib.resources
import pkgutil
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

BASE = {"rql-deploy", "numpy", "pyzmq", "msgspec", "click", "tomli", "pip", "setuptools", "wheel"}


def check_base() -> None:
    """Import all of the package; what is missing may only be what an extra brings."""
    import rql_deploy

    installed = {d.metadata["Name"].lower().replace("_", "-") for d in importlib.metadata.distributions()}
    assert installed <= BASE, f"the base install brought {sorted(installed - BASE)}"
    imported, lacking = 0, set()
    for module in pkgutil.walk_packages(rql_deploy.__path__, "rql_deploy.", onerror=lambda name: None):
        if module.name.endswith("__main__"):
            continue
        try:
            importlib.import_module(module.name)
            imported += 1
        except ModuleNotFoundError as error:
            top = (error.name or "").partition(".")[0]
            assert top and top != "rql_deploy" and top not in sys.stdlib_module_names, (
                f"{module.name}: {error}"
            )
            lacking.add(top)
    assert {"rql_deploy.runtime.client", "rql_deploy.runtime.control.safety", "rql_deploy.cli.serve"} <= set(
        sys.modules
    )
    command = subprocess.run(
        [Path(sys.executable).with_name("rql-deploy"), "--help"], capture_output=True, text=True
    )
    assert command.returncode == 0, command.stderr
    print(f"base: {imported} modules import; extras would bring {', '.join(sorted(lacking))}")


def check_serve() -> None:
    """Serve the bundle that comes with the package and ask for one decision each way."""
    from rql_deploy.limits import Limits
    from rql_deploy.runtime.client import RemotePolicy

    bundle = importlib.resources.files("rql_deploy") / "assets" / "lift_bundle"
    command = [sys.executable, "-m", "rql_deploy", "serve", str(bundle), "--bind", "tcp://127.0.0.1:*"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert server.stdout is not None
        ready = server.stdout.readline()
        match = re.search(r"on (tcp://\S+)$", ready.strip())
        assert match, ready + server.stdout.read()
        with RemotePolicy.connect(match.group(1)) as policy:
            observation = {
                field.name: np.zeros(field.shape, np.float32) for field in policy.contract.plant.fields
            }
            chunk = policy.act(observation, candidates=4, value=True, seed=0, deadline=10.0).actions
            with tempfile.TemporaryDirectory() as folder:
                (file := Path(folder, "limits.toml")).write_text(
                    "max_consecutive_holds = 3\n[actions.dx]\nhigh = 0.5\n"
                )
                assert Limits.load(file, policy.contract).actions["dx"].high == 0.5
        same = asyncio.run(act_once(match.group(1), observation))
        assert np.array_equal(chunk, same), "the asyncio client decided otherwise"
    finally:
        server.kill()
        server.communicate()
    print(f"serve: a chunk of shape {list(chunk.shape)}, the same from both clients")


async def act_once(endpoint: str, observation: dict[str, np.ndarray]) -> np.ndarray:
    """One decision of the asyncio client."""
    from rql_deploy.runtime.client.aio import AsyncRemotePolicy

    async with await AsyncRemotePolicy.connect(endpoint) as policy:
        return (await policy.act(observation, candidates=4, value=True, seed=0, deadline=10.0)).actions


if __name__ == "__main__":
    {"base": check_base, "serve": check_serve}[sys.argv[1]]()
