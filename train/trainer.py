"""The training loop: update, log, checkpoint, evaluate; stops at any moment without losing work."""

from __future__ import annotations

import contextlib
import math
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

import torch

from rql_deploy.errors import UserError
from rql_deploy.progress import ProgressLine
from rql_deploy.structs import to_plain
from rql_deploy.train.data.sampler import WindowSampler
from rql_deploy.train.data.shards import ShardedStore
from rql_deploy.train.data.store import TransitionStore
from rql_deploy.train.engines.data_parallel import DataParallel
from rql_deploy.train.engines.engine import Engine, EngineChoice, choose_engine, make_engine, require_engine
from rql_deploy.train.logging.diagnostics import Diagnostics
from rql_deploy.train.logging.loggers import RunLog
from rql_deploy.train.logging.periodic_evaluation import Evaluator
from rql_deploy.train.logging.run_page import write_report
from rql_deploy.train.logging.summary import dataset_statistics, package_versions, reference_rows

from .checkpoint import (
    Checkpoint,
    load_checkpoint,
    pointed,
    prune_checkpoints,
    require_same_networks,
    require_same_run,
    restore_optimizer,
    save_checkpoint,
    step_of,
)
from .config import TrainConfig, config_to_plain
from .evaluations import RunEvaluations
from .rql import RQL, Batch, Noise, draw_noise


@dataclass(frozen=True)
class TrainResult:
    """How a run ended."""

    checkpoint: Path
    step: int
    finished: bool
    """False when it was interrupted and can be resumed."""
    updates_per_second: float
    losses: Mapping[str, float]
    best: Path | None
    """The checkpoint with the highest success, where training was evaluated."""


class Trainer:
    """One training run in folder `run`. Everything random comes from one generator, so a resumed run repeats an uninterrupted one.

    With `resume`, it goes on from the run's latest checkpoint; another data set or configuration is refused, naming the difference.
    With `initial`, networks, averages and Adam's moments come from that checkpoint, and so does its observation scaling, which the
    networks were trained with; the updates count from 0. With `parallel`, this process is one of torchrun's workers.
    """

    def __init__(
        self,
        config: TrainConfig,
        store: TransitionStore | ShardedStore,
        run: Path,
        *,
        label: str = "train",
        resume: bool = False,
        initial: Checkpoint | None = None,
        evaluator: Evaluator | None = None,
        parallel: DataParallel | None = None,
    ):
        self.config, self.store, self.run, self.label = config, store, run, label
        sample = store.sample  # held on to, so that a sharded set reads its first shard once
        self.parallel = parallel
        self.evaluations = RunEvaluations(run, evaluator, config.evaluate_every, label)
        if parallel is not None:
            parallel.rows(config.batch_size)
        self.remarks = store.validate(config.rql.h, learn_value=config.rql.policy_value_weight != 0)
        """What the data deserves a look for, one sentence each."""
        self.step = 0
        self.initialised_from: str | None = None
        # A run that was cut off before its first checkpoint starts over.
        cut_off = pointed(run, "latest") is None and (run / "config.json").is_file()
        if resume and not cut_off:
            self._resume(load_checkpoint(run))
        elif initial is not None:
            require_same_networks(initial, store, config)
            self.choice = self._choose()
            self._build(initial)
            restore_optimizer(initial.path, self.agent.optimizer)
            self.initialised_from = f"{initial.path} ({initial.dataset_id}, update {initial.step})"
        else:
            self.choice = self._choose()
            self._build(None)
        self.statistics = dataset_statistics(sample) | {"episodes": store.episodes, "rows": len(store)}

    def _choose(self) -> EngineChoice:
        plant, workers = self.store.plant, self.parallel.workers if self.parallel is not None else 1
        return choose_engine(self.config, plant.observation_dim, plant.action_dim, workers=workers)

    def _resume(self, checkpoint: Checkpoint) -> None:
        require_same_run(checkpoint, self.store, self.config)
        self.choice = EngineChoice(**checkpoint.engine)
        require_engine(self.choice, self.run)
        self._build(checkpoint)
        self.generator.set_state(restore_optimizer(checkpoint.path, self.agent.optimizer))
        self.step = checkpoint.step
        self.initialised_from = checkpoint.initialised_from

    def _build(self, source: Checkpoint | None) -> None:
        """Sampler, networks and what is derived from the data; networks and observation scaling of `source` where there is one."""
        config, device, plant = self.config, torch.device(self.choice.device), self.store.plant
        if source is None:
            mean, std = (torch.from_numpy(part) for part in self.store.observation_scale(config.standardise))
        else:
            mean, std = source.reference["mean"], source.reference["std"]
        first = torch.Generator().manual_seed(config.seed)
        self.generator = first if device.type == "cpu" else torch.Generator(device).manual_seed(config.seed)
        self.sampler = WindowSampler(
            self.store,
            config.rql.h,
            sampling=config.sampling,
            complete_rows=config.rql.complete_rows,
            observation_scale=(mean, std),
            clip_actions=config.clip_actions,
            generator=self.generator,
            device=device,
            inner_observations=False,
        )
        if source is None:
            self.agent = RQL(config.rql, plant.observation_dim, plant.action_dim, first, device)
        else:
            self.agent = source.restore_networks(device)
            for group in self.agent.optimizer.param_groups:
                group["lr"] = config.rql.learning_rate
            self.agent.config = config.rql
        self.reference = reference_rows(self.sampler, self.store.sample, config.rql.h) | {"mean": mean, "std": std}
        probe = (self.reference["observations"] - mean) / std
        self.diagnostics = Diagnostics(probe.to(device), self.reference["chunks"].to(device))

    def _draw(self) -> tuple[Batch, Noise]:
        config = self.config
        if self.parallel is None:
            batch, part = self.sampler.draw(config.batch_size), slice(None)
        else:
            part = self.parallel.rows(config.batch_size)
            batch = self.sampler.draw(config.batch_size, (part.start, part.stop))
        noise = draw_noise(config.batch_size, config.rql.h * self.store.plant.action_dim, config.rql.F, self.generator, self.sampler.device)
        return batch, Noise(*(draw[part] for draw in noise))

    def train(self) -> TrainResult:
        """Run to the configured number of updates, or until SIGINT/SIGTERM asks to stop; writes a checkpoint in both cases.

        Raises UserError when a loss or a gradient is no longer finite (the last checkpoint is from before that), when a shard is
        damaged (what was learned is saved), or when the disk is full.
        """
        config = self.config
        leader = self.parallel is None or self.parallel.rank == 0
        engine = make_engine(
            self.choice, self.agent, self._draw, reduce=self.parallel.reduce if self.parallel else None, generator=self.generator
        )
        progress = ProgressLine(self.label, config.updates, "updates", done=self.step) if leader else None
        figures: dict[str, float] = {}
        rate = 0.0
        saved: Path | None = None
        saved_at = time.monotonic()
        log = RunLog(self.run, config_to_plain(config), config.trackers, from_step=self.step) if leader else None
        try:
            with stop_requests() as stop:
                self.evaluations.submit_missing()
                stopping = False
                while self.step < config.updates and not stopping:
                    self._next_shard(engine)
                    if self.parallel is not None:
                        self.parallel.stop_wanted = bool(stop)
                    count = self._updates_until_something_is_due(engine.block)
                    engine.run(count)
                    self.step += count
                    # Workers look at their figures together, so whether to look must follow from what all of them know.
                    stopping = self.parallel.stop_agreed if self.parallel is not None else bool(stop)
                    evaluate = _due(self.step, config.evaluate_every)
                    save = evaluate or _due(self.step, config.checkpoint_every)
                    if self.parallel is None and config.checkpoint_minutes:
                        save = save or time.monotonic() - saved_at > 60.0 * config.checkpoint_minutes
                    if save or stopping or _due(self.step, config.log_every) or self.step == config.updates:
                        figures = self._figures(engine)
                        if log is not None and progress is not None:
                            log.write(self.step, figures | {"updates_per_second": progress.rate(self.step)})
                            self.evaluations.collect(self.step, log)
                    if leader and save:
                        saved, saved_at = self.save(), time.monotonic()
                        if evaluate:
                            self.evaluations.submit(self.step, saved)
                    if progress is not None:
                        progress.update(self.step, **_shown(figures))
                if progress is not None:
                    progress.finish(self.step, **_shown(figures))
                    rate = progress.rate(self.step)
                # Still under stop_requests: a second Ctrl-C must not tear the one checkpoint that a short run writes.
                if leader and (saved is None or step_of(saved) != self.step):
                    self.save()
                # The others must not wait for evaluations: a barrier has a time-out.
                if self.parallel is not None:
                    self.parallel.wait()
                if log is not None:
                    self.evaluations.wait(self.step, log, stop)
                    self._prune()
        finally:
            if log is not None:
                log.close()
        if leader:
            self._report()
        # Another node's worker may not see the leader's files.
        final = pointed(self.run, "latest") or self.run
        return TrainResult(final, self.step, self.step >= config.updates, rate, figures, pointed(self.run, "best"))

    def _report(self) -> None:
        try:
            write_report(self.run)
        except OSError as error:
            print(f"note: the run is complete and saved, but its README.md is not written ({error.strerror})", file=sys.stderr)

    def _next_shard(self, engine: Engine) -> None:
        """Move on to the shard that the next update draws from; when it is damaged, what was learned is saved first."""
        try:
            if self.sampler.advance(self.step):
                engine.rebuild()
        except UserError as error:
            if self.step and (self.parallel is None or self.parallel.rank == 0):
                saved = pointed(self.run, "latest")
                if saved is None or step_of(saved) != self.step:
                    if self.parallel is None:
                        self._figures(engine)
                    saved = self.save()
                raise UserError(f"{error}; {saved} holds the {self.step:,} updates so far: put the shard right and --resume") from error
            raise

    def _updates_until_something_is_due(self, block: int) -> int:
        """At most `block`, ending where the loop has to look: logs, checkpoints, evaluations, another shard, the end."""
        config = self.config
        shard = self.store.shard_updates if isinstance(self.store, ShardedStore) else 0
        gaps = [every - self.step % every for every in (config.log_every, config.checkpoint_every, config.evaluate_every, shard) if every]
        return min(block, config.updates - self.step, *gaps)

    def save(self) -> Path:
        """Write a checkpoint of this moment, then remove those that are of no more use."""
        header = {
            "config": config_to_plain(self.config),
            "plant": to_plain(self.store.plant),
            "dataset_id": self.store.dataset_id,
            "dataset_hash": self.store.content_hash,
            "statistics": self.statistics,
            "versions": package_versions(),
            "engine": asdict(self.choice),
            "initialised_from": self.initialised_from,
        }
        saved = save_checkpoint(
            self.run, self.step, self.agent, header=header, reference=self.reference, random_state=self.generator.get_state()
        )
        self._prune()
        return saved

    def _prune(self) -> None:
        waiting = self.evaluations.waiting
        prune_checkpoints(self.run, lambda step: step in waiting or _due(step, self.config.keep_every))

    def _figures(self, engine: Engine) -> dict[str, float]:
        """Losses, gradient norms and diagnostics as numbers; raises UserError when one is not finite, before anything is saved."""
        tensors = engine.figures()
        if self.parallel is not None:
            tensors = self.parallel.combine(tensors)
        tensors = tensors | self.diagnostics.figures(self.agent)
        values: list[float] = torch.stack(list(tensors.values())).tolist()
        figures = dict(zip(tensors, values, strict=True))
        for name, value in figures.items():
            if not math.isfinite(value):
                kept = pointed(self.run, "latest")
                way = f"--init-from {kept} --set rql.learning_rate=1e-4" if kept else "--set rql.learning_rate=1e-4"
                raise UserError(
                    f"{name} became {value} at update {self.step}: the run stops, "
                    f"{f'its last checkpoint {kept} is from before that' if kept else 'it had no checkpoint yet'}; "
                    f"look at the data set's ranges, or train with {way}"
                )
        return figures


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _shown(figures: Mapping[str, float]) -> dict[str, float]:
    """What the progress line has room for."""
    return {name: figures[name] for name in ("total", "policy_value", "bc", "value", "v_mean", "target_mean") if name in figures}


@contextlib.contextmanager
def stop_requests() -> Iterator[list[str]]:
    """A list that becomes non-empty on SIGINT or SIGTERM, so that the update under way is finished first."""
    asked: list[str] = []

    def ask(number: int, _frame: FrameType | None) -> None:
        asked.append(signal.Signals(number).name)

    previous = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
