"""Plots of a data set as PNG files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from .store import TransitionStore

MOST_PANELS = 16
POINTS = 20_000


def plot_store(store: TransitionStore, folder: Path) -> list[Path]:
    """Write `lengths.png`, `rewards.png`, `actions.png` and `observations.png`; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = np.linspace(0, len(store) - 1, min(len(store), POINTS)).astype(np.int64)
    figures = {
        "lengths": _lengths(store),
        "rewards": _rewards(store),
        "actions": _actions(store, rows),
        "observations": _observations(store, rows),
    }
    for name, figure in figures.items():
        FigureCanvasAgg(figure)
        figure.savefig(folder / f"{name}.png", dpi=100)
    return [folder / f"{name}.png" for name in figures]


def _lengths(store: TransitionStore) -> Figure:
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    lengths = store.ends - store.starts
    # If all lengths are equal: one bar as wide as one row.
    bins = 40 if lengths.min() < lengths.max() else [lengths[0] - 0.5, lengths[0] + 0.5]
    axes.hist(lengths, bins=bins)
    axes.ticklabel_format(axis="x", useOffset=False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    title = f"{store.dataset_id}: {store.episodes:,} episodes"
    axes.set(title=title, xlabel="rows in an episode", ylabel="episodes")
    return figure


def _rewards(store: TransitionStore) -> Figure:
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    finite = np.isfinite(store.rewards)
    left.hist(store.rewards[finite].astype(np.float64), bins=40, log=True)
    left.set(title="rewards", xlabel="reward", ylabel="rows")
    right.hist(np.add.reduceat(np.where(finite, store.rewards, 0.0), store.starts), bins=40)
    right.xaxis.set_major_locator(MaxNLocator(5))
    right.set(title="returns", xlabel="sum of an episode's rewards", ylabel="episodes")
    return figure


def _actions(store: TransitionStore, rows: NDArray[np.int64]) -> Figure:
    shown = store.plant.actions[:MOST_PANELS]
    columns = min(4, len(shown))
    lines = -(-len(shown) // columns)
    figure = Figure(figsize=(3 * columns, 2.5 * lines), layout="constrained")
    panels = np.ravel(figure.subplots(lines, columns, squeeze=False))
    for i, spec in enumerate(shown):
        values = store.actions[rows, i]
        panels[i].hist(values[np.isfinite(values)], bins=50)
        for bound in (spec.low, spec.high):
            panels[i].axvline(bound, color="tab:red", linewidth=1)
        panels[i].set(title=spec.name, xlabel=spec.unit)
    for unused in panels[len(shown) :]:
        unused.set_axis_off()
    return figure


def _observations(store: TransitionStore, rows: NDArray[np.int64]) -> Figure:
    values = np.where(np.isfinite(store.observations[rows]), store.observations[rows], np.nan)
    values[:, np.isnan(values).all(axis=0)] = 0.0
    levels = np.nanquantile(values, (0.0, 0.05, 0.5, 0.95, 1.0), axis=0)
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    axes = figure.subplots()
    at = np.arange(levels.shape[1])
    axes.vlines(at, levels[0], levels[4], color="tab:blue", alpha=0.3, label="range")
    axes.vlines(at, levels[1], levels[3], color="tab:blue", linewidth=4, label="5 to 95 %")
    axes.plot(at, levels[2], "k_", label="median")
    starts = np.cumsum([0, *(field.size for field in store.plant.fields)])[:-1]
    names = [field.name for field in store.plant.fields]
    axes.set_xticks(starts, names, rotation=30, ha="right", fontsize=7)
    axes.set(title="observations", ylabel="as recorded")
    axes.legend(fontsize=7)
    return figure
