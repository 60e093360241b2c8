"""A person's action goes from the plant over the wire into the recording, and into the data set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from rql_deploy.bundle.bundle import Bundle
from rql_deploy.runtime.client.episode_upload import EpisodeReporter
from rql_deploy.runtime.client.reported_plant import ReportedPlant
from rql_deploy.workflows.data.recorded import read_recorded
from tests.helpers.commands import cli
from tests.helpers.rail import Rail
from tests.helpers.servers import observation, serving


class Guided(Rail):
    """A person takes over in the fourth tick."""

    intervened = False
    carried_out: Any = None

    def apply(self, action: np.ndarray) -> None:
        super().apply(action)
        self.intervened = len(self.applied) == 4
        self.carried_out = np.array([0.25, -0.5], np.float32)

    def close(self) -> None: ...


def test_what_a_person_did_is_recorded_as_such(bundle: Path, tmp_path: Path) -> None:
    contract = Bundle.open(bundle).contract
    with serving(bundle, "--record", str(tmp_path / "recording")) as (address, process):
        with EpisodeReporter.connect(address) as reporter:
            plant = ReportedPlant(Guided(horizon=6), reporter)
            plant.reset()
            for _ in range(6):
                plant.apply(np.ones(2, np.float32))
            # Another loop says so itself; an episode without a person says nothing.
            reporter.add(observation(contract), np.zeros(2), success=True, intervened=True)
            reporter.finish()
            reporter.add(observation(contract), np.zeros(2), success=True)
        assert reporter.dropped == 0
        process.terminate()
        process.wait()
    store = read_recorded(str(tmp_path / "recording")).store
    assert store.intervened is not None
    # Two loops began within a microsecond: which came first is not said.
    assert store.intervened[3] and store.intervened.sum() == 2
    assert store.actions[[2, 3]].tolist() == [[1.0, 1.0], [0.25, -0.5]]
    told = cli("data", "inspect", tmp_path / "recording").output
    assert "intervened   in 2 rows of 2 episodes: not the policy's actions" in told
