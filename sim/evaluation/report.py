"""The report of an evaluation, as one HTML file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from .annotations import AnnotatedEpisode
from .calibration import ValueCalibration, calibrate
from .charts import Chart, histogram
from .episodes import Score
from .page import figure, page, video, write_page

LENGTH_BINS = 24


@dataclass(frozen=True)
class Subject:
    """What was evaluated, and how."""

    task: str
    source: str
    """The policy: a file, an address."""
    control_rate: float
    choice: str
    """How a decision chose among candidates, in words; empty where nothing was chosen."""
    scored: str
    """When, for people."""


@dataclass(frozen=True)
class LearningCurves:
    """From a training run: (update, value) points."""

    success: Sequence[tuple[float, float, float, float]] = ()
    """update, success, lower and upper end of its interval."""
    losses: Mapping[str, Sequence[tuple[float, float]]] | None = None


def write_report(
    path: Path,
    subject: Subject,
    score: Score,
    curves: LearningCurves | None = None,
    film: Path | None = None,
) -> None:
    """Write the page, complete or not at all."""
    write_page(path, render(subject, score, curves, film))


def render(
    subject: Subject, score: Score, curves: LearningCurves | None = None, film: Path | None = None
) -> str:
    """The page as text."""
    episodes = [r for r in score.results if isinstance(r, AnnotatedEpisode)]
    parts = [_heading(subject, score, episodes), _success(score)]
    if film is not None:
        parts.append(_film(film))
    parts += [
        _latency(score, subject.control_rate),
        _refinement(episodes),
        _calibration(calibrate(episodes)),
        _learning(curves),
    ]
    return page(f"{subject.task}: {score.success:.0%}", parts)


def _heading(subject: Subject, score: Score, episodes: Sequence[AnnotatedEpisode]) -> str:
    summary, (low, high) = score.summary(), score.interval
    tiles = [
        (
            "success",
            f"{score.success:.0%}",
            f"{score.successes} of {len(score.results)}, 95 % interval {low:.0%} to {high:.0%}",
        ),
        (
            "episode length",
            f"{summary['steps']:.0f} steps",
            f"a failure counts as the horizon, {score.horizon}",
        ),
    ]
    if episodes:
        tiles.append(("return", f"{summary['reward']:.1f}", "sum of rewards, mean over episodes"))
    trip = summary["round_trip_ms"]
    if trip["p50"] is not None:
        tiles.append(("decision", f"{trip['p50']:.2f} ms", f"p50; p99 {trip['p99']:.2f} ms"))
    if score.results and any(r.holds for r in score.results):
        tiles.append(("holds", str(summary["holds"]), "ticks without a fresh action"))
    cells = "".join(
        f'<div class="tile">{escape(n)}<b>{escape(v)}</b><span class="soft">{escape(t)}</span></div>'
        for n, v, t in tiles
    )
    text = "; ".join(
        filter(
            None, (subject.source, subject.choice, f"{subject.control_rate:g} Hz, lock-step", subject.scored)
        )
    )
    return (
        f'<h1>{escape(subject.task)}</h1><p class="soft">{escape(text)}</p><div class="tiles">{cells}</div>'
    )


def _success(score: Score) -> str:
    marks = "".join(
        f'<i class="{"" if r.success else "no"}" title="seed {r.seed}: {"" if r.success else "no "}success '
        f'after {r.steps} steps"></i>'
        for r in score.results
    )
    lengths = histogram(
        score.lengths,
        x_label="steps",
        y_label="episodes",
        bins=LENGTH_BINS,
        series=2,
        span=(0.0, float(score.horizon)),
    )
    low, high = score.interval
    bar = Chart((0.0, 1.0), (0.0, 1.0), x_label="success", label=f"success {score.success:.0%}", scale=False)
    bar.band((low, high), (0.3, 0.3), (0.7, 0.7), 2)
    bar.line((score.success, score.success), (0.2, 0.8), 2)
    return (
        f'<h2>Success</h2><div class="strip">{marks}</div><div class="charts">'
        f"{figure(bar, f'{score.success:.1%} with its Wilson 95 % interval, {low:.1%} to {high:.1%}')}"
        f"{figure(lengths, 'Length of the episodes; failures lie at the horizon.')}</div>"
    )


def _film(path: Path) -> str:
    return (
        f"<h2>Video</h2>{video(path)}"
        '<p class="soft">Thin lines are the previews after each refinement step, the thick one the chunk '
        "that is played, as set-points of the end effector; their colour is V, on the scale at the top.</p>"
    )


def _latency(score: Score, control_rate: float) -> str:
    trips = np.array([t for r in score.results for t in r.round_trip]) * 1e3
    inference = np.array([t for r in score.results for t in r.inference]) * 1e3
    if not len(trips):
        return ""
    period = 1e3 / control_rate
    use = trips / period
    whole = histogram(trips.tolist(), x_label="round trip, ms", y_label="decisions")
    inside = histogram(inference.tolist(), x_label="inference, ms", y_label="decisions")
    deadline = histogram((100 * use).tolist(), x_label="% of a control period", y_label="decisions", series=1)
    share = float((use <= 1.0).mean())
    within = f"{share:.1%} of {len(use):,} decisions came within one control period of {period:g} ms"
    return (
        '<h2>Latency and deadline use</h2><div class="charts">'
        f"{figure(whole, _quantiles('Asking to having', trips))}"
        f"{figure(inside, _quantiles('Inside the policy', inference))}"
        f"{figure(deadline, f'{within}; the largest took {use.max():.0%} of it.')}</div>"
        '<p class="soft">Measured in lock-step while the simulators kept the processor busy; V included '
        "where asked for.</p>"
    )


def _quantiles(name: str, values: Any) -> str:
    p50, p99 = np.percentile(values, (50, 99))
    largest = f"largest {values.max():.2f} ms; beyond 99.5 % in the last bar."
    return f"{name}: p50 {p50:.2f} ms, p99 {p99:.2f} ms, {largest}"


def _refinement(episodes: Sequence[AnnotatedEpisode]) -> str:
    rows = [row for e in episodes for row in e.refinement_values if row]
    rows = [row for row in rows if len(row) == len(rows[0])]
    if not rows:
        return ""
    values = np.array(rows)
    low, middle, high = np.quantile(values, (0.1, 0.5, 0.9), axis=0)
    steps = list(range(1, values.shape[1] + 1))
    chart = Chart(
        (1.0, steps[-1]),
        (float(low.min()), float(high.max())),
        x_label="refinement step",
        y_label="V of the preview",
    )
    chart.band(steps, low.tolist(), high.tolist())
    chart.line(steps, middle.tolist())
    gain = values - values[:, -1:]
    change = Chart(
        (1.0, steps[-1]),
        (float(min(gain.min(), 0.0)), float(max(gain.max(), 0.0))),
        x_label="refinement step",
        y_label="V - final V",
    )
    low, middle, high = np.quantile(gain, (0.1, 0.5, 0.9), axis=0)
    change.band(steps, low.tolist(), high.tolist(), 1)
    change.line(steps, middle.tolist(), 1)
    spread = f"Median and 10 % to 90 % over {len(rows)} decisions"
    return (
        '<h2>V over refinement steps</h2><div class="charts">'
        f"{figure(chart, f'{spread}; with several candidates, the best preview so far.')}"
        f"{figure(change, 'The same, less the V that the finished chunk has.')}</div>"
    )


def _calibration(found: ValueCalibration | None) -> str:
    if found is None:
        return ""
    values, achieved = [b.value for b in found.bins], [b.achieved for b in found.bins]
    ends = [*values, *achieved, *(b.low for b in found.bins), *(b.high for b in found.bins)]
    span = (min(ends), max(ends))
    chart = Chart(span, span, x_label="predicted V", y_label="achieved return", label="reliability of V")
    chart.rule((span[0], span[0]), (span[1], span[1]))
    for b in found.bins:
        chart.whisker(b.value, b.low, b.high)
    chart.points(values, achieved, 0, [f"{b.decisions} decisions" for b in found.bins])
    caption = (
        "Decisions in equal shares by their V; mean return of each with its 95 % interval over episodes. "
        "On the dashed line V is right."
    )
    cut = (
        f"{found.cut} of {found.episodes} episodes ended without success: their return is known until "
        "then only. Had their rewards gone on for ever, V minus return would be "
        f"{found.start.bias_endless:+.1f} at the start instead of {found.start.bias:+.1f}."
    )
    head = "<tr><th>decisions</th><th>V</th><th>return</th><th>95 %</th><th>if failures went on</th></tr>"
    rows = "".join(
        f"<tr><td>{b.decisions}</td><td>{b.value:.1f}</td><td>{b.achieved:.1f}</td>"
        f"<td>{b.low:.1f} to {b.high:.1f}</td>"
        f"<td>{b.achieved_endless:.1f}</td></tr>"
        for b in found.bins
    )
    return (
        '<h2>Calibration of V</h2><div class="charts">'
        f"{figure(chart, caption)}"
        f"<div>{_words('At the start of an episode', found.start)}{_words('At every decision', found.all)}"
        f"<p>{cut}</p></div></div>"
        f'<div class="scroll"><table>{head}{rows}</table></div>'
    )


def _words(where: str, agreement: Any) -> str:
    low, high = agreement.bias_interval
    rank = (
        "" if agreement.rank_correlation is None else f"; rank correlation {agreement.rank_correlation:.2f}"
    )
    linear = "" if agreement.correlation is None else f", correlation {agreement.correlation:.2f}"
    bias = f"{agreement.bias:+.1f} [{low:+.1f}, {high:+.1f}]"
    return f"<p><b>{where}</b>: V minus return {bias}, rmse {agreement.rmse:.1f}{rank}{linear}.</p>"


def _learning(curves: LearningCurves | None) -> str:
    if curves is None:
        return ""
    figures = []
    if curves.success:
        updates, success, low, high = ([row[i] for row in curves.success] for i in range(4))
        chart = Chart((0.0, max(updates)), (0.0, 1.0), x_label="update", y_label="success")
        chart.band(updates, low, high, 2)
        chart.line(updates, success, 2)
        chart.points(updates, success, 2)
        figures.append(figure(chart, "Success while training, with 95 % intervals."))
    for name, points in (curves.losses or {}).items():
        xs, ys = [p[0] for p in points], [p[1] for p in points]
        chart = Chart(
            (0.0, max(xs)),
            (float(np.quantile(ys, 0.01)), float(np.quantile(ys, 0.99))),
            x_label="update",
            y_label=name,
        )
        chart.line(xs, ys)
        figures.append(figure(chart, name))
    return f'<h2>Learning curves</h2><div class="charts">{"".join(figures)}</div>' if figures else ""
