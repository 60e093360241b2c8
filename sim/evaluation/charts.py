"""Small charts as inline SVG, in the page's own colours: right in light, in dark and on paper."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from itertools import pairwise

import numpy as np

WIDTH, HEIGHT = 460, 240
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 14, 40

Span = tuple[float, float]


class Chart:
    """Axes onto which series are drawn; `str` of it is the SVG.

    Series 0, 1, ... have the page's classes c0, c1, ..., which set their colours.
    """

    def __init__(
        self, x: Span, y: Span, *, x_label: str = "", y_label: str = "", label: str = "", scale: bool = True
    ):
        """`scale` writes numbers along the y axis."""
        self.x, self.y, self._scale = _wide(x), _wide(y), scale
        self._x_label, self._y_label, self._label = x_label, y_label, label
        self._marks: list[str] = []

    def line(self, xs: Sequence[float], ys: Sequence[float], series: int = 0) -> None:
        """A line through the points that are finite."""
        points = " ".join(
            f"{self._px(x):.1f},{self._py(y):.1f}" for x, y in zip(xs, ys, strict=True) if math.isfinite(y)
        )
        self._marks.append(f'<polyline class="c{series} stroke" points="{points}"/>')

    def band(self, xs: Sequence[float], low: Sequence[float], high: Sequence[float], series: int = 0) -> None:
        """The area between two lines."""
        there = [(x, y) for x, y in zip(xs, high, strict=True)]
        back = [(x, y) for x, y in zip(xs, low, strict=True)][::-1]
        points = " ".join(f"{self._px(x):.1f},{self._py(y):.1f}" for x, y in there + back)
        self._marks.append(f'<polygon class="c{series} band" points="{points}"/>')

    def points(
        self, xs: Sequence[float], ys: Sequence[float], series: int = 0, titles: Sequence[str] = ()
    ) -> None:
        """Dots; `titles` are shown under the pointer."""
        for i, (x, y) in enumerate(zip(xs, ys, strict=True)):
            title = f"<title>{escape(titles[i])}</title>" if titles else ""
            self._marks.append(
                f'<circle class="c{series} fill" cx="{self._px(x):.1f}" cy="{self._py(y):.1f}" r="4">'
                f"{title}</circle>"
            )

    def whisker(self, x: float, low: float, high: float, series: int = 0) -> None:
        """An upright interval at x."""
        place = f'x1="{self._px(x):.1f}" x2="{self._px(x):.1f}" '
        place += f'y1="{self._py(low):.1f}" y2="{self._py(high):.1f}"'
        self._marks.append(f'<line class="c{series} stroke" {place}/>')

    def bars(self, edges: Sequence[float], heights: Sequence[float], series: int = 0) -> None:
        """A histogram: one more edge than heights."""
        for (a, b), height in zip(pairwise(edges), heights, strict=True):
            if height > 0:
                x, y = self._px(a), self._py(height)
                size = f'width="{max(0.5, self._px(b) - x - 1):.1f}" height="{self._py(self.y[0]) - y:.1f}"'
                self._marks.append(f'<rect class="c{series} fill soft-fill" x="{x:.1f}" y="{y:.1f}" {size}/>')

    def rule(self, a: tuple[float, float], b: tuple[float, float], text: str = "") -> None:
        """A dashed line between two points, with a word at its end."""
        (x1, y1), (x2, y2) = ((self._px(x), self._py(y)) for x, y in (a, b))
        self._marks.append(f'<line class="rule" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>')
        if text:
            self._marks.append(
                f'<text x="{x2 - 4:.1f}" y="{y2 + 12:.1f}" text-anchor="end">{escape(text)}</text>'
            )

    def __str__(self) -> str:
        low, right = HEIGHT - BOTTOM, WIDTH - RIGHT
        parts = [
            f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
            f'aria-label="{escape(self._label or self._y_label)}">'
        ]
        for value in ticks(self.y) if self._scale else ():
            y = self._py(value)
            parts.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{number(value)}</text>')
        parts += [
            f'<text x="{self._px(v):.1f}" y="{low + 15}" text-anchor="middle">{number(v)}</text>'
            for v in ticks(self.x)
        ]
        parts.append(f'<line class="axis" x1="{LEFT}" x2="{right}" y1="{low}" y2="{low}"/>')
        parts += self._marks
        parts.append(
            f'<text x="{(LEFT + right) / 2:.0f}" y="{HEIGHT - 6}" text-anchor="middle">'
            f"{escape(self._x_label)}</text>"
        )
        middle = (TOP + low) / 2
        turned = f'transform="rotate(-90 12 {middle:.0f})" text-anchor="middle"'
        parts.append(f'<text x="12" y="{middle:.0f}" {turned}>{escape(self._y_label)}</text></svg>')
        return "".join(parts)

    def _px(self, x: float) -> float:
        return LEFT + (min(max(x, self.x[0]), self.x[1]) - self.x[0]) / (self.x[1] - self.x[0]) * (
            WIDTH - LEFT - RIGHT
        )

    def _py(self, y: float) -> float:
        return (
            HEIGHT
            - BOTTOM
            - (min(max(y, self.y[0]), self.y[1]) - self.y[0])
            / (self.y[1] - self.y[0])
            * (HEIGHT - TOP - BOTTOM)
        )


def histogram(
    values: Sequence[float],
    *,
    x_label: str,
    y_label: str,
    bins: int = 30,
    series: int = 0,
    span: Span | None = None,
) -> Chart:
    """Counts over `span`, by default from the smallest to the 99.5 % quantile.

    What lies beyond counts in the last bar.
    """
    low, high = span or (float(min(values)), float(np.quantile(values, 0.995)))
    edges = np.linspace(*_wide((low, high)), bins + 1)
    counts = np.histogram(np.clip(values, edges[0], edges[-1]), edges)[0]
    chart = Chart(
        (edges[0], edges[-1]),
        (0.0, float(counts.max()) * 1.08),
        x_label=x_label,
        y_label=y_label,
        label=f"histogram of {x_label}",
    )
    chart.bars(edges.tolist(), counts.tolist(), series)
    return chart


def ticks(span: Span, about: int = 5) -> list[float]:
    """Round numbers within the span."""
    raw = (span[1] - span[0]) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1.0, 2.0, 2.5, 5.0, 10.0) if m * power >= raw)
    first = math.ceil(span[0] / step - 1e-9)
    return [i * step for i in range(first, math.floor(span[1] / step + 1e-9) + 1)]


def number(value: float) -> str:
    """12,000 as 12k, 0.25 as it is."""
    if abs(value) >= 1e4:
        return f"{value / 1e3:g}k"
    return f"{round(value, 10):g}"


def _wide(span: Span) -> Span:
    low, high = float(span[0]), float(span[1])
    return (low, high) if high > low else (low - 0.5, high + 0.5)
