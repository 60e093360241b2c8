"""Train a policy on data sets, evaluating checkpoints on the way where asked."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import msgspec

from rql_deploy.errors import UserError
from rql_deploy.folders import LOCK, exclusive_lock
from rql_deploy.progress import NoProgress, Progress

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from rql_deploy.contract import ImageField
    from rql_deploy.train.checkpoints.checkpoint import Checkpoint
    from rql_deploy.train.config import TrainConfig
    from rql_deploy.train.data.feature_cache import FeatureCache
    from rql_deploy.train.data.shards import ShardedStore
    from rql_deploy.train.data.store import TransitionStore
    from rql_deploy.train.loop.trainer import TrainResult
    from rql_deploy.workflows.training_evaluator import SimulatedEvaluator

    from .data.names import DataNames

UNFINISHED_RUN = {
    "config.json",
    "metrics.jsonl",
    "tensorboard",
    "checkpoints",
    "README.md",
    "backbones",
    "curves.png",
    "data.json",
    "played",
    "wandb",
    "mlflow.db",
    ".lock",
    ".latest.partial",
    ".best.partial",
}
"""What a run that ended before its first checkpoint may have left."""


@dataclass(frozen=True)
class PeriodicEvaluation:
    """Evaluations while training goes on; how often, the setting `evaluate_every` says."""

    task: str
    episodes: int = 20
    workers: int = 1
    """Simulator processes beside training."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """`robot`, `controller`, `control_rate` and `horizon`, where not the task's own."""


class TrainOptions(TypedDict, total=False):
    """What `train` and `train_seeds` take by keyword."""

    preset: str | None
    """Name of the settings to start from; else those of the run that `initial` or `resume` names, those made
    for the data's task, or `reference`."""
    overrides: Sequence[str]
    """`key=value` words on top of them, such as `rql.alpha=3` or `updates=5000`."""
    resume: bool
    """Continue from the latest checkpoint in the output."""
    initial: Path | None
    """Checkpoint or run whose networks a new run starts from."""
    rate: float | None
    """Control rate in Hz, where the data does not say it or says it wrongly."""
    action_mode: str
    """`delta` or `absolute`, or `NAME=delta` for single dimensions, separated by commas."""
    action_bounds: str
    """A TOML file of `[actions.NAME]` with low and high, `dataset`, or `[LOW,HIGH]`."""
    evaluation: PeriodicEvaluation | None
    mapping: Sequence[str]
    """`WHAT=KEY` words that name keys of the data sets' files, such as `action=actions`."""
    tasks: Sequence[int]
    """Only episodes of these language tasks of LeRobotDatasets."""
    cameras: Sequence[str]
    """Cameras that the policy looks through, `NAME[:HEIGHTxWIDTH]`."""
    progress: Progress | None


def train(datasets: Sequence[str | Path], output: Path, **options: Unpack[TrainOptions]) -> TrainResult:
    """Train an RQL flow policy offline on one data set or several.

    Args:
        datasets: paths or Minari ids; several are joined.
        output: the run's folder: checkpoints, logs, configuration.
        options: see `TrainOptions`.

    SIGINT and SIGTERM let the update under way end and save a checkpoint; the result then is not `finished`.
    Under torchrun every worker calls this, and results are equal. Raises UserError for settings, data or
    folders that will not do.
    """
    from rql_deploy.train.engines.choice import choose_device
    from rql_deploy.train.engines.data_parallel import DataParallel
    from rql_deploy.train.loop.trainer import Trainer

    output = Path(output)
    ready = prepare(datasets, (output,), **options)
    evaluation, config, store = options.get("evaluation"), ready.config, ready.store
    parallel = DataParallel.from_environment(choose_device(config))
    leader = parallel is None or parallel.rank == 0
    evaluator = None
    with contextlib.ExitStack() as opened:
        if parallel is not None:
            opened.callback(parallel.close)
        if leader:
            opened.enter_context(sole_run(output, options.get("resume", False)))
        if evaluation is not None and leader:
            evaluator = make_evaluator(evaluation, config.seed, ready.progress, store.plant.images)
            opened.callback(evaluator.close)
            evaluator.require(store.plant)
        trainer = Trainer(
            config,
            store,
            output,
            label=f"train {output.name}",
            resume=options.get("resume", False),
            initial=ready.source,
            evaluator=evaluator,
            parallel=parallel,
            features=ready.features,
            progress=ready.progress,
        )
        if leader:
            ready.names.write(output)
            remarks = [*ready.remarks, *trainer.warnings]
            introduce(remarks, f"train {output.name}: {trainer.choice}", store, ready.progress)
        return trainer.train()


@dataclass(frozen=True)
class Prepared:
    """What a run needs: settings, data, and what was found out about them."""

    config: TrainConfig
    store: TransitionStore | ShardedStore
    names: DataNames
    source: Checkpoint | None
    """What a new run starts from."""
    features: FeatureCache | None
    remarks: list[str]
    """For the user to read, one sentence each."""
    progress: Progress


def prepare(
    datasets: Sequence[str | Path],
    folders: Sequence[Path],
    *,
    preset: str | None = None,
    overrides: Sequence[str] = (),
    resume: bool = False,
    initial: Path | None = None,
    rate: float | None = None,
    action_mode: str = "",
    action_bounds: str = "",
    evaluation: PeriodicEvaluation | None = None,
    mapping: Sequence[str] = (),
    tasks: Sequence[int] = (),
    cameras: Sequence[str] = (),
    progress: Progress | None = None,
) -> Prepared:
    """Settings and data of the runs in these folders; see `TrainOptions`.

    Raises UserError for settings, data or folders that will not do.
    """
    from rql_deploy.train.checkpoints.checkpoint import load_checkpoint
    from rql_deploy.train.config import load_config
    from rql_deploy.train.data.feature_cache import FeatureCache, feature_folder
    from rql_deploy.train.data.shards import with_settings

    from .backbone import open_backbones
    from .data.names import DataNames
    from .presets import GENERAL_PRESET, preset_of

    progress, remarks = progress or NoProgress(), []
    source = load_checkpoint(initial) if initial is not None else None
    earlier = source
    if preset is None and resume and (folders[0] / "latest").is_file():
        earlier = load_checkpoint(folders[0])
    config = settings_of(earlier, preset, overrides)
    if initial is not None and resume:
        raise UserError("--init-from starts a new run and --resume continues one: pass only one of them")
    if config.evaluate_every and evaluation is None:
        raise UserError(
            "train.evaluate_every is set, but not the task to play: pass --evaluate TASK, "
            "for example robosuite:Lift"
        )
    if evaluation is not None and not config.evaluate_every:
        raise UserError("--evaluate needs to know how often: pass --evaluate-every N too")
    if is_leader():
        # Under torchrun the other workers may find the leader's files there.
        for folder in folders:
            require_usable(folder, resume)
    names = DataNames.of(datasets, rate, action_mode, action_bounds, mapping, tasks, cameras)
    # Only OGBench's files lack rewards, and their names say the task.
    named = preset_of(f"ogbench:{Path(datasets[0]).name.removesuffix('.npz')}") if preset is None else None
    relabel = config.relabel or (load_config(named).relabel if named else "")
    store = names.open(relabel, progress if is_leader() else None)
    if preset is None and earlier is not None:
        remarks.append(f"settings of {earlier.path}; --preset takes others")
    elif preset is None:
        learns_to_see = bool(store.plant.images) and not config.backbone
        preset = preset_of(store.plant.task, pictures=learns_to_see) or GENERAL_PRESET
        config = load_config(preset, tuple(overrides))
        remarks.append(f"preset {preset}, {_why(preset, store.plant.task)}; --preset takes another")
    store = with_settings(store, config.reward, config.shard_updates)
    features = None
    if config.backbone:
        opened = open_backbones(config.backbone, store.plant, folders[0])
        features = FeatureCache(feature_folder(), opened, progress)
    return Prepared(config, store, names, source, features, remarks, progress)


def settings_of(earlier: Checkpoint | None, preset: str | None, overrides: Sequence[str]) -> TrainConfig:
    """Those of the preset, else of the earlier run, else the general ones, with `key=value` words."""
    from rql_deploy.train.config import load_config, with_overrides

    from .presets import GENERAL_PRESET

    if preset is None and earlier is not None:
        # How often it was evaluated is said with the task that it is evaluated on.
        return with_overrides(msgspec.structs.replace(earlier.config, evaluate_every=0), tuple(overrides))
    return load_config(preset or GENERAL_PRESET, tuple(overrides))


def is_leader() -> bool:
    """Whether this process is the only one, or torchrun's first: the one that writes and reports."""
    from rql_deploy.train.engines.data_parallel import world_size

    # RANK alone is somebody else's, such as a batch system's.
    return world_size() == 1 or os.environ.get("RANK") == "0"


def require_usable(output: Path, resume: bool) -> None:
    """Raise UserError unless a run may begin in this folder, or with `resume` continue."""
    if output.exists() and not output.is_dir():
        raise UserError(f"{output} is a file: pass a folder as --output")
    try:
        str(output.absolute()).encode()
    except UnicodeEncodeError as error:
        raise UserError(f"the path of {output} is not UTF-8: pass another --output") from error
    if (output / "latest").exists() and not resume:
        raise UserError(f"{output} holds a run already: pass --resume to continue it, or another --output")
    # A run that ended before its first checkpoint leaves its logs; anything else there may be the user's.
    if output.exists() and not resume and any(entry.name not in UNFINISHED_RUN for entry in output.iterdir()):
        raise UserError(f"{output} holds other files: pass another --output")


@contextlib.contextmanager
def sole_run(output: Path, resume: bool) -> Iterator[None]:
    """Within the block no other process of this machine trains in this folder; raises UserError where one
    does, or has done since `require_usable` was asked. A run that is then refused leaves no folder.
    """
    made = not output.exists()
    with exclusive_lock(output, f"another process trains in {output}"):
        try:
            require_usable(output, resume)
            yield
        finally:
            if made and output.is_dir() and [entry.name for entry in output.iterdir()] == [LOCK]:
                shutil.rmtree(output)


def _why(preset: str, task: str) -> str:
    from .presets import GENERAL_PRESET

    if preset != GENERAL_PRESET:
        return f"which is for {task}"
    return f"the released code's settings, since no preset was made for '{task}'"


def make_evaluator(
    evaluation: PeriodicEvaluation, seed: int, progress: Progress, images: Sequence[ImageField] = ()
) -> SimulatedEvaluator:
    """Simulators that play the run's checkpoints, which look at `images`."""
    from rql_deploy.workflows.training_evaluator import SimulatedEvaluator

    return SimulatedEvaluator(
        evaluation.task, evaluation.settings, evaluation.episodes, evaluation.workers, seed, progress, images
    )


def introduce(
    remarks: Sequence[str], title: str, store: TransitionStore | ShardedStore, progress: Progress
) -> None:
    """Note what to look at in the data, and how the run begins."""
    for remark in remarks:
        progress.note(f"note: {remark}")
    progress.note(f"{title}, {store.episodes:,} episodes, {len(store):,} rows")
