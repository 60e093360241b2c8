"""Logs of a run: TensorBoard event files and one JSON line per entry, always both and nothing online."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from rql_deploy.errors import UserError

GROUPS = {"total": "losses", "policy_value": "losses", "bc": "losses", "value": "losses", "v_mean": "value", "target_mean": "value"}


class RunLog:
    """`RUN/config.json`, `RUN/metrics.jsonl` and `RUN/tensorboard/`; appends when the run is resumed."""

    def __init__(self, run: Path, config: Mapping[str, Any]):
        try:
            run.mkdir(parents=True, exist_ok=True)
            (run / "config.json").write_text(json.dumps(config, indent=1))
            self._lines = (run / "metrics.jsonl").open("a", buffering=1)
        except OSError as error:
            raise UserError(f"cannot write run {run} ({error.strerror}): pass another --output") from error
        self._tensorboard = SummaryWriter(str(run / "tensorboard"))

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Log `figures` at update `step`."""
        try:
            self._lines.write(json.dumps({"step": step, "time": time.time(), **figures}) + "\n")
        except OSError as error:
            raise UserError(f"cannot write {self._lines.name} ({error.strerror}): make room and resume from the last checkpoint") from error
        for name, value in figures.items():
            self._tensorboard.add_scalar(f"{GROUPS.get(name, 'speed')}/{name}", value, step)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._lines.close()
        self._tensorboard.close()
