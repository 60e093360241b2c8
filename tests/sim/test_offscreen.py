"""Small MuJoCo models seen off screen: what is shown, and which context is kept."""

import subprocess
import sys
from typing import Any

import mujoco
import numpy as np

from rql_deploy.sim.offscreen import Offscreen
from tests.helpers.commands import ROOT

MODEL = """<mujoco><asset><texture name="t" type="2d" builtin="flat" rgb1="{colour}" width="8" height="8"/>
<material name="m" texture="t"/></asset><worldbody><camera name="{camera}" pos="0 0 1"/>
<body><freejoint/><geom type="box" size="{size} .2 .2" material="m" group="{group}"/></body></worldbody>
</mujoco>"""


def made(colour: str = "1 0 0", size: float = 0.2, camera: str = "top", group: int = 0) -> tuple[Any, Any]:
    model = mujoco.MjModel.from_xml_string(MODEL.format(colour=colour, size=size, camera=camera, group=group))
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    return model, data


def look(offscreen: Offscreen, model: Any, data: Any, height: int = 16, width: int = 24) -> np.ndarray:
    offscreen.use(model)
    return offscreen.picture(data, 0, height, width)


def test_pictures_have_their_own_size_and_show_every_shape_but_robosuites_for_contacts() -> None:
    offscreen = Offscreen(20, 24)
    shown = look(offscreen, *made())
    assert shown.shape == (16, 24, 3) and shown[8, 12, 0] > 50 > shown[8, 12, 1]
    assert look(offscreen, *made(), 20, 20)[10, 10, 0] > 50
    assert look(offscreen, *made(camera="agentview")).max() == 0
    assert look(offscreen, *made(camera="agentview", group=1))[8, 12, 0] > 50
    offscreen.close()


def test_a_context_is_kept_as_long_as_textures_and_extent_are_the_same() -> None:
    offscreen = Offscreen(16, 24)
    first = look(offscreen, *made())
    kept = offscreen._contexts[0]
    model, data = made()
    data.qpos[0] = 0.1
    mujoco.mj_forward(model, data)
    assert not np.array_equal(look(offscreen, model, data), first)
    assert offscreen._contexts[0] is kept
    green = look(offscreen, *made("0 1 0"))
    assert offscreen._contexts[0] is not kept and green[8, 12, 1] > 50 > green[8, 12, 0]
    fresh = Offscreen(16, 24)
    for model, data in (made("0 1 0"), made(size=0.3)):
        assert np.array_equal(look(offscreen, model, data), look(fresh, model, data))
    offscreen.close()
    fresh.close()


def test_the_models_own_screen_keeps_its_size() -> None:
    model, data = made()
    before = model.vis.global_.offheight, model.vis.global_.offwidth
    offscreen = Offscreen(16, 24)
    look(offscreen, model, data)
    offscreen.close()
    assert (model.vis.global_.offheight, model.vis.global_.offwidth) == before


def test_a_process_that_ends_with_a_context_ends_quietly() -> None:
    code = (
        "from tests.sim.test_offscreen import Offscreen, look, made\n"
        "kept = Offscreen(16, 24)\n"
        "look(kept, *made())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
