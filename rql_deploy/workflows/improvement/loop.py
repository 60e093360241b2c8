"""The loop: wait for episodes, train, export, compare, serve; then again.

The one state is what `Generations` holds on the disk. `Improvement.step` does the next thing that is missing
there, so an interrupted loop, however it ended, goes on by the same command.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rql_deploy.errors import UserError
from rql_deploy.folders import exclusive_lock
from rql_deploy.policy import DEFAULT_CANDIDATES
from rql_deploy.progress import NoProgress, Progress
from rql_deploy.train.hyperparameters import Interventions

from ..data.names import DataNames
from ..data.recorded_episodes import read_labels
from ..processes import DEFAULT_WORKERS
from .gate import Verdict, compare_in_simulator, simulated
from .generations import Generation, Generations, write_json
from .held_out import compare_held_out
from .new_episodes import EPISODES, HELD_OUT, marks_of, split_held_out, watch, write_episodes
from .report import describe_generation, write_report
from .stages import export_words, header_of, run_stage, train_words
from .swap import confirm_swap

if TYPE_CHECKING:
    from rql_deploy.contract import Contract, PlantDescription

    from ..data.recorded_episodes import RecordedEpisode

GateKind = Literal["auto", "simulator", "held-out"]
POLL_SECONDS = 5.0


@dataclass(frozen=True)
class ImproveOptions:
    """How generations are made."""

    episodes: int = 20
    """New recorded episodes that begin a generation."""
    updates: int = 2000
    """Gradient updates of one generation."""
    share: float = 0.5
    """Of each batch, the share drawn from recorded episodes; 0 draws from old and new alike."""
    interventions: Interventions = "both"
    """What actions that were not the policy's are used for."""
    overrides: tuple[str, ...] = ()
    """`key=value` settings of training on top of the run's own."""
    gate: GateKind = "auto"
    gate_episodes: int = 50
    candidates: int = DEFAULT_CANDIDATES
    """Chunks per decision when bundles are compared."""
    workers: int = DEFAULT_WORKERS
    seed: int = 0
    connect: str | None = None
    """The server that serves the link, to see that it takes a new bundle."""
    keys: Path | None = None
    generations: int | None = None
    """Stop after so many that were decided on; None goes on until it is stopped."""
    once: bool = False
    """Do what is due now, and end."""


@dataclass(frozen=True)
class ImproveResult:
    """What was done, and what is served."""

    served: int
    decided: tuple[int, ...] = ()
    """Generations that were compared in this call."""
    lines: tuple[str, ...] = field(default=(), compare=False)
    """A line for each of them."""


def improve(
    recordings: Path,
    source: Path,
    serve_as: Path,
    *,
    datasets: Sequence[str | Path] = (),
    options: ImproveOptions | None = None,
    progress: Progress | None = None,
) -> ImproveResult:
    """Improve a served policy with the episodes that its server records.

    Args:
        recordings: the folder of `serve --record`.
        source: the run that the served bundle was exported from.
        serve_as: what the server serves: a bundle folder, which becomes a link, or nothing yet.
        datasets: the data that the run was trained on; else what the run says.

    Ends after `options.generations`, with `once` when nothing is due, or with KeyboardInterrupt. Raises
    UserError for a run, data or bundle that do not fit, and where training fails; what is served then stays.
    """
    from rql_deploy.train.config import require_not_set, with_overrides

    loop = Improvement(recordings, source, serve_as, datasets, options or ImproveOptions(), progress)
    # Now, and not when there are enough episodes.
    require_not_set(loop.options.overrides, "updates", "pass --updates, which is of each generation")
    with_overrides(header_of(source).config, loop.options.overrides)
    busy = f"{serve_as} is being improved already"
    with exclusive_lock(loop.generations.folder, busy, "end that one first"):
        return loop.run()


def rollback(bundle: Path, to: int | None = None) -> tuple[int, int]:
    """Serve the generation before the present one, or `to`; returns the numbers of both."""
    generations = Generations(bundle)
    numbers = generations.rollback(to)
    write_report(generations)
    return numbers


class Improvement:
    """One loop; `step` does one thing and says whether there was one to do."""

    def __init__(
        self,
        recordings: Path,
        source: Path,
        serve_as: Path,
        datasets: Sequence[str | Path],
        options: ImproveOptions,
        progress: Progress | None,
    ):
        self.recordings, self.source, self.options = recordings.absolute(), source.absolute(), options
        self.generations = Generations(serve_as)
        self.progress: Progress = progress or NoProgress()
        self.data = DataNames.of(datasets, None, "", "", (), ()) if datasets else DataNames.read(source)
        self.decided: list[int] = []
        self.lines: list[str] = []
        self._seen: list[tuple[str, int, int]] | None = None
        self._said: set[str] = set()

    def run(self) -> ImproveResult:
        """Steps until there is enough, or nothing to do with `once`."""
        self.generations.begin_first(self.source, self._export_first)
        write_report(self.generations)
        enough = self.options.generations
        while enough is None or len(self.decided) < enough:
            if not self.step():
                if self.options.once:
                    break
                time.sleep(POLL_SECONDS)
        return ImproveResult(self.generations.served(), tuple(self.decided), tuple(self.lines))

    def step(self) -> bool:
        """Do the next thing; returns whether there was one."""
        last = self.generations.numbers()[-1]
        folder = self.generations.path(last)
        if last == 0 or self._settled(last):
            return self._begin(last + 1)
        if not (folder / "bundle").is_dir():
            self._train(last)
        elif (gate := self.generations.gate(last)) is None:
            self._compare(last)
        elif gate["passed"] and not self.generations.was_served(last):
            self._serve(last, gate)
        return True

    def _settled(self, number: int) -> bool:
        gate = self.generations.gate(number)
        return gate is not None and (not gate["passed"] or self.generations.was_served(number))

    def _begin(self, number: int) -> bool:
        """Begin a generation if there are enough new episodes."""
        if (marks := marks_of(self.recordings)) == self._seen:
            return False
        self._seen = marks
        served = self.generations.served()
        plant = self._contract(served).plant
        found = watch(self.recordings, plant)
        self._say(found.remarks)
        before = [self.generations.read(n) for n in self.generations.numbers()]
        known = {name for generation in before for name in (*generation.episodes, *generation.held_out)}
        new = [episode for episode in found.usable if episode.name not in known]
        held_out = self._gate(plant) == "held-out"
        # One to learn from, and one to compare on.
        enough = max(self.options.episodes, 2 if held_out and not before[-1].held_out else 1)
        if len(new) < enough:
            if new:
                self._say([f"{len(new)} of {enough} new episodes for generation {number}"])
            return False
        learned: list[RecordedEpisode] = new
        kept: list[RecordedEpisode] = []
        if held_out:
            learned, kept = split_held_out(new, len(before[-1].held_out))
        success = [bool(episode.success[-1]) for episode in new if episode.success is not None]
        generation = Generation(
            number,
            served,
            str(self.generations.path(number) / "run"),
            (*before[-1].episodes, *(episode.name for episode in learned)),
            len(new),
            sum(success) if len(success) == len(new) else None,
            (*before[-1].held_out, *(episode.name for episode in kept)),
            time.time(),
        )
        earlier = self.generations.path(number - 1)

        # What was said of the motion at export only is said again at the next one: data of one run are alike.
        trained = header_of(self.generations.run(served)).plant

        def write(folder: Path) -> None:
            labels, last = read_labels(self.recordings), before[-1]
            for name, added, names in ((EPISODES, learned, last.episodes), (HELD_OUT, kept, last.held_out)):
                write_episodes(folder / name, earlier / name, added, trained, names, labels)

        self.generations.begin(generation, write)
        succeeded = "" if generation.succeeded is None else f", {generation.succeeded} succeeded"
        self.progress.note(
            f"generation {number}: {len(new)} new episodes{succeeded}; {len(generation.episodes)} recorded "
            "ones to learn from"
        )
        return True

    def _train(self, number: int) -> None:
        """Train and export; both go on where they stopped."""
        folder, options = self.generations.path(number), self.options
        parent = self.generations.run(self.generations.read(number).parent)
        run, log = folder / "run", folder / "train.log"
        settings = [
            f"new_share={options.share}",
            f"interventions={options.interventions}",
            # A loop reports no rows after success: windows that end there must count all the same.
            "rql.complete_rows=true",
            "clip_actions=true",
            f"seed={options.seed + number}",
            *options.overrides,
        ]
        train = functools.partial(
            train_words, self.data, folder / EPISODES, run, str(parent), options.updates, settings
        )
        if not self._trained(run):
            self.progress.note(f"generation {number}: {options.updates:,} updates (progress in {log})")
            run_stage(train, log, f"training of generation {number}", self.progress)
        like = self.generations.bundle(self.generations.served())
        export = functools.partial(export_words, run, folder / "bundle", like)
        run_stage(export, log, f"export of generation {number}", self.progress)

    def _trained(self, run: Path) -> bool:
        from rql_deploy.train.checkpoints.run_folder import read_pointer, step_of

        latest = read_pointer(run, "latest")
        return latest is not None and step_of(latest) >= self.options.updates

    def _export_first(self, bundle: Path) -> None:
        words = ["export", str(self.source), "--output", str(bundle)]
        run_stage(lambda: words, bundle.with_name("export.log"), "the first export", self.progress)

    def _compare(self, number: int) -> None:
        """Write what the gate says, after which the generation is decided on."""
        generation, served = self.generations.read(number), self.generations.served()
        bundles = {served: self.generations.bundle(served), number: self.generations.bundle(number)}
        verdict = self._refusal(generation, served) or self._verdict(generation, bundles)
        write_json(self.generations.path(number) / "gate.json", verdict.to_plain())
        write_report(self.generations)
        if not verdict.passed:
            self._decide(number, verdict.reason, "refused")

    def _refusal(self, generation: Generation, served: int) -> Verdict | None:
        """Why a generation is not even compared; None where it can be."""
        from rql_deploy.runtime.server.registry import incompatibilities

        reason = ""
        if generation.parent != served:
            reason = (
                f"generation {served} is served now, and not {generation.parent}, which this one was trained "
                "from"
            )
        elif found := incompatibilities(self._contract(served), self._contract(generation.number)):
            reason = f"its bundle does not fit the clients of the served one ({'; '.join(found)})"
        return Verdict(False, reason, "none", served, None, None, {}) if reason else None

    def _verdict(self, generation: Generation, bundles: Mapping[int, Path]) -> Verdict:
        options, plant = self.options, self._contract(generation.number).plant
        if self._gate(plant) == "simulator":
            return compare_in_simulator(
                bundles,
                plant,
                episodes=options.gate_episodes,
                candidates=options.candidates,
                seed=options.seed,
                workers=options.workers,
                progress=self.progress,
            )
        if not generation.held_out:
            raise UserError(
                f"generation {generation.number} was begun without episodes to compare on: pass --gate "
                "simulator, as when it was begun"
            )
        return compare_held_out(bundles, self.generations.path(generation.number) / HELD_OUT)

    def _serve(self, number: int, gate: Mapping[str, Any]) -> None:
        """Exchange what is served, unless somebody has rolled back in the meantime."""
        if (served := self.generations.served()) not in (gate["against"], number):
            reason = (
                f"generation {served} is served now, and not {gate['against']}, which it was compared with"
            )
            write_json(
                self.generations.path(number) / "gate.json", {**gate, "passed": False, "reason": reason}
            )
            self._decide(number, reason, "refused")
            return
        self.generations.serve(number)
        taken = ""
        if self.options.connect is not None:
            contract_id = self._contract(number).contract_id
            taken = "; " + confirm_swap(self.options.connect, contract_id, self.options.keys)
        self._decide(number, f"{gate['reason']}{taken}", "served")

    def _decide(self, number: int, reason: str, what: str) -> None:
        self.decided.append(number)
        self.lines.append(f"generation {number} {what}: {reason}")
        self.progress.note(self.lines[-1])
        self._say([describe_generation(self.generations, number)])
        write_report(self.generations)

    def _gate(self, plant: PlantDescription) -> str:
        if self.options.gate == "simulator" and not simulated(plant):
            raise UserError(f"{plant.task} is no simulated task: pass --gate held-out")
        kind = self.options.gate
        if kind == "auto":
            kind = "simulator" if simulated(plant) else "held-out"
        return kind

    def _contract(self, number: int) -> Contract:
        from rql_deploy.bundle.bundle import Bundle

        return Bundle.open(self.generations.bundle(number)).contract

    def _say(self, sentences: Sequence[str]) -> None:
        """Each sentence once, until it changes."""
        for sentence in sentences:
            if sentence not in self._said:
                self._said.add(sentence)
                self.progress.note(f"note: {sentence}")
