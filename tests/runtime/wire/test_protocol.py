from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rql_deploy.runtime.wire import headers, protocol
from rql_deploy.runtime.wire.protocol import ProtocolError, decode, decode_reply, decode_request, encode
from tests.helpers.wire import raw_header, raw_message, read_header

arrays = st.dictionaries(
    st.text(max_size=20),
    st.sampled_from(["float32", "float64", "uint8", "int32", "int64"]).flatmap(
        lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
    ),
    max_size=5,
)
names = st.none() | st.text(max_size=50)
flow_times = st.floats(0, 1) | st.lists(st.floats(0, 1), max_size=4)
counts = st.integers(0, headers.MAX_COUNT)
requests = st.one_of(
    st.builds(headers.Hello, bundle=names),
    st.builds(
        headers.Act,
        bundle=names,
        contract=names,
        budget=st.none() | st.floats(0, headers.MAX_BUDGET),
        candidates=st.none() | st.integers(1, 256),
        value=st.none() | st.booleans(),
        seed=st.none() | st.integers(0, 2**53 - 1),
        stream=st.none() | st.booleans(),
        prune=st.none() | st.lists(st.tuples(st.integers(0, 99), st.integers(0, 99)), max_size=3),
        deltas=st.none() | st.lists(st.floats(0.01, 1), min_size=1, max_size=64),
        first=st.none() | st.integers(0, 255),
    ),
    st.builds(headers.Refine, bundle=names, contract=names, f=flow_times, delta=flow_times),
    st.builds(headers.Value, bundle=names, contract=names, f=st.none() | flow_times),
    st.builds(headers.Episode, bundle=names, episode=counts, tick=counts, end=st.none() | st.booleans()),
    st.sampled_from([headers.Reset, headers.Stats, headers.Ping]).map(lambda request: request()),
)


@given(requests, arrays, st.integers(0, 2**63), st.integers(0, 2**31))
def test_any_request_survives_the_wire(
    sent: headers.Request[Any], sent_arrays: dict[str, np.ndarray], id: int, epoch: int
) -> None:
    frames = [bytes(frame) for frame in encode(sent, sent_arrays, id=id, epoch=epoch)]
    head, received = decode(frames)
    assert (head.v, head.id, head.epoch, head.op) == (1, id, epoch, sent.operation())
    again = decode_request(head, frames[0])
    assert read_header(bytes(encode(again, sent_arrays, id=id, epoch=epoch)[0])) == read_header(frames[0])
    assert again == msgspec.convert(msgspec.to_builtins(sent), type(sent))
    assert received.keys() == sent_arrays.keys()
    for name, array in sent_arrays.items():
        assert received[name].dtype == array.dtype
        assert received[name].shape == array.shape
        assert received[name].tobytes() == array.tobytes()


STATE = {"state": np.arange(3, dtype=np.float32)}
CHUNK = {"actions": np.zeros((1, 2), np.float32)}


@pytest.mark.parametrize(
    ("message", "sent_arrays", "frames"),
    [
        (
            headers.Hello(bundle="lift"),
            {},
            ["86a17601a2696407a565706f636863a26f70a568656c6c6fa662756e646c65a46c696674a661727261797390"],
        ),
        (
            headers.Act(
                contract="c0ffee", budget=0.02, candidates=4, value=True, seed=2**53 - 1, prune=[(2, 2)]
            ),
            STATE,
            [
                "8ba17601a2696407a565706f636863a26f70a3616374a8636f6e7472616374a6633066666565a6627564676574"
                "cb3f947ae147ae147baa63616e6469646174657304a576616c7565c3a473656564cf001fffffffffffff"
                "a57072756e6591920202a66172726179739193a57374617465a7666c6f617433329103",
                "000000000000803f00000040",
            ],
        ),
        (
            headers.Episode(episode=0, tick=0, end=False, contract="c0ffee"),
            STATE,
            [
                "89a17601a2696407a565706f636863a26f70a7657069736f6465a7657069736f646500a47469636b00a3656e64c2"
                "a8636f6e7472616374a6633066666565a66172726179739193a57374617465a7666c6f617433329103",
                "000000000000803f00000040",
            ],
        ),
        (
            headers.ActReply(
                value=None,
                spread=None,
                steps_used=2,
                seed=5,
                timing={"inference": 0.25, "queue": 0.5, "server": 1.0},
                deltas=(0.5, 0.5),
            ),
            CHUNK,
            [
                "8ba17601a2696407a565706f636863a26f6bc3a576616c7565c0a6737072656164c0aa73746570735f7573656402"
                "a47365656405a674696d696e6783a9696e666572656e6365cb3fd0000000000000a57175657565cb3fe000000000"
                "0000a6736572766572cb3ff0000000000000a664656c74617392cb3fe0000000000000cb3fe0000000000000"
                "a66172726179739193a7616374696f6e73a7666c6f61743332920102",
                "0000000000000000",
            ],
        ),
        (
            headers.ActReply(k=1, last=False, value=1.5, spread=None, seed=5),
            CHUNK,
            [
                "8aa17601a2696407a565706f636863a26f6bc3a16b01a46c617374c2a576616c7565cb3ff8000000000000"
                "a6737072656164c0a47365656405a66172726179739193a7616374696f6e73a7666c6f61743332920102",
                "0000000000000000",
            ],
        ),
        (
            headers.PingReply(requests=3, errors=0, ready=False),
            {},
            [
                "88a17601a2696407a565706f636863a26f6bc3a8726571756573747303a66572726f727300a57265616479c2"
                "a661727261797390"
            ],
        ),
    ],
)
def test_messages_are_those_that_version_1_began_with(
    message: headers.Message, sent_arrays: dict[str, np.ndarray], frames: list[str]
) -> None:
    """The hexadecimal frames are recorded; the order of a map and how its length is written are free."""
    head, *buffers = (bytes.fromhex(frame) for frame in frames)
    sent_head, *sent_buffers = encode(message, sent_arrays, id=7, epoch=99)
    assert read_header(bytes(sent_head)) == read_header(head)
    assert [bytes(frame) for frame in sent_buffers] == buffers


def test_a_refusal_of_a_request_without_an_id_has_none() -> None:
    recorded = "86a17601a565706f636863a26f6bc2a4636f6465a462757379a56572726f72a477616974a661727261797390"
    (frame,) = encode(headers.Refusal(code="busy", error="wait"), id=None, epoch=99)
    assert read_header(bytes(frame)) == read_header(bytes.fromhex(recorded))


def test_numpy_scalars_are_numbers() -> None:
    request = headers.Act(budget=np.float64(0.5), seed=np.int64(3))  # type: ignore[arg-type]
    (frame,) = encode(request, id=1, epoch=1)
    assert read_header(bytes(frame)) == read_header(
        raw_header(v=1, id=1, epoch=1, op="act", budget=0.5, seed=3, arrays=[])
    )


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
        ({"deltas": [0.0, 1.0]}, "entry 'deltas[0]'"),
        ({"first": 256}, "entry 'first'"),
        ({"prefix": 1}, "entry 'prefix' of the header is wrong: expected null"),
        ({"bundle": 1}, "entry 'bundle'"),
        ({"contract": b"x"}, "entry 'contract'"),
    ],
)
def test_an_entry_of_the_wrong_type_or_size_is_named(entries: dict[str, object], words: str) -> None:
    (frame,) = raw_message({"v": 1, "id": 3, "op": "act", **entries})
    head, _ = decode([frame])
    assert head.id == 3
    with pytest.raises(ProtocolError) as error:
        decode_request(head, frame)
    assert error.value.code == "bad_request"
    assert words in str(error.value)


def test_entries_may_be_nil_and_unknown_ones_are_ignored() -> None:
    optional = ["bundle", "contract", "budget", "candidates", "value", "seed", "stream", "prune", "deltas"]
    (frame,) = raw_message(
        {"v": 1, "op": "act", **dict.fromkeys([*optional, "first", "prefix"]), "later": [1]}
    )
    head, _ = decode([frame])
    assert decode_request(head, frame) == headers.Act(v=1, arrays=[])


@pytest.mark.parametrize("operation", ["eval", ["act"], 7, None])
def test_an_unknown_operation_is_refused_with_those_there_are(operation: object) -> None:
    frame = raw_header(v=1, id=1, op=operation)
    with pytest.raises(ProtocolError, match="knows hello, act,") as error:
        decode_request(decode([frame])[0], frame)
    assert error.value.code == "unknown_operation"


def test_every_operation_has_a_reply_and_a_wrong_one_is_refused() -> None:
    assert set(protocol.OPERATIONS) == {
        "hello",
        "act",
        "refine",
        "value",
        "reset",
        "episode",
        "stats",
        "ping",
    }
    for request in headers.REQUESTS.values():
        reply_type = request.reply_type()
        required = [field.name for field in msgspec.structs.fields(reply_type) if field.required]
        if required:
            with pytest.raises(ProtocolError, match="missing required field") as error:
                decode_reply(reply_type, raw_header(v=1, id=1, ok=True))
            assert error.value.code == "bad_reply"


@given(st.lists(st.binary(max_size=200), max_size=5))
def test_garbage_is_a_protocol_error_and_nothing_else(frames: list[bytes]) -> None:
    try:
        head, _ = decode(frames)
    except ProtocolError:
        return
    assert isinstance(msgspec.msgpack.decode(frames[0]), dict)
    with pytest.raises(ProtocolError):
        decode_request(head, frames[0])


@pytest.mark.parametrize("tail", [b"\x91" * 20_000 + b"\xc0", b"\xa2\xff\xff"])
def test_deep_nesting_and_text_that_is_none_are_protocol_errors(tail: bytes) -> None:
    frame = b"\x83\xa1v\x01\xa2op\xa3act\xa8contract" + tail
    with pytest.raises(ProtocolError) as error:
        head, _ = decode([frame])
        decode_request(head, frame)
    assert error.value.code == "bad_header"


@given(st.binary(min_size=1, max_size=64), st.integers(0, 10_000), st.integers(0, 255))
def test_one_changed_byte_is_an_error_or_another_valid_message(noise: bytes, place: int, value: int) -> None:
    message = encode(headers.Act(seed=5), {"a": np.frombuffer(noise, np.uint8)}, id=7, epoch=1)
    frames = [bytearray(frame) for frame in map(bytes, message)]
    frames[0][place % len(frames[0])] = value
    try:
        head, received = decode(frames)
        decode_request(head, frames[0])
    except ProtocolError:
        return
    assert sum(array.nbytes for array in received.values()) == len(noise)


@pytest.mark.parametrize(
    ("described", "buffers", "code"),
    [
        ([["a", "float32", [2]]], [b"1234567"], "bad_array"),
        ([["a", "float32", [-1]]], [b""], "bad_array"),
        ([["a", "float32", [1] * 9]], [b"1234"], "bad_array"),
        ([["a", "object", [1]]], [b"12345678"], "bad_array"),
        ([["a", "float32", [2**40, 2**40]]], [b"1234"], "bad_array"),
        ([["a", "uint8", [1]], ["a", "uint8", [1]]], [b"1", b"2"], "bad_array"),
        ([["a", "uint8"]], [b"1"], "bad_array"),
        ([["a", "uint8", [1.0]]], [b"1"], "bad_array"),
        ([], [b"1"], "bad_array"),
        ("a", [], "bad_array"),
    ],
)
def test_arrays_that_are_not_what_they_say_are_refused(
    described: object, buffers: list[bytes], code: str
) -> None:
    with pytest.raises(ProtocolError) as error:
        decode([raw_header(op="act", arrays=described), *buffers])
    assert error.value.code == code


def test_sizes_are_bounded() -> None:
    with pytest.raises(ProtocolError, match="larger than"):
        decode([b"x" * (protocol.MAX_HEADER_BYTES + 1)])
    with pytest.raises(ProtocolError, match="larger than"):
        decode([raw_header(), *([b""] * (protocol.MAX_ARRAYS + 1))])


def test_objects_are_never_sent() -> None:
    with pytest.raises(ProtocolError, match="dtype object"):
        encode(headers.Act(), {"a": np.array([object()])}, id=1, epoch=1)
    with pytest.raises(TypeError, match="cannot send PosixPath"):
        encode(headers.Hello(bundle=Path("x")), id=1, epoch=1)
