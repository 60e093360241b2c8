"""RUN/data.json: what a run was trained on and how it was read, for commands that go on from the run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rql_deploy.errors import UserError
from rql_deploy.progress import Progress
from rql_deploy.structs import Record, convert, to_plain

if TYPE_CHECKING:
    from rql_deploy.train.data.shards import ShardedStore
    from rql_deploy.train.data.store import TransitionStore

FILE = "data.json"


class DataNames(Record, frozen=True):
    """Data sets by path or Minari id, in order, and the words that said how to read them."""

    datasets: tuple[str, ...]
    rate: float | None = None
    action_mode: str = ""
    action_bounds: str = ""
    mapping: tuple[str, ...] = ()
    tasks: tuple[int, ...] = ()
    cameras: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        datasets: Sequence[str | Path],
        rate: float | None,
        action_mode: str,
        action_bounds: str,
        mapping: Sequence[str],
        tasks: Sequence[int],
        cameras: Sequence[str] = (),
    ) -> DataNames:
        """With absolute paths, since a later command may be typed elsewhere."""
        from rql_deploy.train.data.readers.robomimic import split_filter_key

        if isinstance(datasets, str | Path) or not datasets:
            raise UserError(f"data sets are a list of paths or Minari ids, at least one, not {datasets!r}")
        names = []
        for name in map(str, datasets):
            path, key = split_filter_key(name)
            known = str(Path(path).absolute()) if Path(path).exists() else path
            names.append(f"{known}#{key}" if key else known)
        bounds = Path(action_bounds)
        if action_bounds and bounds.is_file():
            action_bounds = str(bounds.absolute())
        stated = rate, action_mode, action_bounds
        return cls(tuple(names), *stated, tuple(mapping), tuple(tasks), tuple(cameras))

    def write(self, run: Path) -> None:
        """Write the run's file; raises OSError where it cannot be written."""
        run.mkdir(parents=True, exist_ok=True)
        (run / FILE).write_text(json.dumps(to_plain(self), indent=1))

    @classmethod
    def read(cls, run: Path) -> DataNames:
        """Of a run, or of the run that a checkpoint belongs to; raises UserError where it does not say."""
        for folder in (run, run.absolute().parent.parent):
            try:
                return convert(json.loads((folder / FILE).read_text()), cls, FILE)
            except (OSError, ValueError):
                continue
        raise UserError(f"{run} does not say what it was trained on: pass its data with --dataset")

    def open(self, relabel: str = "", progress: Progress | None = None) -> TransitionStore | ShardedStore:
        """The data as one set; `relabel` is the OGBench task whose rewards files without any are given."""
        from rql_deploy.train.data.readers import open_stores
        from rql_deploy.train.data.statements import Statements

        from .sources import parse_read_options

        return open_stores(
            self.datasets,
            relabel=LazyRewards(relabel) if relabel else None,
            stated=Statements(self.rate, self.action_mode, self.action_bounds),
            options=parse_read_options(self.mapping, self.tasks, self.cameras, progress),
        )


class LazyRewards:
    """An OGBench task's rewards.

    Imports the simulators only for a file without rewards, so that training runs without them.
    """

    def __init__(self, name: str):
        self.name = name

    def __call__(self, arrays: Any) -> Any:
        from rql_deploy.sim.plants.ogbench_rewards import OGBenchRewards

        return OGBenchRewards(self.name)(arrays)
