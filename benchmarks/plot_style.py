"""How the plots of RESULTS.md look: colours, panels, intervals, and SVG files for light and dark readers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

IMAGES = Path(__file__).parents[1] / "docs/images"
RESULTS = Path(__file__).parent / "results"
INK, MUTED, RULE, PAPER = "#1f2328", "#59636e", "#d1d9e0", "#ffffff"
BLUE, SKY, ORANGE, GREEN, GREY = "#0072b2", "#56b4e9", "#e69f00", "#009e73", "#8c959f"
"""Okabe and Ito's colours, told apart with any colour vision; visible on white and on black."""
DARK = {INK: "#e6edf3", MUTED: "#9198a1", RULE: "#3d444d", PAPER: "#0d1117", BLUE: "#2f95dc", SKY: "#a5dcf7"}
STYLE = {
    "font.family": "sans-serif",
    "font.sans-serif": ["Helvetica", "Arial", "Liberation Sans", "DejaVu Sans"],
    "font.size": 10,
    "svg.fonttype": "none",
    "svg.hashsalt": "rql-deploy",
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": RULE,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "figure.facecolor": PAPER,
    "legend.frameon": False,
    "errorbar.capsize": 0,
}
Panels = Sequence[Axes]


def read(name: str) -> dict[str, Any]:
    """One recorded measurement."""
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return found


def canvas(width: float, height: float, columns: int, **grid: Any) -> tuple[Figure, Panels]:
    """A figure of `columns` panels side by side, in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    panels = figure.subplots(1, columns, squeeze=False, **grid)[0]
    return figure, panels


def write(figure: Figure, name: str, source: str) -> Path:
    """Save as an SVG that follows the reader's light or dark scheme; `source` is the line below it."""
    figure.supxlabel(source, fontsize=8, color=MUTED, x=0.01, ha="left")
    FigureCanvasSVG(figure)
    text = StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    rules = "".join(
        f'[style*="{kind}: {light}"]{{{kind}:{dark}!important}}'
        for light, dark in DARK.items()
        for kind in ("fill", "stroke")
    )
    style = f"<style>@media (prefers-color-scheme: dark){{{rules}}}</style>"
    head, _, tail = text.getvalue().partition("<defs>")
    path = IMAGES / f"results_{name}.svg"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(line.rstrip() for line in f"{head}{style}\n <defs>{tail}".splitlines()) + "\n")
    return path


def whisker(
    axes: Axes,
    x: float,
    y: float,
    span: Sequence[float],
    color: str,
    *,
    upright: bool = False,
    size: float = 7,
) -> None:
    """A point with its interval: along x, or along y if `upright`."""
    low, high = span
    if upright:
        axes.vlines(x, low, high, color=color, linewidth=2, alpha=0.55)
    else:
        axes.hlines(y, low, high, color=color, linewidth=2.5, alpha=0.55)
    axes.plot(x, y, "o", color=color, markersize=size)
