"""Messages of protocol 2: what is sent is what arrives, and whatever else arrives is one refusal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st

from rql_deploy.policy import CONTINUATIONS
from rql_deploy.runtime.wire import headers, protocol
from rql_deploy.runtime.wire.protocol import (
    Packed,
    ProtocolError,
    decode,
    decode_reply,
    decode_request,
    encode,
)
from tests.helpers.wire import KINDS, LAYOUT, OBSERVATION, raw_message, read_header, read_prefix, read_request

NAMED = {
    "prefix": np.ones((2, 3), np.float32),
    "x": np.ones((2, 4), np.float32),
    "actions": np.ones((1, 2, 2), np.float64),
    "rewards": np.ones(1, np.float32),
    "success": np.ones(1, np.uint8),
    "intervened": np.ones(1, np.uint8),
    "ages": np.ones(1, np.float64),
    "notes": np.ones(4, np.uint8),
}
names = st.none() | st.text(max_size=50)
contracts = st.text(max_size=70)
flow_times = st.floats(0, 1) | st.lists(st.floats(0, 1), max_size=4)
counts = st.integers(0, headers.MAX_COUNT)
requests = st.one_of(
    st.builds(headers.Hello, bundle=names),
    st.builds(
        headers.Act,
        bundle=names,
        contract=contracts,
        budget=st.none() | st.floats(0, headers.MAX_BUDGET),
        candidates=st.none() | st.integers(1, 256),
        value=st.none() | st.booleans(),
        seed=st.none() | st.integers(0, 2**53 - 1),
        stream=st.none() | st.booleans(),
        prune=st.none() | st.lists(st.tuples(st.integers(0, 99), st.integers(0, 99)), max_size=3),
        deltas=st.none() | st.lists(st.floats(0.01, 1), min_size=1, max_size=64),
        first=st.none() | st.integers(0, 255),
        pessimism=st.none() | st.floats(0, 100),
        committed=st.none() | counts,
        continuation=st.none() | st.sampled_from(CONTINUATIONS),
    ),
    st.builds(
        headers.ActMany,
        bundle=names,
        contract=contracts,
        budget=st.none() | st.floats(0, headers.MAX_BUDGET),
        candidates=st.none() | st.integers(1, 256),
        value=st.none() | st.booleans(),
        seeds=st.none() | st.lists(st.integers(0, 2**53 - 1), max_size=5),
        prune=st.none() | st.lists(st.tuples(st.integers(0, 99), st.integers(0, 99)), max_size=3),
    ),
    st.builds(headers.Refine, bundle=names, contract=contracts, f=flow_times, delta=flow_times),
    st.builds(headers.Value, bundle=names, contract=contracts, f=st.none() | flow_times),
    st.builds(
        headers.Episode,
        bundle=names,
        contract=contracts,
        episode=counts,
        tick=counts,
        end=st.none() | st.booleans(),
    ),
    st.sampled_from([headers.Reset, headers.Stats, headers.Ping]).map(lambda request: request()),
)


def arrays_of(request: headers.Request[Any]) -> Packed:
    named = {name: NAMED[name] for name in request.named}
    observes = isinstance(request, headers.ObservationRequest)
    return Packed(OBSERVATION.parts if observes else (), 1, named)


@given(requests, st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
@settings(max_examples=50, deadline=None)
def test_any_request_survives_the_wire(sent: headers.Request[Any], id: int, epoch: int) -> None:
    frame = encode(sent, arrays_of(sent), id=id, epoch=epoch)
    assert read_prefix(frame) == (2, KINDS[sent.operation], id, epoch)
    received, fields, named = read_request(frame)
    assert received == msgspec.convert(msgspec.to_builtins(sent), type(sent))
    assert named.keys() == set(sent.named)
    for name, array in named.items():
        assert (array.dtype, array.shape) == (NAMED[name].dtype, NAMED[name].shape)
        assert array.tobytes() == NAMED[name].tobytes()
    if isinstance(sent, headers.ObservationRequest):
        assert fields["state"].tolist() == [[0, 1, 2]]
        assert fields["image"].tolist() == [[[0, 1, 2], [3, 4, 5]]]
    # A message from an array or a buffer that is written to is read alike.
    assert read_request(memoryview(bytearray(frame)))[0] == received


CHUNK = Packed((np.array([[0.5, -0.5]], np.float32),))


def test_messages_are_those_that_version_2_began_with() -> None:
    """Recorded bytes; the order of a map's entries is free."""
    act = headers.Act(contract="c0ffee", budget=0.02, seed=2**53 - 1, prune=[(2, 2)])
    header = (
        "84 a8" + b"contract".hex() + "a6" + b"c0ffee".hex()  # a map of 4 entries
        + "a6" + b"budget".hex() + "cb 3f947ae147ae147b"
        + "a4" + b"seed".hex() + "cf 001fffffffffffff"
        + "a5" + b"prune".hex() + "91 92 02 02"
    )  # fmt: skip
    prefix = "52514c 02 02 00 3900 0700000000000000 6300000000000000"
    block = "00000000 0000803f 00000040 000102030405"
    recorded = bytes.fromhex(prefix + header + 15 * "00" + block)
    assert encode(act, OBSERVATION, id=7, epoch=99) == recorded
    preview = headers.ActReply(k=1, last=False, value=1.5, spread=None, seed=5)
    frame = encode(preview, CHUNK, id=7, epoch=99)
    assert frame[:24] == bytes.fromhex("52514c 02 82 00 2700 0700000000000000 6300000000000000")
    assert read_header(frame) == {"value": 1.5, "spread": None, "seed": 5, "k": 1, "last": False}
    assert frame[24 + 39 :].hex() == "00" + "0000003f000000bf"
    refused = encode(headers.Refusal(code="busy", error="wait"), id=0, epoch=0)
    assert refused[:8].hex() == "52514c02ff001600"
    assert read_header(refused) == {"code": "busy", "error": "wait"}
    assert encode(headers.Ping(), id=7, epoch=99)[3:8].hex() == "0208000100"


def test_a_reply_survives_the_wire_with_its_chunk() -> None:
    sent = headers.ActReply(value=1.5, spread=None, steps_used=2, seed=5, deltas=(0.5, 0.5))
    reply, arrays = decode_reply(decode(encode(sent, CHUNK, id=7, epoch=99)), headers.ActReply)
    assert reply == sent
    assert arrays["actions"].tolist() == [0.5, -0.5]
    named = {"value": np.ones(2, np.float32), "spread": np.zeros(2, np.float32)}
    frame = encode(headers.ValueReply(contract_id="c"), named, id=7, epoch=99)
    reply, arrays = decode_reply(decode(frame), headers.ValueReply)
    assert arrays["value"].tolist() == [1, 1]
    refusal, _ = decode_reply(
        decode(encode(headers.Refusal(code="busy", error="wait"), id=7, epoch=99)), headers.ValueReply
    )
    assert isinstance(refusal, headers.Refusal)


def test_every_part_of_an_episode_says_how_many_observations_it_has() -> None:
    seen = LAYOUT.pack({"image": np.zeros((3, 2, 3), int), "state": np.zeros((3, 3))}, 3)
    sent = headers.Episode(contract="c", episode=0, tick=0)
    request, fields, _ = read_request(encode(sent, seen, id=1, epoch=1))
    assert request.rows == 3
    assert fields["image"].shape == (3, 2, 3)
    with pytest.raises(AttributeError, match="rows"):
        encode(headers.Act(contract="c"), seen, id=1, epoch=1)


def test_numpy_scalars_are_numbers() -> None:
    request = headers.Act(contract="c", budget=np.float64(0.5), seed=np.int64(3))  # type: ignore[arg-type]
    assert read_header(encode(request, id=1, epoch=1)) == {"contract": "c", "budget": 0.5, "seed": 3}


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"candidates": 0}, "entry 'candidates' of the header is wrong: expected int >= 1"),
        ({"candidates": 10**9}, "expected int <= 256"),
        ({"candidates": True}, "expected int | null, got bool"),
        ({"budget": float("nan")}, "entry 'budget'"),
        ({"budget": -1.0}, "entry 'budget'"),
        ({"budget": 3601}, "entry 'budget'"),
        ({"seed": -1}, "entry 'seed'"),
        ({"value": "yes"}, "entry 'value'"),
        ({"stream": 2}, "entry 'stream'"),
        ({"prune": [[1]]}, "entry 'prune[0]'"),
        ({"prune": 3}, "entry 'prune'"),
        ({"deltas": []}, "entry 'deltas'"),
        ({"deltas": [-1.1, 1.0]}, "entry 'deltas[0]'"),
        ({"first": 256}, "entry 'first'"),
        ({"prefix": 1}, "the header has an unknown entry 'prefix'"),
        ({"committed": -1}, "entry 'committed'"),
        ({"continuation": "guided"}, "entry 'continuation'"),
        ({"pessimism": -0.5}, "entry 'pessimism'"),
        ({"pessimism": float("nan")}, "entry 'pessimism'"),
        ({"bundle": 1}, "entry 'bundle'"),
        ({"contract": b"x"}, "entry 'contract'"),
        ({"contract": None}, "entry 'contract'"),
        ({"candidats": 4}, "the header has an unknown entry 'candidats': did you mean candidates"),
        ({"rows": 2}, "the header has an unknown entry 'rows'"),
        ({"x" * 10**4: 1}, "the header has an unknown entry 'xxx"),
    ],
)
def test_an_entry_of_the_wrong_type_size_or_name_is_named(entries: dict[str, object], words: str) -> None:
    head = decode(raw_message("act", {"contract": "c", **entries}, id=3))
    assert head.id == 3
    with pytest.raises(ProtocolError) as error:
        decode_request(head)
    assert error.value.code == "bad_request"
    assert words in str(error.value)
    assert len(str(error.value)) < 500


def test_a_missing_entry_is_named_and_optional_ones_may_be_nil() -> None:
    with pytest.raises(ProtocolError, match="the header lacks entry 'contract'"):
        decode_request(decode(raw_message("act", {"budget": 1.0})))
    optional = ["bundle", "budget", "candidates", "value", "seed", "stream", "prune", "deltas", "arrays"]
    more = ["first", "pessimism", "committed", "continuation"]
    frame = raw_message("act", {"contract": "c", **dict.fromkeys([*optional, *more])})
    assert decode_request(decode(frame)) == headers.Act(contract="c")
    # What a newer server says beyond it, a client does not need.
    newer = raw_message(headers.PingReply.kind, {"requests": 1, "errors": 0, "ready": True, "later": [1]})
    assert decode_reply(decode(newer), headers.PingReply)[0].requests == 1


def test_an_unknown_operation_is_refused_with_those_there_are() -> None:
    assert tuple(KINDS) == protocol.OPERATIONS
    assert {name: request.kind for name, request in headers.REQUESTS.items()} == KINDS
    for kind in (0, 10, 0x82, 0xFF):
        with pytest.raises(ProtocolError, match="but hello, act,") as error:
            decode_request(decode(raw_message(kind)))
        assert error.value.code == "unknown_operation"


def test_every_operation_has_a_reply_and_a_wrong_one_is_refused() -> None:
    for request in headers.REQUESTS.values():
        reply_type = request.reply_type()
        assert reply_type.kind == request.kind | 0x80
        if any(field.required for field in msgspec.structs.fields(reply_type)):
            with pytest.raises(ProtocolError, match="the header lacks entry") as error:
                decode_reply(decode(raw_message(reply_type.kind)), reply_type)
            assert error.value.code == "bad_reply"
        with pytest.raises(ProtocolError, match="a reply of kind 1 came") as error:
            decode_reply(decode(raw_message(1)), reply_type)


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        (msgspec.msgpack.encode({"v": 1, "id": 1, "op": "hello"}), "protocol 1, this side speaks protocol 2"),
        (raw_message("hello", version=1), "protocol 1, this side speaks protocol 2: update its sender"),
        (raw_message("hello", version=3), "protocol 3, this side speaks protocol 2: update this side"),
    ],
)
def test_another_version_is_one_sentence_that_names_both(frame: bytes, words: str) -> None:
    for read_on in (decode_request, lambda head: decode_reply(head, headers.HelloReply)):
        with pytest.raises(ProtocolError, match=words) as error:
            read_on(decode(frame))
        assert error.value.code == "version"


def test_sizes_are_bounded_when_sending() -> None:
    with pytest.raises(ProtocolError, match=r"the header has 7\d+ bytes, of 65535 at most"):
        encode(headers.Refusal(code="busy", error="x" * 70_000), id=1, epoch=1)
    with pytest.raises(TypeError, match="cannot send PosixPath"):
        encode(headers.Hello(bundle=Path("x")), id=1, epoch=1)  # type: ignore[arg-type]


@pytest.mark.parametrize("large", [False, True])
def test_a_message_of_several_frames_is_dropped_frame_by_frame(large: bool) -> None:
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router, context.socket(zmq.DEALER) as dealer:
        router.bind("inproc://here")
        dealer.connect("inproc://here")
        big = bytes(range(256)) * 300
        for frames in ([b"one"], [b"first", *[b"more"] * 50], [big]):
            dealer.send_multipart(frames)
            client, frame, whole = protocol.receive_from(router, large=large)
            assert (bytes(frame), whole) == (frames[0], len(frames) == 1)
            assert isinstance(frame, memoryview) == (large and frame == big)
            protocol.send(router, bytes(frame), client=client)
            assert protocol.receive(dealer) == frames[0]
            router.send_multipart([client, b"first", b"second"])
            assert protocol.receive(dealer) == b""
            assert not protocol.ready(dealer, zmq.POLLIN)
