"""The demo's page: what it made, gathered for `sim.evaluation.comparison_page`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rql_deploy.policy import DEFAULT_CANDIDATES
from rql_deploy.progress import format_duration

from .evaluation_report import learning_curves
from .inspect_bundle import inspect_bundle

if TYPE_CHECKING:
    from rql_deploy.sim.evaluation.episodes import Score

SERIES = {"demonstrator": 3, "bc": 1, "bc_guided": 1, "rql": 0, "rql_guided": 0}
"""Colour of a row: grey for the demonstrator, one for cloning and one for RQL."""
RUNS = {"RQL": "rql", "cloning": "bc"}
"""Training runs by their name in a legend, in the order of the page's series colours."""
ENDPOINT = "tcp://127.0.0.1:5555"
Difference = tuple[float, float, float]
"""Mean, and the lower and upper end of its 95 % interval."""


@dataclass(frozen=True)
class DemoResult:
    """What the demo measured. Everything it made is in `output`."""

    output: Path
    seed: int
    scores: dict[str, Score]
    """By key of `ROWS`."""
    differences: dict[str, dict[str, Difference]]
    """By key of the other row: success and steps of `BEST` minus the other's, pair by pair."""
    seconds: float

    @property
    def page(self) -> Path:
        """The page that shows the result."""
        return self.output / "report.html"


def next_commands(output: Path, task: str) -> list[tuple[str, str]]:
    """What to type after the demo, and what it does."""
    return [
        (f"rql-deploy inspect {output}/bundle --verify", "check the bundle against its certificate here"),
        (f"rql-deploy serve {output}/bundle --bind {ENDPOINT}", "serve it"),
        (f"rql-deploy run {task} --connect {ENDPOINT}", "drive the simulated arm, in another terminal"),
        (f"tensorboard --logdir {output}", "every figure that training logged"),
    ]


def write_demo_page(result: DemoResult, names: Mapping[str, str]) -> None:
    """Write `result.page`; `names` are the rows' by key."""
    from rql_deploy.sim.evaluation.comparison_page import Comparison, Row, write_comparison

    output, scores = result.output, result.scores
    report = inspect_bundle(output / "bundle")
    contract = report.bundle.contract
    films = {key: output / "films" / f"{key}.mp4" for key in names}
    rows = [
        Row(
            name,
            scores[key],
            SERIES[key],
            key.endswith("guided"),
            films[key] if films[key].is_file() else None,
        )
        for key, name in names.items()
    ]
    size = sum(f.stat().st_size for f in report.bundle.path.iterdir())
    facts = {
        "largest difference from torch": f"{report.max_error:.1e}",
        "value members": str(contract.value_members),
        "size": f"{size / 1e6:.1f} MB",
    }
    episodes = len(rows[-1].score.results)
    comparison = Comparison(
        title=f"{contract.plant.task}: {len(rows)} ways to act, the same {episodes} episodes",
        introduction=_introduction(output, episodes, contract.provenance.updates, result),
        rows=rows,
        differences={names[key]: difference for key, difference in result.differences.items()},
        filmed_seed=rows[-1].score.results[0].seed,
        losses=_losses(output),
        contract=contract,
        bundle=output / "bundle",
        facts=facts,
        commands=next_commands(output, contract.plant.task),
    )
    write_comparison(result.page, comparison)


def _introduction(output: Path, episodes: int, updates: int, result: DemoResult) -> str:
    data = json.loads((output / "collect.json").read_text())
    return (
        f"A scripted, noisy demonstrator was recorded for {data['episodes']} episodes, "
        f"{data['success']:.0%} of them successful. Behaviour cloning and RQL were trained on them for "
        f"{updates:,} updates each, exported to ONNX and served. Each policy is asked over a socket for one "
        f"chunk, or for the best of {DEFAULT_CANDIDATES} by the value V. Base seed {result.seed}; it took "
        f"{format_duration(result.seconds)}. {episodes} episodes show, they do not prove: "
        "benchmarks/RESULTS.md has the claim."
    )


def _losses(output: Path) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """By loss, the curve of each training run that logged it."""
    found: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for name, folder in RUNS.items():
        for label, points in (learning_curves(output / folder).losses or {}).items():
            found.setdefault(label, {})[name] = list(points)
    return found
