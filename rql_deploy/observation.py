"""Reads one observation by the contract: each field as an array of its dtype and shape, or an error by name.

Every policy that takes named fields reads them here, so that the same observation gives the same arrays, or
the same error, whoever decides.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rql_deploy.contract import ObservationField
from rql_deploy.errors import ContractError, nearest

_FLOAT32 = np.dtype(np.float32)


class ObservationReader:
    """The fields that a contract names."""

    def __init__(self, fields: Iterable[ObservationField]):
        self._fields = [(field.name, field.shape, np.dtype(field.dtype)) for field in fields]

    def __call__(self, observation: Mapping[str, Any], rows: int | None = None) -> dict[str, NDArray[Any]]:
        """The contract's fields `[*shape]`, or `[rows, *shape]` of several observations; others are left out.

        Whether they are finite is not checked.

        Raises ContractError when a field is missing, is not numbers or has another shape.
        """
        if not hasattr(observation, "keys"):
            raise ContractError(
                f"the observation is of type {type(observation).__name__}: pass a dict of fields by name"
            )
        found: dict[str, NDArray[Any]] = {}
        for name, shape, dtype in self._fields:
            if name not in observation:
                names = [str(key) for key in observation]
                near = nearest(name, [key for key in names if key not in self.names], cutoff=0.6)
                hint = f" (there is '{near[0]}')" if near else ""
                raise ContractError(f"the observation lacks field '{name}' of shape {list(shape)}{hint}")
            array = observation[name]
            if type(array) is not np.ndarray or array.dtype != dtype:
                array = read_array(name, array, dtype)
            if array.shape != (shape if rows is None else (rows, *shape)):
                given = list(array.shape if rows is None else array.shape[1:])
                raise ContractError(
                    f"observation field '{name}' has shape {given}, the contract says {list(shape)}"
                )
            found[name] = array
        return found

    @property
    def names(self) -> list[str]:
        """Of the fields, in the contract's order."""
        return [name for name, _, _ in self._fields]


def read_array(name: str, value: Any, dtype: np.dtype[Any]) -> NDArray[Any]:
    """A field's value as an array of the contract's dtype, if that loses nothing but digits.

    Raises ContractError otherwise.
    """
    try:
        if isinstance(value, np.ma.MaskedArray) and np.any(value.mask):
            raise ContractError(f"observation field '{name}' has masked values: fill them")
        array = np.asarray(value)
        kind = array.dtype.kind
        # numpy would read text and dates as numbers.
        if kind in "SU" or (kind == "O" and any(isinstance(item, str | bytes) for item in array.flat)):
            raise TypeError("could not convert text")
        if dtype == _FLOAT32 and kind in "biufO":
            return np.asarray(array, dtype)
    except (TypeError, ValueError, RuntimeError, ArithmeticError, RuntimeWarning) as error:
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ContractError(f"observation field '{name}' is not an array of numbers ({text})") from error
    # Images in [0, 1], and truth values, would become black without a word.
    whole = dtype != _FLOAT32 and array.dtype.kind in "iu"
    if not whole or (array.size and not 0 <= array.min() <= array.max() <= 255):
        wanted = "send real numbers" if dtype == _FLOAT32 else "send integers from 0 to 255"
        raise ContractError(
            f"observation field '{name}' has {array.dtype} values, the contract says {dtype.name}: {wanted}"
        )
    return array.astype(dtype)
