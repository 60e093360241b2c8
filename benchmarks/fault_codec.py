"""Generated and altered messages through the decoder."""

from __future__ import annotations

import random
from multiprocessing.connection import Connection

import msgspec
from fault_setup import Outcome, contract, request, spawn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rql_deploy.errors import ContractError
from rql_deploy.runtime.wire import headers, protocol
from rql_deploy.runtime.wire.protocol import Layout

TOGETHER = 8
"""Messages per hypothesis example, as an example itself costs several times as much as a message."""


def altered(source: random.Random, good: bytes) -> list[bytes]:
    """The frames of a message that is random, truncated or altered, or has several."""
    kind = source.randrange(5)
    if kind == 0:
        return [source.randbytes(source.randrange(120)) for _ in range(source.randrange(1, 5))]
    frame = bytearray(good)
    if kind == 1:
        del frame[source.randrange(len(frame)) :]
    elif kind == 2:
        frame[source.randrange(len(frame))] = source.randrange(256)
    elif kind == 3:
        return [good, source.randbytes(source.randrange(40))]
    else:
        entry = source.choice(["arrays", "contract", "rows"])
        value = source.choice([[], [[1]], {"a": {}}, None, 2**63, "x" * 300])
        return [with_header(source.randrange(10), msgspec.msgpack.encode({entry: value}))]
    return [bytes(frame)]


def with_header(kind: int, header: bytes, rest: bytes = b"") -> bytes:
    """A message with that header, whatever it says."""
    prefix = protocol.PREFIX.pack(protocol.MAGIC, protocol.VERSION, kind, len(header), 1, 1)
    return prefix + header + rest


def good_message() -> bytes:
    """A well-formed request."""
    asked, observation = request(seed=3)
    return protocol.encode(asked, observation, id=1, epoch=1)


_plain = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=8)
    | st.binary(max_size=8)
)
_array = st.tuples(
    st.sampled_from(["x", "actions"]) | st.text(max_size=4) | _plain,
    st.sampled_from([*protocol.DTYPES, "object", "float16"]) | _plain,
    st.lists(st.integers(-2, 2**40), max_size=9) | _plain,
)
_header = st.fixed_dictionaries(
    {"arrays": st.lists(_array, max_size=2) | _plain, "contract": st.just("c") | _plain},
    optional={"rows": _plain, "f": _plain, "seed": _plain, "episode": st.just(1), "tick": st.just(1)},
)
_message = st.one_of(
    st.binary(max_size=60),
    st.builds(with_header, st.integers(0, 10), _header.map(msgspec.msgpack.encode), st.binary(max_size=40)),
    st.integers(0, 2**40).map(lambda number: altered(random.Random(number), good_message())[0]),
)


def codec_part(pipe: Connection, count: int, seed: int) -> None:
    """Decode generated messages; run in a process of its own."""
    found = {"cases": 0, "refused": 0, "taken": 0, "other_errors": 0}

    layout = Layout(contract().plant.fields)

    def check(together: list[bytes]) -> None:
        for frame in together:
            one(frame)

    def one(frame: bytes) -> None:
        found["cases"] += 1
        try:
            head = protocol.decode(frame)
            asked = protocol.decode_request(head)
            observes = isinstance(asked, headers.ObservationRequest)
            fields, named = protocol.request_arrays(head, asked, layout if observes else None)
        except (protocol.ProtocolError, ContractError):
            found["refused"] += 1
        except Exception:
            found["other_errors"] += 1
        else:
            # An accepted message is consistent: its arrays fill it but for padding.
            found["taken"] += 1
            arrays = [*named.values(), *fields.values()]
            rest = len(frame) - head.end - sum(array.nbytes for array in arrays)
            found["other_errors"] += not 0 <= rest < 16 * (len(named) + 1)

    from hypothesis import seed as seeded

    rules = settings(
        max_examples=max(1, count // TOGETHER),
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    # Hypothesis stops early where a strategy repeats itself; other seeds go on until the number is reached.
    while found["cases"] < count:
        seeded(seed)(rules(given(st.lists(_message, min_size=TOGETHER, max_size=TOGETHER))(check)))()
        seed += 1000
    pipe.send(found)


def codec(count: int) -> Outcome:
    """Generated and altered messages through the decoder, in two processes."""
    pipes = []
    for seed in range(2):
        ours, theirs = spawn.Pipe()
        spawn.Process(target=codec_part, args=(theirs, count // 2, seed), daemon=True).start()
        pipes.append(ours)
    parts = [pipe.recv() for pipe in pipes]
    total = {key: sum(part[key] for part in parts) for key in parts[0]}
    return Outcome(
        f"{total['refused']:,} of {total['cases']:,} refused, {total['taken']:,} valid after all",
        f"{total['other_errors']} errors of another kind",
        total["other_errors"] == 0 and total["cases"] >= count,
        total,
    )
