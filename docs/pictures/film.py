"""The film of the README: four candidate chunks refined on the simulated Panda, judged by V, the best played.

    make film        # needs rql-deploy[serve,sim], a minute or two; writes docs/images/lift.webp

All of it is computed while it is made: the engine refines the four candidates of each decision from the
shipped bundle under a real deadline, and its previews, V and step times are what is drawn. A path is where
the gripper goes when the simulator carries that preview out.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from film_frame import Frame, Stage
from numpy.typing import NDArray
from PIL import Image

import rql_deploy
from rql_deploy.bundle.bundle import Bundle
from rql_deploy.runtime.engine.engine import Engine
from rql_deploy.runtime.engine.model import Model
from rql_deploy.runtime.engine.request import Done, Job, Preview
from rql_deploy.seeding import decision_seed
from rql_deploy.sim.plants.tasks import EnvPlant, Task

IMAGES = Path(__file__).parents[1] / "images"
EPISODE = 980773882
"""Seed of the episode: one of those that `evaluate` plays, short enough for a loop."""
CANDIDATES = 4
BUDGET = 0.020
"""Seconds the engine has for a decision; a control period of the task is 0.05."""
ATTEMPTS = 50
STEP_MS, CHOSEN_MS, TICK_MS, END_MS = 80, 500, 50, 1500
"""How long a refinement step, the choice, a tick of 50 ms and the end stay on the screen."""
GRIP = "robot0_eef_pos"
MOST_BYTES = 3_000_000


@dataclass(frozen=True)
class Step:
    """All candidates after a refinement step."""

    elapsed: float
    """Seconds since the decision was asked for."""
    chunks: NDArray[np.float32]
    """Previews `[C, h, A]`."""
    values: NDArray[np.float64]
    """V `[C]` of the previews."""


@dataclass(frozen=True)
class Scene:
    """A decision and what it did."""

    steps: list[Step]
    best: int
    """The candidate that was played."""
    before: list[NDArray[np.float32]]
    """All actions played until it was made."""
    pictures: list[Image.Image]
    """When it was made, and after each tick of its chunk."""


def decide(engine: Engine, observation: Mapping[str, NDArray[np.float64]], seed: int) -> list[Step]:
    """One decision in full. Once more where the engine gave up steps or V because the processor was taken."""
    for _ in range(ATTEMPTS):
        steps = refine(engine, observation, seed)
        whole = len(steps) == engine.model.contract.F and all(
            np.isfinite(step.values).all() for step in steps
        )
        if whole and steps[-1].elapsed <= BUDGET:
            return steps
    raise SystemExit(
        "this machine is too busy for all refinement steps within the budget: run it again when it is idle"
    )


def refine(engine: Engine, observation: Mapping[str, NDArray[np.float64]], seed: int) -> list[Step]:
    """The engine's jobs for candidates 0 to C - 1 of `seed`, all in one batch, step by step."""
    contract = engine.model.contract
    fields = engine.model.rows(
        {field.name: np.asarray(observation[field.name]) for field in contract.plant.fields}
    )
    start = time.monotonic()
    for first in range(CANDIDATES):
        engine.submit(
            Job(first, fields, seed, start, start + BUDGET, value=True, stream=True, candidate_offset=first)
        )
    steps = []
    while engine.busy:
        chunks = np.zeros((CANDIDATES, contract.h, contract.plant.action_dim), np.float32)
        values = np.full(CANDIDATES, np.nan)
        for event in engine.step():
            if isinstance(event, Preview | Done):
                chunks[event.job.reply_context], values[event.job.reply_context] = event.actions, event.value
        steps.append(Step(time.monotonic() - start, chunks, values))
    return steps


class Rollouts:
    """Where a chunk takes the gripper: the episode so far and then the chunk, in a simulator of its own."""

    def __init__(self, plant: EnvPlant):
        self._plant = plant

    def path(self, played: Sequence[NDArray[np.float32]], chunk: NDArray[np.float32]) -> NDArray[np.float64]:
        """Positions of the gripper `[h + 1, 3]` from now on."""
        self._plant.reset(EPISODE)
        for action in played:
            self._plant.apply(action)
        points = [np.array(self._plant.observe()[GRIP])]
        for action in chunk:
            self._plant.apply(action)
            points.append(np.array(self._plant.observe()[GRIP]))
        return np.array(points)


def play(engine: Engine, plant: EnvPlant, stage: Stage, horizon: int) -> tuple[list[Scene], int]:
    """The episode, one decision longer than the task asks for so that the cube is seen in the air.

    Returns its decisions and the ticks until success.
    """
    scenes: list[Scene] = []
    played: list[NDArray[np.float32]] = []
    success = ticks = 0
    while not success or len(scenes) <= success:
        if len(played) > horizon:
            raise SystemExit("the episode did not succeed with this bundle: choose another EPISODE")
        steps = decide(engine, plant.observe(), decision_seed(EPISODE, len(scenes)))
        best = int(steps[-1].values.argmax())
        scenes.append(Scene(steps, best, list(played), [stage.picture()]))
        for action in steps[-1].chunks[best]:
            plant.apply(action)
            played.append(action)
            scenes[-1].pictures.append(stage.picture())
            if plant.success and not success:
                success, ticks = len(scenes), len(played)
        value, spent = steps[-1].values[best], steps[-1].elapsed * 1e3
        print(f"decision {len(scenes)}: candidate {best + 1}, V {value:.1f}, {spent:.1f} ms", flush=True)
    return scenes, ticks


def frames(
    scenes: Sequence[Scene], ticks: int, rate: float, stage: Stage, rollouts: Rollouts
) -> Iterator[tuple[Image.Image, int]]:
    """Every picture of the film and its milliseconds."""
    for number, scene in enumerate(scenes):
        paths = [
            np.array([rollouts.path(scene.before, chunk) for chunk in step.chunks]) for step in scene.steps
        ]
        elapsed, values = (
            [step.elapsed for step in scene.steps],
            np.array([step.values for step in scene.steps]),
        )
        frame = Frame(stage, number + 1, BUDGET, elapsed, values)
        for k in range(len(scene.steps)):
            yield frame.refining(scene.pictures[0], k, paths[k]), STEP_MS
        yield frame.chosen(scene.pictures[0], paths[-1], scene.best), CHOSEN_MS
        for i, picture in enumerate(scene.pictures[1:], 1):
            yield frame.chosen(picture, paths[-1], scene.best, len(scene.before) + i), TICK_MS
    yield frame.ended(scenes[-1].pictures[-1], ticks, rate), END_MS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--bundle", type=Path, default=Path(rql_deploy.__file__).parent / "assets/lift_bundle"
    )
    parser.add_argument("--output", type=Path, default=IMAGES / "lift.webp")
    parser.add_argument("--frames", type=Path, help="also write every frame as PNG into this folder")
    options = parser.parse_args()

    bundle = Bundle.open(options.bundle)
    model = Model(bundle)
    model.warm_up()
    task = Task.of_plant(bundle.contract.plant)
    plant, rollouts = EnvPlant(task.make_env()), Rollouts(EnvPlant(task.make_env()))
    plant.reset(EPISODE)
    stage = Stage(*plant.env.simulation())
    with contextlib.closing(stage):
        scenes, ticks = play(Engine(model), plant, stage, task.horizon)
        os.nice(10)  # the times are taken, and drawing takes its time
        shown = list(frames(scenes, ticks, bundle.contract.plant.control_rate, stage, rollouts))
    save(shown, options.output)
    if options.frames:
        options.frames.mkdir(parents=True, exist_ok=True)
        for i, (picture, _) in enumerate(shown):
            picture.save(options.frames / f"{i:03d}.png")
    seconds = sum(duration for _, duration in shown) / 1e3
    size = options.output.stat().st_size / 1e6
    print(f"{len(shown)} frames, {seconds:.1f} s, {size:.2f} MB in {options.output}")


def save(shown: Sequence[tuple[Image.Image, int]], path: Path) -> None:
    """Write an endless WebP, of the best quality that keeps it small enough."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures, durations = [picture for picture, _ in shown], [duration for _, duration in shown]
    for quality in (92, 85, 75, 60, 40):
        pictures[0].save(
            path,
            "WEBP",
            save_all=True,
            append_images=pictures[1:],
            duration=durations,
            loop=0,
            quality=quality,
            method=4,
            kmax=40,
        )
        if path.stat().st_size <= MOST_BYTES:
            return
    raise SystemExit(f"{path} is larger than {MOST_BYTES / 1e6:g} MB at every quality: make the film shorter")


if __name__ == "__main__":
    main()
