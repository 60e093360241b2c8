"""Train one run for each of several seeds in one process, for a GPU that a single run does not fill."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from rql_deploy.errors import UserError

from .train import TrainOptions, introduce, make_evaluator, prepare, sole_run

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from rql_deploy.train.loop.trainer import TrainResult


def train_seeds(
    datasets: Sequence[str | Path], output: Path, seeds: Sequence[int], **options: Unpack[TrainOptions]
) -> dict[int, TrainResult]:
    """Train runs that differ in their seed alone, side by side; each is as `train` would leave it.

    Args:
        datasets: paths or Minari ids; several are joined.
        output: folder of the runs, `seed_N` each.
        seeds: at least one, all different.
        options: as for `train`. Each run has simulators of its own where they are evaluated.

    Returns the runs' results by seed. Raises UserError as `train` does, and for several processes, pictures
    and data in shards.
    """
    from rql_deploy.train.engines.data_parallel import world_size
    from rql_deploy.train.loop.side_by_side import (
        require_begun,
        require_stackable,
        rewind_to_common,
        train_side_by_side,
    )
    from rql_deploy.train.loop.training_run import TrainingRun

    output = Path(output)
    folders = seed_folders(output, seeds)
    if world_size() > 1:
        raise UserError("several seeds train in one process: pass --seed, or leave torchrun out")
    if (output / "config.json").exists():
        raise UserError(f"{output} is the run of one seed: pass another --output")
    resume = options.get("resume", False)
    if resume:
        require_begun(folders)
    ready = prepare(datasets, tuple(folders.values()), **options)
    require_stackable(ready.store)
    evaluation, runs = options.get("evaluation"), list[TrainingRun]()
    label = f"train {output.name} ({len(seeds)} seeds)"
    with contextlib.ExitStack() as opened:
        for folder in folders.values():
            opened.enter_context(sole_run(folder, resume))
        # Not before data and settings will do: this removes checkpoints.
        resume = resume and rewind_to_common(folders)
        for seed, folder in folders.items():
            evaluator = None
            if evaluation is not None:
                evaluator = make_evaluator(evaluation, seed, ready.progress)
                opened.callback(evaluator.close)
                evaluator.require(ready.store.plant)
            run = TrainingRun(
                msgspec.structs.replace(ready.config, seed=seed),
                ready.store,
                folder,
                label=f"train {output.name} seed {seed}",
                resume=resume,
                initial=ready.source,
                evaluator=evaluator,
                progress=ready.progress,
                beside=runs[0] if runs else None,
            )
            runs.append(run)
            ready.names.write(folder)
        remarks = [*ready.remarks, *runs[0].warnings]
        introduce(remarks, f"{label}: {runs[0].choice}", ready.store, ready.progress)
        return dict(zip(seeds, train_side_by_side(runs, label), strict=True))


def seed_folders(output: Path, seeds: Sequence[int]) -> dict[int, Path]:
    """The run folder of each seed; raises UserError where seeds repeat or are negative."""
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise UserError(f"seeds are {list(seeds)}: pass different whole numbers from 0 on, such as 0,1,2")
    return {seed: output / f"seed_{seed}" for seed in seeds}
