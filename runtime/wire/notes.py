"""What a real-time loop notes of its ticks, as an `episode` request carries it: JSON, one entry a tick."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta, Struct
from numpy.typing import NDArray

from .checks import ProtocolError
from .headers import MAX_COUNT, Seed

MAX_TEXT = 400
"""Characters of a reason."""
Text = Annotated[str, Meta(max_length=MAX_TEXT)]
Number = Annotated[int, Meta(ge=-1, le=MAX_COUNT)]


class TickNote(Struct, omit_defaults=True, forbid_unknown_fields=True):
    """What the real-time loop noted of a tick."""

    fresh: bool = False
    """Whether the command is the policy's action; otherwise it is a hold."""
    kind: Text = ""
    """Kind of the reason below, without names and numbers of this tick."""
    reason: Text = ""
    """Why the safety filter held the tick, or which limit clamped the action."""
    late: float = 0.0
    """Seconds from the deadline to the start of the tick."""
    skipped: Number = 0
    """Cycles left out just before this one."""
    age: float | None = None
    """Seconds from the observation behind the command to the command; not there for a hold."""
    steps: Number = 0
    """Refinement steps behind the command; 0 for a hold."""
    chunk: Number = -1
    """Number of the decision within the loop; -1 for a hold."""
    chunk_index: Number = -1
    """Index of the action in its chunk."""
    seed: Seed | None = None
    """Of the decision behind the command, by which it is found among the recorded ones."""


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(list[TickNote | None])


def encode_notes(notes: Sequence[TickNote | None]) -> NDArray[np.uint8]:
    """The array `notes` of an `episode` request."""
    return np.frombuffer(_encoder.encode(notes), np.uint8)


def decode_notes(array: NDArray[Any], ticks: int) -> list[TickNote | None]:
    """One note for each of the ticks. Raises ProtocolError for anything else."""
    try:
        notes = _decoder.decode(array.tobytes())
    except msgspec.MsgspecError as error:
        raise ProtocolError("bad_request", f"array 'notes' is not a list of notes: {error}") from None
    if len(notes) != ticks:
        raise ProtocolError("bad_request", f"array 'notes' has {len(notes)} notes for {ticks} ticks")
    return notes
