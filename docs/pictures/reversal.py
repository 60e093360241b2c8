"""The picture of reversal in docs/algorithm.md: chunks of one state, followed backwards through the flow.

    python docs/pictures/reversal.py        # needs rql-deploy[serve,sim]; writes docs/images/reversal.svg

The chunks are what the scripted demonstrator, at its many levels of noise, does next in that state: what the
training data is made of. The shipped bundle's refinement step with a negative delta is the reversal.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from svg import Drawing

import rql_deploy
from rql_deploy.bundle.bundle import Bundle
from rql_deploy.runtime.engine.model import Model
from rql_deploy.sim.plants.tasks import EnvPlant, Task, find_demonstrator

BUNDLE = Path(rql_deploy.__file__).parent / "assets/lift_bundle"
EPISODE, TICKS = 980773882, 8
"""The state: so many ticks into the episode of this seed, when the hand is half way down to the cube."""
CHUNKS, MOST_NOISE = 160, 2.2
SHOWN = (1.0, 0.7, 0.4, 0.0)
"""Flow times of the panels."""
VIRIDIS = np.array([(68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37)], float)
WIDTH, HEIGHT, GAP, LEFT, TOP = 222, 188, 16, 46, 40
CENTIMETRES = 5.0
"""What an action of 1 commands along an axis."""
FORWARDS, UP = (-72.0, 48.0), (-32.0, 50.0)
"""Edges of the panels, in centimetres."""

Array = NDArray[np.float32]


def chunks_of_one_state(task: Task, h: int) -> tuple[dict[str, NDArray[np.float64]], Array]:
    """The observation, and chunks `[n, h, A]` that demonstrators of all levels of noise begin there."""
    plant, demonstrator = EnvPlant(task.make_env()), find_demonstrator(task)
    chunks = []
    for i in range(CHUNKS):
        rng = np.random.default_rng(i)
        plant.reset(EPISODE)
        steady = demonstrator(0.0, np.random.default_rng(0))
        for _ in range(TICKS):
            plant.apply(steady.act(plant.observe()))
        observation = {name: np.array(value) for name, value in plant.observe().items()}
        hasty = demonstrator(float(rng.uniform(0.0, MOST_NOISE)), rng)
        actions = []
        for _ in range(h):
            actions.append(hasty.act(plant.observe()))
            plant.apply(actions[-1])
        chunks.append(actions)
    return observation, np.array(chunks, np.float32)


def reverse(model: Model, observation: dict[str, NDArray[np.float64]], chunks: Array) -> tuple[Array, Array]:
    """Partial actions `[F + 1, n, hA]` from f = 1 back to f = 0, and V `[F + 1, n]` of each at its f."""
    steps = model.contract.F
    features = np.repeat(model.encode(model.rows(observation)), len(chunks), axis=0)
    column = np.ones((len(chunks), 1), np.float32)
    x = model.scaled(chunks)
    path, values = [x], [model.value(features, x, column)[0]]
    for k in range(steps, 0, -1):
        x, _ = model.refine(features, x, column * np.float32(k / steps), column * np.float32(-1 / steps))
        path.append(x)
        values.append(model.value(features, x, column * np.float32((k - 1) / steps))[0])
    return np.array(path), np.array(values)


def colour(share: float) -> str:
    place = np.clip(share, 0.0, 1.0) * (len(VIRIDIS) - 1)
    r, g, b = (int(np.interp(place, range(len(VIRIDIS)), VIRIDIS[:, i])) for i in range(3))
    return f"#{r:02x}{g:02x}{b:02x}"


def draw(moves: NDArray[np.float64], values: Array) -> Drawing:
    """A panel per flow time of the points `[F + 1, n, 2]` (forwards, up), coloured by V `[F + 1, n]`."""
    width = LEFT + len(SHOWN) * (WIDTH + GAP)
    picture = Drawing(width, TOP + HEIGHT + 96, "Reversal: partial actions coloured by V")
    low, high = (float(v) for v in np.quantile(values[0], (0.02, 0.98)))
    titles = {1.0: "f = 1: chunks of the data", 0.0: "f = 0: back at the noise"}
    for i, f in enumerate(SHOWN):
        left, k = LEFT + i * (WIDTH + GAP), round((1.0 - f) * (len(moves) - 1))
        points = np.stack([left + across(moves[..., 0]), TOP + down(moves[..., 1])], axis=-1)
        picture.text(left, TOP - 12, titles.get(f, f"f = {f:g}"), size=14, bold=True)
        picture.rect(left, TOP, WIDTH, HEIGHT, "none", stroke="rule")
        for n in range(moves.shape[1] if k else 0):
            picture.line(points[: k + 1, n].tolist(), "muted", 0.7, opacity=0.25)
        for n in range(moves.shape[1]):
            x, y = points[k, n].tolist()
            share = float((values[k, n] - low) / (high - low))
            picture.circle(x, y, 3.6, colour(share), stroke="muted", width=0.5)
        draw_axes(picture, left, first=i == 0)
        if i:
            agreement = np.corrcoef(values[0], values[k])[0, 1]
            words = f"correlation with V at f = 1: {agreement:.2f}"
            middle = left + WIDTH / 2
            picture.text(middle, TOP + HEIGHT + 66, words, size=12, fill="muted", anchor="middle")
    draw_scale(picture, low, high)
    return picture


def across(forwards: NDArray[np.float64]) -> NDArray[np.float64]:
    return WIDTH * (forwards - FORWARDS[0]) / (FORWARDS[1] - FORWARDS[0])


def down(up: NDArray[np.float64]) -> NDArray[np.float64]:
    return HEIGHT * (UP[1] - up) / (UP[1] - UP[0])


def draw_axes(picture: Drawing, left: float, *, first: bool) -> None:
    marks = np.array([-60.0, -40.0, -20.0, 0.0, 20.0, 40.0])
    for value, place in zip(marks, across(marks), strict=True):
        picture.text(left + place, TOP + HEIGHT + 16, f"{value:g}", size=11, fill="muted", anchor="middle")
    if first:
        for value, place in zip(marks[2:], down(marks[2:]), strict=True):
            picture.text(left - 6, TOP + place + 4, f"{value:g}", size=11, fill="muted", anchor="end")
        words = "commanded forwards, cm"
        picture.text(left + WIDTH / 2, TOP + HEIGHT + 34, words, size=12, fill="muted", anchor="middle")
        picture.text(left + 8, TOP + 18, "commanded up, cm", size=12, fill="muted")


def draw_scale(picture: Drawing, low: float, high: float) -> None:
    """What the colours stand for."""
    y = TOP + HEIGHT + 56
    for i in range(WIDTH):
        picture.rect(LEFT + i, y, 1.5, 10, colour(i / WIDTH), rx=0)
    picture.text(LEFT, y + 26, f"V {low:.0f}", size=12)
    picture.text(LEFT + WIDTH, y + 26, f"{high:.0f}", size=12, anchor="end")


def main() -> None:
    bundle = Bundle.open(BUNDLE)
    model = Model(bundle)
    plant = bundle.contract.plant
    observation, chunks = chunks_of_one_state(Task.of_plant(plant), bundle.contract.h)
    path, values = reverse(model, observation, chunks)
    names = [action.name for action in plant.actions]
    moves = path.reshape(*path.shape[:2], bundle.contract.h, len(names)).sum(axis=2) * CENTIMETRES
    print(draw(moves[..., [names.index("dx"), names.index("dz")]], values).save("reversal.svg"))


if __name__ == "__main__":
    main()
