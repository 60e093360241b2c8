"""Headers of wire protocol 2: one typed definition for each request and reply (docs/protocol.md).

An entry with its default value is not sent; an optional entry may be nil. A server refuses a request's entry
that is not defined here, by name, as it may be misspelt. A client ignores a reply's, as the server may be
newer.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Generic, TypeVar

from msgspec import Meta, Struct

from rql_deploy.batches import MAX_BATCH
from rql_deploy.policy import MAX_CANDIDATES, MAX_PESSIMISM, Continuation
from rql_deploy.seeding import MAX_SEED

MAX_DELTAS = 192
"""Most refinement steps that a request may spell out."""
MAX_BUDGET = 3600.0
"""Seconds."""
MAX_COUNT = 2**53
MAX_TICKS = 4096
"""Most ticks of one `episode` request."""
REPLY_BIT = 0x80
"""Of a reply's kind; the other bits are those of its request."""
REFUSAL = 0xFF
"""Kind of a refusal, whatever was asked."""

ArraySpec = tuple[str, str, list[int]]
"""Name, dtype and shape of one array."""
Candidates = Annotated[int, Meta(ge=1, le=MAX_CANDIDATES)]
CandidateNumber = Annotated[int, Meta(ge=0, le=MAX_CANDIDATES - 1)]
Budget = Annotated[float, Meta(ge=0.0, le=MAX_BUDGET)]
Seed = Annotated[int, Meta(ge=0, le=MAX_SEED)]
FlowTime = Annotated[float, Meta(ge=0.0, le=1.0)]
FlowTimes = FlowTime | list[FlowTime]
"""One number for all rows, or one for each."""
Deltas = Annotated[list[Annotated[float, Meta(ge=-1.0, le=1.0)]], Meta(min_length=1, max_length=MAX_DELTAS)]
Pessimism = Annotated[float, Meta(ge=0.0, le=MAX_PESSIMISM)]
Count = Annotated[int, Meta(ge=0, le=MAX_COUNT)]
Rows = Annotated[int, Meta(ge=0, le=MAX_TICKS + 1)]
BatchRows = Annotated[int, Meta(ge=1, le=MAX_BATCH)]


class Message(Struct, omit_defaults=True, kw_only=True):
    """Entries of every header; `protocol.encode` fills them in."""

    kind: ClassVar[int] = 0
    """Number of the operation, with `REPLY_BIT` for its reply."""
    arrays: list[ArraySpec] | None = None
    """What lies before the block, in order."""


# Replies.


class Reply(Message):
    """Entries of every reply."""


class Refusal(Reply, kw_only=True):
    """Why a request got no other reply."""

    kind: ClassVar[int] = REFUSAL
    code: str
    error: str


class HelloReply(Reply, kw_only=True):
    """What a server is. With it comes the array `contract`: uint8 `[n]`, canonical JSON."""

    server: str
    """Name and version."""
    capabilities: list[str]
    """Operations."""
    bundle: str
    bundles: dict[str, str]
    """Contract id by name."""
    contract_id: str
    records: bool
    """Whether `episode` is taken."""
    max_bytes: Count | None = None
    """Largest message that the server takes."""


class ActReply(Reply, kw_only=True):
    """A decision or a preview, which only streamed requests get. Block: the chunk, float32 `[h, A]`."""

    value: float | None
    spread: float | None
    steps_used: int | None = None
    seed: int
    timing: dict[str, float] | None = None
    """Seconds by stage."""
    k: int | None = None
    """Refinement steps so far, of a streamed request."""
    last: bool | None = None
    """Of a streamed request: false for a preview."""
    candidate: int | None = None
    """Number of the returned candidate."""
    compared: int | None = None
    """Candidates among which V chose."""
    deltas: tuple[float, ...] | None = None
    """The schedule followed, when it was not the F equal steps."""
    contract_id: str | None = None
    """The new contract, when a compatible bundle took over."""


class ActManyReply(Reply, kw_only=True):
    """The decisions of a batch, in order. Block: the chunks, float32 `[rows, h, A]`.

    With it comes the array `deltas` float64 `[rows, n]`, zeros after a row's last step, when the schedule of
    a row was not the F equal steps.
    """

    value: list[float | None]
    spread: list[float | None]
    steps_used: list[int]
    seed: list[int]
    timing: dict[str, float]
    """Seconds by stage, of the whole batch."""
    candidate: list[int] | None = None
    compared: list[int] | None = None
    contract_id: str | None = None
    """The new contract, when a compatible bundle took over."""


class RefineReply(Reply, kw_only=True):
    """With it come the arrays `next_x` `[N, hA]` and `preview` `[N, h, A]`."""

    contract_id: str | None = None


class ValueReply(Reply, kw_only=True):
    """With it come the arrays `value` `[N]` and `spread` `[N]`."""

    contract_id: str | None = None


class ResetReply(Reply):
    """That the server knows."""


class EpisodeReply(Reply, kw_only=True):
    """Whether a part of an episode was recorded."""

    recorded: bool
    contract_id: str | None = None


class Histogram(Struct):
    """Counts of values up to each bound, and one for those beyond the last."""

    bounds: list[int | float]
    counts: list[int]
    sum: float


class BundleStats(Struct):
    """One bundle and the seconds that its work costs on the server."""

    contract_id: str
    F: int
    costs: dict[str, dict[str, float]]


class StatsReply(Reply, kw_only=True):
    """What the server counted since it started."""

    uptime: float
    requests: dict[str, int]
    """By operation."""
    errors: dict[str, int]
    """By code."""
    deadline_misses: int
    shortened: int
    stages: dict[str, Histogram]
    """Seconds by stage."""
    steps_per_reply: Histogram
    batch_rows: Histogram
    swaps: int
    connected: int
    recorder_dropped: int
    bundles: dict[str, BundleStats]
    ready: bool
    in_flight: int
    clients: int
    worker: int | None = None
    """Which of several processes answered."""


class PingReply(Reply, kw_only=True):
    """A sign of life."""

    requests: int
    errors: int
    ready: bool


# Requests.

R = TypeVar("R", bound=Reply)


class Request(Message, Generic[R], forbid_unknown_fields=True):
    """Entries of every request; R is the type of its reply."""

    operation: ClassVar[str] = ""
    """Its name."""
    named: ClassVar[tuple[str, ...]] = ()
    """Arrays that it may announce."""

    @classmethod
    def reply_type(cls) -> type[R]:
        """The definition that its reply follows."""
        return _REPLIES[cls]  # type: ignore[return-value]


class ObservationRequest(Request[R], Generic[R], kw_only=True):
    """A request whose block holds observations, as the contract lays them out."""

    bundle: str | None = None
    """Name; the server's first if None."""
    contract: str
    """Id of the contract that `hello` gave."""


class Hello(Request[HelloReply]):
    """Ask what the server is, and for the contract of a bundle."""

    bundle: str | None = None
    """Name; the server's first if None."""


class Act(ObservationRequest[ActReply], kw_only=True):
    """Ask for an action chunk. Block: one observation; array `prefix` `[n, A]`: what plays now."""

    named: ClassVar[tuple[str, ...]] = ("prefix",)
    budget: Budget | None = None
    """Seconds from receipt, after which the reply is of no use."""
    candidates: Candidates | None = None
    value: bool | None = None
    seed: Seed | None = None
    stream: bool | None = None
    prune: list[tuple[int, int]] | None = None
    """(k, keep): after refinement step k, go on with the `keep` candidates of highest V."""
    deltas: Deltas | None = None
    """A schedule to follow to the letter; sums to 1. Below 0 where an inversion goes back to noise."""
    jpeg: bool | None = None
    """Whether the cameras' frames come as arrays of JPEG bytes, `NAME/0` to `NAME/n-1`, the oldest first, and
    not in the block."""
    first: CandidateNumber | None = None
    """With `deltas`: number of the first candidate."""
    pessimism: Pessimism | None = None
    """c: candidates are ranked by V - c * spread."""
    committed: Count | None = None
    """Actions of `prefix` that play whatever is decided; all of them if None."""
    continuation: Continuation | None = None
    """How the chunk continues `prefix`."""


class ActMany(ObservationRequest[ActManyReply], kw_only=True):
    """Ask for an action chunk for each of several observations. Block: `rows` observations; array `prefix`
    `[N, A]`: what plays now, of one observation after the other."""

    named: ClassVar[tuple[str, ...]] = ("prefix",)
    operation: ClassVar[str] = "act_many"
    rows: BatchRows | None = None
    """1 if None."""
    budget: Budget | None = None
    """Seconds from receipt, after which the reply is of no use."""
    candidates: Candidates | None = None
    """For each observation."""
    value: bool | None = None
    seeds: list[Seed] | None = None
    """One for each observation."""
    prune: list[tuple[int, int]] | None = None
    """As in `act`."""
    pessimism: Pessimism | None = None
    """As in `act`."""
    lengths: list[Count] | None = None
    """Actions of `prefix` that each observation has; N in all."""
    committed: list[Count] | None = None
    """Of each observation's, how many play whatever is decided; all of them if None."""
    continuation: Continuation | None = None
    """As in `act`."""


class Refine(ObservationRequest[RefineReply], kw_only=True):
    """One refinement step of `x` `[N, hA]` for one observation, from flow time `f` to `f + delta`."""

    named: ClassVar[tuple[str, ...]] = ("x",)
    f: FlowTimes
    delta: FlowTimes


class Value(ObservationRequest[ValueReply], kw_only=True):
    """V of complete chunks `actions` `[N, h, A]`, or of partial ones `x` `[N, hA]` at flow time `f`."""

    named: ClassVar[tuple[str, ...]] = ("actions", "x")
    f: FlowTimes | None = None


class Reset(Request[ResetReply]):
    """Tell the server that a new episode begins."""


class Episode(ObservationRequest[EpisodeReply], kw_only=True):
    """Consecutive ticks of an episode. Block: their observations."""

    named: ClassVar[tuple[str, ...]] = ("actions", "rewards", "success", "intervened", "ages", "notes")
    rows: Rows | None = None
    """Observations in the block; 1 if None."""
    episode: Count
    """Number; with the epoch it names the episode."""
    tick: Count
    """Of the first row."""
    end: bool | None = None
    """Whether the episode ends with these rows."""


class Stats(Request[StatsReply]):
    """Ask for the server's counts."""


class Ping(Request[PingReply]):
    """Ask for a sign of life."""


_REPLIES: dict[type[Request[Any]], type[Reply]] = {
    Hello: HelloReply,
    Act: ActReply,
    Refine: RefineReply,
    Value: ValueReply,
    Reset: ResetReply,
    Episode: EpisodeReply,
    Stats: StatsReply,
    Ping: PingReply,
    ActMany: ActManyReply,
}
for _number, (_request, _reply) in enumerate(_REPLIES.items(), start=1):
    _request.kind, _reply.kind = _number, _number | REPLY_BIT
    _request.operation = _request.operation or _request.__name__.lower()
REQUESTS: dict[str, type[Request[Any]]] = {request.operation: request for request in _REPLIES}
"""By operation."""
