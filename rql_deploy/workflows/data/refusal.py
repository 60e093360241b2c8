"""Whether training with the preset of a data set's task would take the data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rql_deploy.errors import UserError
from rql_deploy.recording_files import is_recording

from ..presets import GENERAL_PRESET, preset_of
from .sources import open_data

if TYPE_CHECKING:
    from rql_deploy.train.config import TrainConfig
    from rql_deploy.train.data.readers.options import ReadOptions
    from rql_deploy.train.data.shards import ShardedStore
    from rql_deploy.train.data.store import TransitionStore


def training_refusal(
    data: str, opened: TransitionStore | ShardedStore, options: ReadOptions | None = None
) -> str | None:
    """Why `train` with the preset of the data's task would refuse `data`, by the same checks; None where it
    would not.

    `opened` is what inspection opened, in which rewards that a file lacks are 0.
    """
    from rql_deploy.train.config import load_config
    from rql_deploy.train.data.shards import with_settings

    if is_recording(Path(data)):
        return "it is a server's recording: make a data set of it with `rql-deploy data convert`"
    config = load_config(preset_of(opened.plant.task, pictures=bool(opened.plant.images)) or GENERAL_PRESET)
    try:
        store = with_settings(opened, config.reward, config.shard_updates)
        store.validate(config.rql.h, learn_value=not _computes_rewards(data, config, options))
        store.sample.check_actions()
    except UserError as error:
        return str(error)
    return None


def _computes_rewards(data: str, config: TrainConfig, options: ReadOptions | None) -> bool:
    """Whether training computes rewards that the data lacks."""
    if not config.relabel:
        return False
    try:
        open_data(data, options=options)
    except UserError:
        return True
    return False
