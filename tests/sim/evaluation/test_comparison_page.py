"""The page of several policies: one file, every row in every part, and what a browser makes of it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rql_deploy.bundle.bundle import Bundle
from rql_deploy.plant import EpisodeResult
from rql_deploy.sim.evaluation.comparison_page import Comparison, Row, render, write_comparison
from rql_deploy.sim.evaluation.episodes import Score
from rql_deploy.sim.evaluation.interval_chart import Estimate, IntervalChart
from tests.helpers.commands import LIFT_BUNDLE
from tests.helpers.pages import Page, assert_shown_offline, write_film

NAMES = ("demonstrator (scripted, noisy)", "cloning", "cloning + <V>", "RQL", "RQL + best of 4 by V")
HEADINGS = [
    "Success and length of the episodes",
    "The same start, side by side",
    "RQL + best of 4 by V, compared episode by episode",
    "Learning curves",
    "Latency of a decision",
    "The contract of demo/bundle",
    "What to type next",
]


def score(number: int, rate: float) -> Score:
    rng = np.random.default_rng(number)
    results = []
    for seed in range(30):
        success = bool(rng.random() < rate)
        times = tuple(rng.gamma(4.0, 0.001, 9).tolist()) if number else ()
        steps = int(rng.integers(20, 60)) if success else 120
        results.append(EpisodeResult(seed, success, steps, round_trip=times, inference=times))
    return Score(str(number), tuple(results), 120)


@pytest.fixture
def comparison(tmp_path: Path) -> Comparison:
    film = write_film(tmp_path / "film.mp4")
    rows = [
        Row(name, score(i, 0.5 + 0.1 * i), (3, 1, 1, 0, 0)[i], i in (2, 4), film)
        for i, name in enumerate(NAMES)
    ]
    curve = [(float(step), 1.0 / (step + 1)) for step in range(0, 5000, 100)]
    return Comparison(
        title="robosuite:Lift",
        introduction="How it was made.",
        rows=rows,
        differences={n: {"success": (0.1, -0.1, 0.3), "steps": (-20.0, -30.0, -10.0)} for n in NAMES[:-1]},
        filmed_seed=0,
        losses={"loss of V": {"RQL": curve, "cloning": curve}},
        contract=Bundle.open(LIFT_BUNDLE).contract,
        bundle=Path("demo/bundle"),
        facts={"largest difference from torch": "1.2e-06"},
        commands=[("rql-deploy serve demo/bundle", "serve it")],
    )


def test_every_row_is_in_every_part_and_nothing_is_asked_for_outside(comparison: Comparison) -> None:
    text = render(comparison)
    page = Page(text)
    assert page.open == []
    assert page.headings == HEADINGS
    assert {address.partition(",")[0] for address in page.addresses} == {"data:video/mp4;base64"}
    assert text.count("<video") == 5
    assert "<script" not in text and "url(" not in text and "default-src 'none'" in text
    assert "cloning + <V>" not in text and "cloning + &lt;V&gt;" in text
    # A square per episode and row, and one estimate per row, twice; four differences, twice.
    assert text.count('<i class="') == 5 * 30
    assert text.count('r="5"') == 2 * 5 + 2 * 4
    contract = comparison.contract
    assert contract.contract_id in text
    assert all(field.name in text for field in contract.plant.fields)


def test_what_there_is_none_of_is_left_out(comparison: Comparison) -> None:
    rows = [replace(row, film=None) for row in comparison.rows[:1]]
    headings = Page(render(replace(comparison, rows=rows, differences={}, losses={}))).headings
    assert headings == [HEADINGS[0], *HEADINGS[5:]]


def test_intervals_lie_where_their_numbers_are() -> None:
    rows = [Estimate("a", 0.5, 0.25, 0.75, 0), Estimate("b", 1.0, 1.0, 1.0, 1, hollow=True)]
    text = str(IntervalChart(rows, x_label="success", span=(0.0, 1.0)))
    low, high = map(float, re.findall(r'thick" x1="([\d.]+)" x2="([\d.]+)"', text)[0])
    middle, right = (float(x) for x in re.findall(r'<circle [^>]*cx="([\d.]+)"', text))
    assert low < middle < high < right
    assert middle == pytest.approx((low + high) / 2, abs=0.1)
    same = IntervalChart([Estimate("a", 0.0, 0.0, 0.0, 0)], x_label="x", zero=True)
    assert 'class="rule"' in str(same)


@pytest.mark.slow
def test_chromium_shows_it_without_a_network_in_light_and_dark_and_on_a_phone(
    comparison: Comparison, tmp_path: Path
) -> None:
    page = tmp_path / "report.html"
    write_comparison(page, comparison)
    assert_shown_offline(page)
