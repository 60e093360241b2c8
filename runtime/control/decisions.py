"""Whether what a policy returned is a decision that a loop can play; if not, the policy is to blame."""

from __future__ import annotations

from dataclasses import replace
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rql_deploy.policy import Decision


class PolicyError(Exception):
    """A policy returned something that is no decision; the text is one sentence that names the policy."""


def checked_decision(policy: object, returned: object) -> Decision:
    """What the policy returned, its actions as float32; raises PolicyError where it is no decision.

    Shape and finiteness are left to `chunk_fault`.
    """
    name = f"the policy ({type(policy).__name__})"
    if not isinstance(returned, Decision):
        raise PolicyError(f"{name} returned {_spell(returned)} instead of a Decision")
    try:
        actions = np.asarray(returned.actions)
    except ValueError as error:  # rows of unequal length
        raise PolicyError(f"{name} returned actions that are no array ({error})") from error
    if actions.dtype.kind not in "fiu":
        raise PolicyError(f"{name} returned actions of type {actions.dtype} instead of float32")
    if not isinstance(returned.steps_used, Integral):
        raise PolicyError(f"{name} returned {_spell(returned.steps_used)} as steps_used")
    for part in ("value", "spread"):
        number = getattr(returned, part)
        if not (number is None or isinstance(number, Real)):
            raise PolicyError(f"{name} returned {_spell(number)} as {part}")
    if actions is returned.actions and actions.dtype == np.float32:
        return returned
    with np.errstate(over="ignore"):
        return replace(returned, actions=actions.astype(np.float32))


def chunk_fault(actions: NDArray[Any], shape: tuple[int, int]) -> tuple[str, str] | None:
    """What is wrong with the actions of a chunk, as a short kind and a phrase; None where nothing is."""
    if actions.shape != shape:
        return "wrong shape", f"the policy's chunk has shape {list(actions.shape)} instead of {list(shape)}"
    if not np.isfinite(actions).all():
        return "not finite", "the policy's chunk has NaN or infinity"
    return None


def _spell(thing: object) -> str:
    return "None" if thing is None else f"a {type(thing).__name__}"
