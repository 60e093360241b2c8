"""One training run: its data, networks, draws, figures and checkpoints. The loop is in trainer.py."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from rql_deploy.errors import UserError
from rql_deploy.progress import NoProgress, Progress
from rql_deploy.structs import to_plain
from rql_deploy.train.data.feature_cache import FeatureCache
from rql_deploy.train.data.random_crop import RandomCrop
from rql_deploy.train.data.sampler import WindowSampler
from rql_deploy.train.data.shards import ShardedStore, with_frame_stack, with_plant
from rql_deploy.train.data.store import TransitionStore
from rql_deploy.train.engines.choice import EngineChoice, choose_engine, engine_warnings, require_engine
from rql_deploy.train.engines.data_parallel import DataParallel
from rql_deploy.train.engines.engine import Engine, Figures
from rql_deploy.train.logging.diagnostics import Diagnostics
from rql_deploy.train.logging.evaluations import RunEvaluations
from rql_deploy.train.logging.periodic_evaluation import Evaluator
from rql_deploy.train.logging.run_page import write_run_page
from rql_deploy.train.logging.summary import dataset_statistics, package_versions, reference_rows

from ..batch import Batch, Noise, draw_noise
from ..checkpoints.checkpoint import (
    ONLINE,
    Checkpoint,
    load_checkpoint,
    require_same_networks,
    require_same_run,
    restore_optimizer,
    save_checkpoint,
)
from ..checkpoints.initial_networks import continued_plant, rescale_actions
from ..checkpoints.run_folder import prune_checkpoints, read_pointer, saved_checkpoints, step_of
from ..config import TrainConfig, config_to_plain
from ..optimization import set_learning_rate
from ..rql import RQL
from ..vision.frozen import Backbones, require_same_backbones
from ..vision.pictures import picture_shapes
from .schedule import is_due, require_finite


class TrainingRun:
    """One run in the folder `run`, its networks at update `step`.

    One random generator makes every draw, so a resumed run repeats an uninterrupted one.

    With `resume`, the run continues from its latest checkpoint; other data or another configuration is
    refused, naming the difference. With `initial`, a new run starts with that checkpoint's networks,
    averages, Adam state and the observation scaling that its networks were trained with. With `parallel`,
    this process is one of torchrun's workers. A run `beside` another has its data, and draws its windows with
    a generator of its own (side_by_side.py).
    """

    agent: RQL
    sampler: WindowSampler
    reference: dict[str, torch.Tensor]
    """Rows of the data that checkpoints hold (logging/summary.py), and the observations' scaling."""
    statistics: dict[str, Any]
    """What the data set shows."""
    plays = False
    """Whether the run plays episodes of its own."""

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
        beside: TrainingRun | None = None,
    ):
        self.config, self.run, self.label, self.features = config, run, label, features
        self.backbones: Backbones = features.frozen if features is not None else {}
        self.progress: Progress = progress or NoProgress()
        self.store = store = with_frame_stack(store, config.frame_stack)
        sample, self.parallel = store.sample, parallel  # kept, so that the first shard is read once
        self.evaluations = RunEvaluations(run, evaluator, config.evaluate_every, label, self.progress)
        if parallel is not None:
            parallel.rows(config.batch_size)
        self.warnings: list[str] = []
        """What to look at in the data, one sentence each."""
        if beside is None:
            self.warnings = store.validate(config.rql.h, learn_value=config.rql.policy_value_weight != 0)
        self._beside = beside
        self.step = 0
        self._kept: set[int] = set()
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
            restore_optimizer(initial.path, self.agent)
            self.initialised_from = f"{initial.path} ({initial.dataset_id}, update {initial.step})"
        else:
            self.choice = self._choose()
            self._build(None)
        if beside is not None:
            self.statistics = beside.statistics
        else:
            self.statistics = dataset_statistics(with_plant(sample, self.store.plant)) | {
                "episodes": store.episodes,
                "rows": len(store),
            }

    @property
    def leader(self) -> bool:
        """Whether this process is the only one of the run, or torchrun's first: the one that writes."""
        return self.parallel is None or self.parallel.rank == 0

    def _choose(self) -> EngineChoice:
        plant, workers = self.store.plant, self.parallel.workers if self.parallel is not None else 1
        sizes = plant.observation_dim, plant.action_dim, picture_shapes(plant, self.backbones)
        choice = choose_engine(self.config, *sizes, workers=workers)
        self.warnings += engine_warnings(self.config, choice, *sizes)
        return choice

    def _resume(self, checkpoint: Checkpoint) -> None:
        if not self.plays and (checkpoint.path / ONLINE).is_file():
            raise UserError(
                f"{self.run} is a run of `rql-deploy finetune`: resume it with that command, or pass "
                f"--init-from {self.run} and another --output"
            )
        require_same_run(checkpoint, self.store, self.config)
        require_same_backbones(f"run {self.run}", checkpoint.backbones, self.backbones)
        self.store = with_plant(self.store, checkpoint.plant)
        self.choice = checkpoint.engine
        require_engine(self.choice, self.run)
        self._build(checkpoint)
        self.generator.set_state(restore_optimizer(checkpoint.path, self.agent))
        self.step = checkpoint.step
        self.initialised_from = checkpoint.initialised_from

    def _build(self, source: Checkpoint | None) -> None:
        """Make sampler, networks and diagnostics; with the networks and observation scaling of `source` if
        given.
        """
        config, device, plant = self.config, torch.device(self.choice.device), self.store.plant
        initial = torch.Generator().manual_seed(config.seed)
        self.generator = initial if device.type == "cpu" else torch.Generator(device).manual_seed(config.seed)
        if self._beside is None:
            self._open_data(source, device)
        else:
            self.sampler, self.reference = self._beside.sampler, self._beside.reference
        if source is None:
            sizes = (plant.observation_dim, plant.action_dim)
            self.agent = RQL(config.rql, *sizes, initial, device, picture_shapes(plant, self.backbones))
            if self.features is not None:
                self.agent.set_moments(self.features.moments(self.store.sample))
        else:
            self.agent = source.restore_networks(device)
            set_learning_rate(self.agent.optimizer, config.rql.learning_rate)
            self.agent.config = config.rql
        self.diagnostics = Diagnostics.of(self.reference, device)

    def _open_data(self, source: Checkpoint | None, device: torch.device) -> None:
        """Make the sampler, and the rows of the data that checkpoints hold."""
        config = self.config
        if source is None:
            scale = self.store.normalization(config.standardise, self.progress)
            mean, std = map(torch.from_numpy, scale)
        else:
            mean, std = source.reference["mean"], source.reference["std"]
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
        self.reference = reference_rows(self.sampler, self.store.sample, config.rql.h) | {
            "mean": mean,
            "std": std,
        }

    def draw(self) -> tuple[Batch, Noise]:
        """An update's batch and noise, or this worker's part of it."""
        config = self.config
        if self.parallel is None:
            batch, part = self.sampler.draw(config.batch_size), slice(None)
        else:
            part = self.parallel.rows(config.batch_size)
            batch = self.sampler.draw(config.batch_size, (part.start, part.stop))
        return batch, Noise(*(draw[part] for draw in self.draw_noise()))

    def draw_noise(self) -> Noise:
        """An update's noise, for the whole batch."""
        rql, device = self.config.rql, self.sampler.device
        sizes = self.config.batch_size, rql.h * self.store.plant.action_dim, rql.F
        return draw_noise(*sizes, self.generator, device, prefix_of=rql.h * rql.prefix)

    def write_page(self) -> None:
        """Write the run's README.md and its curves; a disk that is full is noted."""
        try:
            write_run_page(self.run)
        except OSError as error:
            self.progress.note(
                f"note: the run is complete and saved, but its README.md is not written ({error.strerror})"
            )

    def data_period(self) -> int:
        """After how many updates there may be other data; 0 for never."""
        return self.store.shard_updates if isinstance(self.store, ShardedStore) else 0

    def next_data(self, engine: Engine) -> None:
        """Switch to the shard of the next update; if it is damaged, save a checkpoint and raise UserError."""
        try:
            if self.sampler.advance(self.step):
                engine.rebuild()
        except UserError as error:
            if self.step and (self.parallel is None or self.parallel.rank == 0):
                saved = read_pointer(self.run, "latest")
                if saved is None or step_of(saved) != self.step:
                    if self.parallel is None:
                        (figures,) = read_figures(engine.figures())
                        self.checked(figures)
                    saved = self.save()
                raise UserError(
                    f"{error}; {saved} holds the {self.step:,} updates so far: repair the shard and --resume"
                ) from error
            raise

    def save(self) -> Path:
        """Write a checkpoint of the current update."""
        header = {
            "config": config_to_plain(self.config),
            "plant": to_plain(self.store.plant),
            "dataset_id": self.store.dataset_id,
            "dataset_hash": self.store.content_hash,
            "statistics": self.statistics,
            "versions": package_versions(),
            "engine": to_plain(self.choice),
            "backbones": to_plain(self.backbones),
            "initialised_from": self.initialised_from,
        }
        return save_checkpoint(
            self.run,
            self.step,
            self.agent,
            header=header,
            reference=self.reference,
            random_state=self.generator.get_state(),
            online=self._online_state(),
        )

    def _online_state(self) -> Mapping[str, torch.Tensor]:
        """What a run that plays episodes keeps of them in a checkpoint; nothing here."""
        return {}

    def begin(self) -> None:
        """Submit evaluations that were interrupted. Other checkpoints that a resumed run finds were kept, by
        whatever `keep_every` was then, and stay.
        """
        self.evaluations.submit_missing()
        there = {step for step in saved_checkpoints(self.run) if step < self.step}
        self._kept = there - self.evaluations.waiting

    def prune(self) -> None:
        """Remove checkpoints that are no longer needed."""
        needed = self._kept | self.evaluations.waiting
        prune_checkpoints(self.run, lambda step: step in needed or is_due(step, self.config.keep_every))

    def checked(self, figures: dict[str, float]) -> dict[str, float]:
        """The figures to log; raises UserError if one is not finite."""
        require_finite(figures, self.step, self.run)
        return figures


def read_figures(tensors: Figures) -> list[dict[str, float]]:
    """Figures as numbers, waiting once for the device: those of each run, where a figure is `[S]`."""
    table: list[list[float]] = torch.stack(list(tensors.values()), -1).reshape(-1, len(tensors)).tolist()
    return [dict(zip(tensors, values, strict=True)) for values in table]
