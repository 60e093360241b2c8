"""Arrays in a message: a block that the contract describes, and before it arrays announced in the header.

Both sides know from the contract which fields the block has, so it carries neither names nor shapes.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rql_deploy.contract import ObservationField, PlantDescription
from rql_deploy.errors import ContractError
from rql_deploy.observation import ObservationReader

from .checks import ProtocolError, all_finite, numbers_finite
from .headers import ArraySpec

Arrays = Mapping[str, NDArray[Any]]

ALIGNMENT = 16
"""Bytes; every announced array and the block begin at a multiple, counted from the frame's begin."""
PADDING = tuple(bytes(-place % ALIGNMENT) for place in range(ALIGNMENT))
"""By place modulo `ALIGNMENT`: zeros up to the next multiple."""
MAX_ARRAYS = 64
MAX_DIMENSIONS = 8
MAX_MESSAGE_BYTES = 64 * 1024 * 1024
MAX_LAYOUTS_KEPT = 64
"""Numbers of rows for which a layout remembers where its fields are."""
DTYPES = {
    name: np.dtype(name).newbyteorder("<") for name in ("float32", "float64", "uint8", "int32", "int64")
}
# Looked up here, not as dtype.name, which numpy computes in Python.
NATIVE = sys.byteorder == "little"
"""Whether this machine's numbers are those of the wire."""
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_FLOAT32 = DTYPES["float32"]


ENCODED = (bytes, bytearray, memoryview)
"""What the bytes of an encoded picture may be."""
MAX_JPEG_BYTES = 1 << 20
"""Of one frame."""


class Packed(NamedTuple):
    """What a message carries: the parts of its block in order, and arrays by name."""

    parts: Sequence[NDArray[Any]]
    """C-contiguous."""
    rows: int = 1
    """Observations in the block."""
    named: Arrays = MappingProxyType({})


class Layout:
    """Where the fields of a contract are in a block of n observations.

    First the float32 fields, then the uint8 ones, each kind in the contract's order; a field's n values
    `[n, *shape]` are together. Nothing lies between them, so all float32 numbers are one array.
    """

    def __init__(self, fields: Iterable[ObservationField]):
        ordered = sorted(fields, key=lambda field: field.dtype != "float32")
        self.fields = tuple((field.name, field.shape, DTYPES[field.dtype]) for field in ordered)
        """Name, shape and dtype, in the block's order."""
        self.row_bytes = sum(field.size * DTYPES[field.dtype].itemsize for field in ordered)
        """Bytes of one observation."""
        self._reader = ObservationReader(ordered)
        self._floats = sum(field.size for field in ordered if field.dtype == "float32")
        self.numeric = self
        """Without pictures, which come as JPEG."""
        self.frames: tuple[str, ...] = ()
        """Names of the arrays that these then come in: a camera's, `/` and the frame's number."""
        self._places: dict[int, list[tuple[str, tuple[int, ...], np.dtype[Any], int]]] = {}

    @classmethod
    def of(cls, plant: PlantDescription) -> Layout:
        """Of a contract's fields and pictures."""
        layout = cls(plant.inputs)
        if plant.images:
            layout.numeric = cls(plant.fields)
            layout.frames = tuple(
                f"{image.name}/{i}" for image in plant.images for i in range(plant.frame_stack)
            )
        return layout

    def holds_jpeg(self, observation: Any) -> bool:
        """Whether a picture of the observation is JPEG bytes, or a list of them."""
        if not self.frames or not isinstance(observation, Mapping):
            return False
        pictures = (observation.get(name.rpartition("/")[0]) for name in self.frames)
        return any(
            isinstance(picture[0] if isinstance(picture, list | tuple) and picture else picture, ENCODED)
            for picture in pictures
        )

    def pack_jpeg(self, observation: Mapping[str, Any]) -> Packed:
        """The block without pictures, which are the observation's JPEG bytes, or n of them, by camera.

        Raises ContractError for a field that is missing or does not fit.
        """
        named = {}
        for frame in self.frames:
            camera, _, number = frame.rpartition("/")
            pictures = observation.get(camera)
            if isinstance(pictures, ENCODED):
                pictures = [pictures]
            count = sum(name.rpartition("/")[0] == camera for name in self.frames)
            if not isinstance(pictures, list | tuple) or len(pictures) != count:
                raise ContractError(
                    f"camera '{camera}' needs {count} frame{'s' * (count > 1)} of JPEG bytes"
                    f"{' in a list' if count > 1 else ''}, since a picture of the observation is JPEG: "
                    "encode all frames of all cameras or none"
                )
            picture = pictures[int(number)]
            if not isinstance(picture, ENCODED):
                raise ContractError(
                    f"frame {number} of camera '{camera}' is a {type(picture).__name__}, where others are "
                    "JPEG bytes: encode all or none"
                )
            named[frame] = np.frombuffer(bytes(picture), np.uint8)
            if named[frame].nbytes > MAX_JPEG_BYTES:
                raise ContractError(
                    f"frame {number} of camera '{camera}' has more than {MAX_JPEG_BYTES >> 20} MiB of JPEG: "
                    "lower its quality"
                )
        return self.numeric.pack(observation)._replace(named=named)

    def pack(self, observation: Mapping[str, Any], rows: int | None = None) -> Packed:
        """The block of one observation (fields `[*shape]`), or of `rows` (fields `[rows, *shape]`).

        Other fields than the contract's are left out. Raises ContractError for one that is missing or does
        not fit; whether numbers are finite is checked by who reads the block.
        """
        arrays = self._reader(observation, rows).values()
        parts = [
            array if array.flags.c_contiguous else np.ascontiguousarray(array)
            for array in (arrays if NATIVE else map(_little_endian, arrays))
        ]
        return Packed(parts, 1 if rows is None else rows)

    def read(self, frame: Any, start: int, rows: int = 1) -> dict[str, NDArray[Any]]:
        """The fields `[rows, *shape]` of the block that begins at `start` and ends with the frame.

        They are read-only views. Raises ProtocolError for a block of another size, ContractError for one that
        holds NaN or infinity.
        """
        size = len(frame) - start
        if size != rows * self.row_bytes:
            raise ProtocolError(
                "bad_array",
                f"the block has {max(size, 0)} bytes, {rows} observation{'s' * (rows != 1)} "
                f"of this contract {rows * self.row_bytes}",
            )
        fields: dict[str, NDArray[Any]] = {
            name: np.ndarray(shape, dtype, frame, start + offset)
            for name, shape, dtype, offset in self._places.get(rows) or self._place(rows)
        }
        count = rows * self._floats
        if count and not numbers_finite(np.ndarray((count,), _FLOAT32, frame, start)):
            name, value = next(found for found in fields.items() if not all_finite(found[1]))
            row = next(row for row in range(rows) if not all_finite(value[row]))
            which = f" in observation {row}, the first being 0" if rows > 1 else ""
            raise ContractError(f"observation field '{name}' holds NaN or infinity{which}")
        return fields

    def _place(self, rows: int) -> list[tuple[str, tuple[int, ...], np.dtype[Any], int]]:
        """Name, whole shape, dtype and offset of each field in a block of that many rows."""
        places, offset = [], 0
        for name, shape, dtype in self.fields:
            places.append((name, (rows, *shape), dtype, offset))
            offset += rows * math.prod(shape) * dtype.itemsize
        if len(self._places) < MAX_LAYOUTS_KEPT:
            self._places[rows] = places
        return places


def _little_endian(array: NDArray[Any]) -> NDArray[Any]:
    return array.astype(array.dtype.newbyteorder("<"))


def describe(named: Arrays) -> list[ArraySpec]:
    """What a header says of these arrays. Raises ProtocolError for a dtype that the wire does not have."""
    described: list[ArraySpec] = []
    for name, array in named.items():
        dtype = _NAMES.get(array.dtype)
        if dtype is None:
            raise ProtocolError(
                "bad_array", f"array '{name}' has dtype {array.dtype}: use one of {', '.join(DTYPES)}"
            )
        described.append((name, dtype, list(array.shape)))
    return described


def _extent(shape: Sequence[int]) -> int:
    """The size of an array, were no dimension 0: numpy multiplies them all."""
    return math.prod(max(n, 1) for n in shape)


def read_named(frame: Any, place: int, described: Sequence[ArraySpec]) -> tuple[dict[str, NDArray[Any]], int]:
    """The announced arrays, as read-only views of the frame after `place`, and where the last one ends.

    Raises ProtocolError.
    """
    if len(described) > MAX_ARRAYS:
        raise ProtocolError("too_large", f"a message has at most {MAX_ARRAYS} arrays")
    arrays: dict[str, NDArray[Any]] = {}
    for name, dtype_name, shape in described:
        dtype = DTYPES.get(dtype_name)
        if dtype is None:
            raise ProtocolError("bad_array", f"an array has an unknown dtype: use one of {', '.join(DTYPES)}")
        if name in arrays:
            raise ProtocolError("bad_array", f"array '{name[:64]}' comes twice")
        if len(shape) > MAX_DIMENSIONS or min(shape, default=0) < 0 or _extent(shape) > MAX_MESSAGE_BYTES:
            raise ProtocolError("bad_array", f"array '{name[:64]}' has no valid shape")
        place += -place % ALIGNMENT
        end = place + math.prod(shape) * dtype.itemsize
        if end > len(frame):
            raise ProtocolError("bad_array", f"array '{name[:64]}' ends after the message")
        arrays[name] = np.ndarray(tuple(shape), dtype, frame, place)
        place = end
    return arrays, place
