"""checkpoint.json: what a checkpoint says about its run, typed and checked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from rql_deploy.contract import PlantDescription
from rql_deploy.errors import UserError
from rql_deploy.structs import Record, convert
from rql_deploy.train.config import TrainConfig
from rql_deploy.train.engines.choice import EngineChoice
from rql_deploy.train.vision.frozen import FrozenBackbone

FORMAT = 1
STATISTICS = {"quantile_levels", "observation_quantiles", "action_rate_quantiles"}


class CheckpointHeader(Record, frozen=True):
    """checkpoint.json."""

    format: int
    """Of the checkpoint; a reader refuses a format it does not know."""
    step: int
    """Updates made."""
    config: TrainConfig
    """Settings of the run."""
    plant: PlantDescription
    """What the data set observes and drives."""
    dataset_id: str
    """Name of the data set."""
    dataset_hash: str
    """sha256 over its transitions."""
    statistics: Mapping[str, Any]
    """What the data set showed: episodes, rows, success, quantiles (logging.summary.dataset_statistics)."""
    versions: Mapping[str, str]
    """Versions of the packages that shaped the parameters."""
    engine: EngineChoice = EngineChoice("eager", "fp32", "cpu")
    """How updates were run: engine, precision, device, threads."""
    backbones: Mapping[str, FrozenBackbone] = msgspec.field(default_factory=dict)
    """By camera, the frozen backbone that the networks see through; cameras without one have an encoder."""
    initialised_from: str | None = None
    """The checkpoint that the run started from, None when it started from nothing."""


def read_header(folder: Path) -> CheckpointHeader:
    """The header of a checkpoint folder; raises UserError if it is missing, damaged or of another format."""
    try:
        data = json.loads((folder / "checkpoint.json").read_text())
        version = data.get("format") if isinstance(data, dict) else None
        if version == FORMAT:
            header = convert(data, CheckpointHeader, "checkpoint.json")
            if missing := sorted(STATISTICS - header.statistics.keys()):
                raise UserError(f"checkpoint.json.statistics lacks the entry '{missing[0]}'")
            return header
    except (OSError, ValueError, RecursionError, UserError) as error:
        raise UserError(
            f"checkpoint {folder} is damaged ({error}): use another one or train again"
        ) from error
    raise UserError(
        f"checkpoint {folder} has format {version!r}, this rql-deploy reads {FORMAT}: train again"
    )
