"""Graphics that cannot be loaded cost pictures, never a simulation or a score."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rql_deploy.sim.rendering import CURE, RenderingError, rendering_errors
from rql_deploy.workflows import evaluate as evaluating
from tests.helpers.commands import ROOT, assert_refused, cli

CODE = """
from rql_deploy.sim.rendering import render_headless, require_rendering
render_headless()
import mujoco
model = mujoco.MjModel.from_xml_string("<mujoco/>")
mujoco.mj_step(model, mujoco.MjData(model))
from rql_deploy.sim.processes import SimulatorPool
if __name__ == "__main__":
    with SimulatorPool(1) as pool:
        print(pool.submit(require_rendering).exception())
"""


@pytest.mark.parametrize(
    ("name", "choice", "words"),
    [
        ("MUJOCO_GL", "nonsense", "MuJoCo cannot render with MUJOCO_GL=nonsense"),
        ("PYOPENGL_PLATFORM", "osmesa", "MuJoCo cannot render with MUJOCO_GL=egl"),
    ],
)
def test_mujoco_simulates_and_a_worker_says_why_it_does_not_render(
    name: str, choice: str, words: str, tmp_path: Path
) -> None:
    script = tmp_path / "script.py"
    script.write_text(CODE)
    plain = {k: v for k, v in os.environ.items() if k not in ("MUJOCO_GL", "PYOPENGL_PLATFORM")}
    environment = {**plain, name: choice, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(words) and CURE in done.stdout


def test_what_opengl_raises_is_a_rendering_error() -> None:
    with pytest.raises(RenderingError, match="no such device") as caught, rendering_errors():
        raise RuntimeError("no such device\nand more")
    assert caught.value.kind == "rendering" and "and more" not in str(caught.value)


def test_a_film_that_cannot_be_rendered_costs_no_score_and_no_success(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(error: Exception) -> Any:
        def film(*_: Any) -> None:
            raise error

        return film

    cart = "gym:tests.helpers.drifting_cart:tests/Cart-v0"
    words = (
        "evaluate",
        cart,
        "--bundle",
        bundle,
        "--episodes",
        1,
        "--workers",
        1,
        "--video",
        tmp_path / "f.mp4",
    )
    monkeypatch.setattr(evaluating, "film", failing(RenderingError("no device", hint=CURE)))
    result = cli(*words)
    assert result.exit_code == 0, result.output
    assert "1 of 1 succeeded" in result.output and f"there is no film: no device: {CURE}\n" in result.output
    monkeypatch.setattr(evaluating, "film", failing(OSError("the encoder is broken")))
    assert_refused(cli(*words), "1 of 1 succeeded", "the film failed (OSError: the encoder is broken)")
