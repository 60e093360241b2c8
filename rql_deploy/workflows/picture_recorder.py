"""Record a control loop's episodes with their pictures, as a store folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rql_deploy.contract import PlantDescription
    from rql_deploy.train.data.folder import StoreWriter


class PictureRecorder:
    """Records what each tick observed and commanded; one episode is in memory at a time.

    Used as `sim.collection.recording.EpisodeRecorder` is, which writes Minari data sets: those would store
    pictures as JPEG.
    """

    def __init__(self, plant: PlantDescription, output: Path):
        """Raises UserError where `output` exists or cannot be written."""
        from rql_deploy.train.data.folder import StoreWriter

        self.plant = plant
        self.episodes: list[int] = []
        """Rows of each finished episode."""
        self._writer: StoreWriter = StoreWriter(output, f"{plant.task} played", plant)
        self._clear()

    def _clear(self) -> None:
        self._seen: list[dict[str, NDArray[np.uint8]]] = []
        self._rows: list[NDArray[np.float32]] = []
        self._commands: list[NDArray[np.float32]] = []
        self._success: list[bool] = []

    def tick(self, observation: Mapping[str, Any], command: NDArray[np.float32], success: bool) -> None:
        """Record one tick: the observation before the command, and whether the task was done after it.

        Of stacked frames the newest is kept.
        """
        parts = [np.asarray(observation[spec.name], np.float32).reshape(-1) for spec in self.plant.fields]
        self._rows.append(np.concatenate([np.zeros(0, np.float32), *parts]))
        # A copy, because a driver may write its next frame into the same memory.
        self._seen.append({i.name: np.array(observation[i.name][..., -3:]) for i in self.plant.images})
        self._commands.append(np.array(command, np.float32))
        self._success.append(success or (bool(self._success) and self._success[-1]))

    def end(self, seed: int, final: Mapping[str, Any] | None) -> None:
        """End the episode; the seed and the observation after its last command are not kept."""
        if self._rows:
            success = np.array(self._success, np.float32)
            self._writer.add_episode(
                np.stack(self._rows),
                np.stack(self._commands),
                success - 1.0,
                1.0 - success,
                success=bool(success[-1]),
                images={i.name: np.stack([one[i.name] for one in self._seen]) for i in self.plant.images},
            )
            self.episodes.append(len(self._rows))
        self._clear()

    def write(self, output: str, provenance: Mapping[str, Any]) -> Path:
        """Finish the folder; raises UserError when it cannot be written."""
        self._writer.provenance = (provenance,)
        self._writer.close()
        return self._writer.folder

    def close(self) -> None:
        """Remove what was not finished."""
        if not self._writer.folder.exists():
            self._writer.abort()
