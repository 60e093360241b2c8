"""Rendering without a display."""

from __future__ import annotations

import os
import sys


def render_headless() -> None:
    """Have MuJoCo render with EGL unless the user chose something; before the first import of mujoco.

    A stack left to guess can hang without a display, or fail at import.
    """
    if sys.platform.startswith("linux"):
        os.environ.setdefault("MUJOCO_GL", "egl")
