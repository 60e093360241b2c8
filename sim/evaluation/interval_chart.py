"""Estimates with their intervals, one row each, as inline SVG in the page's own colours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from .charts import Span, number, ticks

WIDTH, ROW, TOP, BOTTOM, SIDE = 460, 44, 6, 42, 22


@dataclass(frozen=True)
class Estimate:
    """One row: a name, a number and its interval."""

    name: str
    middle: float
    low: float
    high: float
    series: int
    """Which of the page's series colours."""
    hollow: bool = False
    """A ring instead of a dot."""


class IntervalChart:
    """Rows over a common axis; `str` of it is the SVG. Names stand above their rows, so a phone shows all."""

    def __init__(
        self,
        rows: Sequence[Estimate],
        *,
        x_label: str,
        span: Span | None = None,
        zero: bool = False,
        text: Callable[[float], str] = number,
    ):
        """`span` of the axis, else what the rows need; `zero` marks no difference; `text` writes a number."""
        self._rows, self._x_label, self._zero, self._text = rows, x_label, zero, text
        low, high = span or (min(r.low for r in rows), max(r.high for r in rows))
        if zero:
            low, high = min(low, 0.0), max(high, 0.0)
        margin = 0.0 if span else 0.04 * (high - low or 1.0)
        self._low, self._high = low - margin, high + margin

    def __str__(self) -> str:
        height = TOP + ROW * len(self._rows) + BOTTOM
        floor = height - BOTTOM
        label = f"{self._x_label}: " + "; ".join(f"{r.name} {self._text(r.middle)}" for r in self._rows)
        parts = [f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(label)}">']
        for value in ticks((self._low, self._high)):
            x = self._px(value)
            parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{floor}"/>')
            parts.append(
                f'<text x="{x:.1f}" y="{floor + 16}" text-anchor="middle">{self._text(value)}</text>'
            )
        if self._zero:
            x = self._px(0.0)
            parts.append(f'<line class="rule" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{floor}"/>')
        for i, row in enumerate(self._rows):
            parts += self._row(row, TOP + i * ROW)
        middle = f'x="{WIDTH / 2:.0f}" y="{height - 6}" text-anchor="middle"'
        return "".join([*parts, f"<text {middle}>{escape(self._x_label)}</text></svg>"])

    def _row(self, row: Estimate, top: float) -> list[str]:
        y = top + 30
        numbers = f"{self._text(row.middle)}  [{self._text(row.low)}, {self._text(row.high)}]"
        ends = f'x1="{self._px(row.low):.1f}" x2="{self._px(row.high):.1f}" y1="{y}" y2="{y}"'
        kind = "hollow" if row.hollow else "fill"
        return [
            f'<text class="name" x="{SIDE}" y="{top + 15}">{escape(row.name)}</text>',
            f'<text x="{WIDTH - SIDE}" y="{top + 15}" text-anchor="end">{escape(numbers)}</text>',
            f'<line class="c{row.series} stroke thick" {ends}/>',
            f'<circle class="c{row.series} {kind}" cx="{self._px(row.middle):.1f}" cy="{y}" r="5"/>',
        ]

    def _px(self, x: float) -> float:
        place = (min(max(x, self._low), self._high) - self._low) / (self._high - self._low)
        return SIDE + place * (WIDTH - 2 * SIDE)
