"""The plots of RESULTS.md, from the numbers recorded in benchmarks/results/*.json.

python benchmarks/plots.py          # needs matplotlib (rql-deploy[train]); writes docs/images/results_*.svg
"""

from __future__ import annotations

import argparse
from pathlib import Path

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
    read,
    whisker,
    write,
)
from plots_of_speed import plot_serving, plot_train_speed


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
    colours = dict(
        zip((row["policy"] for row in data["rows"]), (GREY, ORANGE, ORANGE, SKY, BLUE), strict=True)
    )
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
            axes.text(
                len(rows) - 0.8, values[-1] + 70 * -shift, name, color=color, va="center", fontweight="bold"
            )
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
            one = next(
                r
                for r in data["one_candidate"]
                if task in r["task"] and (r["h"], r["playback"]) == (row["h"], playback)
            )
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
        row = next(
            r
            for r in data["puzzle_V_by_presses_left"]
            if r["updates"] == updates and r["policy"].startswith(policy)
        )
        right.plot(range(1, 10), row["V_by_presses_left"], dash, color=color, linewidth=1.8, label=name)
    right.set(
        title="puzzle-3x3: what V knows", xlabel="presses left to the goal", ylabel="V", xticks=range(1, 10)
    )
    right.legend(fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))
    for axes in (left, right):
        axes.grid(visible=False, axis="x")
    return write(
        figure,
        "learning",
        "Left: 40 episodes a point, one training, 95 % intervals. Right: one training a line.",
    )


def plot_puzzle() -> Path:
    return plot_papers_setting("puzzle_gpu")


def plot_scene() -> Path:
    return plot_papers_setting("scene_gpu")


def plot_papers_setting(name: str) -> Path:
    data = read(name)
    figure, (left, right) = canvas(9, 2.6, 2, sharey=True)
    names = {(True, 4): "RQL, best of 4 by V", (True, 1): "RQL, one candidate"}
    names |= {(False, 4): "no reversal, best of 4", (False, 1): "no reversal, one"}
    colours = dict(zip(names, (BLUE, SKY, GREY, ORANGE), strict=True))
    limit = data["step_limit"]
    groups = [(task, seed) for task, seed in ((1, 0), (1, 1), (2, 0), (3, 0), (4, 0), (5, 0))]
    for row in data["rows"]:
        kind = (row["reversal"], row["candidates"])
        place = groups.index((row["task"], row["seed"])) + 0.17 * (list(names).index(kind) - 1.5)
        rate = 100 * row["successes"] / row["episodes"]
        whisker(left, place, rate, row["interval"], colours[kind], upright=True, size=6)
        label = names[kind] if place < 0.5 else None
        right.bar(place, 100 * row["steps"] / limit, 0.15, color=colours[kind], label=label)
    labels = [f"task {task}" + (f", seed {seed}" if task == 1 else "") for task, seed in groups]
    left.set(title="success, %", ylim=(0, 105), xticks=range(6))
    right.set(title=f"steps, % of the limit of {limit}", xticks=range(6))
    for axes in (left, right):
        axes.set_xticklabels([label.replace(", ", ",\n") for label in labels])
        axes.grid(visible=False, axis="x")
    right.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return write(
        figure,
        name,
        f"50 episodes a mark, 95 % intervals; {data['rows'][0]['updates']:,} updates. {data['date']}",
    )


def plot_improvement() -> Path:
    data = read("improvement")
    figure, panels = canvas(9, 2.8, 3)
    recorded, control = data["recorded"], data["control"]
    for axes, name, title in zip(
        panels,
        ("success", "steps", "bias"),
        ("success, %", "steps of an episode", "V minus return"),
        strict=True,
    ):
        axes.plot(recorded, data[name], color=BLUE, linewidth=1.8, marker="o", markersize=5)
        axes.axhline(control[name], color=ORANGE, linewidth=1.2, linestyle="--")
        axes.set(title=title, xlabel="recorded episodes", xticks=recorded)
        axes.set_ylim(bottom=0)
        axes.grid(visible=False, axis="x")
    panels[0].set_ylim(0, 105)
    for place, rate, interval in zip(recorded, data["success"], data["intervals"], strict=True):
        whisker(panels[0], place, rate, interval, BLUE, upright=True, size=5)
    panels[0].text(
        recorded[-1],
        control["success"] - 4,
        "as many updates, no new data",
        color=ORANGE,
        ha="right",
        va="top",
    )
    return write(
        figure,
        "improvement",
        "Lift, 100 paired episodes of each of three training seeds a point, 95 % intervals. 2 AVX2 cores",
    )


PLOTS = (
    plot_puzzle,
    plot_scene,
    plot_table,
    plot_demo_claim,
    plot_value_guided,
    plot_delay_sweep,
    plot_serving,
    plot_train_speed,
    plot_learning,
    plot_improvement,
)


def main() -> None:
    argparse.ArgumentParser(description=__doc__.partition("\n")[0]).parse_args()
    for plot in PLOTS:
        with rc_context(STYLE):
            path = plot()
        print(f"{path.relative_to(IMAGES.parents[1])}  {path.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
