"""Whether a checkpoint may be gone on from: the differences that matter, named."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rql_deploy.errors import UserError
from rql_deploy.train.data.shards import ShardedStore
from rql_deploy.train.data.store import TransitionStore

from .checkpoint import Checkpoint
from .config import TrainConfig, config_to_plain

FREE = {
    "updates",
    "log_every",
    "checkpoint_every",
    "checkpoint_minutes",
    "keep_every",
    "evaluate_every",
    "trackers",
}
"""Settings that do not touch the parameters, or only say how far to go, and may change when a run is resumed."""
ARCHITECTURE = ("h", "F", "K", "policy_hidden", "value_hidden")


def require_same_run(checkpoint: Checkpoint, store: TransitionStore | ShardedStore, config: TrainConfig) -> None:
    """Raise UserError unless `checkpoint` can be resumed on this data with this configuration, naming the difference."""
    run = checkpoint.path.parent.parent
    _require_same_plant(checkpoint, store, f"run {run}", "pass the data the run was started on, or another --output for a new run")
    if checkpoint.dataset_hash != store.content_hash:
        raise UserError(
            f"run {run} was trained on data set {checkpoint.dataset_id} ({checkpoint.dataset_hash[:12]}), "
            f"not on {store.dataset_id} ({store.content_hash[:12]}): pass the same data, or --init-from {run} and another --output"
        )
    before, now = config_to_plain(checkpoint.config), config_to_plain(config)
    changed = [f"{key} {a!r} -> {b!r}" for key, a, b in _changes(before, now) if key not in FREE]
    if changed:
        raise UserError(f"run {run} was configured differently ({'; '.join(changed)}): use the same settings or another --output")
    if checkpoint.step >= config.updates:
        raise UserError(f"run {run} has done {checkpoint.step:,} updates already: pass a larger --updates, or export it")


def require_same_networks(checkpoint: Checkpoint, store: TransitionStore | ShardedStore, config: TrainConfig) -> None:
    """Raise UserError unless a new run on this data can start from the networks of `checkpoint`."""
    _require_same_plant(checkpoint, store, f"checkpoint {checkpoint.path}", "pass data of the same robot, or train from nothing")
    for name in ARCHITECTURE:
        before, now = getattr(checkpoint.config.rql, name), getattr(config.rql, name)
        if before != now:
            value = list(before) if isinstance(before, tuple) else before
            raise UserError(
                f"checkpoint {checkpoint.path} has rql.{name} {value}, this run {list(now) if isinstance(now, tuple) else now}: "
                f"pass --set 'rql.{name}={value}'"
            )


def _require_same_plant(checkpoint: Checkpoint, store: TransitionStore | ShardedStore, what: str, cure: str) -> None:
    if differences := checkpoint.plant.differences(store.plant):
        raise UserError(f"data set {store.dataset_id} does not fit {what} ({'; '.join(differences)}): {cure}")


def _changes(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    for key in sorted(before.keys() | now.keys()):
        a, b = before.get(key), now.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            yield from _changes(a, b, f"{prefix}{key}.")
        elif a != b:
            yield f"{prefix}{key}", a, b
