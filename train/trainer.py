"""The training loop: draw a window, update, log, checkpoint; stops at any moment without losing work."""

from __future__ import annotations

import contextlib
import math
import signal
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor

import rql_deploy
from rql_deploy.errors import UserError
from rql_deploy.progress import ProgressLine

from .checkpoint import load_checkpoint, restore_optimizer, save_checkpoint
from .config import TrainConfig, config_to_plain
from .logs import RunLog
from .rql import RQL, Losses, draw_noise
from .sampler import WindowSampler
from .store import TransitionStore

REFERENCE_ROWS = 512
"""Data set rows kept in a checkpoint for the export's certificate and calibration."""
QUANTILE_LEVELS = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)


@dataclass(frozen=True)
class TrainResult:
    """How a run ended."""

    checkpoint: Path
    step: int
    finished: bool
    """False when it was interrupted and can be resumed."""
    updates_per_second: float
    losses: Mapping[str, float]


class Trainer:
    """One training run in folder `run`. Everything random comes from one generator, so a resumed run repeats an uninterrupted one."""

    def __init__(self, config: TrainConfig, store: TransitionStore, run: Path, *, label: str = "train"):
        if config.threads:
            torch.set_num_threads(config.threads)
        store.validate(config.rql.h)
        self.config, self.store, self.run, self.label = config, store, run, label
        self.generator = torch.Generator().manual_seed(config.seed)
        mean, std = (torch.from_numpy(part) for part in store.observation_scale(config.standardise))
        self.sampler = WindowSampler(
            store,
            config.rql.h,
            sampling=config.sampling,
            complete_rows=config.rql.complete_rows,
            observation_scale=(mean, std),
            clip_actions=config.clip_actions,
            generator=self.generator,
        )
        self.agent = RQL(config.rql, store.plant.observation_dim, store.plant.action_dim, self.generator)
        self.reference = reference_rows(self.sampler, store, config.rql.h) | {"mean": mean, "std": std}
        self.statistics = dataset_statistics(store)
        self.step = 0

    def resume(self) -> None:
        """Continue from the run's latest checkpoint; refuses another data set or configuration, naming the difference."""
        checkpoint = load_checkpoint(self.run)
        differences = checkpoint.plant.differences(self.store.plant)
        if differences:
            raise UserError(
                f"data set {self.store.dataset_id} does not fit run {self.run} ({'; '.join(differences)}): "
                "pass the data the run was started on, or another --output for a new run"
            )
        if checkpoint.dataset_hash != self.store.content_hash:
            raise UserError(
                f"run {self.run} was trained on data set {checkpoint.dataset_id} ({checkpoint.dataset_hash[:12]}), "
                f"not on {self.store.dataset_id} ({self.store.content_hash[:12]}): pass the same data, or another --output for a new run"
            )
        before, now = config_to_plain(checkpoint.config), config_to_plain(self.config)
        changed = [
            f"{key} {a!r} -> {b!r}"
            for key, a, b in _changes(before, now)
            if key not in ("updates", "log_every", "checkpoint_every", "threads")
        ]
        if changed:
            raise UserError(f"run {self.run} was configured differently ({'; '.join(changed)}): use the same settings or another --output")
        if checkpoint.step >= self.config.updates:
            raise UserError(f"run {self.run} has done {checkpoint.step:,} updates already: pass a larger --updates, or export it")
        self.agent = checkpoint.restore_networks()
        self.generator.set_state(restore_optimizer(checkpoint.path, self.agent.optimizer))
        self.step = checkpoint.step

    def train(self) -> TrainResult:
        """Run to the configured number of updates, or until SIGINT/SIGTERM asks to stop; writes a checkpoint in both cases."""
        config, chunk_dim = self.config, self.config.rql.h * self.store.plant.action_dim
        progress = ProgressLine(self.label, config.updates, "updates", done=self.step)
        figures: dict[str, float] = {}
        saved: Path | None = None
        with RunLog(self.run, config_to_plain(config)) as log, stop_requests() as stop:
            while self.step < config.updates and not stop:
                batch = self.sampler.draw(config.batch_size)
                noise = draw_noise(config.batch_size, chunk_dim, config.rql.F, self.generator)
                losses = self.agent.update(batch, noise)
                self.step += 1
                due = config.checkpoint_every and self.step % config.checkpoint_every == 0
                if self.step % config.log_every == 0 or self.step == config.updates or due or stop:
                    figures = self._figures(losses)
                    log.write(self.step, figures | {"updates_per_second": progress.rate(self.step)})
                if due:
                    saved = self.save()
                progress.update(self.step, **figures)
            progress.finish(self.step, **figures)
            # Still under stop_requests: a second Ctrl-C must not tear the one checkpoint that a short run writes.
            if saved is None or not saved.name.endswith(f"{self.step:09d}"):
                saved = self.save()
        return TrainResult(saved, self.step, self.step >= config.updates, progress.rate(self.step), figures)

    def save(self) -> Path:
        """Write a checkpoint of this moment."""
        header = {
            "config": config_to_plain(self.config),
            "plant": asdict(self.store.plant),
            "dataset_id": self.store.dataset_id,
            "dataset_hash": self.store.content_hash,
            "statistics": self.statistics,
            "versions": package_versions(),
        }
        return save_checkpoint(
            self.run, self.step, self.agent, header=header, reference=self.reference, random_state=self.generator.get_state()
        )

    def _figures(self, losses: Losses) -> dict[str, float]:
        figures = {name: float(value) for name, value in losses._asdict().items()}
        for name, value in figures.items():
            if not math.isfinite(value):
                raise UserError(
                    f"{name} became {value} at update {self.step}: the run stops, its last checkpoint is untouched; "
                    "lower rql.learning_rate or look at the data set's ranges"
                )
        return figures


def reference_rows(sampler: WindowSampler, store: TransitionStore, h: int) -> dict[str, Tensor]:
    """Evenly spaced data set rows that start a full chunk: `observations` `[N, O]` unscaled, `chunks` `[N, hA]` in [-1, 1]."""
    starts = np.concatenate([np.arange(a, b - h + 1) for a, b in zip(store.starts, store.ends, strict=True) if b - a >= h])
    chosen = starts[np.linspace(0, len(starts) - 1, min(REFERENCE_ROWS, len(starts))).round().astype(int)]
    rows = torch.from_numpy(chosen)[:, None] + torch.arange(h)
    return {"observations": torch.from_numpy(store.observations[chosen]), "chunks": sampler.actions[rows].flatten(1)}


def dataset_statistics(store: TransitionStore) -> dict[str, Any]:
    """Episodes, rows, success, and the quantiles that become the contract's calibration."""
    same_episode = np.ones(len(store) - 1, bool)
    same_episode[store.ends[:-1] - 1] = False
    rates = np.abs(np.diff(store.actions, axis=0))[same_episode]
    fields, start = {}, 0
    for spec in store.plant.fields:
        fields[spec.name] = np.quantile(store.observations[:, start : start + spec.size], QUANTILE_LEVELS, axis=0).tolist()
        start += spec.size
    return {
        "episodes": store.episodes,
        "rows": len(store),
        "success": None if store.successes is None else float(store.successes.mean()),
        "quantile_levels": list(QUANTILE_LEVELS),
        "observation_quantiles": fields,
        "action_rate_quantiles": np.quantile(rates, QUANTILE_LEVELS, axis=0).tolist(),
    }


def package_versions() -> dict[str, str]:
    """Versions of what shaped the parameters."""
    found = {"rql-deploy": rql_deploy.__version__, "python": ".".join(map(str, sys.version_info[:3]))}
    for name in ("torch", "numpy", "robosuite", "mujoco", "minari", "gymnasium"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


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


def _changes(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    for key in sorted(before.keys() | now.keys()):
        a, b = before.get(key), now.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            yield from _changes(a, b, f"{prefix}{key}.")
        elif a != b:
            yield f"{prefix}{key}", a, b
