"""Simulated plants, scripted demonstrators, collecting with them and evaluating on them.

Importing it registers the tasks with gymnasium: `gymnasium.make("rql_deploy/Lift-v0")`.
"""

from __future__ import annotations

import contextlib

# Charts and pages are of use without a simulator.
with contextlib.suppress(ImportError):
    from .registration import register_tasks

    register_tasks()
