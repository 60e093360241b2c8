"""The report: one file that asks nothing of anybody else."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from rql_deploy.sim.evaluation.annotations import AnnotatedEpisode
from rql_deploy.sim.evaluation.charts import Chart, histogram, number, ticks
from rql_deploy.sim.evaluation.episodes import Score
from rql_deploy.sim.evaluation.report import LearningCurves, Subject, render, write_report
from tests.helpers.pages import Page, assert_shown_offline, write_film

HEADINGS = [
    "Success",
    "Video",
    "Latency and deadline use",
    "V over refinement steps",
    "Calibration of V",
    "Learning curves",
]


def episode(seed: int) -> AnnotatedEpisode:
    rng = np.random.default_rng(seed)
    values = tuple(rng.normal(-20, 5, 4).tolist())
    return AnnotatedEpisode(
        seed,
        seed % 3 > 0,
        20 + seed if seed % 3 else 60,
        round_trip=tuple(rng.uniform(0.001, 0.06, 4).tolist()),
        inference=tuple(rng.uniform(0.001, 0.01, 4).tolist()),
        decided_at=(0, 5, 10, 15),
        values=values,
        returns=values,
        returns_endless=values,
        refinement_values=tuple(tuple(rng.normal(-20, 5, 10).tolist()) for _ in range(4)),
    )


SUBJECT = Subject('robosuite:<Lift> & "more"', "runs/bundle", 20.0, "the best of 4 chunks by V", "today")
SCORE = Score("onnx", tuple(episode(seed) for seed in range(12)), 60)
CURVES = LearningCurves(
    [(1000, 0.4, 0.2, 0.6), (2000, 0.8, 0.6, 0.9)], {"loss of V": [(i, 1.0 / (i + 1)) for i in range(50)]}
)


@pytest.fixture
def film(tmp_path: Path) -> Path:
    return write_film(tmp_path / "film.mp4")


def test_the_page_holds_every_section_and_asks_for_nothing_outside(film: Path) -> None:
    text = render(SUBJECT, SCORE, CURVES, film)
    page = Page(text)
    assert page.open == []
    assert page.headings == HEADINGS
    assert [address.partition(",")[0] for address in page.addresses] == ["data:video/mp4;base64"]
    assert "@import" not in text
    assert "url(" not in text
    assert "<script" not in text
    assert "default-src 'none'" in text
    assert "<Lift>" not in text
    assert "8 of 12, 95 % interval 39% to 86%" in text
    assert text.count("<svg") == 10


def test_what_was_not_measured_is_left_out() -> None:
    bare = tuple(AnnotatedEpisode(seed, True, 20) for seed in range(3))
    assert Page(render(SUBJECT, Score("demonstrator", bare, 60))).headings == ["Success"]


def test_one_decision_and_equal_values_still_make_a_page() -> None:
    one = AnnotatedEpisode(
        0,
        True,
        1,
        round_trip=(0.01,),
        inference=(0.01,),
        decided_at=(0,),
        values=(0.0,),
        returns=(0.0,),
        returns_endless=(0.0,),
    )
    assert Page(render(SUBJECT, Score("onnx", (one,), 60))).open == []


def test_ticks_are_round_and_inside() -> None:
    assert ticks((0.0, 1.0)) == pytest.approx([0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert ticks((-48.0, 3.0)) == pytest.approx([-40.0, -20.0, 0.0])
    assert [number(v) for v in (12000.0, 0.1 + 0.2, -5.0)] == ["12k", "0.3", "-5"]


def test_marks_lie_where_their_values_are() -> None:
    chart = Chart((0.0, 10.0), (0.0, 1.0))
    chart.points([0.0, 10.0], [0.0, 1.0])
    (x0, y0), (x1, y1) = (
        (float(a), float(b)) for a, b in re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', str(chart))
    )
    assert x0 < x1
    assert y0 > y1
    bars = re.findall(
        r'<rect [^>]*height="([\d.]+)"', str(histogram([1.0] * 3 + [2.0], x_label="x", y_label="y", bins=2))
    )
    assert float(bars[0]) == pytest.approx(3 * float(bars[1]), rel=0.02)


@pytest.mark.slow
def test_chromium_shows_it_without_a_network_in_light_and_dark_and_on_a_phone(
    tmp_path: Path, film: Path
) -> None:
    page = tmp_path / "report.html"
    write_report(page, SUBJECT, SCORE, CURVES, film)
    assert_shown_offline(page)
