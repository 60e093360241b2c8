"""Record a control loop's episodes tick by tick, and write them as a Minari data set."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rql_deploy.contract import PlantDescription

from .minari_files import write_dataset


class EpisodeRecorder:
    """Records what each tick observed and commanded.

    Holds count as commands, since they moved the plant too.
    """

    def __init__(self, plant: PlantDescription):
        self.plant = plant
        self.episodes: list[Any] = []
        """Finished ones, as Minari `EpisodeBuffer`s."""
        self._names = [field.name for field in plant.fields]
        self._clear()

    def _clear(self) -> None:
        self._observations: list[dict[str, NDArray[np.float64]]] = []
        self._commands: list[NDArray[np.float32]] = []
        self._success: list[bool] = [False]

    def tick(self, observation: Mapping[str, Any], command: NDArray[np.float32], success: bool) -> None:
        """Record one tick: the observation before the command, and whether the task was done after it."""
        self._observations.append(self._copy(observation))
        self._commands.append(command)
        self._success.append(success or self._success[-1])

    def end(self, seed: int, final: Mapping[str, Any] | None) -> None:
        """End the episode.

        `final` is the observation after its last command; None where the plant cannot be observed.
        """
        from minari.data_collector import EpisodeBuffer

        rows = len(self._commands)
        if rows:
            last = self._observations[-1] if final is None else self._copy(final)
            seen = [*self._observations, last]
            success = np.array(self._success)
            self.episodes.append(
                EpisodeBuffer(
                    id=len(self.episodes),
                    seed=seed,
                    observations={name: np.stack([o[name] for o in seen]) for name in self._names},
                    actions=np.stack(self._commands),
                    rewards=list(success[1:].astype(np.float64) - 1.0),
                    terminations=[False] * (rows - 1) + [bool(success[-1])],
                    truncations=[False] * (rows - 1) + [not success[-1]],
                    infos={"success": success},
                )
            )
        self._clear()

    def write(self, output: str, provenance: Mapping[str, Any]) -> Path:
        """Write the finished episodes; complete or not at all.

        Raises UserError when something is there or cannot be written.
        """
        name = re.sub(r"[^a-z0-9]+", "-", self.plant.task.lower()).strip("-")
        return write_dataset(
            output,
            self.episodes,
            self.plant,
            algorithm="rql-deploy policy",
            description=f"Played in real time on {self.plant.task}; actions are the commands, holds "
            "included.",
            provenance=provenance,
            default_id=f"rql-deploy/{name}-played-v0",
        )

    def _copy(self, observation: Mapping[str, Any]) -> dict[str, NDArray[np.float64]]:
        return {name: np.array(observation[name], np.float64) for name in self._names}
