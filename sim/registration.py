"""The simulated tasks under gymnasium's names.

    import gymnasium, rql_deploy.sim
    env = gymnasium.make("rql_deploy/Lift-v0", horizon=60)

gymnasium 1.0 did away with plug-ins: somebody must import what registers. Where that is not known to have
happened (a worker process, a name from a file), say it in the name: `rql_deploy.sim:rql_deploy/Lift-v0`.
"""

from __future__ import annotations

from typing import Any

import gymnasium

ROBOSUITE = ("Lift", "BeltLift", "Stack", "Door", "PickPlaceCan", "NutAssemblySquare")
"""robosuite's tasks that have a name of their own; the others are reached through `rql_deploy/Task-v0`."""
ANY_TASK = "rql_deploy/Task-v0"
"""Takes `task`, a name as the command line takes it: `ogbench:cube-single-play`, `robosuite:PickPlace`."""


def register_tasks() -> None:
    """Enter the tasks into gymnasium's registry; a second call changes nothing."""
    if ANY_TASK in gymnasium.registry:
        return
    for task in ROBOSUITE:
        gymnasium.register(
            f"rql_deploy/{task}-v0",
            entry_point="rql_deploy.sim.plants.robosuite_env:RobosuiteEnv",
            kwargs={"task": task},
        )
    gymnasium.register(ANY_TASK, entry_point="rql_deploy.sim.registration:make_task")


def make_task(task: str, **settings: Any) -> gymnasium.Env[Any, Any]:
    """Any task, with the settings of its kind. Raises UserError for an unknown task or setting."""
    # Registering must not import the simulators.
    from rql_deploy.sim.plants.tasks import Task

    return Task(task, settings).make_env()
