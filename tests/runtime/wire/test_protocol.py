import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rql_deploy.runtime.wire import protocol
from rql_deploy.runtime.wire.protocol import ProtocolError, decode, encode

arrays = st.dictionaries(
    st.text(max_size=20),
    st.sampled_from(["float32", "float64", "uint8", "int32", "int64"]).flatmap(
        lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
    ),
    max_size=5,
)
headers = st.dictionaries(
    st.text(max_size=20).filter(lambda key: key != "arrays"),
    st.none() | st.booleans() | st.integers(0, 2**64 - 1) | st.floats(allow_nan=False) | st.text(max_size=50),
    max_size=8,
)


@given(headers, arrays)
def test_any_message_survives_the_wire(header: dict[str, object], sent: dict[str, np.ndarray]) -> None:
    frames = [bytes(frame) for frame in encode(header, sent)]
    received_header, received = decode(frames)
    assert received_header == header
    assert received.keys() == sent.keys()
    for name, array in sent.items():
        assert received[name].dtype == array.dtype
        assert received[name].shape == array.shape
        assert received[name].tobytes() == array.tobytes()


@given(st.lists(st.binary(max_size=200), max_size=5))
def test_garbage_is_a_protocol_error_and_nothing_else(frames: list[bytes]) -> None:
    try:
        decode(frames)
    except ProtocolError:
        return
    assert isinstance(msgpack.unpackb(frames[0]), dict)


@given(st.binary(min_size=1, max_size=64), st.integers(0, 10_000), st.integers(0, 255))
def test_one_changed_byte_is_an_error_or_another_valid_message(noise: bytes, place: int, value: int) -> None:
    frames = [
        bytearray(frame)
        for frame in map(bytes, encode({"op": "act", "id": 7}, {"a": np.frombuffer(noise, np.uint8)}))
    ]
    frames[0][place % len(frames[0])] = value
    try:
        _, received = decode(frames)
    except ProtocolError:
        return
    assert sum(array.nbytes for array in received.values()) == len(noise)


@pytest.mark.parametrize(
    ("described", "buffers", "code"),
    [
        ([["a", "float32", [2]]], [b"1234567"], "bad_array"),
        ([["a", "float32", [-1]]], [b""], "bad_array"),
        ([["a", "object", [1]]], [b"12345678"], "bad_array"),
        ([["a", "float32", [2**40, 2**40]]], [b"1234"], "bad_array"),
        ([["a", "uint8", [1]], ["a", "uint8", [1]]], [b"1", b"2"], "bad_array"),
        ([], [b"1"], "bad_array"),
        ("a", [], "bad_array"),
    ],
)
def test_arrays_that_are_not_what_they_say_are_refused(
    described: object, buffers: list[bytes], code: str
) -> None:
    with pytest.raises(ProtocolError) as error:
        decode([msgpack.packb({"op": "act", "arrays": described}), *buffers])
    assert error.value.code == code


def test_sizes_are_bounded() -> None:
    with pytest.raises(ProtocolError, match="larger than"):
        decode([b"x" * (protocol.MAX_HEADER_BYTES + 1)])
    with pytest.raises(ProtocolError, match="larger than"):
        decode([msgpack.packb({}), *([b""] * (protocol.MAX_ARRAYS + 1))])


def test_objects_are_never_sent() -> None:
    with pytest.raises(ProtocolError, match="dtype object"):
        encode({}, {"a": np.array([object()])})
