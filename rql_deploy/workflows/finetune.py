"""Go on from a trained run in a simulator: play, update, evaluate, in one process."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from rql_deploy.errors import UserError
from rql_deploy.progress import NoProgress, Progress

from .backbone import copied_backbones
from .data.names import DataNames
from .policies import with_pictures
from .train import PeriodicEvaluation, introduce, make_evaluator, require_usable, sole_run

if TYPE_CHECKING:
    from rql_deploy.contract import PlantDescription
    from rql_deploy.sim.plants.tasks import Task
    from rql_deploy.train.loop.trainer import TrainResult


def finetune(
    task: str,
    source: Path,
    output: Path,
    *,
    steps: int = 100_000,
    datasets: Sequence[str | Path] = (),
    overrides: Sequence[str] = (),
    resume: bool = False,
    evaluate_every: int = 10_000,
    evaluate_episodes: int = 50,
    evaluate_workers: int = 1,
    settings: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> TrainResult:
    """Let a trained policy play a task in a simulator, and train on the old data and on what it played.

    Args:
        task: what to play, such as `robosuite:Lift`.
        source: the run or checkpoint to start from.
        output: the new run's folder.
        steps: control steps to play in all.
        datasets: the offline data; else what the run says that it was trained on.
        overrides: `key=value` words on top of the run's settings, such as `online.candidates=4`.
        resume: continue the run in `output` from its latest checkpoint, bit for bit.
        evaluate_every: updates between two evaluations of the averaged policy; 0 for none.
        settings: `robot`, `controller`, `control_rate` and `horizon`; else those of the run's data.

    SIGINT and SIGTERM let the update under way end and save a checkpoint; the result then is not `finished`.
    Raises UserError for a task, run, data or settings that do not fit each other.
    """
    from rql_deploy.sim.plants.tasks import EnvPlant, describe
    from rql_deploy.train.checkpoints.checkpoint import load_checkpoint
    from rql_deploy.train.config import require_not_set, with_overrides
    from rql_deploy.train.data.feature_cache import FeatureCache, feature_folder
    from rql_deploy.train.data.shards import with_settings
    from rql_deploy.train.online.trainer import OnlineTrainer

    source, output, progress = Path(source), Path(output), progress or NoProgress()
    how = "a run that plays counts control steps, each with online.updates_per_step updates: pass --steps"
    require_not_set(overrides, "updates", how)
    require_usable(output, resume)
    checkpoint = load_checkpoint(source)
    config = with_overrides(
        msgspec.structs.replace(checkpoint.config, evaluate_every=evaluate_every), tuple(overrides)
    )
    config = msgspec.structs.replace(config, updates=steps * config.online.updates_per_step)
    names = DataNames.of(datasets, None, "", "", (), ()) if datasets else DataNames.read(source)
    store = with_settings(names.open(config.relabel, progress), config.reward, config.shard_updates)
    if not datasets and checkpoint.dataset_hash != store.content_hash:
        raise UserError(
            f"the data that {source} was trained on has changed since ({checkpoint.dataset_hash[:12]}, now "
            f"{store.content_hash[:12]}): pass data with --dataset to go on from what is there"
        )
    work = _task(task, checkpoint.plant, settings or {})
    evaluator, features = None, None
    with contextlib.ExitStack() as opened:
        opened.enter_context(sole_run(output, resume))
        env = work.make_env()
        opened.callback(env.close)
        env.drawn = False
        if config.evaluate_every:
            evaluation = PeriodicEvaluation(task, evaluate_episodes, evaluate_workers, work.settings)
            evaluator = make_evaluator(evaluation, config.seed, progress, store.plant.images)
            opened.callback(evaluator.close)
        if checkpoint.backbones:
            features = FeatureCache(feature_folder(), copied_backbones(checkpoint, output), progress)
        trainer = OnlineTrainer(
            config,
            store,
            output,
            EnvPlant(env, stop_at_success=False),
            describe(task, env),
            label=f"finetune {output.name}",
            resume=resume,
            initial=checkpoint,
            evaluator=evaluator,
            features=features,
            progress=progress,
        )
        names.write(output)
        introduce(trainer.warnings, f"finetune {output.name}: {trainer.choice}", store, progress)
        return trainer.train()


def _task(task: str, plant: PlantDescription, settings: Mapping[str, Any]) -> Task:
    """The task as the data was collected on it, but for `settings`."""
    from rql_deploy.sim.plants.tasks import FAMILIES, Task

    own: Mapping[str, Any] = {}
    if task == plant.task and task.partition(":")[0] in FAMILIES:
        own = Task.of_plant(plant).settings
    given = {name: value for name, value in settings.items() if value is not None}
    work = Task(task, with_pictures({**own, **given}, plant.images))
    work.check()
    return work
