"""The published recipe of OGBench's `play` data for the arm.

Scripted oracles, which come with the `ogbench` package, pursue one random target after another for 1001 steps
(https://github.com/seohongpark/ogbench, data_gen_scripts). The published files were made without seeds, so
only their distribution can be reproduced; here every episode has a seed of its own.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from rql_deploy.errors import UserError, suggestion
from rql_deploy.ogbench_names import CAMERA, PIXELS, VISUAL, download_hint
from rql_deploy.plant import UnstableSimulation
from rql_deploy.sim.cameras import OGBENCH_LOOKS, Cameras, image_fields, numbers_of
from rql_deploy.sim.rendering import render_headless
from rql_deploy.sim.stability import (
    numerical_failures,
    require_finite,
    require_no_warning,
    warning_counts,
)

EPISODE_STEPS = 1001
"""Rows per episode; loaders drop the last, which leaves 1000 transitions."""
NOISE, NOISE_SMOOTHING = 0.1, 0.5
"""Standard deviations: of the noise on an oracle's plan, in action ranges, and of the Gaussian that
smooths it, in steps.
"""
STATE_KEYS = ("qpos", "qvel")
ATTEMPTS = 100
"""Rejected episodes of one seed after which an error is raised."""


@dataclass(frozen=True)
class Recipe:
    """How one environment's episodes are made."""

    environment: str
    oracles: tuple[str, ...]
    stacking: tuple[float, float] = (0.5, 0.5)
    """Each episode draws the probability of stacking one cube on another from this range."""
    published_episodes: int = 1000
    """Training episodes of the published set; a tenth as many more are for validation."""
    buttons: bool = False
    """Whether the state has button states beside positions and velocities."""


RECIPES: Mapping[str, Recipe] = {
    recipe.environment: recipe
    for recipe in (
        Recipe("cube-single", ("cube",), stacking=(0.0, 0.0)),
        Recipe("cube-double", ("cube",), stacking=(0.0, 0.25)),
        Recipe("cube-triple", ("cube",), stacking=(0.05, 0.35), published_episodes=3000),
        Recipe("cube-quadruple", ("cube",), stacking=(0.1, 0.5), published_episodes=5000),
        Recipe("scene", ("cube", "button", "drawer", "window"), buttons=True),
        Recipe("puzzle-3x3", ("button",), buttons=True),
        Recipe("puzzle-4x4", ("button",), buttons=True),
    )
}


def find_recipe(task: str) -> Recipe:
    """The recipe of `cube-single-play` (a version or task at its end is ignored).

    Raises UserError with the nearest names.
    """
    name = task.removeprefix(VISUAL).partition("-singletask")[0].removesuffix("-v0")
    names = {f"{environment}-play": recipe for environment, recipe in RECIPES.items()}
    if name not in names:
        raise UserError(
            f"there is no recipe for 'ogbench:{task}'{suggestion(name, names)}{download_hint(name)}"
        )
    return names[name]


@dataclass(frozen=True)
class PlayEpisode:
    """T rows as OGBench stores them: observations, actions, and the simulator's state before each action."""

    arrays: Mapping[str, NDArray[Any]]
    """`observations` `[T, O]`, `actions` `[T, 5]`, `terminals` `[T]`, `qpos`, `qvel`, and `button_states`
    where there are buttons.
    """
    targets: int
    """Targets the oracles finished with."""
    reached: int
    """Of those, targets that were reached."""
    rejected: int
    """Episodes discarded before this one because the cube could have left the field of view, or because the
    simulation became unstable.
    """
    unstable: tuple[str, ...] = ()
    """Why, for each of those whose simulation became unstable."""


@dataclass
class PlayGenerator:
    """An environment with its oracles; makes episodes from seeds."""

    recipe: Recipe
    steps: int = EPISODE_STEPS
    cameras: tuple[str, ...] = ()
    """`NAME[:HEIGHTxWIDTH]` of cameras whose pictures are kept beside the observations, under the picture's
    name."""
    env: gymnasium.Env[Any, Any] = field(init=False)
    oracles: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        render_headless()
        import ogbench  # noqa: F401  registers the environments
        from ogbench.manipspace.oracles.plan.button_plan import ButtonPlanOracle
        from ogbench.manipspace.oracles.plan.cube_plan import CubePlanOracle
        from ogbench.manipspace.oracles.plan.drawer_plan import DrawerPlanOracle
        from ogbench.manipspace.oracles.plan.window_plan import WindowPlanOracle

        images = image_fields(self.cameras, {CAMERA: PIXELS})
        self._cameras = Cameras(images, f"ogbench:{self.recipe.environment}") if images else None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about the precision of the spaces' bounds
            self.env = gymnasium.make(
                f"{self.recipe.environment}-v0",
                terminate_at_goal=False,
                mode="data_collection",
                max_episode_steps=self.steps,
                disable_env_checker=True,
                **(OGBENCH_LOOKS if images else {}),
            )
        if images:
            inside: Any = self.env.unwrapped
            inside.compute_observation = partial(numbers_of, inside, type(inside))
        options = {"env": self.env, "noise": NOISE, "noise_smoothing": NOISE_SMOOTHING}
        # In the puzzle there is nothing to grasp, so the gripper stays closed.
        closed = self.recipe.environment.startswith("puzzle")
        kinds = {
            "cube": lambda: CubePlanOracle(**options),
            "button": lambda: ButtonPlanOracle(gripper_always_closed=closed, **options),
            "drawer": lambda: DrawerPlanOracle(**options),
            "window": lambda: WindowPlanOracle(**options),
        }
        self.oracles = {kind: kinds[kind]() for kind in self.recipe.oracles}

    def generate(self, seed: int) -> PlayEpisode:
        """The episode of a seed, always the same. Raises UserError when every attempt was rejected."""
        unstable: list[str] = []
        for rejected in range(ATTEMPTS):
            environment_seed, oracle_seed = np.random.SeedSequence((seed, rejected)).generate_state(2)
            try:
                arrays, targets, reached = self._attempt(int(environment_seed) >> 1, int(oracle_seed))
            except UnstableSimulation as error:
                unstable.append(str(error))
                continue
            if self.recipe.environment != "scene" or cube_stays_visible(arrays["qpos"]):
                return PlayEpisode(arrays, targets, reached, rejected, tuple(unstable))
        raise UserError(
            f"{ATTEMPTS} episodes of {self.recipe.environment} with seed {seed} were rejected: pass another "
            "--seed"
        )

    def _attempt(self, environment_seed: int, oracle_seed: int) -> tuple[dict[str, NDArray[Any]], int, int]:
        # The oracles draw from NumPy's global generator.
        np.random.seed(oracle_seed)
        stacking = np.random.uniform(*self.recipe.stacking)
        observation, info = self.env.reset(seed=environment_seed)
        data = getattr(self.env.unwrapped, "data", None)
        oracle = self.oracles[info["privileged/target_task"]]
        oracle.reset(observation, info)
        names = [
            "observations",
            "actions",
            "terminals",
            *STATE_KEYS,
            *(["button_states"] if self.recipe.buttons else []),
        ]
        rows: dict[str, list[Any]] = {name: [] for name in names}
        targets = reached = 0
        ended = False
        pictures: dict[str, list[Any]] = {}
        while not ended:
            for name, picture in self._look().items():
                pictures.setdefault(name, []).append(picture)
            action = np.clip(np.asarray(oracle.select_action(observation, info)), -1.0, 1.0)
            before = warning_counts(data)
            with numerical_failures():
                following, reward, terminated, truncated, info = self.env.step(action)
            require_no_warning(data, before)
            require_finite({"the observation": following}, float(reward))
            ended = terminated or truncated
            if oracle.done:
                targets += 1
                reached += bool(info["success"])
                # The next target is chosen here; the environment goes on as it is.
                seen, chosen = self.env.unwrapped.set_new_target(p_stack=stacking)  # type: ignore[attr-defined]
                oracle = self.oracles[chosen["privileged/target_task"]]
                oracle.reset(seen, chosen)
            rows["observations"].append(observation)
            rows["actions"].append(action)
            rows["terminals"].append(ended)
            for name in names[3:]:
                rows[name].append(info[f"prev_{name}"])
            observation = following
        types = {"terminals": np.bool_, "button_states": np.int64}
        return (
            {name: np.array(values, types.get(name, np.float32)) for name, values in rows.items()}
            | {name: np.stack(frames) for name, frames in pictures.items()},
            targets,
            reached,
        )

    def _look(self) -> dict[str, NDArray[np.uint8]]:
        """The pictures of the present state."""
        inside: Any = self.env.unwrapped
        return {} if self._cameras is None else self._cameras.look(inside.model, inside.data)


def cube_stays_visible(qpos: NDArray[Any]) -> bool:
    """Whether the scene's cube stayed within reach: not too far to the right, and to the left only in the
    drawer.

    `qpos` is `[T, Q]` with the cube's position in columns 14 to 16, in m. The drawer's bottom keeps it 6 to 8
    cm high.
    """
    y, z = qpos[:, 15], qpos[:, 16]
    in_drawer = (z >= 0.06) & (z <= 0.08)
    return not bool(((y >= 0.29) | ((y <= -0.3) & ~in_drawer)).any())
