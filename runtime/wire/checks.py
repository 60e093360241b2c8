"""Checks that both sides make of a message, and the errors for one that is wrong or refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rql_deploy.errors import UserError

DOT_LIMIT = 4096
"""Numbers up to which a dot product is faster than a sum, and runs on one thread."""


def all_finite(array: NDArray[Any]) -> bool:
    """Whether an array has no NaN and no infinity; integers are always finite.

    A sum is infinite or NaN as soon as one term is, and needs no mask of the array's size. If a sum of finite
    terms overflows, they are checked one by one.
    """
    return array.dtype.kind != "f" or numbers_finite(array.reshape(-1))


def numbers_finite(flat: NDArray[np.floating[Any]]) -> bool:
    """The same for a flat array of floating-point numbers."""
    if len(flat) <= DOT_LIMIT:
        total = flat.dot(flat)
    else:
        with np.errstate(all="ignore"):
            total = flat.sum()
    return math.isfinite(total) or bool(np.isfinite(flat).all())


class ProtocolError(Exception):
    """A message that does not follow the protocol; `code` goes back to its sender."""

    def __init__(self, code: str, text: str):
        super().__init__(text)
        self.code = code


class ServerError(UserError):
    """The server refused a request; `code` is the protocol's error code."""

    def __init__(self, code: str, text: str):
        super().__init__(text)
        self.code = self.kind = code

    def __reduce__(self) -> tuple[type[ServerError], tuple[str, str]]:
        # Exceptions with arguments of their own do not cross process boundaries otherwise.
        return ServerError, (self.code, str(self))
