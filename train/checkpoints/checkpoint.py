"""Checkpoints: what resuming a run bit for bit and exporting it need, in safetensors and JSON, without
pickle.

    RUN/checkpoints/step_000006000/   checkpoint.json, parameters.safetensors, optimizer.safetensors,
                                      reference.safetensors; online.safetensors where episodes are played

A checkpoint is written to a temporary folder, synced and renamed; then `latest` moves. Whenever a crash or a
full disk interrupts this, `latest` names a complete checkpoint.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rql_deploy.errors import UserError
from rql_deploy.folders import near_paths
from rql_deploy.train.config import TrainConfig, config_to_plain
from rql_deploy.train.data.shards import ShardedStore
from rql_deploy.train.data.store import TransitionStore
from rql_deploy.train.optimization import AVERAGES
from rql_deploy.train.rql import RQL
from rql_deploy.train.vision.pictures import picture_shapes

from .header import FORMAT, CheckpointHeader, read_header
from .run_folder import checkpoint_folder, move_pointer, read_pointer, sync

ONLINE = "online.safetensors"
"""What a run that plays episodes keeps of them."""
NETWORKS = ("v", "V", "v_ema", "V_target")
CHANGEABLE = {
    "backbone",  # paths; the files' hashes may not change
    "updates",
    "log_every",
    "checkpoint_every",
    "checkpoint_minutes",
    "keep_every",
    "evaluate_every",
    "trackers",
}
"""Settings that may change when a run is resumed, since they do not affect the updates."""
ARCHITECTURE = ("h", "F", "K", "policy_hidden", "value_hidden", "prefix", "encoder")


class Checkpoint(CheckpointHeader, frozen=True, kw_only=True):
    """A checkpoint as read from disk."""

    path: Path
    parameters: dict[str, Tensor]
    reference: dict[str, Tensor]
    """Rows of the data set:

    `observations` `[N, O]`, `chunks` `[N, hA]`; and the scaling's `mean` and `std` `[O]`.
    """

    def config_table(self) -> dict[str, Any]:
        """The settings by dotted name, as `--set` takes them."""
        plain = config_to_plain(self.config)
        rql = plain.pop("rql")
        return {f"rql.{name}": value for name, value in rql.items()} | plain

    def restore_networks(self, device: torch.device | str = "cpu") -> RQL:
        """An RQL agent with the four networks of this checkpoint."""
        sizes = self.plant.observation_dim, self.plant.action_dim
        agent = RQL(
            self.config.rql, *sizes, device=device, pictures=picture_shapes(self.plant, self.backbones)
        )
        for name in NETWORKS:
            network: nn.Module = getattr(agent, name)
            prefix = f"{name}."
            try:
                network.load_state_dict(
                    {k.removeprefix(prefix): t for k, t in self.parameters.items() if k.startswith(prefix)}
                )
            except RuntimeError as error:
                raise UserError(
                    f"checkpoint {self.path} does not hold the networks that its configuration describes: "
                    "train again"
                ) from error
        return agent


def save_checkpoint(
    run: Path,
    step: int,
    agent: RQL,
    *,
    header: Mapping[str, Any],
    reference: Mapping[str, Tensor],
    random_state: Tensor,
    online: Mapping[str, Tensor] | None = None,
) -> Path:
    """Write checkpoint `step` of `run` and let `latest` name it.

    Raises UserError if the disk is full; older checkpoints stay.
    """
    final = checkpoint_folder(run, step)
    temporary, aside = (final.with_name(f".{final.name}.{kind}partial") for kind in ("", "old."))
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        parameters = {
            f"{name}.{key}": tensor.contiguous()
            for name in NETWORKS
            for key, tensor in getattr(agent, name).state_dict().items()
        }
        save_file(parameters, temporary / "parameters.safetensors")
        save_file(
            _optimizer_tensors(agent.optimizer) | {"random_state": random_state},
            temporary / "optimizer.safetensors",
        )
        save_file(dict(reference), temporary / "reference.safetensors")
        if online:
            save_file(dict(online), temporary / ONLINE)
        (temporary / "checkpoint.json").write_text(
            json.dumps({"format": FORMAT, "step": step, **header}, indent=1, allow_nan=False)
        )
        for file in temporary.iterdir():
            sync(file)
        sync(temporary)
        if final.exists():
            # Renamed, not removed: `latest` may name it, and must always name a complete checkpoint.
            shutil.rmtree(aside, ignore_errors=True)
            final.rename(aside)
        temporary.rename(final)
        sync(final.parent)
        move_pointer(run, "latest", final)
        shutil.rmtree(aside, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise UserError(
            f"cannot write checkpoint {final} ({error}): the previous checkpoint is untouched; make room and "
            "resume"
        ) from error
    return final


def checkpoint_bytes(agent: RQL, reference: Mapping[str, Tensor]) -> int:
    """Size of one checkpoint's tensors on disk: four networks, Adam's two averages, reference rows."""
    networks = [tensor for name in NETWORKS for tensor in getattr(agent, name).state_dict().values()]
    adam = 2 * sum(parameter.nbytes for parameter in agent.parameters())
    return int(adam + sum(tensor.nbytes for tensor in (*networks, *reference.values())))


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint folder, or the latest of a run folder; raises UserError if missing or damaged."""
    folder = resolve_checkpoint(path)
    header = read_header(folder)
    try:
        reference = load_file(folder / "reference.safetensors")
        if not {"observations", "chunks", "mean", "std"} <= reference.keys():
            raise ValueError("its reference rows are incomplete")
        return Checkpoint(
            **msgspec.structs.asdict(header),
            path=folder,
            parameters=load_file(folder / "parameters.safetensors"),
            reference=reference,
        )
    except (OSError, SafetensorError, ValueError) as error:
        raise UserError(
            f"checkpoint {folder} is damaged ({type(error).__name__}: {error}): use another one or train "
            "again"
        ) from error


def resolve_checkpoint(path: Path) -> Path:
    """The checkpoint folder that `path` is, or the latest of the run folder that `path` is."""
    if (path / "checkpoint.json").is_file():
        return path
    if latest := read_pointer(path, "latest"):
        return latest
    raise UserError(
        f"{path} is neither a checkpoint nor a run that has one: pass what `rql-deploy train --output` "
        f"wrote{near_paths(path)}"
    )


def restore_optimizer(folder: Path, agent: RQL) -> Tensor:
    """Load Adam's state, and with it v's age; returns the state of the random generator."""
    optimizer = agent.optimizer
    count = len(optimizer.param_groups[0]["params"])
    try:
        tensors = load_file(folder / "optimizer.safetensors")
        parameters = optimizer.param_groups[0]["params"]
        state = {
            i: {
                "step": tensors[f"{i}.step"],
                # The fused Adam needs a parameter and its averages in the same memory layout.
                **{
                    key: torch.empty_like(parameters[i], device="cpu").copy_(tensors[f"{i}.{key}"])
                    for key in AVERAGES
                },
            }
            for i in range(count)
        }
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        agent.age.copy_(tensors["0.step"])
        return tensors["random_state"]
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        raise UserError(
            f"checkpoint {folder} cannot be resumed from ({type(error).__name__}: {error}): start the run "
            "again"
        ) from error


def load_online_state(folder: Path) -> dict[str, Tensor]:
    """What a checkpoint of a run that plays episodes keeps of them; raises UserError if it is damaged."""
    try:
        return load_file(folder / ONLINE)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"checkpoint {folder} is not of a run that plays episodes ({error}): resume it with the command "
            "that started it"
        ) from error


def _optimizer_tensors(optimizer: torch.optim.Adam) -> dict[str, Tensor]:
    return {
        f"{i}.{key}": value.contiguous()
        for i, entry in optimizer.state_dict()["state"].items()
        for key, value in entry.items()
    }


def require_same_run(
    checkpoint: Checkpoint, store: TransitionStore | ShardedStore, config: TrainConfig
) -> None:
    """Raise UserError, naming the difference, unless this data and configuration can resume `checkpoint`."""
    run = checkpoint.path.parent.parent
    _require_same_plant(
        checkpoint,
        store,
        f"run {run}",
        "pass the data the run was started on, or another --output for a new run",
    )
    if checkpoint.dataset_hash != store.content_hash:
        raise UserError(
            f"run {run} was trained on data set {checkpoint.dataset_id} ({checkpoint.dataset_hash[:12]}), "
            f"not on {store.dataset_id} ({store.content_hash[:12]}): pass the same data, or --init-from "
            f"{run} and another --output"
        )
    before, now = config_to_plain(checkpoint.config), config_to_plain(config)
    changed = [f"{key} {a!r} -> {b!r}" for key, a, b in _changes(before, now) if key not in CHANGEABLE]
    if changed:
        raise UserError(
            f"run {run} was configured differently ({'; '.join(changed)}): use the same settings or another "
            "--output"
        )
    if checkpoint.step >= config.updates:
        raise UserError(
            f"run {run} has done {checkpoint.step:,} updates already: pass a larger --updates, or export it"
        )


def require_same_networks(
    checkpoint: Checkpoint, store: TransitionStore | ShardedStore, config: TrainConfig
) -> None:
    """Raise UserError unless a new run on this data can be initialised from the networks of `checkpoint`."""
    _require_same_plant(
        checkpoint,
        store,
        f"checkpoint {checkpoint.path}",
        "pass data of the same robot, or train from nothing",
    )
    if store.plant.images and (stack := checkpoint.plant.frame_stack) != store.plant.frame_stack:
        raise UserError(
            f"checkpoint {checkpoint.path} sees {stack} frames at once, this run {store.plant.frame_stack}: "
            f"pass --set frame_stack={stack}"
        )
    for name in ARCHITECTURE:
        before, now = getattr(checkpoint.config.rql, name), getattr(config.rql, name)
        if before != now:
            had, has = (json.dumps(value) for value in (before, now))
            raise UserError(
                f"checkpoint {checkpoint.path} has rql.{name} {had}, this run {has}: "
                f"pass --set 'rql.{name}={had}'"
            )


def _require_same_plant(
    checkpoint: Checkpoint, store: TransitionStore | ShardedStore, what: str, cure: str
) -> None:
    if differences := checkpoint.plant.differences(store.plant):
        raise UserError(f"data set {store.dataset_id} does not fit {what} ({'; '.join(differences)}): {cure}")


def _changes(
    before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    for key in sorted(before.keys() | now.keys()):
        a, b = before.get(key), now.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            yield from _changes(a, b, f"{prefix}{key}.")
        elif a != b:
            yield f"{prefix}{key}", a, b
