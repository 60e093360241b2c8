"""The sweep file, the jobs that follow from it, and the table of what they came to."""

import csv
import dataclasses
import json
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from rql_deploy.distributed.sweep.file import load_sweep, overrides
from rql_deploy.distributed.sweep.job import RESULT, Job, write_json
from rql_deploy.distributed.sweep.plan import Plan, content_address, make_plan
from rql_deploy.distributed.sweep.table import write_tables
from rql_deploy.errors import UserError
from rql_deploy.statistics import mean_interval
from tests.helpers.commands import ROOT, assert_refused, cli

SWEEP = """
seeds = [0, 1, 2]
episodes = 4
[tasks.lift]
play = "robosuite:Lift"
preset = "robosuite-lift"
collect = { task = "robosuite:Lift", episodes = 3 }
[settings.rql]
label = "RQL"
[settings.guided]
candidates = 8
[settings.cloning]
set = { rql.policy_value_weight = 0 }
"""


def plain_settings(preset: str, words: Sequence[str]) -> Mapping[str, Any]:
    return {"preset": preset, "words": list(words)}


def plan_of(folder: Path, text: str = SWEEP) -> Plan:
    file = folder / "sweep.toml"
    file.write_text(text)
    return make_plan(load_sweep(file), folder, plain_settings)


def finish(job: Job, output: Path, **result: Any) -> Path:
    folder = job.write(output)
    write_json(folder / RESULT, {"seconds": 61.0, "host": "here", "result": result})
    return folder


def play(plan: Plan, output: Path, cell: int, successes: Sequence[bool]) -> None:
    """Put down what the cell's jobs would have come to."""
    chosen = plan.cells[cell]
    finish(chosen.train, output, step=5, updates_per_second=1.0, losses={})
    folder = finish(
        chosen.evaluate, output, success=sum(successes) / len(successes), episodes=len(successes), steps=9.0
    )
    lines = [
        json.dumps({"seed": 10 * chosen.seed + i, "success": success}) for i, success in enumerate(successes)
    ]
    (folder / "episodes.jsonl").write_text("\n".join(lines))


def test_settings_that_train_alike_share_their_training_and_all_share_the_data(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    kinds = [job.kind for job in plan.jobs]
    assert len(plan.cells) == 9
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {
        "collect": 1,
        "train": 6,
        "export": 6,
        "evaluate": 9,
    }
    rows = [(cell.task, cell.setting) for cell in plan.cells]
    assert rows == sorted(rows, key=rows.index), "one row after the other"


def test_seeds_that_train_together_are_one_job_and_leave_a_run_each(tmp_path: Path) -> None:
    plan, single = plan_of(tmp_path, "together = true\n" + SWEEP), plan_of(tmp_path)
    kinds = [job.kind for job in plan.jobs]
    assert [kinds.count(kind) for kind in ("collect", "train", "export", "evaluate")] == [1, 2, 6, 9]
    first = plan.cells[0].train
    assert first.name == "lift rql seeds 0, 1, 2"
    words = dict(zip(first.arguments, first.arguments[1:], strict=False))
    assert words["--seeds"] == "0,1,2" and not any("seed=" in word for word in first.arguments)
    exported = [cell.evaluate.inputs[0].arguments[1] for cell in plan.cells[:3]]
    assert exported == [f"../{first.folder_name}/run/seed_{seed}" for seed in (0, 1, 2)]
    assert len({cell.train.key for cell in (*plan.cells, *single.cells)}) == 2 + 6


def test_each_of_the_seeds_has_its_results_and_its_share_of_the_time(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "together = true\n" + SWEEP)
    play(plan, tmp_path, 1, (True, False))
    seeds = {str(seed): {"step": 5, "updates_per_second": 2.0, "losses": {"bc": seed}} for seed in (0, 1, 2)}
    finish(plan.cells[1].train, tmp_path, step=5, seeds=seeds)
    write_tables(load_sweep(tmp_path / "sweep.toml"), plan, tmp_path)
    (record,) = map(json.loads, (tmp_path / "results.jsonl").read_text().splitlines())
    assert (record["seed"], record["losses"], record["updates"]) == (1, {"bc": 1}, 5)
    assert record["train_seconds"] == pytest.approx(61.0 / 3)


def test_a_job_is_another_as_soon_as_anything_it_depends_on_is(tmp_path: Path) -> None:
    before = plan_of(tmp_path)
    assert [job.key for job in plan_of(tmp_path).jobs] == [job.key for job in before.jobs]
    same_training = plan_of(tmp_path, SWEEP.replace("episodes = 4", "episodes = 5"))
    assert same_training.cells[0].train.key == before.cells[0].train.key
    assert same_training.cells[0].evaluate.key != before.cells[0].evaluate.key
    other_data = plan_of(tmp_path, SWEEP.replace("episodes = 3", "episodes = 2"))
    assert not {job.key for job in other_data.jobs} & {job.key for job in before.jobs}


def test_a_data_set_that_is_there_counts_by_its_content_not_its_place(tmp_path: Path) -> None:
    text = SWEEP.replace('collect = { task = "robosuite:Lift", episodes = 3 }', 'dataset = "{}"')
    for name, content in (("a", "1"), ("b", "1"), ("c", "2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "rows").write_text(content)
    a, b, c = (plan_of(tmp_path, text.replace("{}", name)).cells[0] for name in "abc")
    assert a.train.key == b.train.key != c.train.key
    assert str(tmp_path / "b") in b.train.arguments
    assert content_address(tmp_path / "a" / "rows") != content_address(tmp_path / "c" / "rows")


def test_later_tables_of_overrides_win() -> None:
    assert overrides({"rql": {"alpha": 1, "K": 2}}, {"rql.alpha": 3.5}, {"reward": "sparse"}) == (
        'reward="sparse"',
        "rql.K=2",
        "rql.alpha=3.5",
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("episodes = 4", "episode = 4"), ["unknown entry 'episode'", "episodes"]),
        (("seeds = [0, 1, 2]", "seeds = [0, 0]"), ["seeds", "different"]),
        (("seeds = [0, 1, 2]", "together = true\nseeds = [0, 9007199254740992]"), ["seeds", "below 2^53"]),
        (("[settings.rql]", '[settings."../rql"]'), ["../rql", "folder"]),
        (('collect = { task = "robosuite:Lift", episodes = 3 }', ""), ["tasks.lift", "dataset", "collect"]),
        (("[tasks.lift]", "[tasks.lift"), ["not TOML"]),
        (("candidates = 8", "candidates = 0"), ["settings.guided", "candidates = 0", "1 to"]),
        (("candidates = 8", "candidates = 1000"), ["settings.guided", "candidates = 1000", "1 to"]),
    ],
)
def test_a_wrong_sweep_file_is_refused_in_one_sentence(
    tmp_path: Path, change: tuple[str, str], words: list[str]
) -> None:
    with pytest.raises(UserError) as refused:
        plan_of(tmp_path, SWEEP.replace(*change))
    for word in words:
        assert word in str(refused.value)


def test_a_setting_or_preset_that_does_not_exist_is_refused_before_anything_runs(tmp_path: Path) -> None:
    file = tmp_path / "sweep.toml"
    file.write_text(SWEEP.replace("rql.policy_value_weight", "rql.policy_value_wait"))
    assert_refused(
        cli("sweep", file, "--output", tmp_path / "out"),
        "policy_value_wait",
        "did you mean policy_value_weight",
    )
    file.write_text(SWEEP.replace("robosuite-lift", "robosuite-lifd"))
    assert_refused(cli("sweep", file, "--output", tmp_path / "out"), "robosuite-lifd", "robosuite-lift")
    file.write_text(SWEEP.replace('play = "robosuite:Lift"', 'play = "robosuite:Lifd"'))
    assert_refused(cli("sweep", file, "--output", tmp_path / "out"), "no task 'Lifd'", "Lift")
    assert_refused(cli("sweep", tmp_path / "none.toml"), "there is no sweep file")
    assert not (tmp_path / "out").exists()


def test_a_dry_run_says_what_is_to_do_and_does_nothing(tmp_path: Path) -> None:
    result = cli("sweep", ROOT / "benchmarks" / "table.toml", "--output", tmp_path / "out", "--dry-run")
    assert result.exit_code == 0, result.output
    assert "to do  train" in result.output
    assert not (tmp_path / "out").exists()


def test_the_table_has_intervals_over_seeds_and_says_what_is_missing(tmp_path: Path) -> None:
    plan, sweep = plan_of(tmp_path), load_sweep(tmp_path / "sweep.toml")
    for cell, successes in enumerate([(True, True), (True, False), (False, False)]):
        play(plan, tmp_path, cell, successes)
    play(plan, tmp_path, 3, (False, True))
    rows = write_tables(sweep, plan, tmp_path)
    assert [row.setting for row in rows] == ["rql", "guided"]
    # Student's t with two degrees of freedom: 0.5 +- 4.3027 * 0.5 / sqrt(3), cut to [0, 1].
    assert rows[0].mean == 0.5
    assert rows[0].interval == (0.0, 1.0)
    assert rows[1].interval is None, "one seed says nothing about seeds"
    text = (tmp_path / "results.md").read_text()
    assert "Partial: 4 of 9 cells" in text
    assert "guided (partial: 1 of 3 seeds)" in text
    assert "| lift | guided | -50.0 points |" in text
    records = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [(r["setting"], r["seed"]) for r in records] == [("rql", 0), ("rql", 1), ("rql", 2), ("guided", 0)]
    with (tmp_path / "results.csv").open() as stream:
        found = list(csv.DictReader(stream))
    assert (found[0]["mean"], found[0]["successes"], found[1]["t_low"]) == ("0.5", "3", "")


def test_a_whole_table_is_not_called_partial(tmp_path: Path) -> None:
    plan, sweep = plan_of(tmp_path), load_sweep(tmp_path / "sweep.toml")
    for cell in range(len(plan.cells)):
        play(plan, tmp_path, cell, (True, False))
    write_tables(sweep, plan, tmp_path)
    assert "artial" not in (tmp_path / "results.md").read_text()


def test_a_damaged_result_is_named(tmp_path: Path) -> None:
    job = plan_of(tmp_path).jobs[0]
    (job.write(tmp_path) / RESULT).write_text("{")
    with pytest.raises(UserError, match=r"result\.json is damaged"):
        job.result(tmp_path)


@pytest.mark.parametrize("text", ["{}", "[]", "null", '{"result": 3}'])
def test_a_result_that_holds_none_is_damaged_too(text: str, tmp_path: Path) -> None:
    job = plan_of(tmp_path).jobs[0]
    (job.write(tmp_path) / RESULT).write_text(text)
    with pytest.raises(UserError, match=r"result\.json is damaged"):
        job.result(tmp_path)


def test_episodes_that_are_missing_or_cut_are_named(tmp_path: Path) -> None:
    plan, sweep = plan_of(tmp_path), load_sweep(tmp_path / "sweep.toml")
    play(plan, tmp_path, 0, (True, False))
    file = plan.cells[0].evaluate.folder(tmp_path) / "episodes.jsonl"
    file.write_text(file.read_text()[:-5])
    with pytest.raises(UserError, match=r"episodes\.jsonl is missing or damaged"):
        write_tables(sweep, plan, tmp_path)
    file.unlink()
    with pytest.raises(UserError, match=r"episodes\.jsonl is missing or damaged"):
        write_tables(sweep, plan, tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (
            "episodes = 3 }",
            'episodes = 3, options = ["--seed", "4"] }',
            "tasks.*collect.options has --seed, which the sweep sets itself",
        ),
        ("episodes = 3 }", "episodes = 0 }", "collect needs at least one episode"),
        ('task = "robosuite:Lift"', 'task = "robosuite:Lft"', "did you mean Lift"),
        (
            "episodes = 3 }",
            'episodes = 3 }\noptions = ["--horizont", "9"]',
            "options: No such option '--horizont'",
        ),
        (
            "episodes = 3 }",
            'episodes = 3 }\nread = ["--mapp", "observation.cube_pos="]',
            "read: No such option '--mapp'",
        ),
        (
            "episodes = 3 }",
            'episodes = 3 }\nread = ["--resume"]',
            "read has --resume, which the sweep sets itself",
        ),
        (
            "episodes = 3 }",
            'episodes = 3 }\noptions = ["--episodes", "9"]',
            "has --episodes, which the sweep sets itself",
        ),
        (
            "episodes = 3 }",
            "episodes = 3 }\nset = { seed = 7 }",
            "seed, which the sweep sets itself: write seeds",
        ),
        ("episodes = 3 }", "episodes = 3 }\nset = { updates = 2026-01-01 }", "no training setting"),
    ],
)
def test_what_would_fail_hours_later_is_refused_at_once(
    old: str, new: str, words: str, tmp_path: Path
) -> None:
    assert old in SWEEP
    file = tmp_path / "sweep.toml"
    file.write_text(SWEEP.replace(old, new))
    result = cli("sweep", file, "--dry-run", "--output", tmp_path / "out")
    assert_refused(result)
    assert re.search(words, result.output), result.output


def test_a_label_with_a_bar_stays_in_its_column(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, SWEEP.replace('label = "RQL"', 'label = "a | b"'))
    play(plan, tmp_path, 0, (True, False))
    write_tables(load_sweep(tmp_path / "sweep.toml"), plan, tmp_path)
    assert "| a \\| b (partial" in (tmp_path / "results.md").read_text()


def test_data_behind_a_link_counts_by_its_content(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "rows").write_text(name)
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "data").symlink_to(tmp_path / "one")
    first = content_address(tmp_path / "set")
    (tmp_path / "set" / "data").unlink()
    (tmp_path / "set" / "data").symlink_to(tmp_path / "two")
    assert content_address(tmp_path / "set") != first


def test_the_name_of_a_job_is_not_part_of_its_address(tmp_path: Path) -> None:
    job = plan_of(tmp_path).jobs[0]
    assert dataclasses.replace(job, name="another").key == job.key


def test_the_interval_of_a_mean_is_students() -> None:
    # 0.975 quantiles of t from Abramowitz and Stegun, table 26.10.
    for freedom, quantile in ((1, 12.706), (2, 4.303), (3, 3.182), (10, 2.228), (30, 2.042), (120, 1.980)):
        values = [0.0, 1.0] * (freedom // 2) + [0.0] * (freedom % 2) + [0.5]
        n = len(values)
        assert n == freedom + 1
        half = quantile * statistics.stdev(values) / n**0.5
        mean = statistics.fmean(values)
        assert mean_interval(values) == pytest.approx((mean - half, mean + half), abs=2e-4)
    assert mean_interval([0.5]) is None
