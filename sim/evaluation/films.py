"""Episodes as mp4, with each decision's previews drawn into the scene as end-effector paths coloured by V.

Rendered with MuJoCo itself, off screen (EGL unless MUJOCO_GL says otherwise), from the very model that is
being stepped; encoded by PyAV.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rql_deploy.chunk_paths import PathModel, colour, value_range
from rql_deploy.contract import Contract
from rql_deploy.errors import UserError, suggestion
from rql_deploy.policy import Decision
from rql_deploy.sim.rendering import rendering_errors, require_rendering

if TYPE_CHECKING:
    import mujoco

    from rql_deploy.sim.plants.tasks import EnvPlant

WIDTH, HEIGHT = 640, 480
CAMERAS = ("agentview", "front_pixels", "front", "frontview", "fixed")
"""Preferred, in this order; without any of them a free camera looks at the middle of the model."""
GRIP_SITES = ("grip_site", "pinch", "attachment_site", "eef", "end_effector", "tool")
"""Parts of the names by which the end effector's site is known."""
RADIUS = 0.002
INSET_GAP = 8
"""Pixels around the pictures that a policy sees."""


@dataclass(frozen=True)
class FilmFormat:
    """Size and rate of a film. Without a graphics card a frame's time goes up with its pixels."""

    width: int = WIDTH
    height: int = HEIGHT
    max_rate: float = 60.0
    """Frames per second of simulated time, at most; beyond it ticks are left out."""
    shadows: bool = True
    scale: bool = True
    """Whether the colours of V are explained at the top."""


FULL = FilmFormat()
THUMBNAIL = FilmFormat(320, 240, max_rate=10.0, shadows=False, scale=False)
"""For several films on one page."""


class Film:
    """Films the episodes of one plant. Use as a context manager; the file appears when it ends well."""

    def __init__(
        self,
        path: Path,
        plant: EnvPlant,
        contract: Contract,
        *,
        camera: str | None = None,
        format: FilmFormat = FULL,
        hold_until: int = 0,
    ):
        """The last picture of an episode that ends earlier stands until tick `hold_until`."""
        self._format, self._hold_until = format, hold_until
        self._path, self._partial = path, path.with_name(path.name + ".partial")
        self._plant, self._contract, self._camera = plant, contract, camera
        self._paths = PathModel(contract.plant)
        self._range = value_range(contract.calibration.levels, contract.calibration.value)
        self._stage: _Stage | None = None
        self._lines: list[tuple[NDArray[np.float64], NDArray[np.float64], float]] = []
        self._decision: Decision | None = None
        self._tick = self._episode = 0

    def __enter__(self) -> Film:
        import av

        require_rendering()

        rate = min(self._format.max_rate, self._contract.plant.control_rate)
        self._every = max(1, round(self._contract.plant.control_rate / rate))
        self._container = av.open(str(self._partial), "w", format="mp4", options={"movflags": "+faststart"})
        # A frame is a tick: time in the film is time in the simulation.
        options = {"crf": "26", "preset": "veryfast", "threads": "1"}
        self._stream: Any = self._container.add_stream("libx264", rate=round(rate), options=options)
        self._stream.width, self._stream.height = self._format.width, self._format.height
        self._stream.pix_fmt = "yuv420p"
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            with contextlib.closing(self._container):
                if kind is None:
                    self._container.mux(self._stream.encode())
            if kind is None:
                self._partial.rename(self._path)
        finally:
            self._partial.unlink(missing_ok=True)
            if self._stage is not None:
                self._stage.close()

    def decided(self, decision: Decision, previews: list[Decision]) -> None:
        """A decision and the previews of its refinement steps: draws them from where the end effector is."""
        if self._decision is None:
            self._count()
        self._decision = decision
        stage = self._open_stage()
        start, base = stage.end_effector(), stage.base()
        self._lines = []
        if start is None or not self._paths.drawable:
            return
        shown = [*previews[:-1], decision]
        for k, preview in enumerate(shown):
            value = preview.value if preview.value is not None else self._range[0]
            opacity = 1.0 if preview is decision else 0.15 + 0.45 * k / max(1, len(shown))
            rgba = np.append(colour(value, *self._range), opacity)
            self._lines.append(
                (
                    self._paths.path(preview.actions, start, base),
                    rgba,
                    RADIUS * (1.8 if preview is decision else 1.0),
                )
            )
        if self._tick == 0:
            self._frame()

    def begin(self) -> None:
        """An episode of a demonstrator begins, which decides nothing that could be drawn."""
        self._count()
        self._frame()

    def _count(self) -> None:
        self._tick = 0
        self._episode += 1

    def tick(self) -> None:
        """After a tick of the plant: one frame."""
        self._tick += 1
        if self._tick % self._every == 0 or self._plant.finished:
            self._frame()
        if self._plant.finished:
            held = max(0, self._hold_until - self._tick) // self._every
            for _ in range(held + round(0.5 * self._stream.average_rate)):
                self._write(self._last)
            self._decision = None

    def _open_stage(self) -> _Stage:
        model, data = self._plant.env.simulation()
        if self._stage is None or self._stage.model is not model:
            if self._stage is not None:
                self._stage.close()
            self._stage = _Stage(model, data, self._camera, self._format)
        self._stage.data = data
        return self._stage

    def _frame(self) -> None:
        picture = _inset(self._open_stage().picture(self._lines), list(self._plant.env.frames().values()))
        self._last = _caption(picture, self._text(), self._range if self._format.scale else None)
        self._write(self._last)

    def _write(self, picture: NDArray[np.uint8]) -> None:
        import av

        self._container.mux(self._stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))

    def _text(self) -> str:
        if not self._format.scale:
            return self._short_text()
        text = f"episode {self._episode}   tick {self._tick}"
        decision = self._decision
        if decision is not None and decision.value is not None:
            text += f"   V {decision.value:.1f}" + (
                f" (spread {decision.spread:.1f})" if decision.spread is not None else ""
            )
        return text + ("   success" if self._plant.success else "")

    def _short_text(self) -> str:
        """What can be read in a small picture."""
        value = None if self._decision is None else self._decision.value
        words = (
            f"tick {self._tick}",
            "" if value is None else f"V {value:.1f}",
            "success" if self._plant.success else "",
        )
        return "   ".join(filter(None, words))


class _Stage:
    """One model's renderer and camera."""

    def __init__(self, model: mujoco.MjModel, data: mujoco.MjData, camera: str | None, format: FilmFormat):
        import mujoco

        self.model, self.data = model, data
        names = [mujoco.mj_id2name(model, mujoco.mjtObj.mjOBJ_CAMERA, i) for i in range(model.ncam)]
        if camera is not None and camera not in names:
            raise UserError(f"the task has no camera '{camera}'{suggestion(camera, [n for n in names if n])}")
        self._camera: str | int = camera or next((name for name in CAMERAS if name in names), -1)
        # Robots' models are drawn for screens of their own size; the film's must fit into the buffer.
        screen = model.vis.global_
        screen.offwidth, screen.offheight = (
            max(format.width, screen.offwidth),
            max(format.height, screen.offheight),
        )
        with rendering_errors():
            self._renderer = mujoco.Renderer(model, format.height, format.width)
        self._shadows = int(format.shadows)
        self._option = mujoco.MjvOption()
        self._option.sitegroup[:] = 0
        # robosuite's collision shapes are in group 0, what is meant to be seen in group 1.
        self._option.geomgroup[0] = int("agentview" not in names)
        sites = [mujoco.mj_id2name(model, mujoco.mjtObj.mjOBJ_SITE, i) or "" for i in range(model.nsite)]
        self._site = next((i for part in GRIP_SITES for i, name in enumerate(sites) if part in name), None)
        bodies = [mujoco.mj_id2name(model, mujoco.mjtObj.mjOBJ_BODY, i) or "" for i in range(model.nbody)]
        self._base = next((i for i, name in enumerate(bodies) if name.endswith("_base")), None)

    def end_effector(self) -> NDArray[np.float64] | None:
        """Its position `[3]`."""
        return None if self._site is None else np.array(self.data.site_xpos[self._site])

    def base(self) -> NDArray[np.float64]:
        """Rotation `[3, 3]` of the robot's base."""
        return np.eye(3) if self._base is None else np.array(self.data.xmat[self._base]).reshape(3, 3)

    def picture(
        self, lines: list[tuple[NDArray[np.float64], NDArray[np.float64], float]]
    ) -> NDArray[np.uint8]:
        """`[H, W, 3]`"""
        import mujoco

        self._renderer.update_scene(self.data, camera=self._camera, scene_option=self._option)
        scene = self._renderer.scene
        scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = self._shadows
        for points, rgba, radius in lines:
            for a, b in pairwise(points):
                if scene.ngeom >= scene.maxgeom or np.linalg.norm(b - a) < 1e-6:
                    continue
                geom = scene.geoms[scene.ngeom]
                mujoco.mjv_initGeom(
                    geom,
                    mujoco.mjtGeom.mjGEOM_CAPSULE,
                    np.zeros(3),
                    np.zeros(3),
                    np.zeros(9),
                    rgba.astype(np.float32),
                )
                mujoco.mjv_connector(geom, mujoco.mjtGeom.mjGEOM_CAPSULE, radius, a, b)
                geom.emission = 0.6
                scene.ngeom += 1
        picture: NDArray[np.uint8] = self._renderer.render()
        return picture

    def close(self) -> None:
        self._renderer.close()


def _inset(picture: NDArray[np.uint8], seen: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """The picture with what the policy sees in its lower left corner, a quarter as high."""
    from PIL import Image

    if not seen:
        return picture
    image, left = Image.fromarray(picture), INSET_GAP
    for frame in seen:
        height = image.height // 4
        width = max(1, round(height * frame.shape[1] / frame.shape[0]))
        small = Image.fromarray(frame).resize((width, height), Image.Resampling.NEAREST)
        image.paste(small, (left, image.height - height - INSET_GAP))
        left += width + INSET_GAP
    return np.asarray(image)


def _caption(picture: NDArray[np.uint8], text: str, span: tuple[float, float] | None) -> NDArray[np.uint8]:
    """The picture with a line of text, and the scale of the colours where there is a `span`."""
    from PIL import Image, ImageDraw, ImageFont

    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image, "RGBA")
    size = 16 if image.width >= WIDTH else 20
    draw.rectangle((0, 0, image.width, size + 10), fill=(0, 0, 0, 150))
    draw.text((8, 4), text, fill=(255, 255, 255, 255), font=ImageFont.load_default(size=size))
    if span is None:
        return np.asarray(image)
    left, width = image.width - 190, 90
    for i in range(width):
        r, g, b = (int(255 * c) for c in colour(i / width, 0.0, 1.0))
        draw.line((left + i, 8, left + i, 18), fill=(r, g, b, 255))
    small = ImageFont.load_default(size=12)
    draw.text((left - 6, 6), f"V {span[0]:.3g}", fill=(255, 255, 255, 255), font=small, anchor="ra")
    draw.text((left + width + 6, 6), f"{span[1]:.3g}", fill=(255, 255, 255, 255), font=small)
    return np.asarray(image)
