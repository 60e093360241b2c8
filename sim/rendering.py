"""How MuJoCo renders, and what happens where it cannot: simulations run on, only films and pictures fail."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator

from rql_deploy.errors import UserError

CURE = "unset MUJOCO_GL or set it to egl, and unset MUJOCO_EGL_DEVICE_ID and PYOPENGL_PLATFORM"
GL_ERRORS = (AttributeError, AssertionError, RuntimeError, ImportError, OSError, ValueError)
"""What MuJoCo's and robosuite's OpenGL loaders raise."""
_trouble = ""


class RenderingError(UserError):
    """MuJoCo cannot render here; nothing else is lost by it."""

    kind = "rendering"


def render_headless() -> None:
    """Import MuJoCo, rendering with EGL unless the user chose otherwise; call it before anything else imports
    MuJoCo.

    Left to choose, MuJoCo may hang without a display. Where the choice cannot be loaded MuJoCo simulates
    without rendering, and `require_rendering` says why. Raises UserError where MuJoCo is not installed.
    """
    if sys.platform.startswith("linux"):
        os.environ.setdefault("MUJOCO_GL", "egl")
    if importlib.util.find_spec("mujoco") is None:
        raise UserError("MuJoCo is not installed: pip install 'rql-deploy[sim]'")
    if _trouble:
        os.environ["MUJOCO_GL"] = "disable"
    try:
        # MuJoCo itself is silent about an ImportError of its renderer.
        importlib.import_module("mujoco.rendering.classic.gl_context")
    except GL_ERRORS as error:
        choice = os.environ.get("MUJOCO_GL", "")
        note_rendering_trouble(f"MuJoCo cannot render with MUJOCO_GL={choice} ({reason_of(error)})")
        os.environ["MUJOCO_GL"] = "disable"
        importlib.import_module("mujoco")


def reason_of(error: BaseException) -> str:
    """The first line of an error, or its class where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def note_rendering_trouble(reason: str) -> None:
    """Remember why nothing can be rendered; the first reason stays. A worker gets its parent's."""
    global _trouble
    _trouble = _trouble or reason


def rendering_trouble() -> str:
    """Why nothing can be rendered in this process; empty where nothing is known against it."""
    return _trouble


def require_rendering() -> None:
    """Raise RenderingError where the graphics that were chosen cannot be loaded or need a missing display.

    Without a display MuJoCo would end the process.
    """
    render_headless()
    choice = os.environ.get("MUJOCO_GL", "").lower().strip()
    if _trouble:
        raise RenderingError(_trouble, hint=CURE)
    if choice in ("disable", "disabled", "off", "false", "0"):
        raise RenderingError(f"MUJOCO_GL={choice} switches rendering off", hint=CURE)
    if (
        sys.platform.startswith("linux")
        and choice in ("glfw", "glx")
        and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
    ):
        raise RenderingError(
            f"rendering with MUJOCO_GL={choice} needs a display, and this machine has none", hint=CURE
        )


@contextlib.contextmanager
def rendering_errors() -> Iterator[None]:
    """Turn what OpenGL and its loaders raise in this block into a RenderingError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # OpenGL's error classes share no base with each other
        raise RenderingError(f"MuJoCo cannot render ({reason_of(error)})", hint=CURE) from error
