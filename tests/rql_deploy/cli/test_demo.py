"""The demo, which is the command line's verbs one after the other: small here, in full by `make demo`."""

import dataclasses
import json
import re
import time
from pathlib import Path

import pytest

from rql_deploy.cli.demo import show
from rql_deploy.folders import LOCK, exclusive_lock
from rql_deploy.workflows.demo import pipeline as demo
from rql_deploy.workflows.demo.result import NUMBERS, PICTURES
from tests.helpers.commands import assert_refused, cli, run_cli


def test_the_quick_demo_serves_the_shipped_bundle_and_lifts(tmp_path: Path) -> None:
    result = run_cli("demo", "--quick", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert len(re.findall(r"^episode \d: ", result.stdout, re.MULTILINE)) == 3
    match = re.search(r"(\d) of 3 succeeded", result.stdout)
    assert match
    # Chance does not lift a cube: one of three already shows that the shipped policy arrives there.
    assert int(match[1]) >= 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_demo_trains_both_policies_and_scores_every_row_on_the_same_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    # Untrained policies play every episode and film to its end.
    monkeypatch.setitem(demo.SETTINGS, "horizon", 40)
    output = tmp_path / "demo"
    demo.prepare(output)
    demo.collect_and_train(output, seed=5, updates=20, plan=dataclasses.replace(NUMBERS, episodes=4))
    scores = demo.evaluate(output, seed=5, episodes=2)
    show(demo.report(output, scores, seed=5, start=time.monotonic() - 61))
    summary = json.loads((output / "summary.json").read_text())
    assert list(summary) == ["demonstrator", "bc", "bc_guided", "rql", "rql_guided"]
    for row in summary.values():
        assert 0 <= row["success"] <= 1
        assert row["episodes"] == 2
        assert row["ci"][0] <= row["success"] <= row["ci"][1]
        assert 0 < row["steps"] <= demo.DEFAULT_HORIZON
    assert len({tuple(r.seed for r in score.results) for score in scores.values()}) == 1
    assert summary["rql_guided"]["round_trip_ms"]["p50"] > summary["rql_guided"]["inference_ms"]["p50"] > 0
    configs = {name: json.loads((output / name / "config.json").read_text())["rql"] for name in ("bc", "rql")}
    assert configs["bc"] == {**configs["rql"], "policy_value_weight": 0.0}
    printed = capfd.readouterr().out
    assert "rql-deploy serve" in printed
    assert str(output / "report.html") in printed.splitlines()[-1]
    films = sorted(file.stem for file in (output / "films").iterdir())
    assert films == sorted(demo.ROWS)
    assert len({frames(output / "films" / f"{name}.mp4") for name in films}) == 1
    page = (output / "report.html").read_text()
    assert page.count("data:video/mp4;base64,") == 5
    for text in (*demo.ROWS.values(), "Learning curves", "Latency of a decision", "rql-deploy serve"):
        assert text in page


@pytest.mark.slow
def test_the_demo_through_a_camera_trains_on_pictures_and_plays_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rql_deploy.bundle.bundle import Bundle

    plan = dataclasses.replace(PICTURES, episodes=3)
    monkeypatch.setitem(demo.SETTINGS, "horizon", 20)
    output = tmp_path / "demo"
    demo.prepare(output)
    demo.collect_and_train(output, seed=5, updates=2, plan=plan)
    plant = Bundle.open(output / "bundle").contract.plant
    assert [image.name for image in plant.images] == ["agentview_image"]
    assert not [field.name for field in plant.fields if "cube" in field.name]
    scores = demo.evaluate(output, seed=5, episodes=1, workers=1)
    result = demo.report(output, scores, 5, time.monotonic(), plan)
    page = result.page.read_text()
    assert "not told where the cube is" in page and page.count("data:video/mp4;base64,") == 5


def frames(film: Path) -> int:
    import av

    with av.open(str(film)) as container:
        return sum(1 for _ in container.decode(video=0))


def test_a_folder_with_other_files_is_not_replaced_and_an_earlier_demo_is(tmp_path: Path) -> None:
    mine = tmp_path / "demo"
    mine.mkdir()
    (mine / "thesis.tex").write_text("mine")
    assert_refused(cli("demo", "--output", mine), "no demo made", "--output")
    assert (mine / "thesis.tex").exists()
    demo.prepare(tmp_path / "other")
    (tmp_path / "other" / "summary.json").write_text("{}")
    demo.prepare(tmp_path / "other")
    assert not (tmp_path / "other" / "summary.json").exists()


def test_a_demo_that_is_under_way_is_not_replaced_by_another(tmp_path: Path) -> None:
    output = tmp_path / "link"
    (tmp_path / "demo").mkdir()
    output.symlink_to(tmp_path / "demo")
    demo.prepare(output)
    (output / "dataset").mkdir()
    with exclusive_lock(output, "mine"):
        assert_refused(cli("demo", "--output", output), f"another demo works in {output}")
    assert (output / "dataset").is_dir()
    demo.prepare(output)
    assert output.is_symlink() and {entry.name for entry in output.iterdir()} == {demo.MARKER, LOCK}
    (tmp_path / "file").touch()
    assert_refused(cli("demo", "--output", tmp_path / "file"), "is a file")
