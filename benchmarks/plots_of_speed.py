"""The plots of RESULTS.md that say how fast serving and training are (see plots.py)."""

from __future__ import annotations

from pathlib import Path

from plot_style import BLUE, GREEN, GREY, ORANGE, SKY, canvas, read, write


def plot_serving() -> Path:
    data = read("serving")
    colours = {"bare": GREY, "ours": BLUE, "openpi": ORANGE}
    names = {"bare": "bare pyzmq", "ours": "rql-deploy", "openpi": "openpi"}
    titles = {
        "instant policy": "no network",
        "with two 224x224x3 images": "two camera images",
        "F = 10, 4x512": "4x512, F = 10",
    }
    figure, panels = canvas(9.4, 2.3, 4, sharey=True, gridspec_kw={"width_ratios": (1, 1, 1, 1.1)})
    for axes, (policy, title) in zip(panels, titles.items(), strict=False):
        for y, server in enumerate(reversed(colours)):
            row = next(r for r in data["one_client"] if (r["policy"], r["server"]) == (policy, server))
            p50, p99 = row["p50_us"] / 1e3, row["p99_us"] / 1e3
            axes.barh(y, p50, height=0.5, color=colours[server])
            axes.hlines(y, p50, p99, color=colours[server], linewidth=1.4)
            axes.plot(p99, y, "|", color=colours[server], markersize=8)
            axes.text(p99 + 0.15, y, f"{p50:.2f} ({p99:.1f})", va="center", fontsize=9)
        axes.set(title=title, xlim=(0, 5.4), xticks=(0, 2, 4))
    panels[0].set_xlabel("ms p50 (p99), one client")
    crowd = {"bare": "bare, one at a time", "ours": "ours", "openpi": "openpi"}
    for y, server in enumerate(reversed(colours)):
        row = next(r for r in data["eight_clients"] if r["server"] == crowd[server])
        panels[3].barh(y, row["replies_per_s"], height=0.5, color=colours[server])
        panels[3].text(row["replies_per_s"] + 40, y, f"{row['replies_per_s']:.0f}", va="center", fontsize=9)
    panels[3].set(title="the same, 8 clients", xlim=(0, 2050), xticks=(0, 1000, 2000), xlabel="replies/s")
    panels[0].set_yticks(range(3), [names[server] for server in reversed(colours)])
    for axes in panels:
        axes.grid(visible=False, axis="y")
    return write(
        figure,
        "serving",
        "Bars: p50, whiskers: p99; server on one core, clients on the other. 2 AVX2 cores, AMD EPYC, float32",
    )


def plot_train_speed() -> Path:
    data = read("train_speed")
    kinds = {
        ("official", "float32"): ("official (JAX), float32", GREY),
        ("eager", "float32"): ("eager, float32", SKY),
        ("compiled", "float32"): ("compiled, float32", BLUE),
        ("compiled", "bfloat16"): ("compiled, bfloat16", GREEN),
    }
    titles = {"small": "small: 3x256, K = 2", "paper": "paper: 4x512, K = 10"}
    figure, panels = canvas(9, 2.6, 2, sharey=True)
    for axes, (size, title) in zip(panels, titles.items(), strict=True):
        for m, machine in enumerate(data["machines"]):
            for i, (kind, (name, color)) in enumerate(kinds.items()):
                row = next(
                    (r for r in machine["rows"] if (r["size"], r["engine"], r["precision"]) == (size, *kind)),
                    None,
                )
                if row is None:
                    continue
                y = (1 - m) * 5 + len(kinds) - 1 - i
                axes.barh(y, row["updates_per_s"], height=0.75, color=color, label=name if m else None)
                note = f"{row['updates_per_s']:g}" + (
                    f" ({row['over_official']:g}x)" if row.get("over_official") else ""
                )
                axes.annotate(
                    note,
                    (row["updates_per_s"], y),
                    (4, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=9,
                )
        axes.set(title=title, xlabel="updates/s (in brackets: times the official code)")
        axes.set_xlim(
            0,
            max(r["updates_per_s"] for m in data["machines"] for r in m["rows"] if r["size"] == size) * 1.28,
        )
        axes.grid(visible=False, axis="y")
    panels[0].set_yticks((1.5, 7), ("AVX-512,\nbfloat16", "AVX2"))
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=4, fontsize=9)
    return write(
        figure,
        "train_speed",
        "Whole updates on two threads, medians of alternating rounds; 2 virtual cores of an AMD EPYC each",
    )
