"""What choosing by V gains: success and steps by candidates, pruning and value members, for RQL and cloning.

    python benchmarks/value_guided.py [--study TASK RQL_RUN CLONING_RUN]... [--episodes 200]
                                      [--output runs/value_guided]

Every condition plays the same seeds, in blocks of ten seeds per condition, so that an interrupted benchmark
has complete rows; finished episodes are kept in the output folder and not played again. Without --study, RQL
and cloning are trained on robosuite Lift as `rql-deploy demo` does. --seconds stops it after that time,
--table only prints the results so far. Latencies are measured last, in this process, interleaved. Ends with
one JSON line.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rql_deploy.bundle.bundle import Bundle
from rql_deploy.cli import main
from rql_deploy.progress import ProgressLine, TerminalProgress
from rql_deploy.runtime.engine.onnx_policy import OnnxPolicy
from rql_deploy.seeding import episode_seed
from rql_deploy.sim.evaluation.annotations import AnnotatedEpisode
from rql_deploy.sim.evaluation.calibration import calibrate
from rql_deploy.sim.evaluation.episodes import EvaluatedPolicy, Evaluation, append_episode, read_episodes
from rql_deploy.sim.plants.tasks import Task
from rql_deploy.statistics import paired_difference, wilson_interval
from rql_deploy.train.checkpoints.checkpoint import load_checkpoint
from rql_deploy.workflows.demo import pipeline as demo
from rql_deploy.workflows.policies import check_episode, onnx_policy, run_annotated_episode

BLOCK = 10
POLICIES = {"rql": "RQL", "bc": "cloning"}


@dataclass(frozen=True)
class Condition:
    """One way of choosing."""

    candidates: int
    members: int
    prune: tuple[tuple[int, int], ...] = ()

    @property
    def name(self) -> str:
        schedule = "".join(f"_{k}to{keep}" for k, keep in self.prune)
        return f"n{self.candidates}_m{self.members}{schedule}"

    @property
    def label(self) -> str:
        if self.candidates == 1:
            return "1 candidate"
        text = f"best of {self.candidates}, {self.members} member{'s' if self.members > 1 else ''}"
        left, after = ("/".join(str(pair[i]) for pair in self.prune) for i in (1, 0))
        return f"{text}, {left} left after {after}" if self.prune else text


def conditions(members: int) -> list[Condition]:
    """Candidates with two members; then pruning of 16 and of 8; then the members of 8."""
    return [
        *(Condition(n, 2) for n in (1, 2, 4, 8, 16)),
        Condition(16, 2, ((5, 4),)),
        Condition(16, 2, ((2, 8), (5, 4), (8, 2))),
        Condition(8, 2, ((5, 2),)),
        *(Condition(8, m) for m in sorted({1, 5, members} - {2}) if m <= members),
    ]


def parameter_hash(checkpoint: Path) -> str:
    """Identifies a training: the first 12 characters of its parameter file's sha256."""
    with (checkpoint / "parameters.safetensors").open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]


@dataclass
class Study:
    """RQL and cloning on one task."""

    task: str
    runs: dict[str, Path]
    folder: Path
    limit: int | None = None
    """Steps after which an episode has failed, where not the task's own."""

    def __post_init__(self) -> None:
        checkpoints = {kind: load_checkpoint(run) for kind, run in self.runs.items()}
        self.trained = {kind: parameter_hash(checkpoint.path) for kind, checkpoint in checkpoints.items()}
        self.members = min(c.config.rql.K for c in checkpoints.values())
        # The settings that the data was made with.
        given = Task.of_plant(checkpoints["rql"].plant).settings
        self.work = Task(self.task, given if self.limit is None else {**given, "horizon": self.limit})
        self.horizon = self.work.horizon
        self.conditions = conditions(self.members)
        self.folder.mkdir(parents=True, exist_ok=True)
        for kind, run in self.runs.items():
            for members in sorted({c.members for c in self.conditions}):
                if not self.bundle(kind, members).exists():
                    arguments = [
                        "export",
                        str(run),
                        "--value-members",
                        str(members),
                        "--output",
                        str(self.bundle(kind, members)),
                    ]
                    with contextlib.redirect_stdout(sys.stderr):
                        main(arguments, standalone_mode=False)

    def bundle(self, kind: str, members: int) -> Path:
        """The checkpoint's parameters are in the name, so that another training is exported anew."""
        return self.folder / f"{kind}_m{members}_{self.trained[kind]}"

    def file(self, kind: str, condition: Condition) -> Path:
        """One condition's episode file; the contract in its name keeps other trainings' episodes apart."""
        contract = Bundle.open(self.bundle(kind, condition.members)).contract.contract_id
        limit = "" if self.limit is None else f"_{self.limit}steps"
        return self.folder / f"{kind}_{condition.name}_{contract[:12]}{limit}.jsonl"

    def read(self, seeds: list[int]) -> dict[tuple[str, Condition], dict[int, AnnotatedEpisode]]:
        rows = {
            (kind, c): {e.seed: e for e in read_episodes(self.file(kind, c))}
            for kind in self.runs
            for c in self.conditions
        }
        return {key: {seed: found[seed] for seed in seeds if seed in found} for key, found in rows.items()}

    def play(self, seeds: list[int], workers: int, niceness: int, until: float) -> None:
        """Play the missing episodes, block by block; return early at `until`."""
        rows = self.read(seeds)
        total, done = len(rows) * len(seeds), sum(map(len, rows.values()))
        if done == total:
            return
        progress = ProgressLine(f"value_guided {self.task}", total, "episodes", done)
        with Evaluation(self.work, workers, niceness=niceness) as evaluation:
            for start in range(0, len(seeds), BLOCK):
                for (kind, condition), found in rows.items():
                    missing = [seed for seed in seeds[start : start + BLOCK] if seed not in found]
                    policy_entry = EvaluatedPolicy(
                        f"{kind}_m{condition.members}",
                        functools.partial(onnx_policy, self.bundle(kind, condition.members)),
                        functools.partial(
                            run_annotated_episode, candidates=condition.candidates, prune=condition.prune
                        ),
                    )
                    for result in evaluation.play(policy_entry, missing):
                        check_episode(result, TerminalProgress())
                        append_episode(self.file(kind, condition), result)
                        done += 1
                        progress.update(done)
                    if time.monotonic() > until:
                        return
        progress.finish(done)

    def latencies(self, rounds: int) -> dict[tuple[str, Condition], tuple[float, float]]:
        """p50 and p99 of `act`, milliseconds, in this process; all conditions take turns."""
        policies = {
            (kind, m): OnnxPolicy(Bundle.open(self.bundle(kind, m)))
            for kind in self.runs
            for m in {c.members for c in self.conditions}
        }
        for policy in policies.values():
            policy.warm_up()
        contract = next(iter(policies.values())).contract
        fields = contract.split(np.asarray(contract.observation_mean, np.float32)[None])
        observation = {name: row[0] for name, row in fields.items()}
        times: dict[tuple[str, Condition], list[float]] = {
            (kind, c): [] for kind in self.runs for c in self.conditions
        }
        for number in range(rounds):
            for (kind, c), taken in times.items():
                start = time.perf_counter()
                policies[kind, c.members].act(
                    observation, candidates=c.candidates, prune=c.prune, seed=number
                )
                taken.append(time.perf_counter() - start)
        return {
            key: (float(np.percentile(t, 50) * 1e3), float(np.percentile(t, 99) * 1e3))
            for key, t in times.items()
        }

    def report(self, seeds: list[int], latency_rounds: int) -> dict[str, object]:
        """Print the table over the seeds that every condition has played; return it as JSON data."""
        rows = self.read(seeds)
        common = [seed for seed in seeds if all(seed in found for found in rows.values())]
        print(
            f"\n{self.task}: {len(common)} paired episodes of {len(seeds)}, "
            f"a failure counts as {self.horizon} steps"
        )
        found: dict[str, object] = {"episodes": len(common), "horizon": self.horizon}
        if not common:
            return found
        latencies = self.latencies(latency_rounds)
        print(
            f"{'':46} {'success':>8} {'95 % interval':>16} {'steps':>6} {'against 1 candidate: success':>29} "
            f"{'steps':>19} {'rank corr. V':>12} {'p50/p99 ms':>12}"
        )
        for (kind, condition), played in rows.items():
            episodes = [played[seed] for seed in common]
            base = [rows[kind, self.conditions[0]][seed] for seed in common]
            successes, steps = [e.success for e in episodes], [self.steps(e) for e in episodes]
            low, high = wilson_interval(sum(successes), len(common))
            more = paired_difference(successes, [e.success for e in base])
            longer = paired_difference(steps, [self.steps(e) for e in base])
            calibration = calibrate(episodes)
            rank = calibration.all.rank_correlation if calibration else None
            p50, p99 = latencies[kind, condition]
            ranked = "-" if rank is None else f"{rank:.2f}"
            first = condition.candidates == 1
            columns = (
                ("", "")
                if first
                else (
                    "{:+.1%} [{:+.1%}, {:+.1%}]".format(*more),
                    "{:+.1f} [{:+.1f}, {:+.1f}]".format(*longer),
                )
            )
            print(
                f"{f'{POLICIES[kind]}, {condition.label}':46} {np.mean(successes):>8.1%} "
                f"{f'{low:.1%} to {high:.1%}':>16} {np.mean(steps):>6.1f} {columns[0]:>29} {columns[1]:>19} "
                f"{ranked:>12} {f'{p50:.2f}/{p99:.2f}':>12}"
            )
            found[f"{kind}_{condition.name}"] = {
                "success": float(np.mean(successes)),
                "ci": [low, high],
                "steps": float(np.mean(steps)),
                "success_minus_1_candidate": more,
                "steps_minus_1_candidate": longer,
                "rank_correlation": rank,
                "ms": {"p50": p50, "p99": p99},
            }
        return found

    def steps(self, episode: AnnotatedEpisode) -> int:
        return episode.steps if episode.success else self.horizon


def trained_as_the_demo(folder: Path) -> dict[str, Path]:
    """RQL and cloning on Lift; trained once."""
    if not (folder / "trained").exists():
        folder.mkdir(parents=True, exist_ok=True)
        demo.collect_and_train(folder, 0)
        (folder / "trained").touch()
    return {"rql": folder / "rql", "bc": folder / "bc"}


def run() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--study", nargs=3, action="append", metavar=("TASK", "RQL_RUN", "CLONING_RUN"), default=[]
    )
    parser.add_argument("--output", type=Path, default=Path("runs/value_guided"))
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument(
        "--horizon", type=int, help="steps after which an episode has failed, where not the task's own"
    )
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--nice", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--latency-rounds", type=int, default=200)
    parser.add_argument("--table", action="store_true", help="play nothing, print what is there")
    given = parser.parse_args()
    seeds = [episode_seed(0, index, "evaluate") for index in range(given.episodes)]
    studies = given.study or [(demo.TASK, *trained_as_the_demo(given.output / "lift").values())]
    until = time.monotonic() + given.seconds
    report = {}
    for task, rql, bc in studies:
        study = Study(
            task, {"rql": Path(rql), "bc": Path(bc)}, given.output / task.replace(":", "_"), given.horizon
        )
        if not given.table:
            with contextlib.suppress(KeyboardInterrupt):
                study.play(seeds, given.workers, given.nice, until)
        report[task] = study.report(seeds, given.latency_rounds)
    print(json.dumps(report))


if __name__ == "__main__":
    run()
