"""Checkpoints: everything a run needs to go on bit for bit and an export needs to make a bundle. safetensors and JSON, no pickle.

    RUN/checkpoints/step_000006000/   checkpoint.json, parameters.safetensors, optimizer.safetensors, reference.safetensors
    RUN/latest                        the newest complete checkpoint's name
    RUN/best                          that of the one with the highest success, where training was evaluated

A checkpoint is written to a temporary folder, synced and renamed, and only then does `latest` move: a crash or a full disk at any
moment leaves the previous one in charge.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rql_deploy.contract import PlantDescription
from rql_deploy.errors import UserError
from rql_deploy.train.data.shards import ShardedStore
from rql_deploy.train.data.store import TransitionStore

from .checkpoint_header import FORMAT, read_header
from .config import TrainConfig, config_to_plain
from .rql import RQL

NETWORKS = ("v", "V", "v_ema", "V_target")
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


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as read from disk."""

    path: Path
    step: int
    config: TrainConfig
    plant: PlantDescription
    dataset_id: str
    dataset_hash: str
    statistics: Mapping[str, Any]
    """What the data set showed: episodes, rows, success, quantiles (trainer.dataset_statistics)."""
    versions: Mapping[str, str]
    parameters: dict[str, Tensor]
    engine: Mapping[str, Any]
    """How updates were run: engine, precision, device, threads."""
    initialised_from: str | None
    """The checkpoint that the run started from, None when it started from nothing."""
    reference: dict[str, Tensor]
    """`observations` `[N, O]` and `chunks` `[N, hA]` of the data set, and the `mean` and `std` that observations are scaled with."""

    def config_table(self) -> dict[str, Any]:
        """The settings by dotted name, as `--set` takes them."""
        plain = config_to_plain(self.config)
        rql = plain.pop("rql")
        return {f"rql.{name}": value for name, value in rql.items()} | plain

    def restore_networks(self, device: torch.device | str = "cpu") -> RQL:
        """An RQL agent with this checkpoint's four networks."""
        agent = RQL(self.config.rql, self.plant.observation_dim, self.plant.action_dim, device=device)
        for name in NETWORKS:
            network: nn.Module = getattr(agent, name)
            prefix = f"{name}."
            try:
                network.load_state_dict({k.removeprefix(prefix): t for k, t in self.parameters.items() if k.startswith(prefix)})
            except RuntimeError as error:
                raise UserError(f"checkpoint {self.path} does not hold the networks its configuration describes: train again") from error
        return agent


def save_checkpoint(
    run: Path,
    step: int,
    agent: RQL,
    *,
    header: Mapping[str, Any],
    reference: Mapping[str, Tensor],
    random_state: Tensor,
) -> Path:
    """Write checkpoint `step` under `run` and make it the latest. Raises UserError when the disk does not take it; older ones stay."""
    final = checkpoint_folder(run, step)
    temporary = final.with_name(f".{final.name}.partial")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        parameters = {f"{name}.{key}": tensor for name in NETWORKS for key, tensor in getattr(agent, name).state_dict().items()}
        save_file(parameters, temporary / "parameters.safetensors")
        save_file(_optimizer_tensors(agent.optimizer) | {"random_state": random_state}, temporary / "optimizer.safetensors")
        save_file(dict(reference), temporary / "reference.safetensors")
        (temporary / "checkpoint.json").write_text(json.dumps({"format": FORMAT, "step": step, **header}, indent=1, allow_nan=False))
        for file in temporary.iterdir():
            _sync(file)
        _sync(temporary)
        if final.exists():
            # Never without a whole checkpoint of this name: `latest` may be pointing here.
            aside = final.with_name(f".{final.name}.old.partial")
            shutil.rmtree(aside, ignore_errors=True)
            final.rename(aside)
        temporary.rename(final)
        _sync(final.parent)
        point(run, "latest", final)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise UserError(f"cannot write checkpoint {final} ({error}): the previous checkpoint is untouched; make room and resume") from error
    return final


def point(run: Path, pointer: Literal["latest", "best"], checkpoint: Path) -> None:
    """Move a pointer of the run to one of its checkpoints, atomically."""
    partial = run / f".{pointer}.partial"
    partial.write_text(checkpoint.name)
    _sync(partial)
    partial.replace(run / pointer)
    _sync(run)


def pointed(run: Path, pointer: Literal["latest", "best"]) -> Path | None:
    """The checkpoint that a pointer of the run names, None where there is no such pointer."""
    file = run / pointer
    return run / "checkpoints" / file.read_text(errors="replace").strip() if file.is_file() else None


def checkpoint_folder(run: Path, step: int) -> Path:
    """Where the run keeps the checkpoint of this step."""
    return run / "checkpoints" / f"step_{step:09d}"


def step_of(checkpoint: Path) -> int:
    """The update number in a checkpoint folder's name."""
    return int(checkpoint.name.removeprefix("step_"))


def prune_checkpoints(run: Path, keep: Callable[[int], bool]) -> None:
    """Remove the run's checkpoints that are neither `latest` nor `best` and whose step `keep` does not want, and what a kill has left."""
    pointers = {pointed(run, "latest"), pointed(run, "best")}
    for folder in (run / "checkpoints").glob("step_*"):
        if folder not in pointers and not keep(step_of(folder)):
            # Renamed first, so that a half-removed folder never looks like a checkpoint.
            doomed = folder.with_name(f".{folder.name}.partial")
            folder.rename(doomed)
    for leftover in (run / "checkpoints").glob(".*.partial"):
        shutil.rmtree(leftover, ignore_errors=True)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint folder, or the latest of a run folder; raises UserError when it is missing or damaged."""
    folder = resolve_checkpoint(path)
    header = read_header(folder)
    try:
        reference = load_file(folder / "reference.safetensors")
        if not {"observations", "chunks", "mean", "std"} <= reference.keys():
            raise ValueError("its reference rows are incomplete")
        return Checkpoint(
            path=folder,
            step=header.step,
            config=header.config,
            plant=header.plant,
            dataset_id=header.dataset_id,
            dataset_hash=header.dataset_hash,
            statistics=header.statistics,
            versions=header.versions,
            engine=header.engine,
            initialised_from=header.initialised_from,
            parameters=load_file(folder / "parameters.safetensors"),
            reference=reference,
        )
    except (OSError, SafetensorError, ValueError) as error:
        raise UserError(f"checkpoint {folder} is damaged ({type(error).__name__}: {error}): use another one or train again") from error


def resolve_checkpoint(path: Path) -> Path:
    """The checkpoint folder meant by a checkpoint folder or a run folder."""
    if (path / "checkpoint.json").is_file():
        return path
    if latest := pointed(path, "latest"):
        return latest
    raise UserError(f"{path} is neither a checkpoint nor a run with one: pass what `rql-deploy train --output` wrote")


def restore_optimizer(folder: Path, optimizer: torch.optim.Adam) -> Tensor:
    """Load Adam's state into `optimizer`; returns the state of the random generator."""
    count = len(optimizer.param_groups[0]["params"])
    try:
        tensors = load_file(folder / "optimizer.safetensors")
        state = {i: {key: tensors[f"{i}.{key}"] for key in ("step", "exp_avg", "exp_avg_sq")} for i in range(count)}
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        return tensors["random_state"]
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        raise UserError(f"checkpoint {folder} cannot be resumed from ({type(error).__name__}: {error}): start the run again") from error


def _optimizer_tensors(optimizer: torch.optim.Adam) -> dict[str, Tensor]:
    return {f"{i}.{key}": value for i, entry in optimizer.state_dict()["state"].items() for key, value in entry.items()}


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
