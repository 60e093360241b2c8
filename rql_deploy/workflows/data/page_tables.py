"""The numbers on the page of a data set: tiles, tables of actions and observations, and the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from rql_deploy.train.data.store import TransitionStore

QUANTILES = (0.05, 0.95)
WIDTH = 200
"""Of the picture of an action's range, in its own units."""


def tiles(figures: Mapping[str, Any]) -> str:
    """The few numbers to look at first."""
    lengths, rewards = figures["lengths"], figures["rewards"]
    succeeded = "not said" if figures["successes"] is None else f"{figures['successes']:,}"
    found = [
        (f"{figures['episodes']:,}", "episodes"),
        (f"{figures['rows']:,}", f"rows, {figures['hours']:.2f} h at {figures['control_rate']:g} Hz"),
        (f"{lengths['median']:.0f}", f"rows in the median episode, {lengths['min']} to {lengths['max']}"),
        (succeeded, f"of {figures['episodes']:,} episodes succeeded"),
        (f"{rewards['density']:.1%}", "of rows with more than the least reward"),
    ]
    parts = (f"<div class='tile'><b>{escape(value)}</b>{escape(text)}</div>" for value, text in found)
    return f"<div class='tiles'>{''.join(parts)}</div>"


def action_table(store: TransitionStore, figures: Mapping[str, Any], rows: NDArray[np.int64]) -> str:
    """A row per dimension: its bounds, its range within them as a picture, and what stands out."""
    lines = []
    for i, action in enumerate(figures["actions"]):
        values = store.actions[rows, i]
        values = values[np.isfinite(values)]
        middle = np.quantile(values, QUANTILES) if len(values) else (action["low"], action["low"])
        low, high = action["low"], action["high"]
        seen = (number(action["min"]), number(action["max"]))
        covered = 0.0
        if action["min"] is not None:
            covered = max(0.0, min(action["max"], high) - max(action["min"], low)) / (high - low)
        lines.append(
            [
                escape(action["name"]),
                escape(f"{action.get('mode', '')} {action.get('unit', '')}".strip()),
                escape(", ".join(action.get("assumed", ())) or "-"),
                f"[{low:g}, {high:g}]",
                _range_picture(action, float(middle[0]), float(middle[1])),
                f"{seen[0]} to {seen[1]}",
                f"{covered:.0%}",
                f"{action['saturated']:.1%}",
                f"{action['repeated']:.1%}",
                f"{action['rows_outside']:,}",
            ]
        )
    heads = "name,what,assumed,bounds,range within bounds,seen,covered,at bounds,repeated,rows outside"
    return table(heads.split(","), lines) + (
        "<p class='soft'>Range: thin from the least to the greatest action, thick from the 5 % to the 95 % "
        "quantile; the frame is the bounds. Covered: the share of the bounds that lies between them.</p>"
    )


def field_table(figures: Mapping[str, Any]) -> str:
    """A row per observation field."""
    lines = [
        [
            escape(field["name"]),
            "x".join(map(str, field["shape"])) or "1",
            escape(field["unit"]),
            *(number(field[key]) for key in ("min", "max", "mean", "std")),
            f"{field['rows_not_finite']:,}",
            f"{field['constant_columns']}",
        ]
        for field in figures["fields"]
    ]
    return table(
        ["name", "shape", "unit", "min", "max", "mean", "std", "rows with NaN", "constant numbers"], lines
    )


def facts(figures: Mapping[str, Any]) -> str:
    """What belongs to none of the other parts: validation data, tasks, what is not read, hash, origin."""
    validation = figures.get("validation") or {}
    found = [
        ("validation data", validation.get("name", "none beside it; see rql-deploy data split")),
        ("episodes in which the task ends (mask 0)", f"{figures['ends']['episodes_with_mask_0']:,}"),
        ("copies of episodes", f"{figures['duplicates']['episodes']:,}"),
        ("observations like the one before", f"{figures['duplicates']['rows_like_the_one_before']:,}"),
        ("memory", f"{figures['memory_mib']:.1f} MiB"),
        ("not read", ", ".join(figures.get("left_out", ())) or "-"),
        ("content hash", figures["content_hash"]),
    ]
    found += [
        (
            f"language task {task['task_index']}",
            f"{task['task'] or 'no name'} ({task['episodes']:,} episodes)",
        )
        for task in figures.get("tasks", ())[:24]
    ]
    for made in figures.get("provenance", ()):
        found.append(("made from", f"{made['source']} ({made['content_hash'][:16]})"))
        found += [("", change) for change in made["changes"]]
    lines = "".join(f"<tr><td>{escape(name)}</td><td>{escape(str(value))}</td></tr>" for name, value in found)
    return f"<div class='scroll'><table class='words'>{lines}</table></div>"


def number(value: float | None) -> str:
    """Four digits, or a dash where there is none; 0 is never -0."""
    return "-" if value is None else f"{value + 0.0:.4g}"


def _range_picture(action: Mapping[str, Any], low: float, high: float) -> str:
    """Bounds as a frame, the action's range in them as a thin line, and `low` to `high` as a thick one."""
    if action["min"] is None:
        return "-"
    left, right = min(action["low"], action["min"]), max(action["high"], action["max"])

    def place(value: float) -> float:
        return float(4 + (WIDTH - 8) * (value - left) / (right - left))

    frame = f"x='{place(action['low']):.0f}' width='{place(action['high']) - place(action['low']):.0f}'"
    lines = (
        f"<line class='c0 stroke{thick}' x1='{place(a):.1f}' x2='{place(b) + 0.5:.1f}' y1='9' y2='9'/>"
        for a, b, thick in ((action["min"], action["max"], ""), (low, high, " thick"))
    )
    return (
        f"<svg class='range' viewBox='0 0 {WIDTH} 18' role='img' aria-label='range within bounds'>"
        f"<rect class='frame' {frame} y='2' height='14'/>{''.join(lines)}</svg>"
    )


def table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table that scrolls by itself; cells are HTML."""
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in line)}</tr>" for line in lines)
    return f"<div class='scroll'><table class='names'><tr>{head}</tr>{body}</table></div>"
