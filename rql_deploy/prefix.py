"""Actions already committed when a chunk is asked for: what `act(prefix=...)` takes, checked.

A chunk takes time to compute, and the chunk before it plays meanwhile. `prefix` `[n, A]` is what is left of
that one, from the action that is due at the observation on. Its first `committed` actions play whatever is
decided; the others are what would be played next, and the new chunk stays near them (docs/control.md).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rql_deploy.contract import Contract
from rql_deploy.errors import ContractError, UserError
from rql_deploy.policy import Continuation, ResolvedOptions, read_whole

MAX_BEYOND = 2.0
"""Largest committed action, where 1 is the action's bound: beyond it the units are wrong."""


class Prefix(NamedTuple):
    """What a chunk continues, and how."""

    actions: NDArray[np.float32]
    """`[n, A]`, in the plant's units."""
    committed: int
    """d: the first so many play whatever is decided; 1 to n."""
    method: Continuation


def trained_prefix(h: int) -> int:
    """Most actions that training gives a policy of chunks of h (`rql.prefix`)."""
    return h // 2


def read_prefix(options: ResolvedOptions, contract: Contract) -> Prefix | None:
    """The prefix of a call; None where there is none to continue.

    Raises TypeError for what is no array of actions, ContractError for one that does not fit the contract,
    and UserError for options that do not fit it.
    """
    if options.prefix is None:
        return None
    try:
        if isinstance(options.prefix, np.ma.MaskedArray) and np.any(options.prefix.mask):
            raise TypeError("it has masked values")
        given = np.asarray(options.prefix)
        if given.dtype.kind not in "iuf":
            raise TypeError(f"it holds {given.dtype.name} values")
        # A copy, which the caller cannot change while the chunk is made.
        with np.errstate(over="ignore"):
            actions = np.array(given, np.float32)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"prefix is not an array of actions: {error}") from None
    h, width = contract.h, contract.plant.action_dim
    if actions.size and (actions.ndim != 2 or len(actions) >= h or actions.shape[1] != width):
        raise ContractError(
            f"prefix has shape {list(actions.shape)}: pass at most {h - 1} actions of {width} dimensions"
        )
    if not np.isfinite(actions).all():
        raise ContractError("prefix holds NaN or infinity")
    count = len(actions) if actions.size else 0
    committed = count if options.committed is None else read_whole("committed", options.committed, 0, count)
    if not committed or options.continuation == "none":
        return None
    if (np.abs(scaled(actions, contract)) > MAX_BEYOND).any():
        raise ContractError("prefix is far beyond the actions' bounds: are its units the contract's?")
    conditioned, known = contract.prefix_conditioned, committed <= trained_prefix(h)
    if options.continuation == "trained" and not (conditioned and known):
        why = f"with more than {trained_prefix(h)} actions given" if conditioned else "with actions given"
        raise UserError(f"this policy was not trained {why}", hint="pass continuation='guidance'")
    method = options.continuation or ("trained" if conditioned and known else "guidance")
    return Prefix(actions, committed, method)


def scaled(actions: NDArray[Any], contract: Contract) -> NDArray[np.float32]:
    """Actions `[..., A]` in the plant's units -> the flow's own scale, where [-1, 1] are the bounds."""
    low, high = contract.plant.action_low, contract.plant.action_high
    return np.asarray((actions - (high + low) / 2) / ((high - low) / 2), np.float32)
