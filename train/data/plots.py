"""Pictures of a data set, one PNG file each."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .store import TransitionStore

MOST_PANELS = 16
POINTS = 20_000


def plot_store(store: TransitionStore, folder: Path) -> list[Path]:
    """Write `lengths.png`, `rewards.png`, `actions.png` and `observations.png`; returns their paths."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    folder.mkdir(parents=True, exist_ok=True)
    written = []

    def save(figure: Figure, name: str) -> None:
        FigureCanvasAgg(figure)
        figure.savefig(folder / name, dpi=100)
        written.append(folder / name)

    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    lengths = store.ends - store.starts
    # Of equal lengths a bar as wide as one row.
    axes.hist(lengths, bins=40 if lengths.min() < lengths.max() else [lengths[0] - 0.5, lengths[0] + 0.5])
    axes.ticklabel_format(axis="x", useOffset=False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(
        title=f"{store.dataset_id}: {store.episodes:,} episodes",
        xlabel="rows in an episode",
        ylabel="episodes",
    )
    save(figure, "lengths.png")

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    finite = store.rewards[np.isfinite(store.rewards)].astype(np.float64)
    left.hist(finite, bins=40, log=True)
    left.set(title="rewards", xlabel="reward", ylabel="rows")
    right.hist(
        np.add.reduceat(np.where(np.isfinite(store.rewards), store.rewards, 0.0), store.starts), bins=40
    )
    right.xaxis.set_major_locator(MaxNLocator(5))
    right.set(title="returns", xlabel="sum of an episode's rewards", ylabel="episodes")
    save(figure, "rewards.png")

    rows = np.linspace(0, len(store) - 1, min(len(store), POINTS)).astype(int)
    panels = store.plant.actions[:MOST_PANELS]
    columns = min(4, len(panels))
    figure = Figure(figsize=(3 * columns, 2.5 * -(-len(panels) // columns)), layout="constrained")
    grid = np.ravel(figure.subplots(-(-len(panels) // columns), columns, squeeze=False))
    for i, spec in enumerate(panels):
        values = store.actions[rows, i]
        grid[i].hist(values[np.isfinite(values)], bins=50)
        for bound in (spec.low, spec.high):
            grid[i].axvline(bound, color="tab:red", linewidth=1)
        grid[i].set(title=spec.name, xlabel=spec.unit)
    for unused in grid[len(panels) :]:
        unused.set_axis_off()
    save(figure, "actions.png")

    seen = np.where(np.isfinite(store.observations[rows]), store.observations[rows], np.nan)
    seen[:, np.isnan(seen).all(axis=0)] = 0.0
    levels = np.nanquantile(seen, (0.0, 0.05, 0.5, 0.95, 1.0), axis=0)
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    axes = figure.subplots()
    at = np.arange(levels.shape[1])
    axes.vlines(at, levels[0], levels[4], color="tab:blue", alpha=0.3, label="range")
    axes.vlines(at, levels[1], levels[3], color="tab:blue", linewidth=4, label="5 to 95 %")
    axes.plot(at, levels[2], "k_", label="median")
    starts = np.cumsum([0, *(field.size for field in store.plant.fields)])[:-1]
    axes.set_xticks(starts, [field.name for field in store.plant.fields], rotation=30, ha="right", fontsize=7)
    axes.set(title="observations", ylabel="as recorded")
    axes.legend(fontsize=7)
    save(figure, "observations.png")
    return written
