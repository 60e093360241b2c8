"""openpi's messages: msgpack maps; an array is a map with `__ndarray__`, `data`, `dtype` and `shape`.

Only what the contract names is taken out of an observation. The rest (a prompt, other cameras) stays as the
bytes it is, so that it costs nothing and cannot do harm: nothing is unpickled, and no value becomes an object
whose size its sender chooses.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
from msgspec import Raw
from numpy.typing import NDArray

from rql_deploy.contract import Contract, ObservationField
from rql_deploy.errors import ContractError, nearest
from rql_deploy.runtime.wire.arrays import DTYPES, MAX_DIMENSIONS

MAX_ENTRIES = 4096
"""Most entries of one map."""
MAX_DEPTH = 8
"""Most maps inside each other that are looked into for a field."""
MAX_KEY = 1024
"""Longest key, in bytes."""
MAX_DTYPE = 16
"""Longest dtype, such as `>f4`."""
_MAP_SIZES = {0xDE: 2, 0xDF: 4}
"""Bytes of a map's size, by its first byte."""
_TEXT_OR_BYTES = frozenset((0xD9, 0xDA, 0xDB, 0xC4, 0xC5, 0xC6))
"""First bytes of text and bytes that are longer than the shortest texts."""
_ITEMS = msgspec.msgpack.Decoder(list[Raw])
_VALUE = msgspec.msgpack.Decoder()
_TEXT = msgspec.msgpack.Decoder(str)
_BUFFER = msgspec.msgpack.Decoder(memoryview)
_SHAPE = msgspec.msgpack.Decoder(list[int])
Entries = Mapping[Any, Raw]
"""By text or, as in a map that stands for an array, by bytes."""


def pack(message: Mapping[str, Any]) -> bytes:
    """A map with numpy arrays, as openpi's client reads it."""
    return msgspec.msgpack.encode(message, enc_hook=_pack_array)


def _pack_array(value: Any) -> Any:
    if not isinstance(value, np.ndarray):
        raise TypeError(f"cannot send {type(value).__name__}")
    return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}


def read_observation(message: str | bytes, contract: Contract) -> dict[str, NDArray[Any]]:
    """The contract's fields of an observation, in their own dtype; one in a nested map is `outer/inner`.

    Arrays of any real dtype and byte order, numpy scalars, numbers and lists of them are converted; a
    picture may have its channels first. Raises ContractError, which names the field.
    """
    entries = None if isinstance(message, str) else _entries(message)
    if entries is None:
        raise ContractError("the observation is not openpi's msgpack map of arrays")
    found: dict[str, NDArray[Any]] = {}
    for field in contract.plant.inputs:
        raw = _find(entries, field.name)
        if raw is None:
            near = nearest(field.name, [key for key in entries if isinstance(key, str)], cutoff=0.6)
            hint = f" (there is '{near[0]}')" if near else ""
            raise ContractError(
                f"the observation lacks field '{field.name}' of shape {list(field.shape)}{hint}"
            )
        try:
            found[field.name] = _convert(_channels_last(_read(raw, field), field), field)
        except Exception as error:  # hostile input: classes without a common base
            raise ContractError(f"observation field '{field.name}' cannot be read: {error}") from error
    return found


def _entries(data: bytes | Raw) -> Entries | None:
    """The entries of a map with text or bytes for keys, no value decoded; None for what is no map."""
    view = memoryview(data)
    kind = view[0] if len(view) else 0
    if kind >> 4 == 0x8:
        count, start = kind & 0x0F, 1
    elif kind in _MAP_SIZES:
        start = 1 + _MAP_SIZES[kind]
        count = int.from_bytes(view[1:start], "big")
    else:
        return None
    if count > MAX_ENTRIES:
        return None
    try:
        # A map of n entries has the bytes of an array of 2 n items, but for its head.
        items = _ITEMS.decode(b"".join((b"\xdd", (2 * count).to_bytes(4, "big"), view[start:])))
        return {
            _VALUE.decode(key): value
            for key, value in zip(items[::2], items[1::2], strict=True)
            if _is_key(memoryview(key))
        }
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def _is_key(key: memoryview) -> bool:
    """Whether it is text or bytes of a reasonable length; other keys name no field."""
    return len(key) <= MAX_KEY and (key[0] >> 5 == 0b101 or key[0] in _TEXT_OR_BYTES)


def _find(entries: Entries, name: str, depth: int = 0) -> Raw | None:
    """The value at `outer/inner`: an entry of that name, or of the map `outer`."""
    if name in entries:
        return entries[name]
    outer, separator, inner = name.partition("/")
    while separator and depth < MAX_DEPTH:
        nested = _entries(entries[outer]) if outer in entries else None
        found = None if nested is None else _find(nested, inner, depth + 1)
        if found is not None:
            return found
        following, separator, inner = inner.partition("/")
        outer = f"{outer}/{following}"
    return None


def _read(raw: Raw, field: ObservationField) -> NDArray[Any]:
    """The array that a value stands for."""
    entries = _entries(raw)
    if entries is None:
        # A numpy scalar takes some 45 bytes: a list of more than these is of no use, and costly to decode.
        if len(memoryview(raw)) > 64 * field.size + 64:
            raise ValueError("it is neither an array nor a list of the contract's shape")
        return np.asarray(_restore(_VALUE.decode(raw)))
    if b"__ndarray__" in entries:
        dtype = _dtype(entries)
        shape = _SHAPE.decode(entries[b"shape"])
        data = _BUFFER.decode(entries[b"data"])
        if len(shape) > MAX_DIMENSIONS or min(shape, default=0) < 0:
            raise ValueError(f"its shape is {shape}")
        if math.prod(shape) * dtype.itemsize != len(data):
            raise ValueError(f"it has {len(data)} bytes, its shape {shape} and dtype {dtype} say otherwise")
        return np.frombuffer(data, dtype).reshape(shape)
    if b"__npgeneric__" in entries:
        dtype = _dtype(entries)
        return np.asarray(_VALUE.decode(entries[b"data"]), dtype)
    raise ValueError("it is a map, not an array")


def _restore(value: Any) -> Any:
    """A list with its numpy scalars as numbers, at any depth."""
    if isinstance(value, list):
        return [_restore(entry) for entry in value]
    return value[b"data"] if isinstance(value, dict) else value


def _dtype(entries: Entries) -> np.dtype[Any]:
    text = _TEXT.decode(entries[b"dtype"])
    dtype = np.dtype(text) if len(text) <= MAX_DTYPE else np.dtype("V")
    if dtype.kind not in "fiub":
        raise ValueError(f"its dtype is {text[:MAX_DTYPE]}, not a number's")
    return dtype


def _channels_last(value: NDArray[Any], field: ObservationField) -> NDArray[Any]:
    """A picture that has its channels first, as some of openpi's clients send it, as the contract has it."""
    if field.dtype != "uint8" or value.ndim != 3 or len(field.shape) != 3 or value.shape == field.shape:
        return value
    height, width, channels = field.shape
    return np.moveaxis(value, 0, -1) if value.shape == (channels, height, width) else value


def _convert(value: NDArray[Any], field: ObservationField) -> NDArray[Any]:
    """The array in the contract's dtype; a picture's values must be whole numbers from 0 to 255."""
    if value.dtype.kind not in "fiub":
        raise ValueError("it does not hold numbers only")
    dtype = DTYPES[field.dtype]
    if dtype.kind == "u" and value.dtype != dtype:
        if value.dtype.kind == "b":
            raise ValueError("it holds truth values, not numbers from 0 to 255")
        whole = value.astype(dtype) if not value.size or (value.min() >= 0 and value.max() <= 255) else None
        if whole is None or not np.array_equal(whole, value):
            raise ValueError("its values are not whole numbers from 0 to 255")
        return whole
    # What float32 cannot hold becomes infinity, which the server refuses by name.
    with np.errstate(over="ignore"):
        return np.asarray(value, dtype)
