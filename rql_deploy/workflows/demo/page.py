"""The demo's page: what it made, gathered for `sim.evaluation.comparison_page`."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from rql_deploy.policy import DEFAULT_CANDIDATES
from rql_deploy.progress import format_duration

from ..evaluation_report import learning_curves
from ..inspect_bundle import inspect_bundle
from .result import ROWS, DemoResult

SERIES = {"demonstrator": 3, "bc": 1, "bc_guided": 1, "rql": 0, "rql_guided": 0}
"""Colour of a row: grey for the demonstrator, one for cloning and one for RQL."""
RUNS = {"RQL": "rql", "cloning": "bc"}
"""Training runs by their name in a legend, in the order of the page's series colours."""
ENDPOINT = "tcp://127.0.0.1:5555"


def next_commands(output: Path, task: str) -> list[tuple[list[str], str]]:
    """What to type after the demo, in words, and what it does."""
    bundle = str(output / "bundle")
    return [
        (["rql-deploy", "inspect", bundle, "--verify"], "check the bundle against its certificate here"),
        (["rql-deploy", "serve", bundle, "--bind", ENDPOINT], "serve it"),
        (["rql-deploy", "run", task, "--connect", ENDPOINT], "drive the simulated arm, in another terminal"),
        (["tensorboard", "--logdir", str(output)], "every figure that training logged"),
    ]


def write_demo_page(result: DemoResult) -> None:
    """Write `result.page`."""
    from rql_deploy.sim.evaluation.comparison_page import Comparison, Row, write_comparison

    output, scores = result.output, result.scores
    report = inspect_bundle(output / "bundle")
    contract = report.bundle.contract
    films = {key: output / "films" / f"{key}.mp4" for key in ROWS}
    rows = [
        Row(
            name,
            scores[key],
            SERIES[key],
            key.endswith("guided"),
            films[key] if films[key].is_file() else None,
        )
        for key, name in ROWS.items()
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
        differences={ROWS[key]: difference for key, difference in result.differences.items()},
        filmed_seed=rows[-1].score.results[0].seed,
        losses=_losses(output),
        contract=contract,
        bundle=output / "bundle",
        facts=facts,
        commands=[(shlex.join(words), text) for words, text in next_commands(output, contract.plant.task)],
    )
    write_comparison(result.page, comparison)


def _introduction(output: Path, episodes: int, updates: int, result: DemoResult) -> str:
    data = json.loads((output / "collect.json").read_text())
    sight = f"{result.plan.sight} " if result.plan.sight else ""
    return (
        f"A scripted, noisy demonstrator was recorded for {data['episodes']} episodes, "
        f"{data['success']:.0%} of them successful. Behaviour cloning and RQL were trained on them for "
        f"{updates:,} updates each, exported to ONNX and served. Each policy is asked over a socket for one "
        f"chunk, or for the best of {DEFAULT_CANDIDATES} by the value V. {sight}"
        f"Base seed {result.seed}; it took "
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
