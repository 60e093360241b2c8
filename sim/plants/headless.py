"""Rendering without a display."""

from __future__ import annotations

import importlib
import os
import sys

from rql_deploy.errors import UserError


def render_headless() -> None:
    """Have MuJoCo render with EGL unless the user chose something, and import it; before anything else does.

    A stack left to guess can hang without a display. Raises UserError when what the user chose cannot be loaded.
    """
    if sys.platform.startswith("linux"):
        os.environ.setdefault("MUJOCO_GL", "egl")
    try:
        importlib.import_module("mujoco")
    except (AttributeError, RuntimeError, ImportError, OSError) as error:  # what its OpenGL loaders raise
        raise UserError(
            f"MuJoCo cannot be loaded with MUJOCO_GL={os.environ.get('MUJOCO_GL', '')} ({error}): "
            "unset MUJOCO_GL or set it to egl, and see that rql-deploy[sim] is installed"
        ) from error


def require_display() -> None:
    """Raise UserError when frames are wanted from a window system that is not there (MuJoCo would end the process)."""
    windows = os.environ.get("MUJOCO_GL") in ("glfw", "glx")
    if sys.platform.startswith("linux") and windows and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise UserError("rendering with MUJOCO_GL=glfw needs a display and there is none: unset MUJOCO_GL or set it to egl")
