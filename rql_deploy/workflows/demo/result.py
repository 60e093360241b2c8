"""What the demo compares, and what it measured."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rql_deploy.policy import DEFAULT_CANDIDATES

if TYPE_CHECKING:
    from rql_deploy.sim.evaluation.episodes import Score

TASK = "robosuite:Lift"
ROWS = {
    "demonstrator": "demonstrator (scripted, noisy)",
    "bc": "cloning",
    "bc_guided": f"cloning + best of {DEFAULT_CANDIDATES} by V",
    "rql": "RQL",
    "rql_guided": f"RQL + best of {DEFAULT_CANDIDATES} by V",
}
BEST = "rql_guided"


@dataclass(frozen=True)
class DemoPlan:
    """What a demo trains on, and for how long."""

    preset: str
    updates: int
    episodes: int
    """Demonstrations that are recorded."""
    evaluation_episodes: int
    """Episodes that each row of the table is played for."""
    cameras: tuple[str, ...] = ()
    """Whose pictures are recorded and looked at."""
    hidden: tuple[str, ...] = ()
    """Recorded fields that the policies do not see."""

    @property
    def sight(self) -> str:
        """What the policies see, as a sentence for people; "" where it is all of the task's fields."""
        if not self.cameras:
            return ""
        names = " and ".join(camera.partition(":")[0] for camera in self.cameras)
        return f"They see the camera {names} and the arm's own state, and are not told where the cube is."


NUMBERS = DemoPlan("robosuite-lift", 5000, 120, 30)
"""The demo of `rql-deploy demo`: the policies are told where the cube is."""
PICTURES = DemoPlan(
    "robosuite-lift-camera",
    1500,
    80,
    20,
    ("agentview:48x48",),
    ("cube_pos", "cube_quat", "gripper_to_cube_pos"),
)
"""The demo of `rql-deploy demo --camera`: small pictures, a small encoder trained from scratch. Rendering and
encoding take the time that the other demo has for more episodes and updates."""

Difference = tuple[float, float, float]
"""Mean, and the lower and upper end of its 95 % interval."""


@dataclass(frozen=True)
class DemoResult:
    """What the demo measured. Everything it made is in `output`."""

    output: Path
    seed: int
    scores: dict[str, Score]
    """By key of `ROWS`."""
    differences: dict[str, dict[str, Difference]]
    """By key of the other row: success and steps of `BEST` minus the other's, pair by pair."""
    seconds: float
    plan: DemoPlan = NUMBERS

    @property
    def page(self) -> Path:
        """The page that shows the result."""
        return self.output / "report.html"


def paired(a: Score, b: Score) -> dict[str, Difference]:
    """Success and steps of a minus b, pair by pair."""
    from rql_deploy.statistics import paired_difference

    return {
        "success": paired_difference([r.success for r in a.results], [r.success for r in b.results]),
        "steps": paired_difference(a.lengths, b.lengths),
    }
