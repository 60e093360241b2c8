"""The whole pipeline on robosuite Lift: the commands a user would type, and one evaluation of all rows."""

from __future__ import annotations

import functools
import json
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rql_deploy.errors import UserError
from rql_deploy.folders import LOCK, exclusive_lock
from rql_deploy.policy import DEFAULT_CANDIDATES
from rql_deploy.progress import NoProgress, Progress, Stage

from ..policies import check_episode, lockstep_policy, remote_policy, with_pictures
from ..processes import DEFAULT_WORKERS
from .commands import beside, run_command, served
from .page import write_demo_page
from .result import BEST, NUMBERS, ROWS, TASK, DemoPlan, DemoResult, paired

if TYPE_CHECKING:
    from rql_deploy.sim.evaluation.episodes import EvaluatedPolicy, Evaluation, Score

NOISE = (0.0, 2.2)
MARKER = ".rql-deploy-demo"
DEFAULT_HORIZON = 120
SETTINGS = {"robot": "Panda", "controller": "OSC_POSE", "control_rate": 20, "horizon": DEFAULT_HORIZON}

OnStage = Callable[[str], None]
"""Called with a sentence when a stage begins."""


def run_demo(
    output: Path,
    seed: int = 0,
    plan: DemoPlan = NUMBERS,
    *,
    on_stage: OnStage | None = None,
    progress: Progress | None = None,
) -> DemoResult:
    """Collect, train, export, serve and evaluate on robosuite Lift; writes `summary.json` and a page.

    Args:
        output: the folder for everything; an earlier demo there is replaced.
        seed: base seed of collection, training and evaluation.
        plan: `demo_result.NUMBERS`, or `PICTURES` for policies that look through cameras.
        on_stage: called with a sentence when a stage begins.

    Raises UserError where the folder holds other files, or when a stage fails.
    """
    start = time.monotonic()
    progress, on_stage = progress or NoProgress(), on_stage or (lambda _: None)
    if plan.cameras:
        require_rendering_in_workers()
    require_own(output)
    with exclusive_lock(output, f"another demo works in {output}"):
        prepare(output)
        collect_and_train(output, seed, plan=plan, on_stage=on_stage, progress=progress)
        scores = evaluate(output, seed, plan.evaluation_episodes, on_stage=on_stage, progress=progress)
        return report(output, scores, seed, start, plan)


def require_rendering_in_workers() -> None:
    """Raise RenderingError here, before minutes of work, where cameras cannot be rendered."""
    from rql_deploy.sim.rendering import require_rendering

    require_rendering()


def require_own(output: Path) -> None:
    """Raise UserError where the folder holds what no demo made."""
    if output.exists() and not output.is_dir():
        raise UserError(f"{output} is a file: pass a folder as --output")
    others = {entry.name for entry in output.iterdir()} - {LOCK} if output.exists() else set()
    if others and MARKER not in others:
        raise UserError(f"{output} holds files that no demo made: pass another --output")


def prepare(output: Path) -> None:
    """An empty demo folder; only what an earlier demo made is removed."""
    require_own(output)
    output.mkdir(parents=True, exist_ok=True)
    for entry in output.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif entry.name != LOCK:
            entry.unlink()
    (output / MARKER).write_text("Made by `rql-deploy demo`, which may replace this folder.\n")


def collect_and_train(
    output: Path,
    seed: int,
    updates: int | None = None,
    *,
    plan: DemoPlan = NUMBERS,
    on_stage: OnStage = lambda _: None,
    progress: Progress | None = None,
) -> None:
    """Data set, two training runs side by side on one core each, two bundles."""
    progress, updates = progress or NoProgress(), updates or plan.updates
    on_stage(f"1/4 collect {plan.episodes} demonstrations of mixed quality")
    run_command(
        *("collect", TASK, "--episodes", str(plan.episodes), "--output", str(output / "dataset")),
        *("--noise", f"{NOISE[0]:g}:{NOISE[1]:g}", "--seed", str(seed), "--json"),
        *(word for camera in plan.cameras for word in ("--camera", camera)),
        stdout=output / "collect.json",
    )
    found = json.loads((output / "collect.json").read_text())
    progress.note(f"{found['episodes']} episodes, {found['rows']:,} rows, {found['success']:.0%} successful")

    on_stage(
        f"2/4 train RQL and behaviour cloning, {updates:,} updates each, side by side "
        f"(cloning's progress is in {output / 'bc.log'})"
    )
    left_out = (word for name in plan.hidden for word in ("--map", f"observation.{name}="))
    train = ("train", "--dataset", str(output / "dataset"), "--preset", plan.preset, *left_out)
    settings = ("--updates", str(updates), "--seed", str(seed), "--set", "threads=1", "--json")
    cloning = (*train, "--output", str(output / "bc"), *settings, "--set", "rql.policy_value_weight=0")
    with beside(*cloning, log=output / "bc.log"):
        run_command(*train, "--output", str(output / "rql"), *settings, stdout=output / "rql.json")

    on_stage("3/4 export both to ONNX bundles, with certificates")
    export = ("export", str(output / "bc"), "--output", str(output / "bundle_bc"), "--json")
    with beside(*export, log=output / "export_bc.log"):
        bundle = str(output / "bundle")
        run_command(
            "export", str(output / "rql"), "--output", bundle, "--json", stdout=output / "export.json"
        )
    found = json.loads((output / "export.json").read_text())
    progress.note(
        f"{found['bundle']}: contract {found['contract_id'][:12]}, "
        f"largest difference from torch {found['max_error']:.1e}"
    )


def evaluate(
    output: Path,
    seed: int,
    episodes: int = NUMBERS.evaluation_episodes,
    workers: int = DEFAULT_WORKERS,
    *,
    films: bool = True,
    on_stage: OnStage = lambda _: None,
    progress: Progress | None = None,
) -> dict[str, Score]:
    """Every row of the table on the same seeds; the policies are asked over the socket.

    A row already in `output` is not played again. `films` adds one film per row, in `output`/films.
    """
    from rql_deploy.bundle.bundle import Bundle
    from rql_deploy.seeding import episode_seed
    from rql_deploy.sim.evaluation.episodes import Evaluation
    from rql_deploy.sim.plants.tasks import Task

    progress = progress or NoProgress()
    on_stage(
        f"4/4 serve both bundles, and evaluate over the socket: {episodes} episodes with fresh seeds, "
        "the same for every row"
    )
    seeds = [episode_seed(seed, index, "evaluate") for index in range(episodes)]
    task = Task(TASK, with_pictures(SETTINGS, Bundle.open(output / "bundle").contract.plant.images))
    with (
        served(output / "bundle_bc") as cloning,
        served(output / "bundle") as rql,
        Evaluation(task, workers) as evaluation,
    ):
        endpoints = {key: cloning if key.startswith("bc") else rql for key in ROWS}
        scores = {key: play_row(evaluation, key, seeds, endpoints[key], output, progress) for key in ROWS}
        if films:
            film_rows(evaluation, scores, seeds[0], endpoints, output, progress)
    return scores


def candidates_of(key: str) -> int:
    """Chunks per decision in one row."""
    return DEFAULT_CANDIDATES if key.endswith("guided") else 1


def policy_of(key: str, endpoint: str) -> EvaluatedPolicy:
    """The policy of one row, at its server."""
    return lockstep_policy(key, functools.partial(remote_policy, endpoint), candidates_of(key))


def play_row(
    evaluation: Evaluation, key: str, seeds: list[int], endpoint: str, output: Path, progress: Progress
) -> Score:
    """One row of the table; its episodes are kept in `episodes_KEY.jsonl`."""
    from rql_deploy.plant import EpisodeResult
    from rql_deploy.sim.evaluation.episodes import write_episodes

    file = output / f"episodes_{key}.jsonl"
    if file.exists():
        results = [EpisodeResult(**json.loads(line)) for line in file.read_text().splitlines()]
        if {result.seed for result in results} == set(seeds):
            return evaluation.score(key, results, seeds)
    if key == "demonstrator":
        stream = evaluation.play_demonstrator(seeds, NOISE)
    else:
        stream = evaluation.play(policy_of(key, endpoint), seeds)
    stage = Stage(progress, f"{ROWS[key]:32}", len(seeds), "episodes")
    results = []
    for result in stream:
        check_episode(result, progress)
        results.append(result)
        stage.update(len(results))
    stage.finish(len(results))
    score = evaluation.score(key, results, seeds)
    write_episodes(file, score.results)
    return score


def film_rows(
    evaluation: Evaluation,
    scores: dict[str, Score],
    seed: int,
    endpoints: dict[str, str],
    output: Path,
    progress: Progress,
) -> None:
    """One film per row, of the same seed and equally long, in `output`/films.

    A machine that cannot render gets none, and a note that says why: the scores stand.
    """
    from rql_deploy.bundle.bundle import Bundle
    from rql_deploy.sim.evaluation.episodes import EvaluatedPolicy
    from rql_deploy.sim.evaluation.films import THUMBNAIL
    from rql_deploy.sim.processes import result_of

    from ..policies import run_annotated_episode

    folder = output / "films"
    folder.mkdir(exist_ok=True)
    longest = max(r.steps for score in scores.values() for r in score.results if r.seed == seed)
    options = {"format": THUMBNAIL, "hold_until": longest}
    stage = Stage(progress, "film the first seed", len(scores), "films")
    contract = Bundle.open(output / "bundle").contract
    films: list[Future[Any]] = [
        evaluation.film_demonstrator(contract, seed, NOISE, folder / "demonstrator.mp4", **options)
    ]
    for key in list(ROWS)[1:]:
        policy = policy_of(key, endpoints[key])
        playing = functools.partial(run_annotated_episode, candidates=candidates_of(key))
        filmed = EvaluatedPolicy(policy.key, policy.make_policy, playing)
        films.append(evaluation.film(filmed, [seed], folder / f"{key}.mp4", **options))
    try:
        for done, film in enumerate(films, 1):
            result_of(film)
            stage.update(done)
        stage.finish(len(films))
    except UserError as error:
        progress.note(f"the page will have no films: {error}")


def report(
    output: Path, scores: dict[str, Score], seed: int, start: float, plan: DemoPlan = NUMBERS
) -> DemoResult:
    """Write `summary.json`, `details.json` and the page; `start` is `time.monotonic()` of the beginning."""
    differences = {key: paired(scores[BEST], scores[key]) for key in ROWS if key != BEST}
    result = DemoResult(output, seed, scores, differences, time.monotonic() - start, plan)
    summary = {key: score.summary() for key, score in scores.items()}
    (output / "summary.json").write_text(json.dumps(summary, indent=1))
    details = {"seed": seed, "seconds": result.seconds, "paired_differences": differences}
    (output / "details.json").write_text(json.dumps(details, indent=1))
    write_demo_page(result)
    return result
