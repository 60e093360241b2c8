"""Several policies on the same episodes, as one HTML file: scores, differences, films, and the bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np

from rql_deploy.contract import Contract
from rql_deploy.plant import EpisodeResult
from rql_deploy.statistics import paired_difference

from .charts import Chart, histogram
from .episodes import Score
from .interval_chart import Estimate, IntervalChart
from .page import figure, page, video, write_page

Points = Sequence[tuple[float, float]]
Difference = tuple[float, float, float]
"""Mean, lower and upper end of the 95 % interval."""


@dataclass(frozen=True)
class Row:
    """One policy's episodes."""

    name: str
    score: Score
    series: int
    """Which of the page's series colours."""
    guided: bool = False
    """Whether it chooses among candidates by V."""
    film: Path | None = None
    """Its episode of the filmed seed."""


@dataclass(frozen=True)
class Comparison:
    """All that the page shows."""

    title: str
    introduction: str
    rows: Sequence[Row]
    """At least one; the last is the one that the others are compared with."""
    differences: Mapping[str, Mapping[str, Difference]]
    """By name of the other row: success and steps of the last row minus the other's."""
    filmed_seed: int | None
    losses: Mapping[str, Mapping[str, Points]]
    """By loss, the curve of each training run: (update, value)."""
    contract: Contract
    bundle: Path
    facts: Mapping[str, str]
    """More about the bundle, in words."""
    commands: Sequence[tuple[str, str]]
    """What to type next, and what it does."""


def write_comparison(path: Path, comparison: Comparison) -> None:
    """Write the page, complete or not at all."""
    write_page(path, render(comparison))


def render(comparison: Comparison) -> str:
    """The page as text."""
    rows = comparison.rows
    parts = [
        f"<h1>{escape(comparison.title)}</h1><p>{escape(comparison.introduction)}</p>",
        _tiles(rows[-1], comparison.facts),
        _scores(rows),
        _films(rows, comparison.filmed_seed),
        _differences(rows, comparison.differences),
        _learning(comparison.losses),
        _latency(rows, comparison.contract.plant.control_rate),
        _contract(comparison),
        _commands(comparison.commands),
    ]
    return page(comparison.title, parts)


def _tiles(best: Row, facts: Mapping[str, str]) -> str:
    summary, (low, high) = best.score.summary(), best.score.interval
    episodes = f"{best.score.successes} of {len(best.score.results)}, 95 % interval {low:.0%} to {high:.0%}"
    tiles = [
        (f"success of {best.name}", f"{best.score.success:.0%}", episodes),
        ("episode length", f"{summary['steps']:.0f} steps", f"a failure counts as {best.score.horizon}"),
    ]
    trip = summary["round_trip_ms"]
    if trip["p50"] is not None:
        tiles.append(("decision over the socket", f"{trip['p50']:.1f} ms", f"p50; p99 {trip['p99']:.1f} ms"))
    if "largest difference from torch" in facts:
        error = facts["largest difference from torch"]
        tiles.append(("ONNX against torch", error, "largest difference in any output"))
    cells = "".join(
        f'<div class="tile">{escape(n)}<b>{escape(v)}</b><span class="soft">{escape(t)}</span></div>'
        for n, v, t in tiles
    )
    return f'<div class="tiles">{cells}</div>'


def _scores(rows: Sequence[Row]) -> str:
    horizon, episodes = rows[-1].score.horizon, len(rows[-1].score.results)
    success = IntervalChart(
        [_estimate(r, r.score.success, *r.score.interval) for r in rows],
        x_label="success",
        span=(0.0, 1.0),
        text="{:.0%}".format,
    )
    steps = IntervalChart(
        [_estimate(r, *paired_difference(r.score.lengths, [0.0] * episodes)) for r in rows],
        x_label="steps",
        span=(0.0, float(horizon)),
        text="{:.0f}".format,
    )
    return (
        '<h2>Success and length of the episodes</h2><div class="charts">'
        f"{figure(success, f'Success over {episodes} episodes with Wilson 95 % intervals.')}"
        f"{figure(steps, f'Mean steps with bootstrap 95 % intervals; a failure counts as {horizon}.')}</div>"
        f"{_episodes(rows)}{_table(rows)}"
    )


def _estimate(row: Row, middle: float, low: float, high: float) -> Estimate:
    return Estimate(row.name, middle, low, high, row.series, hollow=not row.guided)


def _episodes(rows: Sequence[Row]) -> str:
    """A square per episode: a column is one seed."""
    lines = []
    for row in rows:
        marks = "".join(
            f'<i class="{"" if r.success else "no"}" title="seed {r.seed}: {_outcome(r)}"></i>'
            for r in row.score.results
        )
        lines.append(f'<tr><td>{escape(row.name)}</td><td><div class="marks">{marks}</div></td></tr>')
    return (
        f'<div class="scroll"><table class="names">{"".join(lines)}</table></div><p class="soft">'
        "A column is one seed: the cube starts at the same place in every row. Green succeeded, red did "
        "not.</p>"
    )


def _outcome(result: EpisodeResult) -> str:
    return f"{'' if result.success else 'no '}success after {result.steps} steps"


def _table(rows: Sequence[Row]) -> str:
    lines = []
    for row in rows:
        summary, (low, high) = row.score.summary(), row.score.interval
        times = [
            "-" if t["p50"] is None else f"{t['p50']:.2f} / {t['p99']:.2f} ms"
            for t in (summary["round_trip_ms"], summary["inference_ms"])
        ]
        cells = (f"{row.score.success:.0%}", f"{low:.0%} to {high:.0%}", f"{summary['steps']:.0f}", *times)
        lines.append(f"<tr><td>{escape(row.name)}</td>{''.join(f'<td>{c}</td>' for c in cells)}</tr>")
    names = ("success", "95 % interval", "steps", "round trip p50 / p99", "inference p50 / p99")
    head = f"<tr><td></td>{''.join(f'<th>{name}</th>' for name in names)}</tr>"
    return f'<div class="scroll"><table class="names">{head}{"".join(lines)}</table></div>'


def _films(rows: Sequence[Row], seed: int | None) -> str:
    filmed = [row for row in rows if row.film is not None]
    if not filmed:
        return ""
    figures = []
    for row in filmed:
        assert row.film is not None
        result = next((r for r in row.score.results if r.seed == seed), None)
        end = "" if result is None else _outcome(result)
        figures.append(
            f"<figure>{video(row.film, ' autoplay loop')}"
            f'<figcaption><b class="k{row.series}">{escape(row.name)}</b>: {end}</figcaption></figure>'
        )
    return (
        f'<h2>The same start, side by side</h2><div class="films">{"".join(figures)}</div>'
        f'<p class="soft">The first episode of each row, seed {seed}. Thin lines are the previews after each '
        "refinement step, the thick one the chunk that is played, as set-points of the gripper; their colour "
        "is V, dark for low and bright for high.</p>"
    )


def _differences(rows: Sequence[Row], differences: Mapping[str, Mapping[str, Difference]]) -> str:
    others = [row for row in rows if row.name in differences]
    if not others:
        return ""
    charts = []
    for key, label, text in (
        ("success", "difference in success", _percent),
        ("steps", "difference in steps", _signed),
    ):
        estimates = [_estimate(row, *differences[row.name][key]) for row in others]
        charts.append(IntervalChart(estimates, x_label=label, zero=True, text=text))
    return (
        f'<h2>{escape(rows[-1].name)}, compared episode by episode</h2><div class="charts">'
        f"{figure(charts[0], 'Its success minus that of the row named: to the right it is better.')}"
        f"{figure(charts[1], 'Its steps minus those of the row named: to the left it is better.')}</div>"
        '<p class="soft">Mean over pairs of episodes with the same seed, bootstrap 95 % interval. An '
        "interval that crosses the line does not tell the two apart.</p>"
    )


def _percent(value: float) -> str:
    return f"{value:+.0%}" if round(value, 2) else "0%"


def _signed(value: float) -> str:
    return f"{value:+.0f}" if round(value) else "0"


def _learning(losses: Mapping[str, Mapping[str, Points]]) -> str:
    figures = []
    for label, curves in losses.items():
        ys = [y for points in curves.values() for _, y in points]
        xs = [x for points in curves.values() for x, _ in points]
        span = (float(np.quantile(ys, 0.005)), float(np.quantile(ys, 0.995)))
        chart = Chart((0.0, max(xs)), span, x_label="update", y_label=label, label=f"{label} over updates")
        for series, points in enumerate(curves.values()):
            chart.line([x for x, _ in points], [y for _, y in points], series)
        keys = " ".join(f'<span class="key k{i}">{escape(name)}</span>' for i, name in enumerate(curves))
        figures.append(f"<figure>{chart}<figcaption>{escape(label)}: {keys}</figcaption></figure>")
    if not figures:
        return ""
    return f'<h2>Learning curves</h2><div class="charts small">{"".join(figures)}</div>'


def _latency(rows: Sequence[Row], control_rate: float) -> str:
    period = 1e3 / control_rate
    measured = [(row, [1e3 * t for r in row.score.results for t in r.round_trip]) for row in rows]
    measured = [(row, times) for row, times in measured if times][-2:]
    if not measured:
        return ""
    end = max(float(np.quantile(times, 0.995)) for _, times in measured)
    figures = []
    for row, times in measured:
        chart = histogram(
            times, x_label="round trip, ms", y_label="decisions", series=row.series, span=(0.0, end)
        )
        p50, p99 = np.percentile(times, (50, 99))
        within = np.mean(np.array(times) <= period)
        figures.append(
            figure(
                chart,
                f"{row.name}: p50 {p50:.1f} ms, p99 {p99:.1f} ms; {within:.1%} of {len(times):,} decisions "
                f"within a control period of {period:g} ms. The last bar holds what lies beyond.",
            )
        )
    return (
        f'<h2>Latency of a decision</h2><div class="charts">{"".join(figures)}</div><p class="soft">From the '
        "request to the reply, over a local socket, while the simulators keep the same processor busy.</p>"
    )


def _contract(comparison: Comparison) -> str:
    contract, plant = comparison.contract, comparison.contract.plant
    fields = "".join(
        f"<tr><td>{escape(f.name)}</td><td>{' x '.join(map(str, f.shape))}</td><td>{escape(f.unit)}</td></tr>"
        for f in plant.fields
    )
    actions = "".join(
        f"<tr><td>{escape(a.name)}</td><td>{a.low:g} to {a.high:g}</td><td>{escape(a.unit)}</td>"
        f"<td>{escape(' '.join(filter(None, (a.mode, a.frame))))}</td></tr>"
        for a in plant.actions
    )
    facts = {
        "contract": contract.contract_id,
        "control rate": f"{plant.control_rate:g} Hz",
        "chunk": f"{contract.h} actions from {contract.F} refinement steps",
        **comparison.facts,
        "data": contract.provenance.dataset_id,
        "training": f"{contract.provenance.updates:,} updates, seed {contract.provenance.seed}",
    }
    lines = "".join(
        f"<tr><th>{escape(k)}</th><td><code>{escape(v)}</code></td></tr>" for k, v in facts.items()
    )
    return (
        f"<h2>The contract of {escape(str(comparison.bundle))}</h2>"
        "<p>What a robot must offer to be driven by this policy; a server refuses one that does not fit.</p>"
        f'<div class="scroll"><table class="words">{lines}</table></div><div class="charts">'
        '<div class="scroll"><table class="words"><tr><th>observation</th><th>shape</th><th>unit</th></tr>'
        f"{fields}</table></div>"
        '<div class="scroll"><table class="words"><tr><th>action</th><th>range</th><th>unit of 1</th>'
        "<th></th></tr>"
        f"{actions}</table></div></div>"
    )


def _commands(commands: Sequence[tuple[str, str]]) -> str:
    lines = "\n".join(f"# {what}\n{command}" for command, what in commands)
    return f"<h2>What to type next</h2><pre><code>{escape(lines)}</code></pre>"
