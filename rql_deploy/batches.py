"""Several observations decided in one request: what `act_many` takes, and how it is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from .errors import ContractError, UserError
from .policy import MAX_COUNT, Continuation, ResolvedOptions, read_whole
from .seeding import check_seed

MAX_BATCH = 256
"""Most observations of one request."""
MAX_BATCH_CHUNKS = 1024
"""Most chunks, observations x candidates, that one request makes."""


class BatchOptions(TypedDict, total=False):
    """What `act_many` takes by keyword; it means what it means for `act`, for each of the observations."""

    deadline: float | None
    """Seconds from now, for all of them together."""
    candidates: int
    value: bool
    seeds: Sequence[int] | None
    """One for each observation; drawn afresh if None."""
    prune: Sequence[tuple[int, int]]
    pessimism: float
    prefix: Sequence[NDArray[np.float32] | None] | None
    """One for each observation, `[n, A]` of any n below h; None where nothing plays."""
    committed: int | Sequence[int | None] | None
    """Actions of its prefix that play whatever is decided: one number for all, or one for each."""
    continuation: Continuation | None


@dataclass(frozen=True, slots=True)
class BatchResolved(ResolvedOptions):
    """`BatchOptions` with the default of each, but for the seeds; `prefix` and `committed` are not used."""

    prefixes: tuple[Any, ...] = ()
    """One for each observation; empty where none has one."""
    commits: tuple[int | None, ...] = ()

    def of_row(self, row: int, seed: int | None) -> ResolvedOptions:
        """The options of one observation."""
        named = {entry.name: getattr(self, entry.name) for entry in fields(ResolvedOptions)}
        if self.prefixes:
            named |= {"prefix": self.prefixes[row], "committed": self.commits[row]}
        return ResolvedOptions(**named | {"seed": seed})


def resolve_batch(options: Mapping[str, Any], rows: int) -> tuple[BatchResolved, tuple[int, ...] | None]:
    """The options of `act_many` for `rows` observations, and their seeds if they were given.

    Raises TypeError and UserError as `ResolvedOptions.of` does.
    """
    if "seed" in options:
        raise TypeError("act_many has no option 'seed': did you mean 'seeds', one for each observation?")
    each = ("seeds", "prefix", "committed")
    others = {name: value for name, value in options.items() if name not in each}
    simple = ResolvedOptions.of(others, without=("seed",))
    asked = BatchResolved(
        **{entry.name: getattr(simple, entry.name) for entry in fields(ResolvedOptions)},
        **_resolve_prefixes(options, rows),
    )
    if rows * asked.candidates > MAX_BATCH_CHUNKS:
        raise UserError(
            f"{rows} observations with {asked.candidates} candidates each are more than {MAX_BATCH_CHUNKS} "
            "chunks",
            hint="ask in parts",
        )
    given = options.get("seeds")
    if given is None:
        return asked, None
    return asked, tuple(check_seed(seed) for seed in _one_each("seeds", "seed", given, rows))


def _resolve_prefixes(options: Mapping[str, Any], rows: int) -> dict[str, Any]:
    prefixes, committed = options.get("prefix"), options.get("committed")
    if prefixes is None:
        return {}
    if committed is None or not hasattr(committed, "__len__"):
        committed = [committed] * rows
    commits = [
        None if value is None else read_whole("committed", value, 0, MAX_COUNT)
        for value in _one_each("committed", "number", committed, rows)
    ]
    return {"prefixes": tuple(_one_each("prefix", "array", prefixes, rows)), "commits": tuple(commits)}


def _one_each(name: str, entry: str, given: Any, rows: int) -> Sequence[Any]:
    """`given`, which has one `entry` for each of the `rows` observations; raises TypeError and UserError."""
    if isinstance(given, str | bytes) or not hasattr(given, "__len__"):
        raise TypeError(f"{name} is {given!r}: pass one {entry} for each observation")
    if len(given) != rows:
        what = f"{entry}s" if name == f"{entry}s" else f"{entry}s of {name}"
        raise UserError(f"{len(given)} {what} came with {rows} observations: pass one for each")
    return given  # type: ignore[no-any-return]


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
