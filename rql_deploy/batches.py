"""Several observations decided in one request: what `act_many` takes, and how it is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import numpy as np

from .errors import ContractError, UserError
from .policy import ResolvedOptions
from .seeding import check_seed

MAX_BATCH = 256
"""Most observations of one request."""
MAX_BATCH_CHUNKS = 1024
"""Most chunks, observations x candidates, that one request makes."""


class BatchOptions(TypedDict, total=False):
    """What `act_many` takes by keyword; all but `seeds` mean what they mean for `act`."""

    deadline: float | None
    """Seconds from now, for all of them together."""
    candidates: int
    value: bool
    seeds: Sequence[int] | None
    """One for each observation; drawn afresh if None."""
    prune: Sequence[tuple[int, int]]
    pessimism: float


def resolve_batch(options: Mapping[str, Any], rows: int) -> tuple[ResolvedOptions, tuple[int, ...] | None]:
    """The options of `act_many` for `rows` observations, and their seeds if they were given.

    Raises TypeError and UserError as `ResolvedOptions.of` does.
    """
    if "seed" in options:
        raise TypeError("act_many has no option 'seed': did you mean 'seeds', one for each observation?")
    others = {name: value for name, value in options.items() if name != "seeds"}
    asked = ResolvedOptions.of(others, without=("prefix", "committed", "continuation", "seed"))
    if rows * asked.candidates > MAX_BATCH_CHUNKS:
        raise UserError(
            f"{rows} observations with {asked.candidates} candidates each are more than {MAX_BATCH_CHUNKS} "
            "chunks",
            hint="ask in parts",
        )
    given = options.get("seeds")
    if given is None:
        return asked, None
    if isinstance(given, str | bytes) or not hasattr(given, "__len__"):
        raise TypeError(f"seeds is {given!r}: pass one seed for each observation")
    if len(given) != rows:
        raise UserError(f"{len(given)} seeds came with {rows} observations: pass one for each")
    return asked, tuple(check_seed(seed) for seed in given)


def count_rows(observations: Mapping[str, Any], fields: Sequence[str]) -> int:
    """How many observations a batch `{field: [rows, *shape]}` holds, by the first of the `fields`.

    Raises ContractError for none, for too many and for what is no batch.
    """
    if not hasattr(observations, "keys"):
        raise ContractError(
            f"the observations are of type {type(observations).__name__}: pass a dict of fields by name, "
            "each [rows, *shape]"
        )
    # A missing field is named by who reads the fields.
    first = next((name for name in fields if name in observations), None)
    if first is None:
        return 1
    try:
        shape = np.shape(observations[first])
    except (TypeError, ValueError, RuntimeError) as error:  # rows of unequal length, say
        raise ContractError(f"field '{first}' of a batch is not an array of numbers ({error})") from error
    if not shape or not 1 <= shape[0] <= MAX_BATCH:
        raise ContractError(
            f"field '{first}' of a batch has shape {list(shape)}: pass [rows, *shape] with 1 to {MAX_BATCH} "
            "observations"
        )
    return int(shape[0])
