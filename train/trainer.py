"""The training loop: update, log, save, evaluate. It can be stopped at any time without losing work."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from rql_deploy.errors import UserError
from rql_deploy.progress import NoProgress, Progress, Stage
from rql_deploy.structs import to_plain
from rql_deploy.train.data.feature_cache import FeatureCache
from rql_deploy.train.data.random_crop import RandomCrop
from rql_deploy.train.data.sampler import WindowSampler
from rql_deploy.train.data.shards import ShardedStore, with_frame_stack, with_plant
from rql_deploy.train.data.store import TransitionStore
from rql_deploy.train.engines.choice import EngineChoice, choose_engine, engine_warnings, require_engine
from rql_deploy.train.engines.data_parallel import DataParallel
from rql_deploy.train.engines.engine import Engine, make_engine
from rql_deploy.train.logging.diagnostics import Diagnostics
from rql_deploy.train.logging.evaluations import RunEvaluations
from rql_deploy.train.logging.loggers import RunLog, shown
from rql_deploy.train.logging.periodic_evaluation import Evaluator
from rql_deploy.train.logging.run_page import write_run_page
from rql_deploy.train.logging.summary import dataset_statistics, package_versions, reference_rows

from .batch import Batch, Noise, draw_noise
from .checkpoints.checkpoint import (
    Checkpoint,
    checkpoint_bytes,
    load_checkpoint,
    require_same_networks,
    require_same_run,
    restore_optimizer,
    save_checkpoint,
)
from .checkpoints.initial_networks import continued_plant, rescale_actions
from .checkpoints.run_folder import prune_checkpoints, read_pointer, step_of
from .config import TrainConfig, config_to_plain
from .rql import RQL
from .schedule import is_due, require_disk_space, require_finite, saves_at, stop_requests, updates_until_due
from .vision.frozen import Backbones, require_same_backbones
from .vision.pictures import picture_shapes


@dataclass(frozen=True)
class TrainResult:
    """How a run ended."""

    checkpoint: Path
    step: int
    finished: bool
    """False if it was interrupted and can be resumed."""
    updates_per_second: float
    """Mean over the whole of this call."""
    losses: Mapping[str, float]
    best: Path | None
    """The checkpoint with the highest success, if training was evaluated."""


class Trainer:
    """One training run in the folder `run`.

    One random generator makes every draw, so a resumed run repeats an uninterrupted one.

    With `resume`, the run continues from its latest checkpoint; other data or another configuration is
    refused, naming the difference. With `initial`, a new run starts with that checkpoint's networks,
    averages, Adam state and the observation scaling that its networks were trained with. With `parallel`,
    this process is one of torchrun's workers.
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
        features: FeatureCache | None = None,
        progress: Progress | None = None,
    ):
        self.config, self.run, self.label, self.features = config, run, label, features
        self.backbones: Backbones = features.frozen if features is not None else {}
        self.progress: Progress = progress or NoProgress()
        self.store = store = with_frame_stack(store, config.frame_stack)
        sample, self.parallel = store.sample, parallel  # kept, so that the first shard is read once
        self.evaluations = RunEvaluations(run, evaluator, config.evaluate_every, label, self.progress)
        if parallel is not None:
            parallel.rows(config.batch_size)
        self.warnings = store.validate(config.rql.h, learn_value=config.rql.policy_value_weight != 0)
        """What to look at in the data, one sentence each."""
        self.step = 0
        self.initialised_from: str | None = None
        # A run that was interrupted before its first checkpoint starts over.
        no_checkpoint = read_pointer(run, "latest") is None and (run / "config.json").is_file()
        if resume and not no_checkpoint:
            self._resume(load_checkpoint(run))
        elif initial is not None:
            require_same_networks(initial, store, config)
            require_same_backbones(f"checkpoint {initial.path}", initial.backbones, self.backbones)
            self.store = with_plant(store, continued_plant(initial.plant, store))
            self.choice = self._choose()
            self._build(initial)
            rescale_actions(self.agent, initial.plant, self.store.plant)
            restore_optimizer(initial.path, self.agent.optimizer)
            self.initialised_from = f"{initial.path} ({initial.dataset_id}, update {initial.step})"
        else:
            self.choice = self._choose()
            self._build(None)
        self.statistics = dataset_statistics(with_plant(sample, self.store.plant)) | {
            "episodes": store.episodes,
            "rows": len(store),
        }

    def _choose(self) -> EngineChoice:
        plant, workers = self.store.plant, self.parallel.workers if self.parallel is not None else 1
        sizes = plant.observation_dim, plant.action_dim, picture_shapes(plant, self.backbones)
        choice = choose_engine(self.config, *sizes, workers=workers)
        self.warnings += engine_warnings(self.config, choice, *sizes)
        return choice

    def _resume(self, checkpoint: Checkpoint) -> None:
        require_same_run(checkpoint, self.store, self.config)
        require_same_backbones(f"run {self.run}", checkpoint.backbones, self.backbones)
        self.store = with_plant(self.store, checkpoint.plant)
        self.choice = EngineChoice(**checkpoint.engine)
        require_engine(self.choice, self.run)
        self._build(checkpoint)
        self.generator.set_state(restore_optimizer(checkpoint.path, self.agent.optimizer))
        self.step = checkpoint.step
        self.initialised_from = checkpoint.initialised_from

    def _build(self, source: Checkpoint | None) -> None:
        """Make sampler, networks and diagnostics; with the networks and observation scaling of `source` if
        given.
        """
        config, device, plant = self.config, torch.device(self.choice.device), self.store.plant
        if source is None:
            scale = self.store.normalization(config.standardise, self.progress)
            mean, std = map(torch.from_numpy, scale)
        else:
            mean, std = source.reference["mean"], source.reference["std"]
        initial = torch.Generator().manual_seed(config.seed)
        self.generator = initial if device.type == "cpu" else torch.Generator(device).manual_seed(config.seed)
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
            new_share=config.new_share,
            interventions=config.interventions,
            crop=RandomCrop(config.rql.crop_probability, config.rql.crop_padding),
            features=self.features,
        )
        if source is None:
            sizes = (plant.observation_dim, plant.action_dim)
            self.agent = RQL(config.rql, *sizes, initial, device, picture_shapes(plant, self.backbones))
            if self.features is not None:
                self.agent.set_moments(self.features.moments(self.store.sample))
        else:
            self.agent = source.restore_networks(device)
            for group in self.agent.optimizer.param_groups:
                group["lr"] = config.rql.learning_rate
            self.agent.config = config.rql
        self.reference = reference_rows(self.sampler, self.store.sample, config.rql.h) | {
            "mean": mean,
            "std": std,
        }
        self.diagnostics = Diagnostics.of(self.reference, device)

    def _draw(self) -> tuple[Batch, Noise]:
        config = self.config
        if self.parallel is None:
            batch, part = self.sampler.draw(config.batch_size), slice(None)
        else:
            part = self.parallel.rows(config.batch_size)
            batch = self.sampler.draw(config.batch_size, (part.start, part.stop))
        rql, device = config.rql, self.sampler.device
        sizes = config.batch_size, rql.h * self.store.plant.action_dim, rql.F
        noise = draw_noise(*sizes, self.generator, device, prefix_of=rql.h * rql.prefix)
        return batch, Noise(*(draw[part] for draw in noise))

    def train(self) -> TrainResult:
        """Train up to `config.updates`, or until SIGINT or SIGTERM; saves a checkpoint in both cases.

        Raises UserError if the checkpoints do not fit the disk; if a loss or gradient is not finite (the
        latest checkpoint is from before); if a shard is damaged (a checkpoint is saved first); or if the disk
        is full.
        """
        config = self.config
        leader = self.parallel is None or self.parallel.rank == 0
        if leader:
            require_disk_space(self.run, config, self.step, checkpoint_bytes(self.agent, self.reference))
        engine = make_engine(
            self.choice,
            self.agent,
            self._draw,
            reduce=self.parallel.reduce if self.parallel else None,
            generator=self.generator,
        )
        progress = (
            Stage(self.progress, self.label, config.updates, "updates", done=self.step) if leader else None
        )
        figures: dict[str, float] = {}
        rate = 0.0
        saved: Path | None = None
        saved_at = time.monotonic()
        log = (
            RunLog(self.run, config_to_plain(config), config.trackers, from_step=self.step)
            if leader
            else None
        )
        try:
            with stop_requests() as stop:
                self.evaluations.submit_missing()
                stopping = False
                while self.step < config.updates and not stopping:
                    self._next_data(engine)
                    if self.parallel is not None:
                        self.parallel.stop_wanted = bool(stop)
                    count = updates_until_due(config, self.step, engine.block, self._data_period())
                    engine.run(count)
                    self.step += count
                    # All workers compute figures together, so this may depend only on what all of them know.
                    stopping = self.parallel.stop_agreed if self.parallel is not None else bool(stop)
                    save = saves_at(config, self.step)
                    if self.parallel is None and config.checkpoint_minutes:
                        save = save or time.monotonic() - saved_at > 60.0 * config.checkpoint_minutes
                    if save or stopping or is_due(self.step, config.log_every) or self.step == config.updates:
                        figures = self._figures(engine)
                        if log is not None and progress is not None:
                            log.write(self.step, figures | {"updates_per_second": progress.rate(self.step)})
                            self.evaluations.collect(self.step, log)
                    if leader and save:
                        saved, saved_at = self.save(), time.monotonic()
                        if is_due(self.step, config.evaluate_every):
                            self.evaluations.submit(self.step, saved)
                    if progress is not None:
                        progress.update(self.step, **shown(figures))
                if progress is not None:
                    progress.finish(self.step, **shown(figures))
                    rate = progress.mean_rate(self.step)
                # Inside stop_requests, so that a second Ctrl-C does not interrupt the last checkpoint.
                if leader and (saved is None or step_of(saved) != self.step):
                    self.save()
                # Before the evaluations: the other workers cannot wait for them, a barrier times out.
                if self.parallel is not None:
                    self.parallel.barrier()
                if log is not None:
                    self.evaluations.wait(self.step, log, stop)
                    self._prune()
        finally:
            if log is not None:
                log.close()
        if leader:
            self._write_run_page()
        # A worker on another node may not see the leader's files.
        final = read_pointer(self.run, "latest") or self.run
        return TrainResult(
            final, self.step, self.step >= config.updates, rate, figures, read_pointer(self.run, "best")
        )

    def _write_run_page(self) -> None:
        try:
            write_run_page(self.run)
        except OSError as error:
            self.progress.note(
                f"note: the run is complete and saved, but its README.md is not written ({error.strerror})"
            )

    def _data_period(self) -> int:
        """After how many updates there may be other data; 0 for never."""
        return self.store.shard_updates if isinstance(self.store, ShardedStore) else 0

    def _next_data(self, engine: Engine) -> None:
        """Switch to the shard of the next update; if it is damaged, save a checkpoint and raise UserError."""
        try:
            if self.sampler.advance(self.step):
                engine.rebuild()
        except UserError as error:
            if self.step and (self.parallel is None or self.parallel.rank == 0):
                saved = read_pointer(self.run, "latest")
                if saved is None or step_of(saved) != self.step:
                    if self.parallel is None:
                        self._figures(engine)
                    saved = self.save()
                raise UserError(
                    f"{error}; {saved} holds the {self.step:,} updates so far: repair the shard and --resume"
                ) from error
            raise

    def save(self) -> Path:
        """Write a checkpoint of the current update and remove checkpoints that are no longer needed."""
        header = {
            "config": config_to_plain(self.config),
            "plant": to_plain(self.store.plant),
            "dataset_id": self.store.dataset_id,
            "dataset_hash": self.store.content_hash,
            "statistics": self.statistics,
            "versions": package_versions(),
            "engine": asdict(self.choice),
            "backbones": to_plain(self.backbones),
            "initialised_from": self.initialised_from,
        }
        saved = save_checkpoint(
            self.run,
            self.step,
            self.agent,
            header=header,
            reference=self.reference,
            random_state=self.generator.get_state(),
            online=self._online_state(),
        )
        self._prune()
        return saved

    def _online_state(self) -> Mapping[str, torch.Tensor]:
        """What a run that plays episodes keeps of them in a checkpoint; nothing here."""
        return {}

    def _prune(self) -> None:
        waiting = self.evaluations.waiting
        prune_checkpoints(self.run, lambda step: step in waiting or is_due(step, self.config.keep_every))

    def _figures(self, engine: Engine) -> dict[str, float]:
        """Losses, gradient norms and diagnostics as numbers; raises UserError if one is not finite."""
        tensors = engine.figures()
        if self.parallel is not None:
            tensors = self.parallel.combine(tensors)
        tensors = tensors | self.diagnostics.figures(self.agent)
        values: list[float] = torch.stack(list(tensors.values())).tolist()
        figures = dict(zip(tensors, values, strict=True))
        require_finite(figures, self.step, self.run)
        return figures
