"""Pictures of a MuJoCo simulation, rendered off screen into one small buffer.

Some tasks compile a new model at every reset. What a graphics context holds of a model are meshes and
textures, which stay the same; making a context takes as long as ten pictures, so one is kept for all.
"""

from __future__ import annotations

import atexit
import importlib
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

UPLOADED = (
    *("mesh_vert", "mesh_normal", "mesh_texcoord", "mesh_face", "mesh_vertadr", "mesh_faceadr"),
    *("tex_data", "tex_type", "tex_height", "tex_width", "tex_adr", "hfield_data", "skin_vert"),
)
"""Arrays of a model that a context holds copies of."""
COLLISION_SHAPES, ROBOSUITE_CAMERA = 0, "agentview"
"""Group of shapes that robosuite's models have for contacts, and the camera by which they are known."""
MOST_SHAPES = 10_000
FONT_SCALE = 150


class Offscreen:
    """Renders pictures of up to one size; use it in the thread that made it."""

    def __init__(self, height: int, width: int):
        """The largest picture's size. Raises what OpenGL and its loaders raise."""
        self._mujoco: Any = importlib.import_module("mujoco")
        contexts: Any = importlib.import_module("mujoco.rendering.classic.gl_context")
        self._height, self._width = height, width
        self._screen = contexts.GLContext(width, height)
        self._contexts: list[Any] = []
        if not _open:
            # At the process's end MuJoCo gives the graphics up; what is registered later runs before that.
            atexit.register(_close_all)
        _open.add(self)
        self._model: Any = None
        self._option = self._mujoco.MjvOption()
        self._camera = self._mujoco.MjvCamera()
        self._camera.type = self._mujoco.mjtCamera.mjCAMERA_FIXED

    def use(self, model: Any) -> None:
        """Render this model from now on."""
        mujoco = self._mujoco
        self._screen.make_current()
        if not self._contexts or not _looks_alike(self._model, model):
            while self._contexts:
                self._contexts.pop().free()
            with _buffer(model, self._height, self._width):
                self._contexts.append(mujoco.MjrContext(model, FONT_SCALE))
            mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self._contexts[0])
        camera = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_CAMERA, ROBOSUITE_CAMERA)
        self._option.geomgroup[COLLISION_SHAPES] = int(camera < 0)
        self._model, self._scene = model, mujoco.MjvScene(model, maxgeom=MOST_SHAPES)

    def picture(self, data: Any, camera: int, height: int, width: int) -> NDArray[np.uint8]:
        """What the model's camera of this number sees, `[height, width, 3]` in RGB, top row first."""
        mujoco = self._mujoco
        self._screen.make_current()
        self._camera.fixedcamid = camera
        everything = mujoco.mjtCatBit.mjCAT_ALL.value
        mujoco.mjv_updateScene(self._model, data, self._option, None, self._camera, everything, self._scene)
        part = mujoco.MjrRect(0, 0, width, height)
        found: NDArray[np.uint8] = np.empty((height, width, 3), np.uint8)
        mujoco.mjr_render(part, self._scene, self._contexts[0])
        mujoco.mjr_readPixels(found, None, part, self._contexts[0])
        return np.ascontiguousarray(found[::-1])

    def close(self) -> None:
        """Free the context."""
        _open.discard(self)
        self._screen.make_current()
        while self._contexts:
            self._contexts.pop().free()
        self._screen.free()
        self._model = self._scene = None


_open: weakref.WeakSet[Offscreen] = weakref.WeakSet()


def _close_all() -> None:
    for offscreen in list(_open):
        offscreen.close()


def _looks_alike(old: Any, new: Any) -> bool:
    """Whether a context of one model will do for the other."""
    return (
        old.stat.extent == new.stat.extent
        and all(getattr(old.vis.quality, name) == getattr(new.vis.quality, name) for name in _QUALITY)
        and all(getattr(old.vis.map, name) == getattr(new.vis.map, name) for name in _MAP)
        and all(np.array_equal(getattr(old, name), getattr(new, name)) for name in UPLOADED)
    )


_QUALITY = ("shadowsize", "offsamples", "numslices", "numstacks", "numquads")
_MAP = ("shadowclip", "shadowscale", "fogstart", "fogend", "znear", "zfar")
"""Settings of a model that its context notes down."""


@contextmanager
def _buffer(model: Any, height: int, width: int) -> Iterator[None]:
    """Within the block, what is rendered off screen has this size and not that of the model's own screen.

    Software renderers clear and resolve all of the buffer for every picture.
    """
    screen = model.vis.global_
    before = screen.offheight, screen.offwidth
    screen.offheight, screen.offwidth = height, width
    try:
        yield
    finally:
        screen.offheight, screen.offwidth = before
