"""What both sides hold a message to: its numbers are finite, and what is refused has an error code."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rql_deploy.errors import UserError

SMALL = 4096
"""Scalars up to which a dot product is cheaper than a sum, and runs on one thread."""


def all_finite(array: NDArray[Any]) -> bool:
    """No NaN, no infinity; what is not floating point is finite.

    A sum is infinite or NaN as soon as one term is, and needs no mask of the array's size; one that overflows by itself is looked at
    again.
    """
    if array.dtype.kind != "f":
        return True
    flat = array.reshape(-1)
    if flat.size <= SMALL:
        total = flat.dot(flat)
    else:
        with np.errstate(all="ignore"):
            total = flat.sum()
    return math.isfinite(total) or bool(np.isfinite(flat).all())


class ServerError(UserError):
    """The server refused a request; `code` is the protocol's error code."""

    def __init__(self, code: str, text: str):
        super().__init__(text)
        self.code = self.kind = code

    def __reduce__(self) -> tuple[type[ServerError], tuple[str, str]]:
        # Exceptions with arguments of their own do not cross process boundaries otherwise.
        return ServerError, (self.code, str(self))
