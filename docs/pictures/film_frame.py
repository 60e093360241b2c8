"""Frames of the film: the scene with the candidates' paths above, the budget and V per candidate below."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    import mujoco

WIDTH, SCENE_HEIGHT, PANEL_HEIGHT = 960, 500, 172
SHARP = 2
"""Drawn so many times as large and scaled down: smooth edges everywhere."""
CAMERA = {"azimuth": 138.0, "elevation": -20.0, "distance": 0.48, "lookat": (-0.03, -0.02, 0.932)}

PAPER, INK, MUTED, TRACK = (13, 17, 23), (230, 237, 243), (139, 152, 165), (48, 58, 70)
BUDGET_COLOUR = (88, 166, 255)
V_COLOURS = np.array([(122, 134, 255), (46, 152, 190), (74, 204, 140), (253, 231, 76)], float)
"""From a decision's lowest V to its highest: viridis without its dark end; lightness tells the order."""
LEAST_SPAN = 0.5
"""V's scale never spans less: differences below it should look small."""

Colour = tuple[int, int, int]
Point = tuple[float, float]


def v_colour(share: float) -> Colour:
    """Colour of a V that lies at `share` of the decision's scale."""
    place = np.clip(share, 0.0, 1.0) * (len(V_COLOURS) - 1)
    r, g, b = (int(np.interp(place, range(len(V_COLOURS)), V_COLOURS[:, i])) for i in range(3))
    return r, g, b


class Stage:
    """The simulator's picture from a camera near the cube, and where a point of the world is in it."""

    def __init__(self, model: mujoco.MjModel, data: mujoco.MjData):
        import mujoco  # the simulator has chosen how it renders by now

        self.data = data
        self._size = WIDTH * SHARP, SCENE_HEIGHT * SHARP
        screen = model.vis.global_
        screen.offwidth, screen.offheight = self._size
        table = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_GEOM, "table_visual")
        # A white table would drown the light colours of a high V.
        model.geom_matid[table], model.geom_rgba[table] = -1, (0.20, 0.23, 0.28, 1.0)
        self._renderer = mujoco.Renderer(model, self._size[1], self._size[0])
        self._option = mujoco.MjvOption()
        self._option.sitegroup[:] = 0
        self._option.geomgroup[0] = 0  # robosuite's collision shapes
        self._camera = mujoco.MjvCamera()
        self._camera.azimuth, self._camera.elevation = CAMERA["azimuth"], CAMERA["elevation"]
        self._camera.distance, self._camera.lookat[:] = CAMERA["distance"], CAMERA["lookat"]
        self._focal = self._size[1] / 2 / np.tan(np.radians(screen.fovy) / 2)

    def close(self) -> None:
        """Free the renderer."""
        self._renderer.close()

    def picture(self) -> Image.Image:
        """The scene as it is now."""
        self._renderer.update_scene(self.data, camera=self._camera, scene_option=self._option)
        return Image.fromarray(self._renderer.render())

    def project(self, points: NDArray[np.float64]) -> list[Point]:
        """Pixels of points `[n, 3]` of the world."""
        eyes = self._renderer.scene.camera
        forward, up = np.array(eyes[0].forward), np.array(eyes[0].up)
        away = points - (np.array(eyes[0].pos) + np.array(eyes[1].pos)) / 2
        depth = away @ forward
        x = self._size[0] / 2 + self._focal * (away @ np.cross(forward, up)) / depth
        y = self._size[1] / 2 - self._focal * (away @ up) / depth
        return list(zip(x.tolist(), y.tolist(), strict=True))


class Frame:
    """Pictures of one decision."""

    def __init__(
        self, stage: Stage, number: int, budget: float, elapsed: Sequence[float], values: NDArray[np.float64]
    ):
        """`elapsed` `[F]`: seconds after each refinement step; `values` `[F, C]`: V of every candidate."""
        self._stage, self._number, self._budget = stage, number, budget
        self._elapsed, self._values = elapsed, values
        middle, span = (values.min() + values.max()) / 2, max(float(np.ptp(values)), LEAST_SPAN)
        self._low, self._high = middle - span / 2, middle + span / 2

    def refining(self, scene: Image.Image, k: int, paths: NDArray[np.float64]) -> Image.Image:
        """After refinement step `k` (from 0): paths `[C, h + 1, 3]`."""
        scene = scene.copy()
        for c in np.argsort(self._values[k]):
            self._draw_path(scene, paths[c], self._colour(k, c), 2.8)
        return self._compose(scene, k, f"refinement step {k + 1} of {len(self._elapsed)}")

    def chosen(self, scene: Image.Image, paths: NDArray[np.float64], best: int, tick: int = 0) -> Image.Image:
        """The decision is made, or being played: the path of the best is bold."""
        scene = scene.copy()
        for c in range(len(paths)):
            if c != best:
                self._draw_path(scene, paths[c], self._colour(-1, c), 2.0, opacity=0.8)
        self._draw_path(scene, paths[best], self._colour(-1, best), 6.0)
        title = (
            f"playing candidate {best + 1}: tick {tick}"
            if tick
            else f"candidate {best + 1} has the highest V"
        )
        return self._compose(scene, -1, title, best)

    def ended(self, scene: Image.Image, ticks: int, rate: float) -> Image.Image:
        """The last picture of the episode."""
        return self._compose(scene, -1, f"lifted after {ticks} ticks ({ticks / rate:.2f} s)")

    def _share(self, k: int, c: int) -> float:
        return float((self._values[k, c] - self._low) / (self._high - self._low))

    def _colour(self, k: int, c: int) -> Colour:
        return v_colour(self._share(k, c))

    def _draw_path(
        self,
        scene: Image.Image,
        points: NDArray[np.float64],
        colour: Colour,
        width: float,
        opacity: float = 1.0,
    ) -> None:
        line = self._stage.project(smooth(points))
        veil = Image.new("RGBA", scene.size)
        draw = ImageDraw.Draw(veil)
        for thick, fill in (
            (width + 2.4, (8, 12, 18, int(150 * opacity))),
            (width, (*colour, int(255 * opacity))),
        ):
            draw.line(line, fill=fill, width=round(thick * SHARP), joint="curve")
            radius = (thick / 2 + width * 0.9) * SHARP
            for (x, y), r in ((line[0], (thick / 2 - 0.3) * SHARP), (line[-1], radius)):
                draw.ellipse((x - r, y - r, x + r, y + r), fill=fill)
        scene.paste(veil, (0, 0), veil)

    def _compose(self, scene: Image.Image, k: int, title: str, best: int | None = None) -> Image.Image:
        size = WIDTH * SHARP, (SCENE_HEIGHT + PANEL_HEIGHT) * SHARP
        picture = Image.new("RGB", size, PAPER)
        picture.paste(scene, (0, 0))
        panel = Panel(ImageDraw.Draw(picture))
        panel.text(28, 32, f"Decision {self._number}", 20, INK)
        panel.text(456, 32, title, 17, MUTED, "rm")
        self._draw_budget(panel, k)
        panel.text(520, 32, "V of each candidate", 20, INK)
        panel.text(932, 32, "higher is better", 17, MUTED, "rm")
        for c in range(self._values.shape[1]):
            self._draw_value(panel, k, c, best)
        return picture.resize((WIDTH, SCENE_HEIGHT + PANEL_HEIGHT), Image.Resampling.LANCZOS)

    def _draw_budget(self, panel: Panel, k: int) -> None:
        left, right, top, bottom = 28, 456, 60, 84
        panel.box(left, top, right, bottom, TRACK)
        scale = (right - left) / self._budget
        done = len(self._elapsed) if k < 0 else k + 1
        for begin, end in pairwise([0.0, *self._elapsed[:done]]):
            panel.box(left + begin * scale, top, left + end * scale - 1.5, bottom, BUDGET_COLOUR)
        panel.text(left, 108, f"{self._elapsed[k] * 1e3:.1f} ms spent", 17, INK)
        panel.text(right, 108, f"budget {self._budget * 1e3:.0f} ms", 17, MUTED, "rm")
        panel.text(left, 144, "Every step leaves a complete action.", 17, MUTED)

    def _draw_value(self, panel: Panel, k: int, c: int, best: int | None) -> None:
        left, right, y = 552, 860, 64 + 27 * c
        dim = best is not None and c != best
        panel.text(526, y, str(c + 1), 17, MUTED if dim else INK, "mm")
        panel.box(left, y - 1.5, right, y + 1.5, TRACK)
        x = left + self._share(k, c) * (right - left)
        panel.box(left, y - 1.5, x, y + 1.5, self._colour(k, c))
        panel.dot(x, y, 10 if c == best else 7, self._colour(k, c), INK if c == best else PAPER)
        panel.text(932, y, f"{self._values[k, c]:.1f}", 17, MUTED if dim else INK, "rm")


class Panel:
    """Draws below the scene, in pixels of the finished film."""

    def __init__(self, draw: ImageDraw.ImageDraw):
        self._draw = draw

    def text(self, x: float, y: float, text: str, size: int, fill: Colour, anchor: str = "lm") -> None:
        font = ImageFont.load_default(size * SHARP)
        self._draw.text((x * SHARP, (SCENE_HEIGHT + y) * SHARP), text, fill=fill, font=font, anchor=anchor)

    def box(self, left: float, top: float, right: float, bottom: float, fill: Colour) -> None:
        if right > left:
            place = tuple(SHARP * v for v in (left, SCENE_HEIGHT + top, right, SCENE_HEIGHT + bottom))
            self._draw.rectangle(place, fill=fill)

    def dot(self, x: float, y: float, radius: float, fill: Colour, rim: Colour) -> None:
        place = tuple(
            SHARP * v for v in (x - radius, SCENE_HEIGHT + y - radius, x + radius, SCENE_HEIGHT + y + radius)
        )
        self._draw.ellipse(place, fill=fill, outline=rim, width=2 * SHARP)


def smooth(points: NDArray[np.float64], between: int = 6) -> NDArray[np.float64]:
    """Points on the Catmull-Rom curve through `points` `[n, 3]`."""
    padded = np.concatenate([2 * points[:1] - points[1:2], points, 2 * points[-1:] - points[-2:-1]])
    t = np.linspace(0.0, 1.0, between, endpoint=False)[:, None]
    parts = []
    for a, b, c, d in zip(padded, padded[1:], padded[2:], padded[3:], strict=False):
        parts.append(
            0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
        )
    return np.concatenate([*parts, points[-1:]])
