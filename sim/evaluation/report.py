"""An evaluation as one HTML file that needs nothing else: no network, no other file, light and dark, any width."""

from __future__ import annotations

import base64
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

STYLE = """
:root{color-scheme:light dark;--paper:#fff;--ink:#1c2024;--soft:#667;--line:#dde;--c0:#2563eb;--c1:#d97706;--c2:#059669;--bad:#dc2626}
@media(prefers-color-scheme:dark){:root{--paper:#15181c;--ink:#e6e8eb;--soft:#9aa3ad;--line:#30363d;--c0:#60a5fa;--c1:#fbbf24;--c2:#34d399;--bad:#f87171}}
*{box-sizing:border-box}body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.5 system-ui,sans-serif}
main{max-width:1040px;margin:0 auto;padding:16px}h1{font-size:1.5rem;margin:.4em 0}h2{font-size:1.1rem;margin:1.6em 0 .4em}
p{margin:.3em 0;max-width:75ch}.soft{color:var(--soft)}.tiles,.charts{display:grid;gap:12px}
.tiles{grid-template-columns:repeat(auto-fit,minmax(140px,1fr))}.charts{grid-template-columns:repeat(auto-fit,minmax(min(100%,400px),1fr))}
.tile{border:1px solid var(--line);border-radius:8px;padding:10px 12px}.tile b{display:block;font-size:1.4rem}
figure{margin:0;border:1px solid var(--line);border-radius:8px;padding:8px}figcaption{font-size:.85rem;color:var(--soft)}
svg{width:100%;height:auto;display:block}svg text{fill:var(--soft);font-size:13px}.grid{stroke:var(--line)}.axis{stroke:var(--soft)}
.rule{stroke:var(--soft);stroke-dasharray:4 4}.stroke{fill:none;stroke-width:2}.band{opacity:.2}.soft-fill{opacity:.7}
.c0.stroke{stroke:var(--c0)}.c1.stroke{stroke:var(--c1)}.c2.stroke{stroke:var(--c2)}.c0.fill,.c0.band{fill:var(--c0)}.c1.fill,.c1.band{fill:var(--c1)}
.c2.fill,.c2.band{fill:var(--c2)}.k0{color:var(--c0)}.k1{color:var(--c1)}.k2{color:var(--c2)}
.strip{display:flex;flex-wrap:wrap;gap:3px;margin:.4em 0}.strip i{width:12px;height:12px;border-radius:3px;background:var(--c2)}
.strip i.no{background:var(--bad)}video{width:100%;max-width:640px;border-radius:8px;background:#000}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-size:.9rem}
td,th{padding:3px 10px;text-align:right;white-space:nowrap;border-bottom:1px solid var(--line)}
"""
# Nothing is loaded from anywhere: a browser that is told so refuses what this page does not bring itself.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; media-src data:"
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
    video: Path | None = None,
) -> None:
    """Write the page, complete or not at all."""
    page = render(subject, score, curves, video)
    partial = path.with_name(path.name + ".writing")
    partial.write_text(page)
    partial.replace(path)


def render(
    subject: Subject, score: Score, curves: LearningCurves | None = None, video: Path | None = None
) -> str:
    """The page as text."""
    episodes = [r for r in score.results if isinstance(r, AnnotatedEpisode)]
    parts = [_heading(subject, score, episodes), _success(score)]
    if video is not None:
        parts.append(_video(video))
    parts += [
        _latency(score, subject.control_rate),
        _refinement(episodes),
        _calibration(calibrate(episodes)),
        _learning(curves),
    ]
    title = escape(f"{subject.task}: {score.success:.0%}")
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}"><title>{title}</title><style>{STYLE}</style></head>'
        f"<body><main>{''.join(parts)}</main></body></html>\n"
    )


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
        f'<i class="{"" if r.success else "no"}" title="seed {r.seed}: {"" if r.success else "no "}success after {r.steps} steps"></i>'
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
        f"{_figure(bar, f'{score.success:.1%} with its Wilson 95 % interval, {low:.1%} to {high:.1%}')}"
        f"{_figure(lengths, 'Length of the episodes; failures lie at the horizon.')}</div>"
    )


def _video(video: Path) -> str:
    data = base64.b64encode(video.read_bytes()).decode()
    return (
        f'<h2>Video</h2><video controls muted playsinline src="data:video/mp4;base64,{data}"></video>'
        '<p class="soft">Thin lines are the previews after each refinement step, the thick one the chunk that is played, as set-points of '
        "the end effector; their colour is V, on the scale at the top.</p>"
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
    within = f"{float((use <= 1.0).mean()):.1%} of {len(use):,} decisions came within one control period of {period:g} ms"
    return (
        '<h2>Latency and deadline use</h2><div class="charts">'
        f"{_figure(whole, _quantiles('Asking to having', trips))}"
        f"{_figure(inside, _quantiles('Inside the policy', inference))}"
        f"{_figure(deadline, f'{within}; the largest took {use.max():.0%} of it.')}</div>"
        '<p class="soft">Measured in lock-step while the simulators kept the processor busy; V included where asked for.</p>'
    )


def _quantiles(name: str, values: Any) -> str:
    p50, p99 = np.percentile(values, (50, 99))
    return f"{name}: p50 {p50:.2f} ms, p99 {p99:.2f} ms, largest {values.max():.2f} ms; beyond 99.5 % in the last bar."


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
    return (
        '<h2>V over refinement steps</h2><div class="charts">'
        f"{_figure(chart, f'Median and 10 % to 90 % over {len(rows)} decisions; with several candidates, the best preview so far.')}"
        f"{_figure(change, 'The same, less the V that the finished chunk has.')}</div>"
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
    caption = "Decisions in equal shares by their V; mean return of each with its 95 % interval over episodes. On the dashed line V is right."
    cut = (
        f"{found.cut} of {found.episodes} episodes ended without success: their return is known until then only. Had their rewards gone on "
        f"for ever, V minus return would be {found.start.bias_endless:+.1f} at the start instead of {found.start.bias:+.1f}."
    )
    head = "<tr><th>decisions</th><th>V</th><th>return</th><th>95 %</th><th>if failures went on</th></tr>"
    rows = "".join(
        f"<tr><td>{b.decisions}</td><td>{b.value:.1f}</td><td>{b.achieved:.1f}</td><td>{b.low:.1f} to {b.high:.1f}</td>"
        f"<td>{b.achieved_endless:.1f}</td></tr>"
        for b in found.bins
    )
    return (
        '<h2>Calibration of V</h2><div class="charts">'
        f"{_figure(chart, caption)}"
        f"<div>{_words('At the start of an episode', found.start)}{_words('At every decision', found.all)}<p>{cut}</p></div></div>"
        f'<div class="scroll"><table>{head}{rows}</table></div>'
    )


def _words(where: str, agreement: Any) -> str:
    low, high = agreement.bias_interval
    rank = (
        "" if agreement.rank_correlation is None else f"; rank correlation {agreement.rank_correlation:.2f}"
    )
    linear = "" if agreement.correlation is None else f", correlation {agreement.correlation:.2f}"
    return f"<p><b>{where}</b>: V minus return {agreement.bias:+.1f} [{low:+.1f}, {high:+.1f}], rmse {agreement.rmse:.1f}{rank}{linear}.</p>"


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
        figures.append(_figure(chart, "Success while training, with 95 % intervals."))
    for name, points in (curves.losses or {}).items():
        xs, ys = [p[0] for p in points], [p[1] for p in points]
        chart = Chart(
            (0.0, max(xs)),
            (float(np.quantile(ys, 0.01)), float(np.quantile(ys, 0.99))),
            x_label="update",
            y_label=name,
        )
        chart.line(xs, ys)
        figures.append(_figure(chart, name))
    return f'<h2>Learning curves</h2><div class="charts">{"".join(figures)}</div>' if figures else ""


def _figure(chart: Chart, caption: str) -> str:
    return f"<figure>{chart}<figcaption>{escape(caption)}</figcaption></figure>"
