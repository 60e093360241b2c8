"""The plots of RESULTS.md, from the numbers recorded in benchmarks/results/*.json.

python benchmarks/plots.py          # needs matplotlib (rql-deploy[train]); writes docs/images/results_*.svg
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from plot_style import (
    BLUE,
    GREEN,
    GREY,
    IMAGES,
    INK,
    MUTED,
    ORANGE,
    RULE,
    SKY,
    STYLE,
    canvas,
    whisker,
    write,
)

RESULTS = Path(__file__).parent / "results"


def read(name: str) -> dict[str, Any]:
    """One recorded measurement."""
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return found


def plot_table() -> Path:
    data = read("table")
    methods = {"RQL, best of 8 by V": BLUE, "RQL": SKY, "BC-flow": ORANGE, "no reversal": GREY}
    tasks = {
        "lift": "Lift",
        "stack": "Stack",
        "cube-single-task2": "cube-single, task 2",
        "puzzle-3x3-task4": "puzzle-3x3, task 4",
    }
    figure, panels = canvas(9, 2.5, len(tasks), sharey=True)
    for axes, (task, title) in zip(panels, tasks.items(), strict=True):
        for row in (row for row in data["rows"] if row["task"] == task):
            y = len(methods) - 1 - list(methods).index(row["setting"])
            axes.plot(
                row["per_seed"],
                [y - 0.28] * len(row["per_seed"]),
                "|",
                color=methods[row["setting"]],
                markersize=7,
            )
            rate = 100 * row["successes"] / row["episodes"]
            whisker(axes, rate, y, row["wilson_interval"], methods[row["setting"]])
            beyond = max(row["wilson_interval"][1], *row["per_seed"])
            axes.text(beyond + 4, y, f"{rate:.0f} %", va="center", fontsize=9)
        axes.set(title=title, xlim=(-4, 118), ylim=(-0.6, len(methods) - 0.5), xticks=(0, 50, 100))
        axes.set_yticks(range(len(methods)), list(methods)[::-1])
        axes.grid(visible=False, axis="y")
    panels[0].set_xlabel("success, %")
    return write(
        figure,
        "table",
        f"150 episodes, 95 % intervals; ticks: each of three seeds. {data['date']}, 2 cores with AVX-512",
    )


def plot_demo_claim() -> Path:
    data = read("demo_claim")
    colours = dict(zip((row["policy"] for row in data["rows"]), (GREY, ORANGE, ORANGE, SKY, BLUE), strict=True))
    figure, (left, right) = canvas(9, 2.3, 2, sharey=True)
    for y, row in enumerate(reversed(data["rows"])):
        whisker(left, row["success"], y, row["interval"], colours[row["policy"]])
        left.text(row["interval"][1] + 1, y, f"{row['success']:.1f} %", va="center", fontsize=9)
        right.barh(y, row["steps"], height=0.55, color=colours[row["policy"]])
        right.text(row["steps"] + 1, y, f"{row['steps']:.0f}", va="center", fontsize=9)
    left.set_yticks(range(len(data["rows"])), [row["policy"] for row in reversed(data["rows"])])
    left.set(title="robosuite Lift: success, %", xlim=(44, 99))
    right.set(title="steps to success (a failure counts as 120)", xlim=(0, 99))
    for axes in (left, right):
        axes.grid(visible=False, axis="y")
    return write(
        figure,
        "demo_claim",
        f"600 episodes a row over three training seeds, 95 % intervals. {data['date']}, 2 AVX2 cores",
    )


def plot_value_guided() -> Path:
    data = read("value_guided")
    figure, panels = canvas(9, 3.0, 2)
    for axes, task in zip(panels, data["tasks"], strict=True):
        rows = [row for row in task["rows"] if row["plain"]]
        places = range(len(rows))
        axes.axvspan(1.7, 2.3, color=RULE, alpha=0.4, linewidth=0)
        for shift, policy, color, name in ((-0.05, "rql", BLUE, "RQL"), (0.05, "cloning", ORANGE, "cloning")):
            values = [row[policy]["success"] for row in rows]
            axes.plot([i + shift for i in places], values, color=color, linewidth=1.8)
            for i, row in enumerate(rows):
                whisker(axes, i + shift, values[i], row[policy]["interval"], color, upright=True, size=5)
            axes.text(len(rows) - 0.8, values[-1] + 70 * -shift, name, color=color, va="center", fontweight="bold")
        axes.set_xticks(places, [str(row["candidates"]) for row in rows])
        axes.set(
            title=task["task"],
            xlim=(-0.4, len(rows) + 0.1),
            ylim=(0, 100),
            xlabel="candidates, the best by V is played",
        )
        axes.grid(visible=False, axis="x")
    panels[0].set_ylabel("success, %")
    panels[0].text(2, 4, "default", ha="center", fontsize=8, color=MUTED)
    return write(
        figure,
        "value_guided",
        "200 paired episodes a point, one training seed a policy, 95 % intervals. 2 AVX2 cores",
    )


def plot_delay_sweep() -> Path:
    data = read("delay_sweep")
    lines = {"open loop": (GREY, ":"), "prefetch": (ORANGE, "-."), "anytime": (SKY, "--")}
    figure, panels = canvas(9.4, 3.1, 4, sharey=True)
    for axes, row in zip(panels, data["default_playback"], strict=True):
        base = row["delays"][0]["success"]
        axes.plot(
            [point["periods"] for point in row["delays"]],
            [point["success"] for point in row["delays"]],
            color=BLUE,
            linewidth=2.2,
        )
        whisker(axes, 0, base, row["delays"][0]["interval"], BLUE, upright=True, size=5)
        for point in row["delays"][1:]:
            low, high = point["points_lost_interval"]
            whisker(
                axes,
                point["periods"],
                point["success"],
                (base - high, base - low),
                BLUE,
                upright=True,
                size=5,
            )
        task = row["task"]
        for name, (color, dash) in lines.items():
            playback = f"{name}, compensated" if task == "Lift" and name != "open loop" else name
            one = next(r for r in data["one_candidate"] if task in r["task"] and (r["h"], r["playback"]) == (row["h"], playback))
            x = [0, *(point["periods"] for point in one["delays"])]
            axes.plot(
                x,
                [one["no_delay"], *(point["success"] for point in one["delays"])],
                dash,
                color=color,
                linewidth=1.5,
                label=name,
            )
        axes.set(title=f"{task}, h = {row['h']}", xlim=(-0.4, 4.4), ylim=(0, 100), xticks=(0, 1, 2, 4))
        axes.grid(visible=False, axis="x")
    panels[0].lines[0].set_label("as the loop plays: anytime, best of 4")
    panels[0].set(ylabel="success, %")
    handles, labels = panels[0].get_legend_handles_labels()
    labels = [labels[0], *(f"one candidate, {label}" for label in labels[1:])]
    figure.legend(handles, labels, loc="outside upper left", ncols=4, fontsize=9)
    return write(
        figure,
        "delay_sweep",
        "Delay in control periods. 200 paired episodes a point, one training seed; bars: 95 %.",
    )


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
        axes.set(title=title, xlim=(0, 7.4), xticks=(0, 2, 4, 6))
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
                note = f"{row['updates_per_s']:g}" + (f" ({row['over_official']:g}x)" if row.get("over_official") else "")
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


def plot_learning() -> Path:
    data = read("learning")
    figure, (left, right) = canvas(9, 3.0, 2, gridspec_kw={"width_ratios": (1, 1.25)})
    for shift, line, color in (
        (-0.7, data["cube_single_task2"][0], SKY),
        (0.7, data["cube_single_task2"][1], BLUE),
    ):
        x = [point["updates"] / 1e3 + shift for point in line["points"]]
        left.plot(x, [point["success"] for point in line["points"]], color=color, linewidth=1.8)
        for place, point in zip(x, line["points"], strict=True):
            whisker(left, place, point["success"], point["interval"], color, upright=True, size=5)
        left.text(
            x[-1] + 3,
            line["points"][-1]["success"],
            line["policy"].replace(", ", ",\n"),
            color=color,
            va="center",
            fontweight="bold",
        )
    left.set(
        title="cube-single: success, %",
        xlim=(10, 118),
        ylim=(0, 70),
        xticks=(20, 47, 80),
        xlabel="thousand updates",
    )
    shown = [
        ("as the data plays (exact)", None, "of a policy as fast", INK, ":"),
        ("134,507 updates", 134507, "RQL, the same settings", BLUE, "-"),
        ("80,000", 80000, "RQL, the same settings", SKY, "-"),
        ("40,000", 40000, "RQL, the same settings", GREEN, "-"),
        ("20,000", 20000, "RQL, as in the table", ORANGE, "-"),
        ("20,000, no reversal", 20000, "no reversal", GREY, "-"),
    ]
    for name, updates, policy, color, dash in shown:
        row = next(r for r in data["puzzle_V_by_presses_left"] if r["updates"] == updates and r["policy"].startswith(policy))
        right.plot(range(1, 10), row["V_by_presses_left"], dash, color=color, linewidth=1.8, label=name)
    right.set(title="puzzle-3x3: what V knows", xlabel="presses left to the goal", ylabel="V", xticks=range(1, 10))
    right.legend(fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))
    for axes in (left, right):
        axes.grid(visible=False, axis="x")
    return write(
        figure,
        "learning",
        "Left: 40 episodes a point, one training, 95 % intervals. Right: one training a line.",
    )


PLOTS = (
    plot_table,
    plot_demo_claim,
    plot_value_guided,
    plot_delay_sweep,
    plot_serving,
    plot_train_speed,
    plot_learning,
)


def main() -> None:
    argparse.ArgumentParser(description=__doc__.partition("\n")[0]).parse_args()
    for plot in PLOTS:
        with rc_context(STYLE):
            path = plot()
        print(f"{path.relative_to(IMAGES.parents[1])}  {path.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
