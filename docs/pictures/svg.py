"""A small SVG document: shapes in the colours of the page, light or dark as the reader's screen is."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

IMAGES = Path(__file__).parents[1] / "images"
MOST_BYTES = 300_000
COLOURS = {
    "ink": ("#1f2328", "#e6edf3"),
    "muted": ("#59636e", "#9198a1"),
    "rule": ("#d1d9e0", "#3d444d"),
    "paper": ("#ffffff", "#0d1117"),
    "blue": ("#0072b2", "#2f95dc"),
    "sky": ("#56b4e9", "#a5dcf7"),
    "orange": ("#e69f00", "#e69f00"),
    "green": ("#009e73", "#0b9a72"),
    "vermillion": ("#d55e00", "#d55e00"),
    "purple": ("#b0588e", "#b0588e"),
    "grey": ("#c9d1d9", "#484f58"),
}
"""Each for a light and a dark page; the middle ones are Okabe and Ito's."""


class Drawing:
    """Shapes in the order they are drawn; colours are names of `COLOURS`, or hexadecimal ones that stay."""

    def __init__(self, width: float, height: float, title: str):
        self.width, self.height, self._title = width, height, title
        self._shapes: list[str] = []

    def rect(
        self, x: float, y: float, w: float, h: float, fill: str, *, rx: float = 3, opacity: float = 1.0,
        stroke: str = "none", width: float = 1.0,
    ) -> None:  # fmt: skip
        place = f'x="{x:.1f}" y="{y:.1f}" width="{w:.1f}" height="{h:.1f}" rx="{rx:g}"'
        self._shapes.append(f"<rect {place}{_paint(fill, stroke, width, opacity)}/>")

    def line(
        self, points: Sequence[Sequence[float]], stroke: str, width: float = 1.5, *, opacity: float = 1.0
    ) -> None:
        place = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self._shapes.append(f'<polyline points="{place}"{_paint("none", stroke, width, opacity)}/>')

    def circle(
        self, x: float, y: float, r: float, fill: str, *, stroke: str = "none", width: float = 1.0
    ) -> None:
        place = f'cx="{x:.1f}" cy="{y:.1f}" r="{r:g}"'
        self._shapes.append(f"<circle {place}{_paint(fill, stroke, width)}/>")

    def text(
        self, x: float, y: float, text: str, *, size: float = 13, fill: str = "ink", anchor: str = "start",
        bold: bool = False,
    ) -> None:  # fmt: skip
        weight = ' font-weight="600"' if bold else ""
        place = f'x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}"{weight}'
        self._shapes.append(f"<text {place}{_paint(fill)}>{escape(text)}</text>")

    def save(self, name: str) -> Path:
        """Write it to docs/images."""
        light = "".join(_rules(name, colours[0]) for name, colours in COLOURS.items())
        dark = "".join(_rules(name, colours[1]) for name, colours in COLOURS.items())
        head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width:g} {self.height:g}" '
        head += 'font-family="Helvetica, Arial, Liberation Sans, DejaVu Sans, sans-serif" role="img">'
        style = f"<style>{light}@media (prefers-color-scheme: dark){{{dark}}}</style>"
        paper = f'<rect width="{self.width:g}" height="{self.height:g}" class="fill-paper"/>'
        body = "\n".join(self._shapes)
        text = f"{head}\n<title>{escape(self._title)}</title>\n{style}\n{paper}\n{body}\n</svg>\n"
        if len(text) > MOST_BYTES:
            raise SystemExit(f"{name} has {len(text)} bytes: draw less, pictures have {MOST_BYTES} at most")
        path = IMAGES / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path


def _rules(name: str, colour: str) -> str:
    return f".fill-{name}{{fill:{colour}}}.stroke-{name}{{stroke:{colour}}}"


def _paint(fill: str, stroke: str = "none", width: float = 1.0, opacity: float = 1.0) -> str:
    """Attributes: a class for a name of `COLOURS`, the colour itself otherwise."""
    painted = {"fill": fill} | ({"stroke": stroke} if stroke != "none" else {})
    classes = [f"{kind}-{colour}" for kind, colour in painted.items() if colour in COLOURS]
    found = f' class="{" ".join(classes)}"' if classes else ""
    found += "".join(f' {kind}="{colour}"' for kind, colour in painted.items() if colour not in COLOURS)
    found += f' stroke-width="{width:g}"' if stroke != "none" else ""
    return found + (f' opacity="{opacity:g}"' if opacity != 1.0 else "")
