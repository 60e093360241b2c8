"""Whatever arrives is read or refused in one sentence, and allocates nothing of its size."""

from __future__ import annotations

import struct
import tracemalloc

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rql_deploy.contract import ObservationField
from rql_deploy.errors import ContractError
from rql_deploy.runtime.wire import headers, protocol
from rql_deploy.runtime.wire.protocol import (
    Layout,
    ProtocolError,
    decode,
    decode_reply,
    decode_request,
    encode,
)
from tests.helpers.wire import OBSERVATION, raw_message, read_request

X = np.ones((2, 4), np.float32)
GOOD = [
    encode(headers.Act(contract="c", seed=5), OBSERVATION, id=7, epoch=1),
    encode(headers.Value(contract="c"), OBSERVATION._replace(named={"x": X}), id=7, epoch=1),
    encode(headers.Hello(), id=7, epoch=1),
]
plain = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=8)
specs = st.tuples(
    st.sampled_from(["x", "actions"]) | plain,
    st.sampled_from(["float32", "uint8", "object"]) | plain,
    st.lists(st.integers(-2, 2**40), max_size=9) | plain,
)
entries = st.dictionaries(
    st.sampled_from(["contract", "arrays", "rows", "f", "episode", "tick", "end", "seed", "seeds"])
    | st.text(max_size=4),
    st.lists(specs, max_size=3) | st.just("c") | plain | st.lists(plain, max_size=3),
    max_size=5,
)
messages = st.one_of(
    st.binary(max_size=200),
    st.binary(max_size=80).map(lambda tail: b"RQL\2" + tail),
    st.builds(raw_message, st.integers(0, 10), entries, st.binary(max_size=60)),
    st.builds(raw_message, st.integers(0, 10), st.binary(max_size=40)),
    st.builds(lambda good, end: good[:end], st.sampled_from(GOOD), st.integers(0, 200)),
    st.builds(lambda good, tail: good + tail, st.sampled_from(GOOD), st.binary(min_size=1, max_size=40)),
    st.builds(
        lambda good, length: good[:6] + struct.pack("<H", length) + good[8:],
        st.sampled_from(GOOD),
        st.integers(0, 2**16 - 1),
    ),
)


def one_refusal(frame: bytes) -> None:
    """The frame is read, as a request and as a reply, or refused in one short sentence."""
    for read_on in (read_request, lambda frame: decode_reply(decode(frame), headers.ActReply)):
        try:
            read_on(frame)
        except (ProtocolError, ContractError) as error:
            assert 0 < len(str(error)) < 600


@given(messages)
@settings(max_examples=50, deadline=None)
def test_garbage_is_a_refusal_and_nothing_else(frame: bytes) -> None:
    one_refusal(frame)
    answered = protocol.refusal_in_version_1(frame, "because")
    assert msgspec.msgpack.decode(answered)["error"] == "because"


@given(st.sampled_from(GOOD), st.integers(0, 10_000), st.integers(0, 7))
@settings(max_examples=50, deadline=None)
def test_one_flipped_bit_is_a_refusal_or_another_valid_message(good: bytes, place: int, bit: int) -> None:
    frame = bytearray(good)
    frame[place % len(frame)] ^= 1 << bit
    one_refusal(bytes(frame))


@given(st.sampled_from(GOOD), st.integers(1, 16))
@settings(max_examples=50, deadline=None)
def test_a_frame_may_begin_at_any_address(good: bytes, shift: int) -> None:
    frame = memoryview(bytes(shift) + good)[shift:]
    request, fields, named = read_request(frame)
    expected, _, _ = read_request(good)
    assert request == expected
    for array in (*fields.values(), *named.values()):
        assert np.isfinite(array).all()


@pytest.mark.parametrize("tail", [b"\x91" * 20_000 + b"\xc0", b"\xa2\xff\xff", b"\xdd\xff\xff\xff\xff"])
def test_deep_nesting_lies_about_lengths_and_text_that_is_none_are_refused(tail: bytes) -> None:
    frame = raw_message("act", b"\x81\xa8contract" + tail)
    with pytest.raises(ProtocolError) as error:
        decode_request(decode(frame))
    assert error.value.code in ("bad_header", "bad_request")


def test_reading_allocates_nothing_of_the_size_of_a_message() -> None:
    layout = Layout([ObservationField("image", (1000, 1000), dtype="uint8"), ObservationField("a", (4096,))])
    sent = layout.pack({"image": np.zeros((1000, 1000), np.uint8), "a": np.zeros(4096)})
    good = encode(headers.Act(contract="c"), sent, id=1, epoch=1)
    huge = {"contract": "c", "arrays": [["x", "float64", [2**22]]]}
    lies = [good[:-1], raw_message("value", huge), raw_message("episode", {"rows": 4097})]
    read_one = [lambda: layout.read(good, len(good) - layout.row_bytes)]
    read_one += [lambda frame=frame: one_refusal(frame) for frame in lies]  # type: ignore[misc]
    for once in read_one:
        once()
        tracemalloc.start()
        once()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 64 << 10
