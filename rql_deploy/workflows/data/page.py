"""The page of `rql-deploy data inspect --report`: what a data set holds in one HTML file, warnings first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rql_deploy.errors import UserError
from rql_deploy.sim.evaluation.charts import Chart, histogram
from rql_deploy.sim.evaluation.page import figure, page, write_page

from .page_cameras import camera_parts
from .page_tables import action_table, facts, field_table, tiles

if TYPE_CHECKING:
    from rql_deploy.train.data.store import TransitionStore

POINTS = 20_000
"""Rows that histograms of fields and actions are drawn from, evenly spread over the data set."""
MOST_CHARTS = 100
"""Fields, and action dimensions, that get a histogram: the page stays below a megabyte."""
MOST_MARKS = 600
"""Episodes that get a square of their own."""
BINS = 24
NO_NUMBER = "<p class='soft'>No finite number.</p>"
PARTS = 20
"""Parts of an episode in which rewards and successes are counted."""


def data_page(store: TransitionStore, figures: Mapping[str, Any]) -> str:
    """The page of a data set whose `figures` are those of `inspect_store`, with validation and remarks."""
    title = f"{figures['dataset_id']}: {figures['task']}"
    return page(title, _parts(title, store, figures))


def write_data_page(path: Path, store: TransitionStore, figures: Mapping[str, Any]) -> None:
    """Write the page, complete or not at all; raises UserError where the file cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_page(path, data_page(store, figures))
    except OSError as error:
        raise UserError(f"cannot write {path} ({error.strerror}): pass another --report") from error


def _parts(title: str, store: TransitionStore, figures: Mapping[str, Any]) -> Iterator[str]:
    rows = np.linspace(0, len(store) - 1, min(len(store), POINTS)).astype(np.int64)
    yield f"<h1>{escape(title)}</h1>"
    yield from _warnings(figures)
    yield tiles(figures)
    if assumed := figures.get("assumed"):
        yield "<h2>Assumed, since the data does not say it</h2><ul>"
        yield from (f"<li>{escape(item)}</li>" for item in assumed)
        yield "</ul>"
    yield "<h2>Episodes</h2><div class='charts'>"
    yield from _episodes(store)
    yield "</div>"
    yield from _successes(store)
    yield "<h2>Actions and their bounds</h2>"
    yield action_table(store, figures, rows)
    yield "<div class='charts small'>"
    yield from _actions(store, rows)
    yield "</div>"
    yield from _more(len(store.plant.actions), "action dimensions")
    yield f"<h2>Observations</h2>{field_table(figures)}<div class='charts small'>"
    yield from _fields(store, rows)
    yield "</div>"
    yield from _more(len(store.plant.fields), "observation fields")
    yield from camera_parts(store, figures)
    yield f"<h2>The rest</h2>{facts(figures)}"


def _warnings(figures: Mapping[str, Any]) -> Iterator[str]:
    refused = [f"training refuses this data: {figures['training']}"] if figures.get("training") else []
    found = [*refused, *figures["warnings"]]
    if not found:
        yield "<p>No warnings.</p>"
        return
    yield f"<section class='warnings'><h2>{len(found)} warning{'s' if len(found) > 1 else ''}</h2><ul>"
    yield from (f"<li>{escape(sentence)}</li>" for sentence in found)
    yield "</ul></section>"


def _episodes(store: TransitionStore) -> Iterator[str]:
    lengths = (store.ends - store.starts).astype(np.float64)
    yield figure(
        _histogram(lengths, "rows of an episode", "episodes"), "How long episodes are, in rows (not seconds)."
    )
    finite = np.where(np.isfinite(store.rewards), store.rewards, 0.0).astype(np.float64)
    returns = np.add.reduceat(finite, store.starts)
    yield figure(_histogram(returns, "return", "episodes"), "Sum of an episode's rewards, not discounted.")
    position = _positions(store)
    above = finite > finite.min()
    yield figure(
        _share(position, above, "share of rows"),
        f"Reward density: rows with more than the least reward, {finite.min():g}, by their place in the "
        "episode.",
    )
    ended = np.asarray(store.masks == 0)
    first = ended & (_since_start(ended, store) == 1)
    yield figure(
        _counted(position[first], "episodes"),
        "Where success lies: the first row of an episode at which the task has ended (mask 0)."
        if first.any()
        else "Where success lies: no row says that the task has ended (mask 0).",
    )


def _successes(store: TransitionStore) -> Iterator[str]:
    if store.successes is None:
        yield "<p class='soft'>The data does not say which episodes succeeded.</p>"
        return
    shown = store.successes[:MOST_MARKS]
    more = "" if len(shown) == store.episodes else f" (the first {len(shown)} of {store.episodes:,})"
    yield f"<p>Which episodes succeeded, in their order{more}:</p><div class='strip'>"
    yield from (f"<i class='{'yes' if success else 'no'}'></i>" for success in shown)
    yield "</div>"


def _actions(store: TransitionStore, rows: NDArray[np.int64]) -> Iterator[str]:
    for i, action in enumerate(store.plant.actions[:MOST_CHARTS]):
        values = _finite(store.actions[rows, i])
        low, high = float(action.low), float(action.high)
        caption = f"{action.name}: bounds [{low:g}, {high:g}] are dashed"
        if not len(values):
            yield figure(NO_NUMBER, caption)
            continue
        span = (min(low, values.min(initial=low)), max(high, values.max(initial=high)))
        chart = histogram(values.tolist(), x_label=action.unit, y_label="rows", bins=BINS, span=span)
        for bound in (low, high):
            chart.rule((bound, 0.0), (bound, chart.y[1]))
        yield figure(chart, caption)


def _fields(store: TransitionStore, rows: NDArray[np.int64]) -> Iterator[str]:
    start = 0
    for field in store.plant.fields[:MOST_CHARTS]:
        values = _finite(store.observations[rows, start : start + field.size])
        start += field.size
        together = "" if field.size == 1 else f", its {field.size} numbers together"
        yield figure(_histogram(values, field.unit, "numbers"), f"{field.name}{together}")


def _more(count: int, what: str) -> Iterator[str]:
    if count > MOST_CHARTS:
        yield f"<p class='soft'>{count - MOST_CHARTS} more {what} have no histogram here.</p>"


def _histogram(values: NDArray[np.float64], x_label: str, y_label: str) -> Chart | str:
    if not len(values):
        return NO_NUMBER
    span = (float(values.min()), float(values.max()))
    return histogram(values.tolist(), x_label=x_label, y_label=y_label, bins=BINS, span=span)


def _counted(position: NDArray[np.float64], y_label: str) -> Chart:
    counts, edges = np.histogram(position, PARTS, (0.0, 1.0))
    return _over_episode(edges, counts.astype(np.float64), y_label)


def _share(position: NDArray[np.float64], chosen: NDArray[np.bool_], y_label: str) -> Chart:
    every, edges = np.histogram(position, PARTS, (0.0, 1.0))
    counts = np.histogram(position[chosen], PARTS, (0.0, 1.0))[0]
    return _over_episode(edges, counts / np.maximum(every, 1), y_label)


def _over_episode(edges: NDArray[np.float64], heights: NDArray[np.float64], y_label: str) -> Chart:
    top = float(heights.max()) * 1.08 or 1.0
    chart = Chart(
        (0.0, 1.0), (0.0, top), x_label="place in the episode (0 first row, 1 last)", y_label=y_label
    )
    chart.bars(edges.tolist(), heights.tolist(), 2)
    return chart


def _positions(store: TransitionStore) -> NDArray[np.float64]:
    """`[N]`: where in its episode a row lies, from 0 (first) to 1 (last, or only row)."""
    lengths = store.ends - store.starts
    within = np.arange(len(store)) - np.repeat(store.starts, lengths)
    last = np.repeat(lengths - 1, lengths)
    return np.asarray(np.where(last > 0, within / np.maximum(last, 1), 1.0), np.float64)


def _since_start(flags: NDArray[np.bool_], store: TransitionStore) -> NDArray[np.int64]:
    """`[N]`: how many flags an episode has had up to a row."""
    total = np.cumsum(flags)
    before = total[store.starts] - flags[store.starts]
    return np.asarray(total - np.repeat(before, store.ends - store.starts), np.int64)


def _finite(values: NDArray[np.float32]) -> NDArray[np.float64]:
    found = values[np.isfinite(values)].astype(np.float64)
    return np.ravel(found)
