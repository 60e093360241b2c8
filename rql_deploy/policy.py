"""The policy interface shared by the torch, the ONNX and the remote policy, and what a policy returns."""

from __future__ import annotations

import difflib
import math
import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypedDict, get_args

import numpy as np
from numpy.typing import NDArray

from rql_deploy.contract import Contract
from rql_deploy.errors import UserError
from rql_deploy.plant import Observation
from rql_deploy.seeding import check_seed

if TYPE_CHECKING:
    from typing_extensions import Unpack

MAX_CANDIDATES = 256
"""Most chunks that one decision may choose among."""
DEFAULT_CANDIDATES = 4
"""Chunks that `run` and `evaluate` choose among unless told otherwise: what benchmarks/value_guided.py shows
to be best over its tasks."""
MAX_PESSIMISM = 100.0
MAX_COUNT = 2**31 - 1
Continuation = Literal["none", "replacement", "guidance", "inversion", "trained"]
"""How a chunk continues the actions before it (docs/control.md)."""
CONTINUATIONS: tuple[Continuation, ...] = get_args(Continuation)


@dataclass(frozen=True)
class Decision:
    """One answer of a policy: an action chunk and what is known about it."""

    actions: NDArray[np.float32]
    """`[h, A]`, in the plant's units, for the caller to write to."""
    value: float | None
    """V of the returned chunk, (mean over the members), if asked for."""
    spread: float | None
    """Standard deviation of V over the members, if asked for."""
    steps_used: int
    """Refinement steps spent on the returned chunk."""
    observation_time: float
    """When the observation was handed to `act`: seconds on the caller's monotonic clock."""
    seed: int
    """What the noise was made from; the same seed and observation give the same chunk."""
    timing: Mapping[str, float] = field(default_factory=dict)
    """Seconds by stage: `inference` (the policy itself) and, for a remote policy, `queue`, `server` and
    `round_trip`."""
    candidates_scored: int = 1
    """Candidates among which V chose; fewer than asked for when there was no time for all."""
    deltas: tuple[float, ...] = ()
    """Flow time covered by each refinement step; with the seed and the observation they determine the chunk.
    Empty if not known."""
    server: str | None = None
    """Address of the server that made it; None if it was made in this process."""
    bundle: str | None = None
    """Name of the bundle that made it, as its server knows it; None if it was no bundle."""
    contract_id: str | None = None
    """Id of the contract it was made under, which tells one training from another; None if not known."""


class ActOptions(TypedDict, total=False):
    """What `act` and `stream` of every policy take by keyword; a policy may not have the last five."""

    deadline: float | None
    """Seconds from now; a remote policy raises `DeadlineMissed` when it passes."""
    candidates: int
    """Chunks to make from different noise; the one with the highest V is returned."""
    value: bool
    """Also return V and spread of the chunk."""
    seed: int | None
    """Seed of the noise, from 0 to 2^53 - 1; drawn afresh if None."""
    pessimism: float
    """c: candidates are ranked by V - c * spread."""
    prune: Sequence[tuple[int, int]]
    """(k, keep): after refinement step k only the `keep` candidates of highest V go on."""
    prefix: NDArray[np.float32] | None
    """`[n, A]`: what is left of the chunk that plays; the new one goes on from it (`rql_deploy.prefix`)."""
    committed: int | None
    """Actions of `prefix` that play whatever is decided, and begin the chunk as they are; default all."""
    continuation: Continuation | None
    """How the chunk continues `prefix`; None: as trained, where the policy was, else guidance."""


@dataclass(frozen=True, slots=True)
class ResolvedOptions:
    """`ActOptions` with the default of each."""

    deadline: float | None = None
    candidates: int = 1
    value: bool = False
    seed: int | None = None
    pessimism: float = 0.0
    prune: Sequence[tuple[int, int]] = ()
    prefix: NDArray[np.float32] | None = None
    committed: int | None = None
    continuation: Continuation | None = None

    @classmethod
    def of(cls, options: Mapping[str, Any], *, without: Collection[str] = ()) -> ResolvedOptions:
        """The options of a call to a policy that has all but those `without`, as Python's own types.

        Raises TypeError for an option that the policy does not have or a value of the wrong type, UserError
        for one out of range or a seed that is none. numpy's numbers are numbers; True and False are not.
        """
        if not options:
            return _DEFAULTS
        known = [option.name for option in fields(cls) if option.name not in without]
        for name in options:
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean '{close[0]}'?" if close else f"it has {', '.join(known)}"
                raise TypeError(f"this policy has no option '{name}': {hint}")
        return cls(**{name: _READERS[name](name, value) for name, value in options.items()})

    def check_prune(self, flow_steps: int) -> None:
        """Raise UserError unless `prune` names rising steps below F and falling numbers of candidates."""
        step, kept = 0, self.candidates
        for k, keep in self.prune:
            if not (step < k < flow_steps and 1 <= keep <= kept):
                raise UserError(
                    f"prune must name rising steps below {flow_steps} and falling numbers of candidates, "
                    f"not {list(self.prune)}"
                )
            step, kept = k, keep


_DEFAULTS = ResolvedOptions()


def read_whole(name: str, value: Any, low: int, high: int) -> int:
    """A whole number from `low` to `high`. Raises TypeError if it is none, UserError when out of range."""
    if type(value) is not int:
        try:
            if isinstance(value, bool | np.bool_):
                raise TypeError
            value = operator.index(value)
        except TypeError:
            raise TypeError(f"{name} is {value!r}: pass a whole number") from None
    if not low <= value <= high:
        raise UserError(f"{name} is {value}: pass {low} to {high}")
    return int(value)


def read_seconds(name: str, value: Any) -> float:
    """A finite number, in double precision: a clock in single precision is off by milliseconds in a day.

    Raises TypeError for anything else, UserError for infinity and NaN.
    """
    if type(value) is not float:
        try:
            # float() would also read text, and a truth value as 0 or 1.
            if isinstance(value, str | bytes | bool | np.bool_) or np.ndim(value):
                raise TypeError
            value = float(value)
        except (TypeError, ValueError, OverflowError):
            raise TypeError(f"{name} is {value!r}: pass a number of seconds") from None
    if not math.isfinite(value):
        raise UserError(f"{name} is {value}: pass a finite number of seconds")
    return float(value)


def _read_value(name: str, value: Any) -> bool:
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} is {value!r}: pass True or False")
    return bool(value)


def _read_prune(name: str, value: Any) -> tuple[tuple[int, int], ...]:
    try:
        pairs = [(k, keep) for k, keep in value]
    except (TypeError, ValueError):
        raise TypeError(f"{name} is {value!r}: pass pairs (k, keep)") from None
    return tuple(
        (read_whole(name, k, 0, MAX_COUNT), read_whole(name, keep, 0, MAX_CANDIDATES)) for k, keep in pairs
    )


def _optional(read: Callable[[str, Any], Any]) -> Callable[[str, Any], Any]:
    return lambda name, value: None if value is None else read(name, value)


def read_pessimism(name: str, value: Any) -> float:
    """A number from 0 to `MAX_PESSIMISM`. Raises TypeError if it is none, UserError when out of range."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.integer | np.floating):
        raise TypeError(f"{name} is {value!r}: pass a number")
    if not 0.0 <= value <= MAX_PESSIMISM:
        raise UserError(f"{name} is {value}: pass 0 to {MAX_PESSIMISM:g}")
    return float(value)


def read_continuation(name: str, value: Any) -> Continuation:
    """One of `CONTINUATIONS`. Raises UserError for anything else."""
    if value not in CONTINUATIONS:
        raise UserError(f"there is no {name} {value!r}", hint=f"pass one of {', '.join(CONTINUATIONS)}")
    return value  # type: ignore[no-any-return]


_READERS: Mapping[str, Callable[[str, Any], Any]] = {
    "deadline": _optional(read_seconds),
    "candidates": lambda name, value: read_whole(name, value, 1, MAX_CANDIDATES),
    "value": _read_value,
    "seed": _optional(lambda _, value: check_seed(value)),
    "pessimism": read_pessimism,
    "prune": _read_prune,
    "prefix": lambda name, value: value,
    "committed": _optional(lambda name, value: read_whole(name, value, 0, MAX_COUNT)),
    "continuation": _optional(read_continuation),
}
"""By option: its value, checked."""


class Policy(Protocol):
    """Anything that decides.

    Chunk playback, seeding, timing and recording are wrappers with this same interface.
    """

    @property
    def contract(self) -> Contract:
        """What goes in and what comes out."""
        ...

    def act(self, observation: Observation, **options: Unpack[ActOptions]) -> Decision:
        """Decide on an action chunk.

        Args:
            observation: named fields, in the plant's units.
            options: see `ActOptions`.

        Raises:
            ContractError: a field is missing, misshapen or not finite.
            DeadlineMissed: nothing arrived in time.
        """
        ...

    def reset(self) -> None:
        """Forget the episode so far."""
        ...
