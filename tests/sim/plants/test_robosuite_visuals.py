"""Models without visuals: the same episodes to the last bit, and left alone where visuals have mass."""

from __future__ import annotations

import numpy as np
import pytest

from rql_deploy.sim.plants.robosuite_env import RobosuiteEnv
from rql_deploy.sim.plants.tasks import Task, find_demonstrator


def played(env: RobosuiteEnv, drawn: bool, seed: int) -> tuple[list[bytes], int]:
    """Every observation of a demonstration, and how many mesh vertices its model has."""
    env.drawn = drawn
    demonstrator = find_demonstrator(Task(f"robosuite:{env.task}", {}))(1.0, np.random.default_rng(seed))
    observation, _ = env.reset(seed=seed)
    seen, over = [], False
    while not over:
        observation, _, terminated, truncated, _ = env.step(demonstrator.act(observation))
        seen.append(b"".join(observation[name].tobytes() for name in sorted(observation)))
        over = terminated or truncated
    return seen, env.simulation()[0].nmeshvert


@pytest.mark.parametrize("task", ["Lift", pytest.param("Door", marks=pytest.mark.slow)])
def test_episodes_without_visuals_are_the_same_to_the_last_bit(task: str) -> None:
    env = RobosuiteEnv(task)
    with_visuals, vertices = played(env, True, 3)
    without, fewer = played(env, False, 3)
    assert without == with_visuals
    assert fewer < vertices / 2
    assert played(env, True, 3) == (with_visuals, vertices)


@pytest.mark.parametrize(("density", "same"), [("0", True), ("1000", False)])
def test_a_model_whose_visuals_have_mass_is_told_apart(density: str, same: bool) -> None:
    import mujoco

    from rql_deploy.sim.plants.robosuite_visuals import same_physics, without_visuals

    xml = f"""<mujoco><asset><mesh name="m" vertex="0 0 0  1 0 0  0 1 0  0 0 1"/></asset>
        <worldbody><body><freejoint/><geom size=".1" density="900"/>
        <geom type="mesh" mesh="m" contype="0" conaffinity="0" density="{density}"/></body></worldbody>
        </mujoco>"""
    bare = without_visuals(xml)
    assert "mesh=" not in bare
    models = [mujoco.MjModel.from_xml_string(text) for text in (xml, bare)]
    assert same_physics(*models) is same
